"""The state that Neuroglancer gets, and the server of local layers."""

import gzip
import http.client
import json
import socket
from contextlib import ExitStack
from dataclasses import replace
from urllib.parse import unquote, urlsplit

import neuroglancer
import numpy as np
import pytest

from pipeline.errors import GeometryError, MissingInputError, PermanentError
from pipeline.geometry import Bbox, Vec3
from pipeline.specs import VolumeSpec
from pipeline.view import (
    ListedSynapse,
    Viewer,
    ViewLayer,
    ViewList,
    ViewSynapses,
    hosted_url,
    launch,
    screenshot,
    serve,
    state,
)


def layer(name="image", location="gs://bucket/run/image", **changes):
    view = {k: changes.pop(k) for k in set(changes) & VIEW_FIELDS}
    described = {
        "dtype": "uint8",
        "bounds": Bbox(Vec3(100, 200, 10), Vec3(1124, 1224, 110)),
        "voxel_size_nm": (6.0, 6.0, 30.0),
        "kind_of_values": "image",
    }
    return ViewLayer(name, location, VolumeSpec(**described | changes), **view)


VIEW_FIELDS = {"meshes", "skeletons", "selected", "value_range"}
SEGMENTATION = {"dtype": "uint64", "kind_of_values": "segmentation"}


def json_of(described):
    return described.to_json()


class TestState:
    def test_dimensions_are_explicit_and_physical(self):
        dimensions = json_of(state([layer()]))["dimensions"]
        assert {a: (round(v[0] * 1e9, 6), v[1]) for a, v in dimensions.items()} == {
            "x": (6, "m"),
            "y": (6, "m"),
            "z": (30, "m"),
        }

    def test_position_is_the_centre_of_the_bounds(self):
        assert json_of(state([layer()]))["position"] == [612, 712, 60]

    def test_given_position_is_the_middle_of_a_voxel_of_the_first_layer(self):
        coarse = layer(voxel_size_nm=(12.0, 12.0, 30.0))
        described = json_of(state([coarse, layer("fine")], (10, 20, 30)))
        assert described["position"] == [21, 41, 30.5]

    def test_layers_of_other_voxels_share_bounds_in_nm(self):
        low = layer(bounds=Bbox.parse("0,0,0,100,100,10"))
        high = layer("high", bounds=Bbox.parse("50,50,5,150,150,15"))
        half = layer(
            "half", voxel_size_nm=(12.0, 12.0, 30.0), bounds=Bbox.parse("0,0,0,90,50,10")
        )
        assert json_of(state([low, high]))["position"] == [75, 75, 7.5]
        assert json_of(state([low, half]))["position"] == [90, 50, 5]

    @pytest.mark.parametrize("shape", [(4000, 100, 10), (100, 4000, 10), (100, 100, 900)])
    def test_sections_fit_their_panels(self, shape):
        size = (1280, 800)
        described = state([layer(bounds=Bbox.of_shape(shape))], size=size)
        nm_per_pixel = described.cross_section_scale * 6
        x, y, z = np.array(shape) * (6, 6, 30) / nm_per_pixel
        assert max(x, z) <= size[0] / 2
        assert max(y, z) <= size[1] / 2
        assert max(x, z) > 0.4 * size[0] or max(y, z) > 0.35 * size[1], "not lost in it"

    def test_projection_fits_the_diagonal(self):
        described = state([layer(bounds=Bbox.of_shape((500, 500, 100)))])
        diagonal = np.linalg.norm(np.array((500, 500, 100)) * (6, 6, 30)) / 6
        assert diagonal <= described.projection_scale <= 1.2 * diagonal

    def test_projection_orientation_is_a_rotation(self):
        assert np.linalg.norm(state([layer()]).projection_orientation) == pytest.approx(1)

    def test_four_panels_and_a_title(self):
        described = json_of(state([layer()], title="run 7"))
        assert described["layout"] == "4panel"
        assert described["title"] == "run 7"

    def test_image_has_contrast_and_brightness(self):
        shown = json_of(state([layer(value_range=(20, 180))]))["layers"][0]
        assert shown["type"] == "image"
        assert shown["source"][0]["url"] == "precomputed://gs://bucket/run/image"
        for control in ("invlerp normalized", "float brightness", "float contrast"):
            assert f"#uicontrol {control}" in shown["shader"]
        assert "emitGrayscale" in shown["shader"]
        assert shown["shaderControls"]["normalized"]["range"] == [20, 180]

    def test_affinities_are_red_green_blue_and_do_not_cover_the_image(self):
        shown = json_of(state([layer(), layer("affinities", channels=3)]))["layers"]
        assert shown[0].get("visible", True)
        assert shown[1]["visible"] is False
        assert "emitRGB" in shown[1]["shader"]
        for channel in range(3):
            assert f"getDataValue({channel})" in shown[1]["shader"]
        assert state([layer(channels=3)]).layers[0].visible, "nothing to cover"

    def test_two_channels_leave_blue_out(self):
        shader = state([layer(channels=2)]).layers[0].shader
        assert "getDataValue(1)" in shader
        assert "getDataValue(2)" not in shader

    @pytest.mark.parametrize("meshes", [False, True])
    @pytest.mark.parametrize("skeletons", [False, True])
    def test_segmentation(self, meshes, skeletons):
        big = 2**63 + 5
        segmentation = layer(
            "segmentation",
            **SEGMENTATION,
            selected=[big, 7],
            meshes=meshes,
            skeletons=skeletons,
        )
        described = json_of(state([layer(), segmentation]))
        shown = described["layers"][1]
        assert shown["type"] == "segmentation"
        assert sorted(map(int, shown["segments"])) == [7, big]
        assert {k: v["enabled"] for k, v in shown["source"][0]["subsources"].items()} == {
            "mesh": meshes,
            "skeletons": skeletons,
        }
        opaque = shown.get("objectAlpha", 1) == 1
        assert opaque is not (meshes and skeletons), "skeletons lie inside"
        assert described["selectedLayer"]["layer"] == "segmentation"

    def test_no_layer(self):
        with pytest.raises(GeometryError, match="no layer"):
            state([])

    def test_position_of_two_axes(self):
        with pytest.raises(GeometryError, match=r"\(1, 2\)"):
            state([layer()], (1, 2))


class TestHostedUrl:
    def test_holds_the_whole_state(self):
        layers = [layer(), layer("labels", "s3://b/labels", **SEGMENTATION, selected=[3])]
        url = hosted_url(layers, (500, 600, 50), title="public")
        assert url.startswith("https://neuroglancer-demo.appspot.com/#!%7B")
        described = json.loads(unquote(urlsplit(url).fragment).removeprefix("!"))
        assert described == json_of(state(layers, (500, 600, 50), title="public"))

    def test_other_client(self):
        url = hosted_url([layer()], client="https://example.org/ng/")
        assert url.startswith("https://example.org/ng/#!%7B")

    def test_names_every_layer_that_is_not_public(self):
        layers = [
            layer("image", "file:///data/run/image"),
            layer("affinities", "https://example.org/affinities"),
            layer("segmentation", "http://127.0.0.1:90/s"),
        ]
        with pytest.raises(PermanentError) as raised:
            hosted_url(layers)
        assert "image (file:///data/run/image)" in str(raised.value)
        assert "segmentation (http://127.0.0.1:90/s)" in str(raised.value)
        assert "affinities" not in str(raised.value)


@pytest.fixture
def folder(tmp_path):
    served = tmp_path / "served"
    (served / "seg" / "mesh").mkdir(parents=True)
    (served / "seg" / "info").write_bytes(b'{"type": "segmentation"}')
    (served / "seg" / "0-64.gz").write_bytes(gzip.compress(b"chunk" * 100))
    (served / "seg" / "0.shard").write_bytes(bytes(range(256)))
    (served / "seg" / "mesh" / "7:0").write_bytes(b"manifest")
    (served / "seg" / "empty").write_bytes(b"")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "served.gz").write_bytes(gzip.compress(b"secret"))
    (served / "out").symlink_to(tmp_path / "secret")
    return served


@pytest.fixture
def ask(folder):
    """Ask the server as is: no client tidies the path or decodes the body."""
    with serve(folder) as server:

        def ask(path, method="GET", **headers):
            connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=5)
            names = {k.replace("_", "-"): v for k, v in headers.items()}
            connection.request(method, path, headers=names)
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            return answer.status, dict(answer.getheaders()), body

        yield ask


class TestServe:
    def test_file_with_cors(self, ask):
        status, headers, body = ask("/seg/info")
        assert (status, body) == (200, b'{"type": "segmentation"}')
        assert headers["Access-Control-Allow-Origin"] == "*"
        assert "Content-Encoding" not in headers

    @pytest.mark.parametrize("path", ["/seg/mesh/7:0", "/seg/mesh/7%3A0", "/seg/info?v=1"])
    def test_names_as_browsers_write_them(self, ask, path):
        assert ask(path)[0] == 200

    def test_gzip_is_sent_as_stored(self, ask):
        status, headers, body = ask("/seg/0-64", Accept_Encoding="gzip, deflate")
        assert status == 200
        assert headers["Content-Encoding"] == "gzip"
        assert int(headers["Content-Length"]) == len(body)
        assert gzip.decompress(body) == b"chunk" * 100

    def test_gzip_is_undone_for_who_cannot(self, ask):
        status, headers, body = ask("/seg/0-64", Accept_Encoding="identity")
        assert (status, body) == (200, b"chunk" * 100)
        assert "Content-Encoding" not in headers

    def test_range_of_gzip_counts_what_was_stored(self, ask):
        status, headers, body = ask("/seg/0-64", Accept_Encoding="gzip", Range="bytes=5-9")
        assert (status, body) == (206, b"chunk")
        assert headers["Content-Range"] == "bytes 5-9/500"
        assert "Content-Encoding" not in headers

    def test_gzip_by_its_own_name_is_a_file(self, ask):
        _, headers, body = ask("/seg/0-64.gz", Accept_Encoding="gzip")
        assert "Content-Encoding" not in headers
        assert gzip.decompress(body) == b"chunk" * 100

    @pytest.mark.parametrize(
        ("asked", "start", "stop"),
        [
            ("bytes=0-0", 0, 1),
            ("bytes=16-31", 16, 32),
            ("bytes=250-", 250, 256),
            ("bytes=250-999", 250, 256),
            ("bytes=-6", 250, 256),
            ("bytes=-999", 0, 256),
        ],
    )
    def test_range(self, ask, asked, start, stop):
        status, headers, body = ask("/seg/0.shard", Range=asked)
        assert (status, body) == (206, bytes(range(start, stop)))
        assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/256"
        assert int(headers["Content-Length"]) == stop - start

    @pytest.mark.parametrize("asked", ["bytes=256-", "bytes=300-400", "bytes=-0"])
    def test_range_outside(self, ask, asked):
        status, headers, body = ask("/seg/0.shard", Range=asked)
        assert (status, body) == (416, b"")
        assert headers["Content-Range"] == "bytes */256"

    @pytest.mark.parametrize("asked", ["bytes=0-1,4-5", "lines=1-2", "bytes=-"])
    def test_range_that_is_not_one_is_ignored(self, ask, asked):
        status, _, body = ask("/seg/0.shard", Range=asked)
        assert (status, len(body)) == (200, 256)

    def test_head_has_no_body(self, ask):
        status, headers, body = ask("/seg/0.shard", "HEAD")
        assert (status, body, headers["Content-Length"]) == (200, b"", "256")

    def test_empty_file(self, ask):
        assert ask("/seg/empty")[::2] == (200, b"")

    def test_preflight_allows_ranges(self, ask):
        status, headers, _ = ask("/seg/0.shard", "OPTIONS", Origin="https://example.org")
        assert status == 204
        assert "Range" in headers["Access-Control-Allow-Headers"]
        assert "GET" in headers["Access-Control-Allow-Methods"]

    @pytest.mark.parametrize(
        "path",
        [
            "/seg/absent",
            "/seg",
            "/",
            "",
            "/../secret",
            "/seg/../../secret",
            "/%2e%2e/secret",
            "/..%2fsecret",
            "//etc/passwd",
            "/%2Fetc/passwd",
            "/out",
            "/seg/%00info",
            "/%ff",
        ],
    )
    def test_absent_or_outside(self, ask, path):
        status, headers, body = ask(path)
        assert (status, body) == (404, b"")
        assert headers["Access-Control-Allow-Origin"] == "*", "a page sees 404, not a fault"

    def test_only_on_this_machine(self, folder):
        with serve(folder) as server:
            assert urlsplit(server.url).hostname == "127.0.0.1"

    def test_given_port_and_closing(self, folder):
        with serve(folder) as server:
            port = urlsplit(server.url).port
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)
        with serve(folder, port) as again:
            assert again.url == f"http://127.0.0.1:{port}"
            with pytest.raises(PermanentError, match=str(port)):
                serve(folder, port)

    def test_no_folder(self, tmp_path):
        with pytest.raises(MissingInputError, match="nowhere"):
            serve(tmp_path / "nowhere")


def first_of_two_free_ports():
    """Look below the ports that the system gives to whoever asks for any."""
    for port in range(20_000, 30_000, 2):
        with ExitStack() as held:
            try:
                for each in (port, port + 1):
                    held.enter_context(socket.create_server(("127.0.0.1", each)))
            except OSError:
                continue
            return port
    raise AssertionError("no two ports are free")


class TestLaunch:
    @pytest.fixture(autouse=True)
    def _stop_neuroglancer(self):
        yield
        neuroglancer.stop()

    def test_local_layers_are_served_and_others_left(self, folder):
        shown = [
            layer("seg", f"precomputed://file://{folder}/seg/", **SEGMENTATION),
            layer("image", "s3://bucket/image"),
        ]
        with launch(shown, title="here") as viewer:
            sources = [la.layer.source[0].url for la in viewer.client.state.layers]
            [server] = viewer.servers
            assert sources == [
                f"precomputed://{server.url}/seg",
                "precomputed://s3://bucket/image",
            ]
            netloc = urlsplit(server.url).netloc
            connection = http.client.HTTPConnection(netloc, timeout=5)
            connection.request("GET", "/seg/info")
            assert connection.getresponse().read() == b'{"type": "segmentation"}'
            connection.close()
            assert urlsplit(viewer.url).hostname == "127.0.0.1"
        assert viewer.servers == []

    def test_given_port_and_those_that_follow(self, folder):
        port = first_of_two_free_ports()
        shown = [layer("seg", f"file://{folder}/seg", **SEGMENTATION)]
        with launch(shown, port=port) as viewer:
            assert urlsplit(viewer.url).port == port
            assert viewer.servers[0].url == f"http://127.0.0.1:{port + 1}"
            with pytest.raises(PermanentError, match=str(port + 1)):
                launch(shown, port=port)

    def test_taken_port_of_the_viewer(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(PermanentError, match=str(port)):
                launch([layer()], port=port)

    def test_missing_layer(self, folder):
        with pytest.raises(MissingInputError, match=r"lost: .*absent"):
            launch([layer("lost", f"file://{folder}/absent")])

    def test_picture_needs_a_browser(self, folder, tmp_path):
        with (
            launch([layer(location=f"file://{folder}/seg")]) as viewer,
            pytest.raises(MissingInputError, match=r"no-such-browser.*apt-get install"),
        ):
            screenshot(viewer, tmp_path / "x.png", browser="no-such-browser")
        assert isinstance(viewer, Viewer)
        assert not (tmp_path / "x.png").exists()


class TestSynapses:
    LINES = ViewSynapses("synapses", "gs://bucket/run/lines", "segmentation")

    def test_lines_belong_to_segments_and_lie_on_top(self):
        layers = [layer(), layer("segmentation", **SEGMENTATION)]
        shown = json_of(state(layers, synapses=[self.LINES]))["layers"]
        assert [one["name"] for one in shown] == ["image", "segmentation", "synapses"]
        lines = shown[-1]
        assert lines["type"] == "annotation"
        assert lines["source"][0]["url"] == "precomputed://gs://bucket/run/lines"
        assert lines["linkedSegmentationLayer"] == {
            "pre_segment": "segmentation",
            "post_segment": "segmentation",
        }
        assert not lines.get("filterBySegmentation")
        assert shown[1]["objectAlpha"] < 1

    def test_those_of_selected_segments_alone(self):
        only = replace(self.LINES, only_selected=True)
        lines = json_of(state([layer()], synapses=[only]))["layers"][-1]
        assert lines["filterBySegmentation"] == ["pre_segment", "post_segment"]

    def test_those_of_a_neuron_are_listed_where_they_are(self):
        near = (600.0, 1200.0, 330.0)
        rows = [
            ListedSynapse(9, near, (612.0, 1200.0, 300.0), 7, 8, "from 7, 50 voxels"),
            ListedSynapse(3, near, near, 0, 8, "from nobody, 40 voxels"),
        ]
        listed = ViewList("synapses of 8", "segmentation", rows)
        layers = [layer(), layer("segmentation", **SEGMENTATION)]
        described = json_of(state(layers, synapses=[self.LINES], listed=[listed]))
        shown = described["layers"][-1]
        assert (shown["name"], shown["tab"]) == ("synapses of 8", "annotations")
        first, second = shown["annotations"]
        assert (first["id"], first["description"]) == ("9", "from 7, 50 voxels")
        assert (first["pointA"], first["pointB"]) == ([100, 200, 11], [102, 200, 10])
        assert first["segments"] == [[7], [8]]
        assert second["segments"] == [[], [8]]
        assert shown["linkedSegmentationLayer"]["post_segment"] == "segmentation"
        assert described["selectedLayer"]["layer"] == "synapses of 8"
        assert described["selectedLayer"]["visible"]

    def test_a_hosted_viewer_must_reach_them_too(self):
        local = replace(self.LINES, location="file:///run/lines")
        with pytest.raises(PermanentError, match=r"cannot reach synapses \(file"):
            hosted_url([layer()], synapses=[local])
        assert "lines" in unquote(hosted_url([layer()], synapses=[self.LINES]))

    def test_local_ones_are_served(self, tmp_path):
        for name in ("image", "lines"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "info").write_text("{}")
        lines = replace(self.LINES, location=f"file://{tmp_path}/lines")
        with launch(
            [layer(location=f"file://{tmp_path}/image")], synapses=[lines]
        ) as viewer:
            source = viewer.client.state.layers["synapses"].layer.source[0].url
            assert source.startswith("precomputed://http://127.0.0.1:")
            assert len(viewer.servers) == 1
