"""Which tasks a task waits for, and which tasks wait for it: what `reads` says, both ways.

A task waits for the tasks that write what it reads. Within a wave that is a box of
positions in the grid of another wave, and along each axis the box depends on the place
along that axis alone. So a table for each axis, of as many rows as the grid has chunks
along it, says it of all tasks of a wave, and read backwards it says who waits for a task.
Nothing is held for a single task.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Bbox, ChunkKey, Grid, Vec3
from pipeline.recipe import sources
from pipeline.specs import Read, Record, Records, Region
from pipeline.stages.base import Stage, Wave

_SAMPLES = 8
"""Tasks of a wave at which the tables are compared with what the tasks read."""


@dataclass(frozen=True)
class Spans:
    """What the tasks of a wave read of another wave, axis by axis.

    Parameters
    ----------
    low, high : three int64 arrays, one for each axis
        For each position of a reader along the axis, the first position that it reads
        and the one after the last.
    extent : Vec3
        Positions of the wave that is read.
    """

    low: tuple[NDArray[np.int64], ...]
    high: tuple[NDArray[np.int64], ...]
    extent: Vec3

    @cached_property
    def is_whole(self) -> bool:
        """Whether every task reads the whole wave."""
        return all(
            bool((low == 0).all() and (high == n).all())
            for low, high, n in zip(self.low, self.high, self.extent, strict=True)
        )

    def read_by(self, readers: Bbox) -> Bbox:
        """Return the smallest box around what tasks in a box of positions read."""
        return Bbox(
            *(
                Vec3(
                    *(int(f(rows[a][readers.start[a] : readers.stop[a]])) for a in range(3))
                )
                for f, rows in ((np.min, self.low), (np.max, self.high))
            )
        )

    def readers(self, box: Bbox) -> Bbox:
        """Return the positions of the tasks that read something in a box of positions."""
        first, last = [], []
        for axis, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            # Both ascend, as grids do.
            first.append(int(np.searchsorted(high, box.start[axis], side="right")))
            last.append(int(np.searchsorted(low, box.stop[axis], side="left")))
        start = Vec3(*first)
        return Bbox(start, Vec3(*last).maximum(start))

    def all_of(self, values: NDArray[np.bool_], readers: Bbox) -> NDArray[np.bool_]:
        """Say of the tasks in a box whether a value holds for all that they read.

        Parameters
        ----------
        values : bool array, (x, y, z)
            Of the box that `read_by` returns.
        readers : Bbox
            Positions of the tasks.

        Returns
        -------
        bool array, (x, y, z)
            One for each task.
        """
        offset = self.read_by(readers).start
        for axis in range(3):
            values = self._over(np.logical_and, values, readers, offset, axis)
        return values

    def latest(self, times: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return for every task the greatest value among all that it reads.

        Parameters
        ----------
        times : float32 array, (x, y, z)
            Of the whole wave that is read.
        """
        everyone = Bbox.of_shape([len(low) for low in self.low])
        for axis in range(3):
            times = self._over(np.maximum, times, everyone, Vec3(0, 0, 0), axis)
        return times

    def _over(
        self,
        combine: np.ufunc,
        values: NDArray[Any],
        readers: Bbox,
        offset: Vec3,
        axis: int,
    ) -> NDArray[Any]:
        """Combine along an axis what each of the readers along it reads."""
        mine = slice(readers.start[axis], readers.stop[axis])
        low = self.low[axis][mine] - offset[axis]
        last = self.high[axis][mine] - offset[axis] - 1
        if len(low) == values.shape[axis] and (low == last).all():
            return values
        result = np.take(values, low, axis)
        for step in range(1, int((last - low).max()) + 1):
            more = np.take(values, np.minimum(low + step, last), axis)
            combine(result, more, out=result)
        return result


class Dependencies:
    """Who waits for whom among the waves of some stages.

    What other stages write is taken to be there.

    Parameters
    ----------
    stages : sequence of Stage
        In layer order, of one recipe.

    Attributes
    ----------
    waves : list of Wave
        Of all stages, each after those that it reads from.
    extents : list of Vec3
        Positions of each.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.waves: list[Wave] = [wave for stage in stages for wave in stage.plan()]
        self.extents = [wave_extent(wave) for wave in self.waves]
        self._by_name = {
            (wave.stage.output, wave.level): n for n, wave in enumerate(self.waves)
        }
        self._volumes: dict[tuple[str, int], tuple[int, Grid]] = {}
        for n, wave in enumerate(self.waves):
            target = wave.stage.target(wave.stage.task(next(wave.keys())))
            if isinstance(target, Region):
                grid = wave.stage.grid_at(wave.level)
                self._volumes[target.layer, target.mip] = n, grid
        self._stages = list(stages)
        self._spans: dict[int, dict[int, Spans]] = {}
        self._irregular: set[int] = set()
        # Of a stage that names a layer and reads nothing of it, the layer comes first.
        self._unread: dict[int, list[int]] = {}
        self._unread = self._find_unread()

    def wave(self, output: str, level: int) -> int:
        """Return the number of a wave."""
        return self._by_name[output, level]

    def needs(self, wave: int, key: ChunkKey) -> list[tuple[int, Bbox]]:
        """Return the tasks that write what a task reads: waves, and boxes of positions.

        This is what a stage says by `reads`; all else here follows from it.
        """
        stage = self.waves[wave].stage
        found = [
            (writer, box)
            for read in stage.reads(stage.task(key)).values()
            for writer, box in self._writers(read)
            if not box.is_empty
        ]
        whole = ((n, Bbox.of_shape(self.extents[n])) for n in self._unread.get(wave, ()))
        return [*found, *whole]

    def sources(self, wave: int) -> list[int]:
        """Return the waves that a wave reads from."""
        return self._graph[0][wave]

    def readers(self, wave: int) -> list[int]:
        """Return the waves that read from a wave."""
        return self._graph[1][wave]

    def spans(self, wave: int) -> dict[int, Spans]:
        """Return what a wave reads, by the wave that it reads from."""
        if wave not in self._spans:
            self._spans[wave] = self._measured(wave)
        return self._spans[wave]

    def is_regular(self, wave: int) -> bool:
        """Whether `spans` says what the tasks of a wave read, wherever it was looked."""
        self.spans(wave)
        return wave not in self._irregular

    def dependants(self, wave: int, box: Bbox) -> Iterator[tuple[int, Bbox]]:
        """Yield the tasks that read something that tasks in a box of positions write."""
        for reader in self.readers(wave):
            spans = self.spans(reader).get(wave)
            everyone = Bbox.of_shape(self.extents[reader])
            if spans is None or not self.is_regular(reader):
                yield reader, everyone
                continue
            found = everyone.intersection(spans.readers(box))
            if not found.is_empty:
                yield reader, found

    @cached_property
    def depths(self) -> list[int]:
        """For each wave the longest chain of waves that wait for it, itself counted."""
        depths = [1] * len(self.waves)
        for n in reversed(range(len(self.waves))):
            for source in self.sources(n):
                depths[source] = max(depths[source], depths[n] + 1)
        return depths

    # -- how it is found ---------------------------------------------------------------

    def _writers(self, read: Read) -> Iterator[tuple[int, Bbox]]:
        if isinstance(read, Region):
            found = self._volumes.get((read.layer, read.mip))
            if found is not None:
                yield found[0], found[1].around(read.box)
        elif isinstance(read, Records):
            n = self._by_name.get((read.layer, read.level))
            if n is not None:
                yield n, read.positions
        elif isinstance(read, Record):
            key = ChunkKey.parse(read.key)
            yield from self._writers(
                Records(read.layer, key.level, Bbox(key.position, key.position + 1))
            )
        else:
            for record in read:
                yield from self._writers(record)

    def _hulls(self, wave: int, key: ChunkKey) -> dict[int, Bbox]:
        hulls: dict[int, Bbox] = {}
        for writer, box in self.needs(wave, key):
            hulls[writer] = box.hull(hulls.get(writer, box))
        return hulls

    @cached_property
    def _graph(self) -> tuple[list[list[int]], list[list[int]]]:
        """Which waves each reads from, and which read from each, by some of its tasks."""
        before = [
            sorted({w for key in self._some(n) for w, _ in self.needs(n, key)})
            for n in range(len(self.waves))
        ]
        after: list[list[int]] = [[] for _ in self.waves]
        for n, writers in enumerate(before):
            for writer in writers:
                after[writer].append(n)
        return before, after

    def _some(self, wave: int, more: int = 0) -> list[ChunkKey]:
        """Return the first task of a wave, the middle one, the last, and more of them."""
        level, extent = self.waves[wave].level, self.extents[wave]
        rng = random.Random(wave)
        places = [Vec3(0, 0, 0), extent // 2, extent - 1]
        places += [Vec3(*(rng.randrange(n) for n in extent)) for _ in range(more)]
        return [ChunkKey(level, *place) for place in dict.fromkeys(places)]

    def _measured(self, wave: int) -> dict[int, Spans]:
        """Ask the tasks along the edges of the grid what they read."""
        level, extent = self.waves[wave].level, self.extents[wave]
        ends: dict[int, list[NDArray[np.int64]]] = {}
        for axis in range(3):
            for place in range(extent[axis]):
                at = [0, 0, 0]
                at[axis] = place
                for writer, box in self._hulls(wave, ChunkKey(level, *at)).items():
                    if writer not in ends:
                        ends[writer] = [np.zeros((n, 2), np.int64) for n in extent]
                    ends[writer][axis][place] = box.start[axis], box.stop[axis]
        spans = {
            writer: Spans(
                tuple(e[:, 0] for e in by_axis),
                tuple(e[:, 1] for e in by_axis),
                self.extents[writer],
            )
            for writer, by_axis in ends.items()
        }
        ascend = all(
            bool((np.diff(rows) >= 0).all())
            for found in spans.values()
            for rows in (*found.low, *found.high)
        )
        agree = all(
            self._hulls(wave, key)
            == {
                w: s.read_by(Bbox(key.position, key.position + 1)) for w, s in spans.items()
            }
            for key in self._some(wave, _SAMPLES)
        )
        if not (ascend and agree):
            self._irregular.add(wave)
        return spans

    def _find_unread(self) -> dict[int, list[int]]:
        """Return, by wave of a stage, the waves of layers that the stage names only."""
        found: dict[int, list[int]] = {}
        by_output = {stage.output: stage for stage in self._stages}
        for stage in self._stages:
            numbers = [self.wave(stage.output, w.level) for w in stage.plan()]
            read = {
                self.waves[w].stage.output
                for n in numbers
                for key in self._some(n)
                for w, _ in self.needs(n, key)
            }
            for layer in sources(stage, self._stages):
                if layer in by_output and layer not in read:
                    whole = [self.wave(layer, w.level) for w in by_output[layer].plan()]
                    for n in numbers:
                        found.setdefault(n, []).extend(whole)
        return found


def wave_extent(wave: Wave) -> Vec3:
    """Return the number of tasks of a wave along each axis."""
    return wave.stage.grid_at(wave.level).counts(wave.stage.octree_level(wave.level))
