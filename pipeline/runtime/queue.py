"""The queue: a message names run, stage and key, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import taskqueue

from pipeline.errors import RootError
from pipeline.geometry import ChunkKey

_SETTLES_S = {"fq": 3.0, "sqs": 60.0}


@taskqueue.queueable  # type: ignore[untyped-decorator]
def execute(root: str, run: str, output: str, key: str) -> str:
    """Do one task of a run.

    Parameters
    ----------
    root, run : str
        Folder and name of the run.
    output : str
        Layer that the task writes to.
    key : str
        Key of the task, ``level_x_y_z``.

    Returns
    -------
    str
        ``done``, ``blank``, ``skipped`` or ``failed``.
    """
    from pipeline.runtime.worker import attempt

    return attempt(root, run, output, key)


class TaskQueue:
    """A task-queue queue, by URL.

    Parameters
    ----------
    url : str
        ``fq://`` and a folder, or ``sqs://`` and a name or URL.

    Attributes
    ----------
    settles_s : float
        How long the queue must seem empty before it is taken to be so [s]: the record
        of a message just acknowledged may be on its way, and SQS counts approximately.
    """

    def __init__(self, url: str) -> None:
        if not url.startswith(("fq://", "sqs://")):
            raise RootError(f"{url!r} is not a queue; give fq://FOLDER or sqs://NAME")
        self.url = url
        self.settles_s = _SETTLES_S[url.partition("://")[0]]
        self._queue = taskqueue.TaskQueue(url, progress=False)

    def insert(self, root: str, run: str, output: str, keys: Iterable[ChunkKey]) -> None:
        """Enqueue tasks; the iterable is not held."""
        self._queue.insert(partial(execute, root, run, output, str(key)) for key in keys)

    def lease(self, seconds: int) -> Any | None:
        """Take a message for some seconds; None if there is none."""
        try:
            return self._queue.lease(seconds=seconds)
        except taskqueue.QueueEmptyError:
            return None

    def renew(self, message: Any, seconds: int) -> None:
        """Lengthen a lease."""
        self._queue.renew(message, seconds)

    def delete(self, message: Any) -> None:
        """Acknowledge a message."""
        self._queue.delete(message)

    def is_empty(self) -> bool:
        """Whether no message waits or is leased."""
        return bool(self._queue.is_empty())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._queue)
