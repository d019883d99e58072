"""The watershed by its definition: dictionaries of edges, no thought of speed."""

from itertools import pairwise
from math import floor

import numpy as np


def codes_of(affinities):
    """Affinities as whole numbers of steps, and the steps to 1."""
    if affinities.dtype == np.uint8:
        return affinities.astype(int), 255
    steps = np.clip(affinities.astype(np.float64), 0, 1) * 2**20
    return np.floor(steps + 0.5).astype(int), 2**20


def voxels(box):
    """Voxels of a box in scan order."""
    ranges = [range(a, b) for a, b in pairs(box)]
    return [(x, y, z) for z in ranges[2] for y in ranges[1] for x in ranges[0]]


def pairs(box):
    return list(zip(box.start.astuple(), box.stop.astuple(), strict=True))


def edges_of(affinities, *, read_box, bounds, mask=None):
    """Edges (voxel, predecessor) by their place in the total order."""
    codes, _ = codes_of(affinities)
    start = read_box.start.astuple()

    def at(array, v):
        return array[tuple(c - s for c, s in zip(v, start, strict=True))]

    known = set(voxels(read_box))
    edges = {}
    for v in known:
        if mask is not None and not at(mask, v):
            continue
        for axis in range(3):
            below = tuple(c - (a == axis) for a, c in enumerate(v))
            if below[axis] < bounds.start.astuple()[axis]:
                continue
            if mask is not None and below in known and not at(mask, below):
                continue
            edges[v, below] = (int(at(codes, v)[axis]), v[::-1], axis)
    return edges


def switched_on(edges, core, low, high):
    """Return the foreground of some voxels, and the edges that they switch on."""
    incident = {}
    for edge in edges:
        for v in edge:
            incident.setdefault(v, []).append(edge)
    greatest = {v: max(incident[v], key=edges.__getitem__) for v in core if incident.get(v)}
    foreground = {v for v, edge in greatest.items() if edges[edge][0] > floor(low)}
    return foreground, {greatest[v] for v in foreground} | {
        e for e, (code, *_) in edges.items() if code >= high
    }


def watershed_oracle(
    affinities,
    *,
    box,
    read_box,
    bounds,
    low,
    high,
    base=0,
    size_threshold=0,
    dust=0,
    mask=None,
):
    """Label a chunk; arguments are those of `watershed`."""
    edges = edges_of(affinities, read_box=read_box, bounds=bounds, mask=mask)
    scale = codes_of(affinities)[1]
    core = voxels(box)
    foreground, on = switched_on(edges, core, low * scale, high * scale)
    owner = {v: {v} for v in foreground}
    within = [e for e in edges if e[0] in owner and e[1] in owner]
    for edge in within:
        if edge in on:
            _unite(owner, *edge)
    basins = {id(group): group for group in owner.values()}

    contact = {}  # greatest edge between two basins
    for v, w in within:
        pair = frozenset((id(owner[v]), id(owner[w])))
        if len(pair) == 2 and edges[v, w][0] > floor(low * scale):
            contact[pair] = max(contact.get(pair, (0,)), edges[v, w])
    clusters = _linked(basins, contact, _open(box, bounds), size_threshold, dust)

    place = {v: i for i, v in enumerate(core)}
    labels = np.zeros(box.shape.astuple(), np.uint64)
    for cluster in clusters:
        name = base + 1 + min(place[v] for v in cluster)
        for v in cluster:
            local = tuple(c - s for c, s in zip(v, box.start.astuple(), strict=True))
            labels[local] = name
    return labels


def _unite(owner, a, b):
    union = owner[a] | owner[b]
    for member in union:
        owner[member] = union


def _open(box, bounds):
    """Return a test of whether a voxel lies at a face of the chunk within the bounds."""

    def is_open(v):
        return any(
            (c == a and a > first) or (c == b - 1 and b < last)
            for c, (a, b), (first, last) in zip(v, pairs(box), pairs(bounds), strict=True)
        )

    return is_open


def _linked(basins, contact, is_open, size_threshold, dust):
    """Voxels of the clusters that are left."""
    descending = sorted(contact, key=contact.__getitem__, reverse=True)
    assert all(contact[a] > contact[b] for a, b in pairwise(descending))
    tree = {b: {b} for b in basins}
    forest = []
    for pair in descending:
        a, b = pair
        if tree[a] is not tree[b]:
            _unite(tree, a, b)
            forest.append(pair)

    cluster = {b: {b} for b in basins}
    blocked = {b for b, members in basins.items() if any(map(is_open, members))}
    for pair in forest:
        sides = [cluster[b] for b in pair]
        large = [sum(len(basins[m]) for m in side) >= size_threshold for side in sides]
        waits = [not blocked.isdisjoint(side) for side in sides]
        if all(large):
            continue
        if not any(waits) or (large[0] and not waits[1]) or (large[1] and not waits[0]):
            _unite(cluster, *pair)
        else:
            blocked |= sides[0] | sides[1]
    result = []
    for members in {id(c): c for c in cluster.values()}.values():
        union = set().union(*(basins[m] for m in members))
        if len(union) >= dust or not blocked.isdisjoint(members):
            result.append(union)
    return result
