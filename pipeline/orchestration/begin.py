"""Begins a run that others will drive: checks it, freezes it, makes its queues."""

from __future__ import annotations

from pipeline.errors import MemoryLimitError, RootError
from pipeline.recipe import Recipe
from pipeline.runtime.estimate import peak_memory, require_memory
from pipeline.runtime.pools import POOLS
from pipeline.runtime.run import Run
from pipeline.runtime.run_queues import create_queue, depth, queue_urls
from pipeline.runtime.waves import resume


def begin(
    recipe: Recipe,
    root: str,
    queue: str,
    *,
    replace: bool = False,
    memory_gib: float | None = None,
) -> tuple[Run, list[str]]:
    """Start a run, and see to it that its queues are there.

    Parameters
    ----------
    recipe : Recipe
        What to run.
    root : str
        Folder of the run.
    queue : str
        Template of its queues.
    replace : bool
        Delete outputs that were made with another configuration.
    memory_gib : float or None
        Memory of a worker; None takes the table of pools.

    Returns
    -------
    run : Run
        Started, and no longer cancelled if it was.
    said : list of str
        What a person wants to know of it.

    Raises
    ------
    RecipeError, RootError, StaleOutputError, MemoryLimitError
        If it cannot work, before anything is written or sent.
    """
    planned = Run.plan(recipe, root)
    if memory_gib is not None:
        require_memory(planned, int(memory_gib * 2**30))
    else:
        _require_pools_suffice(planned)
    urls = queue_urls(queue, planned)
    for url in urls.values():
        _require_queue(url, make="{" in queue)
    run = Run.start(recipe, root, replace=replace)
    resume(run)
    tasks = sum(len(wave) for stage in run.recipe.stages for wave in stage.plan())
    said = [
        f"run {run.recipe.name} in {run.store.root}: {len(run.recipe.stages)} stages, "
        f"{tasks} tasks"
    ]
    said += [f"tasks of pool {pool} go to {url}" for pool, url in urls.items()]
    return run, said


def _require_pools_suffice(run: Run) -> None:
    faults = [
        f"{stage.name}: a task of {stage.output} needs about {need / 2**30:.1f} GiB and a "
        f"worker of pool {stage.pool} has {POOLS[stage.pool].memory_gib} GiB; use a "
        f"smaller chunk than {stage.chunk}, or say how much workers have"
        for stage in run.recipe.stages
        if (need := peak_memory(stage, run.specs)) > POOLS[stage.pool].memory_gib * 2**30
    ]
    if faults:
        raise MemoryLimitError("\n".join(faults))


def _require_queue(url: str, *, make: bool) -> None:
    try:
        if make:
            create_queue(url)
        depth(url)
    except RootError:
        raise
    except Exception as error:
        raise RootError(
            f"queue {url} cannot be used ({type(error).__name__}: {error}); create it, "
            "check the credentials and region, or give another"
        ) from error
