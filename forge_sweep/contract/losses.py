"""Whether the loss that a user's own model is compiled with tells right answers from wrong ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep import models, training
from forge_sweep.checks.findings import Finding
from forge_sweep.experiment import Code, Params
from forge_sweep.task import Task

if TYPE_CHECKING:
    import keras

SURE = 0.9
"""Probability of the right class of a right answer, and of a wrong one of a wrong answer."""

ROWS = 8
"""Of a regression, that are tried one by one."""

ENTROPIES = ("BinaryCrossentropy", "CategoricalCrossentropy", "SparseCategoricalCrossentropy")


def of_loss(
    model: keras.Model, task: Task, few: training.TrainingData, code: Code, params: Params
) -> Iterator[Finding]:
    """Give the loss right, undecided and wrong answers, head by head; those of other heads stay right.

    Findings, by code, all errors: ``wrong-loss``: it cannot take targets and answers, or right answers cost no less
    than others; ``loss-logits``: it takes probabilities for logits, or logits for probabilities.
    """
    settings = training.loss_settings(model)
    smoothing = settings.get("label_smoothing") or 0.0
    if model.loss is None or (smoothing and smoothing == params.get("label_smoothing")):
        return
    heads = [*task.apart(few.y_train, np.zeros((len(few.y_train), task.units)))]
    right = [_answers(head, encoded, 0.0) for _, head, encoded, _ in heads]
    for at, (prefix, head, encoded, _) in enumerate(heads):
        name = prefix.removesuffix("_")
        own = f'heads["{name}"]' if name else "heads.only"
        fix = f"compile with loss={own}.loss, which is {head.loss}, or return the model without compile"
        subject, expected = f"{code.builder}, head {name}" if name else code.builder, "less for right answers"

        def cost(off: float, rows: Any = slice(None), at: int = at, head: Task = head, own: Any = encoded) -> float:
            found = [_answers(head, own, off) if i == at else each for i, each in enumerate(right)]
            return training.compiled_loss(model, task, few.y_train[rows], np.concatenate(found, axis=1)[rows])

        try:
            seen = _of_numbers(cost, encoded) if head.kind == "regression" else _of_classes(cost)
        except Exception as error:
            shapes = " and ".join(str(tuple(each.shape)) for each in (few.y_train, right[at]))
            seen = f"targets and answers of shape {shapes} are none that it takes: {models.cause(error)}"
        if seen:
            if smoothing:
                seen, fix = f"{seen}; label_smoothing is {smoothing:g}", "label_smoothing=0.1 in the loss, or none"
            elif head.units == 1 and head.kind != "regression" and settings.get("kind") in ENTROPIES[1:]:
                seen += f": {settings['kind']} over one unit is the same for every answer"
            yield Finding("error", "wrong-loss", subject, seen, expected, fix)
        elif head.kind != "regression" and settings.get("kind") in ENTROPIES and not smoothing:
            least, found = -math.log(SURE), cost(0.0)
            if abs(found - least) > 0.5 * least:
                logits = bool(settings.get("from_logits"))
                seen = (
                    f"from_logits={logits} in the loss, while the model gives {'probabilities' if logits else 'logits'}"
                )
                seen += f": {SURE:.0%} for the right class cost {found:.3g}"
                yield Finding("error", "loss-logits", subject, seen, f"{least:.3g}", fix)


def _of_classes(cost: Callable[[float], float]) -> str:
    """What is wrong with a loss over classes; "" where right answers cost less than undecided and wrong ones."""
    right, undecided, wrong = cost(0.0), cost(0.5), cost(1.0)
    finite = all(map(math.isfinite, (right, undecided, wrong)))  # else `initial-loss` says so
    if not finite or right < min(undecided, wrong) - 1e-6 * max(1.0, abs(right)):
        return ""
    return f"right answers cost {right:.3g}, undecided ones {undecided:.3g}, wrong ones {wrong:.3g}"


def _of_numbers(cost: Callable[[float, Any], float], encoded: np.ndarray) -> str:
    """The same of a loss over numbers, row by row, a standard deviation off to either side."""
    rows = np.argsort(encoded[:, 0])[np.linspace(0, len(encoded) - 1, min(len(encoded), ROWS)).astype(int)]
    costs = np.array([[cost(off, [row]) for off in (0.0, 1.0, -1.0)] for row in rows])
    missed = ~(costs[:, 0] < costs[:, 1:].min(axis=1))
    if not missed.any() or not np.isfinite(costs).all() or np.ptp(costs, axis=1).max() == 0:
        return ""  # where every answer costs the same, it may compare rows with each other
    right, over, under = costs[missed][0]
    seen = f"in {missed.sum()} of {len(rows)} rows right answers cost no less than those a standard deviation off"
    return f"{seen}, such as {right:.3g} and {min(over, under):.3g}"


def _answers(task: Task, encoded: np.ndarray, off: float) -> np.ndarray:
    """Outputs of a head as its activation gives them: right for 0, undecided for 0.5, wrong for 1.

    For regression ``off`` is how many standard deviations they lie above the target.
    """
    if task.kind == "regression":
        return np.asarray(encoded + off, np.float32)
    if task.kind == "multiclass":
        codes = task.truth(encoded) if off < 1 else (task.truth(encoded) + 1) % task.units
        chances = np.full((len(codes), task.units), (1 - SURE) / (task.units - 1))
        chances[np.arange(len(codes)), codes] = SURE
        if off == 0.5:
            chances[:] = 1 / task.units
        return np.asarray(np.log(chances) if task.from_logits else chances, np.float32)
    chances = 0.5 + (0.5 - off) * 2 * (SURE - 0.5) * (2 * encoded - 1)
    return np.asarray(np.log(chances / (1 - chances)) if task.from_logits else chances, np.float32)
