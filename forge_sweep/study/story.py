"""The story of one trial: what was tried, where that comes from, how it went, why it ended, and what the best did."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep.experiment import restore
from forge_sweep.study.outlook import n_at_random
from forge_sweep.study.study import Shared
from forge_sweep.task.words import figure

if TYPE_CHECKING:
    from forge_sweep.study.trials import StudyView, TrialRow


def story(view: StudyView, row: TrialRow) -> list[tuple[str, str]]:
    """What there is to tell, each as a title and a sentence; titles are those of the lines of ``explain``."""
    metric = str(view.resolved["objective"]["metric"])
    names = [name for name, value in view.resolved["model"]["search"].items() if isinstance(value, dict)]
    told = [
        ("tried", _shown({name: row.params[name] for name in names if name in row.params}) or "nothing is searched")
    ]
    told.append(("from", _origin(view, row)))
    curve = {epoch + 1: value for epoch, value in view.reports(row.number).items() if math.isfinite(value)}
    if curve:
        told.append(("course", _course(view, metric, curve)))
    told.append(("ended", _end(view, row, metric, curve)))
    if row.measured:
        told.append(("measured", _shown(row.measured)))
    if row.cost is not None:
        lost = row.cost.lost.seconds
        again = f", {lost:.1f} s of it in attempts that were cut off" if lost else ""
        noted = ", as last noted" * (row.state == "running")
        told.append(("cost", f"{row.cost.total.words()} in {_times(row.attempt, 'attempt')}{again}{noted}"))
    if codes := list(dict.fromkeys(each.code for each in row.findings)):
        told.append(
            ("findings", f"{', '.join(codes)}; `forge-sweep diagnose {view.resolved['name']} --trial {row.number}`")
        )
    if beside := _beside(view, row, metric, names):
        told.append(("beside", beside))
    return told


def _origin(view: StudyView, row: TrialRow) -> str:
    sampler, first = view.resolved["study"]["sampler"], restore(view.resolved, root=Path()).first
    if row.imported:
        return f"{row.imported}, which a fork took over with its score"
    if row.warm:
        return f"{row.warm}, one of the best of an earlier sweep (study.warm_start)"
    if row.number == 0 and first and first.items() <= row.params.items():
        return "what the builder's authors recommend"
    if row.number < n_at_random(view):
        return f'study.sampler = "{sampler}", before it had read a score'
    return f'study.sampler = "{sampler}", from the trials before'


def _course(view: StudyView, metric: str, curve: dict[int, float]) -> str:
    best = (max if view.direction == "maximize" else min)(curve, key=lambda epoch: (curve[epoch], -epoch))
    first, last, step = min(curve), max(curve), view.step
    said = f"{metric} {figure(curve[first])} after {step} {first}"
    if step != "epoch":  # folds: the mean so far; rungs: each on more rows. The last one is the result
        return said if last == first else f"{said}, {figure(curve[last])} after {step} {last}"
    said += f", best {figure(curve[best])} after {step} {best}"
    return said if last == best else f"{said}, {figure(curve[last])} after {step} {last}"


def _end(view: StudyView, row: TrialRow, metric: str, curve: dict[int, float]) -> str:
    study, epochs = view.resolved["study"], _times(row.epochs, view.step)
    if row.state == "running" and isinstance(view, Shared) and row.number in view.dead_running():
        return f"not yet: its process ended after {epochs}; the next `forge-sweep run` goes on with it"
    if row.state in ("running", "waiting"):
        return f"not yet: it is {row.state}, after {epochs}"
    if row.outside:
        return f"after {epochs}; it lies outside of the search space of now: {row.outside}"
    if row.failure == "infeasible":
        return f"after {epochs} as infeasible: {row.cause}"
    if row.state == "failed":
        return f"after {epochs} as {row.failure}: {row.cause}"
    if row.state == "finished":
        if row.attrs.get("ended_after") is not None:
            return f"after {epochs}, for the time of the whole sweep (study.total_s)"
        if view.step != "epoch":
            return f"after {epochs}, all that there are"
        if row.epochs and row.epochs < study["epochs"]:
            return f"after {epochs}: {study['patience']} without improvement (study.patience)"
        return f"after {epochs}, as many as study.epochs allows" if row.epochs else "finished"
    at = max(curve, default=0)
    others = [view.reports(other.number).get(at - 1) for other in view.rows()[: row.number]]
    known = [value for value in others if value is not None and math.isfinite(value)]
    said = f'pruned after {epochs} by study.pruner = "{study["pruner"]}"'
    if row.beaten_by:
        few = ", ".join(map(str, row.beaten_by[:5])) + ", ..." * (len(row.beaten_by) > 5)
        return f"{said}: after as many epochs trials {few} were better in every objective, and by more than that moves"
    if not (at and known):
        return said
    middle = figure(statistics.median(known))
    others_there = f"the median of {_times(len(known), 'earlier trial')} there {middle}"
    return f"{said}: {metric} is {figure(curve[at])}, and {others_there}"


def _beside(view: StudyView, row: TrialRow, metric: str, names: list[str]) -> str:
    """The best trial, and what it has otherwise; of the best one how it stands among all."""
    best = view.best()
    if row.imported:
        return "it informs the sampler and is not ranked: its own sweep was another one"
    if row.outside:
        return "it is not ranked, and no later trial was drawn from what it scored"
    if best is None:
        return ""
    sign = -1 if view.direction == "maximize" else 1
    finished = [each for each in view.rows() if each.state == "finished" and not each.imported]
    if (front := view.front()) is not None and row.state == "finished":
        if row.number not in front.points:
            return f"it is not on the Pareto front of {len(front.points)} trials; the rule chooses {front.choice}"
        chosen = f"; the rule chooses {front.choice}" if row.number != front.chosen else ", and the rule chooses it"
        return f"it is one of {len(front.points)} on the Pareto front of {front.finished} trials{chosen}"
    if row.number == best.number:
        return f"it is the best of {_times(len(finished), 'finished trial')} in the search"
    other = {name: best.params.get(name) for name in names if best.params.get(name) != row.params.get(name)}
    said = f"trial {best.number} is the best, with {metric} {figure(best.value)}"
    if row.state == "finished" and row.value is not None:
        place = 1 + sum(sign * (each.value or 0.0) < sign * row.value for each in finished)
        said += f"; this one is number {place} of {len(finished)}"
    return f"{said}; it has {_shown({k: v for k, v in other.items() if v is not None}) or 'the same configuration'}"


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def _times(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)
