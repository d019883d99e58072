"""A run: a recipe at work in a folder, one task at a time.

This is the only place where stages and storage meet. A task is skipped if it is done,
else its inputs are read, ``process`` is called, the halo is cut, the output is written,
and the done record last. A run killed anywhere is therefore finished by running again.

Under the root, beside the layers::

    runs/<recipe>.json             the frozen recipe and what each layer holds
    <layer>/done/<key>.json        one record per task that is done
    <layer>/failed/<key>.json      one record per task that was given up
    <layer>/attempts/<key>.json    starts of a queued task that has not ended yet
"""

from __future__ import annotations

import getpass
import inspect
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from typing import Any, Literal

import numpy as np

from pipeline.errors import (
    BackendError,
    DataError,
    GivenBackError,
    InUseError,
    MemoryLimitError,
    MissingInputError,
    PermanentError,
    RecipeError,
    RootError,
    StaleOutputError,
    TransientError,
)
from pipeline.geometry import Bbox, ChunkKey
from pipeline.layers.provenance import provenance
from pipeline.layers.store import Store
from pipeline.layers.volumes import check_spec
from pipeline.recipe import Recipe
from pipeline.runtime.cores import threads
from pipeline.runtime.dependencies import Dependencies
from pipeline.runtime.logs import redacted
from pipeline.runtime.memory import (
    PROCESS_BYTES,
    memory_limit,
    peak_memory,
    reset_peak_memory,
)
from pipeline.runtime.starts import Starts, beating, gib
from pipeline.runtime.steps import STEPS
from pipeline.specs import LayerSpec, Partitioned, Read, Record, Region, Value, VolumeSpec
from pipeline.stages.base import Specs, Stage, Task

ATTEMPTS = 5
"""Starts of a task before it is parked with a failed record."""

_MEMORY_ATTEMPTS = 2
"""Starts that run out of memory with nothing beside them before a task is parked."""

LATE_S = 60.0
"""A task that takes longer may be given to a second worker (see `runtime.late`) [s]."""

_AHEAD_SHARE = 0.8
"""Of the memory of a worker, for a task and what the next one reads."""

_SHOWN_RECORDS = 8
_ASKED_AT_MOST = 64
"""Records that are asked for one by one; more are listed."""

Outcome = Literal["done", "blank", "skipped"]


@dataclass(frozen=True)
class Done:
    """What the done record of a task says that the run needs."""

    key: ChunkKey
    lineage: str
    objects: Mapping[str, str]
    voxels: int
    seconds: float
    peak_memory: int
    blank: bool

    @classmethod
    def from_json(cls, document: Any) -> Done | None:
        """Read a done record; None if it is torn or of another form."""
        try:
            return cls(
                key=ChunkKey.parse(document["key"]),
                lineage=document["lineage"],
                objects=document["objects"],
                voxels=document["voxels"],
                seconds=document["seconds"],
                peak_memory=document["peak_memory"],
                blank=document["kind"] == "blank",
            )
        except (TypeError, KeyError, ValueError):
            return None


class Run:
    """A recipe in a root.

    Parameters
    ----------
    store : Store
        The root.
    recipe : Recipe
        Pinned.
    specs : dict of str to LayerSpec
        What every layer holds.
    """

    def __init__(self, store: Store, recipe: Recipe, specs: Specs) -> None:
        self.store = store
        self.recipe = recipe
        self.specs = specs
        self.lineage = recipe.lineage()
        self.on_done: Callable[[Mapping[str, Any]], None] | None = None
        self.on_parked: Callable[[Mapping[str, Any]], None] | None = None
        self._known_done: set[tuple[str, ChunkKey]] = set()

    @classmethod
    def plan(cls, recipe: Recipe, root: str) -> Run:
        """Check a recipe against what its layers hold; write nothing.

        Raises
        ------
        RecipeError
            With every fault.
        """
        store = Store(root, recipe.layers)
        faults: list[str] = []
        specs: Specs = {}
        try:
            recipe = recipe.pinned()
        except RecipeError as error:
            faults += error.faults
        try:
            specs = recipe.specs(lambda layer, _: store.describe(layer))
        except RecipeError as error:
            faults += error.faults
        for stage in recipe.stages:
            spec = specs.get(stage.output)
            if isinstance(spec, VolumeSpec):
                try:
                    check_spec(stage.output, spec)
                except PermanentError as error:
                    faults.append(str(error))
        if faults:
            raise RecipeError(recipe.name, list(dict.fromkeys(faults)))
        return cls(store, recipe, specs)

    @classmethod
    def start(cls, recipe: Recipe, root: str, *, replace: bool = False) -> Run:
        """Check a recipe, freeze it in the root, and create its layers.

        Parameters
        ----------
        recipe : Recipe
            What to run.
        root : str
            Folder of the run.
        replace : bool
            Delete outputs that were made with another configuration.

        Raises
        ------
        RecipeError, RootError, StaleOutputError
            If it cannot work, the root cannot be written, or an output of another
            configuration is in the way.
        """
        run = cls.plan(recipe, root)
        stale = run.stale()
        if stale and not replace:
            raise StaleOutputError("\n".join(stale.values()))
        for output in stale:
            run.store.delete(output)
        run._forget_failures_of_others()
        frozen = {
            "recipe": run.recipe.to_json(),
            "specs": {k: s.model_dump(mode="json") for k, s in run.specs.items()},
            "code_version": code_version(),
        }
        path = f"runs/{recipe.name}.json"
        if run.store.get_json(path) != frozen:
            run.store.put_json(path, frozen)
        for stage in run.recipe.stages:
            layer = run.data_layer(stage)
            if layer == stage.output or layer in run.recipe.external:
                run.store.create(layer, run.specs[layer], run.provenance(stage))
        return run

    @classmethod
    def open(cls, root: str, name: str) -> Run:
        """Open a run that was started.

        Raises
        ------
        RootError
            If the root holds no such run.
        """
        store = Store(root)
        path = f"runs/{name}.json"
        document = store.get_json(path)
        if document is None:
            names = cls.names(root)
            raise RootError(
                f"{root} holds no run {name}; it holds {', '.join(names)}"
                if names
                else f"{root} holds no run; start one with em run RECIPE --root {root}"
            )
        recipe = Recipe.parse(document["recipe"], source=f"{root}/{path}")
        specs: Specs = {k: _spec(s) for k, s in document["specs"].items()}
        return cls(Store(root, recipe.layers), recipe, specs)

    @classmethod
    def names(cls, root: str) -> list[str]:
        """List the runs that were started in a root."""
        return [
            path.removeprefix("runs/").removesuffix(".json")
            for path in Store(root).list("runs/")
        ]

    # -- one task --------------------------------------------------------------------

    def execute(
        self,
        stage: Stage,
        key: ChunkKey,
        *,
        again: bool = False,
        begins: Callable[[], bool] | None = None,
    ) -> Outcome:
        """Do a task, unless it is done.

        In a process that does several at once, others may be at the steps that this one
        is not at. Where the stage does not stream, only the next task is read beside it,
        if what it reads fits into memory too.

        Parameters
        ----------
        stage, key
            The task.
        again : bool
            Do it even if it is done.
        begins : callable or None
            Asked when all is read; false breaks the task off.

        Raises
        ------
        GivenBackError
            If it was broken off.
        TransientError
            Trying again may help; nothing was recorded.
        PermanentError
            It cannot; the caller parks the task with `park`.
        """
        record = self.done_record(stage, key)
        if record is not None and not again:
            return "skipped"
        task = replace(stage.task(key), threads=threads())
        reads = {n: r for n, r in stage.reads(task).items() if n not in stage.late}
        for read in reads.values():
            if isinstance(read, Region):
                self._require_written(stage, read)
        if not stage.streams and not self._reads_ahead(stage, key, reads):
            STEPS.alone()
        reset_peak_memory()
        started, clock = time.time(), Phases()
        inputs = {name: self.store.read(read) for name, read in reads.items()}
        for name, region in stage.narrowed(task, **inputs).items():
            self._require_written(stage, region)
            inputs[name] = self.store.read(region)
        bytes_read = sum(_size(value) for value in inputs.values())
        clock.ends("read")
        STEPS.claim(stage.memory(self.specs, key.level))
        clock.waited(STEPS.compute(to_the_end=not stage.streams))
        if begins is not None and not begins():
            raise GivenBackError(f"{stage.name}: {key} was read and not begun")
        value = stage.process(task, **inputs)
        del inputs
        clock.ends("compute")
        clock.waited(STEPS.write())
        # Another worker may have been given it meanwhile, and the run have gone on.
        is_late = not again and time.time() - started > LATE_S
        if is_late and self.done_record(stage, key) is not None:
            return "skipped"
        target = stage.target(task)
        spec = self.specs[target.layer]
        value = cut_halo(stage, task, target, spec, value)
        objects = self.store.write(target, spec, value)
        blank = not objects
        clock.ends("write")
        written = {
            "kind": "blank" if blank else "done",
            "stage": stage.name,
            "key": str(key),
            "digest": stage.digest,
            "lineage": self.lineage[stage.output],
            "inputs": {
                layer: self.lineage.get(layer, "") for layer in stage.inputs.values()
            },
            "objects": objects,
            "voxels": stage.voxels(task),
            "seconds": round(sum(clock.seconds.values()), 3),
            "phases": {name: round(s, 3) for name, s in clock.seconds.items()},
            "bytes_read": bytes_read,
            "bytes_written": sum(int(c.rpartition(":")[2]) for c in objects.values()),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "peak_memory": peak_memory(),
            "host": platform.node(),
            "code_version": code_version(),
        }
        self.store.put_json(self._path(stage, "done", key), written)
        if self.on_done is not None:
            self.on_done({"output": stage.output, **written})
        self.store.delete_document(self._path(stage, "failed", key))
        return "blank" if blank else "done"

    def _reads_ahead(self, stage: Stage, key: ChunkKey, reads: Mapping[str, Read]) -> bool:
        """Whether what a task reads fits into memory beside the task under way."""
        count = 0
        for read in reads.values():
            spec = None if not isinstance(read, Region) else self.specs.get(read.layer)
            if not isinstance(read, Region) or not isinstance(spec, VolumeSpec):
                # How large records are is not known; it is no more than all that they take.
                count = stage.memory(self.specs, key.level)
                break
            count += read.box.volume * spec.itemsize
        return STEPS.claim(count, int(_AHEAD_SHARE * memory_limit()) - PROCESS_BYTES)

    def _require_written(self, stage: Stage, region: Region) -> None:
        """Check that each task that writes into a region is done.

        A storage chunk that is absent reads as background, which only its done record
        tells from one that was never written.

        Raises
        ------
        MissingInputError
            If one is not.
        """
        writer = self._writers.get((region.layer, region.mip))
        if writer is None:
            return
        for near in writer.grid_at(region.mip).touching(region.box):
            key = ChunkKey(region.mip, near.x, near.y, near.z)
            if (writer.output, key) in self._known_done:
                continue
            if self.done_record(writer, key) is None:
                raise MissingInputError(
                    f"{stage.name}: {region.layer}/{key} was never written; run stage "
                    f"{writer.output} to the end first"
                )
            self._known_done.add((writer.output, key))

    @cached_property
    def _dependencies(self) -> Dependencies:
        return Dependencies(self.recipe.stages)

    @cached_property
    def _writers(self) -> dict[tuple[str, int], Stage]:
        """The stage that writes each mip of each volume of this run."""
        result: dict[tuple[str, int], Stage] = {}
        for stage in self.recipe.stages:
            for wave in stage.plan():
                target = stage.target(stage.task(next(iter(wave.keys()))))
                if isinstance(target, Region):
                    result[target.layer, target.mip] = stage
        return result

    def attempt(
        self,
        stage: Stage,
        key: ChunkKey,
        *,
        counted: bool = True,
        beat_s: float = 0.0,
        begins: Callable[[], bool] | None = None,
    ) -> str:
        """Do a task and say how it went; give up where trying again cannot help.

        A start is written down before the work, so that a task that kills its worker
        is known at its next start.

        Parameters
        ----------
        stage, key
            The task.
        counted : bool
            Whether to write down starts, as one does where a task comes from a queue.
        beat_s : float
            How often to show that this worker lives [s]; 0 for never.
        begins : callable or None
            See `execute`.

        Returns
        -------
        str
            ``done``, ``blank``, ``skipped``, ``failed``, or ``early`` where a message
            came before the turn of its task.

        Raises
        ------
        TransientError
            Up to the fourth time.
        RootError, StaleOutputError
            The root is full, read-only or another's: no task can go on.
        BackendError
            This machine cannot compute the net; another may.
        """
        path = self.starts_path(stage, key)
        starts = 1
        if counted:
            if self.done_record(stage, key) is not None:
                return "skipped"
            if self.is_parked(stage, key):
                return "failed"
            before = Starts.read(self.store, path)
            if before.starts >= ATTEMPTS or before.out_of_memory >= _MEMORY_ATTEMPTS:
                self._require_dead(stage, key, before)
                self.park(stage, key, self._died(stage, key, before), before.starts)
                self.store.delete_document(path)
                return "failed"
            starts = before.starts + 1
            before.begun(platform.node(), beat_s).write(self.store, path)
            if starts > 1:
                # It may have killed its worker: lest it take others with it again.
                STEPS.alone()
        try:
            with beating(self.store, path, beat_s if counted else 0.0):
                outcome: str = self.execute(stage, key, begins=begins)
        except GivenBackError:
            raise
        except TransientError as error:
            if not counted or starts < ATTEMPTS:
                raise
            self.park(stage, key, error, starts)
            outcome = "failed"
        except (RootError, StaleOutputError, BackendError):
            # The whole run is in trouble, or this worker; not this task.
            raise
        except Exception as error:
            if (
                counted
                and isinstance(error, MissingInputError)
                and self._awaits(stage, key)
            ):
                outcome = "early"
            else:
                self.park(stage, key, error, starts)
                outcome = "failed"
        if counted:
            self.store.delete_document(path)
        return outcome

    def _require_dead(self, stage: Stage, key: ChunkKey, before: Starts) -> None:
        """Make sure that no worker is at a task any more.

        Raises
        ------
        InUseError
            If one may be; the beat that was seen is written down for the next look.
        """
        if before.beat_s and before.seen != before.beat:
            path = self.starts_path(stage, key)
            replace(before, seen=before.beat).write(self.store, path)
            raise InUseError(
                f"{stage.name}: {key} was begun {before.starts} times, last on "
                f"{before.host}, which may be at it still; looking again",
                2 * before.beat_s + 1,
            )

    def _awaits(self, stage: Stage, key: ChunkKey) -> bool:
        """Whether tasks that one reads from are not done: its message came too early."""
        known = self._dependencies
        for writer, box in known.needs(known.wave(stage.output, key.level), key):
            wave = known.waves[writer]
            needed = (ChunkKey(wave.level, *place) for place in box.positions())
            if box.volume > _ASKED_AT_MOST:
                done = self.done_keys(wave.stage)
                if any(k not in done for k in needed):
                    return True
            elif any(self.done_record(wave.stage, k) is None for k in needed):
                return True
        return False

    def _died(self, stage: Stage, key: ChunkKey, before: Starts) -> PermanentError:
        """Say of what the workers of a task died, as far as it is known."""
        said = gib(PROCESS_BYTES + stage.memory(self.specs, key.level))
        if before.out_of_memory or before.lacked_memory:
            return MemoryLimitError(
                f"{stage.name}: {stage.output}/{key} ran out of memory: its worker on "
                f"{before.host} had {gib(before.memory)} of {gib(before.limit)} in use, "
                f"where em plan says {said}; it died {before.starts} times. Give workers "
                "more memory or choose a smaller chunk, then em retry"
            )
        return PermanentError(
            f"the worker died {before.starts} times in this task (killed, or out of "
            f"memory; em plan says {said}), last on {before.host}; give it more memory, "
            "then em retry"
        )

    def give_back(self, stage: Stage, key: ChunkKey) -> None:
        """Undo the count of a start that was broken off on purpose."""
        path = self.starts_path(stage, key)
        known = Starts.read(self.store, path)
        if known.starts > 1:
            replace(known, starts=known.starts - 1).write(self.store, path)
        else:
            self.store.delete_document(path)

    def starts_path(self, stage: Stage, key: ChunkKey) -> str:
        """Return where the starts of a task are written down."""
        return self._path(stage, "attempts", key)

    def park(
        self, stage: Stage, key: ChunkKey, error: BaseException, starts: int = 1
    ) -> None:
        """Write the failed record of a task."""
        text = redacted("".join(traceback.format_exception(error)))
        record = {
            "stage": stage.name,
            "output": stage.output,
            "key": str(key),
            "lineage": self.lineage[stage.output],
            "code": getattr(error, "code", type(error).__name__),
            "reason": redacted(str(error)) or type(error).__name__,
            "traceback": text,
            "starts": starts,
            "host": platform.node(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        self.store.put_json(self._path(stage, "failed", key), record)
        if self.on_parked is not None:
            self.on_parked(record)

    # -- what is done ----------------------------------------------------------------

    def done_record(self, stage: Stage, key: ChunkKey) -> Done | None:
        """Return the done record of a task, or None.

        Raises
        ------
        StaleOutputError
            If it is of another configuration.
        """
        done = Done.from_json(self.store.get_json(self._path(stage, "done", key)))
        if done is not None and done.lineage != self.lineage[stage.output]:
            raise StaleOutputError(self._stale_message(stage, key))
        return done

    def done_records(self, stage: Stage) -> Iterator[Done]:
        """Yield every done record of a stage, listing them once."""
        paths = list(self.store.list(f"{stage.output}/done/"))
        with ThreadPoolExecutor(16) as threads:
            for document in threads.map(self.store.get_json, paths):
                done = Done.from_json(document)
                if done is not None:
                    yield done

    def done_keys(self, stage: Stage) -> set[ChunkKey]:
        """Return the tasks that have a done record, listing them once."""
        return self._listed(stage, "done")

    def parked_keys(self, stage: Stage) -> set[ChunkKey]:
        """Return the tasks that have a failed record."""
        return self._listed(stage, "failed")

    def begun_keys(self, stage: Stage) -> set[ChunkKey]:
        """Return the tasks that were taken from a queue and have not ended."""
        return self._listed(stage, "attempts")

    def state_of(self, stage: Stage, key: ChunkKey) -> str:
        """Return ``done``, ``failed``, or ``missing`` where a task has neither record."""
        if self.done_record(stage, key) is not None:
            return "done"
        return "failed" if self.is_parked(stage, key) else "missing"

    def is_parked(self, stage: Stage, key: ChunkKey) -> bool:
        """Whether a task was given up."""
        return self.store.get_json(self._path(stage, "failed", key)) is not None

    def task_state(self, stage: Stage, key: ChunkKey) -> dict[str, Any]:
        """Return what is known of a task: its state, what it reads, and its records."""
        done = self.store.get_json(self._path(stage, "done", key))
        failed = self.failure(stage, key)
        starts = Starts.read(self.store, self.starts_path(stage, key))
        state = "done" if done else "failed" if failed else "missing"
        reads = stage.reads(stage.task(key))
        return {
            "task": f"{stage.output}/{key}",
            "stage": stage.name,
            "state": state,
            "starts": starts.starts or (failed or {}).get("starts", 0),
            "memory": gib(stage.memory(self.specs, key.level)),
            "reads": {name: _said(read) for name, read in reads.items()},
            "record": done or failed,
        }

    def failures(self) -> list[dict[str, Any]]:
        """Return the failed records of all stages, in layer order."""
        return [
            document
            for stage in self.recipe.stages
            for key in sorted(self.parked_keys(stage))
            if (document := self.failure(stage, key)) is not None
        ]

    def retry(self, output: str | None = None, reason: str | None = None) -> int:
        """Forget failed records, so that the next run tries again; return how many.

        Parameters
        ----------
        output : str or None
            Only those of this layer.
        reason : str or None
            Only those with this text in their reason, or with this code.
        """
        count = 0
        for stage in self.recipe.stages:
            if output in (None, stage.output):
                for key in self.parked_keys(stage):
                    if reason is not None:
                        record = self.failure(stage, key) or {}
                        said = str(record.get("reason", ""))
                        if reason not in said and reason != record.get("code"):
                            continue
                    self._unpark(stage, key)
                    count += 1
        return count

    def failure(self, stage: Stage, key: ChunkKey) -> dict[str, Any] | None:
        """Return the failed record of a task; None where there is none."""
        record = self.store.get_json(self._path(stage, "failed", key))
        return record if isinstance(record, dict) else None

    def forget(self, stage: Stage, key: ChunkKey) -> None:
        """Forget that a task is done, or that it was given up."""
        self._unpark(stage, key)
        self._known_done.discard((stage.output, key))
        self.store.delete_document(self._path(stage, "done", key))

    def _forget_failures_of_others(self) -> None:
        """Let tasks be tried that failed with another configuration, which may be why."""
        for stage in self.recipe.stages:
            for key in self.parked_keys(stage):
                record = self.failure(stage, key) or {}
                if record.get("lineage") != self.lineage[stage.output]:
                    self._unpark(stage, key)

    def _unpark(self, stage: Stage, key: ChunkKey) -> None:
        self.store.delete_document(self._path(stage, "attempts", key))
        self.store.delete_document(self._path(stage, "failed", key))

    def forget_lost(self, stage: Stage) -> list[ChunkKey]:
        """Forget tasks whose record or objects are no longer there; return them.

        Looks at names alone; ``em verify`` also compares checksums.
        """
        layer = self.data_layer(stage)
        records = list(self.done_records(stage))
        lost = sorted(self.done_keys(stage) - {d.key for d in records})
        if any(d.objects for d in records):
            present = {p.removeprefix(f"{layer}/") for p in self.store.list(f"{layer}/")}
            lost += [d.key for d in records if not present.issuperset(d.objects)]
        for key in lost:
            self.forget(stage, key)
        return lost

    def stale(self) -> dict[str, str]:
        """Say, by layer, which outputs in the root are of another configuration."""
        result = {}
        for stage in self.recipe.stages:
            path = next(iter(self.store.list(f"{stage.output}/done/")), None)
            done = Done.from_json(self.store.get_json(path)) if path else None
            if done is not None and done.lineage != self.lineage[stage.output]:
                result[stage.output] = self._stale_message(stage, done.key)
        return result

    def data_layer(self, stage: Stage) -> str:
        """Return the layer that holds what a stage writes."""
        return stage.output.removesuffix("/pyramid")

    def provenance(self, stage: Stage) -> dict[str, Any]:
        """Return what the layer's provenance says of its making."""
        inputs = list(stage.inputs.values())
        return provenance(
            description=(inspect.getdoc(type(stage)) or stage.name).splitlines()[0],
            sources=[redacted(self.store.location(layer)) for layer in inputs],
            method={
                "task": stage.name,
                "recipe": self.recipe.name,
                "configuration": stage.to_json(),
                "digest": stage.digest,
                "lineage": self.lineage[stage.output],
                "inputs": {layer: self.lineage.get(layer, "") for layer in inputs},
                "code_version": code_version(),
            },
            by=getpass.getuser(),
            date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        )

    def _path(self, stage: Stage, what: str, key: ChunkKey) -> str:
        return f"{stage.output}/{what}/{key}.json"

    def _listed(self, stage: Stage, what: str) -> set[ChunkKey]:
        prefix = f"{stage.output}/{what}/"
        return {
            ChunkKey.parse(name)
            for path in self.store.list(prefix)
            if "/" not in (name := path.removeprefix(prefix).removesuffix(".json"))
        }

    def _stale_message(self, stage: Stage, key: ChunkKey) -> str:
        return (
            f"{stage.name}: {stage.output}/{key} was written with another configuration or "
            "from other inputs; give another --root or output, or --replace to delete it"
        )

    @cached_property
    def bounds(self) -> Bbox:
        """Box around every volume that the run writes, at mip 0."""
        boxes = [s.bounds for s in self.specs.values() if isinstance(s, VolumeSpec)]
        if not boxes:
            raise MissingInputError(f"run {self.recipe.name} has no volume")
        hull = boxes[0]
        for box in boxes[1:]:
            hull = hull.hull(box)
        return hull


class Phases:
    """Times the phases of a task, one after the other.

    Attributes
    ----------
    seconds : dict of str to float
        Time in each phase that has ended [s].
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def ends(self, phase: str) -> None:
        """Count the time since the last end for a phase."""
        now = time.monotonic()
        self.seconds[phase] = now - self._since
        self._since = now

    def waited(self, seconds: float) -> None:
        """Leave out time that was spent waiting for another task."""
        self._since += seconds


def cut_halo(
    stage: Stage, task: Task, target: Region | Record, spec: LayerSpec, value: Value
) -> Value:
    """Cut the halo from a volume and check that it is what the stage declared.

    Raises
    ------
    DataError
        If the shape or dtype is another.
    """
    if not isinstance(target, Region) or not isinstance(spec, VolumeSpec):
        return value
    if not isinstance(value, np.ndarray):
        raise DataError(f"{stage.name}: {task.key} is {type(value).__name__}, not a volume")
    extra = (spec.channels,) if spec.channels > 1 else ()
    if value.shape == (*task.read_box.shape, *extra):
        value = value[task.core]
    if value.shape != (*task.box.shape, *extra) or value.dtype != np.dtype(spec.dtype):
        raise DataError(
            f"{stage.name}: {task.key} is {value.dtype} of {value.shape}, and "
            f"{target.layer} takes {spec.dtype} of {(*task.box.shape, *extra)}"
        )
    return value


def _said(read: Read) -> str:
    """Say what a task reads, in a word."""
    if isinstance(read, Region):
        return f"{read.layer} {read.box} mip {read.mip}"
    if isinstance(read, Record):
        return f"{read.layer}/{read.key}"
    shown = ", ".join(f"{r.layer}/{r.key}" for r in islice(read, _SHOWN_RECORDS))
    more = len(read) - _SHOWN_RECORDS
    return f"{shown} and {more} more" if more > 0 else shown


def _size(value: Any) -> int:
    """Return the bytes of what a task was given."""
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    if isinstance(value, dict):
        return sum(_size(v) for v in value.values())
    if isinstance(value, list):
        return sum(_size(v) for v in value)
    return _size(value.parts) if isinstance(value, Partitioned) else 0


def code_version() -> str:
    """Return the version of the code, from the environment of an image or the package."""
    return os.environ.get("EM_CODE_VERSION") or version("em-pipeline")


def _spec(document: Any) -> LayerSpec:
    from pydantic import TypeAdapter

    adapter: TypeAdapter[LayerSpec] = TypeAdapter(LayerSpec)
    return adapter.validate_python(document)
