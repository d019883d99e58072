"""How a worker lives and ends: told to stop, out of memory, failing, too old, watched."""

import json
import multiprocessing
import os
import re
import signal
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import psutil
import pytest

from pipeline.errors import (
    DataError,
    InUseError,
    PipelineError,
    StorageUnavailableError,
    VersionError,
    WorkerError,
    exit_status,
)
from pipeline.geometry import ChunkKey
from pipeline.recipe import Recipe
from pipeline.runtime.executors import serial
from pipeline.runtime.metrics import METRICS
from pipeline.runtime.queue import TaskQueue
from pipeline.runtime.run import Run
from pipeline.runtime.starts import Starts, beating
from pipeline.runtime.worker import OUT_OF_MEMORY_STATUS, work
from pipeline.specs import VolumeSpec
from pipeline.stages.base import ChunkStage, Layer

FORK = multiprocessing.get_context("fork")
DASHBOARD = Path(__file__).parents[2] / "k8s" / "monitoring" / "grafana-dashboard.json"
FIRST, SECOND = ChunkKey(0, 0, 0, 0), ChunkKey(0, 1, 0, 0)


class Odd(ChunkStage):
    """Does to each task what the script says."""

    name: ClassVar[str] = "odd"
    script: ClassVar[dict[str, object]] = {}

    after: Layer = ""

    def reads(self, task):
        return {}

    def process(self, task):
        act = self.script.get(f"{self.output}/{task.key}")
        if act is not None:
            act()
        return np.full(task.box.shape.astuple(), 1 + task.key.x, np.uint8, order="F")

    def describe(self, specs):
        return VolumeSpec(
            dtype="uint8",
            bounds=self.bounds,
            voxel_size_nm=(8, 8, 8),
            kind_of_values="image",
            storage_chunk=self.chunk,
        )


@pytest.fixture
def odd(stages, monkeypatch, root):
    """Start a run of two stages with four tasks each, and a script."""
    stages(Odd)

    def start(script=None):
        monkeypatch.setattr(Odd, "script", script or {})
        bounds = {"start": [0, 0, 0], "stop": [32, 8, 8]}
        document = {
            "name": "odd",
            "grid": {"bounds": bounds, "chunk": [8, 8, 8]},
            "stage": [
                {"use": "odd", "output": "first"},
                {"use": "odd", "after": "first", "output": "second"},
            ],
        }
        return Run.start(Recipe.parse(document), str(root))

    return start


def send(run, queue, output="first", keys=(FIRST,)):
    TaskQueue(queue).insert(run.store.root, "odd", output, keys)


def raises(error):
    def act():
        raise error

    return act


def served(queue, **options):
    """Serve a queue in a process of its own until it is empty; return its exit status."""

    def serve():
        try:
            work(queue, until_empty=True, **options)
        except PipelineError as error:
            os._exit(exit_status(error))

    worker = FORK.Process(target=serve)
    worker.start()
    worker.join(60)
    return worker.exitcode


def test_what_cannot_end_in_the_grace_is_given_back_at_once(
    copy_text, recipe, gated, root, queue, em
):
    folder, gate = gated
    run = em("run", recipe(copy_text, folder), "--root", root, "--queue", queue)
    worker = em("work", "--queue", queue, "--grace-seconds", 1)
    assert gate.visitor() == worker.pid
    told = time.monotonic()
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == 0, worker.errors
    assert time.monotonic() - told < 10
    back = [e for e in worker.events() if e["event"] == "given back"]
    assert [e["key"] for e in back] == ["0_1_0_1"]
    assert not list(root.rglob("attempts/*")), "it does not count as a death"
    gate.close()
    gate.open()
    # Its lease was of ten minutes.
    em("work", "--queue", queue, "--until-empty").succeed()
    run.succeed()


def test_a_worker_that_fails_everything_stops_and_says_why(odd, queue):
    failing = raises(DataError("no such thing"))
    run = odd({f"first/0_{x}_0_0": failing for x in range(4)})
    send(run, queue, keys=[ChunkKey(0, x, 0, 0) for x in range(4)])
    with pytest.raises(WorkerError, match=r"3 starts failed .*see em failures") as raised:
        work(queue, until_empty=True, failures_in_row=3)
    assert exit_status(raised.value) == 3
    assert not TaskQueue(queue).is_empty()
    assert len(run.failures()) == 3


def test_a_success_between_failures_keeps_a_worker_going(odd, queue):
    run = odd({"first/0_0_0_0": raises(DataError("no"))})
    for _ in range(3):
        send(run, queue, keys=[FIRST])
        work(queue, until_empty=True, failures_in_row=2)
        run.retry()
        send(run, queue, keys=[SECOND])
        run.forget(run.recipe.stage("first"), SECOND)
        work(queue, until_empty=True, failures_in_row=2)


def test_a_queue_that_does_not_answer_stops_a_worker(queue, monkeypatch):
    def lease(self, seconds):
        raise StorageUnavailableError("the queue did not answer")

    monkeypatch.setattr(TaskQueue, "lease", lease)
    with pytest.raises(WorkerError, match="did not answer"):
        work(queue, failures_in_row=2)


def test_a_task_that_takes_too_much_memory_is_named_and_parked(odd, queue, monkeypatch):
    def eat():
        eaten = []
        while True:
            eaten.append(np.ones(2**22))
            time.sleep(0.05)

    run = odd({"first/0_1_0_0": eat})
    limit = psutil.Process().memory_info().rss + 400 * 2**20
    monkeypatch.setenv("EM_MEMORY_GB", str(limit / 2**30))
    send(run, queue, keys=[FIRST, SECOND])
    # The first start may have had others beside it, the next two had not.
    deaths = [served(queue, lease_s=2)]
    while deaths[-1] != 0:
        deaths.append(served(queue, lease_s=2))
    assert set(deaths[:-1]) == {OUT_OF_MEMORY_STATUS}
    assert len(deaths) <= 4
    (record,) = run.failures()
    assert record["code"] == "memory-limit"
    assert record["key"] == "0_1_0_0"
    assert re.search(
        r"first/0_1_0_0 ran out of memory: .* of \d.\d+ GiB in use, where em plan says 0.",
        record["reason"],
    )
    assert run.done_keys(run.recipe.stage("first")) == {FIRST}


def test_a_worker_that_was_killed_short_of_memory_is_known_by_what_it_wrote(odd):
    run = odd()
    stage = run.recipe.stage("first")
    path = run.starts_path(stage, FIRST)
    Starts(starts=5, host="node-7", memory=15 * 2**30, limit=16 * 2**30).write(
        run.store, path
    )
    assert run.attempt(stage, FIRST) == "failed"
    (record,) = run.failures()
    assert record["code"] == "memory-limit"
    assert "node-7 had 15.00 GiB of 16.00 GiB in use" in record["reason"]


def test_starts_by_workers_that_live_are_no_deaths(odd):
    """As with a clock that is off, to which every lease of others seems over."""
    run = odd()
    stage = run.recipe.stage("first")
    path = run.starts_path(stage, FIRST)
    begun = Starts(starts=4).begun("node-7", 0.05)
    begun.write(run.store, path)
    with beating(run.store, path, 0.05):
        for _ in range(3):
            with pytest.raises(InUseError, match="node-7, which may be at it still"):
                run.attempt(stage, FIRST)
            seen = Starts.read(run.store, path)
            time.sleep(0.15)
            assert Starts.read(run.store, path).beat != seen.beat, "it lives"
    with pytest.raises(InUseError):
        run.attempt(stage, FIRST)
    assert run.attempt(stage, FIRST) == "failed", "no beat since the last look"
    assert not list(run.store.list("first/attempts/"))


def test_a_clock_that_is_off_does_every_task_and_parks_none(odd, queue, monkeypatch):
    """A worker an hour ahead takes what others hold."""
    from pipeline.runtime import queue as queues

    run = odd({f"first/0_{x}_0_0": lambda: time.sleep(0.8) for x in range(4)})
    send(run, queue, keys=[ChunkKey(0, x, 0, 0) for x in range(4)])

    def serve(ahead_s):
        class Clock:
            time = staticmethod(lambda: time.time() + ahead_s)

        monkeypatch.setattr(queues, "time", Clock)
        work(queue, until_empty=True, lease_s=2)

    workers = [FORK.Process(target=serve, args=(s,)) for s in (0, 3600, -3600)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(run.done_keys(run.recipe.stage("first"))) == 4
    assert not run.failures()


def test_a_task_longer_than_a_lease_that_cannot_be_renewed(odd, queue, monkeypatch):
    run = odd({"first/0_0_0_0": lambda: time.sleep(2.5)})
    send(run, queue)

    def renew(self, message, seconds):
        raise StorageUnavailableError("no")

    monkeypatch.setattr(TaskQueue, "renew", renew)
    workers = [
        FORK.Process(target=work, args=(queue,), kwargs={"until_empty": True, "lease_s": 1})
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert run.done_keys(run.recipe.stage("first")) == {FIRST}
    assert TaskQueue(queue).is_empty()


def test_a_message_before_its_turn_fails_nothing(odd, queue, small, root):
    run = Run.start(Recipe.load(small), str(root))
    messages = TaskQueue(queue)
    messages.insert(run.store.root, "small", "supervoxels", [FIRST])
    messages.insert(run.store.root, "small", "basin_graph", [FIRST])
    outcomes = []
    assert work(queue, until_empty=True, on_task=outcomes.append) == 2
    assert outcomes == ["early", "early"]
    assert not run.failures()


def test_an_older_worker_refuses_the_run_of_newer_code(odd, queue):
    run = odd()
    path = Path(run.store.root.removeprefix("file://"), "runs", "odd.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code_version": "99.0"}))
    send(run, queue)
    with pytest.raises(
        VersionError, match=r"started by version 99\.0 and this worker is"
    ) as e:
        work(queue, until_empty=True)
    assert exit_status(e.value) == 5
    assert not TaskQueue(queue).is_empty(), "another worker may have it"
    assert not run.failures()


def test_a_stage_that_this_code_does_not_know_is_of_another_version(odd, queue):
    run = odd()
    path = Path(run.store.root.removeprefix("file://"), "runs", "odd.json")
    text = path.read_text().replace('"odd"', '"new_stage"')
    path.write_text(json.dumps(json.loads(text) | {"code_version": "abc1234"}))
    send(run, queue)
    with pytest.raises(VersionError, match="abc1234"):
        work(queue, until_empty=True)


def test_life_and_metrics_show_outside(odd, queue, tmp_path):
    run = odd({"first/0_1_0_0": raises(DataError("no"))})
    port = METRICS.serve(0)
    send(run, queue, keys=[FIRST, SECOND])
    work(queue, until_empty=True, liveness=str(tmp_path / "alive"))
    assert (tmp_path / "alive").exists()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    for line in (
        r'em_tasks_total\{outcome="done",output="first"\} [1-9]',
        r'em_voxels_total\{output="first",stage="odd"\} (512|[1-9]\d+)',
        r'em_bytes_total\{direction="written",output="first",stage="odd"\} (512|[1-9])',
        r'em_phase_seconds_total\{output="first",phase="compute",stage="odd"\} \d',
        r'em_failures_total\{code="data",output="first"\} [1-9]',
        r"em_queue_age_seconds \d",
        r"em_memory_bytes [1-9]",
    ):
        assert re.search(line, text), line


def test_a_worker_that_is_stuck_shows_no_life(queue, tmp_path, monkeypatch):
    from pipeline.runtime import worker

    def lease(self, seconds):
        time.sleep(1.6)

    monkeypatch.setattr(TaskQueue, "lease", lease)
    monkeypatch.setattr(worker, "_STUCK_S", 0.1)
    monkeypatch.setattr(worker, "_LIVES_S", 0.0)
    alive = tmp_path / "alive"
    thread = threading.Thread(
        target=work,
        args=(queue,),
        kwargs={"max_tasks": 1, "liveness": str(alive), "until_empty": True},
    )
    thread.start()
    time.sleep(0.8)
    alive.unlink(missing_ok=True)
    time.sleep(0.7)
    assert not alive.exists()
    thread.join(60)


def test_every_query_of_the_dashboard_names_a_metric():
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]
    assert len(queries) > 8
    known = METRICS.names()
    for query in queries:
        named = re.findall(r"\bem_\w+", query)
        assert named, query
        for name in named:
            assert name in known, f"{name} of {query}"


def test_a_torn_record_of_starts_is_none(odd):
    run = odd()
    path = run.starts_path(run.recipe.stage("first"), FIRST)
    for text in ("", "[]", '{"starts": "many"}', '{"starts": 2, "more": 1}'):
        run.store.put_text(path, text)
        assert Starts.read(run.store, path) == replace(Starts(), starts=2 * ("2" in text))


def test_serial_runs_tell_nothing_to_metrics(odd):
    run = odd()
    serial_before = METRICS.tasks.labels("second", "done")._value.get()
    from pipeline.runtime.drive import run_to_end

    run_to_end(run, serial, quiet=True)
    assert METRICS.tasks.labels("second", "done")._value.get() == serial_before
