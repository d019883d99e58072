"""Failed tasks: grouped, shown, done here, tried again."""

import json
from collections import Counter

import pytest

from pipeline.errors import DataError, MemoryLimitError
from pipeline.geometry import ChunkKey
from pipeline.recipe import Recipe
from pipeline.runtime.queue import TaskQueue
from pipeline.runtime.run import Run
from pipeline.runtime.starts import Starts
from pipeline.runtime.triage import grouped


@pytest.fixture
def failed(small, root):
    """A root in which four tasks of a layer failed for two reasons, and one of another."""
    run = Run.start(Recipe.load(small), str(root))
    basins, graph = run.recipe.stage("basins"), run.recipe.stage("basin_graph")
    for x, y in ((0, 0), (1, 0), (0, 1)):
        error = DataError(f"0_{x}_{y}_0 has {x + 3.5} values; mend it")
        run.park(basins, ChunkKey(0, x, y, 0), error)
    run.park(basins, ChunkKey(0, 1, 1, 0), MemoryLimitError("ran out of memory"), 2)
    run.park(graph, ChunkKey(0, 0, 0, 0), DataError("0_0_0_0 has 3.5 values; mend it"))
    return run


def test_reasons_that_differ_in_numbers_are_one(failed):
    groups = grouped({"run": "small", **record} for record in failed.failures())
    assert [(g.output, g.code, len(g.keys)) for g in groups] == [
        ("basins", "data", 3),
        ("basins", "memory-limit", 1),
        ("basin_graph", "data", 1),
    ]
    assert groups[0].keys == ["0_0_0_0", "0_0_1_0", "0_1_0_0"]
    assert sum(groups[0].hosts.values()) == 3


def test_hosts_are_counted():
    records = [
        {"output": "a", "key": f"0_{i}_0_0", "code": "data", "reason": "no", "host": host}
        for i, host in enumerate(["node-1", "node-2", "node-2"])
    ]
    (group,) = grouped(records)
    assert group.hosts == Counter({"node-2": 2, "node-1": 1})
    assert list(group.to_json()["hosts"]) == ["node-2", "node-1"]


def test_em_failures_groups_and_says_what_to_type(failed, root, em_here):
    out = em_here("failures", "--root", root).out
    assert "3 of basins (data; " in out
    assert "first 0_0_0_0: 0_0_0_0 has 3.5 values; mend it" in out
    assert f"failures --root {root} --traceback basins/0_0_0_0" in out
    assert f"task basins 0_0_0_0 --root {root} --here --pdb" in out
    document = em_here("failures", "--root", root, "--json").json
    assert len(document["failures"]) == 5
    assert [g["tasks"] for g in document["groups"]] == [3, 1, 1]


def test_a_traceback_is_shown(failed, root, em_here):
    out = em_here("failures", "--root", root, "--traceback", "basins/0_1_1_0").out
    assert "MemoryLimitError: ran out of memory" in out
    result = em_here("failures", "--root", root, "--traceback", "basins/0_9_9_9")
    assert result.status == 2


def test_a_task_is_described_and_done_here(failed, root, em_here):
    known = em_here("task", "basins", "0_0_0_0", "--root", root, "--json").json
    assert known["state"] == "failed"
    assert known["record"]["code"] == "data"
    assert "affinities" in known["reads"]["affinities"]
    here = em_here("task", "basins", "0_0_0_0", "--root", root, "--here", "--json").json
    assert here["outcome"] == "done"
    known = em_here("task", "basins", "0_0_0_0", "--root", root, "--json").json
    assert known["state"] == "done"
    assert {"read", "compute", "write"} == known["record"]["phases"].keys()
    assert not failed.is_parked(failed.recipe.stage("basins"), ChunkKey(0, 0, 0, 0))
    assert em_here("task", "basins", "0_9_0_0", "--root", root).status == 2
    assert em_here("task", "nothing", "0_0_0_0", "--root", root).status == 2


def test_a_task_that_fails_here_opens_the_debugger(failed, root, em_here, monkeypatch):
    import pdb

    opened = []
    monkeypatch.setattr(pdb, "post_mortem", opened.append)
    result = em_here("task", "supervoxels", "0_0_0_0", "--root", root, "--here", "--pdb")
    assert result.status == 1
    assert len(opened) == 1
    assert "MissingInputError" in result.err
    plain = em_here("task", "supervoxels", "0_0_0_0", "--root", root, "--here")
    assert plain.status == 2
    assert "was never written" in plain.err


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["--failed"], 5),
        ([], 5),
        (["--reason", "values"], 4),
        (["--reason", "memory-limit"], 1),
        (["--reason", "values", "--stage", "basins"], 3),
        (["--reason", "nothing of the kind"], 0),
    ],
)
def test_retry_chooses(options, count, failed, root, em_here):
    result = em_here("retry", "--root", root, *options, "--json")
    assert result.json == {"retried": count}
    left = json.loads(em_here("failures", "--root", root, "--json").out)["failures"]
    assert len(left) == 5 - count


def test_status_counts_what_is_begun_and_what_waits(failed, root, queue, em_here):
    stage = failed.recipe.stage("basins")
    Starts(starts=1).write(failed.store, failed.starts_path(stage, ChunkKey(0, 0, 0, 1)))
    TaskQueue(queue).insert(str(root), "small", "basins", [ChunkKey(0, 0, 0, 1)] * 2)
    TaskQueue(queue).lease(60)
    found = em_here("status", "--root", root, "--queue", queue, "--json").json
    assert found["queue"] == {"waiting": 1, "leased": 1}
    row = found["stages"][0]
    assert (row["output"], row["tasks"]) == ("basins", 8)
    assert [row[k] for k in ("done", "failed", "missing", "begun")] == [0, 4, 4, 1]
    assert (
        f"{queue}: 1 waiting, 1 leased"
        in em_here("status", "--root", root, "--queue", queue).out
    )
