"""The queues of a run: their names, and what is done to a queue as a whole.

A queue is given by a template. ``{run}`` in it stands for the run, told from runs of the
same name in other roots, and ``{pool}`` for the kind of worker; a template without them
is a queue that is shared.
"""

from __future__ import annotations

import hashlib
from typing import Any

import taskqueue
from taskqueue.secrets import AWS_DEFAULT_REGION, aws_credentials

from pipeline.errors import RootError
from pipeline.runtime.run import Run
from pipeline.runtime.waves import cancel

_NAME_LENGTH = 40
_RETENTION_S = 14 * 24 * 3600
"""The longest that SQS has; four days if it is not told."""


def run_token(root: str, name: str) -> str:
    """Return what ``{run}`` stands for: the name and six digits that tell the root."""
    digest = hashlib.sha256(f"{root}\n{name}".encode()).hexdigest()
    return f"{name[:_NAME_LENGTH]}-{digest[:6]}"


def queue_url(template: str, run: Run, pool: str) -> str:
    """Return the queue of a run and kind of worker.

    Raises
    ------
    RootError
        If the template has other braces.
    """
    try:
        return template.format(run=run_token(run.store.root, run.recipe.name), pool=pool)
    except (KeyError, IndexError, ValueError) as error:
        raise RootError(
            f"queue {template!r} has braces that stand for nothing ({error}); "
            "{run} and {pool} may be used"
        ) from None


def queue_urls(template: str, run: Run) -> dict[str, str]:
    """Return the queues of a run by the kinds of worker that its stages need."""
    pools = dict.fromkeys(stage.pool for stage in run.recipe.stages)
    return {pool: queue_url(template, run, pool) for pool in pools}


def create_queue(url: str) -> None:
    """Make sure that a queue exists; a folder makes itself."""
    if url.startswith("sqs://") and not url.startswith("sqs://http"):
        _sqs().create_queue(
            QueueName=url.removeprefix("sqs://"),
            Attributes={"MessageRetentionPeriod": str(_RETENTION_S)},
        )


def depth(url: str) -> int:
    """Return about how many messages wait or are leased."""
    return int(taskqueue.TaskQueue(url, progress=False).enqueued)


def purge(url: str) -> int:
    """Remove every message, leased ones too; return about how many there were."""
    from botocore.exceptions import ClientError  # type: ignore[import-untyped]

    queue = taskqueue.TaskQueue(url, progress=False)
    count = int(queue.enqueued)
    try:
        queue.purge(native=True)
    except ClientError as error:
        if not error.response["Error"]["Code"].endswith("PurgeQueueInProgress"):
            raise
        # SQS purges as a whole only once a minute.
        while messages := queue.api.lease(seconds=10, num_tasks=10, wait_sec=0):
            for message in messages:
                queue.api.delete(message)
    return count


def cancel_run(run: Run, template: str) -> tuple[int, list[str]]:
    """Stop a run: who drives it ends, and the messages that wait are removed.

    Tasks that workers have in hand end as usual. A queue that other runs share is left
    as it is.

    Parameters
    ----------
    run : Run
        Started.
    template : str
        Its queue, or the empty string where it has none.

    Returns
    -------
    removed : int
        Messages that were removed.
    shared : list of str
        Queues whose messages were left.
    """
    cancel(run)
    removed, shared = 0, []
    for url in dict.fromkeys(queue_urls(template, run).values()) if template else ():
        if "{run}" in template:
            removed += purge(url)
        else:
            shared.append(url)
    return removed, shared


def _sqs() -> Any:
    import boto3  # type: ignore[import-untyped]

    credentials = aws_credentials()
    return boto3.client(
        "sqs",
        region_name=AWS_DEFAULT_REGION,
        aws_access_key_id=credentials.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=credentials.get("AWS_SECRET_ACCESS_KEY"),
    )
