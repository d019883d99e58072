"""Commands that look after a run: workers, state, failures, proof."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.app import app
from pipeline.cli.forecasts import accounted, print_account
from pipeline.cli.opening import open_runs, program, require_tasks
from pipeline.cli.options import CalibrationFile, Cost, Json, Queue, Root, RunName
from pipeline.cli.text import print_json, print_table
from pipeline.errors import (
    MissingInputError,
    RootError,
)
from pipeline.geometry import ChunkKey

if TYPE_CHECKING:
    pass


@app.command()
def work(
    queue: Annotated[
        str, typer.Option(envvar="EM_QUEUE", help="fq://FOLDER or sqs://NAME.")
    ],
    lease_seconds: Annotated[int, typer.Option(min=1, help="Length of a lease [s].")] = 600,
    until_empty: Annotated[
        bool, typer.Option(help="Stop when the queue is empty.")
    ] = False,
    max_tasks: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Cores for each task.")] = 1,
    grace_seconds: Annotated[
        float | None,
        typer.Option(
            envvar="EM_GRACE_S",
            min=0,
            help="After SIGTERM, give back what cannot end in time [s]; wait if left out.",
        ),
    ] = None,
    liveness: Annotated[
        str | None,
        typer.Option(envvar="EM_LIVENESS", help="File that is touched while it lives."),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(envvar="EM_METRICS_PORT", help="Serve metrics for Prometheus there."),
    ] = None,
    failures_in_row: Annotated[
        int,
        typer.Option(
            envvar="EM_FAILURES_IN_ROW", min=1, help="Stop after so many failures in a row."
        ),
    ] = 20,
) -> None:
    """Do tasks from a queue, for any run; SIGTERM lets the task in hand end.

    Example: em work --queue fq:///tmp/queue
    """
    from pipeline.runtime.logs import log_json
    from pipeline.runtime.worker import work as serve_queue

    log_json()
    if metrics_port is not None:
        from pipeline.runtime.metrics import METRICS

        METRICS.serve(metrics_port)
    count = serve_queue(
        queue,
        lease_s=lease_seconds,
        until_empty=until_empty,
        max_tasks=max_tasks,
        threads=threads,
        grace_s=grace_seconds,
        liveness=liveness,
        failures_in_row=failures_in_row,
    )
    typer.echo(f"{count} tasks ended")


@app.command()
def status(
    root: Root,
    recipe: RunName = None,
    queue: Annotated[
        str, typer.Option(help="Count the messages of fq://FOLDER or sqs://NAME too.")
    ] = "",
    cost: Cost = None,
    calibration: CalibrationFile = None,
    as_json: Json = False,
) -> None:
    """Count what is done, failed, missing and begun, stage by stage.

    What is begun was taken from a queue and has not ended; its worker may be dead.

    Example: em status --root out --queue sqs://em
    """
    rows = []
    opened_runs = open_runs(root, recipe)
    for opened in opened_runs:
        for stage in opened.recipe.stages:
            total = sum(len(wave) for wave in stage.plan())
            done = opened.done_keys(stage)
            failed = opened.parked_keys(stage) - done
            rows.append(
                {
                    "run": opened.recipe.name,
                    "output": stage.output,
                    "stage": stage.name,
                    "tasks": total,
                    "done": len(done),
                    "failed": len(failed),
                    "missing": total - len(done) - len(failed),
                    "begun": len(opened.begun_keys(stage) - done),
                }
            )
    messages = None
    if queue:
        from pipeline.runtime.queue import TaskQueue

        messages = dict(zip(("waiting", "leased"), TaskQueue(queue).counts(), strict=True))
    accounts = {r.recipe.name: accounted(r, cost, calibration) for r in opened_runs}
    if as_json:
        found: dict[str, Any] = {"stages": rows}
        if messages is not None:
            found["queue"] = messages
        if cost is not None:
            found["account"] = {
                name: [a.to_json() for a in account] for name, account in accounts.items()
            }
        print_json(found)
        return
    columns = list(rows[0])
    print_table(columns, [[row[c] for c in columns] for row in rows])
    if messages is not None:
        typer.echo(f"{queue}: {messages['waiting']} waiting, {messages['leased']} leased")
    for account in accounts.values():
        print_account(account)


@app.command()
def failures(
    root: Root,
    recipe: RunName = None,
    traceback: Annotated[
        str | None,
        typer.Option(metavar="LAYER/KEY", help="Show the traceback of this task."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Group the tasks that were given up by reason and host; show a traceback.

    Example: em failures --root out --traceback affinities/0_1_0_0
    """
    from pipeline.runtime.triage import grouped

    found = [
        {"run": opened.recipe.name, **record}
        for opened in open_runs(root, recipe)
        for record in opened.failures()
    ]
    if traceback is not None:
        named = [r for r in found if f"{r['output']}/{r['key']}" == traceback]
        if not named:
            raise MissingInputError(
                f"{root}: {traceback} has no failed record; em failures lists those that do"
            )
        if as_json:
            print_json(named[0])
        else:
            typer.echo(named[0]["traceback"].rstrip())
        return
    groups = grouped(found)
    if as_json:
        print_json({"failures": found, "groups": [g.to_json() for g in groups]})
        return
    for group in groups:
        hosts = ", ".join(f"{host} {n}" for host, n in group.hosts.most_common(5))
        more = f" and {len(group.hosts) - 5} hosts more" if len(group.hosts) > 5 else ""
        typer.echo(
            f"{len(group.keys)} of {group.output} ({group.code}; {hosts}{more}), first "
            f"{group.keys[0]}: {group.reason}"
        )
    if found:
        first = groups[0]
        typer.echo(
            f"{len(found)} failed\n"
            f"traceback: {program()} failures --root {root} "
            f"--traceback {first.output}/{first.keys[0]}\n"
            f"run one here: {program()} task {first.output} {first.keys[0]} "
            f"--root {root} --here --pdb\n"
            f"then: {program()} retry --root {root} --failed, and em run"
        )
    else:
        typer.echo("0 failed")


@app.command()
def task(
    output: Annotated[str, typer.Argument(help="Layer that the task writes.")],
    key: Annotated[str, typer.Argument(help="level_x_y_z, as in the name of its record.")],
    root: Root,
    recipe: RunName = None,
    here: Annotated[
        bool, typer.Option("--here", help="Do it in this process, done or not.")
    ] = False,
    pdb: Annotated[
        bool, typer.Option("--pdb", help="Open the debugger where it fails.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what is known of one task, or do it here, under a debugger if need be.

    Example: em task affinities 0_1_0_0 --root out --here --pdb
    """
    runs = [
        r
        for r in open_runs(root, recipe)
        if any(s.output == output for s in r.recipe.stages)
    ]
    if not runs:
        raise RootError(f"no run in {root} writes a layer {output}; em status lists them")
    opened = runs[0]
    stage = opened.recipe.stage(output)
    require_tasks(opened.recipe, stage, [ChunkKey.parse(key)])
    found = stage.task(ChunkKey.parse(key))
    if here:
        from pipeline.runtime.cores import machine_cores, use_threads

        use_threads(machine_cores())
        began = time.monotonic()
        try:
            outcome = opened.execute(stage, found.key, again=True)
        except Exception:
            if not pdb:
                raise
            import pdb as debugger
            import traceback

            traceback.print_exc()
            debugger.post_mortem(sys.exc_info()[2])
            raise typer.Exit(1) from None
        if as_json:
            print_json({"output": output, "key": key, "outcome": outcome})
        else:
            seconds = time.monotonic() - began
            typer.echo(f"{output}/{key}: {outcome} in {seconds:.2f} s")
        return
    known = opened.task_state(stage, found.key)
    if as_json:
        print_json(known)
        return
    for name, value in known.items():
        typer.echo(f"{name + ':':<10} {value}")


@app.command()
def retry(
    root: Root,
    recipe: RunName = None,
    stage: Annotated[str | None, typer.Option(help="Only this layer.")] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="All that failed, as without options.")
    ] = False,
    reason: Annotated[
        str | None, typer.Option(help="Only with this text in the reason, or this code.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let the next em run try the failed tasks again.

    Example: em retry --root out --failed --reason "out of memory"
    """
    count = sum(opened.retry(stage, reason) for opened in open_runs(root, recipe))
    if as_json:
        print_json({"retried": count})
    else:
        typer.echo(f"{count} failed tasks will be tried again by em run")


@app.command()
def cancel(root: Root, recipe: RunName = None, queue: Queue = "") -> None:
    """Stop a run; what is done is kept, and em run goes on from there.

    Messages are removed from a queue of the run's own, one with {run} in its name;
    tasks that workers have in hand end as usual.

    Example: em cancel block --root out --queue "sqs://em-{run}-{pool}"
    """
    from pipeline.runtime.run_queues import cancel_run

    for opened in open_runs(root, recipe):
        removed, shared = cancel_run(opened, queue)
        typer.echo(f"{opened.recipe.name}: cancelled, {removed} messages removed")
        for url in shared:
            typer.echo(
                f"{url} is shared with other runs and left as it is: workers will do the "
                "tasks that wait there; a queue with {run} in its name is emptied"
            )


@app.command()
def verify(
    root: Root,
    recipe: RunName = None,
    stage: Annotated[str | None, typer.Option(help="Only this stage or layer.")] = None,
    quick: Annotated[
        bool, typer.Option(help="See that objects are there; compare no checksum.")
    ] = False,
    forget: Annotated[
        bool, typer.Option(help="Let the next em run do what is damaged again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prove that every chunk of every layer was written; exit 1 and list what is not.

    Example: em verify --root out --json
    """
    from pipeline.runtime.verify import forget_faults
    from pipeline.runtime.verify import verify as prove

    results = []
    complete = True
    for opened in open_runs(root, recipe):
        proofs = prove(opened, contents=not quick, only=stage)
        if not proofs:
            continue
        whole = all(p.is_complete for p in proofs)
        complete = complete and whole
        results.append(
            {
                "run": opened.recipe.name,
                "complete": whole,
                "stages": [p.to_json() for p in proofs],
            }
        )
        if not as_json:
            for proof in proofs:
                for fault in proof.faults:
                    typer.echo(f"{proof.output}/{fault.key} {fault.kind}: {fault.detail}")
            print_table(
                ["run", "layer", "stage", "tasks", "proved", "blank", "faults"],
                [
                    [
                        opened.recipe.name,
                        p.output,
                        p.stage,
                        p.tasks,
                        p.done,
                        p.blank,
                        len(p.faults),
                    ]
                    for p in proofs
                ],
            )
        if forget:
            forget_faults(opened, proofs)
    if not results:
        raise RootError(f"no run in {root} has a stage {stage}; em status lists them")
    if as_json:
        print_json({"complete": complete, "runs": results})
    else:
        typer.echo(
            "complete: every task is proved"
            if complete
            else "not complete: em run does what is missing or lost; add --forget here "
            "for what is damaged"
        )
    if not complete:
        raise typer.Exit(1)
