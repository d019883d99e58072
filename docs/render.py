"""Writes the pages that follow from the code: ``python docs/render.py``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pipeline.cli import app
from pipeline.layers.parquet import ParquetTable
from pipeline.runtime.graph_tables import HISTORY, NODE_MERGES, TABLES
from pipeline.stages import STAGES
from pipeline.stages.base import ChunkStage, OctreeStage, Stage
from pipeline.stages.octree import DownSweep, UpSweep
from pipeline.stages.shards import ShardStage
from pipeline.stages.volume import VolumeStage

DOCS = Path(__file__).parent

_CLI = """\
# The command `em`

<!-- Written by docs/render.py from pipeline/cli. -->

| exit status | means |
| --- | --- |
| 0 | all went well |
| 1 | tasks failed, storage did not answer, the run was cancelled, or not proved complete |
| 2 | the request cannot work as it is; the message says what to change |
| 3 | a worker failed whatever it did, and stopped |
| 4 | a worker ended before its memory did, and gave its tasks back |
| 5 | this machine cannot serve the run: its code is older, or it lacks what a net needs |

Boxes, sizes and positions are in the order x, y, z.
"""

_STAGES = """\
# Stages

<!-- Written by docs/render.py from the table of stages, pipeline/stages/__init__.py. -->

A recipe names a stage with `use = "..."`.
Fields without a default have to be given.
A *layer* is named: one that a stage writes, that lies in the root, or whose place
`[layers]` gives.
A halo is what a task reads beyond its chunk, below and above it.

## Fields of every stage

`bounds` and `chunk` of `[grid]` hold where a stage gives none of its own.
"""

_VOLUMES = """
## Fields of stages that write volumes

Of {names}.
"""


_TABLES = """\
# Tables of the graph

<!-- Written by docs/render.py from the tables, pipeline/runtime/graph_tables.py. -->

`em export tables` writes a folder of [Parquet](https://parquet.apache.org) files;
[how to use them](../how-to/export.md).

```
TO/
  export.json                what the tables were made from
  <table>/<key>.parquet      rows of a node of the octree, level_x_y_z
  <table>.parquet            rows of the whole volume
```

In a merged file every row appears once, ascending by its *key*.
Of rows of nodes that share it, numbers are *added up*, the *least* or the *greatest* is
taken, or they are *the same* in all.
Columns *of nodes* are in their files alone, and *derived* ones follow from others.

Unit and meaning of a column are in the metadata of its field; no column holds nulls.
The metadata of the file:

| name | is |
| --- | --- |
| `table`, `row` | name of the table, and what a row is |
| `node` | key of the node; not in merged files |
| `scale` | fixed-point number that stands for an affinity of 1 |
| `run`, `lineage` | name of the run, and the identity of its remap table |
| `bounds` | x0,y0,z0,x1,y1,z1 of the volume [voxel] |
| `voxel_size_nm` | x,y,z [nm] |

Coordinates are in voxels, in the order x, y, z; boxes are half-open.
Files are compressed with zstandard; the same run gives the same bytes.
"""


def cli() -> str:
    """Return the page of the command, from the command itself."""
    command: Any = typer.main.get_command(app)
    return "\n".join([_CLI, *(_command(n, c) for n, c in _commands(command))])


def tables() -> str:
    """Return the page of the exported tables, from their definitions."""
    return "\n".join([_TABLES, *(_parquet(t) for t in TABLES)])


def stages() -> str:
    """Return the page of the stages, from their table."""
    volumes = [n for n, stage in STAGES.items() if issubclass(stage, VolumeStage)]
    parts = [
        _STAGES,
        _fields(Stage, Stage.model_fields),
        _VOLUMES.format(names=", ".join(f"`{n}`" for n in volumes)),
        _fields(VolumeStage, _own(VolumeStage, Stage)),
    ]
    for name, stage in STAGES.items():
        base = VolumeStage if issubclass(stage, VolumeStage) else Stage
        parts += [_stage(name, stage), _fields(stage, _own(stage, base))]
    return "\n".join(parts)


_IN_TOML = {
    "str": "string",
    "bool": "true or false",
    "Vec3": "[x, y, z]",
    "(x, y, z)": "[x, y, z]",
    "Bbox": "{ start, stop }",
    "Sharding": "{ shard_bits, minishard_bits }",
    "float or None": "float",
    "tuple of PointPair": "[{ section, x, y, to_x, to_y }, ...]",
    "tuple of pairs of str": "[[string, string], ...]",
    "(float, float) or None": "[float, float]",
}
"""Types as docstrings name them, and as a recipe writes them."""

PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": cli,
    "reference/stages.md": stages,
    "reference/tables.md": tables,
}
"""What is rendered, by path in ``docs``."""


def main() -> None:
    """Write every page."""
    for path, render in PAGES.items():
        (DOCS / path).write_text(render())


# -- the command -----------------------------------------------------------------------


def _commands(command: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the commands by name, those of groups as well."""
    for name, part in command.commands.items():
        if hasattr(part, "commands"):
            yield from _commands(part, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", part


def _command(name: str, command: Any) -> str:
    text, _, example = inspect.cleandoc(command.help).partition("Example: ")
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = [f"em {name}", *(_argument(p) for p in arguments)]
    usage += [f"{p.opts[0]} {_value(p)}" for p in options if p.required]
    rows = [[f"`{_argument(p)}`", p.help or "", "", ""] for p in arguments]
    rows += [_option(p) for p in options]
    return "\n".join(
        [
            f"## em {name}\n",
            text.strip() + "\n",
            "```sh",
            f"{' '.join(usage)} [options]",
            *([f"{' '.join(example.split())}   # for example"] if example else []),
            "```\n",
            _table(["", "meaning", "default", "environment"], rows),
        ]
    )


def _argument(parameter: Any) -> str:
    name = parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> list[str]:
    flag = isinstance(parameter.default, bool)
    shown = (
        f"`{parameter.opts[0]}`" if flag else f"`{parameter.opts[0]} {_value(parameter)}`"
    )
    default = "" if flag or parameter.default in (None, "") else f"`{parameter.default}`"
    if parameter.required:
        default = "required"
    meaning = parameter.help + (" May be repeated." if parameter.multiple else "")
    variable = f"`{parameter.envvar}`" if parameter.envvar else ""
    return [f"`{shown}`", meaning, default, variable]


def _value(parameter: Any) -> str:
    """Return the metavar of an option, named after its type."""
    kind = parameter.type_descriptor.annotation
    names = {int: "INT", float: "NUMBER", Path: "PATH"}
    return names.get(kind, "TEXT")


# -- tables ----------------------------------------------------------------------------

_MERGED = {
    "key": "key",
    "sum": "added up",
    "min": "least",
    "max": "greatest",
    "same": "the same",
    "keep": "",
    "drop": "of nodes",
    "derive": "derived",
}


def _parquet(table: ParquetTable) -> str:
    place = {
        NODE_MERGES: "`history/<key>.parquet`",
        HISTORY: "`history.parquet`",
    }.get(table, f"`{table.name}/<key>.parquet`, `{table.name}.parquet`")
    rows = [
        [
            f"`{c.name}`",
            c.dtype.__name__,
            c.unit,
            c.meaning,
            _MERGED[c.merge] if table.key or c.merge == "derive" else "",
        ]
        for c in table.columns
    ]
    return "\n".join(
        [
            f"## {place}\n",
            f"A row is {table.meaning}.\n",
            _table(["column", "type", "unit", "meaning", "merged"], rows),
        ]
    )


# -- stages ----------------------------------------------------------------------------


def _own(stage: type[Stage], base: type[Stage]) -> list[str]:
    return [f for f in stage.model_fields if f not in base.model_fields]


def _stage(name: str, stage: type[Stage]) -> str:
    summary, described = _docstring(stage)
    facts = [f"tasks: {_tasks(stage)}", f"pool: {stage.pool}"]
    if stage.halo != Stage.halo:
        facts.append(f"halo: {stage.halo.before} and {stage.halo.after}")
    if stage.chunking == "seams":
        facts.append("depends on the chunking, joined at the seams")
    return "\n".join([f"\n## {name}\n", summary, *described, f"\n*{'; '.join(facts)}*\n"])


def _tasks(stage: type[Stage]) -> str:
    if issubclass(stage, OctreeStage | UpSweep):
        return "nodes of the octree, a wave for each level, from the chunks up"
    if issubclass(stage, DownSweep):
        return "nodes of the octree, a wave for each level, down to the chunks"
    if issubclass(stage, ShardStage):
        return "shards of segment ids, one wave"
    if issubclass(stage, ChunkStage):
        several = stage.plan is not Stage.plan
        return "chunks, in several waves" if several else "chunks, one wave"
    return "one"


def _fields(stage: type[BaseModel], names: Iterable[str]) -> str:
    meanings = _meanings(stage)
    rows, tables = [], []
    for name in names:
        default = stage.model_fields[name].default
        kind, meaning = meanings[name]
        kind = "layer" if name in _layers(stage) else _IN_TOML.get(kind, kind)
        shown = _default(default)
        if isinstance(default, BaseModel) and kind == type(default).__name__:
            fields = _fields(type(default), type(default).model_fields)
            tables.append(f"Fields of `{name}`, a table:\n\n{fields}")
            kind, shown = "table", "see below"
        rows.append([f"`{name}`", kind, shown, meaning])
    shown = _table(["field", "type", "default", "meaning"], rows) if rows else ""
    return "\n".join([shown, *tables])


def _layers(stage: type[BaseModel]) -> set[str]:
    marked = {n: str(f.metadata) for n, f in stage.model_fields.items()}
    return {n for n, metadata in marked.items() if "_LayerMark" in metadata}


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return ""
    return f"`{_toml(value)}`" if value is not None else "none"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if hasattr(value, "model_dump"):
        fields = value.model_dump(mode="json")
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in fields.items()) + " }"
    if hasattr(value, "astuple"):
        value = value.astuple()
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(v) for v in value)}]"
    return str(value)


def _docstring(stage: type[Stage]) -> tuple[str, list[str]]:
    """Return the first line and the paragraphs of a docstring, without its parameters."""
    text = inspect.cleandoc(stage.__doc__ or "").partition("\nParameters\n")[0]
    summary, *paragraphs = [_markdown(p) for p in re.split(r"\n\s*\n", text) if p.strip()]
    return summary, [f"\n{p}" for p in paragraphs]


def _meanings(stage: type[BaseModel]) -> dict[str, tuple[str, str]]:
    """Return type and meaning of every field, as the docstrings of its classes say."""
    found: dict[str, tuple[str, str]] = {}
    for kind in (VolumeStage, *reversed(stage.__mro__)):
        text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
        _, _, parameters = text.partition("\nParameters\n")
        for match in re.finditer(r"(?m)^(\w[\w, ]*) : (.*)\n((?: {4}.*\n?)+)", parameters):
            for name in match[1].split(","):
                found[name.strip()] = (_markdown(match[2]), _markdown(match[3]))
    return found


def _markdown(text: str) -> str:
    """Return reStructuredText as one line of Markdown."""
    return re.sub(r"`+", "`", " ".join(text.split()))


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped) + "\n"


if __name__ == "__main__":
    main()
