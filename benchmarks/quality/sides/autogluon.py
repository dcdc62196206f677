"""AutoGluon's tabular predictor with its default preset, on the same validation rows, in an environment of its own.

Installed without PyTorch, so without its two networks; its trees, forests, linear model and their weighted ensemble
are there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.quality.work import CORES, Work

METRICS = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "root_mean_squared_error"}
HEADROOM = 0.92
"""Share of the budget that it is given: it looks at its limit between models."""


def load() -> None:
    """Import it, and the models that it would import while it fits."""
    import autogluon.tabular
    import catboost
    import lightgbm
    import xgboost

    assert autogluon.tabular and catboost and lightgbm and xgboost


def run(work: Work) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """One call of ``fit``."""
    import autogluon.tabular

    task, parts = work.about["task"], work.parts()
    frames = {name: features.assign(__target__=target) for name, (features, target) in parts.items()}
    predictor = autogluon.tabular.TabularPredictor(
        "__target__", problem_type=task, eval_metric=METRICS[task], path=f"{work.store}/autogluon", verbosity=0
    )
    predictor.fit(
        frames["train"],
        tuning_data=frames["valid"],
        time_limit=HEADROOM * work.seconds - work.used,
        num_cpus=CORES,
        num_gpus=0,
    )
    test = parts["test"][0]
    if task == "regression":
        found = predictor.predict(test).to_numpy()
    else:
        found = predictor.predict_proba(test)[list(range(len(work.about["classes"])))].to_numpy()
    return {"shipped": found[:, 1] if task == "binary" else found}, {
        "trials": len(predictor.model_names()),
        "winner": predictor.model_best,
        "version": autogluon.tabular.__version__,
    }
