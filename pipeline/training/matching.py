"""Learns an embedding of sections by which places are found again in the next ones.

Metric learning for alignment: patches of one section are looked for in another, as
`pipeline.kernels.patch_match` looks for them, and the loss is how little of the
correlation's softmax over all shifts lies where the tissue went. What the kernel measures
is thus what is learnt. Macrina et al. 2021 align such embeddings instead of greys.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

_SHARPNESS = 16.0
"""Correlations are multiplied by this before the softmax."""
_SIGMA = 1.0
"""How sharply a place is known [voxel]; sections of real tissue lie no better."""
_STEPS = 5
"""Patches along each axis, at most."""
_LEAST = 1e-3
_FAST = 16
_CLOSE = 3.0


def matching(
    logits: Tensor, places: Tensor, known: Tensor, *, patch: int, search: int, distance: int
) -> Tensor:
    """How badly patches of a section are found in those after it.

    Parameters
    ----------
    logits : Tensor, (batch, channel, z, y, x)
        The embedding before its sigmoid.
    places : Tensor, (batch, 2, z, y, x)
        Where each voxel lies along x and y; the same tissue has the same place in all
        sections [voxel].
    known : Tensor, (batch, 2, z, y, x)
        Where that is known.
    patch, search : int
        Extent of a patch, and greatest shift along either axis [voxel].
    distance : int
        Sections after each that it is looked for in.

    Returns
    -------
    Tensor, scalar
        Cross entropy, beyond that of a perfect answer [nat]; 0 if no patch has one.
    """
    parts = [
        _cross_entropy(surface, wanted)
        for surface, wanted, _ in _pairs(logits, places, known, patch, search, distance)
    ]
    if not parts:
        return logits.sum() * 0.0
    each = torch.cat(parts)
    return each.mean() if len(each) else logits.sum() * 0.0


def found_share(
    logits: Tensor, places: Tensor, known: Tensor, *, patch: int, search: int, distance: int
) -> dict[int, tuple[int, int]]:
    """Count the patches that are found within three voxels, by distance of sections.

    Parameters are those of `matching`.

    Returns
    -------
    dict of int to (int, int)
        Patches found, and patches looked for.
    """
    counts: dict[int, tuple[int, int]] = {}
    for surface, wanted, apart in _pairs(logits, places, known, patch, search, distance):
        extent = 2 * search + 1
        peak, true = (t.flatten(1).argmax(1) for t in (surface, wanted))
        off = torch.stack([peak // extent - true // extent, peak % extent - true % extent])
        close = (off.float().norm(dim=0) <= _CLOSE).sum()
        found, looked_for = counts.get(apart, (0, 0))
        counts[apart] = (found + int(close), looked_for + len(peak))
    return counts


def _cross_entropy(surface: Tensor, wanted: Tensor) -> Tensor:
    said = torch.log_softmax(_SHARPNESS * surface.flatten(1), dim=1)
    true = wanted.flatten(1)
    return (torch.xlogy(true, true) - true * said).sum(dim=1)


def _pairs(
    logits: Tensor, places: Tensor, known: Tensor, patch: int, search: int, distance: int
) -> list[tuple[Tensor, Tensor, int]]:
    """Return correlations and wanted answers, (patch, shift, shift), of pairs of sections.

    Only patches that have an answer within the search.
    """
    said = torch.tanh(logits.float() / 2)
    reach = patch // 2 + search
    extent = said.shape[-1]
    last = extent - reach
    if last <= reach or said.shape[-2] != extent:
        raise ValueError(
            f"sections of {said.shape[-1]} x {said.shape[-2]} have no room for patches of "
            f"{patch} with a search of {search}; train on squares of more than {2 * reach}"
        )
    steps = min(_STEPS, last - reach + 1)
    middles = torch.linspace(reach, last, steps, device=said.device).long()
    correlator = _Correlator(said, middles, patch, search)
    found = []
    sections = range(said.shape[2])
    for a, b in itertools.combinations(sections, 2):
        if b - a > distance:
            continue
        surface = correlator.of(a, b)
        wanted, whole = _answer(places, known, a, b, middles, search)
        if whole.any():
            found.append((surface[whole], wanted[whole], b - a))
    return found


def _answer(
    places: Tensor, known: Tensor, a: int, b: int, middles: Tensor, search: int
) -> tuple[Tensor, Tensor]:
    """Return how likely each shift is, and which patches have a shift at all."""
    whole = (known > 0).all(dim=1)
    middle = _cut(places[:, :, a], middles, 1)
    around = _cut(places[:, :, b], middles, 2 * search + 1)
    seen = _cut(whole[:, None, a], middles, 1) & _cut(
        whole[:, None, b], middles, 2 * search + 1
    )
    off = ((around - middle) ** 2).sum(dim=1)
    near = torch.exp(-off / (2 * _SIGMA**2)) * seen[:, 0]
    total = near.sum(dim=(1, 2), keepdim=True)
    inner = near[:, 1:-1, 1:-1].amax(dim=(1, 2)) > 0.5
    return near / total.clamp(min=_LEAST), inner


class _Spectra(NamedTuple):
    """What pairs of sections are correlated from, for the patches of one."""

    patches: Tensor
    energy: Tensor
    windows: Tensor
    power: Tensor


class _Correlator:
    """Correlates patches of sections with windows of others, normalised."""

    def __init__(self, said: Tensor, middles: Tensor, patch: int, search: int) -> None:
        size = patch + 2 * search
        # Extents that transforms are fast at; what is added is 0.
        self.extent = (-(-size // _FAST) * _FAST,) * 2
        self.count = 2 * search + 1
        window = torch.hann_window(patch + 2, periodic=False, device=said.device)[1:-1]
        weight = torch.outer(window, window).clamp(min=0).sqrt()
        self.weight = torch.fft.rfft2(weight, self.extent).conj()
        self.sections = []
        for z in range(said.shape[2]):
            small = _cut(said[:, :, z], middles, patch)
            wide = _cut(said[:, :, z], middles, size)
            spectra = _Spectra(
                torch.fft.rfft2(small * weight, self.extent).conj(),
                (small * small * weight).sum(dim=(1, 2, 3))[:, None, None],
                torch.fft.rfft2(wide, self.extent),
                self._shifts(
                    self.weight * torch.fft.rfft2((wide * wide).sum(dim=1), self.extent)
                ),
            )
            self.sections.append(spectra)

    def _shifts(self, spectrum: Tensor) -> Tensor:
        whole: Tensor = torch.fft.irfft2(spectrum, self.extent)
        return whole[:, : self.count, : self.count]

    def of(self, a: int, b: int) -> Tensor:
        """Look for the patches of one section in another, (patch, y shift, x shift)."""
        here, there = self.sections[a], self.sections[b]
        likeness = self._shifts((here.patches * there.windows).sum(dim=1))
        energy = here.energy.clamp(min=_LEAST) * there.power.clamp(min=_LEAST)
        return likeness / torch.sqrt(energy)


def _cut(values: Tensor, middles: Tensor, extent: int) -> Tensor:
    """Return the squares around points, (batch * point, channel, y, x)."""
    n, channels = values.shape[:2]
    count = len(middles)
    at = middles[:, None] - extent // 2 + torch.arange(extent, device=values.device)
    rows = values[:, :, at.flatten()][..., at.flatten()]
    squares = rows.reshape(n, channels, count, extent, count, extent)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, extent, extent)
