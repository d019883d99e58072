"""Draw neurites and what is in them as gray values, and expose the sections."""

import numpy as np
from numpy.typing import NDArray

from pipeline.phantom.hashing import (
    bell,
    key,
    lattice_hash,
    mixed,
    uniform,
    uniform_triples,
)
from pipeline.phantom.partition import Tiles
from pipeline.phantom.tissue import Cells, Segments, excess_distance, inverse_or_zero

HALO = np.array([1, 1, 0])  # voxels by which the optical blur reaches beyond a box
REACH = 3.5  # membrane thicknesses within which the gap to the next object is drawn

_MEMBRANE = 62.0
_CYTOPLASM = 146.0
_VESICLE_NM = 50.0  # spacing of the lattice on which vesicles sit


def drawn(
    tiles: Tiles, seed: int, membrane_nm: float, spacing_nm: float
) -> NDArray[np.float32]:
    """Give the voxels of tiles the brightness of what they lie in.

    Parameters
    ----------
    tiles : Tiles
        With `nearest` right everywhere and a reach of `REACH` membranes.
    seed : int
        Of the tissue.
    membrane_nm, spacing_nm : float
        Thickness of membranes and distance between axons [nm].

    Returns
    -------
    float32 array, (tile, x, y, z)
        Brightness before blur and noise, about 40 .. 170.
    """
    segments, nearest = tiles.segments, tiles.nearest
    position = tiles.position()
    tone = _CYTOPLASM + 26 * (uniform(mixed(segments.label)) - 0.5)
    value = tone.astype(np.float32)[nearest]

    is_deep = tiles.gap >= np.float32(2.4 * membrane_nm)
    organelles = _Organelles.of(segments, spacing_nm)
    _draw_vesicles(value, tiles, position, is_deep & organelles.has_vesicles[nearest], seed)
    _draw_organelles(value, tiles, position, is_deep, organelles)

    # dark in the middle of the membrane, back to cytoplasm somewhat inside the object
    depth = np.clip((tiles.gap / np.float32(membrane_nm) - 0.35) / 1.15, 0, 1)
    value *= depth
    value += np.float32(_MEMBRANE) * (1 - depth)
    return value


def exposed(
    brightness: NDArray[np.float32],
    start: Cells,
    *,
    seed: int,
    grain: float,
    section_noise: float,
    missing_sections: float,
) -> NDArray[np.uint8]:
    """Blur, expose and digitise sections.

    Parameters
    ----------
    brightness : float32 array, (x, y, z)
        From `drawn`, of a box with `HALO` around it.
    start : int64 array, (3,)
        First voxel of the box without the halo.
    seed : int
        Of the tissue.
    grain, section_noise : float
        Scale of the noise per voxel and per section.
    missing_sections : float
        Share of sections that are 0.

    Returns
    -------
    uint8 array, (x, y, z)
        Without the halo.
    """
    nx, ny, nz = brightness.shape
    x, y, z = (
        np.arange(n, dtype=np.int64) + first - halo
        for n, first, halo in zip((nx, ny, nz), start, HALO, strict=True)
    )
    hashes = lattice_hash(key(seed, 50), x[:, None, None], y[:, None], z)
    noise = bell(hashes) * np.float32(grain)
    seen = brightness + np.float32(24) * noise
    seen = (seen[:-2] + 2 * seen[1:-1] + seen[2:]) * np.float32(0.25)
    seen = (seen[:, :-2] + 2 * seen[:, 1:-1] + seen[:, 2:]) * np.float32(0.25)
    seen += np.float32(4) * noise[1:-1, 1:-1]

    section = lattice_hash(key(seed, 51), z)
    change = bell(section) * np.float32(section_noise)
    contrast = 1 + np.float32(0.07) * change
    offset = np.float32(6 * section_noise) * bell(mixed(section))
    seen = (seen - 118) * contrast + (118 + offset)
    image = np.rint(np.clip(seen, 1, 255)).astype(np.uint8, order="F")
    image[:, :, uniform(lattice_hash(key(seed, 52), z)) < missing_sections] = 0
    return np.asarray(image)


class _Organelles:
    """At most one mitochondrion or nucleus per segment, as tubes within it."""

    def __init__(
        self,
        start: NDArray[np.float64],
        end: NDArray[np.float64],
        radius: NDArray[np.float64],
        is_nucleus: NDArray[np.bool_],
        has_vesicles: NDArray[np.bool_],
    ) -> None:
        self.start, self.end, self.radius = start, end, radius
        self.is_nucleus, self.has_vesicles = is_nucleus, has_vesicles

    @classmethod
    def of(cls, segments: Segments, spacing_nm: float) -> "_Organelles":
        """Place them by the random bits of their segments."""
        bits = mixed(segments.hash)
        chance, further = uniform(bits), uniform(mixed(bits))
        spot = uniform_triples(mixed(mixed(bits)))
        along = segments.end - segments.start
        thick = segments.is_thick
        begin = np.where(thick, 0.15 + 0.3 * spot[:, 0], 0.1)[:, None]
        length = np.where(thick, 0.2 + 0.3 * spot[:, 1], 0.9)[:, None]
        sideways = (spot - 0.5) * (segments.start_radius * np.where(thick, 0.8, 0.0))[
            :, None
        ]
        start = segments.start + begin * along + sideways
        end = start + length * along
        radius = spacing_nm * np.where(
            chance < np.where(thick, 0.8, 0.2), 0.22 + 0.14 * further, 0.0
        )

        # a body is thicker than any dendrite; all segments that meet in it draw it alike
        body = np.maximum(segments.start_radius, segments.end_radius)
        is_nucleus = body > 1.5 * spacing_nm
        centre = np.where(
            (segments.start_radius == body)[:, None], segments.start, segments.end
        )
        start = np.where(is_nucleus[:, None], centre, start)
        end = np.where(is_nucleus[:, None], centre, end)
        radius = np.where(is_nucleus, 0.62 * body, radius)
        return cls(start, end, radius, is_nucleus, ~thick & (chance > 0.72))


def _draw_organelles(
    value: NDArray[np.float32],
    tiles: Tiles,
    position: NDArray[np.float32],
    is_deep: NDArray[np.bool_],
    organelles: _Organelles,
) -> None:
    chosen = np.nonzero(is_deep & (organelles.radius > 0)[tiles.nearest])
    which, tile = tiles.nearest[chosen], chosen[0]
    along = organelles.end - organelles.start
    square = along[:, 0] ** 2 + along[:, 1] ** 2 + along[:, 2] ** 2
    inverse = inverse_or_zero(square)
    offset = [
        position[a][chosen] - (organelles.start[which, a] - tiles.centre[tile, a])
        for a in range(3)
    ]
    direction = [along[which, a] for a in range(3)]
    outside = excess_distance(
        (offset[0], offset[1], offset[2]),
        (direction[0], direction[1], direction[2]),
        inverse[which],
        organelles.radius[which],
        np.zeros(1),
    )
    is_nucleus = organelles.is_nucleus[which]
    # cristae: dark stripes across a direction that is none of the image's
    stripe = (offset[0] + 0.6 * offset[1] - 0.5 * offset[2]) / 52.0
    is_crista = np.abs(stripe - np.floor(stripe) - 0.5) < 0.14
    inside = np.where(is_nucleus, 152.0, np.where(is_crista, 68.0, 98.0))
    inside = np.where(outside > -12.0, np.where(is_nucleus, 84.0, 62.0), inside)
    value[chosen] = np.where(outside < 0, inside, value[chosen])


def _draw_vesicles(
    value: NDArray[np.float32],
    tiles: Tiles,
    position: NDArray[np.float32],
    is_bouton: NDArray[np.bool_],
    seed: int,
) -> None:
    chosen = np.nonzero(is_bouton)
    point = [position[a][chosen] + tiles.centre[chosen[0], a] for a in range(3)]
    cell = [np.floor(p / _VESICLE_NM).astype(np.int64) for p in point]
    hashes = lattice_hash(key(seed, 53), *cell)
    jitter = uniform_triples(mixed(hashes))
    x, y, z = (
        p - (c + 0.36 + 0.28 * jitter[:, a]) * _VESICLE_NM
        for a, (p, c) in enumerate(zip(point, cell, strict=True))
    )
    distance = np.sqrt(x * x + y * y + z * z)
    is_there = (uniform(hashes) < 0.75) & (distance < 18.0)
    inside = np.where(distance < 9.0, 150.0, 84.0)
    value[chosen] = np.where(is_there, inside, value[chosen])
