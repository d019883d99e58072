"""What the documentation says holds: rendered pages, links, commands, the example."""

import importlib.util
import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import typer

from pipeline.cli import app
from pipeline.recipe import Recipe
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import serial
from pipeline.runtime.run import Run
from pipeline.specs import Region
from pipeline.stages import STAGES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("models/**/*.md")])


def fences(text, *languages):
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [body for language, body in blocks if language in languages]


# -- rendered pages ---------------------------------------------------------------------


def render():
    spec = importlib.util.spec_from_file_location("render", DOCS / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(render().PAGES))
def test_a_rendered_page_is_current(path):
    current = render().PAGES[path]()
    assert (DOCS / path).read_text() == current, "run: python docs/render.py"


def test_every_stage_and_command_is_in_the_reference():
    stages = (DOCS / "reference/stages.md").read_text()
    assert [s for s in STAGES if f"\n## {s}\n" not in stages] == []
    commands = (DOCS / "reference/cli.md").read_text()
    assert "\n## em reconstruct\n" in commands
    assert "--replace" in commands


# -- links and commands -----------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [t.partition("#")[0] for t in targets if not re.match(r"[a-z]+:", t)]
    assert [t for t in local if t and not (page.parent / t).exists()] == []


def commands():
    """Every `em` command in a fenced block, with the page that shows it."""
    for page in PAGES:
        for block in fences(page.read_text(), "", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = line.partition("  #")[0].strip().removeprefix("$ ")
                if re.match(r"em [a-z]", words):
                    yield f"{page.relative_to(ROOT)}: {words}"


@pytest.mark.parametrize("shown", sorted(set(commands())))
def test_shown_commands_exist_with_their_options(shown):
    command = typer.main.get_command(app)
    _, *words = shlex.split(shown.partition(": ")[2])
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands
        command = command.commands[name]
    options = {o for p in command.params for o in p.opts} | {"--help"}
    used = {w.partition("=")[0] for w in words if w.startswith("--")}
    assert used - options == set()


# -- the example of how to write a stage ------------------------------------------------


@pytest.fixture
def voids(monkeypatch):
    """The stage of the page, in the table."""
    text = (DOCS / "how-to/write-a-stage.md").read_text()
    found = {}
    for block in fences(text, "python"):
        path = re.match(r"# (pipeline/[\w/]+)\.py\n", block)
        if path:
            name = path[1].replace("/", ".")
            found[name] = types.ModuleType(name)
            monkeypatch.setitem(sys.modules, name, found[name])
            exec(compile(block, name, "exec"), found[name].__dict__)
    assert list(found) == ["pipeline.kernels.voids", "pipeline.stages.voids"]
    stage = found["pipeline.stages.voids"].Voids
    monkeypatch.setitem(STAGES, "voids", stage)
    return stage


def mask(root, chunk):
    recipe = Recipe.parse(
        {
            "name": "voids",
            "grid": {"bounds": {"start": [0, 0, 0], "stop": [40, 30, 6]}, "chunk": chunk},
            "layers": {"image": "phantom://40,30,6/image"},
            "stage": [
                {
                    "use": "voids",
                    "image": "image",
                    "output": "voids",
                    "radius": 2,
                    "darkest": 140,
                    "storage_chunk": chunk,
                }
            ],
        }
    )
    run = Run.start(recipe, str(root))
    run_to_end(run, serial, quiet=True)
    image = run.store.read(Region("image", run.bounds))
    return image, run.store.read(Region("voids", run.bounds))


def test_the_stage_of_the_page_works_in_every_chunking(voids, tmp_path):
    image, whole = mask(tmp_path / "whole", [40, 30, 6])
    _, parts = mask(tmp_path / "parts", [13, 11, 4])
    np.testing.assert_array_equal(parts, whole)
    expected = [
        image[max(0, x - 2) : x + 3, max(0, y - 2) : y + 3, z].max() <= 140
        for x, y, z in np.ndindex(whole.shape)
    ]
    assert 0 < np.mean(expected) < 1
    np.testing.assert_array_equal(whole, np.reshape(expected, whole.shape))


def test_a_halo_too_narrow_would_show(voids, tmp_path, monkeypatch):
    """The example has data that can tell."""
    reach = voids.reach.fget
    monkeypatch.setattr(
        voids, "reach", property(lambda s: reach(s.model_copy(update={"radius": 1})))
    )
    _, whole = mask(tmp_path / "whole", [40, 30, 6])
    _, parts = mask(tmp_path / "parts", [13, 11, 4])
    assert (parts != whole).any()
