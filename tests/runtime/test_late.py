"""A task that takes far longer than others of its wave is given to a second worker."""

import json
import time

import pytest

from pipeline.recipe import Recipe
from pipeline.runtime import executors, late
from pipeline.runtime import run as runs
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import Queued
from pipeline.runtime.frontier import Frontier
from pipeline.runtime.late import LATE_TIMES, Latecomers
from pipeline.runtime.queue import TaskQueue
from pipeline.runtime.run import LATE_S, Run
from pipeline.runtime.verify import verify
from pipeline.runtime.worker import attempt, work


@pytest.fixture
def run(copy_text, recipe, volumes, root):
    """Eight tasks of one wave."""
    return Run.start(Recipe.load(recipe(copy_text, volumes)), str(root))


@pytest.fixture
def half_done(run):
    """A frontier of which four tasks are done and four under way, all sent at 1000 s."""
    frontier, latecomers = Frontier(run, run.recipe.stages), Latecomers()
    jobs = [frontier.take() for _ in range(8)]
    latecomers.sent(jobs, 1000.0)
    for job in jobs[:4]:
        frontier.ended(job, run.attempt(job.stage, job.key))

    def found(now, count=4):
        return list(latecomers.late(run, frontier, 0, count, now))

    return latecomers, jobs, found


def test_what_a_worker_keeps_is_done_by_another(run, queue, monkeypatch, caplog):
    monkeypatch.setattr(late, "LATE_S", 0.3)
    monkeypatch.setattr(executors, "_HURRIES_S", 0.05)
    kept, outcomes = [], []

    def serve():
        messages = TaskQueue(queue)
        if not kept:
            kept.append(messages.lease(600))
        if waiting := messages.counts()[0]:
            work(queue, max_tasks=waiting, on_task=outcomes.append)

    caplog.set_level("INFO", "em.run")
    began = time.monotonic()
    run_to_end(run, Queued(queue, poll_s=0.05, on_wait=serve), quiet=True)
    assert time.monotonic() - began < 30, "and not when the lease has lapsed"
    assert outcomes == ["done"] * 8
    (said,) = [r.getMessage() for r in caplog.records if "sent again" in r.getMessage()]
    assert kept[0].key in said
    assert attempt(*kept[0].args) == "skipped", "who kept it comes too late"
    assert all(proof.is_complete for proof in verify(run))
    assert not list(run.begun_keys(run.recipe.stages[0]))


def test_a_task_is_late_once_and_only_beyond_what_others_take(half_done):
    _, jobs, found = half_done
    assert found(1000 + LATE_S - 1) == []
    assert found(1000 + LATE_S + 1) == jobs[4:]
    assert found(1000 + 9 * LATE_S) == [], "each is sent again once"


def test_long_tasks_are_late_later(half_done, root):
    _, jobs, found = half_done
    for path in root.glob("image/done/*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "seconds": LATE_S}))
    assert found(1000 + LATE_TIMES * LATE_S - 1) == []
    assert found(1000 + LATE_TIMES * LATE_S + 1) == jobs[4:]


def test_blank_tasks_do_not_say_what_is_usual(half_done, root):
    _, jobs, found = half_done
    *blank, last = root.glob("image/done/*.json")
    for path in blank:
        path.write_text(json.dumps({**json.loads(path.read_text()), "kind": "blank"}))
    last.write_text(json.dumps({**json.loads(last.read_text()), "seconds": LATE_S}))
    assert found(1000 + LATE_S + 1) == []
    assert found(1000 + LATE_TIMES * LATE_S + 1) == jobs[4:]


def test_nothing_is_late_while_messages_wait_or_most_are_under_way(half_done):
    latecomers, jobs, found = half_done
    assert found(1000 + 2 * LATE_S, count=5) == []
    latecomers.waits(1000 + 2 * LATE_S)
    assert found(1000 + 2 * LATE_S + 1) == []
    assert found(1000 + 3 * LATE_S + 1) == jobs[4:]


@pytest.mark.parametrize(("late_s", "outcome"), [(0.0, "skipped"), (60.0, "done")])
def test_who_comes_second_writes_nothing_more(
    run, root, done, monkeypatch, late_s, outcome
):
    """Where it took so long that another may have been sent; else one does not look."""
    monkeypatch.setattr(runs, "LATE_S", late_s)
    stage = run.recipe.stages[0]
    key = next(iter(stage.plan()[0]))
    before = []

    def another_does_it():
        assert Run.open(str(root), "copy").attempt(stage, key) == "done"
        before.append(done(root))
        return True

    assert run.attempt(stage, key, begins=another_does_it) == outcome
    assert (done(root) == before[0]) is (outcome == "skipped")
