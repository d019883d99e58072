"""Locks what the images install, by sha256: ``python docker/lock.py`` (``make lock``).

Versions are those of ``constraints.txt``; which packages there are follows from
``pyproject.toml``. The index of torch for CPUs is needed for all but the GPU image, or a
folder with its wheel (``--find-links``).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
PYTHON = "3.11"
TORCH_CPU = "https://download.pytorch.org/whl/cpu"
EXTRAS = {
    "cpu": ["kubernetes"],
    "gpu": ["kubernetes"],
    "airflow": ["airflow", "postgresql"],
}
"""Extras of the package that each image has."""


def identity(image: str) -> str:
    """Return the SHA-256 of what a lock follows from."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [
        project["build-system"]["requires"] if image == "build" else [],
        project["project"]["dependencies"] if image in EXTRAS else [],
        *(extras[extra] for extra in EXTRAS.get(image, ())),
    ]
    constraints = (ROOT / "constraints.txt").read_text()
    return hashlib.sha256(json.dumps([wanted, constraints]).encode()).hexdigest()


def header(image: str) -> str:
    """Return the first lines of a lock."""
    return (
        f"# What the image {image} installs, by `make lock`; not written by hand.\n"
        f"# Follows from pyproject.toml and constraints.txt: sha256:{identity(image)}\n"
    )


def locked(image: str, links: str) -> str:
    """Resolve an image; return its lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    with tempfile.TemporaryDirectory() as folder:
        source, out = ROOT / "pyproject.toml", Path(folder) / "lock.txt"
        pins = [*(ROOT / "constraints.txt").read_text().splitlines()]
        command = ["uv", "pip", "compile", "--quiet", "--no-header", "--generate-hashes"]
        if image == "build":
            source = Path(folder) / "build.in"
            # CMake and Ninja are what scikit-build-core asks for when it builds.
            needed = [*project["build-system"]["requires"], "cmake", "ninja"]
            source.write_text("\n".join(needed))
        for extra in EXTRAS.get(image, ()):
            command += ["--extra", extra]
        if image in ("cpu", "airflow"):
            torch = next(pin for pin in pins if pin.startswith("torch=="))
            pins = [f"{torch}+cpu" if pin == torch else pin for pin in pins]
            command += ["--find-links", links] if links else []
            command += [] if links else ["--extra-index-url", TORCH_CPU]
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(pins))
        command += ["--python-version", PYTHON, "-c", str(constraints)]
        subprocess.run([*command, "-o", str(out), str(source)], check=True, cwd=ROOT)
        # Where it was resolved is nobody's business.
        lines = [
            line
            for line in out.read_text().splitlines()
            if not line.lstrip().startswith(("#", "--find-links", "--extra-index-url"))
        ]
        return header(image) + "\n".join(lines) + "\n"


def main() -> None:
    """Write the locks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--find-links", default="", help="folder with torch for CPUs")
    links = parser.parse_args().find_links
    for image in ("build", *EXTRAS):
        path = HERE / f"requirements-{image}.txt"
        path.write_text(locked(image, links))
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
