"""The exception tree: what callers may rely on."""

import inspect
import pickle

import pytest

from pipeline import errors
from pipeline.errors import (
    GeometryError,
    MissingInputError,
    PermanentError,
    PipelineError,
    RecipeError,
    TransientError,
)

CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, PipelineError)
]
LEAVES = [k for k in CLASSES if k not in (PipelineError, PermanentError, TransientError)]


def test_codes_are_distinct():
    codes = [kind.code for kind in CLASSES]
    assert len(set(codes)) == len(codes) > 10


@pytest.mark.parametrize("kind", LEAVES)
def test_every_error_is_transient_or_permanent_and_not_both(kind):
    assert issubclass(kind, TransientError) != issubclass(kind, PermanentError)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_tree_in_the_module_names_every_class(kind):
    assert kind.__name__ in errors.__doc__
    assert "code" in vars(kind)


def test_codes_are_as_dashboards_know_them():
    assert {kind.__name__: kind.code for kind in CLASSES} == {
        "PipelineError": "pipeline",
        "TransientError": "transient",
        "StorageUnavailableError": "storage-unavailable",
        "InUseError": "in-use",
        "GivenBackError": "given-back",
        "PermanentError": "permanent",
        "GeometryError": "geometry",
        "RecipeError": "recipe",
        "SourceError": "source",
        "DataError": "data",
        "MissingInputError": "missing-input",
        "StaleOutputError": "stale-output",
        "RootError": "root",
        "ModelError": "model",
        "TrainingError": "training",
        "BackendError": "backend",
        "VersionError": "version",
        "WorkerError": "worker",
        "MemoryLimitError": "memory-limit",
        "CancelledError": "cancelled",
        "TaskError": "task",
    }


@pytest.mark.parametrize("kind", [k for k in CLASSES if k is not RecipeError])
def test_errors_cross_processes(kind):
    again = pickle.loads(pickle.dumps(kind("what happened; what to do")))
    assert type(again) is kind
    assert str(again) == "what happened; what to do"


def test_a_recipe_error_crosses_processes_with_its_faults():
    error = RecipeError("block.toml", ["one", "two"])
    again = pickle.loads(pickle.dumps(error))
    assert again.faults == ["one", "two"]
    assert str(again) == str(error) == "block.toml: one\nblock.toml: two"


def test_errors_are_also_what_python_would_raise():
    assert issubclass(GeometryError, ValueError)
    assert issubclass(MissingInputError, LookupError)


def test_a_missing_input_is_shown_without_quotes():
    """A `KeyError`, which is a `LookupError` too, would show the repr."""
    assert str(MissingInputError("there is no 'x'; run it")) == "there is no 'x'; run it"


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_an_exit_status(kind):
    status = {
        "TaskError": 1,
        "TransientError": 1,
        "StorageUnavailableError": 1,
        "InUseError": 1,
        "GivenBackError": 1,
        "CancelledError": 1,
        "WorkerError": 3,
        "BackendError": 5,
        "VersionError": 5,
    }
    error = kind("what", ["happened"]) if kind is RecipeError else kind("what happened")
    assert errors.exit_status(error) == status.get(kind.__name__, 2)
