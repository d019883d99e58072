"""From labelled tissue to weights: resumable, and the same for the same seed."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from pipeline.errors import ModelError
from pipeline.geometry import Bbox
from pipeline.nets.config import ModelConfig
from pipeline.nets.inference import predict
from pipeline.nets.model import Model, build_net
from pipeline.nets.turn import to_torch
from pipeline.training.config import Optimisation, TrainConfig
from pipeline.training.loss import Score, balanced_loss, mean_score, score
from pipeline.training.sampler import Block, Example, training_example, validation_examples
from pipeline.training.targets import affinities

CHECKPOINT_FILE = "checkpoint.pt"
LOG_FILE = "log.jsonl"


class Trainer:
    """A training in a folder of its own, which it resumes if there is a checkpoint.

    Everything random follows from the seed and the number of the step, so there is no
    state of a generator to keep, and a resumed training equals one that never stopped.

    Parameters
    ----------
    model : ModelConfig
        The net.
    config : TrainConfig
        How it is trained.
    folder : Path
        Where checkpoint and log go; made if absent.

    Raises
    ------
    ModelError
        If the folder holds the checkpoint of another net or another training.
    """

    def __init__(self, model: ModelConfig, config: TrainConfig, folder: Path) -> None:
        granule = model.architecture.granule
        if any(config.patch % granule) or config.patch.x != config.patch.y:
            raise ModelError(
                f"{model.name}: training patch {config.patch} does not divide by "
                f"{granule}, or is not as wide in x as in y; choose another"
            )
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config = config
        self.folder = folder
        self.step = 0
        self.seconds = 0.0
        self.model = Model(model, build_net(model))
        self.average = Model(model, copy.deepcopy(self.model.net).requires_grad_(False))
        self.optimiser = optimiser(self.model.net, config.optimisation)
        folder.mkdir(parents=True, exist_ok=True)
        if self._checkpoint.exists():
            self._resume()

    @property
    def _checkpoint(self) -> Path:
        return self.folder / CHECKPOINT_FILE

    @property
    def progress(self) -> float:
        """What is done, from 0 to 1: of the steps, or of the time if that ends first."""
        plan = self.config.optimisation
        timed = self.seconds / plan.seconds if plan.seconds else 0.0
        return min(1.0, max(self.step / plan.steps, timed))

    def run(self, train: Block, validation: Block) -> None:
        """Train to the end, saving and scoring on the way.

        Parameters
        ----------
        train, validation : Block
            What is learnt from, and what is only scored.
        """
        config = self.config
        scored = validation_examples(validation, config.patch, config.validation_patches)
        losses: list[float] = []
        while self.progress < 1:
            began = time.monotonic()
            example = training_example(
                train, config.patch, config.augmentation, seed=config.seed, step=self.step
            )
            rate = learning_rate(self.step, self.progress, config.optimisation)
            losses.append(self._learn(example, rate))
            self.step += 1
            self.seconds += time.monotonic() - began
            if self.step % config.validate_every == 0 or self.progress == 1:
                result = self.validate(scored)
                self._log(rate, sum(losses) / len(losses), result)
                losses = []
            if self.step % config.save_every == 0 or self.progress == 1:
                self._save()

    def validate(self, examples: list[Example]) -> Score:
        """Score the averaged weights.

        Parameters
        ----------
        examples : list of Example
            The first plane of each axis has no predecessor and is left out.

        Returns
        -------
        Score
            Mean over the examples.
        """
        inner = (slice(None), slice(None), *(slice(1, None),) * 3)
        scores = []
        with torch.inference_mode():
            for example in examples:
                logits = self.average.logits(example.image * np.float32(255))
                scores.append(score(logits[inner], as_target(example)[inner]))
        return mean_score(scores)

    def _learn(self, example: Example, rate: float) -> float:
        plan = self.config.optimisation
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        loss = balanced_loss(
            self.model.logits(example.image * np.float32(255)), as_target(example)
        )
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.net.parameters(), plan.clip)
        self.optimiser.step()
        # A young average follows closely, or it would remember the random first weights.
        decay = min(plan.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(
            list(self.average.net.parameters()),
            [p.detach() for p in self.model.net.parameters()],
            1 - decay,
        )
        return loss.item()

    def _log(self, rate: float, loss: float, result: Score) -> None:
        line = {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "rate": rate,
            "loss": loss,
            **{f"validation_{k}": v for k, v in asdict(result).items()},
        }
        with (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.config.model_dump_json(exclude={"sha256", "inference"}),
            "training": self.config.model_dump_json(),
            "net": self.model.net.state_dict(),
            "average": self.average.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        temporary = self._checkpoint.with_suffix(".part")
        torch.save(state, temporary)
        os.replace(temporary, self._checkpoint)

    def _resume(self) -> None:
        state = read_checkpoint(self.folder)
        mine = self.model.config.model_dump_json(exclude={"sha256", "inference"})
        if state["model"] != mine or state["training"] != self.config.model_dump_json():
            raise ModelError(
                f"{self._checkpoint} belongs to another net or another training; "
                "give an empty folder, or the configuration that it was begun with"
            )
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.net.load_state_dict(state["net"])
        self.average.net.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        log = self.folder / LOG_FILE
        if log.exists():
            kept = [e for e in read_log(self.folder) if e["step"] <= self.step]
            log.write_text("".join(json.dumps(e) + "\n" for e in kept), "utf-8")


def score_block(model: Model, block: Block) -> Score:
    """Score a model on a whole block, predicted from overlapping patches.

    Parameters
    ----------
    model : Model
        What predicts.
    block : Block
        What it never saw; the first plane of each axis has no predecessor and is left out.

    Returns
    -------
    Score
        Over all voxels of the block.
    """
    box = Bbox.of_shape(block.image.shape)
    said = predict(model, block.image, read=box, core=box, bounds=box)[1:, 1:, 1:]
    true = affinities(block.labels)[1:, 1:, 1:]
    return score(torch.logit(to_torch(said), eps=1e-6), to_torch(true).float())


def as_target(example: Example) -> Tensor:
    """Return the target of an example as a float tensor, (1, channel, z, y, x)."""
    return to_torch(example.target).float()


def optimiser(net: nn.Module, plan: Optimisation) -> AdamW:
    """Make the optimiser; only the filters of convolutions decay."""
    filters = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    return AdamW(
        [
            {"params": filters, "weight_decay": plan.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=plan.rate,
    )


def learning_rate(step: int, progress: float, plan: Optimisation) -> float:
    """Rise over the warmup, fall as a half cosine with the progress.

    Parameters
    ----------
    step : int
        Steps taken.
    progress : float
        What is done, from 0 to 1.
    plan : Optimisation
        Highest rate, and warmup.

    Returns
    -------
    float
        The rate of the next step.
    """
    rise = min(1.0, (step + 1) / (plan.warmup + 1))
    return plan.rate * rise * (1 + math.cos(math.pi * progress)) / 2


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Read the checkpoint of a training's folder.

    Raises
    ------
    ModelError
        If there is none.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        raise ModelError(
            f"{path} does not exist; train until the first checkpoint is saved"
        )
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the log of a training's folder, one entry per score."""
    lines = (folder / LOG_FILE).read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]
