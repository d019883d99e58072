"""The kernels under sanitizers: no step beyond an array, no overflow, no race.

The headers know no Python, so a program of their own runs them: `kernels.cpp`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HEADERS = HERE.parents[1] / "pipeline/kernels/cpp"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Werror"]
BUILDS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    # Functions for wider vectors are chosen before this sanitizer is ready to look on.
    "thread": ["-fsanitize=thread", "-DEM_ROW_KERNEL="],
}
CHECKED = ["-D_GLIBCXX_ASSERTIONS", "-D_LIBCPP_HARDENING_MODE=_LIBCPP_HARDENING_MODE_DEBUG"]
SEED = 20_210_817


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return a function that builds the program with a sanitizer, once."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("sanitizers")

    def build(sanitizer: str) -> Path:
        program = folder / sanitizer
        if not program.exists():
            flags = ["-std=c++20", "-Og", "-g1", "-pthread", *CHECKED, *BUILDS[sanitizer]]
            command = [COMPILER, *flags, *WARNINGS, f"-I{HEADERS}"]
            done = subprocess.run(
                [*command, str(HERE / "kernels.cpp"), "-o", str(program)],
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
        return program

    return build


def run(program: Path, seed: int, count: int) -> str:
    """Run cases and return their checksum; a report of the sanitizer fails."""
    done = subprocess.run(
        [str(program), str(seed), str(count)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_no_step_beyond_an_array(built):
    checksum = run(built("address"), SEED, 100)
    assert len(checksum) == 16
    assert checksum == run(built("address"), SEED, 100)
    assert checksum != run(built("address"), SEED + 1, 100)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(4))
def test_no_step_beyond_an_array_in_many_cases(built, block):
    run(built("address"), SEED + 2 + block, 1000)


@pytest.mark.slow
def test_no_race(built):
    assert run(built("thread"), SEED, 100) == run(built("address"), SEED, 100)
