"""What a worker counts, for Prometheus: ``EM_METRICS_PORT`` serves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    start_http_server,
)

_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)


class Metrics:
    """The metrics of one worker.

    Parameters
    ----------
    registry : CollectorRegistry
        Where they are collected.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        of_stage = ("output", "stage")
        self.tasks = Counter(
            "em_tasks", "Tasks by outcome.", ("output", "outcome"), registry=registry
        )
        self.voxels = Counter("em_voxels", "Voxels written.", of_stage, registry=registry)
        self.bytes = Counter(
            "em_bytes",
            "Bytes moved, uncompressed.",
            (*of_stage, "direction"),
            registry=registry,
        )
        self.phases = Counter(
            "em_phase_seconds",
            "Seconds spent reading, computing and writing.",
            (*of_stage, "phase"),
            registry=registry,
        )
        self.seconds = Histogram(
            "em_task_seconds",
            "Seconds that a task took.",
            of_stage,
            buckets=_SECONDS,
            registry=registry,
        )
        self.failures = Counter(
            "em_failures",
            "Starts that failed, by code of the error.",
            ("output", "code"),
            registry=registry,
        )
        self.queue_age = Gauge(
            "em_queue_age_seconds",
            "How long ago the message leased last was sent; 0 where none waits.",
            registry=registry,
        )
        self.in_hand = Gauge("em_tasks_in_hand", "Tasks under way.", registry=registry)
        self.memory = Gauge("em_memory_bytes", "Memory in use.", registry=registry)
        self.memory_limit = Gauge(
            "em_memory_limit_bytes", "Memory that may be used.", registry=registry
        )

    def done(self, record: Mapping[str, Any]) -> None:
        """Count a done record; see `Run.execute`."""
        output, stage = record["output"], record["stage"]
        self.voxels.labels(output, stage).inc(record["voxels"])
        self.bytes.labels(output, stage, "read").inc(record["bytes_read"])
        self.bytes.labels(output, stage, "written").inc(record["bytes_written"])
        for phase, seconds in record["phases"].items():
            self.phases.labels(output, stage, phase).inc(seconds)
        self.seconds.labels(output, stage).observe(record["seconds"])

    def parked(self, record: Mapping[str, Any]) -> None:
        """Count a failed record; see `Run.park`."""
        self.failures.labels(record["output"], record["code"]).inc()

    def serve(self, port: int) -> int:
        """Serve them over HTTP for as long as this process lives; return the port."""
        server, _ = start_http_server(port, registry=self._registry)
        return int(server.server_port)

    def names(self) -> set[str]:
        """Return the names under which they are served."""
        return {
            sample.name for family in self._registry.collect() for sample in family.samples
        } | {family.name for family in self._registry.collect()}


METRICS = Metrics()
"""Those of this process."""
