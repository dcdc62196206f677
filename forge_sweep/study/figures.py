"""The figures of a study, which say of how many trials they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import optuna
from optuna import visualization
from optuna.trial import TrialState, create_trial

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from plotly.graph_objects import Figure

    from forge_sweep.study.pareto import Front
    from forge_sweep.study.trials import TrialRow

LEAST_FOR_IMPORTANCES = 10
"""Finished trials below which the importance of a hyperparameter is a guess: of three, any order can come out."""


def draw(
    study: optuna.Study,
    rows: Sequence[TrialRow],
    metric: str,
    curve: Callable[[FrozenTrial], dict[int, float]],
    step: str,
    front: Front | None = None,
) -> dict[str, Figure]:
    """Each figure that the trials allow, by name, with a title that says what it shows.

    Pruned trials stand in all but the importances, with their value at the best epoch; failed ones are counted. Optuna
    has the reports that a pruner reads only: ``curve`` gives all, by completed epochs, or folds, as ``step`` says. Of
    several objectives the ``front`` is shown, and else the first.
    """
    finished = [row for row in rows if row.state == "finished"]
    valued = [row for row in rows if row.state in ("finished", "pruned") and row.value is not None]
    failed = sum(row.state == "failed" for row in rows)
    of_all = f"{len(finished)} finished and {len(valued) - len(finished)} pruned trials"
    of_all += f"; {failed} failed, without a value" if failed else ""
    figures: dict[str, Figure | None] = {}
    if finished:
        figures["history"] = _history(_of_first(study), rows, metric, f"Objective of each trial: {of_all}")
    if front is not None:
        figures["front"] = _front(front, rows)
    if valued and any(row.epochs for row in rows):
        figures["epochs"] = _epochs(study, metric, curve, step, f"{metric} after each {step}: {of_all}")
    shown = optuna.create_study(direction=study.directions[0])  # in which pruned trials have a value
    for trial, row in zip(study.get_trials(deepcopy=False), rows, strict=False):
        if row.state in ("finished", "pruned") and row.value is not None:
            shown.add_trial(create_trial(value=row.value, params=trial.params, distributions=trial.distributions))
        else:
            shown.add_trial(create_trial(state=TrialState.FAIL))
    if len(valued) > 1 and any(trial.distributions for trial in shown.get_trials(deepcopy=False)):
        if len(finished) >= LEAST_FOR_IMPORTANCES:
            title = f"Importance of the hyperparameters, estimated from {len(finished)} finished trials"
            figures["importances"] = _drawn(visualization.plot_param_importances, _of_first(study), metric, title)
        title = f"Parallel coordinates: {of_all}"
        figures["parallel_coordinate"] = _drawn(visualization.plot_parallel_coordinate, shown, metric, title)
        figures["slice"] = _drawn(visualization.plot_slice, shown, metric, f"Slices: {of_all}")
    return {name: figure for name, figure in figures.items() if figure is not None}


def _of_first(study: optuna.Study) -> optuna.Study:
    """The study, or of one with several objectives its finished trials with the first: Optuna draws one at a time."""
    if len(study.directions) == 1:
        return study
    shown = optuna.create_study(direction=study.directions[0])
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.COMPLETE:
            value, params, ranges = trial.values[0], trial.params, trial.distributions
            shown.add_trial(create_trial(value=value, params=params, distributions=ranges))
        else:
            shown.add_trial(create_trial(state=TrialState.FAIL))
    return shown


def _front(front: Front, rows: Sequence[TrialRow]) -> Figure:
    """All finished trials by the first two objectives, those of the front marked; every objective is in the label."""
    from plotly.graph_objects import Figure, Scatter

    names = list(front.directions)
    values = {row.number: row.values for row in rows if row.number in front.order}
    figure = Figure()
    for title, numbers, colour in (
        ("dominated", [n for n in front.order if n not in front.points], "lightgrey"),
        ("on the front", [n for n in front.points if n != front.chosen], "#2a6fdb"),
        ("chosen by the rule", [front.chosen], "#b3261e"),
    ):
        told = {n: zip(names, values[n], strict=True) for n in numbers}
        labels = ["<br>".join([f"trial {n}", *(f"{name} {v:.6g}" for name, v in told[n])]) for n in numbers]
        x, y = [values[n][1] for n in numbers], [values[n][0] for n in numbers]
        about = {"name": title, "marker": {"color": colour, "size": 9}, "hovertext": labels, "hoverinfo": "text"}
        figure.add_trace(Scatter(x=x, y=y, mode="markers", **about))
    title = f"Pareto front: {len(front.points)} of {front.finished} finished trials"
    return figure.update_layout(title=title, xaxis_title=names[1], yaxis_title=names[0])


def _history(study: optuna.Study, rows: Sequence[TrialRow], metric: str, title: str) -> Figure:
    """Optuna's history, which has finished trials only, with the pruned ones beside them."""
    from plotly.graph_objects import Scatter

    figure = visualization.plot_optimization_history(study, target_name=metric)
    pruned = [row for row in rows if row.state == "pruned" and row.value is not None]
    if pruned:
        numbers, values = [row.number for row in pruned], [row.value for row in pruned]
        marker = {"symbol": "x", "color": "grey"}
        figure.add_trace(Scatter(x=numbers, y=values, mode="markers", name=f"{metric}, pruned", marker=marker))
    return figure.update_layout(title=title)


def _epochs(
    study: optuna.Study, metric: str, curve: Callable[[FrozenTrial], dict[int, float]], step: str, title: str
) -> Figure:
    """Curves of all trials, pruned and running ones among them."""
    shown = optuna.create_study(direction=study.directions[0])
    for trial in study.get_trials(deepcopy=False):
        state = TrialState.PRUNED if trial.state == TrialState.COMPLETE else trial.state
        shown.add_trial(create_trial(state=state, intermediate_values=curve(trial)))
    figure = visualization.plot_intermediate_values(shown)
    return figure.update_layout(xaxis_title=step.capitalize(), yaxis_title=metric, title=title)


def _drawn(plot: Callable[..., Figure], study: optuna.Study, metric: str, title: str) -> Figure | None:
    """A figure, or None where the trials are too alike to tell one hyperparameter's importance from another's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Target and region quantiles", category=UserWarning)
        try:
            return plot(study, target_name=metric).update_layout(title=title)
        except UserWarning:
            return None
