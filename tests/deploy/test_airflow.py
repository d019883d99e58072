"""DAGs: parsed without storage, run by `dag.test()` with real workers on a real queue."""

import json

import pytest

from pipeline.recipe import Recipe
from pipeline.runtime.run import Run
from pipeline.runtime.verify import verify
from tests.deploy.conftest import ROOT, needs_airflow

pytestmark = [pytest.mark.airflow, needs_airflow, pytest.mark.timeout(300)]

PARSE = """
import json, sys, time
import airflow.sdk, airflow.triggers.base
began = time.process_time()
sys.path.insert(0, sys.argv[1])
import reconstruct
seconds = time.process_time() - began
dags = [d for d in vars(reconstruct).values() if isinstance(d, airflow.sdk.DAG)]
tasks = {d.dag_id: {t.task_id: sorted(t.upstream_task_ids) for t in d.tasks} for d in dags}
paused = [d.dag_id for d in dags if d.is_paused_upon_creation is not False]
said = {"seconds": seconds, "tasks": tasks, "paused": paused}
print(json.dumps({**said, "modules": sorted(sys.modules)}))
"""
RUN = """
import json, os, sys
sys.path.insert(0, os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
from airflow.utils.db import upgradedb
upgradedb()
import reconstruct
dags = {d.dag_id: d for d in vars(reconstruct).values() if hasattr(d, "dag_id")}
results = []
for name, conf in json.loads(sys.argv[1]):
    run = dags[name].test(run_conf=conf)
    states = {f"{t.task_id} {t.map_index}": t.state for t in run.get_task_instances()}
    results.append({"run": run.state, "tasks": states})
print()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def parsed(airflow):
    return airflow.python(PARSE, ROOT / "dags")[0]


@pytest.fixture(scope="module")
def ran(airflow):
    """The recipe's own DAG, and the same again."""
    root = airflow.folder / "own"
    conf = {"root": str(root), "queue": airflow.queue, "workers": 2}
    asked = [("tiny", conf), ("tiny", {**conf, "compare_contents": True})]
    results, said = airflow.python(RUN, json.dumps(asked))
    return {"root": root, "results": results, "said": said}


# -- parsing ---------------------------------------------------------------------------


def test_parsing_is_fast_and_touches_no_storage(parsed):
    assert parsed["seconds"] < 1, "processor time beyond that of importing Airflow"
    heavy = {"torch", "cloudvolume", "cloudfiles", "taskqueue", "tensorstore", "boto3"}
    heavy |= {"kubernetes", "neuroglancer", "igneous", "pipeline.layers.store"}
    heavy |= {"scipy.ndimage"}
    assert not heavy & {*parsed["modules"]}


def test_what_is_triggered_does_not_wait_for_a_switch(parsed):
    assert parsed["paused"] == []


def test_a_recipe_has_a_task_for_each_wave_and_no_more(parsed):
    recipe = Recipe.load(ROOT / "dags" / "recipes" / "block.toml")
    expected = {"begin", "prove", "release"} | {
        f"{stage.output.replace('/', '-')}.wave_{wave.level}"
        for stage in recipe.stages
        for wave in stage.plan()
    }
    assert parsed["tasks"]["block"].keys() == expected


def test_tasks_follow_the_layers(parsed):
    upstream = parsed["tasks"]["block"]
    assert upstream["affinities.wave_0"] == ["begin"]
    assert upstream["agglomeration.wave_1"] == ["agglomeration.wave_0"]
    assert "supervoxel_table.wave_0" in upstream["supervoxels.wave_0"]
    assert "segmentation-meshes.wave_0" in upstream["prove"]
    assert {"begin", "prove"} <= {*upstream["release"]}


def test_every_recipe_and_the_generic_one_are_there(parsed):
    names = {p.stem for p in (ROOT / "dags" / "recipes").glob("*.toml")}
    assert parsed["tasks"].keys() == names | {"reconstruct"}


# -- running ---------------------------------------------------------------------------


def test_a_recipe_runs_to_its_proof(ran):
    first = ran["results"][0]
    assert first["run"] == "success", ran["said"][-6000:]
    assert {*first["tasks"].values()} == {"success"}
    proofs = verify(Run.open(str(ran["root"]), "tiny"))
    assert [(p.output, p.is_complete) for p in proofs] == [
        ("image", True),
        ("quality", True),
        ("image/pyramid", True),
    ]


def test_running_again_sends_nothing(ran):
    assert ran["results"][1]["run"] == "success"
    sent = [line for line in ran["said"].splitlines() if " tasks sent to " in line]
    assert sum("/tiny-" in line for line in sent) == 4, "waves of the first run alone"
    assert "image: all 4 tasks are done" in ran["said"]


@pytest.mark.slow
def test_any_recipe_runs_with_another_box_and_settings(airflow):
    root = airflow.folder / "generic"
    conf = {
        "root": str(root),
        "queue": airflow.queue,
        "workers": 2,
        "recipe": "tiny",
        "name": "part",
        "bbox": "0,0,0,64,32,8",
        "overrides": {"image.encoding": "png"},
    }
    (result,), said = airflow.python(RUN, json.dumps([("reconstruct", conf)]))
    assert result["run"] == "success", said[-6000:]
    stages = {k: v for k, v in result["tasks"].items() if k.startswith("stage ")}
    assert stages == {f"stage {i}": "success" for i in range(3)}
    run = Run.open(str(root), "part")
    assert [(p.tasks, p.is_complete) for p in verify(run)] == [
        (2, True),
        (3, True),
        (1, True),
    ]
    assert run.recipe.stage("image").encoding == "png"


def test_workers_are_gone_and_queues_empty_at_the_end(ran, airflow):
    assert list((airflow.folder / "workers").glob("*.pid")) == []
    assert [*(airflow.folder / "queues").glob("*/queue/*")] == []


def test_the_link_is_left_out_where_no_browser_could_follow(ran):
    assert "no link to Neuroglancer: a hosted viewer cannot reach" in ran["said"]
    assert "em view tiny --root" in ran["said"]
