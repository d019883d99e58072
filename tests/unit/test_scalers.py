"""How many workers a queue gets, and workers as processes of this machine."""

import os
import time

import psutil
import pytest

from pipeline.errors import RootError
from pipeline.geometry import ChunkKey
from pipeline.orchestration.scalers import (
    Elsewhere,
    Processes,
    Scaler,
    follow,
    scaler_from_environment,
)
from pipeline.runtime.queue import TaskQueue


class Counted(Scaler):
    """Keeps numbers instead of workers."""

    def __init__(self, there):
        self.there = there

    def scale(self, url, pool, count):
        self.there = count

    def size(self, url, pool):
        return self.there


@pytest.fixture
def url(tmp_path):
    return f"fq://{tmp_path / 'queue'}"


@pytest.mark.parametrize(
    ("messages", "there", "most", "up_only", "expected"),
    [
        (0, 0, 5, True, 0),
        (3, 0, 5, True, 3),
        (9, 0, 5, True, 5),
        (9, 2, 5, False, 5),
        (1, 4, 5, True, 4),
        (1, 4, 5, False, 4),
        (0, 4, 5, True, 4),
        (0, 4, 5, False, 0),
    ],
)
def test_workers_follow_the_queue(url, messages, there, most, up_only, expected):
    keys = [ChunkKey(0, i, 0, 0) for i in range(messages)]
    TaskQueue(url).insert("root", "run", "layer", keys)
    scaler = Counted(there)
    assert follow(scaler, url, "cpu", most, up_only=up_only) == expected
    assert scaler.there == expected


def test_workers_elsewhere_are_left_alone(url):
    assert follow(Elsewhere(), url, "cpu", 5, up_only=False) is None


def test_processes_come_and_go(url, tmp_path):
    scaler = Processes(tmp_path / "workers")
    assert scaler.size(url, "cpu") == 0
    scaler.scale(url, "cpu", 2)
    assert scaler.size(url, "cpu") == 2
    assert scaler.size(url + "-of-another", "cpu") == 0
    pids = [int(f.suffixes[-2][1:]) for f in scaler.folder.glob("*.pid")]
    assert os.getsid(pids[0]) != os.getsid(0), "they outlive who started them"
    # Another process, such as that of another Airflow task, stops them.
    Processes(tmp_path / "workers").scale(url, "cpu", 0)
    assert scaler.size(url, "cpu") == 0
    until = time.monotonic() + 60
    while any(psutil.pid_exists(p) and not _is_dead(p) for p in pids):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_another_process_with_the_number_of_a_dead_worker_is_no_worker(url, tmp_path):
    scaler = Processes(tmp_path)
    scaler._file(url, os.getpid()).write_text(f"{url}\n1")
    assert scaler.size(url, "cpu") == 0
    scaler.scale(url, "cpu", 0)


def test_the_environment_names_the_scaler(monkeypatch, tmp_path):
    monkeypatch.delenv("EM_SCALER", raising=False)
    assert isinstance(scaler_from_environment(), Elsewhere)
    monkeypatch.setenv("EM_SCALER", "processes")
    monkeypatch.setenv("EM_WORKERS", str(tmp_path))
    assert scaler_from_environment().folder == tmp_path
    monkeypatch.setenv("EM_SCALER", "magic")
    with pytest.raises(RootError, match="give none, processes or kubernetes"):
        scaler_from_environment()


def _is_dead(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
