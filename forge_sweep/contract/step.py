"""What one step of training does to a network: nothing, next to nothing, or far too much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from forge_sweep import training
from forge_sweep.checks.findings import Finding
from forge_sweep.experiment import Params
from forge_sweep.task import Task

if TYPE_CHECKING:
    import keras

STANDS_STILL = 1e-4
"""Size of all steps of a training together, against the weights, below which a network stays as it was made."""

THROWN_AWAY = 3.0
"""Size of one step, against the weights, above which nothing is left of what was there before it."""

FADED = 1e-3
"""Share of its highest value below which a learning rate changes nothing any more."""

PENALISED = 10.0
"""Factor by which a penalty exceeds the loss of the targets, and ``HEAVY`` what it is per squared weight, where it is
the penalty that is minimised."""

HEAVY = 0.1

RATE_FIX = "learning_rate = 1e-3 under [model.search]"


def scheduled(model: keras.Model, steps: int, subject: str) -> Iterator[Finding]:
    """Whether an optimizer's own schedule is above 0, and lasts as long as training does."""
    grid = sorted(
        {*np.linspace(0, steps - 1, 50).astype(int).tolist(), *(at for at in (1, 2, 5, 10, 20) if at < steps)}
    )
    found = training.learning_rates(model, grid)
    fix = "return the model without compile, and set schedule and learning_rate under [model.search]"
    if not any(found):
        seen = f"the learning rate is 0 in each of the {steps:,} steps"
        yield Finding("error", "rate-zero", subject, seen, "a rate above 0, about 1e-3 for adam", fix)
        return
    last = max(step for step, rate in zip(grid, found, strict=True) if rate > FADED * max(found))
    if last < steps / 2 - 1:
        seen = f"the learning rate has fallen from {max(found):.3g} to nearly 0 after step {last:,} of {steps:,}"
        yield Finding("warning", "schedule-too-short", subject, seen, "a schedule as long as the training", fix)


def penalised(model: keras.Model, task: Task, loss: float, params: Params, subject: str) -> Iterator[Finding]:
    """Whether what regularizers add to the loss leaves nothing of it."""
    penalty = training.penalty(model)
    squares = sum(float(np.square(np.array(weight)).sum()) for weight in model.trainable_weights)
    if penalty > PENALISED * max(loss, task.chance()[0]) and penalty > HEAVY * squares:
        seen = f"the penalty on the weights is {penalty:.3g} before training, the loss of the targets {loss:.3g}"
        fix = "l2 = 0.0 under [model.search]" if "l2" in params else "a regularizer of about 1e-4 in the builder"
        yield Finding("warning", "penalty-too-high", subject, seen, "a penalty that is small beside the loss", fix)


def changed(model: keras.Model, before: Sequence[np.ndarray], subject: str) -> Iterator[Finding]:
    """Whether one step has changed the weights."""
    same = [
        weight.path
        for weight, was in zip(model.trainable_weights, before, strict=True)
        if np.array_equal(np.array(weight), was)
    ]
    if len(same) == len(before):
        seen = "one step changed none of them" if before else "it has no trainable weights"
        fix = "connect layers to the output, leave trainable = True, and let train_step apply the gradients"
        yield Finding("error", "nothing-trains", subject, seen, "weights that training changes", fix)
    elif same:
        seen = f"one step left {', '.join(same[:5])} as they were" + (f" and {len(same) - 5} more" * (len(same) > 5))
        fix = "use the layers in what the model returns; a gate that starts at 0 is fine"
        yield Finding("warning", "weights-unchanged", subject, seen, "every trainable weight to change", fix)


def paced(
    model: keras.Model,
    before: Sequence[np.ndarray],
    losses: tuple[float, float],
    steps: int,
    params: Params,
) -> Iterator[Finding]:
    """Whether the step was of a size that ``steps`` of them lead anywhere.

    Args:
        model: after the step.
        before: its trainable weights before.
        losses: of the targets, before and after.
        steps: of the whole training.
        params: hyperparameters.
    """
    after = [np.array(weight) for weight in model.trainable_weights]
    size = np.sqrt(sum(float(np.square(was).sum()) for was in before))
    if size < 1e-3:  # a model that begins at 0
        return
    share = np.sqrt(sum(float(np.square(now - was).sum()) for now, was in zip(after, before, strict=True))) / size
    rate = training.learning_rates(model, [0])[0]
    asked = params.get("learning_rate")
    own = "" if isinstance(asked, float | int) and np.isclose(asked, rate) else " that the builder compiles with"
    fix = RATE_FIX if not own else f"return the model without compile, and set {RATE_FIX}"
    expected = "about a thousandth in each step"
    if rate > 0 and share * steps < STANDS_STILL:
        seen = f"a step changes the weights by {share:.2g} of their size, all {steps:,} steps by {share * steps:.2g}"
        clip = training.clipping(model)
        if clip is not None and clip[1] < FADED:
            seen = f"gradients are clipped to {clip[0]} = {clip[1]:.3g}; {seen}"
            fix = "clip_norm = 1.0 under [model.search]" if "clip_norm" in params else f"{clip[0]}=1.0 in the builder"
            yield Finding("warning", "clip-too-small", "clip_norm", seen, expected, fix)
        else:
            seen = f"learning_rate {rate:.3g}{own}: {seen}"
            yield Finding("warning", "rate-too-low", "learning_rate", seen, expected, fix)
    elif share > THROWN_AWAY:
        seen = f"learning_rate {rate:.3g}{own}: one step changes the weights by {share:.3g} times their size, "
        seen += f"and takes the loss from {losses[0]:.3g} to {losses[1]:.3g}"
        yield Finding("warning", "rate-too-high", "learning_rate", seen, expected, fix)


def halved(model: keras.Model, subject: str) -> Iterator[Finding]:
    """Whether gradients in float16 are kept from becoming 0 by scaling the loss."""
    if training.is_half_unscaled(model):
        name = type(model.optimizer).__name__
        seen = f"layers compute in float16, where gradients below 6e-8 are 0, and {name} does not scale the loss"
        fix = 'precision = "float32" in the experiment, or compile without auto_scale_loss=False'
        yield Finding("warning", "loss-unscaled", subject, seen, "a loss that is scaled for its gradients", fix)
