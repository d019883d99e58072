"""Scripted failures: what is tried again, what is given up at once, and what is said."""

import multiprocessing
import os
import signal
from collections import Counter
from typing import ClassVar

import numpy as np
import pytest

from pipeline.errors import DataError, RootError, TaskError, TransientError
from pipeline.geometry import ChunkKey
from pipeline.recipe import Recipe
from pipeline.runtime import executors
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import Queued, serial
from pipeline.runtime.queue import TaskQueue
from pipeline.runtime.run import Run
from pipeline.runtime.worker import work
from pipeline.specs import VolumeSpec
from pipeline.stages.base import ChunkStage, Layer


class Scripted(ChunkStage):
    """Fails as the script says, by LAYER/KEY and start."""

    name: ClassVar[str] = "scripted"
    script: ClassVar[dict[str, list[BaseException | None]]] = {}
    starts: ClassVar[Counter[str]] = Counter()

    after: Layer = ""

    def reads(self, task):
        return {}

    def process(self, task):
        name = f"{self.output}/{task.key}"
        start = self.starts[name]
        self.starts[name] += 1
        failures = self.script.get(name, [])
        if start < len(failures) and failures[start] is not None:
            if failures[start] is KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            raise failures[start]
        return np.full(task.box.shape.astuple(), 1 + task.key.x, np.uint8, order="F")

    def describe(self, specs):
        return VolumeSpec(
            dtype="uint8",
            bounds=self.bounds,
            voxel_size_nm=(8, 8, 8),
            kind_of_values="image",
            storage_chunk=self.chunk,
        )


KILL = Exception("the process is killed")
BUSY = TransientError("the storage is busy; wait")


@pytest.fixture
def scripted(stages, monkeypatch, tmp_path):
    """Start a run of two scripted stages, of four tasks each."""
    stages(Scripted)
    monkeypatch.setattr(Scripted, "starts", Counter())
    monkeypatch.setattr(executors, "_RETRY_PAUSE_S", 0.001)

    def start(script):
        monkeypatch.setattr(Scripted, "script", script)
        document = {
            "name": "scripted",
            "grid": {
                "bounds": {"start": [0, 0, 0], "stop": [32, 8, 8]},
                "chunk": [8, 8, 8],
            },
            "stage": [
                {"use": "scripted", "output": "first"},
                {"use": "scripted", "after": "first", "output": "second"},
            ],
        }
        return Run.start(Recipe.parse(document), str(tmp_path / "root"))

    return start


def failed(run):
    return {f"{d['output']}/{d['key']}": d for d in run.failures()}


def served(url, **options):
    """Return an executor over a queue that is served within this process."""
    return Queued(url, poll_s=0.01, on_wait=lambda: work(url, until_empty=True, **options))


@pytest.mark.parametrize("failures", [1, 4])
def test_a_passing_error_is_tried_again(scripted, failures):
    run = scripted({"first/0_1_0_0": [BUSY] * failures})
    run_to_end(run, serial, only="first", quiet=True)
    assert Scripted.starts == {
        f"first/0_{x}_0_0": 1 + failures * (x == 1) for x in range(4)
    }
    assert not failed(run)
    assert len(run.done_keys(run.recipe.stage("first"))) == 4


def test_the_fifth_passing_error_parks(scripted):
    run = scripted({"first/0_1_0_0": [BUSY] * 5})
    with pytest.raises(TaskError, match="1 of 4 tasks of first failed, first 0_1_0_0"):
        run_to_end(run, serial, quiet=True)
    record = failed(run)["first/0_1_0_0"]
    assert record["starts"] == 5
    assert record["code"] == "transient"
    assert record["reason"] == str(BUSY)
    assert Scripted.starts["first/0_1_0_0"] == 5


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("ids are negative"), "data"),
        (ZeroDivisionError("oh"), "ZeroDivisionError"),
    ],
)
def test_a_lasting_error_parks_at_once_and_the_wave_goes_on(scripted, error, code):
    run = scripted({"first/0_1_0_0": [error] * 9})
    with pytest.raises(TaskError) as raised:
        run_to_end(run, serial, quiet=True)
    assert "first 0_1_0_0" in str(raised.value)
    assert str(error) in str(raised.value)
    record = failed(run)["first/0_1_0_0"]
    assert record["code"] == code
    assert record["reason"] == str(error)
    assert record["starts"] == 1
    assert record["host"] == os.uname().nodename
    assert "in process" in record["traceback"]
    assert type(error).__name__ in record["traceback"]
    assert Scripted.starts == {f"first/0_{x}_0_0": 1 for x in range(4)}, "second not begun"
    assert len(run.done_keys(run.recipe.stage("first"))) == 3


def test_retry_lets_the_next_run_try_again(scripted):
    run = scripted({"first/0_1_0_0": [DataError("wrong")]})
    with pytest.raises(TaskError):
        run_to_end(run, serial, quiet=True)
    with pytest.raises(TaskError):
        run_to_end(run, serial, quiet=True)
    assert Scripted.starts["first/0_1_0_0"] == 1, "a parked task rests"
    assert run.retry("second") == 0
    assert run.retry() == 1
    assert [r.tasks for r in run_to_end(run, serial, quiet=True)] == [4, 4]
    assert Scripted.starts["first/0_1_0_0"] == 2
    assert Scripted.starts["first/0_0_0_0"] == 1
    assert not failed(run)


def test_a_full_root_ends_the_run_and_parks_nothing(scripted):
    run = scripted({"first/0_1_0_0": [RootError("no space left; free some")]})
    with pytest.raises(RootError, match="no space left"):
        run_to_end(run, serial, quiet=True)
    assert not failed(run)
    run_to_end(run, serial, quiet=True)
    assert Scripted.starts["first/0_0_0_0"] == 1


def test_on_a_queue_the_lease_of_a_passing_error_lapses(scripted, queue):
    run = scripted({"first/0_1_0_0": [BUSY, BUSY]})
    outcomes = []
    executor = served(queue, lease_s=1, on_task=outcomes.append)
    run_to_end(run, executor, only="first", quiet=True)
    assert Scripted.starts["first/0_1_0_0"] == 3
    assert outcomes == ["done"] * 4
    assert not list(run.store.list("first/attempts/")), "the count goes with the task"


def test_on_a_queue_the_fifth_start_is_the_last(scripted, queue):
    run = scripted({"first/0_1_0_0": [BUSY] * 9})
    outcomes = []
    with pytest.raises(TaskError, match="1 of 4 tasks of first failed"):
        run_to_end(run, served(queue, lease_s=1, on_task=outcomes.append), quiet=True)
    assert Counter(outcomes) == {"done": 3, "failed": 1}
    assert failed(run)["first/0_1_0_0"]["starts"] == 5
    assert Scripted.starts["first/0_1_0_0"] == 5
    assert TaskQueue(queue).is_empty()


def test_a_message_that_kills_its_workers_is_parked(scripted, queue):
    run = scripted({"first/0_1_0_0": [KILL] * 9})
    fork = multiprocessing.get_context("fork")
    deaths = []

    def serve():
        worker = fork.Process(
            target=work, args=(queue,), kwargs={"lease_s": 1, "until_empty": True}
        )
        worker.start()
        worker.join(60)
        deaths.append(worker.exitcode)

    with pytest.raises(TaskError, match="1 of 4 tasks of first failed"):
        run_to_end(run, Queued(queue, poll_s=0.01, on_wait=serve), quiet=True)
    assert deaths == [-signal.SIGKILL] * 5 + [0]
    record = failed(run)["first/0_1_0_0"]
    assert record["starts"] == 5
    assert "died 5 times" in record["reason"]
    assert run.done_keys(run.recipe.stage("first")) == {
        ChunkKey(0, x, 0, 0) for x in (0, 2, 3)
    }
    assert not list(run.store.list("first/attempts/"))
    assert TaskQueue(queue).is_empty()


def test_a_message_delivered_twice_is_done_once(scripted, queue):
    run = scripted({})
    key = ChunkKey(0, 1, 0, 0)
    for _ in range(2):
        TaskQueue(queue).insert(run.store.root, "scripted", "first", [key])
    outcomes = []
    assert work(queue, until_empty=True, on_task=outcomes.append) == 2
    assert outcomes == ["done", "skipped"]
    assert Scripted.starts == {"first/0_1_0_0": 1}


def test_a_message_that_got_lost_is_sent_again(scripted, queue):
    run = scripted({})
    looks = []

    def serve():
        looks.append(1)
        if len(looks) == 1:
            lost = TaskQueue(queue).lease(60)
            TaskQueue(queue).delete(lost)
        elif len(looks) == 2 or len(looks) > 4:
            work(queue, until_empty=True)

    run_to_end(run, Queued(queue, poll_s=0.01, on_wait=serve), only="first", quiet=True)
    assert set(Scripted.starts.values()) == {1}
    assert len(Scripted.starts) == 4


def test_a_message_of_no_run_does_not_stop_the_worker(scripted, queue, tmp_path):
    run = scripted({})
    messages = TaskQueue(queue)
    nowhere = [ChunkKey(0, 0, 0, 0)]
    messages.insert(str(tmp_path / "deleted"), "scripted", "first", nowhere)
    messages.insert(run.store.root, "scripted", "third", nowhere)
    messages.insert(run.store.root, "scripted", "first", [ChunkKey(0, 99, 0, 0)])
    messages.insert(run.store.root, "scripted", "first", nowhere)
    outcomes = []
    work(queue, until_empty=True, on_task=outcomes.append)
    assert Counter(outcomes) == {"dropped": 3, "done": 1}
    assert not (tmp_path / "deleted").exists()


def test_a_worker_sees_that_a_run_was_begun_anew(copy_text, recipe, volumes, queue, root):
    """A worker that lives on serves the run's new settings."""
    written = []
    for limits in ("[0, 255]", "[0, 127]"):
        path = recipe(copy_text, volumes, ("voxel_", f"intensity_range = {limits}\nvoxel_"))
        run = Run.start(Recipe.load(path), str(root), replace=True)
        run_to_end(run, served(queue), quiet=True)
        stage = run.recipe.stage("image")
        assert run.done_record(stage, ChunkKey(0, 0, 0, 0)).lineage == run.lineage["image"]
        written.append(next((root / "image" / "12_12_30").iterdir()).read_bytes())
    assert written[0] != written[1]
