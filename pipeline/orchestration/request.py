"""What somebody asks for in a form: a recipe, with another box and other settings."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import GeometryError, RecipeError
from pipeline.geometry import Bbox, Vec3
from pipeline.recipe import Recipe


def read_recipe(
    text: str,
    folder: Path,
    *,
    name: str = "",
    bbox: str = "",
    overrides: Mapping[str, Any] | None = None,
) -> Recipe:
    """Read a recipe and change it as asked.

    Parameters
    ----------
    text : str
        Name of a recipe in the folder, or a recipe as TOML.
    folder : Path
        Where recipes are kept; local places in a recipe count from here.
    name : str
        Another name for the run.
    bbox : str
        Another box, ``x0,y0,z0,x1,y1,z1`` in voxels of ``[grid]``. Boxes that stages of
        coarser voxels give themselves follow it.
    overrides : mapping or None
        ``LAYER.FIELD``, with the value that the field of its stage takes; or
        ``grid.FIELD``, or ``layers.NAME`` with a location.

    Raises
    ------
    RecipeError
        With everything that is wrong.
    """
    document = _document(text, folder)
    if name:
        document["name"] = name
    faults = [*_set(document, overrides or {}), *_move(document, bbox)]
    if faults:
        raise RecipeError("request", faults)
    recipe = Recipe.parse(document, source="recipe")
    return Recipe(recipe.name, recipe.stages, _placed(recipe.layers, folder))


def _document(text: str, folder: Path) -> dict[str, Any]:
    """Return what the TOML holds."""
    text = text.strip()
    is_name = "\n" not in text and "=" not in text
    path = folder / f"{text}.toml"
    if is_name and path.parent == folder and path.is_file():
        text = path.read_text()
    elif is_name:
        names = ", ".join(sorted(p.stem for p in folder.glob("*.toml")))
        raise RecipeError(
            "request", [f"there is no recipe {text!r}; give its TOML, or one of {names}"]
        )
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError("request", [f"the recipe is not TOML: {error}"]) from error


def _set(document: dict[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    entries = document.get("stage")
    stages = (
        [s for s in entries if isinstance(s, dict)] if isinstance(entries, list) else []
    )
    faults = []
    for place, value in overrides.items():
        target, dot, field = place.rpartition(".")
        found = [s for s in stages if s.get("output") == target]
        if target in ("grid", "layers"):
            found = [document.setdefault(target, {})]
        if not dot or len(found) != 1:
            outputs = ", ".join(str(s.get("output")) for s in stages)
            faults.append(
                f"override {place!r} names no field; give LAYER.FIELD with one of the "
                f"layers {outputs}, or grid.FIELD or layers.NAME"
            )
            continue
        found[0][field] = value
    return faults


def _move(document: dict[str, Any], bbox: str) -> list[str]:
    """Put another box in the place of the recipe's, and of those of coarser stages."""
    if not bbox.strip():
        return []
    try:
        wanted = Bbox.parse(bbox)
        before = _bounds(document["grid"])
    except GeometryError as error:
        return [f"bbox: {error}"]
    except (KeyError, TypeError, ValueError):
        return ["bbox: the recipe gives no bounds in [grid] that it could replace"]
    if wanted.is_empty:
        return [f"bbox {wanted} is empty; give x0,y0,z0,x1,y1,z1 with each end beyond"]
    document["grid"]["bounds"] = _table(wanted)
    faults = []
    for entry in document.get("stage", []):
        if not isinstance(entry, dict) or "bounds" not in entry:
            continue
        own = _bounds(entry)
        ratio = Vec3.of(
            [round(a / max(b, 1)) for a, b in zip(before.shape, own.shape, strict=True)]
        )
        if min(ratio) < 1 or before.coarser(ratio) != own:
            faults.append(
                f"bbox: stage {entry.get('output')} has bounds {own} that do not follow "
                f"from {before} of [grid]; override {entry.get('output')}.bounds as well"
            )
            continue
        entry["bounds"] = _table(wanted.coarser(ratio))
    return faults


def _bounds(table: dict[str, Any]) -> Bbox:
    bounds = table["bounds"]
    return Bbox(Vec3.of(bounds["start"]), Vec3.of(bounds["stop"]))


def _table(box: Bbox) -> dict[str, list[int]]:
    return {"start": list(box.start), "stop": list(box.stop)}


def _placed(layers: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Count local places from the folder of recipes."""
    return {
        name: place
        if "://" in place
        else str((folder / Path(place).expanduser()).resolve())
        for name, place in layers.items()
    }
