"""Given our supervoxels, waterz agglomerates them into our segments.

Waterz is another implementation of mean-affinity agglomeration (Funke et al. 2018). Its
means are float32 and it has no rule for equal ones, so it can only be asked about volumes
whose means are all apart. Each affinity here is another multiple of 2**-20, which is what
ours are rounded to and what float32 holds, so that no two faces tie by rounding; means of
several faces that meet by chance would have to do so within a few 2**-24, and decide
something, to tell the two apart. Names differ and are not compared.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from pipeline.geometry import Vec3

from . import system
from .cases import Case, Volume, cuts

waterz = pytest.importorskip("waterz", reason="waterz is not installed")

THRESHOLDS = (0.35, 0.4, 0.5)
SHAPE = Vec3(24, 20, 16)


def distinct_affinities(shape: Vec3, seed: int) -> np.ndarray:
    """Draw affinities of which no two are equal."""
    rng = np.random.default_rng(seed)
    steps = rng.permutation(2**20)[: 3 * shape.product].reshape(*shape, 3)
    return np.asfortranarray(steps / 2**20, np.float32)


def volume(threshold: float, seed: int, given: str = "") -> Volume:
    return Volume(
        kind="distinct",
        dtype="float32",
        given=given,
        shape=SHAPE,
        start=Vec3(0, 0, 0),
        id_chunk=Vec3(8, 8, 8),
        low=0.05,
        high=0.995,
        size_threshold=20,
        dust=6,
        threshold=threshold,
        floor=1.0,
        masks="",
        rules=None,
        in_partitions=False,
        threads=1,
        seed=seed,
    )


def by_waterz(affinities, supervoxels, threshold):
    """Agglomerate dense labels, in waterz's z, y, x."""
    ids = np.unique(np.append(supervoxels, np.uint64(0)))
    fragments = np.ascontiguousarray(np.searchsorted(ids, supervoxels).T, np.uint64)
    turned = np.ascontiguousarray(affinities.T)[::-1].copy()
    (segments,) = waterz.agglomerate(
        turned,
        [1 - threshold],
        fragments=fragments,
        scoring_function="OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>",
    )
    return segments.T


def partition(labels):
    """Name every label after its first voxel."""
    ids, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.where(ids == 0, -1, first)[inverse].reshape(labels.shape)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_waterz_makes_our_partition(threshold, seed):
    case_volume = volume(threshold, seed)
    affinities = distinct_affinities(SHAPE, seed)
    chunk = list(cuts(SHAPE, random.Random(seed)))[2]
    ours = system.run(Case(case_volume, chunk, seed, "F"), {"affinities": affinities})
    theirs = by_waterz(affinities, ours.supervoxels, threshold)
    np.testing.assert_array_equal(partition(ours.segments), partition(theirs))
    assert len(np.unique(ours.segments)) < len(np.unique(ours.supervoxels))
