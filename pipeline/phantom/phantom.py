"""What one asks of the phantom: labels, image and affinities of any box."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Annotated, Generic, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.ndimage import gaussian_filter

from pipeline.phantom import appearance, synapses
from pipeline.phantom.hashing import bell, key, lattice_hash
from pipeline.phantom.partition import Tiles, partition, tile_shape
from pipeline.phantom.synapses import PhantomSynapse
from pipeline.phantom.tissue import Cells, Tissue

Length = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]
S = TypeVar("S", np.uint64, np.float32)

_TRUNCATE = 3.0  # standard deviations after which a blur is cut off


class Phantom(BaseModel):
    """Synthetic neuropil without bounds, the same wherever one looks at it from.

    Branching neurites (thin axons, thicker dendrites with twigs, soma-like bodies) fill
    space and touch one another across membranes. Every answer is a function of the
    fields, the absolute voxel and nothing else: a box gives bit for bit the crop of any
    larger one, and negative voxels are as good as any.

    Parameters
    ----------
    seed : int
        Which tissue.
    voxel_size_nm : (x, y, z)
        Of image and labels [nm]. The tissue is the same at every voxel size.
    spacing_nm : float
        Distance between neighbouring axons [nm]; all calibres scale with it.
    membrane_nm : float
        Thickness of what separates two objects [nm]. Objects touch where this is less
        than two voxels, as real ones do across thick sections.
    branching : float
        Probability that of two neurites that meet both live on, as one that branches.
    section_noise : float
        Scale of the change of brightness and contrast from section to section.
    grain : float
        Scale of the noise in each voxel.
    missing_sections : float
        Share of sections that are lost: their image is 0, their labels are as ever.
    synapses : float
        Share of cells of 640 nm that may hold a synapse; 0 is tissue without any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    voxel_size_nm: tuple[Length, Length, Length] = (6.0, 6.0, 30.0)
    spacing_nm: Length = 270.0
    membrane_nm: Length = 18.0
    branching: Share = 0.3
    section_noise: Strength = 1.0
    grain: Strength = 1.0
    missing_sections: Share = 0.0
    synapses: Share = 0.0

    def labels(self, start: Sequence[int], stop: Sequence[int]) -> NDArray[np.uint64]:
        """Say which object each voxel belongs to.

        Parameters
        ----------
        start, stop : (x, y, z)
            The box, half-open [voxel].

        Returns
        -------
        uint64 array, (x, y, z)
            An id below 2**53 that is the object's own everywhere; 0 is membrane.

        Raises
        ------
        ValueError
            If the box is swapped.
        """
        box = _box(start, stop)
        out = self._assembled(box, np.uint64)
        for tiles in self._partition(box, reach_nm=self.membrane_nm, everywhere=False):
            label = tiles.segments.label[tiles.nearest]
            label[tiles.gap < np.float32(self.membrane_nm)] = 0
            out.put(tiles, label)
        return out.array()

    def image(self, start: Sequence[int], stop: Sequence[int]) -> NDArray[np.uint8]:
        """Show the tissue as an electron microscope would.

        Parameters
        ----------
        start, stop : (x, y, z)
            The box, half-open [voxel].

        Returns
        -------
        uint8 array, (x, y, z)
            Membranes are dark, cytoplasm is bright; 0 throughout a missing section.

        Raises
        ------
        ValueError
            If the box is swapped.
        """
        box = _box(start, stop)
        if (box[0] == box[1]).any():
            return np.zeros(box[1] - box[0], dtype=np.uint8, order="F")
        around = (box[0] - appearance.HALO, box[1] + appearance.HALO)
        drawn = self._assembled(around, np.float32)
        reach = appearance.REACH * self.membrane_nm
        for tiles in self._partition(around, reach_nm=reach, everywhere=True):
            drawn.put(
                tiles, appearance.drawn(tiles, self.seed, self.membrane_nm, self.spacing_nm)
            )
        brightness = drawn.array()
        for synapse in self.synapses_in(*around):
            synapses.draw(
                brightness,
                around[0],
                synapse,
                seed=self.seed,
                voxel_size_nm=self.voxel_size_nm,
            )
        return appearance.exposed(
            brightness,
            box[0],
            seed=self.seed,
            grain=self.grain,
            section_noise=self.section_noise,
            missing_sections=self.missing_sections,
        )

    def clefts(self, start: Sequence[int], stop: Sequence[int]) -> NDArray[np.uint64]:
        """Say which synaptic cleft each voxel belongs to.

        Parameters
        ----------
        start, stop : (x, y, z)
            The box, half-open [voxel].

        Returns
        -------
        uint64 array, (x, y, z)
            The id of the synapse, below 2**53; 0 is none.

        Raises
        ------
        ValueError
            If the box is swapped.
        """
        box = _box(start, stop)
        out = np.zeros(box[1] - box[0], np.uint64, order="F")
        for one in self.synapses_in(*box):
            place = np.argwhere(one.cleft) + one.start - box[0]
            within = ((place >= 0) & (place < out.shape)).all(axis=1)
            out[tuple(place[within].T)] = one.id
        return out

    def synapses_in(
        self, start: Sequence[int] | Cells, stop: Sequence[int] | Cells
    ) -> list[PhantomSynapse]:
        """List the synapses that may reach into a box, cell by cell.

        Parameters
        ----------
        start, stop : (x, y, z)
            The box, half-open [voxel].

        Raises
        ------
        ValueError
            If the box is swapped.
        """
        if self.synapses == 0:
            return []
        cells = synapses.cells_of(*_box(start, stop), self.voxel_size_nm)
        found = [_synapse_of(self, cell) for cell in cells]
        return [one for one in found if one is not None]

    @overload
    def affinities(
        self,
        start: Sequence[int],
        stop: Sequence[int],
        *,
        blur: float = ...,
        noise: float = ...,
        dtype: Literal["float32"],
    ) -> NDArray[np.float32]: ...

    @overload
    def affinities(
        self,
        start: Sequence[int],
        stop: Sequence[int],
        *,
        blur: float = ...,
        noise: float = ...,
        dtype: Literal["uint8"] = ...,
    ) -> NDArray[np.uint8]: ...

    def affinities(
        self,
        start: Sequence[int],
        stop: Sequence[int],
        *,
        blur: float = 0.0,
        noise: float = 0.0,
        dtype: Literal["uint8", "float32"] = "uint8",
    ) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Return the affinities of the truth, or such as a net might give.

        Parameters
        ----------
        start, stop : (x, y, z)
            The box, half-open [voxel].
        blur : float
            Standard deviation of a Gaussian blur within the section [voxel]; 0 is none.
        noise : float
            Standard deviation of what is then added, alike over a few voxels of a
            section; the sum is clipped to 0 .. 1.
        dtype : "uint8" or "float32"
            uint8 holds round(255 * p).

        Returns
        -------
        uint8 or float32 array, (x, y, z, 3)
            Channel a at a voxel joins it to its predecessor along axis a: without blur
            and noise 1 (255) where both have the same label, not 0, and 0 elsewhere.

        Raises
        ------
        ValueError
            If the box is swapped, or blur or noise is negative.
        """
        if blur < 0 or noise < 0:
            raise ValueError(
                f"blur is {blur} and noise is {noise}; both are to be 0 or more"
            )
        box = _box(start, stop)
        halo = np.array([1, 1, 0]) * int(np.ceil(_TRUNCATE * blur))
        around = (box[0] - halo, box[1] + halo)
        if (box[0] == box[1]).any():
            return np.zeros((*(box[1] - box[0]), 3), dtype=dtype, order="F")
        labels = self.labels([int(v) - 1 for v in around[0]], [int(v) for v in around[1]])
        inner = labels[1:, 1:, 1:]
        core = tuple(slice(h, n - h) for h, n in zip(halo, inner.shape, strict=True))
        out = np.zeros((*(box[1] - box[0]), 3), dtype=np.float32, order="F")
        for axis in range(3):
            before = tuple(
                slice(0 if a == axis else 1, -1 if a == axis else None) for a in range(3)
            )
            joined = ((inner == labels[before]) & (inner != 0)).astype(np.float32)
            out[..., axis] = _blurred(joined, blur)[core]
            if noise:
                out[..., axis] += np.float32(noise) * self._cloud(box, axis)
        np.clip(out, 0, 1, out=out)
        if dtype == "float32":
            return out
        return np.asarray(np.rint(255 * out).astype(np.uint8, order="F"))

    def _cloud(self, box: tuple[Cells, Cells], channel: int) -> NDArray[np.float32]:
        """Return noise of variance 1, alike over some voxels of a section."""
        blur = 1.5
        halo = int(np.ceil(_TRUNCATE * blur))
        x, y, z = (
            np.arange(a - h, b + h, dtype=np.int64)
            for a, b, h in zip(box[0], box[1], (halo, halo, 0), strict=True)
        )
        white = bell(
            lattice_hash(key(self.seed, 60, channel), x[:, None, None], y[:, None], z)
        )
        # blurred in the plane, white noise keeps 1 / (4 pi blur**2) of its variance
        gain = np.float32((4 * np.pi * blur**2) ** 0.5)
        return _blurred(white, blur)[halo:-halo, halo:-halo] * gain

    def _partition(
        self, box: tuple[Cells, Cells], *, reach_nm: float, everywhere: bool
    ) -> Iterator[Tiles]:
        tissue = Tissue(self.seed, self.spacing_nm, self.branching)
        return partition(
            tissue,
            self.voxel_size_nm,
            *box,
            reach_nm=reach_nm,
            everywhere=everywhere,
        )

    def _assembled(self, box: tuple[Cells, Cells], dtype: type[S]) -> "_Assembly[S]":
        return _Assembly(box, tile_shape(self.voxel_size_nm, self.spacing_nm), dtype)


class _Assembly(Generic[S]):
    """The array of a box, filled tile by tile."""

    def __init__(
        self, box: tuple[Cells, Cells], shape: tuple[int, int, int], dtype: type[S]
    ) -> None:
        self._start, self._stop = box
        self._shape = np.array(shape)
        self._first = self._start // self._shape
        n = -(-self._stop // self._shape) - self._first
        pairs = [int(v) for pair in zip(shape, n, strict=True) for v in pair]
        self._tiled: NDArray[S] = np.zeros(pairs, dtype=dtype, order="F")

    def put(self, tiles: Tiles, values: NDArray[S]) -> None:
        """Take the values of some tiles, (tile, x, y, z)."""
        x, y, z = (tiles.index - self._first).T
        self._tiled[:, x, :, y, :, z] = values

    def array(self) -> NDArray[S]:
        """Return the box, (x, y, z)."""
        shape = self._tiled.shape
        whole = self._tiled.reshape(
            [shape[2 * a] * shape[2 * a + 1] for a in range(3)], order="F"
        )
        lower = self._start - self._first * self._shape
        upper = lower + self._stop - self._start
        return np.asfortranarray(
            whole[tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))]
        )


@lru_cache(maxsize=4096)
def _synapse_of(phantom: Phantom, cell: tuple[int, int, int]) -> PhantomSynapse | None:
    return synapses.synapse_of(
        cell,
        lambda start, stop: phantom.labels(start.tolist(), stop.tolist()),
        seed=phantom.seed,
        share=phantom.synapses,
        membrane_nm=phantom.membrane_nm,
        voxel_size_nm=phantom.voxel_size_nm,
    )


def _box(start: Sequence[int] | Cells, stop: Sequence[int] | Cells) -> tuple[Cells, Cells]:
    low, high = np.array(start, dtype=np.int64), np.array(stop, dtype=np.int64)
    if low.shape != (3,) or high.shape != (3,) or (low > high).any():
        raise ValueError(
            f"the box from {tuple(start)} to {tuple(stop)} is swapped or not x, y, z; "
            f"give start <= stop on each of three axes"
        )
    return low, high


def _blurred(values: NDArray[np.float32], blur: float) -> NDArray[np.float32]:
    """Blur within sections; what lies within the halo of the border is not exact."""
    if blur == 0:
        return values
    radius = int(np.ceil(_TRUNCATE * blur))
    return np.asarray(
        gaussian_filter(values, (blur, blur, 0.0), radius=(radius, radius, 0))
    )
