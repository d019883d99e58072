"""Layers in Neuroglancer: a state, a server for local layers, a link, a picture.

Neuroglancer is a page in a browser that fetches layers over HTTP. Layers in a bucket
are fetched from there; layers in a folder need `serve`, which speaks HTTP for them on
the loopback address. The page itself is the client that the package ``neuroglancer``
brings, so nothing is fetched from elsewhere; `hosted_url` points at a hosted client
instead, which can show only layers that anybody can read.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

import neuroglancer
import numpy as np

from pipeline.errors import (
    GeometryError,
    MissingInputError,
    PermanentError,
    TransientError,
)
from pipeline.specs import VolumeSpec

HOSTED_CLIENT = "https://neuroglancer-demo.appspot.com"
PUBLIC_SCHEMES = ("gs", "s3", "https")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

_LOOPBACK = "127.0.0.1"
_LIST_PIXELS = 400
_CONTROLS = """\
#uicontrol invlerp normalized
#uicontrol float brightness slider(min=-1, max=1, default=0)
#uicontrol float contrast slider(min=-3, max=3, default=0)
"""
_LINES = """\
#uicontrol bool flagged checkbox(default=true)
void main() {
  if (!flagged && prop_flags() != 0u) discard;
  setLineColor(vec3(1.0, 0.85, 0.1), vec3(0.1, 0.8, 1.0));
  setLineWidth(3.0);
  setEndpointMarkerColor(vec3(1.0, 0.85, 0.1), vec3(0.1, 0.8, 1.0));
  setEndpointMarkerSize(6.0);
}
"""
_LISTED = """\
void main() {
  setLineColor(vec4(1.0, 1.0, 1.0, 0.6));
  setEndpointMarkerSize(0.0);
}
"""
_SIDES = ("pre_segment", "post_segment")
_ADJUST = "float adjust(float v) { return (v - 0.5) * exp(contrast) + 0.5 + brightness; }\n"
_RANGE = re.compile(r"bytes=(?=\d|-\d)(\d*)-(\d*)")
_BROWSER_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@dataclass(frozen=True, slots=True)
class ViewLayer:
    """A volume to show, and what hangs on it.

    Parameters
    ----------
    name : str
        Title in the viewer.
    location : str
        Cloud path of the layer: ``file://``, ``gs://``, ``s3://``, ``https://``.
    spec : VolumeSpec
        What the layer holds.
    meshes, skeletons : bool
        Whether to show those of the selected segments.
    selected : list of int
        Segments to show in 3D and strongly in the sections; with none, the sections
        show every segment and the 3D panel none.
    value_range : (low, high) or None
        Values shown as black and white; None takes the whole range of the type.
    """

    name: str
    location: str
    spec: VolumeSpec
    meshes: bool = False
    skeletons: bool = False
    selected: list[int] = field(default_factory=list)
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class ViewSynapses:
    """Synapses to show, as lines from pre to post.

    Parameters
    ----------
    name : str
        Title in the viewer.
    location : str
        Cloud path of the annotation layer.
    segmentation : str
        Name of the layer whose segments the lines belong to.
    only_selected : bool
        Whether only the synapses of selected segments are shown.
    """

    name: str
    location: str
    segmentation: str
    only_selected: bool = False


@dataclass(frozen=True, slots=True)
class ListedSynapse:
    """A synapse in a list beside the panels.

    Parameters
    ----------
    id : int
        The cleft.
    pre_nm, post_nm : (x, y, z)
        Where the line begins and ends [nm].
    pre, post : int
        Segments; 0 for none.
    text : str
        What the list says of it.
    """

    id: int
    pre_nm: tuple[float, float, float]
    post_nm: tuple[float, float, float]
    pre: int
    post: int
    text: str


@dataclass(frozen=True, slots=True)
class ViewList:
    """Synapses to list by name: Neuroglancer lists no annotations that lie in a layer.

    They are part of the state, so these are some neurons', not a volume's.

    Parameters
    ----------
    name : str
        Title in the viewer.
    segmentation : str
        Name of the layer whose segments they belong to.
    rows : sequence of ListedSynapse
        In the order of the list.
    """

    name: str
    segmentation: str
    rows: Sequence[ListedSynapse]


_Shown = TypeVar("_Shown", ViewLayer, ViewSynapses)


def state(
    layers: Sequence[ViewLayer],
    position: Sequence[float] | None = None,
    *,
    synapses: Sequence[ViewSynapses] = (),
    listed: Sequence[ViewList] = (),
    size: tuple[int, int] = (1280, 800),
    title: str | None = None,
) -> neuroglancer.ViewerState:
    """Describe a view of layers: four panels, fitted to their common bounds.

    One grey channel is an image; three are affinities, shown as red, green and blue
    and switched off at first where there is an image that they would cover.

    Parameters
    ----------
    layers : sequence of ViewLayer
        From the bottom to the top.
    position : (x, y, z) or None
        Where the sections cross, in voxels of the first layer; None is the centre.
    synapses : sequence of ViewSynapses
        On top of all.
    listed : sequence of ViewList
        Synapses that are listed beside the panels; the first list is open.
    size : (width, height)
        Window that the zoom is fitted to [pixel].
    title : str or None
        Title of the page.

    Raises
    ------
    GeometryError
        If there is no layer, or if the position does not have three axes.
    """
    if not layers:
        raise GeometryError("there is no layer to show; name at least one")
    first = np.array(layers[0].spec.voxel_size_nm)
    voxel_nm = np.min([layer.spec.voxel_size_nm for layer in layers], axis=0)
    low_nm, high_nm = _bounds_nm(layers)
    centre_nm = (low_nm + high_nm) / 2
    if position is not None:
        if len(position) != 3:
            raise GeometryError(f"position {tuple(position)} is not a point; give x, y, z")
        centre_nm = (np.asarray(position, dtype=np.float64) + 0.5) * first

    s = neuroglancer.ViewerState()
    if title is not None:
        s.title = title
    s.dimensions = neuroglancer.CoordinateSpace(
        names=["x", "y", "z"], units="nm", scales=voxel_nm.tolist()
    )
    s.position = (centre_nm / voxel_nm).tolist()
    s.layout = "4panel"
    unit_nm = float(voxel_nm.min())
    extent = high_nm - low_nm
    s.cross_section_scale = _nm_per_pixel(extent, size) / unit_nm
    s.projection_scale = 1.05 * float(np.linalg.norm(extent)) / unit_nm
    s.projection_orientation = _turned(azimuth=30, elevation=-25)
    s.show_slices = False
    s.show_default_annotations = True

    has_image = any(_is_image(layer) for layer in layers)
    for layer in layers:
        if layer.spec.kind_of_values == "segmentation":
            s.layers.append(name=layer.name, layer=_segmentation(layer))
        else:
            visible = _is_image(layer) or not has_image
            s.layers.append(name=layer.name, layer=_intensities(layer), visible=visible)
    for lines in synapses:
        s.layers.append(name=lines.name, layer=_lines(lines))
        if lines.segmentation in s.layers:
            # Lines begin and end within surface meshes, which must let them through.
            s.layers[lines.segmentation].layer.object_alpha = 0.45
    segmented = [la.name for la in layers if la.spec.kind_of_values == "segmentation"]
    s.selected_layer.layer = (segmented or [layers[0].name])[-1]
    for one in listed:
        s.layers.append(name=one.name, layer=_list_of(one, s.dimensions))
    if listed:
        s.selected_layer.layer, s.selected_layer.visible = listed[0].name, True
        s.selected_layer.size = _LIST_PIXELS
    return s


class LayerServer:
    """A folder of layers over HTTP, until it is closed.

    It answers ranges (which sharded layers are read by), lets pages of any site read
    (a hosted viewer is one), finds ``x`` in ``x.gz`` where only that was stored, and
    gives nothing that lies outside the folder, links followed.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        handler = type("Handler", (_Handler,), {"folder": folder})
        self._http = ThreadingHTTPServer((_LOOPBACK, port), handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the folder is, with no slash at the end."""
        return f"http://{_LOOPBACK}:{self._http.server_address[1]}"

    def close(self) -> None:
        """Stop answering and free the port."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def __enter__(self) -> LayerServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def serve(folder: str | Path, port: int = 0) -> LayerServer:
    """Serve a folder of layers on the loopback address, in a thread.

    A layer in ``folder/name`` is ``precomputed://URL/name`` to Neuroglancer.

    Parameters
    ----------
    folder : str or Path
        What to serve; nothing above it is given out.
    port : int
        Port, or 0 for any that is free.

    Raises
    ------
    MissingInputError
        If there is no such folder.
    PermanentError
        If the port is taken.
    """
    real = Path(folder).resolve()
    if not real.is_dir():
        raise MissingInputError(f"{folder} is not a folder, so there is nothing to serve")
    try:
        return LayerServer(real, port)
    except OSError as error:
        raise _port_taken(port, error) from error


@dataclass
class Viewer:
    """A running Neuroglancer and the servers of the layers it shows.

    Parameters
    ----------
    client : neuroglancer.Viewer
        Its state can be read and changed while the page is open.
    servers : list of LayerServer
        One for each folder that local layers lie in.
    """

    client: neuroglancer.Viewer
    servers: list[LayerServer]

    @property
    def url(self) -> str:
        """What to open in a browser on this machine."""
        return str(self.client.get_viewer_url())

    def close(self) -> None:
        """Stop serving the layers."""
        for server in self.servers:
            server.close()
        self.servers.clear()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def launch(
    layers: Sequence[ViewLayer],
    position: Sequence[float] | None = None,
    *,
    synapses: Sequence[ViewSynapses] = (),
    listed: Sequence[ViewList] = (),
    port: int = 0,
    size: tuple[int, int] = (1280, 800),
    title: str | None = None,
) -> Viewer:
    """Start Neuroglancer on layers, local ones included.

    Parameters
    ----------
    layers : sequence of ViewLayer
        From the bottom to the top.
    position : (x, y, z) or None
        Where the sections cross, in voxels of the first layer; None is the centre.
    synapses : sequence of ViewSynapses
        On top of all.
    listed : sequence of ViewList
        Synapses that are listed beside the panels.
    port : int
        Port of the viewer, of no effect on one that runs in this process already;
        layers are served on the ports that follow. With 0, any that are free.
    size : (width, height)
        Window that the zoom is fitted to [pixel].
    title : str or None
        Title of the page.

    Raises
    ------
    MissingInputError
        If the folder of a local layer is not there.
    PermanentError
        If a port is taken.
    GeometryError
        If there is no layer, or if the position does not have three axes.
    """
    servers: dict[Path, LayerServer] = {}
    try:
        shown = [_served(layer, servers, port) for layer in layers]
        lines = [_served(layer, servers, port) for layer in synapses]
        described = state(
            shown, position, synapses=lines, listed=listed, size=size, title=title
        )
        client = _client(port)
        client.set_state(described)
    except BaseException:
        for server in servers.values():
            server.close()
        raise
    return Viewer(client, list(servers.values()))


def hosted_url(
    layers: Sequence[ViewLayer],
    position: Sequence[float] | None = None,
    *,
    synapses: Sequence[ViewSynapses] = (),
    client: str = HOSTED_CLIENT,
    size: tuple[int, int] = (1280, 800),
    title: str | None = None,
) -> str:
    """Write the link that opens public layers in a hosted Neuroglancer.

    Whether a bucket lets anybody read is for its owner to know; only that the
    locations can be reached from elsewhere is checked.

    Parameters
    ----------
    layers : sequence of ViewLayer
        From the bottom to the top.
    position : (x, y, z) or None
        Where the sections cross, in voxels of the first layer; None is the centre.
    synapses : sequence of ViewSynapses
        On top of all.
    client : str
        Address of the hosted client.
    size : (width, height)
        Window that the zoom is fitted to [pixel].
    title : str or None
        Title of the page.

    Raises
    ------
    PermanentError
        If layers lie where a hosted viewer cannot reach, all named.
    GeometryError
        If there is no layer, or if the position does not have three axes.
    """
    every: list[ViewLayer | ViewSynapses] = [*layers, *synapses]
    private = [la for la in every if _scheme(la.location) not in PUBLIC_SCHEMES]
    if private:
        named = ", ".join(f"{la.name} ({la.location})" for la in private)
        raise PermanentError(
            f"a hosted viewer cannot reach {named}; copy to gs://, s3:// or https:// "
            "first, or open the viewer on this machine"
        )
    described = state(layers, position, synapses=synapses, size=size, title=title)
    return str(neuroglancer.to_url(described, prefix=client.rstrip("/") + "/"))


def screenshot(
    viewer: Viewer,
    path: str | Path,
    size: tuple[int, int] = (1280, 800),
    *,
    timeout_s: float = 120.0,
    browser: str | None = None,
) -> None:
    """Save what the viewer shows, once everything visible is loaded, as a PNG.

    A browser is started for it without a window, with WebGL in software, and ended
    with all its processes.

    Parameters
    ----------
    viewer : Viewer
        A running viewer.
    path : str or Path
        File to write.
    size : (width, height)
        Extent of the picture [pixel].
    timeout_s : float
        How long to wait for the page and its layers [s].
    browser : str or None
        Chromium or Chrome; None looks for one in ``PATH``.

    Raises
    ------
    MissingInputError
        If there is no browser.
    TransientError
        If the picture did not come in time.
    """
    program = _browser(browser)
    arrived = threading.Event()
    pictures: list[bytes] = []

    def receive(reply: Any) -> None:
        picture = reply.screenshot
        if (picture.width, picture.height) != tuple(size):
            viewer.client.async_screenshot(receive)
            return
        pictures.append(picture.image)
        arrived.set()

    before = viewer.client.config_state.state
    with viewer.client.config_state.txn() as config:
        config.show_ui_controls = False
        config.viewer_size = list(size)
    viewer.client.async_screenshot(receive)
    try:
        with _running(program, viewer.url, size) as (process, complaints):
            if not arrived.wait(timeout_s):
                code = process.poll()
                how = "still runs" if code is None else f"ended with code {code}"
                raise TransientError(
                    f"no picture of {viewer.url} within {timeout_s:g} s; {program} {how} "
                    f"and last said {_last_lines(complaints)!r}; allow more time, or "
                    "open the page in a browser, where a layer says what ails it"
                )
    finally:
        viewer.client.config_state.set_state(before)
    Path(path).write_bytes(pictures[0])


def _is_image(layer: ViewLayer) -> bool:
    return layer.spec.kind_of_values == "image" and layer.spec.channels == 1


def _bounds_nm(layers: Sequence[ViewLayer]) -> tuple[np.ndarray[Any, Any], ...]:
    sizes = [np.array(layer.spec.voxel_size_nm) for layer in layers]
    starts = [
        np.array(layer.spec.bounds.start.astuple()) * size
        for layer, size in zip(layers, sizes, strict=True)
    ]
    stops = [
        np.array(layer.spec.bounds.stop.astuple()) * size
        for layer, size in zip(layers, sizes, strict=True)
    ]
    return np.min(starts, axis=0), np.max(stops, axis=0)


def _nm_per_pixel(extent_nm: np.ndarray[Any, Any], size: tuple[int, int]) -> float:
    """Fit xy, xz and zy into panels of a quarter of the window each, with room around."""
    x, y, z = (float(e) for e in extent_nm)
    width, height = 0.45 * size[0], 0.4 * size[1]
    return max(x / width, z / width, y / height, z / height)


def _turned(*, azimuth: float, elevation: float) -> list[float]:
    """Return the quaternion (x, y, z, w) that looks from the side and from above."""
    a, e = np.radians(azimuth) / 2, np.radians(elevation) / 2
    return [
        float(np.sin(e) * np.cos(a)),
        float(np.cos(e) * np.sin(a)),
        float(-np.sin(e) * np.sin(a)),
        float(np.cos(e) * np.cos(a)),
    ]


def _source(layer: ViewLayer) -> str:
    return f"precomputed://{_bare(layer.location)}"


def _bare(location: str) -> str:
    return location.removeprefix("precomputed://").rstrip("/")


def _scheme(location: str) -> str:
    return urlsplit(_bare(location)).scheme


def _intensities(layer: ViewLayer) -> neuroglancer.ImageLayer:
    n_channels = layer.spec.channels
    shown = [
        f"adjust(normalized(getDataValue({c})))" if c < n_channels else "0.0"
        for c in range(3)
    ]
    body = (
        "emitGrayscale(adjust(normalized()));"
        if n_channels == 1
        else f"emitRGB(vec3({', '.join(shown)}));"
    )
    described = neuroglancer.ImageLayer(
        source=_source(layer),
        shader=f"{_CONTROLS}{_ADJUST}void main() {{ {body} }}\n",
        opacity=1.0,
    )
    if layer.value_range is not None:
        described.shader_controls = {
            "normalized": neuroglancer.InvlerpParameters(range=list(layer.value_range))
        }
    return described


def _segmentation(layer: ViewLayer) -> neuroglancer.SegmentationLayer:
    return neuroglancer.SegmentationLayer(
        source=neuroglancer.LayerDataSource(
            url=_source(layer),
            subsources={
                "mesh": neuroglancer.LayerDataSubsource(enabled=layer.meshes),
                "skeletons": neuroglancer.LayerDataSubsource(enabled=layer.skeletons),
            },
        ),
        segments=sorted(layer.selected),
        selected_alpha=0.45,
        not_selected_alpha=0.12,
        # Skeletons lie inside surface meshes, which must let them through.
        object_alpha=0.6 if layer.meshes and layer.skeletons else 1.0,
        skeleton_rendering=neuroglancer.SkeletonRenderingOptions(
            mode3d="lines", line_width3d=3
        ),
    )


def _lines(synapses: ViewSynapses) -> neuroglancer.AnnotationLayer:
    return neuroglancer.AnnotationLayer(
        source=f"precomputed://{_bare(synapses.location)}",
        linked_segmentation_layer=dict.fromkeys(_SIDES, synapses.segmentation),
        filter_by_segmentation=list(_SIDES) if synapses.only_selected else [],
        shader=_LINES,
    )


def _list_of(
    listed: ViewList, dimensions: neuroglancer.CoordinateSpace
) -> neuroglancer.LocalAnnotationLayer:
    """Describe lines that are listed; they lie where those of the layer do."""
    voxel_nm = [scale * 1e9 for scale in dimensions.scales]

    def place(nm: tuple[float, float, float]) -> list[float]:
        return [a / v for a, v in zip(nm, voxel_nm, strict=True)]

    return neuroglancer.LocalAnnotationLayer(
        dimensions=dimensions,
        annotations=[
            neuroglancer.LineAnnotation(
                id=str(row.id),
                point_a=place(row.pre_nm),
                point_b=place(row.post_nm),
                description=row.text,
                segments=[[segment] if segment else [] for segment in (row.pre, row.post)],
            )
            for row in listed.rows
        ],
        annotation_relationships=list(_SIDES),
        linked_segmentation_layer=dict.fromkeys(_SIDES, listed.segmentation),
        shader=_LISTED,
        tab="annotations",
    )


def _client(port: int) -> neuroglancer.Viewer:
    """Start the viewer, on a port tried first: its server fails untidily."""
    if port and not neuroglancer.is_server_running():
        try:
            socket.create_server((_LOOPBACK, port)).close()
        except OSError as error:
            raise _port_taken(port, error) from error
    neuroglancer.set_server_bind_address(_LOOPBACK, port)
    return neuroglancer.Viewer()


def _port_taken(port: int, error: OSError) -> PermanentError:
    return PermanentError(
        f"port {port} on {_LOOPBACK} cannot be used ({error.strerror}); "
        "give another, or 0 for any"
    )


def _served(layer: _Shown, servers: dict[Path, LayerServer], port: int) -> _Shown:
    """Return the layer with an HTTP location, starting a server if it is local."""
    if _scheme(layer.location) not in ("file", ""):
        return layer
    folder = Path(_bare(layer.location).removeprefix("file://")).resolve()
    if not (folder / "info").exists() and not (folder / "info.gz").exists():
        raise MissingInputError(f"{layer.name}: {folder} holds no layer; write it first")
    if folder.parent not in servers:
        own = port + 1 + len(servers) if port else 0
        servers[folder.parent] = serve(folder.parent, own)
    return replace(layer, location=f"{servers[folder.parent].url}/{quote(folder.name)}")


def _browser(given: str | None) -> str:
    candidates = BROWSERS if given is None else (given,)
    found = next(filter(None, map(shutil.which, candidates)), None)
    if found is None:
        raise MissingInputError(
            f"no browser for a picture: {', '.join(candidates)} not found; "
            "run 'apt-get install chromium', or name the program of one"
        )
    return found


@contextmanager
def _running(
    program: str, url: str, size: tuple[int, int]
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Run a browser on a page, and end all its processes on leaving."""
    with (
        tempfile.TemporaryDirectory(
            prefix="em-browser-", ignore_cleanup_errors=True
        ) as profile,
        tempfile.TemporaryFile() as complaints,
    ):
        process = subprocess.Popen(
            [
                program,
                *_BROWSER_FLAGS,
                f"--window-size={size[0]},{size[1]}",
                f"--user-data-dir={profile}",
                url,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
            start_new_session=True,
        )
        try:
            yield process, complaints
        finally:
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _last_lines(complaints: IO[bytes]) -> str:
    complaints.seek(0)
    lines = complaints.read().decode(errors="replace").strip().splitlines()
    return " | ".join(lines[-3:])


class _Handler(BaseHTTPRequestHandler):
    """Answers for one folder; `LayerServer` fills in which."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_OPTIONS(self) -> None:
        self.send_response(HTTPStatus.NO_CONTENT)
        self._allow_pages_of_any_site()
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: a view is thousands of requests."""

    def _answer(self, *, with_body: bool) -> None:
        found = self._find(unquote(urlsplit(self.path).path))
        if found is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        path, gzipped = found
        asked = self.headers.get("Range")
        accepted = self.headers.get("Accept-Encoding", "")
        as_stored = gzipped and asked is None and "gzip" in accepted
        try:
            # A range counts bytes of what is stored under the name, not of its gzip.
            opened: Any = gzip.open if gzipped and not as_stored else open
            with opened(path, "rb") as file:
                self._send(file, asked, gzipped=as_stored, with_body=with_body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the page moved on

    def _find(self, path: str) -> tuple[Path, bool] | None:
        """Return the file of a path, and whether it was found under its gzip's name."""
        if "\0" in path:
            return None
        wanted = self.folder / path.lstrip("/")
        for candidate, gzipped in ((wanted, False), (Path(f"{wanted}.gz"), True)):
            real = candidate.resolve()
            if real.is_relative_to(self.folder) and real.is_file():
                return real, gzipped
        return None

    def _send(
        self, file: IO[bytes], asked: str | None, *, gzipped: bool, with_body: bool
    ) -> None:
        size = file.seek(0, os.SEEK_END)
        start, stop = 0, size
        ranged = _RANGE.fullmatch(asked.strip()) if asked else None
        if ranged:
            start, stop = _resolved(ranged, size)
            if start >= stop:
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, size=size)
                return
        self.send_response(HTTPStatus.PARTIAL_CONTENT if ranged else HTTPStatus.OK)
        self._allow_pages_of_any_site()
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        if gzipped:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Vary", "Accept-Encoding")
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()
        if with_body:
            file.seek(start)
            left = stop - start
            while left and (piece := file.read(min(left, 1 << 20))):
                self.wfile.write(piece)
                left -= len(piece)

    def _refuse(self, status: HTTPStatus, *, size: int | None = None) -> None:
        self.send_response(status)
        self._allow_pages_of_any_site()
        if size is not None:
            self.send_header("Content-Range", f"bytes */{size}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _allow_pages_of_any_site(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
        self.send_header("Access-Control-Allow-Headers", "Range, Content-Type")
        self.send_header(
            "Access-Control-Expose-Headers", "Content-Range, Content-Length, Accept-Ranges"
        )


def _resolved(ranged: re.Match[str], size: int) -> tuple[int, int]:
    """Turn ``bytes=a-b``, ``bytes=a-`` or ``bytes=-n`` into a half-open range."""
    first, last = ranged.groups()
    if not first:
        return max(0, size - int(last)), size
    stop = min(size, int(last) + 1) if last else size
    return int(first), stop
