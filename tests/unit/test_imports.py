"""What importing costs, what may import what, and what is installed."""

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = [
    "torch",
    "cloudvolume",
    "cloudfiles",
    "airflow",
    "igneous",
    "kimimaro",
    "neuroglancer",
    "scipy.ndimage",
    "taskqueue",
    "tensorstore",
    "zmesh",
]


def loaded_by(statement):
    """Return the modules of a fresh interpreter after a statement."""
    code = f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "module",
    ["pipeline.stages", "pipeline.recipe", "pipeline.reconstruction", "pipeline.geometry"],
)
def test_reading_a_recipe_loads_nothing_heavy(module):
    """So a scheduler may parse recipes every few seconds."""
    loaded = loaded_by(f"import {module}")
    assert module in loaded
    assert not loaded & set(HEAVY)


def test_the_probe_sees_what_is_heavy():
    assert "zmesh" in loaded_by("import pipeline.kernels.surface_mesh")


def test_imports_point_down():
    """The contracts of import-linter, as pyproject.toml states them."""
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert f"{len(contracts['contracts'])} kept, 0 broken" in done.stdout


def test_nothing_imports_what_is_executed():
    """``dags`` and ``workers`` import ``pipeline`` and never the other way."""
    for path in (ROOT / "pipeline").rglob("*.py"):
        text = path.read_text()
        for name in ("dags", "workers", "tests", "benchmarks"):
            assert f"import {name}" not in text, path
            assert f"from {name}" not in text, path


def test_one_package_is_built():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
    assert build["wheel"]["packages"] == ["pipeline"]


@pytest.mark.slow
def test_the_wheel_brings_one_name(tmp_path):
    """Needs a compiler, and the index for what builds."""
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path]
    build = f"--config-settings=build-dir={tmp_path / 'build'}"
    subprocess.run([*wheel, build, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {n for n in names if not n.endswith(".dist-info")} == {"pipeline"}
    inside = zipfile.ZipFile(wheel).namelist()
    assert any(n.startswith("pipeline/kernels/_cpp.") and n.endswith(".so") for n in inside)
    assert not any(n.endswith((".hpp", ".cpp")) for n in inside)
