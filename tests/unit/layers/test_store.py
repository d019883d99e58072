import errno
import json
import os
import pickle
import socket
import subprocess
import sys

import botocore.exceptions
import numpy as np
import pytest
import requests
from cloudvolume import CloudVolume

from pipeline.errors import (
    DataError,
    GeometryError,
    MissingInputError,
    RootError,
    SourceError,
    StaleOutputError,
    StorageUnavailableError,
)
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.folder import storage_errors
from pipeline.layers.provenance import provenance
from pipeline.layers.store import Store
from pipeline.specs import (
    MeshesSpec,
    Record,
    RecordsSpec,
    Region,
    Sharding,
    SkeletonsSpec,
    VolumeSpec,
)

LABELS = VolumeSpec(
    dtype="uint64",
    bounds=Bbox(Vec3(8, -8, 0), Vec3(40, 20, 12)),
    voxel_size_nm=(4.0, 4.0, 40.0),
    kind_of_values="segmentation",
    encoding="compressed_segmentation",
    storage_chunk=Vec3(16, 16, 8),
    factors=(Vec3(1, 1, 1), Vec3(2, 2, 1)),
)
MESHES = MeshesSpec(form="multiresolution", voxel_size_nm=(4, 4, 40), sharding=Sharding())
SKELETONS = SkeletonsSpec(sharding=None)
PROVENANCE = provenance(
    description="segments",
    sources=["file:///b", "file:///a"],
    method={"task": "relabel", "digest": "abc"},
    by="someone@example.org",
    date="2024-02-03T04:05:06Z",
    owners=["someone@example.org"],
)


@pytest.mark.parametrize(
    "spec",
    [
        LABELS,
        LABELS.model_copy(update={"shard": Vec3(32, 16, 8)}),
        RecordsSpec(),
        MESHES,
        MeshesSpec(form="legacy", voxel_size_nm=(4, 4.5, 40), sharding=None),
        SkeletonsSpec(sharding=Sharding(shard_bits=3, minishard_bits=2)),
        SKELETONS,
    ],
)
def test_a_layer_describes_itself(spec, store):
    store.create("layer", spec)
    store.create("layer", spec)
    assert Store(store.root).describe("layer") == spec
    assert pickle.loads(pickle.dumps(store)).describe("layer") == spec


def test_another_configuration_is_never_overwritten(store):
    store.create("labels", LABELS)
    other = LABELS.model_copy(update={"encoding": "raw", "storage_chunk": Vec3(8, 8, 8)})
    with pytest.raises(StaleOutputError) as error:
        store.create("labels", other)
    message = str(error.value)
    assert "encoding of mip 0 compressed_segmentation instead of raw" in message
    assert "chunk_sizes of mip 1 [[16, 16, 8]] instead of [[8, 8, 8]]" in message
    with pytest.raises(StaleOutputError, match="data_type"):
        store.create("labels", RecordsSpec())
    assert store.describe("labels") == LABELS


def test_meshes_and_skeletons_are_made_known_to_their_volume(store):
    store.create("labels", LABELS)
    store.create("labels/surfaces", MESHES)
    store.create("labels/centrelines", SKELETONS)
    store.create("labels", LABELS)
    info = store.get_json("labels/info")
    assert (info["mesh"], info["skeletons"]) == ("surfaces", "centrelines")
    store.delete("labels/surfaces")
    info = store.get_json("labels/info")
    assert "mesh" not in info
    assert info["skeletons"] == "centrelines"
    assert not list(store.list("labels/surfaces"))


def test_provenance_is_kept_where_the_field_looks_for_it(store, tmp_path):
    store.create("labels", LABELS, PROVENANCE)
    store.create("labels", LABELS, {**PROVENANCE, "description": "later"})
    found = CloudVolume(store.location("labels"), progress=False).provenance
    assert found.description == "segments"
    assert found.sources == ["file:///a", "file:///b"]
    assert found.processing[0]["method"] == {"task": "relabel", "digest": "abc"}
    first = (tmp_path / "root/labels/provenance").read_bytes()
    again = Store(str(tmp_path / "again"))
    again.create("labels", LABELS, dict(reversed(PROVENANCE.items())))
    assert (tmp_path / "again/labels/provenance").read_bytes() == first


def test_layers_elsewhere_are_read_and_never_written(store, tmp_path):
    store.create("labels", LABELS)
    region = Region("labels", LABELS.bounds)
    value = np.full(LABELS.bounds.shape.astuple(), 2**60 + 1, np.uint64)
    store.write(region, LABELS, value)
    store.write(Record("sizes", "0_0_0_0"), RecordsSpec(), {"n": np.arange(3)})

    other = Store(
        str(tmp_path / "other"),
        {
            "seg": str(tmp_path / "root/labels"),
            "seg2": f"precomputed://{store.location('labels')}/",
            "sizes": str(tmp_path / "root/sizes"),
        },
    )
    for layer in ("seg", "seg2"):
        assert other.describe(layer) == LABELS
        np.testing.assert_array_equal(other.read(Region(layer, LABELS.bounds)), value)
    assert other.read(Record("sizes", "0_0_0_0"))["n"].tolist() == [0, 1, 2]
    for attempt in (
        lambda: other.create("seg", LABELS),
        lambda: other.write(Region("seg", LABELS.bounds), LABELS, value),
        lambda: other.delete("seg"),
    ):
        with pytest.raises(RootError, match="outside the root"):
            attempt()
    assert store.read(region).all()


def test_a_source_file_is_a_layer(tmp_path):
    array = np.arange(6 * 7 * 8, dtype=np.uint16).reshape(6, 7, 8)
    np.save(tmp_path / "image.npy", array)
    store = Store(str(tmp_path / "root"), {"raw": str(tmp_path / "image.npy")})
    spec = store.describe("raw")
    assert isinstance(spec, VolumeSpec)
    assert spec.dtype == "uint16"
    box = Bbox.of_shape((2, 3, 4), spec.bounds.start + 1)
    found = store.read(Region("raw", box))
    assert found.shape == (2, 3, 4)
    assert not found.flags.writeable
    whole = store.read(Region("raw", spec.bounds))
    np.testing.assert_array_equal(found, whole[1:3, 1:4, 1:5])
    with pytest.raises(GeometryError, match="raw: box"):
        store.read(Region("raw", spec.bounds.shifted(Vec3(1, 0, 0))))


def test_nothing_there_says_where_and_what_to_do(store):
    for attempt in (
        lambda: store.describe("labels"),
        lambda: store.read(Region("labels", LABELS.bounds)),
    ):
        with pytest.raises(MissingInputError) as error:
            attempt()
        assert store.location("labels") in str(error.value)
        assert "run the stage" in str(error.value)
    store.put_json("odd/info", {"@type": "neuroglancer_annotations_v1"})
    with pytest.raises(SourceError, match="describes neither"):
        store.describe("odd")


def test_a_layer_made_anew_is_read_anew(store):
    store.create("labels", LABELS)
    assert store.read(Region("labels", LABELS.bounds)).dtype == np.uint64
    store.delete("labels")
    small = LABELS.model_copy(update={"dtype": "uint32"})
    store.create("labels", small)
    assert store.read(Region("labels", LABELS.bounds)).dtype == np.uint32


def test_documents(store, tmp_path):
    assert store.get_json("state/run.json") is None
    assert store.get_text("state/notes.txt") is None
    store.put_json("state/run.json", {"b": [1, 2.5], "a": None})
    store.put_text("state/notes.txt", "µm")
    assert store.get_json("state/run.json") == {"a": None, "b": [1, 2.5]}
    assert store.get_text("state/notes.txt") == "µm"
    (tmp_path / "root/state/torn.json").write_text('{"a": ')
    assert store.get_json("state/torn.json") is None
    assert list(store.list("state/")) == [
        "state/notes.txt",
        "state/run.json",
        "state/torn.json",
    ]
    assert list(store.list("state/r")) == ["state/run.json"]
    assert list(store.list("")) == list(store.list("state"))
    store.delete_document("state/run.json")
    store.delete_document("state/run.json")
    assert store.get_json("state/run.json") is None
    assert list(store.list("nowhere/")) == []


WRITER = """
import sys
from pipeline.layers.store import Store
store = Store(sys.argv[1])
for n in range(10**9):
    store.put_json("done/0_0_0_0.json", {"n": n, "text": "x" * 200_000})
"""


def test_a_writer_killed_at_any_time_leaves_a_whole_document(store, tmp_path):
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "root")])
        while store.get_json("done/0_0_0_0.json") is None:
            assert process.poll() is None
        for _ in range(50):
            document = store.get_json("done/0_0_0_0.json")
            assert document is not None
            assert len(document["text"]) == 200_000
        process.kill()
        process.wait()
        assert store.get_json("done/0_0_0_0.json") is not None
        assert list(store.list("")) == ["done/0_0_0_0.json"]
        store.delete_document("done/0_0_0_0.json")


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "root").write_text("something else")
    store = Store(str(tmp_path / "root"))
    with pytest.raises(RootError, match=r"root.*file stands where a folder is needed"):
        store.put_json("state.json", {})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_as_such():
    with (
        pytest.raises(RootError, match=r"/some/file: no space left on device; free space"),
        storage_errors("/some/file"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_what_a_person_has_to_mend(code):
    with pytest.raises(RootError, match="choose another root"), storage_errors("/r"):
        raise OSError(code, os.strerror(code))


def test_an_unwritable_root(tmp_path):
    if os.geteuid() == 0:
        root = "/proc/nowhere"
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        root = str(tmp_path / "locked/root")
    with pytest.raises(RootError, match=root):
        Store(root).put_json("state.json", {})


def test_storage_that_does_not_answer_may_answer_later():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with (
            pytest.raises(StorageUnavailableError, match="try again later"),
            storage_errors("http://127.0.0.1"),
        ):
            requests.get(f"http://127.0.0.1:{port}", timeout=1)
    for error in (
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"),
        botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"),
        TimeoutError(),
    ):
        with pytest.raises(StorageUnavailableError), storage_errors("s3://x"):
            raise error
    with pytest.raises(RootError, match="credentials"), storage_errors("s3://x"):
        raise botocore.exceptions.NoCredentialsError
    for status, kind in [
        (503, StorageUnavailableError),
        (429, StorageUnavailableError),
        (401, RootError),
    ]:
        response = requests.Response()
        response.status_code = status
        with pytest.raises(kind), storage_errors("https://x"):
            response.raise_for_status()


def test_errors_of_the_code_are_not_disguised():
    with pytest.raises(KeyError), storage_errors("/r"):
        raise KeyError("a")
    with pytest.raises(DataError), storage_errors("/r"):
        raise DataError("b")


def test_importing_the_store_is_light():
    loaded = "import sys, pipeline.layers.store; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", loaded], text=True).split()
    assert not {"cloudvolume", "cloudfiles", "torch", "igneous", "boto3"} & set(modules)


def test_read_only_web_address():
    with pytest.raises(RootError, match="can only be read"):
        Store("https://example.org/run").put_json("a.json", {})
    with pytest.raises(RootError, match="ftp://x is not a place"):
        Store("ftp://x")


def test_json_is_written_plainly(store, tmp_path):
    store.put_json("a.json", {"b": 1, "a": 2})
    text = (tmp_path / "root/a.json").read_text()
    assert text == json.dumps({"a": 2, "b": 1}, indent=2) + "\n"
