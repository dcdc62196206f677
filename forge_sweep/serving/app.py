"""The paths of the server."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi

from forge_sweep import __version__
from forge_sweep.serving import openapi
from forge_sweep.serving.bodies import Refused
from forge_sweep.serving.gate import Gate
from forge_sweep.serving.metrics import CONTENT_TYPE
from forge_sweep.serving.service import Service


class Json(Response):
    """An answer in JSON; NaN is null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes."""
        found: bytes = orjson.dumps(content, default=str)
        return found


def build(service: Service, key: bytes | None) -> Gate:
    """The ASGI application of a service."""
    # The page loads its scripts from a CDN; where the reader has no way there, /openapi.json has all that it shows.
    docs = "/docs" if service.settings.docs else None
    app = FastAPI(
        title="forge-sweep", version=__version__, docs_url=docs, redoc_url=None, swagger_ui_oauth2_redirect_url=None
    )
    for status in REFUSED:
        app.exception_handler(status)(refused)
    add_paths(app, service)

    def document() -> dict[str, Any]:
        served = service.served
        plain = get_openapi(title=served.located.name, version=served.located.version, routes=app.routes)
        return openapi.complete(plain, served.bundle, service.settings, key=key is not None)

    app.openapi = document  # type: ignore[method-assign]
    return Gate(app, service, key, PATHS)


PATHS = ("/predict", "/healthz", "/readyz", "/model", "/drift", "/metrics", "/openapi.json", "/docs")


def add_paths(app: FastAPI, service: Service) -> None:
    """All but ``/predict``, which the gate answers itself."""

    @app.get("/healthz", response_class=Json, summary="Whether the process is alive", responses=unwell("It is stuck."))
    async def healthz() -> Any:
        return Json({"healthy": service.healthy}, 200 if service.healthy else 503)

    @app.get("/readyz", response_class=Json, summary="Whether requests are welcome", responses=unwell("They are not."))
    async def readyz() -> Any:
        about = service.readiness()
        return Json(about, 200 if about["ready"] else 503)

    @app.get("/model", response_class=Json, summary="The version in service")
    async def model() -> Any:
        return Json(card(service))

    @app.get("/drift", response_class=Json, summary="How the rows of late differ from the training rows")
    async def drift() -> Any:
        window = service.served.window
        return Json(await asyncio.to_thread(window.report))

    @app.get("/metrics", response_class=Response, summary="Figures for Prometheus", responses=PROMETHEUS)
    async def metrics() -> Any:
        return Response(await asyncio.to_thread(service.metrics.text), media_type=CONTENT_TYPE)

    @app.post("/predict", include_in_schema=False)
    async def predict() -> Any:  # here for the 405 of other methods
        raise AssertionError("the gate answers this")


PROMETHEUS: dict[int | str, dict[str, Any]] = {200: {"content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}}


def unwell(words: str) -> dict[int | str, dict[str, Any]]:
    """The other answer of a probe."""
    return {503: {"description": words, "content": {"application/json": {"schema": {}}}}}


REFUSED = {404: "no-such-path", 405: "method"}


def refused(request: Request, error: Any) -> Response:
    """What FastAPI refuses, in the form of all other refusals."""
    body = Refused(error.status_code, REFUSED[error.status_code], str(error.detail)).body
    return Response(body, error.status_code, dict(error.headers or {}), "application/json")


def card(service: Service) -> dict[str, Any]:
    """All that is known of the version in service."""
    served = service.served
    bundle, located = served.bundle, served.located
    profile = served.window.profile
    return {
        "model": located.name,
        "version": located.version,
        "alias": located.alias or None,
        "reference": service.reference,
        "tags": dict(located.tags),
        "kind": bundle.kind,
        "task": bundle.task.to_dict(),
        "threshold": bundle.threshold,
        "columns": bundle.preprocessor.schema.to_dict()["columns"],
        "metadata": bundle.metadata,
        "golden_difference": served.golden_difference,
        "loaded_at": served.loaded_at,
        "training_rows": None if profile is None else profile.rows,
        "extra_columns": "ignored" if service.settings.ignore_extra else "refused",
        "limits": {
            name: getattr(service.settings, name) for name in ("max_rows", "max_body", "max_waiting", "timeout_s")
        },
    }
