"""How peers encode the columns: what a practitioner writes with pandas and scikit-learn before the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.quality.statistics import BETTER, PRIMARY, scorer
from benchmarks.quality.work import Work

RARE = 10
"""Rows of train below which the networks' one-hot encoder joins a category with the other rare ones."""
MOST_CATEGORIES = 254
"""Of a column for the trees: HistGradientBoosting takes 255, one of them for the rest."""
OTHER = "(other)"


@dataclass(frozen=True)
class Matrices:
    """What a network takes: float32 features, and targets as `Work.parts` gives them but standardised values."""

    x: dict[str, np.ndarray]
    y: dict[str, np.ndarray]
    scale: tuple[float, float]  # mean and standard deviation of the target, (0, 1) for classes
    units: int
    task: str
    target: np.ndarray  # of valid, as it is

    def restore(self, outputs: np.ndarray) -> np.ndarray:
        """Predictions of the task from the outputs of the network."""
        if self.task == "multiclass":
            return outputs
        return outputs.reshape(-1) * self.scale[1] + self.scale[0]


def matrices(work: Work) -> Matrices:
    """Imputed with the median beside indicators, scaled, one-hot with rare categories joined."""
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    about, parts = work.about, work.parts()
    rare = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=RARE, sparse_output=False)
    encoder = make_column_transformer(
        (
            make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler()),
            make_column_selector(dtype_include="number"),
        ),
        (rare, make_column_selector(dtype_exclude="number")),
    )
    encoder.fit(parts["train"][0])
    x = {name: encoder.transform(part[0]).astype(np.float32) for name, part in parts.items()}
    train = parts["train"][1]
    scale = (float(train.mean()), float(train.std())) if about["task"] == "regression" else (0.0, 1.0)
    y = {name: ((part[1] - scale[0]) / scale[1]).astype(np.float32) for name, part in parts.items()}
    units = len(about["classes"]) if about["task"] == "multiclass" else 1
    return Matrices(x, y, scale, units, about["task"], parts["valid"][1])


def categories(work: Work) -> dict[str, tuple[pd.DataFrame, np.ndarray]]:
    """The parts with text as pandas' categories of train, the rarest of a long list joined; missing stays missing."""
    parts = work.parts()
    train = parts["train"][0]
    for name in train.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in train.dtypes]]:
        known = train[name].value_counts().index[:MOST_CATEGORIES].tolist()
        kind = pd.CategoricalDtype([*known, OTHER])
        for features, _ in parts.values():
            column = features[name]
            features[name] = column.where(column.isna() | column.isin(known), OTHER).astype(kind)
    return parts


def value(work: Work, target: np.ndarray, predicted: np.ndarray) -> float:
    """The metric of the task on validation rows, to be maximised."""
    metric = PRIMARY[work.about["task"]]
    return BETTER[metric] * float(scorer(metric, target, predicted)(np.ones((1, len(target))))[0])


def probabilities(found: Any, task: str) -> np.ndarray:
    """What scikit-learn's ``predict_proba`` or ``predict`` gives, as the results keep it."""
    found = np.asarray(found)
    return found[:, 1] if task == "binary" else found
