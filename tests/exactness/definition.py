"""What a case must come to, by definition, and how the stages are held to it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import oracle, system
from .cases import MYELIN_THRESHOLD, Case, Volume, cuts
from .system import Result


def expected(volume: Volume) -> Result:
    """Segment a volume by definition."""
    layers = volume.layers()
    affinities = layers["affinities"]
    supervoxels = given(volume) if volume.given else made(volume, layers)
    graph = oracle.region_graph(
        supervoxels, affinities, volume.start, layers.get("semantics")
    )
    agglomeration = oracle.agglomerate(
        graph,
        scale=oracle.scale_of(affinities),
        floor=min(volume.floor, volume.threshold),
        rules=volume.rules,
    )
    targets = agglomeration.segments(graph.regions, volume.threshold)
    segments = oracle.applied(supervoxels, targets)
    refused = sorted(agglomeration.refused, key=lambda refusal: refusal.key)
    return Result(supervoxels, graph, agglomeration.history, refused, segments)


def made(volume: Volume, layers: dict[str, NDArray[Any]]) -> NDArray[np.uint64]:
    """Make the supervoxels of a volume by definition."""
    masked = np.zeros(volume.shape.astuple(), bool)
    if "mask" in layers:
        masked |= layers["mask"] == 0
    if "myelin" in layers:
        top = 255 if layers["myelin"].dtype == np.uint8 else 1
        masked |= layers["myelin"] > MYELIN_THRESHOLD * top
    return oracle.supervoxels(
        layers["affinities"],
        masked=masked,
        low=volume.low,
        high=volume.high,
        size_threshold=volume.size_threshold,
        dust=volume.dust,
        id_chunk=volume.id_chunk,
    )


def given(volume: Volume) -> NDArray[np.uint64]:
    """Name the supervoxels that a volume is given with."""
    members: dict[int, list[int]] = {}
    for place, part in enumerate(volume.parts().ravel("F").tolist()):
        if part != 0:
            members.setdefault(part, []).append(place)
    return oracle.named(members.values(), volume.shape, volume.id_chunk)


def assert_exact(case: Case, result: Result) -> None:
    """Run the stages of a case and compare, to the last byte."""
    layers = case.volume.layers()
    if case.volume.given:
        layers["supervoxels"] = result.supervoxels
    found = system.run(case, layers)
    for name in ("supervoxels", "segments"):
        ours, theirs = getattr(found, name), getattr(result, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs, f"{name} of {case}")
    assert found.graph == result.graph, case
    assert found.history == result.history, case
    assert found.refused == result.refused, case


def assert_every_cut_is_exact(volume: Volume) -> int:
    """Compare a volume cut in several ways; return in how many."""
    result = expected(volume)
    rng = random.Random(volume.seed)
    count = 0
    for chunk in cuts(volume.shape, rng):
        order = rng.choice(("F", "C"))
        assert_exact(Case(volume, chunk, rng.randrange(2**32), order), result)
        count += 1
    return count
