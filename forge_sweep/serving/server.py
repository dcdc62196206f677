"""Start, serve, and end without leaving anybody unanswered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Generator

import uvicorn

from forge_sweep.errors import InputError
from forge_sweep.serving.app import build
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
        """Take no connection any more; let each of the others have one more answer, or `LINGER_S` of silence."""
        self.service.draining = True
        for server in self.servers:
            server.close()
        await asyncio.sleep(LINGER_S)
        await super().shutdown(sockets)
