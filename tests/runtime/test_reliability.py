"""Killed workers, failing storage and doubled messages at once change no byte."""

import importlib.util
import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline.recipe import Recipe
from pipeline.stages import STAGES


@pytest.fixture
def storms():
    """Return the module with the storm; its stage is in the table for the test only."""
    path = Path(__file__).with_name("reliability.py")
    spec = importlib.util.spec_from_file_location("reliability", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["reliability"] = module
    spec.loader.exec_module(module)
    yield module
    del STAGES["poison"], sys.modules["reliability"]


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_run_survives_a_storm(
    storms, small, cloud, flaky, counts, root, objects, tmp_path
):
    wanted = int(os.environ.get("EM_STORM_KILLS", "12"))
    every_s = float(os.environ.get("EM_STORM_EVERY_S", "2"))
    logs = tmp_path / "workers.log"
    recipe = Recipe.load(small)
    storms.preload()
    storms.quiet(recipe, root)
    endpoint = flaky(rate=0.05, duplicates=0.02, hang_s=4, seed=5)
    rounds = []
    while not rounds or sum(r["kills"] for r in rounds) < wanted:
        cloud.use(endpoint, EM_REQUEST_TIMEOUT_S="2")
        rounds.append(
            storms.storm_round(len(rounds), recipe, cloud, objects(root), every_s, logs)
        )
    cloud.use(endpoint, EM_REQUEST_TIMEOUT_S="2")
    poison = storms.storm_round(
        len(rounds), Recipe.parse(storms.POISON), cloud, None, every_s, logs
    )
    assert sum(r["kills"] for r in rounds) >= wanted
    if "EM_STORM_FIGURES" in os.environ:
        events = Counter(
            json.loads(line)["event"]
            for line in logs.read_text().splitlines()
            if line.startswith("{") and line.endswith("}")
        )
        document = {
            "rounds": rounds,
            "poison": poison,
            "proxy": counts(endpoint),
            "events": dict(events),
            "kills": sum(r["kills"] for r in [*rounds, poison]),
        }
        Path(os.environ["EM_STORM_FIGURES"]).write_text(json.dumps(document, indent=1))
