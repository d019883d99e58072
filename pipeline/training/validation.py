"""How good a net is: by voxels, and by what is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.geometry import Bbox
from pipeline.kernels.agglomerate import Clusters, agglomerate
from pipeline.kernels.region_graph import region_graph
from pipeline.kernels.relabel import RemapTable, relabel
from pipeline.kernels.watershed import watershed
from pipeline.metrics import Scores, contingency, scores
from pipeline.nets.config import NEAREST, Head, ModelConfig
from pipeline.nets.inference import predict, quantise
from pipeline.nets.model import Model, activate
from pipeline.nets.turn import to_torch
from pipeline.stages import STAGES
from pipeline.training.config import CELLS, LossTerm
from pipeline.training.losses import total_loss
from pipeline.training.matching import found_share
from pipeline.training.sampler import Example
from pipeline.training.volumes import Volume

Counts = NDArray[np.int64]


@dataclass
class Tally:
    """Voxels told right and wrong at a probability of one half, summed over patches.

    Parameters
    ----------
    model : ModelConfig
        Says which channels are which head's.
    """

    model: ModelConfig
    hits: Counts = field(init=False)
    false_alarms: Counts = field(init=False)
    misses: Counts = field(init=False)
    passes: Counts = field(init=False)
    error: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("hits", "false_alarms", "misses", "passes"):
            setattr(self, name, np.zeros(self.model.width, np.int64))
        self.error = np.zeros(self.model.width)

    def add(self, said: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> None:
        """Count one patch.

        Parameters
        ----------
        said, target, known : Tensor, (1, channel, z, y, x)
            Probabilities or distances, what is true, and where that is known.
        """
        axes = (0, 2, 3, 4)
        yes, true, seen = self._yes(said), target > 0.5, known > 0.5
        for name, what in (
            ("hits", yes & true),
            ("false_alarms", yes & ~true),
            ("misses", ~yes & true),
            ("passes", ~yes & ~true),
        ):
            setattr(self, name, getattr(self, name) + (what & seen).sum(axes).cpu().numpy())
        self.error += ((said - target).abs() * seen).double().sum(axes).cpu().numpy()

    def _yes(self, said: torch.Tensor) -> torch.Tensor:
        yes = said > 0.5
        for head in self.model.head:
            if head.kind == "classes":
                own = self.model.channels_of(head.name)
                likeliest = said[:, own].argmax(1, keepdim=True)
                places = torch.arange(head.width, device=said.device)
                yes[:, own] = likeliest == places[None, :, None, None, None]
        return yes

    def scores(self) -> dict[str, dict[str, float]]:
        """Score each channel, by `head.channel`.

        Returns
        -------
        dict
            Of affinities `accuracy`, the mean of the shares of joined and of parted voxels
            that are told right (chance is 0.5); of masks and classes `precision`, `recall`
            and `f1`; of distances `error`, the mean absolute one. What nothing is known of
            is left out.
        """
        found: dict[str, dict[str, float]] = {}
        for head in self.model.head:
            if head.kind == "embedding":
                continue
            first = self.model.channels_of(head.name).start
            for channel, name in enumerate(channel_names(head), first):
                if self._seen(channel):
                    found[f"{head.name}.{name}"] = self._of(head, channel)
        return found

    def _seen(self, c: int) -> int:
        return int(self.hits[c] + self.false_alarms[c] + self.misses[c] + self.passes[c])

    def _of(self, head: Head, c: int) -> dict[str, float]:
        hits, alarms = int(self.hits[c]), int(self.false_alarms[c])
        misses, passes = int(self.misses[c]), int(self.passes[c])
        if head.kind == "distance":
            return {"error": float(self.error[c]) / self._seen(c)}
        if head.kind == "affinities":
            shares = _share(hits, misses), _share(passes, alarms)
            return {"accuracy": sum(shares) / 2}
        return {
            "precision": _share(hits, alarms),
            "recall": _share(hits, misses),
            "f1": _share(2 * hits, alarms + misses),
        }


def channel_names(head: Head) -> list[str]:
    """Name the channels of a head; those of affinities by their offsets."""
    if head.kind == "affinities":
        return [",".join(str(n) for n in offset) for offset in head.offsets]
    return list(head.channels)


def _share(part: int, rest: int) -> float:
    return part / (part + rest) if part + rest else 0.0


def score_patches(
    model: Model, terms: Sequence[LossTerm], examples: Iterable[Example]
) -> dict[str, Any]:
    """Score patches.

    Parameters
    ----------
    model : Model
        What predicts.
    terms : sequence of LossTerm
        The loss that it is trained with.
    examples : iterable of Example
        What it never learnt from.

    Returns
    -------
    dict
        `loss`, the mean over patches, and `channels`, as `Tally.scores`; empty without
        patches.
    """
    tally, losses = Tally(model.config), []
    found: dict[str, dict[int, tuple[int, int]]] = {}
    with torch.inference_mode():
        for example in examples:
            logits = model.logits(example.inputs)
            target = to_torch(example.target.value).to(model.device)
            known = to_torch(example.target.known).to(model.device)
            parts = total_loss(model.config, terms, logits, target, known)
            losses.append(parts["total"].item())
            tally.add(activate(model.config.head, logits), target, known)
            for term in terms:
                if term.kind == "matching":
                    _count_found(found, model.config, term, logits, target, known)
    if not losses:
        return {}
    channels = tally.scores()
    for name, by_distance in sorted(found.items()):
        for apart, (right, all_of_them) in sorted(by_distance.items()):
            channels[f"{name}.{apart} apart"] = {"found": right / all_of_them}
    return {"loss": sum(losses) / len(losses), "channels": channels}


def _count_found(
    found: dict[str, dict[int, tuple[int, int]]],
    model: ModelConfig,
    term: LossTerm,
    logits: torch.Tensor,
    target: torch.Tensor,
    known: torch.Tensor,
) -> None:
    """Add up the patches of an embedding that are found, by distance of sections."""
    own = model.channels_of(term.head)
    counts = found.setdefault(term.head, {})
    for apart, (right, all_of_them) in found_share(
        logits[:, own],
        target[:, own][:, :2],
        known[:, own][:, :2],
        patch=term.patch,
        search=term.search,
        distance=term.sections,
    ).items():
        before = counts.get(apart, (0, 0))
        counts[apart] = (before[0] + right, before[1] + all_of_them)


def can_be_segmented(model: ModelConfig, volume: Volume) -> bool:
    """Whether a model gives affinities of a volume that segments can be scored on."""
    return (
        affinity_head(model) is not None
        and model.inputs == ("image",)
        and CELLS in volume.truth
        and volume.ratio == (1.0, 1.0, 1.0)
    )


def affinity_head(model: ModelConfig) -> Head | None:
    """Return the head of affinities to the predecessors along x, y and z, if any."""
    return next((h for h in model.head if h.offsets == NEAREST), None)


def segment_volume(model: Model, volume: Volume) -> tuple[NDArray[np.uint64], Scores]:
    """Segment a volume as the stages do by default, and score the segments.

    Parameters
    ----------
    model : Model
        Gives affinities.
    volume : Volume
        What it never learnt from, with cells, of the model's voxel size.

    Returns
    -------
    uint64 array, (x, y, z)
        The segments.
    Scores
        ARAND and VOI; cells that are not known count as nothing.
    """
    head = affinity_head(model.config)
    assert head is not None  # as `can_be_segmented` says
    bounds = Bbox.of_shape(volume.shape)
    said = predict(model, volume.inputs["image"], read=bounds, core=bounds, bounds=bounds)[
        ..., model.config.channels_of(head.name)
    ]
    segments = segment(quantise(np.asfortranarray(said)))
    truth = volume.truth[CELLS]
    if volume.known is not None:
        truth = np.where(volume.known, truth, truth.dtype.type(0))
    return segments, scores(contingency(segments, truth))


def segment(affinities: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Watershed and agglomeration in memory, with the settings of the stages by default.

    Parameters
    ----------
    affinities : uint8 array, (x, y, z, 3), Fortran order
        255 is certainty.

    Returns
    -------
    uint64 array, (x, y, z)
        Segments; 0 is none.
    """
    bounds = Bbox.of_shape(affinities.shape[:3])
    where: Mapping[str, Any] = {"box": bounds, "read_box": bounds, "bounds": bounds}
    basins, merges = (STAGES[stage].model_fields for stage in ("basins", "agglomeration"))
    names = ("low", "high", "size_threshold", "dust")
    settings: Mapping[str, Any] = {name: basins[name].default for name in names}
    ids = watershed(affinities, **settings, **where)
    regions = region_graph(ids, affinities, **where)
    done = agglomerate(
        [Clusters.of(regions)],
        threshold=merges["threshold"].default,
        floor=merges["floor"].default,
    )
    return relabel(ids, RemapTable(done.outcomes.ids, done.outcomes.targets))
