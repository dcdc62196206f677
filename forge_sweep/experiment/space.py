"""Hyperparameters and the search space, in Optuna's words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Tag

Scalar = int | float | str | bool
Params = dict[str, Scalar]


def as_tuple(value: Any) -> Any:
    """A TOML list, or one value, as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


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
    """One searched hyperparameter: ``{ type = "int", low = 16, high = 256, log = true }``, both ends included.

    Attributes:
        type: ``int``, ``float`` or ``categorical``.
        low: least value of a number.
        high: greatest value of a number.
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
        """The greatest value that is tried: ``high``, or the last step below it; 0.3 is three steps of 0.1."""
        assert self.low is not None and self.high is not None
        if self.step is None:
            return self.high
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        last = low + (high - low) // step * step
        return self.high if last == high else int(last) if self.type == "int" else float(last)

    def holds(self, value: Scalar) -> bool:
        """Whether a trial can have this value."""
        if self.type == "categorical":
            return value in self.choices
        if isinstance(value, str | bool) or self.low is None or self.high is None or not self.low <= value <= self.high:
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

    def __getitem__(self, index: Any) -> Any:
        value = self.low + range(self.length)[index] * self.step
        return value if isinstance(value, int) else float(f"{value:.12g}")


SearchValue = Annotated[
    Annotated[Dimension, Tag("table")] | Annotated[OneScalar, Tag("value")], Discriminator(by_shape)
]


@dataclass(frozen=True)
class Hyperparameter:
    """What one hyperparameter may be; it does not exist where the file does not name it and the default is None.

    A ``choice`` without choices is any text.
    """

    type: Literal["int", "float", "choice", "bool"]
    default: Scalar | None
    doc: str
    low: float = float("-inf")
    high: float = float("inf")
    choices: tuple[Scalar, ...] = ()

    @property
    def expected(self) -> str:
        """The allowed values in words."""
        if self.type == "choice":
            return f"one of {', '.join(map(json.dumps, self.choices))}" if self.choices else "a text in quotes"
        if self.type == "bool":
            return "true or false"
        number = "a whole number" if self.type == "int" else "a number"
        if self.high == float("inf"):
            return number if self.low == float("-inf") else f"{number} of at least {self.low:g}"
        if self.low == float("-inf"):
            return f"{number} of at most {self.high:g}"
        return f"{number} from {self.low:g} to {self.high:g}"

    def accepts(self, value: Scalar) -> bool:
        """Whether ``value`` has the right type and lies in the allowed range."""
        if self.type == "choice":
            if not self.choices:
                return isinstance(value, str)
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        if self.type == "bool" or isinstance(value, bool):
            return self.type == "bool" and isinstance(value, bool)
        if isinstance(value, str) or (self.type == "int" and not isinstance(value, int)):
            return False
        return self.low <= value <= self.high


SCALERS = ("standard", "minmax", "robust", "robust_smooth", "quantile", "none")

HYPERPARAMETERS: Mapping[str, Hyperparameter] = {
    "optimizer": Hyperparameter(
        "choice", "adam", "Optimizer of Keras.", choices=("adam", "adamw", "nadam", "rmsprop", "sgd")
    ),
    "learning_rate": Hyperparameter("float", 1e-3, "Initial learning rate.", low=1e-8, high=10.0),
    "momentum": Hyperparameter("float", None, "Momentum of sgd and rmsprop.", low=0.0, high=0.9999),
    "batch_size": Hyperparameter("int", 128, "Rows per gradient step.", low=1, high=1_048_576),
    "width": Hyperparameter("int", 64, "Units of the first hidden layer.", low=1, high=65_536),
    "depth": Hyperparameter("int", 2, "Number of hidden blocks.", low=1, high=64),
    "shape": Hyperparameter(
        "choice", "constant", "Widths over depth: all alike, or halved block by block.", choices=("constant", "taper")
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
    "embedding": Hyperparameter(
        "choice",
        None,
        "Embedding of each column before the first block: `piecewise` linear between quantiles, or `periodic` waves "
        "(Gorishniy et al. 2022); without it `none`.",
        choices=("none", "piecewise", "periodic"),
    ),
    "embedding_dims": Hyperparameter(
        "int", None, "Values that an embedded column becomes; without it 12.", low=1, high=512
    ),
    "embedding_bins": Hyperparameter(
        "int", None, "Most bins of `piecewise`, or frequencies of `periodic`; without it 32.", low=2, high=512
    ),
    "embedding_sigma": Hyperparameter(
        "float", None, "Spread of the first frequencies of `periodic`; without it 0.1.", low=1e-4, high=100.0
    ),
    "scaler": Hyperparameter(
        "choice", None, "Overrides preprocessing.scaler, so that it can be searched.", choices=SCALERS
    ),
    "schedule": Hyperparameter(
        "choice",
        None,
        "How the learning rate goes over the steps of `study.epochs`: `cosine` falls to 0, `one_cycle` rises from 1/25 "
        "of it and falls to nearly 0, `coslog4` rises and falls four times, each time as long as before and twice as "
        "long again (RealMLP), `reduce_on_plateau` and `constant` are what `plateau` and `none` are of "
        "`study.schedule`, which holds by default.",
        choices=("constant", "coslog4", "cosine", "one_cycle", "reduce_on_plateau"),
    ),
    "warmup": Hyperparameter(
        "float",
        None,
        "Share of the steps of `study.epochs` over which the learning rate rises to `learning_rate` in a straight "
        "line; without it 0.3 for `one_cycle` and 0 for the others.",
        low=0.0,
        high=0.9,
    ),
    "weight_decay": Hyperparameter(
        "float",
        None,
        "Decoupled weight decay of any optimizer, as in AdamW; without it 0.004 for `adamw` and none for the others.",
        low=0.0,
        high=1.0,
    ),
    "clip_norm": Hyperparameter(
        "float", None, "Norm of all gradients together down to which they are scaled; 0 for none.", low=0.0, high=1e6
    ),
    "ema": Hyperparameter(
        "float",
        None,
        "Momentum of a moving average of the weights, such as 0.99. The averages are validated and kept; training goes "
        "on with the weights themselves. 0 for none.",
        low=0.0,
        high=0.99999,
    ),
    "label_smoothing": Hyperparameter(
        "float",
        None,
        "Share by which the targets of the cross-entropies are drawn to equal probabilities, in training only; not for "
        "`sparse_categorical_crossentropy`.",
        low=0.0,
        high=0.9,
    ),
}

GENERAL = (
    *("optimizer", "learning_rate", "momentum", "batch_size", "scaler"),
    *("schedule", "warmup", "weight_decay", "clip_norm", "ema", "label_smoothing"),
)
"""The hyperparameters that mean the same whatever network is built; the others are the builder's own."""
