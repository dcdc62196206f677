"""The test evaluation, kept with the model, so that comparing it takes no further fit or evaluation.

The file holds scores and fingerprints of the rows, never targets or features: it says how far apart the models were,
not what was true.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep import jsons
from forge_sweep.bundle.layout import EVALUATION
from forge_sweep.bundle.security import check_npz
from forge_sweep.errors import BundleError
from forge_sweep.task import LEVEL, RESAMPLES, SEED, Answers, Gain, Interval, Task, draw, intervals

if TYPE_CHECKING:
    import pandas as pd

    from forge_sweep.bundle.bundle import Bundle
    from forge_sweep.sources import Dataset, Split

FORMAT = 1
LARGEST = 64_000_000  # bytes of scores above which they are left out; the figures of the comparisons stay


@dataclass(frozen=True, eq=False)
class ScoredModel:
    """One model on the test rows.

    ``scores`` are (n, units) as `Bundle.scores` gives them, in the order of the fingerprints; None where those of all
    models would take more than `LARGEST` bytes. ``metrics`` are those of the task, with their intervals over rows.
    """

    kind: str  # network, or the kind of a baseline
    label: str  # 0007 for trial 7, or the kind of a baseline; its run is confirm-<label>-s<seed>
    words: str  # such as "trial 7"
    seed: int  # number of the confirmation seed, 0 for a baseline that was fitted before the search
    threshold: float
    scores: np.ndarray | None
    metrics: Mapping[str, Interval] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON values of all but the scores; what is not defined is None."""
        values = {name: getattr(self, name) for name in ("kind", "label", "words", "seed", "threshold")}
        return {**values, "metrics": _ends(self.metrics)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], scores: np.ndarray | None) -> ScoredModel:
        """The model that `to_dict` described."""
        metrics = {str(name): Interval(*map(_number, ends)) for name, ends in values["metrics"].items()}
        kind, label, words = (str(values[name]) for name in ("kind", "label", "words"))
        return cls(kind, label, words, int(values["seed"]), float(values["threshold"]), scores, metrics)

    @property
    def answers(self) -> Answers | None:
        """The scores as the bootstrap takes them."""
        return None if self.scores is None else Answers(self.scores, self.threshold)


@dataclass(frozen=True)
class Comparison:
    """How much better one model (by its label) is than another on the test rows, over paired resamples of the rows."""

    one: str
    other: str
    gain: Gain
    resamples: int
    level: float = LEVEL
    seed: int = SEED

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Comparison:
        """The comparison in `Evaluation.to_dict`."""
        one, other, gain = str(values["one"]), str(values["other"]), gain_from_dict(values["gain"])
        return cls(one, other, gain, int(values["resamples"]), float(values["level"]), int(values["seed"]))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One test evaluation: the registered model, the best other baseline and, if a baseline is registered, a network.

    ``comparisons`` are of the registered model with each other one, one for each metric, the objective's first.
    """

    dataset_digest: str
    split_digest: str
    fingerprints: np.ndarray  # (n,) uint64 of the test rows in their order, as Dataset.fingerprints["test"]
    models: tuple[ScoredModel, ...]
    comparisons: tuple[Comparison, ...]
    looks: int  # evaluations on these rows that were on record after this one

    @property
    def registered(self) -> ScoredModel:
        """The model whose bundle this lies in."""
        return self.models[0]

    @property
    def baseline(self) -> ScoredModel | None:
        """The best baseline other than the registered model: what a promotion compares it with."""
        return next((model for model in self.models[1:] if model.kind != "network"), None)

    @property
    def network(self) -> ScoredModel | None:
        """The best network, where a baseline is registered."""
        return next((model for model in self.models[1:] if model.kind == "network"), None)

    def compared(self, other: ScoredModel, metric: str) -> Comparison | None:
        """The registered model against another one by one metric."""
        pair = (self.registered.label, other.label, metric)
        return next((one for one in self.comparisons if (one.one, one.other, one.gain.metric) == pair), None)

    def is_of(self, dataset_digest: str, split_digest: str) -> bool:
        """Whether these are the test rows of that split of the data."""
        return (self.dataset_digest, self.split_digest) == (dataset_digest, split_digest)

    def to_dict(self) -> dict[str, Any]:
        """JSON values of all but scores and fingerprints; what is not defined is None."""
        return {
            "dataset_digest": self.dataset_digest,
            "split_digest": self.split_digest,
            "rows": len(self.fingerprints),
            "models": [model.to_dict() for model in self.models],
            "comparisons": [jsons.plain(asdict(comparison)) for comparison in self.comparisons],
            "looks": self.looks,
        }

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], fingerprints: np.ndarray, scores: Sequence[np.ndarray | None] = ()
    ) -> Evaluation:
        """The evaluation that `to_dict` described, with the scores of each model, if they are known."""
        models = zip(values["models"], scores or [None] * len(values["models"]), strict=True)
        return cls(
            str(values["dataset_digest"]),
            str(values["split_digest"]),
            fingerprints,
            tuple(ScoredModel.from_dict(*each) for each in models),
            tuple(map(Comparison.from_dict, values["comparisons"])),
            int(values["looks"]),
        )

    def save(self, folder: Path) -> None:
        """Write ``evaluation.npz``, before the manifest of the folder."""
        size = sum(model.scores.nbytes for model in self.models if model.scores is not None)
        scores: dict[str, Any] = {
            f"scores_{i}": np.asarray(model.scores, dtype=np.float64)
            for i, model in enumerate(self.models)
            if model.scores is not None and size <= LARGEST
        }
        about = json.dumps({"format": FORMAT, **self.to_dict()}, allow_nan=False).encode()
        prints = np.asarray(self.fingerprints, dtype=np.uint64)
        with (folder / EVALUATION).open("wb") as file:
            np.savez(file, about=np.frombuffer(about, dtype=np.uint8), fingerprints=prints, **scores)

    @classmethod
    def load(cls, folder: Path) -> Evaluation | None:
        """What lies in a bundle; None in one that was saved without it."""
        path = folder / EVALUATION
        if not path.exists():
            return None
        try:
            check_npz(path)
            with np.load(path, allow_pickle=False) as found:
                about = json.loads(found["about"].tobytes())
                fingerprints = np.asarray(found["fingerprints"], dtype=np.uint64)
                names = [f"scores_{i}" for i in range(len(about["models"]))]
                scores = [np.asarray(found[name], dtype=np.float64) if name in found else None for name in names]
                known = about["format"] == FORMAT
            evaluation = cls.from_dict(about, fingerprints, scores)
        except BundleError:
            raise
        except Exception as error:
            raise BundleError(f"{path} cannot be read: {error}", hint="do not use this folder") from error
        shapes = [each.shape for each in scores if each is not None]
        fits = all(len(shape) == 2 and shape[0] == len(fingerprints) and shape == shapes[0] for shape in shapes)
        if not known or not scores or fingerprints.ndim != 1 or not fits:
            raise BundleError(f"{path} is not an evaluation of these rows", hint="do not use this folder")
        return evaluation


def evaluate(
    models: Sequence[tuple[ScoredModel, Bundle]],
    split: Split,
    dataset: Dataset,
    *,
    objective: str,
    resamples: int,
    looks: int,
) -> Evaluation:
    """Score models on the test rows, ``split``, and compare the first, the registered one, with each of the others.

    ``models`` say what each one is called, without scores. The comparison in the ``objective`` has as many
    ``resamples`` as a promotion takes, the others as many as their rows allow. See `Evaluation` for ``looks``.
    """
    task = models[0][1].task
    encoded, fewer = task.encode(split.targets), _resamples_for(len(split.rows))
    said = [Answers(bundle.scores(split.features), bundle.threshold) for _, bundle in models]
    others = [name for name in task.metrics if name != objective]
    rest = draw(task, encoded, said, others, resamples=fewer)
    drawn = {objective: (draw(task, encoded, said, [objective], resamples=max(resamples, fewer)), resamples)}
    drawn |= {name: (rest, fewer) for name in others}
    scored, comparisons = [], []
    for i, ((model, _), its) in enumerate(zip(models, said, strict=True)):
        metrics = {name: drawn[name][0].interval(i, name, fewer) for name in task.metrics}
        scored.append(replace(model, scores=its.scores, threshold=its.threshold, metrics=metrics))
    for i, other in enumerate(scored[1:], start=1):
        for name, (found, count) in drawn.items():
            comparisons.append(Comparison(scored[0].label, other.label, found.gain(0, i, name, count), count))
    prints = dataset.fingerprints["test"]
    return Evaluation(dataset.digest, dataset.split_digest, prints, tuple(scored), tuple(comparisons), looks)


def gain_from_dict(values: Mapping[str, Any]) -> Gain:
    """A gain from JSON values; null is what is not defined."""
    interval = Interval(*(_number(values["gain"][name]) for name in ("value", "low", "high")))
    return Gain(str(values["metric"]), _number(values["one"]), _number(values["other"]), interval)


def _ends(metrics: Mapping[str, Interval]) -> dict[str, list[float | None]]:
    """Value, low and high of each metric as JSON values."""
    return {name: [jsons.plain(end) for end in (each.value, each.low, each.high)] for name, each in metrics.items()}


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


# Figures: aggregates, from which no row and no target can be read, so that those of the test rows may be kept

BINS = 15  # of equal width in the expected calibration error (Guo et al. 2017, https://arxiv.org/abs/1706.04599)
DRAWS = 200  # of targets, to see how much of that error is chance
SMALLEST = 30  # rows of a slice below which its figures would say more of chance than of it
COLUMNS = 4  # that are sliced by where none is named: the categorical ones with the fewest categories
CATEGORIES = 12  # the most frequent ones
BUDGET = 10**8  # rows times resamples, above which fewer resamples are drawn: at most some seconds per metric


def figures(
    bundle: Bundle,
    split: Split,
    groups: Sequence[str] = (),
    known: Mapping[str, Interval] | None = None,
    *,
    scores: np.ndarray | None = None,
) -> dict[str, Any]:
    """All figures of a bundle on raw rows, as JSON values; what cannot be computed is None.

    Slices are by the categorical columns ``groups``, by default those with the fewest categories. ``known`` are the
    metrics with their intervals, where these rows were resampled before; ``scores`` those of the rows, where they were
    made by models that had not seen them.
    """
    task, encoded = bundle.task, bundle.task.encode(split.targets)
    answers = Answers(bundle.scores(split.features) if scores is None else scores, bundle.threshold)
    resamples = _resamples_for(len(encoded))
    return {
        "rows": len(encoded),
        "metrics": _ends(known or intervals(task, encoded, answers, resamples=resamples)),
        "bootstrap": {"resamples": resamples, "level": LEVEL, "seed": SEED},
        "calibration": calibration(task, encoded, answers.scores),
        "classes": list(_by_class(task, encoded, answers)),
        "slices": list(_by_slice(bundle, split.features, encoded, answers, groups)),
    }


def _resamples_for(rows: int) -> int:
    return max(100, min(RESAMPLES, BUDGET // max(rows, 1)))


def calibration(task: Task, encoded: np.ndarray, scores: np.ndarray) -> dict[str, float] | None:
    """Expected calibration error (``ece``) and ``brier`` score of probabilities; None for a regression.

    A few rows per bin give an error even where every probability is right. ``ece_by_chance`` is that part: the mean
    error of targets that are drawn from the probabilities themselves (Bröcker and Smith 2007, "Increasing the
    Reliability of Reliability Diagrams").

    Multiclass: the confidence in the class that was chosen, and the squared error summed over classes (Brier 1950).
    Multilabel: averages over labels; several heads: averages over those that have probabilities.
    """
    if task.kind == "joint":
        each = [calibration(head, own, its) for _, head, own, its in task.apart(encoded, scores)]
        known = [found for found in each if found is not None]
        return {name: float(np.mean([found[name] for found in known])) for name in known[0]} if known else None
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
    by_chance = []
    for _, probability in pairs:
        rng = np.random.default_rng(SEED)
        drawn = [(rng.random(len(probability)) < probability).astype(np.float64) for _ in range(DRAWS)]
        by_chance.append(np.mean([_calibration_error(targets, probability) for targets in drawn]))
    return {
        "ece": float(np.mean([_calibration_error(*pair) for pair in pairs])),
        "ece_by_chance": float(np.mean(by_chance)),
        "brier": brier,
    }


def _calibration_error(truth: np.ndarray, probability: np.ndarray) -> float:
    """Mean distance of observed share and mean probability over `BINS` bins, weighted by rows; both (n,)."""
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    sums = [np.bincount(bins, weights=values, minlength=BINS) for values in (truth, probability)]
    return float(abs(sums[0] - sums[1]).sum() / len(truth))


def _by_class(task: Task, encoded: np.ndarray, answers: Answers) -> Iterator[dict[str, Any]]:
    """Precision, recall and F1 of each class or label; the errors of each target of a regression with several."""
    from sklearn.metrics import precision_recall_fscore_support

    if task.kind == "joint":
        for prefix, head, own, its in task.apart(encoded, answers.scores):
            for found in _by_class(head, own, Answers(its, answers.threshold)):
                yield {**found, "name": f"{prefix.removesuffix('_')}: {found['name']}"}
        return
    if task.kind == "regression":
        errors = encoded * np.asarray(task.std) + np.asarray(task.mean) - answers.scores
        for name, error in zip(task.targets, errors.T, strict=True) if len(task.targets) > 1 else ():
            rmse, mae = float(np.sqrt((error**2).mean())), float(abs(error).mean())
            yield {"name": name, "rows": len(error), "rmse": rmse, "mae": mae}
        return
    if task.kind == "multiclass":
        codes = encoded.argmax(axis=1) if task.one_hot else encoded
        truths, guesses = np.eye(task.units)[codes.astype(int)], np.eye(task.units)[answers.scores.argmax(axis=1)]
    elif task.kind == "binary":
        positive, said = encoded[:, 0] == 1, answers.scores[:, 0] >= answers.threshold
        truths, guesses = np.stack([~positive, positive], axis=1), np.stack([~said, said], axis=1)
    else:
        truths, guesses = encoded, answers.scores >= answers.threshold
    scored = precision_recall_fscore_support(truths > 0, guesses > 0, zero_division=np.nan)
    for name, precision, recall, f1, rows in zip(task.classes, *scored, strict=True):
        found = jsons.plain({"precision": precision, "recall": recall, "f1": f1})
        yield {"name": str(name), "rows": int(rows), **found}


def _by_slice(
    bundle: Bundle, features: pd.DataFrame, encoded: np.ndarray, answers: Answers, groups: Sequence[str]
) -> Iterator[dict[str, Any]]:
    for column, category, rows in slices(bundle, features, groups):
        if rows.sum() < SMALLEST:
            continue
        found = bundle.task.score(encoded[rows], answers.scores[rows], threshold=answers.threshold)
        metrics = jsons.plain({name: found[name] for name in bundle.task.metrics})
        yield {"column": column, "category": category, "rows": int(rows.sum()), "metrics": metrics}


def slices(bundle: Bundle, features: pd.DataFrame, groups: Sequence[str]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Column, category and which rows (n,) have it."""
    known = {column.name: column for column in bundle.preprocessor.schema.columns}
    few = [column for column in known.values() if 2 <= len(column.categories) <= CATEGORIES]
    fewest = [column.name for column in sorted(few, key=lambda column: len(column.categories))[:COLUMNS]]
    for name in [group for group in groups if group in known] or fewest:
        values = features[name].astype("string")
        kinds = known[name].categories[:CATEGORIES] or tuple(map(str, values.dropna().unique()[:CATEGORIES]))
        for kind in kinds:
            yield name, kind, (values == kind).fillna(False).to_numpy(bool)
