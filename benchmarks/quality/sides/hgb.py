"""scikit-learn's histogram boosting with its defaults, which takes as long as it takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.quality.work import Work


def load() -> None:
    """Import it."""
    import sklearn.ensemble

    assert sklearn.ensemble.HistGradientBoostingClassifier


def model_of(task: str, **settings: Any) -> Any:
    """One that takes pandas' categories as such."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    return kind(categorical_features="from_dtype", **settings)


def predict(model: Any, rows: Any, task: str) -> np.ndarray:
    """Probabilities or values."""
    from benchmarks.quality.sides.encoding import probabilities

    return probabilities(model.predict(rows) if task == "regression" else model.predict_proba(rows), task)


def run(work: Work) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """One fit on the training rows."""
    from benchmarks.quality.sides.encoding import categories

    task, parts = work.about["task"], categories(work)
    model = model_of(task, random_state=work.seed).fit(*parts["train"])
    return {"shipped": predict(model, parts["test"][0], task)}, {"trials": 1, "trees": int(model.n_iter_)}
