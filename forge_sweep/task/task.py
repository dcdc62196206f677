"""The task: how targets become arrays, outputs become scores, and scores become metrics and predictions."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.errors import DataError, InputError
from forge_sweep.task.metrics import (
    METRICS,
    Direction,
    Gap,
    TaskKind,
    Values,
    check_pairing,
    direction,
    gaps,
    limits,
    mean_of,
    pairings,
    parts,
)
from forge_sweep.task.targets import (
    Label,
    column_names,
    label_codes,
    learn_classes,
    numbers,
    refuse_missing,
    select,
    target_scale,
    zero_one,
)

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Task:
    """What a model predicts, as learned from the train targets.

    Attributes:
        kind: the task.
        targets: names of the target columns.
        classes: binary: (negative, positive) label; multiclass: all labels in sorted order, or the column names when
            one-hot; multilabel: the column names; regression: empty.
        one_hot: whether a multiclass target is given as one 0/1 column per class.
        activation: activation of the output layer.
        loss: loss in Keras' name.
        from_logits: whether the outputs are logits, so that ``to_scores`` applies the activation.
        mean: mean of each regression target over train; empty otherwise.
        std: standard deviation (population) of each regression target over train; empty otherwise.
    """

    kind: TaskKind
    targets: tuple[str, ...]
    classes: tuple[Any, ...]
    one_hot: bool
    activation: str
    loss: str
    from_logits: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def learn(
        cls,
        kind: TaskKind,
        train_targets: pd.DataFrame,
        *,
        positive: Label | None = None,
        activation: str | None = None,
        loss: str | None = None,
        from_logits: bool = False,
    ) -> Task:
        """Learn classes or target scale from the train targets, (n, number of targets).

        Activation (``linear`` with ``from_logits``) and loss are the task's own by default. ``positive`` is the label
        of a binary task whose probability is predicted; by default the greater of the two (True over False, 1 over 0,
        the later one in alphabetical order).

        Raises:
            DataError: missing or infinite targets, the wrong number of classes, a class with fewer than 2 rows, one-hot
                or multilabel columns that are not 0/1, a constant regression target.
            InputError: the head does not fit the task (see ``check_pairing``).
        """
        one_hot = kind == "multiclass" and train_targets.shape[1] > 1
        default = pairings(kind, one_hot)[0]
        activation = activation or ("linear" if from_logits else default.activation)
        loss = loss or default.loss
        wrong = check_pairing(kind, one_hot, activation, loss, from_logits)
        if wrong is not None:
            raise InputError(wrong, hint="correct or remove activation, loss and from_logits under [model]")
        refuse_missing(train_targets)
        mean, std = target_scale(train_targets) if kind == "regression" else ((), ())
        classes = learn_classes(kind, train_targets, positive)
        return cls(
            kind,
            column_names(train_targets),
            classes,
            one_hot,
            activation,
            loss or default.loss,
            from_logits,
            mean,
            std,
        )

    @property
    def heads(self) -> dict[str, Task]:
        """What is predicted, by name: this task by the name of its target, ``output`` where it has several columns."""
        return {self.targets[0] if len(self.targets) == 1 else "output": self}

    def apart(self, encoded: np.ndarray, outputs: np.ndarray) -> Iterator[tuple[str, Task, np.ndarray, np.ndarray]]:
        """Each head as (what its metrics begin with, its task, its targets, its outputs or scores)."""
        yield "", self, encoded, outputs

    @property
    def metrics(self) -> dict[str, Direction]:
        """What `score` gives, with the direction that is better."""
        return METRICS[self.kind]

    def direction(self, metric: str) -> Direction:
        """Whether more or less of a metric such as ``auc`` or ``val_auc`` is better; ValueError for none of it."""
        return direction(self.kind, metric)

    def limits(self, metric: str) -> tuple[float, float]:
        """Least and greatest value that a metric such as ``auc`` can have."""
        return limits(metric)

    def scored_as(self, objective: str) -> str:
        """The metric that an objective is on any rows: ``auc`` for ``val_auc``; its nearest relative for a loss."""
        name = objective.removeprefix("val_")
        if name != "loss":
            return name
        return ("mae" if self.loss == "mae" else "rmse") if self.kind == "regression" else "log_loss"

    @property
    def units(self) -> int:
        """Number of output units of the network."""
        return {"binary": 1, "regression": len(self.targets)}.get(self.kind, len(self.classes))

    def encode(self, targets: pd.DataFrame) -> np.ndarray:
        """Targets as the loss takes them, (n, units) float32 or for integer multiclass (n,) int32.

        They are 0/1 for binary, one-hot and multilabel, standardised values for regression. DataError for a missing
        column, a missing value or a label that train does not have.
        """
        targets = select(targets, self.targets)
        refuse_missing(targets)
        if self.kind == "regression":
            return np.asarray((numbers(targets) - self.mean) / np.asarray(self.std), dtype=np.float32)
        if self.kind == "multilabel" or self.one_hot:
            return zero_one(targets, one_hot=self.one_hot).astype(np.float32)
        codes = label_codes(targets.iloc[:, 0], self.classes)
        return codes.astype(np.float32)[:, None] if self.kind == "binary" else codes.astype(np.int32)

    def truth(self, encoded: np.ndarray) -> np.ndarray:
        """What ``encode`` gave as `metrics.parts` takes it: int64 codes, or regression values in original units."""
        if self.kind == "regression":
            return np.asarray(np.asarray(encoded, dtype=np.float64) * self.std + self.mean)
        if self.kind == "multiclass":
            encoded = encoded.argmax(axis=1) if self.one_hot else encoded
        return np.asarray(encoded[:, 0] if self.kind == "binary" else encoded, dtype=np.int64)

    def to_scores(self, outputs: np.ndarray) -> np.ndarray:
        """Raw outputs (n, units) of a network or a tree as probabilities, or as regression values in original units.

        Sigmoid or softmax is applied when ``from_logits``; multiclass rows sum to 1 in float64.
        """
        from scipy import special

        outputs = np.asarray(outputs, dtype=np.float64)
        if self.kind == "regression":
            return np.asarray(outputs * np.asarray(self.std) + self.mean)
        if self.kind == "multiclass":
            scores = special.softmax(outputs, axis=1) if self.from_logits else outputs
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.asarray(scores / scores.sum(axis=1, keepdims=True))
        return np.asarray(special.expit(outputs)) if self.from_logits else outputs

    def score(self, encoded: np.ndarray, scores: np.ndarray, *, threshold: float | None = None) -> dict[str, float]:
        """Every one of the `metrics`, by its exact definition in scikit-learn.

        Multiclass ``auc`` is one class against the rest, averaged over the classes present in ``encoded``; ``f1`` is a
        macro average. Multilabel ``auc``, ``pr_auc``, ``f1`` and ``log_loss`` are averages over labels (``auc`` and
        ``pr_auc`` over those with both values present), ``accuracy`` counts rows with every label right. Regression
        metrics are in original units, averaged over targets. A metric is nan where the targets do not define it
        (`gaps`), and all are for no rows or for predictions that are not finite.

        Args:
            encoded: targets as ``encode`` gives them.
            scores: (n, units) as ``to_scores`` gives them.
            threshold: probability from which a label holds, binary and multilabel; default 0.5.
        """
        found = dict.fromkeys(self.metrics, float("nan"))
        if not len(scores) or not np.isfinite(scores).all():
            return found
        cut = DEFAULT_THRESHOLD if threshold is None else threshold
        once = np.ones((1, len(scores)))
        for values_of in self.parts(encoded, scores, cut, found):
            found |= {name: float(value[0]) for name, value in values_of(once).items()}
        undefined = {name for gap in self.gaps(encoded) if gap.whole for name in gap.metrics}
        return {name: float("nan") if name in undefined else value for name, value in found.items()}

    def parts(self, encoded: np.ndarray, scores: np.ndarray, threshold: float, wanted: Collection[str]) -> list[Values]:
        """What computes the wanted metrics, or ``loss`` alone without any penalty; see `metrics.parts`."""
        truth = self.truth(encoded)
        if "loss" not in wanted:
            return parts(self.kind, truth, scores, threshold, wanted)
        if self.kind == "regression":  # its loss is none of its metrics
            error = (truth - scores) / np.asarray(self.std)
            return [mean_of("loss", (error**2 if self.loss == "mse" else abs(error)).mean(axis=1))]
        (log_loss,) = parts(self.kind, truth, scores, threshold, ("log_loss",))
        return [lambda counts: {"loss": log_loss(counts)["log_loss"]}]

    def constant(self, encoded: np.ndarray) -> tuple[float, ...]:
        """The raw outputs (units,), without logits, of what knows the targets alone: shares of classes, or means."""
        if self.kind == "multiclass" and not self.one_hot:
            return tuple((np.bincount(encoded, minlength=self.units) / len(encoded)).tolist())
        return tuple(encoded.mean(axis=0, dtype=np.float64).tolist())

    def loss_of(self, encoded: np.ndarray, outputs: np.ndarray) -> float:
        """The loss of a network with these raw outputs, without the penalty on its weights."""
        if self.kind == "regression":
            distance = encoded - outputs
            return float((distance**2).mean() if self.loss == "mse" else abs(distance).mean())
        return self.score(encoded, self.to_scores(outputs))["log_loss"]

    def chance(self) -> tuple[float, str]:
        """The loss of a model that knows nothing, and where that figure comes from."""
        if self.kind == "multiclass":
            return math.log(self.units), f"-log(1/{self.units}) for {self.units} classes"
        if self.kind == "regression":
            of = {"mse": (1.0, "variance of standardised targets")}
            return of.get(self.loss, (math.sqrt(2 / math.pi), "mean |z| of a normal target"))
        return math.log(2), "log 2 for a yes or no"

    def fewest(self, encoded: np.ndarray) -> int:
        """Rows of the smaller class (binary), of an average class, or all: with fewer, metrics are less sure."""
        if self.kind == "binary":
            positive = int(np.count_nonzero(encoded))
            return min(positive, len(encoded) - positive)
        if self.kind == "multiclass":
            codes = encoded.argmax(axis=1) if encoded.ndim > 1 else encoded
            return len(codes) // max(1, len(np.unique(codes)))
        return len(encoded)

    def gaps(self, encoded: np.ndarray) -> tuple[Gap, ...]:
        """Which metrics these targets do not define, whatever a model predicts; see `metrics.gaps`."""
        names = self.targets if self.kind == "regression" else tuple(map(str, self.classes))
        return tuple(gaps(self.kind, encoded, names))

    def class_weights(self, encoded: np.ndarray) -> dict[int, float]:
        """Weight of each class code, ``n / (number of classes * rows of the class)``: scikit-learn's "balanced"."""
        from sklearn.utils.class_weight import compute_class_weight

        if self.kind not in ("binary", "multiclass"):
            hint = "remove class_weight under [model]"
            raise DataError(f"class weights are not defined for a {self.kind} task", hint=hint)
        codes = self.truth(encoded)
        present = np.unique(codes)
        weights = compute_class_weight("balanced", classes=present, y=codes)
        return {int(code): float(weight) for code, weight in zip(present, weights, strict=True)}

    def best_threshold(self, encoded: np.ndarray, scores: np.ndarray) -> float:
        """The decision threshold with the highest F1; choose it on validation rows, never on test.

        Binary only, 0.5 for other tasks and where one class only is present. It lies half way between two neighbouring
        probabilities, so that rounding in a served model moves no row; of equally good ones, the nearest to 0.5.
        """
        from sklearn.metrics import precision_recall_curve

        if self.kind != "binary" or not np.isfinite(scores).all() or len(np.unique(encoded)) < 2:
            return DEFAULT_THRESHOLD
        precision, recall, cuts = precision_recall_curve(encoded[:, 0].astype(np.int64), scores[:, 0])
        f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
        below = np.concatenate([[0.0], cuts[:-1]])
        middle = np.where((cuts + below) / 2 > below, (cuts + below) / 2, cuts)
        best = np.flatnonzero(f1[:-1] >= f1[:-1].max() - 1e-12)
        return float(middle[best[np.abs(middle[best] - DEFAULT_THRESHOLD).argmin()]])

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes as text, no two alike."""
        names: tuple[str, ...] = ()
        for label in self.classes:
            names += (free_name(str(label), names, "class_"),)
        return names

    def columns(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the columns of `predictions` that hold scores, and of those that hold labels; no two are alike.

        A target named like a score (``probability_rain`` beside ``rain``) has its labels under ``label_<target>``.
        """
        if self.kind == "regression":
            return self.targets, ()
        if self.kind == "binary":
            return ("probability",), ("label",)
        scores = tuple(f"probability_{name}" for name in self.class_names)
        if self.kind == "multiclass":
            return scores, ("label",)
        labels: tuple[str, ...] = ()
        for name in self.targets:
            taken = {*scores, *labels} | ({*self.targets} if name in scores else set())
            labels += (free_name(name, taken, "label_"),)
        return scores, labels

    def predictions(self, scores: np.ndarray, threshold: float = DEFAULT_THRESHOLD) -> pd.DataFrame:
        """Scores as a user reads them, one row per row of ``scores``.

        Returns:
            binary: ``probability`` (of the positive label) and ``label``; multiclass: ``label`` and
            ``probability_<class>``; multilabel: ``probability_<column>`` and ``<column>`` (0/1); regression: one column
            per target, in original units. See `columns` for names that would be alike.
        """
        import pandas as pd

        names, labels = self.columns()
        frame = pd.DataFrame(scores, columns=list(names))
        if self.kind == "regression":
            return frame
        if self.kind == "multilabel":
            holds = pd.DataFrame((scores >= threshold).astype(int), columns=list(labels))
            return pd.concat([frame, holds], axis=1)
        chosen = (scores[:, 0] >= threshold).astype(int) if self.kind == "binary" else scores.argmax(axis=1)
        label = pd.Series(list(self.classes)).take(chosen).to_numpy()
        frame.insert(1 if self.kind == "binary" else 0, "label", label)
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values; labels keep their type."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Task:
        """The task that ``to_dict`` described; of several heads see `task_of`."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**fields)


def free_name(name: str, taken: Collection[str], prefix: str) -> str:
    """The name, behind the prefix as often as it takes until it is not taken."""
    while name in taken:
        name = prefix + name
    return name
