"""What a server is told, and the words of the version it serves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from forge_sweep.errors import InputError

API_KEY = "FORGE_SWEEP_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Settings:
    """How to serve.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        store: folder of the embedded stores, for models that are registered.
        max_batch: most rows of different requests that share a forward pass.
        max_wait_ms: how long a forward pass waits for requests that are expected.
        max_rows: most rows of one request.
        max_body_mb: largest body of one request, in MB of 10**6 bytes.
        max_waiting: most rows that wait for the model; beyond, requests are answered with 503.
        timeout_s: most seconds of one request, from its first byte to its answer.
        poll_s: seconds between two looks at where the alias points.
        drift_window: most recent rows that drift is measured on.
        drift_least: rows from which drift is measured.
        ignore_extra: drop columns that the model does not have, instead of refusing rows with them.
        access_log: whether a JSON line is written for each request.
        docs: whether /docs shows the paths in a page, whose scripts come from a CDN.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    store: Path = Path("mlruns")
    max_batch: int = 256
    max_wait_ms: float = 2.0
    max_rows: int = 10_000
    max_body_mb: float = 16.0
    max_waiting: int = 20_000
    timeout_s: float = 30.0
    poll_s: float = 10.0
    drift_window: int = 5_000
    drift_least: int = 200
    ignore_extra: bool = False
    access_log: bool = True
    docs: bool = True

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


def api_key() -> bytes | None:
    """The key that requests have to show; None where none was set.

    Raises:
        InputError: it is set and empty, which would look like protection.
    """
    value = os.environ.get(API_KEY)
    if value is None:
        return None
    if not value.strip() or not value.isascii():
        raise InputError(
            f"{API_KEY} is empty or has other than ASCII characters", hint="set it to a long random text, or unset it"
        )
    return value.strip().encode()
