"""The server: start, serve, and shut down without dropping a request."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import http
import logging
import signal
import socket
import struct
import sys
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from forge_sweep.errors import InputError
from forge_sweep.serving.app import Gate, build
from forge_sweep.serving.bodies import Refused
from forge_sweep.serving.metrics import Metrics
from forge_sweep.serving.predict import load
from forge_sweep.serving.service import Service
from forge_sweep.tracking import locate

if TYPE_CHECKING:
    from forge_sweep.serving.settings import Settings

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1", "localhost")

HEAD_BYTES = 65_536  # of a request line and its headers, or between two bytes of a body: chunk extensions, trailers
HEAD_S = 10.0  # to the end of a head, from the connection or the first byte of a later request
LEFT_OVER_S = 2.0  # that an unread body may go on after the answer
LINGER_S = 0.5  # that a connection may stay silent once the server ends: requests that were sent have arrived by then
TAKE_S = 0.1  # that a server, told to end, still takes connections that are being made
SWITCH_S = 0.0005  # Python's own 5 ms would keep the thread of the model waiting for the thread of the connections
BACKLOG = 2048  # as uvicorn has it

SO_ATTACH_FILTER = 26  # of Linux; Python's `socket` does not name it
NO_NEW_CONNECTIONS = (  # a packet filter: drops what has SYN and no ACK in byte 13 of its TCP header, passes all else
    (0x30, 0, 0, 13),
    (0x54, 0, 0, 0x12),
    (0x15, 0, 1, 0x02),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
)


def serve(reference: str, settings: Settings, key: bytes | None, *, echo: Callable[[str], None]) -> None:
    """Serve a model until SIGTERM or SIGINT; see `forge_sweep.serving.serve`."""
    located = locate(reference, settings.store)
    listener = bound(settings)
    with listener:
        served = load(located, settings)
        difference = f"golden scores within {served.golden_difference:.2g}"
        echo(f"{served.label}{f' ({located.alias})' if located.alias else ''}: {served.bundle.kind}, {difference}")
        if key is None and settings.host not in LOOPBACK:
            echo(f"{settings.host} is reachable without a key: FORGE_SWEEP_API_KEY is not set")
        service = Service(reference, served, settings)
        listen(listener, settings)
        host, port = listener.getsockname()[:2]
        echo(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}")
        _run(service, build(service, key), listener)


def bound(settings: Settings) -> socket.socket:
    """A socket that has the port but does not listen yet, so that no client waits while the model loads."""
    with _free(settings):
        family, kind, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY only where it sees TCP
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    return found


def listen(listener: socket.socket, settings: Settings) -> None:
    """Welcome callers. Of two servers that were bound to a port at once, the slower one ends here."""
    with _free(settings):
        listener.listen(BACKLOG)


@contextlib.contextmanager
def _free(settings: Settings) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
        raise InputError(message, hint="give another --host or --port") from error


def _run(service: Service, gate: Gate, listener: socket.socket) -> None:
    sys.setswitchinterval(SWITCH_S)
    config = uvicorn.Config(
        gate,
        http=functools.partial(_Connection, metrics=service.metrics),  # type: ignore[arg-type]  # as good as a class
        access_log=False,
        log_config=None,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=int(service.settings.timeout_s) + 5,
        ws="none",
    )

    async def live() -> None:
        service.batcher.start()
        following = asyncio.create_task(service.follow())
        try:
            await _Server(config, service).serve(sockets=[listener])
        finally:
            following.cancel()
            await asyncio.to_thread(service.batcher.close)
            if gate.log is not None:
                gate.log.flush()

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(live())


class _Server(uvicorn.Server):
    """uvicorn's server, which ends with exit code 0 and closes no connection that a request is on its way on."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn does, but a signal that was obeyed does not end the process once more."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connections; give each of the others one more answer, or `LINGER_S` of silence.

        Closing a listener resets the connections that wait to be taken, whose requests may have been sent already.
        So new ones are kept out first, then the waiting ones are taken, then the listener is closed.
        """
        self.service.draining = True
        for listener in sockets or ():
            _refuse_new(listener)
        await asyncio.sleep(TAKE_S)
        waiting = [each for listener in sockets or () for each in _accepted(listener)]
        for server in self.servers:
            server.close()
        protocol: Any = self.config.http_protocol_class
        state = {"server_state": self.server_state, "app_state": self.lifespan.state}
        connection = functools.partial(protocol, config=self.config, **state)
        for each in waiting:
            with contextlib.suppress(OSError):  # gone already
                await asyncio.get_running_loop().connect_accepted_socket(connection, each)
        await asyncio.sleep(LINGER_S)
        await asyncio.sleep(0.01)  # where the loop was late for the pause, what has come meanwhile is read first
        await super().shutdown(sockets)


def _refuse_new(listener: socket.socket) -> None:
    """Drop packets that ask for a new connection, where the system can; the client retries and is refused."""
    code = b"".join(struct.pack("HBBI", *line) for line in NO_NEW_CONNECTIONS)
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HL", len(NO_NEW_CONNECTIONS), ctypes.addressof(held))
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    listener.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            with contextlib.suppress(ConnectionError):
                connection, _ = listener.accept()
                connection.setblocking(False)
                yield connection


class _Connection(HttpToolsProtocol):
    """uvicorn's connection, with bounds on the bytes and seconds that it may cost before its request is known.

    uvicorn and httptools keep a head of any length and join a value to itself with every piece that arrives, before a
    key is asked for.
    """

    def __init__(self, *args: Any, metrics: Metrics, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._metrics = metrics
        self._idle_bytes = 0
        self._message_open = False  # from the end of a head to the end of its body
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(HEAD_S, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
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
        self._idle_bytes, self._message_open = 0, True
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._idle_bytes, self._message_open = 0, False
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Nothing else ends a body that goes on after its answer."""
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
        if self.cycle is not None and not self.cycle.response_complete:  # the one before it is being answered
            self._wait(HEAD_S, self._head_late)
        elif not self._idle_bytes:
            self.transport.close()  # no byte was sent
        else:
            self._refuse(408, "time-out", f"the head of the request did not arrive within {HEAD_S:g} s")

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._metrics.request("(other)", status, 0.0)
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
