"""scikit-learn's histogram boosting tuned by Optuna, the defaults as the first trial.

It grows in steps and is looked at on the validation rows after each, so that a trial stops when it gets no better and
none goes far beyond the budget.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.quality.sides.hgb import model_of, predict
from benchmarks.quality.work import Work

STEP, MOST, WITHOUT_GAIN = 50, 1_500, 2
"""Trees per step, trees of a trial, and steps without a gain before it ends."""
DEFAULTS = {
    "learning_rate": 0.1,
    "max_leaf_nodes": 31,
    "min_samples_leaf": 20,
    "l2_regularization": 0.01,
    "max_features": 1.0,
}


def load() -> None:
    """Import both."""
    import sklearn.ensemble

    from benchmarks.quality.sides import tuning

    assert sklearn.ensemble and tuning


def space(trial: Any) -> dict[str, Any]:
    """What is searched."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.3, log=True),
        "max_leaf_nodes": trial.suggest_int("max_leaf_nodes", 7, 127, log=True),
        "min_samples_leaf": trial.suggest_int("min_samples_leaf", 4, 100, log=True),
        "l2_regularization": trial.suggest_float("l2_regularization", 0.01, 30, log=True),
        "max_features": trial.suggest_float("max_features", 0.4, 1),
    }


def run(work: Work) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Trials until time is up; the best step of all is used."""
    from benchmarks.quality.sides.encoding import categories, value
    from benchmarks.quality.sides.tuning import search

    task, parts = work.about["task"], categories(work)
    (x_valid, y_valid), (x_test, _) = parts["valid"], parts["test"]
    best: dict[str, Any] = {"value": -np.inf}

    def objective(trial: Any) -> float:
        settings = {"early_stopping": False, "warm_start": True, "random_state": work.seed}
        model, reached, ago = model_of(task, max_iter=STEP, **space(trial), **settings), -np.inf, 0
        while work.left > 0 and model.max_iter <= MOST and ago < WITHOUT_GAIN:
            model.fit(*parts["train"])
            found = value(work, y_valid, predict(model, x_valid, task))
            ago = 0 if found > reached else ago + 1
            reached = max(reached, found)
            if found > best["value"]:
                predictions = predict(model, x_test, task)
                best.update(value=found, predictions=predictions, params=trial.params, trees=model.max_iter)
            model.max_iter += STEP
        return reached

    facts = search(work, objective, DEFAULTS, best)
    return {"shipped": best["predictions"]}, facts
