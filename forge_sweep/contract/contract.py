"""The contract of a network: what a builder gives is built, looked at, and trained for one step on a few real rows.

`preflight` holds the corners of the search space to it, and `forge_sweep.testing.BuilderContract` a user's own builder.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from forge_sweep import models, training
from forge_sweep.bundle import GOLDEN_TOLERANCE, network
from forge_sweep.checks.findings import Finding, errors
from forge_sweep.contract import answers, losses, step, structure
from forge_sweep.contract.alike import optimizer_ignored, repeated, unused
from forge_sweep.contract.held import captured
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

ENDING = frozenset(
    {"not-repeatable", "random-predictions", "batch-dependent", "output-activation", "nothing-trains"}
    | {"wrong-loss", "loss-logits"}
)
"""Codes of what is so wrong that training for a step says nothing else."""


def tried(
    builder: str | Code,
    spec: Spec,
    task: Task,
    params: Params,
    few: training.TrainingData,
    raw: pd.DataFrame,
    *,
    subject: str,
    metric: str,
    steps: int,
    seed: int = 0,
) -> Iterator[Finding]:
    """Build a model, look at it, and train it for one step.

    Findings, by code:

    - ``model-fails`` (error, warning where it diverged): it cannot be built or trained.
    - ``monitor-missing`` (error): ``metric`` is not in the logs.
    - of your own model, errors but for one: ``output-shape``: its outputs are not those of the heads;
      ``random-predictions``: asked twice it predicts two things, as augmentation that is active at prediction does;
      ``output-activation``: it gives no probabilities, or no free numbers for regression; ``nothing-trains`` and
      ``weights-unchanged`` (warning): a step changes no weight, or not these; ``model-not-saved``: saved and loaded it
      fails or predicts something else; ``rows-captured``: it holds rows of the training data, prepared or raw;
      ``hyperparameter-ignored``: the optimizer that it was compiled with does not go by what the trial asks for;
      ``not-repeatable``: called twice with the same arguments, the function gives the same layers, or other ones.
    - ``input-unused`` (warning): an input of your own model leads to no output.
    - those of `answers`, `structure` and `losses` on your own model, and of `step` on any; docs/models.md lists them.
    - ``initial-loss`` (warning, error where it is not finite in your own model): the loss of an untrained model is far
      from chance
      (https://karpathy.github.io/2019/04/25/recipe/, "verify loss @ init").

    Args:
        builder: `Experiment.builder`.
        spec: the inputs.
        task: what is predicted.
        params: hyperparameters.
        few: the rows, a few hundred.
        raw: the columns of numbers of the same train rows before preprocessing.
        subject: of the findings, such as ``smallest model``.
        metric: the objective.
        steps: gradient steps of a whole training.
        seed: of the initial weights.
    """
    once = training.FitSpec(epochs=1, patience=1, batch_size=len(few.y_train), monitor="val_loss", direction="minimize")
    try:
        training.seed_everything(seed)
        model = models.build(builder, spec, task, params)
        model.run_eagerly = True  # one step is done long before a graph would be traced
        before, known = [np.array(weight) for weight in model.trainable_weights], set[str]()
        if isinstance(builder, Code):
            yield from (looked := [*_looked_at(model, builder, spec, task, params, few, raw, subject)])
            known = {each.code for each in looked}
            if known & ENDING:  # training it would say the same in other words
                return
        outputs = training.outputs(model, few.x_train)
        loss = training.data_loss(model, task, few.y_train, outputs)
        beginning = [*_initial_loss(task, few, outputs, loss, subject, own=isinstance(builder, Code))]
        yield from beginning
        if errors(beginning):
            return
        yield from (scheduled := [*step.scheduled(model, steps, subject)])
        if errors(scheduled):
            return
        yield from step.penalised(model, task, loss, params, subject)
        yield from (halved := [*step.halved(model, subject)])
        (logs,) = training.fit(model, task, few, once, lambda epoch, logs: False).history
        after = training.data_loss(model, task, few.y_train, training.outputs(model, few.x_train))
        yield from (paced := [*step.paced(model, before, (loss, after), steps, params)])
        if isinstance(builder, Code):
            began = {weight.path: was for weight, was in zip(model.trainable_weights, before, strict=True)}
            yield from (alike := [*structure.alike(model, began, subject)])
            stuck = [*step.changed(model, before, subject)]
            explained = "dead-units" in known or alike or halved or any(each.code != "rate-too-high" for each in paced)
            yield from (each for each in stuck if each.severity == "error" or not explained)
            if "untracked-weights" not in known:
                yield from _saved(model, few, builder)
        if metric not in logs:
            seen, fix = f"{metric} is not among the logs: {', '.join(logs)}", "set objective.metric to one of the logs"
            yield Finding("error", "monitor-missing", "objective.metric", seen, "a metric that training logs", fix)
    except Exception as error:
        yield failed(error, subject, builder if isinstance(builder, Code) else None)


def _looked_at(
    model: keras.Model,
    code: Code,
    spec: Spec,
    task: Task,
    params: Params,
    few: training.TrainingData,
    raw: pd.DataFrame,
    subject: str,
) -> Iterator[Finding]:
    """What is to be seen of a user's own model before it is trained."""
    again = models.build(code, spec, task, params)
    if found := [*repeated(model, again, code)]:  # what else is seen of it holds for this call only
        yield from found
        return
    yield from captured(model, spec, few, raw, code)
    yield from optimizer_ignored(model, code, spec, task, params)
    yield from unused(model, spec, code)
    yield from (lost := [*structure.untracked(model, code)])
    wrong = [*answers.misfits(model, task, few, code)]
    if not (wrong or model.trainable_weights):
        wrong = [*step.changed(model, [], subject)]
    if wrong:
        yield from wrong
        if not lost and wrong[0].code != "random-predictions":  # else what is loaded would differ as well
            yield from _saved(model, few, code)
        return
    yield from (quiet := [*structure.silent(model, few, subject)])
    yield from answers.symptoms(model, task, few, spec, code, dead=bool(quiet))
    yield from structure.frozen(model, again, code)
    yield from structure.wired(model, code, params)
    yield from losses.of_loss(model, task, few, code, params)


def failed(error: Exception, subject: str, code: Code | None = None) -> Finding:
    """What ended the building or the training of a model, as a finding; ``code`` is that of a user's own function."""
    failure = training.classify(error)
    # A corner may well diverge, such as the one with the highest learning rate: the sweep drops it as it goes.
    severity: Literal["warning", "error"] = "warning" if failure.failure == "diverged" else "error"
    seen, fix = f"{failure.failure}: {failure.message}", failure.hint
    if code is not None and failure.failure == "out-of-memory":
        sizes = [name for name, each in code.parameters.items() if each.type == "int" and name != "batch_size"]
        fix = f"lower {', '.join([*sizes, 'batch_size'])} under [model.search]; {models.cause(error)}"
    elif not fix:
        fix = "correct the function, or narrow [model.search] where it fails in this corner only"
        fix = fix if code else "narrow [model.search] or fix the model"
    if isinstance(error, models.WrongOutput):
        return Finding(severity, "output-shape", subject, failure.message, "outputs that the heads score", fix)
    return Finding(severity, "model-fails", subject, seen, "a model that can be built and trained for one step", fix)


def _saved(model: keras.Model, few: training.TrainingData, code: Code) -> Iterator[Finding]:
    """Whether a user's own model predicts the same once it was saved and loaded."""
    seen = ""
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(folder) / "model.keras"
            network.save(model, path)
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


def _initial_loss(
    task: Task, few: training.TrainingData, outputs: np.ndarray, loss: float, subject: str, *, own: bool
) -> Iterator[Finding]:
    """Whether the untrained model's loss is near that of a model that knows nothing."""
    expected, formula = task.chance()
    of_classes = all(head.kind != "regression" for head in task.heads.values())
    factor = CLASS_LOSS_FACTOR if of_classes else REGRESSION_LOSS_FACTOR
    seen, wanted = (
        f"loss {loss:.3g} before training",
        f"about {expected:.3g} ({formula}), within a factor of {factor:g}",
    )
    if own and not math.isfinite(loss):
        apart = task.apart(few.y_train, outputs)
        wrong = [prefix.removesuffix("_") or "output" for prefix, _, _, found in apart if not np.isfinite(found).all()]
        seen += (
            f": not finite are the outputs of the head {', '.join(wrong)}" if wrong else " of outputs that are finite"
        )
        fix = (
            "look in the model for a logarithm, a root, a division or an exponential of what it cannot take"
            if wrong
            else "look in the loss that the function compiles its model with for a division by 0 or a logarithm of 0"
        )
        yield Finding("error", "initial-loss", subject, seen, wanted, fix)
    elif not expected / factor <= loss <= expected * factor:
        fix = "scale the features (preprocessing.scaler), and check the loss and the head under [model]"
        yield Finding("warning", "initial-loss", subject, seen, wanted, fix)
