"""The `provenance` file beside `info`: where a layer comes from and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def provenance(
    *,
    description: str,
    sources: Sequence[str],
    method: Mapping[str, Any],
    by: str,
    date: str,
    owners: Sequence[str] = (),
) -> dict[str, Any]:
    """Describe how a layer was made, in the form that CloudVolume and Igneous keep.

    Parameters
    ----------
    description : str
        What the layer holds.
    sources : sequence of str
        Locations of the layers that it was made from.
    method : mapping
        What was run: ``task`` names it; the rest is its configuration, code version and
        the digests of its inputs.
    by : str
        Who ran it.
    date : str
        When, ISO 8601.
    owners : sequence of str
        Who answers for the layer.
    """
    return {
        "description": description,
        "owners": sorted(set(owners)),
        "processing": [{"by": by, "date": date, "method": dict(method)}],
        "sources": sorted(set(sources)),
    }
