"""Finds where a training that diverged had its first number that is not finite, by training its last epoch once more.

The compiled epoch stops at the step whose mean loss is not finite. From the state that `Probe` kept, the same batches
are trained again up to that step and looked at there: its layers, its gradient, its rows. Imports Keras.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from forge_sweep.checks.nonfinite import BATCHES, NotFinite
from forge_sweep.training.data import each, leaves, row_weights
from forge_sweep.training.loop import Epochs
from forge_sweep.training.probe import MOST_BYTES, Probe, few, gradients, norm, state_of

BEYOND = 1e3
"""Factor of the median loss of a batch from which a row's loss is beyond all others'."""


def first_not_finite(probe: Probe, epochs: Epochs | None) -> NotFinite:
    """Where it came from; with no compiled ``epochs`` only what the last step left behind is known."""
    model, steps = probe.model, 0 if epochs is None else epochs.steps
    rate = probe.rates.get(probe.epoch)
    plain = NotFinite(probe.epoch + 1, probe.step + 1, steps or probe.params.get("steps") or probe.step + 1, rate=rate)
    if epochs is None:
        layer, what = left_behind(probe)
        return dataclasses.replace(plain, layer=layer, what=what, unknown="trained by model.fit, which is not replayed")
    if probe.kept is None:
        unknown = f"its state, of more than {MOST_BYTES / 1e6:.0f} MB, was not kept to look closer"
        return dataclasses.replace(plain, layer=broken(model), what="weights", unknown=unknown)
    failed = [np.array(variable) for variable in state_of(model)]
    try:
        return _replayed(probe, epochs, plain)
    finally:
        put(model, failed)


def _replayed(probe: Probe, epochs: Epochs, plain: NotFinite) -> NotFinite:
    """The same, by training from the kept state on."""
    assert probe.kept is not None
    model, (began, state) = probe.model, probe.kept
    put(model, state)
    for epoch in range(began, probe.epoch):
        _begin(probe, epochs, epoch)
        _advance(epochs, epochs.source(epoch), epoch, 0, epochs.steps)
    _begin(probe, epochs, probe.epoch)
    start = [np.array(variable) for variable in state_of(model)]
    done = _advance(epochs, epochs.source(probe.epoch), probe.epoch, 0, epochs.steps)
    lost = not math.isfinite(float(model.get_metrics_result()["loss"]))
    if not lost and not broken(model):
        return dataclasses.replace(plain, unknown="trained once more, all stayed finite until validation")
    # The step whose loss shows it, or one past the last where only the weights do.
    shown = done - 1 if lost else done
    put(model, start)
    model.reset_metrics()
    source = epochs.source(probe.epoch)
    _advance(epochs, source, probe.epoch, 0, max(0, shown - 1))
    before, gradient = None, None
    if shown:
        before = [np.array(variable) for variable in state_of(model)]
        gradient = size_of_gradient(model, *_batch(epochs, probe, shown - 1)[:3])
        _advance(epochs, source, probe.epoch, shown - 1, shown)
    at = shown
    if before is not None and broken(model):  # the step before wrote it into the weights
        at, gradient = shown - 1, None
        put(model, before)
    return _looked_at(probe, epochs, at, dataclasses.replace(plain, step=at + 1, gradient=gradient))


def _begin(probe: Probe, epochs: Epochs, epoch: int) -> None:
    """Set an epoch's learning rate, where no step sets it, and clear the metrics."""
    if epochs.rates is None and epoch in probe.rates and hasattr(epochs.model.optimizer.learning_rate, "assign"):
        epochs.model.optimizer.learning_rate = probe.rates[epoch]
    epochs.model.reset_metrics()


def _advance(epochs: Epochs, source: Any, epoch: int, first: int, last: int) -> int:
    """Train these steps; fewer where the mean loss is not finite any more. Gives the step to go on with."""
    done = first
    while done < last:
        done = epochs.advance(source, epoch, done, min(done + epochs.stride, last))
        if not math.isfinite(float(epochs.model.get_metrics_result()["loss"])):
            break
    return done


def _batch(epochs: Epochs, probe: Probe, step: int) -> tuple[Any, np.ndarray, np.ndarray | None, np.ndarray]:
    """Features, targets, weights and positions of the rows of a step."""
    order = epochs.order(probe.epoch)
    rows = order[step * epochs.batch_size : (step + 1) * epochs.batch_size]
    data, whole = probe.data, row_weights(probe.data)
    weights = None if whole is None else whole[rows]
    return each(lambda values: values[rows], data.x_train), data.y_train[rows], weights, rows


def _looked_at(probe: Probe, epochs: Epochs, step: int, found: NotFinite) -> NotFinite:
    """What of the network is not finite on the rows of a step, in its state before that step."""
    model = probe.model
    if step >= epochs.steps:
        return dataclasses.replace(found, step=0, layer=broken(model), what="weights")
    x, y, weights, positions = _batch(epochs, probe, step)
    losses = losses_of_rows(model, x, y, weights)
    bad = ~np.isfinite(losses)
    if not bad.any():
        bad = losses > BEYOND * max(float(np.median(losses)), 1e-6)
    rows = tuple(int(row) for row in positions[bad]) if 0 < bad.sum() < min(BATCHES, len(bad) / 2) else ()
    blamed = bad if rows else np.ones(len(bad), bool)
    numbers = [values[blamed] for values in leaves(x) if values.dtype.kind == "f"]
    largest = max((float(abs(values).max()) for values in numbers), default=None)
    layer, what = first_layer(model, x), "outputs"
    if not layer and not np.isfinite(losses).all():
        what = "loss"
    elif not layer:
        layer, what = first_gradient(model, x, y, weights), "gradient"
        what = what if layer else ""
    rate = float(model.optimizer.learning_rate)
    half = any(each.compute_dtype == "float16" for each in model.layers)
    known = dataclasses.replace(found, layer=layer, what=what, rate=rate, half=half)
    return dataclasses.replace(known, rows=rows, batch=len(positions), largest=largest)


def put(model: keras.Model, state: Sequence[np.ndarray]) -> None:
    """Set all variables."""
    for variable, value in zip(state_of(model), state, strict=True):
        variable.assign(value)


def broken(model: keras.Model) -> str:
    """The first layer with a weight that is not finite; "" where there is none."""
    for layer in model.layers:
        for weight in layer.weights:
            value = np.asarray(keras.ops.convert_to_numpy(weight))
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                return str(layer.name)
    return ""


def left_behind(probe: Probe) -> tuple[str, str]:
    """What of a network its last step left not finite: a layer's weights, or its outputs on some train rows."""
    if layer := broken(probe.model):
        return layer, "weights"
    rows = few(probe.data)
    layer = first_layer(probe.model, each(lambda values: values[rows], probe.data.x_train))
    return layer, "outputs" if layer else ""


def losses_of_rows(model: keras.Model, x: Any, y: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """The compiled loss of each row by itself, (rows,), times its weight."""
    loss = keras.losses.get(model.loss)
    if loss is None:
        return np.zeros(len(y))
    function = loss.call if isinstance(loss, keras.losses.Loss) else loss
    found = function(keras.ops.convert_to_tensor(y), model(x, training=False))
    values = np.asarray(keras.ops.convert_to_numpy(found), np.float64)
    return np.asarray(values.reshape(len(y), -1).mean(axis=1) * (1.0 if weights is None else weights))


def first_layer(model: keras.Model, x: Any) -> str:
    """The first layer whose outputs are not finite; "" where all are, or where the model is no graph of layers."""
    wanted = []
    for layer in model.layers if getattr(model, "inputs", None) else ():
        try:
            wanted.append((layer.name, layer.output))
        except (AttributeError, ValueError):  # it is used more than once
            continue
    if not wanted:
        return ""
    part = keras.Model(model.input, [output for _, output in wanted])
    for (name, _), values in zip(wanted, _outputs(part, x), strict=True):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            return str(name)
    return ""


def _outputs(part: keras.Model, x: Any) -> list[np.ndarray]:
    return [np.asarray(keras.ops.convert_to_numpy(values)) for values in keras.tree.flatten(part(x, training=False))]


def first_gradient(model: keras.Model, x: Any, y: np.ndarray, weights: np.ndarray | None) -> str:
    """The layer nearest to the outputs whose gradient is not finite: backwards it is the first; "" where all are."""
    found, _, _ = gradients(model, x, y, weights)
    bad = {id(v) for v, g in zip(model.trainable_variables, found, strict=True) if not np.isfinite(g).all()}
    names = [layer.name for layer in model.layers if any(id(v) in bad for v in layer.trainable_variables)]
    return str(names[-1]) if names else ""


def size_of_gradient(model: keras.Model, x: Any, y: np.ndarray, weights: np.ndarray | None) -> float | None:
    """The norm of the whole gradient on these rows; None where it cannot be had."""
    try:
        return norm(gradients(model, x, y, weights)[0])
    except ValueError:
        return None
