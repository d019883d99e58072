"""A net with its weights, ready to run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.errors import DataError, ModelError
from pipeline.geometry import Vec3
from pipeline.nets.architectures import (
    CASENetArchitecture,
    CleftNetArchitecture,
    LinkNetArchitecture,
    ResNetUNetArchitecture,
    RSUNetArchitecture,
    UNet2DArchitecture,
)
from pipeline.nets.blocks import Sections
from pipeline.nets.cleftnet import CleftNet
from pipeline.nets.config import CONFIG_FILE, Head, ModelConfig, Normalisation
from pipeline.nets.membrane import CASENet, LinkNet, ResNetUNet
from pipeline.nets.rsunet import RSUNet
from pipeline.nets.turn import from_torch, to_torch
from pipeline.nets.unet2d import UNet2D


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

    def logits(self, inputs: NDArray[np.float32]) -> Tensor:
        """Run the net on one patch; gradients flow if they are enabled.

        Parameters
        ----------
        inputs : float32 array, (x, y, z) or (x, y, z, input)
            The image, grey levels 0 to 255; after it, in channels of their own, what else
            the net is given, such as a cleft, 0 or 1.

        Returns
        -------
        Tensor, float32, (1, channel, z, y, x)
            Logits on `device`.

        Raises
        ------
        DataError
            If the number of inputs or the extent of the patch is not that of the model.
        """
        self.require(inputs)
        x = normalised(to_torch(inputs).to(self.device), self.config.normalisation)
        low = self.config.inference.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            logits: Tensor = self.net(x)
        return logits

    def require(self, inputs: NDArray[np.float32]) -> None:
        """Refuse what is not a patch for the model.

        Parameters
        ----------
        inputs : float32 array, (x, y, z) or (x, y, z, input)
            As in `logits`.

        Raises
        ------
        DataError
            Says what the model takes.
        """
        config, granule = self.config, self.config.architecture.granule
        extent = Vec3.of(inputs.shape[:3])
        given = inputs.shape[3] if inputs.ndim == 4 else 1
        if given != len(config.inputs):
            raise DataError(
                f"model {config.name} takes {', '.join(config.inputs)}, and {given} inputs "
                "are given; give one channel for each"
            )
        if any(extent % granule):
            raise DataError(
                f"patch of {extent} does not divide by {granule}, as model {config.name} "
                "asks; give another"
            )
        if config.architecture.fixed_patch and extent != config.inference.patch:
            raise DataError(
                f"model {config.name} is made for patches of {config.inference.patch}, not "
                f"of {extent}; give such a patch"
            )

    def probabilities(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the net on one patch.

        Parameters
        ----------
        inputs : float32 array, (x, y, z) or (x, y, z, input)
            As in `logits`; extents divide by the architecture's granule.

        Returns
        -------
        float32 array, (x, y, z, channel), Fortran order
            From 0 to 1.
        """
        with torch.inference_mode():
            logits = self.logits(inputs)
            out: NDArray[np.float32] = from_torch(activate(self.config.head, logits))
        return out


def normalised(inputs: Tensor, norm: Normalisation) -> Tensor:
    """Normalise the image, which is the first channel, and leave what else there is.

    Parameters
    ----------
    inputs : Tensor, (batch, input, z, y, x)
        Grey levels of the image, and other inputs.
    norm : Normalisation
        What is taken off the image and what it is divided by.

    Returns
    -------
    Tensor
        Of the same shape.
    """
    image = (inputs[:, :1] - norm.mean) / norm.std
    return image if inputs.shape[1] == 1 else torch.cat([image, inputs[:, 1:]], dim=1)


def activate(heads: Sequence[Head], logits: Tensor) -> Tensor:
    """Turn logits into what the heads say.

    Parameters
    ----------
    heads : sequence of Head
        In the order of the channels.
    logits : Tensor, (batch, channel, ...)
        Of all heads.

    Returns
    -------
    Tensor
        Of the same shape, from 0 to 1.
    """
    parts = torch.split(logits, [head.width for head in heads], dim=1)
    said = []
    for head, part in zip(heads, parts, strict=True):
        match head.kind:
            case "classes":
                said.append(torch.softmax(part, dim=1))
            case "distance":
                said.append(torch.tanh(part).clamp(min=0))
            case _:
                said.append(torch.sigmoid(part))
    return torch.cat(said, dim=1)


def build_net(config: ModelConfig) -> nn.Module:
    """Make the net of a configuration, its weights drawn from torch's generator.

    Parameters
    ----------
    config : ModelConfig
        Which net, and how many channels go in and come out.

    Returns
    -------
    Module
        From the normalised inputs, (batch, channel, z, y, x), to the logits of all heads,
        float32, of the same extent.
    """
    ends = (len(config.inputs), config.width)
    match config.architecture:
        case RSUNetArchitecture() as rsunet:
            return _volumetric(RSUNet(rsunet, *ends))
        case CleftNetArchitecture() as cleftnet:
            return _volumetric(CleftNet(cleftnet, config.inference.patch, *ends))
        case UNet2DArchitecture() as unet:
            return _planar(UNet2D(unet, *ends))
        case ResNetUNetArchitecture() as unet:
            return _planar(ResNetUNet(unet, *ends))
        case LinkNetArchitecture() as linknet:
            return _planar(LinkNet(linknet, *ends))
        case CASENetArchitecture() as casenet:
            return _planar(CASENet(casenet, *ends))


def _volumetric(net: nn.Module) -> nn.Module:
    return net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload,no-any-return]


def _planar(net: nn.Module) -> nn.Module:
    return Sections(net.to(memory_format=torch.channels_last))  # type: ignore[call-overload]


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
