"""What Prometheus reads."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import prometheus_client as prometheus
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from forge_sweep.checks.drift import ColumnDrift
    from forge_sweep.serving.service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)


class Metrics(Collector):
    """Counters of one server, and gauges that are read at every scrape, all named ``forge_sweep_*``."""

    def __init__(self, service: Service) -> None:
        self.service = service
        quiet: Any = prometheus.disable_created_metrics
        quiet()  # no second series for each of them
        self.registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        counter = functools.partial(prometheus.Counter, registry=registry)
        histogram = functools.partial(prometheus.Histogram, registry=registry)
        self.requests = counter("forge_sweep_requests", "Requests answered", ("path", "status"))
        self.seconds = histogram(
            "forge_sweep_request_seconds", "From the head of a request to its answer", buckets=SECONDS
        )
        self.rows = counter("forge_sweep_rows", "Rows predicted")
        self.warnings = counter("forge_sweep_row_warnings", "Values that the training rows did not have", ("code",))
        self.batch_rows = histogram("forge_sweep_batch_rows", "Rows of a forward pass", buckets=SIZES)
        about = "Requests that shared a forward pass"
        self.batch_requests = histogram("forge_sweep_batch_requests", about, buckets=SIZES)
        self.swaps = counter("forge_sweep_swaps", "Changes of the version", ("result",))
        about = "Whether the last look-up succeeded"
        self.registry_up = prometheus.Gauge("forge_sweep_registry_up", about, registry=registry)
        self.registry_up.set(1)
        for result in ("done", "failed"):
            self.swaps.labels(result)
        registry.register(self)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.observe(seconds)

    def strange(self, codes: Iterable[str]) -> None:
        """Count values that the training rows did not have."""
        for code, count in Counter(codes).items():
            self.warnings.labels(code).inc(count)

    def batch(self, requests: int, rows: int) -> None:
        """Count a forward pass."""
        self.batch_requests.observe(requests)
        self.batch_rows.observe(rows)
        self.rows.inc(rows)

    def text(self) -> bytes:
        """What a scrape reads."""
        found: bytes = prometheus.generate_latest(self.registry)
        return found

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering measures nothing."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The gauges."""
        service, served = self.service, self.service.served
        waiting, behind, rows = service.batcher.rows_waiting, service.failed is not None, served.window.rows
        info = GaugeMetricFamily("forge_sweep_model_info", "The version in service", labels=["model", "version"])
        info.add_metric([served.located.name, served.located.version], 1)
        yield info
        yield GaugeMetricFamily("forge_sweep_rows_waiting", "Rows that wait for the model", value=waiting)
        yield GaugeMetricFamily("forge_sweep_behind", "Whether a newer version could not be loaded", value=behind)
        yield GaugeMetricFamily("forge_sweep_drift_rows", "Rows that drift is measured on", value=rows)
        found = served.window.drift()
        if found is None:
            return
        for name, (words, value) in DRIFT.items():
            gauge = GaugeMetricFamily(f"forge_sweep_drift_{name}", words, labels=["column"])
            for column in found.columns:
                gauge.add_metric([column.name], value(column))
            yield gauge


DRIFT: dict[str, tuple[str, Callable[[ColumnDrift], float]]] = {
    "psi": ("Population stability index against the training rows", lambda c: c.psi),
    "distance": ("Kolmogorov-Smirnov or total variation distance", lambda c: c.distance),
    "missing_share": ("Share of missing values", lambda c: c.missing[1]),
    "unknown_share": ("Share of categories that train did not have", lambda c: c.new_share),
    "drifted": ("Whether the column counts as drifted", lambda c: float(c.drifted)),
}
