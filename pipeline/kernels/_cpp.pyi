from typing import Any

import numpy as np
from numpy.typing import NDArray

_Triple = tuple[int, int, int]
_Corners = tuple[_Triple, _Triple]
_U64 = NDArray[np.uint64]
_U8 = NDArray[np.uint8]
_I64 = NDArray[np.int64]

join_affinity: int

def watershed(
    affinities: NDArray[Any],
    origin: _Triple,
    core: _Corners,
    bounds: _Corners,
    mask: NDArray[np.uint8] | None,
    low: float,
    high: float,
    size_threshold: int,
    dust: int,
    base: int,
    threads: int,
    labels: _U64,
) -> None: ...
def basin_graph(
    labels: _U64,
    affinities: NDArray[Any],
    origin: _Triple,
    core: _Corners,
    bounds: _Corners,
    mask: NDArray[np.uint8] | None,
    low: float,
    high: float,
    large: int | None,
    threads: int,
) -> tuple[_U64, _U64, _U64, _U8, _U64, _U64, _U64, _U64, _U64, _U64, _U64]: ...
def merge_basins(
    ids: _U64,
    sizes: _U64,
    anchors: _U64,
    open: _U8,
    joins: _U64,
    pairs: _U64,
    affinities: _U64,
    keys: _U64,
    size_threshold: int,
    dust: int,
    forest: bool,
) -> tuple[_U64, _U8, _U64, _U64, _U64, _U64]: ...
def places(ids: _U64, keys: _U64) -> NDArray[np.int64]: ...
def region_graph(
    labels: _U64,
    affinities: NDArray[Any],
    semantics: NDArray[np.uint8] | None,
    origin: _Triple,
    core: _Corners,
    bounds: _Corners,
    threads: int,
) -> tuple[
    _U64, _U64, _U64, _I64, _I64, _I64, _U64, NDArray[np.uint8], _U64, _U64, _U64, _U64
]: ...

class Constraints:
    def __init__(
        self,
        activation: int,
        labelled_size: int,
        labelled_share: int,
        clashes: tuple[int, ...],
        both_members: int,
        one_member: int,
    ) -> None: ...

def agglomerate(
    ids: _U64,
    names: _U64,
    sizes: _U64,
    members: _U64,
    classes: _U64,
    open: _U8,
    pairs: _U64,
    sums: _U64,
    areas: _U64,
    keys: _U64,
    threshold: int,
    floor: int,
    scale: int,
    rules: Constraints,
    absorb: bool,
) -> tuple[
    tuple[_U64, _U8, _U64],
    tuple[_U64, _U64, _U64, _U64, _U64],
    tuple[_U64, _U64, _U64, _U64],
    tuple[_U64, _U64, _U64, _U64],
    tuple[_U64, _U64, _U64, _U64, _U64, _U64, _U8, _U8],
]: ...
def best_contacts(
    n: int,
    owners: NDArray[np.uint32],
    sums: _U64,
    areas: _U64,
    keys: _U64,
    floor: int,
    scale: int,
) -> _I64: ...
def replay(
    pairs: _U64, sums: _U64, areas: _U64, keys: _U64
) -> tuple[_U64, _U64, _U64, _U64]: ...
def relabel(
    labels: _U64, ids: _U64, targets: _U64, keep_missing: bool, out: _U64, threads: int
) -> None: ...
