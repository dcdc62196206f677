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

    from forge_sweep.study.view import TrialRow

LEAST_FOR_IMPORTANCES = 10
"""Finished trials below which the importance of a hyperparameter is a guess: of three, any order can come out."""


def draw(study: optuna.Study, rows: Sequence[TrialRow], metric: str) -> dict[str, Figure]:
    """Each figure that the trials allow, by name, with a title that says what it shows.

    Pruned trials stand in all but the importances, with their value at the best epoch; failed ones have no value and
    are counted.

    Args:
        study: the study.
        rows: its trials, in order.
        metric: the objective.
    """
    finished = [row for row in rows if row.state == "finished"]
    valued = [row for row in rows if row.state in ("finished", "pruned") and row.value is not None]
    failed = sum(row.state == "failed" for row in rows)
    pruned = len(valued) - len(finished)
    of_all = f"{len(finished)} finished and {pruned} pruned trials"
    of_all += f"; {failed} failed, without a value" if failed else ""
    shown = _with_values(study, rows)
    drawn: dict[str, tuple[Figure | None, str]] = {}
    if finished:
        drawn["history"] = _history(study, rows, metric), f"Objective of each trial: {of_all}"
    if any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        drawn["epochs"] = _epochs(study, metric), f"{metric} after each epoch: {of_all}"
    if len(valued) > 1 and any(trial.distributions for trial in shown.get_trials(deepcopy=False)):
        plots: dict[str, tuple[Callable[..., Figure], optuna.Study, str]] = {
            "parallel_coordinate": (visualization.plot_parallel_coordinate, shown, f"Parallel coordinates: {of_all}"),
            "slice": (visualization.plot_slice, shown, f"Slices: {of_all}"),
        }
        if len(finished) >= LEAST_FOR_IMPORTANCES:
            title = f"Importance of the hyperparameters, estimated from {len(finished)} finished trials"
            plots = {"importances": (visualization.plot_param_importances, study, title), **plots}
        drawn |= {name: (_drawn(plot, of, metric), title) for name, (plot, of, title) in plots.items()}
    figures = {name: (figure, title) for name, (figure, title) in drawn.items() if figure is not None}
    for figure, title in figures.values():
        figure.update_layout(title=title)
    return {name: figure for name, (figure, _) in figures.items()}


def _with_values(study: optuna.Study, rows: Sequence[TrialRow]) -> optuna.Study:
    """A copy in memory in which pruned trials have a value, under the same numbers."""
    shown = optuna.create_study(direction=study.direction)
    trials = study.get_trials(deepcopy=False)
    shown.add_trials([_valued(trial, row) for trial, row in zip(trials, rows, strict=False)])
    return shown


def _valued(trial: FrozenTrial, row: TrialRow) -> FrozenTrial:
    if row.state not in ("finished", "pruned") or row.value is None:
        return create_trial(state=TrialState.FAIL)
    return create_trial(value=row.value, params=trial.params, distributions=trial.distributions)


def _history(study: optuna.Study, rows: Sequence[TrialRow], metric: str) -> Figure:
    """Optuna's history, which has finished trials only, with the pruned ones beside them."""
    from plotly.graph_objects import Scatter

    figure = visualization.plot_optimization_history(study, target_name=metric)
    pruned = [row for row in rows if row.state == "pruned" and row.value is not None]
    if pruned:
        numbers, values = [row.number for row in pruned], [row.value for row in pruned]
        marker = {"symbol": "x", "color": "grey"}
        figure.add_trace(Scatter(x=numbers, y=values, mode="markers", name=f"{metric}, pruned", marker=marker))
    return figure


def _epochs(study: optuna.Study, metric: str) -> Figure:
    """Curves of all trials, pruned and running ones among them."""
    figure = visualization.plot_intermediate_values(study)
    return figure.update_layout(xaxis_title="Epoch", yaxis_title=metric)


def _drawn(plot: Callable[..., Figure], study: optuna.Study, metric: str) -> Figure | None:
    """A figure, or None where the trials are too alike to tell one hyperparameter's importance from another's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Target and region quantiles", category=UserWarning)
        try:
            return plot(study, target_name=metric)
        except UserWarning:
            return None
