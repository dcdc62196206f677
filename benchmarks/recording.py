"""What every peer records beside its own work: the exact validation AUC of each epoch, and when it was reached.

It costs a few milliseconds per epoch. That time is known and taken off the peer's seconds.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

EPSILON = 1e-3
"""Of Keras' BatchNormalization."""


class Stop(BaseException):
    """The target or the cap is reached. No `Exception`: no peer may take it for a trial that failed."""


class EpochLog:
    """Lines of JSON in a file that several processes may append to.

    Args:
        store: folder of the side.
    """

    def __init__(self, store: str | Path) -> None:
        self.path = Path(store) / "epochs.jsonl"

    def add(self, **line: Any) -> None:
        """Append one line, in one write."""
        text = json.dumps({"at": time.time(), **line}) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """All lines of a kind, in the order of their time."""
        if not self.path.exists():
            return []
        found = [json.loads(line) for line in self.path.read_text().splitlines()]
        return sorted((line for line in found if line["kind"] == kind), key=lambda line: line["at"])

    @property
    def scoring_s(self) -> float:
        """Seconds that recording took in all processes together."""
        return float(sum(line["scoring_s"] for line in self.lines("epoch")))

    def best(self) -> dict[str, float]:
        """The best AUC of each trial, by its learning rate, which no two trials share."""
        found: dict[str, float] = {}
        for line in self.lines("epoch"):
            key = repr(line["rate"])
            found[key] = max(found.get(key, 0.0), line["auc"])
        return found

    def reached(self, target: float) -> float | None:
        """When an epoch first had at least this AUC; None where none had."""
        return next((line["at"] for line in self.lines("epoch") if line["auc"] >= target), None)


def exact_auc(weights: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """AUC of a network of the benchmark on these rows, without a call of Keras.

    Args:
        weights: of ``get_weights``: kernel, gamma, beta, moving mean and variance per block, then the head's two.
        x: (rows, features).
        y: (rows, 1).
    """
    import numpy as np
    from sklearn.metrics import roc_auc_score

    *blocks, kernel, bias = weights
    hidden = x
    for first in range(0, len(blocks), 5):
        dense, gamma, beta, mean, variance = blocks[first : first + 5]
        hidden = np.maximum((hidden @ dense - mean) * (gamma / np.sqrt(variance + EPSILON)) + beta, 0)
    return float(roc_auc_score(y.ravel(), (hidden @ kernel + bias).ravel()))


def outcome(log: EpochLog, began: float, ended: float, *, target: float | None, at_once: int = 1) -> dict[str, Any]:
    """A peer's figures; ``began`` and ``ended`` are of `time.time`, ``at_once`` is the number of trials at a time."""
    scoring_s = log.scoring_s / at_once
    found: dict[str, Any] = {"seconds": ended - began - scoring_s, "scoring_s": scoring_s, "start_s": 0.0}
    found["best"] = log.best()
    if target is not None:
        at = log.reached(target)
        earlier = sum(line["scoring_s"] for line in log.lines("epoch") if at is not None and line["at"] <= at)
        found["reached_s"] = None if at is None else at - began - earlier / at_once
    return found
