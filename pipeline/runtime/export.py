"""What exports share: the folder that they go to, and the run that they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import MissingInputError, StaleOutputError
from pipeline.layers.folder import Folder
from pipeline.runtime.run import Run
from pipeline.stages.base import Stage

MANIFEST = "export.json"
"""File in the folder of an export that says what it was made from."""


def claim(
    folder: Folder, document: Mapping[str, Any], parts: Sequence[str], *, replace: bool
) -> None:
    """Write down what a folder is about to hold; another export there is in the way.

    Parameters
    ----------
    folder : Folder
        Where the export goes.
    document : mapping
        What is exported and how.
    parts : sequence of str
        Folders of the export, which ``replace`` deletes.
    replace : bool
        Whether to delete another export.

    Raises
    ------
    StaleOutputError
        If there is another and it is not to be replaced.
    """
    wanted = json.dumps(document, indent=2, sort_keys=True) + "\n"
    content = folder.get(MANIFEST)
    if content is not None and content.decode(errors="replace") != wanted:
        if not replace:
            raise StaleOutputError(
                f"{folder.location} holds an export of another run or of other settings, "
                f"see {MANIFEST} there; give another --to, or --replace to delete it"
            )
        folder.delete([MANIFEST])
        for part in parts:
            folder.delete_folder(part)
    folder.put(MANIFEST, wanted.encode())


def require_done(run: Run, stages: Sequence[Stage]) -> None:
    """Check that no task of these stages is missing.

    Raises
    ------
    MissingInputError
        If some are, with how many and the first of each stage.
    StaleOutputError
        If one was done with another configuration.
    """
    stale = run.stale()
    for stage in stages:
        if stage.output in stale:
            raise StaleOutputError(stale[stage.output])
    faults = []
    for stage in stages:
        done = run.done_keys(stage)
        missing = (key for wave in stage.plan() for key in wave if key not in done)
        first = next(missing, None)
        if first is not None:
            count = 1 + sum(1 for _ in missing)
            faults.append(f"{count} tasks of {stage.output}, first {first}")
    if faults:
        raise MissingInputError(
            f"run {run.recipe.name} has not come to its end: not done are "
            f"{'; '.join(faults)}; finish it with em run {run.recipe.name} --root "
            f"{run.store.root.removeprefix('file://')}, then export again"
        )
