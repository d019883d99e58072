"""Pools of workers in Kubernetes: their manifests, and how many there are.

Manifests follow from the table of pools and are committed as ``k8s/base/workers.yaml``.
A queue that runs share has the Deployment of its pool; a queue of a run's own gets a copy
of that for as long as the run needs workers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.errors import RootError, StorageUnavailableError
from pipeline.orchestration.scalers import Scaler
from pipeline.runtime.estimate import peak_memory
from pipeline.runtime.pools import POOLS, WorkerPool
from pipeline.runtime.run import Run

NAMESPACE = "em"
IMAGE = "em-pipeline"
METRICS_PORT = 9090
USER = 10001

_HEADER = (
    "# Written by: em k8s render. Change the table of pools, pipeline/runtime/pools.py.\n"
)
_LIVENESS = "/run/em/alive"
_SILENT_S = 300
_SECRETS = "/secrets/cloudvolume"
_PAUSED = "autoscaling.keda.sh/paused-replicas"
_KEDA = ("keda.sh", "v1alpha1", "scaledobjects")
_STILL_ALIVE = (
    "import os, sys, time; "
    f"sys.exit(time.time() - os.stat(os.environ['EM_LIVENESS']).st_mtime > {_SILENT_S})"
)


# -- manifests -------------------------------------------------------------------------


def manifests(pools: Mapping[str, WorkerPool] = POOLS) -> list[dict[str, Any]]:
    """Return what Kubernetes needs for each pool: a Deployment, and what guards it.

    Parameters
    ----------
    pools : mapping of str to WorkerPool
        The pools, by name.
    """
    return [
        manifest
        for name, pool in pools.items()
        for manifest in (
            _deployment(name, pool),
            _scaled_object(name, pool),
            _disruption_budget(name),
        )
    ]


def render(pools: Mapping[str, WorkerPool] = POOLS) -> str:
    """Return the manifests as YAML, the same text for the same pools."""
    import yaml

    documents = [yaml.safe_dump(m, sort_keys=False) for m in manifests(pools)]
    return _HEADER + "---\n".join(documents)


def pools_for(run: Run) -> dict[str, WorkerPool]:
    """Return the pools that a run needs, with the memory that its plan says.

    Tasks that stream are counted as their stages say; a worker has a quarter more than
    the largest, so that an estimate may be somewhat off.
    """
    needs: dict[str, int] = {}
    for stage in run.recipe.stages:
        need = peak_memory(stage, run.specs)
        needs[stage.pool] = max(needs.get(stage.pool, 0), need)
    return {
        name: replace(POOLS[name], memory_gib=max(1, -(-need * 5 // (4 * 2**30))))
        for name, need in needs.items()
    }


def _labels(pool: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "em-worker", "em/pool": pool}


def _deployment(name: str, pool: WorkerPool) -> dict[str, Any]:
    resources = {
        "cpu": str(pool.cores),
        "memory": f"{pool.memory_gib}Gi",
        "ephemeral-storage": f"{pool.scratch_gib}Gi",
    }
    gpus = {"nvidia.com/gpu": str(pool.gpus)} if pool.gpus else {}
    # Memory is a hard limit, cores are not: idle ones of the node may be used.
    limits = {k: v for k, v in resources.items() if k != "cpu"}
    container = {
        "name": "worker",
        "image": f"{IMAGE}-{name}",
        "command": ["python", f"workers/{name}.py"],
        "env": [
            {"name": f"EM_QUEUE_{name.upper()}", "value": f"sqs://em-{name}"},
            {"name": "EM_GRACE_S", "value": str(pool.grace_s)},
            {"name": "EM_LIVENESS", "value": _LIVENESS},
            {"name": "EM_METRICS_PORT", "value": str(METRICS_PORT)},
            {"name": "HOME", "value": "/scratch"},
            {"name": "TMPDIR", "value": "/scratch"},
            {"name": "CLOUD_VOLUME_DIR", "value": _SECRETS},
        ],
        "envFrom": [{"configMapRef": {"name": "em-workers"}}],
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}],
        "resources": {"requests": {**resources, **gpus}, "limits": {**limits, **gpus}},
        "startupProbe": _probe(failures=60, every_s=5),
        "livenessProbe": _probe(failures=3, every_s=30),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "scratch", "mountPath": "/scratch"},
            {"name": "alive", "mountPath": os.path.dirname(_LIVENESS)},
            {"name": "secrets", "mountPath": f"{_SECRETS}/secrets", "readOnly": True},
        ],
    }
    spec: dict[str, Any] = {
        "serviceAccountName": "em-worker",
        "automountServiceAccountToken": False,
        # The worker gives its task back within its grace; Kubernetes waits a bit longer.
        "terminationGracePeriodSeconds": pool.grace_s + 10,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": f"{pool.scratch_gib}Gi"}},
            {"name": "alive", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "secrets", "secret": {"secretName": "em-secrets", "optional": True}},
        ],
    }
    if pool.gpus:
        spec["tolerations"] = [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        ]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"em-{name}", "labels": _labels(name)},
        "spec": {
            # KEDA, em k8s scale or Airflow say how many.
            "replicas": 0,
            "selector": {"matchLabels": {**_labels(name), "em/queue": "shared"}},
            "strategy": {"type": "RollingUpdate"},
            "template": {
                "metadata": {
                    "labels": {**_labels(name), "em/queue": "shared"},
                    "annotations": {
                        "prometheus.io/scrape": "true",
                        "prometheus.io/port": str(METRICS_PORT),
                    },
                },
                "spec": spec,
            },
        },
    }


def _probe(*, failures: int, every_s: int) -> dict[str, Any]:
    return {
        "exec": {"command": ["python", "-c", _STILL_ALIVE]},
        "periodSeconds": every_s,
        "timeoutSeconds": 10,
        "failureThreshold": failures,
    }


def _scaled_object(name: str, pool: WorkerPool) -> dict[str, Any]:
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": f"em-{name}", "labels": _labels(name)},
        "spec": {
            "scaleTargetRef": {"name": f"em-{name}"},
            "minReplicaCount": 0,
            "maxReplicaCount": pool.most,
            "pollingInterval": 30,
            "cooldownPeriod": 300,
            "triggers": [
                {
                    "type": "aws-sqs-queue",
                    "authenticationRef": {"name": "em-queue"},
                    "metadata": {
                        "queueURL": f"em-{name}",
                        "queueLength": str(pool.tasks_per_worker),
                        "activationQueueLength": "0",
                        # A task in hand still needs its worker.
                        "scaleOnInFlight": "true",
                        "awsRegion": "us-east-1",
                    },
                }
            ],
        },
    }


def _disruption_budget(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": f"em-{name}", "labels": _labels(name)},
        "spec": {"maxUnavailable": "25%", "selector": {"matchLabels": _labels(name)}},
    }


# -- the cluster -----------------------------------------------------------------------


class Deployments(Scaler):
    """Workers as Deployments of a cluster.

    Where KEDA looks after a Deployment, it is left to that.

    Parameters
    ----------
    namespace : str or None
        Where they are; ``$EM_NAMESPACE`` or ``em`` if None.

    Raises
    ------
    RootError
        If no cluster is configured.
    """

    def __init__(self, namespace: str | None = None) -> None:
        self.namespace = namespace or os.environ.get("EM_NAMESPACE", NAMESPACE)
        _configure()

    def scale(self, url: str, pool: str, count: int) -> None:  # noqa: D102
        found = self._of(url, pool)
        if found is None:
            if count:
                self._copy(url, pool, count)
        elif found["labels"].get("em/queue", "shared") != "shared" and count == 0:
            self._call(_apps().delete_namespaced_deployment, found["name"], self.namespace)
        elif not self._keda(found["name"]):
            self._set(found["name"], count)

    def size(self, url: str, pool: str) -> int | None:  # noqa: D102
        found = self._of(url, pool)
        if found is None:
            return 0
        return None if self._keda(found["name"]) else int(found["wanted"])

    def fix(self, pool: str, count: int | None) -> str:
        """Set the number of workers of a pool by hand; return what was done.

        Parameters
        ----------
        pool : str
            The pool.
        count : int or None
            How many; None gives the pool back to KEDA.

        Raises
        ------
        RootError
            If there is no such Deployment, or no KEDA to give it back to.
        """
        name = f"em-{pool}"
        if not self._keda(name):
            if count is None:
                raise RootError(
                    f"nothing scales {name} by itself in namespace {self.namespace}: it "
                    "has no ScaledObject; say how many workers there should be"
                )
            self._set(name, count)
            return f"{name}: {count} workers"
        value = None if count is None else str(count)
        self._call(
            _custom().patch_namespaced_custom_object,
            *_KEDA[:2],
            self.namespace,
            _KEDA[2],
            name,
            {"metadata": {"annotations": {_PAUSED: value}}},
        )
        if count is None:
            return f"{name}: scaled by KEDA on the depth of its queue"
        return (
            f"{name}: held at {count} workers; give it back with em k8s scale {pool} auto"
        )

    def status(self) -> list[dict[str, Any]]:
        """Return the Deployments of workers, with how many are wanted and ready."""
        selector = "app.kubernetes.io/name=em-worker"
        pods = self._call(
            _core().list_namespaced_pod, self.namespace, label_selector=selector
        ).items
        rows = []
        for found in self._all(selector):
            mine = [
                p
                for p in pods
                if found["selector"].items() <= (p.metadata.labels or {}).items()
            ]
            rows.append(
                {
                    "name": found["name"],
                    "pool": found["labels"].get("em/pool", ""),
                    "queue": found["queue"],
                    "scaled_by": "KEDA" if self._keda(found["name"]) else "hand, Airflow",
                    "wanted": found["wanted"],
                    "ready": found["ready"],
                    "pending": sum(p.status.phase == "Pending" for p in mine),
                    "restarts": sum(
                        s.restart_count
                        for p in mine
                        for s in p.status.container_statuses or []
                    ),
                }
            )
        return rows

    def _of(self, url: str, pool: str) -> dict[str, Any] | None:
        """Return the Deployment that serves a queue."""
        selector = f"app.kubernetes.io/name=em-worker,em/pool={pool}"
        return next((d for d in self._all(selector) if d["queue"] == url), None)

    def _all(self, selector: str) -> list[dict[str, Any]]:
        listed = self._call(
            _apps().list_namespaced_deployment, self.namespace, label_selector=selector
        )
        return [_summary(d) for d in listed.items]

    def _copy(self, url: str, pool: str, count: int) -> None:
        """Make a Deployment for a queue of a run's own from that of its pool."""
        apps = _apps()
        given = self._call(apps.read_namespaced_deployment, f"em-{pool}", self.namespace)
        made = apps.api_client.sanitize_for_serialization(given)
        token = hashlib.sha256(url.encode()).hexdigest()[:10]
        labels = {**made["metadata"].get("labels", {}), "em/queue": token}
        made["metadata"] = {"name": f"em-{pool}-{token}", "labels": labels}
        made.pop("status", None)
        spec = made["spec"]
        spec["replicas"] = count
        spec["selector"]["matchLabels"]["em/queue"] = token
        spec["template"]["metadata"]["labels"]["em/queue"] = token
        variable = f"EM_QUEUE_{pool.upper()}"
        for container in spec["template"]["spec"]["containers"]:
            environment = container.setdefault("env", [])
            environment[:] = [e for e in environment if e["name"] != variable]
            environment.append({"name": variable, "value": url})
        self._call(apps.create_namespaced_deployment, self.namespace, made)

    def _set(self, name: str, count: int) -> None:
        self._call(
            _apps().patch_namespaced_deployment_scale,
            name,
            self.namespace,
            {"spec": {"replicas": count}},
        )

    def _keda(self, name: str) -> bool:
        """Whether KEDA looks after a Deployment."""
        from kubernetes.client import ApiException

        try:
            _custom().get_namespaced_custom_object(
                *_KEDA[:2], self.namespace, _KEDA[2], name, _request_timeout=_TIMEOUT_S
            )
        except ApiException as error:
            if error.status == 404:
                return False
            raise _error(error, self.namespace) from error
        return True

    def _call(self, function: Any, *arguments: Any, **named: Any) -> Any:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return function(*arguments, **named, _request_timeout=_TIMEOUT_S)
        except ApiException as error:
            raise _error(error, self.namespace) from error
        except HTTPError as error:
            raise StorageUnavailableError(
                f"the cluster did not answer ({error}); is it up, and KUBECONFIG right?"
            ) from error


_TIMEOUT_S = 30


def _summary(deployment: Any) -> dict[str, Any]:
    labels = deployment.metadata.labels or {}
    variable = f"EM_QUEUE_{labels.get('em/pool', '').upper()}"
    queue = next(
        (
            e.value
            for container in deployment.spec.template.spec.containers
            for e in container.env or []
            if e.name == variable
        ),
        "",
    )
    return {
        "name": deployment.metadata.name,
        "labels": labels,
        "selector": deployment.spec.selector.match_labels,
        "queue": queue,
        "wanted": deployment.spec.replicas or 0,
        "ready": (deployment.status and deployment.status.ready_replicas) or 0,
    }


def _error(error: Any, namespace: str) -> RootError | StorageUnavailableError:
    text = f"the cluster answered {error.status} {error.reason} in namespace {namespace}"
    if error.status in (429, 500, 502, 503, 504):
        return StorageUnavailableError(f"{text}; try again")
    remedy = {
        401: "log in to the cluster",
        403: "the account lacks the rights of k8s/base/scaler.yaml",
        404: "apply k8s/overlays first, or set EM_NAMESPACE",
    }.get(error.status, "see kubectl get events")
    return RootError(f"{text}; {remedy}")


def _configure() -> None:
    try:
        from kubernetes import config
    except ImportError:
        raise RootError(
            'the kubernetes client is missing; pip install "em-pipeline[kubernetes]"'
        ) from None
    try:
        config.load_incluster_config()
    except config.ConfigException:
        try:
            config.load_kube_config()
        except config.ConfigException as error:
            raise RootError(
                f"no cluster is configured ({error}); set KUBECONFIG"
            ) from error


def _apps() -> Any:
    from kubernetes import client

    return client.AppsV1Api()


def _core() -> Any:
    from kubernetes import client

    return client.CoreV1Api()


def _custom() -> Any:
    from kubernetes import client

    return client.CustomObjectsApi()
