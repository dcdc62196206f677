"""What runs on a node: an actor that computes tasks in a thread and is asked for each of its words.

The driver asks (`next`) and is answered with the next message, so that a message costs one round trip. Messages are
pickled pairs as in `workers.child`, and two more: ``pulse``, where there was none for a while, and ``over`` with the
reason why this process is not to be used any more.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
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
from forge_sweep.workers import child
from forge_sweep.workers.base import Limits, WorkerLost
from forge_sweep.workers.ray.store import loads
from forge_sweep.workers.watch import LOOK_EVERY_S, Watch, own_bytes

PULSE_S = 5.0
"""Time after which an actor without a message says that it lives."""

DISTRIBUTIONS = ("tensorflow", "tensorflow-cpu", "keras", "numpy", "scikit-learn", "jax", "torch")
"""Packages whose versions decide numbers; see also `code_digest`."""


@dataclass(frozen=True)
class About:
    """Where an actor runs, and with what.

    Attributes:
        node: id of the node in Ray.
        host: its address.
        pid: the process.
        versions: of the packages that decide numbers; empty where one is not installed.
    """

    node: str
    host: str
    pid: int
    versions: dict[str, str]

    @classmethod
    def here(cls) -> About:
        """This process, as seen by itself."""
        context = ray.get_runtime_context()
        return cls(context.get_node_id(), ray.util.get_node_ip_address(), os.getpid(), versions())


def versions() -> dict[str, str]:
    """What has to be equal on all nodes."""
    return {**{name: _version(name) for name in DISTRIBUTIONS}, "code of forge_sweep": code_digest()}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


@functools.cache
def code_digest() -> str:
    """Names this package's code, 12 digits: a working copy may differ from another of the same version."""
    root = Path(forge_sweep.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


class Actor:
    """The process of one worker. Its main thread answers; one thread of its own sets up and computes, always the same.

    Args:
        memory_bytes: most memory beyond what it had after the set-up; None for no limit.
    """

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
        return pickle.dumps(About.here())

    def set_up(self, pickled: bytes) -> bytes:
        """Call the plan's set-up; ``done`` or ``raised``."""
        setup: Callable[[], None] | None = pickle.loads(pickled)
        self._todo.put(lambda: child.outcome(lambda: lambda say: setup() if setup else None, self._say))
        ended = self._said.get()
        self.idle_bytes = own_bytes(psutil.Process())
        return ended

    def start(self, pickled: bytes, refs: list[Any], limits: Limits) -> bytes:
        """Begin a task; its first message."""
        self._watch = self._watched(limits)
        self._todo.put(lambda: child.outcome(lambda: loads(pickled, refs), self._say))
        return self._listen()

    def next(self, answer: bytes | None = None) -> bytes:
        """The next message, after the answer to the last one."""
        if answer is not None:
            self._watch.heard()
            self._answers.put(pickle.loads(answer))
        return self._listen()

    def _listen(self) -> bytes:
        """The next message, or that there is none; while it waits it looks at the limits."""
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
    """A watch in the watched process itself: what its own thread computes is no work of the task."""

    def _cpu_seconds(self) -> float:
        return time.process_time() - time.thread_time()
