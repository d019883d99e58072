"""Ways to do the tasks of a run: in this process, in a pool of them, or on a queue."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Protocol, Self, get_args

from pipeline.errors import PermanentError, TaskError, TransientError
from pipeline.geometry import ChunkKey
from pipeline.runtime.cores import machine_cores, use_threads
from pipeline.runtime.frontier import Frontier, Job
from pipeline.runtime.late import Latecomers
from pipeline.runtime.queue import TaskQueue
from pipeline.runtime.run import ATTEMPTS, Run
from pipeline.runtime.steps import STEPS, STREAM
from pipeline.runtime.waves import names
from pipeline.stages.base import Pool as PoolName
from pipeline.stages.base import Stage

log = logging.getLogger("em.run")

_RETRY_PAUSE_S = 1.0
_SILENCE_S = 60.0
_HURRIES_S = 5.0
"""How often one looks whether tasks are late [s]."""
_SENT_AT_MOST = 5
_DEAF_AT_MOST = 20
_FIRST_LOOK_S = 0.05
_LOOKING_SHARE = 0.25
"""Share of the time that may go into looking what is done."""
_AHEAD = 100_000
"""Most messages of a run on a queue: enough for any fleet, and soon sent."""
_BATCH = 1000
_LISTED_AT_ONCE = 500
"""Names that a listing gives in the time in which one record is asked for."""
_ASKS_AT_ONCE = 16


class Executor(Protocol):
    """Does the tasks of a run, and returns when none is left that can be done."""

    def __call__(self, run: Run, frontier: Frontier) -> None:
        """Do the tasks.

        Parameters
        ----------
        run : Run
            Where they belong.
        frontier : Frontier
            Hands out the tasks that are ready, and is told of each that ends.
        """
        ...


def serial(run: Run, frontier: Frontier) -> None:
    """Do the tasks one after another in this process, each with all cores.

    Where a stage streams, the next task is read and the last one written meanwhile.
    """
    one_thread()
    use_threads(machine_cores())
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            with STEPS.admitted():
                job = frontier.wait(stop)
                if job is None:
                    return
                outcome = _attempt(run, job.stage, job.key)
            frontier.ended(job, outcome)

    streams = any(stage.streams for stage in run.recipe.stages)
    in_threads(serve, STREAM if streams else 1, stop)


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

    def __call__(self, run: Run, frontier: Frontier) -> None:
        """Do the tasks."""
        starts: dict[Job, int] = {}
        suspects: list[Job] = []
        while True:
            # One that died is tried alone, so that it takes no other task with it.
            alone = suspects[:1]
            struck = self._do(run, frontier, alone)
            suspects = [job for job in suspects if job not in alone]
            for job in struck:
                starts[job] = starts.get(job, 0) + 1
                if starts[job] < ATTEMPTS:
                    suspects.insert(0, job)
                    continue
                error = PermanentError(
                    f"{job.stage.name}: the process died {ATTEMPTS} times in {job.key} "
                    "(killed, or out of memory); use fewer --workers or a smaller chunk"
                )
                run.park(job.stage, job.key, error, ATTEMPTS)
                frontier.ended(job, "failed")
            if not suspects and not struck and frontier.is_over():
                return

    def _do(self, run: Run, frontier: Frontier, alone: list[Job]) -> list[Job]:
        """Do tasks until none is ready and none under way, or the pool breaks.

        Parameters
        ----------
        alone : list of Job
            Only these; what is ready if there are none.

        Returns
        -------
        list of Job
            Those under way as the pool broke.
        """
        left = iter(alone)
        pool = self._open(run)
        under_way: dict[Future[str], Job] = {}
        try:
            while True:
                while len(under_way) < 2 * self.workers:
                    job = next(left, None) if alone else frontier.take()
                    if job is None:
                        break
                    under_way[pool.submit(_in_pool, job.stage.output, str(job.key))] = job
                if not under_way:
                    return []
                finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in finished:
                    outcome = future.result()
                    frontier.ended(under_way.pop(future), outcome)
        except BrokenProcessPool:
            self._close()
            struck = []
            for job in under_way.values():
                if run.done_record(job.stage, job.key) is not None:
                    frontier.ended(job, "done")
                else:
                    struck.append(job)
            return struck

    def _open(self, run: Run) -> ProcessPoolExecutor:
        """Return the processes, which live as long as one run."""
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
    """Puts tasks on queues as they become ready, and looks what workers have ended.

    Parameters
    ----------
    url : str or mapping of str to str
        ``fq://`` folder or ``sqs://`` queue; or by kind of worker.
    poll_s : float
        Longest pause between looks at what is done [s]; where little happens, or listing
        what is done takes long, looks are as much as that apart.
    on_wait : callable or None
        Called at each look, for a caller that watches over workers.
    ahead : int
        Most messages of a run on a queue.

    Raises
    ------
    RootError
        If there is no such queue, or it may not be used.
    """

    def __init__(
        self,
        url: str | Mapping[str, str],
        *,
        poll_s: float = 1.0,
        on_wait: Callable[[], None] | None = None,
        ahead: int = _AHEAD,
    ) -> None:
        by_pool = dict.fromkeys(get_args(PoolName), url) if isinstance(url, str) else url
        self._lines = [
            _Line(TaskQueue(place), frozenset(p for p, u in by_pool.items() if u == place))
            for place in dict.fromkeys(by_pool.values())
        ]
        self._poll_s = poll_s
        self._on_wait = on_wait
        self._ahead = ahead

    def __call__(self, run: Run, frontier: Frontier) -> None:
        """Enqueue what is ready, and look; a message that got lost is sent again.

        Raises
        ------
        TaskError
            If messages vanish time and again and no task ends.
        """
        deaf, pause = 0, _FIRST_LOOK_S
        for line in self._lines:
            line.hears()
        while True:
            sent = sum(line.send(run, frontier, self._ahead) for line in self._lines)
            if not sent and frontier.is_over():
                return
            time.sleep(pause)
            if self._on_wait is not None:
                self._on_wait()
            began = time.monotonic()
            try:
                ended = sum(line.look(run, frontier) for line in self._lines)
                for line in self._lines:
                    line.hurry(run, frontier)
            except TransientError as error:
                deaf += 1
                if deaf > _DEAF_AT_MOST:
                    raise
                log.warning("%s; looking again", error)
                continue
            deaf = 0
            took = time.monotonic() - began
            pause = _FIRST_LOOK_S if ended else min(self._poll_s, 1.5 * pause)
            pause = max(pause, took / _LOOKING_SHARE)


class _Line:
    """A queue, and what a run has on it.

    Parameters
    ----------
    queue : TaskQueue
        The queue.
    pools : frozenset of str
        Kinds of worker that it serves.
    """

    def __init__(self, queue: TaskQueue, pools: frozenset[str]) -> None:
        self.queue = queue
        self.pools = pools
        self._empty_since: float | None = None
        self._late = Latecomers()
        self._hurried = time.monotonic()
        self.hears()

    def hears(self) -> None:
        """Begin to count silence anew."""
        self._sent = 1
        self._heard = time.monotonic()

    def send(self, run: Run, frontier: Frontier, ahead: int) -> int:
        """Put tasks that are ready on the queue; return how many."""
        room = ahead - sum(count for _, count in frontier.under_way(self.pools))
        sent = 0
        while sent < room and (
            jobs := _taken(frontier, self.pools, min(_BATCH, room - sent))
        ):
            self._insert(run, jobs)
            self._late.sent(jobs, time.monotonic())
            sent += len(jobs)
        return sent

    def look(self, run: Run, frontier: Frontier) -> int:
        """Tell the frontier of tasks that ended; return how many did."""
        ended = sum(
            _ended(run, frontier, n, count) for n, count in frontier.under_way(self.pools)
        )
        left = sum(count for _, count in frontier.under_way(self.pools))
        if ended:
            self.hears()
        elif left and time.monotonic() - self._heard > _SILENCE_S:
            log.warning(self._waits_for(frontier, left))
            self._heard = time.monotonic()
        if ended or not left or not self.queue.is_empty():
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = time.monotonic()
        elif time.monotonic() - self._empty_since > self.queue.settles_s:
            self._send_again(run, frontier, left)
        return ended

    def hurry(self, run: Run, frontier: Frontier) -> None:
        """Send what is late once more, if workers have nothing else to do."""
        now = time.monotonic()
        if now - self._hurried < _HURRIES_S:
            return
        self._hurried = now
        under_way = list(frontier.under_way(self.pools))
        if not under_way or self.queue.counts()[0]:
            self._late.waits(now)
            return
        for n, count in under_way:
            jobs = list(self._late.late(run, frontier, n, count, now))
            self._insert(run, jobs)
            for job in jobs:
                log.info(
                    f"{job.stage.output}/{job.key} takes far longer than others; sent again"
                )

    def _send_again(self, run: Run, frontier: Frontier, left: int) -> None:
        if self._sent > _SENT_AT_MOST:
            first = self._first(frontier)
            raise TaskError(
                f"{first.stage.name}: {left} tasks were sent {self._sent} times to "
                f"{self.queue.url} and are neither done nor failed, first "
                f"{first.stage.output}/{first.key}; see the logs of the workers for what "
                "they drop, and whether others share the queue"
            )
        for n, _ in frontier.under_way(self.pools):
            jobs = frontier.taken(n)
            while batch := list(itertools.islice(jobs, _BATCH)):
                self._insert(run, batch)
        self._sent += 1
        self._empty_since = None

    def _insert(self, run: Run, jobs: list[Job]) -> None:
        for output, some in itertools.groupby(jobs, lambda job: job.stage.output):
            keys = [job.key for job in some]
            self.queue.insert(run.store.root, run.recipe.name, output, keys)

    def _first(self, frontier: Frontier) -> Job:
        return next(
            job for n, _ in frontier.under_way(self.pools) for job in frontier.taken(n)
        )

    def _waits_for(self, frontier: Frontier, left: int) -> str:
        waiting, leased = self.queue.counts()
        hint = "" if leased else "; no worker has any of them: start some with em work"
        first = self._first(frontier)
        return (
            f"none of {left} tasks ended for {_SILENCE_S:.0f} s, first "
            f"{first.stage.output}/{first.key}; {self.queue.url} has {waiting} waiting and "
            f"{leased} leased{hint}"
        )


def _taken(frontier: Frontier, pools: frozenset[str], count: int) -> list[Job]:
    """Take tasks that are ready, at most so many."""
    jobs: list[Job] = []
    while len(jobs) < count and (job := frontier.take(pools)) is not None:
        jobs.append(job)
    return jobs


def _ended(run: Run, frontier: Frontier, number: int, count: int) -> int:
    """Tell the frontier which tasks of a wave have ended; return how many.

    Names of records are listed, or, where few tasks are under way in a wave of which many
    are done, each is asked for.
    """
    wave = frontier.wave(number)
    if count <= frontier.ended_of(number) // _LISTED_AT_ONCE:
        found: dict[str, list[ChunkKey]] = {"failed": [], "done": []}
        jobs = list(frontier.taken(number))
        with ThreadPoolExecutor(_ASKS_AT_ONCE) as threads:
            states = threads.map(lambda job: run.state_of(job.stage, job.key), jobs)
            for job, state in zip(jobs, states, strict=True):
                if state in found:
                    found[state].append(job.key)
        return sum(frontier.saw(number, keys, what) for what, keys in found.items())
    ended = 0
    # A task that was parked and then done after all is done: that is looked at first.
    for what in ("done", "failed"):
        keys = (ChunkKey.parse(name) for name in names(run, wave, what))
        ended += frontier.saw(number, keys, what)
    return ended


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
