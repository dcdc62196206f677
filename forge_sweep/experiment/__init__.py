"""The experiment file: TOML in, one frozen and closed `Experiment` out."""

from __future__ import annotations

from forge_sweep.experiment.code import Code
from forge_sweep.experiment.data import DataSpec, HeadSpec, InputGroup, SplitSpec
from forge_sweep.experiment.fields import Later
from forge_sweep.experiment.loading import json_schema, load, parse, parse_data, restore, toml_value
from forge_sweep.experiment.networks import NETWORKS, UNNAMED, Network, general, hyperparameters_of, with_defaults
from forge_sweep.experiment.space import GENERAL, HYPERPARAMETERS, SCALERS, Dimension, Hyperparameter, Params, Scalar
from forge_sweep.experiment.spec import (
    BUDGET_FIELDS,
    ROW_SHARES,
    Experiment,
    ModelSpec,
    PreprocessingSpec,
    PromotionSpec,
    StudySpec,
    TuneSpec,
    WorkersSpec,
    derived_seed,
    flatten,
    is_budget,
)

__all__ = [
    "BUDGET_FIELDS",
    "GENERAL",
    "HYPERPARAMETERS",
    "NETWORKS",
    "ROW_SHARES",
    "SCALERS",
    "UNNAMED",
    "Code",
    "DataSpec",
    "Dimension",
    "Experiment",
    "HeadSpec",
    "Hyperparameter",
    "InputGroup",
    "Later",
    "ModelSpec",
    "Network",
    "Params",
    "PreprocessingSpec",
    "PromotionSpec",
    "Scalar",
    "SplitSpec",
    "StudySpec",
    "TuneSpec",
    "WorkersSpec",
    "derived_seed",
    "flatten",
    "general",
    "hyperparameters_of",
    "is_budget",
    "json_schema",
    "load",
    "parse",
    "parse_data",
    "restore",
    "toml_value",
    "with_defaults",
]
