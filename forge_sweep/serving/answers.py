"""What the server says about rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from forge_sweep.serving.bodies import Rows
from forge_sweep.serving.served import Answer, Served
from forge_sweep.task import Task


def renderer(task: Task, threshold: float) -> Callable[[list[float]], dict[str, Any]]:
    """What makes a prediction of the scores of one row; the labels are those of `Task.predictions`."""
    names = task.class_names
    if task.kind == "regression":
        targets = [str(name) for name in task.targets]
        return lambda scores: {"values": dict(zip(targets, scores, strict=True))}
    if task.kind == "binary":
        negative, positive = task.classes
        absent, present = names

        def binary(scores: list[float]) -> dict[str, Any]:
            p = scores[0]
            return {"label": positive if p >= threshold else negative, "probabilities": {absent: 1.0 - p, present: p}}

        return binary
    if task.kind == "multiclass":
        return lambda scores: {
            "label": task.classes[int(np.argmax(scores))],
            "probabilities": dict(zip(names, scores, strict=True)),
        }
    return lambda scores: {
        "labels": {name: int(score >= threshold) for name, score in zip(names, scores, strict=True)},
        "probabilities": dict(zip(names, scores, strict=True)),
    }


class Answers:
    """Makes the answers of one version.

    Args:
        served: the version.
    """

    def __init__(self, served: Served) -> None:
        bundle = served.bundle
        self.served = served
        self.head: dict[str, Any] = {"model": served.located.name, "version": served.located.version}
        if bundle.task.kind in ("binary", "multilabel"):
            self.head["threshold"] = bundle.threshold
        self._prediction = renderer(bundle.task, bundle.threshold)

    def __call__(self, rows: Rows, answer: Answer) -> dict[str, Any]:
        """The answer as JSON values."""
        predictions = [self._prediction(scores) for scores in answer.scores.tolist()]
        for prediction in predictions:
            prediction["warnings"] = []
        names = self.served.transform.schema.names
        for row, column in answer.flagged:
            warning = self.served.warning(column, rows.raw[row][column], rows.cell(row, names[column]))
            predictions[row]["warnings"].append(warning)
        return {**self.head, "predictions": predictions}
