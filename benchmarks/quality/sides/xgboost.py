"""XGBoost tuned by Optuna: early stopping on the validation rows, the defaults as the first trial.

The space is that of the papers that compare networks with tuned trees; 25 to 50 trials take most of what there is to
gain, and small tables get more of them in a budget of 90 s.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.quality.work import CORES, Work

TREES, PATIENCE = 4_000, 50


def load() -> None:
    """Import them."""
    import sklearn.compose
    import xgboost

    from benchmarks.quality.sides import tuning

    assert xgboost and sklearn.compose and tuning


def space(trial: Any) -> dict[str, Any]:
    """What is searched."""
    return {
        "max_depth": trial.suggest_int("max_depth", 3, 10),
        "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.3, log=True),
        "min_child_weight": trial.suggest_float("min_child_weight", 0.5, 50, log=True),
        "subsample": trial.suggest_float("subsample", 0.5, 1),
        "colsample_bytree": trial.suggest_float("colsample_bytree", 0.5, 1),
        "reg_lambda": trial.suggest_float("reg_lambda", 0.01, 30, log=True),
        "reg_alpha": trial.suggest_float("reg_alpha", 1e-3, 10, log=True),
        "gamma": trial.suggest_float("gamma", 1e-3, 10, log=True),
    }


DEFAULTS = {
    "max_depth": 6,
    "learning_rate": 0.3,
    "min_child_weight": 1.0,
    "subsample": 1.0,
    "colsample_bytree": 1.0,
    "reg_lambda": 1.0,
    "reg_alpha": 1e-3,
    "gamma": 1e-3,
}


def run(work: Work) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Trials until time is up; a trial that time cuts off counts with the trees that it has."""
    import xgboost

    from benchmarks.quality.sides.encoding import categories, probabilities, value
    from benchmarks.quality.sides.tuning import search

    task, parts = work.about["task"], categories(work)
    (x, y), (x_valid, y_valid) = parts["train"], parts["valid"]
    kind = xgboost.XGBRegressor if task == "regression" else xgboost.XGBClassifier
    metric = {"binary": "auc", "multiclass": "mlogloss", "regression": "rmse"}[task]
    best: dict[str, Any] = {"value": -np.inf}

    class Clock(xgboost.callback.TrainingCallback):  # type: ignore[misc]
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            return work.left <= 0

    def predict(model: Any, rows: Any) -> np.ndarray:
        found = model.predict(rows) if task == "regression" else model.predict_proba(rows)
        return probabilities(found, task)

    def objective(trial: Any) -> float:
        model = kind(
            **space(trial),
            n_estimators=TREES,
            early_stopping_rounds=PATIENCE,
            eval_metric=metric,
            enable_categorical=True,
            tree_method="hist",
            n_jobs=CORES,
            random_state=work.seed,
            callbacks=[Clock()],
        )
        model.fit(x, y, eval_set=[(x_valid, y_valid)], verbose=False)
        found = value(work, y_valid, predict(model, x_valid))
        if found > best["value"]:
            best.update(value=found, model=model, params=trial.params, trees=model.best_iteration + 1)
        return found

    facts = search(work, objective, DEFAULTS, best)
    return {"shipped": predict(best["model"], parts["test"][0])}, facts
