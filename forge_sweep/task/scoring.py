"""Exact metrics of scikit-learn at a cost that fits every epoch (30,000 validation rows).

Two things are shared: ranking metrics sort the scores once, and metrics of decisions are computed by scikit-learn on
the cells of the confusion matrix with their counts as sample weights, which gives the same numbers as the rows do.
Truths are int64 codes, scores float64 probabilities; all are finite. Undefined values are nan, without a warning.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Decisions = tuple["np.ndarray", "np.ndarray", "np.ndarray", dict[str, float]]


def binary(truth: np.ndarray, score: np.ndarray, threshold: float) -> dict[str, float]:
    """Metrics of one 0/1 truth (n,) and its probability (n,)."""
    from sklearn import metrics

    precision, recall, f1, shared = _decisions(truth, (score >= threshold).astype(int), 2)
    auc, pr_auc = _ranking(truth, score)
    return {
        "auc": auc,
        "pr_auc": pr_auc,
        "precision": precision[1],
        "recall": recall[1],
        "f1": f1[1],
        "log_loss": metrics.log_loss(truth, score, labels=[0, 1]),
        "brier": metrics.brier_score_loss(truth, score, pos_label=1),
        **shared,
    }


def multiclass(truth: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Metrics of class codes (n,) and probabilities (n, classes) whose rows sum to 1."""
    import numpy as np
    from sklearn import metrics

    classes, guess = scores.shape[1], scores.argmax(axis=1)
    _, _, f1, shared = _decisions(truth, guess, classes)
    return {
        "auc": _mean_defined([_ranking(truth == code, scores[:, code])[0] for code in np.unique(truth)]),
        "f1": float(np.mean(f1[np.union1d(truth, guess)])),
        "log_loss": metrics.log_loss(truth, scores, labels=range(classes)),
        **shared,
    }


def multilabel(truth: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """Metrics of 0/1 truths (n, labels) and probabilities (n, labels)."""
    import numpy as np
    from sklearn import metrics

    guess = (scores >= threshold).astype(int)
    columns = range(truth.shape[1])
    auc, pr_auc = zip(*(_ranking(truth[:, i], scores[:, i]) for i in columns), strict=True)
    f1 = metrics.f1_score(truth, guess, average="macro", zero_division=0.0)
    return {
        "auc": _mean_defined(auc),
        "pr_auc": _mean_defined(pr_auc),
        "f1": f1,
        "accuracy": float((truth == guess).all(axis=1).mean()),
        "hamming_loss": float((truth != guess).mean()),
        "log_loss": float(np.mean([metrics.log_loss(truth[:, i], scores[:, i], labels=[0, 1]) for i in columns])),
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
    """(precision, recall, F1) of each class, and the metrics of decisions that binary and multiclass share."""
    import numpy as np
    from sklearn import metrics

    counts = np.bincount(truth * classes + guess, minlength=classes * classes)
    cells = np.flatnonzero(counts)
    true, hit, weight = cells // classes, cells % classes, counts[cells]
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        true, hit, labels=range(classes), sample_weight=weight, zero_division=0.0
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A single label was found", category=UserWarning)
        mcc = metrics.matthews_corrcoef(true, hit, sample_weight=weight)
    shared = {
        "accuracy": weight[true == hit].sum() / weight.sum(),
        "balanced_accuracy": recall[support > 0].mean(),
        "mcc": mcc,
    }
    return precision, recall, f1, shared


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
