"""Whether a builder goes by its arguments: the same model for the same ones, another for others."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from forge_sweep import models, training
from forge_sweep.checks.findings import Finding
from forge_sweep.contract.held import MOST_OBJECTS, inside
from forge_sweep.experiment import Code, Params, Scalar
from forge_sweep.experiment.importing import package_of
from forge_sweep.preprocessing import Spec
from forge_sweep.task import Task

if TYPE_CHECKING:
    import keras

MOST_ARGUMENTS, MOST_POINTS, MOST_CHOICES = 20, 20, 5
"""Of a function, points of the space at which they are changed, and their values there; most need one point."""

COUNTED = frozenset({"._name", "._path", "._parent_path"})
"""Attributes of a layer that hold a name which Keras counts up."""


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
            waiting += [each for name, each in inside(value, package[:-1]) if name not in COUNTED]
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


def repeated(model: keras.Model, again: keras.Model, code: Code) -> Iterator[Finding]:
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


def unused(model: keras.Model, spec: Spec, code: Code) -> Iterator[Finding]:
    """Whether every input of a functional model leads to an output: its configuration has the layers that do."""
    try:
        layers = model.get_config()["layers"]
    except Exception:  # subclassed
        return
    used = json.dumps([each.get("inbound_nodes") for each in layers], default=str)
    if unused := [name for name in spec if len(spec) > 1 and json.dumps(name) not in used]:
        seen, fix = f"{', '.join(unused)} leads to no output", "use it in the function, or take it out of [data.inputs]"
        yield Finding("warning", "input-unused", code.builder, seen, "a model that uses all of its inputs", fix)


def optimizer_ignored(model: keras.Model, code: Code, spec: Spec, task: Task, params: Params) -> Iterator[Finding]:
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


def _optimizer(model: keras.Model) -> dict[str, Any]:
    """A compiled optimizer's name and settings."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return {**optimizer.get_config(), "optimizer": type(optimizer).__name__.lower()}
