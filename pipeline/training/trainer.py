"""From labelled tissue to weights: resumable, and the same for the same seed."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import ModelError, TrainingError
from pipeline.nets.config import ModelConfig
from pipeline.nets.model import Model, build_net, normalised
from pipeline.nets.turn import to_torch
from pipeline.training.checkpoint import (
    CHECKPOINT_FILE,
    append_log,
    cut_log,
    read_checkpoint,
    save_checkpoint,
)
from pipeline.training.config import TrainConfig
from pipeline.training.losses import loss_terms, total_loss
from pipeline.training.optimiser import learning_rate, optimiser_of
from pipeline.training.processes import World, device_of
from pipeline.training.sampler import (
    Ahead,
    Example,
    training_example,
    validation_examples,
)
from pipeline.training.validation import can_be_segmented, score_patches, segment_volume
from pipeline.training.volumes import Volume

Listener: TypeAlias = Callable[["Progress"], None]


@dataclass(frozen=True)
class Progress:
    """Where a training is, after a step.

    Parameters
    ----------
    step : int
        Steps taken.
    share : float
        What is done, from 0 to 1.
    seconds : float
        Time of the processor that the steps took, of all runs [s].
    loss : float
        Of this step.
    entry : dict, optional
        What was logged, after a score.
    """

    step: int
    share: float
    seconds: float
    loss: float
    entry: dict[str, Any] | None = None


class Trainer:
    """A training in a folder of its own, which it resumes if there is a checkpoint.

    Everything random follows from the seed and the number of the patch, so there is no
    state of a generator to keep, and a resumed training equals one that never stopped.

    Parameters
    ----------
    model : ModelConfig
        The net.
    config : TrainConfig
        How it is trained.
    folder : Path
        Where checkpoint and log go; made if absent.
    start : Path, optional
        Weights to begin with, if there is no checkpoint.
    world : World
        Which of how many processes this is.

    Raises
    ------
    ModelError
        If the patch does not fit the net, if the folder holds the checkpoint of another net
        or another training, or if the weights to begin with are another net's.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: TrainConfig,
        folder: Path,
        *,
        start: Path | None = None,
        world: World | None = None,
    ) -> None:
        _require_patch(model, config)
        self.world = world or World()
        self.config, self.folder = config, folder
        self.terms = loss_terms(model, config.loss)
        self.step, self.seconds = 0, 0.0
        self.losses: list[dict[str, float]] = []
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        device = device_of(config.device, self.world)
        precise = replace_precision(model, config)
        net = build_net(precise).to(device)
        if start is not None:
            begin_with(net, start, without=config.start_without)
        self.model = Model(precise, net, device)
        kept = copy.deepcopy(net).requires_grad_(False).eval()
        self.average = Model(precise, kept, device)
        self.optimiser = optimiser_of(net, config.optimisation)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT_FILE).exists():
            self._resume()
        self.learner = self.world.wrapped(net.train(), device)

    @property
    def progress(self) -> float:
        """What is done, from 0 to 1: of the steps, or of the time if that ends first."""
        plan = self.config.optimisation
        timed = self.seconds / plan.seconds if plan.seconds else 0.0
        return min(1.0, max(self.step / plan.steps, timed))

    def run(
        self,
        train: Sequence[Volume],
        validation: Sequence[Volume] = (),
        listen: Sequence[Listener] = (),
    ) -> None:
        """Train to the end, saving and scoring on the way.

        Parameters
        ----------
        train, validation : sequence of Volume
            What is learnt from, and what is only scored.
        listen : sequence of callable
            Each is told of every step.

        Raises
        ------
        TrainingError
            If the loss is no number: nothing is learnt from it, the last checkpoint stays,
            and the patch that it comes from is named.
        """
        config, model = self.config, self.model.config
        patches = Ahead(
            lambda index: training_example(train, model, config, index), config.loaders
        )
        done = self.world.agreed(self.progress)
        try:
            while done < 1:
                began = time.process_time()
                examples = [patches[index] for index in self._indices()]
                rate = learning_rate(self.step, done, config.optimisation)
                self.losses.append(self._learn(examples, rate))
                last = self.losses[-1]["total"]
                self.step += 1
                self.seconds += time.process_time() - began
                done = self.world.agreed(self.progress)
                entry = None
                if self._is_due(config.validation.every, done):
                    entry = self._score(rate, validation, at_end=done == 1)
                    self.losses = []
                if self._is_due(config.save_every, done):
                    self._save()
                if self.world.leads:
                    here = Progress(self.step, done, self.seconds, last, entry)
                    for tell in listen:
                        tell(here)
        finally:
            patches.close()

    def _indices(self) -> range:
        """Return the numbers of the patches of this step that are this process's."""
        batch = self.config.batch
        first = (self.step * self.world.size + self.world.rank) * batch
        return range(first, first + batch)

    def _is_due(self, every: int, done: float) -> bool:
        return self.step % every == 0 or done == 1

    def _learn(self, examples: list[Example], rate: float) -> dict[str, float]:
        plan, device = self.config.optimisation, self.model.device
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        # Whatever a net drops at random follows from the step too.
        torch.manual_seed(self.config.seed + self.step)
        self.optimiser.zero_grad()
        parts = total_loss(
            self.model.config,
            self.terms,
            self._logits(_batch([e.inputs for e in examples], device)),
            _batch([e.target.value for e in examples], device),
            _batch([e.target.known for e in examples], device),
        )
        parts["total"].backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.net.parameters(), plan.clip)
        losses = {name: part.item() for name, part in parts.items()}
        self._require_numbers(losses, float(norm), examples)
        self.optimiser.step()
        self._follow()
        return losses

    def _logits(self, inputs: Tensor) -> Tensor:
        config, device = self.model.config, self.model.device
        low = config.inference.precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            logits: Tensor = self.learner(normalised(inputs, config.normalisation))
        return logits.float()

    def _require_numbers(
        self, losses: dict[str, float], norm: float, examples: list[Example]
    ) -> None:
        if math.isfinite(losses["total"]) and math.isfinite(norm):
            return
        said = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        where = "; ".join(f"volume {e.volume}, box {e.box}" for e in examples)
        raise TrainingError(
            f"step {self.step}: the loss is {said} and the gradient {norm:g}, from "
            f"{where}; nothing was learnt from it, and the checkpoint in {self.folder} "
            "is from before: look at that patch, or lower rate"
        )

    def _follow(self) -> None:
        # A young average follows closely, or it would remember the random first weights.
        most = self.config.optimisation.average
        decay = min(most, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.net.parameters()),
                [p.detach() for p in self.model.net.parameters()],
                1 - decay,
            )
            for kept, now in zip(
                self.average.net.buffers(), self.model.net.buffers(), strict=True
            ):
                kept.copy_(now)

    def _score(
        self,
        rate: float,
        validation: Sequence[Volume],
        *,
        at_end: bool,
    ) -> dict[str, Any] | None:
        entry = None
        if self.world.leads:
            entry = {
                "step": self.step,
                "seconds": round(self.seconds, 1),
                "rate": rate,
                "loss": {
                    name: sum(each[name] for each in self.losses) / len(self.losses)
                    for name in self.losses[0]
                },
                "validation": self.validate(validation),
            }
            every = self.config.validation.segment_every
            if at_end or (every and self.step % every == 0):
                entry["segments"] = self.segment(validation)
            append_log(self.folder, entry)
        self.world.wait()
        return entry

    def validate(self, volumes: Sequence[Volume]) -> dict[str, Any]:
        """Score the averaged weights on patches of volumes, always the same ones."""
        examples = validation_examples(
            volumes,
            self.model.config,
            self.config.patch,
            self.config.validation.patches,
        )
        return score_patches(self.average, self.terms, examples)

    def segment(self, volumes: Sequence[Volume]) -> dict[str, dict[str, float]]:
        """Segment volumes with the averaged weights; ARAND and VOI by volume."""
        found = {}
        for volume in volumes:
            if can_be_segmented(self.model.config, volume):
                _, scores = segment_volume(self.average, volume)
                found[volume.name] = {
                    "arand": scores.arand,
                    "voi_split": scores.voi_split,
                    "voi_merge": scores.voi_merge,
                }
        return found

    def _save(self) -> None:
        if not self.world.leads:
            return
        save_checkpoint(
            self.folder,
            {
                "step": self.step,
                "seconds": self.seconds,
                "model": _identity(self.model.config),
                "training": self.config.identity,
                "world": self.world.size,
                "losses": self.losses,
                "net": self.model.net.state_dict(),
                "average": self.average.net.state_dict(),
                "optimiser": self.optimiser.state_dict(),
            },
        )

    def _resume(self) -> None:
        state, path = read_checkpoint(self.folder), self.folder / CHECKPOINT_FILE
        if state["model"] != _identity(self.model.config):
            raise ModelError(
                f"{path} belongs to another net; give an empty folder, or the model.toml "
                "that it was begun with"
            )
        if (state["training"], state["world"]) != (self.config.identity, self.world.size):
            raise ModelError(
                f"{path} belongs to another training, of {state['world']} processes; give "
                "an empty folder, or the train.toml and --processes that it was begun with"
            )
        self.step, self.seconds = state["step"], state["seconds"]
        self.losses = state["losses"]
        self.model.net.load_state_dict(state["net"])
        self.average.net.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.world.leads:
            cut_log(self.folder, self.step)


def replace_precision(model: ModelConfig, config: TrainConfig) -> ModelConfig:
    """Return a model's configuration with the arithmetic that it is trained in."""
    if config.precision is None:
        return model
    inference = model.inference.model_copy(update={"precision": config.precision})
    return model.model_copy(update={"inference": inference})


def begin_with(net: nn.Module, weights: Path, *, without: Sequence[str] = ()) -> None:
    """Begin with the weights of another training, of the same net or a narrower one.

    Each tensor fills the first corner of the net's own. What new channels would add to the
    old ones is 0 at first, so that a wider net says what the narrower one said.

    Parameters
    ----------
    net : Module
        Changed in place.
    weights : Path
        A safetensors file.
    without : sequence of str
        Parts of the net, by name, that stay as they are.

    Raises
    ------
    ModelError
        If there is no such file, if a tensor of it is not the net's or is wider, or if the
        net has no such part.
    """
    try:
        held = load_file(weights)
    except FileNotFoundError:
        raise ModelError(
            f"{weights} does not exist; fetch the weights to begin with, or clear start"
        ) from None
    state = net.state_dict()
    parts = dict(net.named_modules())
    unknown = [name for name in without if name not in parts]
    if unknown:
        raise ModelError(
            f"the net has no {', '.join(unknown)} to begin without; its parts are "
            f"{', '.join(name for name, _ in net.named_children())}"
        )
    kept = tuple(f"{name}." for name in without)
    for name, tensor in held.items():
        if name.startswith(kept):
            continue
        own = state.get(name)
        if own is None or any(a > b for a, b in zip(tensor.shape, own.shape, strict=True)):
            raise ModelError(
                f"{weights} holds {name} of {tuple(tensor.shape)} and the net "
                f"{None if own is None else tuple(own.shape)}; begin with a net of "
                "the same depth that is no wider"
            )
        if own.ndim > 1:
            own[: tensor.shape[0], tensor.shape[1] :] = 0
        own[tuple(slice(0, n) for n in tensor.shape)] = tensor
    net.load_state_dict(state)


def _require_patch(model: ModelConfig, config: TrainConfig) -> None:
    patch, architecture = config.patch, model.architecture
    if any(patch % architecture.granule):
        raise ModelError(
            f"{model.name}: training patch {patch} does not divide by "
            f"{architecture.granule}; choose another"
        )
    if architecture.fixed_patch and patch != model.inference.patch:
        raise ModelError(
            f"{model.name}: training patch {patch} is not {model.inference.patch}, which "
            "the net is made for; train with that one"
        )


def _identity(model: ModelConfig) -> str:
    return model.model_dump_json(exclude={"sha256", "inference"})


def _batch(arrays: list[Any], device: torch.device) -> Tensor:
    return torch.cat([to_torch(array) for array in arrays]).to(device).float()
