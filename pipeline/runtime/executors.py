"""Ways to do the tasks of a wave: in this process, in a pool of them, or on a queue."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Protocol, Self

from pipeline.errors import PermanentError, TaskError, TransientError
from pipeline.geometry import ChunkKey
from pipeline.runtime.cores import machine_cores, use_threads
from pipeline.runtime.progress import WaveProgress
from pipeline.runtime.queue import TaskQueue
from pipeline.runtime.run import ATTEMPTS, Run
from pipeline.runtime.steps import STEPS, STREAM
from pipeline.stages.base import Stage

log = logging.getLogger("em.run")

_RETRY_PAUSE_S = 1.0
_SILENCE_S = 60.0
_SENT_AT_MOST = 5
_DEAF_AT_MOST = 20
_FIRST_LOOK_S = 0.05


class Executor(Protocol):
    """Does the tasks of a wave, and returns when each is done or parked."""

    def __call__(
        self, run: Run, stage: Stage, keys: list[ChunkKey], progress: WaveProgress
    ) -> None:
        """Do the tasks.

        Parameters
        ----------
        run : Run
            Where they belong.
        stage : Stage
            Whose they are.
        keys : list of ChunkKey
            Tasks of one wave that are not done.
        progress : WaveProgress
            Told of each that ends.
        """
        ...


def serial(run: Run, stage: Stage, keys: list[ChunkKey], progress: WaveProgress) -> None:
    """Do the tasks one after another in this process, each with all cores.

    Where the stage streams, the next is read and the last one written meanwhile.
    """
    one_thread()
    use_threads(machine_cores())
    left = iter(keys)
    stop, telling = threading.Event(), threading.Lock()

    def serve() -> None:
        while not stop.is_set():
            with STEPS.admitted():
                key = next(left, None)
                if key is None:
                    return
                outcome = _attempt(run, stage, key)
            with telling:
                progress.add(outcome, stage.voxels(stage.task(key)))

    in_threads(serve, STREAM if stage.streams else 1, stop)


def in_threads(serve: Callable[[], None], count: int, stop: threading.Event) -> None:
    """Run a loop in this thread and in others beside it; raise what any of them raised.

    Parameters
    ----------
    serve : callable
        The loop.
    count : int
        Threads, this one counted.
    stop : Event
        Tells all of them to end after the task in hand; set here if one of them raises.
    """

    def guarded() -> None:
        try:
            serve()
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(max(1, count - 1)) as threads:
        others = [threads.submit(guarded) for _ in range(count - 1)]
        guarded()
        for other in others:
            other.result()


class Pool:
    """Does tasks in processes of this machine.

    A process that dies takes nothing with it but its own attempt: the pool is made
    anew and the tasks that were under way are tried again, up to `ATTEMPTS` times.

    Parameters
    ----------
    workers : int
        Number of processes.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._processes: ProcessPoolExecutor | None = None
        self._serves: tuple[str, str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            # What they have in hand is not done, and will be begun anew.
            for process in multiprocessing.active_children():
                process.terminate()
        self._close()

    def __call__(
        self, run: Run, stage: Stage, keys: list[ChunkKey], progress: WaveProgress
    ) -> None:
        """Do the tasks."""
        starts: dict[ChunkKey, int] = {}
        waiting = list(keys)
        while waiting:
            # One that died is tried alone, so that it takes no other task with it.
            suspects = [k for k in waiting if starts.get(k, 0) > 0]
            fresh = [k for k in waiting if starts.get(k, 0) == 0]
            group = suspects[:1] or fresh
            ended, struck = self._do(run, stage, group, progress)
            for key in struck:
                starts[key] = starts.get(key, 0) + 1
                if starts[key] >= ATTEMPTS:
                    error = PermanentError(
                        f"{stage.name}: the process died {ATTEMPTS} times in {key} "
                        "(killed, or out of memory); use fewer --workers or a smaller chunk"
                    )
                    run.park(stage, key, error, ATTEMPTS)
                    progress.add("failed", 0)
                    ended.add(key)
            waiting = [k for k in waiting if k not in ended]

    def _do(
        self,
        run: Run,
        stage: Stage,
        keys: list[ChunkKey],
        progress: WaveProgress,
    ) -> tuple[set[ChunkKey], set[ChunkKey]]:
        """Do tasks until all have ended or the pool breaks.

        Returns
        -------
        ended : set of ChunkKey
            Done or parked.
        struck : set of ChunkKey
            Those under way as the pool broke; what had not been begun is in neither.
        """
        ended: set[ChunkKey] = set()
        left = iter(keys)
        pool = self._open(run)
        under_way: dict[Future[str], ChunkKey] = {}
        try:
            while True:
                for key in itertools.islice(left, 2 * self.workers - len(under_way)):
                    under_way[pool.submit(_in_pool, stage.output, str(key))] = key
                if not under_way:
                    return ended, set()
                finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in finished:
                    key = under_way[future]
                    progress.add(future.result(), stage.voxels(stage.task(key)))
                    ended.add(key)
                    del under_way[future]
        except BrokenProcessPool:
            self._close()
            struck = set(under_way.values())
            for key in struck:
                if run.done_record(stage, key) is not None:
                    progress.add("done", stage.task(key).box.volume)
                    ended.add(key)
            return ended, struck - ended

    def _open(self, run: Run) -> ProcessPoolExecutor:
        """Return the processes, which live from wave to wave of one run."""
        serves = (run.store.root, run.recipe.name)
        if self._processes is None or self._serves != serves:
            self._close()
            one_thread()
            self._serves = serves
            self._processes = ProcessPoolExecutor(
                self.workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_open,
                initargs=(*serves, max(1, machine_cores() // self.workers)),
            )
        return self._processes

    def _close(self) -> None:
        if self._processes is not None:
            self._processes.shutdown(wait=True, cancel_futures=True)
            self._processes = None


class Queued:
    """Puts tasks on a queue and waits until workers have ended them.

    Parameters
    ----------
    url : str
        ``fq://`` folder or ``sqs://`` queue.
    poll_s : float
        Longest pause between looks at what is done [s]; short waves are looked at more
        often.
    on_wait : callable or None
        Called at each look, for a caller that watches over workers.

    Raises
    ------
    RootError
        If there is no such queue, or it may not be used.
    """

    def __init__(
        self, url: str, *, poll_s: float = 1.0, on_wait: Callable[[], None] | None = None
    ) -> None:
        self.url = url
        self._queue = TaskQueue(url)
        self._poll_s = poll_s
        self._on_wait = on_wait

    def __call__(
        self, run: Run, stage: Stage, keys: list[ChunkKey], progress: WaveProgress
    ) -> None:
        """Enqueue, and wait; a message that got lost is sent again.

        Raises
        ------
        TaskError
            If messages vanish time and again and no task ends.
        """
        queue = self._queue
        missing = set(keys)
        sent, heard = 1, time.monotonic()
        queue.insert(run.store.root, run.recipe.name, stage.output, keys)
        pause = _FIRST_LOOK_S
        empty_since: float | None = None
        deaf = 0
        while missing:
            time.sleep(pause)
            pause = min(self._poll_s, 1.5 * pause)
            if self._on_wait is not None:
                self._on_wait()
            try:
                parked = run.parked_keys(stage)
                ended = missing & (run.done_keys(stage) | parked)
                is_empty = not ended and queue.is_empty()
            except TransientError as error:
                deaf += 1
                if deaf > _DEAF_AT_MOST:
                    raise
                log.warning("%s; looking again", error)
                continue
            deaf = 0
            for key in ended:
                progress.add(
                    "failed" if key in parked else "done", stage.voxels(stage.task(key))
                )
            missing -= ended
            if ended:
                sent, heard = 1, time.monotonic()
            elif time.monotonic() - heard > _SILENCE_S:
                log.warning(self._waits_for(stage, missing))
                heard = time.monotonic()
            if not missing or not is_empty:
                empty_since = None
            elif empty_since is None:
                empty_since = time.monotonic()
            elif time.monotonic() - empty_since > queue.settles_s:
                if sent > _SENT_AT_MOST:
                    raise TaskError(
                        f"{stage.name}: {len(missing)} tasks of {stage.output} were sent "
                        f"{sent} times to {self.url} and are neither done nor failed, "
                        f"first {min(missing)}; see the logs of the workers for what they "
                        "drop, and whether others share the queue"
                    )
                queue.insert(run.store.root, run.recipe.name, stage.output, sorted(missing))
                sent += 1
                empty_since = None

    def _waits_for(self, stage: Stage, missing: set[ChunkKey]) -> str:
        waiting, leased = self._queue.counts()
        hint = "" if leased else "; no worker has any of them: start some with em work"
        return (
            f"{stage.output}: none of {len(missing)} tasks ended for {_SILENCE_S:.0f} s, "
            f"first {min(missing)}; {self.url} has {waiting} waiting and {leased} leased"
            f"{hint}"
        )


def _attempt(run: Run, stage: Stage, key: ChunkKey) -> str:
    for start in range(1, ATTEMPTS + 1):
        try:
            return run.attempt(stage, key, counted=False)
        except TransientError as error:
            if start == ATTEMPTS:
                run.park(stage, key, error, start)
                return "failed"
            time.sleep(_RETRY_PAUSE_S * 2 ** (start - 1))
    raise AssertionError("every path above returns")


_opened: dict[str, Run] = {}


def _open(root: str, name: str, threads: int) -> None:
    use_threads(threads)
    serve_parent()
    _opened["run"] = Run.open(root, name)


def serve_parent() -> None:
    """Make ready a process of a pool: it ends with its parent, and not by itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    one_thread()


def _end_with_parent() -> None:
    """End this process when the one that drives it is gone, killed for instance."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_pool(output: str, key: str) -> str:
    run = _opened["run"]
    return _attempt(run, run.recipe.stage(output), ChunkKey.parse(key))


def one_thread() -> None:
    """Keep numeric libraries to one thread per process.

    Processes are the parallelism; and sums of a net do not depend on the number of
    cores of the machine that computes them.
    """
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
