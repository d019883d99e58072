"""Clefts of 37 annotated synapses of cortex, derived from where two cells touch.

The truth says about where a density is, and which two labels it joins. A synapse takes up
a part of where they touch; how large a part is not known. So a disc around the annotated
point is taken to be the cleft, the touching around it is left open, and so is where the
labels were doubted; all else where synapses were annotated is no cleft.

``python benchmarks/derived_clefts.py picture --to clefts.png`` to look at them; ``prepare``
and ``partners`` make what nets of clefts and of partners learn from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
import typer
from numpy.typing import NDArray
from partners import (
    VOXEL,
    Block,
    Data,
    attention,
    place_of,
    put_crop,
    put_phantoms,
    volume_of,
)
from scipy.ndimage import distance_transform_edt, gaussian_filter, label
from typer import Option

from pipeline.geometry import Bbox, Vec3

HALF = 358
"""Regions are the block before and from this y on: no synapse is within 150 nm of it."""
COVERAGE = "ac3_synapse_coverage.npz"
NONE, CLEFT, UNKNOWN = 0, 1, 2

CELL_NM, WIDTH_NM = 36.0, 60.0
"""A voxel between two cells is so near to each, and to both together."""
RADIUS_NM, OPEN_NM = 180.0, 480.0
"""What is nearer than the first is the cleft; between that and the second it is open."""
DOUBT_NM = 250.0
"""What is nearer to a doubtful synapse is open."""
WINDOW = Vec3(110, 110, 20)

app = typer.Typer(no_args_is_help=True)


def region_of(bounds: Bbox, region: int) -> Bbox:
    """Return the part of the block that is region 0 or 1."""
    low, high = (bounds.start.y, HALF) if region == 0 else (HALF, bounds.stop.y)
    return Bbox(
        Vec3(bounds.start.x, low, bounds.start.z), Vec3(bounds.stop.x, high, bounds.stop.z)
    )


def coverage(data: Path, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return where synapses were annotated.

    Parameters
    ----------
    data : Path
        Folder of the data.
    shape : (x, y, z)
        Extent of the block [voxel].
    """
    with np.load(data / COVERAGE) as file:
        inside, steps = file["inside"].T, file["step_zyx"][::-1]
    for axis, step in enumerate(steps):
        inside = np.repeat(inside, step, axis=axis)
    return np.asfortranarray(inside[tuple(slice(n) for n in shape)])


def derived(block: Block, synapse: dict[str, Any]) -> tuple[Bbox, NDArray[np.uint8]]:
    """Mark the cleft of one synapse.

    Parameters
    ----------
    block : Block
        The annotated block.
    synapse : dict
        One of its synapses.

    Returns
    -------
    box : Bbox
        Where the marks lie.
    marks : uint8 array, (x, y, z)
        `NONE`, `CLEFT` and `UNKNOWN`.
    """
    at = place_of(synapse)
    bounds = Bbox.of_shape(block.image.shape)
    box = Bbox(at - WINDOW, at + WINDOW + 1).intersection(bounds)
    cells = block.labels[box.slices()]
    marks = np.full(cells.shape, NONE, np.uint8)
    if synapse["visual_check"] != "ok":
        marks[away_nm(box, at) <= DOUBT_NM] = UNKNOWN
        return box, marks
    pre, post = (
        distance_transform_edt(cells != synapse[f"{side}_label"], sampling=VOXEL)
        for side in ("pre", "post")
    )
    between = (np.maximum(pre, post) <= CELL_NM) & (pre + post <= WIDTH_NM)
    # The annotated points are off by up to some 60 nm.
    distance = np.where(between, away_nm(box, at), np.inf)
    nearest = np.unravel_index(int(distance.argmin()), distance.shape)
    middle = box.start + Vec3.of([int(n) for n in nearest])
    away = away_nm(box, middle)
    parts, _ = label(between, structure=np.ones((3, 3, 3)))
    marks[between & (away <= OPEN_NM)] = UNKNOWN
    smooth = gaussian_filter(block.image[box.slices()].astype(np.float32), (2, 2, 0))
    dark = smooth <= np.median(smooth, axis=(0, 1))
    marks[(parts == parts[nearest]) & (away <= RADIUS_NM) & dark] = CLEFT
    return box, marks


def marked(block: Block, known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Mark the clefts of a block; what is neither annotated nor covered is open.

    Parameters
    ----------
    block : Block
        The annotated block.
    known : bool array, (x, y, z)
        Where synapses were annotated.
    """
    marks = np.where(known, np.uint8(NONE), np.uint8(UNKNOWN)).astype(np.uint8, order="F")
    for synapse in block.synapses:
        box, here = derived(block, synapse)
        there = marks[box.slices()]
        # A cleft stays one where another's surroundings reach over it.
        marks[box.slices()] = np.where((here == NONE) | (there == CLEFT), there, here)
    return marks


def away_nm(box: Bbox, at: Vec3) -> NDArray[np.float64]:
    """Return how far the voxels of a box are from one of a block [nm]."""
    x, y, z = (
        (np.arange(a, b) - c) * s
        for a, b, c, s in zip(box.start, box.stop, at, VOXEL, strict=True)
    )
    far: NDArray[np.float64] = np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2)
    return far


@app.command()
def prepare(data: Data, to: Annotated[Path, Option(help="Folder for clefts.h5.")]) -> None:
    """Write the block and its derived clefts, for em train."""
    block = Block.load(data)
    marks = marked(block, coverage(data, block.image.shape))
    to.mkdir(parents=True, exist_ok=True)
    with h5py.File(to / "clefts.h5", "w") as file:
        for name, array in (("raw", block.image), ("cleft", marks)):
            file.create_dataset(name, data=np.ascontiguousarray(array.T), compression="lzf")
    print(f"{np.count_nonzero(marks == CLEFT)} voxels of clefts in {to / 'clefts.h5'}")


@app.command()
def partners(
    data: Data,
    to: Annotated[Path, Option(help="Folder for HDF5 and train.toml.")],
    region: Annotated[int, Option(help="0 or 1: the part that is learnt from.")],
    head: Annotated[Path, Option(help="TOML that the volumes are added to.")],
    phantoms: Annotated[int, Option(help="Synapses of the phantom beside.")] = 16,
) -> None:
    """Write crops around synapses of a region, and of the phantom, for em train.

    Each synapse is shown twice: with its derived cleft, and with what is dark around it, as
    what a net finds is a little of both.
    """
    to.mkdir(parents=True, exist_ok=True)
    block, lines = Block.load(data), [head.read_text()]
    bounds = region_of(Bbox.of_shape(block.image.shape), region)
    n = 0
    for number, synapse in enumerate(block.synapses):
        at = place_of(synapse)
        if synapse["visual_check"] != "ok" or not bounds.contains(Bbox(at, at + 1)):
            continue
        box, marks = derived(block, synapse)
        near, start = block.around(at)
        shown = {
            f"s{number}": (marks == CLEFT, box.start),
            f"d{number}": (attention(near.image, at - start), start),
        }
        for name, (cleft, low) in shown.items():
            put_crop(to / f"{name}.h5", block, synapse, bounds, cleft, low)
            lines.append(volume_of(name, 1.0))
        n += 1
    names = put_phantoms(to, phantoms)
    lines += [volume_of(name, max(n, 1) / len(names)) for name in names]
    (to / "train.toml").write_text("\n".join(lines))
    print(f"{n} synapses of cortex and {len(names)} of the phantom in {to}")


@app.command()
def picture(data: Data, to: Annotated[Path, Option(help="PNG.")]) -> None:
    """Draw the derived clefts, to be checked by eye."""
    from PIL import Image

    block, tiles = Block.load(data), []
    half = 60
    for synapse in block.synapses:
        box, marks = derived(block, synapse)
        at = place_of(synapse)
        row = []
        for z in (at.z - 3, at.z, at.z + 3):
            tile = np.zeros((2 * half, 4 * half, 3), np.uint8)
            low = (at - Vec3(half, half, 0)).maximum(box.start)
            high = (at + Vec3(half, half, 0)).minimum(box.stop)
            if box.start.z <= z < box.stop.z:
                part = (slice(low.x, high.x), slice(low.y, high.y), z)
                grey = np.stack([block.image[part].T] * 3, axis=2)
                shown = grey.copy()
                for side, channel in (("pre", 2), ("post", 1)):
                    shown[synapse[f"{side}_label"] == block.labels[part].T, channel] = 255
                mark = marks[
                    low.x - box.start.x : high.x - box.start.x,
                    low.y - box.start.y : high.y - box.start.y,
                    z - box.start.z,
                ].T
                shown[mark == CLEFT] = [255, 0, 0]
                shown[mark > CLEFT] = [255, 170, 0]
                height, width = mark.shape
                tile[:height, :width] = grey
                tile[:height, 2 * half : 2 * half + width] = shown
            row.append(tile)
        tiles.append(np.concatenate(row, axis=1))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % 2)
    rows = [np.concatenate(tiles[i : i + 2], axis=1) for i in range(0, len(tiles), 2)]
    Image.fromarray(np.concatenate(rows)).save(to)


if __name__ == "__main__":
    app()
