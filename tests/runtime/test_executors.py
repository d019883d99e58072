"""The executors give the same bytes; one that loses a process goes on."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.recipe import Recipe
from pipeline.runtime import executors
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import Pool, Queued
from pipeline.runtime.queue import TaskQueue
from pipeline.runtime.run import Run
from pipeline.runtime.worker import work


def test_pool_writes_the_same_objects(small, root, undisturbed, objects, provenances, done):
    with Pool(2) as pool:
        run_to_end(Run.start(Recipe.load(small), str(root)), pool, quiet=True)
    assert objects(root) == objects(undisturbed)
    assert provenances(root) == provenances(undisturbed)
    assert len(provenances(root)) == 13
    assert done(root).keys() == done(undisturbed).keys()


def test_queue_writes_the_same_objects(small, root, queue, undisturbed, objects, done):
    outcomes = []

    def serve():
        work(queue, until_empty=True, on_task=outcomes.append)

    executor = Queued(queue, poll_s=0.01, on_wait=serve)
    run_to_end(Run.start(Recipe.load(small), str(root)), executor, quiet=True)
    assert objects(root) == objects(undisturbed)
    assert done(root).keys() == done(undisturbed).keys()
    assert len(outcomes) == len(done(root))
    assert set(outcomes) == {"done"}
    assert not list(root.rglob("attempts/*"))


def test_a_queue_holds_no_more_than_it_may(
    small, root, queue, undisturbed, objects, monkeypatch
):
    """And where few are under way, each is asked for by name."""
    monkeypatch.setattr(executors, "_LISTED_AT_ONCE", 1)
    depths = []

    def serve():
        depths.append(TaskQueue(queue).counts()[0])
        work(queue, until_empty=True)

    executor = Queued(queue, poll_s=0.01, on_wait=serve, ahead=3)
    run_to_end(Run.start(Recipe.load(small), str(root)), executor, quiet=True)
    assert objects(root) == objects(undisturbed)
    assert max(depths) == 3
    assert min(depths) >= 1, "nobody waits for what is ready"


def test_messages_of_a_driver_that_was_killed_do_no_harm(
    small, root, queue, undisturbed, objects, done
):
    run, looks, outcomes = Run.start(Recipe.load(small), str(root)), [], []

    def serve():
        looks.append(1)
        if len(looks) == 4:
            raise KeyboardInterrupt
        work(queue, max_tasks=5, on_task=outcomes.append)

    with pytest.raises(KeyboardInterrupt):
        run_to_end(run, Queued(queue, poll_s=0.01, on_wait=serve), quiet=True)
    assert len(done(root)) == 15
    before = done(root)
    again = Queued(
        queue,
        poll_s=0.01,
        on_wait=lambda: work(queue, until_empty=True, on_task=outcomes.append),
    )
    run_to_end(run, again, quiet=True)
    assert objects(root) == objects(undisturbed)
    assert before.items() <= done(root).items()
    assert outcomes.count("done") == len(done(root))
    assert set(outcomes) == {"done", "skipped"}, "what was sent twice is done once"


def test_a_pool_outlives_a_killed_process(
    small_text, recipe, gated, root, em, undisturbed, objects
):
    folder, gate = gated
    run = em("run", recipe(small_text, folder), "--root", root, "--workers", 2)
    first = gate.kill_visitor()
    assert gate.visitor() != first
    gate.open()
    run.succeed()
    assert objects(root) == objects(undisturbed)
    assert len(objects(root)) > 100


@pytest.mark.slow
def test_a_task_that_kills_its_process_is_parked(
    copy_text, recipe, gated, root, em, em_here, done
):
    folder, gate = gated
    path = recipe(copy_text, folder)
    run = em("run", path, "--root", root, "--workers", 2)
    killed = {gate.kill_visitor() for _ in range(5)}
    assert run.wait() == 1
    assert len(killed) == 5
    assert "Traceback" not in run.errors
    assert "1 of 8 tasks of image failed" in run.errors
    assert "0_1_0_1" in run.errors
    assert len(done(root)) == 7, "the other tasks of the wave end"

    (failure,) = em_here("failures", "--root", root, "--json").json["failures"]
    assert (failure["output"], failure["key"]) == ("image", "0_1_0_1")
    assert failure["starts"] == 5
    assert "died 5 times" in failure["reason"]

    gate.open()
    assert em_here("run", path, "--root", root).status == 1, "it stays parked"
    before = done(root)
    assert em_here("retry", "--root", root, "--json").json == {"retried": 1}
    assert em_here("run", path, "--root", root).status == 0
    after = done(root)
    assert after.keys() - before.keys() == {"image/0_1_0_1"}
    assert before.items() <= after.items()
    assert not list(root.rglob("failed/*"))


def test_only_tasks_under_way_are_suspected(copy_text, recipe, gated, root, done):
    """A death must not make the rest of a wave go one by one."""
    folder, gate = gated
    small_chunks = ("chunk = [48, 40, 12]", "chunk = [24, 20, 12]")
    run = Run.start(Recipe.load(recipe(copy_text, folder, small_chunks)), str(root))
    groups = []

    class Watched(Pool):
        def _do(self, run, frontier, alone):
            before = len(done(root))
            struck = super()._do(run, frontier, alone)
            groups.append((len(alone), len(done(root)) - before))
            return struck

    def kill_and_open():
        gate.kill_visitor()
        gate.open()

    with Watched(1) as pool, ThreadPoolExecutor(1) as threads:
        killed = threads.submit(kill_and_open)
        run_to_end(run, pool, quiet=True)
        killed.result()
    assert len(done(root)) == 32
    assert groups[0][0] == 0, "all of them"
    assert {group[0] for group in groups[1:-1]} == {1}
    assert len(groups) <= 4, "at most two were under way in one process"
    assert groups[-1][0] == 0
    assert groups[-1][1] > 1, "the rest goes on as before"
