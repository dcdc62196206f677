"""The search that both tuned trees share: Optuna's TPE, the library's defaults as the first trial, until time is up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optuna

from benchmarks.quality.work import NoTime, Work

optuna.logging.set_verbosity(optuna.logging.WARNING)


def search(
    work: Work, objective: Callable[[optuna.Trial], float], defaults: Mapping[str, Any], best: Mapping[str, Any]
) -> dict[str, Any]:
    """Run trials until time is up; returns the facts of the side.

    Args:
        work: says when time is up.
        objective: grows trees, puts what is better into ``best`` and returns what it reached, more being better.
        defaults: the first trial.
        best: ``value``, ``params`` and ``trees`` of the best so far; without ``params`` there is none.

    Raises:
        NoTime: there is none.
    """

    def ended(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if work.left <= 0:
            study.stop()

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=work.seed))
    study.enqueue_trial(dict(defaults))
    study.optimize(objective, callbacks=[ended])
    if "params" not in best:
        raise NoTime("no tree was grown in time")
    return {"trials": len(study.trials), **{name: best[name] for name in ("value", "params", "trees")}}
