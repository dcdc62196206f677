"""Pre-flight: the smallest and the largest model of the search space, built and trained for one step on real rows.

What would otherwise show after an hour, in the one trial that drew the corner of the space, shows before the first.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from forge_sweep import contract, environment, exports, models, training, trial
from forge_sweep.bundle import Bundle, choose_golden, measure
from forge_sweep.checks import settings
from forge_sweep.checks.findings import Finding, Severity, errors
from forge_sweep.errors import BundleError, ForgeSweepError
from forge_sweep.experiment import GENERAL, Code, Dimension, Experiment, Params, Scalar
from forge_sweep.preprocessing import Schema, Spec, mapped
from forge_sweep.sources import Dataset
from forge_sweep.task import Task
from forge_sweep.task.metrics import Gap
from forge_sweep.trial import Prepared, Recipe

Which = Literal["smallest", "largest"]
WHICH: tuple[Which, ...] = ("smallest", "largest")

ROWS = 256
"""Rows of train and of validation that the corner models see."""

COPIES = 4
"""Float32 copies of every parameter: the weight, its gradient, and two slots of Adam's kind."""

WIDE_COPIES = 4
"""Float64 copies of numeric columns while they are imputed and scaled: 28 to 48 bytes per number of train, measured."""

OF_RATES = frozenset({"rate-too-low", "rate-too-high"})
"""Findings on a learning rate: of a range, one end may well be too far out."""

SMALL_FIRST = {"shape": ("taper", "constant")}
"""Names whose order says which gives the smaller model."""


@dataclass(frozen=True, eq=False)
class Outline:
    """What is known of the data before a matrix is made of it.

    ``rows`` are those of train and validation, ``held`` the values of each that will be in memory, not in a file.
    """

    task: Task
    rows: int
    n_numbers: int
    spec: Spec
    held: int
    validated: tuple[np.ndarray, ...]  # targets of the validation rows, with folds of each


def preflight(experiment: Experiment, dataset: Dataset) -> tuple[Finding, ...]:
    """Check that every trial of the sweep can be trained.

    Findings, by code:

    - ``memory`` (error or info): what data and largest model need against what is available, before either is made.
      Where the smallest model does not fit either, the data are not prepared and no model is tried.
    - ``scaler-fails`` (error): a scaler cannot be fitted, or gives numbers that are not finite; the models are tried
      with the first one that works.
    - ``monitor-missing``, ``monitor-undefined`` (error): the objective is not in the logs, or has no value on these
      validation rows whatever a model predicts, or leaves a class out. ``metric-undefined`` (warning): so does another.
    - those of `settings.of_settings`.
    - those of `contract.tried`, for the smallest and the largest model, and of `contract.ignored`.
    - ``in-model-fails`` (error): with ``model.preprocessing = "in_model"``, the smallest network cannot be saved with
      its preprocessing inside, or gives other scores then.
    - ``infeasible`` (error, or warning for ``latency_ms``): the smallest network is above a limit of ``[constraints]``.
    - ``gpu-unused`` (warning): the machine has a GPU and the backend does not use it.

    The backend is selected before; the test split is not touched.

    Raises:
        DataError: the targets do not fit the task.
    """
    outline, available = _outline(experiment, dataset), environment.memory().available
    try:
        need = {which: _need(experiment, outline, which) for which in WHICH}
        if experiment.code is not None:
            models.callbacks(experiment.code, experiment.model.callbacks)
    except Exception as error:
        if experiment.code is None:
            raise
        return (
            contract.failed(error, experiment.model.builder, experiment.code),
        )  # the user's own model is built to know its size
    fitting = [which for which in WHICH if sum(need[which].values()) <= available]
    tried = _try(experiment, dataset, fitting) if fitting else ()
    memory = _memory(need["largest"], available)
    far = settings.of_settings(experiment.space, len(dataset.train.features), experiment.study.epochs)
    return (memory, *_defined(experiment, outline), *far, *tried, *_gpu(experiment))


def corner_params(experiment: Experiment, which: Which, **fixed: Scalar) -> Params:
    """The hyperparameters of the smallest or the largest model of the search space.

    Numbers and booleans take the least or the greatest value of their range or choices, ``shape`` the narrower or the
    wider, other names the first or the last choice; fixed values stay. A conditional hyperparameter is there where its
    condition holds. Those of ``fixed`` are these values where they are there.
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
            params[name] = fixed.get(name, ordered[0] if which == "smallest" else ordered[-1])
    return params


def _outline(experiment: Experiment, dataset: Dataset) -> Outline:
    """What the arrays will be like, from targets, categories and missing values alone."""
    train, recipe = dataset.train, Recipe.of(experiment, "none")
    task = recipe.learn_task(dataset.learned_from.targets)
    # Which columns come out is up to the schema alone, so that fitting on no rows gives them all.
    schema = Schema.learn(train.features, dataset.categorical)
    fitted = recipe.fit(train.features.iloc[:0], schema)
    spec = fitted.spec
    in_file = {group.name for group in fitted.groups if mapped(train.features[group.columns[0]]) is not None}
    held = sum(each.size for name, each in spec.items() if name not in in_file)
    n_numbers = sum(column.kind != "categorical" for column in schema.tabular)
    rows = len(train.features) + len(dataset.valid.features)
    splits = [fold.rows for fold in dataset.folds] or [dataset]
    return Outline(task, rows, n_numbers, spec, held, tuple(task.encode(each.valid.targets) for each in splits))


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
        raw = dataset.train.features.iloc[train].select_dtypes("number")
        builder, spec, task, metric = experiment.builder, works[0].spec, works[0].task, experiment.objective.metric
        for which in fitting:
            params, seed = corner_params(experiment, which), experiment.seed
            if which == "largest" and params == corner_params(experiment, "smallest"):  # nothing that sizes is searched
                continue
            shown = [name for name, value in experiment.space.items() if isinstance(value, Dimension)]
            shown = shown[:5] if experiment.code else ["width", "depth"]
            size = ", ".join(f"{name}={params[name]}" for name in shown if name in params)
            subject = f"{which} model" + f" ({size})" * bool(size)
            known = {finding.code for finding in findings} - OF_RATES
            steps = experiment.study.epochs * -(-len(whole.y_train) // int(params["batch_size"]))
            with training.dtype_policy(training.precision_of(experiment.precision)[0]):
                found = contract.tried(
                    builder, spec, task, params, few, raw, subject=subject, metric=metric, steps=steps, seed=seed
                )
                findings += [finding for finding in found if experiment.code is None or finding.code not in known]
        findings = [*_everywhere(experiment, findings)]
        if isinstance(builder, Code) and not errors(findings):
            searched = {name: each for name, each in experiment.space.items() if isinstance(each, Dimension)}
            own = searched.keys() & builder.parameters.keys() - {*GENERAL}
            values = {name: each.extremes() for name, each in searched.items() if name in own}
            values = {name: ends for name, ends in values.items() if len({*ends}) > 1}
            # What acts in one branch of the function alone is changed there.
            branches = [{name: one} for name, each in searched.items() for one in each.choices]
            points = (corner_params(experiment, which, **fixed) for fixed in ({}, *branches) for which in fitting)
            with training.dtype_policy(training.precision_of(experiment.precision)[0]):
                findings += contract.ignored(builder, spec, task, points, values, experiment.seed)
        if experiment.model.preprocessing == "in_model" and not errors(findings):
            findings += _inside(experiment, dataset, works[0])
        if experiment.constraints.limits and not errors(findings):
            findings += _within_limits(experiment, dataset, works[0])
    return tuple(dict.fromkeys(findings))


def _everywhere(experiment: Experiment, findings: Sequence[Finding]) -> Iterator[Finding]:
    """The findings but for those on a searched learning rate that only one end of its range has."""
    rate = experiment.space.get("learning_rate")
    for finding in findings:
        alone = isinstance(rate, Dimension) and [each.code for each in findings].count(finding.code) < len(WHICH)
        if finding.code not in OF_RATES or not alone:
            yield finding


def _spread(rows: int) -> np.ndarray:
    """Positions of at most `ROWS` rows, spread evenly: files are often sorted by class or time."""
    return np.linspace(0, rows - 1, min(rows, ROWS)).astype(np.int64)


def _within_limits(experiment: Experiment, dataset: Dataset, prepared: Prepared) -> Iterator[Finding]:
    """Whether the smallest network keeps the constraints: none of them depends on its weights.

    How long a row takes is up to the machine, too, and no reason to refuse.
    """
    limits, bundle, n = experiment.constraints, _smallest(experiment, prepared), experiment.averaged
    if n > 1:
        bundle = Bundle.ensemble([bundle] * n, [1 / n] * n, threshold=0.5, metadata=bundle.metadata)
    raw = exports.write_raw if experiment.model.preprocessing == "in_model" else None
    measured = measure(bundle, limits.limits, choose_golden(dataset.train.features), raw=raw)
    for name, share in limits.excess(measured).items():
        if share > 0:
            expected = f"at most {limits.limits[name]:,.6g}, or no trial is feasible"
            fix = f"lower the lower ends under [model.search], or raise {name} under [constraints]"
            severity: Severity = "warning" if name == "latency_ms" else "error"
            smallest = "smallest network" if n == 1 else f"average of {n} smallest networks"
            seen = f"{measured[name]:,.6g} of the {smallest}"
            yield Finding(severity, "infeasible", f"constraints.{name}", seen, expected, fix)


def _smallest(experiment: Experiment, prepared: Prepared) -> Bundle:
    """The smallest network, untrained, with all it needs to take raw rows."""
    training.seed_everything(experiment.seed)
    params = corner_params(experiment, "smallest")
    model = models.build(experiment.builder, prepared.spec, prepared.task, params)
    about = {"experiment": experiment.resolved()}
    return Bundle(model, prepared.preprocessor, prepared.task, 0.5, about, experiment.code)


def _inside(experiment: Experiment, dataset: Dataset, prepared: Prepared) -> Iterator[Finding]:
    """Whether a network can be saved with its preprocessing inside: what the winner will be, before it is trained."""
    bundle = _smallest(experiment, prepared)
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
    objective, several = experiment.objective.metric, len(outline.validated) > 1
    some: dict[tuple[Any, ...], tuple[Gap, int, int]] = {}
    for number, encoded in enumerate(outline.validated, start=1):
        for gap in outline.task.gaps(encoded):
            some.setdefault((gap.metrics, gap.whole, gap.seen * (not several)), (gap, number, len(encoded)))
    for gap, number, n in some.values():
        rows = f"{n} validation rows" + (f" of fold {number}" if several else "")
        if objective.removeprefix("val_") in gap.metrics:
            seen = f"{objective} is not defined on the {rows}: {gap.seen}"
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


def _need(experiment: Experiment, outline: Outline, which: Which) -> dict[str, int]:
    """Bytes that a sweep with only this corner model takes from now on, by what takes them; an upper bound.

    One float32 matrix per scaler stays in memory (`trial.prepare`), and the backend copies the one it trains on.
    """
    params = corner_params(experiment, which)
    parameters, values = models.size(experiment.builder, outline.spec, outline.task, params)
    rows, numbers = outline.rows, outline.n_numbers
    matrices, batch_size = len(experiment.scalers) + 1, int(params["batch_size"])
    return {
        f"{parameters:,} parameters x {COPIES}": 4 * COPIES * parameters,
        f"{rows:,} rows x {outline.held:,} features x {matrices}": 4 * matrices * rows * outline.held,
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
    if (gpus := environment.gpus()) and not training.accelerators():
        yield unused_gpu(experiment.backend, gpus)


def unused_gpu(backend: str, gpus: Sequence[str]) -> Finding:
    """What to say of a backend that computes on the CPU beside GPUs that were not hidden on purpose."""
    seen = f"{len(gpus)} GPU ({gpus[0]}), but {backend} computes on the CPU"
    install = {"tensorflow": "in a checkout of forge-sweep pip install '.[gpu]'", "jax": "pip install 'jax[cuda13]'"}
    how = install.get(backend, "install a CUDA build of PyTorch that its driver can run")
    fix = f"{how}, or set CUDA_VISIBLE_DEVICES=-1 to mean it"
    return Finding("warning", "gpu-unused", "backend", seen, "a backend that uses it", fix)
