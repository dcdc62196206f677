"""The process of a worker: takes one task after the other from a pipe until the pipe, or the other side, is gone.

It opens no database, so that it may be killed at any moment. Messages are pairs of a kind and a value:

| to the process | from the process |
|---|---|
| a pickled task, or nothing to end | ``ready``, once |
| the answer to ``say`` | ``say`` a message |
| | ``done`` with the result, or ``raised`` with the exception |
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from forge_sweep.workers.base import Say, Task

TERM_S = 30.0
"""How long a process goes on after SIGTERM; as long as SLURM and Kubernetes wait by default before they kill."""

LOST_PARENT = 3
"""Exit code of a process whose parent is gone."""


def main(connection: Connection, environment: Mapping[str, str], setup: Callable[[], None] | None) -> None:
    """Serve tasks; the entry point of the process."""
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    signal.signal(signal.SIGTERM, _end_soon)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _offer_to_oom_killer()
    try:
        if setup is not None:
            setup()
    except BaseException as error:
        connection.send(("raised", portable(error)))
        return
    connection.send(("ready", None))
    while task := _receive(connection):
        connection.send(_run(connection, task))


def _end_soon(number: int, frame: FrameType | None) -> None:
    """SIGTERM reaches the whole job of a batch system: let the parent end the task in order, but not for ever."""
    timer = threading.Timer(TERM_S, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()


def _receive(connection: Connection) -> bytes:
    """The next task; empty where there is none any more."""
    try:
        return connection.recv_bytes()
    except EOFError:
        return b""


def _run(connection: Connection, pickled: bytes) -> tuple[str, Any]:
    """Run a task."""

    def say(message: Any) -> Any:
        connection.send(("say", message))
        return connection.recv()

    return outcome(lambda: pickle.loads(pickled), say)


def outcome(load: Callable[[], Task[Any]], say: Say) -> tuple[str, Any]:
    """Run a task: ``done`` and its result, or ``raised`` and what it raised, or why its result cannot be sent."""
    try:
        done = "done", load()(say)
        pickle.dumps(done)
    except BaseException as error:
        return "raised", portable(error)
    return done


def portable(error: BaseException) -> BaseException:
    """The exception as the other side can read it, with the traceback as a note since that stays behind."""
    trace = "".join(traceback.format_exception(error))
    error.__cause__ = error.__context__ = None
    try:
        if isinstance(pickle.loads(pickle.dumps(error)), type(error)):
            error.add_note(f"in a worker process:\n{trace}")
            return error
    except Exception:  # whatever a foreign exception does in there
        pass
    return RuntimeError(f"{type(error).__name__}: {error}\n{trace}")


def _die_with_parent() -> None:
    """End at once when the process that wants the results is gone, in the middle of a task too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(LOST_PARENT)


def _offer_to_oom_killer() -> None:
    """Where memory runs out, Linux is to take a trial, which is run again, not the sweep. It may always be raised."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")
