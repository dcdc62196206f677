"""What the sections of an experiment file are made of: their base, and the types of their fields."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticKnownError

from forge_sweep import plugins
from forge_sweep.experiment.code import is_own
from forge_sweep.experiment.space import as_tuple


def _declared(group: plugins.Group) -> Callable[[str], str]:
    """Refuses a name that neither the package nor a plugin declares, as a `Literal` does."""

    def check(name: str) -> str:
        if is_own(name):
            return name
        if not plugins.is_known(group, name):
            *others, last = map(repr, plugins.names(group))
            expected = f"{', '.join(others)} or {last}" if others else last
            raise PydanticKnownError("literal_error", {"expected": expected})
        return name

    return check


def names_of(group: plugins.Group) -> Callable[[dict[str, Any]], None]:
    """Adds to the schema for editors: a known name, or a function of the user's own."""

    def add(schema: dict[str, Any]) -> None:
        del schema["type"]
        own = {"type": "string", "pattern": ":", "description": "`module:function`"}
        schema["anyOf"] = [{"enum": [*plugins.names(group)]}, own]

    return add


SAMPLERS = ("tpe", "random", "gp", "cmaes", "qmc", "grid", "auto")
HUB = "hub:"
"""Before the name of a package of OptunaHub."""

_OF_HUB = r"^hub:[A-Za-z0-9_]+(/[A-Za-z0-9_]+)+(:[A-Za-z_][A-Za-z0-9_]*)?$"
_SAMPLER_SCHEMA = {"anyOf": [{"enum": [*SAMPLERS]}, {"type": "string", "pattern": _OF_HUB}]}


def _sampler(name: str) -> str:
    if name not in SAMPLERS and not re.match(_OF_HUB, name):
        expected = f"{', '.join(map(repr, SAMPLERS))} or 'hub:samplers/NAME'"
        raise PydanticKnownError("literal_error", {"expected": expected})
    return name


def is_of_hub(sampler: str) -> bool:
    """Whether ``study.sampler`` names a sampler of OptunaHub."""
    return sampler == "auto" or sampler.startswith(HUB)


SourceName = Annotated[str, AfterValidator(_declared(plugins.SOURCES))]
BuilderName = Annotated[str, AfterValidator(_declared(plugins.BUILDERS))]
Backend = Literal["tensorflow", "jax", "torch"]
Precision = Literal["float32", "mixed_float16", "mixed_bfloat16", "auto"]
Scaler = Literal["standard", "minmax", "robust", "robust_smooth", "quantile", "none"]
BaselineKind = Literal["constant", "random_forest", "hist_gradient_boosting", "xgboost"]
Sampler = Annotated[str, AfterValidator(_sampler), WithJsonSchema(_SAMPLER_SCHEMA)]
Pruner = Literal["none", "median", "percentile", "hyperband", "successive_halving", "wilcoxon", "dominated"]
Schedule = Literal["plateau", "none"]
Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"

LONGEST_NAME = 230
"""A file system takes names of 255 bytes; ours add ``-12`` for a fork and ``.refused.jsonl``, and MLflow takes 256."""

MANY = 1_000_000
"""Bound of what is counted one by one: trials, epochs."""

TEN_YEARS_S = 315_360_000
"""Longer waits are more than clocks and sockets take."""

Count = Annotated[int, Field(ge=1, le=MANY)]
Few = Annotated[int, Field(ge=1, le=1024)]
Seconds = Annotated[float, Field(gt=0, le=TEN_YEARS_S)]
Side = Annotated[int, Field(ge=1, le=16_384)]
DeviceSeconds = Annotated[float, Field(gt=0, le=TEN_YEARS_S * 1000)]


@dataclass(frozen=True)
class Later:
    """Marks a field that is younger than recorded experiments: ``Annotated[Schedule, Later("plateau")]``.

    ``before`` is what versions without the field did: a record without the key has it, and `Experiment.contract` leaves
    the field out where it has this value.
    """

    before: Any


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, no conversion between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
