"""Hyperparameters and the search space, in Optuna's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal

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

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: Literal["int", "float", "categorical"]
    low: int | float | None = None
    high: int | float | None = None
    step: int | float | None = None
    log: bool = False
    choices: Annotated[tuple[Scalar, ...], BeforeValidator(as_tuple)] = ()
    when: dict[str, Annotated[tuple[Scalar, ...], BeforeValidator(as_tuple)]] = {}

    def active(self, params: Mapping[str, Scalar]) -> bool:
        """Whether the hyperparameter exists beside ``params``, the ones chosen before it."""
        return all(params.get(name) in values for name, values in self.when.items())

    def extremes(self) -> tuple[Scalar, ...]:
        """The values at the edge of the range, or all the choices."""
        if self.type == "categorical":
            return self.choices
        assert self.low is not None and self.high is not None  # held by the rules of the experiment file
        return (self.low, self.high)

    def grid(self) -> tuple[Scalar, ...] | None:
        """Every value in order, or None where a float range without ``step`` has no end of them.

        Floats have 12 significant digits: 3 * 0.1 is 0.30000000000000004, which Optuna takes to lie above 0.3.
        """
        if self.type == "categorical":
            return self.choices
        if self.type == "float" and self.step is None:
            return None
        assert self.low is not None and self.high is not None
        step = self.step or 1
        count = int((self.high - self.low) / step + 1e-9) + 1
        values = (self.low + i * step for i in range(count))
        return tuple(value if isinstance(value, int) else float(f"{value:.12g}") for value in values)


SearchValue = Annotated[
    Annotated[Dimension, Tag("table")] | Annotated[Scalar, Tag("value")],
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
