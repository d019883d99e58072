"""Stages equal definitions, to the last byte, for any affinities and any cut.

The stages run chunk by chunk, as a run would; the definitions see the whole volume and
decide one thing at a time. A case is a volume, its parameters, and a grid of chunks.
"""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from pipeline.geometry import Vec3

from .cases import (
    DTYPES,
    GIVEN,
    KINDS,
    LARGEST,
    MASKS,
    MOST_CHUNKS,
    VAST,
    Case,
    Volume,
    draw_rules,
    n_chunks,
    volumes,
)
from .definition import assert_every_cut_is_exact, assert_exact, expected

VOLUMES = 3
"""Volumes of each test of the sweep."""


@pytest.mark.slow
@pytest.mark.exact
@pytest.mark.parametrize("block", range(10))
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_sweep(kind, dtype, given, block, count_cases):
    for volume in itertools.islice(volumes(kind, dtype, given, block), VOLUMES):
        count_cases(assert_every_cut_is_exact(volume))


@pytest.mark.slow
@pytest.mark.exact
@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_sweep_of_vast_volumes(kind, dtype, block, count_cases):
    count_cases(
        assert_every_cut_is_exact(next(volumes(kind, dtype, "", block, largest=VAST)))
    )


@pytest.mark.slow
@pytest.mark.exact
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("kind", KINDS)
def test_sweep_of_merging_in_partitions(kind, given, count_cases):
    volume = next(volumes(kind, "uint8", given, 0, in_partitions=True))
    count_cases(assert_every_cut_is_exact(volume))


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_sample(kind, dtype, given, count_cases):
    """Look at where the sweep begins."""
    for volume in itertools.islice(volumes(kind, dtype, given, 0), 1 if given else 2):
        count_cases(assert_every_cut_is_exact(volume))


def extents(largest: Vec3) -> st.SearchStrategy[Vec3]:
    return st.builds(Vec3, *(st.integers(1, n) for n in largest))


VOLUME = st.builds(
    Volume,
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    given=st.sampled_from(GIVEN),
    shape=extents(LARGEST),
    start=st.builds(Vec3, *[st.integers(-9, 9)] * 3),
    id_chunk=st.builds(Vec3, *[st.integers(1, 13)] * 3),
    low=st.sampled_from([0.0, 0.3, 0.5]) | st.floats(0, 0.5),
    high=st.sampled_from([0.6, 0.99, 2.0]) | st.floats(0.51, 1),
    size_threshold=st.integers(0, 60),
    dust=st.integers(0, 30),
    threshold=st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1),
    floor=st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1),
    masks=st.sampled_from(MASKS),
    rules=st.none() | st.randoms(use_true_random=False).map(draw_rules),
    in_partitions=st.just(False),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)


@st.composite
def cases(draw) -> Case:
    volume = draw(VOLUME)
    chunk = draw(
        extents(volume.shape + 2).filter(
            lambda c: n_chunks(volume.shape, c.astuple()) <= MOST_CHUNKS
        )
    )
    return Case(volume, chunk, draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from("FC")))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sample_of_vast_volumes(dtype, count_cases):
    volume = next(volumes("continuous", dtype, "", -1, largest=VAST))
    count_cases(assert_every_cut_is_exact(volume))


def test_sample_of_merging_in_partitions(count_cases):
    small = {"largest": Vec3(6, 5, 4), "in_partitions": True}
    volume = next(volumes("three-level", "uint8", "", -1, **small))
    assert_exact(Case(volume, Vec3(2, 3, 2), 0, "F"), expected(volume))
    count_cases(1)


@settings(max_examples=60)
@hypothesis.given(case=cases())
def test_any_case(case, count_cases):
    assert_exact(case, expected(case.volume))
    count_cases(1)


def test_the_sweep_is_not_vacuous():
    """Its volumes have dust, contacts, merges, and ties that decide the order of merges."""
    seen = Counter()
    for kind, dtype, given in itertools.product(KINDS, DTYPES, GIVEN):
        result = expected(next(volumes(kind, dtype, given, 0)))
        means = [Fraction(m.affinity, m.area) for m in result.history]
        seen["dust"] += bool((result.supervoxels == 0).any())
        seen["contacts"] += len(result.graph.contacts)
        seen["merges"] += len(means)
        seen["ties"] += len(means) - len(set(means))
    assert seen["dust"] > 5
    assert seen["contacts"] > 2000
    assert seen["merges"] > 500
    assert seen["ties"] > 200


def test_a_cut_that_forgets_its_halo_is_seen(monkeypatch):
    """The comparison has teeth: affinities blanked beyond a chunk change the result."""
    from pipeline.stages.supervoxels import Basins

    process = Basins.process

    def blind(self, task, affinities, **masks):
        seen = np.zeros_like(affinities)
        seen[task.core] = affinities[task.core]
        return process(self, task, affinities=seen, **masks)

    monkeypatch.setattr(Basins, "process", blind)
    few = itertools.islice(volumes("continuous", "float32", "", 0), VOLUMES)
    with pytest.raises(AssertionError, match="supervoxels of Case"):
        sum(assert_every_cut_is_exact(volume) for volume in few)
