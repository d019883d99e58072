"""Nets are those of the papers: layers counted by hand, and numbers that were published."""

import itertools
import tomllib
from pathlib import Path

import pytest
import torch

from pipeline.errors import ModelError
from pipeline.geometry import Vec3
from pipeline.nets.config import ModelConfig
from pipeline.nets.model import build_net, load_model
from pipeline.nets.resnet import ResNet

MODELS = Path(__file__).parents[3] / "models"
NAMES = sorted(p.parent.name for p in MODELS.glob("*/model.toml"))
UNTRAINED = [n for n in NAMES if not (MODELS / n / "weights.safetensors").exists()]


def build(config):
    """Build a net that takes no memory."""
    with torch.device("meta"):
        return build_net(config)


def n_parameters(net):
    return sum(p.numel() for p in net.parameters())


def rsunet_parameters(widths, ends, *, convolutions, top, pointwise=False):
    """Add up a residual symmetric U-Net, layer by layer.

    A unit is a norm (two numbers for each channel that comes in) and a convolution.
    """
    first, last = ends

    def module(before, after, taps):
        n = 2 * before + before * after * taps
        return n + (convolutions - 1) * (2 * after + after * after * taps)

    taps = [top, *(27 for _ in widths[1:])]
    n = first * widths[0] * 25
    n += module(widths[0], widths[0], top)
    for depth in range(1, len(widths)):
        n += module(widths[depth - 1], widths[depth], 27)
        n += widths[depth] * widths[depth - 1]  # up
        n += module(widths[depth - 1], widths[depth - 1], taps[depth - 1])
    n += 2 * widths[0]
    if pointwise:
        n += widths[0] * widths[0] * 25 + 2 * widths[0]
        return n + widths[0] * last + last
    return n + widths[0] * last * 25 + last


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "boundary-macrina",
            rsunet_parameters((28, 36, 48, 64, 80), (1, 14), convolutions=4, top=27),
        ),
        (
            "semantic-macrina",
            rsunet_parameters(
                (32, 64, 128, 256, 512), (1, 5), convolutions=3, top=27, pointwise=True
            ),
        ),
        ("cleft-macrina", rsunet_parameters((32, 40, 80), (1, 1), convolutions=3, top=9)),
        (
            "assignment-macrina",
            rsunet_parameters((16, 20, 40), (2, 2), convolutions=3, top=9),
        ),
    ],
)
def test_residual_nets_have_the_layers_that_the_papers_name(name, expected):
    assert n_parameters(build(ModelConfig.load(MODELS / name))) == expected


def test_the_defect_net_has_the_layers_that_the_paper_names():
    """Three convolutions a depth, five depths, four of them twice; one of 3 x 3 at last."""
    widths = (16, 32, 64, 128, 256)
    n = 0
    for before, after in [
        *zip((1, *widths), widths, strict=False),
        *((a + b, a) for a, b in itertools.pairwise(widths)),
    ]:
        n += before * after * 9 + 2 * after * after * 9 + 3 * 2 * after
    n += widths[0] * 3 * 9 + 3
    net = build(ModelConfig.load(MODELS / "defects-macrina"))
    assert n_parameters(net) == n
    assert sum(isinstance(m, torch.nn.Conv2d) for m in net.modules()) == 3 * 9 + 1


@pytest.mark.parametrize(
    ("depth", "published", "features"),
    [
        (18, 11_689_512, 512),
        (34, 21_797_672, 512),
        (50, 25_557_032, 2048),
        (101, 44_549_160, 2048),
    ],
)
def test_encoders_are_the_published_ones(depth, published, features):
    """The published number is of an image in colour, with 1000 classes at the end."""
    with torch.device("meta"):
        encoder = ResNet(depth, 3)
    assert n_parameters(encoder) + (features + 1) * 1000 == published


@pytest.mark.parametrize(
    ("name", "published", "within"),
    [
        ("membrane-unet", 32_521_105, 0),  # segmentation-models-pytorch, resnet50
        ("membrane-linknet", 11.5e6, 0.05e6),  # Chaurasia and Culurciello, table 1
    ],
)
def test_membrane_nets_are_the_published_ones(name, published, within):
    config = ModelConfig.load(MODELS / name)
    in_colour = config.model_copy(update={"inputs": ("red", "green", "blue")})
    assert abs(n_parameters(build(in_colour)) - published) <= within


def test_cleftnet_has_the_layers_that_the_paper_names():
    config = ModelConfig.load(MODELS / "cleftnet")
    widths, n = (32, 64, 96, 128, 160), 0

    def block(before, after):
        """A convolution and two more, each with a norm."""
        return before * after * 27 + 2 * after * after * 27 + 3 * 2 * after

    n += sum(block(a, b) for a, b in zip((1, *widths), widths, strict=False))
    n += sum(block(a + b, a) for a, b in itertools.pairwise(widths))
    n += widths[0] * 2 + 2
    unet = n
    # Key, value and projection of 1 x 1 x 1, and a query for each voxel of the output.
    voxels = [256 * 256 * 8, 128 * 128 * 4, 64 * 64 * 2, 32 * 32, 16 * 16]
    for depth in range(4):
        fine, coarse = widths[depth], widths[depth + 1]
        n += 3 * fine**2 + fine * voxels[depth + 1]
        n += 3 * coarse**2 + coarse * voxels[depth]
    n += 3 * widths[4] ** 2 + widths[4] * voxels[4]
    assert n_parameters(build(config)) == n
    without = config.architecture.model_copy(update={"query": "none"})
    config = config.model_copy(update={"architecture": without})
    assert n_parameters(build(config)) == unet


@pytest.mark.parametrize(
    ("name", "patch", "gives"),
    [
        ("boundary-macrina", (256, 256, 20), 3 + 9 + 1 + 1),
        ("semantic-macrina", (224, 224, 18), 5),
        ("cleft-macrina", (192, 192, 18), 1),
        ("assignment-macrina", (80, 80, 18), 2),
        ("defects-macrina", (256, 256, 1), 3),
        ("cleftnet", (256, 256, 8), 2),
        ("membrane-unet", (1024, 1024, 1), 1),
    ],
)
def test_patches_are_the_papers(name, patch, gives):
    config = ModelConfig.load(MODELS / name)
    assert config.inference.patch == Vec3(*patch)
    assert config.width == gives


def test_long_range_affinities_are_the_papers():
    config = ModelConfig.load(MODELS / "boundary-macrina")
    head = next(h for h in config.head if h.name == "long_range")
    assert {tuple(-n for n in offset) for offset in head.offsets} == {
        (-5, 0, 0), (-10, 0, 0), (-15, 0, 0),
        (0, -5, 0), (0, -10, 0), (0, -15, 0),
        (0, 0, -2), (0, 0, -3), (0, 0, -4),
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_model_can_be_built(name):
    config = ModelConfig.load(MODELS / name)
    assert config.name == name
    assert n_parameters(build(config)) > 0
    document = tomllib.loads((MODELS / name / "model.toml").read_text())
    assert document["architecture"]["name"] == config.architecture.name


@pytest.mark.parametrize("name", UNTRAINED)
def test_a_model_without_weights_says_so(name):
    with pytest.raises(
        ModelError, match=r"does not exist; fetch the weights of .*, or train"
    ):
        load_model(MODELS / name)


def test_every_model_has_a_row_in_the_table():
    table = (MODELS / "README.md").read_text()
    assert [n for n in NAMES if f"| [{n}](" not in table] == []
