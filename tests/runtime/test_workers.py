"""Real workers on a real queue: killed, told to stop, and slower than their lease."""

import json
import signal
import time

import psutil


def test_a_killed_worker_changes_no_byte(
    small_text, recipe, gated, root, queue, em, undisturbed, objects
):
    folder, gate = gated
    workers = [em("work", "--queue", queue, "--lease-seconds", 2) for _ in range(2)]
    path = recipe(small_text, folder)
    run = em("run", path, "--root", root, "--queue", queue)
    killed = gate.kill_visitor()
    assert killed in {w.pid for w in workers}
    attempt = json.loads((root / "image" / "attempts" / "0_1_0_1.json").read_text())
    assert attempt["starts"] == 1
    (survivor,) = {w.pid for w in workers} - {killed}
    assert gate.visitor() == survivor, "the lease lapses and the other takes the task"
    gate.open()
    run.succeed()
    assert objects(root) == objects(undisturbed)
    assert not list(root.rglob("attempts/*"))


def test_sigterm_lets_the_task_in_hand_end(copy_text, recipe, gated, root, queue, em, done):
    folder, gate = gated
    em("run", recipe(copy_text, folder), "--root", root, "--queue", queue)
    worker = em("work", "--queue", queue)
    assert gate.visitor() == worker.pid
    before = done(root).keys()
    worker.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert worker.process.poll() is None
    gate.open()
    assert worker.wait() == 0, worker.errors
    assert done(root).keys() - before == {"image/0_1_0_1"}
    ended = [e for e in worker.events() if e["event"] == "done"]
    assert ended[-1]["key"] == "0_1_0_1"
    assert worker.output == f"{len(ended)} tasks ended\n"


def test_a_lease_is_renewed_while_its_task_runs(
    copy_text, recipe, gated, root, queue, em, done
):
    folder, gate = gated
    workers = [em("work", "--queue", queue, "--lease-seconds", 2) for _ in range(2)]
    run = em("run", recipe(copy_text, folder), "--root", root, "--queue", queue)
    holder = gate.visitor()
    assert holder in {w.pid for w in workers}
    until = time.monotonic() + 60
    while len(done(root)) < 7 and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(4)
    attempt = json.loads((root / "image" / "attempts" / "0_1_0_1.json").read_text())
    assert attempt["starts"] == 1
    gate.open()
    run.succeed()
    events = [(e["key"], e["event"]) for w in workers for e in w.events()]
    assert events.count(("0_1_0_1", "done")) == 1
    assert len(events) == 8


def test_a_worker_ends_when_the_queue_is_empty(queue, em):
    worker = em("work", "--queue", queue, "--until-empty")
    assert worker.wait() == 0, worker.errors
    assert worker.output == "0 tasks ended\n"
    assert not psutil.pid_exists(worker.pid)
