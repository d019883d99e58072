"""What is learnt from, read into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, MissingInputError
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.sources import Source, open_source
from pipeline.nets.config import Head, ModelConfig
from pipeline.specs import VoxelSize
from pipeline.training.config import CELLS, TrainConfig, Truth, VolumeConfig

UNKNOWN = 2
"""In a mask: nothing is known of the voxel; 1 is inside, 0 outside."""

_SIZE_TOLERANCE = 0.01
_COARSEST_Z = 1.5


@dataclass(frozen=True)
class Volume:
    """A box of tissue: what the net is given, and what is true of it.

    Parameters
    ----------
    name : str
        What messages call it.
    inputs : mapping of str to uint8 array, (x, y, z)
        Grey levels of the image; other inputs are 0 or 1.
    truth : mapping of str to array, (x, y, z)
        Ids of cells; masks of `UNKNOWN`, 1 and 0.
    known : bool array, (x, y, z), optional
        Where cells are known; everywhere if None.
    ratio : (x, y, z)
        Voxels of the volume for each of the model's.
    start : Vec3
        First voxel of the box, in the source.
    weight : float
        How often it is drawn from.
    """

    name: str
    inputs: Mapping[str, NDArray[np.uint8]]
    truth: Mapping[str, NDArray[Any]]
    known: NDArray[np.bool_] | None = None
    ratio: tuple[float, float, float] = (1.0, 1.0, 1.0)
    start: Vec3 = field(default_factory=lambda: Vec3(0, 0, 0))
    weight: float = 1.0

    def __post_init__(self) -> None:
        shapes = {k: v.shape for k, v in (*self.inputs.items(), *self.truth.items())}
        if len(set(shapes.values())) != 1 or len(self.shape.astuple()) != 3:
            listed = ", ".join(f"{k} {s}" for k, s in shapes.items())
            raise DataError(
                f"volume {self.name} has arrays of {listed}; give one shape, x, y, z"
            )

    @property
    def shape(self) -> Vec3:
        """Extent [voxel]."""
        return Vec3.of(self.inputs["image"].shape)


def names_of(heads: Sequence[Head]) -> list[str]:
    """Return the truths that heads learn from, in order, each once.

    Embeddings learn from the image alone.
    """
    names: dict[str, None] = {}
    for head in heads:
        if head.kind != "embedding":
            own = [CELLS] if head.kind == "affinities" else head.channels
            names.update(dict.fromkeys(own))
    return list(names)


def load_volumes(
    folder: Path,
    config: TrainConfig,
    model: ModelConfig,
    use: Literal["train", "validation"],
) -> list[Volume]:
    """Read all boxes of a use, and refuse what could not be learnt from.

    Parameters
    ----------
    folder : Path
        Where sources without an absolute path or an address lie.
    config : TrainConfig
        Which volumes.
    model : ModelConfig
        Which inputs and truths are needed, and at which voxel size.
    use : {"train", "validation"}
        Which boxes.

    Returns
    -------
    list of Volume
        In the order of the configuration; none if no volume has such a box.

    Raises
    ------
    MissingInputError
        If a source is not there, or none says what a head should learn.
    DataError
        If sources differ in shape or voxel size, do not hold the box, or if a class never
        occurs in what is learnt from.
    """
    found = [load_volume(folder, v, model, use) for v in config.volume]
    volumes = [v for v in found if v is not None]
    if use == "train":
        _require_all_classes(volumes, names_of(model.head))
    return volumes


def load_volume(
    folder: Path,
    config: VolumeConfig,
    model: ModelConfig,
    use: Literal["train", "validation"],
) -> Volume | None:
    """Read one box of one volume; None if the volume has none for this use."""
    missing = set(model.inputs) - set(config.inputs)
    if missing:
        raise MissingInputError(
            f"volume {config.name} has no {', '.join(sorted(missing))}, which model "
            f"{model.name} takes; name the source under inputs"
        )
    truths = {n: t for n, t in config.truth.items() if n in names_of(model.head)}
    reader = _Reader(folder, config)
    try:
        image = reader.open(config.inputs["image"])
        box = config.box(use, image.bounds)
        if box is None:
            return None
        size = config.voxel_size_nm or image.voxel_size_nm
        if size is None:
            raise DataError(
                f"volume {config.name}: {config.inputs['image']} does not say how large "
                "its voxels are; write voxel_size_nm"
            )
        inputs = {
            name: _as_input(name, reader.read(config.inputs[name], box))
            for name in model.inputs
        }
        truth = {
            name: _cells(reader.read(t.source, box), name, config)
            if name == CELLS
            else _mask(reader.read(t.source, box), t)
            for name, t in truths.items()
        }
        known = _known(reader, config, truths, box)
    finally:
        reader.close()
    for name in truth:
        if name != CELLS and known is not None:
            truth[name] = np.where(known, truth[name], np.uint8(UNKNOWN))
    if CELLS in truths and truths[CELLS].ignore:
        named = ~np.isin(truth[CELLS], truths[CELLS].ignore)
        known = named if known is None else known & named
    return _shrunk(
        Volume(
            config.name,
            inputs,
            truth,
            known if CELLS in truth else None,
            _ratio(config.name, size, model),
            box.start,
            config.weight,
        )
    )


class _Reader:
    """The sources of one volume, each opened once and held against the first."""

    def __init__(self, folder: Path, config: VolumeConfig) -> None:
        self.folder, self.config = folder, config
        self.sources: dict[str, Source] = {}
        self.arrays: dict[tuple[str, Bbox], NDArray[Any]] = {}

    def open(self, location: str) -> Source:
        if location in self.sources:
            return self.sources[location]
        address = location
        if "://" not in location and not Path(location).is_absolute():
            address = str(self.folder / location)
            path = self.folder / location
            if not path.exists() and not path.with_name(path.name.split(":")[0]).exists():
                raise MissingInputError(
                    f"{path} does not exist; set EM_DATA, or give --data, the folder of "
                    "the data"
                )
        source = open_source(address)
        self.sources[location] = source
        first = next(iter(self.sources.values()))
        name = self.config.name
        if source.shape != first.shape or source.bounds != first.bounds:
            raise DataError(
                f"volume {name}: {location} covers {source.bounds} and {first.location} "
                f"{first.bounds}; give sources of the same voxels"
            )
        sizes = [
            s for s in (self.config.voxel_size_nm, first.voxel_size_nm) if s is not None
        ]
        mine = source.voxel_size_nm
        if mine is not None and any(not _alike(mine, s) for s in sizes):
            raise DataError(
                f"volume {name}: {location} has voxels of {_nm(mine)} and the volume of "
                f"{_nm(sizes[0])}; give sources of one voxel size"
            )
        return source

    def read(self, location: str, box: Bbox) -> NDArray[Any]:
        source = self.open(location)
        if not source.bounds.contains(box):
            raise DataError(
                f"volume {self.config.name}: {location} covers {source.bounds} and not "
                f"{box}; choose a box inside"
            )
        if (location, box) not in self.arrays:
            array = source.read(box)
            self.arrays[location, box] = array if array.ndim == 3 else array[..., 0]
        return self.arrays[location, box]

    def close(self) -> None:
        for source in self.sources.values():
            source.close()


def _alike(one: VoxelSize, two: VoxelSize) -> bool:
    return all(abs(a - b) <= _SIZE_TOLERANCE * b for a, b in zip(one, two, strict=True))


def _nm(size: Sequence[float]) -> str:
    return " x ".join(f"{s:g}" for s in size) + " nm"


def _as_input(name: str, array: NDArray[Any]) -> NDArray[np.uint8]:
    if name != "image":
        return np.asfortranarray(array != 0, dtype=np.uint8)
    if array.dtype != np.uint8:
        raise DataError(
            f"the image is {array.dtype}; give uint8, for example a layer that "
            "em ingest --intensity-range makes"
        )
    return np.asfortranarray(array)


def _cells(array: NDArray[Any], name: str, config: VolumeConfig) -> NDArray[Any]:
    if array.dtype.kind not in "iu":
        raise DataError(
            f"volume {config.name}: {name} are {array.dtype}; give whole numbers, an id "
            "for each cell"
        )
    return np.asfortranarray(array)


def _mask(array: NDArray[Any], truth: Truth) -> NDArray[np.uint8]:
    inside = np.isin(array, truth.values) if truth.values else array != 0
    mask = np.asfortranarray(inside, dtype=np.uint8)
    if truth.ignore:
        mask[np.isin(array, truth.ignore)] = UNKNOWN
    return mask


def _known(
    reader: _Reader, config: VolumeConfig, truths: Mapping[str, Truth], box: Bbox
) -> NDArray[np.bool_] | None:
    if not config.labelled or not truths:
        return None
    return np.asfortranarray(reader.read(config.labelled, box) != 0)


def _ratio(name: str, size: VoxelSize, model: ModelConfig) -> tuple[float, float, float]:
    x, y, z = (m / s for m, s in zip(model.voxel_size_nm, size, strict=True))
    if model.architecture.planar:
        return x, y, 1.0
    if z * _COARSEST_Z < 1:
        raise DataError(
            f"volume {name} has sections of {size[2]:g} nm, and model {model.name} is for "
            f"{model.voxel_size_nm[2]:g} nm: sections cannot be made up; take thinner ones"
        )
    return x, y, z


def _shrunk(volume: Volume) -> Volume:
    """Average the image over whole voxels, where the model's are twice as wide or more."""
    block = (int(volume.ratio[0]), int(volume.ratio[1]))
    if max(block) < 2:
        return volume
    bx, by = block
    nx, ny, nz = (volume.shape.x // bx, volume.shape.y // by, volume.shape.z)

    def mean(array: NDArray[Any]) -> NDArray[np.uint8]:
        blocks = array[: nx * bx, : ny * by].reshape(nx, bx, ny, by, nz)
        return np.asfortranarray(np.rint(blocks.mean(axis=(1, 3))), dtype=np.uint8)

    def middle(array: NDArray[Any]) -> NDArray[Any]:
        return np.asfortranarray(array[bx // 2 : nx * bx : bx, by // 2 : ny * by : by])

    return Volume(
        volume.name,
        {k: mean(v) if k == "image" else middle(v) for k, v in volume.inputs.items()},
        {k: middle(v) for k, v in volume.truth.items()},
        None if volume.known is None else middle(volume.known),
        (volume.ratio[0] / bx, volume.ratio[1] / by, volume.ratio[2]),
        volume.start,
        volume.weight,
    )


def _require_all_classes(volumes: Sequence[Volume], names: Sequence[str]) -> None:
    for name in names:
        held = [v for v in volumes if name in v.truth]
        if not held:
            raise MissingInputError(
                f"no volume says what {name} is, which the model shall learn; name a "
                "source for it under truth"
            )
        if not any(
            (v.truth[name] == 1).any() if name != CELLS else v.truth[name].any()
            for v in held
        ):
            where = ", ".join(v.name for v in held)
            raise DataError(
                f"{name} never occurs in what is learnt from ({where}); choose other boxes "
                "or values, or take the channel out of the model"
            )
