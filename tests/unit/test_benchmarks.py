"""That benchmarks run, that their targets can be missed, and that costs are costs."""

import heapq
import json
import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pipeline.geometry import Bbox, ChunkKey, Vec3

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _beside():
    """Let modules of the folder import each other, as a script there does."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def call(script, *arguments):
    return subprocess.run(
        [sys.executable, FOLDER / script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "EM_DATA": "", "COLUMNS": "200"},
    )


SMALL = ("--size", "72,64,32", "--inputs", "phantom_uint8", "--json", "--check")


FINE = {"low": 0.6, "size_threshold": 10, "dust": 5}


def targets(folder, benchmark, **limits):
    path = folder / "targets.toml"
    path.write_text(
        "".join(
            f'[{benchmark}.{figure}]\n{kind} = {limit}\nmeaning = "what it says"\n'
            for figure, (kind, limit) in limits.items()
        )
    )
    return ("--targets", str(path))


def test_segmentation_is_measured_and_misses_what_nothing_can_reach(tmp_path):
    limits = {
        "mvox_per_cpu_s": ("at_least", 1e9),
        "bytes_per_voxel": ("at_most", 1e9),
        "of_nothing": ("at_most", 1e9),
    }
    picture = tmp_path / "segmentation.png"
    done = call(
        "segmentation.py",
        *SMALL,
        *("--repeats", "1", "--picture", str(picture)),
        *targets(tmp_path, "segmentation", **limits),
    )
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert [(t["figure"], t["is_met"]) for t in result["targets"]] == [
        ("mvox_per_cpu_s", False),
        ("bytes_per_voxel", True),
        ("of_nothing", False),
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "missed" in done.stderr.strip().splitlines()[-2]
    found = result["inputs"]["phantom_uint8"]
    assert found["voxels"] == 72 * 64 * 32
    assert found["cases"]["ours"]["facts"]["supervoxels"] > 3
    for case in found["cases"].values():
        assert case["total"]["cpu_s"] > 0
        assert case["facts"]["peak_rss_bytes"] > found["voxels"]
    assert ("waterz" in found["cases"]) == ("waterz" not in result["skipped"])


def test_open_state_is_counted(tmp_path):
    from inputs import open_input
    from open_state import measured

    given = open_input("phantom_uint8", tmp_path, Vec3(72, 64, 32), "", print)
    found = measured(given.path, Vec3(24, 32, 16), FINE).facts
    levels = {(level["layer"], level["level"]): level for level in found["levels"]}
    assert set(levels) == {
        (layer, level) for layer in ("basin_graph", "agglomeration") for level in (0, 1)
    }
    for level in levels.values():
        assert level["counts"]["clusters"] > 0
        assert level["bytes_per_face_voxel"] > 0
    up = found["sent_up"]
    every, ours, without = (
        up[rule] for rule in ("in all chunks", "ours", "ours without absorption")
    )
    assert 0 < ours["complete contacts"] < every["complete contacts"]
    for kind, n in ours.items():
        assert n <= without[kind] <= every[kind]
    # The rule that freezes both ends decides what ours does without absorption.
    assert up["ABISS"]["complete contacts"] == pytest.approx(
        without["complete contacts"], rel=0.05
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_task_takes_more_memory_than_its_limit(tmp_path):
    """What a worker holds, not what the model says."""
    done = call(
        "bounded.py",
        *("--size", "384,384,96", "--inputs", "phantom_uint8", "--chunks", "6,6,4"),
        *("--limit-gb", "0.01", "--json"),
    )
    result = json.loads(done.stdout)
    tasks = result["inputs"]["phantom_uint8"]["largest_task_bytes"]
    free, bound = (max(peaks.values()) for peaks in tasks.values())
    assert result["inputs"]["phantom_uint8"]["partitions"]["basin_graph"] > 1
    assert bound <= 0.01e9 < free


def test_peers_agree_on_our_supervoxels(tmp_path):
    """Else times would be those of other work."""
    pytest.importorskip("waterz")
    import inputs
    import segmentation
    from harness import best_of

    given = inputs.open_input("phantom_float32", tmp_path, Vec3(96, 96, 32), "", print)
    (outcome,) = best_of(
        {"ours": (segmentation.ours, given.path, 1, tmp_path)}, 1, lambda what: None
    )["ours"]
    theirs = segmentation.waterz_mean(given.path, tmp_path)
    assert theirs.facts["supervoxels"] == outcome.facts["supervoxels"] > 10
    assert theirs.facts["supervoxels_grouped_otherwise"] == 0


def test_processes_measured_at_once_do_the_same_work(tmp_path):
    import inputs
    import segmentation
    from harness import at_once, best_of

    given = inputs.open_input("phantom_uint8", tmp_path, Vec3(64, 64, 24), "", print)
    ours = (segmentation.ours, given.path, 1, None)
    twice = (at_once, segmentation.ours, 2, given.path, 1, None)
    found = best_of({"ours": ours, "twice": twice}, 1, lambda what: None)
    assert found["twice"][0].facts["ids"] == found["ours"][0].facts["ids"]
    assert found["twice"][0].phases.keys() == found["ours"][0].phases.keys()


def test_masks_are_compared_at_the_extent_of_the_truth():
    from accuracy import _compared, _enlarged

    coarse = np.zeros((3, 4, 2), bool)
    coarse[1, 2, 0] = True
    found = _enlarged(coarse, (6, 8, 2))
    assert np.argwhere(found).tolist() == [[x, y, 0] for x in (2, 3) for y in (4, 5)]
    truth = found.copy()
    truth[2, 4, 0] = False
    scores = _compared(found, truth, (4.0, 4.0, 40.0), sections=(0, 2))
    assert scores["inside"]["precision"] == pytest.approx(3 / 4)
    assert scores["outside"]["recall"] == pytest.approx(92 / 93)
    assert scores["cremi"]["adgt_nm"] == pytest.approx(4 / 4)


def test_each_figure_meets_its_own_target():
    from accuracy import CHOSEN_ON, figures_of
    from harness import judge, load_targets

    masks = {
        "m": {"what": "membrane", "inside": {"f1": 0.8}, "outside": {"f1": 0.9}},
        "s": {"what": "cleft", "inside": {"f1": 0.7}, "cremi": {"mean_nm": 80.0}},
    }
    blocks = {CHOSEN_ON: {"arand": 0.01}, "ac3": {"arand": 0.2}}
    verdicts = judge(figures_of(blocks, masks), load_targets("accuracy"))
    assert {(v.target.figure, v.input): v.is_met for v in verdicts} == {
        ("arand", "ac3"): False,
        ("synapse_f1", "s"): True,
        ("cremi_nm", "s"): True,
        ("membrane_f1", "m"): False,
        ("inside_f1", "m"): False,
    }


# -- the simulated fleet --------------------------------------------------------------


def by_events(times, workers):
    """End of the last task if each worker takes the next one when it is free."""
    free, end = [0.0] * workers, 0.0
    for seconds in times:
        begun = heapq.heappop(free)
        end = max(end, begun + seconds)
        heapq.heappush(free, begun + seconds)
    return end


@pytest.mark.parametrize(("tasks", "workers"), [(3000, 100), (40, 100), (1000, 1)])
def test_a_simulated_wave_is_as_long_as_by_events(tasks, workers):
    from fleet import Weather, Work, drawn, one_wave

    calm, rng = Weather(losses=0.0), np.random.default_rng(0)
    work = Work("image 0", tasks, 10.0)
    ours = [one_wave(work, workers, calm, rng).wall_s for _ in range(60)]
    theirs = [by_events(drawn(rng, tasks, 10.0, calm), workers) for _ in range(60)]
    error = np.hypot(np.std(ours), np.std(theirs)) / 60**0.5
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * error


def test_machines_that_are_taken_away_cost_time_and_lose_nothing():
    from fleet import Weather, Work, campaign

    waves = [Work("image 0", 2000, 100.0), Work("image 1", 200, 100.0)]
    calm = campaign(waves, 50, Weather(losses=0.0))
    rough = campaign(waves, 50, Weather(losses=2.0))
    assert calm.lost == 0
    assert rough.lost == pytest.approx(2200 * 2.0 * 100 / 3600, rel=0.3)
    assert rough.wall_s > calm.wall_s
    # Every task is done once, however often it is begun.
    busy = sum(passed.busy_s for _, passed in rough.waves)
    assert busy == pytest.approx(2200 * 100.0, rel=0.1)


def test_barriers_are_what_waiting_at_them_adds():
    from fleet import Weather, Work, campaign

    even = Weather(spread=1e-6, stragglers=0.0, losses=0.0)
    # 100 tasks on 64 workers: two rounds, the second with 36 of them.
    found = campaign([Work("image 0", 100, 10.0)] * 3, 64, even)
    assert found.wall_s == pytest.approx(3 * 20.0, rel=1e-3)
    assert found.barriers == pytest.approx(128 / 100 - 1, rel=1e-3)
    assert found.utilisation == pytest.approx(100 / 128, rel=1e-3)


# -- without barriers -------------------------------------------------------------------


def plan_of_two_stages():
    """Chunks of an image, and the octree over them; who waits for whom, and the work."""
    from fleet import Work

    from pipeline.recipe import Recipe
    from pipeline.runtime.dependencies import Dependencies

    grid = {"bounds": {"start": [0, 0, 0], "stop": [256, 256, 32]}, "chunk": [16, 16, 8]}
    image = {"use": "ingest", "source": "raw", "output": "image"}
    recipe = Recipe.parse(
        {
            "name": "two",
            "layers": {"raw": "phantom://256,256,32/image"},
            "grid": grid,
            "stage": [
                {**image, "storage_chunk": [16, 16, 8], "voxel_size_nm": [6, 6, 30]},
                {"use": "image_quality", "image": "image", "output": "quality"},
            ],
        }
    )
    known = Dependencies(recipe.stages)
    waves = [
        ("cpu", Work(f"{wave.stage.output} {wave.level}", len(wave), 100.0 + 40 * n))
        for n, wave in enumerate(known.waves)
    ]
    return known, waves


def by_dependencies(known, waves, workers, weather, rng, heard_s):
    """Do the plan event by event; return the end of the last task."""
    from fleet import drawn

    left, waiting = {}, {}
    for wave, extent in enumerate(known.extents):
        for place in Bbox.of_shape(extent).positions():
            key = ChunkKey(known.waves[wave].level, *place)
            needs = {(w, at) for w, box in known.needs(wave, key) for at in box.positions()}
            left[wave, place] = len(needs)
            for needed in needs:
                waiting.setdefault(needed, []).append((wave, place))
    ready = [(-known.depths[w], w, at) for (w, at), n in left.items() if n == 0]
    heapq.heapify(ready)
    events, free, now = [], workers, 0.0
    while ready or events:
        while ready and free:
            _, wave, place = heapq.heappop(ready)
            seconds = float(drawn(rng, 1, waves[wave][1].seconds, weather)[0])
            heapq.heappush(events, (now + seconds, 0, wave, place))
            free -= 1
        now, kind, wave, place = heapq.heappop(events)
        if kind == 0:
            free, end = free + 1, now
            heapq.heappush(events, (now + heard_s, 1, wave, place))
            continue
        for reader in waiting.get((wave, place), ()):
            left[reader] -= 1
            if not left[reader]:
                heapq.heappush(ready, (-known.depths[reader[0]], *reader))
    return end


@pytest.mark.parametrize("workers", [40, 300])
def test_a_fleet_without_barriers_takes_as_long_as_by_events(workers):
    from fleet import Weather
    from ready_fleet import HEARD_S, overlapped

    known, waves = plan_of_two_stages()
    calm, rng = Weather(losses=0.0, stragglers=0.0), np.random.default_rng(1)
    fleet = {"cpu": workers}
    ours = [overlapped(known, waves, fleet, calm, seed=n).wall_s for n in range(8)]
    theirs = [by_dependencies(known, waves, workers, calm, rng, HEARD_S) for _ in range(8)]
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.05)


def test_without_barriers_nobody_waits_for_the_rest_of_a_wave():
    from fleet import Weather, campaign
    from ready_fleet import overlapped

    known, waves = plan_of_two_stages()
    calm = Weather(losses=0.0)
    barriers = campaign([work for _, work in waves], 100, calm)
    found = overlapped(known, waves, {"cpu": 100}, calm)
    passed = found.passed["cpu"]
    assert max(found.path_s * 0.7, passed.busy_s / 100) < found.wall_s < barriers.wall_s
    total = sum(work.tasks * work.seconds for _, work in waves)
    assert passed.busy_s == pytest.approx(total, rel=0.1)
    rough = overlapped(known, waves, {"cpu": 100}, Weather(losses=2.0))
    assert rough.passed["cpu"].lost > 0
    assert rough.wall_s > found.wall_s
    assert all(end > 0 for end in rough.ends)


def test_a_second_worker_shortens_what_one_task_holds_up():
    from fleet import Weather
    from ready_fleet import overlapped

    known, waves = plan_of_two_stages()
    windy = Weather(stragglers=0.01, slow=30.0, losses=2.0)
    alone, helped = (
        overlapped(known, waves, {"cpu": 400}, windy, copies=copies)
        for copies in (False, True)
    )
    assert helped.wall_s < 0.6 * alone.wall_s
    assert helped.passed["cpu"].busy_s == pytest.approx(
        alone.passed["cpu"].busy_s, rel=0.3
    ), "what the first workers do is not saved"
    # Where nobody has nothing to do there is no second one until the end.
    few = [
        overlapped(known, waves, {"cpu": 4}, windy, copies=copies).wall_s
        for copies in (False, True)
    ]
    assert few[1] == pytest.approx(few[0], rel=0.05)


def test_a_missing_figure_meets_no_target():
    from harness import Target, judge

    fast = Target("rate", "of something", at_least=2)
    small = Target("bytes", "of something", at_most=2)
    figures = {"a": {"rate": 2.0, "bytes": 3.0}, "b": {"rate": 1.9}}
    found = [(v.target.figure, v.input, v.is_met) for v in judge(figures, [fast, small])]
    assert found == [("rate", "a", True), ("rate", "b", False), ("bytes", "a", False)]
    assert [v.is_met for v in judge({}, [fast])] == [False]


@pytest.mark.parametrize("limits", [{}, {"at_least": 1, "at_most": 2}])
def test_a_target_has_one_limit(limits):
    from harness import Target

    with pytest.raises(ValueError, match="rate needs either"):
        Target("rate", "of something", **limits)


def test_every_benchmark_has_targets_that_read():
    from harness import load_targets

    assert {t.figure for t in load_targets("segmentation")} == {
        "mvox_per_cpu_s",
        "times_waterz",
        "bytes_per_voxel",
        "chunked_over_whole",
        "two_threads_speedup",
    }
    assert load_targets("open_state")


def test_costs_are_what_was_spent():
    from harness import Meter

    meter = Meter()
    with meter.phase("memory"):
        held = np.ones(64 << 20, np.uint8)
    with meter.phase("time"):
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
    with meter.phase("sleep"):
        time.sleep(0.05)
    cost = meter.phases
    assert 64 << 20 <= cost["memory"].peak_bytes < 80 << 20
    assert cost["time"].cpu_s >= 0.05
    assert cost["sleep"].cpu_s < 0.05 <= cost["sleep"].wall_s
    assert meter.outcome().of("time", "sleep").wall_s >= 0.1
    assert held.all()


def test_the_faces_of_a_box_within_bounds():
    from open_state import open_faces

    bounds = Bbox.of_shape((10, 10, 10))
    assert open_faces(bounds, bounds) == 0
    assert open_faces(Bbox.of_shape((4, 5, 6)), bounds) == 5 * 6 + 4 * 6 + 4 * 5
    assert open_faces(Bbox.of_shape((4, 5, 6), Vec3(1, 0, 4)), bounds) == 2 * 30 + 24 + 20


def up(frozen, contacts, limit=Fraction(5, 10)):
    from open_state import frozen_up

    pairs, affinity, area = zip(*contacts, strict=True)
    return frozen_up(
        np.array(frozen, np.uint64),
        np.array(pairs, np.uint64),
        np.array(affinity, np.uint64),
        np.array(area, np.uint64),
        limit,
    )


def test_the_rule_that_freezes_both_ends():
    chain = [((1, 2), 9, 10), ((2, 3), 8, 10), ((3, 4), 7, 10)]
    assert up([], chain) == 0
    # 2 merges into nothing: its best goes to 1; so on along the chain.
    assert up([1], chain) == 3
    # The best contact of 1 is to 2, and both are free: only what they meet next waits.
    assert up([4], chain) == 1
    # Between two that are frozen nothing is final, however weak.
    assert up([1, 2], [((1, 2), 1, 10)]) == 1
    assert up([1], [((1, 2), 1, 10)]) == 0
    # 1 and 2 merge; their two contacts with 3 become one, of mean 0.5.
    both = [((1, 2), 9, 10), ((1, 3), 8, 10), ((2, 3), 2, 10)]
    assert up([3], both) == 1
    assert up([3], both, limit=Fraction(6, 10)) == 0
