"""A model in service: raw rows over HTTP, or from a file, checked against the schema. See docs/serving.md, decision 17.

FastAPI, uvicorn, Prometheus' client and orjson live here only, and are imported by `serve` only.
"""

from __future__ import annotations

from forge_sweep.serving.settings import API_KEY, Settings, serve

__all__ = ["API_KEY", "Settings", "serve"]
