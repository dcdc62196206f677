"""Which metrics some targets do not define, whatever a model predicts.

scikit-learn puts 0, 1 or nan in their place, with a warning at most; a search for the greatest of them finds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forge_sweep.task.pairing import TaskKind

if TYPE_CHECKING:
    import numpy as np

OF_ONE_CLASS: dict[TaskKind, frozenset[str]] = {
    "binary": frozenset({"auc", "pr_auc", "precision", "recall", "f1", "balanced_accuracy", "mcc"}),
    "multiclass": frozenset({"auc", "f1", "balanced_accuracy", "mcc"}),
}
"""What rows of one class alone do not define."""

OVER_CLASSES = ("auc", "f1", "balanced_accuracy")
"""Averages over the classes of a multiclass task: a class without a row is left out of them, unseen."""


@dataclass(frozen=True)
class Gap:
    """Metrics that some rows do not define, or only in part.

    Attributes:
        metrics: their names, without a split in front.
        seen: what the rows are like.
        whole: whether they have no value at all; else they are averages that leave a class or a label out.
    """

    metrics: tuple[str, ...]
    seen: str
    whole: bool


def gaps(kind: TaskKind, encoded: np.ndarray, names: tuple[str, ...]) -> Iterator[Gap]:
    """What these targets do not define.

    Args:
        kind: of the task.
        encoded: targets as `Task.encode` gives them.
        names: of the classes, the labels, or the targets of a regression.
    """
    import numpy as np

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
            all_of_them = len(flat) == len(names)
            yield Gap(("auc", "pr_auc"), f"{', '.join(flat)} of {len(names)} labels over {n} rows", all_of_them)
        without = [name for name, p in zip(names, positives, strict=True) if p == 0]
        if without:
            seen = f"{', '.join(without)} of {len(names)} labels holds in none of {n} rows"
            yield Gap(("f1",), seen, whole=len(without) == len(names))
        return
    codes = encoded.argmax(axis=1) if encoded.ndim > 1 and encoded.shape[1] > 1 else encoded.ravel()
    counts = np.bincount(codes.astype(np.int64), minlength=len(names))
    present = [name for name, count in zip(names, counts, strict=True) if count]
    if len(present) < 2:
        yield Gap(
            tuple(sorted(OF_ONE_CLASS[kind])), f"all {n} targets are {', '.join(present) or 'missing'}", whole=True
        )
    elif len(present) < len(names):
        absent = [name for name, count in zip(names, counts, strict=True) if not count]
        seen = f"no row of {n} has the class {', '.join(absent)}"
        yield Gap(OVER_CLASSES, seen, whole=False)
