"""What is seen of a worker's process from outside: how long it takes, whether it lives, how much memory it holds."""

from __future__ import annotations

import contextlib
import time

import psutil

from forge_sweep.errors import TrialFailed
from forge_sweep.workers.base import Limits, WorkerLost

LOOK_EVERY_S = 0.1
WORKING_SHARE = 0.01
"""Share of a silence with less CPU time than which a process hangs; one that computes is heard in the end."""


class Watch:
    """Holds one task to its limits.

    Args:
        pid: the process.
        limits: of the task.
        memory_bytes: most memory of the process beyond ``idle_bytes``; None for no limit.
        idle_bytes: what it held before its first task.
    """

    def __init__(self, pid: int, limits: Limits, memory_bytes: int | None, idle_bytes: int) -> None:
        self.process = psutil.Process(pid)
        self.limits = limits
        self.memory_bytes = memory_bytes
        self.idle_bytes = idle_bytes
        self.began = self.looked = time.monotonic()
        self.heard()

    def heard(self) -> None:
        """The process said something; it may be its last word."""
        self.silent_s = self.cpu_s = 0.0
        with contextlib.suppress(psutil.Error):  # it ended since: its pipe says so
            self.cpu_s = self._cpu_seconds()

    def look(self) -> None:
        """Compare with the limits, at most every `LOOK_EVERY_S`.

        Raises:
            TrialFailed: the task took too long or holds too much.
            WorkerLost: the process neither speaks nor computes.
        """
        now = time.monotonic()
        if now - self.looked < LOOK_EVERY_S:
            return
        # a pause of this process itself (Ctrl-Z) is no silence of the other one
        self.silent_s += min(now - self.looked, 10 * LOOK_EVERY_S)
        self.looked = now
        try:
            self._check(now)
        except psutil.Error:
            return  # it ended between two looks: its pipe says so

    def _check(self, now: float) -> None:
        if now - self.began > self.limits.seconds:
            raise too_late(self.limits)
        if self.memory_bytes is not None and own_bytes(self.process) - self.idle_bytes > self.memory_bytes:
            limit = f"{self.memory_bytes / 1e6:.0f} MB"
            hint = "lower width, depth or batch_size under [model.search], or raise workers.memory_limit_mb"
            raise TrialFailed("out-of-memory", f"killed at its memory limit of {limit}", hint=hint)
        if self.silent_s > self.limits.silent_s:
            if self._cpu_seconds() - self.cpu_s < WORKING_SHARE * self.silent_s:
                raise WorkerLost(f"it hung: neither a word nor any work for {self.limits.silent_s:g} s")
            self.heard()

    def _cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)


def too_late(limits: Limits) -> TrialFailed:
    """Why a task was killed that passed its time."""
    hint = "raise study.trial_timeout_s, or narrow the search space"
    return TrialFailed("time-out", f"killed after {limits.seconds:g} s: it did not end by itself", hint=hint)


def own_bytes(process: psutil.Process) -> int:
    """Memory of a process without the pages of files, such as shared arrays and libraries, where that can be told."""
    memory = process.memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))
