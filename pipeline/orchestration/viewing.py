"""The link from a run to its layers in Neuroglancer."""

from __future__ import annotations

import os

from pipeline.errors import PipelineError
from pipeline.runtime.run import Run
from pipeline.runtime.waves import unfinished


def neuroglancer_url(run: Run) -> tuple[str | None, str]:
    """Return the link that opens the layers of a run, or None, and why there is none.

    Layers in a folder of a machine cannot be reached from another. ``EM_NEUROGLANCER``
    names another client than the public one.
    """
    from pipeline.runtime.results import view_layers
    from pipeline.view import HOSTED_CLIENT, hosted_url

    is_whole = all(unfinished(run, stage) is None for stage in run.recipe.stages)
    try:
        layers = view_layers(run, segments=None if is_whole else [])
        client = os.environ.get("EM_NEUROGLANCER", HOSTED_CLIENT)
        return hosted_url(layers, client=client, title=run.recipe.name), ""
    except PipelineError as error:
        look = f"em view {run.recipe.name} --root {run.store.root}"
        return None, f"{error}; look with: {look}"
