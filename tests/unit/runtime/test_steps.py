"""Who may be at which step of a task at once."""

import threading
import time

import numpy as np
import pytest

from pipeline.errors import BackendError, StorageUnavailableError
from pipeline.geometry import Vec3
from pipeline.layers.store import Store
from pipeline.recipe import Recipe
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import in_threads, serial
from pipeline.runtime.run import Run
from pipeline.runtime.steps import STREAM, Steps
from pipeline.specs import Region, VolumeSpec
from pipeline.stages.ingest import Ingest
from tests.conformance.examples import World, finished

CHUNK = Vec3(21, 17, 17)


class Diary:
    """Who was at which step when, and the most at once."""

    def __init__(self):
        self.lock = threading.Lock()
        self.now = {"read": 0, "compute": 0, "write": 0}
        self.together = []

    def visit(self, step, seconds=0.02):
        with self.lock:
            self.now[step] += 1
            self.together.append({k for k, n in self.now.items() if n})
            assert max(self.now.values()) == 1, self.now
        time.sleep(seconds)
        with self.lock:
            self.now[step] -= 1


def through(steps, diary, *, alone=False):
    with steps.admitted():
        if alone:
            steps.alone()
        diary.visit("read")
        steps.compute()
        diary.visit("compute")
        steps.write()
        diary.visit("write")


def in_parallel(count, work):
    left, stop = iter(range(count)), threading.Event()

    def serve():
        while next(left, None) is not None:
            work()

    in_threads(serve, STREAM, stop)


def test_one_task_is_at_each_step_and_all_steps_are_busy():
    steps, diary = Steps(), Diary()
    in_parallel(9, lambda: through(steps, diary))
    assert {"read", "compute", "write"} in diary.together


def test_a_task_that_is_alone_has_no_company():
    steps, diary = Steps(), Diary()
    in_parallel(6, lambda: through(steps, diary, alone=True))
    assert all(len(met) == 1 for met in diary.together)


def test_waiting_is_told_and_who_was_not_admitted_waits_for_nobody():
    steps = Steps()
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with steps.admitted():
            steps.compute()
            entered.set()
            leave.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait()
    assert steps.alone() == steps.compute() == steps.write() == 0.0
    threading.Timer(0.2, leave.set).start()
    with steps.admitted():
        assert 0.1 < steps.compute() < 5
        assert steps.compute() == 0.0, "a task that is tried again is there already"
    holder.join()


def test_an_error_in_any_thread_ends_all_and_is_raised():
    stop = threading.Event()
    main = threading.get_ident()

    def serve():
        if threading.get_ident() != main:
            raise BackendError("no such backend")
        assert stop.wait(10), "the others tell this one"

    with pytest.raises(BackendError):
        in_threads(serve, STREAM, stop)


# -- a stage that streams -----------------------------------------------------------------


@pytest.fixture
def world(tmp_path):
    shape = (42, 34, 17)
    image = np.arange(np.prod(shape)).reshape(shape, order="F") % 251 + 1
    return World.of({"image": image.astype(np.uint8)}, tmp_path / "world")


def copying(world):
    bounds = {"start": [5, 3, 2], "stop": [47, 37, 19]}
    return Recipe.parse(
        {
            "name": "copy",
            "grid": {"bounds": bounds, "chunk": list(CHUNK)},
            "layers": world.layers,
            "stage": [
                {
                    "use": "ingest",
                    "source": "image",
                    "output": "copy",
                    "voxel_size_nm": [16.0, 16.0, 40.0],
                    "storage_chunk": list(CHUNK),
                }
            ],
        }
    )


@pytest.fixture
def diary(monkeypatch):
    """Make ingest stream, and note who reads, computes and writes."""
    diary = Diary()
    monkeypatch.setattr(Ingest, "streams", True)
    for owner, name, step in (
        (Store, "read", "read"),
        (Ingest, "process", "compute"),
        (Store, "write", "write"),
    ):
        monkeypatch.setattr(owner, name, noted(getattr(owner, name), diary, step))
    return diary


def noted(method, diary, step, seconds=0.02):
    def wrapper(*args, **kwargs):
        diary.visit(step, seconds)
        return method(*args, **kwargs)

    return wrapper


def volume(run):
    spec = run.specs["copy"]
    assert isinstance(spec, VolumeSpec)
    return run.store.read(Region("copy", spec.bounds))


def test_a_stage_that_streams_does_all_steps_at_once(world, tmp_path, diary):
    run = finished(copying(world), tmp_path / "out")
    assert {"read", "compute", "write"} in diary.together
    assert len(list(run.done_records(run.recipe.stages[0]))) == 4
    assert volume(run).all()


def test_other_stages_do_one_step_at_a_time(world, tmp_path, diary, monkeypatch):
    monkeypatch.setattr(Ingest, "streams", False)
    finished(copying(world), tmp_path / "out")
    assert all(len(met) == 1 for met in diary.together)


def test_a_failure_at_each_step_leaves_the_others_be(world, tmp_path, diary, monkeypatch):
    """One read fails for a while, one task cannot be computed; all else is done."""
    monkeypatch.setattr("pipeline.runtime.executors._RETRY_PAUSE_S", 0.01)
    read, process, failed = Store.read, Ingest.process, []

    def unsteady(self, region):
        if region.layer == "image" and region.box.start.x > 20 and not failed:
            failed.append(region)
            raise StorageUnavailableError("busy; try again")
        return read(self, region)

    def choosy(self, task, **inputs):
        if task.key.y == 1 and task.key.x == 0:
            raise ValueError("cannot")
        return process(self, task, **inputs)

    monkeypatch.setattr(Store, "read", unsteady)
    monkeypatch.setattr(Ingest, "process", choosy)
    run = Run.start(copying(world), str(tmp_path / "out"))
    with pytest.raises(Exception, match="1 of 4 tasks of copy failed, first 0_0_1_0"):
        run_to_end(run, serial, quiet=True)
    stage = run.recipe.stages[0]
    assert failed
    assert {str(k) for k in run.done_keys(stage)} == {"0_0_0_0", "0_1_0_0", "0_1_1_0"}


def test_a_machine_without_the_backend_parks_nothing(world, tmp_path, diary, monkeypatch):
    def cannot(self, task, **inputs):
        raise BackendError("this machine lacks it")

    monkeypatch.setattr(Ingest, "process", cannot)
    run = Run.start(copying(world), str(tmp_path / "out"))
    with pytest.raises(BackendError):
        run_to_end(run, serial, quiet=True)
    assert not run.failures()
    assert not run.done_keys(run.recipe.stages[0])
