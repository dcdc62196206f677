"""Pre-flight: the smallest and the largest model of the search space, built and trained for one step on real rows.

What would otherwise show after an hour, in the one trial that drew the corner of the space, shows before the first: a
model that cannot be built, a monitor that does not exist, a loss that starts where it should not, too little memory.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from forge_sweep import environment, models, training, trial
from forge_sweep.bundle import Bundle, choose_golden
from forge_sweep.checks.findings import Finding, errors
from forge_sweep.errors import BundleError, ForgeSweepError, TrialFailed
from forge_sweep.experiment import Dimension, Experiment, Params, Scalar
from forge_sweep.preprocessing import Schema
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

COPIES = 4
"""Float32 copies of every parameter: the weight, its gradient, and two slots of Adam's kind."""

WIDE_COPIES = 4
"""Float64 copies of numeric columns while they are imputed and scaled: 28 to 48 bytes per number of train, measured."""

SMALL_FIRST = {"shape": ("taper", "constant")}
"""Names whose order says which gives the smaller model."""


@dataclass(frozen=True, eq=False)
class Outline:
    """What is known of the data before a matrix is made of it.

    Attributes:
        task: learned on train.
        rows: rows of train and validation.
        n_numbers: numeric and boolean columns.
        n_features: columns of the preprocessed features.
        y_valid: all validation targets, encoded.
    """

    task: Task
    rows: int
    n_numbers: int
    n_features: int
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
    - ``initial-loss`` (warning): the loss of an untrained model is far from chance, which is -log(1/N) for N classes
      (https://karpathy.github.io/2019/04/25/recipe/, "verify loss @ init").
    - ``in-model-fails`` (error): with ``model.preprocessing = "in_model"``, the smallest network cannot be saved with
      its preprocessing inside, or gives other scores then.
    - ``gpu-unused`` (warning): the machine has a GPU and the backend does not use it.

    Args:
        experiment: the experiment, with ``training.select_backend`` called for it.
        dataset: its rows; the test split is not touched.

    Raises:
        DataError: the targets do not fit the task.
    """
    outline, available = _outline(experiment, dataset), environment.memory().available
    need = {which: _need(experiment, outline, which) for which in WHICH}
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
            params[name] = _extreme(name, value.extremes(), which)
    return params


def _extreme(name: str, values: tuple[Scalar, ...], which: Which) -> Scalar:
    """The value that gives the smallest or the largest model."""
    ordered = values
    if name in SMALL_FIRST:
        ordered = tuple(sorted(values, key=lambda value: SMALL_FIRST[name].index(str(value))))
    elif not any(isinstance(value, str) for value in values):
        ordered = tuple(sorted(values, key=float))
    return ordered[0] if which == "smallest" else ordered[-1]


def _outline(experiment: Experiment, dataset: Dataset) -> Outline:
    """What the arrays will be like, from targets, categories and missing values alone."""
    train, recipe = dataset.train, Recipe.of(experiment, "none")
    task = recipe.learn_task(train.targets)
    # Which columns come out is up to the schema alone, so that fitting on no rows gives them all.
    schema = Schema.learn(train.features, dataset.categorical)
    names = recipe.fit(train.features.iloc[:0], schema).output_names
    n_numbers = sum(column.kind != "categorical" for column in schema.columns)
    rows = len(train.features) + len(dataset.valid.features)
    return Outline(task, rows, n_numbers, len(names), task.encode(dataset.valid.targets))


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
            findings.append(_scaler_fails(scaler, training.classify(error)))
    if works:
        few = _few(works[0].data)
        findings += [finding for which in fitting for finding in _corner(experiment, works[0], few, which)]
        if experiment.model.preprocessing == "in_model" and not errors(findings):
            findings += _inside(experiment, dataset, works[0])
    return tuple(dict.fromkeys(findings))


def _scaler_fails(scaler: str, failure: TrialFailed) -> Finding:
    seen, expected = f"{failure.failure}: {failure.message}", "finite numbers for all rows"
    fix = failure.hint or "use another scaler under [preprocessing] or [model.search]"
    return Finding("error", "scaler-fails", f'scaler "{scaler}"', seen, expected, fix)


def _few(whole: training.TrainingData) -> training.TrainingData:
    """At most `ROWS` rows of each split."""
    train, valid = _spread(len(whole.y_train)), _spread(len(whole.y_valid))
    return training.TrainingData(
        x_train=training.each(lambda values: values[train], whole.x_train),
        y_train=whole.y_train[train],
        x_valid=training.each(lambda values: values[valid], whole.x_valid),
        y_valid=whole.y_valid[valid],
    )


def _spread(rows: int) -> np.ndarray:
    """Positions of at most `ROWS` rows, spread evenly: files are often sorted by class or time."""
    return np.linspace(0, rows - 1, min(rows, ROWS)).astype(np.int64)


def _corner(experiment: Experiment, prepared: Prepared, few: training.TrainingData, which: Which) -> Iterator[Finding]:
    """Build a corner model, look at its loss and train one step."""
    task, params = prepared.task, corner_params(experiment, which)
    subject = f"{which} model ({', '.join(f'{name}={params[name]}' for name in ('width', 'depth') if name in params)})"
    try:
        training.seed_everything(experiment.seed)
        model = models.build(experiment.model.builder, prepared.n_features, task, params)
        model.run_eagerly = True  # one step is done long before a graph would be traced
        yield from _initial_loss(model, task, few, subject)
        yield from _monitor(experiment.objective.metric, _logs_of_one_step(model, task, few))
    except Exception as error:
        failure = training.classify(error)
        # A corner may well diverge, such as the one with the highest learning rate: the sweep drops it as it goes.
        severity: Literal["warning", "error"] = "warning" if failure.failure == "diverged" else "error"
        seen, fix = f"{failure.failure}: {failure.message}", failure.hint or "narrow [model.search] or mend the model"
        yield Finding(severity, "model-fails", subject, seen, "a model that can be built and trained for one step", fix)


def _inside(experiment: Experiment, dataset: Dataset, prepared: Prepared) -> Iterator[Finding]:
    """Whether a network can be saved with its preprocessing inside: what the winner will be, before it is trained."""
    params = corner_params(experiment, "smallest")
    training.seed_everything(experiment.seed)
    model = models.build(experiment.model.builder, prepared.n_features, prepared.task, params)
    bundle = Bundle(model, prepared.preprocessor, prepared.task, 0.5, {"experiment": experiment.resolved()})
    try:
        with tempfile.TemporaryDirectory() as folder:
            bundle.save(Path(folder) / "bundle", choose_golden(dataset.train.features), raw=True)
    except Exception as error:
        known = error if isinstance(error, ForgeSweepError) else BundleError(f"{type(error).__name__}: {error}")
        expected = "a Keras file that takes raw columns and gives the scores of the bundle"
        fix = known.hint or 'set model.preprocessing = "bundle"'
        yield Finding("error", "in-model-fails", "model.preprocessing", known.message, expected, fix)


def _logs_of_one_step(model: keras.Model, task: Task, few: training.TrainingData) -> dict[str, float]:
    """Train one step and return what the callbacks saw."""
    seen: dict[str, float] = {}

    def keep(epoch: int, logs: dict[str, float]) -> bool:
        seen.update(logs)
        return False

    rows = len(few.y_train)
    spec = training.FitSpec(epochs=1, patience=1, batch_size=rows, monitor="val_loss", direction="minimize")
    training.fit(model, task, few, spec, keep)
    return seen


def _monitor(metric: str, logs: dict[str, float]) -> Iterator[Finding]:
    """Whether the objective is among the logs."""
    if metric not in logs:
        seen = f"{metric} is not among the logs: {', '.join(logs)}"
        fix = "set objective.metric to one of the logs"
        yield Finding("error", "monitor-missing", "objective.metric", seen, "a metric that training logs", fix)


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
    """Whether the untrained model's loss is near that of chance."""
    found = training.outputs(model, few.x_train)
    loss = training.data_loss(model, few.y_train, found)
    expected, formula = _chance(task)
    factor = REGRESSION_LOSS_FACTOR if task.kind == "regression" else CLASS_LOSS_FACTOR
    if not expected / factor <= loss <= expected * factor:
        wanted = f"about {expected:.3g} ({formula}), within a factor of {factor:g}"
        fix = "scale the features (preprocessing.scaler), and check the loss and the head under [model]"
        yield Finding("warning", "initial-loss", subject, f"loss {loss:.3g} before training", wanted, fix)


def _chance(task: Task) -> tuple[float, str]:
    """Loss of a model that knows nothing, and where the figure comes from."""
    if task.kind == "multiclass":
        return math.log(task.units), f"-log(1/{task.units}) for {task.units} classes"
    if task.loss == "mse":
        return 1.0, "variance of standardised targets"
    if task.loss == "mae":
        return math.sqrt(2 / math.pi), "mean |z| of a normal target"
    return math.log(2), "log 2 for a yes or no"


def _need(experiment: Experiment, outline: Outline, which: Which) -> dict[str, int]:
    """Bytes that a sweep with only this corner model takes from now on, by what takes them.

    One float32 matrix per scaler stays in memory (`trial.prepare`), and the backend copies the one it trains on. The
    float64 copies are gone before a model is there; they are added all the same, an upper bound.
    """
    params = corner_params(experiment, which)
    parameters, values = models.size(experiment.model.builder, outline.n_features, outline.task, params)
    rows, features, numbers = outline.rows, outline.n_features, outline.n_numbers
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
        fix = "in a checkout of forge-sweep pip install '.[gpu]', or set CUDA_VISIBLE_DEVICES=-1 to mean it"
        yield Finding("warning", "gpu-unused", "backend", seen, "a backend that uses it", fix)
