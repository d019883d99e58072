"""The same store on an S3 server and, to read, on a web server."""

import numpy as np
import pytest
import tensorstore as ts

from pipeline.errors import MissingInputError
from pipeline.geometry import Bbox, Vec3
from pipeline.layers.folder import open_folder
from pipeline.layers.store import Store
from pipeline.specs import (
    Mesh,
    Meshes,
    MeshesSpec,
    Partitioned,
    Record,
    RecordsSpec,
    Region,
    VolumeSpec,
)

SHAPE = (20, 18, 9)
IMAGE = VolumeSpec(
    dtype="uint8",
    bounds=Bbox.of_shape(SHAPE, Vec3(-4, 3, 10)),
    voxel_size_nm=(4, 4, 30),
    kind_of_values="image",
    storage_chunk=Vec3(8, 8, 8),
)
TETRAHEDRON = Mesh(
    np.array([[0, 0, 0], [400, 0, 0], [0, 400, 0], [0, 0, 600]], np.float32),
    np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.uint32),
)


@pytest.fixture(scope="module")
def bucket():
    """A bucket of a moto server, behind an alias as one gives other servers than AWS."""
    import boto3
    from cloudfiles import paths
    from cloudfiles.interfaces import reset_connection_pools
    from moto.server import ThreadedMotoServer

    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ACCESS_KEY_ID", "key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_SESSION_TOKEN", "")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}/"
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="runs")
    paths.add_alias("testserver", f"s3://{endpoint}")
    yield "testserver://runs"
    paths.remove_alias("testserver")
    reset_connection_pools()
    server.stop()
    patch.undo()


@pytest.mark.parametrize("sharded", [False, True], ids=["files", "sharded"])
def test_a_run_on_s3(sharded, bucket):
    spec = IMAGE.model_copy(update={"shard": Vec3(32, 32, 16) if sharded else None})
    store = Store(f"{bucket}/a/{'sharded' if sharded else 'files'}")
    array = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    with pytest.raises(MissingInputError):
        store.describe("image")
    store.create("image", spec)
    region = Region("image", spec.bounds)
    written = store.write(region, spec, array)
    assert len(written) == (1 if sharded else 3 * 3 * 2)
    assert store.check("image", written) == []
    np.testing.assert_array_equal(Store(store.root).read(region), array)
    assert store.describe("image") == spec

    store.write(region, spec, array * 0)
    assert len(store.check("image", written)) == len(written)
    assert not store.read(region).any()

    key, parts = "1_0_0_0", {"x": {"n": np.arange(9)}, "y": {"n": np.ones(40_000)}}
    written = store.write(Record("graph", key), RecordsSpec(), Partitioned(parts))
    assert store.check("graph", written, contents=False) == []
    assert store.read(Record("graph", key, "x"))["n"].tolist() == list(range(9))
    assert store.read([Record("graph", key)])[0].parts["y"]["n"].sum() == 40_000
    with pytest.raises(MissingInputError):
        store.read(Record("graph", "0_0_0_0"))

    store.put_json("state/run.json", {"a": 1})
    assert store.get_json("state/run.json") == {"a": 1}
    assert store.get_json("state/none.json") is None
    assert list(store.list("state/")) == ["state/run.json"]
    store.delete("graph")
    store.delete_document("state/run.json")
    assert not list(store.list("graph"))
    assert not list(store.list("state"))


@pytest.mark.parametrize("sharded", [False, True], ids=["files", "sharded"])
def test_a_public_run_is_read_over_http(sharded, store, served):
    spec = IMAGE.model_copy(update={"shard": Vec3(32, 32, 16) if sharded else None})
    array = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    store.create("image", spec)
    store.write(Region("image", spec.bounds), spec, array)
    store.write(
        Record("graph", "0_0_0_0"), RecordsSpec(), Partitioned({"x": {"n": np.arange(9)}})
    )
    store.create(
        "image/meshes",
        MeshesSpec(form="multiresolution", voxel_size_nm=(4, 4, 30), sharding=None),
    )
    store.write(
        Record("image/meshes", "0_0_0_0"),
        MeshesSpec(form="multiresolution", voxel_size_nm=(4, 4, 30), sharding=None),
        Meshes({7: [TETRAHEDRON]}),
    )

    for public in (
        Store(served),
        Store("unused", {"image": f"precomputed://{served}/image"}),
    ):
        assert public.describe("image") == spec
        np.testing.assert_array_equal(public.read(Region("image", spec.bounds)), array)
    public = Store(served)
    assert public.read(Record("graph", "0_0_0_0", "x"))["n"].tolist() == list(range(9))
    assert len(public.read_mesh("image/meshes", 7).faces) == 4
    with pytest.raises(MissingInputError):
        public.read(Record("graph", "0_1_0_0"))
    theirs = ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "http", "base_url": f"{served}/image/"},
        },
        read=True,
    ).result()
    np.testing.assert_array_equal(theirs[..., 0].read().result(), array)


@pytest.mark.parametrize("size", [0, 5, 12 * 2**20])
def test_a_file_is_sent_whole(size, bucket, tmp_path):
    content = np.random.default_rng(0).bytes(size)
    (tmp_path / "file").write_bytes(content)
    for location in (f"{bucket}/files", str(tmp_path / "folder")):
        folder = open_folder(location)
        folder.put_file("a/b.parquet", tmp_path / "file")
        assert folder.get("a/b.parquet") == content
    assert (tmp_path / "file").read_bytes() == content
