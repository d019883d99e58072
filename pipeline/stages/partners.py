"""The partners of every cleft: by contact, or by a net."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.errors import ModelError
from pipeline.geometry import Bbox, Halo, Vec3
from pipeline.kernels.components import Extents
from pipeline.kernels.partners import (
    Assignment,
    Surroundings,
    SynapseRows,
    by_contact,
    by_means,
    by_order,
    class_near,
    flags_of,
    sample_centres,
    site_of,
    surroundings,
)
from pipeline.specs import (
    LayerSpec,
    Read,
    Record,
    RecordsSpec,
    Region,
    Sharding,
    Table,
    VolumeSpec,
    VoxelSize,
)
from pipeline.stages.base import ChunkStage, Layer, Specs, Task
from pipeline.stages.components import (
    joined,
    rows_for_chunk,
    same_grid_faults,
    voxel_size_faults,
)
from pipeline.stages.prediction import NetStage
from pipeline.stages.volume import LABEL_DTYPES, expect_bounds, expect_volume


class Partners(ChunkStage):
    """What stages that assign partners to clefts have in common.

    A cleft is the task of the chunk that holds its centroid, and is looked at in a window
    around that, whatever the chunks: so it is assigned once, and one that crosses faces as
    well as any other. The halo is what windows reach.

    Parameters
    ----------
    clefts : str
        Volume of ids of clefts.
    components : str
        Records of `components` of the clefts, over the same grid.
    segmentation : str
        Volume of segment ids.
    supervoxels : str
        Volume of supervoxels of the segmentation, written down so that segments can be
        assigned anew; the segmentation itself if empty.
    semantics : str
        Volume of semantic labels: 0 unknown, 1 soma, 2 axon, 3 dendrite, 4 glia, 5 vessel.
        Empty for none.
    sharding : Sharding
        As in the stage of the components.
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].
    window : Vec3
        How far from its centroid a cleft is looked at, each way [voxel].
    reach_nm : float
        How far from a cleft its partners may be [nm].
    """

    agrees: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "components": ("bounds", "chunk", "sharding")
    }
    bytes_per_voxel: ClassVar[float] = 2.0

    clefts: Layer
    components: Layer
    segmentation: Layer
    supervoxels: Layer = ""
    semantics: Layer = ""
    sharding: Sharding = Sharding()
    voxel_size_nm: VoxelSize
    window: Vec3 = Vec3(80, 80, 12)
    reach_nm: float = Field(default=40.0, gt=0)

    @property
    def volumes(self) -> dict[str, str]:
        """Volumes of ids that are read, by field."""
        names = ("clefts", "segmentation", "supervoxels", "semantics")
        return {name: layer for name in names if (layer := getattr(self, name))}

    @property
    def reach(self) -> Halo:
        """As far as windows."""
        return Halo(self.window, self.window)

    def reads(self, task: Task) -> dict[str, Read]:
        """Read volumes with the halo, and the clefts whose centroid lies in the chunk."""
        return {
            **{name: Region(layer, task.read_box) for name, layer in self.volumes.items()},
            "components": rows_for_chunk(self.components, task.key, self.sharding),
        }

    def process(
        self,
        task: Task,
        *args: Any,
        clefts: NDArray[np.uint64],
        components: list[Table],
        segmentation: NDArray[Any],
        supervoxels: NDArray[Any] | None = None,
        semantics: NDArray[np.uint8] | None = None,
        **images: NDArray[np.uint8],
    ) -> Table:
        """Assign the chunk's clefts."""
        table = joined(components)
        if not table:
            return SynapseRows.of().to_table()
        listed = Extents.from_table(table)
        ids = segmentation.astype(np.uint64, order="F", copy=False)
        names = ids if supervoxels is None else supervoxels
        read = self._read_of(task)
        found: list[Surroundings | None] = []
        for row in np.argsort(listed.ids):
            centre = Vec3.of(listed.centroids[row].tolist())
            window = Bbox(centre - self.window, centre + self.window + 1)
            found.append(
                surroundings(
                    clefts,
                    ids,
                    int(listed.ids[row]),
                    window=window.intersection(task.bounds),
                    origin=read.start,
                    extent=_extent(listed, int(row)),
                    reach_nm=self.reach_nm,
                    voxel_size_nm=self.voxel_size_nm,
                )
            )
        given = [
            None if s is None or semantics is None else semantics[s.box.slices(read.start)]
            for s in found
        ]
        rows = []
        assigned = self.assigned(task, found, given, clefts=clefts, ids=ids, **images)
        order = np.argsort(listed.ids)
        for row, here, classes, one in zip(order, found, given, assigned, strict=True):
            centre = Vec3.of(listed.centroids[row].tolist())
            sites, kinds = [centre, centre], (0, 0)
            if here is not None:
                sites = [
                    site_of(here, segment, centre, self.voxel_size_nm)
                    for segment in (one.pre, one.post)
                ]
                kinds = (
                    class_near(here, one.pre, classes),
                    class_near(here, one.post, classes),
                )
            extent = _extent(listed, int(row))
            at = [
                int(names[(site - read.start).astuple()]) if segment else 0
                for site, segment in zip(sites, (one.pre, one.post), strict=True)
            ]
            flags = flags_of(
                one,
                kinds,
                is_cut=here is None or here.is_cut,
                at_bounds=not _inner(task.bounds).contains(extent),
            )
            rows.append(
                (
                    listed.ids[row],
                    listed.sizes[row],
                    listed.sums[row],
                    1,
                    *(site.astuple() for site in sites),
                    *at,
                    one.pre,
                    one.post,
                    one.pre_score,
                    one.post_score,
                    *kinds,
                    flags,
                )
            )
        return SynapseRows.of(rows).to_table()

    @abstractmethod
    def assigned(
        self,
        task: Task,
        found: Sequence[Surroundings | None],
        classes: Sequence[NDArray[np.uint8] | None],
        *,
        clefts: NDArray[np.uint64],
        ids: NDArray[np.uint64],
        **images: NDArray[np.uint8],
    ) -> list[Assignment]:
        """Return the partners of each cleft."""

    def _read_of(self, task: Task) -> Bbox:
        """Return the box that the volumes are read in."""
        read = self.reads(task)["clefts"]
        assert isinstance(read, Region)
        return read.box

    def target(self, task: Task) -> Record:
        """Write a record per chunk."""
        return Record(self.output, str(task.key))

    def describe(self, specs: Specs) -> LayerSpec:
        """Write records."""
        return RecordsSpec()

    def check(self, specs: Specs) -> list[str]:
        """Check the volumes, and that they are of the same voxels."""
        faults = expect_volume(self.name, specs, self.clefts, dtypes=("uint64",))
        for layer in filter(None, (self.segmentation, self.supervoxels)):
            faults += expect_volume(self.name, specs, layer, dtypes=LABEL_DTYPES)
        if self.semantics:
            faults += expect_volume(self.name, specs, self.semantics, dtypes=("uint8",))
        for layer in self.volumes.values():
            faults += expect_bounds(self.name, specs, layer, self.bounds)
        faults += same_grid_faults(self.name, specs, list(self.volumes.values()))
        faults += voxel_size_faults(self.name, specs, self.clefts, self.voxel_size_nm)
        listed = specs.get(self.components)
        if listed is not None and listed.kind != "records":
            faults.append(
                f"{self.name}: {self.components} holds {listed.kind}, not components"
            )
        return faults


class ContactPartners(Partners):
    """Partners by contact: the two segments that have most of a cleft's neighbourhood.

    Which is presynaptic is told by semantic classes where they differ, else by which side
    the cleft lies on: needs no net, and is the baseline of one.
    """

    name: ClassVar[str] = "contact_partners"

    def assigned(
        self,
        task: Task,
        found: Sequence[Surroundings | None],
        classes: Sequence[NDArray[np.uint8] | None],
        *,
        clefts: NDArray[np.uint64],
        ids: NDArray[np.uint64],
        **images: NDArray[np.uint8],
    ) -> list[Assignment]:
        """Compare contacts."""
        return [
            Assignment() if here is None else by_contact(here, given)
            for here, given in zip(found, classes, strict=True)
        ]


class NetPartners(Partners, NetStage):
    """Partners by a net that is shown one cleft (Turner et al. 2020).

    The net sees the image and, in a channel of its own, the cleft, in a patch centred on
    it; where a cleft is long, in two. A segment within reach scores by the mean of what
    the net says over its voxels in the patches; the best for pre and the best for post
    are the partners.

    Parameters
    ----------
    image : str
        Volume of uint8 intensities with the same voxels.
    head : str
        Head of the model, of masks, with the channels pre and post.
    pair : {"net", "contact"}
        Who says which two segments are partners: the net, or, as in contact_partners, what
        each has of the cleft's neighbourhood; the net then says which of them is before.
    """

    name: ClassVar[str] = "net_partners"

    image: Layer
    head: str = "partners"
    pair: Literal["net", "contact"] = "net"

    @property
    def volumes(self) -> dict[str, str]:
        """The image too."""
        return {**super().volumes, "image": self.image}

    @property
    def head_name(self) -> str:
        """The one that is named."""
        return self.head

    @property
    def reach(self) -> Halo:
        """As far as patches around voxels of windows."""
        far = self.window + self._config.inference.patch.ceil_div(2)
        return Halo(far, far)

    def assigned(
        self,
        task: Task,
        found: Sequence[Surroundings | None],
        classes: Sequence[NDArray[np.uint8] | None],
        *,
        clefts: NDArray[np.uint64],
        ids: NDArray[np.uint64],
        **images: NDArray[np.uint8],
    ) -> list[Assignment]:
        """Run the net on the patches of all clefts, in their order."""
        patch = self._config.inference.patch
        read = self._read_of(task)
        boxes: list[list[Bbox]] = []
        for here in found:
            centres = [] if here is None else sample_centres(here, patch)
            if here is not None and not len(here.candidates):
                centres = []
            boxes.append([Bbox.of_shape(patch, c - patch // 2) for c in centres])

        def patches() -> Iterator[NDArray[np.uint8]]:
            for here, around in zip(found, boxes, strict=True):
                for box in around:
                    assert here is not None
                    given = np.empty((2, *patch.astuple()[::-1]), np.uint8)
                    given[0] = _cut(images["image"], box, read).T
                    given[1] = _cut(here.cleft, box, here.box).T
                    yield given

        pre, post = (self.head_of_model.channels.index(c) for c in ("pre", "post"))
        said = self._runner(task.threads)(patches()) if any(boxes) else iter(())
        result = []
        for here, around in zip(found, boxes, strict=True):
            # Indexing copies: what the runner yields is its own until the next is drawn.
            outputs = [(_cut(ids, box, read), next(said)[[pre, post]].T) for box in around]
            if here is None:
                result.append(Assignment())
            elif self.pair == "contact":
                result.append(by_order(here, outputs))
            else:
                result.append(by_means(here.candidates, outputs))
        # Drawn to its end, the runner lets go of its threads.
        assert not list(said)
        return result

    def memory(self, specs: Specs, level: int = 0) -> int:
        """Estimate as for volumes, with a batch in the net [byte]."""
        from pipeline.nets import peak_bytes

        engine = peak_bytes(
            self._config,
            self._config.inference.patch,
            width=self.head_of_model.width,
            batch=self.batch,
        )
        task = self.task(next(iter(self.keys(level))))
        read = sum(
            region.box.volume * spec.itemsize
            for region in self.reads(task).values()
            if isinstance(region, Region)
            and isinstance(spec := specs.get(region.layer), VolumeSpec)
        )
        return engine + 2 * read

    def check(self, specs: Specs) -> list[str]:
        """Check the image, and that the model takes a cleft and gives pre and post."""
        try:
            config = self._config
        except ModelError as error:
            return [f"{self.name}: {error}"]
        faults = super().check(specs)
        faults += expect_volume(self.name, specs, self.image, dtypes=("uint8",))
        if config.inputs != ("image", "cleft"):
            faults.append(
                f"{self.name}: model {self.model} takes {', '.join(config.inputs)}, and "
                "the stage has image and cleft; take another model"
            )
        head = next((h for h in config.head if h.name == self.head), None)
        if head is None:
            heads = ", ".join(h.name for h in config.head)
            faults.append(
                f"{self.name}: model {self.model} gives {heads} and no head {self.head}; "
                "take another model"
            )
        elif head.kind != "masks" or not {"pre", "post"} <= set(head.channels):
            faults.append(
                f"{self.name}: head {head.name} of model {self.model} gives {head.kind} "
                f"{', '.join(head.channels)}; take one of masks pre and post"
            )
        spec = specs.get(self.image)
        if isinstance(spec, VolumeSpec):
            faults += self.voxel_faults(self.image, spec.voxel_size_nm)
        return faults


def _extent(listed: Extents, row: int) -> Bbox:
    return Bbox(Vec3.of(listed.low[row].tolist()), Vec3.of(listed.high[row].tolist()))


def _inner(bounds: Bbox) -> Bbox:
    """Return the bounds without their outermost voxels, which may be all there are."""
    low = bounds.start + 1
    return Bbox(low, (bounds.stop - 1).maximum(low))


def _cut(volume: NDArray[Any], box: Bbox, read: Bbox) -> NDArray[Any]:
    """Return a box of a volume, 0 where it reaches beyond what was read."""
    out = np.zeros(box.shape.astuple(), volume.dtype, order="F")
    common = box.intersection(read)
    if not common.is_empty:
        out[common.slices(box.start)] = volume[common.slices(read.start)]
    return out
