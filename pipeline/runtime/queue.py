"""The queue: a message names run, stage and key, and nothing else.

Messages are those of task-queue, so that its tools can look at a queue. What comes from a
queue is not trusted: a message is JSON of known fields or it is refused, and no function
that it names is looked up.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import taskqueue
from taskqueue.aws_queue_api import AWSTaskQueueAPI
from taskqueue.file_queue_api import FileQueueAPI

from pipeline.errors import DataError, RootError, StorageUnavailableError
from pipeline.geometry import ChunkKey
from pipeline.layers.clouds import (
    TRIES,
    pause_s,
    persistently,
    reach_clouds,
    request_timeout_s,
)
from pipeline.layers.folder import normalize, storage_errors

_SETTLES_S = {"fq": 3.0, "sqs": 60.0}
_LISTENS_S = 5
"""How long a worker listens to SQS at a time [s]; it is deaf to signals meanwhile."""

_LOOKED_AT = 250
"""Messages of a folder among which one is chosen."""

_LONGEST = 8192
_FUNCTION = ["pipeline.runtime.queue", "execute"]
_ROOT = re.compile(r"[a-z][a-z0-9+.-]*://[^\x00-\x1f]+")
_NAME = re.compile(r"[\w-]{1,200}")
_LAYER = re.compile(r"[\w.-]+(/[\w.-]+)*")
_T = TypeVar("_T")
_KEY = re.compile(r"\d{1,9}(_\d{1,9}){3}")


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


@dataclass(frozen=True)
class Message:
    """What a worker is told, and how to answer.

    Parameters
    ----------
    root, run, output, key : str
        The task; see `execute`.
    id : str
        What the queue knows this delivery by.
    age_s : float
        How long ago it was sent, by the clocks of queue and worker [s].
    """

    root: str
    run: str
    output: str
    key: str
    id: str = ""
    age_s: float = 0.0

    @property
    def args(self) -> tuple[str, str, str, str]:
        """The arguments of `execute`."""
        return (self.root, self.run, self.output, self.key)

    @classmethod
    def parse(cls, body: str, id: str = "", age_s: float = 0.0) -> Message:
        """Read a message.

        ``EM_ROOTS``, locations between blanks, names the folders that roots must lie
        in; any root will do where it is not set.

        Raises
        ------
        DataError
            If it is anything but the name of a task within its root.
        """
        if len(body) > _LONGEST:
            raise _refused(f"it has {len(body)} characters")
        try:
            document = json.loads(body)
            function, args, kwargs = document["payload"][:3]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise _refused(f"{body[:80]!r} is not a message") from None
        if list(function) != _FUNCTION or kwargs != {}:
            raise _refused(f"it names the function {str(function)[:80]}")
        if (
            not isinstance(args, list)
            or len(args) != 4
            or not all(isinstance(a, str) for a in args)
        ):
            raise _refused(f"its arguments are {str(args)[:80]}")
        root, run, output, key = args
        if not _ROOT.fullmatch(root) or ".." in root.split("/") or normalize(root) != root:
            raise _refused(f"{root[:80]!r} is not a root")
        for pattern, text, what in (
            (_NAME, run, "run"),
            (_LAYER, output, "layer"),
            (_KEY, key, "key"),
        ):
            if not pattern.fullmatch(text) or {".", ".."} & {*text.split("/")}:
                raise _refused(f"{text[:80]!r} is not the name of a {what}")
        allowed = [normalize(r) for r in os.environ.get("EM_ROOTS", "").split()]
        if allowed and not any(root == a or root.startswith(f"{a}/") for a in allowed):
            raise _refused(f"root {root} is not within EM_ROOTS")
        return cls(root, run, output, key, id, age_s)


@dataclass(frozen=True)
class Refused:
    """A delivery that names no task.

    Parameters
    ----------
    id : str
        What the queue knows it by.
    reason : str
        What is wrong with it.
    """

    id: str
    reason: str


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

    Raises
    ------
    RootError
        If there is no such queue, or it may not be used.
    StorageUnavailableError
        If it does not answer.
    """

    def __init__(self, url: str) -> None:
        if not url.startswith(("fq://", "sqs://")):
            raise RootError(f"{url!r} is not a queue; give fq://FOLDER or sqs://NAME")
        self.url = url
        self.settles_s = _SETTLES_S[url.partition("://")[0]]
        self._queue = _Opened(url)

    def insert(self, root: str, run: str, output: str, keys: Iterable[ChunkKey]) -> None:
        """Enqueue tasks; the iterable is not held."""
        place = normalize(root)
        with storage_errors(self.url):
            self._queue.insert(partial(execute, place, run, output, str(k)) for k in keys)

    def lease(self, seconds: int) -> Message | Refused | None:
        """Take a message for some seconds; None if there is none."""
        found = self._persistently(lambda: self._queue.api.lease(seconds))
        if not found:
            return None
        delivery = found[0]
        try:
            return Message.parse(delivery["body"], delivery["id"], delivery["age_s"])
        except DataError as error:
            return Refused(delivery["id"], str(error))

    def renew(self, message: Message, seconds: int) -> None:
        """Lengthen a lease."""
        self._persistently(lambda: self._queue.renew(message, seconds))

    def give_back(self, message: Message, after_s: float = 0) -> None:
        """Let another worker have a message, at once or after a while [s]."""
        self.renew(message, max(0, round(after_s)))

    def delete(self, message: Message | Refused) -> None:
        """Acknowledge a message."""
        self._persistently(lambda: self._queue.delete(message))

    def is_empty(self) -> bool:
        """Whether no message waits or is leased."""
        return bool(self._persistently(self._queue.is_empty))

    def counts(self) -> tuple[int, int]:
        """Return how many messages wait and how many are leased; SQS says about."""

        def count() -> tuple[int, int]:
            leased = int(self._queue.leased)
            return max(0, int(self._queue.enqueued) - leased), leased

        return self._persistently(count)

    def _persistently(self, action: Callable[[], _T]) -> _T:
        def guarded() -> _T:
            with storage_errors(self.url):
                return action()

        return persistently(guarded)


class _Opened(taskqueue.TaskQueue):  # type: ignore[misc]
    """A queue of task-queue, reached by the classes below."""

    def __init__(self, url: str) -> None:
        super().__init__(url, progress=False)

    def initialize_api(self, path: Any, **kwargs: Any) -> Any:
        def connect() -> Any:
            with storage_errors(self.qurl):
                return (_Files if path.protocol == "fq" else _Sqs)(path.path)

        return persistently(connect)


class _Files(FileQueueAPI):  # type: ignore[misc]
    """A queue in a folder, ``queue/<available from>--<id>.json``.

    A message appears whole, a worker that loses a race for one goes on to the next, and
    a worker may be killed between any two lines: what it held comes again.
    """

    def insert(self, tasks: Any, delay_seconds: float = 0) -> int:
        count = 0
        for task in [tasks] if isinstance(tasks, dict) else tasks:
            identifier = str(uuid.uuid4())
            available = int(time.time() + delay_seconds) if delay_seconds else 0
            name = f"{available}--{identifier}.json"
            partial_file = Path(self.path, f"{identifier}.partial")
            partial_file.write_text(json.dumps({**task, "id": identifier}))
            self._note(identifier, name)
            os.replace(partial_file, Path(self.queue_path, name))
            count += 1
        return count

    def lease(
        self, seconds: int, num_tasks: int = 1, wait_sec: float | None = None
    ) -> list[dict[str, Any]]:
        now = time.time()
        with os.scandir(self.queue_path) as entries:
            while batch := [entry.name for entry in islice(entries, _LOOKED_AT)]:
                # At random, lest all workers reach for the same message.
                random.shuffle(batch)
                for name in batch:
                    available = name.partition("--")[0]
                    if available.isdigit() and int(available) <= now:
                        taken = self._take(name, seconds)
                        if taken is not None:
                            return [taken]
        return []

    def _take(self, name: str, seconds: int) -> dict[str, Any] | None:
        identifier = name.partition("--")[2].removesuffix(".json")
        leased = f"{int(time.time() + seconds)}--{identifier}.json"
        place = Path(self.queue_path, leased)
        try:
            os.rename(Path(self.queue_path, name), place)
            self._note(identifier, leased)
            sent = place.stat().st_mtime
            body = place.read_text(errors="replace")
        except FileNotFoundError:
            return None
        return {"body": body, "id": identifier, "age_s": max(0.0, time.time() - sent)}

    def renew_lease(self, task: Any, seconds: int) -> None:
        for name in reversed(self._names(task.id)):
            renewed = f"{int(time.time() + seconds)}--{task.id}.json"
            with suppress(FileNotFoundError):
                os.rename(Path(self.queue_path, name), Path(self.queue_path, renewed))
                self._note(task.id, renewed)
                return

    def delete(self, task: Any) -> int:
        identifier = task if isinstance(task, str) else task.id
        for name in self._names(identifier):
            Path(self.queue_path, name).unlink(missing_ok=True)
        Path(self.movement_path, identifier).unlink(missing_ok=True)
        return 1

    def is_empty(self) -> bool:
        with os.scandir(self.queue_path) as entries:
            return next(entries, None) is None

    def _names(self, identifier: str) -> list[str]:
        """Return the names that a message has had, the last one last."""
        try:
            return Path(self.movement_path, identifier).read_text().split()
        except FileNotFoundError:
            return []

    def _note(self, identifier: str, name: str) -> None:
        with open(Path(self.movement_path, identifier), "a") as moves:
            moves.write(f"{name}\n")


class _Sqs(AWSTaskQueueAPI):  # type: ignore[misc]
    """A queue of Amazon SQS, or of a server that speaks as it does."""

    def __init__(self, name: str) -> None:
        reach_clouds()
        kwargs: dict[str, Any] = {}
        if os.environ.get("AWS_SESSION_TOKEN"):
            kwargs["aws_session_token"] = os.environ["AWS_SESSION_TOKEN"]
        self._name = name
        super().__init__(name, **kwargs)

    def _get_qurl(self, qurl: str) -> str:
        try:
            return str(self.sqs.get_queue_url(QueueName=qurl)["QueueUrl"])
        except self.sqs.exceptions.QueueDoesNotExist as error:
            raise RootError(
                f"there is no queue sqs://{qurl} in {self.sqs.meta.region_name}; create it "
                f"(aws sqs create-queue --queue-name {qurl}), or set AWS_DEFAULT_REGION to "
                "its region"
            ) from error

    def insert(self, tasks: Any, delay_seconds: float = 0) -> int:
        bodies = [json.dumps(t) for t in ([tasks] if isinstance(tasks, dict) else tasks)]
        left = list(range(len(bodies)))

        def send() -> dict[str, Any]:
            entries = [{"Id": str(i), "MessageBody": bodies[i]} for i in left]
            with storage_errors(f"sqs://{self._name}"):
                return dict(
                    self.sqs.send_message_batch(QueueUrl=self.qurl, Entries=entries)
                )

        for tried in range(1, TRIES + 1):
            answer = persistently(send)
            # The batch succeeds as a whole even where some of it does not.
            refused = answer.get("Failed", [])
            left = [int(entry["Id"]) for entry in refused]
            if not left:
                return len(bodies)
            time.sleep(pause_s(tried))
        raise StorageUnavailableError(
            f"sqs://{self._name}: {len(left)} messages were refused "
            f"({refused[0].get('Message', refused[0].get('Code'))}); try again later"
        )

    def lease(
        self, seconds: int, num_tasks: int = 1, wait_sec: float | None = None
    ) -> list[dict[str, Any]]:
        answer = self.sqs.receive_message(
            QueueUrl=self.qurl,
            MessageSystemAttributeNames=["SentTimestamp"],
            MaxNumberOfMessages=1,
            VisibilityTimeout=seconds,
            WaitTimeSeconds=int(min(_LISTENS_S, request_timeout_s() / 2)),
        )
        return [
            {
                "body": found["Body"],
                "id": found["ReceiptHandle"],
                "age_s": max(
                    0.0, time.time() - int(found["Attributes"]["SentTimestamp"]) / 1000
                ),
            }
            for found in answer.get("Messages", [])
        ]

    def renew_lease(self, task: Any, seconds: int) -> None:
        self.sqs.change_message_visibility(
            QueueUrl=self.qurl, ReceiptHandle=task.id, VisibilityTimeout=seconds
        )

    def status(self) -> dict[str, str]:
        answer = self.sqs.get_queue_attributes(
            QueueUrl=self.qurl,
            AttributeNames=[
                "ApproximateNumberOfMessages",
                "ApproximateNumberOfMessagesNotVisible",
                "ApproximateNumberOfMessagesDelayed",
            ],
        )
        return dict(answer["Attributes"])


def _refused(reason: str) -> DataError:
    return DataError(f"a message was refused: {reason}; see who may write to the queue")
