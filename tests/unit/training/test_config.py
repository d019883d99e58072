import re
import tomllib
from pathlib import Path

import pytest

from pipeline.geometry import Bbox, Vec3
from pipeline.training.config import Augmentation, LossTerm, TrainConfig, VolumeConfig

from .conftest import altered

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/how-to/train-a-net.md").read_text()


def shown():
    """What the page writes into a train.toml: the whole first, then parts of it."""
    blocks = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [tomllib.loads(b) for b in blocks if "[[volume]]" in b or "[[loss]]" in b]


def test_the_page_shows_what_can_be_read():
    whole, volume, losses = shown()
    config = TrainConfig.model_validate(whole)
    assert config.patch == Vec3(48, 48, 8)
    told = VolumeConfig.model_validate(volume["volume"][0])
    assert told.truth["membrane"].values == (0,)
    assert [LossTerm.model_validate(t).kind for t in losses["loss"]] == [
        "focal",
        "coherence",
    ]


@pytest.mark.parametrize("path", sorted(ROOT.glob("models/*/train.toml")), ids=str)
def test_the_trainings_of_the_models_can_be_read(path):
    TrainConfig.load(path)


def test_sections_and_boxes(config):
    bounds = Bbox(Vec3(5, 6, 0), Vec3(20, 30, 40))
    volume = config.volume[0]
    assert volume.box("train", bounds) == Bbox(Vec3(5, 6, 0), Vec3(20, 30, 12))
    boxed = volume.model_copy(update={"train": (1, 2, 3, 4, 5, 6)})
    assert boxed.box("train", bounds) == Bbox(Vec3(1, 2, 3), Vec3(4, 5, 6))
    assert volume.model_copy(update={"train": ()}).box("train", bounds) is None


def test_what_weights_follow_from_is_the_identity(config):
    for same in (
        {"threads": 2},
        {"loaders": 3},
        {"validation": {"every": 9}},
        {"optimisation": {"steps": 99}},
    ):
        assert altered(config, **same).identity == config.identity
    for other in (
        {"seed": 9},
        {"batch": 2},
        {"optimisation": {"rate": 0.5}},
        {"augmentation": Augmentation()},
    ):
        assert altered(config, **other).identity != config.identity
