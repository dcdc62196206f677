"""The worker's side of a study."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from forge_sweep.errors import Failure, SweepStopped
from forge_sweep.experiment import Experiment, Params
from forge_sweep.study.space import suggest
from forge_sweep.study.storage import embedded_url, holding
from forge_sweep.study.view import (
    ACCEPTED,
    ATTEMPT,
    CAUSE,
    FAILURE,
    NOTE,
    PARAMS,
    PRUNED_AT,
    RESOLVED,
    SKIPPED,
    VALUE,
    StudyView,
)

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from forge_sweep.study.rows import Storage

_log = logging.getLogger("forge_sweep")

MAX_ATTEMPTS = 3
"""A trial whose process died this often fails: it may be the trial that kills it."""


@dataclass(frozen=True)
class Asked:
    """A trial to run.

    Attributes:
        number: dense from 0; the seed of the trial follows from it.
        params: every hyperparameter with its value; conditional ones only where they are active.
        attempt: 1, or more where the trial's process died.
        made: seconds since 1970 when this process made the trial; 0 where it had waited, so that another process may
            have begun it.
    """

    number: int
    params: Params
    attempt: int
    made: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Requeued:
    """The trials that a dead process left running.

    Attributes:
        waiting: numbers of those that wait and will be run again.
        lost: numbers of those that failed as ``lost-worker``: they were begun too often already.
    """

    waiting: tuple[int, ...]
    lost: tuple[int, ...]


class Study(StudyView):
    """The study of one experiment, for the process that runs it.

    Ask, run, report, tell: each trial that `ask` gives is ended by `tell`, `put_back` or `lose` of the same object.
    Threads may share the object. `hold` it and `requeue` before the first `ask`::

        with study.hold():
            study.requeue()
            while asked := study.ask():
                ...
                study.tell(asked.number, "finished", value)

    With one worker, parameters depend on nothing but the experiment, its seed and the values told, however often the
    sweep was interrupted.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: Storage,
        url: str,
        experiment: Experiment,
        store: Path,
    ) -> None:
        super().__init__(study, url)
        self._storage = storage
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._experiment = experiment
        self._store = store
        self._lock = threading.RLock()
        self._running: dict[int, optuna.Trial] = {}
        self._reported: dict[int, int] = {}  # trial number -> completed epochs reported
        self._judged: dict[int, int] = {}  # trial number -> completed epochs that the pruner was last asked at

    @property
    def n_trials(self) -> int:
        """How many trials the sweep is to have in total, imported ones aside; fewer where a grid has fewer points."""
        size = getattr(self._study.sampler, "size", None)
        wanted = self._experiment.study.n_trials
        return wanted if size is None else min(wanted, size)

    @property
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
    def hold(self) -> Iterator[None]:
        """Be the only process that runs the study, until the block ends or the process dies.

        Only processes of this machine with the same store folder are seen. On a database of ``FORGE_SWEEP_STORAGE``,
        which others can reach, a study must be run by one machine and one store folder at a time: `requeue` takes the
        live trials of another for those of a dead process. A warning is logged there.

        Raises:
            SweepStopped: another process runs it; the message names its pid.
        """
        with holding(self._store, self.name):
            if self.url != embedded_url(self._store):
                _log.warning(_UNGUARDED, self.name, self._store)
            self._study.set_user_attr(RESOLVED, self._experiment.resolved())  # the budget may have changed
            yield

    def requeue(self) -> Requeued:
        """Take back the trials of a process that died; call it under `hold`, before the first `ask`.

        A trial that still counts as running has no living owner then (but see `hold` for shared databases). It waits
        again, with its number and parameters, or fails as ``lost-worker`` when it was begun three times already.
        """
        running = [trial for trial in self._own_trials() if trial.state.name == "RUNNING"]
        waits = {trial.number: self._take_back(trial) for trial in running}
        return Requeued(
            waiting=tuple(number for number, again in waits.items() if again),
            lost=tuple(number for number, again in waits.items() if not again),
        )

    def _take_back(self, trial: FrozenTrial) -> bool:
        attempt = trial.user_attrs.get(ATTEMPT, 1)
        if attempt >= MAX_ATTEMPTS:
            cause = f"the process ended {attempt} times before the trial did"
            self._write(trial.number, {FAILURE: "lost-worker", CAUSE: cause})
            self._study.tell(trial.number, state=_state("FAIL"))
            return False
        self._write(trial.number, {ATTEMPT: attempt + 1})
        self._wait(trial.number)
        return True

    def ask(self) -> Asked | None:
        """The next trial, or None when ``n_trials`` are done or under way.

        Finished, pruned and failed trials count as done. A waiting trial comes before a new one.
        """
        with self._lock:
            if not self._any_left():
                return None
            asked_at, trial = time.time(), self._study.ask()
            attrs = trial.user_attrs
            begun = PARAMS in attrs  # an earlier `ask` gave it to somebody
            before = self._storage.get_trial(trial._trial_id).last_step if begun else 0
            with self._storage.together():
                params = suggest(trial, self._experiment.space)
                trial.set_user_attr(PARAMS, params)
            self._running[trial.number] = trial
            self._reported[trial.number] = before or 0
            return Asked(trial.number, params, attrs.get(ATTEMPT, 1), 0.0 if begun else asked_at)

    def _any_left(self) -> bool:
        trials, n_trials = self._own_trials(), self.n_trials
        n_done = sum(trial.state.is_finished() for trial in trials)
        waiting = any(trial.state.name == "WAITING" for trial in trials)
        return n_done < n_trials and (waiting or len(trials) < n_trials)

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Report the objective after an epoch and ask whether to prune.

        A trial that is run again reports epochs a second time; the first report of an epoch stands, and pruning is
        asked from the last reported epoch on.

        Args:
            number: the trial.
            epoch: 0-based epoch that was just completed; Optuna's step is ``epoch + 1``, the completed epochs.
            value: the objective.

        Returns:
            True where the trial should be pruned; never after the last epoch, when nothing is left to save.
        """
        from forge_sweep.study import pruners

        with self._lock:
            trial, step = self._running[number], epoch + 1
            if step < self._reported[number]:
                return False
            again = step == self._reported[number]
            if not again:
                trial.report(value, step)
                self._reported[number] = step
            if step >= self._experiment.study.epochs:
                return False
            with pruners.quiet():
                prune = (again and trial.user_attrs.get(PRUNED_AT) == step) or self._should_prune(trial, step)
            if prune:  # kept, since successive halving lets a trial pass that it has judged before
                trial.set_user_attr(PRUNED_AT, step)
            return prune

    def _should_prune(self, trial: optuna.Trial, step: int) -> bool:
        """Ask the pruner, unless it can have nothing to say since it was last asked by this process."""
        from forge_sweep.study import pruners

        before, self._judged[trial.number] = self._judged.get(trial.number, 0), step
        return pruners.has_a_say(self._experiment.study, before, step) and trial.should_prune()

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
        """
        with self._lock:
            if state != "failed":
                self._check_reported(number)
            if state == "finished" and (value is None or not math.isfinite(value)):
                cause = f"{self._experiment.objective.metric} is {value} at the best epoch"
                state, failure, value = "failed", "diverged", None
            own: dict[str, Any] = {FAILURE: failure, CAUSE: cause} if state == "failed" else {}
            if value is not None and math.isfinite(value):
                own[VALUE] = value
            with self._storage.together():
                self._write(number, {**(attrs or {}), **own})
                self._study.tell(number, value if state == "finished" else None, _state(_OPTUNA_STATES[state]))
            self._forget(number)

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
        """Let a trial wait again, after Ctrl-C for example; this counts as no attempt."""
        with self._lock:
            self._wait(number)
            self._forget(number)

    def lose(self, number: int) -> bool:
        """Take back a trial whose worker died while this process lives.

        Returns:
            Whether it waits again; False where it was begun three times already and failed as ``lost-worker``.
        """
        with self._lock:
            again = self._take_back(self._study.get_trials(deepcopy=False)[number])
            self._forget(number)
            return again

    def note(self, key: str, value: Any) -> None:
        """Keep a JSON value with the study, such as ``baseline:xgboost``: what a sweep has behind it besides trials."""
        self._study.set_user_attr(f"{NOTE}{key}", value)

    def _forget(self, number: int) -> None:
        self._running.pop(number, None)
        self._reported.pop(number, None)
        self._judged.pop(number, None)

    def _write(self, number: int, attrs: Mapping[str, Any]) -> None:
        for key, value in attrs.items():
            self._storage.set_trial_user_attr(self._trial_id(number), key, value)

    def _wait(self, number: int) -> None:
        self._storage.set_trial_state_values(self._trial_id(number), _state("WAITING"))

    def _trial_id(self, number: int) -> int:
        trial = self._running.get(number)
        if trial is not None:
            return trial._trial_id
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


_UNGUARDED = (
    "study %s is on the database of FORGE_SWEEP_STORAGE: run it on one machine and with one store folder (%s) at a "
    "time, since a second one would begin its running trials again"
)
_OPTUNA_STATES = {"finished": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}


def _state(name: str) -> optuna.trial.TrialState:
    from optuna.trial import TrialState

    return TrialState[name]
