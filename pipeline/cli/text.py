"""Arguments read from text, results written as text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from pipeline.errors import (
    RecipeError,
)
from pipeline.geometry import Vec3

if TYPE_CHECKING:
    pass


def ints(text: str) -> list[int]:
    """Read whole numbers between commas."""
    try:
        return [int(t) for t in text.split(",")]
    except ValueError:
        raise RecipeError(repr(text), ["is not whole numbers between commas"]) from None


def vector(text: str) -> Vec3:
    """Read three whole numbers between commas."""
    return Vec3.of(ints(text))


def floats(text: str, count: int, option: str) -> list[float]:
    """Read so many numbers between commas."""
    try:
        numbers = [float(t) for t in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise RecipeError(option, [f"{text!r} is not {count} numbers between commas"])
    return numbers


def steps_between(text: str) -> list[float]:
    """Read FROM:TO:STEP as the values between."""
    try:
        start, stop, step = (float(t) for t in text.split(":"))
    except ValueError:
        start, stop, step = 0.0, 0.0, 0.0
    if not (0 <= start <= stop <= 1 and step > 0):
        raise RecipeError(
            "--thresholds", [f"{text!r} is not FROM:TO:STEP within 0 and 1, upward"]
        )
    count = int((stop - start) / step + 1e-9) + 1
    return [round(start + i * step, 9) for i in range(count)]


def number_range(text: str | None) -> tuple[float, float] | None:
    """Read two numbers, or nothing."""
    if text is None:
        return None
    low, high = floats(text, 2, "--intensity-range")
    return low, high


def print_json(document: object) -> None:
    """Print a document as JSON."""
    typer.echo(json.dumps(document, indent=2))


def print_table(columns: list[str], rows: list[list[Any]]) -> None:
    """Print rows under their columns, numbers to the right."""
    cells = [columns, *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    is_number = [
        bool(rows) and all(not isinstance(r[i], str) or _is_number(r[i]) for r in rows)
        for i in range(len(columns))
    ]
    for row in cells:
        typer.echo(
            "  ".join(
                c.rjust(w) if number else c.ljust(w)
                for c, w, number in zip(row, widths, is_number, strict=True)
            ).rstrip()
        )


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
