"""The executors give the same bytes; one that loses a process goes on."""

import json

from pipeline.recipe import Recipe
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import Pool, Queued
from pipeline.runtime.run import Run
from pipeline.runtime.worker import work


def test_pool_writes_the_same_objects(small, root, undisturbed, objects, done):
    with Pool(2) as pool:
        run_to_end(Run.start(Recipe.load(small), str(root)), pool, quiet=True)
    assert objects(root) == objects(undisturbed)
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


def test_a_pool_outlives_a_killed_process(
    small_text, recipe, gated, root, em, undisturbed, objects
):
    folder, gate = gated
    run = em("run", recipe(small_text, folder), "--root", root, "--workers", 2)
    first = gate.kill_visitor()
    assert gate.visitor() != first
    gate.open()
    run.succeed()
    kept = {k: v for k, v in objects(root).items() if not k.endswith("provenance")}
    assert kept == {k: v for k, v in objects(undisturbed).items() if k in kept}
    assert len(kept) > 100


def test_a_task_that_kills_its_process_is_parked(copy_text, recipe, gated, root, em, done):
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

    report = em("failures", "--root", root, "--json").succeed()
    (failure,) = json.loads(report)["failures"]
    assert (failure["output"], failure["key"]) == ("image", "0_1_0_1")
    assert failure["starts"] == 5
    assert "died 5 times" in failure["reason"]

    gate.open()
    assert em("run", path, "--root", root).wait() == 1, "it stays parked until retried"
    before = done(root)
    assert "1 failed tasks" in em("retry", "--root", root).succeed()
    em("run", path, "--root", root, "--workers", 1).succeed()
    after = done(root)
    assert after.keys() - before.keys() == {"image/0_1_0_1"}
    assert before.items() <= after.items()
    assert not list(root.rglob("failed/*"))
