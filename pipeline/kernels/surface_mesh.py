"""Surfaces of segments by marching cubes, so that pieces fit together exactly (zmesh)."""

from __future__ import annotations

from typing import Any

import numpy as np
import zmesh
from numpy.typing import NDArray

_Vertices = NDArray[np.float32]
_Faces = NDArray[np.uint32]


def surfaces(
    labels: NDArray[np.uint64],
    *,
    voxel_size_nm: tuple[float, float, float],
    start: tuple[int, int, int],
) -> dict[int, tuple[_Vertices, _Faces]]:
    """Triangulate every segment by marching cubes over the voxel centres.

    A cube has its corners at the centres of eight voxels and its triangles depend on
    those alone, so an array cut in two that share one plane of voxels gives the same
    triangles as the whole, with bit-equal vertices on the seam. Surfaces stay open
    where the array ends; pad with 0 to close them.

    Parameters
    ----------
    labels : uint64 array, (x, y, z)
        Segment ids; 0 has no surface.
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].
    start : (x, y, z)
        Position of the array's first voxel [voxel].

    Returns
    -------
    dict of int to (float32 array (n, 3), uint32 array (m, 3))
        Vertices [nm], where voxel v fills [v, v + 1) times the voxel size, and faces.
    """
    # In units of half voxels every vertex is an integer: exact in float32 to 2**24.
    mesher = zmesh.Mesher((2, 2, 2))
    mesher.mesh(np.asfortranarray(labels), close=False)
    result = {}
    offset = 2 * np.array(start, dtype=np.float64)
    for label in sorted(mesher.ids()):
        mesh = mesher.get(label, normals=False, reduction_factor=0, voxel_centered=True)
        mesher.erase(label)
        halves = np.rint(mesh.vertices.astype(np.float64)) + offset
        vertices = halves * (0.5 * np.array(voxel_size_nm))
        result[int(label)] = (vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    return result


def weld(pieces: list[tuple[_Vertices, _Faces]]) -> tuple[_Vertices, _Faces]:
    """Join the pieces of one segment in an order that the cutting cannot change.

    Parameters
    ----------
    pieces : list of (float32 array (n, 3), uint32 array (m, 3))
        Vertices and faces of each piece; vertices on a seam are bit-equal.

    Returns
    -------
    (float32 array (n, 3), uint32 array (m, 3))
        Distinct vertices in lexicographic order, and faces likewise, each starting at
        its least vertex.
    """
    offsets = np.cumsum([0, *(len(v) for v, _ in pieces)])
    vertices = np.concatenate([v for v, _ in pieces])
    faces = np.concatenate(
        [f.astype(np.int64) + o for (_, f), o in zip(pieces, offsets, strict=False)]
    )
    distinct, index = np.unique(vertices, axis=0, return_inverse=True)
    faces = index.reshape(-1)[faces]
    turn = np.argmin(faces, axis=1)
    rows = np.arange(len(faces))[:, None]
    faces = faces[rows, (turn[:, None] + np.arange(3)) % 3]
    faces = faces[np.lexsort((faces[:, 2], faces[:, 1], faces[:, 0]))]
    return distinct, faces.astype(np.uint32)


def simplify(
    vertices: _Vertices, faces: _Faces, *, reduction: int, max_error_nm: float
) -> tuple[_Vertices, _Faces]:
    """Collapse edges, cheapest first (quadric error), while the shape allows.

    Parameters
    ----------
    vertices, faces : float32 array (n, 3), uint32 array (m, 3)
        A surface mesh [nm].
    reduction : int
        Aim at this many times fewer triangles.
    max_error_nm : float
        Farthest that a vertex may move [nm].
    """
    if len(faces) == 0:
        return vertices[:0], faces
    # The simplifier spans 2**20 units: stay near zero.
    corner = vertices.min(axis=0)
    mesher: Any = zmesh.Mesher((1, 1, 1))
    simple = mesher.simplify(
        zmesh.Mesh(vertices - corner, faces, None),
        reduction_factor=reduction,
        max_error=max_error_nm,
    )
    moved = simple.vertices.astype(np.float32) + corner
    return moved.astype(np.float32), simple.faces.astype(np.uint32)


def enclosed_volume(vertices: _Vertices, faces: _Faces) -> float:
    """Return the volume inside a closed surface [nm^3] (divergence theorem)."""
    if len(faces) == 0:
        return 0.0
    corner = vertices.min(axis=0)
    a, b, c = ((vertices[faces[:, i]] - corner).astype(np.float64) for i in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)
