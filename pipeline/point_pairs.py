"""Point pairs that a person gave: from a table, or from lines drawn in Neuroglancer.

Both are in voxels of the source at full resolution, as Neuroglancer counts them: x and y
may have a fraction, and the middle of the first pixel is at 0.5. A line is in the unit of
its layer, and is turned into voxels.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError
from pipeline.geometry import Bbox, Vec3
from pipeline.specs import VoxelSize
from pipeline.stages.closures import PointPair, closure_faults

COLUMNS = ("section", "x", "y", "to_x", "to_y")
"""What a table of pairs holds; the order is free."""
LAYER = "cracks"
"""Layer of a state that is taken where several have lines."""

_NM = {"m": 1e9, "mm": 1e6, "um": 1e3, "µm": 1e3, "nm": 1.0, "pm": 1e-3}
_AXES = ("x", "y", "z")
_WHOLE = 1e-6


@dataclass(frozen=True)
class _Given:
    """A pair as it was given, in voxels of the source, and what it is called there."""

    name: str
    section: int
    x: float
    y: float
    to_x: float
    to_y: float


class _FaultError(ValueError):
    """A row or an annotation that is no pair."""


def read_point_pairs(
    path: str | Path,
    *,
    source: Bbox,
    bounds: Bbox,
    shift: Vec3,
    voxel_size_nm: VoxelSize,
) -> tuple[PointPair, ...]:
    """Read the pairs by which cracks of a stack are closed.

    Pairs of sections of the source that are not in ``bounds`` are left out.

    Parameters
    ----------
    path : str or Path
        CSV with the columns `COLUMNS`; or JSON, a state of Neuroglancer or one of its
        annotation layers, with lines from where tissue is to where it belongs.
    source : Bbox
        Of the source [voxel].
    bounds : Bbox
        What is aligned of it, shifted [voxel].
    shift : Vec3
        Offset of what is aligned from the source [voxel].
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].

    Returns
    -------
    tuple of PointPair
        In nm, shifted.

    Raises
    ------
    RecipeError
        With every row or annotation that is wrong, and how to mend it.
    """
    given, faults = _read(Path(path), voxel_size_nm)
    for pair in given:
        faults += _beside(pair, source)
    if not given and not faults:
        faults = ["holds no pairs; give at least three, on both sides of a crack"]
    kept = [p for p in given if bounds.start.z <= p.section + shift.z < bounds.stop.z]
    pairs = tuple(_in_nm(p, shift, voxel_size_nm) for p in kept)
    if not faults:
        faults = closure_faults(pairs, [p.name for p in kept], bounds, voxel_size_nm)
    if faults:
        raise RecipeError(str(path), faults)
    return pairs


def _in_nm(pair: _Given, shift: Vec3, voxel_size_nm: VoxelSize) -> PointPair:
    x, y, _ = voxel_size_nm
    return PointPair(
        section=pair.section + shift.z,
        x=(pair.x + shift.x) * x,
        y=(pair.y + shift.y) * y,
        to_x=(pair.to_x + shift.x) * x,
        to_y=(pair.to_y + shift.y) * y,
    )


def _beside(pair: _Given, source: Bbox) -> Iterator[str]:
    start, stop = source.start, source.stop
    if not start.z <= pair.section < stop.z:
        yield (
            f"{pair.name}: section {pair.section} is not in the source, which has "
            f"{start.z} to {stop.z - 1}; correct the section, or remove the pair"
        )
    elif not (start.x <= pair.x <= stop.x and start.y <= pair.y <= stop.y):
        yield (
            f"{pair.name}: x, y = {pair.x:g}, {pair.y:g} is not in section {pair.section}, "
            f"which has voxels {start.x}, {start.y} to {stop.x}, {stop.y}; give voxels of "
            "the source at full resolution"
        )


def _read(path: Path, voxel_size_nm: VoxelSize) -> tuple[list[_Given], list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RecipeError(
            str(path), [f"cannot be read ({error.strerror}); give a CSV or JSON of pairs"]
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            str(path), [f"is not text ({error}); give a CSV or JSON of pairs"]
        ) from error
    try:
        if text.lstrip()[:1] in ("{", "["):
            return _of_json(text, voxel_size_nm)
        return _of_table(text)
    except _FaultError as error:
        raise RecipeError(str(path), [str(error)]) from None


# -- a table --------------------------------------------------------------------------


def _of_table(text: str) -> tuple[list[_Given], list[str]]:
    rows = csv.reader(io.StringIO(text), skipinitialspace=True)
    header = [name.strip() for name in next(rows, [])]
    if sorted(header) != sorted(COLUMNS):
        raise _FaultError(
            f"row 1 is {','.join(header)!r}; give the header {','.join(COLUMNS)}"
        )
    given: list[_Given] = []
    faults: list[str] = []
    for row in rows:
        if not any(field.strip() for field in row):
            continue
        name = f"row {rows.line_num}"
        try:
            given.append(_of_row(name, header, row))
        except _FaultError as error:
            faults.append(f"{name}: {error}")
    return given, faults


def _of_row(name: str, header: Sequence[str], row: Sequence[str]) -> _Given:
    if len(row) != len(header):
        raise _FaultError(
            f"has {len(row)} values, {','.join(row)!r}; give {len(header)}: "
            f"{','.join(header)}"
        )
    values = dict(zip(header, (field.strip() for field in row), strict=True))
    try:
        section = int(values.pop("section"))
    except ValueError:
        raise _FaultError(
            f"section {row[header.index('section')]!r} is not a whole number; give one"
        ) from None
    return _Given(name, section, **{k: _number(k, v) for k, v in values.items()})


def _number(name: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise _FaultError(f"{name} {value!r} is not a number; give one") from None
    if not math.isfinite(number):
        raise _FaultError(f"{name} {value!r} is not finite; give a place in the section")
    return number


# -- lines in Neuroglancer ------------------------------------------------------------


def _of_json(text: str, voxel_size_nm: VoxelSize) -> tuple[list[_Given], list[str]]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise _FaultError(
            f"is not JSON: {error}; give what Neuroglancer shows as its state"
        ) from None
    layer, dimensions = _layer(document)
    scales = _scales(layer, dimensions, voxel_size_nm)
    given: list[_Given] = []
    faults: list[str] = []
    for number, annotation in enumerate(layer["annotations"], 1):
        name = f"annotation {number}"
        if isinstance(annotation, dict) and annotation.get("id"):
            name += f" ({annotation['id']})"
        try:
            given.append(_of_line(name, annotation, scales))
        except _FaultError as error:
            faults.append(f"{name}: {error}")
    return given, faults


def _layer(document: Any) -> tuple[Mapping[str, Any], Any]:
    """Find the annotation layer, and the dimensions of the state if it is in one."""
    if not isinstance(document, dict):
        raise _FaultError("is a list; give a state of Neuroglancer or one of its layers")
    if isinstance(document.get("annotations"), list):
        return document, None
    layers = document.get("layers", [])
    found = [
        layer
        for layer in (layers if isinstance(layers, list) else [])
        if isinstance(layer, dict)
        and isinstance(layer.get("annotations"), list)
        and any(
            isinstance(a, dict) and a.get("type") == "line" for a in layer["annotations"]
        )
    ]
    if len(found) > 1:
        found = [layer for layer in found if layer.get("name") == LAYER] or found
    if not found:
        raise _FaultError(
            "has no layer of annotations with lines; draw a line for each pair, from where "
            "the tissue is to where it belongs"
        )
    if len(found) > 1:
        names = ", ".join(repr(layer.get("name")) for layer in found)
        raise _FaultError(
            f"has lines in the layers {names}; name that of the pairs {LAYER!r}, or give "
            "the layer alone"
        )
    return found[0], document.get("dimensions")


def _scales(
    layer: Mapping[str, Any], dimensions: Any, voxel_size_nm: VoxelSize
) -> list[tuple[int, float]]:
    """Return where x, y and z stand in a point, and how many voxels their units are."""
    source = layer.get("source")
    if isinstance(source, list):
        source = source[0] if len(source) == 1 else None
    transform = source.get("transform") if isinstance(source, dict) else None
    transform = transform if isinstance(transform, dict) else {}
    matrix = transform.get("matrix")
    plain = [[float(i == j) for j in range(4)] for i in range(3)]
    if matrix is not None and matrix != plain:
        raise _FaultError(
            f"has lines in a layer with the transform {matrix}; draw them in a layer "
            "without one"
        )
    units = transform.get("outputDimensions", dimensions)
    if units is None:
        return [(axis, 1.0) for axis in range(3)]
    try:
        if sorted(units) != list(_AXES):
            raise _FaultError(f"has the dimensions {', '.join(units)}; it takes x, y, z")
        order = list(units)
        return [
            (order.index(axis), float(units[axis][0]) * _NM[units[axis][1]] / size)
            for axis, size in zip(_AXES, voxel_size_nm, strict=True)
        ]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, _FaultError):
            raise
        raise _FaultError(
            f"has the dimensions {units}; each of x, y, z takes a scale and a unit of "
            f"{', '.join(_NM)}"
        ) from None


def _of_line(name: str, annotation: Any, scales: Sequence[tuple[int, float]]) -> _Given:
    kind = annotation.get("type") if isinstance(annotation, dict) else annotation
    if kind != "line":
        raise _FaultError(
            f"is of the type {kind!r}; draw a line from where the tissue is to where it "
            "belongs, or remove it"
        )
    ends = []
    for end in ("pointA", "pointB"):
        point = annotation.get(end)
        if not isinstance(point, list) or len(point) != len(scales):
            raise _FaultError(f"{end} is {point!r}; it takes x, y and z")
        values = [_number(f"{end}.{a}", v) for a, v in zip(_AXES, point, strict=True)]
        ends.append([values[place] * by for place, by in scales])
    (x, y, z), (to_x, to_y, to_z) = ends
    # A place in a section is in the middle of it; a line may have been snapped to its face.
    section, other = (math.floor(v + _WHOLE) for v in (z, to_z))
    if section != other:
        raise _FaultError(
            f"goes from section {section} to {other}; draw it within the one whose tissue "
            "is to move"
        )
    return _Given(name, section, x, y, to_x, to_y)
