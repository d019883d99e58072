"""Every augmentation in one picture: `python -m pipeline.training.gallery FILE.png`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.layers.sources import open_source
from pipeline.training.augmentation import grey, warp
from pipeline.training.augmentation.plan import KINDS, Plan
from pipeline.training.augmentation.warp import PlaneMap, draw, draw_grey, plane_map, room
from pipeline.training.config import Augmentation

Shown = tuple[Plan, list[PlaneMap], Callable[[Generator, Any], Any]]

_PHANTOM = "phantom://200,200,20/{}?seed=3"
_EXTENT, _SECTIONS, _SEED = 104, 10, 5
_TILES = range(3, 7)
_LABEL, _GAP, _THICKNESS = 118, 3, 5
_CELL_BORDER = np.array([255, 170, 40], np.float32)
_COLOURS = 48
_SETTINGS = Augmentation(
    max_shift=(16,), max_missing=2, max_blurred=3, max_sigma=3.0, partial=0.5
)


def gallery() -> Image.Image:
    """Draw synthetic neuropil, altered in every way there is.

    Returns
    -------
    Image
        A row for each: four sections in a row, and all ten from the side, five pixels
        each. Borders of cells, of which affinities are made, are orange.
    """
    with open_source(_PHANTOM.format("image")) as source:
        image = source.read(source.bounds)
    with open_source(_PHANTOM.format("labels")) as source:
        cells = source.read(source.bounds)
    rows = [_row(name, image, cells, *shown) for name, shown in _kinds().items()]
    width = max(row.width for row in rows)
    sheet = Image.new("RGB", (width, sum(row.height + _GAP for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + _GAP
    return sheet.quantize(_COLOURS, dither=Image.Dither.NONE)


def _kinds() -> Mapping[str, Shown]:
    rng = np.random.default_rng(_SEED)
    still = Plan.untouched(_SECTIONS)
    same = plane_map(np.eye(3), (_EXTENT, _EXTENT))
    maps = [same] * _SECTIONS
    extent = (_EXTENT, _EXTENT)

    def mapped(matrix: warp.Matrix, bent: PlaneMap | None = None) -> list[PlaneMap]:
        return [plane_map(matrix, extent, bent)] * _SECTIONS

    def planned(kind: str, **changes: Any) -> Shown:
        config = _SETTINGS.model_copy(update=changes)
        return _seen(kind, still, config), maps, _as_it_is

    turned = [plane_map(m, extent) for m in warp.twist(rng, 70, _SECTIONS)]
    flip = np.diag([-1.0, 1.0, 1.0])[[1, 0, 2]]
    return {
        "as it is": (still, maps, _as_it_is),
        "flip and rotation by 90": (still, mapped(flip), _as_it_is),
        "rotation": (still, mapped(warp.rotation(33)), _as_it_is),
        "scale": (still, mapped(np.diag([0.7, 0.7, 1.0])), _as_it_is),
        "shear": (still, mapped(warp.shear(rng, 0.5)), _as_it_is),
        "perspective stretch": (
            still,
            mapped(warp.stretch(rng, 0.4, extent)),
            _as_it_is,
        ),
        "twist": (still, turned, _as_it_is),
        "bend": (still, mapped(np.eye(3), warp.bend(rng, 6.0, extent)), _as_it_is),
        "brightness, contrast": (still, maps, lambda r, i: grey.vary(r, i, 0.4)),
        "out of focus": (still, maps, lambda r, i: grey.defocus(r, i, _SETTINGS)),
        "misalignment: step": planned("misalign", slip=0.0),
        "misalignment: slip": planned("misalign", slip=1.0, interpolate=False),
        "slip interpolation": planned("misalign", slip=1.0),
        "missing, full": planned("missing"),
        "missing, partial": (
            *planned("missing")[:2],
            lambda r, i: i,
        ),
        "misalignment + missing": planned("misalign_missing", slip=0.0),
        "lost": planned("lost"),
        "lost + missing": planned("lost_missing"),
    }


def _seen(kind: str, still: Plan, config: Augmentation) -> Plan:
    """Return the first plan that happens where the picture shows it."""
    shown = list(_TILES)[1:3]
    for seed in range(1000):
        plan = KINDS[kind](np.random.default_rng(seed), still, config)
        moved = np.abs(np.diff(plan.image_shift, axis=0)).max(axis=1)
        changed = {
            *np.flatnonzero(plan.missing).tolist(),
            *(np.flatnonzero(moved) + 1).tolist(),
            *(np.flatnonzero(np.diff(plan.source) > 1) + 1).tolist(),
        }
        far = not plan.furthest or plan.furthest > max(config.max_shift) // 2
        if shown[0] in changed and far and len(changed) <= len(shown):
            return plan
    raise LookupError(f"{kind} never happens in sections {shown}")


def _as_it_is(rng: Generator, image: Any) -> Any:
    return image


def _row(
    name: str,
    image: NDArray[np.uint8],
    cells: NDArray[Any],
    plan: Plan,
    maps: list[PlaneMap],
    change: Callable[[Generator, Any], Any],
) -> Image.Image:
    rng = np.random.default_rng(_SEED)
    places = room(maps, image.shape[:2], plan.furthest)
    middle, where = places.sum(axis=1) // 2, plan.source + 4
    greys = change(rng, draw_grey(image, maps, middle, where, plan.image_shift))
    if plan.missing.any():
        greys = grey.blank(rng, greys, plan.missing, float("partial" in name))
    labels = draw(cells, maps, middle, where, plan.truth_shift)
    pictures = [_section(greys[:, :, z], labels[:, :, z]) for z in _TILES]
    y = _EXTENT // 2
    side = _section(greys[:, y], labels[:, y])
    pictures.append(
        side.resize((_EXTENT, _SECTIONS * _THICKNESS), Image.Resampling.NEAREST)
    )
    width = _LABEL + sum(picture.width + _GAP for picture in pictures)
    row = Image.new("RGB", (width, _EXTENT), "white")
    words = name.replace(": ", ":\n").replace(" + ", "\n+ ").replace(", ", ",\n")
    ImageDraw.Draw(row).multiline_text((2, _EXTENT // 2 - 14), words, fill="black")
    left = _LABEL
    for picture in pictures:
        row.paste(picture, (left, (_EXTENT - picture.height) // 2))
        left += picture.width + _GAP
    return row


def _section(greys: NDArray[np.float32], labels: NDArray[Any]) -> Image.Image:
    """Draw one plane, borders of cells on top."""
    border = np.zeros(labels.shape, bool)
    border[1:] |= labels[1:] != labels[:-1]
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    colour = np.repeat(greys[..., None] * np.float32(255), 3, axis=2)
    colour[border] = 0.35 * colour[border] + 0.65 * _CELL_BORDER
    return Image.fromarray(np.ascontiguousarray(colour.swapaxes(0, 1)).astype(np.uint8))


def main(path: Path) -> None:
    """Write the picture."""
    gallery().save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
