"""The search space in Optuna's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from forge_sweep.experiment import Dimension, Params, Scalar
from forge_sweep.experiment.words import as_toml

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution

Space = Mapping[str, Dimension | Scalar]


def suggest(trial: Trial, space: Space) -> Params:
    """Every hyperparameter of one trial: fixed values as they are, searched ones suggested, inactive ones left out."""
    params: Params = {}
    for name, value in space.items():
        if not isinstance(value, Dimension):
            params[name] = value
        elif value.active(params):
            params[name] = _suggest_one(trial, name, value)
    return params


def _suggest_one(trial: Trial, name: str, dimension: Dimension) -> Scalar:
    if dimension.type == "categorical":
        return cast(Scalar, trial.suggest_categorical(name, dimension.choices))
    low, high = _ends(dimension)
    if dimension.type == "int":
        return trial.suggest_int(name, int(low), int(high), step=int(dimension.step or 1), log=dimension.log)
    return trial.suggest_float(name, low, high, step=dimension.step, log=dimension.log)


def distributions(space: Space, params: Mapping[str, Scalar]) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each searched hyperparameter that is active beside ``params``."""
    return {name: _distribution(dimension) for name, dimension in searched(space).items() if dimension.active(params)}


def _distribution(dimension: Dimension) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.type == "categorical":
        return CategoricalDistribution(dimension.choices)
    low, high = _ends(dimension)
    if dimension.type == "int":
        return IntDistribution(int(low), int(high), step=int(dimension.step or 1), log=dimension.log)
    return FloatDistribution(low, high, step=dimension.step, log=dimension.log)


def _ends(dimension: Dimension) -> tuple[float, float]:
    """Least and greatest value that can be reached; Optuna warns about a range that is no multiple of its step."""
    assert dimension.low is not None and dimension.high is not None  # held by the rules of the experiment file
    return dimension.low, dimension.last


def key_of(params: Mapping[str, Scalar]) -> str:
    """The same for equal configurations, in whatever order their hyperparameters are."""
    return repr(sorted(params.items()))


LARGEST = 10_000
"""Configurations above which a space counts as endless."""


def configurations(space: Space) -> list[Params] | None:
    """Every configuration of a space; None where there is no end of them, or more than about `LARGEST`."""
    found: list[Params] = [{}]
    for name, value in space.items():
        if not isinstance(value, Dimension):
            found = [{**params, name: value} for params in found]
            continue
        values = value.grid()
        if values is None or len(found) * len(values) > LARGEST:
            return None
        active = [params for params in found if value.active(params)]
        found = [params for params in found if not value.active(params)]
        found += [{**params, name: each} for params in active for each in values]
    return found


def searched(space: Space) -> dict[str, Dimension]:
    """The searched hyperparameters alone."""
    return {name: value for name, value in space.items() if isinstance(value, Dimension)}


def fits(params: Mapping[str, Scalar], space: Space) -> bool:
    """Whether a trial with ``params`` could have come from ``space``; see `misfit`."""
    return not misfit(params, space)


def misfit(params: Mapping[str, Scalar], space: Space) -> str:
    """Why a trial with ``params`` cannot have come from ``space``, in words; "" where it can.

    A searched hyperparameter must have a value in its range. A fixed one must have that value, or not have existed
    when the trial ran (a later version of the builder added it with this default). None may be unknown to ``space``.
    """
    unknown = [
        f"{name} = {_said(value)}, which the space has not" for name, value in params.items() if name not in space
    ]
    found = (_misfit_of_one(name, params.get(name), wanted, params) for name, wanted in space.items())
    return "; ".join([*unknown, *filter(None, found)])


def _misfit_of_one(name: str, value: Scalar | None, wanted: Dimension | Scalar, params: Mapping[str, Scalar]) -> str:
    if not isinstance(wanted, Dimension):
        return "" if value is None or value == wanted else f"{name} = {_said(value)}, and the space has {_said(wanted)}"
    if not wanted.active(params):
        return "" if value is None else f"{name} = {_said(value)}, which exists beside other values only"
    if value is None:
        return f"it has no {name}"
    if wanted.holds(value):
        return ""
    if wanted.type == "categorical":
        return f"{name} = {_said(value)}, and the choices are {', '.join(map(_said, wanted.choices))}"
    step = "" if wanted.step is None else f" in steps of {wanted.step:g}"
    return f"{name} = {_said(value)}, and the range is {wanted.low:g} to {wanted.high:g}{step}"


def _said(value: Scalar) -> str:
    return f"{value:.6g}" if isinstance(value, float) else as_toml(value)
