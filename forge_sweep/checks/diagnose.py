"""Why a training learned nothing, or less than it could. From figures to findings.

Everything here is pure: what is looked at is handed in. No finding stops anything: they explain what has happened. Each
has a section of its name in docs/failures.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from forge_sweep.checks.findings import Finding
from forge_sweep.experiment import Params

if TYPE_CHECKING:
    from forge_sweep.task import Direction, Task

FEW_EPOCHS = 3
"""Epochs below which no curve says anything."""

FLAT = 0.01
"""Share of its first value by which the training loss of a network that learns falls at the least."""

KNOWS_NOTHING = 0.98
"""Share of the loss of a constant that a network which learned something stays below."""

ONE_ANSWER = 1e-3
"""Spread of the scores of all rows, as a share of their mean, below which they are one answer."""

RARE = 0.1
"""Share of a class below which predicting others only is no wonder."""

DEAD = 0.5
"""Share of units that give 0 for every row from which a layer is called dead."""

JUMP = 2.0
"""Factor by which a training loss rises above its least value where the rate is too high for it."""

LATE_GAIN = 0.05
"""Share of a training's whole gain that its last quarter gives where more epochs would give more."""

OVERFIT = 0.1
"""Share of its least value by which the validation loss rises again, while the training loss goes on to fall."""


@dataclass(frozen=True, eq=False)
class Training:
    """What one training left.

    Attributes:
        history: the logs of its epochs.
        monitor: the objective, with its ``direction``.
        best_epoch: 0-based.
        epochs: the most that there could have been.
        task: what is predicted.
        encoded: validation targets, as ``task.encode`` gives them.
        scores: of the validation rows, at the best epoch.
        params: its hyperparameters.
        silent: by layer, the share of units that give 0 for every row; asked for only where something is wrong.
    """

    history: Sequence[Mapping[str, float]]
    monitor: str
    direction: Direction
    best_epoch: int
    epochs: int
    task: Task
    encoded: np.ndarray
    scores: np.ndarray
    params: Params
    silent: Callable[[], Mapping[str, float]]


def of_training(seen: Training) -> tuple[Finding, ...]:
    """What is to be said of a training; nothing of one that went well."""
    if len(seen.history) < FEW_EPOCHS:
        return ()
    stuck = [*_one_answer(seen), *_flat(seen)]
    return (*stuck, *(() if stuck else (*_unstable(seen), *_overfitting(seen), *_still_improving(seen))))


def _curve(seen: Training, name: str) -> np.ndarray:
    return np.array([row.get(name, np.nan) for row in seen.history])


def _one_answer(seen: Training) -> Iterator[Finding]:
    """Whether a head answers alike for all rows, or with one class only though another one is not rare."""
    for prefix, task, encoded, scores in seen.task.apart(seen.encoded, seen.scores):
        head = prefix.removesuffix("_") or ", ".join(seen.task.targets[:3])
        spread = scores.std(axis=0) / np.maximum(abs(scores).mean(axis=0), 1e-12)
        if (spread < ONE_ANSWER).all():
            cause, fix = _why_stuck(seen)
            answer = ", ".join(f"{each:.3g}" for each in scores[0][:3])
            said = f"{len(scores)} validation rows have one answer, {answer}{cause}"
            yield Finding("warning", "one-answer", head, said, "answers that differ from row to row", fix)
        elif task.kind in ("binary", "multiclass"):
            guesses = scores[:, 0] >= 0.5 if task.kind == "binary" else scores.argmax(axis=1)
            guessed = np.unique(guesses).astype(int)
            shares = np.bincount(task.truth(encoded), minlength=len(task.classes)) / len(encoded)
            missed = [code for code in np.flatnonzero(shares >= RARE) if code not in guessed]
            if len(guessed) == 1 and missed:
                others = ", ".join(f"{task.classes[code]} ({shares[code]:.0%} of them)" for code in missed)
                said = f"every validation row is called {task.classes[guessed[0]]}, and none {others}"
                fix = 'class_weight = "balanced" under [model], or a higher learning_rate'
                yield Finding("warning", "one-class", head, said, "a guess of each class that is not rare", fix)


def _flat(seen: Training) -> Iterator[Finding]:
    """Whether the training loss never fell, and validation is no better than a constant."""
    losses = _curve(seen, "loss")
    fell = float((losses[0] - np.nanmin(losses)) / max(abs(losses[0]), 1e-12))
    if fell >= FLAT:
        return
    outputs = np.tile(seen.task.constant(seen.encoded), (len(seen.encoded), 1))
    constant = replace(seen.task, from_logits=False).loss_of(seen.encoded, outputs)
    reached = float(np.nanmin(_curve(seen, "val_loss")))
    if reached > KNOWS_NOTHING * constant:
        cause, fix = _why_stuck(seen)
        text = f"the training loss fell by {max(fell, 0.0):.2%} in {len(losses)} epochs, from {losses[0]:.4g}"
        text += f"; val_loss {reached:.4g}, {constant:.4g} of a constant{cause}"
        yield Finding("warning", "flat-loss", "training", text, "a loss that falls", fix)


def _why_stuck(seen: Training) -> tuple[str, str]:
    """The likely cause of a network that learned nothing, with its figure, and what to do."""
    dead = {name: share for name, share in seen.silent().items() if share >= DEAD}
    rate = seen.params.get("learning_rate")
    if dead:
        name, share = max(dead.items(), key=lambda item: item[1])
        return (
            f"; {share:.0%} of the units of {name} give 0 for every row",
            'activation = "gelu" under [model.search], or a lower learning_rate',
        )
    if isinstance(rate, float) and rate < 1e-5:
        return f"; learning_rate {rate:.3g}", "learning_rate = 1e-3 under [model.search]"
    if isinstance(rate, float) and rate > 0.1:
        return f"; learning_rate {rate:.3g}", "learning_rate = 1e-3 under [model.search]"
    for name, most in (("dropout", 0.8), ("l2", 0.1)):
        value = seen.params.get(name)
        if isinstance(value, float) and value > most:
            return f"; {name} {value:.3g}", f"{name} = 0.0 under [model.search]"
    return "; the features may say nothing of the target", "check that rows and labels belong together"


def _unstable(seen: Training) -> Iterator[Finding]:
    """Whether the training loss rose again by far."""
    losses = _curve(seen, "loss")
    least = int(np.nanargmin(losses))
    worst = float(np.nanmax(losses[least:]))
    if losses[least] > 0 and worst > JUMP * losses[least] and worst > losses[0]:
        rate = seen.params.get("learning_rate")
        at = f" at learning_rate {rate:.3g}" if isinstance(rate, float) else ""
        text = f"the training loss was {losses[least]:.4g} after epoch {least + 1} and rose to {worst:.4g}{at}"
        fix = "clip_norm = 1.0 under [model.search], or a lower learning_rate"
        yield Finding("warning", "unstable-loss", "training", text, "a loss that falls", fix)


def _overfitting(seen: Training) -> Iterator[Finding]:
    """Whether validation got worse while training got better; the weights that are kept are those before."""
    losses, valid = _curve(seen, "loss"), _curve(seen, "val_loss")
    least = int(np.nanargmin(valid))
    if valid[least] > 0 and valid[-1] > (1 + OVERFIT) * valid[least] and losses[-1] < losses[least]:
        text = f"val_loss rose from {valid[least]:.4g} after epoch {least + 1} to {valid[-1]:.4g}, while loss fell on"
        fix = "in this order: dropout, l2, a smaller width or depth, more rows"
        yield Finding("info", "overfitting", "training", text, "validation that gains as training does", fix)


def _still_improving(seen: Training) -> Iterator[Finding]:
    """Whether the last epochs were the best ones and gave a good part of the gain."""
    sign = 1.0 if seen.direction == "maximize" else -1.0
    values = sign * _curve(seen, seen.monitor)
    n = len(values)
    quarter = max(1, n // 4)
    before, whole = np.nanmax(values[:-quarter]), np.nanmax(values) - values[0]
    late = (np.nanmax(values) - before) / whole if whole > 0 else 0.0
    if n == seen.epochs and seen.best_epoch >= n - quarter and late > LATE_GAIN:
        text = f"the last {quarter} of {n} epochs gave {late:.0%} of the gain in {seen.monitor}"
        fix = f"epochs = {2 * n} under [study]"
        yield Finding("info", "still-improving", "training", text, "a training that has ended by itself", fix)
