"""What every request goes through: the key, the access log, the figures, and errors in one form."""

from __future__ import annotations

import asyncio
import hmac
import logging
import sys
import time
from collections.abc import Callable, Collection, MutableMapping
from datetime import UTC, datetime
from typing import Any

import orjson

from forge_sweep.serving.batching import without_data
from forge_sweep.serving.bodies import Refused
from forge_sweep.serving.predicting import Disconnected, Predict, Receive, Scope, Send, send_json
from forge_sweep.serving.service import Service

logger = logging.getLogger(__name__)

OPEN = ("/healthz", "/readyz")
"""Paths that need no key: who keeps a container alive has none."""

FLUSH_S = 0.1
CLIENT_GONE = 499


class Gate:
    """The outermost ASGI application.

    Args:
        app: all paths but ``/predict``.
        service: what is served.
        key: what callers have to show; None for nothing.
        paths: the paths that exist; others are not logged by name, since a caller may write anything there.
    """

    def __init__(self, app: Any, service: Service, key: bytes | None, paths: Collection[str]) -> None:
        self.app = app
        self.service = service
        self.predict = Predict(service)
        self.log = AccessLog() if service.settings.access_log else None
        self._key = key
        self._paths = frozenset(paths)

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
            await self._dispatch(scope, receive, answer)
        except Refused as refused:
            await send_json(answer, refused.status, refused.body, refused.headers)
        except Disconnected:
            status = CLIENT_GONE
        except Exception as error:
            logger.error("a request failed: %s", without_data(error))
            if not status:
                failed = Refused(500, "failed", "the request failed; the server's log says why")
                await send_json(answer, failed.status, failed.body)
        finally:
            self._note(scope, status or CLIENT_GONE, time.perf_counter() - started)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if self._key is not None and path not in OPEN and not self._allowed(scope):
            headers = [(b"www-authenticate", b"Bearer")]
            raise Refused(401, "key", "a key is needed: Authorization: Bearer KEY, or X-API-Key: KEY", headers=headers)
        if path == "/predict" and scope["method"] == "POST":
            await self.predict(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        """Whether the key is shown; takes as long for any wrong one."""
        assert self._key is not None
        for name, value in scope["headers"]:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                return hmac.compare_digest(value[7:].strip(), self._key)
            if name == b"x-api-key":
                return hmac.compare_digest(value.strip(), self._key)
        return False

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self._paths else "(other)"
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


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})


class AccessLog:
    """JSON lines on standard output, written every `FLUSH_S` seconds: neither bodies nor queries nor keys."""

    def __init__(self, write: Callable[[str], Any] | None = None) -> None:
        self._write = write or sys.stdout.write
        self._lines: list[bytes] = []

    def add(self, line: dict[str, Any]) -> None:
        """One line."""
        self._lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what waits. A log that cannot be written keeps nobody from being answered."""
        lines, self._lines = self._lines, []
        try:
            self._write(b"".join(lines).decode())
            sys.stdout.flush()
        except (OSError, ValueError):
            logger.warning("%d lines of the access log could not be written", len(lines))
