"""Starting processes: one fork server for all workers that are alive, and locks around what is not made for threads."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from typing import Any

from forge_sweep.workers.base import Plan

_starting = threading.Lock()


class Starter:
    """Starts processes as a plan says, and ends the fork server that it started."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.context: Any = multiprocessing.get_context(available(plan.start))
        self._owns_server = False

    def start(self, target: Callable[..., None], args: tuple[Any, ...]) -> BaseProcess:
        """Start a process; a failure of the operating system is raised as it is."""
        process: BaseProcess = self.context.Process(target=target, args=args, daemon=True)
        with _starting, variables(self.plan.shared):
            if self.context.get_start_method() == "forkserver" and not server_pid():
                self.context.set_forkserver_preload(list(self.plan.preload))
                self._owns_server = True
            process.start()
        return process

    def close(self) -> None:
        """End the fork server; no process of it may be alive."""
        with _starting:
            if self._owns_server and server_pid():
                # The only way to end it before this process does; Python's own tests go it too.
                server: Any = forkserver._forkserver
                server._stop()
            self._owns_server = False


def available(wanted: str) -> str:
    """The start method, or spawn where this platform lacks it."""
    return wanted if wanted in multiprocessing.get_all_start_methods() else "spawn"


def server_pid() -> int | None:
    """The process of the fork server of this interpreter, if one runs."""
    server: Any = forkserver._forkserver
    pid: int | None = server._forkserver_pid
    return pid


@contextlib.contextmanager
def variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the processes that start within the block."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
