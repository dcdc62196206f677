"""How far a metric may be off by chance: the bootstrap over rows, for all metrics of a task.

A resample draws as many rows as there are, with replacement (Efron and Tibshirani 1993, "An Introduction to the
Bootstrap", chapters 10 and 13: percentile intervals). Drawing a row twice is counting it twice, so every metric is
computed from counts per row, hundreds of resamples at once, instead of from copies of rows: 100,000 rows take seconds.
Two models are compared on the same resamples (paired): what makes a row hard for both of them cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forge_sweep.task.pairing import METRICS, direction
from forge_sweep.task.task import Task

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0

AT_ONCE = 2_000_000
"""So many counts are held in memory at once (16 MB), and a few arrays of that size beside them."""

Values = Callable[["np.ndarray"], "dict[str, np.ndarray]"]
"""From counts (resamples, n) to metrics by name, each (resamples,)."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model said of the rows.

    Attributes:
        scores: (n, units) as `Task.to_scores` gives them.
        threshold: probability from which a label holds.
    """

    scores: np.ndarray
    threshold: float


@dataclass(frozen=True)
class Interval:
    """A figure with its percentile interval.

    Attributes:
        value: over the rows as they are.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def times(self, sign: float) -> Interval:
        """The same figure the other way round, where ``sign`` is -1: an error as what is to be made great."""
        return self if sign > 0 else Interval(-self.value, -self.high, -self.low)


@dataclass(frozen=True)
class Gain:
    """By how much one model is better than another on the same rows; positive is better, whatever the metric.

    Attributes:
        metric: the metric's name.
        one: its value of the model in question.
        other: its value of the model it is compared with.
        gain: their difference, with its interval.
    """

    metric: str
    one: float
    other: float
    gain: Interval

    @property
    def beyond_noise(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.gain.low > 0


def intervals(
    task: Task, encoded: np.ndarray, answers: Answers, *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Interval]:
    """Every metric of the task with its interval at `LEVEL`.

    Args:
        task: what is predicted.
        encoded: targets as `Task.encode` gives them.
        answers: the model's.
        resamples: how many.
        seed: of the resamples.
    """
    names = tuple(METRICS[task.kind])
    exact = task.score(encoded, answers.scores, threshold=answers.threshold)
    drawn = _resampled(task, encoded, (answers,), names, resamples, seed)
    return {name: Interval(exact[name], *_ends(drawn[name][0])) for name in names}


def gain(
    task: Task,
    encoded: np.ndarray,
    one: Answers,
    other: Answers,
    metric: str,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Gain:
    """By how much ``one`` is better than ``other``, with the interval at `LEVEL` over paired resamples.

    Args:
        task: what is predicted.
        encoded: targets as `Task.encode` gives them.
        one: the model in question.
        other: what it is compared with.
        metric: one of ``METRICS[task.kind]``.
        resamples: how many.
        seed: of the resamples.
    """
    return gains(task, encoded, one, other, (metric,), resamples=resamples, seed=seed)[metric]


def gains(
    task: Task,
    encoded: np.ndarray,
    one: Answers,
    other: Answers,
    metrics: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Gain]:
    """The same by several metrics, on the same resamples; see `gain`."""
    exact = [task.score(encoded, each.scores, threshold=each.threshold) for each in (one, other)]
    drawn = _resampled(task, encoded, (one, other), metrics, resamples, seed)
    found = {}
    for name in metrics:
        sign = 1.0 if direction(task.kind, name) == "maximize" else -1.0
        ends = _ends(sign * (drawn[name][0] - drawn[name][1]))
        found[name] = Gain(
            name, exact[0][name], exact[1][name], Interval(sign * (exact[0][name] - exact[1][name]), *ends)
        )
    return found


def resampled(
    task: Task, encoded: np.ndarray, answers: Answers, metric: str, *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, np.ndarray]:
    """A metric over the rows as they are, and over each resample: the same resamples for every model.

    Args:
        task: what is predicted.
        encoded: targets as `Task.encode` gives them.
        answers: the model's.
        metric: one of ``METRICS[task.kind]``, or ``loss``, the task's loss without any penalty.
        resamples: how many.
        seed: of the resamples.

    Returns:
        The value, and (resamples,) with nan where a resample does not define it.
    """
    import numpy as np

    name = "log_loss" if metric == "loss" and task.kind != "regression" else metric
    drawn = _resampled(task, encoded, (answers,), (name,), resamples, seed)[name][0]
    if name == "loss":  # of a regression: no metric of `Task.score`
        (values_of,) = _families(task, encoded, answers, (name,))
        return float(values_of(np.ones((1, len(encoded))))[name][0]), drawn
    return task.score(encoded, answers.scores, threshold=answers.threshold)[name], drawn


def _resampled(
    task: Task, encoded: np.ndarray, models: Sequence[Answers], metrics: Sequence[str], resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Metrics by name, each (models, resamples)."""
    import numpy as np

    found = {name: np.full((len(models), resamples), np.nan) for name in metrics}
    if not len(encoded) or any(not np.isfinite(model.scores).all() for model in models):
        return found
    metrics = [name for name in metrics if not any(gap.whole and name in gap.metrics for gap in task.gaps(encoded))]
    families = [_families(task, encoded, model, metrics) for model in models]
    done = 0
    for counts in _counts(len(encoded), resamples, seed):
        place = slice(done, done + len(counts))
        for i, values_of in enumerate(families):
            for values in values_of:
                for name, value in values(counts).items():
                    if name in metrics:
                        found[name][i, place] = value
        done += len(counts)
    return found


def _counts(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is in each resample, (some resamples, n) float64, until there are enough."""
    import numpy as np

    rng, at_once = np.random.default_rng(seed), max(1, AT_ONCE // n)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        picks = rng.integers(0, n, size=(size, n))
        picks += (np.arange(size) * n)[:, None]
        yield np.bincount(picks.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def _ends(values: np.ndarray) -> tuple[float, float]:
    """The percentile interval over the resamples in which the metric is defined; nan where it is in none."""
    import numpy as np

    defined = values[np.isfinite(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _families(task: Task, encoded: np.ndarray, model: Answers, metrics: Sequence[str]) -> list[Values]:
    """What computes the wanted metrics, each part only where one of its metrics is wanted."""
    builders = {
        "binary": _binary,
        "multiclass": _multiclass,
        "multilabel": _multilabel,
        "regression": _regression,
    }
    wanted = set(metrics)
    return [values for names, values in builders[task.kind](task, encoded, model, wanted) if names & wanted]


Part = tuple[set[str], Values]


def _binary(task: Task, encoded: np.ndarray, model: Answers, wanted: set[str]) -> Iterator[Part]:
    import numpy as np

    truth, score = encoded[:, 0].astype(np.int64), model.scores[:, 0]
    yield {"auc", "pr_auc"}, _Ranking(truth, score, average="pr_auc" in wanted)
    decided = _decisions(truth, (score >= model.threshold).astype(np.int64), 2, of_second=True)
    yield {"precision", "recall", "f1", "accuracy", "balanced_accuracy", "mcc"}, decided
    yield {"log_loss"}, _mean("log_loss", _surprise(np.where(truth == 1, score, 1 - score)))
    yield {"brier"}, _mean("brier", (score - truth) ** 2)


def _multiclass(task: Task, encoded: np.ndarray, model: Answers, wanted: set[str]) -> Iterator[Part]:
    import numpy as np

    scores, classes = model.scores, model.scores.shape[1]
    truth = (encoded.argmax(axis=1) if task.one_hot else encoded).astype(np.int64)
    yield {"auc"}, _averaged([_Ranking(truth == code, scores[:, code], average=False) for code in np.unique(truth)])
    yield {"f1", "accuracy", "balanced_accuracy", "mcc"}, _decisions(truth, scores.argmax(axis=1), classes)
    yield {"log_loss"}, _mean("log_loss", _surprise(scores[np.arange(len(truth)), truth]))


def _multilabel(task: Task, encoded: np.ndarray, model: Answers, wanted: set[str]) -> Iterator[Part]:
    import numpy as np

    truth, scores = encoded.astype(np.int64), model.scores
    guess, labels = (scores >= model.threshold).astype(np.int64), range(truth.shape[1])
    yield (
        {"auc", "pr_auc"},
        _averaged([_Ranking(truth[:, i], scores[:, i], average="pr_auc" in wanted) for i in labels]),
    )
    of_labels = [_decisions(truth[:, i], guess[:, i], 2, of_second=True, alone=True) for i in labels]
    yield {"f1"}, _averaged(of_labels, "f1")
    yield {"accuracy"}, _mean("accuracy", (truth == guess).all(axis=1))
    yield {"hamming_loss"}, _mean("hamming_loss", (truth != guess).mean(axis=1))
    yield {"log_loss"}, _mean("log_loss", _surprise(np.where(truth == 1, scores, 1 - scores)).mean(axis=1))


def _regression(task: Task, encoded: np.ndarray, model: Answers, wanted: set[str]) -> Iterator[Part]:
    import numpy as np

    truth = np.asarray(encoded, dtype=np.float64) * np.asarray(task.std) + np.asarray(task.mean)
    error, around = truth - model.scores, truth - truth.mean(axis=0)

    def squares(counts: np.ndarray) -> dict[str, np.ndarray]:
        rows, wrong = counts.sum(axis=1)[:, None], counts @ error**2
        spread = counts @ around**2 - (counts @ around) ** 2 / rows
        with np.errstate(divide="ignore", invalid="ignore"):
            explained = np.where(spread > 0, 1 - wrong / spread, np.nan)
        return {"rmse": np.sqrt(wrong / rows).mean(axis=1), "r2": explained.mean(axis=1)}

    yield {"rmse", "r2"}, squares
    yield {"mae"}, _mean("mae", abs(error).mean(axis=1))
    standard = error / np.asarray(task.std)
    yield {"loss"}, _mean("loss", (standard**2 if task.loss == "mse" else abs(standard)).mean(axis=1))
    yield {"medae"}, _averaged([_Median(abs(error[:, i])) for i in range(error.shape[1])])


def _surprise(of_truth: np.ndarray) -> np.ndarray:
    """Log loss of each row from the probability that its truth was given; clipped as in `scoring`."""
    import numpy as np

    eps = np.finfo(of_truth.dtype).eps
    return np.asarray(-np.log(np.clip(of_truth, eps, 1 - eps)))


def _mean(name: str, values: np.ndarray) -> Values:
    """A metric that is a mean over rows."""
    return lambda counts: {name: counts @ values / counts.sum(axis=1)}


def _averaged(parts: Sequence[Values], only: str = "") -> Values:
    """The mean over labels, classes or targets, of those where the metric is defined."""
    import numpy as np

    def values(counts: np.ndarray) -> dict[str, np.ndarray]:
        each = [part(counts) for part in parts]
        found = {}
        for name in [only] if only else each[0]:
            stacked = np.stack([one[name] for one in each])
            defined = np.isfinite(stacked)
            sums = np.where(defined, stacked, 0.0).sum(axis=0)
            found[name] = _over(sums, defined.sum(axis=0))
        return found

    return values


class _Ranking:
    """ROC AUC and average precision of one 0/1 truth; equal scores are one threshold, as in scikit-learn."""

    def __init__(self, truth: np.ndarray, score: np.ndarray, *, average: bool = True) -> None:
        import numpy as np

        self.average = average
        self.order = np.argsort(-score, kind="stable")
        ranked = score[self.order]
        self.positive = truth[self.order].astype(np.float64)
        ends = np.append(ranked[1:] != ranked[:-1], True)
        self.ends = slice(None) if ends.all() else np.flatnonzero(ends)

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """The two metrics; nan for a resample of one class."""
        import numpy as np

        ranked = counts[:, self.order]
        hits = np.cumsum(ranked * self.positive, axis=1)[:, self.ends]
        above = np.cumsum(ranked, axis=1)[:, self.ends]
        positives = hits[:, -1]
        negatives = above[:, -1] - positives
        new_hits = np.diff(hits, axis=1, prepend=0.0)
        new_misses = np.diff(above, axis=1, prepend=0.0) - new_hits
        area = np.einsum("ij,ij->i", new_misses, hits - new_hits / 2)
        both = positives * negatives
        found = {"auc": _over(area, both)}
        if self.average:
            precision = np.divide(hits, above, out=np.zeros_like(hits), where=above > 0)
            average = np.einsum("ij,ij->i", new_hits, precision)
            found["pr_auc"] = np.where(both > 0, _over(average, positives), np.nan)
        return found


class _Median:
    """Median of one value per row; between two middle rows their mean, as in NumPy."""

    def __init__(self, values: np.ndarray) -> None:
        import numpy as np

        self.order = np.argsort(values, kind="stable")
        self.values = values[self.order]

    def __call__(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """The median, as ``medae``."""
        import numpy as np

        below = np.cumsum(counts[:, self.order], axis=1)
        rows = below[:, -1:]
        low = (below <= np.floor((rows - 1) / 2)).sum(axis=1)
        high = (below <= np.floor(rows / 2)).sum(axis=1)
        return {"medae": (self.values[low] + self.values[high]) / 2}


def _decisions(
    truth: np.ndarray, guess: np.ndarray, classes: int, *, of_second: bool = False, alone: bool = False
) -> Values:
    """Metrics of a confusion matrix by the definitions of `scoring`; f1 of the second class, or of all on average.

    All but accuracy are nan for a resample of one class, unless such a truth may stand ``alone``, as a label does.
    """
    import numpy as np

    cells = truth * classes + guess

    def values(counts: np.ndarray) -> dict[str, np.ndarray]:
        table = np.stack([np.bincount(cells, weights=row, minlength=classes**2) for row in counts])
        table = table.reshape(len(counts), classes, classes)
        hits, support, guessed = table.diagonal(axis1=1, axis2=2), table.sum(axis=2), table.sum(axis=1)
        rows, right = support.sum(axis=1), hits.sum(axis=1)
        recall, precision = _ratio(hits, support), _ratio(hits, guessed)
        f1 = _ratio(2 * hits, guessed + support)
        spread = np.sqrt((rows**2 - (guessed**2).sum(axis=1)) * (rows**2 - (support**2).sum(axis=1)))
        shared = {
            "accuracy": right / rows,
            "balanced_accuracy": recall.sum(axis=1) / (support > 0).sum(axis=1),
            "mcc": _ratio(right * rows - (guessed * support).sum(axis=1), spread),
        }
        if of_second:
            found = {**shared, "precision": precision[:, 1], "recall": recall[:, 1], "f1": f1[:, 1]}
        else:
            found = {**shared, "f1": f1.sum(axis=1) / (guessed + support > 0).sum(axis=1)}
        if alone:
            return found
        several = (support > 0).sum(axis=1) > 1
        return {name: each if name == "accuracy" else np.where(several, each, np.nan) for name, each in found.items()}

    return values


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Elementwise quotient; 0 where there is nothing to divide by."""
    import numpy as np

    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below > 0))


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Elementwise quotient; nan where there is nothing to divide by."""
    import numpy as np

    return np.asarray(np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0))
