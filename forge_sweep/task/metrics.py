"""Which activation, loss and metrics go with which task, and the metrics of predictions.

Metrics are computed from how often each row counts: once for a score, by resample for the bootstrap. They follow
scikit-learn's definitions, exactly and not over 200 thresholds as Keras' streaming ones; its own functions spend a
sixth of an epoch of a small network on checking their arguments. The tests hold these to its numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

TaskKind = Literal["binary", "multiclass", "multilabel", "regression", "joint"]
Direction = Literal["maximize", "minimize"]
_LESS_IS_BETTER = ("log_loss", "brier", "hamming_loss", "rmse", "mae", "medae")
_NAMES: dict[TaskKind, str] = {
    "binary": "auc pr_auc accuracy balanced_accuracy f1 precision recall mcc log_loss brier",
    "multiclass": "auc accuracy balanced_accuracy f1 log_loss mcc",
    "multilabel": "auc pr_auc f1 accuracy hamming_loss log_loss",
    "regression": "rmse mae r2 medae",
}
METRICS: dict[TaskKind, dict[str, Direction]] = {
    kind: {name: "minimize" if name in _LESS_IS_BETTER else "maximize" for name in names.split()}
    for kind, names in _NAMES.items()
}
"""Metrics that ``Task.score`` gives, without a split in front. ``loss`` (minimize) is valid for every task besides."""

NO_END = float("inf")
_LIMITS = {
    "mcc": (-1.0, 1.0),
    "r2": (-NO_END, 1.0),
    **dict.fromkeys(("loss", "log_loss", "rmse", "mae", "medae"), (0.0, NO_END)),
}


@dataclass(frozen=True)
class Pairing:
    """An output activation with the loss that is right for it, in Keras' names."""

    activation: str
    loss: str


_PAIRINGS: dict[tuple[TaskKind, bool], tuple[Pairing, ...]] = {
    ("binary", False): (Pairing("sigmoid", "binary_crossentropy"),),
    ("multiclass", False): (Pairing("softmax", "sparse_categorical_crossentropy"),),
    ("multiclass", True): (Pairing("softmax", "categorical_crossentropy"),),
    ("multilabel", False): (Pairing("sigmoid", "binary_crossentropy"),),
    ("regression", False): (Pairing("linear", "mse"), Pairing("linear", "mae")),
}

# Why a head is wrong, for the pairs people write
_WRONG_ACTIVATION = {
    ("binary", "softmax"): "softmax over 1 unit is always 1.0, so nothing is learned",
    ("multilabel", "softmax"): "softmax makes the labels share 1.0, but several may hold at once",
    ("multiclass", "sigmoid"): "sigmoid judges each class alone, so the class probabilities do not sum to 1",
    ("regression", "sigmoid"): "sigmoid ends at 0 and 1, while standardised targets have no bounds",
    ("regression", "softmax"): "softmax ends at 0 and 1, while standardised targets have no bounds",
}
_ONE_CLASS_ALONE = "binary_crossentropy judges each class alone and not one class against the others"
_WRONG_LOSS = {
    ("binary", "categorical_crossentropy"): "categorical_crossentropy over 1 unit is always 0",
    ("binary", "sparse_categorical_crossentropy"): "sparse_categorical_crossentropy expects one unit per class, not 1",
    ("multiclass", "categorical_crossentropy"): "categorical_crossentropy expects one-hot columns, not integer labels",
    ("multiclass", "binary_crossentropy"): _ONE_CLASS_ALONE,
    ("one-hot", "sparse_categorical_crossentropy"): "sparse_categorical_crossentropy expects integer labels",
    ("one-hot", "binary_crossentropy"): _ONE_CLASS_ALONE,
    ("multilabel", "categorical_crossentropy"): "categorical_crossentropy expects exactly one label per row",
    ("multilabel", "sparse_categorical_crossentropy"): "that loss expects exactly one label per row",
}


def limits(metric: str) -> tuple[float, float]:
    """Least and greatest value that a metric such as ``auc`` can have."""
    return _LIMITS.get(metric, (0.0, 1.0))


def direction(kind: TaskKind, metric: str) -> Direction:
    """Whether more or less of a metric such as ``auc`` or ``val_auc`` is better; ValueError for none of the task."""
    name = re.sub("^(train|val|test)_", "", metric)
    if name == "loss":
        return "minimize"
    if name not in METRICS[kind]:
        raise ValueError(f"a {kind} task has no metric {metric!r}; it has {', '.join(METRICS[kind])} and loss")
    return METRICS[kind][name]


def pairings(kind: TaskKind, one_hot: bool = False) -> tuple[Pairing, ...]:
    """The heads that are right for a task; the first is the default. ``one_hot`` matters for multiclass only."""
    return _PAIRINGS[kind, one_hot and kind == "multiclass"]


def check_pairing(kind: TaskKind, one_hot: bool, activation: str, loss: str, from_logits: bool) -> str | None:
    """None where a head is right for a task, else what was asked for, why it is wrong and what is right.

    Keras accepts softmax with ``binary_crossentropy`` in silence, and warns about ``from_logits`` in one direction.
    """
    one_hot = one_hot and kind == "multiclass"
    right = pairings(kind, one_hot)
    why = _wrong_activation(kind, right, activation, from_logits) or _wrong_loss(kind, one_hot, right, loss)
    if why is None:
        return None
    asked = f'activation = "{activation}", loss = "{loss}", from_logits = {str(from_logits).lower()}'
    task = f"{kind} ({'one-hot' if one_hot else 'integer'} targets)" if kind == "multiclass" else kind
    losses = " or ".join(f'"{pair.loss}"' for pair in right)
    logits = "" if kind == "regression" else ', or "linear" with from_logits = true'
    advice = f'loss = {losses} with activation = "{right[0].activation}"{logits}'
    return f"{asked} does not fit a {task} task: {why}; use {advice}"


def _wrong_activation(kind: TaskKind, right: Sequence[Pairing], activation: str, from_logits: bool) -> str | None:
    if kind == "regression" and from_logits:
        return "from_logits belongs to cross-entropies and a regression has no logits"
    if from_logits and activation != "linear":
        return f"from_logits = true makes the loss apply its own activation on top of {activation}"
    if from_logits or any(pair.activation == activation for pair in right):
        return None
    if activation == "linear":
        return "the loss would read raw outputs as probabilities although they may lie outside 0..1"
    return _WRONG_ACTIVATION.get((kind, activation), f'"{activation}" is no output activation for it')


def _wrong_loss(kind: TaskKind, one_hot: bool, right: Sequence[Pairing], loss: str) -> str | None:
    if any(pair.loss == loss for pair in right):
        return None
    if kind == "regression" and loss.endswith("crossentropy"):
        return f"{loss} expects class probabilities and these targets are quantities"
    return _WRONG_LOSS.get(("one-hot" if one_hot else kind, loss), f'"{loss}" is no loss for it')


# Metrics that some targets do not define, whatever a model predicts: scikit-learn gives 0, 1 or nan, and warns at most.

OF_ONE_CLASS: dict[TaskKind, frozenset[str]] = {
    "binary": frozenset({"auc", "pr_auc", "precision", "recall", "f1", "balanced_accuracy", "mcc"}),
    "multiclass": frozenset({"auc", "f1", "balanced_accuracy", "mcc"}),
}
"""What rows of one class alone do not define."""

OVER_CLASSES = ("auc", "f1", "balanced_accuracy")
"""Averages over the classes of a multiclass task: a class without a row is left out of them, unseen."""


@dataclass(frozen=True)
class Gap:
    """Metrics that some rows do not define, or (not ``whole``) averages that leave a class or a label out."""

    metrics: tuple[str, ...]
    seen: str
    whole: bool


def gaps(kind: TaskKind, encoded: np.ndarray, names: tuple[str, ...]) -> Iterator[Gap]:
    """What targets as `Task.encode` gives them do not define; ``names`` are those of the classes, labels or targets."""
    n = len(encoded)
    if kind == "regression":
        constant = [name for name, column in zip(names, encoded.T, strict=True) if n < 2 or np.ptp(column) == 0]
        if constant:
            yield Gap(("r2",), f"all {n} values of {', '.join(constant)} are the same", whole=True)
        return
    if kind == "multilabel":
        positives = [int(np.count_nonzero(column)) for column in encoded.T]
        flat = [f"{name} (all {1 if p else 0})" for name, p in zip(names, positives, strict=True) if p in (0, n)]
        if flat:
            seen = f"{', '.join(flat)} of {len(names)} labels over {n} rows"
            yield Gap(("auc", "pr_auc"), seen, whole=len(flat) == len(names))
        without = [name for name, p in zip(names, positives, strict=True) if p == 0]
        if without:
            seen = f"{', '.join(without)} of {len(names)} labels holds in none of {n} rows"
            yield Gap(("f1",), seen, whole=len(without) == len(names))
        return
    codes = encoded.argmax(axis=1) if encoded.ndim > 1 and encoded.shape[1] > 1 else encoded.ravel()
    counts = np.bincount(codes.astype(np.int64), minlength=len(names))
    present = [name for name, count in zip(names, counts, strict=True) if count]
    if len(present) < 2:
        seen = f"all {n} targets are {', '.join(present) or 'missing'}"
        yield Gap(tuple(sorted(OF_ONE_CLASS[kind])), seen, whole=True)
    elif len(present) < len(names):
        absent = [name for name in names if name not in present]
        yield Gap(OVER_CLASSES, f"no row of {n} has the class {', '.join(absent)}", whole=False)


# Scores

Values = Callable[[np.ndarray], dict[str, np.ndarray]]
"""From how often each row counts, (resamples, n) float64, to metrics by name, each (resamples,)."""

Part = tuple[set[str], Callable[[], Values]]
"""Some metrics, and what prepares to compute them: sorting rows by their scores takes longer than all the rest."""


def parts(
    kind: TaskKind, truth: np.ndarray, scores: np.ndarray, threshold: float, wanted: Collection[str]
) -> list[Values]:
    """What computes the wanted metrics from `Task.truth` and finite scores (n, units); undefined ones are nan."""
    average = "pr_auc" in wanted
    if kind == "binary":
        found = _binary(truth, scores[:, 0], threshold, average)
    elif kind == "multiclass":
        found = _multiclass(truth, scores)
    elif kind == "multilabel":
        found = _multilabel(truth, scores, threshold, average)
    else:
        found = _regression(truth, scores)
    return [prepared() for names, prepared in found if not names.isdisjoint(wanted)]


def _binary(truth: np.ndarray, score: np.ndarray, threshold: float, average: bool) -> Iterator[Part]:
    yield {"auc", "pr_auc"}, lambda: _Ranking(truth, score, average=average)
    decided = {"precision", "recall", "f1", "accuracy", "balanced_accuracy", "mcc"}
    yield decided, lambda: _decisions(truth, (score >= threshold).astype(np.int64), 2, of_second=True)
    yield {"log_loss"}, lambda: mean_of("log_loss", _surprise(np.where(truth == 1, score, 1 - score)))
    yield {"brier"}, lambda: mean_of("brier", (score - truth) ** 2)


def _multiclass(truth: np.ndarray, scores: np.ndarray) -> Iterator[Part]:
    def rankings() -> Values:
        return _averaged([_Ranking(truth == code, scores[:, code], average=False) for code in np.unique(truth)])

    yield {"auc"}, rankings
    decided = {"f1", "accuracy", "balanced_accuracy", "mcc"}
    yield decided, lambda: _decisions(truth, scores.argmax(axis=1), scores.shape[1])
    yield {"log_loss"}, lambda: mean_of("log_loss", _surprise(scores[np.arange(len(truth)), truth]))


def _multilabel(truth: np.ndarray, scores: np.ndarray, threshold: float, average: bool) -> Iterator[Part]:
    guess, labels = (scores >= threshold).astype(np.int64), range(truth.shape[1])

    def rankings() -> Values:
        return _averaged([_Ranking(truth[:, i], scores[:, i], average=average) for i in labels])

    def decisions() -> Values:
        return _averaged([_decisions(truth[:, i], guess[:, i], 2, of_second=True, alone=True) for i in labels], "f1")

    yield {"auc", "pr_auc"}, rankings
    yield {"f1"}, decisions
    yield {"accuracy"}, lambda: mean_of("accuracy", (truth == guess).all(axis=1))
    yield {"hamming_loss"}, lambda: mean_of("hamming_loss", (truth != guess).mean(axis=1))
    yield {"log_loss"}, lambda: mean_of("log_loss", _surprise(np.where(truth == 1, scores, 1 - scores)).mean(axis=1))


def _regression(truth: np.ndarray, scores: np.ndarray) -> Iterator[Part]:
    error, around = truth - scores, truth - truth.mean(axis=0)

    def squares(counts: np.ndarray) -> dict[str, np.ndarray]:
        rows, wrong = counts.sum(axis=1)[:, None], counts @ error**2
        spread = counts @ around**2 - (counts @ around) ** 2 / rows
        with np.errstate(divide="ignore", invalid="ignore"):
            explained = np.where(spread > 0, 1 - wrong / spread, np.nan)
        return {"rmse": np.sqrt(wrong / rows).mean(axis=1), "r2": explained.mean(axis=1)}

    yield {"rmse", "r2"}, lambda: squares
    yield {"mae"}, lambda: mean_of("mae", abs(error).mean(axis=1))
    yield {"medae"}, lambda: _averaged([_median(abs(error[:, i])) for i in range(error.shape[1])])


def mean_of(name: str, values: np.ndarray) -> Values:
    """A metric that is a mean over rows."""
    return lambda counts: {name: counts @ values / counts.sum(axis=1)}


def _surprise(of_truth: np.ndarray) -> np.ndarray:
    """Log loss of each row from the probability that its truth was given."""
    eps = np.finfo(of_truth.dtype).eps
    return np.asarray(-np.log(np.clip(of_truth, eps, 1 - eps)))


def _averaged(each: Sequence[Values], only: str = "") -> Values:
    """The mean over labels, classes or targets, of those where the metric is defined."""

    def values(counts: np.ndarray) -> dict[str, np.ndarray]:
        found = [one(counts) for one in each]
        means = {}
        for name in [only] if only else found[0]:
            stacked = np.stack([one[name] for one in found])
            defined = np.isfinite(stacked)
            means[name] = _over(np.where(defined, stacked, 0.0).sum(axis=0), defined.sum(axis=0))
        return means

    return values


class _Ranking:
    """ROC AUC and average precision of one 0/1 truth; nan where one class counts, equal scores are one threshold.

    Average precision is the sum over thresholds of (R_n - R_(n-1)) P_n, as scikit-learn defines it.
    """

    def __init__(self, truth: np.ndarray, score: np.ndarray, *, average: bool) -> None:
        self.average = average
        self.order = np.argsort(-score, kind="stable")
        ranked = score[self.order]
        self.positive = truth[self.order].astype(np.float64)
        ends = np.append(ranked[1:] != ranked[:-1], True)
        self.ends = slice(None) if ends.all() else np.flatnonzero(ends)
        self.places = np.flatnonzero(self.positive)  # of the positive rows; then where their equals begin and end
        last = np.flatnonzero(ends)
        tie = np.searchsorted(last, self.places)
        self.last, self.first = last[tie], np.append(0, last + 1)[tie]

    def _area(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """AUC alone: of each positive row, the negative ones below it and half of those that are equal."""
        ranked = counts[:, self.order]
        weights = ranked[:, self.places]
        ranked[:, self.places] = 0.0
        misses = np.cumsum(ranked, axis=1, out=ranked)
        above = np.where(self.first > 0, misses[:, self.first - 1], 0.0)
        negatives = misses[:, -1]
        area = np.einsum("ij,ij->i", weights, negatives[:, None] - (above + misses[:, self.last]) / 2)
        return {"auc": _over(area, weights.sum(axis=1) * negatives)}

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        if not self.average:
            return self._area(counts)
        ranked = counts[:, self.order]
        hits = np.cumsum(ranked * self.positive, axis=1)[:, self.ends]
        above = np.cumsum(ranked, axis=1)[:, self.ends]
        positives = hits[:, -1]
        negatives = above[:, -1] - positives
        new_hits = np.diff(hits, axis=1, prepend=0.0)
        new_misses = np.diff(above, axis=1, prepend=0.0) - new_hits
        area = np.einsum("ij,ij->i", new_misses, hits - new_hits / 2)
        both = positives * negatives
        average = np.einsum("ij,ij->i", new_hits, _over(hits, above, 0.0))
        return {"auc": _over(area, both), "pr_auc": np.where(both > 0, _over(average, positives), np.nan)}


def _median(values: np.ndarray) -> Values:
    """``medae`` of one value per row; between two middle rows their mean, as in NumPy."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]

    def median(counts: np.ndarray) -> dict[str, np.ndarray]:
        below = np.cumsum(counts[:, order], axis=1)
        rows = below[:, -1:]
        low = (below <= np.floor((rows - 1) / 2)).sum(axis=1)
        high = (below <= np.floor(rows / 2)).sum(axis=1)
        return {"medae": (ranked[low] + ranked[high]) / 2}

    return median


def _decisions(
    truth: np.ndarray, guess: np.ndarray, classes: int, *, of_second: bool = False, alone: bool = False
) -> Values:
    """Metrics of a confusion matrix, 0 for 0 / 0; f1 of the second class, or of all on average.

    All but accuracy are nan where one class counts, unless such a truth may stand ``alone``, as a label does. ``mcc``
    is Matthews' coefficient for any number of classes (Gorodkin 2004, https://doi.org/10.1016/j.compbiolchem.2004.09.006).
    """
    cells = truth * classes + guess

    def values(counts: np.ndarray) -> dict[str, np.ndarray]:
        table = np.stack([np.bincount(cells, weights=row, minlength=classes**2) for row in counts])
        table = table.reshape(len(counts), classes, classes)
        hits, support, guessed = table.diagonal(axis1=1, axis2=2), table.sum(axis=2), table.sum(axis=1)
        rows, right = support.sum(axis=1), hits.sum(axis=1)
        recall, precision = _over(hits, support, 0.0), _over(hits, guessed, 0.0)
        f1 = _over(2 * hits, guessed + support, 0.0)
        spread = np.sqrt((rows**2 - (guessed**2).sum(axis=1)) * (rows**2 - (support**2).sum(axis=1)))
        found = {
            "accuracy": right / rows,
            "balanced_accuracy": recall.sum(axis=1) / (support > 0).sum(axis=1),
            "mcc": _over(right * rows - (guessed * support).sum(axis=1), spread, 0.0),
        }
        if of_second:
            found |= {"precision": precision[:, 1], "recall": recall[:, 1], "f1": f1[:, 1]}
        else:
            found["f1"] = f1.sum(axis=1) / (guessed + support > 0).sum(axis=1)
        if alone:
            return found
        several = (support > 0).sum(axis=1) > 1
        return {name: each if name == "accuracy" else np.where(several, each, np.nan) for name, each in found.items()}

    return values


def _over(above: np.ndarray, below: np.ndarray, otherwise: float = float("nan")) -> np.ndarray:
    """Elementwise quotient, and ``otherwise`` where there is nothing to divide by."""
    return np.asarray(np.divide(above, below, out=np.full(above.shape, otherwise), where=below > 0))
