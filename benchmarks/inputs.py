"""Affinities to measure on: of the phantom, and of a real block."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness import Meter, Outcome, in_fresh_process

from pipeline.geometry import Bbox, Vec3

NAMES = ("phantom_float32", "phantom_uint8", "block_uint8")
BLUR, NOISE = 1.5, 0.2
"""Of the phantom's affinities; they give as many voxels to a basin as the real block's."""
BLOCK = "ac3_x0_512.h5"
_BLOCK_SHAPE = Vec3(512, 512, 100)
_VOXEL_SIZE = (6.0, 6.0, 30.0)


@dataclass(frozen=True)
class Input:
    """Affinities to segment.

    Parameters
    ----------
    name : str
        Which.
    path : Path
        Where they lie as NPY, (x, y, z, 3) in Fortran order.
    shape : Vec3
        Extent [voxel].
    """

    name: str
    path: Path
    shape: Vec3


def open_input(
    name: str, folder: Path, shape: Vec3, data: str, say: Callable[[str], None]
) -> Input | None:
    """Return an input, made if the folder lacks it.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    folder : Path
        Where inputs are kept.
    shape : Vec3
        Extent of the phantom, and the most of the block that is taken [voxel].
    data : str
        Folder with the image of the block, or empty.
    say : function of str
        Told what takes a while.

    Returns
    -------
    Input or None
        None if there is no image of the block.
    """
    kind, _, dtype = name.partition("_")
    if kind == "block":
        shape = shape.minimum(_BLOCK_SHAPE)
    path = folder / f"{name}_{'x'.join(map(str, shape))}.npy"
    given = Input(name, path, shape)
    if path.exists():
        return given
    if kind == "phantom":
        say(f"{name}: making it")
        in_fresh_process(_phantom, path, shape, dtype)
        return given
    image = Path(data) / BLOCK
    if not data or not image.is_file():
        return None
    say(f"{name}: predicting affinities")
    with tempfile.TemporaryDirectory() as root:
        in_fresh_process(_block, path, shape, f"{image}:raw", root)
    return given


def _phantom(path: Path, shape: Vec3, dtype: str) -> Outcome:
    from pipeline.phantom import Phantom

    meter = Meter()
    with meter.phase("phantom"):
        affinities = Phantom(voxel_size_nm=_VOXEL_SIZE).affinities(
            (0, 0, 0),
            shape.astuple(),
            blur=BLUR,
            noise=NOISE,
            dtype="uint8" if dtype == "uint8" else "float32",
        )
    np.save(path, affinities)
    return meter.outcome()


def _block(path: Path, shape: Vec3, image: str, root: str) -> Outcome:
    """Run the stages that a recipe has up to affinities."""
    from pipeline.recipe import Recipe
    from pipeline.reconstruction import Block, block_recipe
    from pipeline.runtime.drive import run_to_end
    from pipeline.runtime.executors import serial
    from pipeline.runtime.run import Run
    from pipeline.specs import Region

    bounds = Bbox.of_shape(shape)
    document = block_recipe("block", Block(image, bounds, _VOXEL_SIZE))
    outputs = [entry["output"] for entry in document["stage"]]
    document["stage"] = document["stage"][: outputs.index("affinities") + 1]
    meter = Meter()
    with meter.phase("affinities"):
        run = Run.start(Recipe.parse(document), root)
        run_to_end(run, serial, quiet=True)
    np.save(path, run.store.read(Region("affinities", bounds)))
    return meter.outcome()
