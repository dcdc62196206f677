"""Pre-flight: the smallest and the largest model of the search space, built and trained for one step on real rows.

What would otherwise show after an hour, in the one trial that drew the corner of the space, shows before the first: a
model that cannot be built, a monitor that does not exist, a loss that starts where it should not, too little memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from forge_sweep import environment, models, training, trial
from forge_sweep.checks.findings import Finding
from forge_sweep.experiment import Dimension, Experiment, Params, Scalar
from forge_sweep.sources import Dataset
from forge_sweep.task import Task, check_pairing, pairings
from forge_sweep.trial import Recipe

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

SMALL_FIRST = {"shape": ("taper", "constant")}
"""Names whose order says which gives the smaller model."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A few real rows, preprocessed as in a trial.

    Attributes:
        task: learned on all of train.
        data: at most `ROWS` rows of each split.
        n_features: columns of the preprocessed features.
        rows: rows of train and validation in full.
        y_valid: all validation targets, encoded.
    """

    task: Task
    data: training.TrainingData
    n_features: int
    rows: int
    y_valid: np.ndarray


def preflight(experiment: Experiment, dataset: Dataset) -> tuple[Finding, ...]:
    """Check that every trial of the sweep can be trained.

    Findings, by code:

    - ``loss-activation`` (error): the head does not fit the task; nothing else is looked at.
    - ``memory`` (error or info): the largest model's need against what is available, before it is built.
    - ``monitor-missing``, ``monitor-undefined`` (error): the objective is not in the logs, or has no value on these
      validation rows whatever a model predicts.
    - ``model-fails`` (error, warning where it diverged): a corner model cannot be built or trained.
    - ``initial-loss`` (warning): the loss of an untrained model is far from chance, which is -log(1/N) for N classes
      (https://karpathy.github.io/2019/04/25/recipe/, "verify loss @ init").
    - ``gpu-unused`` (warning): the machine has a GPU and the backend does not use it.

    Args:
        experiment: the experiment, with ``training.select_backend`` called for it.
        dataset: its rows; the test split is not touched.

    Raises:
        DataError: the targets do not fit the task.
    """
    wrong = tuple(_pairing(experiment))
    if wrong:
        return wrong
    sample = _sample(experiment, dataset)
    memory = _memory(experiment, sample)
    fitting = WHICH if memory.severity != "error" else WHICH[:1]
    corners = [finding for which in fitting for finding in _corner(experiment, sample, which)]
    return (memory, *_defined(experiment, sample), *dict.fromkeys(corners), *_gpu(experiment))


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


def available_memory() -> int:
    """Bytes this process may still take: of the machine, or of its container where that is less (cgroup 2)."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, max(0, limit - used))


def _number(path: Path) -> int | None:
    """The number in a file, or None where there is no such file or it says ``max``."""
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None


def _extreme(name: str, values: tuple[Scalar, ...], which: Which) -> Scalar:
    """The value that gives the smallest or the largest model."""
    ordered = values
    if name in SMALL_FIRST:
        ordered = tuple(sorted(values, key=lambda value: SMALL_FIRST[name].index(str(value))))
    elif not any(isinstance(value, str) for value in values):
        ordered = tuple(sorted(values, key=float))
    return ordered[0] if which == "smallest" else ordered[-1]


def _pairing(experiment: Experiment) -> Iterator[Finding]:
    """Whether activation and loss of the head fit the task."""
    kind, one_hot, model = experiment.data.task, experiment.data.one_hot, experiment.model
    default = pairings(kind, one_hot)[0]
    activation = model.activation or ("linear" if model.from_logits else default.activation)
    wrong = check_pairing(kind, one_hot, activation, model.loss or default.loss, model.from_logits)
    if wrong is not None:
        expected = f"{default.activation} with {default.loss}"
        fix = "correct or remove activation, loss and from_logits under [model]"
        yield Finding("error", "loss-activation", "model.loss", wrong, expected, fix)


def _sample(experiment: Experiment, dataset: Dataset) -> Sample:
    """A few rows of the arrays that the trials get; preparing them is not lost, since `trial.prepare` keeps them."""
    prepared = trial.prepare(dataset, Recipe.of(experiment, experiment.scalers[0]))
    whole = prepared.data
    few_train, few_valid = _spread(len(whole.x_train)), _spread(len(whole.x_valid))
    data = training.TrainingData(
        x_train=whole.x_train[few_train],
        y_train=whole.y_train[few_train],
        x_valid=whole.x_valid[few_valid],
        y_valid=whole.y_valid[few_valid],
    )
    rows = len(whole.x_train) + len(whole.x_valid)
    return Sample(prepared.task, data, whole.x_train.shape[1], rows, whole.y_valid)


def _spread(rows: int) -> np.ndarray:
    """Positions of at most `ROWS` rows, spread evenly: files are often sorted by class or time."""
    return np.linspace(0, rows - 1, min(rows, ROWS)).astype(np.int64)


def _corner(experiment: Experiment, sample: Sample, which: Which) -> Iterator[Finding]:
    """Build a corner model, look at its loss and train one step."""
    params = corner_params(experiment, which)
    subject = f"{which} model ({', '.join(f'{name}={params[name]}' for name in ('width', 'depth') if name in params)})"
    try:
        training.seed_everything(experiment.seed)
        model = models.build(experiment.model.builder, sample.n_features, sample.task, params)
        model.run_eagerly = True  # one step is done long before a graph would be traced
        yield from _initial_loss(model, sample, subject)
        yield from _monitor(experiment.objective.metric, _logs_of_one_step(model, sample))
    except Exception as error:
        failure = training.classify(error)
        # A corner may well diverge, such as the one with the highest learning rate: the sweep drops it as it goes.
        severity: Literal["warning", "error"] = "warning" if failure.failure == "diverged" else "error"
        seen, fix = f"{failure.failure}: {failure.message}", failure.hint or "narrow [model.search] or mend the model"
        yield Finding(severity, "model-fails", subject, seen, "a model that can be built and trained for one step", fix)


def _logs_of_one_step(model: keras.Model, sample: Sample) -> dict[str, float]:
    """Train one step and return what the callbacks saw."""
    seen: dict[str, float] = {}

    def keep(epoch: int, logs: dict[str, float]) -> bool:
        seen.update(logs)
        return False

    rows = len(sample.data.x_train)
    spec = training.FitSpec(epochs=1, patience=1, batch_size=rows, monitor="val_loss", direction="minimize")
    training.fit(model, sample.task, sample.data, spec, keep)
    return seen


def _monitor(metric: str, logs: dict[str, float]) -> Iterator[Finding]:
    """Whether the objective is among the logs."""
    if metric not in logs:
        seen = f"{metric} is not among the logs: {', '.join(logs)}"
        fix = "set objective.metric to one of the logs"
        yield Finding("error", "monitor-missing", "objective.metric", seen, "a metric that training logs", fix)


def _defined(experiment: Experiment, sample: Sample) -> Iterator[Finding]:
    """Whether the objective has a value on these validation rows, whatever a model predicts."""
    metric = experiment.objective.metric
    outputs = np.full((len(sample.y_valid), sample.task.units), 0.5)
    scores = sample.task.score(sample.y_valid, sample.task.to_scores(outputs))
    if math.isnan(scores.get(metric.removeprefix("val_"), 0.0)):
        seen = f"{metric} is not defined on the {len(sample.y_valid)} validation rows"
        expected = "validation rows of more than one class"
        fix = "give validation more rows under [data.split], or set another objective.metric"
        yield Finding("error", "monitor-undefined", "objective.metric", seen, expected, fix)


def _initial_loss(model: keras.Model, sample: Sample, subject: str) -> Iterator[Finding]:
    """Whether the untrained model's loss, without regularisation, is near that of chance."""
    found = training.outputs(model, sample.data.x_train)
    loss = training.total_loss(model, sample.data.y_train, found) - training.regularisation(model)
    expected, formula = _chance(sample.task)
    factor = REGRESSION_LOSS_FACTOR if sample.task.kind == "regression" else CLASS_LOSS_FACTOR
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


def _memory(experiment: Experiment, sample: Sample) -> Finding:
    """What the largest model and the data take, against what is available."""
    params = corner_params(experiment, "largest")
    parameters, values = models.size(experiment.model.builder, sample.n_features, sample.task, params)
    batch_size = int(params["batch_size"])
    need = {
        f"{parameters:,} parameters x {COPIES}": 4 * COPIES * parameters,
        f"{sample.rows:,} rows x {sample.n_features} features x 2": 4 * 2 * sample.rows * sample.n_features,
        f"{values:,} activations x {batch_size:,} rows x 2": 4 * 2 * values * batch_size,
    }
    available = available_memory()
    parts = "; ".join(f"{name}: {_size(size)}" for name, size in need.items())
    return Finding(
        "error" if sum(need.values()) > available else "info",
        "memory",
        "largest model",
        f"needs about {_size(sum(need.values()))} ({parts})",
        f"at most the {_size(available)} available",
        "lower width, depth or batch_size under [model.search], or give the machine more memory",
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
        fix = "pip install 'forge-sweep[gpu]', or set CUDA_VISIBLE_DEVICES=-1 to mean it"
        yield Finding("warning", "gpu-unused", "backend", seen, "a backend that uses it", fix)
