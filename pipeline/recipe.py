"""A reconstruction written down: stages in the order in which layers feed one another.

A recipe is TOML::

    name = "block"

    [grid]
    bounds = { start = [0, 0, 0], stop = [512, 512, 100] }
    chunk = [256, 256, 64]

    [layers]                      # what the stages read and nobody here writes
    image = "gs://lab/image"

    [[stage]]
    use = "affinities"
    image = "image"
    output = "affinities"
    model = "models/cortex-rsunet"

``bounds`` and ``chunk`` of ``[grid]`` hold for every stage that does not give its own.
A local place under ``[layers]`` is counted from the folder of the recipe.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipeline.errors import PermanentError, RecipeError
from pipeline.specs import LayerSpec
from pipeline.stages import STAGES
from pipeline.stages.base import Specs, Stage

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Describe = Callable[[str, str], LayerSpec]
"""Says what a layer that exists holds, by its name and location."""

_TOP = {"name", "grid", "layers", "stage"}
_SHARED = ("bounds", "chunk", "node_limit_gb", "partition_limit_gb", "rounds")
"""What ``[grid]`` gives to every stage that has such a field and does not set it."""


@dataclass(frozen=True)
class Recipe:
    """Stages in layer order, and the layers that they start from.

    Parameters
    ----------
    name : str
        Name of the recipe; also names its run.
    stages : tuple of Stage
        Every stage comes after those that it reads from.
    layers : dict of str to str
        Where the layers are that no stage writes, or that are kept elsewhere than in
        the run's folder.
    """

    name: str
    stages: tuple[Stage, ...]
    layers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe from a file.

        Raises
        ------
        RecipeError
            With everything that is wrong with it.
        """
        path = Path(path)
        try:
            document = tomllib.loads(path.read_text())
        except OSError as error:
            raise RecipeError(
                str(path), [f"cannot be read ({error.strerror}); give the path of a recipe"]
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(str(path), [f"is not TOML: {error}"]) from error
        recipe = cls.parse(document, source=str(path))
        folder = path.resolve().parent
        layers = {name: _beside(folder, place) for name, place in recipe.layers.items()}
        return cls(recipe.name, recipe.stages, layers)

    @classmethod
    def parse(cls, document: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
        """Read a recipe from what its TOML or JSON holds.

        Raises
        ------
        RecipeError
            With everything that is wrong with it.
        """
        faults = [
            f"{key!r} is not a part of a recipe; it has {', '.join(sorted(_TOP))}"
            for key in sorted(set(document) - _TOP)
        ]
        name = document.get("name")
        if (
            not isinstance(name, str)
            or not name.replace("-", "").replace("_", "").isalnum()
        ):
            faults.append(f"name {name!r} is not letters, digits, - and _; give a name")
        layers = document.get("layers", {})
        if not isinstance(layers, dict) or not all(
            isinstance(v, str) for v in layers.values()
        ):
            faults.append('[layers] is not a table of locations; give name = "location"')
            layers = {}
        grid = document.get("grid", {})
        if not isinstance(grid, dict):
            faults.append(f"[grid] is not a table but {grid!r}; give bounds and chunk")
            grid = {}
        faults += [
            f"[grid] has {', '.join(_SHARED)}, not {key!r}"
            for key in sorted(set(grid) - set(_SHARED))
        ]
        shared = {k: v for k, v in grid.items() if k in _SHARED}
        stages: list[Stage] = []
        entries = document.get("stage", [])
        if not isinstance(entries, list):
            faults.append("stages are not a list of tables; begin each with [[stage]]")
            entries = []
        elif not entries:
            faults.append("there is no [[stage]]; give at least one")
        for number, entry in enumerate(entries, 1):
            stage, wrong = _stage(number, entry, shared)
            faults += wrong
            if stage is not None:
                stages.append(stage)
        if not faults:
            faults += _wiring_faults(stages)
        if faults:
            raise RecipeError(source, faults)
        return cls(str(name), tuple(_in_layer_order(stages)), dict(layers))

    def to_json(self) -> dict[str, Any]:
        """Return what `parse` reads."""
        return {
            "name": self.name,
            "layers": dict(self.layers),
            "stage": [s.to_json() for s in self.stages],
        }

    def stage(self, output: str) -> Stage:
        """Return the stage that writes a layer, or the only one of that name.

        Raises
        ------
        RecipeError
            If there is none.
        """
        for stage in self.stages:
            if stage.output == output:
                return stage
        named = [s for s in self.stages if s.name == output]
        if len(named) == 1:
            return named[0]
        raise RecipeError(
            self.name,
            [
                f"no stage writes {output!r}; they write "
                + ", ".join(s.output for s in self.stages)
            ],
        )

    @property
    def external(self) -> list[str]:
        """Layers that are read and that no stage writes, in order of use."""
        written = {s.output for s in self.stages}
        read = [layer for s in self.stages for layer in s.inputs.values()]
        return [layer for layer in dict.fromkeys(read) if layer not in written]

    def upstream(self, stage: Stage) -> list[Stage]:
        """Return the stages whose output a stage reads, in layer order."""
        return [s for s in self.stages if s.output in set(sources(stage, self.stages))]

    def downstream(self, stage: Stage) -> list[Stage]:
        """Return every stage that depends on a stage, near or far, in layer order."""
        found = {stage.output}
        result = []
        for other in self.stages:
            if other.output not in found and found & set(sources(other, self.stages)):
                found.add(other.output)
                result.append(other)
        return result

    def pinned(self) -> Recipe:
        """Return the recipe with what stages use beside layers (weights) fixed by digest.

        Raises
        ------
        RecipeError
            If something that a stage uses is not there, for all stages at once.
        """
        stages, faults = [], []
        for stage in self.stages:
            try:
                stages.append(stage.pinned())
            except PermanentError as error:
                faults.append(f"{stage.name}: {error}")
        if faults:
            raise RecipeError(self.name, faults)
        return Recipe(self.name, tuple(stages), self.layers)

    def specs(self, describe: Describe) -> Specs:
        """Return what each layer holds, existing ones as found and outputs as planned.

        A layer that a later stage adds mips to is described with them.

        Raises
        ------
        RecipeError
            With every stage's faults.
        """
        faults: list[str] = []
        specs: Specs = {}
        for layer in self.external:
            try:
                specs[layer] = describe(layer, self.layers.get(layer, layer))
            except PermanentError as error:
                faults.append(f"layer {layer}: {error}")
        unknown = set(self.external) - set(specs)
        for stage in self.stages:
            try:
                faults += stage.check(specs)
                specs[stage.output] = stage.describe(specs)
            except (TypeError, KeyError, PermanentError) as error:
                # That its inputs are unknown is said already.
                if not (isinstance(error, KeyError) and unknown & {*stage.inputs.values()}):
                    faults.append(f"{stage.name}: {error}")
                unknown.add(stage.output)
                continue
            if stage.output.endswith("/pyramid"):
                specs[stage.output.removesuffix("/pyramid")] = specs[stage.output]
        faults += _disagreements(self.stages)
        if faults:
            raise RecipeError(self.name, list(dict.fromkeys(faults)))
        return specs

    def lineage(self) -> dict[str, str]:
        """Return the identity of every layer: its stage's digest and all before it.

        A layer that no stage writes is known by its location.
        """
        result = {
            layer: _sha256(["location", self.layers.get(layer, layer)])
            for layer in self.external
        }
        for stage in self.stages:
            parents = [[source, result[source]] for source in sources(stage, self.stages)]
            result[stage.output] = _sha256([stage.digest, parents])
        return result


def _beside(folder: Path, location: str) -> str:
    """Make a local location absolute, counted from the recipe's folder."""
    if "://" in location:
        return location
    return os.path.normpath(folder / os.path.expanduser(location))


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sources(stage: Stage, stages: Sequence[Stage]) -> list[str]:
    """List the layers that a stage depends on; a coarse mip comes from the pyramid."""
    outputs = {s.output for s in stages}
    return [
        f"{layer}/pyramid"
        if stage.read_mip > 0 and f"{layer}/pyramid" in outputs
        else layer
        for layer in stage.inputs.values()
    ]


def _stage(
    number: int, entry: Any, shared: Mapping[str, Any]
) -> tuple[Stage | None, list[str]]:
    where = f"stage {number}"
    if not isinstance(entry, dict) or not isinstance(entry.get("use"), str):
        return None, [f"{where}: has no use; give use = one of {', '.join(STAGES)}"]
    use = entry["use"]
    if use not in STAGES:
        return None, [f"{where}: use = {use!r} is no stage; there are {', '.join(STAGES)}"]
    fields = {k: v for k, v in entry.items() if k != "use"}
    given = {k: v for k, v in shared.items() if k in STAGES[use].model_fields}
    try:
        return STAGES[use].model_validate({**given, **fields}), []
    except ValidationError as error:
        return None, [f"{where} ({use}): {_fault(use, e)}" for e in error.errors()]


def _fault(use: str, error: ErrorDetails) -> str:
    """Say what is wrong with a field, with its value."""
    name = ".".join(str(p) for p in error["loc"]) or "stage"
    if error["type"] == "extra_forbidden":
        fields = [*STAGES[use].model_fields]
        near = get_close_matches(name, fields, 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        return f"there is no field {name!r}; {meant}{use} has {', '.join(fields)}"
    if error["type"] == "value_error":
        return f"{name}: {error['msg'].removeprefix('Value error, ')}"
    value = "" if isinstance(error["input"], dict) else f", not {error['input']!r}"
    return f"{name}: {error['msg']}{value}"


def _wiring_faults(stages: list[Stage]) -> list[str]:
    faults = []
    outputs = [s.output for s in stages]
    for output in dict.fromkeys(outputs):
        if outputs.count(output) > 1:
            users = [s.name for s in stages if s.output == output]
            faults.append(f"layer {output} is written by {' and '.join(users)}; rename one")
    if not faults:
        ordered = _in_layer_order(stages)
        if len(ordered) < len(stages):
            stuck = [s for s in stages if s not in ordered]
            faults.append(f"layers feed one another in a circle, {_circle(stuck)}")
    return faults


def _disagreements(stages: tuple[Stage, ...]) -> list[str]:
    """Say where a stage and the one that it reads from must be alike and are not."""
    by_output = {s.output: s for s in stages}
    return [
        f"{stage.name}: {field} of {stage.output} is {getattr(stage, field)} and that of "
        f"{source.output} is {getattr(source, field)}; give both the same"
        for stage in stages
        for layer, fields in stage.agrees.items()
        if (source := by_output.get(getattr(stage, layer))) is not None
        for field in fields
        if hasattr(source, field) and getattr(stage, field) != getattr(source, field)
    ]


def _circle(stuck: list[Stage]) -> str:
    """Walk against the flow from a stage that waits until a layer comes again."""
    by_output = {s.output: s for s in stuck}
    path = [stuck[0].output]
    while path.count(path[-1]) == 1:
        before = sources(by_output[path[-1]], stuck)
        path.append(next(source for source in before if source in by_output))
    loop = path[path.index(path[-1]) :]
    return " -> ".join(reversed(loop))


def _in_layer_order(stages: list[Stage]) -> list[Stage]:
    """Sort so that each stage follows its sources; keeps the given order otherwise.

    Stages in a circle are left out.
    """
    waiting, done, result = list(stages), set[str](), list[Stage]()
    outputs = {s.output for s in stages}
    while True:
        ready = next(
            (s for s in waiting if not (set(sources(s, stages)) & outputs - done)), None
        )
        if ready is None:
            return result
        waiting.remove(ready)
        done.add(ready.output)
        result.append(ready)
