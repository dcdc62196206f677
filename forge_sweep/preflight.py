"""Pre-flight: the smallest and the largest model of the search space, built and trained for one step on real rows.

What would otherwise show after an hour, in the one trial that drew the corner of the space, shows before the first.
"""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from forge_sweep import environment, exports, models, training, trial
from forge_sweep.bundle import GOLDEN_TOLERANCE, Bundle, choose_golden, network
from forge_sweep.checks.findings import Finding, errors
from forge_sweep.errors import BundleError, ForgeSweepError, TrialFailed
from forge_sweep.experiment import Code, Dimension, Experiment, Params, Scalar
from forge_sweep.preprocessing import Schema, Spec
from forge_sweep.sources import Dataset
from forge_sweep.task import Task
from forge_sweep.trial import Prepared, Recipe

if TYPE_CHECKING:
    import keras

Which = Literal["smallest", "largest"]
WHICH: tuple[Which, ...] = ("smallest", "largest")

ROWS = 256
"""Rows of train and of validation that the corner models see."""

CLASS_LOSS_FACTOR = 3.0
"""How far, as a factor, the loss of an untrained classifier may lie from chance. With He initialisation and scaled
features its logits have a variance of about 2, which lifts the loss by a third."""

REGRESSION_LOSS_FACTOR = 10.0
"""The same for regression, where the variance of the untrained output is added to that of the target in full."""

CAPTURED = 3
"""Training rows in an array of a user's own module that are no coincidence."""

COPIES = 4
"""Float32 copies of every parameter: the weight, its gradient, and two slots of Adam's kind."""

WIDE_COPIES = 4
"""Float64 copies of numeric columns while they are imputed and scaled: 28 to 48 bytes per number of train, measured."""

SMALL_FIRST = {"shape": ("taper", "constant")}
"""Names whose order says which gives the smaller model."""


@dataclass(frozen=True, eq=False)
class Outline:
    """What is known of the data before a matrix is made of it; ``rows`` are those of train and validation."""

    task: Task
    rows: int
    n_numbers: int
    spec: Spec
    y_valid: np.ndarray


def preflight(experiment: Experiment, dataset: Dataset) -> tuple[Finding, ...]:
    """Check that every trial of the sweep can be trained.

    Findings, by code:

    - ``memory`` (error or info): what data and largest model need against what is available, before either is made.
      Where the smallest model does not fit either, the data are not prepared and no model is tried.
    - ``scaler-fails`` (error): a scaler cannot be fitted, or gives numbers that are not finite; the models are tried
      with the first one that works.
    - ``monitor-missing``, ``monitor-undefined`` (error): the objective is not in the logs, or has no value on these
      validation rows whatever a model predicts, or leaves a class out. ``metric-undefined`` (warning): so does another.
    - ``model-fails`` (error, warning where it diverged): a corner model cannot be built or trained.
    - of your own model: ``output-activation`` (error): it gives no probabilities, or no free numbers for regression;
      ``nothing-trains`` (error) and ``weights-unchanged`` (warning): a step changes no weight, or not these;
      ``model-not-saved`` (error): saved and loaded it fails or predicts something else; ``rows-captured`` (error): it
      holds rows of the training data.
    - ``initial-loss`` (warning): the loss of an untrained model is far from chance
      (https://karpathy.github.io/2019/04/25/recipe/, "verify loss @ init").
    - ``in-model-fails`` (error): with ``model.preprocessing = "in_model"``, the smallest network cannot be saved with
      its preprocessing inside, or gives other scores then.
    - ``gpu-unused`` (warning): the machine has a GPU and the backend does not use it.

    The backend is selected before; the test split is not touched.

    Raises:
        DataError: the targets do not fit the task.
    """
    outline, available = _outline(experiment, dataset), environment.memory().available
    try:
        need = {which: _need(experiment, outline, which) for which in WHICH}
    except TrialFailed as failure:  # of the user's own function: that of a package's builder is arithmetic
        seen, fix = f"{failure.failure}: {failure.message}", failure.hint or f"correct {experiment.model.builder}"
        return (Finding("error", "model-fails", "model.builder", seen, "a model that fits the task", fix),)
    fitting = [which for which in WHICH if sum(need[which].values()) <= available]
    tried = _try(experiment, dataset, fitting) if fitting else ()
    memory = _memory(need["largest"], available)
    return (memory, *_defined(experiment, outline), *tried, *_gpu(experiment))


def corner_params(experiment: Experiment, which: Which) -> Params:
    """The hyperparameters of the smallest or the largest model of the search space.

    Numbers and booleans take the least or the greatest value of their range or choices, ``shape`` the narrower or the
    wider, other names the first or the last choice; fixed values stay. A conditional hyperparameter is there where its
    condition holds.
    """
    params: Params = {}
    for name, value in experiment.space.items():
        if not isinstance(value, Dimension):
            params[name] = value
        elif value.active(params):
            ordered: Sequence[Scalar] = value.extremes()
            if name in SMALL_FIRST:
                ordered = [choice for choice in SMALL_FIRST[name] if choice in ordered] or ordered
            elif not any(isinstance(choice, str) for choice in ordered):
                ordered = sorted(ordered, key=float)
            params[name] = ordered[0] if which == "smallest" else ordered[-1]
    return params


def _outline(experiment: Experiment, dataset: Dataset) -> Outline:
    """What the arrays will be like, from targets, categories and missing values alone."""
    train, recipe = dataset.train, Recipe.of(experiment, "none")
    task = recipe.learn_task(train.targets)
    # Which columns come out is up to the schema alone, so that fitting on no rows gives them all.
    schema = Schema.learn(train.features, dataset.categorical)
    spec = recipe.fit(train.features.iloc[:0], schema).spec
    n_numbers = sum(column.kind != "categorical" for column in schema.tabular)
    rows = len(train.features) + len(dataset.valid.features)
    return Outline(task, rows, n_numbers, spec, task.encode(dataset.valid.targets))


def _try(experiment: Experiment, dataset: Dataset, fitting: Sequence[Which]) -> tuple[Finding, ...]:
    """Prepare the data with every scaler and train these corner models with the first scaler that works.

    Preparing is not lost: `trial.prepare` keeps the arrays for the trials.
    """
    works: list[Prepared] = []
    findings: list[Finding] = []
    for scaler in experiment.scalers:
        try:
            works.append(trial.prepare(dataset, Recipe.of(experiment, scaler)))
        except Exception as error:
            failure = training.classify(error)
            seen = f"{failure.failure}: {failure.message}"
            fix = failure.hint or "use another scaler under [preprocessing] or [model.search]"
            subject, expected = f'scaler "{scaler}"', "finite numbers for all rows"
            findings.append(Finding("error", "scaler-fails", subject, seen, expected, fix))
    if works:
        whole = works[0].data
        train, valid = _spread(len(whole.y_train)), _spread(len(whole.y_valid))
        few = training.TrainingData(
            x_train=training.each(lambda values: values[train], whole.x_train),
            y_train=whole.y_train[train],
            x_valid=training.each(lambda values: values[valid], whole.x_valid),
            y_valid=whole.y_valid[valid],
        )
        findings += [finding for which in fitting for finding in _corner(experiment, works[0], few, which)]
        if experiment.model.preprocessing == "in_model" and not errors(findings):
            findings += _inside(experiment, dataset, works[0])
    return tuple(dict.fromkeys(findings))


def _spread(rows: int) -> np.ndarray:
    """Positions of at most `ROWS` rows, spread evenly: files are often sorted by class or time."""
    return np.linspace(0, rows - 1, min(rows, ROWS)).astype(np.int64)


def _corner(experiment: Experiment, prepared: Prepared, few: training.TrainingData, which: Which) -> Iterator[Finding]:
    """Build a corner model, look at its loss and train one step."""
    task, params, metric = prepared.task, corner_params(experiment, which), experiment.objective.metric
    subject = f"{which} model ({', '.join(f'{name}={params[name]}' for name in ('width', 'depth') if name in params)})"
    rows = len(few.y_train)
    spec = training.FitSpec(epochs=1, patience=1, batch_size=rows, monitor="val_loss", direction="minimize")
    try:
        training.seed_everything(experiment.seed)
        model = models.build(experiment.builder, prepared.spec, task, params)
        model.run_eagerly = True  # one step is done long before a graph would be traced
        yield from _initial_loss(model, task, few, subject)
        if experiment.code is not None:
            yield from own_model(model, task, few, experiment.code)
        before = [np.array(weight) for weight in model.trainable_weights]
        if experiment.code is not None and not before:
            yield from _changed(model, before, subject)
            return
        (logs,) = training.fit(model, task, few, spec, lambda epoch, logs: False).history
        if experiment.code is not None:
            yield from _changed(model, before, subject)
            yield from _saved(model, few, experiment.code)
        if metric not in logs:
            seen, fix = f"{metric} is not among the logs: {', '.join(logs)}", "set objective.metric to one of the logs"
            yield Finding("error", "monitor-missing", "objective.metric", seen, "a metric that training logs", fix)
    except Exception as error:
        failure = training.classify(error)
        # A corner may well diverge, such as the one with the highest learning rate: the sweep drops it as it goes.
        severity: Literal["warning", "error"] = "warning" if failure.failure == "diverged" else "error"
        seen, fix = f"{failure.failure}: {failure.message}", failure.hint or "narrow [model.search] or fix the model"
        yield Finding(severity, "model-fails", subject, seen, "a model that can be built and trained for one step", fix)


def own_model(model: keras.Model, task: Task, few: training.TrainingData, code: Code) -> Iterator[Finding]:
    """Whether the outputs of a user's own model are what the task scores, and whether it knows the rows already."""
    last = model.layers[-1] if model.layers else None
    name = getattr(getattr(last, "activation", None), "__name__", "")
    found = training.outputs(model, few.x_train).astype(np.float64)
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
    """The rows of a table of numbers, as float32; of anything else none."""
    wide = values.ndim == 2 and values.shape[1] > 1 and values.dtype.kind in "fiu"
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
        yield Finding("error", "model-not-saved", code.builder, seen, expected, fix)


def _inside(experiment: Experiment, dataset: Dataset, prepared: Prepared) -> Iterator[Finding]:
    """Whether a network can be saved with its preprocessing inside: what the winner will be, before it is trained."""
    params = corner_params(experiment, "smallest")
    training.seed_everything(experiment.seed)
    model = models.build(experiment.builder, prepared.spec, prepared.task, params)
    bundle = Bundle(model, prepared.preprocessor, prepared.task, 0.5, {"experiment": experiment.resolved()})
    try:
        with tempfile.TemporaryDirectory() as folder:
            bundle.save(Path(folder) / "bundle", choose_golden(dataset.train.features), raw=exports.write_raw)
    except Exception as error:
        known = error if isinstance(error, ForgeSweepError) else BundleError(f"{type(error).__name__}: {error}")
        expected = "a Keras file that takes raw columns and gives the scores of the bundle"
        fix = known.hint or 'set model.preprocessing = "bundle"'
        yield Finding("error", "in-model-fails", "model.preprocessing", known.message, expected, fix)


def _defined(experiment: Experiment, outline: Outline) -> Iterator[Finding]:
    """Whether the objective, and every other metric, has a value on these rows, whatever a model predicts."""
    objective, rows = experiment.objective.metric, len(outline.y_valid)
    for gap in outline.task.gaps(outline.y_valid):
        if objective.removeprefix("val_") in gap.metrics:
            seen = f"{objective} is not defined on the {rows} validation rows: {gap.seen}"
            expected = "validation rows that define it" if gap.whole else "validation rows of every class and label"
            fix = (
                "give validation more rows under [data.split] (stratify keeps shares), or set another objective.metric"
            )
            yield Finding("error", "monitor-undefined", "objective.metric", seen, expected, fix)
        others = [f"val_{name}" for name in gap.metrics if f"val_{name}" != objective]
        if others:
            what = "have no value and are not logged" if gap.whole else "leave that out of their averages"
            seen = f"{gap.seen}; {', '.join(others)} {what}"
            expected = "validation rows that define every metric"
            fix = "give validation more rows under [data.split], or do not go by these metrics"
            yield Finding("warning", "metric-undefined", "validation", seen, expected, fix)


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


def _need(experiment: Experiment, outline: Outline, which: Which) -> dict[str, int]:
    """Bytes that a sweep with only this corner model takes from now on, by what takes them; an upper bound.

    One float32 matrix per scaler stays in memory (`trial.prepare`), and the backend copies the one it trains on.
    """
    params = corner_params(experiment, which)
    parameters, values = models.size(experiment.builder, outline.spec, outline.task, params)
    rows, numbers = outline.rows, outline.n_numbers
    features = sum(each.size for each in outline.spec.values())
    matrices, batch_size = len(experiment.scalers) + 1, int(params["batch_size"])
    return {
        f"{parameters:,} parameters x {COPIES}": 4 * COPIES * parameters,
        f"{rows:,} rows x {features:,} features x {matrices}": 4 * matrices * rows * features,
        f"{rows:,} rows x {numbers:,} numbers x {WIDE_COPIES} while they are scaled": 8 * WIDE_COPIES * rows * numbers,
        f"{values:,} activations x {batch_size:,} rows x 2": 4 * 2 * values * batch_size,
    }


def _memory(need: dict[str, int], available: int) -> Finding:
    """What the largest model and the data take, against what is available."""
    parts = "; ".join(f"{name}: {_size(size)}" for name, size in need.items())
    return Finding(
        "error" if sum(need.values()) > available else "info",
        "memory",
        "largest model",
        f"needs about {_size(sum(need.values()))} ({parts})",
        f"at most the {_size(available)} available",
        "lower width, depth or batch_size under [model.search] or preprocessing.max_categories, use fewer rows, or "
        "give the machine more memory",
    )


def _size(size: int) -> str:
    """Bytes for people, such as ``1.5 GB``."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def _gpu(experiment: Experiment) -> Iterator[Finding]:
    """Whether a GPU of this machine lies idle, unless it was hidden on purpose."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return
    gpus = environment.capture(experiment.root, experiment.backend).gpus
    if gpus and not training.accelerators():
        seen = f"{len(gpus)} GPU ({gpus[0]}), but {experiment.backend} computes on the CPU"
        install = {
            "tensorflow": "in a checkout of forge-sweep pip install '.[gpu]'",
            "jax": "pip install 'jax[cuda13]'",
        }
        how = install.get(experiment.backend, "install a CUDA build of PyTorch that its driver can run")
        fix = f"{how}, or set CUDA_VISIBLE_DEVICES=-1 to mean it"
        yield Finding("warning", "gpu-unused", "backend", seen, "a backend that uses it", fix)
