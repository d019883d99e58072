"""A fleet of workers simulated on the waves of a plan, wave barriers and all.

Workers take the next task when they are free, so tasks start in the order in which workers
are. With times drawn independently that needs no queue of events: each worker's attempts
are summed up, and of all attempts those that start first are the ones that happen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

MARGIN = 8
"""Attempts that a worker is drawn beyond its share, in standard deviations."""


@dataclass(frozen=True)
class Work:
    """Tasks that may be done in any order.

    Parameters
    ----------
    name : str
        Layer and level.
    tasks : int
        How many.
    seconds : float
        Of a task on average [s].
    """

    name: str
    tasks: int
    seconds: float


@dataclass(frozen=True)
class Weather:
    """What goes wrong.

    Parameters
    ----------
    spread : float
        Standard deviation of the time of tasks over its mean, lognormal.
    stragglers : float
        Share of tasks that take `slow` times as long.
    slow : float
        See there.
    losses : float
        How often a machine is taken away [1/h].
    replaced_s : float
        Until another is there [s].
    lease_s : float
        Until a task whose worker is gone comes again [s].
    """

    spread: float = 0.4
    stragglers: float = 0.001
    slow: float = 10.0
    losses: float = 0.05
    replaced_s: float = 180.0
    lease_s: float = 600.0


@dataclass(frozen=True)
class Passed:
    """How a wave went.

    Parameters
    ----------
    wall_s : float
        From the first start to the last end [s].
    busy_s : float
        Time of workers in tasks that ended well [s].
    lost_s : float
        Time of workers in tasks that came to nothing, and without a machine [s].
    lost : int
        Attempts that came to nothing.
    """

    wall_s: float
    busy_s: float
    lost_s: float
    lost: int


def drawn(rng: Generator, n: int, mean: float, weather: Weather) -> NDArray[np.float64]:
    """Draw times of tasks [s]."""
    sigma = math.sqrt(math.log1p(weather.spread**2))
    slow = 1 + weather.stragglers * (weather.slow - 1)
    times = rng.lognormal(math.log(mean / slow) - sigma**2 / 2, sigma, n)
    late = rng.random(n) < weather.stragglers
    times[late] *= weather.slow
    return times


def one_wave(work: Work, workers: int, weather: Weather, rng: Generator) -> Passed:
    """Do one wave, from all workers free to the last task done."""
    workers = min(workers, work.tasks)
    rate = weather.losses / 3600
    share = work.tasks / workers / max(math.exp(-rate * work.seconds), 0.05)
    deviation = weather.spread + weather.slow * math.sqrt(weather.stragglers)
    each = math.ceil(share + MARGIN * (1 + deviation) * math.sqrt(share) + 4)
    times = drawn(rng, workers * each, work.seconds, weather).reshape(workers, each)
    until_lost = rng.exponential(1 / rate, times.shape) if rate else times + 1
    is_lost = until_lost < times
    taken = np.where(is_lost, until_lost + weather.replaced_s, times)
    ends = np.cumsum(taken, axis=1).ravel()
    starts = ends - taken.ravel()
    flat_lost = is_lost.ravel()
    order = np.argsort(starts, kind="stable")
    good = np.cumsum(~flat_lost[order])
    if good[-1] < work.tasks:
        raise ValueError(
            f"{work.name}: {workers} workers were drawn {good[-1]} attempts that end well "
            f"for {work.tasks} tasks; raise MARGIN"
        )
    last = int(np.searchsorted(good, work.tasks))
    done = order[: last + 1]
    failed = done[flat_lost[done]]
    wall = float(ends[done][~flat_lost[done]].max())
    if len(failed):
        # What is lost late comes again only when its lease has lapsed.
        gone = ends[failed] - weather.replaced_s + weather.lease_s
        again = drawn(rng, len(failed), work.seconds, weather)
        wall = max(wall, float((gone + again).max()))
    ended = done[~flat_lost[done]]
    return Passed(
        wall_s=wall,
        busy_s=float(taken.ravel()[ended].sum()),
        lost_s=float(taken.ravel()[failed].sum()),
        lost=len(failed),
    )


@dataclass(frozen=True)
class Campaign:
    """How all waves went, one after the other.

    Parameters
    ----------
    wall_s : float
        With a barrier after each wave [s].
    ideal_s : float
        The same work with no worker ever waiting [s].
    path_s : float
        The least that the waves' order allows: the sum of the greater of their longest
        task and their share of work [s].
    utilisation : float
        Time in tasks that ended well over time of all workers.
    lost : int
        Attempts that came to nothing.
    waves : tuple of (Work, Passed)
        Each.
    """

    wall_s: float
    ideal_s: float
    path_s: float
    utilisation: float
    lost: int
    waves: tuple[tuple[Work, Passed], ...]

    @property
    def barriers(self) -> float:
        """What waiting at barriers adds, over the work without it."""
        return self.wall_s / self.ideal_s - 1


def campaign(
    waves: Sequence[Work], workers: int, weather: Weather, *, seed: int = 0
) -> Campaign:
    """Do waves one after the other."""
    rng = np.random.default_rng(seed)
    passed = [one_wave(w, workers, weather, rng) for w in waves]
    wall = sum(p.wall_s for p in passed)
    busy = sum(p.busy_s for p in passed)
    lost = sum(p.lost_s for p in passed)
    path = sum(
        max((p.busy_s + p.lost_s) / workers, w.seconds)
        for w, p in zip(waves, passed, strict=True)
    )
    return Campaign(
        wall_s=wall,
        ideal_s=(busy + lost) / workers,
        path_s=path,
        utilisation=busy / (wall * workers),
        lost=sum(p.lost for p in passed),
        waves=tuple(zip(waves, passed, strict=True)),
    )
