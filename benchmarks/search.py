"""Our search space in the words of Optuna and KerasTuner, and a sampler that gives the configurations of equal work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from benchmarks.problems import Problem


def suggest(trial: Any, problem: Problem) -> dict[str, Any]:
    """Ask an Optuna trial for every searched hyperparameter; the fixed ones are added."""
    found: dict[str, Any] = {}
    for name, dimension in problem.search.items():
        ask = trial.suggest_int if dimension["type"] == "int" else trial.suggest_float
        found[name] = ask(name, dimension["low"], dimension["high"], log=dimension.get("log", False))
    return {**found, **problem.fixed}


def declare(hp: Any, problem: Problem) -> dict[str, Any]:
    """The same for the ``hp`` of KerasTuner."""
    found: dict[str, Any] = {}
    for name, dimension in problem.search.items():
        ask = hp.Int if dimension["type"] == "int" else hp.Float
        sampling = "log" if dimension.get("log") else "linear"
        found[name] = ask(name, dimension["low"], dimension["high"], sampling=sampling)
    return {**found, **problem.fixed}


class Points(optuna.samplers.BaseSampler):
    """The i-th trial gets the i-th configuration.

    Args:
        points: the configurations.
    """

    def __init__(self, points: Sequence[Mapping[str, Any]]) -> None:
        self.points = points

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        """None: each parameter is looked up."""
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        """Nothing: each parameter is looked up."""
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        """The parameter of the trial's configuration."""
        return self.points[trial.number][param_name]
