"""What a person looks at: the layers of a run in a viewer, and their contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import MissingInputError
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.connectome import Direction
from pipeline.runtime.run import Run
from pipeline.specs import Mesh, Region, VolumeSpec

if TYPE_CHECKING:
    from pipeline.view import ViewLayer, ViewList, ViewSynapses

_SELECTED = 12
_LISTED = 500
_DIRECTIONS: tuple[tuple[Direction, Direction, str], ...] = (
    ("post", "pre", "from"),
    ("pre", "post", "onto"),
)
_CANDIDATES = 60
_SHEET = Vec3(512, 512, 128)
_SHOWN = ("image", "affinities", "segmentation", "truth")


def view_layers(run: Run, *, segments: list[int] | None = None) -> list[ViewLayer]:
    """Describe the volumes of a run for the viewer, what they hang on it included.

    Parameters
    ----------
    run : Run
        Started.
    segments : list of int or None
        Ids to select; None takes the largest ones of every layer with meshes.
    """
    from pipeline.view import ViewLayer

    written = [stage.output for stage in run.recipe.stages]
    outside = [layer for layer in run.recipe.external if run.store.is_precomputed(layer)]
    linked = {lines.segmentation for lines in view_synapses(run)}
    layers = []
    for layer in (*outside, *written):
        spec = run.specs[layer]
        meshes = f"{layer}/meshes" in written
        # Basins and supervoxels are means to an end.
        is_shown = layer in (*_SHOWN, *linked) or layer in outside or meshes
        if not is_shown or not isinstance(spec, VolumeSpec):
            continue
        selected: list[int] = []
        if meshes:
            selected = largest_segments(run, layer) if segments is None else segments
        elif layer in linked and segments is not None:
            selected = segments
        layers.append(
            ViewLayer(
                name=layer,
                location=run.store.location(layer),
                spec=spec,
                meshes=meshes,
                skeletons=f"{layer}/skeletons" in written,
                selected=selected,
            )
        )
    return layers


def view_synapses(run: Run, *, only_selected: bool = False) -> list[ViewSynapses]:
    """Describe the synapses of a run for the viewer.

    Parameters
    ----------
    run : Run
        Started.
    only_selected : bool
        Whether only those of selected segments are shown.
    """
    from pipeline.stages.partners import Partners
    from pipeline.stages.synapses import Annotations
    from pipeline.view import ViewSynapses

    segmentations = [s.segmentation for s in run.recipe.stages if isinstance(s, Partners)]
    return [
        ViewSynapses(
            name=stage.output,
            location=run.store.location(stage.output),
            segmentation=segmentations[-1] if segmentations else "segmentation",
            only_selected=only_selected,
        )
        for stage in run.recipe.stages
        if isinstance(stage, Annotations)
    ]


def view_lists(run: Run, segments: Sequence[int]) -> list[ViewList]:
    """List the synapses of some neurons for the viewer, a list for each.

    Parameters
    ----------
    run : Run
        Started; without a connectome there is nothing to list.
    segments : sequence of int
        The neurons. Of one with very many synapses the largest are listed.
    """
    from pipeline.runtime.connectome import open_connectome
    from pipeline.stages.synapses import Connectome
    from pipeline.view import ListedSynapse, ViewList

    shown = view_synapses(run)
    if not shown or not any(isinstance(s, Connectome) for s in run.recipe.stages):
        return []
    try:
        reader = open_connectome(run)
    except MissingInputError:
        # What there is of an unfinished run is shown.
        return []
    lists = []
    for segment in segments:
        listed: dict[int, ListedSynapse] = {}
        for side, other, word in _DIRECTIONS:
            table = reader.of(segment, side)
            order = np.argsort(-table["size"].astype(np.int64), kind="stable")
            for row in table[order[:_LISTED]]:
                partner = int(row[f"{other}_segment"]) or "nobody"
                # An autapse is both; it is listed once.
                listed.setdefault(
                    int(row["id"]),
                    ListedSynapse(
                        id=int(row["id"]),
                        pre_nm=_place_nm(row, "pre"),
                        post_nm=_place_nm(row, "post"),
                        pre=int(row["pre_segment"]),
                        post=int(row["post_segment"]),
                        text=f"{word} {partner}, {row['size']} voxels",
                    ),
                )
        rows = list(listed.values())
        lists.append(ViewList(f"synapses of {segment}", shown[-1].segmentation, rows))
    return lists


def _place_nm(row: Any, side: str) -> tuple[float, float, float]:
    x, y, z = (float(row[f"{side}_{axis}_nm"]) for axis in "xyz")
    return x, y, z


def largest_segments(run: Run, layer: str, count: int = _SELECTED) -> list[int]:
    """Return the segments that fill most of a layer, the largest first.

    Sizes come from the coarsest mip, which is small enough to hold.
    """
    spec = run.specs[layer]
    assert isinstance(spec, VolumeSpec)
    mip = len(spec.factors) - 1
    ids = run.store.read(Region(layer, spec.bounds_at(mip), mip))
    found, sizes = np.unique(ids, return_counts=True)
    sizes = np.where(found == 0, 0, sizes)
    order = np.argsort(-sizes, kind="stable")
    return [int(found[i]) for i in order[:count] if sizes[i] > 0]


def contact_sheet_of(run: Run, path: Path, scores: dict[str, Any] | None) -> None:
    """Draw the contact sheet of a run: sections, segments, and neurons in 3D.

    Parameters
    ----------
    run : Run
        Complete.
    path : Path
        PNG to write.
    scores : dict or None
        Scores to print on it.
    """
    from pipeline.contact_sheet import contact_sheet

    image = run.specs["image"]
    assert isinstance(image, VolumeSpec)
    box = _middle(image.bounds)
    store = run.store
    with_mesh = set(store.segments("segmentation/meshes"))
    meshes: dict[int, Mesh] = {
        segment: store.read_mesh("segmentation/meshes", segment)
        for segment in largest_segments(run, "segmentation", _CANDIDATES)
        if segment in with_mesh
    }
    contact_sheet(
        path,
        image=store.read(Region("image", box)),
        affinities=store.read(Region("affinities", box)),
        segmentation=store.read(Region("segmentation", box)),
        meshes=meshes,
        truth=store.read(Region("truth", box)) if "truth" in run.specs else None,
        title=run.recipe.name,
        subtitle=_extent(box, image),
        scores=_headline(scores),
        voxel_size_nm=image.voxel_size_nm,
        corner_nm=_corner_nm(box, image),
    )


def _headline(scores: dict[str, Any] | None) -> dict[str, float]:
    """Return the scores that are printed large, by their names."""
    names = {
        "arand": "adapted Rand error",
        "voi_split": "VOI split [bit]",
        "voi_merge": "VOI merge [bit]",
        "nerl": "NERL",
    }
    found = scores or {}
    return {n: found[k] for k, n in names.items() if found.get(k) is not None}


def _extent(box: Bbox, spec: VolumeSpec) -> str:
    x, y, z = (n * s / 1000 for n, s in zip(box.shape, spec.voxel_size_nm, strict=True))
    voxel = " x ".join(f"{s:g}" for s in spec.voxel_size_nm)
    return f"{x:.1f} x {y:.1f} x {z:.1f} um of electron microscopy, voxels of {voxel} nm"


def _corner_nm(box: Bbox, spec: VolumeSpec) -> tuple[float, float, float]:
    x, y, z = (a * s for a, s in zip(box.start, spec.voxel_size_nm, strict=True))
    return x, y, z


def _middle(bounds: Bbox) -> Bbox:
    """Return the middle of the bounds, no larger than a picture can show."""
    size = bounds.shape.minimum(_SHEET)
    start = bounds.start + (bounds.shape - size) // 2
    return Bbox(start, start + size)
