"""What one training costs while it runs: measured where it runs, added up here.

The process that trains says with each message what it has used so far. What a process that was killed had cost is known
up to its last word.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from forge_sweep.study import Cost, Study, TrialCost
from forge_sweep.workers import Limits, Say, Task, Worker
from forge_sweep.workers.base import T

SAVE_EVERY_S = 5.0
"""Least time between two writes of a running trial's cost: as much of it may be unknown after `kill -9`."""

LAST_WORD = None
"""Message of a training that is over, however it ended."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Clocks:
    """What is read here and where a training runs; a value that can be pickled.

    Attributes:
        wall: seconds that pass, whatever is done.
        cpu: CPU seconds of this process, over all of its threads.
        date: seconds since 1970, the same for all machines.
    """

    wall: Clock = time.monotonic
    cpu: Clock = time.process_time
    date: Clock = time.time

    def read(self) -> tuple[float, float]:
        """Wall clock and CPU."""
        return self.wall(), self.cpu()


CLOCKS = Clocks()


@dataclass(frozen=True)
class Metered:
    """A task that says ``(message, seconds, CPU seconds)`` in place of each message, and that much as its last word.

    Attributes:
        task: what is computed.
        clocks: by which it is measured.
    """

    task: Task[Any]
    clocks: Clocks

    def __call__(self, say: Say) -> Any:
        """Run the task."""
        began = self.clocks.read()

        def metered(message: Any) -> Any:
            wall, cpu = self.clocks.read()
            return say((message, wall - began[0], cpu - began[1]))

        try:
            return self.task(metered)
        finally:
            with contextlib.suppress(Exception):  # nobody listens any more
                metered(LAST_WORD)


class Account:
    """The cost of one trial, over this attempt and the earlier ones. For one thread; others may read `cost`.

    An attempt may call several times: after one that ran out of memory with a smaller batch.

    Args:
        study: keeps it.
        number: the trial.
        earlier: what earlier attempts took.
        gpus: that this attempt holds, or the part of one.
        clock: of this process.

    Attributes:
        cost: as far as it is known.
    """

    def __init__(self, study: Study, number: int, earlier: TrialCost, gpus: float, clock: Clock) -> None:
        self.study = study
        self.number = number
        self.cost = self.earlier = earlier
        self.gpus = gpus
        self.clock = clock
        self.epoch: int | None = None  # the last one of this call
        self.behind = 0  # epochs that this call was taken up with; they are reported again, not trained
        self.at_epoch = earlier.total
        self.heard_at = self.saved_at = clock()

    def call(self, worker: Worker, task: Task[T], relay: Say, limits: Limits) -> T:
        """`Worker.call` with what the task costs put to this account."""
        over, self.earlier, self.epoch, self.behind = False, self.cost, None, 0

        def heard(message: tuple[Any, float, float]) -> Any:
            nonlocal over
            said, *spent = message
            over = said is LAST_WORD
            self._charge(*spent)
            return None if over else relay(said)

        self.heard_at = self.clock()
        try:
            result: T = worker.call(Metered(task, CLOCKS), heard, limits)
        finally:
            if not over:  # its process was killed: it took this long, and how much CPU it took nobody knows
                silent_s = max(0.0, self.clock() - self.heard_at)
                self.cost = replace(self.cost, total=self.cost.total + Cost(silent_s, 0.0, silent_s * self.gpus))
        return result

    def _charge(self, seconds: float, cpu_s: float) -> None:
        """This call took so much until now."""
        self.heard_at = self.clock()
        spent = Cost(seconds, cpu_s, seconds * self.gpus)
        self.cost = replace(self.cost, total=self.earlier.total + spent)

    def taken_up(self, epochs: int) -> None:
        """This call goes on after so many epochs."""
        self.behind = epochs

    def completed(self, epoch: int) -> None:
        """An epoch was reported; the first new one says how much of the earlier ones is done again."""
        if epoch < self.behind:
            return
        lost = self.earlier.resumed_at(epoch).lost if self.epoch is None else self.cost.lost
        self.epoch, self.at_epoch = epoch, self.cost.total
        self.cost = TrialCost(self.cost.total, lost, epoch + 1)
        if self.clock() - self.saved_at >= SAVE_EVERY_S:
            self.save()

    def broke_off(self, *, died: bool) -> None:
        """This attempt ended before the trial did.

        Args:
            died: what came after its last whole epoch gave nothing; so does an attempt without a whole epoch.
        """
        if died or self.epoch is None:
            self.cost = replace(self.cost, lost=self.cost.lost + self.cost.total - self.at_epoch)
        self.save()

    def save(self) -> None:
        """Let the study keep it."""
        self.saved_at = self.clock()
        self.study.spend(self.number, self.cost)
