"""What a run will cost, and what it has cost: hours, bytes, requests, money, days.

A forecast is the work of every wave (see `pipeline.runtime.calibrate`) times the rates
that were measured on samples, with the prices of the user's own table.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import RecipeError
from pipeline.geometry import ChunkKey
from pipeline.runtime.calibrate import (
    NODES,
    ROUNDS,
    VOXELS,
    Calibration,
    Rate,
    compression,
    stored_bytes,
    units_of,
)
from pipeline.runtime.estimate import peak_memory, wave_memory
from pipeline.runtime.run import Run
from pipeline.specs import Read, Records, Region, VolumeSpec
from pipeline.stages.base import Specs, Stage, Wave

TYPICAL = Path(__file__).with_name("typical_rates.json")
"""Rates to fall back on where nothing was measured."""

_DEVIATIONS = 1.645
_FLOOR = 0.15
_MODELLED = 2.0
_ASSUMED = 3.0
_RECORDS_PER_TASK = 3
_MESSAGES_PER_TASK = 3

Positive = Annotated[float, Field(gt=0)]
Amount = Annotated[float, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PoolPrice(_Strict):
    """A kind of machine that serves a pool.

    Parameters
    ----------
    machine : str
        Its name, for people.
    workers : int
        How many tasks it does at once.
    memory_gb : float, optional
        Its memory: tasks that need more than their share have fewer beside them, and are
        charged so; what needs more than all of it is charged as so many machines [GB].
    on_demand, spot : float
        Price of the machine for an hour.
    speed : float
        How fast one of its workers is, beside the core that was calibrated on.
    spot_losses : float
        How often a spot machine is taken away, for each hour.
    startup_s : float
        Until a machine does its first task [s].
    """

    machine: str = ""
    workers: int = Field(default=1, ge=1)
    memory_gb: Positive | None = None
    on_demand: Amount
    spot: Amount
    speed: Positive = 1.0
    spot_losses: Amount = 0.05
    startup_s: Amount = 120.0

    def share(self, peak_bytes: int) -> float:
        """Return how much of a machine a task of a peak memory takes."""
        by_memory = peak_bytes / 1e9 / self.memory_gb if self.memory_gb else 0.0
        return max(1 / self.workers, by_memory)


class StoragePrice(_Strict):
    """Where layers are kept.

    Parameters
    ----------
    gb_month : float
        Price of keeping a gigabyte for a month.
    months : float
        How long all layers are kept.
    write_1000, read_1000 : float
        Price of a thousand requests that write (or list), and that read.
    moved_gb : float
        Price of moving a gigabyte between storage and workers, 0 within a region.
    mb_per_s : float
        What one worker moves in a second [MB].
    request_s : float
        Until a request is answered [s]; several are under way at once.
    at_once : int
        How many.
    """

    gb_month: Amount
    months: Amount = 1.0
    write_1000: Amount
    read_1000: Amount
    moved_gb: Amount = 0.0
    mb_per_s: Positive = 100.0
    request_s: Amount = 0.03
    at_once: int = Field(default=16, ge=1)


class Prices(_Strict):
    """A table of prices, and the fleet that is to be had for them.

    Parameters
    ----------
    currency, date, where : str
        In what, when, and where these prices were read.
    pool : dict of str to PoolPrice
        By pool.
    storage : StoragePrice
        Of the layers.
    queue_million : float
        Price of a million requests to the queue.
    fleet : dict of str to int
        Workers by pool.
    """

    currency: str = "USD"
    date: str
    where: str = ""
    pool: dict[str, PoolPrice]
    storage: StoragePrice
    queue_million: Amount = 0.0
    fleet: dict[str, Annotated[int, Field(ge=1)]]

    @classmethod
    def load(cls, path: Path) -> Prices:
        """Read a table of prices.

        Raises
        ------
        RecipeError
            If it is no such table.
        """
        try:
            return cls.model_validate(tomllib.loads(path.read_text()))
        except OSError as error:
            raise RecipeError(
                str(path), [f"cannot be read ({error.strerror}); give a table of prices"]
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(str(path), [f"is not TOML: {error}"]) from error
        except ValidationError as error:
            faults = [
                f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()
            ]
            raise RecipeError(str(path), faults) from None


@dataclass(frozen=True)
class Costs:
    """What a stage, or a run, takes.

    Parameters
    ----------
    tasks : int
        How many.
    worker_hours : dict of str to float
        By pool, with the time that data are moved in [h].
    moved_gb, stored_gb : float
        Between storage and workers; and what is left in storage.
    writes, reads, messages : float
        Requests to the storage and to the queue.
    machines : float
        Money for machines on demand; `spot` for spot ones.
    spot : float
        See there.
    services : float
        Money for storage, its requests, traffic and the queue.
    wall_h : float
        Time with the fleet [h].
    """

    tasks: int
    worker_hours: Mapping[str, float]
    moved_gb: float
    stored_gb: float
    writes: float
    reads: float
    messages: float
    machines: float
    spot: float
    services: float
    wall_h: float

    def __add__(self, other: Costs) -> Costs:
        """Return the costs of one after the other."""
        hours = dict(self.worker_hours)
        for pool, h in other.worker_hours.items():
            hours[pool] = hours.get(pool, 0.0) + h
        rest = {
            f.name: getattr(self, f.name) + getattr(other, f.name)
            for f in fields(self)
            if f.name != "worker_hours"
        }
        return Costs(worker_hours=hours, **rest)

    @property
    def hours(self) -> float:
        """Hours of all workers [h]."""
        return sum(self.worker_hours.values())

    @property
    def on_demand_money(self) -> float:
        """All money, with machines on demand."""
        return self.machines + self.services

    @property
    def spot_money(self) -> float:
        """All money, with spot machines."""
        return self.spot + self.services

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the sums of money."""
        return {
            **asdict(self),
            "on_demand_money": self.on_demand_money,
            "spot_money": self.spot_money,
        }


@dataclass(frozen=True)
class StageForecast:
    """What a stage is expected to take.

    Parameters
    ----------
    output, stage, pool : str
        Layer, stage and kind of worker.
    costs : Costs
        Expected.
    low, high : float
        By what the hours, and with them money for machines and time, may be multiplied: a
        range of 90 % where it was measured.
    peak_memory : int
        Of its largest task [byte].
    waves : tuple of Costs
        Expected of each wave, in order.
    basis : str
        ``measured``, ``modelled`` where nodes are far larger than those measured, or
        ``typical`` where only rates of another recipe are known.
    """

    output: str
    stage: str
    pool: str
    costs: Costs
    low: float
    high: float
    peak_memory: int
    waves: tuple[Costs, ...]
    basis: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        own = asdict(self) | {"costs": self.costs.to_json()}
        own["waves"] = [wave.to_json() for wave in self.waves]
        return own


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to take.

    Parameters
    ----------
    stages : tuple of StageForecast
        In layer order.
    prices : Prices
        And the fleet.
    """

    stages: tuple[StageForecast, ...]
    prices: Prices

    @classmethod
    def of(cls, run: Run, prices: Prices, calibration: Calibration | None) -> Forecast:
        """Forecast every stage of a run.

        Parameters
        ----------
        run : Run
            Planned or started; what is done of it counts too.
        prices : Prices
            And the fleet.
        calibration : Calibration or None
            Rates measured for this recipe; typical ones if None.

        Raises
        ------
        RecipeError
            If the prices lack a pool of the recipe.
        """
        _require_pools(run, prices)
        stages = (_stage(run, s, prices, calibration) for s in run.recipe.stages)
        return cls(tuple(stages), prices)

    @property
    def total(self) -> tuple[Costs, Costs, Costs]:
        """The expected, the low and the high costs of all stages.

        Ranges add up as if all stages were off the same way, so that of the whole is wide.
        """
        expected = reduce(Costs.__add__, (s.costs for s in self.stages))
        low = reduce(Costs.__add__, (scaled(s.costs, s.low) for s in self.stages))
        high = reduce(Costs.__add__, (scaled(s.costs, s.high) for s in self.stages))
        return expected, low, high

    def to_json(self) -> dict[str, Any]:
        """Return the stages and the sums."""
        names = ("expected", "low", "high")
        return {
            "prices": self.prices.model_dump(mode="json"),
            "stages": [s.to_json() for s in self.stages],
            "total": {n: c.to_json() for n, c in zip(names, self.total, strict=True)},
        }


def scaled(costs: Costs, factor: float) -> Costs:
    """Return costs whose hours, money for machines and time are multiplied."""
    return replace(
        costs,
        worker_hours={p: h * factor for p, h in costs.worker_hours.items()},
        machines=costs.machines * factor,
        spot=costs.spot * factor,
        wall_h=costs.wall_h * factor,
    )


@dataclass(frozen=True)
class StageAccount:
    """What a stage has taken so far, beside what was expected of it.

    Parameters
    ----------
    output, pool : str
        Layer and kind of worker.
    tasks, done : int
        How many there are, and how many of them are done.
    expected_hours, hours : float
        Of workers: the forecast of the whole stage, and what its done tasks took [h].
    stored_gb : float
        What they wrote, as stored.
    on_demand, spot : float
        Money for the machines of these hours.
    """

    output: str
    pool: str
    tasks: int
    done: int
    expected_hours: float
    hours: float
    stored_gb: float
    on_demand: float
    spot: float

    @property
    def hours_at_end(self) -> float | None:
        """Hours of the whole stage if it goes on as it went; None before the first task."""
        return self.hours / self.done * self.tasks if self.done else None

    def to_json(self) -> dict[str, Any]:
        """Return the fields, and the hours at the end."""
        return {**asdict(self), "hours_at_end": self.hours_at_end}


def account(
    run: Run, prices: Prices, calibration: Calibration | None
) -> list[StageAccount]:
    """Return what every stage of a run has taken, by the records of its done tasks.

    Hours are those that tasks took, reading and writing included; what workers spent
    waiting for tasks, or on tasks that came to nothing, is in no record.

    Raises
    ------
    RecipeError
        If the prices lack a pool of the recipe.
    """
    found = []
    for expected in Forecast.of(run, prices, calibration).stages:
        stage = run.recipe.stage(expected.output)
        done = list(run.done_records(stage))
        hours = sum(d.seconds for d in done) / 3600
        pool = prices.pool[stage.pool]
        share = pool.share(max((d.peak_memory for d in done), default=0))
        found.append(
            StageAccount(
                output=stage.output,
                pool=stage.pool,
                tasks=sum(len(wave) for wave in stage.plan()),
                done=len(done),
                expected_hours=expected.costs.hours,
                hours=hours,
                stored_gb=sum(stored_bytes(d) for d in done) / 1e9,
                on_demand=hours * share * pool.on_demand,
                spot=hours * share * pool.spot,
            )
        )
    return found


def typical() -> Calibration:
    """Return rates that were measured on the example block, and on loose sections."""
    return Calibration.model_validate_json(TYPICAL.read_text())


def _require_pools(run: Run, prices: Prices) -> None:
    pools = {stage.pool for stage in run.recipe.stages}
    faults = [
        f"[{table}] says nothing of pool {pool}, which the recipe uses; add it"
        for table, given in (("pool", prices.pool), ("fleet", prices.fleet))
        for pool in sorted(pools - set(given))
    ]
    if faults:
        raise RecipeError("prices", faults)


# -- a stage --------------------------------------------------------------------------


def _stage(
    run: Run, stage: Stage, prices: Prices, calibration: Calibration | None
) -> StageForecast:
    waves = stage.plan()
    parts, low, high, bases = [], 0.0, 0.0, set()
    hours = 0.0
    for wave in waves:
        costs, (least, most), basis = _wave(run.specs, stage, wave, prices, calibration)
        parts.append(costs)
        own = sum(costs.worker_hours.values())
        hours, low, high = hours + own, low + own * least, high + own * most
        bases.add(basis)
    costs = reduce(Costs.__add__, parts)
    # Machines come once for a stage: they stay up from wave to wave.
    costs = replace(costs, wall_h=costs.wall_h + prices.pool[stage.pool].startup_s / 3600)
    order = ("typical", "modelled", "measured")
    return StageForecast(
        output=stage.output,
        stage=stage.name,
        pool=stage.pool,
        costs=costs,
        low=low / hours if hours else 1.0,
        high=high / hours if hours else 1.0,
        peak_memory=peak_memory(stage, run.specs),
        waves=tuple(parts),
        basis=next(b for b in order if b in bases),
    )


def _wave(
    specs: Specs,
    stage: Stage,
    wave: Wave,
    prices: Prices,
    calibration: Calibration | None,
) -> tuple[Costs, tuple[float, float], str]:
    counts = stage.grid_at(wave.level).counts(stage.octree_level(wave.level))
    middle = ChunkKey(wave.level, *(n // 2 for n in counts))
    kind, units = units_of(stage, specs, middle)
    n = len(wave)
    if kind == VOXELS:
        all_units = float(stage.grid_at(wave.level).bounds.volume)
    else:
        all_units = units * n
    rate, span, basis = _rate(stage, kind, units, calibration)
    pool, storage = prices.pool[stage.pool], prices.storage
    compute_s = max(all_units * rate.seconds_per_unit, n * rate.least_seconds) / pool.speed

    reads = list(stage.likely_reads(stage.task(middle)).values())
    known = calibration or typical()
    in_bytes = n * sum(_read_bytes(specs, known, read) for read in reads)
    out_bytes = all_units * rate.stored_per_unit
    n_reads = n * (sum(_objects(specs, read) for read in reads) + _RECORDS_PER_TASK)
    n_writes = n * (rate.objects_per_task * _growth(kind, units, rate) + _RECORDS_PER_TASK)
    moved_s = (in_bytes + out_bytes) / (storage.mb_per_s * 1e6)
    waited_s = (n_reads + n_writes) * storage.request_s / storage.at_once
    seconds = compute_s + moved_s + waited_s
    hours = seconds / 3600
    task_s = seconds / n
    # Half of a task is lost with a machine that is taken away.
    lost = 1 + pool.spot_losses * task_s / 3600 / 2
    messages = n * _MESSAGES_PER_TASK
    stored_gb = out_bytes / 1e9
    moved_gb = (in_bytes + out_bytes) / 1e9
    services = (
        stored_gb * storage.gb_month * storage.months
        + n_writes / 1000 * storage.write_1000
        + n_reads / 1000 * storage.read_1000
        + moved_gb * storage.moved_gb
        + messages / 1e6 * prices.queue_million
    )
    share = pool.share(wave_memory(wave, specs))
    # The fleet is so many machines; where each does fewer tasks at once, so does the fleet.
    machines = prices.fleet[stage.pool] / pool.workers
    workers = min(max(1, int(machines / share)), n)
    wall_s = math.ceil(n / workers) * task_s
    costs = Costs(
        tasks=n,
        worker_hours={stage.pool: hours},
        moved_gb=moved_gb,
        stored_gb=stored_gb,
        writes=n_writes,
        reads=n_reads,
        messages=messages,
        machines=hours * share * pool.on_demand,
        spot=hours * share * lost * pool.spot,
        services=services,
        wall_h=wall_s / 3600,
    )
    return costs, span, basis


def _growth(kind: str, units: float, rate: Rate) -> float:
    """Return by how much a task has more objects than those that were measured.

    A measured task may be cut by its box; the objects of volumes go with the voxels.
    """
    if kind != VOXELS or rate.tasks == 0 or rate.stored_per_unit == 0:
        return 1.0
    measured = rate.units_per_task
    return units / measured if measured else 1.0


def _rate(
    stage: Stage, kind: str, units: float, calibration: Calibration | None
) -> tuple[Rate, tuple[float, float], str]:
    """Return a rate, how far off it may be, and what it rests on."""
    rate = calibration.rate(stage, kind) if calibration else None
    if rate is None:
        found = typical().rate(stage, kind) or _UNKNOWN[kind]
        return found, (1 / _ASSUMED, _ASSUMED), "typical"
    if kind != VOXELS and units > 4 * rate.units_per_task:
        return rate, (1 / _MODELLED, _MODELLED), "modelled"
    error = max(_FLOOR, _DEVIATIONS * rate.spread / math.sqrt(max(rate.tasks, 1)))
    if rate.tasks < 3:
        error = max(error, 0.5)
    return rate, (1 / (1 + error), 1 + error), "measured"


def _read_bytes(specs: Specs, calibration: Calibration, read: Read) -> float:
    if isinstance(read, list | Records):
        # Of records it is not known here how large they are.
        return 0.0
    spec = specs.get(read.layer)
    if isinstance(read, Region) and isinstance(spec, VolumeSpec):
        ratio = compression(calibration, specs, read.layer)
        return read.box.volume * spec.itemsize * ratio
    return 0.0


def _objects(specs: Specs, read: Read) -> int:
    if isinstance(read, list | Records):
        return len(read)
    spec = specs.get(read.layer)
    if isinstance(read, Region) and isinstance(spec, VolumeSpec):
        return read.box.shape.ceil_div(spec.storage_chunk).product
    return 1


_UNKNOWN = {
    VOXELS: Rate(
        output="",
        stage="",
        kind=VOXELS,
        tasks=0,
        units_per_task=0,
        seconds_per_unit=1e-7,
        least_seconds=0.05,
        spread=0,
        stored_per_unit=1,
        objects_per_task=1,
    ),
    # That of the basin graph on the example block.
    ROUNDS: Rate(
        output="",
        stage="",
        kind=ROUNDS,
        tasks=0,
        units_per_task=0,
        seconds_per_unit=1.9e-9,
        least_seconds=0.0005,
        spread=0,
        stored_per_unit=0.12,
        objects_per_task=1,
    ),
    NODES: Rate(
        output="",
        stage="",
        kind=NODES,
        tasks=0,
        units_per_task=0,
        seconds_per_unit=1e-8,
        least_seconds=0.02,
        spread=0,
        stored_per_unit=0.2,
        objects_per_task=1,
    ),
}
"""A tenth of a microsecond for a voxel, ten nanoseconds for a byte of a node."""
