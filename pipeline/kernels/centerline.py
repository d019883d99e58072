"""Centrelines of segments by TEASAR, meeting at the seams of chunks (kimimaro)."""

from __future__ import annotations

from dataclasses import dataclass

import kimimaro
import numpy as np
from numpy.typing import NDArray
from osteoid import Skeleton as _Osteoid
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


@dataclass(frozen=True)
class Centerline:
    """Vertices [nm] (n, 3), edges (m, 2) into them and radius [nm] (n,)."""

    vertices: NDArray[np.float32]
    edges: NDArray[np.uint32]
    radius: NDArray[np.float32]


def centerlines(
    labels: NDArray[np.uint64],
    *,
    voxel_size_nm: tuple[float, float, float],
    start: tuple[int, int, int],
    scale: float,
    const_nm: float,
    dust_voxels: int,
) -> dict[int, Centerline]:
    """Skeletonise every segment of an array.

    Where a segment leaves the array its skeleton ends at the centre of the cut, so the
    arrays on both sides of a shared plane of voxels end at the same vertex.

    Parameters
    ----------
    labels : uint64 array, (x, y, z)
        Segment ids; 0 has no skeleton.
    voxel_size_nm, start : (x, y, z)
        Extent of a voxel [nm] and position of the first one [voxel].
    scale, const_nm : float
        Invalidation radius is ``scale * distance to boundary + const_nm``.
    dust_voxels : int
        Components smaller than this have no skeleton.
    """
    skeletons = kimimaro.skeletonize(
        np.asfortranarray(labels),
        teasar_params={
            "scale": scale,
            "const": const_nm,
            "pdrf_scale": 100000,
            "pdrf_exponent": 4,
            "soma_acceptance_threshold": 3500,
            "soma_detection_threshold": 1100,
            "soma_invalidation_const": 300,
            "soma_invalidation_scale": 2,
        },
        anisotropy=voxel_size_nm,
        dust_threshold=dust_voxels,
        progress=False,
        fix_branching=True,
        fix_borders=True,
        parallel=1,
    )
    # kimimaro puts voxel v at v * voxel size: move to the centre of [v, v + 1).
    offset = (np.array(start) + 0.5) * np.array(voxel_size_nm)
    return {
        int(label): Centerline(
            (s.vertices.astype(np.float64) + offset).astype(np.float32),
            s.edges.astype(np.uint32).reshape(-1, 2),
            np.asarray(s.radius, dtype=np.float32),
        )
        for label, s in sorted(skeletons.items())
        if len(s.vertices)
    }


def join(pieces: list[Centerline], *, dust_nm: float, tick_nm: float) -> Centerline | None:
    """Join the pieces of one segment and clear what is too short.

    Parameters
    ----------
    pieces : list of Centerline
        Pieces that share a vertex where they meet.
    dust_nm : float
        Components with less cable are dropped [nm].
    tick_nm : float
        Terminal twigs shorter than this are cut [nm].

    Returns
    -------
    Centerline or None
        None if nothing is left.
    """
    parts = [
        _Osteoid(p.vertices, p.edges, radii=p.radius, space="physical") for p in pieces
    ]
    whole = _Osteoid.simple_merge(parts).consolidate()
    whole.edges = _without_rings(len(whole.vertices), whole.edges)
    whole = kimimaro.postprocess(whole, dust_threshold=dust_nm, tick_threshold=tick_nm)
    if len(whole.vertices) == 0:
        return None
    return Centerline(
        whole.vertices.astype(np.float32),
        whole.edges.astype(np.uint32).reshape(-1, 2),
        np.asarray(whole.radius, dtype=np.float32),
    )


def _without_rings(n: int, edges: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Leave out an edge of each component that is one bare ring.

    Pieces around the common edge of four chunks may close to such a ring, and kimimaro,
    which clears loops, would leave nothing of it.
    """
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n))
    _, component = connected_components(graph, directed=False)
    degree = np.bincount(edges.ravel(), minlength=n)
    others = component[degree != 2]
    found, first = np.unique(component[edges[:, 0]], return_index=True)
    kept: NDArray[np.uint32] = np.delete(edges, first[~np.isin(found, others)], axis=0)
    return kept
