"""What a run will take, before anything runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

from pipeline.errors import MemoryLimitError
from pipeline.geometry import ChunkKey
from pipeline.runtime.memory import PROCESS_BYTES
from pipeline.runtime.run import Run
from pipeline.specs import Read, Region, VolumeSpec
from pipeline.stages.base import Specs, Stage, Wave


@dataclass(frozen=True)
class WaveEstimate:
    """What a wave will take.

    Parameters
    ----------
    output, stage, pool : str
        Layer, stage and kind of worker.
    level : int
        Number of the wave.
    tasks, done : int
        How many there are, and how many of them are done.
    voxels : int
        Voxels that are written.
    bytes_in, bytes_out : int
        Uncompressed volumes read and written; records, which depend on what the data
        holds, are not counted [byte].
    peak_memory : int
        Of the largest task [byte].
    """

    output: str
    stage: str
    pool: str
    level: int
    tasks: int
    done: int
    voxels: int
    bytes_in: int
    bytes_out: int
    peak_memory: int

    def to_json(self) -> dict[str, object]:
        """Return the fields."""
        return asdict(self)


def estimate(run: Run) -> list[WaveEstimate]:
    """Estimate every wave from the task in its middle."""
    result: list[WaveEstimate] = []
    for stage in run.recipe.stages:
        done = Counter(key.level for key in run.done_keys(stage))
        result += [_wave(run.specs, stage, w, done[w.level]) for w in stage.plan()]
    return result


def require_memory(run: Run, limit: int) -> None:
    """Refuse a run whose tasks cannot fit.

    Parameters
    ----------
    run : Run
        Planned.
    limit : int
        Memory for one task [byte].

    Raises
    ------
    MemoryLimitError
        Naming every stage that cannot fit, and by how much.
    """
    faults = [
        f"{stage.name}: a task of {stage.output} needs about {need / 2**30:.1f} GiB and "
        f"has {limit / 2**30:.1f} GiB; use a smaller chunk than {stage.chunk} or fewer "
        "workers"
        for stage in run.recipe.stages
        if (need := peak_memory(stage, run.specs)) > limit
    ]
    if faults:
        raise MemoryLimitError("\n".join(faults))


def peak_memory(stage: Stage, specs: Specs) -> int:
    """Return the memory of a process that does the largest task [byte]."""
    return max(wave_memory(wave, specs) for wave in stage.plan())


def wave_memory(wave: Wave, specs: Specs) -> int:
    """Return the memory of a process that does the largest task of a wave [byte]."""
    return PROCESS_BYTES + wave.stage.memory(specs, wave.level)


def _wave(specs: Specs, stage: Stage, wave: Wave, done: int) -> WaveEstimate:
    grid = stage.grid_at(wave.level)
    counts = grid.counts(stage.octree_level(wave.level))
    middle = ChunkKey(wave.level, *(n // 2 for n in counts))
    task = stage.task(middle)
    bytes_in = sum(_bytes(specs, read) for read in stage.likely_reads(task).values())
    target = stage.target(task)
    spec = specs.get(target.layer)
    voxels = grid.bounds.volume
    bytes_out = 0
    if isinstance(target, Region) and isinstance(spec, VolumeSpec):
        bytes_out = voxels * spec.itemsize
    return WaveEstimate(
        output=stage.output,
        stage=stage.name,
        pool=stage.pool,
        level=wave.level,
        tasks=len(wave),
        done=done,
        voxels=voxels,
        bytes_in=bytes_in * len(wave),
        bytes_out=bytes_out,
        peak_memory=wave_memory(wave, specs),
    )


def _bytes(specs: Specs, read: Read) -> int:
    if not isinstance(read, Region):
        return 0
    spec = specs.get(read.layer)
    return read.box.volume * spec.itemsize if isinstance(spec, VolumeSpec) else 0
