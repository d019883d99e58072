"""What is written down when a queued task starts, so that its death is known later.

Whoever is given a task finds here how often it was begun and not ended. A start that is
long over and one whose worker is alive, but slower than its lease or with another clock,
look the same; they are told apart by the beat, which a living worker changes now and
then. No clock is compared.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace

from pipeline.errors import PipelineError
from pipeline.layers.store import Store

_OUT_OF_MEMORY = 0.8
"""Share of the limit at which a worker that died is taken to have run out of memory."""


@dataclass(frozen=True)
class Starts:
    """The starts of a task that has not ended.

    Parameters
    ----------
    starts : int
        How many.
    host : str
        Of the last one.
    beat : str
        Changes while its worker lives.
    beat_s : float
        How often [s].
    seen : str
        The beat that was seen by one who suspects that the worker is dead.
    memory, limit : int
        What its worker had in use when it last looked, and may use [byte].
    out_of_memory : int
        How many of the starts ran out of memory with no other task beside them.
    """

    starts: int = 0
    host: str = ""
    beat: str = ""
    beat_s: float = 0.0
    seen: str = ""
    memory: int = 0
    limit: int = 0
    out_of_memory: int = 0

    @classmethod
    def read(cls, store: Store, path: str) -> Starts:
        """Read the starts of a task; none where there are none, or where they are torn."""
        document = store.get_json(path)
        if not isinstance(document, dict):
            return cls()
        known = {
            f.name: document[f.name]
            for f in fields(cls)
            if isinstance(document.get(f.name), type(f.default))
        }
        return cls(**known)

    def write(self, store: Store, path: str) -> None:
        """Write them down."""
        store.put_json(path, asdict(self))

    def begun(self, host: str, beat_s: float) -> Starts:
        """Count a start."""
        return Starts(
            self.starts + 1,
            host,
            uuid.uuid4().hex,
            float(beat_s),
            out_of_memory=self.out_of_memory,
        )

    @property
    def lacked_memory(self) -> bool:
        """Whether the last worker was short of memory when it last looked."""
        return self.limit > 0 and self.memory > _OUT_OF_MEMORY * self.limit


@contextmanager
def beating(store: Store, path: str, every_s: float) -> Iterator[None]:
    """Change the beat of a task now and then while the body runs.

    Parameters
    ----------
    store : Store
        The root.
    path : str
        Where its starts are written down.
    every_s : float
        How often [s]; 0 for never.
    """
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(every_s):
            try:
                known = Starts.read(store, path)
                if known.starts:
                    replace(known, beat=uuid.uuid4().hex).write(store, path)
            except PipelineError:
                # Without a beat the task is done twice at worst.
                continue

    if every_s <= 0:
        yield
        return
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def note_memory(
    store: Store, path: str, memory: int, limit: int, *, exhausted: bool = False
) -> Starts:
    """Write down what the worker of a task has in use; return what is known of it.

    Parameters
    ----------
    memory, limit : int
        In use and at most [byte].
    exhausted : bool
        Whether the worker ends for it, and does this task only.
    """
    known = replace(Starts.read(store, path), memory=memory, limit=limit)
    known = replace(known, out_of_memory=known.out_of_memory + exhausted)
    known.write(store, path)
    return known


def gib(count: int) -> str:
    """Return a size in GiB, for people."""
    return f"{count / 2**30:.2f} GiB"
