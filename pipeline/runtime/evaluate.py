"""Scores of a run against its truth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, MissingInputError
from pipeline.geometry import ChunkKey, Grid
from pipeline.layers.store import Store
from pipeline.metrics import ContingencyTable, RunLength, Scores, Skeleton, scores
from pipeline.metrics.run_length import expected_run_length
from pipeline.runtime.run import Run
from pipeline.specs import Region, VolumeSpec
from pipeline.stages.overlaps import Overlaps

MERGE_THRESHOLD = 50
"""Nodes of further skeletons that a segment may cover and not count as a merger."""


def evaluate(run: Run) -> Scores:
    """Score the segmentation of a run against its truth.

    VOI and Rand come from the ``overlaps`` stage, run lengths from the skeletons of the
    truth, where the recipe makes them.

    Raises
    ------
    MissingInputError
        If the recipe has no ``overlaps`` stage, or has not come to its end.
    DataError
        If the truth is empty.
    """
    stage = next((s for s in run.recipe.stages if isinstance(s, Overlaps)), None)
    if stage is None:
        raise MissingInputError(
            f"recipe {run.recipe.name} has no overlaps stage, so there is no truth to "
            "score against; add one, or give --truth to em reconstruct"
        )
    table = run.store.read(stage.root)
    overlap = ContingencyTable(table["segment"], table["truth"], table["count"])
    skeletons, nodes = truth_nodes(run, stage.truth, stage.segmentation)
    try:
        return scores(overlap, run_length(skeletons, nodes))
    except ValueError as error:
        raise DataError(
            f"{stage.truth}: {error}; is it the right label volume and box?"
        ) from error


def truth_nodes(
    run: Run, truth: str, layer: str
) -> tuple[dict[int, Skeleton], dict[int, NDArray[np.uint64]]]:
    """Read the skeletons of the truth, and the ids of a layer at their nodes.

    Returns
    -------
    skeletons : dict of int to Skeleton
        By truth id; empty where the run makes none.
    nodes : dict of int to uint64 array, (n,)
        Id of the layer at each node of each skeleton.
    """
    name, spec = f"{truth}/skeletons", run.specs[layer]
    if name not in run.specs or not isinstance(spec, VolumeSpec):
        return {}, {}
    read = {k: run.store.read_skeleton(name, k) for k in run.store.segments(name)}
    skeletons = {k: Skeleton(s.vertices, s.edges) for k, s in read.items() if len(s.edges)}
    if not skeletons:
        return {}, {}
    points = np.concatenate([s.vertices_nm for s in skeletons.values()])
    found = segments_at(run.store, layer, spec, points)
    ends = np.cumsum([len(s.vertices_nm) for s in skeletons.values()])[:-1]
    return skeletons, dict(zip(skeletons, np.split(found, ends), strict=True))


def run_length(
    skeletons: dict[int, Skeleton], nodes: dict[int, NDArray[np.uint64]]
) -> RunLength | None:
    """Return the expected run length, or None without skeletons."""
    if not skeletons:
        return None
    return expected_run_length(skeletons, nodes, merge_threshold=MERGE_THRESHOLD)


def segments_at(
    store: Store, layer: str, spec: VolumeSpec, points_nm: NDArray[np.float32]
) -> NDArray[np.uint64]:
    """Look up the segment at points, reading each storage chunk once.

    Parameters
    ----------
    store : Store
        Where the layer is.
    layer : str
        Volume of ids.
    spec : VolumeSpec
        What it holds.
    points_nm : float32 array, (n, 3)
        x, y, z [nm]; those outside take the nearest voxel.

    Returns
    -------
    uint64 array, (n,)
    """
    start = np.array(spec.bounds.start.astuple())
    stop = np.array(spec.bounds.stop.astuple())
    voxels = np.floor(points_nm.astype(np.float64) / np.array(spec.voxel_size_nm))
    voxels = np.clip(voxels.astype(np.int64), start, stop - 1)
    grid = Grid(spec.bounds, spec.storage_chunk)
    chunk = (voxels - start) // np.array(spec.storage_chunk.astuple())
    result = np.zeros(len(voxels), np.uint64)
    for place in np.unique(chunk, axis=0):
        rows = (chunk == place).all(axis=1)
        box = grid.box(ChunkKey(0, *(int(p) for p in place)))
        ids = store.read(Region(layer, box))
        inside = voxels[rows] - np.array(box.start.astuple())
        result[rows] = ids[inside[:, 0], inside[:, 1], inside[:, 2]]
    return result
