"""A net run over a box of any size, patch by patch."""

from __future__ import annotations

import itertools
import logging
import queue
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import DataError, MemoryLimitError
from pipeline.geometry import Bbox, Vec3
from pipeline.nets.backends import Backend, Lane, open_lanes
from pipeline.nets.config import Head, ModelConfig
from pipeline.nets.model import Model
from pipeline.nets.patches import bump, patches_touching, read_box
from pipeline.nets.symmetries import Count, Source, Symmetry, symmetries

log = logging.getLogger("em.nets")


class Runner:
    """A model ready to compute patches in batches.

    Every batch has the same extent, the last one filled up with nothing, so that what is
    said of a patch does not depend on which others it is computed with. A batch for which
    the memory of a GPU does not suffice is halved, and so are all that follow.

    Parameters
    ----------
    model : Model
        What predicts.
    backend : {"torch", "compiled", "openvino"}
        What computes.
    head : str or None
        The only head that is wanted; None for all.
    batch : int
        Patches that are computed at once.
    lanes : int
        Batches that are under way at once, each in one thread.

    Raises
    ------
    BackendError
        If this machine lacks the backend.
    ModelError
        If there is no such head.
    """

    def __init__(
        self,
        model: Model,
        backend: Backend = "torch",
        *,
        head: str | None = None,
        batch: int = 1,
        lanes: int = 1,
    ) -> None:
        self.config: ModelConfig = model.config
        if head is not None:
            self.config.channels_of(head)
        self.heads: tuple[Head, ...] = tuple(
            h for h in model.config.head if head in (None, h.name)
        )
        self.batch = batch
        self._at_once = batch
        self._lanes = open_lanes(model, backend, self.heads, batch=batch, lanes=lanes)

    @property
    def width(self) -> int:
        """Number of channels that come out."""
        return sum(head.width for head in self.heads)

    def sources(self, symmetry: Symmetry) -> list[Source]:
        """Say where each channel is found in what is said of a turned patch."""
        found: list[Source] = []
        first = 0
        for head in self.heads:
            here = (
                symmetry.sources(head.offsets)
                if head.kind == "affinities"
                else [Source(i, i, Vec3(0, 0, 0)) for i in range(head.width)]
            )
            found += [Source(s.channel + first, s.source + first, s.anchor) for s in here]
            first += head.width
        return found

    def __call__(self, patches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[Any]]:
        """Compute patches, and yield what is said of each in their order.

        Parameters
        ----------
        patches : iterable of uint8 array, (input, z, y, x)
            Drawn ahead of what is yielded, as far as batches and lanes ask.

        Yields
        ------
        float32 array, (channel, z, y, x)
            Valid until the next one is drawn.
        """
        with single_thread():
            for count, said in self._batches(_batched(patches, self.batch)):
                yield from said[:count]

    def _batches(
        self, batches: Iterator[tuple[int, NDArray[np.uint8]]]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        if len(self._lanes) == 1:
            for count, images in batches:
                yield count, self._compute(self._lanes[0], images)
            return
        free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in self._lanes:
            free.put(lane)

        def in_a_lane(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            lane = free.get()
            try:
                return self._compute(lane, images).copy()
            finally:
                free.put(lane)

        waiting: deque[tuple[int, Future[NDArray[np.float32]]]] = deque()
        with ThreadPoolExecutor(len(self._lanes)) as threads:
            for count, images in batches:
                waiting.append((count, threads.submit(in_a_lane, images)))
                if len(waiting) > len(self._lanes):
                    count, future = waiting.popleft()
                    yield count, future.result()
            for count, future in waiting:
                yield count, future.result()

    def _compute(self, lane: Lane, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        while True:
            at_once = self._at_once
            try:
                if at_once == self.batch:
                    return lane(images)
                parts = range(0, len(images), at_once)
                return np.concatenate([lane(images[i : i + at_once]).copy() for i in parts])
            except torch.OutOfMemoryError as error:
                if at_once == 1:
                    raise MemoryLimitError(
                        f"model {self.config.name} has no room on the device for one patch "
                        f"of {self.config.inference.patch}: {error}; give a smaller patch "
                        "or a device with more memory"
                    ) from error
                self._at_once = min(self._at_once, max(1, at_once // 2))
                log.warning(
                    "model %s has no room on the device for %d patches at once; "
                    "going on with %d",
                    self.config.name,
                    at_once,
                    self._at_once,
                )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def predict(
    net: Runner | Model,
    image: NDArray[np.uint8],
    *,
    read: Bbox,
    core: Bbox,
    bounds: Bbox,
    turns: Count = 1,
    wanted: NDArray[np.uint8] | None = None,
) -> NDArray[np.float32]:
    """Predict a box from overlapping patches, blended with a bump weight.

    A voxel's value is the weighted mean over all patches of the layer's grid that cover it,
    summed in the order of that grid, and divided by the sum of the same weights. So it
    depends on neither the box asked for nor the chunk it is asked with, and neighbouring
    chunks meet without a seam.

    Probabilities are blended, not logits: they lie between 0 and 1 however sure a net is,
    so nothing overflows, and one patch that is very sure does not outvote all others.

    Parameters
    ----------
    net : Runner or Model
        What predicts; a model is run by torch.
    image : uint8 array, (x, y, z) or (x, y, z, input)
        Inputs over `read`; a patch that is 0 throughout is blank and gives 0.
    read : Bbox
        Box of the image; it contains `read_box` of the core [voxel].
    core : Bbox
        Box asked for, inside the bounds [voxel].
    bounds : Bbox
        The layer's bounds, from whose start patches are counted [voxel]. Where a patch
        reaches beyond, the image is mirrored.
    turns : {1, 8, 16}
        In how many ways each patch is turned and flipped; all of them are blended.
    wanted : uint8 array, (x, y, z), or None
        Of `core`: where it is 0 the result is 0, and patches that are not needed for the
        rest are not computed.

    Returns
    -------
    float32 array, (x, y, z, channel), Fortran order
        Of `core`, from 0 to 1. What an affinity says of a predecessor outside the bounds
        means nothing.

    Raises
    ------
    DataError
        If the image has another shape or dtype, or the boxes do not hold one another.
    """
    runner = Runner(net) if isinstance(net, Model) else net
    inference = runner.config.inference
    _require(runner.config, image, read=read, core=core, bounds=bounds, turns=turns)
    ways = symmetries(turns)
    sources = [runner.sources(way) for way in ways]
    sums = _Sums(core, inference.patch, runner.width, by_channel=turns > 1)
    computed: deque[tuple[Bbox, int]] = deque()

    def turned() -> Iterator[NDArray[np.uint8]]:
        for patch in patches_touching(core, bounds, inference):
            for found in sources:
                sums.weigh(patch, found)
            pixels = _pixels(image, patch, read)
            if not pixels.any() or not _is_wanted(wanted, patch, core):
                continue
            for number, way in enumerate(ways):
                computed.append((patch, number))
                yield _as_input(way.turn(pixels))

    for said in runner(turned()):
        patch, number = computed.popleft()
        sums.add(patch, sources[number], ways[number].turn_back(said.T))
    values = sums.mean()
    if wanted is not None:
        values[wanted == 0] = 0
    return values


class _Sums:
    """Weighted sums over patches, and the sums of their weights."""

    def __init__(self, core: Bbox, patch: Vec3, width: int, *, by_channel: bool) -> None:
        self._core = core
        self._bump = bump(patch)
        shape = core.shape.astuple()
        self._values = np.zeros((*shape, width), np.float32, order="F")
        # Unless patches are turned, all channels have the same weights.
        self._weights = np.zeros(
            (*shape, width if by_channel else 1), np.float32, order="F"
        )
        self._scratch = np.empty(patch.x * patch.y, np.float32)

    def weigh(self, patch: Bbox, sources: list[Source]) -> None:
        """Add the weights of a patch, computed or blank."""
        for source in sources[: self._weights.shape[3]]:
            box = self._said_of(patch, source)
            if box.is_empty:
                continue
            at = (*box.slices(self._core.start), source.channel)
            self._weights[at] += self._bump[box.slices(patch.start)]

    def add(self, patch: Bbox, sources: list[Source], said: NDArray[np.float32]) -> None:
        """Add what is said of a patch, (x, y, z, channel), turned back.

        Section by section, so that products are still in the cache when they are added.
        """
        for source in sources:
            box = self._said_of(patch, source)
            if box.is_empty:
                continue
            beside = box.shifted(source.anchor * -1).slices(patch.start)
            values = self._values[(*box.slices(self._core.start), source.channel)]
            here = said[(*beside, source.source)]
            weights = self._bump[box.slices(patch.start)]
            x, y, z = box.shape
            weighted = self._scratch[: x * y].reshape((x, y), order="F")
            for section in range(z):
                np.multiply(here[..., section], weights[..., section], out=weighted)
                values[..., section] += weighted

    def mean(self) -> NDArray[np.float32]:
        """Divide the weights out."""
        return np.divide(self._values, self._weights, out=self._values)

    def _said_of(self, patch: Bbox, source: Source) -> Bbox:
        """Return the voxels of the core that a patch speaks of in a channel."""
        moved = patch.shifted(source.anchor)
        return patch.intersection(moved).intersection(self._core)


def _require(
    config: ModelConfig,
    image: NDArray[np.uint8],
    *,
    read: Bbox,
    core: Bbox,
    bounds: Bbox,
    turns: Count,
) -> None:
    inputs, given = len(config.inputs), image.shape[3] if image.ndim == 4 else 1
    if given != inputs:
        raise DataError(
            f"model {config.name} takes {', '.join(config.inputs)}, and {given} inputs are "
            "given; give one channel for each"
        )
    if image.shape[:3] != read.shape.astuple() or image.dtype != np.uint8:
        raise DataError(
            f"image has shape {image.shape} and dtype {image.dtype}; give uint8 of shape "
            f"{read.shape}, the box {read}"
        )
    needed = read_box(core, bounds, config.inference)
    if not (bounds.contains(core) and bounds.contains(read) and read.contains(needed)):
        raise DataError(
            f"box {core} in bounds {bounds} needs an image of {needed}, not of {read}; "
            "read that box"
        )
    patch = config.inference.patch
    if turns > 1 and patch.x != patch.y:
        raise DataError(
            f"patches of {patch} cannot be turned within the section; give 1 turn, or a "
            "model whose patch is as wide as high"
        )


def _is_wanted(wanted: NDArray[np.uint8] | None, patch: Bbox, core: Bbox) -> bool:
    if wanted is None:
        return True
    return bool(wanted[patch.intersection(core).slices(core.start)].any())


def _pixels(image: NDArray[np.uint8], patch: Bbox, read: Bbox) -> NDArray[np.uint8]:
    held = patch.intersection(read)
    pixels = image[held.slices(read.start)]
    if patch == held:
        return pixels
    beyond = [(0, n) for n in patch.stop - held.stop] + [(0, 0)] * (image.ndim - 3)
    return np.pad(pixels, beyond, mode="symmetric")


def _as_input(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a patch as (input, z, y, x), contiguous."""
    turned = pixels.T if pixels.ndim == 4 else pixels.T[None]
    return np.ascontiguousarray(turned)


def _batched(
    patches: Iterable[NDArray[np.uint8]], batch: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield how many patches a batch holds, and the batch, filled up with blank ones."""
    drawn = iter(patches)
    while held := list(itertools.islice(drawn, batch)):
        if batch == 1:
            yield 1, held[0][None]
            continue
        blank = [np.zeros_like(held[0])] * (batch - len(held))
        yield len(held), np.stack([*held, *blank])


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute in one thread: sums split among threads depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def quantise(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round probabilities to bytes, 255 for certainty.

    Parameters
    ----------
    probabilities : float32 array
        From 0 to 1.

    Returns
    -------
    uint8 array
        Same shape and memory order.
    """
    out = np.empty_like(probabilities, np.uint8)
    # Channel by channel, so that what is in between takes little.
    for c in range(probabilities.shape[-1]):
        said = probabilities[..., c] * np.float32(255)
        np.rint(said, out=out[..., c], casting="unsafe")
    return out
