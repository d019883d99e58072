"""The Dockerfile, as far as it can be told without building: sources, pins, accounts."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.orchestration.k8s import USER
from pipeline.runtime.pools import POOLS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker" / "Dockerfile").read_text()
_spec = importlib.util.spec_from_file_location("lock", ROOT / "docker" / "lock.py")
lock = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lock)
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
    (torch,) = (pin for pin in pins if pin.startswith("torch=="))
    assert f"TORCH ?= {torch}\n" in (ROOT / "Makefile").read_text()
    installs = re.findall(r"pip (?:install|wheel) (.*)", TEXT)
    assert len(installs) == 8
    assert all("--require-hashes" in i or "--no-deps" in i for i in installs)
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


# -- locks ----------------------------------------------------------------------------

LOCKS = ("build", *lock.EXTRAS)


@pytest.mark.parametrize("image", LOCKS)
def test_a_lock_is_current(image):
    text = (ROOT / f"docker/requirements-{image}.txt").read_text()
    assert text.startswith(lock.header(image)), "run make lock"


@pytest.mark.parametrize("image", LOCKS)
def test_a_lock_names_every_file_by_its_sha256(image):
    text = (ROOT / f"docker/requirements-{image}.txt").read_text()
    entries = re.split(r"\n(?=\S)", text.partition("\n")[2].partition("\n")[2].strip())
    pins = {}
    for entry in entries:
        name, version = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", entry).groups()
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), name
        assert not re.search(r"://|file:", entry), "hashes say what it is, not where"
        pins[canonicalize_name(name)] = version
    wanted = {
        canonicalize_name(name): version
        for name, version in (
            line.split("==") for line in (ROOT / "constraints.txt").read_text().split()
        )
    }
    for name, version in pins.items():
        assert version.removesuffix("+cpu") == wanted.get(name, version), name
    assert ("nvidia-cublas" in pins) == (image == "gpu")
    if image in lock.EXTRAS:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        needed = [*project["dependencies"]]
        for extra in lock.EXTRAS[image]:
            needed += project["optional-dependencies"][extra]
        for requirement in map(Requirement, needed):
            found = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(found.removesuffix("+cpu"))


def test_a_dependency_more_makes_a_lock_stale(monkeypatch, tmp_path):
    before = lock.header("cpu")
    text = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "constraints.txt").write_text((ROOT / "constraints.txt").read_text())
    (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.setattr(lock, "ROOT", tmp_path)
    assert lock.header("cpu") == before
    (tmp_path / "pyproject.toml").write_text(
        text.replace('"typer>=', '"attrs>=25",\n"typer>=')
    )
    assert lock.header("cpu") != before


def test_an_audit_that_reaches_nobody_says_so():
    pytest.importorskip("pip_audit")
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""}
    done = subprocess.run(
        [sys.executable, ROOT / "docker/audit.py"],
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "NOT AUDITED: the database of advisories could not be reached" in done.stdout


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
