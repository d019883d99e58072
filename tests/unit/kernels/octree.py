"""Chunks in a row, and their octree: enough to try what nodes decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.geometry import ChunkKey
from pipeline.kernels.merge_basins import Outcomes

LOWER, UPPER = 0b000001, 0b001000
"""Faces across the row."""


def swept_up(
    leaves: Sequence[Any], decide: Callable[..., tuple[Any, Outcomes]]
) -> tuple[Any, list[dict[ChunkKey, Outcomes]]]:
    """Decide every node over a row of 2**n chunks.

    Parameters
    ----------
    leaves : sequence
        State of each chunk before anything is decided.
    decide : function of children, octants and outward
        Returns the state of a node, and its outcomes.

    Returns
    -------
    state
        Of the top.
    outcomes : list of dict
        By level, and there by key.
    """
    states, levels = {}, [{}]
    for x, leaf in enumerate(leaves):
        key = ChunkKey(0, x, 0, 0)
        states[key], levels[0][key] = decide([leaf])
    while len(states) > 1:
        children: dict[ChunkKey, list[ChunkKey]] = {}
        for key in states:
            children.setdefault(key.parent, []).append(key)
        above, outcomes = {}, {}
        for parent, keys in children.items():
            above[parent], outcomes[parent] = decide(
                [states[k] for k in keys],
                octants=[k.octant for k in keys],
                outward=[k.outward_faces for k in keys],
            )
        states = above
        levels.append(outcomes)
    (state,) = states.values()
    return state, levels


def handed_down(levels: Sequence[Mapping[ChunkKey, Outcomes]]) -> dict[int, int]:
    """Follow every id from its chunk up to where it is settled."""
    found: dict[int, set[int]] = {}
    for key, leaf in levels[0].items():
        for label, target, settled in rows(leaf):
            at = key
            while not settled:
                octant, at = at.octant, at.parent
                above = levels[at.level][at]
                (row,) = np.flatnonzero((above.ids == target) & (above.child == octant))
                target, settled = int(above.targets[row]), bool(above.settled[row])
            found.setdefault(label, set()).add(target)
    assert all(len(targets) == 1 for targets in found.values()), "chunks disagree"
    return {label: targets.pop() for label, targets in found.items()}


def rows(outcomes: Outcomes) -> list[tuple[int, int, bool]]:
    """List ids, targets and whether they are settled."""
    columns = (outcomes.ids, outcomes.targets, outcomes.settled.astype(bool))
    return list(zip(*(c.tolist() for c in columns), strict=True))


def open_faces(chunk: int, n_chunks: int, reaches: set[int]) -> int:
    """Return the faces of a chunk that are shared with the chunks reached."""
    lower = LOWER if chunk > 0 and chunk - 1 in reaches else 0
    upper = UPPER if chunk + 1 < n_chunks and chunk + 1 in reaches else 0
    return lower | upper
