"""Start, serve, and end without leaving anybody unanswered."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import logging
import signal
import socket
import struct
import sys
from collections.abc import Callable, Generator, Iterator

import uvicorn

from forge_sweep.errors import InputError
from forge_sweep.serving.app import build
from forge_sweep.serving.connections import Connection
from forge_sweep.serving.gate import Gate
from forge_sweep.serving.service import Service, load_version
from forge_sweep.serving.settings import LOOPBACK, Settings, api_key
from forge_sweep.tracking import locate

logger = logging.getLogger(__name__)

LINGER_S = 0.5
"""How long a connection may stay silent once the server ends: a request that was sent before has then arrived."""

SWITCH_S = 0.0005
"""Python's own 5 ms would keep the thread of the model waiting for the thread of the connections."""

BACKLOG = 2048
"""Connections that wait to be taken; uvicorn's own."""

TAKE_S = 0.1
"""How long connections are taken that were being made when the server was told to end."""

SO_ATTACH_FILTER = 26
"""Of Linux; Python's `socket` does not name it."""

NO_NEW_CONNECTIONS = (
    (0x30, 0, 0, 13),
    (0x54, 0, 0, 0x12),
    (0x15, 0, 1, 0x02),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
)
"""A packet filter: byte 13 of a TCP header & (SYN | ACK) == SYN is dropped, all else passes."""


def serve(reference: str, settings: Settings, *, echo: Callable[[str], None]) -> None:
    """Serve a model until SIGTERM or SIGINT.

    Args:
        reference: which model, see `forge_sweep.tracking.locate`.
        settings: how.
        echo: prints a line for people.

    Raises:
        InputError: there is no such model, the port is taken, or a setting is wrong.
        BundleError: the model is damaged, or gives other golden scores than when it was saved.
        TrackingDown: the store cannot be reached.
    """
    key = api_key()
    located = locate(reference, settings.store)
    listener = bound(settings)
    with listener:
        served = load_version(located, settings)
        difference = f"golden scores within {served.golden_difference:.2g}"
        echo(f"{served.label}{f' ({located.alias})' if located.alias else ''}: {served.bundle.kind}, {difference}")
        if key is None and settings.host not in LOOPBACK:
            echo(f"anybody who reaches {settings.host} may ask: FORGE_SWEEP_API_KEY is not set")
        service = Service(reference, served, settings)
        listen(listener, settings)
        host, port = listener.getsockname()[:2]
        echo(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}")
        run(service, build(service, key), listener)


def bound(settings: Settings) -> socket.socket:
    """A socket that has the port, but does not listen yet: nobody is kept waiting while the model loads."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY only where it sees TCP
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise taken(settings, error) from error
    return found


def listen(listener: socket.socket, settings: Settings) -> None:
    """From here on callers are welcome. Of two servers that were bound to a port at once, the slower one ends here."""
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise taken(settings, error) from error


def taken(settings: Settings, error: OSError) -> InputError:
    """The refusal of an address."""
    where = f"{settings.host}:{settings.port}"
    return InputError(f"cannot listen on {where}: {error.strerror}", hint="give another --host or --port")


def run(service: Service, gate: Gate, listener: socket.socket) -> None:
    """The loop."""
    sys.setswitchinterval(SWITCH_S)
    config = uvicorn.Config(
        gate,
        http=functools.partial(Connection, refused=service.refused),  # type: ignore[arg-type]  # as good as a class
        access_log=False,
        log_config=None,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=int(service.settings.timeout_s) + 5,
        ws="none",
    )
    server = Server(config, service)
    loop_factory = config.get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(live(server, service, gate, listener))


async def live(server: Server, service: Service, gate: Gate, listener: socket.socket) -> None:
    """Serve, follow the alias beside it, and end in order."""
    service.batcher.start()
    following = asyncio.create_task(service.follow())
    try:
        await server.serve(sockets=[listener])
    finally:
        following.cancel()
        await asyncio.to_thread(service.batcher.close)
        if gate.log is not None:
            gate.log.flush()


class Server(uvicorn.Server):
    """uvicorn's server, which ends with exit code 0 and closes no connection that a request is on its way on.

    Args:
        config: uvicorn's.
        service: is told that the end has come.
    """

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
        """Take no connection any more; let each of the others have one more answer, or `LINGER_S` of silence.

        A listener that is closed resets the connections that wait to be taken, whose requests may have been sent
        already. So new ones are kept from being made first, then those that were made are taken, then it is closed.
        """
        self.service.draining = True
        for listener in sockets or ():
            refuse_new(listener)
        await asyncio.sleep(TAKE_S)
        waiting = [each for listener in sockets or () for each in accepted(listener)]
        for server in self.servers:
            server.close()
        for each in waiting:
            with contextlib.suppress(OSError):  # gone already
                await asyncio.get_running_loop().connect_accepted_socket(self._connection, each)
        await asyncio.sleep(LINGER_S)
        await asyncio.sleep(0.01)  # where the loop was late for the pause, what has come meanwhile is read first
        await super().shutdown(sockets)

    def _connection(self) -> asyncio.Protocol:
        """As uvicorn makes one for a connection that it takes itself."""
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


def refuse_new(listener: socket.socket) -> None:
    """Drop packets that ask for a new connection, where the system can: who sent one asks again, and finds nobody."""
    code = b"".join(struct.pack("HBBI", *line) for line in NO_NEW_CONNECTIONS)
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HL", len(NO_NEW_CONNECTIONS), ctypes.addressof(held))
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def accepted(listener: socket.socket) -> Iterator[socket.socket]:
    """The connections that wait to be taken at this moment."""
    listener.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            with contextlib.suppress(ConnectionError):
                connection, _ = listener.accept()
                connection.setblocking(False)
                yield connection
