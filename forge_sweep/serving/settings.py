"""What a server is told, and `serve`, which imports the packages of the extra once they are known to be there."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from forge_sweep.errors import InputError, MissingExtra

API_KEY = "FORGE_SWEEP_API_KEY"
PACKAGES = ("fastapi", "uvicorn", "httptools", "orjson", "prometheus_client")


@dataclass(frozen=True)
class Settings:
    """How to serve."""

    host: str = "127.0.0.1"
    port: int = 8080  # 0 takes a free one
    store: Path = Path("mlruns")
    max_batch: int = 256  # rows of different requests that share a forward pass
    max_wait_ms: float = 2.0  # that a forward pass waits for requests that are expected
    max_rows: int = 10_000  # of one request
    max_body_mb: float = 16.0  # of 10**6 bytes
    max_array_mb: float = 256.0  # of arrays and images of one request, once they are decoded to float32
    max_waiting: int = 20_000  # rows in the queue; beyond, requests are answered with 503
    timeout_s: float = 30.0  # from the first byte of a request to its answer
    poll_s: float = 10.0  # between two look-ups of the alias
    drift_window: int = 5_000  # most recent rows that drift is measured on
    drift_least: int = 200  # rows from which it is measured
    ignore_extra: bool = False  # drop columns that the model does not have, instead of refusing rows with them
    trust: bool = False  # see `Bundle.load`; holds for every version that the alias comes to
    access_log: bool = True
    docs: bool = True  # a page /docs, whose scripts come from a CDN

    def __post_init__(self) -> None:
        if self.max_waiting < self.max_rows:
            raise InputError(
                f"--max-waiting {self.max_waiting} is below --max-rows {self.max_rows}: "
                "a request of that many rows would never be answered",
                hint="raise --max-waiting, or lower --max-rows",
            )

    @property
    def max_body(self) -> int:
        """In bytes."""
        return int(self.max_body_mb * 1_000_000)

    def most_rows(self, row_bytes: int) -> int:
        """Rows of one request, whose arrays take ``row_bytes`` each, decoded; one in any case."""
        return (
            max(1, min(self.max_rows, int(self.max_array_mb * 1_000_000) // row_bytes)) if row_bytes else self.max_rows
        )


def api_key() -> bytes | None:
    """The key that requests have to show; None where none was set. An empty one would suggest protection."""
    value = os.environ.get(API_KEY)
    if value is None:
        return None
    if not value.strip() or not value.isascii():
        raise InputError(
            f"{API_KEY} is empty or holds characters other than ASCII", hint="set it to a long random text, or unset it"
        )
    return value.strip().encode()


def serve(reference: str, settings: Settings, *, echo: Callable[[str], None]) -> None:
    """Serve a model (see `forge_sweep.tracking.locate`) until SIGTERM or SIGINT; ``echo`` prints lines for people."""
    if any(importlib.util.find_spec(name) is None for name in PACKAGES):
        raise MissingExtra("forge-sweep serve", "serve")
    from forge_sweep.serving import server

    server.serve(reference, settings, api_key(), echo=echo)
