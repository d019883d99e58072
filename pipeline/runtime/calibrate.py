"""What tasks take, measured by running a recipe on a few small boxes of its volume."""

from __future__ import annotations

import math
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import RecipeError
from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.layers.store import Store
from pipeline.recipe import Recipe
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import serial
from pipeline.runtime.run import Done, Run
from pipeline.specs import VolumeSpec
from pipeline.stages.base import Specs, Stage

VOXELS, NODES, ROUNDS = "voxels", "nodes", "rounds"
"""What the work of a task goes with: voxels, the state of a node of the octree, or what is
left of it in a round of merging in partitions."""
_ENOUGH = 4
_GOLDEN = (5**0.5 - 1) / 2


class Rate(BaseModel):
    """What the tasks of one kind of a stage took.

    Parameters
    ----------
    output, stage, kind : str
        Layer, stage, and `VOXELS`, `NODES` or `ROUNDS`.
    tasks : int
        How many were measured; 0 of an assumption.
    units_per_task : float
        Voxels, or bytes of memory, of a measured task on average.
    seconds_per_unit : float
        Seconds of one core for a voxel, or for a byte of a node's memory by its model [s].
    least_seconds : float
        Of the shortest task: what any takes at least [s].
    spread : float
        Standard deviation of the seconds for a unit, over their mean.
    stored_per_unit : float
        Bytes written, as stored, for a unit.
    objects_per_task : float
        Objects written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: str
    stage: str
    kind: str
    tasks: int = Field(ge=0)
    units_per_task: float = Field(ge=0)
    seconds_per_unit: float = Field(ge=0)
    least_seconds: float = Field(ge=0)
    spread: float = Field(ge=0)
    stored_per_unit: float = Field(ge=0)
    objects_per_task: float = Field(ge=0)


class Calibration(BaseModel):
    """Rates of the stages of a recipe, and where they were measured.

    Parameters
    ----------
    recipe, host, processor, date : str
        What ran, on which machine, when.
    boxes : tuple of str
        Boxes of the volume, x0,y0,z0,x1,y1,z1.
    rates : tuple of Rate
        By output and kind.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    host: str = ""
    processor: str = ""
    date: str = ""
    boxes: tuple[str, ...] = ()
    rates: tuple[Rate, ...]

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `em calibrate` wrote.

        Raises
        ------
        RecipeError
            If it is not that.
        """
        try:
            return cls.model_validate_json(path.read_text())
        except OSError as error:
            raise RecipeError(
                str(path), [f"cannot be read ({error.strerror}); run em calibrate"]
            ) from error
        except (ValidationError, UnicodeDecodeError) as error:
            raise RecipeError(
                str(path), [f"holds no rates ({error}); make them with em calibrate"]
            ) from None

    def rate(self, stage: Stage, kind: str) -> Rate | None:
        """Return the rate of a stage; of another that is alike if it was not measured."""
        own = [r for r in self.rates if (r.output, r.kind) == (stage.output, kind)]
        alike = [r for r in self.rates if (r.stage, r.kind) == (stage.name, kind)]
        return next(iter((*own, *alike)), None)


@dataclass(frozen=True)
class Measured:
    """One task of a sample."""

    output: str
    stage: str
    kind: str
    units: float
    seconds: float
    stored: int
    objects: int


def calibrate(
    recipe: Recipe,
    root: str,
    scratch: Path,
    *,
    samples: int = 3,
    extent: Vec3 | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Calibration:
    """Run a recipe on sampled boxes, one task at a time on one core.

    Parameters
    ----------
    recipe : Recipe
        What is to be run on all of its volume.
    root : str
        Where the layers are that it starts from.
    scratch : Path
        Folder for the samples, a run in each of its folders.
    samples : int
        How many boxes, spread over the volume.
    extent : Vec3, optional
        Of each box, in the finest voxels; two chunks along x and y if left out.
    tell : function of str
        Told which box begins.

    Returns
    -------
    Calibration

    Raises
    ------
    RecipeError
        If the extent is no whole voxel at the coarsest stage, or the volume is smaller.
    """
    boxes = sample_boxes(recipe, samples, extent)
    found: list[Measured] = []
    for number, box in enumerate(boxes):
        tell(f"box {number + 1} of {len(boxes)}: {box}")
        small = cropped(recipe, box, root)
        run = Run.start(small, str(scratch / f"sample{number}"), replace=True)
        run_to_end(run, serial, quiet=True)
        found += measurements(run)
    return Calibration(
        recipe=recipe.name,
        host=platform.node(),
        processor=platform.processor() or platform.machine(),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        boxes=tuple(str(box) for box in boxes),
        rates=tuple(rates(found)),
    )


# -- what is run ----------------------------------------------------------------------


def finest(recipe: Recipe) -> Stage:
    """Return the stage of the most voxels, of several that with the smallest chunk."""
    return max(recipe.stages, key=lambda s: (s.bounds.volume, -s.chunk.product))


def _ratio(base: Bbox, bounds: Bbox) -> Vec3:
    """Return how many of the finest voxels make one of a stage, along each axis."""
    return Vec3.of(
        [max(1, round(a / b)) for a, b in zip(base.shape, bounds.shape, strict=True)]
    )


def sample_boxes(recipe: Recipe, samples: int, extent: Vec3 | None) -> list[Bbox]:
    """Return boxes spread over the volume, in its finest voxels, on its chunks."""
    base = finest(recipe)
    unit = base.chunk
    for stage in recipe.stages:
        ratio = _ratio(base.bounds, stage.bounds)
        unit = Vec3.of([math.lcm(a, b) for a, b in zip(unit, ratio, strict=True)])
    wanted = extent or unit * Vec3(2, 2, 1)
    whole = [max(u, n // u * u) for n, u in zip(wanted, unit, strict=True)]
    wanted = Vec3.of(whole).minimum(base.bounds.shape)
    room = base.bounds.shape - wanted
    boxes: dict[Bbox, None] = {}
    for number in range(samples):
        # Along x and y a golden-ratio sequence, along z evenly: no two are near.
        share = ((number + 0.5) * _GOLDEN % 1, (number + 0.5) * _GOLDEN**2 * 3 % 1)
        place = (*share, (number + 0.5) / samples)
        steps = [int(p * (r // u + 1)) for p, r, u in zip(place, room, unit, strict=True)]
        start = base.bounds.start + Vec3.of(steps) * unit
        boxes[Bbox(start, start + wanted).intersection(base.bounds)] = None
    return list(boxes)


def cropped(recipe: Recipe, box: Bbox, root: str) -> Recipe:
    """Return a recipe that does the same on a box of its volume.

    Parameters
    ----------
    recipe : Recipe
        Of the whole.
    box : Bbox
        In the finest voxels that it writes.
    root : str
        Where layers are that it does not name the place of.

    Raises
    ------
    RecipeError
        If the box cuts voxels of a coarser stage.
    """
    base = finest(recipe).bounds
    document = recipe.to_json()
    for stage, entry in zip(recipe.stages, document["stage"], strict=True):
        ratio = _ratio(base, stage.bounds)
        edges = (box.start - base.start, box.stop - base.start)
        if any(
            n % r and n < whole
            for edge in edges
            for n, r, whole in zip(edge, ratio, base.shape, strict=True)
        ):
            raise RecipeError(
                recipe.name,
                [
                    f"box {box} cuts voxels of {stage.output}, which are {ratio} of the "
                    "finest; give an --extent that they divide"
                ],
            )
        start, stop = (
            Vec3.of([-(-n // r) for n, r in zip(edge, ratio, strict=True)])
            for edge in edges
        )
        inside = Bbox(stage.bounds.start + start, stage.bounds.start + stop)
        inside = inside.intersection(stage.bounds)
        entry["bounds"] = {"start": list(inside.start), "stop": list(inside.stop)}
    store = Store(root, recipe.layers)
    document["layers"] = {
        layer: recipe.layers.get(layer) or store.location(layer)
        for layer in recipe.external
    }
    return Recipe.parse(document, source=recipe.name)


# -- what was measured ----------------------------------------------------------------


def units_of(stage: Stage, specs: Specs, key: ChunkKey) -> tuple[str, float]:
    """Return what the work of a task goes with, and how much of it there is."""
    voxels = stage.voxels(stage.task(key))
    if voxels:
        return VOXELS, float(voxels)
    memory = float(max(1, stage.memory(specs, key.level)))
    share = stage.round_share(key.level)
    return (NODES, memory) if share is None else (ROUNDS, memory * share)


def measurements(run: Run) -> Iterator[Measured]:
    """Yield what every task of a run took, by its done records."""
    for stage in run.recipe.stages:
        for done in run.done_records(stage):
            kind, units = units_of(stage, run.specs, done.key)
            yield Measured(
                output=stage.output,
                stage=stage.name,
                kind=kind,
                units=units,
                seconds=done.seconds,
                stored=stored_bytes(done),
                objects=len(done.objects),
            )


def stored_bytes(done: Done) -> int:
    """Return the size of what a task wrote; checksums end with it [byte]."""
    return sum(int(checksum.rpartition(":")[2]) for checksum in done.objects.values())


def rates(found: Sequence[Measured]) -> Iterator[Rate]:
    """Yield a rate for each output and kind, sums over sums.

    Of four tasks or more the slowest for its units is left out: the first one of a process
    loads what the others find loaded.
    """
    groups: Mapping[tuple[str, str], list[Measured]] = defaultdict(list)
    for task in found:
        groups[task.output, task.kind].append(task)
    for (output, kind), every in groups.items():
        tasks = sorted(every, key=lambda task: task.seconds / task.units)
        tasks = tasks[:-1] if len(tasks) >= _ENOUGH else tasks
        seconds, units = (
            np.array([getattr(task, name) for task in tasks])
            for name in ("seconds", "units")
        )
        each = seconds / units
        yield Rate(
            output=output,
            stage=tasks[0].stage,
            kind=kind,
            tasks=len(tasks),
            units_per_task=float(units.mean()),
            seconds_per_unit=float(seconds.sum() / units.sum()),
            least_seconds=float(seconds.min()),
            spread=float(each.std(ddof=1) / each.mean())
            if len(tasks) > 1 and each.any()
            else 0.0,
            stored_per_unit=float(sum(t.stored for t in tasks) / units.sum()),
            objects_per_task=sum(t.objects for t in tasks) / len(tasks),
        )


def compression(calibration: Calibration, specs: Specs, layer: str) -> float:
    """Return stored over uncompressed bytes of a layer; 1 where it was not measured."""
    spec: Any = specs.get(layer)
    rate = next(
        (r for r in calibration.rates if (r.output, r.kind) == (layer, VOXELS)), None
    )
    if rate is None or not isinstance(spec, VolumeSpec) or not rate.stored_per_unit:
        return 1.0
    return rate.stored_per_unit / spec.itemsize
