"""Exact metrics of scikit-learn at a cost that fits every epoch (30,000 validation rows).

Two things are shared: ranking metrics sort the scores once, with scikit-learn, and metrics of decisions follow from the
confusion matrix. Those, the log loss and the Brier score are written out by scikit-learn's definitions, since its own
functions spend 3 ms on checking their arguments, a sixth of an epoch of a small network; the tests hold them to its
numbers. Truths are int64 codes, scores float64 probabilities; all are finite. Undefined values are nan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class Decisions:
    """What a confusion matrix gives: one value per class, and over all rows; 0 where there is nothing to divide by.

    ``mcc`` is Matthews' coefficient for any number of classes (Gorodkin 2004,
    https://doi.org/10.1016/j.compbiolchem.2004.09.006).
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    shared: dict[str, float]


def binary(truth: np.ndarray, score: np.ndarray, threshold: float) -> dict[str, float]:
    """Metrics of one 0/1 truth (n,) and its probability (n,)."""
    decisions = _decisions(truth, (score >= threshold).astype(int), 2)
    auc, pr_auc = _ranking(truth, score)
    return {
        "auc": auc,
        "pr_auc": pr_auc,
        "precision": decisions.precision[1],
        "recall": decisions.recall[1],
        "f1": decisions.f1[1],
        "log_loss": _log_loss_of(truth, score),
        "brier": float(((score - truth) ** 2).mean()),
        **decisions.shared,
    }


def multiclass(truth: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Metrics of class codes (n,) and probabilities (n, classes) whose rows sum to 1."""
    import numpy as np

    classes, guess = scores.shape[1], scores.argmax(axis=1)
    decisions = _decisions(truth, guess, classes)
    return {
        "auc": _mean_defined([_ranking(truth == code, scores[:, code])[0] for code in np.unique(truth)]),
        "f1": float(np.mean(decisions.f1[np.union1d(truth, guess)])),
        "log_loss": _log_loss(scores[np.arange(len(truth)), truth]),
        **decisions.shared,
    }


def multilabel(truth: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """Metrics of 0/1 truths (n, labels) and probabilities (n, labels)."""
    import numpy as np

    guess = (scores >= threshold).astype(int)
    columns = range(truth.shape[1])
    auc, pr_auc = zip(*(_ranking(truth[:, i], scores[:, i]) for i in columns), strict=True)
    return {
        "auc": _mean_defined(auc),
        "pr_auc": _mean_defined(pr_auc),
        "f1": float(np.mean([_decisions(truth[:, i], guess[:, i], 2).f1[1] for i in columns])),
        "accuracy": float((truth == guess).all(axis=1).mean()),
        "hamming_loss": float((truth != guess).mean()),
        "log_loss": float(np.mean([_log_loss_of(truth[:, i], scores[:, i]) for i in columns])),
    }


def regression(truth: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Metrics of values (n, targets), averaged over targets; ``r2`` is nan for a single row."""
    from sklearn import metrics

    return {
        "rmse": metrics.root_mean_squared_error(truth, scores),
        "mae": metrics.mean_absolute_error(truth, scores),
        "r2": metrics.r2_score(truth, scores) if len(truth) > 1 else float("nan"),
        "medae": metrics.median_absolute_error(truth, scores),
    }


def _decisions(truth: np.ndarray, guess: np.ndarray, classes: int) -> Decisions:
    """Metrics of decided classes (n,) against true ones (n,)."""
    import numpy as np

    cells = np.bincount(truth * classes + guess, minlength=classes * classes).reshape(classes, classes).astype(float)
    hits, support, guessed, rows = cells.diagonal(), cells.sum(axis=1), cells.sum(axis=0), cells.sum()
    recall = _ratio(hits, support)
    spread = np.sqrt((rows**2 - (guessed**2).sum()) * (rows**2 - (support**2).sum()))
    shared = {
        "accuracy": hits.sum() / rows,
        "balanced_accuracy": recall[support > 0].mean(),
        "mcc": (hits.sum() * rows - guessed @ support) / spread if spread else 0.0,
    }
    return Decisions(_ratio(hits, guessed), recall, _ratio(2 * hits, guessed + support), shared)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Elementwise quotient; 0 where there is nothing to divide by."""
    import numpy as np

    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below > 0))


def _log_loss_of(truth: np.ndarray, score: np.ndarray) -> float:
    """Log loss of one 0/1 truth (n,) and its probability (n,)."""
    import numpy as np

    return _log_loss(np.where(truth == 1, score, 1 - score))


def _log_loss(of_truth: np.ndarray) -> float:
    """Log loss from the probability that each row's true class was given, (n,)."""
    import numpy as np

    eps = np.finfo(of_truth.dtype).eps
    return float(-np.log(np.clip(of_truth, eps, 1 - eps)).mean())


def _ranking(truth: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """(ROC AUC, average precision) from one sort; nan for both where one class only is present.

    Average precision is the sum over thresholds of (R_n - R_(n-1)) P_n, as ``sklearn.metrics.average_precision_score``
    defines it.
    """
    import numpy as np
    from sklearn import metrics

    positives = int(np.count_nonzero(truth))
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan"), float("nan")
    fpr, tpr, _ = metrics.roc_curve(truth, score, drop_intermediate=False)
    hits, misses = tpr[1:] * positives, fpr[1:] * negatives
    return float(metrics.auc(fpr, tpr)), float(np.sum(np.diff(tpr) * hits / (hits + misses)))


def _mean_defined(values: list[float] | tuple[float, ...]) -> float:
    """Mean over the values that are defined; nan where none is."""
    import numpy as np

    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
