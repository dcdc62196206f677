"""A model in service: raw rows over HTTP, checked against the schema, with the drift of what came in.

`serve` is the server; `predict_file` does the same to a file. FastAPI, uvicorn, Prometheus' client and orjson live here
only, and are imported by `serve` only. docs/serving.md is for users, decision 17 has the reasons.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from forge_sweep.errors import MissingExtra
from forge_sweep.serving.settings import API_KEY, Settings

PACKAGES = ("fastapi", "uvicorn", "httptools", "orjson", "prometheus_client")

__all__ = ["API_KEY", "Settings", "serve"]


def serve(reference: str, settings: Settings, *, echo: Callable[[str], None]) -> None:
    """Serve a model until SIGTERM or SIGINT; see `forge_sweep.serving.server.serve`.

    Raises:
        MissingExtra: the packages of the extra ``serve`` are not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in PACKAGES):
        raise MissingExtra("forge-sweep serve", "serve")
    from forge_sweep.serving import server

    server.serve(reference, settings, echo=echo)
