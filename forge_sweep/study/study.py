"""The worker's side of a study."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from forge_sweep.errors import Failure, SweepStopped, TrialTaken
from forge_sweep.experiment import Experiment, Params
from forge_sweep.study.cost import NO_COST, TrialCost
from forge_sweep.study.shared import Requeued, Shared, state_named
from forge_sweep.study.space import suggest
from forge_sweep.study.storage import held, holding
from forge_sweep.study.view import (
    ACCEPTED,
    ATTEMPT,
    CAUSE,
    COST,
    FAILURE,
    OWNER,
    PARAMS,
    PRUNED_AT,
    RESOLVED,
    SKIPPED,
    VALUE,
)

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from forge_sweep.study.database import Database

_log = logging.getLogger("forge_sweep")

ASK_ATTEMPTS = 3
"""How often a trial is asked for where another process was quicker each time."""

SEND_AGAIN_S = 1.0
"""How long reports wait before the next attempt to write them, while the database does not answer."""


@dataclass(frozen=True)
class Asked:
    """A trial to run.

    Attributes:
        number: dense from 0; the seed of the trial follows from it.
        params: every hyperparameter with its value; conditional ones only where they are active.
        attempt: 1, or more where the trial's process died.
        cost: what earlier attempts took.
        made: seconds since 1970 when this process made the trial; 0 where it had waited, so that another process may
            have begun it.
    """

    number: int
    params: Params
    attempt: int
    cost: TrialCost = NO_COST
    made: float = field(default=0.0, compare=False)


class Study(Shared):
    """The study of one experiment, for a process that runs trials of it.

    Ask, run, report, tell: each trial that `ask` gives is ended by `tell`, `put_back` or `lose` of the same object.
    Threads may share the object. `hold` it and `requeue` before the first `ask`::

        with study.hold():
            study.requeue()
            while asked := study.ask():
                ...
                study.tell(asked.number, "finished", value)

    Other processes `join` it and do the same. Together they run exactly `n_trials` trials, whichever of them dies: what
    a dead one ran waits again. A process that was taken for dead gets `TrialTaken` for the trials that it lost.

    With one process and one worker, parameters depend on nothing but the experiment, its seed and the values told,
    however often the sweep was interrupted.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: Database,
        url: str,
        experiment: Experiment,
        store: Path,
    ) -> None:
        super().__init__(study, storage, url, store)
        self._experiment = experiment
        self._running: dict[int, optuna.Trial] = {}
        self._reported: dict[int, int] = {}  # trial number -> completed epochs reported
        self._unsent: dict[int, list[tuple[int, float]]] = {}  # trial number -> reports that wait for the database
        self._send_again = -math.inf
        self._news = Requeued((), ())
        self._coordinates = False
        self._joined = False
        self._n_complete: int | None = None  # complete trials when the pruner read them last
        self._judged: dict[int, int] = {}  # trial number -> completed epochs that the pruner was last asked at

    @property
    def n_trials(self) -> int:
        """How many trials the sweep is to have in total, imported ones aside; fewer where a grid has fewer points."""
        size = getattr(self._study.sampler, "size", None)
        wanted: int = super().n_trials if self._joined else self._experiment.study.n_trials
        return wanted if size is None else min(wanted, size)

    @property
    def n_total(self) -> int:
        """How many trials the study is to have, imported ones included."""
        return self.n_trials + self.imported

    @functools.cached_property
    def imported(self) -> int:
        """Trials that a fork brought in; they inform sampler and pruner and do not count toward ``n_trials``."""
        return len(self._study.get_trials(deepcopy=False)) - len(self._own_trials())

    @property
    def skipped(self) -> str:
        """Why the fork that began the study left trials behind, in words, or ""."""
        return str(self._study.user_attrs.get(SKIPPED, ""))

    @property
    def accepted(self) -> str:
        """How the experiment of imported trials differs, as ``study.epochs: 20 -> 30; ...``, or "".

        Such differences shift a value without changing what it measures. Search ranges and budget are left out.
        """
        return str(self._study.user_attrs.get(ACCEPTED, ""))

    @contextlib.contextmanager
    def hold(self, stopping: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Be the one process that carries the sweep to its end, until the block ends or the process dies.

        On SQLite a lock file decides. On a shared database another process in the same place is known to live or not;
        one elsewhere is watched for up to `LEASE_S`, and taken over from if it is not heard.

        Args:
            stopping: asked while waiting for anything; true ends the waiting.

        Raises:
            SweepStopped: another process carries it; the message names it.
            KeyboardInterrupt: ``stopping`` said so.
        """
        with holding(self._locks, self.name):
            self._take_over(stopping)
            self._coordinates = True
            with self._taking_part(stopping):
                self._study.set_user_attr(RESOLVED, self._experiment.resolved())  # the budget may have changed
                yield
            self._coordinates = False

    @contextlib.contextmanager
    def join(self, stopping: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Be one more process that runs trials, until the block ends or the process dies.

        Args:
            stopping: as in `hold`.
        """
        self._joined = True
        self._owners.begin("worker")
        with self._taking_part(stopping):
            yield

    @contextlib.contextmanager
    def _taking_part(self, stopping: Callable[[], bool]) -> Iterator[None]:
        from forge_sweep.study import database

        self._storage.outage_s, self._storage.stopping = database.OUTAGE_S, stopping
        try:
            with self._owners.beating():
                yield
        finally:
            self._storage.outage_s = 0.0

    def _take_over(self, stopping: Callable[[], bool]) -> None:
        """Become the one that carries the sweep, once it is sure that no other does."""
        from forge_sweep.study import owners

        self._owners.watch_anew()
        watched: set[str] = set()
        while (rival := self._owners.coordinate(alone=self.url.startswith("sqlite"))) is not None:
            if self._owners.lives(rival):
                raise held(self.name, f"{rival.words}, last heard {self._owners.heard_s(rival):.0f} s ago")
            if rival.id not in watched:
                watched.add(rival.id)
                text = "study %s was run by %s; watching for up to %g s whether it still is"
                _log.warning(text, self.name, rival.words, owners.LEASE_S)
            if stopping():
                raise KeyboardInterrupt
            time.sleep(min(1.0, owners.BEAT_S / 2))

    @property
    def coordinates(self) -> bool:
        """Whether this process carries the sweep to its end."""
        return self._coordinates

    def check_held(self) -> None:
        """Look whether this process may go on; costs nothing while it was heard in time.

        Raises:
            SweepStopped: it was taken for dead, and another one carries the sweep.
        """
        owners = self._owners
        if owners.me is not None and self._coordinates and not owners.is_heard():
            owners.beat()
        if owners.deposed:
            raise SweepStopped(
                f"this process was not heard for too long, and {owners.deposed} carries study {self.name} by now",
                hint="leave it to that process; `forge-sweep worker` runs trials beside it",
            )

    def check_mine(self, number: int) -> None:
        """Look whether a trial still belongs to this process; costs nothing while it was heard in time.

        Raises:
            TrialTaken: another process took it over.
        """
        if not self._owners.surely_alive() and not self._is_mine(number):
            self._forget(number)
            raise self._taken(number)

    def _is_mine(self, number: int) -> bool:
        trial = self._study.get_trials(deepcopy=False)[number]
        return trial.state.name == "RUNNING" and trial.user_attrs.get(OWNER) == self.owner

    def _taken(self, number: int) -> TrialTaken:
        return TrialTaken(
            f"trial {number} of {self.name} was taken over by another process: this one was not heard for too long"
        )

    def ask(self) -> Asked | None:
        """The next trial, or None when ``n_trials`` are done or under way.

        Finished, pruned and failed trials count as done. A waiting trial comes before a new one. Trials of processes
        that died are taken back first; `taken_back` says which.

        Raises:
            SweepStopped: this process was taken for dead, and another one carries the sweep.
        """
        from forge_sweep.study.database import Full

        with self._lock:
            self.check_held()
            if self._owners.me is None:
                self._owners.begin("worker")
            for _ in range(ASK_ATTEMPTS):
                with self._owners.turn(), contextlib.suppress(Full, TrialTaken):
                    return self._begin_next(self._recovered())
            return None

    def _recovered(self) -> list[FrozenTrial]:
        """The trials, after those that belong to nobody wait again."""
        trials = self._own_trials()
        unknown = [t for t in trials if t.state.name == "RUNNING" and t.number not in self._running]
        for trial in (t for t in unknown if t.user_attrs.get(OWNER) == self.owner):
            self._release(trial.number)  # made in an attempt whose answer an outage swallowed
        if any(t.user_attrs.get(OWNER) != self.owner for t in unknown):
            requeued = self._take_back_dead(but=self.owner)
            self._news = Requeued(self._news.waiting + requeued.waiting, self._news.lost + requeued.lost)
        return self._own_trials() if unknown else trials

    def _begin_next(self, trials: list[FrozenTrial]) -> Asked | None:
        """Begin a waiting trial or a new one.

        Raises:
            Full: there are enough by now; one of them may be this process's own, made in an attempt whose answer was
                lost.
            TrialTaken: another process was quicker, since this one had lost its turn.
        """
        n_trials, waiting = self.n_trials, {trial.number for trial in trials if trial.state.name == "WAITING"}
        n_done = sum(trial.state.is_finished() for trial in trials)
        if n_done >= n_trials or not (waiting or len(trials) < n_trials):
            return None
        self._storage.limit = n_trials + self.imported
        asked_at = time.time()
        with self._storage.on_behalf_of(""):  # a waiting trial belongs to nobody yet
            trial = self._study.ask()
            if trial.number in waiting:
                trial.set_user_attr(OWNER, self.owner)
        attrs = trial.user_attrs
        begun = PARAMS in attrs  # an earlier `ask` gave it to somebody
        before = self._storage.get_trial(trial._trial_id).last_step if begun else 0
        with self._storage.together():
            params = suggest(trial, self._experiment.space)
            trial.set_user_attr(PARAMS, params)
        self._running[trial.number] = trial
        self._reported[trial.number] = before or 0
        cost = TrialCost.of(attrs[COST]) if COST in attrs else NO_COST
        return Asked(trial.number, params, attrs.get(ATTEMPT, 1), cost, 0.0 if begun else asked_at)

    def is_left_to_others(self) -> bool:
        """Whether trials are missing that this process does not run: others run them, or just let them wait again."""
        with self._lock:
            trials, n_trials = self._own_trials(), self.n_trials
            n_done = sum(trial.state.is_finished() for trial in trials)
            return n_done < n_trials and n_done + len(self._running) < n_trials

    def taken_back(self) -> Requeued:
        """What `ask` took back from dead processes since this was asked last."""
        with self._lock:
            news, self._news = self._news, Requeued((), ())
            return news

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Report the objective after an epoch and ask whether to prune.

        A trial that is run again reports epochs a second time; the first report of an epoch stands, and pruning is
        asked from the last reported epoch on.

        Args:
            number: the trial.
            epoch: 0-based epoch that was just completed; Optuna's step is ``epoch + 1``, the completed epochs.
            value: the objective.

        Returns:
            True where the trial should be pruned; never after the last epoch, when nothing is left to save, and not
            while the database does not answer: reports wait then, and the trial goes on.

        Raises:
            TrialTaken: another process took the trial over; drop it.
        """
        from forge_sweep.study.database import Outage

        with self._lock, self._as_owner(number):
            step = epoch + 1
            if step < self._reported[number]:
                return False
            again = step == self._reported[number]
            if not again:
                self._unsent.setdefault(number, []).append((step, value))
                self._reported[number] = step
            if time.monotonic() < self._send_again:
                return False
            try:
                with self._storage.impatient():
                    return self._send_and_judge(number, step, again)
            except Outage as outage:
                self._storage.say_down(outage)
                self._send_again = time.monotonic() + SEND_AGAIN_S
                return False

    def _send_and_judge(self, number: int, step: int, again: bool) -> bool:
        """Write what was reported, and ask whether to prune; ``again``: an epoch that was reported before."""
        from forge_sweep.study import pruners

        self._send(number)
        if step >= self._experiment.study.epochs:
            return False
        trial = self._running[number]
        with pruners.quiet():
            prune = (again and trial.user_attrs.get(PRUNED_AT) == step) or self._should_prune(trial, step)
        if prune:  # kept, since successive halving lets a trial pass that it has judged before
            trial.set_user_attr(PRUNED_AT, step)
        return bool(prune)

    def _send(self, number: int) -> None:
        """Write the reports that wait, the oldest first."""
        unsent = self._unsent.get(number, [])
        while unsent:
            step, value = unsent[0]
            self._running[number].report(value, step)
            del unsent[0]

    def _should_prune(self, trial: optuna.Trial, step: int) -> bool:
        """Ask the pruner, unless it can have nothing to say since it was last asked by this process."""
        from forge_sweep.study import pruners

        spec = self._experiment.study
        before, self._judged[trial.number] = self._judged.get(trial.number, 0), step
        if not pruners.has_a_say(spec, before, step):
            return False
        if not pruners.looks_at_complete_trials_alone(spec):
            return trial.should_prune()
        known, self._n_complete = self._n_complete, self._storage.n_complete(self._study_id)
        with self._storage.unread() if known is not None and known == self._n_complete else contextlib.nullcontext():
            return trial.should_prune()

    def tell(
        self,
        number: int,
        state: Literal["finished", "pruned", "failed"],
        value: float | None = None,
        *,
        failure: Failure | Literal[""] = "",
        cause: str = "",
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """End a trial. Its attributes are written before its state: a trial that is done has them all.

        Args:
            number: the trial.
            state: how it ended; ``finished`` with a value that is NaN or infinite is recorded as failed, ``diverged``.
            value: the objective at the best epoch; None for a failed trial.
            failure: failure class of a failed trial.
            cause: its cause in one line.
            attrs: JSON values to keep with the trial.

        Raises:
            SweepStopped: a pruner is set and the trial never reported. It waits again and loses nothing.
            TrialTaken: another process took the trial over; nothing was changed.
        """
        with self._lock, self._as_owner(number):
            self._send(number)
            if state != "failed":
                self._check_reported(number)
            if state == "finished" and (value is None or not math.isfinite(value)):
                cause = f"{self._experiment.objective.metric} is {value} at the best epoch"
                state, failure, value = "failed", "diverged", None
            own: dict[str, Any] = {FAILURE: failure, CAUSE: cause} if state == "failed" else {}
            if value is not None and math.isfinite(value):
                own[VALUE] = value
            written = {**(attrs or {}), **own}
            if not written and not self._is_mine(number):
                raise self._taken(number)
            try:
                with self._storage.together():
                    self._write(number, written)
                    if failure == "out-of-memory":
                        self._running[number].set_constraint(MEMORY, 1.0)
                    ended = INFEASIBLE if failure == "out-of-memory" else _OPTUNA_STATES[state]
                    if state == "pruned" and VALUE in own:
                        self._end_pruned(number, own[VALUE])
                    else:
                        self._study.tell(number, value if state == "finished" else None, state_named(ended))
            except ValueError:  # the trial does not run any more: Optuna looks before anything is written
                if not self._is_mine(number):
                    raise self._taken(number) from None
                raise
            self._forget(number)

    def _end_pruned(self, number: int, value: float) -> None:
        """End a pruned trial with its value at the best epoch.

        ``optuna.Study.tell`` takes no value here and puts the last report in its place, so that optuna-dashboard would
        show another one than `rows` does. Samplers and pruners go by the reports of such a trial, not by its value.
        """
        trial_id = self._trial_id(number)
        if self._storage.get_trial(trial_id).state.name != "RUNNING":
            raise ValueError(f"trial {number} does not run any more")  # as Optuna has it
        self._storage.set_trial_state_values(trial_id, state_named("PRUNED"), [value])

    def _check_reported(self, number: int) -> None:
        pruner, metric = self._experiment.study.pruner, self._experiment.objective.metric
        if pruner == "none" or self._reported[number]:
            return
        self.put_back(number)
        raise SweepStopped(
            f'trial {number} ended without one report of {metric}: study.pruner = "{pruner}" never saw it',
            hint='call Study.report after each epoch, or set study.pruner = "none"',
        )

    def put_back(self, number: int) -> None:
        """Let a trial wait again, after Ctrl-C for example; this counts as no attempt.

        Where another process took it over, there is nothing to do.
        """
        with self._lock, contextlib.suppress(TrialTaken), self._owners.turn():
            self._release(number)
        self._forget(number)

    def lose(self, number: int) -> bool:
        """Take back a trial whose worker died while this process lives.

        Returns:
            Whether it runs again; False where it was begun three times already and failed as ``lost-worker``.
        """
        with self._lock:
            again = True
            with contextlib.suppress(TrialTaken), self._owners.turn():
                again = self._take_back(self._study.get_trials(deepcopy=False)[number])
            self._forget(number)
            return again

    @contextlib.contextmanager
    def _as_owner(self, number: int) -> Iterator[None]:
        """Say of which trial it is that another process took it over."""
        try:
            yield
        except TrialTaken:
            self._forget(number)
            raise self._taken(number) from None

    def spend(self, number: int, cost: TrialCost) -> None:
        """Keep what a trial that goes on, or waits again, has cost so far; `tell` takes it among its ``attrs``."""
        with self._lock, self._as_owner(number):
            self._write(number, {COST: cost.to_dict()})

    def _forget(self, number: int) -> None:
        self._running.pop(number, None)
        self._reported.pop(number, None)
        self._unsent.pop(number, None)
        self._judged.pop(number, None)

    def _trial_id(self, number: int) -> int:
        trial = self._running.get(number)
        return super()._trial_id(number) if trial is None else trial._trial_id


MEMORY = "memory"
"""Optuna's constraint that a trial violates which ran out of memory."""

INFEASIBLE = "PRUNED"
"""Optuna's state of such a trial: samplers with constraints read it, and keep away without taking it for a bad score.
Failed trials they do not read. `StudyView` shows it as failed."""

_OPTUNA_STATES = {"finished": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
