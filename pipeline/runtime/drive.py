"""Runs a recipe to its end, each task as soon as what it reads is there, and says how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.runtime import waves
from pipeline.runtime.executors import Executor
from pipeline.runtime.frontier import Frontier
from pipeline.runtime.progress import RunProgress
from pipeline.runtime.run import Run
from pipeline.specs import VolumeSpec
from pipeline.stages.base import Stage, Wave


@dataclass(frozen=True)
class StageSummary:
    """What the done records of a stage add up to.

    Parameters
    ----------
    output, stage : str
        Layer, and the stage that wrote it.
    tasks, blank, failed : int
        How many tasks are done, how many of these blank, and how many were given up.
    voxels : int
        Voxels of the output.
    seconds : float
        Time in tasks, over all workers [s].
    wall_s : float
        From its first start to its last end in this invocation [s]; stages overlap.
    peak_memory : int
        Largest of any task [byte].
    """

    output: str
    stage: str
    tasks: int
    blank: int
    failed: int
    voxels: int
    seconds: float
    wall_s: float
    peak_memory: int

    @property
    def rate(self) -> float:
        """Million voxels per second and worker."""
        return self.voxels / 1e6 / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, object]:
        """Return the fields, with the rate."""
        return {**asdict(self), "mvox_per_s": round(self.rate, 3)}


def run_to_end(
    run: Run,
    executor: Executor,
    *,
    only: str | None = None,
    within: Bbox | None = None,
    tasks: Iterable[ChunkKey] | None = None,
    quiet: bool = False,
) -> list[StageSummary]:
    """Do every task that is not done; what is done is skipped.

    Parameters
    ----------
    run : Run
        Started.
    executor : Executor
        Who does the tasks.
    only : str or None
        Only the stage of that output or name.
    within : Bbox or None
        Do the tasks that touch this box again, and only those; in the smallest voxels
        that the run writes.
    tasks : iterable of ChunkKey or None
        Do these tasks of the stage ``only`` again, and nothing else.
    quiet : bool
        Show no progress.

    Raises
    ------
    TaskError
        If tasks were given up; those that read from them were not begun, all others were
        done.
    CancelledError
        If the run was cancelled meanwhile.
    """
    waves.resume(run)
    wanted = [s for s in run.recipe.stages if only in (None, s.output, s.name)]
    again = None if tasks is None else set(tasks)
    chosen: Callable[[Wave], Iterator[ChunkKey]] | None = None
    if within is None and again is None:
        for stage in wanted:
            run.forget_lost(stage)
    else:
        boxes = {
            s.output: None if within is None else _in_voxels_of(run, s, within)
            for s in wanted
        }

        def chosen(wave: Wave) -> Iterator[ChunkKey]:
            for key in wave.keys(boxes[wave.stage.output]):
                if again is None or key in again:
                    yield key

        for stage in wanted:
            for wave in stage.plan():
                for key in chosen(wave):
                    run.forget(stage, key)
    with RunProgress(quiet=quiet) as progress:
        frontier = Frontier(run, wanted, chosen=chosen, progress=progress)
        executor(run, frontier)
    frontier.raise_failed()
    return [summary(run, stage, frontier.wall_s(stage)) for stage in wanted]


def summary(run: Run, stage: Stage, wall_s: float = 0.0) -> StageSummary:
    """Add up the done records of a stage."""
    done = list(run.done_records(stage))
    return StageSummary(
        output=stage.output,
        stage=stage.name,
        tasks=len(done),
        blank=sum(d.blank for d in done),
        failed=len(run.parked_keys(stage)),
        voxels=sum(d.voxels for d in done),
        seconds=round(sum(d.seconds for d in done), 3),
        wall_s=round(wall_s, 3),
        peak_memory=max((d.peak_memory for d in done), default=0),
    )


def _in_voxels_of(run: Run, stage: Stage, box: Bbox) -> Bbox:
    """Turn a box in the run's smallest voxels into those of a stage, rounded outward.

    A stage of tables counts as the volumes do that it was made from.
    """
    volumes = [s for s in run.specs.values() if isinstance(s, VolumeSpec)]
    finest = [min(s.voxel_size_nm[axis] for s in volumes) for axis in range(3)]
    sources = [stage]
    while sources:
        source = sources.pop(0)
        for layer in (source.output, *source.inputs.values()):
            spec = run.specs[layer]
            if isinstance(spec, VolumeSpec):
                ratio = zip(spec.voxel_size_nm, finest, strict=True)
                return box.coarser(Vec3.of([max(1, round(a / b)) for a, b in ratio]))
        sources += run.recipe.upstream(source)
    return box
