"""Servers that tests start on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def free_port() -> int:
    """A port that nobody listens on, and whose neighbour is as free as can be hoped."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(address: str, process: subprocess.Popen[Any]) -> bool:
    """Whether a server that is starting answers within a minute."""
    for _ in range(120):
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
    with subprocess.Popen(
        [*words, "--port", str(port)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            link = process.stdout.readline().partition("MLflow: ")[2].strip()
            for address in addresses[environ.get("MLFLOW_TRACKING_URI", "").startswith("http") :]:
                assert answers(address, process), address
            yield link
        finally:
            process.send_signal(signal.SIGTERM)
