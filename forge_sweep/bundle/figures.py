"""What a model is worth on some rows, as plain values: metrics with intervals, calibration, classes, slices of rows.

The figures are aggregates: no row and no target can be read from them, so that those of the test rows may be kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.task import LEVEL, METRICS, RESAMPLES, SEED, Answers, Task, intervals

if TYPE_CHECKING:
    import pandas as pd

    from forge_sweep.bundle.bundle import Bundle
    from forge_sweep.sources import Split

BINS = 15
"""Bins of equal width in the expected calibration error (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""

DRAWS = 200
"""How often targets are drawn to see how much of it is chance."""

SMALLEST = 30
"""Rows of a slice or of a class below which its figures are left out: they would say more of chance than of it."""

COLUMNS = 4
"""So many categorical columns are sliced by where none is named, those with the fewest categories."""
CATEGORIES = 12
"""And so many of their categories, the most frequent ones."""

BUDGET = 10**8
"""Rows times resamples, above which fewer resamples are drawn: at most some seconds per metric."""


def figures(bundle: Bundle, split: Split, groups: Sequence[str] = ()) -> dict[str, Any]:
    """All figures of a bundle on raw rows, as JSON values; what cannot be computed is None.

    Args:
        bundle: the model.
        split: the rows.
        groups: categorical columns to slice by; by default those with the fewest categories.
    """
    task, encoded = bundle.task, bundle.task.encode(split.targets)
    answers = Answers(bundle.scores(split.features), bundle.threshold)
    n = len(encoded)
    resamples = resamples_for(n)
    found = intervals(task, encoded, answers, resamples=resamples)
    return {
        "rows": n,
        "metrics": {name: [finite(each.value), finite(each.low), finite(each.high)] for name, each in found.items()},
        "bootstrap": {"resamples": resamples, "level": LEVEL, "seed": SEED},
        "calibration": calibration(task, encoded, answers.scores),
        "classes": list(by_class(task, encoded, answers)),
        "slices": list(by_slice(bundle, split.features, encoded, answers, groups)),
    }


def resamples_for(rows: int) -> int:
    """How many resamples so many rows allow."""
    return max(100, min(RESAMPLES, BUDGET // max(rows, 1)))


def finite(value: float) -> float | None:
    """A figure as JSON has it."""
    return float(value) if math.isfinite(value) else None


def calibration(task: Task, encoded: np.ndarray, scores: np.ndarray) -> dict[str, float] | None:
    """Expected calibration error (``ece``) and ``brier`` score of probabilities; None for a regression.

    A few rows per bin give an error even where every probability is right. ``ece_by_chance`` is that part: the mean
    error of targets that are drawn from the probabilities themselves (Bröcker and Smith 2007, "Increasing the
    Reliability of Reliability Diagrams"). A constant predictor has one full bin and next to none.

    Multiclass: the confidence in the class that was chosen, and the squared error summed over classes (Brier 1950).
    Multilabel: averages over labels.
    """
    if task.kind == "regression" or not len(encoded):
        return None
    if task.kind == "multiclass":
        codes = (encoded.argmax(axis=1) if task.one_hot else encoded).astype(np.int64)
        right = (scores.argmax(axis=1) == codes).astype(np.float64)
        truth = np.eye(scores.shape[1])[codes]
        brier = float(((scores - truth) ** 2).sum(axis=1).mean())
        pairs = [(right, scores.max(axis=1))]
    else:
        truth = encoded.astype(np.float64)
        brier = float(((scores - truth) ** 2).mean())
        pairs = [(truth[:, i], scores[:, i]) for i in range(truth.shape[1])]
    return {
        "ece": float(np.mean([calibration_error(*pair) for pair in pairs])),
        "ece_by_chance": float(np.mean([error_by_chance(probability) for _, probability in pairs])),
        "brier": brier,
    }


def calibration_error(truth: np.ndarray, probability: np.ndarray) -> float:
    """Mean distance of observed share and mean probability over `BINS` bins, weighted by rows; both (n,)."""
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    sums = [np.bincount(bins, weights=values, minlength=BINS) for values in (truth, probability)]
    return float(abs(sums[0] - sums[1]).sum() / len(truth))


def error_by_chance(probability: np.ndarray) -> float:
    """The mean calibration error of targets that are drawn from the probabilities (n,)."""
    rng = np.random.default_rng(SEED)
    drawn = [(rng.random(len(probability)) < probability).astype(np.float64) for _ in range(DRAWS)]
    return float(np.mean([calibration_error(truth, probability) for truth in drawn]))


def by_class(task: Task, encoded: np.ndarray, answers: Answers) -> Iterator[dict[str, Any]]:
    """Precision, recall and F1 of each class or label; the errors of each target of a regression with several."""
    if task.kind == "regression":
        yield from by_target(task, encoded, answers.scores)
        return
    if task.kind == "multiclass":
        codes = encoded.argmax(axis=1) if task.one_hot else encoded
        truths, guesses = np.eye(task.units)[codes.astype(int)], np.eye(task.units)[answers.scores.argmax(axis=1)]
    elif task.kind == "binary":
        positive, said = encoded[:, 0] == 1, answers.scores[:, 0] >= answers.threshold
        truths, guesses = np.stack([~positive, positive], axis=1), np.stack([~said, said], axis=1)
    else:
        truths, guesses = encoded, answers.scores >= answers.threshold
    for name, truth, guess in zip(task.classes, truths.T > 0, guesses.T > 0, strict=True):
        hits, support, guessed = int((truth & guess).sum()), int(truth.sum()), int(guess.sum())
        yield {
            "name": str(name),
            "rows": support,
            "precision": hits / guessed if guessed else None,
            "recall": hits / support if support else None,
            "f1": 2 * hits / (support + guessed) if support + guessed else None,
        }


def by_target(task: Task, encoded: np.ndarray, scores: np.ndarray) -> Iterator[dict[str, Any]]:
    """RMSE and MAE of each target, where there are several."""
    if len(task.targets) < 2:
        return
    errors = encoded * np.asarray(task.std) + np.asarray(task.mean) - scores
    for name, error in zip(task.targets, errors.T, strict=True):
        rmse, mae = float(np.sqrt((error**2).mean())), float(abs(error).mean())
        yield {"name": name, "rows": len(error), "rmse": rmse, "mae": mae}


def by_slice(
    bundle: Bundle, features: pd.DataFrame, encoded: np.ndarray, answers: Answers, groups: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """All metrics of the rows of each category, where there are at least `SMALLEST`."""
    for column, category, rows in slices(bundle, features, groups):
        if rows.sum() < SMALLEST:
            continue
        found = bundle.task.score(encoded[rows], answers.scores[rows], threshold=answers.threshold)
        metrics = {name: finite(found[name]) for name in METRICS[bundle.task.kind]}
        yield {"column": column, "category": category, "rows": int(rows.sum()), "metrics": metrics}


def slices(bundle: Bundle, features: pd.DataFrame, groups: Sequence[str]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Column, category and which rows (n,) have it."""
    known = {column.name: column for column in bundle.preprocessor.schema.columns}
    for name in [group for group in groups if group in known] or sliced_by(bundle):
        values = features[name].astype("string")
        kinds = known[name].categories[:CATEGORIES] or tuple(map(str, values.dropna().unique()[:CATEGORIES]))
        for kind in kinds:
            yield name, kind, (values == kind).fillna(False).to_numpy(bool)


def sliced_by(bundle: Bundle) -> list[str]:
    """The categorical columns that rows are sliced by where none is named."""
    columns = [column for column in bundle.preprocessor.schema.columns if 2 <= len(column.categories) <= CATEGORIES]
    return [column.name for column in sorted(columns, key=lambda column: len(column.categories))[:COLUMNS]]
