"""Ways to compute a net: torch, torch compiled, OpenVINO.

Every backend computes one batch in one thread. Sums that are split among threads depend on
how many there are, so more threads are more lanes: each computes batches of its own, and
the bits of a batch are the same in any lane.
"""

from __future__ import annotations

import copy
import ctypes
import importlib.util
import logging
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BackendError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.nets.config import Head
    from pipeline.nets.model import Model

log = logging.getLogger("em.nets")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""As malloc.h numbers them."""

Backend: TypeAlias = Literal["torch", "compiled", "openvino"]
Device: TypeAlias = Literal["cpu", "cuda"]
Lane: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Computes a batch, (batch, input, z, y, x), to (batch, channel, z, y, x). What it returns
is its own until it is called again."""

PREFERRED: dict[Device, tuple[Backend, ...]] = {
    "cpu": ("openvino", "torch"),
    "cuda": ("torch",),
}
"""Backends from the fastest on, by what was measured: see docs/reference/benchmarks.md."""


def choose(
    backend: Backend | Literal["auto"] = "auto", device: Device | Literal["auto"] = "auto"
) -> tuple[Backend, Device]:
    """Settle what is left open, by what this machine has.

    The choice is by a fixed order and not by the clock, so that machines that have the same
    take the same.

    Parameters
    ----------
    backend : {"auto", "torch", "compiled", "openvino"}
        What computes; "auto" takes the first of `PREFERRED` that is installed.
    device : {"auto", "cpu", "cuda"}
        Where; "auto" takes a GPU if there is one and the backend can use it.

    Raises
    ------
    BackendError
        If the backend is named and does not run on the device.
    """
    if device == "auto":
        device = "cuda" if backend != "openvino" and has_cuda() else "cpu"
    if backend == "openvino" and device == "cuda":
        raise BackendError(
            'backend openvino does not run on cuda; take device = "cpu" or another backend'
        )
    if backend != "auto":
        return backend, device
    for name in PREFERRED[device]:
        if name != "openvino" or has_openvino():
            return name, device
        log.warning(
            "openvino is not installed, and nets run several times slower without it; "
            "pip install openvino"
        )
    raise AssertionError("torch is always there")


def has_openvino() -> bool:
    """Whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def has_cuda() -> bool:
    """Whether there is an NVIDIA GPU that torch can use; loads torch only if it may be."""
    if not Path("/proc/driver/nvidia").is_dir():
        return False
    import torch

    return torch.cuda.is_available()


def open_lanes(
    model: Model, backend: Backend, heads: tuple[Head, ...], *, batch: int, lanes: int
) -> list[Lane]:
    """Make a net ready to compute batches.

    Parameters
    ----------
    model : Model
        The net, on the device where it shall run.
    backend : {"torch", "compiled", "openvino"}
        What computes.
    heads : tuple of Head
        Which of the model's heads are wanted, in the order of the model.
    batch : int
        Patches of a batch, always as many.
    lanes : int
        How many batches may be under way at once.

    Returns
    -------
    list of Lane
        They share weights. Each may be called by one thread at a time.

    Raises
    ------
    BackendError
        If this machine lacks the backend, or the backend cannot run the net.
    """
    module = _said(model, heads)
    if backend == "openvino":
        return _openvino(model, module, batch, lanes)
    return [_torch(model, _compiled(module) if backend == "compiled" else module)] * lanes


def _said(model: Model, heads: tuple[Head, ...]) -> nn.Module:
    """Return the net with what stands before and behind it: bytes in, probabilities out."""
    import torch
    from torch import nn

    from pipeline.nets.model import activate, normalised

    slices = [model.config.channels_of(head.name) for head in heads]

    class Said(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model.net

        def forward(self, images: Tensor) -> Tensor:
            logits = self.net(normalised(images.float(), model.config.normalisation))
            wanted = [logits[:, channels] for channels in slices]
            return activate(heads, torch.cat(wanted, dim=1).float())

    return Said().eval()


@cache
def _keep_freed_memory() -> None:
    """Let the C library keep what is freed, as every layer of a net frees and takes again.

    Otherwise each takes fresh pages, which the system has to clear. Other C libraries
    than glibc do as they are used to.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _torch(model: Model, module: Callable[..., Any]) -> Lane:
    import torch

    device = model.device
    if device.type == "cpu":
        _keep_freed_memory()
    low = model.config.inference.precision == "bfloat16"
    if device.type == "cuda":
        # Algorithms that are chosen by the clock differ from process to process.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True

    def lane(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=low),
        ):
            said: Tensor = module(torch.from_numpy(images).to(device))
            out: NDArray[np.float32] = said.contiguous().cpu().numpy()
        return out

    return lane


def _compiled(module: nn.Module) -> Callable[..., Any]:
    import torch

    compiled: Callable[..., Any] = torch.compile(module, dynamic=False)
    return compiled


def _openvino(model: Model, module: nn.Module, batch: int, lanes: int) -> list[Lane]:
    config = model.config
    extent = (batch, len(config.inputs), *config.inference.patch.astuple()[::-1])
    try:
        import openvino
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    except ImportError as error:
        raise BackendError(
            f"this machine lacks openvino ({error}); install it, or start the run anew "
            'with backend = "torch"'
        ) from error
    import torch

    module = _with_plain_norms(module)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Extents become constants, as is meant: every batch has the same.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                module, torch.zeros(extent, dtype=torch.uint8), check_trace=False
            )
        frontend = FrontEndManager().load_by_framework("pytorch")
        # These are not kept alive by what is made of them.
        decoder = TorchScriptPythonDecoder(traced)
        loaded = frontend.load(decoder)
        graph = frontend.convert(loaded)
        graph.reshape(list(extent))
        low = config.inference.precision == "bfloat16"
        compiled = openvino.Core().compile_model(
            graph,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "bf16" if low else "f32",
                "INFERENCE_NUM_THREADS": lanes,
                "NUM_STREAMS": lanes,
                # Workers beside one another would all take the first core.
                "ENABLE_CPU_PINNING": False,
            },
        )
    except RuntimeError as error:
        raise BackendError(
            f"openvino cannot run model {config.name}: {error}; start the run anew with "
            'backend = "torch"'
        ) from error
    return [_openvino_lane(compiled.create_infer_request()) for _ in range(lanes)]


def _openvino_lane(request: Any) -> Lane:
    def lane(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        request.infer([images], share_inputs=True)
        out: NDArray[np.float32] = request.get_output_tensor(0).data
        return out

    return lane


def _with_plain_norms(module: nn.Module) -> nn.Module:
    """Return a copy that says instance normalisation so that OpenVINO knows it for one."""
    from torch import nn
    from torch.nn import functional

    from pipeline.nets.blocks import InstanceNorm

    class Plain(nn.Module):
        def __init__(self, norm: InstanceNorm) -> None:
            super().__init__()
            self.weight, self.bias = norm.weight, norm.bias

        def forward(self, x: Tensor) -> Tensor:
            return functional.instance_norm(x, weight=self.weight, bias=self.bias)

    # Memory formats of torch mean nothing here, and its strides are in the way.
    module = copy.deepcopy(module).cpu()
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, InstanceNorm):
                setattr(parent, name, Plain(child))
    return module
