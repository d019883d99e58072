"""`em verify` finds what is not there or not as written, and `em run` mends it."""

import json

import pytest

STORED = "segmentation/12_12_30/48-72_0-20_12-24"
TASK = "0_1_0_1"


def faults(result, output="segmentation"):
    (stage,) = [s for s in result.json["runs"][0]["stages"] if s["output"] == output]
    return stage["faults"]


def test_a_whole_run_is_complete(finished, em_here, done):
    root, _ = finished
    result = em_here("verify", "--root", root, "--json")
    assert result.status == 0
    assert result.json["complete"]
    (run,) = result.json["runs"]
    assert run["run"] == "small"
    assert sum(s["tasks"] for s in run["stages"]) == len(done(root))
    assert all(s["done"] == s["tasks"] and not s["faults"] for s in run["stages"])
    text = em_here("verify", "--root", root)
    assert text.status == 0
    assert text.out.endswith("complete: every task is proved\n")


@pytest.mark.parametrize("quick", [False, True])
def test_a_deleted_object_is_named_and_mended_alone(
    finished, em_here, objects, done, quick
):
    root, path = finished
    contents, before = objects(root), done(root)
    (root / STORED).unlink()
    options = ["--quick"] if quick else []
    result = em_here("verify", "--root", root, "--json", *options)
    assert result.status == 1
    assert not result.json["complete"]
    (fault,) = faults(result)
    assert (fault["key"], fault["kind"]) == (TASK, "lost")
    assert fault["detail"] == f"{STORED} is missing"
    text = em_here("verify", "--root", root, *options)
    assert text.status == 1
    assert f"segmentation/{TASK} lost: {fault['detail']}" in text.out

    assert em_here("run", path, "--root", root).status == 0
    after = done(root)
    assert {n for n in after if after[n] != before[n]} == {f"segmentation/{TASK}"}
    assert objects(root) == contents
    assert em_here("verify", "--root", root).status == 0


def test_a_flipped_byte_is_damage(finished, em_here, objects, done):
    root, path = finished
    contents, before = objects(root), done(root)
    stored = root / "image" / "12_12_30" / "48-72_0-20_12-24"
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.write_bytes(content)
    assert em_here("verify", "--root", root, "--quick").status == 0
    result = em_here("verify", "--root", root, "--json")
    assert result.status == 1
    (fault,) = faults(result, "image")
    assert (fault["key"], fault["kind"]) == (TASK, "damaged")
    assert "48-72_0-20_12-24 is damaged" in fault["detail"]

    assert em_here("run", path, "--root", root).status == 0
    assert em_here("verify", "--root", root).status == 1, "a run looks at names alone"
    assert em_here("verify", "--root", root, "--forget").status == 1
    assert em_here("run", path, "--root", root).status == 0
    after = done(root)
    assert {n for n in after if after[n] != before[n]} == {f"image/{TASK}"}
    assert objects(root) == contents
    assert em_here("verify", "--root", root).status == 0


@pytest.mark.parametrize("torn", [False, True])
def test_a_task_without_record_is_missing(finished, em_here, objects, done, torn):
    root, path = finished
    contents, before = objects(root), done(root)
    record = root / "basin_graph" / "done" / "1_0_0_0.json"
    if torn:
        record.write_bytes(record.read_bytes()[:40])
    else:
        record.unlink()
    result = em_here("verify", "--root", root, "--json")
    assert result.status == 1
    (fault,) = faults(result, "basin_graph")
    assert (fault["key"], fault["kind"]) == ("1_0_0_0", "missing")
    assert "basin_graph/1_0_0_0" in fault["detail"]

    assert em_here("run", path, "--root", root).status == 0
    after = done(root)
    assert {n for n in after if before.get(n) != after[n]} == {"basin_graph/1_0_0_0"}
    assert objects(root) == contents
    assert em_here("verify", "--root", root).status == 0


def test_a_lost_record_of_a_coarse_mip_is_mended(finished, em_here, objects):
    root, path = finished
    contents = objects(root)
    stored = sorted((root / "segmentation" / "24_24_30").iterdir())[0]
    stored.unlink()
    result = em_here("verify", "--root", root, "--json")
    (fault,) = faults(result, "segmentation/pyramid")
    assert fault["kind"] == "lost"
    assert em_here("run", path, "--root", root).status == 0
    assert objects(root) == contents


@pytest.mark.parametrize("layer", ["segmentation/meshes", "segmentation/skeletons"])
def test_a_lost_shard_is_mended(finished, em_here, objects, layer):
    root, path = finished
    contents = objects(root)
    shard = sorted((root / layer).glob("*.shard"))[0]
    shard.unlink()
    result = em_here("verify", "--root", root, "--json")
    (fault,) = faults(result, layer)
    assert fault["kind"] == "lost"
    assert shard.name in fault["detail"]
    assert em_here("run", path, "--root", root).status == 0
    assert objects(root) == contents


def test_a_failed_task_is_a_fault(finished, em_here):
    root, _ = finished
    record = root / "image" / "done" / f"{TASK}.json"
    failed = root / "image" / "failed" / f"{TASK}.json"
    failed.parent.mkdir()
    failed.write_text(json.dumps({"key": TASK, "output": "image", "reason": "why"}))
    record.unlink()
    result = em_here("verify", "--root", root, "--json")
    (fault,) = faults(result, "image")
    assert (fault["key"], fault["kind"]) == (TASK, "failed")


def test_status_counts(finished, em_here):
    root, _ = finished
    (root / "image" / "done" / f"{TASK}.json").unlink()
    rows = em_here("status", "--root", root, "--json").json["stages"]
    by_output = {r["output"]: r for r in rows}
    assert by_output["image"] == {
        "run": "small",
        "output": "image",
        "stage": "ingest",
        "tasks": 8,
        "done": 7,
        "failed": 0,
        "missing": 1,
        "begun": 0,
    }
    assert by_output["basin_graph"]["tasks"] == 9
    assert all(r["missing"] == 0 for r in rows if r["output"] != "image")
