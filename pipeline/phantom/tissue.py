"""Which neurites there are and how they run: two forests grown on jittered lattices.

Every cell of a lattice holds a node, and every node links to at most one of its three
successors, so the links form trees that can be followed from anywhere without knowing
the rest. A tree is one object; its identity is the cell of its root. The coarse lattice
carries dendrites and soma-like bodies, the fine one thin axons in the space that they
leave; a fine tree that ends at a dendrite may be a twig of it.

Because jitter is bounded, two links that share no node keep a distance, which is more
than their radii can differ by. A voxel belongs to the link whose distance less radius is
smallest, so the straight way from any voxel to its link stays within the object: every
object is connected.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.phantom.hashing import key, lattice_hash, uniform, uniform_triples

BLOCK = 8  # cells of a lattice whose links are worked out together
JITTER = 0.2  # of the spacing, each way
COARSENESS = 4.5  # coarse spacing over fine spacing
DENDRITES = 0.75  # share of coarse cells that hold a node
SOMATA = 0.03  # share of coarse nodes that are bodies
FASCICLE = 6  # cells over which links tend to run in parallel
PARALLEL = 0.93  # share of links that do
ENDS = (0.01, 0.06)  # share of fine and coarse nodes at which a neurite ends
TWIGS = 0.5  # share of axons ending at a dendrite that belong to it
CLEARANCE = 0.12  # of the fine spacing, from an axon's centre line to a dendrite
STEEPEST = 1.25  # most that distance less radius changes per distance

_FIELD = (1 << 17) - 1  # cells per axis after which labels repeat, less one
_DENSE = 1 << 20  # cells of a box small enough to be marked one by one
_EDGE_SAMPLES = (0.25, 0.5, 0.75)
_NEIGHBOURS = np.stack(
    np.meshgrid(*[np.arange(-2, 2)] * 3, indexing="ij"), axis=-1
).reshape(-1, 3)

Cells: TypeAlias = NDArray[np.int64]
F = TypeVar("F", np.float32, np.float64)
D = TypeVar("D", bound=np.generic)


@dataclass(frozen=True)
class Links:
    """Where the nodes of one block of a lattice lead.

    Parameters
    ----------
    present : bool array, (x, y, z)
        Whether the cell holds a node.
    axis : int8 array, (x, y, z)
        The axis along which the node's link is drawn; -1 if it has none.
    onward : int64 array, (x, y, z, 3)
        On the way to the root: the first cell outside the block, or the root.
    host : dict of cell to cell
        For roots that are twigs, the coarse cell whose object they belong to.
    """

    present: NDArray[np.bool_]
    axis: NDArray[np.int8]
    onward: Cells
    host: dict[tuple[int, int, int], tuple[int, int, int]]


@dataclass(frozen=True)
class Segments:
    """Tapered tubes, each a node and the link to its successor; points are in nm.

    Parameters
    ----------
    start, end : float64 arrays, (n, 3)
        The centre line.
    start_radius, end_radius : float64 arrays, (n,)
        Radius at its ends [nm].
    label : uint64 array, (n,)
        The object, never 0.
    hash : uint64 array, (n,)
        Random bits of the node, for what is drawn inside.
    is_thick : bool array, (n,)
        Whether it belongs to the coarse lattice.
    """

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    start_radius: NDArray[np.float64]
    end_radius: NDArray[np.float64]
    label: NDArray[np.uint64]
    hash: NDArray[np.uint64]
    is_thick: NDArray[np.bool_]


def excess_distance(
    offset: tuple[NDArray[F], NDArray[F], NDArray[F]],
    along: tuple[NDArray[F], NDArray[F], NDArray[F]],
    inverse_square: NDArray[F],
    radius: NDArray[F],
    growth: NDArray[F],
) -> NDArray[F]:
    """Return how far points lie outside tapered tubes.

    Sums are written out, axis by axis, so that the rounding of an element does not
    depend on the array around it.

    Parameters
    ----------
    offset : three float arrays
        Point minus start of the centre line [nm].
    along : three float arrays
        End minus start [nm].
    inverse_square : float array
        One over the squared length of `along`; 0 where that is 0.
    radius, growth : float arrays
        Radius at the start, and what it gains up to the end [nm].

    Returns
    -------
    float array
        Distance to the centre line less radius [nm]; negative inside.
    """
    (x, y, z), (dx, dy, dz) = offset, along
    part = np.clip((x * dx + y * dy + z * dz) * inverse_square, 0, 1)
    x, y, z = x - part * dx, y - part * dy, z - part * dz
    return np.asarray(np.sqrt(x * x + y * y + z * z) - (radius + part * growth))


def inverse_or_zero(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return one over each value, and 0 for 0.

    Parameters
    ----------
    values : float64 array
        Squared lengths.

    Returns
    -------
    float64 array
        Of the same shape.
    """
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)


@dataclass(frozen=True)
class Tissue:
    """The two forests of one seed; hashable, so that worked-out blocks are remembered.

    Parameters
    ----------
    seed : int
        Which tissue.
    spacing_nm : float
        Distance between neighbouring axons [nm]; everything else scales with it.
    branching : float
        Probability that of two links that meet in a node both live on.
    """

    seed: int
    spacing_nm: float
    branching: float

    @property
    def coarse_spacing_nm(self) -> float:
        """Distance between neighbouring dendrites [nm]."""
        return self.spacing_nm * COARSENESS

    def segments(
        self, fine: Cells, coarse: Cells
    ) -> tuple[Segments, NDArray[np.int64], NDArray[np.int64]]:
        """Gather the tubes of some cells.

        Parameters
        ----------
        fine, coarse : int64 arrays, (n, 3)
            Cells of each lattice, none twice.

        Returns
        -------
        segments : Segments
            Of those cells that hold a node.
        fine_row, coarse_row : int64 arrays, (n,)
            The row of each cell in `segments`; -1 where it holds no node.
        """
        thin, is_thin = self._axons(fine)
        thick, is_thick = self._dendrites(coarse)
        both = Segments(
            *(
                np.concatenate([getattr(thin, name), getattr(thick, name)])
                for name in Segments.__dataclass_fields__
            )
        )
        fine_row = np.where(is_thin, np.cumsum(is_thin) - 1, -1)
        coarse_row = np.where(is_thick, len(thin.label) + np.cumsum(is_thick) - 1, -1)
        return both, fine_row, coarse_row

    def _axons(self, cells: Cells) -> tuple[Segments, NDArray[np.bool_]]:
        present, axis = _looked_up(lambda block: _fine_links(self, *block), cells)
        cells, axis = cells[present], axis[present]
        root = _roots(lambda block: _fine_links(self, *block), cells)
        calibre = self._random(20, root)
        ends = _successor(cells, axis)
        segments = Segments(
            start=self._nodes(0, cells),
            end=self._nodes(0, ends),
            start_radius=self._axon_radius(cells, calibre),
            end_radius=self._axon_radius(ends, calibre),
            label=self._axon_label(root),
            hash=self._hash(21, cells),
            is_thick=np.zeros(len(cells), dtype=np.bool_),
        )
        return segments, present

    def _axon_radius(
        self, cells: Cells, calibre: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        swelling = self._random(22, cells)
        return self.spacing_nm * (0.02 + 0.32 * calibre + 0.1 * swelling)

    def _axon_label(self, root: Cells) -> NDArray[np.uint64]:
        label = _packed(root, tier=0)
        unique, inverse = unique_cells(root)
        for row, cell in enumerate(unique):
            block, inner = cell >> 3, cell & 7
            x, y, z = (int(c) for c in inner)
            host = _fine_links(self, *(int(b) for b in block)).host.get((x, y, z))
            if host is not None:
                home = _roots(lambda block: _coarse_links(self, *block), np.array([host]))
                label[inverse == row] = _packed(home, tier=1)[0]
        return label

    def _dendrites(self, cells: Cells) -> tuple[Segments, NDArray[np.bool_]]:
        present, axis = _looked_up(lambda block: _coarse_links(self, *block), cells)
        cells, axis = cells[present], axis[present]
        root = _roots(lambda block: _coarse_links(self, *block), cells)
        ends = _successor(cells, axis)
        segments = Segments(
            start=self._nodes(1, cells),
            end=self._nodes(1, ends),
            start_radius=self._dendrite_radius(cells),
            end_radius=self._dendrite_radius(ends),
            label=_packed(root, tier=1),
            hash=self._hash(31, cells),
            is_thick=np.ones(len(cells), dtype=np.bool_),
        )
        return segments, present

    def _dendrite_radius(self, cells: Cells) -> NDArray[np.float64]:
        is_soma = self._random(30, cells) < SOMATA
        share = np.where(is_soma, 0.5, 0.12 + 0.12 * self._random(32, cells))
        return self.coarse_spacing_nm * share

    def _hash(self, purpose: int, cells: Cells) -> NDArray[np.uint64]:
        return lattice_hash(
            key(self.seed, purpose), cells[..., 0], cells[..., 1], cells[..., 2]
        ).reshape(cells.shape[:-1])

    def _random(self, purpose: int, cells: Cells) -> NDArray[np.float64]:
        return uniform(self._hash(purpose, cells))

    def _nodes(self, tier: int, cells: Cells) -> NDArray[np.float64]:
        spacing = self.coarse_spacing_nm if tier else self.spacing_nm
        offset = (uniform_triples(self._hash(2 + tier, cells)) - 0.5) * (2 * JITTER)
        return (cells + 0.5 + offset) * spacing

    def _direction(self, tier: int, cells: Cells) -> NDArray[np.int8]:
        """Pick the axis along which each node would link, alike in a fascicle."""
        own = self._hash(4 + tier, cells)
        shared = self._hash(6 + tier, cells // FASCICLE)
        runs_along = uniform(own) < PARALLEL
        return (np.where(runs_along, shared, own) % np.uint64(3)).astype(np.int8)

    def _linked(
        self,
        tier: int,
        lower: Cells,
        direction: NDArray[np.int8],
        may_link: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Let the links that meet in a node contend.

        The arrays begin one cell below the block at `lower`; the answer is for it.
        """
        cells = _box(lower - 1, np.array(may_link.shape))
        strength = self._hash(8 + tier, cells)
        lives_on = uniform(strength) < self.branching
        strongest = np.zeros([n + 1 for n in may_link.shape], dtype=np.uint64)
        for axis in range(3):
            bid = np.where(may_link & (direction == axis), strength, np.uint64(0))
            shifted = tuple(
                slice(1, None) if a == axis else slice(None, -1) for a in range(3)
            )
            strongest[shifted] = np.maximum(strongest[shifted], bid)
        wins = np.zeros_like(may_link)
        for axis in range(3):
            shifted = tuple(
                slice(1, None) if a == axis else slice(None, -1) for a in range(3)
            )
            wins |= (direction == axis) & (strength == strongest[shifted])
        inner = (slice(1, 1 + BLOCK),) * 3
        return (may_link & (wins | lives_on))[inner]


def _box(lower: Cells, shape: Cells) -> Cells:
    """Return the cells of a box, (x, y, z, 3)."""
    axes = [
        np.arange(n, dtype=np.int64) + start for start, n in zip(lower, shape, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def _successor(cells: Cells, axis: NDArray[np.int8]) -> Cells:
    """Return the cell one on along the axis; the cell itself where that is -1."""
    return np.asarray(cells + (axis[..., None] == np.arange(3)))


def _packed(root: Cells, tier: int) -> NDArray[np.uint64]:
    """Name an object after its root, in 1 .. 2**53, so that JSON carries it too."""
    x, y, z = (root[..., a] & _FIELD for a in range(3))
    return ((((x << 34) | (y << 17) | z) << 1) + (tier + 1)).astype(np.uint64)


def _onward(lower: Cells, linked: NDArray[np.bool_], direction: NDArray[np.int8]) -> Cells:
    """Follow the links of a block to where they leave it or end."""
    side = BLOCK + 1  # one cell beyond, where links leave to
    flat = np.arange(side**3).reshape(side, side, side)
    inner = (slice(0, BLOCK),) * 3
    stride = np.array([side * side, side, 1])
    flat[inner] += np.where(linked, stride[direction], 0)
    onward = flat.ravel()
    for _ in range(5):  # doubles the steps taken: 2**5 exceeds the longest way, 3 * 7 + 1
        onward = onward[onward]
    onward = onward.reshape(side, side, side)[inner]
    return np.stack(np.unravel_index(onward, (side,) * 3), axis=-1) + lower


@lru_cache(maxsize=1024)
def _coarse_links(tissue: Tissue, *block: int) -> Links:
    lower = np.array(block, dtype=np.int64) * BLOCK
    cells = _box(lower - 1, np.array([BLOCK + 3] * 3))
    present = tissue._random(10, cells) < DENDRITES
    candidates = cells[:-1, :-1, :-1]
    wish = tissue._direction(1, candidates)
    ends = tissue._random(12, candidates) < ENDS[1]
    is_open = _reached(present) & ~ends[..., None]
    direction, may_link = _steered(wish, is_open)
    linked = tissue._linked(1, lower, direction, may_link)
    inner = (slice(1, 1 + BLOCK),) * 3
    axis = np.where(linked, direction[inner], -1).astype(np.int8)
    return Links(
        present=present[inner],
        axis=axis,
        onward=_onward(lower, linked, direction[inner]),
        host={},
    )


@lru_cache(maxsize=1024)
def _fine_links(tissue: Tissue, *block: int) -> Links:
    lower = np.array(block, dtype=np.int64) * BLOCK
    cells = _box(lower - 1, np.array([BLOCK + 3] * 3))
    clearance, along_edge, nearest = _clearances(tissue, cells)
    threshold = CLEARANCE * tissue.spacing_nm
    present = clearance >= threshold

    candidates = cells[:-1, :-1, :-1]
    wish = tissue._direction(0, candidates)
    meets = _at_successor(clearance, wish) < -threshold
    is_keen = meets & (tissue._random(13, candidates) < TWIGS)
    ends = is_keen | (tissue._random(11, candidates) < ENDS[0])
    is_open = _reached(present) & (along_edge >= threshold) & ~ends[..., None]
    direction, may_link = _steered(wish, is_open)
    linked = tissue._linked(0, lower, direction, may_link)

    inner = (slice(1, 1 + BLOCK),) * 3
    toward = direction[inner]
    is_twig = present[inner] & is_keen[inner]
    host_cells = _at_successor(nearest, direction)[inner]
    return Links(
        present=present[inner],
        axis=np.where(linked | is_twig, toward, -1).astype(np.int8),
        onward=_onward(lower, linked, toward),
        host={
            (int(x), int(y), int(z)): (int(hx), int(hy), int(hz))
            for (x, y, z), (hx, hy, hz) in zip(
                np.argwhere(is_twig), host_cells[is_twig], strict=True
            )
        },
    )


def _reached(present: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Say for each axis whether node and successor are there, (x, y, z, axis)."""
    inner = (slice(0, -1),) * 3
    axes = [_at_successor(present, np.full(present[inner].shape, a)) for a in range(3)]
    return np.stack(axes, axis=-1) & present[inner][..., None]


def _steered(
    wish: NDArray[np.int8], is_open: NDArray[np.bool_]
) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """Turn links that meet something to the next axis that is open, if any is."""
    direction, may_link = wish.copy(), np.zeros(wish.shape, dtype=np.bool_)
    for turn in range(3):
        axis = (wish + turn) % 3
        is_free = np.take_along_axis(is_open, axis[..., None], axis=-1)[..., 0]
        is_taken = is_free & ~may_link
        direction[is_taken] = axis[is_taken]
        may_link |= is_free
    return direction, may_link


def _at_successor(values: NDArray[D], direction: NDArray[np.integer[Any]]) -> NDArray[D]:
    """Read a value per node where its link would lead; one cell smaller on each axis."""
    x, y, z = np.indices(direction.shape)
    return np.asarray(
        values[x + (direction == 0), y + (direction == 1), z + (direction == 2)]
    )


def _clearances(
    tissue: Tissue, cells: Cells
) -> tuple[NDArray[np.float64], NDArray[np.float64], Cells]:
    """Measure how far axons would keep from dendrites.

    Returns the clearance [nm] of each node, the least along the link to each of its
    successors (for all but the last cells of each axis), and the coarse cell nearest to
    each node.
    """
    nodes = tissue._nodes(0, cells)
    points = nodes.reshape(-1, 3)
    home = np.floor(points / tissue.coarse_spacing_nm).astype(np.int64)
    tubes, tube = unique_cells(home[:, None] + _NEIGHBOURS)
    present, axis = _looked_up(lambda block: _coarse_links(tissue, *block), tubes)
    ends = _successor(tubes, axis)
    start, end = tissue._nodes(1, tubes), tissue._nodes(1, ends)
    along = end - start
    square = along[:, 0] ** 2 + along[:, 1] ** 2 + along[:, 2] ** 2
    radius = np.where(present, tissue._dendrite_radius(tubes), -np.inf)
    growth = np.where(present, tissue._dendrite_radius(ends) - radius, 0.0)
    inverse = inverse_or_zero(square)

    def outside(point: NDArray[np.float64], tube: NDArray[np.intp]) -> NDArray[np.float64]:
        x, y, z = (point[..., a] - start[tube, a] for a in range(3))
        dx, dy, dz = (along[tube, a] for a in range(3))
        return excess_distance(
            (x, y, z), (dx, dy, dz), inverse[tube], radius[tube], growth[tube]
        )

    distance = outside(points[:, None], tube)
    best = distance.argmin(axis=1)
    rows = np.arange(len(points))
    clearance = distance[rows, best].reshape(cells.shape[:-1])
    nearest = tubes[tube[rows, best]].reshape(cells.shape)

    inner = (slice(0, -1),) * 3
    begin = nodes[inner].reshape(-1, 3)
    row_of = np.arange(len(points)).reshape(cells.shape[:-1])[inner].ravel()
    edge, candidate = np.nonzero(distance[row_of] < 1.5 * tissue.spacing_nm)
    near = tube[row_of[edge], candidate]
    least = np.full((len(begin), 3), np.inf)
    for step in range(3):
        ahead = tuple(slice(a == step, None if a == step else -1) for a in range(3))
        way = nodes[ahead].reshape(-1, 3) - begin
        for part in _EDGE_SAMPLES:
            point = begin[edge] + part * way[edge]
            np.minimum.at(least[:, step], edge, outside(point, near))
    return clearance, least.reshape(cells[inner].shape), nearest


def unique_cells(cells: Cells) -> tuple[Cells, NDArray[np.int64]]:
    """List the distinct cells, and say which of them each cell is.

    Parameters
    ----------
    cells : int64 array, (..., 3)
        In a box of fewer than 2**63 cells.

    Returns
    -------
    unique : int64 array, (n, 3)
        In order of x, then y, then z.
    row : int64 array, (...)
        Row of each cell in `unique`.
    """
    if cells.size == 0:
        return cells.reshape(0, 3), np.zeros(cells.shape[:-1], dtype=np.int64)
    flat = cells.reshape(-1, 3)
    lower = flat.min(axis=0)
    shape = flat.max(axis=0) - lower + 1
    stride = np.array([shape[1] * shape[2], shape[2], 1])
    offset = (cells - lower) * stride
    place = offset[..., 0] + offset[..., 1] + offset[..., 2]
    if np.prod(shape.astype(np.float64)) <= _DENSE:
        is_there = np.zeros(int(np.prod(shape)), dtype=np.bool_)
        is_there[place] = True
        found, row = np.flatnonzero(is_there), (np.cumsum(is_there) - 1)[place]
    else:
        found, row = np.unique(place, return_inverse=True)
    unique = np.stack(np.unravel_index(found, shape), axis=-1) + lower
    return unique, row.reshape(place.shape)


def _looked_up(
    links: Callable[[tuple[int, ...]], Links], cells: Cells
) -> tuple[NDArray[np.bool_], NDArray[np.int8]]:
    """Return whether cells hold a node, and the axis of its link."""
    present = np.zeros(len(cells), dtype=np.bool_)
    axis = np.full(len(cells), -1, dtype=np.int8)
    blocks, which = unique_cells(cells >> 3)
    for row, block in enumerate(blocks):
        chosen = np.flatnonzero(which == row)
        x, y, z = (cells[chosen] & 7).T
        table = links(tuple(int(b) for b in block))
        present[chosen] = table.present[x, y, z]
        axis[chosen] = table.axis[x, y, z]
    return present, axis


def _roots(links: Callable[[tuple[int, ...]], Links], cells: Cells) -> Cells:
    """Follow the links of cells, block by block, to the roots of their trees."""
    roots = cells.copy()
    active = np.arange(len(roots))
    while active.size:
        here = roots[active]
        there = np.empty_like(here)
        blocks, which = unique_cells(here >> 3)
        for row, block in enumerate(blocks):
            chosen = np.flatnonzero(which == row)
            x, y, z = (here[chosen] & 7).T
            there[chosen] = links(tuple(int(b) for b in block)).onward[x, y, z]
        roots[active] = there
        active = active[(here != there).any(axis=1)]
    return roots
