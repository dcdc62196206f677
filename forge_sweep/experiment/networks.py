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


NETWORKS: Mapping[str, Network] = {
    "mlp": Network(
        HYPERPARAMETERS,
        search={
            "width": Dimension(type="int", low=32, high=512, log=True),
            "depth": Dimension(type="int", low=1, high=4),
            "dropout": Dimension(type="float", low=0.0, high=0.5),
            "learning_rate": Dimension(type="float", low=3e-4, high=1e-2, log=True),
            "weight_decay": Dimension(type="float", low=1e-5, high=1e-1, log=True),
        },
        start={"width": 256, "depth": 3, "dropout": 0.1, "learning_rate": 2e-3, "weight_decay": 3e-4},
    ),
}
"""By ``model.builder``."""


def hyperparameters_of(builder: str) -> Mapping[str, Hyperparameter]:
    """What a network of the package, or a plugin's, takes: a plugin those of `mlp`."""
    return NETWORKS[builder].hyperparameters if builder in NETWORKS else HYPERPARAMETERS
