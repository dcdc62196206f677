"""The contract of a network: what a builder gives is built, looked at, and trained for one step on a few real rows.

`preflight` holds the corners of the search space to it, and `forge_sweep.testing.BuilderContract` a user's own builder.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from forge_sweep import models, training
from forge_sweep.bundle import GOLDEN_TOLERANCE, network
from forge_sweep.checks.findings import Finding
from forge_sweep.experiment import Code, Params
from forge_sweep.preprocessing import Spec
from forge_sweep.task import Task

if TYPE_CHECKING:
    import keras

CLASS_LOSS_FACTOR = 3.0
"""How far, as a factor, the loss of an untrained classifier may lie from chance. With He initialisation and scaled
features its logits have a variance of about 2, which lifts the loss by a third."""

REGRESSION_LOSS_FACTOR = 10.0
"""The same for regression, where the variance of the untrained output is added to that of the target in full."""

CAPTURED = 3
"""Training rows in an array of a user's own module that are no coincidence."""


def tried(
    builder: str | Code,
    spec: Spec,
    task: Task,
    params: Params,
    few: training.TrainingData,
    *,
    subject: str,
    metric: str,
    seed: int = 0,
) -> Iterator[Finding]:
    """Build a model, look at it, and train it for one step.

    Findings, by code:

    - ``model-fails`` (error, warning where it diverged): it cannot be built or trained.
    - ``monitor-missing`` (error): ``metric`` is not in the logs.
    - of your own model: ``random-predictions`` (error): asked twice it predicts two things, as augmentation that is
      active at prediction does; ``output-activation`` (error): it gives no probabilities, or no free numbers for
      regression; ``nothing-trains`` (error) and ``weights-unchanged`` (warning): a step changes no weight, or not
      these; ``model-not-saved`` (error): saved and loaded it fails or predicts something else; ``rows-captured``
      (error): it holds rows of the training data.
    - ``initial-loss`` (warning): the loss of an untrained model is far from chance
      (https://karpathy.github.io/2019/04/25/recipe/, "verify loss @ init").

    Args:
        builder: `Experiment.builder`.
        spec: the inputs.
        task: what is predicted.
        params: hyperparameters.
        few: the rows, a few hundred.
        subject: of the findings, such as ``smallest model``.
        metric: the objective.
        seed: of the initial weights.
    """
    rows = len(few.y_train)
    once = training.FitSpec(epochs=1, patience=1, batch_size=rows, monitor="val_loss", direction="minimize")
    try:
        training.seed_everything(seed)
        model = models.build(builder, spec, task, params)
        model.run_eagerly = True  # one step is done long before a graph would be traced
        yield from _initial_loss(model, task, few, subject)
        if isinstance(builder, Code):
            own = list(_own_model(model, task, few, builder))
            yield from own
            if any(finding.code == "random-predictions" for finding in own):
                return  # what is compared below would differ as well
        before = [np.array(weight) for weight in model.trainable_weights]
        if isinstance(builder, Code) and not before:
            yield from _changed(model, before, subject)
            return
        (logs,) = training.fit(model, task, few, once, lambda epoch, logs: False).history
        if isinstance(builder, Code):
            yield from _changed(model, before, subject)
            yield from _saved(model, few, builder)
        if metric not in logs:
            seen, fix = f"{metric} is not among the logs: {', '.join(logs)}", "set objective.metric to one of the logs"
            yield Finding("error", "monitor-missing", "objective.metric", seen, "a metric that training logs", fix)
    except Exception as error:
        failure = training.classify(error)
        # A corner may well diverge, such as the one with the highest learning rate: the sweep drops it as it goes.
        severity: Literal["warning", "error"] = "warning" if failure.failure == "diverged" else "error"
        seen, fix = f"{failure.failure}: {failure.message}", failure.hint or "narrow [model.search] or fix the model"
        yield Finding(severity, "model-fails", subject, seen, "a model that can be built and trained for one step", fix)


def _own_model(model: keras.Model, task: Task, few: training.TrainingData, code: Code) -> Iterator[Finding]:
    """Whether the outputs of a user's own model are what the task scores, and whether it knows the rows already."""
    last = model.layers[-1] if model.layers else None
    name = getattr(getattr(last, "activation", None), "__name__", "")
    found = training.outputs(model, few.x_train).astype(np.float64)
    if (off := np.abs(training.outputs(model, few.x_train) - found).max()) > GOLDEN_TOLERANCE:
        drawing = ", ".join(layer.name for layer in model.layers if hasattr(layer, "seed_generator"))
        seen = f"two predictions of the same rows are {off:.3g} apart{f' ({drawing})' if drawing else ''}"
        fix = "call these layers without training=True; a call of your own hands its argument training on"
        yield Finding(
            "error", "random-predictions", code.builder, seen, "augmentation and dropout in training only", fix
        )
        return
    seen = f'the last layer has activation "{name}"' if name else "the outputs"
    sums, wanted = found.sum(axis=1), ""
    if task.kind == "regression" or task.from_logits:
        if name not in ("", "linear"):
            wanted = "linear outputs" + (" (targets are standardised, half of them below 0)" * (not task.from_logits))
    elif name == "softmax" and task.kind in ("binary", "multilabel"):
        wanted = f"sigmoid for {task.kind}" + (": softmax over one unit is always 1" * (task.units == 1))
    elif found.min() < -1e-6 or found.max() > 1 + 1e-6:
        seen, wanted = (
            f"{seen}: values from {found.min():.3g} to {found.max():.3g}",
            f"{task.activation}: probabilities",
        )
    elif task.kind == "multiclass" and np.abs(sums - 1).max() > 1e-3:
        seen, wanted = f"{seen}: rows that sum to {sums.min():.3g} to {sums.max():.3g}", "softmax: rows that sum to 1"
    if wanted:
        fix = "end the model with heads.only.output(hidden)"
        yield Finding("error", "output-activation", code.builder, seen, wanted, fix)
    known = {row.tobytes() for values in training.leaves(few.x_train) for row in _rows(values)}
    held = {f"weight {weight.path}": np.array(weight) for weight in model.weights}
    held |= {f"{code.module}.{name}": value for name, value in models.arrays_of(code).items()}
    for where, values in held.items():
        common = sum(row.tobytes() in known for row in _rows(values))
        if common >= CAPTURED:
            seen = f"{where} holds {common} of {len(few.y_train)} training rows that were looked for"
            expected, fix = "a model that learns from rows only as it is trained", "remove the array from the module"
            yield Finding("error", "rows-captured", code.builder, seen, expected, fix)


def _rows(values: np.ndarray) -> np.ndarray:
    """The rows of an array of numbers, as float32; none where a row is one number."""
    wide = values.ndim > 1 and len(values) and values[0].size > 1 and values.dtype.kind in "fiu"
    return np.ascontiguousarray(values, dtype=np.float32) if wide else np.empty((0, 1), np.float32)


def _changed(model: keras.Model, before: Sequence[np.ndarray], subject: str) -> Iterator[Finding]:
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


def _saved(model: keras.Model, few: training.TrainingData, code: Code) -> Iterator[Finding]:
    """Whether a user's own model predicts the same once it was saved and loaded."""
    seen = ""
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(folder) / "model.keras"
            model.save(path)
            again = network.load(path, code, trust=True)
        off = np.abs(training.outputs(again, few.x_train) - training.outputs(model, few.x_train)).max()
        if not off <= GOLDEN_TOLERANCE:
            seen = f"saved and loaded it predicts something else, {off:.3g} off"
    except Exception as error:
        seen = f"it cannot be loaded again: {training.classify(error).message}"
    if seen:
        expected = "a model that Keras saves and loads"
        fix = "give own layers, at the top of their module, a get_config with every argument of __init__"
        if "not trusted" in seen:
            fix = "use other layers of Keras: bundles take those that compute and do nothing else (docs/security.md)"
        yield Finding("error", "model-not-saved", code.builder, seen, expected, fix)


def _initial_loss(model: keras.Model, task: Task, few: training.TrainingData, subject: str) -> Iterator[Finding]:
    """Whether the untrained model's loss is near that of a model that knows nothing."""
    loss = training.data_loss(model, few.y_train, training.outputs(model, few.x_train))
    if task.kind == "multiclass":
        expected, formula = math.log(task.units), f"-log(1/{task.units}) for {task.units} classes"
    elif task.loss == "mse":
        expected, formula = 1.0, "variance of standardised targets"
    elif task.loss == "mae":
        expected, formula = math.sqrt(2 / math.pi), "mean |z| of a normal target"
    else:
        expected, formula = math.log(2), "log 2 for a yes or no"
    factor = REGRESSION_LOSS_FACTOR if task.kind == "regression" else CLASS_LOSS_FACTOR
    if not expected / factor <= loss <= expected * factor:
        wanted = f"about {expected:.3g} ({formula}), within a factor of {factor:g}"
        fix = "scale the features (preprocessing.scaler), and check the loss and the head under [model]"
        yield Finding("warning", "initial-loss", subject, f"loss {loss:.3g} before training", wanted, fix)
