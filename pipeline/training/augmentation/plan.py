"""Which sections a patch shows, and how they lie: misaligned, missing and lost ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pipeline.training.config import Augmentation

Integers: TypeAlias = NDArray[np.int64]

_FEWEST = 4
"""Sections without which none can be misaligned, missing or lost."""

_MISSING_IN_A_ROW = 2


@dataclass(frozen=True)
class Plan:
    """What each section of a patch shows.

    Parameters
    ----------
    source : int array, (section,)
        Which section of the volume it is, from the first that is shown.
    image_shift, truth_shift : int array, (section, 2)
        How far image and truth come from elsewhere, along x and y [voxel].
    missing : bool array, (section,)
        Whether its image is missing.
    """

    source: Integers
    image_shift: Integers
    truth_shift: Integers
    missing: NDArray[np.bool_]

    @classmethod
    def untouched(cls, n: int) -> Plan:
        """Show `n` sections in a row as they are."""
        still = np.zeros((n, 2), dtype=np.int64)
        return cls(np.arange(n), still, still, np.zeros(n, dtype=bool))

    @property
    def span(self) -> int:
        """Sections of the volume from the first shown to the last."""
        return int(self.source.max()) + 1

    @property
    def furthest(self) -> int:
        """Greatest shift [voxel]."""
        return int(max(abs(self.image_shift).max(), abs(self.truth_shift).max()))


def choose(rng: Generator, n: int, config: Augmentation) -> Plan:
    """Do at most one of the things that exclude one another.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    n : int
        Sections of the patch; if there are few, nothing is done to them.
    config : Augmentation
        How often each.

    Returns
    -------
    Plan
        What the patch shows.
    """
    plan, chance = Plan.untouched(n), rng.random()
    if n < _FEWEST:
        return plan
    for name, share in config.exclusive.items():
        if chance < share:
            return KINDS[name](rng, plan, config)
        chance -= share
    return plan


def misalign(rng: Generator, plan: Plan, config: Augmentation) -> Plan:
    """Move all sections from one on (a step), or one alone (a slip).

    A step moves image and truth. A slip moves the image; the truth stays where it was if
    the net shall interpolate ("slip interpolation").
    """
    at, shift = _place(rng, plan), _shift(rng, config)
    if rng.random() >= config.slip:
        return _moved(plan, slice(at, None), shift)
    return _moved(plan, slice(at, at + 1), shift, truth=not config.interpolate)


def missing(rng: Generator, plan: Plan, config: Augmentation) -> Plan:
    """Take out two sections in a row, some single ones, or both."""
    gone, kind = plan.missing.copy(), rng.integers(3)
    n = len(gone)
    if kind != 1:
        at = int(rng.integers(n - _MISSING_IN_A_ROW + 1))
        gone[at : at + _MISSING_IN_A_ROW] = True
    if kind != 0:
        count = int(rng.integers(1, min(config.max_missing, n // 2) + 1))
        gone[rng.choice(n, size=count, replace=False)] = True
    return replace(plan, missing=gone)


def misalign_missing(rng: Generator, plan: Plan, config: Augmentation) -> Plan:
    """Take out a section, or two, where others move.

    Where a step is hidden, the truth of what is missing lies half way, so that the net
    learns to pass smoothly from one side to the other; the truth of a hidden slip stays.
    """
    at, shift = _place(rng, plan), _shift(rng, config)
    if rng.random() < config.slip:
        hidden = slice(at, at + 1)
        moved = _moved(plan, hidden, shift, truth=False)
    else:
        hidden = slice(at, at + int(rng.integers(1, _MISSING_IN_A_ROW + 1)))
        moved = _moved(_moved(plan, slice(at, None), shift), hidden, -shift)
        moved = _moved(moved, hidden, np.rint(shift / 2).astype(np.int64))
    gone = plan.missing.copy()
    gone[hidden] = True
    return replace(moved, missing=gone)


def lost(rng: Generator, plan: Plan, config: Augmentation) -> Plan:
    """Cut out one section with its truth, or two in a row, or both in two places."""
    kind, source = rng.integers(3), plan.source.copy()
    for gap in (gap for gap in (1, 2) if kind in (gap - 1, 2)):
        source[_place(rng, plan) :] += gap
    return replace(plan, source=source)


def lost_missing(rng: Generator, plan: Plan, config: Augmentation) -> Plan:
    """Put one missing section, with the truth of the middle one, in the place of three."""
    at, source, gone = _place(rng, plan), plan.source.copy(), plan.missing.copy()
    source[at:] += 1
    source[at + 1 :] += 1
    gone[at] = True
    return replace(plan, source=source, missing=gone)


KINDS: dict[str, Callable[[Generator, Plan, Augmentation], Plan]] = {
    "misalign": misalign,
    "missing": missing,
    "misalign_missing": misalign_missing,
    "lost": lost,
    "lost_missing": lost_missing,
}
"""What excludes one another, by the name of its chance."""


def _place(rng: Generator, plan: Plan) -> int:
    return int(rng.integers(1, len(plan.source) - 1))


def _shift(rng: Generator, config: Augmentation) -> Integers:
    furthest = config.max_shift[int(rng.integers(len(config.max_shift)))]
    return rng.integers(-furthest, furthest + 1, size=2)


def _moved(plan: Plan, which: slice, shift: Integers, *, truth: bool = True) -> Plan:
    image, kept = plan.image_shift.copy(), plan.truth_shift.copy()
    image[which] += shift
    if truth:
        kept[which] += shift
    return replace(plan, image_shift=image, truth_shift=kept)
