"""A small reconstruction of the phantom, the command, and a way to stop a task midway."""

import errno
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pipeline.geometry import Bbox, Vec3
from pipeline.layers import clouds
from pipeline.layers.store import Store
from pipeline.phantom import Phantom
from pipeline.recipe import Recipe
from pipeline.runtime import executors
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.run import Run
from pipeline.specs import Region, VolumeSpec
from pipeline.stages import STAGES

SHAPE = Vec3(96, 80, 24)
CHUNK = Vec3(48, 40, 12)
VOXEL_NM = (12.0, 12.0, 30.0)
TIMEOUT_S = 90
SET_ASIDE = {"done", "failed", "attempts", "runs", ".partial"}

COPY = """
name = "copy"

[grid]
bounds = { start = [0, 0, 0], stop = [96, 80, 24] }
chunk = [48, 40, 12]

[layers]
raw = "VOLUMES/raw"
affinities = "VOLUMES/affinities"

[[stage]]
use = "ingest"
source = "raw"
output = "image"
voxel_size_nm = [12, 12, 30]
storage_chunk = [24, 20, 12]
"""

# The image comes late, so that a run that waits for it has come half its way.
SMALL = (
    COPY.replace('"copy"', '"small"').partition("[[stage]]")[0]
    + """
[[stage]]
use = "basins"
affinities = "affinities"
output = "basins"
size_threshold = 20
dust = 20
encoding = "compressed_segmentation"
storage_chunk = [24, 20, 12]

[[stage]]
use = "basin_graph"
basins = "basins"
affinities = "affinities"
output = "basin_graph"
size_threshold = 20
dust = 20

[[stage]]
use = "supervoxel_table"
decisions = "basin_graph"
output = "supervoxel_table"

[[stage]]
use = "relabel"
labels = "basins"
table = "supervoxel_table"
output = "supervoxels"
encoding = "compressed_segmentation"
storage_chunk = [24, 20, 12]

[[stage]]
use = "region_graph"
supervoxels = "supervoxels"
affinities = "affinities"
output = "region_graph"

[[stage]]
use = "agglomeration"
graph = "region_graph"
output = "agglomeration"
threshold = 0.4

[[stage]]
use = "segment_table"
decisions = "agglomeration"
output = "segment_table"

[[stage]]
use = "relabel"
labels = "supervoxels"
table = "segment_table"
output = "segmentation"
encoding = "compressed_segmentation"
storage_chunk = [24, 20, 12]

[[stage]]
use = "ingest"
source = "raw"
output = "image"
voxel_size_nm = [12, 12, 30]
storage_chunk = [24, 20, 12]

[[stage]]
use = "downsample"
layer = "segmentation"
output = "segmentation/pyramid"
mips = 1
storage_chunk = [24, 20, 12]

[[stage]]
use = "mesh_fragments"
segmentation = "segmentation"
output = "mesh_fragments"
mip = 1
bounds = { start = [0, 0, 0], stop = [48, 40, 24] }
chunk = [24, 20, 24]
voxel_size_nm = [24, 24, 30]
sharding = { shard_bits = 1, minishard_bits = 1 }

[[stage]]
use = "meshes"
fragments = "mesh_fragments"
output = "segmentation/meshes"
bounds = { start = [0, 0, 0], stop = [48, 40, 24] }
chunk = [24, 20, 24]
voxel_size_nm = [24, 24, 30]
sharding = { shard_bits = 1, minishard_bits = 1 }
dust_um3 = 0.002
levels_of_detail = 2

[[stage]]
use = "skeleton_fragments"
segmentation = "segmentation"
output = "skeleton_fragments"
mip = 1
bounds = { start = [0, 0, 0], stop = [48, 40, 24] }
chunk = [24, 40, 24]
voxel_size_nm = [24, 24, 30]
sharding = { shard_bits = 1, minishard_bits = 1 }
const_nm = 100

[[stage]]
use = "skeletons"
fragments = "skeleton_fragments"
output = "segmentation/skeletons"
bounds = { start = [0, 0, 0], stop = [48, 40, 24] }
chunk = [24, 40, 24]
sharding = { shard_bits = 1, minishard_bits = 1 }
dust_nm = 200
tick_nm = 100
"""
)


@pytest.fixture(scope="session")
def volumes(tmp_path_factory):
    """Folder of the layers `raw` and `affinities`, whose storage chunks are chunks."""
    folder = tmp_path_factory.mktemp("volumes")
    phantom = Phantom(seed=3, voxel_size_nm=VOXEL_NM, spacing_nm=200, membrane_nm=20)
    start, stop = (0, 0, 0), SHAPE.astuple()
    store = Store(str(folder))
    for layer, values, channels, encoding in (
        ("raw", phantom.image(start, stop), 1, "png"),
        ("affinities", phantom.affinities(start, stop, blur=0.7, noise=0.05), 3, "raw"),
    ):
        spec = VolumeSpec(
            dtype="uint8",
            channels=channels,
            bounds=Bbox.of_shape(SHAPE),
            voxel_size_nm=VOXEL_NM,
            kind_of_values="image",
            encoding=encoding,
            storage_chunk=CHUNK,
        )
        store.create(layer, spec)
        store.write(Region(layer, spec.bounds), spec, values)
    return folder


@pytest.fixture
def gated(volumes, tmp_path):
    """The same layers, and the gate before chunk 0_1_0_1 of `raw`."""
    folder = tmp_path / "volumes"
    shutil.copytree(volumes, folder)
    gate = Gate(folder / "raw" / "12_12_30" / "48-96_0-40_12-24")
    yield folder, gate
    gate.close()


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe over a folder of layers; with replacements in its text."""

    def write(text, folder, *replacements):
        text = text.replace("VOLUMES", str(folder))
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def small(recipe, volumes):
    """Recipe from affinities to meshes and skeletons."""
    return recipe(SMALL, volumes)


@pytest.fixture(scope="session")
def undisturbed(volumes, tmp_path_factory):
    """Root of a serial run of the small recipe that nothing happened to."""
    root = tmp_path_factory.mktemp("undisturbed")
    path = root.with_suffix(".toml")
    path.write_text(SMALL.replace("VOLUMES", str(volumes)))
    run_to_end(Run.start(Recipe.load(path), str(root)), executors.serial, quiet=True)
    return root


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def queue(tmp_path):
    return f"fq://{tmp_path / 'queue'}"


@pytest.fixture
def em(tmp_path):
    """Start the installed command; what still runs at the end of the test is killed."""
    started = []

    def start(*arguments, **environment):
        process = Command(arguments, tmp_path / f"em{len(started)}", environment)
        started.append(process)
        return process

    yield start
    for process in started:
        process.end()


class Command:
    """`em` as a process, whose output goes to files."""

    def __init__(self, arguments, output, environment):
        self._output = output
        executable = Path(sys.executable).parent / "em"
        with open(f"{output}.out", "w") as out, open(f"{output}.err", "w") as err:
            self.process = subprocess.Popen(
                [executable, *map(str, arguments)],
                stdout=out,
                stderr=err,
                env={**os.environ, **environment},
            )
        self.pid = self.process.pid

    def wait(self):
        """Return the exit status."""
        return self.process.wait(TIMEOUT_S)

    def succeed(self):
        """Wait and insist on status 0; return the standard output."""
        status = self.wait()
        assert status == 0, self.errors
        return self.output

    @property
    def output(self):
        return Path(f"{self._output}.out").read_text()

    @property
    def errors(self):
        return Path(f"{self._output}.err").read_text()

    def events(self):
        """Return the JSON lines that a worker logs."""
        return [json.loads(t) for t in self.errors.splitlines() if t.startswith("{")]

    def children(self):
        return psutil.Process(self.pid).children(recursive=True)

    def end(self):
        if self.process.poll() is None:
            for child in [*self.children(), self.process]:
                child.kill()
            self.process.wait()


@dataclass
class Result:
    """What an invocation of the command within this process came to."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def em_here(monkeypatch, capsys):
    """Run the command within this process, one task after another."""
    from pipeline.cli import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["em", *map(str, arguments)])
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Result(ended.value.code or 0, captured.out, captured.err)

    return run


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _serving(port, process):
    """Wait until a server takes connections."""
    until = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until:
        assert process.poll() is None, f"{process.args} ended"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return f"http://127.0.0.1:{port}"
        time.sleep(0.05)
    raise TimeoutError(f"{process.args} does not answer")


@pytest.fixture(scope="session")
def moto():
    """Endpoint of an S3 and SQS server in a process of its own."""
    port = _free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield _serving(port, process)
    process.kill()
    process.wait()


@pytest.fixture
def flaky(moto):
    """Start a proxy before the server that fails a share of the requests."""
    started = []

    def start(**options):
        port = _free_port()
        arguments = [
            f"--{name.replace('_', '-')}={value}"
            for name, value in options.items()
            if name != "kinds"
        ]
        if "kinds" in options:
            arguments += ["--kinds", *options["kinds"]]
        script = Path(__file__).with_name("flaky.py")
        process = subprocess.Popen(
            [sys.executable, script, "--upstream", moto, f"--port={port}", *arguments]
        )
        started.append(process)
        return _serving(port, process)

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def counts():
    """Return what a proxy has done so far."""

    def read(endpoint, command="counts"):
        with urllib.request.urlopen(f"{endpoint}/--{command}") as answer:
            return json.load(answer)

    return read


class Cloud:
    """A bucket and a queue of their own on the server."""

    def __init__(self, endpoint, patch, name):
        import boto3

        self._patch = patch
        self.name = name
        self.root = f"s3://{name}/root"
        self.queue = f"sqs://{name}"
        self.use(endpoint)
        self.s3 = boto3.client("s3", endpoint_url=endpoint)
        self.sqs = boto3.client("sqs", endpoint_url=endpoint)
        self.s3.create_bucket(Bucket=name)
        self.queue_url = self.sqs.create_queue(QueueName=name)["QueueUrl"]

    def use(self, endpoint, **environment):
        """Reach the clouds at an endpoint, here and in processes started from now on."""
        from cloudfiles.interfaces import reset_connection_pools

        for variable, value in {"AWS_ENDPOINT_URL": endpoint, **environment}.items():
            self._patch.setenv(variable, value)
        reset_connection_pools()
        clouds._reached.clear()

    def objects(self, prefix="root/"):
        """Return the objects of a run by path, less its records and provenance."""
        found = {}
        pages = self.s3.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.name, Prefix=prefix):
            for entry in page.get("Contents", []):
                path = entry["Key"].removeprefix(prefix)
                if SET_ASIDE & {*path.split("/")} or path.endswith("provenance"):
                    continue
                answer = self.s3.get_object(Bucket=self.name, Key=entry["Key"])
                content = answer["Body"].read()
                if answer.get("ContentEncoding") == "gzip":
                    content = gzip.decompress(content)
                found[path] = content
        return found


@pytest.fixture
def cloud(moto, monkeypatch, tmp_path):
    """A bucket and a queue, and the environment in which they are found."""
    from cloudfiles.interfaces import reset_connection_pools

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-access-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-very-secret-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "")
    monkeypatch.setenv("EM_REQUEST_TIMEOUT_S", "3")
    monkeypatch.setattr(clouds, "_reached", [])
    yield Cloud(moto, monkeypatch, f"em-{uuid.uuid4().hex[:12]}")
    monkeypatch.undo()
    reset_connection_pools()


class Gate:
    """Stands before an object of a source: who reads it waits until the gate opens."""

    def __init__(self, path):
        self._path = path
        self._content = path.read_bytes()
        self._pipe = None
        path.unlink()
        os.mkfifo(path)

    def visitor(self):
        """Wait until a process reads the object, and return its id."""
        until = time.monotonic() + TIMEOUT_S
        while time.monotonic() < until:
            if self._pipe is None:
                try:
                    self._pipe = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
                except OSError as error:
                    if error.errno != errno.ENXIO:
                        raise
            else:
                for pid in psutil.pids():
                    if pid != os.getpid() and self._path in _opened(pid):
                        return pid
            time.sleep(0.02)
        raise TimeoutError(f"nobody read {self._path} in {TIMEOUT_S} s")

    def kill_visitor(self):
        """Wait until a process reads the object, and kill it; return its id."""
        pid = self.visitor()
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + TIMEOUT_S
        while self._path in _opened(pid) and time.monotonic() < until:
            time.sleep(0.01)
        self.close()
        return pid

    def open(self):
        """Let the one who waits go on, and all who come later."""
        beside = self._path.with_name("beside")
        beside.write_bytes(self._content)
        os.replace(beside, self._path)
        if self._pipe is not None:
            os.set_blocking(self._pipe, True)
            assert os.write(self._pipe, self._content) == len(self._content)
            self.close()

    def close(self):
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


def _opened(pid):
    try:
        return {Path(os.readlink(p)) for p in Path(f"/proc/{pid}/fd").iterdir()}
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return set()


@pytest.fixture(scope="session")
def objects():
    """Return the objects of a run by path, less its records and provenance."""

    def read(root):
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file()
            and path.name != "provenance"
            and not SET_ASIDE & {*path.relative_to(root).parts}
        }

    return read


@pytest.fixture(scope="session")
def provenances():
    """Return the provenance of every layer, less its date and the place of the root."""

    def read(root):
        found = {}
        for path in root.rglob("provenance"):
            document = json.loads(path.read_text().replace(str(root), "ROOT"))
            for entry in document["processing"]:
                del entry["date"]
            found[str(path.relative_to(root))] = document
        return found

    return read


@pytest.fixture(scope="session")
def done():
    """Return the times at which done records were written [ns], by LAYER/KEY."""

    def read(root):
        return {
            f"{path.parent.parent.relative_to(root)}/{path.stem}": path.stat().st_mtime_ns
            for path in root.rglob("done/*.json")
        }

    return read


@pytest.fixture(scope="session")
def everything():
    """Return every file below a folder with its content and time."""

    def read(root):
        return {
            path.relative_to(root): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in root.rglob("*")
            if path.is_file()
        }

    return read


@pytest.fixture
def finished(undisturbed, volumes, recipe, tmp_path):
    """A root of its own, with the small recipe run to its end; and the recipe."""
    root = tmp_path / "finished"
    shutil.copytree(undisturbed, root)
    return root, recipe(SMALL, volumes)


@pytest.fixture
def stages(monkeypatch):
    """The table of stages, to add to for the length of a test."""
    table = dict(STAGES)

    def add(stage):
        monkeypatch.setitem(STAGES, stage.name, stage)

    yield add
    assert table.keys() <= STAGES.keys()


@pytest.fixture
def copy_text():
    return COPY


@pytest.fixture
def small_text():
    return SMALL
