"""What a user's own model answers, before it is trained: mistakes that show in its outputs and raise nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from forge_sweep import training
from forge_sweep.bundle import GOLDEN_TOLERANCE
from forge_sweep.checks.findings import Finding, Severity
from forge_sweep.experiment import Code
from forge_sweep.models.own import FIX
from forge_sweep.preprocessing import Spec
from forge_sweep.task import Task

if TYPE_CHECKING:
    import keras

DROPPED = 0.05
"""Share of the outputs that are exactly 0 in training mode, and not when predicting, from which they are dropped."""

MOST_COLUMNS = 300
"""Of an input whose columns are tried one by one."""

STRAIGHT = 1e-3
"""Distance of outputs at midpoints from the mean of the outputs at the ends, against their spread, of a linear map."""


def misfits(model: keras.Model, task: Task, few: training.TrainingData, code: Code) -> Iterator[Finding]:
    """Whether the outputs are what the task scores, of each row by itself, and the same in training but for chance."""
    outputs = training.outputs(model, few.x_train).astype(np.float64)
    if (off := np.abs(training.outputs(model, few.x_train) - outputs).max()) > GOLDEN_TOLERANCE:
        drawing = ", ".join(layer.name for layer in model.layers if hasattr(layer, "seed_generator"))
        seen = f"two predictions of the same rows are {off:.3g} apart{f' ({drawing})' if drawing else ''}"
        fix = "call these layers without training=True; a call of your own hands its argument training on"
        yield Finding(
            "error", "random-predictions", code.builder, seen, "augmentation and dropout in training only", fix
        )
        return
    half = max(1, len(outputs) // 2)
    alone = training.outputs(model, training.each(lambda values: values[:half], few.x_train))
    if half < len(outputs) and (off := np.abs(alone - outputs[:half]).max()) > 10 * GOLDEN_TOLERANCE:
        seen = f"{half} rows are predicted {off:.3g} apart when {len(outputs) - half} others stand beside them"
        fix = (
            "call BatchNormalization without training=True, and normalise, sum and reshape over the axes of a row "
            "(axis=-1), not over axis 0, which is that of the rows"
        )
        expected = "predictions of a row that do not depend on other rows"
        yield Finding("error", "batch-dependent", code.builder, seen, expected, fix)
        return
    layers = {layer.name: layer for layer in model.layers}
    for prefix, head, _, found in task.apart(few.y_train, outputs):
        own = prefix.removesuffix("_")
        last = layers.get(own) if own else (model.layers[-1] if model.layers else None)
        # Of a subclassed model the last layer is the one that was made last, wherever it stands.
        told = last is not None and getattr(last, "units", head.units) == head.units
        seen, wanted = _misfit(head, found, getattr(getattr(last, "activation", None), "__name__", "") if told else "")
        if wanted:
            fix = f'end that branch with heads["{own}"].output(hidden)' if own else FIX
            subject = f"{code.builder}, head {own}" if own else code.builder
            yield Finding("error", "output-activation", subject, seen, wanted, fix)


def _misfit(task: Task, found: np.ndarray, activation: str) -> tuple[str, str]:
    """What is wrong with the outputs of one head, and what they should be; two empty texts where nothing is."""
    seen, wanted = f'the last layer has activation "{activation}"' if activation else "the outputs", ""
    low, high, sums = found.min(), found.max(), found.sum(axis=1)
    if task.kind == "regression" or task.from_logits:
        if activation not in ("", "linear"):
            wanted = "linear outputs" + (" (targets are standardised, half of them below 0)" * (not task.from_logits))
    elif activation == "softmax" and task.kind in ("binary", "multilabel"):
        wanted = f"sigmoid for {task.kind}" + (": softmax over one unit is always 1" * (task.units == 1))
    elif low < -1e-6 or high > 1 + 1e-6:
        seen, wanted = f"{seen}: values from {low:.3g} to {high:.3g}", f"{task.activation}: probabilities"
    elif task.kind == "multiclass" and np.abs(sums - 1).max() > 1e-3:
        seen, wanted = f"{seen}: rows that sum to {sums.min():.3g} to {sums.max():.3g}", "softmax: rows that sum to 1"
    return seen, wanted


def symptoms(
    model: keras.Model, task: Task, few: training.TrainingData, spec: Spec, code: Code, dead: bool
) -> Iterator[Finding]:
    """What probabilities may hide: outputs that are dropped, columns that are not used, layers that are one line.

    ``dead``: some layer gives 0 for every row, which explains the last two by itself.
    """
    outputs = training.outputs(model, few.x_train)
    zeros = (training.training_outputs(model, few.x_train) == 0) & (outputs != 0)
    if zeros.mean() > DROPPED:
        seen = f"in training {zeros.mean():.0%} of the outputs are exactly 0, when predicting none of these"
        fix = "move the Dropout in front of the output layer"
        yield Finding("error", "dropout-after-output", code.builder, seen, "the outputs of the last layer", fix)
    if dead:
        return
    for name, columns in _unused_columns(model, few, spec).items():
        shown = ", ".join(map(str, columns[:5])) + f" and {len(columns) - 5} more" * (len(columns) > 5)
        width = spec[name].shape[0]
        seen = f"{len(columns)} of the {width} columns of {name} change no prediction: {shown}"
        fix = (
            "look for a slice or an index in the function that takes a part of them, or drop these columns under [data]"
        )
        yield Finding("warning", "features-ignored", code.builder, seen, "a model that uses all of its columns", fix)
    kernels = [weight for weight in model.trainable_weights if len(weight.shape) > 1]
    if len(kernels) > 1 and all(each.vocabulary is None for each in spec.values()):
        off = _bend(model, task, few)
        if off is not None and off < STRAIGHT:
            seen = f"{len(kernels)} layers with weights are one straight line together, within {off:.1g} of the outputs"
            fix = 'give the hidden layers an activation, such as Dense(64, activation="relu")'
            if "activation" in code.parameters:
                fix = 'activation = "relu" under [model.search]'
            # With one hidden layer it may be meant, as a product of low rank.
            severity: Severity = "warning" if len(kernels) > 2 else "info"
            yield Finding(severity, "no-activation", code.builder, seen, "hidden layers that bend what they get", fix)


def _unused_columns(model: keras.Model, few: training.TrainingData, spec: Spec) -> Mapping[str, list[str | int]]:
    """By input, the columns that change no output of any of a few rows; none where no column does."""
    some = training.each(lambda values: values[:32], few.x_train)
    found = dict[str, list[str | int]]()
    for at, (name, each) in enumerate(spec.items()):
        if len(each.shape) != 1 or each.vocabulary is not None or not 1 < each.shape[0] <= MOST_COLUMNS:
            continue
        width, rows = each.shape[0], len(training.leaves(some)[at])
        changes = np.repeat(np.eye(width, dtype=np.float32), rows, axis=0)
        position = iter(range(len(spec)))

        def tiled(values: np.ndarray, width: int = width, changes: np.ndarray = changes, at: int = at) -> np.ndarray:
            many = np.tile(values, (width, *[1] * (values.ndim - 1)))
            return many + changes if next(position) == at else many  # noqa: B023 - called at once

        changed = training.outputs(model, training.each(tiled, some)).reshape(width, rows, -1)
        same = (changed == training.outputs(model, some)).all(axis=(1, 2))
        if same.any() and not same.all():
            names = each.columns or range(width)
            found[name] = [names[column] for column in np.flatnonzero(same)]
    return found


def _bend(model: keras.Model, task: Task, few: training.TrainingData) -> float | None:
    """How far outputs before their activation are from those of a linear map; None where that cannot be told."""
    even = len(few.y_train) // 2 * 2
    ends = [training.each(itemgetter(slice(first, even, 2)), few.x_train) for first in (0, 1)]
    one, other = (training.leaves(each) for each in ends)
    middles = iter([(a + b) / 2 for a, b in zip(one, other, strict=True)])
    between = training.each(lambda values: next(middles).astype(np.float32), ends[0])
    parts = []
    for x in (*ends, between):
        found = training.outputs(model, x).astype(np.float64)
        parts.append([_raw(head, own) for _, head, _, own in task.apart(few.y_train[: len(found)], found)])
    bends = []
    for first, second, middle in zip(*parts, strict=True):
        known = np.isfinite(first) & np.isfinite(second) & np.isfinite(middle)
        spread = np.std(middle[known]) if known.sum() > 8 else 0.0
        if spread < 1e-3:
            return None
        bends.append(float(np.abs(middle - (first + second) / 2)[known].max() / spread))
    return max(bends)


def _raw(task: Task, outputs: np.ndarray) -> np.ndarray:
    """Outputs of one head before its activation, NaN where that has swallowed their digits."""
    if task.kind == "regression" or task.from_logits:
        return outputs
    sure = (outputs < 0.01) | (outputs > 0.99)
    if task.kind == "multiclass":
        logs = np.log(np.maximum(outputs, 1e-12))
        found = np.asarray(logs - logs.mean(axis=1, keepdims=True))
        found[sure.any(axis=1)] = np.nan
        return found
    found = np.asarray(special.logit(np.clip(outputs, 1e-12, 1 - 1e-12)))
    found[sure] = np.nan
    return found
