"""A net with its weights, ready to run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.nets.config import CONFIG_FILE, ModelConfig
from pipeline.nets.rsunet import RSUNet
from pipeline.nets.turn import from_torch, to_torch

MEMORY_FORMAT = torch.channels_last_3d


@dataclass(frozen=True)
class Model:
    """A net, what it is, and where it runs.

    Parameters
    ----------
    config : ModelConfig
        What `model.toml` says.
    net : Module
        From normalised image to logits.
    device : torch.device
        Where the net lies.
    """

    config: ModelConfig
    net: nn.Module
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def digest(self) -> str:
        """Identity of configuration and weights, hexadecimal."""
        return self.config.digest

    def logits(self, image: NDArray[np.float32]) -> Tensor:
        """Run the net on one patch; gradients flow if they are enabled.

        Parameters
        ----------
        image : float32 array, (x, y, z)
            Grey levels, 0 to 255.

        Returns
        -------
        Tensor, float32, (1, channel, z, y, x)
            Logits on `device`.
        """
        norm = self.config.normalisation
        x = (to_torch(image).to(self.device) - norm.mean) / norm.std
        low = self.config.inference.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            logits: Tensor = self.net(x)
        return logits

    def probabilities(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the net on one patch.

        Parameters
        ----------
        image : float32 array, (x, y, z)
            Grey levels, 0 to 255; its extents divide by the architecture's granule.

        Returns
        -------
        float32 array, (x, y, z, channel), Fortran order
            From 0 to 1.
        """
        with torch.inference_mode():
            logits = self.logits(image)
            said = [
                torch.softmax(part, dim=1)
                if head.kind == "classes"
                else torch.sigmoid(part)
                for head, part in zip(
                    self.config.head,
                    torch.split(logits, [h.width for h in self.config.head], dim=1),
                    strict=True,
                )
            ]
            out: NDArray[np.float32] = from_torch(torch.cat(said, dim=1))
        return out


def build_net(config: ModelConfig) -> nn.Module:
    """Make the net of a configuration, its weights drawn from torch's generator."""
    architecture = config.architecture
    net = RSUNet(
        architecture.widths,
        channels_in=len(config.inputs),
        channels_out=config.width,
        fold=architecture.fold.astuple(),
    )
    return net.to(memory_format=MEMORY_FORMAT)  # type: ignore[call-overload,no-any-return]


def pack_weights(weights: Mapping[str, Tensor]) -> bytes:
    """Write the state of a net as the content of a safetensors file.

    Parameters
    ----------
    weights : mapping of str to Tensor
        The state, in any memory format.

    Returns
    -------
    bytes
        The same for the same state.
    """
    content: bytes = save({name: tensor.contiguous() for name, tensor in weights.items()})
    return content


def load_model(directory: str | Path, device: str = "cpu") -> Model:
    """Read a model's folder.

    Parameters
    ----------
    directory : path
        Holds `model.toml` and the weights that it names.
    device : str
        Where the net shall run, in torch's words.

    Returns
    -------
    Model
        Ready for inference.

    Raises
    ------
    ModelError
        If the folder is incomplete, or the weights are damaged or another net's.
    """
    directory = Path(directory)
    config = ModelConfig.load(directory)
    path = directory / config.weights
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(
            f"{path} does not exist; fetch the weights of {config.name}, or train and "
            f"export them"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != config.sha256:
        raise ModelError(
            f"{path} has SHA-256 {found} but {directory / CONFIG_FILE} says "
            f"{config.sha256 or 'none'}; restore the weights, or export them again"
        )
    net = build_net(config)
    try:
        net.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"{path} does not hold weights of the net in {directory / CONFIG_FILE}: "
            f"{error}; export them again with this configuration"
        ) from error
    net.requires_grad_(False)
    return Model(config, net.eval().to(device), torch.device(device))
