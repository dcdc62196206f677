"""What another pruner would have done with a study: its recorded curves, told to that pruner epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import optuna
from optuna.trial import TrialState

from forge_sweep.errors import InputError
from forge_sweep.experiment import StudySpec, restore
from forge_sweep.experiment.fields import Pruner
from forge_sweep.experiment.words import nearest
from forge_sweep.study import pruners
from forge_sweep.study.diagnosis import AUDIT_NOTE

if TYPE_CHECKING:
    from forge_sweep.study.trials import StudyView, TrialRow
    from forge_sweep.task import Direction

PRUNERS = tuple(name for name in get_args(Pruner) if name != "dominated")
"""Those that read one objective."""

SETTINGS = ("startup_trials", "warmup_epochs", "percentile")
"""What may be set for a replay, beside the pruner itself."""


@dataclass(frozen=True)
class Recorded:
    """A trial of a study, as a pruner hears of it."""

    number: int
    state: str  # ``finished``, ``pruned`` or ``failed``; anything else has no end yet
    curve: Mapping[int, float]  # the objective by completed epochs; an audited trial has all of them
    whole: bool  # whether the curve ends where the training would have
    seconds: float  # that all of the curve took
    counts: bool = True  # imported trials inform a pruner and are not counted

    def best(self, direction: Direction) -> float:
        """The objective at the best epoch of the curve."""
        finite = [value for value in self.curve.values() if math.isfinite(value)]
        return (max if direction == "maximize" else min)(finite)


@dataclass(frozen=True)
class Replayed:
    """What a pruner would have done; own trials with at least one reported epoch are counted.

    A trial is known where its curve is: it finished, or was pruned and audited (``study.audit_pruned``). Of the others
    nothing is known beyond the epoch at which they were pruned: where this pruner lets them pass that, they end there
    as pruned, and are listed as unknown.

    Attributes:
        pruner: its name.
        settings: the keys of ``[study]`` that were set otherwise than in the study.
        trials: how many were told to it.
        pruned: how many of these it prunes.
        known: how many are known to their end.
        top: the best quarter of the known ones.
        top_pruned: how many of that quarter it prunes.
        would_have_won: numbers of the trials that it prunes though they beat each known one that it lets finish.
        winner: number of the best trial among the known ones.
        winner_survives: whether that one would have finished; None where there is none.
        epochs: of all curves.
        epochs_saved: of these, the ones after the epochs at which it prunes.
        seconds: that the curves took.
        seconds_saved: by the same share of each trial's time.
        unknown: the epoch beyond which nothing is known, by the number of the trial.
    """

    pruner: str
    settings: Mapping[str, Any]
    trials: int
    pruned: int
    known: int
    top: int
    top_pruned: int
    would_have_won: tuple[int, ...]
    winner: int | None
    winner_survives: bool | None
    epochs: int
    epochs_saved: int
    seconds: float
    seconds_saved: float
    unknown: Mapping[int, int]

    @property
    def false_prune_rate(self) -> float | None:
        """Share of the best quarter of the known trials that it prunes; None where none is known."""
        return self.top_pruned / self.top if self.top else None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "false_prune_rate": self.false_prune_rate}


def chosen(wanted: Sequence[str], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The pruners to replay: those named, or all of them.

    Raises:
        InputError: there is no such pruner, or a setting is none of a pruner.
    """
    for name in wanted:
        if name not in PRUNERS:
            hint = nearest(name, PRUNERS) or f"give one of {', '.join(PRUNERS)}"
            raise InputError(f"there is no pruner {name!r}", hint=hint)
    for name in settings:
        if name not in SETTINGS:
            hint = nearest(name, SETTINGS) or f"give one of {', '.join(SETTINGS)}"
            raise InputError(f"{name} is no setting of a pruner that a replay can change", hint=hint)
    return tuple(dict.fromkeys(wanted)) or PRUNERS


def replay(
    name: str, trials: Iterable[Recorded], spec: StudySpec, direction: Direction, settings: Mapping[str, Any]
) -> Replayed:
    """Tell all trials, by their numbers, to the pruner of ``spec`` in a study in memory.

    One trial ends before the next one begins, as with one worker. What the pruner reads, and when it is asked, is as in
    `Study.report`: of a sweep that ran so, its own pruner decides what it decided then.

    Args:
        name: of the study: Hyperband chooses the bracket of a trial by it and by the trial's number.
        trials: of the study, all of them and by number.
        spec: ``[study]``, with the pruner to replay.
        direction: of the objective.
        settings: what ``spec`` has otherwise than the study; recorded only.
    """
    study = optuna.create_study(
        study_name=name, direction=direction, pruner=pruners.make(spec), sampler=optuna.samplers.RandomSampler(seed=0)
    )
    told: dict[int, int] = {}  # epochs that each counted trial was given
    pruned: set[int] = set()
    counted: list[Recorded] = []
    for each in trials:
        epochs, state = _told(study, each, spec, direction)
        if each.counts and each.curve and each.state in ("finished", "pruned"):
            counted.append(each)
            told[each.number] = epochs
            if state == "pruned":
                pruned.add(each.number)
    sign = 1 if direction == "maximize" else -1
    known = sorted((each for each in counted if each.whole), key=lambda each: -sign * each.best(direction))
    top = known[: max(1, len(known) // 4)]
    survivors = [sign * each.best(direction) for each in known if each.number not in pruned]
    best = max(survivors, default=-math.inf)
    saved = {each.number: 1 - told[each.number] / max(each.curve) for each in counted}
    winner = known[0].number if known else None
    return Replayed(
        pruner=spec.pruner,
        settings=dict(settings),
        trials=len(counted),
        pruned=len(pruned),
        known=len(known),
        top=len(top),
        top_pruned=sum(each.number in pruned for each in top),
        would_have_won=tuple(
            sorted(each.number for each in known if each.number in pruned and sign * each.best(direction) > best)
        ),
        winner=winner,
        winner_survives=None if winner is None else winner not in pruned,
        epochs=sum(max(each.curve) for each in counted),
        epochs_saved=sum(max(each.curve) - told[each.number] for each in counted),
        seconds=round(sum(each.seconds for each in counted), 3),
        seconds_saved=round(sum(each.seconds * saved[each.number] for each in counted), 3),
        unknown={each.number: max(each.curve) for each in counted if not each.whole and each.number not in pruned},
    )


def _told(study: optuna.Study, recorded: Recorded, spec: StudySpec, direction: Direction) -> tuple[int, str]:
    """Tell one trial; returns the epoch that it ended at, and ``pruned`` or how the record ends."""
    trial, sent, judged = study.ask(), 0, 0
    for step in sorted(recorded.curve):
        last = step == max(recorded.curve)
        asks = recorded.counts and step < spec.epochs and pruners.has_a_say(spec, judged, step)
        if not asks and not (last and not recorded.counts):
            continue
        for each in (n for n in sorted(recorded.curve) if sent < n <= step):
            if each == step or not recorded.counts or pruners.reads_every_report(spec):
                trial.report(recorded.curve[each], each)
        sent = step
        if not asks:
            continue
        judged = step
        with pruners.quiet():
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                return step, "pruned"
    if recorded.state == "failed" or not recorded.curve:
        study.tell(trial, state=TrialState.FAIL)
    elif recorded.whole:
        study.tell(trial, recorded.best(direction))
    else:
        study.tell(trial, state=TrialState.PRUNED)
    return max(recorded.curve, default=0), "whole" if recorded.whole else "unknown"


def replay_study(
    view: StudyView, wanted: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> list[Replayed]:
    """What each pruner would have done with a study; all pruners where none is named.

    Args:
        view: the study, finished or running; trials that have not ended yet are left out.
        wanted: names of pruners; ``none`` shows what there is to save.
        settings: keys of ``[study]`` among `SETTINGS` that differ from the study's own.

    Raises:
        InputError: there is no such pruner, or nothing that could be replayed.
        ExperimentError: a setting has a value that it cannot have.
    """
    settings = settings or {}
    if len(view.directions) > 1:
        hint = f"see what pruned each trial: forge-sweep trials {view.resolved['name']}"
        raise InputError(f"{view.name} has several objectives, and these pruners read one", hint=hint)
    names, resolved = chosen(wanted, settings), view.resolved
    if view.step != "epoch":
        raise InputError(
            f"the trials of {view.name} report after each {view.step}, and a replay tells a pruner of epochs",
            hint="replay a sweep without data.split.folds and study.fidelity",
        )
    trials = [_recorded(row, view) for row in view.rows()]
    if not any(each.counts and each.curve for each in trials):
        raise InputError(f"{view.name} has no trial that reported an epoch", hint="replay it once trials have ended")
    found = []
    for name in names:
        study = {**resolved["study"], **settings, "pruner": name}
        spec = restore({**resolved, "study": study}, root=Path()).study
        found.append(replay(view.name, trials, spec, view.direction, settings))
    return found


def _recorded(row: TrialRow, view: StudyView) -> Recorded:
    """A trial with its curve, or that of its audit, which goes on where it was pruned."""
    curve, seconds = {epoch + 1: value for epoch, value in view.reports(row.number).items()}, row.seconds or 0.0
    whole = row.state == "finished"
    audited = view.notes(AUDIT_NOTE).get(f"{AUDIT_NOTE}{row.number:04d}", {})
    if row.state == "pruned" and audited.get("curve"):
        curve = {**{int(step): float(value) for step, value in audited["curve"].items()}, **curve}
        whole, seconds = True, float(audited["cost"]["seconds"])
    return Recorded(row.number, row.state, curve, whole, seconds, counts=not row.imported)
