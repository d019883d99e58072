"""Manifests: current, valid, hardened; and a cluster spoken to over HTTP."""

import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import RootError, StorageUnavailableError
from pipeline.orchestration.k8s import Deployments, manifests, pools_for, render
from pipeline.recipe import Recipe
from pipeline.runtime.pools import POOLS
from pipeline.runtime.run import Run
from pipeline.stages import STAGES
from tests.deploy.cluster import Cluster

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(p.name for p in (K8S / "overlays").iterdir())
VERSION = "1.35"

# What KEDA 2 takes of the fields that are used here, from its documentation.
KEDA = {
    "ScaledObject": {
        "scaleTargetRef",
        "minReplicaCount",
        "maxReplicaCount",
        "pollingInterval",
        "cooldownPeriod",
        "triggers",
    },
    "TriggerAuthentication": {"secretTargetRef", "podIdentity"},
}
SQS = {
    "queueURL",
    "queueLength",
    "activationQueueLength",
    "awsRegion",
    "scaleOnInFlight",
}


def built(overlay):
    """What kubectl would apply of an overlay."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed, which builds overlays")
    done = subprocess.run(
        ["kubectl", "kustomize", K8S / "overlays" / overlay],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "nothing deprecated"
    return list(yaml.safe_load_all(done.stdout))


def of_kind(documents, kind):
    return {d["metadata"]["name"]: d for d in documents if d["kind"] == kind}


def require_valid(document):
    """Check against the schema of Kubernetes, or what KEDA takes."""
    if not document["apiVersion"].startswith("keda.sh/"):
        kubernetes_validate.validate(document, VERSION, strict=True)
        return
    assert document["apiVersion"] == "keda.sh/v1alpha1"
    assert document["spec"].keys() <= KEDA[document["kind"]]
    for trigger in document["spec"].get("triggers", []):
        assert trigger["type"] == "aws-sqs-queue"
        assert trigger["metadata"].keys() <= SQS
        assert all(isinstance(v, str) for v in trigger["metadata"].values())


# -- manifests -------------------------------------------------------------------------


def test_the_committed_workers_are_current():
    assert (K8S / "base" / "workers.yaml").read_text() == render(), (
        "run: em k8s render --output k8s/base/workers.yaml"
    )


def test_every_pool_that_a_stage_asks_for_is_there():
    assert {stage.pool for stage in STAGES.values()} == POOLS.keys()
    assert {p.stem for p in (ROOT / "workers").glob("*.py")} == POOLS.keys()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_builds_and_is_valid(overlay):
    documents = built(overlay)
    for document in documents:
        require_valid(document)
        assert document["metadata"].get("namespace", "em") == "em"
    assert of_kind(documents, "Deployment").keys() == {"em-cpu", "em-gpu"}


def test_an_invalid_manifest_is_refused():
    """The check has teeth."""
    broken = manifests()[0]
    broken["spec"]["template"]["spec"]["containers"][0]["resourcez"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        require_valid(broken)


def test_every_file_is_part_of_a_kustomization():
    for file in K8S.rglob("kustomization.yaml"):
        document = yaml.safe_load(file.read_text())
        named = {*document["resources"]} | {p["path"] for p in document.get("patches", [])}
        for name in named:
            assert (file.parent / name).exists(), f"{file}: {name}"
        beside = {p.name for p in file.parent.glob("*.yaml")} - {file.name}
        assert beside <= named, file


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_are_confined(overlay):
    for deployment in of_kind(built(overlay), "Deployment").values():
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        own = container["securityContext"]
        assert own["readOnlyRootFilesystem"]
        assert not own["allowPrivilegeEscalation"]
        assert own["capabilities"] == {"drop": ["ALL"]}
        environment = {e["name"]: e for e in container["env"]}
        grace = int(environment["EM_GRACE_S"]["value"])
        assert grace < pod["terminationGracePeriodSeconds"]
        for name, entry in environment.items():
            if "KEY" in name or "SECRET" in name:
                assert "value" not in entry, "secrets are named, never written"
        liveness = Path(environment["EM_LIVENESS"]["value"])
        mounts = {m["mountPath"] for m in container["volumeMounts"]}
        assert str(liveness.parent) in mounts, "else the root is read-only there"
        assert {environment["HOME"]["value"], environment["TMPDIR"]["value"]} <= mounts


@pytest.mark.parametrize("overlay", ["gke", "eks"])
def test_pools_cost_nothing_idle(overlay):
    documents = built(overlay)
    scaled = of_kind(documents, "ScaledObject")
    assert scaled.keys() == of_kind(documents, "Deployment").keys()
    for name, document in scaled.items():
        assert document["spec"]["minReplicaCount"] == 0
        assert document["spec"]["scaleTargetRef"] == {"name": name}
        assert of_kind(documents, "Deployment")[name]["spec"]["replicas"] == 0
    budgets = of_kind(documents, "PodDisruptionBudget")
    assert budgets.keys() == scaled.keys()


@pytest.mark.parametrize(("overlay", "spot"), [("gke", "gke-spot"), ("eks", "spot")])
def test_only_gpu_workers_take_gpu_nodes(overlay, spot):
    found = of_kind(built(overlay), "Deployment")
    for name, deployment in found.items():
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        tolerated = {t["key"] for t in pod.get("tolerations", [])}
        assert has_gpu == (name == "em-gpu") == ("nvidia.com/gpu" in tolerated)
        assert spot in str(pod["nodeSelector"])
        assert len(pod["nodeSelector"]) == (2 if has_gpu else 1)


def test_workers_reach_names_and_storage_and_nothing_reaches_them_but_metrics():
    (policy,) = of_kind(built("eks"), "NetworkPolicy").values()
    assert policy["spec"]["podSelector"]["matchLabels"] == {
        "app.kubernetes.io/name": "em-worker"
    }
    ports = lambda rules: {p["port"] for r in rules for p in r["ports"]}  # noqa: E731
    assert ports(policy["spec"]["ingress"]) == {9090}
    assert ports(policy["spec"]["egress"]) == {53, 443}


def test_memory_follows_the_plan(tmp_path):
    recipe = Recipe.parse(
        {
            "name": "large",
            "layers": {"raw": "phantom://2048,2048,512/image"},
            "grid": {
                "bounds": {"start": [0, 0, 0], "stop": [2048, 2048, 512]},
                "chunk": [1024, 1024, 256],
            },
            "stage": [
                {
                    "use": "ingest",
                    "source": "raw",
                    "output": "image",
                    "voxel_size_nm": [6, 6, 30],
                    "storage_chunk": [64, 64, 64],
                }
            ],
        }
    )
    pools = pools_for(Run.plan(recipe, str(tmp_path / "root")))
    assert pools.keys() == {"cpu"}
    assert pools["cpu"].memory_gib > 1
    deployment = manifests(pools)[0]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == f"{pools['cpu'].memory_gib}Gi"
    require_valid(deployment)


# -- the cluster -----------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    server = Cluster()
    for manifest in manifests():
        server.apply(manifest)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": server.url}}],
        "users": [{"name": "me", "user": {"token": "t"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.delenv("EM_NAMESPACE", raising=False)
    # The client reads the variable when it is imported.
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path)
    )
    yield server
    server.close()


def without_keda(cluster):
    for path in [p for p in cluster.objects if "scaledobjects" in p]:
        del cluster.objects[path]


def wanted(cluster, name="em-cpu"):
    path = f"/apis/apps/v1/namespaces/em/deployments/{name}"
    return cluster.objects[path]["spec"]["replicas"]


def em(*arguments):
    return CliRunner().invoke(app, ["k8s", *arguments], catch_exceptions=False).stdout


def test_a_pool_is_scaled_by_hand(cluster):
    without_keda(cluster)
    assert em("scale", "cpu", "7") == "em-cpu: 7 workers\n"
    assert wanted(cluster) == 7
    with pytest.raises(RootError, match="has no ScaledObject"):
        em("scale", "cpu", "auto")


def test_keda_is_paused_and_given_its_work_back(cluster):
    place = "/apis/keda.sh/v1alpha1/namespaces/em/scaledobjects/em-cpu"
    assert "held at 3 workers" in em("scale", "cpu", "3")
    annotations = cluster.objects[place]["metadata"]["annotations"]
    assert annotations == {"autoscaling.keda.sh/paused-replicas": "3"}
    assert wanted(cluster) == 0, "KEDA sets it"
    assert "scaled by KEDA" in em("scale", "cpu", "auto")
    assert annotations == {}


def test_status_tells_wanted_ready_and_pending(cluster):
    without_keda(cluster)
    em("scale", "gpu", "2")
    for number, phase in enumerate(("Running", "Pending")):
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"p{number}",
                    "labels": {
                        "app.kubernetes.io/name": "em-worker",
                        "em/pool": "gpu",
                        "em/queue": "shared",
                    },
                },
                "status": {
                    "phase": phase,
                    "containerStatuses": [
                        {
                            "name": "worker",
                            "restartCount": 4,
                            "ready": True,
                            "image": "i",
                            "imageID": "i",
                        }
                    ]
                    if phase == "Running"
                    else [],
                },
            }
        )
    rows = {r["name"]: r for r in Deployments().status()}
    assert rows["em-gpu"] == {
        "name": "em-gpu",
        "pool": "gpu",
        "queue": "sqs://em-gpu",
        "scaled_by": "hand, Airflow",
        "wanted": 2,
        "ready": 0,
        "pending": 1,
        "restarts": 4,
    }
    assert "em-cpu" in em("status")


def test_a_queue_of_a_runs_own_gets_workers_of_its_own(cluster):
    scaler = Deployments()
    url = "sqs://em-block-1a2b3c-cpu"
    assert scaler.size(url, "cpu") == 0
    scaler.scale(url, "cpu", 0)
    scaler.scale(url, "cpu", 5)
    assert scaler.size(url, "cpu") == 5
    assert wanted(cluster) == 0, "those of the pool are left alone"
    (made,) = [
        d
        for p, d in cluster.objects.items()
        if "/deployments/" in p and d["metadata"]["name"] not in ("em-cpu", "em-gpu")
    ]
    require_valid(made)
    selector = made["spec"]["selector"]["matchLabels"]
    assert selector.items() <= made["spec"]["template"]["metadata"]["labels"].items()
    assert selector["em/queue"] != "shared", "else both would count the other's pods"
    (container,) = made["spec"]["template"]["spec"]["containers"]
    queues = [e["value"] for e in container["env"] if e["name"] == "EM_QUEUE_CPU"]
    assert queues == [url]
    scaler.scale(url, "cpu", 9)
    assert scaler.size(url, "cpu") == 9
    scaler.scale(url, "cpu", 0)
    assert scaler.size(url, "cpu") == 0
    assert len([p for p in cluster.objects if "/deployments/" in p]) == 2


def test_where_keda_scales_airflow_does_not(cluster):
    scaler = Deployments()
    assert scaler.size("sqs://em-cpu", "cpu") is None
    scaler.scale("sqs://em-cpu", "cpu", 5)
    assert wanted(cluster) == 0


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (403, RootError, "lacks the rights"),
        (401, RootError, "log in"),
        (503, StorageUnavailableError, "try again"),
    ],
)
def test_a_refusal_says_what_to_do(cluster, status, kind, says):
    cluster.refuses = status
    with pytest.raises(kind, match=says):
        Deployments().status()


def test_no_cluster_is_said(tmp_path, monkeypatch):
    nowhere = str(tmp_path / "none")
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", nowhere
    )
    with pytest.raises(RootError, match="set KUBECONFIG"):
        Deployments()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("scale", "tpu", "1"), "there is no pool 'tpu'"),
        (("scale", "cpu", "x"), "'x' is no"),
    ],
)
def test_a_bad_request_is_refused(arguments, says):
    with pytest.raises(RootError, match=says):
        em(*arguments)


def test_render_writes_what_is_committed(tmp_path):
    em("render", "--output", str(tmp_path / "workers.yaml"))
    assert (tmp_path / "workers.yaml").read_text() == em("render")
