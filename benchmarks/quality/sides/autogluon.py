"""AutoGluon's tabular predictor on the same validation rows, in an environment of its own.

It trains its portfolio of configurations (``zeroshot``) for as long as it may, and their weighted ensemble. Its default
list of eleven models ends long before the budget on small tables, and its better presets make folds of their own where
all sides are to choose by the same rows. `make bench-quality` installs it without PyTorch, so without its two networks.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from benchmarks.quality.work import CORES, Work

NETWORKS = ["NN_TORCH", "FASTAI"]
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
        hyperparameters="zeroshot",
        excluded_model_types=[] if importlib.util.find_spec("torch") else NETWORKS,
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
