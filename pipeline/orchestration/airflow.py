"""Recipes as DAGs: a task per wave, never per chunk.

A DAG is built from a recipe alone: nothing is looked up, neither storage nor queue, and
no net or layer is imported, so that a scheduler may parse it every few seconds. What the
tasks do is imported when they run.

A task enqueues what its wave lacks, brings workers up, and then sleeps as a trigger,
which holds no worker slot; when every task of the wave has a record it lets the workers
go where no other wave needs them, and proves that the wave is whole.
"""

from __future__ import annotations

import asyncio
import os
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, BaseOperator, BaseOperatorLink, Param, TaskGroup
from airflow.sdk.exceptions import AirflowFailException, AirflowRescheduleException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from pipeline.errors import CancelledError, PermanentError, TaskError, TransientError
from pipeline.orchestration.request import read_recipe
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.runtime.run import Run
    from pipeline.runtime.waves import Watch
    from pipeline.stages.base import Stage, Wave

GENERIC = "reconstruct"
"""Name of the DAG that takes any recipe."""

_TAGS = ["em"]
_RETRIES = 3
_RETRY_DELAY = timedelta(seconds=30)
_FIRST_PAUSE_S = 0.5
_POLL_S = 15.0
_PATIENCE_S = 10.0
_SETTLE_S = 15.0
_AGAIN = timedelta(seconds=1)
_SHOWN_FAILURES = 20
_FAILED = ("failed", "upstream_failed", "skipped", "removed")
_BOX = r"^\s*(-?\d+\s*,\s*){5}-?\d+\s*$"
_ROOT = r"^(/|file://|gs://|s3://).+"
_QUEUE = r"^(fq|sqs)://.+"


# -- DAGs ------------------------------------------------------------------------------


def recipe_dag(path: Path) -> DAG:
    """Build the DAG of a recipe: a group per stage, in it a task per wave."""
    recipe = Recipe.load(path)
    document = (
        f"Recipe `{path.name}`. Run again, or clear a task: only what is missing is done."
    )
    with DAG(
        recipe.name,
        schedule=None,
        catchup=False,
        # Nothing starts by itself; paused, what is triggered would wait for ever.
        is_paused_upon_creation=False,
        tags=_TAGS,
        params=_params(recipe.name),
        doc_md=document,
        render_template_as_native_obj=True,
    ) as dag:
        begin, prove, release = _frame(path.parent, path.stem)
        groups: dict[str, TaskGroup] = {}
        for stage in recipe.stages:
            with TaskGroup(_task_id(stage.output), tooltip=_tooltip(stage)) as group:
                before: BaseOperator | None = None
                for wave in stage.plan():
                    task = WaveOperator(
                        task_id=f"wave_{wave.level}", layer=stage.output, level=wave.level
                    )
                    if before is not None:
                        before >> task
                    before = task
            groups[stage.output] = group
            upstream = recipe.upstream(stage)
            for source in upstream:
                groups[source.output] >> group
            if not upstream:
                begin >> group
            if not recipe.downstream(stage):
                group >> prove
        prove >> release
    return dag


def generic_dag(folder: Path) -> DAG:
    """Build the DAG that takes any recipe, box and settings from a form.

    How many stages and waves there are is known only when it runs, so a task is mapped
    over the stages. It goes through its stage's waves one after the other, because a
    mapped task cannot wait for one of its own kind; for the stages that it reads from it
    waits by looking at what is done, and ends if one of them has failed.
    """
    names = sorted(path.stem for path in folder.glob("*.toml"))
    with DAG(
        GENERIC,
        schedule=None,
        catchup=False,
        is_paused_upon_creation=False,
        tags=_TAGS,
        params={**_recipe_params(names), **_params("")},
        doc_md="Any recipe, over any box. The same name and root go on with the same run.",
        render_template_as_native_obj=True,
    ) as dag:
        begin, prove, release = _frame(folder, None)
        stages = WaveOperator.partial(
            task_id="stage", map_index_template="{{ task.layer }}", level=None
        ).expand(layer=begin.output)
        stages >> prove >> release
    return dag


def _frame(folder: Path, recipe: str | None) -> tuple[BaseOperator, ...]:
    """Return the tasks that every DAG begins and ends with."""
    begin = BeginOperator(task_id="begin", recipe_folder=str(folder), recipe=recipe)
    prove = ProveOperator(task_id="prove")
    release = ReleaseOperator(task_id="release").as_teardown(setups=begin)
    return begin, prove, release


def _task_id(layer: str) -> str:
    return layer.replace("/", "-")


def _tooltip(stage: Stage) -> str:
    return f"{stage.name} on workers of pool {stage.pool}"


# -- the form --------------------------------------------------------------------------


def _params(name: str) -> dict[str, Param]:
    how = {"section": "How"}
    return {
        "root": Param(
            os.environ.get("EM_ROOT", ""),
            type="string",
            pattern=_ROOT,
            title="Root",
            description="Folder of the run: a path, gs:// or s3://. What is done there "
            "is not done again.",
        ),
        "queue": Param(
            os.environ.get("EM_QUEUE", "sqs://em-{run}-{pool}"),
            type="string",
            pattern=_QUEUE,
            title="Queue",
            description="fq://FOLDER or sqs://NAME. {run} makes it this run's own, "
            "{pool} that of a kind of worker.",
        ),
        "name": Param(
            name or None,
            type=["null", "string"],
            pattern=r"^[\w-]+$",
            title="Name of the run",
            description="As in the recipe if left empty.",
        ),
        "workers": Param(
            int(os.environ.get("EM_WORKERS_MOST", "0")),
            type="integer",
            minimum=0,
            title="Most workers of a kind",
            description="0 takes what the table of pools says.",
            **how,
        ),
        "memory_limit": Param(
            None,
            type=["null", "number"],
            exclusiveMinimum=0,
            title="Memory of a worker [GiB]",
            description="A recipe whose tasks need more is refused; the table of pools "
            "says how much there is if left empty.",
            **how,
        ),
        "replace": Param(
            False,
            type="boolean",
            title="Replace",
            description="Delete outputs in the root that other settings made.",
            **how,
        ),
        "compare_contents": Param(
            False,
            type="boolean",
            title="Compare contents",
            description="At the end, read everything that was written and compare its "
            "checksum; else only see that it is there.",
            **how,
        ),
    }


def _recipe_params(names: list[str]) -> dict[str, Param]:
    return {
        "recipe": Param(
            names[0] if names else None,
            type=["null", "string"],
            enum=[*names, None],
            title="Recipe",
            description="One of those beside the DAGs; or leave it and write one below.",
        ),
        "toml": Param(
            None,
            type=["null", "string"],
            format="multiline",
            title="Recipe as TOML",
            description="Takes the place of the one above.",
        ),
        "bbox": Param(
            None,
            type=["null", "string"],
            pattern=_BOX,
            title="Box",
            description="x0,y0,z0,x1,y1,z1 in voxels of mip 0; the recipe's if left empty.",
        ),
        "overrides": Param(
            {},
            type=["null", "object"],
            title="Other settings",
            description='By LAYER.FIELD, for instance {"agglomeration.threshold": 0.4}; '
            "also grid.FIELD and layers.NAME.",
        ),
    }


# -- tasks -----------------------------------------------------------------------------


class NeuroglancerLink(BaseOperatorLink):
    """Leads from a task to what its run has made, in Neuroglancer."""

    name = "Neuroglancer"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the link that the task found; Airflow keeps it for the browser."""
        return getattr(operator, "neuroglancer", "")


class _Operator(BaseOperator):
    """A task of a run, whose permanent errors end it and whose others are tried again."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(
            **{
                "retries": _RETRIES,
                "retry_delay": _RETRY_DELAY,
                "retry_exponential_backoff": True,
                **arguments,
            }
        )

    def execute(self, context: Any) -> Any:
        """Do it."""
        return self._guarded(self.work, context)

    @abstractmethod
    def work(self, context: Any) -> Any:
        """Do what the task is for."""

    def _guarded(self, function: Callable[..., Any], *given: Any) -> Any:
        try:
            return function(*given)
        except PermanentError as error:
            raise AirflowFailException(f"{error.code}: {error}") from error


class _LinkedOperator(_Operator):
    """A task that leads to Neuroglancer."""

    operator_extra_links = (NeuroglancerLink(),)
    neuroglancer = ""

    def _link(self, run: Run) -> None:
        """Find the link, if a browser can reach the layers."""
        from pipeline.orchestration.viewing import neuroglancer_url

        link, why_not = neuroglancer_url(run)
        if link:
            self.neuroglancer = link
        else:
            self.log.info("no link to Neuroglancer: %s", why_not)


class BeginOperator(_LinkedOperator):
    """Checks the recipe against what its layers hold, and freezes it in the root.

    Parameters
    ----------
    recipe_folder : str
        Where recipes are kept.
    recipe : str or None
        Name of the recipe; None takes that of the form.
    """

    def __init__(
        self, *, recipe_folder: str, recipe: str | None = None, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.recipe_folder = recipe_folder
        self.recipe = recipe

    def work(self, context: Any) -> list[str]:
        """Return the layers that will be written, in layer order."""
        from pipeline.orchestration.begin import begin

        asked = context["params"]
        recipe = read_recipe(
            asked.get("toml") or self.recipe or asked.get("recipe") or "",
            Path(self.recipe_folder),
            name=asked.get("name") or "",
            bbox=asked.get("bbox") or "",
            overrides=asked.get("overrides") or {},
        )
        run, said = begin(
            recipe,
            asked["root"],
            asked["queue"],
            replace=bool(asked.get("replace")),
            memory_gib=asked.get("memory_limit"),
        )
        for line in said:
            self.log.info(line)
        place = {"root": run.store.root, "run": run.recipe.name}
        context["ti"].xcom_push(key="place", value=place)
        self._link(run)
        return [stage.output for stage in run.recipe.stages]


class WaveOperator(_Operator):
    """Brings a wave to its end, or all waves of a stage one after the other.

    Parameters
    ----------
    layer : str
        Output of the stage.
    level : int or None
        The wave; None does all, once what the stage reads is whole.
    """

    def __init__(self, *, layer: str, level: int | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.layer = layer
        self.level = level

    def work(self, context: Any) -> None:
        """Begin: tasks of the wave that were given up get another chance."""
        from pipeline.runtime.waves import forget_lost, title, try_again

        run = _opened(context)
        stage = run.recipe.stage(self.layer)
        if self.level is None:
            self._wait_for_inputs(context, run, stage)
        waves = [w for w in stage.plan() if self.level in (None, w.level)]
        for wave in waves:
            lost = forget_lost(run, wave)
            if lost:
                self.log.warning(
                    "%s: outputs of %d tasks are gone and will be made again, first %s",
                    title(wave),
                    len(lost),
                    lost[0],
                )
            again = try_again(run, wave)
            if again:
                self.log.info("%s: %d failed tasks are tried again", title(wave), again)
        self._go_on(context, run, [wave.level for wave in waves])

    def resume(self, context: Any, event: Mapping[str, Any]) -> None:
        """Go on when a wave has ended."""
        self._guarded(self._ended, context, event)

    def begin_anew(self, context: Any, event: Mapping[str, Any]) -> None:
        """Go on when what the stage reads is whole."""
        _require_no_trouble(event)
        if event.get("again"):
            raise AirflowRescheduleException(datetime.now(UTC) + _AGAIN)
        self.execute(context)

    def _wait_for_inputs(self, context: Any, run: Run, stage: Stage) -> None:
        from pipeline.runtime.waves import unfinished

        waiting = unfinished(run, stage)
        if waiting is not None:
            self.log.info("%s waits for %s", self.layer, waiting)
            outputs = [s.output for s in run.recipe.stages]
            sources = [outputs.index(s.output) for s in run.recipe.upstream(stage)]
            self.defer(
                trigger=InputsTrigger(
                    root=run.store.root,
                    run=run.recipe.name,
                    layer=self.layer,
                    dag_id=self.dag_id,
                    dag_run=context["run_id"],
                    sources={outputs[i]: i for i in sources},
                ),
                method_name="begin_anew",
            )

    def _go_on(self, context: Any, run: Run, levels: list[int]) -> None:
        from pipeline.orchestration.scalers import follow, scaler_from_environment
        from pipeline.runtime.run_queues import queue_url
        from pipeline.runtime.waves import Watch, enqueue, title, wave_of

        stage = run.recipe.stage(self.layer)
        most = _most_workers(context, stage.pool)
        url = queue_url(context["params"]["queue"], run, stage.pool)
        for level in levels:
            wave = wave_of(stage, level)
            sent = enqueue(run, wave, url)
            if not sent:
                self.log.info("%s: all %d tasks are done", title(wave), len(wave))
                self._prove(run, wave)
                continue
            count = follow(scaler_from_environment(), url, stage.pool, most, up_only=True)
            self.log.info(
                "%s: %d of %d tasks sent to %s%s",
                title(wave),
                sent,
                len(wave),
                url,
                "" if count is None else f", which {count} workers serve",
            )
            if not self._is_soon_over(Watch(run, wave, url)):
                self.defer(
                    trigger=WaveTrigger(
                        root=run.store.root,
                        run=run.recipe.name,
                        layer=self.layer,
                        level=level,
                        url=url,
                        pool=stage.pool,
                        most=most,
                    ),
                    method_name="resume",
                )
            self._finish(run, wave, url, most)

    def _is_soon_over(self, watch: Watch) -> bool:
        """Wait a moment: to come back from a trigger takes longer than a short wave."""
        until = time.monotonic() + _seconds("EM_PATIENCE_S", _PATIENCE_S)
        while time.monotonic() < until:
            if watch.look():
                return True
            time.sleep(_FIRST_PAUSE_S)
        return False

    def _ended(self, context: Any, event: Mapping[str, Any]) -> None:
        from pipeline.runtime.run_queues import queue_url
        from pipeline.runtime.waves import wave_of

        _require_no_trouble(event)
        run = _opened(context)
        stage = run.recipe.stage(self.layer)
        wave = wave_of(stage, event["level"])
        url = queue_url(context["params"]["queue"], run, stage.pool)
        self._finish(run, wave, url, _most_workers(context, stage.pool))
        levels = [w.level for w in stage.plan()]
        left = levels[levels.index(wave.level) + 1 :] if self.level is None else []
        self._go_on(context, run, left)

    def _finish(self, run: Run, wave: Wave, url: str, most: int) -> None:
        """Let workers go that no other wave needs; show failures, or prove the wave."""
        from pipeline.orchestration.scalers import follow, scaler_from_environment
        from pipeline.runtime.waves import count, needs, raise_failed, title

        self.log.info("%s: %s", title(wave), count(run, wave))
        pool = wave.stage.pool
        # Workers of the next wave need not be brought up anew.
        stay = needs(run, pool)
        left = follow(scaler_from_environment(), url, pool, most, up_only=stay)
        if left is not None:
            self.log.info("%s: %d workers", url, left)
        self._show_failures(run, wave)
        raise_failed(run, wave)
        self._prove(run, wave)

    def _prove(self, run: Run, wave: Wave) -> None:
        from pipeline.errors import MissingInputError
        from pipeline.runtime.waves import prove, title

        faults = prove(run, wave)
        for fault in faults[:_SHOWN_FAILURES]:
            self.log.error("%s %s: %s", fault.key, fault.kind, fault.detail)
        if faults:
            raise MissingInputError(
                f"{title(wave)}: {len(faults)} tasks are done and yet not whole, first "
                f"{faults[0].detail}; clear this task to make them again"
            )
        self.log.info("%s: whole, %d tasks proved", title(wave), len(wave))

    def _show_failures(self, run: Run, wave: Wave) -> None:
        from pipeline.runtime.waves import failures

        parked = failures(run, wave)
        if not parked:
            return
        rows = [
            [str(d.get(k, "")) for k in ("key", "code", "starts", "host", "reason")]
            for d in parked[:_SHOWN_FAILURES]
        ]
        for line in _table(["key", "code", "starts", "host", "reason"], rows):
            self.log.error(line)
        if len(parked) > _SHOWN_FAILURES:
            self.log.error("and %d more", len(parked) - _SHOWN_FAILURES)
        self.log.error(
            "tracebacks: em failures %s --root %s --json; when the cause is mended, clear "
            "this task: what failed or is missing is done, and nothing else",
            run.recipe.name,
            run.store.root,
        )


class ProveOperator(_LinkedOperator):
    """Proves that every task of the run is done and what it wrote is there."""

    def work(self, context: Any) -> dict[str, Any]:
        """Return what the done records add up to, by layer."""
        from pipeline.errors import MissingInputError
        from pipeline.runtime.drive import summary
        from pipeline.runtime.verify import verify

        run = _opened(context)
        proofs = verify(run, contents=bool(context["params"].get("compare_contents")))
        faults = [fault for proof in proofs for fault in proof.faults]
        for fault in faults[:_SHOWN_FAILURES]:
            self.log.error("%s: %s", fault.kind, fault.detail)
        if faults:
            raise MissingInputError(
                f"{len(faults)} faults, first {faults[0].detail}; em verify --forget "
                f"--root {run.store.root}, then clear the tasks of that layer"
            )
        rows = [summary(run, stage) for stage in run.recipe.stages]
        columns = ["layer", "tasks", "blank", "Mvoxel", "seconds", "peak MiB"]
        cells = [
            [
                row.output,
                str(row.tasks),
                str(row.blank),
                f"{row.voxels / 1e6:.2f}",
                f"{row.seconds:.1f}",
                f"{row.peak_memory / 2**20:.0f}",
            ]
            for row in rows
        ]
        for line in _table(columns, cells):
            self.log.info(line)
        self._link(run)
        return {row.output: row.to_json() for row in rows}


class ReleaseOperator(_Operator):
    """Lets the workers of the run go and empties its own queues, however it ended.

    A run that is marked failed in the browser is cancelled by this: what waits is
    removed, what workers have in hand ends as usual, what is done is kept.
    """

    def work(self, context: Any) -> None:
        """Do it for each kind of worker."""
        from pipeline.orchestration.scalers import scaler_from_environment
        from pipeline.runtime.run_queues import purge, queue_urls
        from pipeline.runtime.waves import resume

        run = _opened(context)
        # Nothing drives the run any more that a cancellation would have to stop; whoever
        # clears its tasks wants it to go on.
        resume(run)
        template = context["params"]["queue"]
        scaler = scaler_from_environment()
        for pool, url in queue_urls(template, run).items():
            if "{run}" not in template:
                self.log.info("%s is shared with other runs and left as it is", url)
                continue
            removed = purge(url)
            scaler.scale(url, pool, 0)
            self.log.info("%s: %d messages removed, no workers", url, removed)


# -- triggers --------------------------------------------------------------------------


class _Trigger(BaseTrigger):
    """Looks at a run from time to time until what it waits for has come."""

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.fields = fields

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its fields."""
        return f"{type(self).__module__}.{type(self).__qualname__}", self.fields

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event at the end."""
        longest = _seconds("EM_POLL_S", _POLL_S)
        if self.trigger_id is not None:
            # An executor that tells late that the task went to sleep would be taken to
            # tell that it failed, if the task ran again by then.
            await asyncio.sleep(_seconds("EM_SETTLE_S", _SETTLE_S))
        pause, said = min(_FIRST_PAUSE_S, longest), ""
        look: Callable[[], tuple[bool, str]] | None = None
        while True:
            try:
                # Storage and queue are asked in a thread: others wait on this loop too.
                if look is None:
                    look = await asyncio.to_thread(self.prepare)
                has_come, says = await asyncio.to_thread(look)
            except TransientError as error:
                has_come, says = False, f"{error}; looks again"
            except (CancelledError, TaskError) as error:
                yield TriggerEvent({"trouble": str(error)})
                return
            except Exception as error:
                yield TriggerEvent({"trouble": f"{type(error).__name__}: {error}"})
                return
            if says != said:
                self.log.info(says)
                said = says
            if has_come:
                yield TriggerEvent({"level": self.fields.get("level")})
                return
            if self.hands_back:
                yield TriggerEvent({"again": True})
                return
            await asyncio.sleep(pause)
            pause = min(longest, 1.5 * pause)

    @property
    def hands_back(self) -> bool:
        """Whether to look only once, and leave it to the task to come again."""
        return False

    @abstractmethod
    def prepare(self) -> Callable[[], tuple[bool, str]]:
        """Open the run; return what looks once and says what it saw."""


class WaveTrigger(_Trigger):
    """Waits until every task of a wave has a record, and keeps its workers up."""

    def prepare(self) -> Callable[[], tuple[bool, str]]:
        """Open the run and its queue."""
        from pipeline.orchestration.scalers import follow, scaler_from_environment
        from pipeline.runtime.run import Run
        from pipeline.runtime.waves import Watch, wave_of

        of = self.fields
        run = Run.open(of["root"], of["run"])
        wave = wave_of(run.recipe.stage(of["layer"]), of["level"])
        watch = Watch(run, wave, of["url"])
        scaler = scaler_from_environment()

        def look() -> tuple[bool, str]:
            if watch.look():
                return True, watch.waits_for()
            follow(scaler, of["url"], of["pool"], of["most"], up_only=True)
            return False, watch.waits_for()

        return look


class InputsTrigger(_Trigger):
    """Waits until every layer that a stage reads is whole."""

    @property
    def hands_back(self) -> bool:
        """Whether tasks run one at a time, as in ``dag.test()``: others have to go on."""
        return self.trigger_id is None

    def prepare(self) -> Callable[[], tuple[bool, str]]:
        """Open the run."""
        from pipeline.runtime.run import Run
        from pipeline.runtime.waves import require_not_cancelled, unfinished

        run = Run.open(self.fields["root"], self.fields["run"])
        stage = run.recipe.stage(self.fields["layer"])

        def look() -> tuple[bool, str]:
            require_not_cancelled(run)
            waiting = unfinished(run, stage)
            if waiting is not None:
                self._require_hope()
            return waiting is None, f"{stage.output} waits for {waiting or 'nothing'}"

        return look

    def _require_hope(self) -> None:
        """Raise if a stage that this one reads from has failed."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        of = self.fields
        for layer, index in of["sources"].items():
            found = RuntimeTaskInstance.get_task_states(
                dag_id=of["dag_id"],
                run_ids=[of["dag_run"]],
                task_ids=["stage"],
                map_index=index,
            )
            states = found.get(of["dag_run"], {}).values()
            if any(state in _FAILED for state in states):
                raise TaskError(
                    f"{of['layer']} reads {layer}, whose task has failed; mend that, then "
                    "clear both"
                )


# -- parts -----------------------------------------------------------------------------


def _opened(context: Any) -> Run:
    """Open the run that the first task began."""
    from pipeline.runtime.run import Run

    place = context["ti"].xcom_pull(task_ids="begin", key="place")
    return Run.open(place["root"], place["run"])


def _most_workers(context: Any, pool: str) -> int:
    from pipeline.runtime.pools import POOLS

    return int(context["params"].get("workers") or POOLS[pool].most)


def _require_no_trouble(event: Mapping[str, Any]) -> None:
    if event.get("trouble"):
        raise AirflowFailException(event["trouble"])


def _seconds(variable: str, default: float) -> float:
    return float(os.environ.get(variable, default))


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table whose last column may be of any width."""
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) - 1)]
    return [
        "  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[-1]])
        for line in lines
    ]
