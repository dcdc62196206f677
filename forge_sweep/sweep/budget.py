"""The budgets of a search: looked at between trials and after each epoch of each of them.

The number of trials is the study's own matter (`Study.ask`). What is summed up here is kept in the study, so that it
holds over restarts, and beside other processes that run the same study.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from forge_sweep.study import SESSION, Asked, Cost, Over, Progress, Spent, Study, over, union_s
from forge_sweep.sweep.metering import SAVE_EVERY_S, Account, Clocks

LOOK_EVERY_S = 5.0
"""Least time between two looks at what other processes spend."""


class Budget:
    """What the search of a study may still spend. Threads may share it.

    Args:
        study: keeps what was spent.
        limits: the values of ``[study]``, those of the sweep where this process joined it.
        say: told once when one of them is over.
        clocks: of this process.
    """

    def __init__(self, study: Study, limits: Mapping[str, Any], say: Callable[[str], None], clocks: Clocks) -> None:
        self.study = study
        self.limits = limits
        self._say = say
        self._clocks = clocks
        self._clock = clocks.wall
        self._lock = threading.RLock()
        self._accounts: dict[int, Account] = {}
        self._settled: dict[int, Cost] = {}  # trials that do not run here
        self._settled_sum = Cost()
        self._progress = Progress(study.direction, limits.get("plateau_delta") or 0.0)
        self._gpus = 0.0
        self._over: Over | None = None
        self._said = False
        self._looked_at = float("-inf")
        self._session = f"{SESSION}{uuid.uuid4().hex[:12]}"
        self._others: list[dict[str, float]] = []
        self._began: tuple[float, float] | None = None  # since 1970, and by the clock
        self._noted_at = 0.0

    @contextmanager
    def searching(self, gpus: float) -> Iterator[None]:
        """The time within the block is search time.

        Args:
            gpus: that each worker holds, or the part of one.
        """
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

    def is_over(self, *, afresh: bool = False) -> bool:
        """Whether a budget is over, which is said once. A plateau is not any more, where a late trial brings a gain.

        Args:
            afresh: look at what other processes did until now.
        """
        with self._lock:
            self._look(afresh)
            self._over = over(self.limits, self.spent)
            ended = self.ended_by()
            if ended is not None and not self._said:
                self._said = True
                self._say(f"{ended.text}: no new trial is started, and what runs waits")
            return self._over is not None

    @property
    def runs_here(self) -> bool:
        """Whether a trial runs in this process."""
        return bool(self._accounts)

    def ended_by(self) -> Over | None:
        """The budget that was over at the last look, before ``n_trials`` were done; None where none was."""
        with self._lock:
            return None if self._over is None or self.study.n_done >= self.study.n_trials else self._over

    @property
    def spent(self) -> Spent:
        """As far as it is known here."""
        with self._lock:
            total = sum((account.cost.total for account in self._accounts.values()), self._settled_sum)
            return Spent(self._wall_s(), total.cpu_s, total.gpu_s, self._progress.without_gain)

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
        """Close the account of a trial that ended, once the study has been told.

        Args:
            number: the trial.
            objective: of a finished trial.
            counts: whether it finished or was pruned.
        """
        with self._lock:
            if counts:
                self._progress.take(number, objective)
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

    def _close(self, number: int) -> None:
        with self._lock:
            cost = self._accounts.pop(number).cost.total
            self._settled[number] = cost
            self._settled_sum += cost

    def _look(self, afresh: bool) -> None:
        """Learn from the study what other processes spent, and what was spent before."""
        if not afresh and self._clock() - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = self._clock()
        if self.limits.get("timeout_s") is not None:
            notes = self.study.notes(SESSION)
            self._others = [note for key, note in notes.items() if key != self._session]
        if self.limits.get("plateau_trials") is not None:
            self._progress = self.study.progress(
                self._progress.delta
            )  # in the order of all, not of what was heard here
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
