"""Budgets: what a search may spend, what each training costs, and how long each phase takes.

What was spent is kept in the study: it holds over restarts and beside other processes that run it.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from forge_sweep.experiment import Experiment
from forge_sweep.study import (
    END_S,
    PHASES_NOTE,
    ROOM,
    SESSION,
    Asked,
    Cost,
    Over,
    Spent,
    Study,
    StudyView,
    TrialCost,
    over,
    union_s,
)
from forge_sweep.study import Progress as Gains

SAVE_EVERY_S = 5.0
"""Least time between two writes of a running trial's cost: as much of it may be unknown after `kill -9`."""

LOOK_EVERY_S = 5.0  # Least time between two reads of what other processes spend

Clock = Callable[[], float]


@dataclass(frozen=True)
class Clocks:
    """What is read here and where a training runs; a value that can be pickled."""

    wall: Clock = time.monotonic
    cpu: Clock = time.process_time  # over all threads of this process
    date: Clock = time.time  # the same for all machines


CLOCKS = Clocks()


class Account:
    """The cost of one trial, over this attempt and the earlier ones. For one thread; others may read `cost`."""

    def __init__(self, study: Study, number: int, earlier: TrialCost, gpus: float, clock: Clock) -> None:
        self.study = study
        self.number = number
        self.cost = self._earlier = earlier
        self._gpus = gpus
        self._clock = clock
        self._epoch: int | None = None  # the last one of this job
        self._goes_on = False  # within one of several trainings: what an attempt that is put back has is kept
        self._behind = 0  # epochs that this job was taken up with; they are reported again, not trained
        self._at_epoch = earlier.total
        self._ended = True
        self._heard_at = self._saved_at = clock()

    @contextmanager
    def job(self) -> Iterator[None]:
        """One train job runs within the block; there are several where memory runs out.

        A job whose process is killed has taken the time until then, and nobody knows how much CPU.
        """
        self._earlier, self._epoch, self._behind, self._ended = self.cost, None, 0, False
        self._heard_at = self._clock()
        try:
            yield
        finally:
            if not self._ended:
                silent_s = max(0.0, self._clock() - self._heard_at)
                self.cost = replace(self.cost, total=self.cost.total + Cost(silent_s, 0.0, silent_s * self._gpus))

    def charge(self, seconds: float, cpu_s: float, *, behind: int, ended: bool) -> None:
        """Take what the running job has used so far; ``behind`` epochs were there when it began."""
        self._heard_at = self._clock()
        self._behind, self._ended = max(self._behind, behind), ended
        self.cost = replace(self.cost, total=self._earlier.total + Cost(seconds, cpu_s, seconds * self._gpus))

    def completed(self, epoch: int) -> None:
        """An epoch was reported; the first new one says how much of the earlier ones is done again."""
        if epoch < self._behind:
            return
        lost = self._earlier.resumed_at(epoch).lost if self._epoch is None else self.cost.lost
        self._epoch, self._at_epoch = epoch, self.cost.total
        self.cost = TrialCost(self.cost.total, lost, epoch + 1)
        if self._clock() - self._saved_at >= SAVE_EVERY_S:
            self._save()

    def went_on(self) -> None:
        """An epoch within one of several trainings was completed; these are the epochs of the trial."""
        self._goes_on = True
        if self._clock() - self._saved_at >= SAVE_EVERY_S:
            self._save()

    def broke_off(self, *, died: bool) -> None:
        """This attempt ended before the trial did; ``died``: what came after its last whole epoch gave nothing."""
        if died or (self._epoch is None and not self._goes_on):
            self.cost = replace(self.cost, lost=self.cost.lost + self.cost.total - self._at_epoch)
        self._save()

    def _save(self) -> None:
        self._saved_at = self._clock()
        self.study.spend(self.number, self.cost)


class Budget:
    """What the search of a study may still spend; ``limits`` are the values of ``[study]``. Threads may share it."""

    def __init__(
        self,
        study: Study,
        limits: Mapping[str, Any],
        say: Callable[[str], None],
        clocks: Clocks,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self.study = study
        self._stopwatch = stopwatch
        self.limits = limits
        self._say = say
        self._clocks = clocks
        self._clock = clocks.wall
        self._lock = threading.RLock()
        self._accounts: dict[int, Account] = {}
        self._settled: dict[int, Cost] = {}  # trials that do not run here
        self._settled_sum = Cost()
        self._gains = Gains(study.direction, limits.get("plateau_delta") or 0.0)
        self._gpus = 0.0
        self._over: Over | None = None
        self._said = False
        self._looked_at = float("-inf")
        self._session = f"{SESSION}{uuid.uuid4().hex[:12]}"
        self._others: list[dict[str, float]] = []
        self._began: tuple[float, float] | None = None  # since 1970, and by the clock
        self._noted_at = 0.0
        self._total_s = self._end_s = self._next_s = 0.0  # at the last look

    @contextmanager
    def searching(self, gpus: float) -> Iterator[None]:
        """The time within the block is search time."""
        self._gpus = gpus
        with self._lock:
            self._began, self._noted_at = (self._clocks.date(), self._clock()), self._clock()
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the first error says more
                self._note_session()
            raise
        self._note_session()

    def is_over(self, *, afresh: bool = False, begins: bool = False) -> bool:
        """Whether a budget is exhausted, which is said once. A plateau ends where a late trial brings a gain.

        ``begins``: there has to be time for another trial.
        """
        with self._lock:
            self._look(afresh)
            self._over = over(self.limits, replace(self.spent, next_s=self._next_s if begins else 0.0))
            ended = self.over()
            if ended is not None and not self._said:
                self._said = True
                self._say(f"{ended.text}: no new trial is started, and what runs waits")
            return self._over is not None

    def is_enough(self, number: int, value: float) -> bool:
        """Whether a trial ends with the epoch that it completed, and counts as finished with its best ``value`` so far.

        The best trial does that, or the first one to finish, where another epoch would leave no time in
        ``study.total_s`` to confirm it: what is cut off later, or another one, waits for more time.
        """
        limit = self.limits.get("total_s")
        if limit is None:
            return False
        with self._lock:
            cost, left = self._accounts[number].cost, limit - self.total_s - END_S
        seconds, longer = cost.total.seconds, cost.total.seconds * (1 + 1 / cost.epochs)
        if not seconds <= left < longer - seconds + ROOM * longer:
            return False
        best, sign = self.study.best(), 1 if self.study.direction == "maximize" else -1
        return best is None or best.value is None or sign * (value - best.value) > 0

    @property
    def runs_here(self) -> bool:
        """Whether a trial runs in this process."""
        return bool(self._accounts)

    def over(self) -> Over | None:
        """The budget that was exhausted at the last check, before ``n_trials`` were done; None where none was."""
        with self._lock:
            return None if self._over is None or self.study.n_done >= self.study.n_trials else self._over

    @property
    def spent(self) -> Spent:
        """As far as it is known here."""
        with self._lock:
            total = sum((account.cost.total for account in self._accounts.values()), self._settled_sum)
            whole = {} if self.limits.get("total_s") is None else {"total_s": self.total_s, "end_s": self._end_s}
            return Spent(self._wall_s(), total.cpu_s, total.gpu_s, self._gains.without_gain, **whole)

    @property
    def total_s(self) -> float:
        """Seconds of the whole sweep, as far as it is known here; only where they are limited."""
        return self._total_s + self._clock() - self._looked_at

    def open(self, asked: Asked) -> Account:
        """The account of a trial that is begun here."""
        with self._lock:
            account = Account(self.study, asked.number, asked.cost, self._gpus, self._clock)
            self._accounts[asked.number] = account
            self._settled_sum -= self._settled.pop(asked.number, Cost())
            return account

    def account(self, number: int) -> Account:
        """The account of a trial that runs here."""
        return self._accounts[number]

    def settle(self, number: int, objective: float | None = None, *, counts: bool = True) -> None:
        """Close the account of a trial that ended, once the study was told; ``counts``: it finished or was pruned."""
        with self._lock:
            if counts:
                self._gains.take(number, objective)
            self._close(number)

    def break_off(self, number: int, *, died: bool = False) -> None:
        """Close the account of a trial that is to wait again, and let the study keep it; ``died``: its process did."""
        with self._lock:
            account = self._accounts.get(number)
        if account is not None:
            try:
                account.broke_off(died=died)
            finally:
                self._close(number)

    def completed(self, number: int, epoch: int) -> None:
        """Put down an epoch of a trial, and now and then how long this process has been searching."""
        self._accounts[number].completed(epoch)
        if self._clock() - self._noted_at >= SAVE_EVERY_S:
            self._note_session()

    def went_on(self, number: int) -> None:
        """The same of an epoch within one of several trainings."""
        self._accounts[number].went_on()
        if self._clock() - self._noted_at >= SAVE_EVERY_S:
            self._note_session()

    def _close(self, number: int) -> None:
        with self._lock:
            cost = self._accounts.pop(number).cost.total
            self._settled[number] = cost
            self._settled_sum += cost

    def _look(self, afresh: bool) -> None:
        if not afresh and self._clock() - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = self._clock()
        if self.limits.get("timeout_s") is not None:
            notes = self.study.notes(SESSION)
            self._others = [note for key, note in notes.items() if key != self._session]
        if self.limits.get("total_s") is not None:
            if self._stopwatch is not None:
                self._stopwatch.save()
            self._total_s, self._end_s = self.study.total_s(), self.study.end_s()
            self._next_s = self.study.next_s()
        if self.limits.get("plateau_trials") is not None:
            self._gains = self.study.progress(self._gains.delta)  # in the order of all processes
        if any(self.limits.get(key) is not None for key in ("cpu_budget_s", "gpu_budget_s")):
            costs = self.study.costs()
            self._settled |= {n: cost.total for n, cost in costs.items() if n not in self._accounts}
            self._settled_sum = sum(self._settled.values(), Cost())

    def _wall_s(self) -> float:
        own = [] if self._began is None else [self._own_session(self._began)]
        return union_s([*self._others, *own])

    def _own_session(self, began: tuple[float, float]) -> dict[str, float]:
        return {"began": began[0], "seconds": self._clock() - began[1]}

    def _note_session(self) -> None:
        with self._lock:
            if self._began is None or not (self._accounts or self._settled):  # no trial was run
                return
            self._noted_at = self._clock()
            session = self._own_session(self._began)
        self.study.note(self._session, {name: round(value, 3) for name, value in session.items()})


def goes_on(experiment: Experiment, study: StudyView) -> bool:
    """Whether there are trials left to run, and something to spend on them."""
    limits = experiment.study.model_dump()
    wanted = experiment.study.n_trials
    return study.n_done < (wanted if experiment.study.repeats else study.bounded(wanted)) and study.over(limits) is None


def why_over(experiment: Experiment, study: Study) -> str:
    """Why the search is over, as the end of a sentence about it; "" where it is not."""
    if study.n_done >= study.n_trials:
        return f": {study.all_tried or f'{study.n_done} trials are done'}"
    ended = study.over(experiment.study.model_dump())
    return f" with {study.n_done} of {study.n_trials} trials: {ended.text}; raise it to go on" if ended else ""


class Stopwatch:
    """Measures one phase after the other, of one command. Threads may `tick`.

    Nothing is kept before `keep_in`: a command that finds nothing to do leaves no trace.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock = clock or CLOCKS.wall
        self._seconds: dict[str, float] = {}
        self._phase, self._began = "", clock()
        self._saved_at = clock()
        self._study: Study | None = None
        self._key = f"{PHASES_NOTE}{uuid.uuid4().hex[:12]}"
        self._lock = threading.Lock()

    def enter(self, phase: str) -> None:
        """A phase begins, and so ends the one before it; ``""`` begins none."""
        with self._lock:
            self._add_up()
            self._phase = phase
        self.save()

    def keep_in(self, study: Study) -> None:
        """Keep what was measured, and what will be, in the study of the sweep that this process runs."""
        self._study = study
        self.save()

    def tick(self) -> None:
        """Save where the last time is long enough ago: `kill -9` loses no more than that."""
        if self._clock() - self._saved_at >= SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Let the study keep it."""
        if self._study is None:
            return
        with self._lock:
            self._add_up()
            self._saved_at = self._clock()
            seconds = {name: round(value, 3) for name, value in self._seconds.items()}
        self._study.note(self._key, seconds)

    def _add_up(self) -> None:
        now = self._clock()
        if self._phase:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._began
        self._began = now
