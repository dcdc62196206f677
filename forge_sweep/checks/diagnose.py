"""Why a training learned nothing, or less than it could. From figures to findings.

Everything here is pure: what is looked at is handed in. No finding stops anything: they explain what has happened. Each
has a section of its name in docs/failures.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from forge_sweep.checks import samples
from forge_sweep.checks.findings import Finding
from forge_sweep.checks.relation import DEPTH, Relation
from forge_sweep.checks.samples import Sample
from forge_sweep.checks.settings import MOST_DROPOUT
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

UNDERFIT = 0.9
"""Share of the loss of a constant that a training loss stays above where the network is too small for the rows."""

LEAST_RATE, MOST_RATE = 1e-5, 0.1
"""Learning rates beyond which they are the likely cause of a network that learned nothing."""

LEARNED_NOTHING = ("one-answer", "flat-loss")
"""Findings of a network that learned nothing at all."""

MOST_CAUSES = 3
"""Causes that are listed: what comes after the first ones mostly follows from them."""

BOUND = 0.5
"""Share of a trial's time from which it is bound by what takes it."""

WORTH_S = 5.0
"""Seconds that a cause takes below which nobody waits for it."""

JUMP = 2.0
"""Factor by which a training loss rises above its least value where the rate is too high for it."""

LATE_GAIN = 0.05
"""Share of a training's whole gain that its last quarter gives where more epochs would give more."""

OVERFIT = 0.1
"""Share of its least value by which the validation loss rises again, while the training loss goes on to fall."""


@dataclass(frozen=True)
class Times:
    """What a trial's time went into, in seconds.

    Attributes:
        total: of the trial, from its arrays to its scores.
        setup: building, tracing and compiling: the first epoch beyond what a later one takes, and all before it.
        waiting: for train rows that are read while others are trained on; 0 where all of them are on the device.
        diagnosis: samples and snapshots.
    """

    total: float = 0.0
    setup: float = 0.0
    waiting: float = 0.0
    diagnosis: float = 0.0

    def shares(self) -> dict[str, float]:
        """As metrics of a run, such as ``cost/setup_share``."""
        if not self.total:
            return {}
        names = ("setup", "waiting", "diagnosis")
        return {f"cost/{name}_share": min(1.0, getattr(self, name) / self.total) for name in names}


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
        sampled: the network on a few rows after one or more of its epochs, the last one last; () where it cannot be
            sampled. Asked for only where something is wrong.
        related: by head, whether a shallow tree relates features and targets; asked for where no cause was found.
        frozen: layers with weights that may not be trained.
        times: what the time went into.
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
    sampled: Callable[[], Sequence[Sample]] = tuple
    related: Callable[[], Mapping[str, Relation]] = dict
    frozen: Sequence[str] = ()
    times: Times = field(default_factory=Times)


def of_training(seen: Training) -> tuple[Finding, ...]:
    """What is to be said of a training; nothing of one that went well.

    What explains a network that learned nothing follows it as a finding of its own.
    """
    if len(seen.history) < FEW_EPOCHS:
        return ()
    stuck = [*_one_answer(seen), *_flat(seen)]
    answers = any(each.code == "one-class" for each in stuck)
    if not stuck or answers:
        stuck += _no_better(seen)
    if not stuck:
        return (*_unstable(seen), *_overfitting(seen), *_still_improving(seen), *_frozen(seen), *_bound(seen))
    at_all = any(each.code in LEARNED_NOTHING for each in stuck)
    causes = _causes(seen, at_all or not answers)
    told = stuck
    if causes:
        told = [replace(each, seen=f"{each.seen}; {causes[0].seen}", fix=causes[0].fix) for each in stuck]
    elif at_all:
        text, fix = _unexplained(seen)
        told = [replace(each, seen=each.seen + text, fix=fix) for each in stuck]
    curves = () if at_all else (*_unstable(seen), *_still_improving(seen))
    frozen = () if any(each.code == "frozen-layers" for each in causes) else _frozen(seen)
    return (*told, *causes[:MOST_CAUSES], *curves, *frozen, *_bound(seen))


def _curve(seen: Training, name: str) -> np.ndarray:
    return np.array([row.get(name, np.nan) for row in seen.history])


def _one_answer(seen: Training) -> Iterator[Finding]:
    """Whether a head answers alike for all rows, or with one class only though another one is not rare."""
    for prefix, task, encoded, scores in seen.task.apart(seen.encoded, seen.scores):
        head = prefix.removesuffix("_") or ", ".join(seen.task.targets[:3])
        spread = scores.std(axis=0) / np.maximum(abs(scores).mean(axis=0), 1e-12)
        if (spread < ONE_ANSWER).all():
            answer = ", ".join(f"{each:.3g}" for each in scores[0][:3])
            said = f"{len(scores)} validation rows have one answer, {answer}"
            yield Finding("warning", "one-answer", head, said, "answers that differ from row to row", "")
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
    constant = _constant(seen)
    reached = float(np.nanmin(_curve(seen, "val_loss")))
    if reached > KNOWS_NOTHING * constant:
        text = f"the training loss fell by {max(fell, 0.0):.2%} in {len(losses)} epochs, from {losses[0]:.4g}"
        text += f"; val_loss {reached:.4g}, {constant:.4g} of a constant"
        yield Finding("warning", "flat-loss", "training", text, "a loss that falls", "")


def _constant(seen: Training) -> float:
    """The validation loss of the best constant."""
    outputs = np.tile(seen.task.constant(seen.encoded), (len(seen.encoded), 1))
    return replace(seen.task, from_logits=False).loss_of(seen.encoded, outputs)


def _causes(seen: Training, ask_labels: bool) -> list[Finding]:
    """What explains a network that learned nothing, the root of it first; one of each code."""
    taken = seen.sampled()
    sampled = [*samples.causes(taken[-1], taken[:-1])] if taken else []
    roots = [each for each in sampled if each.code in ("unscaled-input", "frozen-layers", "half-precision-range")]
    first: dict[str, Finding] = {}
    for each in (*roots, *_by_parameters(seen), *sampled):
        first.setdefault(each.code, each)
    causes = [*first.values()]
    if not causes and ask_labels:
        related = seen.related()
        if related and not any(each.found for each in related.values()):
            p = min(each.p for each in related.values())
            text = f"a tree of depth {DEPTH} finds no relation between features and targets either (p = {p:.2g})"
            fix = "check that rows and labels belong together"
            causes = [Finding("warning", "labels-unrelated", "data.target", text, "features that say something", fix)]
    return causes


def _by_parameters(seen: Training) -> Iterator[Finding]:
    """Hyperparameters so far out that they explain it."""
    rate = seen.params.get("learning_rate", seen.history[0].get("lr"))
    if isinstance(rate, float) and not LEAST_RATE <= rate <= MOST_RATE:
        code = "rate-too-low" if rate < LEAST_RATE else "rate-too-high"
        fix = "learning_rate = 1e-3 under [model.search]"
        expected = f"{LEAST_RATE:g} to {MOST_RATE:g}"
        yield Finding("warning", code, "learning_rate", f"learning_rate {rate:.3g}", expected, fix)
    for name, most, code in (("dropout", MOST_DROPOUT, "dropout-too-high"), ("l2", 0.1, "penalty-too-high")):
        value = seen.params.get(name)
        if isinstance(value, float) and value > most:
            fix = f"{name} = 0.0 under [model.search]"
            yield Finding("warning", code, name, f"{name} {value:.3g}", f"at most {most:g}", fix)


def _unexplained(seen: Training) -> tuple[str, str]:
    """What is known where no cause was found: whether anything can be learned at all."""
    taken = seen.sampled()
    missing = "".join(f"; {why}" for why in taken[-1].missing) if taken else ""
    if related := [each for each in seen.related().values() if each.found]:
        best = max(related, key=lambda each: each.score)
        score = f"{best.metric} {best.score:.2g}, p = {best.p:.2g}"
        text = f"; a tree of depth {DEPTH} does learn ({score}), the network does not{missing}"
        return text, "another learning_rate, width or activation under [model.search], or more epochs under [study]"
    return f"; the features may say nothing of the target{missing}", "check that rows and labels belong together"


def _unstable(seen: Training) -> Iterator[Finding]:
    """Whether the training loss rose again by far, at a rate that was fine before."""
    losses, rates = _curve(seen, "loss"), _curve(seen, "lr")
    least = int(np.nanargmin(losses))
    last = least + int(np.nanargmax(losses[least:]))
    worst = float(losses[last])
    if losses[least] > 0 and worst > JUMP * losses[least] and worst > losses[0]:
        rate = rates[last] if np.isfinite(rates[last]) else seen.params.get("learning_rate")
        at = f" at learning_rate {rate:.3g}" if isinstance(rate, float) else ""
        text = f"the training loss was {losses[least]:.4g} after epoch {least + 1} and rose to {worst:.4g}{at}"
        fix = "clip_norm = 1.0 under [model.search], or a lower learning_rate"
        if rates[last] > rates[least]:
            text += f", which had been {rates[least]:.3g}"
            fix = 'a lower learning_rate under [model.search], of which the schedule makes more, or schedule = "cosine"'
        yield Finding("warning", "unstable-loss", "training", text, "a loss that falls", fix)


def _overfitting(seen: Training) -> Iterator[Finding]:
    """Whether validation got worse while training got better; the weights that are kept are those before."""
    losses, valid = _curve(seen, "loss"), _curve(seen, "val_loss")
    least = int(np.nanargmin(valid))
    if valid[least] > 0 and valid[-1] > (1 + OVERFIT) * valid[least] and losses[-1] < losses[least]:
        text = f"val_loss rose from {valid[least]:.4g} after epoch {least + 1} to {valid[-1]:.4g}, while loss fell on"
        text += (
            f" to {losses[-1]:.4g}: a gap of {valid[-1] - losses[-1]:.3g}, {valid[least] - losses[least]:.3g} before"
        )
        fix = f"in this order: {', '.join(_milder(seen, len(valid) - 1 - least))}, more rows"
        yield Finding("info", "overfitting", "training", text, "validation that gains as training does", fix)


def _milder(seen: Training, late: int) -> list[str]:
    """What helps against overfitting, by how much it changes; ``late`` epochs came after the best one."""
    dropout, l2, width = (seen.params.get(name) for name in ("dropout", "l2", "width"))
    steps = [f"patience = {max(1, late // 2)} under [study]"] if late else []
    steps += [f"dropout = {min(0.5, dropout + 0.2):.2g} under [model.search]"] if isinstance(dropout, float) else []
    steps += [f"l2 = {max(10 * l2, 1e-4):.2g} under [model.search]"] if isinstance(l2, float) and l2 < 1e-2 else []
    if isinstance(width, int) and width > 1:
        return [*steps, f"width = {width // 2} under [model.search]"]
    return [*steps, "a smaller network"]


def _no_better(seen: Training) -> Iterator[Finding]:
    """Whether validation never came below a constant: with a training loss that did not either, or that did."""
    least, reached = float(np.nanmin(_curve(seen, "loss"))), float(np.nanmin(_curve(seen, "val_loss")))
    if not np.isfinite(reached) or reached <= KNOWS_NOTHING * (constant := _constant(seen)):
        return
    if least > UNDERFIT * constant:
        text = f"loss came to {least:.4g} and val_loss to {reached:.4g}, {constant:.4g} of a constant"
        width = seen.params.get("width")
        wider = f"width = {2 * width} under [model.search]" if isinstance(width, int) else "a wider network"
        given = [name for name in ("l2", "dropout") if seen.params.get(name)]
        fix = ", ".join(["in this order: more epochs under [study]", *(f"{name} = 0.0" for name in given), wider])
        yield Finding("info", "near-constant", "training", text, "a loss below that of a constant", fix)
    else:
        text = f"val_loss came to {reached:.4g}, {constant:.4g} of a constant, from the first epoch on while loss fell"
        text += f" to {least:.4g}"
        fix = f"in this order: {', '.join(_milder(seen, 0))}, more rows"
        yield Finding("info", "overfitting", "training", text, "validation that gains as training does", fix)


def _frozen(seen: Training) -> Iterator[Finding]:
    """Whether layers cannot learn in a network that learned all the same."""
    if seen.frozen:
        text = f"{len(seen.frozen)} layers with weights are not trainable: {', '.join(seen.frozen[:3])}"
        fix = f"trainable = True for {seen.frozen[0]} in the builder, unless it was trained before"
        yield Finding("info", "frozen-layers", seen.frozen[0], text, "layers that learn", fix)


def _bound(seen: Training) -> Iterator[Finding]:
    """Whether the time went into something other than gradient steps."""
    times = seen.times
    for code, seconds, what, fix in (
        ("compile-bound", times.setup, "building, tracing and compiling",
         "fewer values of width, depth and batch_size under [model.search]: networks of one shape are traced once"),
        ("input-bound", times.waiting, "waiting for rows",
         "a larger batch_size under [model.search], fewer columns, or a machine whose memory holds the rows"),
    ):  # fmt: skip
        if seconds > WORTH_S and seconds > BOUND * times.total:
            text = f"{seconds:.1f} of {times.total:.1f} s went into {what}"
            yield Finding("info", code, "training", text, "gradient steps most of the time", fix)


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
