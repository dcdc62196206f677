"""What a connection may cost before its request is known: bytes and seconds of a head, of trailers and of silence.

uvicorn and httptools keep a head until it is complete, however long it is, and join a value to itself with every piece
that arrives. Nobody needs a key for that, so it is bounded here, below the gate.
"""

from __future__ import annotations

import asyncio
import http
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from forge_sweep.serving.bodies import Refused

HEAD_BYTES = 65_536
"""Most bytes of a request line and its headers, or between two bytes of a body: chunk extensions, trailers."""

HEAD_S = 10.0
"""Most seconds to the end of a head, from when the connection was made or the first byte of a later request came."""

LEFT_OVER_S = 2.0
"""How long a body that nobody reads any more may go on after the answer."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection, bounded.

    Args:
        refused: is told the status of every request that is refused here.
    """

    def __init__(self, *args: Any, refused: Callable[[int], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refused = refused
        self._idle_bytes = 0
        self._message_open = False  # from the end of a head to the end of its body
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait(HEAD_S, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, in pieces that end where the bound is."""
        if self._timer is None and not self._message_open:
            self._wait(HEAD_S, self._head_late)
        start = 0
        while start < len(data) and not self.transport.is_closing():
            if self._idle_bytes >= HEAD_BYTES:
                self._refuse(431, "head", f"more than {HEAD_BYTES} bytes of request line, headers or trailers")
                return
            piece = data[start : start + HEAD_BYTES - self._idle_bytes]
            start += len(piece)
            self._idle_bytes += len(piece)
            super().data_received(piece)

    def on_headers_complete(self) -> None:
        """The request is known; the rest of it has the bounds of its path."""
        self._idle_bytes, self._message_open = 0, True
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Bytes of a body are counted by who reads it."""
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next request may come."""
        self._idle_bytes, self._message_open = 0, False
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """What is answered before its body has come need not come to an end by itself."""
        super().on_response_complete()
        if self._message_open and self.cycle.response_complete and not self.transport.is_closing():
            self._wait(LEFT_OVER_S, self.transport.close)

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_late(self) -> None:
        """The time for a head is over."""
        if self.cycle is not None and not self.cycle.response_complete:  # the one before it is being answered
            self._wait(HEAD_S, self._head_late)
        elif not self._idle_bytes:
            self.transport.close()  # nobody has said anything
        else:
            self._refuse(408, "time-out", f"the head of the request did not arrive within {HEAD_S:g} s")

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer for a request that never comes to be one, and hang up."""
        self._refused(status)
        if self._message_open:  # its body goes on: it may have an answer already
            free = not self.cycle.response_started
        else:  # the one before it may still wait for its own
            free = self.cycle is None or self.cycle.response_complete
        if free:
            body = Refused(status, code, message).body
            lines = [
                f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
                "content-type: application/json",
                f"content-length: {len(body)}",
                "connection: close",
            ]
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()
