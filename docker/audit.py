"""Asks whether what the images install has known holes: ``make audit``.

Every package of every lock is looked up by pip-audit in the database of advisories of
PyPI. Exit status 1: there are some. 2: the database could not be reached, and nothing is
known.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
UNREACHED = (
    "ConnectionError",
    "ServiceError",
    "Could not connect",
    "ProxyError",
    "Timeout",
)


def audited(lock: Path) -> int:
    """Audit one lock; return the exit status."""
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--timeout"]
    command += ["10", "--disable-pip", "--require-hashes", "-r", str(lock)]
    done = subprocess.run(command, capture_output=True, text=True)
    sys.stdout.write(done.stdout)
    if done.returncode == 0:
        print(f"{lock.name}: no known holes")
        return 0
    last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
    if any(sign in done.stderr for sign in UNREACHED):
        print(
            f"{lock.name}: NOT AUDITED: the database of advisories could not be reached "
            f"({last}); run make audit where pypi.org can be"
        )
        return 2
    if not done.stdout:
        print(f"{lock.name}: NOT AUDITED: {last}")
        return 2
    return 1


def main() -> int:
    """Audit every lock; return the worst status."""
    status = 0
    for lock in sorted(HERE.glob("requirements-*.txt")):
        found = audited(lock)
        status = max(status, found)
        if found == 2:
            break
    return status


if __name__ == "__main__":
    sys.exit(main())
