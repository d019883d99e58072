"""A worker: leases messages, does their tasks, keeps its lease alive, acknowledges."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import FrameType
from typing import Any

from pipeline.errors import (
    BackendError,
    MissingInputError,
    PermanentError,
    RootError,
    StaleOutputError,
    TransientError,
)
from pipeline.geometry import ChunkKey
from pipeline.layers.store import Store
from pipeline.runtime.cores import machine_cores, use_threads
from pipeline.runtime.executors import in_threads, one_thread
from pipeline.runtime.queue import TaskQueue
from pipeline.runtime.run import Run
from pipeline.runtime.steps import STEPS, STREAM

log = logging.getLogger("em.worker")

_IDLE_S = 1.0


@lru_cache(maxsize=8)
def _run(root: str, name: str, frozen: str) -> Run:
    """Load a run, once for each text of its frozen recipe."""
    return Run.open(root, name)


def attempt(root: str, run: str, output: str, key: str) -> str:
    """Do the task of a message; see `Run.attempt`.

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
    task = stage.task(ChunkKey.parse(key))
    return opened.attempt(stage, task.key)


def work(
    queue_url: str,
    *,
    lease_s: int = 600,
    until_empty: bool = False,
    max_tasks: int | None = None,
    threads: int = 1,
    on_task: Callable[[str], None] | None = None,
) -> int:
    """Do tasks from a queue until told to stop.

    SIGTERM and SIGINT let the tasks in hand end first: one, or where a stage streams one
    at each step. A task that raises a `TransientError` is not acknowledged: its lease
    lapses and it comes again.

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
    on_task : callable or None
        Told the outcome of every task.

    Returns
    -------
    int
        How many messages were acknowledged.
    """
    one_thread()
    use_threads(threads)
    queue = TaskQueue(queue_url)
    stop = threading.Event()
    counting = threading.Lock()
    begun, ended = 0, 0

    def serve() -> None:
        nonlocal begun, ended
        while not stop.is_set():
            with STEPS.admitted():
                if stop.is_set() or (max_tasks is not None and begun >= max_tasks):
                    return
                message = queue.lease(lease_s)
                if message is None:
                    if until_empty and queue.is_empty():
                        return
                    stop.wait(_IDLE_S)
                    continue
                with counting:
                    begun += 1
                outcome = _done(queue, message, lease_s)
                with counting:
                    if outcome is None:
                        begun -= 1
                        continue
                    ended += 1
                    if on_task is not None:
                        on_task(outcome)

    with _stopping_at_signals(stop):
        in_threads(serve, STREAM, stop)
    return ended


def _done(queue: TaskQueue, message: Any, lease_s: int) -> str | None:
    """Do the task of a message; return its outcome, or None if it is to come again.

    Raises
    ------
    RootError, StaleOutputError, BackendError
        If the worker cannot go on.
    """
    started = time.monotonic()
    try:
        with _renewing(queue, message, lease_s):
            outcome = str(message())
    except TransientError as error:
        log.warning(_event("again", message, started, reason=str(error)))
        return None
    except (RootError, StaleOutputError, BackendError) as error:
        log.error(_event("stopped", message, started, reason=str(error)))
        raise
    except PermanentError as error:
        # The message is of no run, so there is nowhere to park it.
        log.error(_event("dropped", message, started, reason=str(error)))
        outcome = "dropped"
    queue.delete(message)
    log.info(_event(outcome, message, started))
    return outcome


def serve(pool: str) -> None:
    """Serve a pool's queue for ever; the entry point of a worker pod.

    Parameters
    ----------
    pool : str
        Kind of worker. The queue is ``$EM_QUEUE``, or ``$EM_QUEUE_<POOL>`` where set.

    Raises
    ------
    RootError
        If neither variable names a queue.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    url = os.environ.get(f"EM_QUEUE_{pool.upper()}") or os.environ.get("EM_QUEUE")
    if not url:
        raise RootError(
            f"no queue for pool {pool}; set EM_QUEUE to fq://FOLDER or sqs://NAME"
        )
    work(url, lease_s=int(os.environ.get("EM_LEASE_S", "600")), threads=machine_cores())


@contextmanager
def _renewing(queue: TaskQueue, message: Any, lease_s: int) -> Iterator[None]:
    """Renew the lease at every third of its length while the body runs."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(lease_s / 3):
            try:
                queue.renew(message, lease_s)
            except Exception as error:
                # A lease that cannot be renewed lapses: the task is done twice at worst.
                log.warning(_event("lease not renewed", message, 0.0, reason=str(error)))

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _stopping_at_signals(stop: threading.Event) -> Iterator[None]:
    """Set the event at SIGTERM or SIGINT, in the main thread; elsewhere do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {s: signal.signal(s, handle) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _event(outcome: str, message: Any, started: float, **more: str) -> str:
    """Return one JSON line about a task."""
    root, run, output, key = getattr(message, "args", ("", "", "", ""))
    return json.dumps(
        {
            "event": outcome,
            "root": root,
            "run": run,
            "output": output,
            "key": key,
            "seconds": round(time.monotonic() - started, 3) if started else None,
            "pid": os.getpid(),
            **more,
        }
    )
