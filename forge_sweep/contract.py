"""The contract of a network: what a builder gives is built, looked at, and trained for one step on a few real rows.

`preflight` holds the corners of the search space to it, and `forge_sweep.testing.BuilderContract` a user's own builder.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import re
import sys
import tempfile
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from forge_sweep import models, training
from forge_sweep.bundle import GOLDEN_TOLERANCE, network
from forge_sweep.checks.findings import Finding, errors
from forge_sweep.experiment import Code, Params, Scalar
from forge_sweep.experiment.code import PACKAGE
from forge_sweep.experiment.importing import package_of
from forge_sweep.preprocessing import Spec
from forge_sweep.task import Task

if TYPE_CHECKING:
    import keras

CLASS_LOSS_FACTOR = 3.0
"""How far, as a factor, the loss of an untrained classifier may lie from chance. With He initialisation and scaled
features its logits have a variance of about 2, which lifts the loss by a third."""

REGRESSION_LOSS_FACTOR = 10.0
"""The same for regression, where the variance of the untrained output is added to that of the target in full."""

FIX = "end the model with heads.only.output(hidden)"

MOST_OBJECTS, MOST_ITEMS = 20_000, 1000
"""In which arrays are looked for, and of one list."""

MOST_NUMBERS = 2**25
"""Of one array; of a larger one the first rows are taken."""

CAPTURED = 3
"""Training rows in an array of a user's own module that are no coincidence."""

MOST_ARGUMENTS, MOST_POINTS, MOST_CHOICES = 20, 20, 5
"""Of a function, points of the space at which they are changed, and their values there; most need one point."""

COUNTED = frozenset({"._name", "._path", "._parent_path"})
"""Attributes of a layer that hold a name which Keras counts up."""

MOST_COMPARED = 2**20
"""Of one array, in which rows are looked for that have other columns than those of the model."""


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
        seed: of the initial weights.
    """
    once = training.FitSpec(epochs=1, patience=1, batch_size=len(few.y_train), monitor="val_loss", direction="minimize")
    try:
        training.seed_everything(seed)
        model = models.build(builder, spec, task, params)
        model.run_eagerly = True  # one step is done long before a graph would be traced
        before = [np.array(weight) for weight in model.trainable_weights]
        if isinstance(builder, Code):
            repeated = [*_repeated(model, models.build(builder, spec, task, params), builder)]
            yield from repeated
            if repeated:  # what else is seen of it holds for this call only
                return
            yield from _captured(model, spec, few, raw, builder)
            yield from _ignored(model, builder, spec, task, params)
            yield from _unused(model, spec, builder)
            wrong = [*_activation(model, task, few, builder)] or ([] if before else [*_changed(model, [], subject)])
            yield from wrong
            if wrong and wrong[0].code != "random-predictions":  # else what is loaded would differ as well
                yield from _saved(model, few, builder)
            if wrong:  # training it would say the same in other words
                return
        beginning = [*_initial_loss(model, task, few, subject, own=isinstance(builder, Code))]
        yield from beginning
        if errors(beginning):
            return
        (logs,) = training.fit(model, task, few, once, lambda epoch, logs: False).history
        if isinstance(builder, Code):
            yield from _changed(model, before, subject)
            yield from _saved(model, few, builder)
        if metric not in logs:
            seen, fix = f"{metric} is not among the logs: {', '.join(logs)}", "set objective.metric to one of the logs"
            yield Finding("error", "monitor-missing", "objective.metric", seen, "a metric that training logs", fix)
    except Exception as error:
        yield failed(error, subject, builder if isinstance(builder, Code) else None)


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


def _activation(model: keras.Model, task: Task, few: training.TrainingData, code: Code) -> Iterator[Finding]:
    """Whether the outputs of a user's own model are what the task scores."""
    outputs = training.outputs(model, few.x_train).astype(np.float64)
    if (off := np.abs(training.outputs(model, few.x_train) - outputs).max()) > GOLDEN_TOLERANCE:
        drawing = ", ".join(layer.name for layer in model.layers if hasattr(layer, "seed_generator"))
        seen = f"two predictions of the same rows are {off:.3g} apart{f' ({drawing})' if drawing else ''}"
        fix = "call these layers without training=True; a call of your own hands its argument training on"
        yield Finding(
            "error", "random-predictions", code.builder, seen, "augmentation and dropout in training only", fix
        )
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


def _captured(
    model: keras.Model, spec: Spec, few: training.TrainingData, raw: pd.DataFrame, code: Code
) -> Iterator[Finding]:
    """Whether a user's own model knows the training rows already, as they are fed or as they were read."""
    fed = dict(zip(spec, training.leaves(few.x_train), strict=True))
    unscaled = [np.rint(values / spec[name].scale) for name, values in fed.items() if spec[name].scale != 1.0]
    with np.errstate(over="ignore"):
        numbers = raw.to_numpy(np.float64, na_value=np.nan)
        tables = [each.reshape(len(each), -1).astype(np.float32) for each in (*fed.values(), *unscaled, numbers)]
        known = [rows for rows in tables if _telling(rows)]
        counts = dict[str, int]()
        for where, values in _held(model, code):
            if isinstance(values, pd.DataFrame):  # a table of the file itself: by the names of its columns
                shared = [name for name in raw if name in values.columns]
                mine, theirs = (each[shared].to_numpy(np.float32, na_value=np.nan) for each in (raw, values))
                counts[where] = _equal(mine, theirs) if _telling(mine) else 0
                values = values.to_numpy(np.float64, na_value=np.nan)
            if counts.get(where, 0) < CAPTURED:
                counts[where] = max((_common(values, rows) for rows in known), default=0)
    if places := [where for where, count in counts.items() if count >= CAPTURED]:
        most = max(counts.values())
        seen = f"{', '.join(places[:3])}: {most} of {len(few.y_train)} training rows that were looked for"
        expected = "a model that learns from rows only as it is trained"
        fix = "read no rows in the builder's modules, and hand none to a layer or a function"
        yield Finding("error", "rows-captured", code.builder, seen, expected, fix)


def _telling(rows: np.ndarray) -> bool:
    """Whether rows can be told apart: rows of a few flags are everywhere."""
    return rows.shape[1] > 1 and len(np.unique(rows, axis=0)) > len(rows) / 2


def _held(model: keras.Model, code: Code) -> Iterator[tuple[str, np.ndarray | pd.DataFrame]]:
    """The arrays and tables of numbers that a model and the modules of its builder keep, each with where it is.

    These are weights, attributes of layers, constants of the graph, globals of every local module, and what functions
    close over or have as defaults. Of tables these are the columns of numbers. `MOST_OBJECTS` objects are looked at,
    those that are near first.
    """
    package = package_of(code)
    waiting = deque[tuple[str, Any]]((f"weight {weight.path}", weight) for weight in model.weights)
    for file in code.files:
        name = file.removesuffix(f".{PACKAGE}")
        globals_of = vars(sys.modules.get(f"{package}.{name}", object)).items()
        waiting += [(f"{name}.{key}", value) for key, value in globals_of if not key.startswith("__")]
    waiting += [(f"layer {layer.name}", layer) for layer in model.layers] + [("the model", model)]
    seen = dict[int, Any]()  # the objects too: of one that is gone another may have the number
    while waiting and len(seen) < MOST_OBJECTS:
        where, value = waiting.popleft()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if (array := _array(value)) is not None:
            yield where, array
            continue
        waiting += [(f"{where}{name}", each) for name, each in _inside(value, package)]


def _array(value: Any) -> np.ndarray | pd.DataFrame | None:
    """An array, a tensor or a list of rows as an array of numbers, a table as its columns of numbers; else None."""
    try:
        if isinstance(value, pd.DataFrame):
            return value.iloc[: MOST_NUMBERS // max(value.shape[1], 1)].select_dtypes("number")
        of_rows = isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple)
        if isinstance(value, type) or not (of_rows or hasattr(value, "__array__")):
            return None
        shape = getattr(value, "shape", ())
        if math.prod(shape) > MOST_NUMBERS:  # a file that is read where it is looked at, among others
            value = value[: MOST_NUMBERS // math.prod(shape[1:])]
        found = np.asarray(value)
    except Exception:  # rows of different lengths, a tensor of a graph, a device that no array can be had from
        return None
    return found if found.dtype.kind in "biuf" else None


def _inside(value: Any, package: str) -> Iterator[tuple[str, Any]]:
    """What an object keeps, with what to call it behind the object's own name."""
    of_type = type(value) if not isinstance(value, type | FunctionType) else value
    own = f"{getattr(of_type, '__module__', '')}.".startswith(f"{package}.")
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", each) for key, each in list(value.items())[:MOST_ITEMS])
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{i}]", each) for i, each in enumerate(list(value)[:MOST_ITEMS]))
    elif isinstance(value, MethodType | staticmethod | classmethod):
        yield from (("", value.__func__), ("", getattr(value, "__self__", None)))
    elif isinstance(value, functools.partial):
        yield from (("", value.func), ("", value.args), ("", value.keywords))
    elif isinstance(value, FunctionType) and own:
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not set yet
                yield f": {name}, which it closes over", cell.cell_contents
        yield from ((": a default", each) for each in (value.__defaults__, value.__kwdefaults__))
    elif own or (not isinstance(value, type) and of_type.__module__.startswith("keras.")):
        yield from ((f".{name}", each) for name, each in list(getattr(value, "__dict__", {}).items()))
        yield "", None if isinstance(value, type) else type(value)


def _common(values: np.ndarray, known: np.ndarray) -> int:
    """How many of the known rows (n, columns) an array has, upright or on its side, with more columns or with fewer."""
    if values.ndim < 2 or min(len(values), values[:1].size) < 2:
        return 0
    table, counts = values.reshape(len(values), -1), [0]
    for upright in (table, table.T) if values.ndim == 2 else (table,):
        width = upright.shape[1]
        if width == known.shape[1]:
            counts.append(_equal(known, upright))
        if max(counts) < CAPTURED:
            rows = upright[: MOST_COMPARED // width].astype(np.float32)
            counts.append(_joined(known, rows) if known.shape[1] <= width else _joined(rows, known))
    return max(counts)


def _equal(known: np.ndarray, rows: np.ndarray) -> int:
    """How many of the known rows are among others with the same columns."""
    whole = np.dtype((np.void, 4 * known.shape[1]))
    mine, theirs = (np.ascontiguousarray(each, np.float32) + 0.0 for each in (known, rows))  # -0 is 0
    return int(np.isin(mine.view(whole), theirs.view(whole)).sum())


def _joined(narrow: np.ndarray, wide: np.ndarray) -> int:
    """How many rows of one table are in another one, whose columns are more or in another order.

    They are matched by the column that tells most rows apart and by the one with most of its values; of these pairs a
    quarter has to agree in all columns, each in the one of the other table that is most often alike.
    """
    if not len(narrow) or narrow.shape[1] < 3:  # two numbers are alike by chance
        return 0
    teller = narrow[:, np.argmax([len(np.unique(column)) for column in narrow.T])]
    order = np.argsort(teller)
    place = order[np.searchsorted(teller, wide, sorter=order).clip(max=len(order) - 1)]
    at, column = np.nonzero(teller[place] == wide)
    pairs = MOST_COMPARED // (narrow.shape[1] * wide.shape[1])
    if not len(at) or not pairs:
        return 0
    at = at[column == (home := np.bincount(column).argmax())]
    at = at[np.linspace(0, len(at) - 1, min(len(at), pairs)).astype(int)]
    mine = place[at, home]
    alike = (narrow[mine][:, :, None] == wide[at][:, None, :]) | np.isnan(narrow[mine])[:, :, None]
    best = alike.mean(axis=0).argmax(axis=1)
    agree = alike[:, np.arange(len(best)), best].all(axis=1)
    return min(len(np.unique(mine[agree])), len(np.unique(at[agree]))) if agree.sum() * 4 >= len(agree) else 0


def _ignored(model: keras.Model, code: Code, spec: Spec, task: Task, params: Params) -> Iterator[Finding]:
    """Whether the optimizer that a function compiled its model with goes by what the trial asks for.

    A rate that is another one may be made of the one that was asked for; then it changes with it.
    """
    has = _optimizer(model)
    for name in ("optimizer", "learning_rate", "momentum"):
        asked, found = params.get(name), has.get(name)
        close = (
            isinstance(found, float) and not isinstance(asked, str) and math.isclose(asked or 0, found, rel_tol=1e-6)
        )
        if asked is None or found is None or asked == found or close:
            continue
        other: Scalar = ("sgd" if asked != "sgd" else "adam") if isinstance(asked, str) else asked / 2 or 0.5
        if _optimizer(models.build(code, spec, task, {**params, name: other}))[name] == found:
            shown = found.get("class_name") if isinstance(found, dict) else found  # a schedule
            shown = f"{shown:.4g}" if isinstance(shown, float) else shown
            seen = f"the model is compiled with {name} {shown}, whether {name} is {asked} or {other}"
            fix = f"give compile the {name} of the trial" if name in code.parameters else f"take {name} as an argument"
            fix += ", or return the model without compile: it then gets the optimizer of the experiment"
            yield Finding("error", "hyperparameter-ignored", code.builder, seen, f"the {name} of the trial", fix)


def ignored(
    code: Code,
    spec: Spec,
    task: Task,
    points: Iterable[Params],
    values: Mapping[str, Sequence[Scalar]],
    seed: int = 0,
) -> Iterator[Finding]:
    """Whether each argument of a user's own function makes a difference to the model.

    ``hyperparameter-ignored`` is an error where configurations, attributes of own objects and initial weights are all
    that a model is made of, and a warning where an own class without ``get_config`` or a function may hold more.

    Args:
        code: the source.
        spec: the inputs.
        task: what is predicted.
        points: hyperparameters at which arguments are changed, until each has made a difference at one.
        values: what each argument may be.
        seed: of the initial weights.
    """
    waiting, certain = dict([*values.items()][:MOST_ARGUMENTS]), dict[str, bool]()

    def built(params: Params) -> keras.Model:
        training.seed_everything(seed)
        return models.build(code, spec, task, params)

    for params in itertools.islice(points, MOST_POINTS):
        if not (left := [name for name in waiting if name in params]):
            if not waiting:
                break
            continue
        model = built(params)
        (*form, whole), weights = _form(model, code), [np.array(weight) for weight in model.weights]
        for name in left:
            certain[name] = certain.get(name, True) and whole
            for other in [value for value in waiting[name] if value != params[name]][-MOST_CHOICES:]:
                try:
                    another = built({**params, name: other})
                except Exception:  # it makes the difference between a model and none
                    del waiting[name]
                    break
                same = len(weights) == len(another.weights) and [*_form(another, code)[:2]] == form
                if not (
                    same
                    and all(
                        np.array_equal(one, np.array(each)) for one, each in zip(weights, another.weights, strict=True)
                    )
                ):
                    del waiting[name]
                    break
    for name in waiting:
        if name in certain:
            shown = " or ".join(map(str, (waiting[name][0], waiting[name][-1])))
            seen = f"the model is the same, whether {name} is {shown}"
            fix = f"use {name} in the function, or take it out of [model.search]"
            severity: Literal["warning", "error"] = "error" if certain[name] else "warning"
            yield Finding(severity, "hyperparameter-ignored", code.builder, seen, "a model that goes by it", fix)


def _form(model: keras.Model, code: Code) -> tuple[str, str, bool]:
    """What a model is made of: its configuration, and what a user's own objects in it hold; and whether that is all.

    Names that Keras counts up are numbered anew; seeds and weights are left out.
    """
    package, whole, configs, held = f"{package_of(code)}.", True, list[Any](), list[Any]()
    waiting, seen = deque[Any]([model, model.loss, *model.layers]), dict[int, Any]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for get in (model.get_config, model.get_compile_config):
            try:
                configs.append(get())
            except Exception:
                whole = False
        while waiting and len(seen) < MOST_OBJECTS:
            value = waiting.popleft()
            if value is None or isinstance(value, bool | int | float | str):
                held.append(value)
            if id(value) in seen:
                continue
            seen[id(value)] = value
            kind = value if isinstance(value, type | FunctionType) else type(value)
            if f"{kind.__module__}.".startswith(package):
                bases = kind.__mro__ if isinstance(kind, type) else ()
                told = any("get_config" in vars(base) for base in bases if base.__module__.startswith(package))
                whole = whole and (told or isinstance(value, type))
            elif kind.__module__.startswith("keras.") and not isinstance(value, Mapping | list | tuple | set):
                if value is not model and hasattr(value, "get_config"):
                    with contextlib.suppress(Exception):
                        held.append(value.get_config())
                continue
            waiting += [each for name, each in _inside(value, package[:-1]) if name not in COUNTED]
    names = dict[str, str]()
    config, attributes = (
        json.dumps(_plain(each, names), default=lambda one: type(one).__name__) for each in (configs, held)
    )
    return config, attributes, whole


def _plain(value: Any, names: dict[str, str]) -> Any:
    """A configuration, its names numbered in the order in which they are found."""
    if isinstance(value, Mapping):
        if isinstance(name := value.get("name"), str):
            names.setdefault(name, f"{re.sub(r'_[0-9]+$', '', name)} {len(names)}")
        return {str(key): _plain(each, names) for key, each in value.items() if key not in ("seed", "shared_object_id")}
    if isinstance(value, list | tuple):
        return [_plain(each, names) for each in value]
    return names.get(value, value) if isinstance(value, str) else value


def _repeated(model: keras.Model, again: keras.Model, code: Code) -> Iterator[Finding]:
    """Whether a function that is called twice with the same arguments gives two models that are alike."""
    ids = {*map(id, model.trainable_weights), id(model), id(model.optimizer)}
    fix = "have it go by its arguments alone: no counter, no file, and no random numbers but those of initializers"
    if ids & {*map(id, again.trainable_weights), id(again), id(again.optimizer)}:
        what = "model" if again is model else "optimizer" if again.optimizer is model.optimizer else "layers"
        seen = f"called twice, the function gives the same {what}: each trial would go on with that of the one before"
        fix = f"make the {what} inside of the function, anew on each call"
    elif shapes := [
        f"{one.path} {tuple(one.shape)}, then {tuple(other.shape)}"
        for one, other in zip(model.weights, again.weights, strict=False)
        if one.shape != other.shape
    ]:
        seen = f"called twice with the same arguments it gives other layers, by random numbers or state: {shapes[0]}"
    elif len(model.weights) != len(again.weights) or _form(model, code)[0] != _form(again, code)[0]:
        seen = "called twice with the same arguments it gives another configuration, by random numbers or state"
    else:
        return
    yield Finding("error", "not-repeatable", code.builder, seen, "the same model for the same arguments", fix)


def _unused(model: keras.Model, spec: Spec, code: Code) -> Iterator[Finding]:
    """Whether every input of a functional model leads to an output: its configuration has the layers that do."""
    try:
        layers = model.get_config()["layers"]
    except Exception:  # subclassed
        return
    used = json.dumps([each.get("inbound_nodes") for each in layers], default=str)
    if unused := [name for name in spec if len(spec) > 1 and json.dumps(name) not in used]:
        seen, fix = f"{', '.join(unused)} leads to no output", "use it in the function, or take it out of [data.inputs]"
        yield Finding("warning", "input-unused", code.builder, seen, "a model that uses all of its inputs", fix)


def _optimizer(model: keras.Model) -> dict[str, Any]:
    """A compiled optimizer's name and settings."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return {**optimizer.get_config(), "optimizer": type(optimizer).__name__.lower()}


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
    model: keras.Model, task: Task, few: training.TrainingData, subject: str, *, own: bool
) -> Iterator[Finding]:
    """Whether the untrained model's loss is near that of a model that knows nothing."""
    outputs = training.outputs(model, few.x_train)
    loss = training.data_loss(model, task, few.y_train, outputs)
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
