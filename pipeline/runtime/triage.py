"""Failed tasks by what they have in common."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_NUMBERS = re.compile(r"\d+(?:_\d+){3}|\d+(?:\.\d+)?")


@dataclass
class FailureGroup:
    """Tasks of a layer that failed for the same reason.

    Parameters
    ----------
    run, output, code : str
        Run, layer and code of the error.
    reason : str
        That of the first task.
    keys : list of str
        The tasks, in order.
    hosts : Counter of str
        How many failed on each host.
    """

    run: str
    output: str
    code: str
    reason: str
    keys: list[str] = field(default_factory=list)
    hosts: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """Return the fields, with the count."""
        return {
            "run": self.run,
            "output": self.output,
            "code": self.code,
            "reason": self.reason,
            "tasks": len(self.keys),
            "keys": self.keys,
            "hosts": dict(self.hosts.most_common()),
        }


def grouped(records: Iterable[Mapping[str, Any]]) -> list[FailureGroup]:
    """Group failed records; reasons that differ in numbers only are the same.

    Returns
    -------
    list of FailureGroup
        The largest first.
    """
    groups: dict[tuple[str, ...], FailureGroup] = {}
    for record in records:
        run, output, code = (str(record.get(k, "")) for k in ("run", "output", "code"))
        reason = str(record.get("reason", ""))
        alike = (run, output, code, _NUMBERS.sub("#", reason))
        group = groups.setdefault(alike, FailureGroup(run, output, code, reason))
        group.keys.append(str(record.get("key", "")))
        group.hosts[str(record.get("host", ""))] += 1
    return sorted(groups.values(), key=lambda g: -len(g.keys))
