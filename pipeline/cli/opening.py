"""What commands are given, opened: sources, recipes, runs."""

from __future__ import annotations

import math
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipeline.cli.text import floats, vector
from pipeline.errors import (
    RecipeError,
    RootError,
)
from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.specs import VoxelSize

if TYPE_CHECKING:
    from pipeline.layers.sources import Source
    from pipeline.recipe import Recipe
    from pipeline.runtime.run import Run
    from pipeline.stages.base import Stage

_REMARKS = 40
"""Remarks on a source that are printed."""
_FARTHEST_MIP = 8
"""Mips, coarser or finer, that the voxels of a mask are looked for at."""


def require_tasks(recipe: Recipe, stage: Stage, keys: list[ChunkKey]) -> None:
    """Refuse keys that are no tasks of a stage."""
    levels = [wave.level for wave in stage.plan()]
    faults = [
        f"--task {stage.output}/{key} is no task of {stage.name}; it has "
        + " and ".join(f"{_counts(stage, level)} at level {level}" for level in levels)
        for key in keys
        if key.level not in levels
        or any(p >= n for p, n in zip(key.position, _counts(stage, key.level), strict=True))
    ]
    if faults:
        raise RecipeError(recipe.name, faults)


def _counts(stage: Stage, level: int) -> Vec3:
    return stage.grid_at(level).counts(stage.octree_level(level))


def program() -> str:
    """Return what to type for this command where it was typed from."""
    if shutil.which("em"):
        return "em"
    beside = os.path.relpath(sys.argv[0])
    return sys.argv[0] if beside.startswith("..") else beside


def open_input(source: str) -> Source:
    """Open a source, a file, a folder of sections or a layer, and say what is odd in it."""
    from pipeline.layers.sources import open_source

    opened = open_source(source)
    for remark in opened.remarks[:_REMARKS]:
        typer.echo(f"em: {remark}", err=True)
    if len(opened.remarks) > _REMARKS:
        typer.echo(f"em: {source}: {len(opened.remarks) - _REMARKS} more", err=True)
    return opened


def placement(
    source: Source, voxel_size: str | None, offset: str | None, bbox: str | None
) -> tuple[VoxelSize, Bbox, Vec3]:
    """Return voxel size, bounds of the output, and its shift from the source."""
    size = source.voxel_size_nm
    if voxel_size is not None:
        x, y, z = floats(voxel_size, 3, "--voxel-size")
        size = (x, y, z)
    if size is None:
        raise RecipeError(
            source.location,
            ["does not say how large its voxels are; give --voxel-size X,Y,Z in nm"],
        )
    if not all(0 < s < math.inf for s in size):
        raise RecipeError(
            "--voxel-size", [f"{size} is not positive and finite; give x,y,z in nm"]
        )
    shift = Vec3(0, 0, 0)
    if offset is not None:
        shift = vector(offset) - source.bounds.start
    bounds = source.bounds.shifted(shift)
    if bbox is not None:
        wanted = Bbox.parse(bbox)
        if wanted.is_empty or not bounds.contains(wanted):
            raise RecipeError(
                "--bbox",
                [f"{wanted} is not inside {source.location}, which holds {bounds}"],
            )
        bounds = wanted
    return size, bounds, shift


def mask_placement(
    mask: Source, image: Source, shift: Vec3, coarsest: int
) -> tuple[int, Vec3]:
    """Return the mip of an image that a mask has the voxels of, and its own shift.

    Parameters
    ----------
    mask, image : Source
        Corner lies on corner.
    shift : Vec3
        Offset of the output from the image [voxel].
    coarsest : int
        Greatest mip that can be used.

    Raises
    ------
    RecipeError
        If the mask covers something else.
    """
    across = image.shape
    fits = [
        mip
        for mip in (0, *range(1, _FARTHEST_MIP), *range(-1, -_FARTHEST_MIP, -1))
        if mask.shape == _at_mip(across, mip)
    ]
    if not fits:
        raise RecipeError(
            mask.location,
            [
                f"mask is {mask.shape} and {image.location} is {across}; give one of as "
                "many sections, with the pixels of the image or of one of its mips "
                f"({_at_mip(across, 1)}, {_at_mip(across, 2)}, ...)"
            ],
        )
    mip = fits[0]
    if mip > coarsest:
        raise RecipeError(
            mask.location,
            [
                f"mask has the voxels of mip {mip} ({mask.shape}), and sections are "
                f"matched at mip {coarsest}; give it at that mip ("
                f"{_at_mip(across, coarsest)}) or a finer one"
            ],
        )
    place = _corner_at_mip(image.bounds.start, mip)
    stated = (mask.voxel_offset, image.voxel_offset)
    if None not in stated and mask.bounds.start != place:
        raise RecipeError(
            mask.location,
            [
                f"mask begins at {mask.bounds.start} and the image at {place} in voxels "
                f"of mip {mip}; give a mask of the same place"
            ],
        )
    if mip:
        typer.echo(
            f"em: {mask.location} has the voxels of mip {mip} of the sections "
            f"({mask.shape} to {across}), and is read as such",
            err=True,
        )
    return mip, _corner_at_mip(image.bounds.start + shift, mip) - mask.bounds.start


def _at_mip(shape: Vec3, mip: int) -> Vec3:
    factor = Vec3(2 ** abs(mip), 2 ** abs(mip), 1)
    return shape.ceil_div(factor) if mip >= 0 else shape * factor


def _corner_at_mip(corner: Vec3, mip: int) -> Vec3:
    factor = Vec3(2 ** abs(mip), 2 ** abs(mip), 1)
    return corner // factor if mip >= 0 else corner * factor


def absolute(location: str) -> str:
    """Make a local location independent of the working folder."""
    if "://" in location:
        return location
    return os.path.abspath(os.path.expanduser(location))


def _load(path: str) -> Recipe:
    from pipeline.recipe import Recipe

    return Recipe.load(path)


def load_or_open(recipe: str, root: str) -> Recipe:
    """Read a recipe from its file, or that of a run that was started."""
    from pipeline.runtime.run import Run

    if not Path(recipe).is_file() and recipe in Run.names(root):
        return Run.open(root, recipe).recipe
    return _load(recipe)


def open_runs(root: str, recipe: str | None) -> list[Run]:
    """Open the run that is named, or all of a root."""
    from pipeline.runtime.run import Run

    if recipe is not None:
        name = _load(recipe).name if Path(recipe).is_file() else recipe
        return [Run.open(root, name)]
    names = Run.names(root)
    if not names:
        raise RootError(f"{root} holds no run; start one with em run RECIPE --root {root}")
    return [Run.open(root, name) for name in names]


def open_agglomerated(root: str, recipe: str | None) -> Run:
    """Open the run whose graph is meant: the one named, or the only one that has one."""
    from pipeline.stages.agglomeration import Agglomeration

    runs = open_runs(root, recipe)
    found = [r for r in runs if any(isinstance(s, Agglomeration) for s in r.recipe.stages)]
    if recipe is not None or len(found) == 1:
        return (found or runs)[0]
    raise RootError(
        f"{root} holds the runs {', '.join(r.recipe.name for r in found)}; name one"
        if found
        else f"no run in {root} has an agglomeration; add one to its recipe and run it"
    )
