"""What can be read of a study: by the sweep that runs it, and by status, trials, best and report beside it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from forge_sweep.checks.findings import Finding
from forge_sweep.errors import InputError
from forge_sweep.experiment import ROW_SHARES, Params
from forge_sweep.study.budget import (
    CONFIRM_SHARE,
    END_S,
    LEAST_SHARE,
    PHASES,
    ROOM,
    Over,
    Progress,
    Spent,
    over,
    union_s,
)
from forge_sweep.study.space import key_of

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial
    from plotly.graph_objects import Figure

    from forge_sweep.checks.pruning import PruningAudit
    from forge_sweep.study.outlook import Outlook
    from forge_sweep.study.pareto import Front

TrialState = Literal["finished", "pruned", "failed", "running", "waiting", "outside"]
PREFIX = "forge."  # of every attribute that this package keeps for itself


class Attr:
    """Names of the attributes that studies and trials carry, as every version has written them."""

    EXPERIMENT = "forge.experiment"  # written last: a study without it was never completed, or is not ours
    RESOLVED = "forge.resolved"
    SPACES = "forge.spaces"  # of a study whose search space changed: each of them, the last one holds; see `growth`
    SEEDS = "forge.seeds"  # of a finished trial as it is shown: over how many its value is the mean; see `repeats`
    OUTSIDE = "forge.outside"  # of a trial as it is shown: why it lies outside of the space, and its state
    CODE = "forge.code"  # of the user's own builder and source: a digest of each file, so that the edited one is named
    SIZE = "forge.size"  # of the space, in trials; None where it has no end, or configurations are repeated
    SKIPPED = "forge.skipped"
    WARM = "forge.warm_start"  # of a trial: where its configuration is from; "" for a builder's recommended values
    COLD = "forge.warm_start_left"  # of a study: why nothing was taken from an earlier one
    ACCEPTED = "forge.accepted"
    NOTE = "forge.note."
    IMPORTED = "forge.imported"
    OWNER = "forge.owner"
    PARAMS = "forge.params"
    ATTEMPT = "forge.attempt"
    PRUNED_AT = "forge.pruned_at"
    BEATEN_BY = "forge.beaten_by"  # with several objectives: the trials because of which one was pruned
    RESULT = "forge.result"  # the others, in one transaction: what a trial has cost and reported so far, how it ended
    COST = "forge.cost"
    CURVE = "forge.curve"
    POINTS = "forge.points"  # with several objectives, all of them by completed epochs; see `pareto.Track`
    VALUE = "forge.value"
    VALUES = "forge.values"  # with several objectives, all of them at the end
    FAILURE = "forge.failure"
    CAUSE = "forge.cause"


SESSION = "search:"  # of the notes in which each command keeps when it searched, and for how long
LOST = "lost"  # row of a table of costs: what was spent and gave nothing
PHASES_NOTE = "phases:"  # of the notes in which each command that ran the sweep keeps how long its phases took
SAMPLER_NOTE = "sampler"  # of the note in which a study keeps which files of OptunaHub it samples with
NULL_NOTE = "null"  # of what a null sweep found; ``null:000003:7`` is of trial 7 on the third permutation
STREAK = 3  # failures of one kind with one cause, one after the other, that say the sweep itself is broken

OPTUNA_STATES: dict[TrialState, str] = {
    "finished": "COMPLETE",
    "pruned": "PRUNED",
    "failed": "FAIL",
    "running": "RUNNING",
    "waiting": "WAITING",
}
OUR_STATES: dict[str, TrialState] = {theirs: ours for ours, theirs in OPTUNA_STATES.items()}


def recorded(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The experiment that the study with these attributes was last run with, as `Experiment.resolved` gave it."""
    resolved = dict(attrs[Attr.RESOLVED])
    if spaces := attrs.get(Attr.SPACES):
        resolved["model"] = {**resolved["model"], "search": spaces[-1]["search"]}
    return resolved


@dataclass(frozen=True)
class Cost:
    """What a training took."""

    seconds: float = 0.0  # wall clock
    cpu_s: float = 0.0  # CPU seconds of the process that trained, over all of its threads
    gpu_s: float = 0.0  # device-seconds: wall clock times the GPUs, or the part of one, that were held

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.cpu_s + other.cpu_s, self.gpu_s + other.gpu_s)

    def __sub__(self, other: Cost) -> Cost:
        return self + other * -1

    def __mul__(self, share: float) -> Cost:
        return Cost(self.seconds * share, self.cpu_s * share, self.gpu_s * share)

    def words(self) -> str:
        """For people, such as ``12.5 s (11.9 CPU-seconds)``."""
        more = [(self.cpu_s, "CPU-seconds"), (self.gpu_s, "GPU-seconds")]
        listed = ", ".join(f"{value:.1f} {unit}" for value, unit in more if value)
        return f"{self.seconds:.1f} s" + (f" ({listed})" if listed else "")

    def to_dict(self) -> dict[str, float]:
        """JSON values that `of` reads, to the millisecond."""
        return {name: round(value, 3) for name, value in asdict(self).items()}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Cost:
        """The cost that `to_dict` gave."""
        return cls(*(float(values[field.name]) for field in fields(cls)))


NOTHING = Cost()


@dataclass(frozen=True)
class TrialCost:
    """What one trial cost so far, over all of its attempts."""

    total: Cost = NOTHING
    lost: Cost = NOTHING  # what gave nothing: attempts whose process died, and epochs that had to be trained again
    epochs: int = 0  # how many completed epochs the rest gave

    @property
    def kept(self) -> Cost:
        """What is not lost."""
        return self.total - self.lost

    def resumed_at(self, epoch: int) -> TrialCost:
        """The same when the trial goes on with the 0-based ``epoch``: those from there on are trained again.

        What they had cost is not known singly: each counts alike, the preparations among them.
        """
        if epoch >= self.epochs:
            return self
        again = 1 - epoch / self.epochs
        return TrialCost(self.total, self.lost + self.kept * again, epoch)

    def to_dict(self) -> dict[str, Any]:
        """JSON values that `of` reads."""
        return {**self.total.to_dict(), "lost": self.lost.to_dict(), "epochs": self.epochs}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrialCost:
        """The cost that `to_dict` gave."""
        return cls(Cost.of(values), Cost.of(values["lost"]), int(values["epochs"]))


NO_COST = TrialCost()


@dataclass(frozen=True)
class TrialRow:
    """One trial as the study keeps it."""

    number: int  # dense from 0; the trials that a fork imported come first
    state: TrialState  # a waiting one was interrupted and will be run again; ``outside``: see `outside`
    value: float | None  # the objective at the best epoch; None while the trial runs and where it failed
    params: Params  # every hyperparameter, fixed ones included; searched ones only in the instant a trial is made
    failure: str  # failure class of a failed trial, else ""
    cause: str  # its cause in one line, else ""
    epochs: int  # completed epochs reported so far
    seconds: float | None  # wall clock of all attempts; None where nothing is known
    attrs: dict[str, Any]  # what the sweep gave to `Study.tell`
    attempt: int = 1  # more where a worker was lost
    imported: str = ""  # ``<study>#<number>`` that a fork took the trial from
    cost: TrialCost | None = None  # None for an imported trial, and for one that has not cost a few seconds yet
    warm: str = ""  # ``<study>#<number>`` that a warm start took its configuration from
    seeds: int = 1  # finished trials with its configuration, where these are averaged; see `mean`
    mean: float | None = None  # of the objective over these; None with one seed
    outside: str = ""  # why it counts no more since the search space changed, and how it had ended
    values: tuple[float, ...] = ()  # with several objectives, those of a finished trial, in their order
    beaten_by: tuple[int, ...] = ()  # with several objectives: the trials because of which it was pruned

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What its training says of itself; see `checks.diagnose`."""
        return tuple(Finding(**{**each, "rows": tuple(each["rows"])}) for each in self.attrs.get("findings", ()))

    @property
    def measured(self) -> dict[str, float]:
        """What was measured of a trained model, by name: what ``[constraints]`` limits, and what is an objective."""
        return dict(self.attrs.get("measured", {}))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What else there is to say of it, in words."""
        ended, said = self.attrs.get("ended_after"), []
        if self.failure:
            how = "is infeasible" if self.failure == "infeasible" else f"failed ({self.failure})"
            said.append(f"{how}: {self.cause}")
        if self.warm:
            said.append(f"has the configuration of {self.warm}")
        if self.mean is not None:
            said.append(f"has a configuration of {self.seeds} seeds, on average {self.mean:.6g}")
        if self.outside:
            said.append(f"lies outside of the search space of now: {self.outside}")
        if self.beaten_by:
            few = ", ".join(map(str, self.beaten_by[:5])) + ", ..." * (len(self.beaten_by) > 5)
            said.append(f"was pruned after epoch {self.epochs}: trials {few} were better in every objective then")
        if ended is not None:
            said.append(f"was ended after epoch {ended}, for the time of the whole sweep")
        return tuple(said)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        told = ("number", "state", "value", "params", "failure", "cause", "epochs", "seconds")
        names = (*told, "imported", "warm", "seeds", "mean", "outside", "measured")
        cost = None if self.cost is None else self.cost.to_dict()
        codes = [each.code for each in self.findings]
        several = {"values": list(self.values)} if self.values else {}
        return {**{name: getattr(self, name) for name in names}, **several, "cost": cost, "findings": codes}


@dataclass(frozen=True)
class StateCost:
    """What the trials of one state cost together."""

    state: str  # a `TrialState`, or ``lost`` for all that gave nothing
    count: int  # trials; for ``lost``, attempts whose process died
    cost: Cost  # without what is ``lost``
    share: float  # of the wall clock of all trials, 0 to 1

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"state": self.state, "count": self.count, **self.cost.to_dict(), "share": round(self.share, 4)}


class FailingStreak(NamedTuple):
    """The last trials, by their numbers in the order in which they ended, which all failed in the same way."""

    failure: str
    cause: str
    numbers: tuple[int, ...]


class StudyView:
    """A study for reading; safe beside the process that runs it.

    Attributes:
        name: the experiment's, or ``<experiment>-2`` and so on for a fork.
        url: of its database. It may hold a password: do not log it.
        direction: whether the objective is maximised or minimised; of several the first.
    """

    def __init__(self, study: optuna.Study, url: str) -> None:
        self._study = study
        self.name = study.study_name
        self.url = url
        ways: list[Literal["maximize", "minimize"]] = [
            "maximize" if each.name == "MAXIMIZE" else "minimize" for each in study.directions
        ]
        self.direction = ways[0]
        self._ways = ways

    @property
    def resolved(self) -> dict[str, Any]:
        """The experiment that the study was last run with, as `Experiment.resolved` gave it."""
        return recorded(self._study.user_attrs)

    @property
    def trainings(self) -> int:
        """See `Experiment.trainings`."""
        split, by_rows = self.resolved["data"]["split"], self.resolved["study"].get("fidelity") == "rows"
        return len(ROW_SHARES) if by_rows else int(split.get("folds", 1)) * int(split.get("repeats", 1))

    @property
    def step(self) -> str:
        """See `Experiment.step`."""
        by_rows = self.resolved["study"].get("fidelity") == "rows"
        return "rung" if by_rows else "epoch" if self.trainings == 1 else "fold"

    @property
    def directions(self) -> dict[str, Literal["maximize", "minimize"]]:
        """Of each objective by its name; with several the first is the one that trials are judged by."""
        objective = self.resolved["objective"]
        return dict(zip(objective.get("metrics") or [objective["metric"]], self._ways, strict=True))

    def front(self) -> Front | None:
        """The Pareto front of the finished trials, imported ones aside; None with one objective, and before the first.

        Infeasible trials, which are above a limit of ``[constraints]``, count as failed.
        """
        if len(self._ways) == 1:
            return None
        from forge_sweep.study.pareto import Front

        finished = {
            trial.number: trial
            for trial in self._own_trials()
            if state_of(trial) == "finished" and Attr.VALUES in attrs_of(trial)
        }
        values = {number: attrs_of(trial)[Attr.VALUES] for number, trial in finished.items()}
        tolerance = self.resolved["objective"].get("tolerance")
        curves = [list(curve(trial).values()) for trial in finished.values()] if tolerance is None else []
        return Front.of(values, self.directions, tolerance, curves)

    def findings(self, final: Mapping[str, Any] | None = None) -> tuple[Finding, ...]:
        """What the trials say together; see `checks.search`. ``final``: how the sweep ended, if not noted yet."""
        from forge_sweep.study import diagnosis

        return diagnosis.findings(self, self._study, final or self.final() or {})

    def audit(self) -> PruningAudit | None:
        """What the audit of pruned trials found so far; None where none was asked for, or nothing was pruned."""
        from forge_sweep.study import diagnosis

        return diagnosis.audit(self)

    def null(self) -> dict[str, Any] | None:
        """What the null sweep found, as JSON values with ``p`` and ``words``; None where there was none."""
        return self.notes(NULL_NOTE).get(NULL_NOTE)

    def spaces(self) -> list[dict[str, Any]]:
        """The search spaces that the study has had, the last one holds; empty where it never changed.

        Each with ``at`` and ``changes`` (but for the first), the number of ``trials`` that there were, and by the
        numbers of those ``outside`` of it why.
        """
        return [dict(space) for space in self._study.user_attrs.get(Attr.SPACES, ())]

    def outlook(self) -> Outlook | None:
        """What more trials are expected to gain, and at which price; None where too few have ended."""
        from forge_sweep.study.outlook import outlook

        return outlook(self)

    @property
    def n_trials(self) -> int:
        """How many trials the sweep is to have in total, imported ones aside; fewer where the space has fewer."""
        return self.bounded(int(self.resolved["study"]["n_trials"]))

    def bounded(self, n_trials: int) -> int:
        """So many trials, or as many as the space has configurations."""
        size = self._study.user_attrs.get(Attr.SIZE)
        return n_trials if size is None else min(n_trials, int(size))

    @property
    def all_tried(self) -> str:
        """Says that every configuration of the space was tried, where more trials were asked for; else ""."""
        wanted = int(self.resolved["study"]["n_trials"])
        if self.n_trials == wanted or self.n_done < self.n_trials:
            return ""
        return f"all {self.n_trials} configurations of the space were tried, and study.n_trials = {wanted}"

    @property
    def n_done(self) -> int:
        """Trials that finished, were pruned or failed, imported ones aside."""
        return sum(trial.state.is_finished() for trial in self._own_trials())

    def counts(self) -> dict[TrialState, int]:
        """Trials by state: finished, pruned, failed, running, waiting, those that there are.

        Imported ones and those outside of the search space are not among them.
        """
        states = [state_of(trial) for trial in self._own_trials()]
        return {state: states.count(state) for state in OPTUNA_STATES if state in states}

    def rows(self) -> list[TrialRow]:
        """All trials in order of their numbers, imported ones included."""
        return [_row(trial) for trial in self._study.get_trials(deepcopy=False)]

    def row(self, number: int) -> TrialRow:
        """One trial; InputError where there is none of this number."""
        rows = self.rows()
        if not 0 <= number < len(rows):
            known = f"it has 0 to {len(rows) - 1}" if rows else "it has none yet"
            raise InputError(f"{self.name} has no trial {number}", hint=known)
        return rows[number]

    def best(self) -> TrialRow | None:
        """The best finished trial, imported ones aside, the earlier of equals; None before the first.

        Where repeats are averaged it is the first of the best configuration, and has the mean as its value.
        """
        best = min(self._ranked(), default=None)  # no two have the same number
        return None if best is None else _whole_row(best[2])

    def ranked(self) -> list[TrialRow]:
        """The finished trials, imported ones aside, the best first, the earlier of equals before the later.

        Where repeats are averaged, the first trial of each configuration, with the mean as its value.
        """
        return [_whole_row(trial) for _, _, trial in sorted(self._ranked())]

    def _ranked(self) -> Iterator[tuple[float, int, FrozenTrial]]:
        sign, seen = -1 if self.direction == "maximize" else 1, set[str]()
        for trial in self._own_trials():
            value = trial.value if Attr.SEEDS in trial.user_attrs else _value(trial)
            if state_of(trial) != "finished" or value is None:
                continue
            if Attr.SEEDS in trial.user_attrs:
                key = key_of(trial.user_attrs[Attr.PARAMS])
                if key in seen:
                    continue
                seen.add(key)
            yield sign * value, trial.number, trial

    def failing_streak(self) -> FailingStreak | None:
        """The last three trials to end, where all of them failed in one way with one cause."""
        last = [_row(trial) for trial in self._ended()[-STREAK:]]
        kinds = {(row.failure, row.cause) for row in last}
        if len(last) < STREAK or len(kinds) > 1 or last[0].failure in ("", "infeasible"):
            return None
        return FailingStreak(*kinds.pop(), numbers=tuple(row.number for row in last))

    def reports(self, number: int) -> dict[int, float]:
        """What a trial reported after each epoch, by 0-based epoch."""
        trial = self._study.get_trials(deepcopy=False)[number]
        return {step - 1: value for step, value in curve(trial).items()}

    def costs(self) -> dict[int, TrialCost]:
        """What each trial cost so far, by its number, imported ones and those without a cost aside."""
        trials = (trial for trial in self._study.get_trials(deepcopy=False) if Attr.IMPORTED not in trial.user_attrs)
        attrs = {trial.number: attrs_of(trial) for trial in trials}  # what lies outside of the space has cost, too
        return {number: TrialCost.of(values[Attr.COST]) for number, values in attrs.items() if Attr.COST in values}

    def costs_by_state(self) -> list[StateCost]:
        """What the trials of each state cost, imported ones aside; ``lost`` comes last, and only where there is any."""
        counts, costs = Counter[str](), defaultdict[str, Cost](Cost)
        for row in (row for row in self.rows() if not row.imported):
            given_up = row.failure == "lost-worker"  # then its last attempt gave nothing either
            cost, died = row.cost or NO_COST, row.attempt - 1 + given_up
            lost = cost.total if given_up else cost.lost
            counts[row.state] += 1
            costs[row.state] += cost.total - lost
            if died or lost != NOTHING:
                counts[LOST] += died
                costs[LOST] += lost
        seconds = sum(cost.seconds for cost in costs.values()) or 1.0
        states = [state for state in (*OPTUNA_STATES, "outside", LOST) if state in costs]
        return [StateCost(state, counts[state], costs[state], costs[state].seconds / seconds) for state in states]

    def objectives(self) -> list[tuple[int, float | None]]:
        """Number and objective of each finished trial, None for a pruned one, in the order in which they ended."""
        states = [(trial, state_of(trial)) for trial in self._ended()]
        scored = [(trial, state) for trial, state in states if state in ("finished", "pruned")]
        return [(trial.number, _value(trial) if state == "finished" else None) for trial, state in scored]

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
        """Seconds of each phase of `PHASES`, over all commands that ran the sweep; those that joined do not count."""
        notes = list(self.notes(PHASES_NOTE).values())
        known = {name for note in notes for name in note}
        names = [*(name for name in PHASES if name in known), *sorted(known - set(PHASES))]
        return {name: round(sum(note.get(name, 0.0) for note in notes), 3) for name in names}

    def total_s(self) -> float:
        """Seconds of all phases."""
        return sum(self.phases().values())

    def confirm_s(self, top: int, seeds: int, *, ahead: bool = False) -> float:
        """About how long it takes to train the best ``top`` configurations and the best baseline with so many seeds.

        From what they took in the search: the best finished trials, and the best baseline. ``ahead``: more trials are
        to finish, so that there will be as many.
        """
        sign = 1 if self.direction == "maximize" else -1
        best = [row for row in self.ranked() if row.cost][:top]
        seconds = sum(row.cost.total.seconds for row in best if row.cost)
        if ahead and best:
            seconds *= max(1.0, min(top, self.n_trials) / len(best))
        fitted = [note for note in self.notes("baseline:").values() if note.get("value") is not None]
        if fitted:
            first = max(fitted, key=lambda note: sign * note["value"])
            seconds += first.get("seconds", 0.0) / first.get("tried", 1)  # of a tuned one they are those of all fits
        workers = self.resolved.get("workers", {})
        at_once = 1 if workers.get("kind", "serial") == "serial" else workers.get("n") or 1
        return seeds * seconds / at_once

    def confirmable(self, top: int, seeds: int, seconds: float, *, ahead: bool = False) -> tuple[int, int]:
        """How many configurations and seeds can be confirmed in so many seconds, one at least: seeds are kept first."""
        while self.confirm_s(top, seeds, ahead=ahead) > seconds and (top, seeds) != (1, 1):
            top, seeds = (top - 1, seeds) if top > 1 else (1, seeds - 1)
        return top, seeds

    def end_s(self) -> float:
        """For how long a search leaves room: to confirm, within limits, and for test evaluation and registration."""
        confirm, total_s = self.resolved.get("confirm", {}), self.resolved["study"].get("total_s") or float("inf")
        most = CONFIRM_SHARE * total_s / ROOM
        sizes = self.confirmable(confirm.get("top", 3), confirm.get("seeds", 3), most, ahead=True)
        return END_S + ROOM * self.confirm_s(*sizes, ahead=True)

    def next_s(self) -> float:
        """Seconds that have to be left for another trial: part of what the median one took that ended with a score."""
        rows = [row for row in self.rows() if row.state in ("finished", "pruned") and not row.imported and row.cost]
        return LEAST_SHARE * median(row.cost.total.seconds for row in rows if row.cost) if rows else 0.0

    def ended_by(self) -> Over | None:
        """The budget that ended the search before its ``n_trials``; None where none did."""
        return None if self.n_done >= self.n_trials else self.over()

    def over(self, limits: Mapping[str, Any] | None = None) -> Over | None:
        """The exhausted budget other than ``n_trials``, by default of those the study was last run with; else None."""
        limits = self.resolved["study"] if limits is None else limits
        costs = [cost.total for cost in self.costs().values()]
        spent = Spent(
            wall_s=self.wall_s(),
            cpu_s=sum(cost.cpu_s for cost in costs),
            gpu_s=sum(cost.gpu_s for cost in costs),
            without_gain=self.progress(limits.get("plateau_delta") or 0.0).without_gain,
        )
        if limits.get("total_s") is not None:
            spent = replace(spent, total_s=self.total_s(), end_s=self.end_s(), next_s=self.next_s())
        return over(limits, spent)

    def notes(self, prefix: str = "") -> dict[str, Any]:
        """What `Study.note` wrote under keys that begin with ``prefix``."""
        notes = {k.removeprefix(Attr.NOTE): v for k, v in self._study.user_attrs.items() if k.startswith(Attr.NOTE)}
        return {key: value for key, value in notes.items() if key.startswith(prefix)}

    def final(self) -> dict[str, Any] | None:
        """How the sweep ended last (verdict, winner, test score, model), or None where it has not."""
        ends = self.notes("final:").values()
        return max(ends, key=lambda note: float(note["ended"]), default=None)

    def figures(self) -> dict[str, Figure]:
        """Each figure that the trials allow, by name; see `figures.draw`."""
        from forge_sweep.study.figures import draw

        return draw(self._study, self.rows(), self.resolved["objective"]["metric"], curve, self.step, self.front())

    def figures_html(self) -> dict[str, str]:
        """The same as parts of an HTML page; the first one carries the plotting library (5 MB) for all."""
        html: dict[str, str] = {}
        for name, figure in self.figures().items():
            html[name] = figure.to_html(full_html=False, include_plotlyjs=not html)
        return html

    def _own_trials(self) -> list[FrozenTrial]:
        """Those that count: neither imported ones nor those outside of the search space."""
        aside = {Attr.IMPORTED, Attr.OUTSIDE}
        return [trial for trial in self._study.get_trials(deepcopy=False) if aside.isdisjoint(trial.user_attrs)]

    def _ended(self) -> list[FrozenTrial]:
        """Those that ended, in that order."""
        ended = ((t.datetime_complete, t.number, t) for t in self._own_trials() if t.datetime_complete is not None)
        return [trial for _, _, trial in sorted(ended)]


def infeasible_words(view: StudyView) -> str:
    """What ``[constraints]`` left out, in a sentence; "" where that is nothing."""
    above = [row for row in view.rows() if row.failure == "infeasible" and not row.imported]
    notes = view.notes("baseline:").items()
    trees = [key.removeprefix("baseline:") for key, note in notes if note.get("value") is None and "infeasible" in note]
    parts = []
    if above:
        parts.append(
            f"{len(above)} of {view.n_done} trials, the last of them trial {above[-1].number} ({above[-1].cause})"
        )
    if trees:
        parts.append(f"the baseline{'s' * (len(trees) > 1)} {', '.join(trees)}")
    return f"Above a limit of [constraints], and so left out: {' and '.join(parts)}." if parts else ""


def attrs_of(trial: FrozenTrial) -> dict[str, Any]:
    """What is kept of a trial; versions before `Attr.RESULT` kept an attribute of each."""
    return {**trial.user_attrs, **trial.user_attrs.get(Attr.RESULT, {})}


def curve(trial: FrozenTrial) -> dict[int, float]:
    """What a trial reported, by completed epochs."""
    kept = {int(step): float(value) for step, value in attrs_of(trial).get(Attr.CURVE, {}).items()}
    of_several = {step: point[0] for step, point in points_of(trial).items()}
    return dict(sorted({**of_several, **trial.intermediate_values, **kept}.items()))


def points_of(trial: FrozenTrial) -> dict[int, tuple[float, ...]]:
    """With several objectives, all that a trial reported of them, by completed epochs; NaN for what is not known."""
    kept = attrs_of(trial).get(Attr.POINTS, {})
    return {int(step): tuple(map(float, values)) for step, values in kept.items()}


def _row(trial: FrozenTrial) -> TrialRow:
    attrs = attrs_of(trial)
    state = state_of(trial)
    cost = TrialCost.of(attrs[Attr.COST]) if Attr.COST in attrs else None
    seconds = None if cost is None else cost.total.seconds
    if cost is None and trial.duration is not None:
        seconds = trial.duration.total_seconds()
    return TrialRow(
        number=trial.number,
        state=state,
        value=_value(trial) if state in ("finished", "pruned") else None,
        params=dict(attrs.get(Attr.PARAMS, trial.params)),
        failure=attrs.get(Attr.FAILURE, "") if state == "failed" else "",
        cause=attrs.get(Attr.CAUSE, "") if state == "failed" else "",
        epochs=max(curve(trial), default=0),
        seconds=seconds,
        attrs={key: value for key, value in attrs.items() if not key.startswith(PREFIX)},
        attempt=attrs.get(Attr.ATTEMPT, 1),
        imported=attrs.get(Attr.IMPORTED, ""),
        cost=cost,
        warm=attrs.get(Attr.WARM, ""),
        seeds=(seeds := attrs.get(Attr.SEEDS, 1)),
        mean=trial.value if seeds > 1 else None,
        outside=_outside(trial, attrs),
        values=tuple(attrs.get(Attr.VALUES, ())) if state == "finished" else (),
        beaten_by=tuple(attrs.get(Attr.BEATEN_BY, ())) if state == "pruned" else (),
    )


def _whole_row(trial: FrozenTrial) -> TrialRow:
    """A trial that stands for its configuration."""
    row = _row(trial)
    return row if row.mean is None else replace(row, value=row.mean)


def _outside(trial: FrozenTrial, attrs: Mapping[str, Any]) -> str:
    if Attr.OUTSIDE not in attrs:
        return ""
    was, value = attrs[Attr.OUTSIDE]["state"], _value(trial)
    if attrs.get(Attr.FAILURE):
        how = f"it failed ({attrs[Attr.FAILURE]})"
    elif was in ("running", "waiting"):
        how = "it was cut off, and is not gone on with"
    else:
        how = f"it {'was ' if was == 'pruned' else ''}{was}" + ("" if value is None else f" with {value:.6g}")
    return f"{attrs[Attr.OUTSIDE]['why']} ({how})"


def state_of(trial: FrozenTrial) -> TrialState:
    """One that ran out of memory, or is above a limit, ended well for Optuna, as infeasible; for people it failed."""
    if Attr.OUTSIDE in trial.user_attrs:
        return "outside"
    return "failed" if Attr.FAILURE in attrs_of(trial) and trial.state.is_finished() else OUR_STATES[trial.state.name]


def _value(trial: FrozenTrial) -> float | None:
    """The objective at the best epoch."""
    kept = attrs_of(trial)
    value: float | None = kept[Attr.VALUE] if Attr.VALUE in kept else (trial.values or [None])[0]
    return value
