"""Which number a file of a folder of sections has, and which numbers are missing."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pipeline.errors import SourceError


@dataclass(frozen=True)
class Numbering:
    """The files of a folder in order, with a place for every number that is missing.

    Parameters
    ----------
    files : tuple of (Path or None)
        By section; None where no file has the number.
    numbers : tuple of int, or None
        Of each; None where the names do not say.
    remarks : tuple of str
        What is to be told of them.
    """

    files: tuple[Path | None, ...]
    numbers: tuple[int, ...] | None
    remarks: tuple[str, ...]


def natural(path: Path) -> list[tuple[int, str]]:
    """Return what files are sorted by, so that ``s9.png`` comes before ``s10.png``."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts]


def number_sections(location: str, files: Sequence[Path]) -> Numbering:
    """Tell the numbers of sections by the one number in which their names differ.

    Numbers may go up by more than one; what divides all their differences is the step.

    Parameters
    ----------
    location : str
        What the user gave.
    files : sequence of Path
        In their order.

    Raises
    ------
    SourceError
        If two files have one number, or if more numbers are missing than there are files.
    """
    names = [re.split(r"(\d+)", path.stem) for path in files]
    if len(names) < 2:
        return Numbering(tuple(files), None, ())
    numbers = _numbers(names)
    if numbers is None:
        unknown = (
            f"{location}: which section has which number cannot be told from names like "
            f"{files[0].name} and {files[-1].name}; they are taken in this order, and none "
            "is known to be missing"
        )
        return Numbering(tuple(files), None, (unknown,))
    by_number: dict[int, Path] = {}
    for number, path in zip(numbers, files, strict=True):
        if number in by_number:
            raise SourceError(
                f"{location}: {by_number[number].name} and {path.name} are both section "
                f"{number}; keep one of them"
            )
        by_number[number] = path
    found = sorted(by_number)
    step = math.gcd(*(b - a for a, b in pairwise(found)))
    whole = range(found[0], found[-1] + 1, step)
    missing = len(whole) - len(found)
    if missing > len(found):
        raise SourceError(
            f"{location}: numbers go from {found[0]} ({by_number[found[0]].name}) to "
            f"{found[-1]} ({by_number[found[-1]].name}), and {missing} of {len(whole)} are "
            "missing; number the files by section"
        )
    remarks = [
        f"{location}: no file has number {said} (between {by_number[a].name} and "
        f"{by_number[b].name}); blank in its place"
        for a, b in pairwise(found)
        if b - a > step
        for said in [", ".join(map(str, range(a + step, b, step)))]
    ]
    if step > 1:
        remarks.insert(0, f"{location}: numbers of sections go up by {step}")
    return Numbering(tuple(by_number.get(n) for n in whole), tuple(whole), tuple(remarks))


def _numbers(names: Sequence[Sequence[str]]) -> list[int] | None:
    """Return the one number that differs; None if others differ too, or other text."""
    if len({tuple(parts[::2]) for parts in names}) > 1:
        return None
    columns = [[int(p[i]) for p in names] for i in range(1, len(names[0]), 2)]
    differ = [c for c in columns if len(set(c)) > 1]
    if not columns or len(differ) > 1:
        return None
    # Where none differs, the files differ in leading zeros alone.
    return (differ or columns[-1:])[0]
