"""Which sections are out of focus or of poor contrast, beside those around them.

The criteria are those of `pipeline.kernels.image_quality`, of tiles that show tissue
everywhere, so that neither borders nor folds decide: a section has the median of its tiles.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Bbox, Vec3
from pipeline.kernels.image_quality import IMAGE_QUALITY_HALO, image_quality

CRITERIA = ("brenner", "smd2", "variance", "vollath")
NO_TILES = np.zeros((0, len(CRITERIA)))
TILE = 32
"""Extent of a tile [pixel]."""
_LEAST_TILES = 4
_BRENNER, _SMD2, _CONTRAST = 0.75, 0.65, 0.5
"""Shares of what sections around have. On AC4 at 12 nm, sections 20 to 59, the least is
0.88, 0.84 and 0.71; one blurred by a Gaussian of 9 nm has 0.63 and 0.46 (medians)."""


def section_criteria(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Measure a section, or a piece of one.

    Parameters
    ----------
    image : uint8 array, (x, y)
        0 where there is no tissue.

    Returns
    -------
    float64 array, (tile, 4)
        `CRITERIA` per pixel, of every tile that shows tissue everywhere.
    """
    bounds = Bbox.of_shape(Vec3(image.shape[0], image.shape[1], 1))
    found = []
    for x in range(0, image.shape[0] - TILE + 1, TILE):
        for y in range(0, image.shape[1] - TILE + 1, TILE):
            box = Bbox.of_shape(Vec3(TILE, TILE, 1), Vec3(x, y, 0))
            read = bounds.intersection(box.grown(IMAGE_QUALITY_HALO))
            pixels = image[read.slices()[:2]]
            if not pixels.all():
                continue
            sums = image_quality(
                pixels[..., None], box=box, read_box=read, bounds=bounds
            ).to_table()
            found.append([float(sums[name][0]) / TILE**2 for name in CRITERIA])
    return np.array(found).reshape(-1, len(CRITERIA))


def median_criteria(tiles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median of tiles, (4,); NaN if there are next to none."""
    if len(tiles) < _LEAST_TILES:
        return np.full(len(CRITERIA), np.nan)
    return np.asarray(np.median(tiles, axis=0))


def beside_neighbours(
    criteria: NDArray[np.float64], around: int = 5
) -> NDArray[np.float64]:
    """Compare every section with those around it.

    Parameters
    ----------
    criteria : float64 array, (section, 4)
        By `median_criteria`; NaN where a section shows next to nothing.
    around : int
        Sections before it, and after it.

    Returns
    -------
    float64 array, (section, 4)
        Brenner and SMD2, both for the same variance, and variance and Vollath, as ratios
        to the medians of the sections around. NaN where one is not known.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        sharpness = criteria[:, :2] / criteria[:, 2:3]
    measures = np.concatenate([sharpness, criteria[:, 2:]], axis=1)
    result = np.full(measures.shape, np.nan)
    for z in range(len(measures)):
        others = np.concatenate(
            [measures[max(0, z - around) : z], measures[z + 1 :][:around]]
        )
        others = others[np.isfinite(others).all(axis=1)]
        if len(others):
            result[z] = measures[z] / np.median(others, axis=0)
    return result


def is_out_of_focus(ratios: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Say of each row of `beside_neighbours` whether both measures of sharpness are low."""
    return np.asarray((ratios[:, 0] < _BRENNER) & (ratios[:, 1] < _SMD2))


def is_of_poor_contrast(ratios: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Say of each row of `beside_neighbours` whether variance and Vollath are low."""
    return np.asarray((ratios[:, 2] < _CONTRAST) & (ratios[:, 3] < _CONTRAST))
