"""Clouds that cannot work and messages that must not: said at once, never a hang."""

import json
import os
import pickle
import subprocess
import uuid
from collections import Counter
from pathlib import Path

import pytest

from pipeline.errors import DataError, RootError
from pipeline.geometry import ChunkKey
from pipeline.layers.folder import open_folder
from pipeline.layers.store import Store
from pipeline.recipe import Recipe
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import Queued, serial
from pipeline.runtime.logs import redacted
from pipeline.runtime.queue import Message, TaskQueue
from pipeline.runtime.run import Run
from pipeline.runtime.worker import work

FUNCTION = ["pipeline.runtime.queue", "execute"]
GOOD = ["file:///root", "run", "image", "0_1_2_3"]


def body(function=FUNCTION, args=GOOD, kwargs=None, **more):
    return json.dumps({"payload": [function, args, kwargs or {}, -1], **more})


def with_args(index, value):
    return body(args=[value if i == index else a for i, a in enumerate(GOOD)])


CRAFTED = {
    "pickle": pickle.dumps(print).decode("latin-1"),
    "no JSON": "import os",
    "empty": "",
    "a list": "[1, 2, 3]",
    "a number": "7",
    "no payload": '{"queueName": "q"}',
    "nested": '{"payload": ' + "[" * 3000 + "]" * 3000 + "}",
    "long": body(args=["file:///" + "a" * 10_000, *GOOD[1:]]),
    "another function": body(["os", "system"], ["touch /tmp/owned"]),
    "one of ours": body(["pipeline.runtime.worker", "attempt"]),
    "a class": json.dumps({"payload": {"class": "PrintTask", "params": {"index": 1}}}),
    "keywords": body(kwargs={"root": "file:///etc"}),
    "too few": body(args=GOOD[:3]),
    "no text": body(args=[*GOOD[:3], 7]),
    "path as root": with_args(0, "/etc"),
    "root climbs": with_args(0, "file:///root/../etc"),
    "run climbs": with_args(1, "../../etc/passwd"),
    "run is a path": with_args(1, "a/b"),
    "run is hidden": with_args(1, ".."),
    "layer climbs": with_args(2, "image/../../../etc"),
    "layer is absolute": with_args(2, "/etc"),
    "layer is here": with_args(2, "image/./x"),
    "layer has a line": with_args(2, "image\n"),
    "key climbs": with_args(3, "../0_0_0_0"),
    "key is no key": with_args(3, "0_0_0"),
    "key is huge": with_args(3, "0_" + "9" * 40 + "_0_0"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_message_is_refused(name):
    with pytest.raises(DataError, match="a message was refused"):
        Message.parse(CRAFTED[name])


def test_a_good_message_is_read():
    assert list(Message.parse(body()).args) == GOOD
    assert Message.parse(with_args(2, "segmentation/pyramid")).output.endswith("pyramid")
    assert Message.parse(with_args(0, "s3://bucket/a")).root == "s3://bucket/a"


def test_roots_may_be_fenced_in(monkeypatch):
    monkeypatch.setenv("EM_ROOTS", "s3://lab/ /data/em")
    assert Message.parse(with_args(0, "s3://lab/run1")).root == "s3://lab/run1"
    assert Message.parse(with_args(0, "file:///data/em"))
    for other in ("s3://laboratory/run1", "file:///data/em2", "file:///data", "gs://lab"):
        with pytest.raises(DataError, match="not within EM_ROOTS"):
            Message.parse(with_args(0, other))


def test_crafted_messages_stop_no_worker_and_are_gone(small, queue, root, tmp_path, caplog):
    run = Run.start(Recipe.load(small), str(root))
    messages = TaskQueue(queue)
    messages.insert(run.store.root, "small", "basins", [ChunkKey(0, 0, 0, 0)])
    folder = tmp_path / "queue" / "queue"
    for text in CRAFTED.values():
        (folder / f"0--{uuid.uuid4()}.json").write_text(text)
    outcomes = []
    work(queue, until_empty=True, on_task=outcomes.append)
    assert Counter(outcomes) == {"refused": len(CRAFTED), "done": 1}
    assert messages.is_empty()
    assert sum(r.getMessage() == "refused" for r in caplog.records) == len(CRAFTED)
    assert not Path("/tmp/owned").exists()


def test_crafted_messages_on_sqs_are_gone_too(cloud):
    for text in ("gASVFAAAAAAAAACMCGJ1aWx0aW5z", CRAFTED["run climbs"]):
        cloud.sqs.send_message(QueueUrl=cloud.queue_url, MessageBody=text)
    outcomes = []
    work(cloud.queue, until_empty=True, on_task=outcomes.append)
    assert outcomes == ["refused", "refused"]


def test_a_frozen_recipe_that_was_tampered_with_is_dropped(small, queue, root):
    run = Run.start(Recipe.load(small), str(root))
    frozen = root / "runs" / "small.json"
    messages = TaskQueue(queue)
    outcomes = []
    for text in ('{"code_version": "0.1.0"}', "[]", "no", '{"recipe": 1, "specs": 2}'):
        frozen.write_text(text)
        messages.insert(run.store.root, "small", "basins", [ChunkKey(0, 0, 0, 0)])
        work(queue, until_empty=True, on_task=outcomes.append)
    assert outcomes == ["dropped"] * 4


def test_a_missing_queue_is_told_before_anything_is_written(
    copy_text, recipe, volumes, em, cloud, root
):
    path = recipe(copy_text, volumes)
    run = em("run", path, "--root", root, "--queue", "sqs://nowhere")
    assert run.wait() == 2
    assert "there is no queue sqs://nowhere in us-east-1; create it" in run.errors
    assert not root.exists()
    with pytest.raises(RootError, match="there is no queue sqs://nowhere"):
        work("sqs://nowhere")


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("403", "give this user the right to read and write there"),
        ("400", "set AWS_DEFAULT_REGION to its own"),
    ],
)
def test_what_a_bucket_refuses_is_told_with_the_remedy(kind, remedy, cloud, flaky, small):
    cloud.use(flaky(rate=1, kinds=[kind]))
    with pytest.raises(RootError) as raised:
        Run.start(Recipe.load(small), cloud.root)
    assert cloud.name in str(raised.value)
    assert remedy in str(raised.value)


def test_a_bucket_that_is_not_there_is_told_at_the_start(cloud, small):
    with pytest.raises(RootError, match="create the bucket, or name another one"):
        Run.start(Recipe.load(small), "s3://no-such-bucket/root")


def test_rights_that_are_lost_stop_the_worker_and_keep_the_task(cloud, flaky, small, queue):
    run = Run.start(Recipe.load(small), cloud.root)
    TaskQueue(queue).insert(run.store.root, "small", "basins", [ChunkKey(0, 0, 0, 0)])
    cloud.use(flaky(rate=1, kinds=["403"]))
    with pytest.raises(RootError, match="give this user the right"):
        work(queue, until_empty=True)
    assert not TaskQueue(queue).is_empty()


def test_no_space_is_told_and_parks_nothing(tmp_path, copy_text, recipe, volumes):
    place = tmp_path / "tiny"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small file system")
    try:
        run = Run.start(Recipe.load(recipe(copy_text, volumes)), str(place / "root"))
        with pytest.raises(RootError, match="no space left on device; free space there"):
            run_to_end(run, serial, quiet=True)
        assert not run.failures()
    finally:
        subprocess.run(["umount", place], check=True)


def test_messages_that_vanish_end_the_wait(small, queue, root, monkeypatch):
    from pipeline.errors import TaskError
    from pipeline.runtime import queue as queues

    monkeypatch.setitem(queues._SETTLES_S, "fq", 0.05)

    def steal():
        messages = TaskQueue(queue)
        while (message := messages.lease(60)) is not None:
            messages.delete(message)

    run = Run.start(Recipe.load(small), str(root))
    with pytest.raises(TaskError, match=r"were sent 6 times .* neither done nor"):
        run_to_end(run, Queued(queue, poll_s=0.01, on_wait=steal), quiet=True)


def test_a_wait_says_what_it_waits_for(small, queue, root, monkeypatch, caplog):
    from pipeline.runtime import executors

    monkeypatch.setattr(executors, "_SILENCE_S", 0.2)
    looks = []

    def look():
        looks.append(1)
        if len(looks) > 30:
            raise KeyboardInterrupt

    run = Run.start(Recipe.load(small), str(root))
    with pytest.raises(KeyboardInterrupt):
        run_to_end(run, Queued(queue, poll_s=0.05, on_wait=look), quiet=True)
    (line, *_) = [r.getMessage() for r in caplog.records]
    assert "none of 16 tasks ended" in line
    assert "16 waiting and 0 leased; no worker has any of them: start some" in line


SECRETS = (
    "a-very-secret-key",
    "hunter2hunter2",
    "c2lnbmF0dXJl",
)


@pytest.mark.slow
def test_no_secret_is_written_down(cloud, copy_text, recipe, volumes, em, tmp_path):
    """Neither in a log, nor in provenance, records, messages or errors."""
    path = recipe(copy_text, volumes)
    worker = em("work", "--queue", cloud.queue, SOME_TOKEN=SECRETS[1])
    em("run", path, "--root", cloud.root, "--queue", cloud.queue).succeed()
    worker.process.terminate()
    worker.wait()
    broken = em("run", path, "--root", "s3://no-such-bucket/x", SOME_TOKEN=SECRETS[1])
    assert broken.wait() == 2
    written = [p.read_text() for p in tmp_path.glob("em*.*")]
    folder = open_folder(cloud.root)
    written += [(folder.get(p) or b"").decode("latin-1") for p in folder.paths("")]
    assert len(written) > 20
    for secret in SECRETS:
        assert not [text for text in written if secret in text]


def test_what_looks_like_a_secret_is_hidden(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", SECRETS[1])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS[0])
    for text in (
        f"no {SECRETS[0]} here",
        f"{SECRETS[1]}",
        f"GET https://user:{SECRETS[2]}@host/x",
        f"https://b.s3.amazonaws.com/k?X-Amz-Signature={SECRETS[2]}&a=1",
        f"https://host/k?sig={SECRETS[2]}",
        f"Authorization: AWS4-HMAC-SHA256 Credential=x, Signature={SECRETS[2]}",
        f'"private_key": "{SECRETS[2]}"',
    ):
        hidden = redacted(text)
        assert "***" in hidden
        assert not any(secret in hidden for secret in SECRETS), hidden
    assert redacted("s3://bucket/key_0_1-2?mip=3") == "s3://bucket/key_0_1-2?mip=3"


def test_a_failed_record_holds_no_secret(small, root, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS[0])
    run = Run.start(Recipe.load(small), str(root))
    stage = run.recipe.stage("basins")
    run.park(stage, ChunkKey(0, 0, 0, 0), DataError(f"key {SECRETS[0]} is wrong"))
    (record,) = run.failures()
    assert SECRETS[0] not in json.dumps(record)
    assert "key *** is wrong" in record["reason"]


def test_credentials_without_a_session_token_are_enough(cloud, monkeypatch):
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    cloud.use(os.environ["AWS_ENDPOINT_URL"])
    Store(cloud.root).put_json("a.json", {})
    assert Store(cloud.root).get_json("a.json") == {}
