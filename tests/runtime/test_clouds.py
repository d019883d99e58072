"""Runs on an S3 server with a queue of SQS, over real HTTP, quiet and not."""

import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import tensorstore as ts

from pipeline.errors import StorageUnavailableError
from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.layers.store import Store
from pipeline.recipe import Recipe
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import serial
from pipeline.runtime.queue import TaskQueue
from pipeline.runtime.run import Run
from pipeline.runtime.verify import verify
from pipeline.specs import Region, VolumeSpec

FAULTS = ("500", "503", "reset", "hang", "torn", "short")


@pytest.mark.parametrize("name", ["copy", pytest.param("small", marks=pytest.mark.slow)])
def test_two_workers_on_sqs_and_s3_write_what_one_process_writes_to_files(
    name, recipe, copy_text, small_text, volumes, em, em_here, cloud, root, objects
):
    path = recipe(copy_text if name == "copy" else small_text, volumes)
    em_here("run", path, "--root", root, "--quiet")
    workers = [em("work", "--queue", cloud.queue, "--lease-seconds", 20) for _ in range(2)]
    em("run", path, "--root", cloud.root, "--queue", cloud.queue).succeed()
    for worker in workers:
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.errors
    assert sum(e["event"] == "done" for w in workers for e in w.events()) >= 8
    assert cloud.objects() == objects(root)
    run = Run.open(cloud.root, name)
    assert all(proof.is_complete for proof in verify(run))
    image = ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {
                "driver": "s3",
                "bucket": cloud.name,
                "path": "root/image/",
                "endpoint": cloud.s3.meta.endpoint_url,
                "aws_region": "us-east-1",
            },
        },
        read=True,
    ).result()
    box = Bbox.of_shape(Vec3(96, 80, 24))
    ours = run.store.read(Region("image", box))
    assert (image[..., 0].read().result() == ours).all()


SPEC = VolumeSpec(
    dtype="uint8",
    bounds=Bbox.of_shape(Vec3(32, 32, 16)),
    voxel_size_nm=(4, 4, 30),
    kind_of_values="image",
    encoding="raw",
    storage_chunk=Vec3(16, 16, 16),
)


@pytest.mark.parametrize("kind", FAULTS)
def test_no_fault_of_the_storage_changes_what_is_read(kind, cloud, flaky, counts):
    import numpy as np

    array = np.random.default_rng(0).integers(0, 255, (32, 32, 16), dtype=np.uint8)
    endpoint = flaky(rate=0.3, kinds=[kind], hang_s=1.5, seed=1)
    cloud.use(endpoint, EM_REQUEST_TIMEOUT_S="1")
    store = Store(cloud.root)
    store.create("image", SPEC)
    region = Region("image", SPEC.bounds)
    written = store.write(region, SPEC, array)
    store.put_json("state/a.json", {"a": list(range(1000))})
    for _ in range(3):
        assert (store.read(region) == array).all()
        assert store.get_json("state/a.json") == {"a": list(range(1000))}
        assert list(store.list("state/")) == ["state/a.json"]
    assert store.check("image", written) == []
    assert counts(endpoint)[kind] > 3


def test_no_fault_of_the_queue_loses_a_message(cloud, flaky, counts):
    kinds = [kind for kind in FAULTS if kind != "hang"]
    endpoint = flaky(rate=0.3, kinds=kinds, duplicates=0.3, seed=2)
    cloud.use(endpoint)
    queue = TaskQueue(cloud.queue)
    keys = [ChunkKey(0, x, 0, 0) for x in range(25)]
    queue.insert("s3://bucket/root", "run", "image", keys)
    assert sum(queue.counts()) >= 25
    found = []
    until = time.monotonic() + 60
    while not queue.is_empty() and time.monotonic() < until:
        message = queue.lease(3)
        if message is not None:
            found.append(ChunkKey.parse(message.key))
            queue.delete(message)
    assert set(found) == set(keys)
    assert len(found) > len(keys), "some came twice"
    done = counts(endpoint)
    assert done["torn"] > 3
    assert done["doubled messages"] > 3


@pytest.fixture
def google(monkeypatch):
    """A bucket of a server that speaks as Google's does; it forgets what is compressed."""
    from cloudfiles.interfaces import reset_connection_pools

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gcp_storage_emulator",
            "start",
            "--host=127.0.0.1",
            f"--port={port}",
            "--in-memory",
            "--default-bucket=lab",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.1)
    reset_connection_pools()
    yield "gs://lab/root"
    reset_connection_pools()
    process.kill()
    process.wait()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_run_on_google_storage(google, copy_text, recipe, volumes):
    text = copy_text.replace(
        "storage_chunk = [24, 20, 12]", 'storage_chunk = [24, 20, 12]\nencoding = "png"'
    )
    run = Run.start(Recipe.load(recipe(text, volumes)), google)
    run_to_end(run, serial, quiet=True)
    assert all(proof.is_complete for proof in verify(run))
    box = Bbox.of_shape(Vec3(96, 80, 24))
    raw = Store("unused", {"raw": str(volumes / "raw")}).read(Region("raw", box))
    assert (run.store.read(Region("image", box)) == raw).all()
    run.store.delete("image")
    assert not list(run.store.list("image/"))


def test_storage_that_is_down_says_so_and_is_no_hang(cloud, flaky, monkeypatch):
    from pipeline.layers import clouds

    monkeypatch.setattr(clouds, "PATIENCE_S", 0.0)
    cloud.use(flaky(rate=1, kinds=["reset"]))
    with pytest.raises(StorageUnavailableError, match="did not answer"):
        Store(cloud.root).get_json("state/a.json")
