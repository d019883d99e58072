"""A worker: leases messages, does their tasks, keeps its lease alive, acknowledges.

Beside the tasks runs a watch. It shows that the worker lives, looks at its memory, and
when the worker is told to stop, gives back what cannot end in time.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import NoReturn

from packaging.version import InvalidVersion, Version

from pipeline.errors import (
    BackendError,
    GivenBackError,
    InUseError,
    MissingInputError,
    PermanentError,
    PipelineError,
    RecipeError,
    RootError,
    StaleOutputError,
    TransientError,
    VersionError,
    WorkerError,
    exit_status,
)
from pipeline.geometry import ChunkKey
from pipeline.layers.store import Store
from pipeline.runtime.cores import machine_cores, use_threads
from pipeline.runtime.executors import in_threads, one_thread
from pipeline.runtime.logs import log_json
from pipeline.runtime.memory import memory_in_use, memory_limit
from pipeline.runtime.metrics import METRICS
from pipeline.runtime.queue import Message, Refused, TaskQueue
from pipeline.runtime.run import Run, code_version
from pipeline.runtime.starts import gib, note_memory
from pipeline.runtime.steps import STEPS, STREAM
from pipeline.stages.base import Stage

log = logging.getLogger("em.worker")

OUT_OF_MEMORY_STATUS = 4
"""Exit status of a worker that ends before the system kills it for its memory."""

FAILURES_IN_ROW = 20
"""Starts that fail one after the other before a worker stops."""

_IDLE_S = 1.0
_SHORT_S = 60.0
"""Tasks of a layer that take longer have none waiting beside them: another worker may be
free before."""
_TURN_S = 0.05
_LOOKS_S = 0.5
_LIVES_S = 5.0
_STUCK_S = 120.0
_MEMORY_SHARES = (0.8, 0.9, 0.95)


@lru_cache(maxsize=8)
def _run(root: str, name: str, frozen: str) -> Run:
    """Load a run, once for each text of its frozen recipe.

    Raises
    ------
    VersionError
        If newer code started it.
    RecipeError
        If it is not a run.
    """
    try:
        started_by = str(json.loads(frozen)["code_version"])
    except (ValueError, KeyError, TypeError):
        raise RecipeError(f"{root}/runs/{name}.json", ["is not a run"]) from None
    older = VersionError(
        f"run {name} in {root} was started by version {started_by} and this worker is "
        f"{code_version()}; give the workers the image of that version"
    )
    if _is_newer(started_by, code_version()):
        raise older
    try:
        run = Run.open(root, name)
    except RecipeError as error:
        if started_by != code_version():
            raise older from error
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"{root}/runs/{name}.json", [f"is not a run: {error}"]) from error
    run.on_done, run.on_parked = METRICS.done, METRICS.parked
    return run


def _is_newer(one: str, other: str) -> bool:
    """Whether a version is above another; versions of another form cannot be told."""
    with suppress(InvalidVersion):
        return Version(one) > Version(other)
    return False


def _task_of(root: str, run: str, output: str, key: str) -> tuple[Run, Stage, ChunkKey]:
    """Find the task that a message names.

    A worker outlives runs: the recipe is looked at each time, lest a run that was begun
    anew with other settings be served with the old ones.

    Raises
    ------
    MissingInputError, RecipeError, GeometryError
        If there is no such run, layer or key.
    """
    frozen = Store(root).get_text(f"runs/{run}.json")
    if frozen is None:
        raise MissingInputError(
            f"{root} holds no run {run}, which a message names; start it with em run"
        )
    opened = _run(root, run, frozen)
    stage = opened.recipe.stage(output)
    return opened, stage, stage.task(ChunkKey.parse(key)).key


def attempt(root: str, run: str, output: str, key: str) -> str:
    """Do the task of a message; see `Run.attempt`.

    Raises
    ------
    MissingInputError, RecipeError, GeometryError
        If there is no such run, layer or key.
    """
    opened, stage, named = _task_of(root, run, output, key)
    return opened.attempt(stage, named)


def work(
    queue_url: str,
    *,
    lease_s: int = 600,
    until_empty: bool = False,
    max_tasks: int | None = None,
    threads: int = 1,
    grace_s: float | None = None,
    liveness: str | None = None,
    failures_in_row: int = FAILURES_IN_ROW,
    on_task: Callable[[str], None] | None = None,
) -> int:
    """Do tasks from a queue until told to stop.

    SIGTERM and SIGINT let the tasks in hand end first: one, or where a stage streams one
    at each step. What cannot end within the grace is given back, and so is everything at
    the second signal. A task that raises a `TransientError` is not acknowledged: it
    comes again after a while.

    Parameters
    ----------
    queue_url : str
        ``fq://`` or ``sqs://``.
    lease_s : int
        Length of a lease [s]; renewed while the task runs.
    until_empty : bool
        Stop when no message is left, leased ones counted.
    max_tasks : int or None
        Stop after this many tasks.
    threads : int
        Cores that a task may use.
    grace_s : float or None
        How long the tasks in hand may take after a signal [s]; any time if None.
    liveness : str or None
        File that is touched as long as the worker lives.
    failures_in_row : int
        Stop after so many starts that failed one after the other.
    on_task : callable or None
        Told the outcome of every task.

    Returns
    -------
    int
        How many messages were acknowledged.

    Raises
    ------
    RootError, StaleOutputError, BackendError, VersionError
        If the worker cannot go on.
    WorkerError
        If it fails whatever it does.
    """
    one_thread()
    use_threads(threads)
    worker = _Worker(TaskQueue(queue_url), lease_s, grace_s, liveness, failures_in_row)
    return worker.serve(until_empty=until_empty, max_tasks=max_tasks, on_task=on_task)


def serve(pool: str) -> None:
    """Serve a pool's queue for ever; the entry point of a worker pod.

    Parameters
    ----------
    pool : str
        Kind of worker. The queue is ``$EM_QUEUE``, or ``$EM_QUEUE_<POOL>`` where set.

    Raises
    ------
    SystemExit
        With the status of the error that ends it.
    """
    log_json()
    try:
        url = os.environ.get(f"EM_QUEUE_{pool.upper()}") or os.environ.get("EM_QUEUE")
        if not url:
            raise RootError(
                f"no queue for pool {pool}; set EM_QUEUE to fq://FOLDER or sqs://NAME"
            )
        if port := os.environ.get("EM_METRICS_PORT"):
            METRICS.serve(int(port))
        grace = os.environ.get("EM_GRACE_S")
        work(
            url,
            lease_s=int(os.environ.get("EM_LEASE_S", "600")),
            threads=machine_cores(),
            grace_s=float(grace) if grace else None,
            liveness=os.environ.get("EM_LIVENESS"),
            failures_in_row=int(os.environ.get("EM_FAILURES_IN_ROW", FAILURES_IN_ROW)),
        )
    except PipelineError as error:
        log.error("ended", extra={"fields": {"code": error.code, "reason": str(error)}})
        sys.exit(exit_status(error))


@dataclass
class _Hand:
    """A task under way."""

    message: Message
    run: Run
    stage: Stage
    key: ChunkKey
    began: float = field(default_factory=time.monotonic)
    memory_noted: float = 0.0
    computes: bool = False
    is_given_back: bool = False


class _Worker:
    """The loop of a worker, and the watch beside it."""

    def __init__(
        self,
        queue: TaskQueue,
        lease_s: int,
        grace_s: float | None,
        liveness: str | None,
        failures_in_row: int,
    ) -> None:
        self._queue = queue
        self._lease_s = lease_s
        self._grace_s = grace_s
        self._liveness = None if liveness is None else Path(liveness)
        self._failures_in_row = failures_in_row
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._counting = threading.Lock()
        self._turning = threading.Lock()
        self._hands: dict[str, _Hand] = {}
        self._longest: dict[str, float] = {}
        self._failing = 0
        self._turned = time.monotonic()
        self._touched = 0.0
        self._told = 0
        self._told_at = 0.0
        self._leaving = False
        self._limit = memory_limit()
        METRICS.memory_limit.set(self._limit)

    def serve(
        self,
        *,
        until_empty: bool,
        max_tasks: int | None,
        on_task: Callable[[str], None] | None,
    ) -> int:
        begun, ended = 0, 0

        def loop() -> None:
            nonlocal begun, ended
            while not self._stop.is_set():
                with STEPS.admitted():
                    self._turned = time.monotonic()
                    if self._stop.is_set() or (
                        max_tasks is not None and begun >= max_tasks
                    ):
                        return
                    if not self._has_room():
                        self._stop.wait(_TURN_S)
                        continue
                    try:
                        message = self._queue.lease(self._lease_s)
                        if message is None:
                            METRICS.queue_age.set(0)
                            if until_empty and self._queue.is_empty():
                                return
                    except TransientError as error:
                        log.warning("no answer", extra={"fields": {"reason": str(error)}})
                        self._count_failure("the queue", str(error))
                        message = None
                    if message is None:
                        self._stop.wait(_IDLE_S)
                        continue
                    with self._counting:
                        begun += 1
                    outcome = self._do(message)
                    with self._counting:
                        if outcome is None:
                            begun -= 1
                            continue
                        ended += 1
                        if on_task is not None:
                            on_task(outcome)

        with self._signals() as ear:
            watch = threading.Thread(target=self._watch, args=(ear,), daemon=True)
            watch.start()
            try:
                in_threads(loop, STREAM, self._stop)
            finally:
                self._ended.set()
                watch.join()
        return ended

    # -- one message -----------------------------------------------------------------

    def _do(self, message: Message | Refused) -> str | None:
        """Do the task of a message; return its outcome, or None if it is to come again."""
        if isinstance(message, Refused):
            log.warning("refused", extra={"fields": {"reason": message.reason}})
            self._acknowledge(message)
            return "refused"
        METRICS.queue_age.set(message.age_s)
        began = time.monotonic()
        try:
            with self._renewing(message):
                outcome = self._attempt(message)
        except GivenBackError:
            return None
        except TransientError as error:
            self._say(logging.WARNING, "again", message, began, error)
            METRICS.failures.labels(message.output, error.code).inc()
            if isinstance(error, InUseError):
                self._give_back(message, error.after_s)
            else:
                self._give_back(message, min(self._lease_s, 2.0 ** min(8, self._failing)))
                self._count_failure(f"{message.output}/{message.key}", str(error))
            return None
        except (RootError, StaleOutputError, BackendError, VersionError) as error:
            self._say(logging.ERROR, "stopped", message, began, error)
            METRICS.failures.labels(message.output, error.code).inc()
            self._give_back(message, 0)
            raise
        except PermanentError as error:
            # The message is of no run, so there is nowhere to park it.
            self._say(logging.ERROR, "dropped", message, began, error)
            outcome = "dropped"
        self._acknowledge(message)
        METRICS.tasks.labels(message.output, outcome).inc()
        self._say(logging.INFO, outcome, message, began)
        if outcome == "failed":
            self._count_failure(f"{message.output}/{message.key}", "see em failures")
        elif outcome in ("done", "blank"):
            self._failing = 0
            seconds = time.monotonic() - began
            self._longest[message.output] = max(
                seconds, self._longest.get(message.output, 0.0)
            )
        return outcome

    def _attempt(self, message: Message) -> str:
        run, stage, key = _task_of(*message.args)
        hand = self._hands[message.id] = _Hand(message, run, stage, key)
        METRICS.in_hand.set(len(self._hands))

        def begins() -> bool:
            with self._turning:
                hand.computes = not hand.is_given_back
            return hand.computes

        try:
            return run.attempt(stage, key, beat_s=self._lease_s / 3, begins=begins)
        finally:
            del self._hands[message.id]
            METRICS.in_hand.set(len(self._hands))

    def _has_room(self) -> bool:
        """Whether a task may wait beside those in hand, which will end before long."""
        now = time.monotonic()
        return all(
            hand.stage.streams
            or max(now - hand.began, self._longest.get(hand.stage.output, _SHORT_S + 1))
            <= _SHORT_S
            for hand in list(self._hands.values())
        )

    def _acknowledge(self, message: Message | Refused) -> None:
        try:
            self._queue.delete(message)
        except TransientError as error:
            # It comes again, and is found to be done.
            log.warning("not acknowledged", extra={"fields": {"reason": str(error)}})

    def _count_failure(self, what: str, reason: str) -> None:
        self._failing += 1
        if self._failing >= self._failures_in_row:
            raise WorkerError(
                f"{self._failing} starts failed one after the other, the last of {what} "
                f"({reason}); the fault may be of this worker, its network or its "
                "credentials, or of the recipe: see em failures, then start workers again"
            )

    def _give_back(self, message: Message, after_s: float) -> None:
        try:
            self._queue.give_back(message, after_s)
        except PipelineError as error:
            # Then its lease lapses.
            log.warning("not given back", extra={"fields": {"reason": str(error)}})

    @contextmanager
    def _renewing(self, message: Message) -> Iterator[None]:
        """Renew the lease at every third of its length while the body runs."""
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(self._lease_s / 3) and not self._leaving:
                hand = self._hands.get(message.id)
                if hand is not None and hand.is_given_back:
                    return
                try:
                    self._queue.renew(message, self._lease_s)
                except Exception as error:
                    # A lease that cannot be renewed lapses: the task is done twice at
                    # worst.
                    self._say(logging.WARNING, "lease not renewed", message, 0.0, error)

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _say(
        self,
        level: int,
        event: str,
        message: Message,
        began: float,
        error: BaseException | None = None,
    ) -> None:
        """Log a line about a task."""
        fields: dict[str, object] = {
            "root": message.root,
            "run": message.run,
            "output": message.output,
            "key": message.key,
            "seconds": round(time.monotonic() - began, 3) if began else None,
        }
        if error is not None:
            fields["code"] = getattr(error, "code", type(error).__name__)
            fields["reason"] = str(error)
        log.log(level, event, extra={"fields": fields})

    # -- the watch -------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[socket.socket | None]:
        """Hear SIGTERM and SIGINT in the main thread; elsewhere do nothing.

        The watch hears them by a socket, since this thread may be within a kernel.
        """
        if threading.current_thread() is not threading.main_thread():
            yield None
            return

        def handle(number: int, frame: FrameType | None) -> None:
            self._stop.set()

        ear, mouth = socket.socketpair()
        ear.setblocking(False)
        mouth.setblocking(False)
        fd_before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        before = {s: signal.signal(s, handle) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield ear
        finally:
            signal.set_wakeup_fd(fd_before)
            for number, handler in before.items():
                signal.signal(number, handler)
            ear.close()
            mouth.close()

    def _watch(self, ear: socket.socket | None) -> None:
        while not self._ended.is_set():
            if ear is None:
                self._ended.wait(_LOOKS_S)
            elif select.select([ear], [], [], _LOOKS_S)[0]:
                self._hear(ear.recv(64))
            self._show_life()
            self._look_at_memory()
            self._drain()

    def _hear(self, signals: bytes) -> None:
        told = sum(signals.count(s) for s in (signal.SIGTERM, signal.SIGINT))
        if told:
            self._stop.set()
            self._told_at = self._told_at or time.monotonic()
            self._told += told
            log.info("stopping", extra={"fields": {"in_hand": len(self._hands)}})

    def _show_life(self) -> None:
        now = time.monotonic()
        lives = bool(self._hands) or now - self._turned < _STUCK_S
        if self._liveness is not None and lives and now - self._touched > _LIVES_S:
            with suppress(OSError):
                self._liveness.touch()
            self._touched = now

    def _look_at_memory(self) -> None:
        used = memory_in_use()
        METRICS.memory.set(used)
        share = max((s for s in _MEMORY_SHARES if used >= s * self._limit), default=0.0)
        hands = [h for h in list(self._hands.values()) if h.memory_noted < share]
        if not hands:
            return
        ends = share == _MEMORY_SHARES[-1]
        alone = len(self._hands) == 1
        for hand in hands:
            hand.memory_noted = share
            path = hand.run.starts_path(hand.stage, hand.key)
            with suppress(PipelineError):
                note_memory(
                    hand.run.store, path, used, self._limit, exhausted=ends and alone
                )
            if ends:
                log.error(
                    "out of memory",
                    extra={
                        "fields": {
                            "output": hand.stage.output,
                            "key": str(hand.key),
                            "in_use": gib(used),
                            "limit": gib(self._limit),
                            "em_plan_said": gib(
                                hand.stage.memory(hand.run.specs, hand.key.level)
                            ),
                            "alone": alone,
                        }
                    },
                )
        if ends:
            self._leaving = True
            for hand in list(self._hands.values()):
                self._give_back(hand.message, 0)
            _leave(OUT_OF_MEMORY_STATUS)

    def _drain(self) -> None:
        """Give back the tasks in hand if they cannot end in time, and leave."""
        if not self._told_at or not self._hands:
            return
        self._give_back_what_waits()
        now = time.monotonic()
        if self._told < 2:
            if self._grace_s is None:
                return
            left = self._told_at + self._grace_s - now
            expected = max(
                (
                    self._longest.get(h.stage.output, 0.0) - (now - h.began)
                    for h in list(self._hands.values())
                    if not h.is_given_back
                ),
                default=0.0,
            )
            if left > max(expected, _LOOKS_S):
                return
        self._leaving = True
        for hand in list(self._hands.values()):
            if not hand.is_given_back:
                self._return(hand)
        _leave(0)

    def _give_back_what_waits(self) -> None:
        """Give back what was only read so far, beside a task that computes."""
        hands = list(self._hands.values())
        if not any(hand.computes for hand in hands):
            return
        for hand in hands:
            with self._turning:
                waits = not hand.computes and not hand.is_given_back
                hand.is_given_back |= waits
            if waits:
                self._return(hand)

    def _return(self, hand: _Hand) -> None:
        # Counted back first: whoever has the message next counts anew.
        with suppress(PipelineError):
            hand.run.give_back(hand.stage, hand.key)
        self._give_back(hand.message, 0)
        self._say(logging.WARNING, "given back", hand.message, hand.began)


def _leave(status: int) -> NoReturn:
    """End this process now, whatever its threads are at."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)
