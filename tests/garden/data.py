"""Faults of rows, labels and serving."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pandas as pd

from tests.garden.plots import Fault, Fixed, experiment, plain

CREDIT = Path(__file__).parents[2] / "experiments" / "data" / "credit.csv"


@functools.cache
def credit() -> pd.DataFrame:
    """Applications for credit: the numbers of the first 2,000, without gaps, and who did not pay back."""
    frame = pd.read_csv(CREDIT).dropna().head(2_000)
    return frame.select_dtypes("number").drop(columns="id").assign(bad=(frame["Status"] == "bad").astype(int))


@functools.cache
def cancer() -> pd.DataFrame:
    """Breast cancer: 569 rows of 30 measurements; 1 is benign."""
    from sklearn.datasets import load_breast_cancer

    found: pd.DataFrame = load_breast_cancer(as_frame=True).frame
    return found


def cut(frame: pd.DataFrame, target: str = "target", share: float = 0.75) -> tuple[np.ndarray, ...]:
    """Train and validation rows as a plain loop has them, shuffled by a fixed seed: x, y, x_valid, y_valid."""
    frame = frame.sample(frac=1, random_state=0)
    first = int(share * len(frame))
    x, y = frame.drop(columns=target).to_numpy(float), frame[target].to_numpy(float)
    return x[:first], y[:first], x[first:], y[first:]


def scaled(x: np.ndarray, y: np.ndarray, x_valid: np.ndarray, y_valid: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same rows, scaled by the mean and deviation of train."""
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-9
    return (x - mean) / deviation, y, (x_valid - mean) / deviation, y_valid


def table(folder: Path, frame: pd.DataFrame, target: str, metric: str, task: str = "binary", **sections: dict) -> Path:
    """An experiment on these rows, as a CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "rows.csv", index=False)
    data = {"path": "rows.csv", "target": target, "task": task, **sections.pop("data", {})}
    return experiment(folder, data, metric, **sections)


def _raw_amounts(folder: Path, planted: bool) -> Path:
    return table(folder, credit(), "bad", "val_auc", preprocessing={"scaler": "none" if planted else "standard"})


def _infinite(folder: Path, planted: bool) -> Path:
    frame = cancer().copy()
    if planted:  # a ratio whose divisor is 0 in some rows
        frame["mean concavity"] = np.where(frame["mean concavity"] == 0, np.inf, 1 / frame["mean concavity"])
    return table(folder, frame, "target", "val_auc")


def _infinite_plain() -> dict[str, float]:
    x, y, x_valid, y_valid = scaled(*cut(cancer()))
    x[5, 3] = np.inf
    return plain(x, y, x_valid, y_valid)[0]


FAULTS: tuple[Fault, ...] = (
    Fault(
        name="raw amounts",
        what="Amounts of up to 50,000 went into the network as they are.",
        plain=lambda: plain(*cut(credit(), "bad"))[0],
        prints="loss {loss:.3g}, val_accuracy {val_accuracy:.2f}: hardly better than calling everyone good.",
        lay=_raw_amounts,
        code="unscaled-range",
        when="audit",
        fixed=Fixed("val_auc"),
    ),
    Fault(
        name="infinite values",
        what="A ratio was formed whose divisor is 0 in some rows.",
        plain=_infinite_plain,
        prints="loss {loss:.3g}, val_accuracy {val_accuracy:.2f}, from the first batch with such a row on.",
        lay=_infinite,
        code="infinite-values",
        when="audit",
        fixed=Fixed("val_auc", over="baseline"),
    ),
)
