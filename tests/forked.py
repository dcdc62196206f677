"""Processes of `python -m MODULE` that begin as forks of one that has run a sweep on the surface.

What a sweep imports, from MLflow to skops, takes eight seconds of CPU in each new process. A fork has its own process
group, variables and streams, and ends as any other process does. TensorFlow is left out, as in `tests.surface`: no fork
may come after its first use. As a script it is the process that they are forked from.
"""

from __future__ import annotations

import atexit
import functools
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class Forked:
    """A process that was forked, with those methods of `subprocess.Popen` that tests need.

    Args:
        words: a module and its arguments, as after `python -m`.
        stdout: file descriptor of its standard output.
        stderr: the same of its standard error.
        variables: of the environment, besides those of this process.
    """

    def __init__(
        self, *words: object, stdout: int = 1, stderr: int = 2, variables: Mapping[str, str] | None = None
    ) -> None:
        asked = {"words": [str(word) for word in words], "env": {**os.environ, **(variables or {})}}
        reader, writer = os.pipe()
        ask(json.dumps(asked).encode(), (stdout, stderr, writer))
        os.close(writer)
        self._states = os.fdopen(reader, "r")
        began = self._states.readline()
        assert began, f"the process that forks has ended with code {server()[1].wait()}"
        self.pid = int(began)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code (negative: a signal), or None while it runs."""
        if self.returncode is None and self._has_ended(0):
            self.returncode = int(self._states.readline())
            self._states.close()
        return self.returncode

    def wait(self, timeout: float = 300.0) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it did not end in that many seconds.
        """
        if self.returncode is None and not self._has_ended(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        code = self.poll()
        assert code is not None
        return code

    def _has_ended(self, timeout: float) -> bool:
        states = select.poll()  # unlike `select.select`, it takes more than 1,024 open files
        states.register(self._states, select.POLLIN)
        return bool(states.poll(1000 * timeout))

    def send_signal(self, number: int) -> None:
        """Send a signal to it alone, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


@functools.cache
def server() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """The process that forks, and the line to it; started at the first need, it ends when this one does."""
    here, there = socket.socketpair()
    foreign = ("MLFLOW_", "FORGE_SWEEP_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forked", str(there.fileno())],
        cwd=ROOT,
        env={**environ, "OMP_NUM_THREADS": "1"},  # a pool of OpenMP's threads does not survive a fork
        stdin=subprocess.DEVNULL,
        pass_fds=[there.fileno()],
        start_new_session=True,
    )
    there.close()

    def leave() -> None:
        here.close()
        process.wait(timeout=30)

    atexit.register(leave)
    return here, process


def ask(message: bytes, files: Sequence[int]) -> None:
    """Send the length of a message, with open files, and the message."""
    line, _ = server()
    socket.send_fds(line, [len(message).to_bytes(4, "big")], list(files))
    line.sendall(message)


def serve(line: socket.socket) -> None:
    """Fork until nobody asks."""
    from forge_sweep import sweep
    from tests import schemas
    from tests.surface import experiment, fake_run, no_network

    schemas.copy_one()
    with tempfile.TemporaryDirectory() as folder, no_network(fake_run()):
        sweep.run(experiment(study__n_trials=1, confirm__top=1, confirm__seeds=1), store=Path(folder))
    assert threading.active_count() == 1, threading.enumerate()
    assert "tensorflow" not in sys.modules
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    while True:
        size, files, _, _ = socket.recv_fds(line, 4, 3)
        if not size:
            return
        message = b""
        while len(message) < int.from_bytes(size, "big"):
            message += line.recv(1 << 16)
        if os.fork() == 0:
            line.close()
            watch(json.loads(message), *files)
        for file in files:
            os.close(file)


def watch(asked: dict[str, Any], out: int, err: int, states: int) -> None:
    """Fork once more, and say that process's id and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(states)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        os._exit(become(asked))
    os.setpgid(child, child)
    os.close(out)
    os.close(err)
    os.write(states, f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    os.write(states, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become(asked: dict[str, Any]) -> int:
    """Be `python -m MODULE`; the exit code."""
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), encoding="utf-8", line_buffering=True)
    os.environ.clear()
    os.environ.update(asked["env"])
    module, *words = asked["words"]
    sys.argv = [module, *words]
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")  # that it was imported before
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # what Python would print
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
