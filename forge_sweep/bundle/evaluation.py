"""What the one look at the test rows gave, kept with the model: nobody has to fit or look again to compare it.

The file holds scores, never targets and never a feature: whoever has the bundle learns from it what the models said of
rows that are named by fingerprints, and how far apart the models were, but not what was true.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.bundle.archives import check_npz
from forge_sweep.bundle.figures import resamples_for
from forge_sweep.errors import BundleError
from forge_sweep.task import LEVEL, METRICS, SEED, Answers, Gain, Interval, gains, intervals

if TYPE_CHECKING:
    from forge_sweep.bundle.bundle import Bundle
    from forge_sweep.sources import Dataset, Split

EVALUATION = "evaluation.npz"

FORMAT = 1

LARGEST = 64_000_000
"""Bytes of scores above which they are left out; the figures of the comparisons stay."""


@dataclass(frozen=True, eq=False)
class ScoredModel:
    """What one model said of the test rows.

    Attributes:
        kind: ``network``, or the kind of a baseline.
        label: ``0007`` for trial 7, or the kind of a baseline; its run is ``confirm-<label>-s<seed>``.
        words: what people call it, such as ``trial 7``.
        seed: number of the confirmation seed, 0 for a baseline that was fitted before the search.
        threshold: probability from which a label holds.
        scores: (n, units) as `Bundle.scores` gives them, in the order of the fingerprints; None where all of them
            together would take more than `LARGEST` bytes.
        metrics: every metric of the task with its interval over rows.
    """

    kind: str
    label: str
    words: str
    seed: int
    threshold: float
    scores: np.ndarray | None
    metrics: Mapping[str, Interval] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON values of all but the scores; what is not defined is None."""
        names = ("kind", "label", "words", "seed", "threshold")
        metrics = {name: [_json(each.value), _json(each.low), _json(each.high)] for name, each in self.metrics.items()}
        return {**{name: getattr(self, name) for name in names}, "metrics": metrics}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], scores: np.ndarray | None = None) -> ScoredModel:
        """The model that `to_dict` described."""
        metrics = {str(name): Interval(*(_number(value) for value in ends)) for name, ends in values["metrics"].items()}
        kind, label, words = (str(values[name]) for name in ("kind", "label", "words"))
        return cls(kind, label, words, int(values["seed"]), float(values["threshold"]), scores, metrics)

    @property
    def answers(self) -> Answers | None:
        """The scores as the bootstrap takes them."""
        return None if self.scores is None else Answers(self.scores, self.threshold)


@dataclass(frozen=True)
class Comparison:
    """By how much one model is better than another on the test rows, over paired resamples of the rows.

    Attributes:
        one: label of the model in question, as a rule the registered one.
        other: label of the model that it is compared with.
        gain: the metric, both values, their difference (positive is better) and its interval.
        resamples: how many.
        level: of the interval.
        seed: of the resamples.
    """

    one: str
    other: str
    gain: Gain
    resamples: int
    level: float = LEVEL
    seed: int = SEED

    def to_dict(self) -> dict[str, Any]:
        """JSON values; what is not defined is None."""
        values, gain = asdict(self), asdict(self.gain)
        gain["gain"] = {name: _json(value) for name, value in gain["gain"].items()}
        return {**values, "gain": {**gain, "one": _json(self.gain.one), "other": _json(self.gain.other)}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Comparison:
        """The comparison that `to_dict` described."""
        gain = values["gain"]
        value, low, high = (_number(gain["gain"][name]) for name in ("value", "low", "high"))
        return cls(
            str(values["one"]),
            str(values["other"]),
            Gain(str(gain["metric"]), _number(gain["one"]), _number(gain["other"]), Interval(value, low, high)),
            int(values["resamples"]),
            float(values["level"]),
            int(values["seed"]),
        )


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One look at the test rows, with every model that was scored in it.

    Attributes:
        dataset_digest: of the data.
        split_digest: of its split.
        fingerprints: (n,) uint64 of the test rows in their order, as ``Dataset.fingerprints["test"]``.
        models: what was scored; the registered model first, then the best baseline other than it, and where a baseline
            is registered the best network besides.
        comparisons: the registered model against each other one, one for each metric; the objective's first.
        looks: how many looks at these rows were on record after this one.
    """

    dataset_digest: str
    split_digest: str
    fingerprints: np.ndarray
    models: tuple[ScoredModel, ...]
    comparisons: tuple[Comparison, ...]
    looks: int

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
        """JSON values of all but scores and fingerprints."""
        return {
            "dataset_digest": self.dataset_digest,
            "split_digest": self.split_digest,
            "rows": len(self.fingerprints),
            "models": [model.to_dict() for model in self.models],
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
            "looks": self.looks,
        }

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], fingerprints: np.ndarray, scores: Sequence[np.ndarray | None] = ()
    ) -> Evaluation:
        """The evaluation that `to_dict` described.

        Args:
            values: what it gave.
            fingerprints: of the rows.
            scores: of each model; none by default.
        """
        kept = scores or [None] * len(values["models"])
        return cls(
            str(values["dataset_digest"]),
            str(values["split_digest"]),
            fingerprints,
            tuple(ScoredModel.from_dict(each, its) for each, its in zip(values["models"], kept, strict=True)),
            tuple(map(Comparison.from_dict, values["comparisons"])),
            int(values["looks"]),
        )

    def save(self, folder: Path) -> None:
        """Write the one file; before the manifest of the folder is."""
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
        """What lies in a bundle; None in one that was saved without it.

        Raises:
            BundleError: the file is no evaluation of ours.
        """
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
            raise BundleError(f"{path} is no evaluation of these rows", hint="do not use this folder")
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
    """Score models on the test rows and compare the first with each other one.

    Args:
        models: what each one is called, without scores, and its bundle; the registered one first.
        split: the test rows.
        dataset: what they belong to.
        objective: the metric whose comparison has so many ``resamples``.
        resamples: of that comparison, as a promotion takes them; the others have as many as their rows allow.
        looks: how many looks at these rows are on record.
    """
    task = models[0][1].task
    encoded, fewer = task.encode(split.targets), resamples_for(len(split.rows))
    scored, said = [], []
    for model, bundle in models:
        answers = Answers(bundle.scores(split.features), bundle.threshold)
        metrics = intervals(task, encoded, answers, resamples=fewer)
        said.append(answers)
        scored.append(replace(model, scores=answers.scores, threshold=answers.threshold, metrics=metrics))
    comparisons = []
    names = [objective, *(name for name in METRICS[task.kind] if name != objective)]
    for other, its in zip(scored[1:], said[1:], strict=True):
        for some, count in (names[:1], resamples), (names[1:], fewer):
            found = gains(task, encoded, said[0], its, some, resamples=count)
            comparisons += [Comparison(scored[0].label, other.label, each, count) for each in found.values()]
    prints = dataset.fingerprints["test"]
    return Evaluation(dataset.digest, dataset.split_digest, prints, tuple(scored), tuple(comparisons), looks)


def _json(value: float) -> float | None:
    """A figure as strict JSON has it."""
    return float(value) if isfinite(value) else None


def _number(value: float | None) -> float:
    """A figure that JSON has as null where it is not defined."""
    return float("nan") if value is None else float(value)
