"""Servers that tests start on this machine."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_ports = itertools.count(11_000 + os.getpid() % 100 * 200, 2)


def free_port() -> int:
    """A port that nobody listens on, nor on the next one.

    Below those that Linux gives to outgoing connections and to whoever asks for any: between this look and the start of
    the server, another test's Ray or browser would take it.
    """
    for port in _ports:
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as next_one:
            one.bind(("127.0.0.1", port))
            next_one.bind(("127.0.0.1", port + 1))
            return port
    raise AssertionError  # it counts for ever


def answers(address: str, process: subprocess.Popen[Any]) -> bool:
    """Whether a server that is starting answers within two minutes."""
    for _ in range(240):
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
        if process.poll() is not None:
            return False
        time.sleep(0.5)
    return False


@contextlib.contextmanager
def running(command: Sequence[str], address: str, *, log: Path, **variables: str) -> Iterator[None]:
    """A server, from when it answers at an address until the end; all it starts ends with it."""
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = {**os.environ, "PATH": scripts, **variables}
    with log.open("ab") as file:
        process = subprocess.Popen(command, env=environ, stdout=file, stderr=file, start_new_session=True)
    try:
        assert answers(address, process), log.read_text(encoding="utf-8", errors="replace")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def ui(store: Path, variables: Mapping[str, str] | None = None, *, name: str = "surface") -> Iterator[str]:
    """`forge-sweep ui` on an experiment: the link it prints, once its servers answer.

    Args:
        store: folder of the embedded stores.
        name: of the experiment.
        variables: of the environment; an MLflow server that MLFLOW_TRACKING_URI names is the one to look at.
    """
    port = free_port()
    words = [str(Path(sys.executable).with_name("forge-sweep")), "ui", name, "--store", str(store)]
    environ = {**os.environ, **(variables or {})}
    addresses = [f"http://127.0.0.1:{port}/health", f"http://127.0.0.1:{port + 1}/dashboard"]
    command = [*words, "--port", str(port)]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as log,
        subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            link = process.stdout.readline().partition("MLflow: ")[2].strip()
            for address in addresses[environ.get("MLFLOW_TRACKING_URI", "").startswith("http") :]:
                if not answers(address, process):
                    log.seek(0)
                    raise AssertionError(f"{address} does not answer: {log.read()}")
            yield link
        finally:
            process.send_signal(signal.SIGTERM)
