"""The ASGI application: a gate that every request passes, `POST /predict`, and all other paths by FastAPI."""

from __future__ import annotations

import asyncio
import hmac
import logging
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi

from forge_sweep import __version__
from forge_sweep.preprocessing import Misfit, RowsRefused
from forge_sweep.serving import bodies, openapi
from forge_sweep.serving.batching import Busy, without_data
from forge_sweep.serving.bodies import Refused
from forge_sweep.serving.metrics import CONTENT_TYPE
from forge_sweep.serving.predict import Answer, Served
from forge_sweep.serving.service import Service

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

SMALL = 65_536  # bytes of JSON that the loop's thread reads; a larger body would keep other requests waiting
MANY = 500  # rows from which another thread writes the answer
BODIES_IN_MEMORY = 8  # so many of the largest size
DECODING = 2  # requests whose arrays and images are read at a time
OPEN = ("/healthz", "/readyz")  # without a key: whoever keeps a container alive has none
FLUSH_S = 0.1
CLIENT_GONE = 499

# Others are not logged by name, since a caller may write anything there.
PATHS = frozenset({"/predict", "/healthz", "/readyz", "/model", "/drift", "/metrics", "/openapi.json", "/docs"})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})


class Json(Response):
    """An answer in JSON; NaN is null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """See `Response`."""
        found: bytes = orjson.dumps(content, default=str)
        return found


def build(service: Service, key: bytes | None) -> Gate:
    """The ASGI application of a service; callers have to show the ``key``, if there is one."""
    app = FastAPI(
        title="forge-sweep",
        version=__version__,
        docs_url="/docs" if service.settings.docs else None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )

    def refused(request: Request, error: Any) -> Response:
        body = Refused(error.status_code, REFUSED[error.status_code], str(error.detail)).body
        return Response(body, error.status_code, dict(error.headers or {}), "application/json")

    for status in REFUSED:
        app.exception_handler(status)(refused)

    @app.get("/healthz", response_class=Json, summary="Whether the process is alive", responses=_unwell("It is stuck."))
    async def healthz() -> Any:
        return Json({"healthy": service.healthy}, 200 if service.healthy else 503)

    @app.get("/readyz", response_class=Json, summary="Whether requests are welcome", responses=_unwell("They are not."))
    async def readyz() -> Any:
        about = service.readiness()
        return Json(about, 200 if about["ready"] else 503)

    @app.get("/model", response_class=Json, summary="The version in service")
    async def model() -> Any:
        return Json(service.card())

    @app.get("/drift", response_class=Json, summary="How the recent rows differ from the training rows")
    async def drift() -> Any:
        return Json(await asyncio.to_thread(service.served.window.report))

    @app.get("/metrics", response_class=Response, summary="Figures for Prometheus", responses=PROMETHEUS)
    async def metrics() -> Any:
        return Response(await asyncio.to_thread(service.metrics.text), media_type=CONTENT_TYPE)

    @app.post("/predict", include_in_schema=False)
    async def predict() -> Any:  # here for the 405 of other methods
        raise AssertionError("the gate answers this")

    def document() -> dict[str, Any]:
        served = service.served
        plain = get_openapi(title=served.located.name, version=served.located.version, routes=app.routes)
        return openapi.complete(plain, served.bundle, service.settings, key=key is not None)

    app.openapi = document  # type: ignore[method-assign]
    return Gate(app, service, key)


REFUSED = {404: "no-such-path", 405: "method"}
PROMETHEUS: dict[int | str, dict[str, Any]] = {200: {"content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}}


def _unwell(words: str) -> dict[int | str, dict[str, Any]]:
    return {503: {"description": words, "content": {"application/json": {"schema": {}}}}}


class _Disconnected(Exception):
    """The caller is gone."""


class Gate:
    """The outermost ASGI application: key, access log and `POST /predict`. ``app`` answers all other paths."""

    def __init__(self, app: Any, service: Service, key: bytes | None) -> None:
        self.app = app
        self.service = service
        self.log = _AccessLog() if service.settings.access_log else None
        self._key = key
        self._bytes = 0  # of the bodies that are being read or answered
        self._decoding = asyncio.Semaphore(DECODING)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever happens."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.service.draining:
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        try:
            if not self._allowed(scope):
                message = "a key is needed: Authorization: Bearer KEY, or X-API-Key: KEY"
                raise Refused(401, "key", message, headers=[(b"www-authenticate", b"Bearer")])
            if scope["path"] == "/predict" and scope["method"] == "POST":
                await self._predict(scope, receive, answer)
            else:
                await self.app(scope, receive, answer)
        except Refused as refused:
            await _send_json(answer, refused.status, refused.body, refused.headers)
        except _Disconnected:
            status = CLIENT_GONE
        except Exception as error:
            logger.error("a request failed: %s", without_data(error))
            if not status:
                failed = Refused(500, "failed", "the request failed; the server's log says why")
                await _send_json(answer, failed.status, failed.body)
        finally:
            self._note(scope, status or CLIENT_GONE, time.perf_counter() - started)

    def _allowed(self, scope: Scope) -> bool:
        """Whether the key is shown; any wrong one takes as long."""
        if self._key is None or scope["path"] in OPEN:
            return True
        for name, value in scope["headers"]:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                return hmac.compare_digest(value[7:].strip(), self._key)
            if name == b"x-api-key":
                return hmac.compare_digest(value.strip(), self._key)
        return False

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in PATHS else "(other)"
        self.service.metrics.request(path, status, seconds)
        if self.log is not None:
            client = scope.get("client")
            self.log.add(
                {
                    "event": "request",
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "method": scope["method"] if scope["method"] in METHODS else "(other)",
                    "path": path,
                    "status": status,
                    "ms": round(seconds * 1000, 3),
                    "rows": scope.get("forge.rows"),
                    "version": scope.get("forge.version"),
                    "client": client[0] if client else None,
                }
            )

    async def _predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings, served = self.service.settings, self.service.served
        held, complete = 0, False
        try:
            async with asyncio.timeout(settings.timeout_s):
                media, length = _head(scope)
                held = self._hold(length)
                body = await _read_body(receive, settings.max_body)
                complete = True
                content = await self._answer(served, media, body, scope)
        except TimeoutError:
            seconds = f"{settings.timeout_s:g} s"
            if complete:
                raise Refused(504, "time-out", f"no answer within {seconds}") from None
            raise Refused(408, "time-out", f"the body did not arrive within {seconds}", headers=CLOSE) from None
        finally:
            self._bytes -= held
        await _send_json(send, 200, content)

    def _hold(self, length: int | None) -> int:
        """Reserve room for a body; one of unknown length may be as long as any."""
        most = self.service.settings.max_body
        if length is not None and length > most:
            raise _too_large(most)
        wanted = most if length is None else length
        if self._bytes + wanted > BODIES_IN_MEMORY * most:
            raise Refused(503, "busy", "too many large bodies at a time; try again", headers=RETRY)
        self._bytes += wanted
        return wanted

    async def _answer(self, served: Served, media: str, body: bytes, scope: Scope) -> bytes:
        settings = self.service.settings
        most = settings.most_rows(served.row_bytes)
        try:
            if served.row_bytes:  # few at a time: what a few bytes decode to is bounded by request
                async with self._decoding:
                    rows = await asyncio.to_thread(bodies.read, media, body, served.transform, most)
            elif media == bodies.JSON and len(body) <= SMALL:
                rows = bodies.read(media, body, served.transform, most)
            else:
                rows = await asyncio.to_thread(bodies.read, media, body, served.transform, most)
        except RowsRefused as refused:
            raise _misfits_refused(refused.misfits, refused.count) from None
        scope["forge.rows"], scope["forge.version"] = len(rows.raw), served.located.version
        answer = Answer(np.empty((0, served.bundle.task.units)))
        if len(rows.raw):
            try:
                future = self.service.batcher.submit(served, rows.raw, rows.tensors)
            except Busy:
                more = {"max_waiting": settings.max_waiting}
                raise Refused(503, "busy", "too many rows wait; try again", more=more, headers=RETRY) from None
            answer = await future
        if answer.misfits:
            raise _misfits_refused(answer.misfits, len(answer.misfits))

        def written() -> bytes:
            content = served.render(rows, answer)
            self.service.metrics.strange(each["code"] for row in content["predictions"] for each in row["warnings"])
            found: bytes = orjson.dumps(content)
            return found

        return await asyncio.to_thread(written) if len(rows.raw) > MANY else written()


class _AccessLog:
    """JSON lines on standard output, written every `FLUSH_S` seconds: neither bodies nor queries nor keys."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def add(self, line: dict[str, Any]) -> None:
        self._lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        try:
            sys.stdout.write(b"".join(lines).decode())
            sys.stdout.flush()
        except (OSError, ValueError):
            logger.warning("%d lines of the access log could not be written", len(lines))


CLOSE = [(b"connection", b"close")]
RETRY = [(b"retry-after", b"1")]


def _head(scope: Scope) -> tuple[str, int | None]:
    """Media type and length of a body."""
    media, length = b"", None
    for name, value in scope["headers"]:
        if name == b"content-type":
            media = value
        elif name == b"content-length":
            length = int(value) if value.isdigit() else None
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise Refused(415, "media-type", "the body is compressed; send it as it is")
    return bodies.media_of(media), length


async def _read_body(receive: Receive, most: int) -> bytes:
    parts, size = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise _too_large(most)
        if not message.get("more_body"):
            return part if not parts else b"".join([*parts, part])
        parts.append(part)


def _too_large(most: int) -> Refused:
    """The rest of the body is not read, so the connection ends."""
    message = f"the body is longer than {most} bytes"
    return Refused(413, "too-large", message, more={"max_bytes": most}, headers=CLOSE)


def _misfits_refused(misfits: tuple[Misfit, ...], count: int) -> Refused:
    listed = [vars(misfit) for misfit in misfits[:20]]
    more = {"misfits": listed, "count": count}
    return Refused(422, "rows", "the rows do not fit the schema of the training rows; none was predicted", more=more)


async def _send_json(send: Send, status: int, body: bytes, headers: Any = ()) -> None:
    length = (b"content-length", str(len(body)).encode())
    head = [(b"content-type", b"application/json"), length, *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
