"""A run that was killed is ended by running again; chosen tasks are done again."""

import signal
import time

import psutil
import pytest


def test_a_killed_run_resumes_to_the_same_bytes(
    small_text, recipe, gated, root, em, em_here, undisturbed, objects, done
):
    folder, gate = gated
    path = recipe(small_text, folder)
    run = em("run", path, "--root", root, "--workers", 2)
    gate.visitor()
    # The other process goes on with whatever does not wait for that one.
    until = time.monotonic() + 60
    while "segmentation/0_1_1_1" not in done(root) and time.monotonic() < until:
        time.sleep(0.05)
    children = run.children()
    run.process.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, "processes of a pool end with their driver"
    gate.close()
    before = done(root)
    assert "segmentation/0_1_1_1" in before
    assert "image/0_1_0_1" not in before

    gate.open()
    assert em_here("run", path, "--root", root).status == 0
    assert objects(root) == objects(undisturbed)
    assert before.items() <= done(root).items(), "what was done is not done again"


def test_a_second_run_does_nothing(finished, em_here, everything):
    root, path = finished
    before = everything(root)
    assert em_here("run", path, "--root", root).status == 0
    after = everything(root)
    assert before.keys() == after.keys()
    changed = {str(p) for p in before if before[p][1] != after[p][1]}
    assert changed == set()
    assert all(before[p][0] == after[p][0] for p in before)


OCTREES = ("basin_graph", "supervoxel_table", "agglomeration", "segment_table")


def redone(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_a_box_is_done_again(finished, em_here, objects, done):
    root, path = finished
    contents, before = objects(root), done(root)
    result = em_here("run", path, "--root", root, "--bbox", "0,0,0,10,10,12")
    assert result.status == 0, result.err
    corner = "0_0_0_0"
    assert redone(before, done(root)) == {
        *(f"{layer}/{corner}" for layer in ("basins", "supervoxels", "segmentation")),
        *(f"{node}/{corner}" for node in (*OCTREES, "region_graph")),
        *(f"{node}/1_0_0_0" for node in OCTREES),
        f"image/{corner}",
        "segmentation/pyramid/1_0_0_0",
        f"mesh_fragments/{corner}",
        f"skeleton_fragments/{corner}",
        *(f"segmentation/meshes/0_{shard}_0_0" for shard in range(2)),
        *(f"segmentation/skeletons/0_{shard}_0_0" for shard in range(2)),
    }
    assert objects(root) == contents


def test_a_box_of_one_stage_is_done_again(finished, em_here, objects, done):
    root, path = finished
    contents, before = objects(root), done(root)
    box = ("--bbox", "47,39,0,49,41,1", "--stage", "image")
    assert em_here("run", path, "--root", root, *box).status == 0
    assert redone(before, done(root)) == {
        f"image/0_{x}_{y}_0" for x in range(2) for y in range(2)
    }
    assert objects(root) == contents


@pytest.mark.parametrize(
    "tasks", [["segmentation/0_1_0_1"], ["image/0_0_0_0", "image/0_1_1_1"]]
)
def test_tasks_are_done_again(finished, em_here, objects, done, tasks):
    root, path = finished
    contents, before = objects(root), done(root)
    options = [o for task in tasks for o in ("--task", task)]
    assert em_here("run", path, "--root", root, *options).status == 0
    assert redone(before, done(root)) == set(tasks)
    assert objects(root) == contents


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--task", "image/0_9_0_0"], ["0_9_0_0", "image"]),
        (["--task", "image/corner"], ["'corner'", "level_x_y_z"]),
        (["--task", "picture/0_0_0_0"], ["'picture'", "image"]),
        (["--task", "image/0_0_0_0", "--task", "basins/0_0_0_0"], ["basins", "name one"]),
        (["--stage", "picture"], ["'picture'", "image"]),
        (["--stage", "ingets"], ["'ingets'", "image"]),
    ],
)
def test_a_choice_that_is_not_there_is_refused(finished, em_here, done, options, said):
    root, path = finished
    before = done(root)
    result = em_here("run", path, "--root", root, *options)
    assert result.status == 2, result.out
    assert all(word in result.err for word in said), result.err
    assert done(root) == before
