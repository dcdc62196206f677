"""What can be read of a study: by the sweep that runs it, and by status, trials, best and report beside it."""

from __future__ import annotations

import datetime
import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from forge_sweep.experiment import Params
from forge_sweep.study.cost import PHASES, Over, Progress, Spent, StateCost, TrialCost, by_state, over, union_s

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial
    from plotly.graph_objects import Figure

TrialState = Literal["finished", "pruned", "failed", "running", "waiting"]
TRIAL_STATES: tuple[TrialState, ...] = get_args(TrialState)

PREFIX = "forge."
"""Of every attribute that this package keeps for itself."""

IMPORTED = "forge.imported"
OWNER = "forge.owner"
PARAMS = "forge.params"
ATTEMPT = "forge.attempt"
FAILURE = "forge.failure"
CAUSE = "forge.cause"
VALUE = "forge.value"
COST = "forge.cost"
PRUNED_AT = "forge.pruned_at"
RESOLVED = "forge.resolved"
SKIPPED = "forge.skipped"
ACCEPTED = "forge.accepted"
NOTE = "forge.note."

SESSION = "search:"
"""Of the notes in which each command keeps when it searched, and for how long."""

PHASES_NOTE = "phases:"
"""Of the notes in which each command that carried the sweep keeps how long its phases took."""

STREAK = 3
"""Failures of one kind with one cause, one after the other, that say the sweep itself is broken."""

_STATES: dict[str, TrialState] = {
    "RUNNING": "running",
    "WAITING": "waiting",
    "COMPLETE": "finished",
    "PRUNED": "pruned",
    "FAIL": "failed",
}


@dataclass(frozen=True)
class TrialRow:
    """One trial as the study keeps it.

    Attributes:
        number: dense from 0; the trials that a fork imported come first.
        state: ``waiting`` is a trial that was interrupted and will be run again with the same number and parameters.
        value: the objective at the best epoch; None while the trial runs and where it failed.
        params: every hyperparameter, fixed ones included; searched ones only in the instant a trial is made.
        failure: failure class of a failed trial, else "".
        cause: its cause in one line, else "".
        epochs: completed epochs reported so far.
        seconds: wall clock of all attempts, from Optuna's clock of the last one where no cost was kept; None where
            nothing is known.
        cost: what all attempts took; None for an imported trial, and for one that has not cost a few seconds yet.
        attrs: what the sweep gave to `Study.tell`.
        attempt: 1, or more where a worker was lost.
        imported: ``<study>#<number>`` that a fork took the trial from, else "".
    """

    number: int
    state: TrialState
    value: float | None
    params: Params
    failure: str
    cause: str
    epochs: int
    seconds: float | None
    attrs: dict[str, Any]
    attempt: int = 1
    imported: str = ""
    cost: TrialCost | None = None


class FailingStreak(NamedTuple):
    """The last trials, which all failed in the same way.

    Attributes:
        failure: the failure class.
        cause: the cause in one line.
        numbers: the trials, in the order in which they ended.
    """

    failure: str
    cause: str
    numbers: tuple[int, ...]


class StudyView:
    """A study for reading; safe beside the process that runs it.

    Attributes:
        url: URL of its database. It may hold a password: do not log it.
    """

    def __init__(self, study: optuna.Study, url: str) -> None:
        self._study = study
        self.url = url

    @property
    def name(self) -> str:
        """Name of the study: the experiment's, or ``<experiment>-2`` and so on for a fork."""
        return self._study.study_name

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Whether the objective is maximised or minimised."""
        return "maximize" if self._study.direction.name == "MAXIMIZE" else "minimize"

    @property
    def resolved(self) -> dict[str, Any]:
        """The experiment that the study was last run with, as `Experiment.resolved` gave it."""
        resolved: dict[str, Any] = self._study.user_attrs[RESOLVED]
        return resolved

    @property
    def n_trials(self) -> int:
        """How many trials the sweep is to have in total, imported ones aside."""
        n_trials: int = self.resolved["study"]["n_trials"]
        return n_trials

    @property
    def n_done(self) -> int:
        """Trials that finished, were pruned or failed, imported ones aside."""
        return sum(trial.state.is_finished() for trial in self._own_trials())

    def counts(self) -> dict[TrialState, int]:
        """Trials by state, imported ones aside: finished, pruned, failed, running, waiting, those that there are."""
        states = [_state(trial) for trial in self._own_trials()]
        return {state: states.count(state) for state in TRIAL_STATES if state in states}

    def rows(self) -> list[TrialRow]:
        """All trials in order of their numbers, imported ones included."""
        return [_row(trial) for trial in self._study.get_trials(deepcopy=False)]

    def best(self) -> TrialRow | None:
        """The best finished trial, imported ones aside, the earlier of equals; None before the first."""
        sign = -1 if self.direction == "maximize" else 1
        finished = ((trial, _value(trial)) for trial in self._own_trials() if trial.state.name == "COMPLETE")
        ranked = ((sign * value, trial.number, trial) for trial, value in finished if value is not None)
        best = min(ranked, default=None)  # no two have the same number
        return None if best is None else _row(best[2])

    def failing_streak(self) -> FailingStreak | None:
        """The last three trials to end, where all of them failed in one way with one cause."""
        ended = ((t.datetime_complete, t.number, t) for t in self._own_trials() if t.datetime_complete is not None)
        last = [_row(trial) for _, _, trial in reversed(heapq.nlargest(STREAK, ended))]
        kinds = {(row.failure, row.cause) for row in last}
        if len(last) < STREAK or len(kinds) > 1 or last[0].state != "failed":
            return None
        return FailingStreak(*kinds.pop(), numbers=tuple(row.number for row in last))

    def reports(self, number: int) -> dict[int, float]:
        """What a trial reported after each epoch, by 0-based epoch."""
        trial = self._study.get_trials(deepcopy=False)[number]
        return {step - 1: value for step, value in sorted(trial.intermediate_values.items())}

    def costs(self) -> dict[int, TrialCost]:
        """What each trial cost so far, by its number, imported ones and those without a cost aside."""
        attrs = {trial.number: trial.user_attrs for trial in self._own_trials()}
        return {number: TrialCost.of(values[COST]) for number, values in attrs.items() if COST in values}

    def costs_by_state(self) -> list[StateCost]:
        """What the trials of each state cost together; see `by_state`."""
        return by_state(self.rows())

    def objectives(self) -> list[tuple[int, float | None]]:
        """Number and objective of each finished trial, None for a pruned one, in the order in which they ended."""
        states = {"COMPLETE": True, "PRUNED": False}
        ended = [
            (trial.datetime_complete, trial.number, trial.value if states[trial.state.name] else None)
            for trial in self._own_trials()
            if _state(trial) in ("finished", "pruned") and trial.datetime_complete is not None
        ]
        return [(number, value) for _, number, value in sorted(ended, key=lambda one: one[:2])]

    def progress(self, delta: float) -> Progress:
        """How many trials brought no gain of more than ``delta`` since the last one that did."""
        progress = Progress(self.direction, delta)
        for number, objective in self.objectives():
            progress.take(number, objective)
        return progress

    def wall_s(self) -> float:
        """Seconds in which at least one command searched, as far as they have told."""
        return union_s(self.notes(SESSION).values())

    def phases(self) -> dict[str, float]:
        """Seconds of each phase of the sweep, over all commands that carried it; see `cost.PHASES`.

        Empty for a study of an older version. Unlike `wall_s` it does not count what processes do that joined.
        """
        notes = list(self.notes(PHASES_NOTE).values())
        known = {name for note in notes for name in note}
        names = [*(name for name in PHASES if name in known), *sorted(known - set(PHASES))]
        return {name: round(sum(note.get(name, 0.0) for note in notes), 3) for name in names}

    def ended_by(self) -> Over | None:
        """The budget that ended the search before its ``n_trials``; None where none did."""
        return None if self.n_done >= self.n_trials else self.over()

    def over(self, limits: Mapping[str, Any] | None = None) -> Over | None:
        """The budget other than ``n_trials`` that is over; None while all hold.

        Args:
            limits: the values of ``[study]``; by default those that the study was last run with.
        """
        limits = self.resolved["study"] if limits is None else limits
        costs = [cost.total for cost in self.costs().values()]
        spent = Spent(
            wall_s=self.wall_s(),
            cpu_s=sum(cost.cpu_s for cost in costs),
            gpu_s=sum(cost.gpu_s for cost in costs),
            without_gain=self.progress(limits.get("plateau_delta") or 0.0).without_gain,
        )
        return over(limits, spent)

    def notes(self, prefix: str = "") -> dict[str, Any]:
        """What `Study.note` wrote under keys that begin with ``prefix``."""
        notes = {k.removeprefix(NOTE): v for k, v in self._study.user_attrs.items() if k.startswith(NOTE)}
        return {key: value for key, value in notes.items() if key.startswith(prefix)}

    def final(self) -> dict[str, Any] | None:
        """How the sweep ended last (verdict, winner, test score, model), or None where it has not."""
        ends = self.notes("final:").values()
        return max(ends, key=lambda note: float(note["ended"]), default=None)

    def figures(self) -> dict[str, Figure]:
        """Figures by name: ``history``, ``epochs``, ``importances``, ``parallel_coordinate``, ``slice``; see `draw`.

        One that the trials do not allow yet is left out: importances need ten finished ones.
        """
        from forge_sweep.study.figures import draw

        return draw(self._study, self.rows(), self.resolved["objective"]["metric"])

    def figures_html(self) -> dict[str, str]:
        """The same as parts of an HTML page; the first one carries the plotting library (5 MB) for all."""
        html: dict[str, str] = {}
        for name, figure in self.figures().items():
            html[name] = figure.to_html(full_html=False, include_plotlyjs=not html)
        return html

    def _own_trials(self) -> list[FrozenTrial]:
        return [trial for trial in self._study.get_trials(deepcopy=False) if IMPORTED not in trial.user_attrs]


def _row(trial: FrozenTrial) -> TrialRow:
    attrs = trial.user_attrs
    state = _state(trial)
    cost = TrialCost.of(attrs[COST]) if COST in attrs else None
    return TrialRow(
        number=trial.number,
        state=state,
        value=_value(trial) if state in ("finished", "pruned") else None,
        params=dict(attrs.get(PARAMS, trial.params)),
        failure=attrs.get(FAILURE, "") if state == "failed" else "",
        cause=attrs.get(CAUSE, "") if state == "failed" else "",
        epochs=trial.last_step or 0,
        seconds=_seconds(trial.datetime_start, trial.datetime_complete) if cost is None else cost.total.seconds,
        attrs={key: value for key, value in attrs.items() if not key.startswith(PREFIX)},
        attempt=attrs.get(ATTEMPT, 1),
        imported=attrs.get(IMPORTED, ""),
        cost=cost,
    )


def _state(trial: FrozenTrial) -> TrialState:
    """A trial that ran out of memory is pruned for Optuna, as an infeasible one; for people it failed."""
    return "failed" if FAILURE in trial.user_attrs and trial.state.is_finished() else _STATES[trial.state.name]


def _value(trial: FrozenTrial) -> float | None:
    """The objective at the best epoch."""
    value: float | None = trial.user_attrs.get(VALUE, trial.value)
    return value


def _seconds(start: datetime.datetime | None, end: datetime.datetime | None) -> float | None:
    if start is None or end is None:
        return None
    seconds = (end - start).total_seconds()
    return seconds if math.isfinite(seconds) else None
