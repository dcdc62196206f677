"""Servers that tests start on this machine."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    """A port that nobody listens on, and whose neighbour is as free as can be hoped."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(address: str, process: subprocess.Popen[str]) -> bool:
    """Whether a server that is starting answers within a minute."""
    for _ in range(120):
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
        if process.poll() is not None:
            return False
        time.sleep(0.5)
    return False


@contextlib.contextmanager
def ui(store: Path) -> Iterator[str]:
    """`forge-sweep ui` on the experiment `surface`: the link it prints, once both its servers answer."""
    port = free_port()
    words = [str(Path(sys.executable).with_name("forge-sweep")), "ui", "surface", "--store", str(store)]
    with subprocess.Popen(
        [*words, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            link = process.stdout.readline().partition("MLflow: ")[2].strip()
            for address in (f"http://127.0.0.1:{port}/health", f"http://127.0.0.1:{port + 1}/dashboard"):
                assert answers(address, process), address
            yield link
        finally:
            process.send_signal(signal.SIGTERM)
