"""What Prometheus reads."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from forge_sweep.checks.drift import ColumnDrift
    from forge_sweep.serving.served import Served
    from forge_sweep.serving.service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)


class Metrics:
    """Counters of one server, all named ``forge_sweep_*``."""

    def __init__(self) -> None:
        quiet: Any = disable_created_metrics
        quiet()  # a second series for each of them, which nobody reads
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        labels = ("path", "status")
        self.requests = Counter("forge_sweep_requests", "Requests answered", labels, registry=registry)
        self.seconds = Histogram(
            "forge_sweep_request_seconds",
            "From the head of a request to its answer",
            buckets=SECONDS,
            registry=registry,
        )
        self.rows = Counter("forge_sweep_rows", "Rows predicted", registry=registry)
        self.warnings = Counter(
            "forge_sweep_row_warnings", "Values that the training rows did not have", ("code",), registry=registry
        )
        self.batch_rows = Histogram(
            "forge_sweep_batch_rows", "Rows of a forward pass", buckets=SIZES, registry=registry
        )
        self.batch_requests = Histogram(
            "forge_sweep_batch_requests", "Requests that shared a forward pass", buckets=SIZES, registry=registry
        )
        self.swaps = Counter("forge_sweep_swaps", "Changes of the version", ("result",), registry=registry)
        self.registry_up = Gauge("forge_sweep_registry_up", "Whether the last look-up succeeded", registry=registry)
        self.registry_up.set(1)
        for result in ("done", "failed"):
            self.swaps.labels(result)
        self._children: dict[tuple[str, int], Counter] = {}

    def watch(self, service: Service) -> None:
        """Ask this service, whenever somebody reads, for what it knows at the moment."""
        collector: Any = Now(service)
        self.registry.register(collector)

    def request(self, path: str, status: int, seconds: float) -> None:
        """One request more."""
        child = self._children.get((path, status))
        if child is None:
            child = self._children[path, status] = self.requests.labels(path, str(status))
        child.inc()
        self.seconds.observe(seconds)

    def strange(self, codes: Iterable[str]) -> None:
        """Values that the training rows did not have."""
        for code, count in Counts(codes).items():
            self.warnings.labels(code).inc(count)

    def batch(self, requests: int, rows: int) -> None:
        """One forward pass more."""
        self.batch_requests.observe(requests)
        self.batch_rows.observe(rows)
        self.rows.inc(rows)

    def text(self) -> bytes:
        """All of them."""
        found: bytes = generate_latest(self.registry)
        return found


class Now:
    """The version in service, the queue and the drift."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def describe(self) -> list[Any]:
        """Nothing: names do not clash, and there is no need to measure for that."""
        return []

    def collect(self) -> Iterator[Any]:
        """What holds now."""
        service = self.service
        served = service.served
        info = GaugeMetricFamily("forge_sweep_model_info", "The version in service", labels=["model", "version"])
        info.add_metric([served.located.name, served.located.version], 1)
        yield info
        waiting = service.batcher.rows_waiting
        yield GaugeMetricFamily("forge_sweep_rows_waiting", "Rows that wait for the model", value=waiting)
        behind = int(service.swap.failed is not None)
        yield GaugeMetricFamily("forge_sweep_behind", "Whether a newer version could not be loaded", value=behind)
        yield from drift(served)


def drift(served: Served) -> Iterator[Any]:
    """Gauges of every column; only how many rows there are where drift is not measured yet."""
    rows = served.window.rows
    yield GaugeMetricFamily("forge_sweep_drift_rows", "Rows that drift is measured on", value=rows)
    found = served.window.drift()
    if found is None:
        return
    gauges: dict[str, tuple[str, Callable[[ColumnDrift], float]]] = {
        "psi": ("Population stability index against the training rows", lambda c: c.psi),
        "distance": ("Kolmogorov-Smirnov or total variation distance", lambda c: c.distance),
        "missing_share": ("Share of missing values", lambda c: c.missing[1]),
        "unknown_share": ("Share of categories that train did not have", lambda c: c.new_share),
        "drifted": ("Whether the column counts as drifted", lambda c: float(c.drifted)),
    }
    for name, (words, value) in gauges.items():
        gauge = GaugeMetricFamily(f"forge_sweep_drift_{name}", words, labels=["column"])
        for column in found.columns:
            gauge.add_metric([column.name], value(column))
        yield gauge
