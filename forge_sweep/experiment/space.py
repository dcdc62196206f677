"""Hyperparameters and the search space, in Optuna's words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Annotated, Any, Literal, overload

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Tag

Scalar = int | float | str | bool
Params = dict[str, Scalar]


def as_tuple(value: Any) -> Any:
    """A TOML list, or one value, as a tuple."""
    if isinstance(value, list):
        return tuple(value)
    return value if isinstance(value, tuple) else (value,)


def by_shape(value: Any) -> str:
    """Which arm of a `value or table` union a TOML value belongs to."""
    return "table" if isinstance(value, dict | BaseModel) else "value"


def one_scalar(value: Any) -> Any:
    """A number, a text, true or false; one mistake where it is something else, not one for each of them."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a finite number")
    if not isinstance(value, int | float | str | bool):
        raise ValueError("one value: a number, a text, true or false")
    return value


OneScalar = Annotated[Scalar, BeforeValidator(one_scalar)]


class Dimension(BaseModel):
    """One searched hyperparameter: ``{ type = "int", low = 16, high = 256, log = true }``.

    Attributes:
        type: ``int``, ``float`` or ``categorical``.
        low: least value, included (``int`` and ``float``).
        high: greatest value, included (``int`` and ``float``).
        step: distance between neighbouring values; not with ``log``. ``int`` without it has a step of 1.
        log: sample on a logarithmic scale; ``low`` must be above 0.
        choices: the values of a ``categorical``.
        when: the hyperparameter exists only where the others named here have this value, or one of these values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    type: Literal["int", "float", "categorical"]
    low: int | float | None = None
    high: int | float | None = None
    step: int | float | None = None
    log: bool = False
    choices: Annotated[tuple[OneScalar, ...], BeforeValidator(as_tuple)] = ()
    when: dict[str, Annotated[tuple[OneScalar, ...], BeforeValidator(as_tuple)]] = {}

    def active(self, params: Mapping[str, Scalar]) -> bool:
        """Whether the hyperparameter exists beside ``params``, the ones chosen before it."""
        return all(params.get(name) in values for name, values in self.when.items())

    def extremes(self) -> tuple[Scalar, ...]:
        """The values at the edge of what is tried, or all the choices."""
        if self.type == "categorical":
            return self.choices
        assert self.low is not None and self.high is not None  # held by the rules of the experiment file
        return (self.low, self.last)

    @property
    def last(self) -> int | float:
        """The greatest value that is tried: ``high``, or where ``step`` misses it the last step below.

        Exact in decimal notation: 0.3 is three steps of 0.1.
        """
        assert self.low is not None and self.high is not None
        if self.step is None:
            return self.high
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        last = low + (high - low) // step * step
        return self.high if last == high else int(last) if self.type == "int" else float(last)

    @property
    def size(self) -> int | None:
        """Number of values, or None where a float range without ``step`` has no end of them."""
        grid = self.grid()
        return None if grid is None else len(grid)

    def holds(self, value: Scalar) -> bool:
        """Whether a trial can have this value."""
        if self.type == "categorical":
            return value in self.choices
        if isinstance(value, str | bool) or self.low is None or self.high is None:
            return False
        if not self.low <= value <= self.high:
            return False
        grid = None if self.log else self.grid()
        if grid is None:
            return self.type == "float" or value == int(value)
        nearest = round((value - self.low) / (self.step or 1))
        return nearest < len(grid) and math.isclose(value, float(grid[nearest]), rel_tol=1e-9, abs_tol=1e-12)

    def grid(self) -> Sequence[Scalar] | None:
        """Every value in order, or None where a float range without ``step`` has no end of them."""
        if self.type == "categorical":
            return self.choices
        if self.type == "float" and self.step is None:
            return None
        assert self.low is not None and self.high is not None
        step = self.step or 1
        return Steps(self.low, step, int((self.high - self.low) / step + 1e-9) + 1)


@dataclass(frozen=True)
class Steps(Sequence[Scalar]):
    """Equally spaced numbers, each made when it is asked for: a range may have a million.

    Floats have 12 significant digits: 3 * 0.1 is 0.30000000000000004, which Optuna takes to lie above 0.3.
    """

    low: int | float
    step: int | float
    length: int

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Scalar: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Scalar, ...]: ...
    def __getitem__(self, index: int | slice) -> Scalar | tuple[Scalar, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self.length)))
        value = self.low + range(self.length)[index] * self.step
        return value if isinstance(value, int) else float(f"{value:.12g}")


SearchValue = Annotated[
    Annotated[Dimension, Tag("table")] | Annotated[OneScalar, Tag("value")],
    Discriminator(by_shape),
]


@dataclass(frozen=True)
class Hyperparameter:
    """What one hyperparameter may be.

    Attributes:
        type: ``int``, ``float``, ``choice`` (of names) or ``bool``.
        default: its value where the file does not name it; None where it then does not exist.
        low: least value allowed, included.
        high: greatest value allowed, included.
        choices: the names allowed for a ``choice``.
        doc: what it does, for the reference and for error messages.
    """

    type: Literal["int", "float", "choice", "bool"]
    default: Scalar | None
    doc: str
    low: float = float("-inf")
    high: float = float("inf")
    choices: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """The allowed values in words."""
        if self.type == "choice":
            return "one of " + ", ".join(f'"{choice}"' for choice in self.choices)
        if self.type == "bool":
            return "true or false"
        number = "a whole number" if self.type == "int" else "a number"
        if self.high == float("inf"):
            return f"{number} of at least {self.low:g}"
        return f"{number} from {self.low:g} to {self.high:g}"

    def accepts(self, value: Scalar) -> bool:
        """Whether ``value`` has the right type and lies in the allowed range."""
        if self.type == "choice":
            return isinstance(value, str) and value in self.choices
        if self.type == "bool" or isinstance(value, bool):
            return self.type == "bool" and isinstance(value, bool)
        if isinstance(value, str) or (self.type == "int" and not isinstance(value, int)):
            return False
        return self.low <= value <= self.high


SCALERS = ("standard", "minmax", "robust", "quantile", "none")

HYPERPARAMETERS: Mapping[str, Hyperparameter] = MappingProxyType(
    {
        "optimizer": Hyperparameter(
            "choice", "adam", "Optimizer of Keras.", choices=("adam", "adamw", "nadam", "rmsprop", "sgd")
        ),
        "learning_rate": Hyperparameter("float", 1e-3, "Initial learning rate.", low=1e-8, high=10.0),
        "momentum": Hyperparameter("float", None, "Momentum of sgd and rmsprop.", low=0.0, high=0.9999),
        "batch_size": Hyperparameter("int", 128, "Rows per gradient step.", low=1, high=1_048_576),
        "width": Hyperparameter("int", 64, "Units of the first hidden layer.", low=1, high=65_536),
        "depth": Hyperparameter("int", 2, "Number of hidden blocks.", low=1, high=64),
        "shape": Hyperparameter(
            "choice",
            "constant",
            "Widths over depth: all alike, or halved block by block.",
            choices=("constant", "taper"),
        ),
        "activation": Hyperparameter(
            "choice",
            "relu",
            "Activation of the hidden blocks.",
            choices=("relu", "gelu", "silu", "elu", "selu", "tanh", "leaky_relu", "mish"),
        ),
        "batch_norm": Hyperparameter("bool", True, "Batch normalisation before each activation."),
        "dropout": Hyperparameter("float", 0.0, "Share of units dropped after each activation.", low=0.0, high=0.95),
        "l2": Hyperparameter("float", 0.0, "L2 penalty on the hidden kernels.", low=0.0, high=10.0),
        "scaler": Hyperparameter(
            "choice", None, "Overrides preprocessing.scaler, so that it can be searched.", choices=SCALERS
        ),
    }
)
