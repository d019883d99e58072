"""The exception tree: one class per thing that a caller can do about it.

::

    PipelineError
    ├── TransientError               try again: the lease lapses, another worker takes it
    │   ├── StorageUnavailableError  the store did not answer
    │   ├── InUseError               another worker may be at it still
    │   └── GivenBackError           its worker was told to stop before it was computed
    └── PermanentError               trying again cannot help; a person decides
        ├── GeometryError            a box, grid or voxel size is wrong      (ValueError)
        ├── RecipeError              a recipe that cannot work, all its faults listed
        ├── SourceError              a source file cannot be read as what it should be
        ├── DataError                the values read are not what the stage takes
        ├── MissingInputError        a layer, chunk or record that should be there is not
        │                                                                    (LookupError)
        ├── StaleOutputError         an output made by another configuration is in the way
        ├── RootError                the run's folder cannot be used
        ├── ModelError               a model's folder is incomplete or damaged
        ├── TrainingError            a training cannot go on from where it is
        ├── BackendError             this machine lacks what the run computes its nets with
        ├── VersionError             this code is older than the run that it should serve
        ├── WorkerError              a worker fails whatever it does
        ├── MemoryLimitError         a task cannot fit where it would run
        ├── CancelledError           somebody cancelled the run; it can be gone on with
        └── TaskError                tasks failed; the failed records say why

Each class has a stable ``code`` for dashboards and tests. Messages read
``what happened, with the values; what to do``.
"""

from __future__ import annotations

from typing import ClassVar


class PipelineError(Exception):
    """Anything that this project raises on purpose."""

    code: ClassVar[str] = "pipeline"


class TransientError(PipelineError):
    """Trying again may help."""

    code = "transient"


class StorageUnavailableError(TransientError):
    """The store did not answer, or answered that it is busy."""

    code = "storage-unavailable"


class InUseError(TransientError):
    """Another worker may be at the task still.

    Parameters
    ----------
    message : str
        What is known of it.
    after_s : float
        When to look again [s].
    """

    code = "in-use"

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        self.after_s = after_s
        super().__init__(message, after_s)

    def __str__(self) -> str:
        return str(self.args[0])


class GivenBackError(TransientError):
    """The worker was told to stop before it began to compute."""

    code = "given-back"


class PermanentError(PipelineError):
    """Trying again cannot help."""

    code = "permanent"


class GeometryError(PermanentError, ValueError):
    """A box, grid, chunk or voxel size that cannot be."""

    code = "geometry"


class RecipeError(PermanentError):
    """A recipe that cannot work.

    Parameters
    ----------
    source : str
        The file, or what stands for it.
    faults : list of str
        Everything that is wrong, so that it is mended in one go.
    """

    code = "recipe"

    def __init__(self, source: str, faults: list[str]) -> None:
        self.source = source
        self.faults = faults
        super().__init__("\n".join(f"{source}: {fault}" for fault in faults))

    def __reduce__(self) -> tuple[type[RecipeError], tuple[str, list[str]]]:
        return type(self), (self.source, self.faults)


class SourceError(PermanentError):
    """A source that cannot be read as an image or as labels."""

    code = "source"


class DataError(PermanentError):
    """Values that the stage does not take."""

    code = "data"


class MissingInputError(PermanentError, LookupError):
    """A layer, chunk or record that should have been written is not there."""

    code = "missing-input"

    def __str__(self) -> str:
        return " ".join(str(a) for a in self.args)


class StaleOutputError(PermanentError):
    """An output of another configuration stands where this one would be written."""

    code = "stale-output"


class RootError(PermanentError):
    """The folder of the run cannot be used."""

    code = "root"


class ModelError(PermanentError):
    """A model's folder is incomplete, damaged or of another kind."""

    code = "model"


class TrainingError(PermanentError):
    """A training went astray; its last checkpoint is sound."""

    code = "training"


class BackendError(PermanentError):
    """A worker lacks what the run computes its nets with; another one may have it."""

    code = "backend"


class VersionError(PermanentError):
    """The run was started by newer code than that of this worker."""

    code = "version"


class WorkerError(PermanentError):
    """A worker failed so many tasks in a row that the fault may be its own."""

    code = "worker"


class MemoryLimitError(PermanentError):
    """A task needs more memory than its worker has."""

    code = "memory-limit"


class CancelledError(PermanentError):
    """The run was cancelled; what is done is kept."""

    code = "cancelled"


class TaskError(PermanentError):
    """Tasks failed; their failed records say why."""

    code = "task"


EXIT_STATUS: dict[type[PipelineError], int] = {
    TaskError: 1,
    CancelledError: 1,
    TransientError: 1,
    WorkerError: 3,
    BackendError: 5,
    VersionError: 5,
}
"""Exit statuses of programs that end by an error; of any other of ours, 2."""


def exit_status(error: PipelineError) -> int:
    """Return the exit status of a program that ends by an error."""
    for kind, status in EXIT_STATUS.items():
        if isinstance(error, kind):
            return status
    return 2
