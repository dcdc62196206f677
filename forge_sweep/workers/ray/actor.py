"""What runs on a node: an actor that computes tasks in a thread and is polled for each message.

The driver asks (`next`) and is answered with the next message, so that a message costs one round trip. Messages are
pickled pairs as in `workers.processes`, and two more: ``pulse``, where there was none for a while, and ``over`` with
the reason why this process is not to be used any more.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

import forge_sweep
from forge_sweep.errors import TrialFailed
from forge_sweep.workers.base import Limits, WorkerLost
from forge_sweep.workers.processes import LOOK_EVERY_S, Watch, outcome, own_bytes

PULSE_S = 5.0
"""Time after which an actor without a message says that it lives."""

DISTRIBUTIONS = ("tensorflow", "tensorflow-cpu", "keras", "numpy", "scikit-learn", "jax", "jaxlib", "torch")
"""Packages whose versions decide numbers; see also `_code_digest`."""


@dataclass(frozen=True)
class About:
    """Where an actor runs, and with which versions of packages ("" for none)."""

    node: str
    host: str
    pid: int
    versions: dict[str, str]


def versions() -> dict[str, str]:
    """What has to be equal on all nodes."""
    return {**{name: _version(name) for name in DISTRIBUTIONS}, "code of forge_sweep": _code_digest()}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


@functools.cache
def _code_digest() -> str:
    """Names this package's code, 12 digits: a working copy may differ from another of the same version."""
    root = Path(forge_sweep.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


class Actor:
    """The process of one worker. Its main thread answers; another one sets up and computes, always the same."""

    def __init__(self, memory_bytes: int | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches a local cluster too; the driver decides
        self.memory_bytes = memory_bytes
        self.idle_bytes = 0
        self._todo = queue.SimpleQueue[Callable[[], tuple[str, Any]]]()
        self._said = queue.SimpleQueue[bytes]()
        self._answers = queue.SimpleQueue[Any]()
        self._watch = self._watched(Limits())
        threading.Thread(target=self._work, name="tasks", daemon=True).start()

    def about(self) -> bytes:
        """Pickled `About`."""
        node = ray.get_runtime_context().get_node_id()
        return pickle.dumps(About(node, ray.util.get_node_ip_address(), os.getpid(), versions()))

    def set_up(self, pickled: bytes) -> bytes:
        """Call the plan's set-up; ``done`` or ``raised``."""
        setup: Callable[[], None] | None = pickle.loads(pickled)
        self._todo.put(lambda: outcome(lambda: lambda say: setup() if setup else None, self._say))
        ended = self._said.get()
        self.idle_bytes = own_bytes(psutil.Process())
        return ended

    def start(self, pickled: bytes, refs: list[Any], limits: Limits) -> bytes:
        """Begin a task; its first message."""
        self._watch = self._watched(limits)
        self._todo.put(lambda: outcome(lambda: loads(pickled, refs), self._say))
        return self._listen()

    def next(self, answer: bytes | None = None) -> bytes:
        """The next message, after the answer to the last one."""
        if answer is not None:
            self._watch.heard()
            self._answers.put(pickle.loads(answer))
        return self._listen()

    def _listen(self) -> bytes:
        """The next message, or that there is none; while it waits it checks the limits."""
        until = time.monotonic() + PULSE_S
        while time.monotonic() < until:
            try:
                return self._said.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                pass
            try:
                self._watch.look()
            except (TrialFailed, WorkerLost) as over:
                return pickle.dumps(("over", over))
        return pickle.dumps(("pulse", None))

    def _work(self) -> None:
        while True:
            self._said.put(pickle.dumps(self._todo.get()()))

    def _say(self, message: Any) -> Any:
        self._said.put(pickle.dumps(("say", message)))
        return self._answers.get()

    def _watched(self, limits: Limits) -> Watch:
        """Its memory and its silence; the clock is the driver's."""
        return _Inside(os.getpid(), Limits(silent_s=limits.silent_s), self.memory_bytes, self.idle_bytes)


class _Inside(Watch):
    """A watch in the watched process itself: what its own thread computes is not the task's."""

    def _cpu_seconds(self) -> float:
        return time.process_time() - time.thread_time()


# Values in Ray's object store, and tasks that carry them: a node has one copy, whatever the number of its workers.


@dataclass(frozen=True)
class Stored:
    """A value in the object store. Small; tasks of `RayWorkers` carry it to any node."""

    ref: Any

    @classmethod
    def put(cls, value: Any) -> Stored:
        """Store a value; its arrays are copied once, and stay as long as somebody refers to them."""
        return cls(ray.put(value))

    def get(self) -> Any:
        """The value. Its arrays are views of this node's copy, and cannot be written to."""
        return _get(self.ref)


@functools.cache
def _get(ref: Any) -> Any:
    """Cached for the life of the process: a copy that somebody uses stays on the node."""
    return ray.get(ref)


class _Pickler(pickle.Pickler):
    """Leaves the references out: they travel beside the pickle, so that Ray knows who holds them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.refs: list[Any] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, ray.ObjectRef):
            return None
        self.refs.append(value)
        return len(self.refs) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, refs: list[Any]) -> None:
        super().__init__(file)
        self.refs = refs

    def persistent_load(self, number: Any) -> Any:
        return self.refs[number]


def dumps(value: Any) -> tuple[bytes, list[Any]]:
    """A value as bytes, and the references in it."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    return file.getvalue(), pickler.refs


def loads(pickled: bytes, refs: list[Any]) -> Any:
    """What `dumps` was given."""
    return _Unpickler(io.BytesIO(pickled), refs).load()
