"""While a worker computes a task, it reads what the next one takes."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from pipeline.geometry import Vec3
from pipeline.layers.store import Store
from pipeline.runtime import run as runs
from pipeline.runtime import worker as workers
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import serial
from pipeline.runtime.queue import TaskQueue
from pipeline.runtime.run import Run
from pipeline.runtime.worker import work
from pipeline.stages.ingest import Ingest
from tests.conformance.examples import EXAMPLES, World
from tests.unit.runtime.test_steps import Diary, noted

CHUNK = Vec3(21, 17, 9)


@pytest.fixture
def run(tmp_path):
    shape = (42, 34, 17)
    image = np.arange(np.prod(shape)).reshape(shape, order="F") % 251 + 1
    world = World.of({"raw": (image * 200).astype(np.uint16)}, tmp_path / "world")
    return Run.start(EXAMPLES["ingest"].recipe(CHUNK, world), str(tmp_path / "root"))


@pytest.fixture
def slow(monkeypatch):
    """Make every step of ingest slow, and note which go on at once."""
    diary = Diary()
    for owner, name, step, seconds in (
        (Store, "read", "read", 0.12),
        (Ingest, "process", "compute", 0.08),
        (Store, "write", "write", 0.04),
    ):
        method = noted(getattr(owner, name), diary, step, seconds)
        monkeypatch.setattr(owner, name, method)
    return diary


def send_all(run, queue):
    keys = list(run.recipe.stages[0].plan()[0])
    TaskQueue(queue).insert(run.store.root, run.recipe.name, "copy", keys)
    return len(keys)


def served(run, queue):
    """Serve the queue until it is empty; return when the last task had ended [s]."""
    count, ends, began = send_all(run, queue), [], time.monotonic()
    work(queue, until_empty=True, on_task=lambda _: ends.append(time.monotonic()))
    assert len(ends) == count
    return ends[-1] - began


def test_the_next_task_is_read_while_one_computes_and_writes(
    run, queue, slow, monkeypatch, tmp_path
):
    took = served(run, queue)
    met = [at_once for at_once in slow.together if len(at_once) > 1]
    assert {"read", "compute"} in met
    assert {"read", "write"} in met
    assert {"compute", "write"} not in met, "its output and their inputs would not fit"
    assert not list(run.store.list("copy/attempts/"))

    monkeypatch.setattr(Run, "_reads_ahead", lambda *_: False)
    slow.together.clear()
    after = served(Run.start(run.recipe, str(tmp_path / "one")), queue)
    assert all(len(at_once) == 1 for at_once in slow.together)
    # Reads take as long as the rest: all but two of eight cost nothing.
    assert took < 0.85 * after, f"{took:.2f} s, and one by one {after:.2f} s"


def test_what_does_not_fit_into_memory_is_not_read_ahead(run, queue, slow, monkeypatch):
    # The limit itself would stop this process, which holds more than a worker does.
    monkeypatch.setattr(runs, "memory_limit", lambda: 300 * 2**20)
    served(run, queue)
    assert all(len(at_once) == 1 for at_once in slow.together)


def test_none_waits_beside_a_task_that_may_take_long(run, queue, slow, monkeypatch):
    """Another worker may be free before."""
    monkeypatch.setattr(workers, "_SHORT_S", 0.0)
    served(run, queue)
    assert all(len(at_once) == 1 for at_once in slow.together)


@pytest.fixture
def spared():
    """Keep a signal that comes when no worker listens from ending the tests."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("spared")
def test_what_was_read_ahead_is_given_back_when_a_worker_is_to_stop(
    run, queue, monkeypatch, caplog
):
    # However slow this machine is: after a task that took long none is read ahead.
    monkeypatch.setattr(workers, "_SHORT_S", 600.0)
    process, computing, go_on = Ingest.process, threading.Event(), threading.Event()
    begun = []

    def waits(stage, task, **inputs):
        begun.append(task.key)
        if len(begun) == 2:
            computing.set()
            assert go_on.wait(90)
        return process(stage, task, **inputs)

    monkeypatch.setattr(Ingest, "process", waits)
    count = send_all(run, queue)
    messages = TaskQueue(queue)

    def stop():
        assert computing.wait(60)
        until = time.monotonic() + 60
        while messages.counts() != (count - 3, 2) and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        while messages.counts() != (count - 2, 1) and time.monotonic() < until:
            time.sleep(0.01)
        given_back.append(messages.counts() == (count - 2, 1))
        go_on.set()

    given_back = []
    told = threading.Thread(target=stop)
    told.start()
    with caplog.at_level("INFO", logger="em.worker"):
        assert work(queue, lease_s=600) == 2
    told.join()
    assert given_back == [True], "before the task in hand ended"
    events = [record.getMessage() for record in caplog.records]
    assert events.count("given back") == 1
    assert events.count("done") == 2
    assert len(begun) == 2, "it was not computed"
    assert not list(run.store.list("copy/attempts/")), "it counts as no start"
    monkeypatch.setattr(Ingest, "process", process)
    assert work(queue, until_empty=True) == count - 2
    assert len(run.done_keys(run.recipe.stages[0])) == count


def test_bytes_are_those_of_one_after_the_other(run, queue, slow, tmp_path):
    served(run, queue)
    other = Run.start(run.recipe, str(tmp_path / "other"))
    run_to_end(other, serial, quiet=True)
    mine, theirs = (
        {d.key: dict(d.objects) for d in r.done_records(r.recipe.stages[0])}
        for r in (run, other)
    )
    assert mine == theirs
