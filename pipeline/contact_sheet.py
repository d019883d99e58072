"""A reconstruction in one picture: sections of every layer, neurons in 3D, scores.

Colours follow from ids alone, so that a segment has one colour in every panel, every
sheet and every run. Surface meshes are drawn by a small rasteriser of this module: a
depth buffer in numpy, lit from the viewer's upper left, parallel projection, so that
one scale bar holds for all of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastremap
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.errors import GeometryError
from pipeline.specs import Mesh, VoxelSize

Floats = NDArray[np.float64]
Picture = NDArray[np.uint8]

_BACKGROUND = "#0e1116"
_TEXT = "#f2f4f7"
_FAINT = "#98a2b3"
_LIGHT = np.array([-0.45, -0.65, -0.62])  # towards the light: left, up, nearer
_CANDIDATES = 1 << 20  # pixels tested at a time
_SMOOTHINGS = 4
_COUNTED = 1 << 22  # voxels that overlaps are counted in
_NOTHING = np.uint64(2**64 - 1)
_OKLAB_TO_CONES = np.array(
    [
        [1, 0.3963377774, 0.2158037573],
        [1, -0.1055613458, -0.0638541728],
        [1, -0.0894841775, -1.2914855480],
    ]
)
_CONES_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def colours_of(ids: NDArray[Any]) -> NDArray[np.float32]:
    """Give every id a colour of its own, of about the same brightness as the others.

    Parameters
    ----------
    ids : integer array, any shape
        Segment ids.

    Returns
    -------
    float32 array, (..., 3)
        Red, green, blue in 0 to 1; black for id 0.
    """
    unique, where = np.unique(np.asarray(ids).astype(np.uint64), return_inverse=True)
    bits = _scrambled(unique)
    hue = (bits & np.uint64(0xFFFF)).astype(np.float64) * (2 * np.pi / 65536)
    lightness = 0.57 + 0.28 * ((bits >> np.uint64(16)) & np.uint64(0xFF)) / 255
    chroma = 0.10 + 0.09 * ((bits >> np.uint64(24)) & np.uint64(0xFF)) / 255
    table = _oklch_to_rgb(lightness, chroma, hue)
    table[unique == 0] = 0
    shape = (*np.shape(ids), 3)
    return table[where.ravel()].reshape(shape).astype(np.float32)


@dataclass(frozen=True)
class Camera:
    """A parallel projection.

    Parameters
    ----------
    axes : float array, (3, 3)
        Unit vectors that point right, down and away from the viewer, as rows; x, y, z.
    centre_nm : float array, (3,)
        Point in the middle of the picture [nm].
    nm_per_pixel : float
        Scale.
    size : (width, height)
        Extent of the picture [pixel].
    """

    axes: Floats
    centre_nm: Floats
    nm_per_pixel: float
    size: tuple[int, int]

    @classmethod
    def around(
        cls,
        low_nm: Floats,
        high_nm: Floats,
        size: tuple[int, int],
        *,
        azimuth: float = 32.0,
        elevation: float = 24.0,
    ) -> Camera:
        """Look at a box so that all of it is seen, from the side and from above.

        With no azimuth and elevation x points right, y down and z away, as in a
        section.

        Parameters
        ----------
        low_nm, high_nm : float array, (3,)
            Corners of the box [nm].
        size : (width, height)
            Extent of the picture [pixel].
        azimuth, elevation : float
            Angles of the viewer [degree].
        """
        a, e = math.radians(azimuth), math.radians(elevation)
        turn = np.array(
            [[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]]
        )
        tilt = np.array(
            [[1, 0, 0], [0, math.cos(e), -math.sin(e)], [0, math.sin(e), math.cos(e)]]
        )
        axes = tilt @ turn
        centre = (np.asarray(low_nm) + np.asarray(high_nm)) / 2
        seen = 2 * np.abs((_corners(low_nm, high_nm) - centre) @ axes.T).max(axis=0)
        scale = max(seen[0] / size[0], seen[1] / size[1]) * 1.04
        return cls(axes, centre, float(scale), size)

    def project(self, points_nm: NDArray[Any]) -> Floats:
        """Return column and row [pixel] and depth [nm] of points, nearer is less."""
        seen: Floats = np.asarray(points_nm, dtype=np.float64) - self.centre_nm
        seen = seen @ self.axes.T
        seen[:, :2] /= self.nm_per_pixel
        seen[:, 0] += self.size[0] / 2
        seen[:, 1] += self.size[1] / 2
        return seen


def render(
    meshes: Mapping[int, Mesh], camera: Camera, *, supersampling: int = 2
) -> Picture:
    """Draw surface meshes, the nearest triangle of each pixel, lit and in colour.

    Parameters
    ----------
    meshes : mapping of int to Mesh
        Surface meshes by segment id; the id gives the colour.
    camera : Camera
        Where to look from.
    supersampling : int
        Pixels drawn along either axis for each of the picture, to smooth edges.

    Returns
    -------
    uint8 array, (row, column, 4)
        Red, green, blue and opacity.
    """
    width, height = (s * supersampling for s in camera.size)
    fine = Camera(
        camera.axes, camera.centre_nm, camera.nm_per_pixel / supersampling, (width, height)
    )
    vertices, faces, owners = _joined(meshes)
    seen = fine.project(vertices)
    planes = _weight_planes(seen, faces)
    nearest, depth = _depth_buffer(seen, faces, planes, width, height)
    covered = np.flatnonzero(nearest >= 0)
    picture = np.zeros((height * width, 4), np.float32)
    if len(covered):
        hit = nearest[covered]
        at = np.stack([covered % width + 0.5, covered // width + 0.5], axis=1)
        weights = (planes[hit, :, :2] * at[:, None]).sum(axis=2) + planes[hit, :, 2]
        normals = _vertex_normals(vertices, faces) @ camera.axes.T
        normal = _unit(np.einsum("ncd,nc->nd", normals[faces[hit]], weights))
        normal[normal[:, 2] > 0] *= -1  # an open mesh is seen from inside too
        colour = colours_of(owners[hit])
        shade = _occlusion(depth.reshape(height, width), fine.nm_per_pixel)
        picture[covered, :3] = _lit(colour, normal, shade.ravel()[covered])
        picture[covered, 3] = 1
    return _shrunk(picture.reshape(height, width, 4), supersampling)


def contact_sheet(
    path: str | Path,
    image: NDArray[Any],
    affinities: NDArray[Any] | None,
    segmentation: NDArray[Any],
    meshes: Mapping[int, Mesh],
    *,
    voxel_size_nm: VoxelSize,
    corner_nm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    truth: NDArray[Any] | None = None,
    title: str = "",
    subtitle: str = "",
    scores: Mapping[str, float] | None = None,
    n_meshes: int = 12,
    section: int | None = None,
    dpi: int = 150,
) -> None:
    """Draw the layers of a block side by side, some neurons in 3D, its scores.

    Sections are those of the middle, across z and across y; of an oblong one, the
    middle square. A neuron of the truth has the colour of the segment that it is
    `matched` with: where it shows several colours in the segmentation it was split,
    where it shares its colour there with another it was merged.

    Parameters
    ----------
    path : str or Path
        PNG to write.
    image : array, (x, y, z)
        Intensities.
    affinities : array, (x, y, z, 3), or None
        Shown as red, green and blue; integers over the range of their type.
    segmentation : integer array, (x, y, z)
        Segment ids, 0 is none.
    meshes : mapping of int to Mesh
        Surface meshes by segment id; what lies outside the block is cut away.
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].
    corner_nm : (x, y, z)
        Where the first voxel lies in the space of the meshes [nm].
    truth : integer array, (x, y, z), or None
        Ids by people, 0 is none.
    title, subtitle : str
        Two lines on top.
    scores : mapping of str to float, or None
        Numbers to print, by name.
    n_meshes : int
        Most segments to show in 3D.
    section : int or None
        Voxel along z of the sections across z; None is the middle.
    dpi : int
        Pixels per inch; the sheet is 16 inches wide.

    Raises
    ------
    GeometryError
        If the arrays differ in shape or are empty, or if the section is outside.
    """
    _check(image, affinities, segmentation, truth)
    n_x, n_y, n_z = image.shape
    at_z = n_z // 2 if section is None else section
    if not 0 <= at_z < n_z:
        raise GeometryError(
            f"section {at_z} lies outside the block, which has z from 0 to {n_z - 1}"
        )
    planes = [
        _Plane.across("z", at_z, (n_x, n_y), (voxel_size_nm[0], voxel_size_nm[1])),
        _Plane.across("y", n_y // 2, (n_x, n_z), (voxel_size_nm[0], voxel_size_nm[2])),
    ]
    partners = None if truth is None else matched(truth, segmentation)
    names = ["image", "affinities", "segmentation", "ground truth"]
    present = [True, affinities is not None, True, truth is not None]
    sheet = _Sheet(
        planes, sum(present), header=bool(title or subtitle), scores=bool(scores), dpi=dpi
    )
    sheet.write_title(title, subtitle)
    for row, plane in enumerate(planes):
        grey = _grey(plane.cut(image))
        pictures = [np.repeat(grey[:, :, None], 3, axis=2)]
        if affinities is not None:
            pictures.append(_unit_range(plane.cut(affinities)))
        pictures.append(_painted(grey, plane.cut(segmentation)))
        if truth is not None and partners is not None:
            pictures.append(_painted(grey, _replaced(plane.cut(truth), partners)))
        for column, picture in enumerate(pictures):
            sheet.show_section(row, column, picture)
    sheet.write_names([n for n, shown in zip(names, present, strict=True) if shown])

    low = np.array(corner_nm, dtype=np.float64)
    high = low + np.array(image.shape) * np.array(voxel_size_nm)
    n_segments = int(np.count_nonzero(fastremap.unique(segmentation)))
    inside = {i: _within(mesh, low, high) for i, mesh in meshes.items()}
    sheet.show_meshes(prominent(inside, n_meshes), low, high, n_segments)
    if scores:
        sheet.write_scores(scores)
    sheet.save(path)


def prominent(meshes: Mapping[int, Mesh], n: int) -> dict[int, Mesh]:
    """Take the meshes that show most: large, and longer than wide.

    Dendrites and axons that run through a block come before bodies and glia, which
    would hide them.

    Parameters
    ----------
    meshes : mapping of int to Mesh
        Surface meshes by segment id.
    n : int
        How many, at most.
    """
    score = {
        segment: math.sqrt(_area(mesh)) * min(_elongation(mesh), 4)
        for segment, mesh in meshes.items()
        if len(mesh.faces)
    }
    chosen = sorted(score, key=lambda segment: (-score[segment], segment))[:n]
    return {segment: meshes[segment] for segment in chosen}


def matched(truth: NDArray[Any], segmentation: NDArray[Any]) -> dict[int, int]:
    """Pair each segment of the truth with the segment that covers most of it.

    A segment that covers most of several goes to the one that it covers more of; the
    others have none. Of a large block not every voxel is counted.

    Parameters
    ----------
    truth, segmentation : integer array, (x, y, z)
        Segment ids, 0 is none.

    Returns
    -------
    dict of int to int
        Segment by id of the truth; those without one are left out.
    """
    step = max(1, math.ceil((truth.size / _COUNTED) ** (1 / 3)))
    some = (slice(None, None, step),) * 3
    both = (truth[some] != 0) & (segmentation[some] != 0)
    theirs, a = np.unique(truth[some][both], return_inverse=True)
    ours, b = np.unique(segmentation[some][both], return_inverse=True)
    pairs, counts = np.unique(a * max(len(ours), 1) + b, return_counts=True)
    partners: dict[int, int] = {}
    met: set[int] = set()
    taken: set[int] = set()
    for pair in pairs[np.argsort(-counts, kind="stable")].tolist():
        i, j = divmod(pair, len(ours))
        if i not in met and j not in taken:
            partners[int(theirs[i])] = int(ours[j])
            taken.add(j)
        met.add(i)
    return partners


@dataclass(frozen=True)
class _Plane:
    """A section of the block: a square window of it, and how to cut it out.

    Rows of a cut are of the size of its columns, whatever the voxel.
    """

    axis: str
    at: int
    columns: NDArray[np.int64]
    rows: NDArray[np.int64]
    pixel_nm: float

    @classmethod
    def across(
        cls, axis: str, at: int, shape: tuple[int, int], voxel_nm: tuple[float, float]
    ) -> _Plane:
        width_nm, height_nm = (n * s for n, s in zip(shape, voxel_nm, strict=True))
        side_nm = min(width_nm, height_nm)
        # A section across y may be flatter than wide: all of x is shown then.
        shown_nm = (side_nm if axis == "z" else width_nm, min(height_nm, width_nm))
        pixel_nm = voxel_nm[0]
        columns, rows = (
            ((np.arange(max(1, round(s / pixel_nm))) + 0.5) * pixel_nm + (a - s) / 2)
            for s, a in zip(shown_nm, (width_nm, height_nm), strict=True)
        )
        return cls(
            axis,
            at,
            np.clip(columns // voxel_nm[0], 0, shape[0] - 1).astype(np.int64),
            np.clip(rows // voxel_nm[1], 0, shape[1] - 1).astype(np.int64),
            pixel_nm,
        )

    def cut(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the window as (row, column) or (row, column, channel)."""
        plane = array[:, :, self.at] if self.axis == "z" else array[:, self.at]
        return np.swapaxes(plane[self.columns][:, self.rows], 0, 1)

    @property
    def label(self) -> str:
        other = "xy" if self.axis == "z" else "xz"
        return f"{other},  {self.axis} = {self.at}"


class _Sheet:
    """The figure, laid out in inches: panels to the left, neurons to the right."""

    width = 16.0
    edge = 0.4
    gap = 0.1
    names = 0.32
    labels = 0.3
    scores = 0.95

    def __init__(
        self,
        planes: list[_Plane],
        n_columns: int,
        *,
        header: bool,
        scores: bool,
        dpi: int,
    ) -> None:
        self.header = 1.05 if header else 0.3
        self.planes = planes
        room = 0.63 * self.width - self.edge - self.labels
        self.panel_width = min(3.4, room / n_columns - self.gap)
        self.n_columns = n_columns
        self.heights = [
            self.panel_width * len(plane.rows) / len(plane.columns) for plane in planes
        ]
        below = self.scores if scores else 0.0
        content = sum(self.heights) + self.gap * (len(planes) - 1) + below
        self.height = max(6.5, self.header + self.names + content + self.edge)
        self.dpi = dpi
        self.figure = Figure(
            figsize=(self.width, self.height), dpi=dpi, facecolor=_BACKGROUND
        )
        FigureCanvasAgg(self.figure)

    @property
    def left(self) -> float:
        return self.edge + self.labels

    @property
    def right(self) -> float:
        """Where the panels end."""
        return self.left + self.n_columns * (self.panel_width + self.gap) - self.gap

    def top_of(self, row: int) -> float:
        return self.header + self.names + sum(self.heights[:row]) + self.gap * row

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        box = (
            left / self.width,
            1 - (top + height) / self.height,
            width / self.width,
            height / self.height,
        )
        axes: Axes = self.figure.add_axes(box)
        axes.set_axis_off()
        return axes

    def write(self, left: float, top: float, text: str, **style: Any) -> None:
        style = {"color": _TEXT, "va": "center", "ha": "left"} | style
        self.figure.text(left / self.width, 1 - top / self.height, text, **style)

    def write_title(self, title: str, subtitle: str) -> None:
        self.write(self.left, 0.47, title, fontsize=21, fontweight="bold")
        self.write(self.left, 0.86, subtitle, fontsize=11.5, color=_FAINT)

    def write_names(self, names: list[str]) -> None:
        for column, name in enumerate(names):
            left = self.left + column * (self.panel_width + self.gap)
            top = self.header + self.names - 0.14
            self.write(left, top, name, fontsize=11.5)
        for row, plane in enumerate(self.planes):
            top = self.top_of(row) + self.heights[row] / 2
            style = {"rotation": 90, "ha": "center", "color": _FAINT, "fontsize": 10}
            self.write(self.left - 0.17, top, plane.label, **style)

    def show_section(self, row: int, column: int, picture: NDArray[Any]) -> None:
        left = self.left + column * (self.panel_width + self.gap)
        axes = self.axes(left, self.top_of(row), self.panel_width, self.heights[row])
        axes.imshow(picture, aspect="auto", vmin=0, vmax=1)
        if column == 0:
            n_rows, n_columns = picture.shape[:2]
            _scale_bar(axes, (n_columns, n_rows), self.planes[row].pixel_nm)

    def show_meshes(
        self, meshes: Mapping[int, Mesh], low: Floats, high: Floats, n_segments: int
    ) -> None:
        left, top = self.right + 0.25, 0.25
        width, height = self.width - left - 0.25, self.height - top - 0.75
        axes = self.axes(left, top, width, height)
        size = (round(width * self.dpi), round(height * self.dpi))
        camera = Camera.around(low, high, size)
        axes.imshow(render(meshes, camera), extent=(0, *size, 0), zorder=2)
        _box(axes, camera, low, high)
        axes.set_xlim(0, size[0])
        axes.set_ylim(size[1], 0)
        _scale_bar(axes, size, camera.nm_per_pixel)
        extent = " \N{MULTIPLICATION SIGN} ".join(f"{e / 1000:.3g}" for e in high - low)
        shown = (
            f"{len(meshes)} of {n_segments:,} segments" if meshes else "no surface meshes"
        )
        middle, bottom = left + width / 2, self.height - 0.38
        style = {"ha": "center", "fontsize": 11.5, "color": _FAINT}
        self.write(middle, bottom, f"{shown}   ·   {extent} µm", **style)

    def write_scores(self, scores: Mapping[str, float]) -> None:
        top = self.height - self.edge - self.scores + 0.42
        step = (self.right - self.left) / max(len(scores), 4)
        for i, (name, value) in enumerate(scores.items()):
            left = self.left + i * step
            self.write(left, top, f"{value:.3g}", fontsize=20, fontweight="bold")
            self.write(left, top + 0.36, name, fontsize=10.5, color=_FAINT)

    def save(self, path: str | Path) -> None:
        self.figure.savefig(path, format="png", facecolor=_BACKGROUND)


def _check(image: NDArray[Any], *others: NDArray[Any] | None) -> None:
    if image.ndim != 3 or image.size == 0:
        raise GeometryError(f"image has shape {image.shape}; give x, y, z, none of them 0")
    for name, array in zip(("affinities", "segmentation", "truth"), others, strict=True):
        wanted = (*image.shape, 3) if name == "affinities" else image.shape
        if array is not None and array.shape != wanted:
            raise GeometryError(
                f"{name} has shape {array.shape} but the image calls for {wanted}"
            )


def _grey(values: NDArray[Any]) -> Floats:
    """Stretch intensities over 0 to 1, a few outliers aside."""
    low, high = np.percentile(values, (0.5, 99.5))
    stretched: Floats = (values.astype(np.float64) - low) / max(high - low, 1e-9)
    return stretched.clip(0, 1)


def _unit_range(values: NDArray[Any]) -> Floats:
    whole = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 1
    return (values.astype(np.float64) / whole).clip(0, 1)


def _painted(grey: Floats, ids: NDArray[Any]) -> Floats:
    """Lay the colours of segments over a section, fuller along their outlines."""
    outline = np.zeros(ids.shape, bool)
    outline[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    outline[1:] |= ids[1:] != ids[:-1]
    opacity = np.where(outline, 0.9, 0.5) * (ids != 0)
    behind = grey[..., None] * (1 - opacity[..., None])
    painted: Floats = behind + colours_of(ids) * opacity[..., None]
    return painted


def _replaced(ids: NDArray[Any], partners: Mapping[int, int]) -> NDArray[np.uint64]:
    """Put the segment of each id of the truth, or an id that no segment has."""
    unique, where = np.unique(ids, return_inverse=True)
    stand_in = [0 if i == 0 else partners.get(i, 2**64 - 1 - i) for i in unique.tolist()]
    return np.array(stand_in, np.uint64)[where].reshape(ids.shape)


def _scale_bar(axes: Axes, size: tuple[int, int], nm_per_pixel: float) -> None:
    """Draw a bar of a round length, about a quarter of the panel, bottom left."""
    width, height = size
    longest = 0.3 * width * nm_per_pixel
    power = 10.0 ** math.floor(math.log10(longest))
    length = max(m for m in (power, 2 * power, 5 * power) if m <= longest)
    text = f"{length / 1000:g} µm" if length >= 1000 else f"{length:g} nm"
    left, bottom = 0.04 * width, height - 0.05 * min(width, height)
    stroke = [patheffects.withStroke(linewidth=4.5, foreground="#000000b0")]
    axes.plot(
        [left, left + length / nm_per_pixel],
        [bottom, bottom],
        color="white",
        linewidth=3,
        solid_capstyle="butt",
        path_effects=stroke,
        zorder=4,
    )
    axes.annotate(
        text,
        (left, bottom),
        (0, 5),
        textcoords="offset points",
        color="white",
        fontsize=9.5,
        va="bottom",
        path_effects=[patheffects.withStroke(linewidth=2.5, foreground="#000000b0")],
        zorder=4,
    )


def _box(axes: Axes, camera: Camera, low: Floats, high: Floats) -> None:
    """Draw the edges of the block, those at its back behind the neurons."""
    corners = _corners(low, high)
    seen = camera.project(corners)
    farthest = int(np.argmax(seen[:, 2]))
    for i in range(8):
        for axis in range(3):
            j = i | (1 << axis)
            if i == j:
                continue
            behind = farthest in (i, j)
            axes.plot(
                seen[[i, j], 0],
                seen[[i, j], 1],
                color=_FAINT,
                linewidth=0.9,
                alpha=0.45 if behind else 0.6,
                zorder=1 if behind else 3,
            )


def _corners(low: Floats, high: Floats) -> Floats:
    """Return the corners of a box; bit ``a`` of a row's number is the end along ``a``."""
    ends = np.stack([low, high])
    return np.array([[ends[i >> a & 1, a] for a in range(3)] for i in range(8)])


def _scrambled(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash ids (splitmix64), so that neighbours in number differ in colour."""
    z = ids + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _oklch_to_rgb(lightness: Floats, chroma: Floats, hue: Floats) -> Floats:
    """Turn lightness, chroma and hue of Oklab into sRGB (Ottosson 2020)."""
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    cones = (lab @ _OKLAB_TO_CONES.T) ** 3
    linear = (cones @ _CONES_TO_RGB.T).clip(0, 1)
    curved = 1.055 * linear ** (1 / 2.4) - 0.055
    rgb: Floats = np.where(linear <= 0.0031308, 12.92 * linear, curved)
    return rgb


def _joined(
    meshes: Mapping[int, Mesh],
) -> tuple[Floats, NDArray[np.int64], NDArray[np.uint64]]:
    """Return all vertices, all faces, and the id of each face."""
    vertices, faces, owners = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], []
    n_vertices = 0
    for segment, mesh in meshes.items():
        vertices.append(mesh.vertices.astype(np.float64))
        faces.append(mesh.faces.astype(np.int64) + n_vertices)
        owners.append(np.full(len(mesh.faces), segment, np.uint64))
        n_vertices += len(mesh.vertices)
    ids = np.concatenate(owners) if owners else np.zeros(0, np.uint64)
    return np.concatenate(vertices), np.concatenate(faces), ids


def _weight_planes(seen: Floats, faces: NDArray[np.int64]) -> Floats:
    """Return (face, corner, 3): barycentric weights as a column + b row + c.

    They are nan in a triangle that is seen edge-on.
    """
    corner = seen[faces, :2]
    a, b, c = (corner[:, i] for i in range(3))
    whole = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    whole[np.abs(whole) < 1e-9] = np.nan
    start, end = corner[:, [1, 2, 0]], corner[:, [2, 0, 1]]
    along = end - start
    constant = along[..., 1] * start[..., 0] - along[..., 0] * start[..., 1]
    planes = np.stack([-along[..., 1], along[..., 0], constant], axis=-1)
    return planes / whole[:, None, None]


def _depth_buffer(
    seen: Floats, faces: NDArray[np.int64], planes: Floats, width: int, height: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the nearest face of each pixel (-1 for none) and its depth (inf).

    Each triangle is cut into rows of pixels. Depth and face of a pixel are kept in
    one integer, depth in the high bits, so that one minimum decides both.
    """
    n_pixels = width * height
    nearest = np.full(n_pixels, _NOTHING, np.uint64)
    if len(faces):
        depth_planes = np.einsum("fk,fkp->fp", seen[faces, 2] - seen[:, 2].min(), planes)
    for batch in _batches(seen, faces, planes, width, height):
        face, row = _rows(seen, faces, batch, height)
        first, last = _span(planes[face], row, width)
        length = (last - first + 1).clip(0)
        span = np.repeat(np.arange(len(face)), length)
        column = np.arange(len(span)) - (np.cumsum(length) - length - first)[span]
        slope, down, constant = depth_planes[face].T
        depth = slope[span] * (column + 0.5) + (down * (row + 0.5) + constant)[span]
        # The bits of floats that are not negative sort as the floats do.
        bits = depth.clip(0).astype(np.float32).view(np.uint32).astype(np.uint64)
        packed = (bits << np.uint64(32)) | face[span].astype(np.uint64)
        np.minimum.at(nearest, row[span] * width + column, packed)
    hit = nearest != _NOTHING
    face_of = (nearest & np.uint64(0xFFFFFFFF)).astype(np.int64)
    depths = (nearest >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return np.where(hit, face_of, -1), np.where(hit, depths, np.float32(np.inf))


def _batches(
    seen: Floats, faces: NDArray[np.int64], planes: Floats, width: int, height: int
) -> Iterator[NDArray[np.int64]]:
    """Yield faces that may cover a pixel, in groups of bounded total size."""
    boxed = np.ones(len(faces))
    for axis, extent in enumerate((width, height)):
        low, high = _ends(seen[faces, axis])
        first = np.ceil(low - 0.5).clip(0, None)
        last = np.floor(high - 0.5).clip(None, extent - 1)
        boxed *= (last - first + 1).clip(0)
    seen_at_all = np.flatnonzero((boxed > 0) & ~np.isnan(planes[:, 0, 0]))
    group = np.cumsum(boxed[seen_at_all]) // _CANDIDATES
    starts = np.flatnonzero(np.diff(group)) + 1
    for batch in np.split(seen_at_all, starts):
        if len(batch):
            yield batch


def _rows(
    seen: Floats, faces: NDArray[np.int64], batch: NDArray[np.int64], height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """List every row of pixels that each face of a batch reaches."""
    low, high = _ends(seen[faces[batch], 1])
    first = np.ceil(low - 0.5).clip(0, None).astype(np.int64)
    last = np.floor(high - 0.5).clip(None, height - 1).astype(np.int64)
    n_rows = last - first + 1
    at = np.repeat(np.arange(len(batch)), n_rows)
    return batch[at], np.arange(len(at)) - (np.cumsum(n_rows) - n_rows - first)[at]


def _ends(of_corners: Floats) -> tuple[Floats, Floats]:
    """Return the least and the most over the corners of each face."""
    a, b, c = of_corners.T
    return np.minimum(np.minimum(a, b), c), np.maximum(np.maximum(a, b), c)


def _span(
    planes: Floats, row: NDArray[np.int64], width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and last column of a row in which no weight is negative.

    Pixel (i, j) is sampled at its middle, (i + 0.5, j + 0.5).
    """
    low, high = np.full(len(row), -np.inf), np.full(len(row), np.inf)
    outside = np.zeros(len(row), bool)
    for corner in range(3):
        slope, down, constant = planes[:, corner].T
        rest = down * (row + 0.5) + constant
        with np.errstate(divide="ignore", invalid="ignore"):
            root = -rest / slope
        low = np.where(slope > 0, np.maximum(low, root), low)
        high = np.where(slope < 0, np.minimum(high, root), high)
        outside |= (slope == 0) & (rest < 0)
    first = np.ceil(low - 0.5 - 1e-6).clip(0, width)
    last = np.where(outside, -1, np.floor(high - 0.5 + 1e-6).clip(-1, width - 1))
    return first.astype(np.int64), last.astype(np.int64)


def _vertex_normals(vertices: Floats, faces: NDArray[np.int64]) -> Floats:
    """Average the normals of faces, by area, over each vertex and around it.

    Surfaces follow voxels, thick ones along z; averaged normals hide the steps.
    """
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    of_face: Floats = np.cross(b - a, c - a)
    flat = faces.ravel()
    of_vertex: Floats = np.zeros_like(vertices)
    for _ in range(_SMOOTHINGS):
        of_corner = np.repeat(of_face, 3, axis=0)
        for i in range(3):
            of_vertex[:, i] = np.bincount(flat, of_corner[:, i], len(vertices))
        of_face = of_vertex[faces].sum(axis=1)
    return _unit(of_vertex)


def _unit(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = vectors / np.maximum(length, 1e-12)
    return unit


def _area(mesh: Mesh) -> float:
    a, b, c = (mesh.vertices[mesh.faces[:, i]].astype(np.float64) for i in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def _within(mesh: Mesh, low: Floats, high: Floats) -> Mesh:
    """Take the faces of a mesh whose middle lies in a box."""
    middle = mesh.vertices.astype(np.float64)[mesh.faces].mean(axis=1)
    kept = mesh.faces[((middle >= low) & (middle <= high)).all(axis=1)]
    used, faces = np.unique(kept, return_inverse=True)
    return Mesh(mesh.vertices[used], faces.reshape(-1, 3).astype(np.uint32))


def _elongation(mesh: Mesh) -> float:
    """Return how far vertices spread along their main axis over the next."""
    spread = np.linalg.eigvalsh(np.cov(mesh.vertices.astype(np.float64).T))
    return float(np.sqrt(spread[2] / max(spread[1], 1e-12)))


def _occlusion(depth: NDArray[np.float32], nm_per_pixel: float) -> NDArray[np.float32]:
    """Darken what lies close behind something nearer (eye-dome lighting).

    Boucheny 2009: the light that a pixel keeps falls with how far its neighbours in
    the picture stand out before it.
    """
    height, width = depth.shape
    blocked = np.zeros_like(depth)
    for radius in (2, 5, 11):
        around = np.pad(depth, radius, constant_values=np.inf)
        reach = 12 * radius * nm_per_pixel
        for angle in np.arange(8) * (np.pi / 4):
            r = radius + round(radius * math.sin(angle))
            c = radius + round(radius * math.cos(angle))
            with np.errstate(invalid="ignore"):
                before = depth - around[r : r + height, c : c + width]
            blocked += np.nan_to_num(before / reach, nan=0, posinf=0, neginf=0).clip(0, 1)
    shade: NDArray[np.float32] = np.exp(-0.11 * blocked)
    return shade


def _lit(colour: NDArray[np.float32], normal: Floats, shade: NDArray[np.float32]) -> Floats:
    """Shade colours: Lambert's law over an even light, and a faint gloss."""
    light = _LIGHT / np.linalg.norm(_LIGHT)
    half = light + np.array([0, 0, -1])
    half /= np.linalg.norm(half)
    diffuse = (normal @ light).clip(0)
    gloss = (normal @ half).clip(0) ** 40
    lit: Floats = colour * ((0.34 + 0.74 * diffuse) * shade)[:, None]
    lit += 0.16 * (gloss * shade)[:, None]
    return lit.clip(0, 1)


def _shrunk(picture: NDArray[np.float32], by: int) -> Picture:
    """Average squares of pixels, weighing colour by opacity."""
    height, width = picture.shape[0] // by, picture.shape[1] // by
    mean = picture.reshape(height, by, width, by, 4).mean(axis=(1, 3))
    mean[..., :3] /= np.maximum(mean[..., 3:], 1e-6)
    rounded: Picture = (mean * 255).round().clip(0, 255).astype(np.uint8)
    return rounded
