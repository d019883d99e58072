"""What a run will cost: against sums by hand, and against what it then took."""

import json
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.geometry import Bbox, Vec3
from pipeline.recipe import Recipe
from pipeline.runtime.calibrate import (
    NODES,
    ROUNDS,
    VOXELS,
    Calibration,
    Measured,
    Rate,
    calibrate,
    cropped,
    rates,
    sample_boxes,
)
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import serial
from pipeline.runtime.forecast import Forecast, PoolPrice, Prices, account, typical
from pipeline.runtime.run import Run

PROJECT = Path(__file__).parents[3]
FREE = {"gb_month": 0, "write_1000": 0, "read_1000": 0, "mb_per_s": 1e12, "request_s": 0}
RECIPE = """
name = "small"

[grid]
bounds = {{ start = [0, 0, 0], stop = {stop} }}
chunk = [32, 32, 16]

[layers]
raw = "phantom://{size}/image"

[[stage]]
use = "ingest"
source = "raw"
output = "image"
voxel_size_nm = [6.0, 6.0, 30.0]
storage_chunk = [16, 16, 16]

[[stage]]
use = "downsample"
layer = "image"
output = "image/pyramid"
mips = 1
storage_chunk = [16, 16, 16]
"""


def recipe(stop=(128, 64, 32)) -> Recipe:
    size = ",".join(map(str, stop))
    return Recipe.parse(tomllib.loads(RECIPE.format(stop=list(stop), size=size)))


def prices(**changes) -> Prices:
    table = {
        "date": "2026-01-01",
        "pool": {"cpu": {"workers": 2, "on_demand": 1.0, "spot": 0.25, "startup_s": 0}},
        "storage": FREE,
        "fleet": {"cpu": 4},
    }
    return Prices.model_validate(table | changes)


def rate(output, stage, **changes) -> Rate:
    fields = {
        "output": output,
        "stage": stage,
        "kind": VOXELS,
        "tasks": 9,
        "units_per_task": 16384,
        "seconds_per_unit": 1e-3,
        "least_seconds": 0,
        "spread": 0.3,
        "stored_per_unit": 0.5,
        "objects_per_task": 4,
    }
    return Rate(**(fields | changes))


def calibration(**changes) -> Calibration:
    found = (rate("image", "ingest", **changes), rate("image/pyramid", "downsample"))
    return Calibration(recipe="small", rates=found)


# -- forecast -------------------------------------------------------------------------


def test_hours_and_money_by_hand(tmp_path):
    run = Run.plan(recipe(), str(tmp_path))
    image, pyramid = Forecast.of(run, prices(), calibration()).stages
    voxels = 128 * 64 * 32
    assert image.costs.tasks == 4 * 2 * 2
    assert image.costs.hours == pytest.approx(voxels * 1e-3 / 3600)
    assert pyramid.costs.hours == pytest.approx(voxels / 4 * 1e-3 / 3600)
    # Two workers share a machine.
    assert image.costs.machines == pytest.approx(image.costs.hours / 2)
    assert image.costs.stored_gb == pytest.approx(voxels * 0.5 / 1e9)
    # 16 tasks on 4 workers.
    assert image.costs.wall_h == pytest.approx(image.costs.hours / 4)
    assert image.basis == "measured"
    assert image.high == pytest.approx(1 + 1.645 * 0.3 / 3)
    assert image.low == pytest.approx(1 / image.high)


def test_services_are_charged(tmp_path):
    run = Run.plan(recipe(), str(tmp_path))
    charged = FREE | {"gb_month": 10.0, "months": 3, "write_1000": 1.0, "moved_gb": 2.0}
    image, _ = Forecast.of(run, prices(storage=charged), calibration()).stages
    costs = image.costs
    assert costs.writes == 16 * (4 + 3)
    assert costs.services == pytest.approx(
        costs.stored_gb * 30 + costs.writes / 1000 + costs.moved_gb * 2
    )
    assert costs.on_demand_money == pytest.approx(costs.machines + costs.services)


def test_requests_and_bytes_take_time(tmp_path):
    run = Run.plan(recipe(), str(tmp_path))
    quick, _ = Forecast.of(run, prices(), calibration()).stages
    far = FREE | {"request_s": 1.0, "at_once": 4}
    slow, _ = Forecast.of(run, prices(storage=far), calibration()).stages
    waited = (slow.costs.reads + slow.costs.writes) / 4 / 3600
    assert slow.costs.hours - quick.costs.hours == pytest.approx(waited)


def test_a_faster_machine_and_more_of_them(tmp_path):
    run = Run.plan(recipe(), str(tmp_path))
    pool = {"cpu": {"workers": 2, "on_demand": 1.0, "spot": 0.25, "startup_s": 0}}
    once, _ = Forecast.of(run, prices(), calibration()).stages
    fast = {"cpu": pool["cpu"] | {"speed": 5.0}}
    quick, _ = Forecast.of(run, prices(pool=fast), calibration()).stages
    assert quick.costs.hours == pytest.approx(once.costs.hours / 5)
    wide, _ = Forecast.of(run, prices(fleet={"cpu": 1000}), calibration()).stages
    # No more workers than tasks.
    assert wide.costs.wall_h == pytest.approx(once.costs.wall_h / 4)
    assert wide.costs.machines == pytest.approx(once.costs.machines)


def test_a_task_that_needs_more_memory_has_fewer_beside_it():
    pool = PoolPrice(workers=16, memory_gb=64, on_demand=1, spot=1)
    assert pool.share(int(1e9)) == 1 / 16
    assert pool.share(int(32e9)) == 1 / 2
    assert pool.share(int(128e9)) == 2


def test_spot_machines_lose_work(tmp_path):
    run = Run.plan(recipe(), str(tmp_path))
    pool = {"cpu": {"on_demand": 1.0, "spot": 1.0, "spot_losses": 2.0, "startup_s": 0}}
    image, _ = Forecast.of(run, prices(pool=pool), calibration()).stages
    task_h = image.costs.hours / image.costs.tasks
    assert image.costs.spot == pytest.approx(image.costs.machines * (1 + 2.0 * task_h / 2))


def test_small_tasks_take_what_any_takes(tmp_path):
    run = Run.plan(recipe(), str(tmp_path))
    rates_ = calibration(seconds_per_unit=1e-12, least_seconds=2.0)
    image, _ = Forecast.of(run, prices(), rates_).stages
    assert image.costs.hours == pytest.approx(16 * 2.0 / 3600)


def test_without_a_calibration_rates_are_typical(tmp_path):
    run = Run.plan(recipe(), str(tmp_path))
    found = Forecast.of(run, prices(), None)
    assert {s.basis for s in found.stages} == {"typical"}
    expected, low, high = found.total
    assert low.hours == pytest.approx(expected.hours / 3)
    assert high.hours == pytest.approx(expected.hours * 3)
    assert {r.kind for r in typical().rates} == {VOXELS, NODES, ROUNDS}


def test_a_pool_without_a_price_is_named(tmp_path):
    run = Run.plan(recipe(), str(tmp_path))
    with pytest.raises(RecipeError, match=r"\[pool\] says nothing of pool cpu"):
        Forecast.of(run, prices(pool={}), None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("date = ", "is not TOML"),
        ('date = "2026-01-01"', "pool: Field required"),
        ('dat = "2026-01-01"', "dat: Extra inputs are not permitted"),
    ],
)
def test_prices_that_are_none_are_refused(tmp_path, text, said):
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=said):
        Prices.load(path)


def test_a_file_without_rates_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"cannot be read.*em calibrate"):
        Calibration.load(tmp_path / "no.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"holds no rates"):
        Calibration.load(tmp_path / "bad.json")


# -- calibration ----------------------------------------------------------------------


def test_rates_are_sums_over_sums():
    def task(units, seconds):
        return Measured("a", "ingest", VOXELS, units, seconds, stored=10, objects=2)

    (found,) = rates([task(100, 1.0), task(300, 5.0)])
    assert found.seconds_per_unit == pytest.approx(6 / 400)
    assert found.least_seconds == 1.0
    assert found.stored_per_unit == pytest.approx(20 / 400)
    assert found.units_per_task == 200
    each = (1 / 100, 5 / 300)
    mean = sum(each) / 2
    assert found.spread == pytest.approx((2 * (each[0] - mean) ** 2) ** 0.5 / mean)


def test_the_task_that_loads_everything_counts_for_nothing():
    tasks = [
        Measured("a", "ingest", VOXELS, 100, seconds, stored=10, objects=2)
        for seconds in (9.0, 1.0, 1.0, 1.0)
    ]
    (found,) = rates(tasks)
    assert (found.tasks, found.seconds_per_unit, found.spread) == (3, 0.01, 0.0)


def test_boxes_lie_apart_on_chunks_inside():
    whole = recipe((1024, 1024, 256))
    boxes = sample_boxes(whole, 4, Vec3(100, 64, 16))
    assert len(set(boxes)) == 4
    for box in boxes:
        assert box.shape == Vec3(96, 64, 16)
        assert whole.stages[0].bounds.contains(box)
        assert not any(box.start % Vec3(32, 32, 16))


def test_a_crop_does_the_same_on_a_box(tmp_path):
    box = Bbox.parse("32,0,16,96,64,32")
    small = cropped(recipe(), box, str(tmp_path))
    assert [stage.bounds for stage in small.stages] == [box, box]
    for stage, whole in zip(small.stages, recipe().stages, strict=True):
        assert stage.model_copy(update={"bounds": whole.bounds}) == whole


def test_a_calibrated_forecast_tells_what_the_run_takes(tmp_path):
    """The samples are half of the volume; the machine may be busy meanwhile."""
    whole = recipe((192, 128, 32))
    found = calibrate(whole, str(tmp_path / "root"), tmp_path / "scratch", samples=4)
    run = Run.start(whole, str(tmp_path / "root"))
    run_to_end(run, serial, quiet=True)
    expected = Forecast.of(run, prices(), found)
    for stage, took in zip(expected.stages, account(run, prices(), found), strict=True):
        assert (took.output, took.tasks) == (stage.output, stage.costs.tasks)
        assert took.done == took.tasks
        assert took.expected_hours == pytest.approx(stage.costs.hours)
        assert took.hours_at_end == pytest.approx(took.hours)
        assert 1 / 4 < took.hours / stage.costs.hours < 4
        # Two workers to a machine.
        assert took.on_demand == pytest.approx(took.hours / 2)
    stored = sum(
        path.stat().st_size
        for path in (tmp_path / "root" / "image").rglob("*")
        if path.is_file() and path.parent.name == "6_6_30"
    )
    assert expected.stages[0].costs.stored_gb * 1e9 == pytest.approx(stored, rel=0.1)


def test_half_a_run_is_half_an_account(tmp_path):
    run = Run.start(recipe(), str(tmp_path))
    image = run.recipe.stages[0]
    for key in list(image.keys(0))[:4]:
        run.execute(image, key)
    first, second = account(run, prices(), calibration())
    assert (first.done, first.tasks) == (4, 16)
    assert first.hours_at_end == pytest.approx(4 * first.hours)
    assert (second.done, second.hours, second.hours_at_end) == (0, 0, None)


# -- the command ----------------------------------------------------------------------


def test_the_cubic_millimetre_is_planned_and_priced(tmp_path):
    """Ten million chunks, on the machine of whoever plans; nothing is written."""
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("em"), "plan"),
            *(PROJECT / "dags/recipes/minnie65.toml", "--json"),
            *("--cost", PROJECT / "examples/prices.toml"),
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert not list(tmp_path.iterdir())
    forecast = json.loads(done.stdout)["forecast"]
    chunks = {s["output"]: s["costs"]["tasks"] for s in forecast["stages"]}
    assert chunks["basins"] == 450 * 450 * 50
    low, expected, high = (
        forecast["total"][name]["spot_money"] for name in ("low", "expected", "high")
    )
    assert 1000 < low < expected < high


def em(*arguments):
    """Run the command; return what it prints."""
    return subprocess.run(
        [Path(sys.executable).with_name("em"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_status_tells_what_a_run_took_beside_its_forecast(tmp_path):
    run = Run.start(recipe(), str(tmp_path / "root"))
    image, _ = run.recipe.stages
    for key in list(image.keys(0))[:4]:
        run.execute(image, key)
    rates_file = tmp_path / "rates.json"
    rates_file.write_text(calibration().model_dump_json())
    price_file = PROJECT / "examples/prices.toml"
    asked = ("status", "--root", tmp_path / "root", "--cost", price_file)
    table = em(*asked, "--calibration", rates_file)
    assert "h forecast" in table
    assert "4/16" in table
    assert "0/4" in table
    document = json.loads(em(*asked, "--calibration", rates_file, "--json"))
    first, second = document["account"]["small"]
    expected = account(run, Prices.load(price_file), calibration())
    assert [first, second] == [json.loads(json.dumps(e.to_json())) for e in expected]
    assert first["hours_at_end"] == pytest.approx(4 * first["hours"])
    assert second["hours_at_end"] is None
    typical_hours = json.loads(em(*asked, "--json"))["account"]["small"]
    assert typical_hours[0]["expected_hours"] != first["expected_hours"]
    assert "account" not in json.loads(em("status", "--root", tmp_path / "root", "--json"))


# -- rounds, and what has typical rates --------------------------------------------------


def test_every_stage_of_a_segmentation_has_a_typical_rate():
    known = {rate.stage for rate in typical().rates}
    assert {"ingest", "overlaps", "affinities", "basins", "relabel", "meshes"} <= known


def test_a_chunk_is_not_charged_for_whole_loose_sections(tmp_path):
    """It reads the window that its field points to, which is about as large as it."""
    from pipeline.runtime.estimate import estimate

    text = RECIPE.format(stop=[128, 64, 32], size="128,64,32").partition("[[stage]]")
    loose = """
[[stage]]
use = "warp"
image = "image"
output = "aligned"
voxel_size_nm = [6.0, 6.0, 30.0]
storage_chunk = [16, 16, 16]
"""
    ingest = text[2].partition("[[stage]]")[0]
    document = tomllib.loads(text[0] + text[1] + ingest + loose)
    run = Run.plan(Recipe.parse(document), str(tmp_path))
    stage = run.recipe.stage("aligned")
    task = stage.task(next(iter(stage.plan()[0])))
    assert stage.reads(task)["image"].box.volume == 128 * 64 * 16
    image, aligned = estimate(run)
    assert aligned.bytes_in == aligned.bytes_out == image.bytes_out == 128 * 64 * 32
    forecast = Forecast.of(run, Prices.load(PROJECT / "examples/prices.toml"), None)
    moved = [s.costs.moved_gb * 1e9 for s in forecast.stages]
    assert moved[1] < 4 * 128 * 64 * 32


def test_a_round_is_charged_for_what_is_left_of_the_work(tmp_path):
    whole = Recipe.load(PROJECT / "dags/recipes/minnie65.toml")
    run = Run.plan(whole, str(tmp_path))
    stage = next(s for s in whole.stages if s.output == "basin_graph")
    one = {"on_demand": 1.0, "spot": 0.25, "startup_s": 0}
    free = prices(pool={"cpu": one, "gpu": one}, fleet={"cpu": 1000, "gpu": 100})
    forecast = Forecast.of(run, free, None)
    found = next(s for s in forecast.stages if s.output == "basin_graph")
    assert stage.round_share(stage.top) is None
    assert stage.round_share(stage.top + 1) == 1.0
    rounds = [
        wave.worker_hours["cpu"]
        for level, wave in enumerate(found.waves)
        if level > stage.top
    ]
    for step in range(3):
        each = rounds[step::3]
        assert all(b < a for a, b in pairwise(each))
    shares = [stage.round_share(stage.top + 1 + n) for n in range(len(rounds))]
    hours = [h / s for h, s in zip(rounds, shares, strict=True)]
    assert max(hours[::3]) == pytest.approx(min(hours[::3]), rel=0.2)
