"""What `em plan` says comes true, and a run that cannot fit is refused."""

import re


def test_counts_come_true(small, root, em_here, done):
    planned = em_here("plan", small, "--root", root, "--json")
    assert planned.status == 0, planned.err
    assert not root.exists(), "a plan writes nothing"
    waves = planned.json["waves"]
    expected = {}
    for wave in waves:
        assert wave["done"] == 0
        expected[wave["output"]] = expected.get(wave["output"], 0) + wave["tasks"]

    ran = em_here("run", small, "--root", root, "--json")
    assert {s["output"]: s["tasks"] for s in ran.json["stages"]} == expected
    assert sum(expected.values()) == len(done(root))
    levels = [w["level"] for w in waves if w["output"] == "basin_graph"]
    assert levels == [0, 1]

    again = em_here("plan", small, "--root", root, "--json").json["waves"]
    assert all(w["done"] == w["tasks"] for w in again)
    assert "tasks in" in em_here("plan", small, "--root", root).out


def test_bytes_and_memory_are_plausible(small, root, em_here):
    waves = em_here("plan", small, "--root", root, "--json").json["waves"]
    image = next(w for w in waves if w["output"] == "image")
    voxels = 96 * 80 * 24
    assert image["voxels"] == voxels
    assert image["bytes_in"] == voxels
    assert image["bytes_out"] == voxels
    basins = next(w for w in waves if w["output"] == "basins")
    assert basins["bytes_in"] >= 3 * voxels
    assert basins["bytes_out"] == 8 * voxels
    assert all(0 < w["peak_memory"] < 2**30 for w in waves)


def test_a_task_that_cannot_fit_is_refused(small, root, em_here):
    for command in ("plan", "run"):
        result = em_here(command, small, "--root", root, "--memory-limit", 0.001)
        assert result.status == 2
        assert re.search(r"basins: a task of basins needs about [\d.]+ GiB", result.err)
        assert "smaller chunk" in result.err
        assert not root.exists()


def test_progress_is_lines_elsewhere_than_on_a_terminal(small, root, em):
    run = em("run", small, "--root", root, "--workers", 1)
    run.succeed()
    lines = run.errors.splitlines()
    image = [line for line in lines if line.startswith("image: ")]
    assert re.fullmatch(r"image: 8/8 tasks, [\d.]+ Mvox/s, 0 failed", image[-1])
    assert any(line.startswith("basin_graph 1: 1/1 tasks") for line in lines)
    assert "\x1b" not in run.errors
    assert "Traceback" not in run.errors


def test_quiet_is_quiet(small, root, em_here):
    result = em_here("run", small, "--root", root, "--quiet")
    assert result.status == 0
    assert result.err == ""
    assert "segmentation/meshes" in result.out
