"""What earlier sweeps know: their best configurations are the first trials of a new one (`study.warm_start`).

Values are not taken over: rows, split and seeds may differ. Each configuration is trained again, and the sampler learns
from what it scores now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from forge_sweep.study.space import distributions, fits, key_of
from forge_sweep.study.trials import Attr, TrialRow, attrs_of, recorded

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from forge_sweep.experiment import Experiment, Params

MOST = 5
"""Configurations that are taken, over all sweeps: the search is to learn of its own rows, too."""

SAME = ("objective.metric", "data.task", "model.builder")
"""What a sweep must share with an earlier one, besides a space that holds its configurations."""


def enqueue(
    study: optuna.Study, experiment: Experiment, earlier: Sequence[tuple[str, Mapping[str, Any], list[FrozenTrial]]]
) -> None:
    """Let a new study begin with the best configurations of earlier ones, and keep what must be said of them.

    Args:
        study: without trials of its own.
        experiment: of the study.
        earlier: name, attributes and trials of each.
    """
    ranked, left = [], []
    for name, attrs, trials in earlier:
        differences = experiment.differences(recorded(attrs))
        if other := [differences[what] for what in SAME if what in differences]:
            left.append(f"{name} ({'; '.join(other)})")
            continue
        done = [trial for trial in trials if trial.state.name == "COMPLETE" and Attr.PARAMS in trial.user_attrs]
        ended = [trial for trial in done if Attr.FAILURE not in attrs_of(trial)]  # an infeasible one has a value, too
        sign = -1 if experiment.direction == "maximize" else 1
        ended.sort(key=lambda trial: (sign * float((trial.values or [0.0])[0]), trial.number))
        fitting = [trial for trial in ended if fits(trial.user_attrs[Attr.PARAMS], experiment.space)]
        ranked.append([(f"{name}#{trial.number}", trial.user_attrs[Attr.PARAMS]) for trial in fitting])
        if not fitting:
            left.append(f"{name} (none of its {len(ended)} finished trials lies in the search space)")
    first = experiment.first
    room = min(MOST, experiment.study.n_trials - bool(first))
    taken = _in_turn(ranked, room, {key_of(first)} if first else set())
    if taken and first:
        study.enqueue_trial(dict(first), user_attrs={Attr.WARM: ""})
    for source, params in taken:
        searched = {name: params[name] for name in distributions(experiment.space, params)}
        study.enqueue_trial(searched, user_attrs={Attr.WARM: source})
    if left:
        study.set_user_attr(Attr.COLD, f"nothing was taken from {', '.join(left)}")


def _in_turn(ranked: Sequence[Sequence[tuple[str, Params]]], most: int, known: set[str]) -> list[tuple[str, Params]]:
    """The best of each sweep, then the second best of each, and so on; equal configurations once."""
    taken: list[tuple[str, Params]] = []
    for place in range(max(map(len, ranked), default=0)):
        for source, params in (each[place] for each in ranked if place < len(each)):
            if len(taken) < most and key_of(params) not in known:
                known.add(key_of(params))
                taken.append((source, params))
    return taken


def words(rows: Sequence[TrialRow], direction: str) -> str:
    """What the warm start gave, in a sentence; "" where there was none, or none of its trials finished."""
    sign = -1 if direction == "maximize" else 1
    ended = [row for row in rows if row.state == "finished" and row.value is not None and not row.imported]
    warm = [row for row in ended if row.warm]
    if not warm:
        return ""
    best = min(warm, key=lambda row: (sign * (row.value or 0.0), row.number))
    others = [row for row in ended if not row.warm]
    good = [row.number for row in others if sign * (row.value or 0.0) <= sign * (best.value or 0.0)]
    of = f"trial {best.number} with the configuration of {best.warm}"
    if not good:
        more = f"none of the {len(others)} other finished trials is as good" if others else "there is no other trial"
        return f"Of {len(warm)} configurations of earlier sweeps the best is {of}; {more}."
    return f"Of {len(warm)} configurations of earlier sweeps the best is {of}; trial {min(good)} is the first as good."
