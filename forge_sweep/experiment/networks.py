"""The networks of the package as an experiment file sees them: what each takes, what is searched, what its paper says.

Data alone: nothing here builds one, so that a file is read without Keras. `forge_sweep.models.BUILDERS` has the same
names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forge_sweep.experiment.space import GENERAL, HYPERPARAMETERS, Dimension, Hyperparameter, Params


@dataclass(frozen=True)
class Network:
    """One kind of network.

    Attributes:
        hyperparameters: all that it takes, the general ones (`GENERAL`) among them, with their defaults.
        search: what is searched where an experiment has no [model.search].
        start: values of trial 0 that are not the defaults; see `Experiment.first`.
        study: defaults of keys under [study] where it is trained by a recipe, such as its epochs.
        scaler: default of ``preprocessing.scaler``.
    """

    hyperparameters: Mapping[str, Hyperparameter]
    search: Mapping[str, Dimension]
    start: Params = field(default_factory=dict)
    study: Mapping[str, Any] = field(default_factory=dict)
    scaler: str = "standard"


def general(**defaults: Any) -> dict[str, Hyperparameter]:
    """The general hyperparameters with other defaults, such as ``learning_rate=0.04``; None for none."""
    known = {name: HYPERPARAMETERS[name] for name in GENERAL}
    return known | {name: _with(known[name], value) for name, value in defaults.items()}


def _with(known: Hyperparameter, default: Any) -> Hyperparameter:
    return Hyperparameter(known.type, default, known.doc, known.low, known.high, known.choices)


def _sized(width: int, depth: int, dropout: float) -> dict[str, Hyperparameter]:
    """What the networks from papers have in common besides the general hyperparameters."""
    return {
        "width": Hyperparameter("int", width, "Units of each block.", low=1, high=4096),
        "depth": Hyperparameter("int", depth, "Number of blocks.", low=1, high=64),
        "dropout": Hyperparameter("float", dropout, "Share of units dropped in each block.", low=0.0, high=0.95),
    }


_ADAMW = {"optimizer": "adamw", "batch_size": 256}
_RESIDUAL = Hyperparameter("float", 0.0, "Share of what a block adds that is dropped.", low=0.0, high=0.95)
_RATES = Dimension(type="float", low=1e-4, high=5e-3, log=True)
_DROPOUT = Dimension(type="float", low=0.0, high=0.5)

NETWORKS: Mapping[str, Network] = {
    "mlp": Network(
        HYPERPARAMETERS,
        search={
            "width": Dimension(type="int", low=32, high=512, log=True),
            "depth": Dimension(type="int", low=1, high=4),
            "dropout": Dimension(type="float", low=0.0, high=0.5),
            "learning_rate": Dimension(type="float", low=3e-4, high=1e-2, log=True),
            "weight_decay": Dimension(type="float", low=1e-5, high=1e-1, log=True),
            "batch_size": Dimension(type="categorical", choices=(128, 256, 512)),
            "embedding": Dimension(type="categorical", choices=("none", "piecewise")),
        },
        start={
            "width": 256,
            "depth": 3,
            "dropout": 0.25,
            "learning_rate": 1e-3,
            "weight_decay": 3e-4,
            "batch_size": 256,
            "embedding": "piecewise",
        },
    ),
    "realmlp": Network(
        general(learning_rate=0.04, batch_size=256, schedule="coslog4")
        | {
            "width": Hyperparameter("int", 256, "Units of each hidden layer.", low=1, high=65_536),
            "depth": Hyperparameter("int", 3, "Number of hidden layers.", low=1, high=64),
            "activation": Hyperparameter(
                "choice",
                "auto",
                "Activation of the hidden layers; `auto` is SELU for classes and Mish for regression.",
                choices=("auto", "gelu", "mish", "relu", "selu", "silu"),
            ),
            "parametric": Hyperparameter("bool", False, "Each unit learns how much of the activation it takes."),
            "dropout": Hyperparameter(
                "float", 0.0, "Share of units dropped after each activation.", low=0.0, high=0.95
            ),
            "scale_rate": Hyperparameter(
                "float", 6.0, "Rate of the learned scale of each input, as a multiple.", low=0.01, high=100.0
            ),
            "embedding": Hyperparameter(
                "choice",
                "none",
                "`pbld`: 16 waves of each column, mapped to three values beside the column itself.",
                choices=("none", "pbld"),
            ),
            "embedding_sigma": Hyperparameter(
                "float", 0.1, "Spread of the first frequencies of `pbld`.", low=1e-4, high=100.0
            ),
        },
        search={
            "width": Dimension(type="categorical", choices=(256, 384, 512)),
            "depth": Dimension(type="int", low=2, high=4),
            "dropout": Dimension(type="float", low=0.0, high=0.5),
            "learning_rate": Dimension(type="float", low=0.02, high=0.3, log=True),
            "scale_rate": Dimension(type="float", low=2.0, high=10.0, log=True),
            "embedding": Dimension(type="categorical", choices=("none", "pbld")),
            "embedding_sigma": Dimension(type="float", low=0.01, high=50.0, log=True, when={"embedding": ("pbld",)}),
        },
        study={"epochs": 256, "patience": 256},
        scaler="robust_smooth",
    ),
    "tabm": Network(
        {
            **general(**_ADAMW, learning_rate=2e-3, weight_decay=3e-4, clip_norm=1.0),
            **_sized(128, 3, 0.1),
            "members": Hyperparameter("int", 8, "Members that share most weights.", low=1, high=256),
            "full": Hyperparameter("bool", False, "Weights of each member around every dense layer: TabM, not -mini."),
            "embedding": Hyperparameter("int", 12, "Values that a number is embedded in; 0: none.", low=0, high=256),
            "bins": Hyperparameter("int", 16, "Bins of the embedding of a number.", low=2, high=256),
        },
        search={
            "width": Dimension(type="int", low=64, high=256, log=True),
            "depth": Dimension(type="int", low=2, high=4),
            "dropout": _DROPOUT,
            "embedding": Dimension(type="int", low=8, high=32, step=4),
            "bins": Dimension(type="int", low=8, high=64),
            "learning_rate": _RATES,
            "weight_decay": Dimension(type="float", low=1e-4, high=1e-1, log=True),
        },
        study={"patience": 16},
        scaler="robust_smooth",
    ),
    "resnet": Network(
        {
            **general(**_ADAMW, learning_rate=1e-3, weight_decay=1e-5),
            **_sized(192, 3, 0.2),
            "hidden_factor": Hyperparameter("float", 2.0, "Width inside a block, in widths.", low=0.1, high=16.0),
            "residual_dropout": _RESIDUAL,
        },
        search={
            "width": Dimension(type="int", low=64, high=512, log=True),
            "depth": Dimension(type="int", low=1, high=8),
            "hidden_factor": Dimension(type="float", low=1.0, high=4.0),
            "dropout": _DROPOUT,
            "learning_rate": _RATES,
            "weight_decay": Dimension(type="float", low=1e-6, high=1e-3, log=True),
        },
        study={"patience": 16},
        scaler="quantile",
    ),
    "ft_transformer": Network(
        {
            **general(**_ADAMW, learning_rate=1e-4, weight_decay=1e-5),
            **_sized(64, 3, 0.1),
            "hidden_factor": Hyperparameter("float", 4 / 3, "Width of the gated layer, in widths.", low=0.1, high=16.0),
            "attention_dropout": Hyperparameter("float", 0.2, "Share of attention dropped.", low=0.0, high=0.95),
            "residual_dropout": _RESIDUAL,
        },
        search={
            "width": Dimension(type="int", low=32, high=256, step=8),
            "depth": Dimension(type="int", low=1, high=6),
            "dropout": _DROPOUT,
            "attention_dropout": _DROPOUT,
            "learning_rate": Dimension(type="float", low=1e-5, high=1e-3, log=True),
            "weight_decay": Dimension(type="float", low=1e-6, high=1e-3, log=True),
        },
        study={"patience": 16},
        scaler="quantile",
    ),
}
"""By ``model.builder``."""

UNNAMED = "tabm"
"""The network of a file that names none and searches no space of its own: the best of those that were tried on most of
the yard-stick's tables of up to 26,000 rows (decision 49)."""


def with_defaults(builder: str, params: Params) -> Params:
    """All hyperparameters of a builder that have a value, those of ``params`` before the defaults."""
    known = hyperparameters_of(builder).items()
    return {**{name: each.default for name, each in known if each.default is not None}, **params}


def hyperparameters_of(builder: str) -> Mapping[str, Hyperparameter]:
    """What a network of the package, or a plugin's, takes: a plugin those of `mlp`."""
    return NETWORKS[builder].hyperparameters if builder in NETWORKS else HYPERPARAMETERS
