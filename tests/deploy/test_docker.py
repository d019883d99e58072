"""The Dockerfile, as far as it can be told without building: sources, pins, accounts."""

import re
import tomllib
from pathlib import Path

import pytest

from pipeline.orchestration.k8s import USER
from pipeline.runtime.pools import POOLS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker" / "Dockerfile").read_text()
IGNORED = (ROOT / ".dockerignore").read_text().split()


def instructions():
    joined = TEXT.replace("\\\n", " ")
    return [
        tuple(line.split(None, 1))
        for line in joined.splitlines()
        if line.strip() and not line.startswith("#")
    ]


def stages():
    """The instructions of each stage, by its name."""
    found = {}
    for word, rest in instructions():
        if word == "FROM":
            name = re.search(r" AS (\S+)", rest)[1]
            found[name] = [(word, rest)]
        elif found:
            found[name].append((word, rest))
    return found


TARGETS = [*POOLS, "airflow"]


def test_there_is_a_target_for_each_pool_and_for_airflow():
    assert {*TARGETS} <= stages().keys()


@pytest.mark.parametrize(
    "source",
    [
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ],
)
def test_what_is_copied_exists_and_is_sent_to_the_builder(source):
    assert (ROOT / source).exists()
    assert f"!{source}" in IGNORED


def test_pins_are_those_of_the_project():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    (torch,) = re.findall(r"^ARG TORCH=(\S+)$", TEXT, re.MULTILINE)
    assert torch in pins
    assert f"TORCH ?= {torch}\n" in (ROOT / "Makefile").read_text()
    installs = re.findall(r"pip install (.*)", TEXT)
    assert all("-c constraints.txt" in i or "${TORCH}" in i for i in installs)
    assert all(
        re.search(r":\$\{PYTHON\}-|^build |^base ", r)
        for w, r in instructions()
        if w == "FROM"
    )
    (python,) = re.findall(r"^ARG PYTHON=(\S+)$", TEXT, re.MULTILINE)
    assert re.fullmatch(r"\d+\.\d+\.\d+", python)


def test_the_version_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"ARG VERSION={project['version']}\n" in TEXT
    extras = set(re.findall(r'"\.\[(\w+)\]"', TEXT))
    assert extras <= project["optional-dependencies"].keys()


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_as_nobody_and_is_tried_when_it_is_built(target):
    words = [word for word, _ in stages()[target]]
    user = dict(stages()[target])["USER"]
    assert user == f"{USER}:{USER}", "as the pods say"
    assert "RUN" in words[words.index("USER") :], "the smoke test runs as that user too"
    assert words[-1] == "CMD"


@pytest.mark.parametrize("pool", POOLS)
def test_an_image_starts_its_worker(pool):
    assert stages()[pool][-1] == ("CMD", f'["python", "workers/{pool}.py"]')
    assert (ROOT / "workers" / f"{pool}.py").exists()


def test_no_target_keeps_a_compiler():
    for target in TARGETS:
        assert stages()[target][0][1].startswith("base ")
    assert "apt-get" not in str(stages()["base"])
