"""A first experiment file, drafted from the rows and from the signature of a builder."""

from __future__ import annotations

import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from forge_sweep import sources
from forge_sweep.errors import DataError
from forge_sweep.experiment import Hyperparameter, Scalar, parse, parse_data
from forge_sweep.experiment.code import is_own
from forge_sweep.experiment.code import read as read_code
from forge_sweep.task import TaskKind

MOST_CLASSES = 20
"""Distinct whole numbers up to which a target is taken for classes."""

METRIC: dict[str, str] = {"binary": "val_auc", "multiclass": "val_balanced_accuracy", "regression": "val_r2"}
"""The objective of a draft, by task."""

OF_MLP = {
    "width": '{ type = "int", low = 16, high = 256, log = true }',
    "depth": '{ type = "int", low = 1, high = 4 }',
    "dropout": '{ type = "float", low = 0.0, high = 0.5 }',
}
OF_ALL = {
    "learning_rate": '{ type = "float", low = 1e-4, high = 1e-2, log = true }',
    "batch_size": '{ type = "categorical", choices = [64, 128, 256] }',
}
"""What is searched with any network."""


def draft(
    path: Path, target: str, *, task: TaskKind | None = None, builder: str = "mlp", separator: str | None = None
) -> str:
    """An experiment file for these rows, to be read, changed and run.

    It reads the rows, so that what it names is there, and every range follows from a rule: see `searched`.

    Args:
        path: of a table, CSV or Parquet; the draft is to stand in the same folder, beside the builder's module.
        target: column that is predicted.
        task: by default ``binary`` for two values, ``multiclass`` for texts and for at most `MOST_CLASSES` different
            whole numbers, and ``regression`` for other numbers.
        builder: ``mlp``, or ``module:function`` of the user's own.
        separator: of a CSV file, where it is not a comma.

    Returns:
        TOML, which `experiment.parse` takes.

    Raises:
        DataError: the rows cannot be read, or have no such column.
        ExperimentError: there is no such builder, or its signature cannot be read.
    """
    data: dict[str, Any] = {"path": path.name, "target": target, "task": task}
    if separator is not None:
        data["separator"] = separator
    if task is None:
        try:
            data["task"] = task_of(_targets({**data, "task": "regression"}, path.parent))
        except DataError:  # of texts, or of what a second look says as well
            data["task"] = task_of(_targets({**data, "task": "multiclass"}, path.parent))
    else:
        _targets(data, path.parent)
    ranges = {**OF_MLP, **OF_ALL}
    if is_own(builder):
        code = read_code(builder, path.parent)
        own = {name: searched(known) for name, known in code.parameters.items() if name not in OF_ALL}
        ranges = {**{name: text for name, text in own.items() if text}, **OF_ALL}
    lines = [
        f"name = {json.dumps(re.sub('[^A-Za-z0-9_.-]+', '-', path.stem).strip('-_.') or 'sweep')}",
        "\n[data]",
        *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in data.items()),
        *(["\n[model]", f"builder = {json.dumps(builder)}"] if is_own(builder) else []),
        "\n[model.search]",
        *(f"{name} = {text}" for name, text in ranges.items()),
        "\n[objective]",
        f"metric = {json.dumps(METRIC[data['task']])}",
        "\n[study]",
        "n_trials = 40",
    ]
    text = "\n".join(lines) + "\n"
    parse(tomllib.loads(text), root=path.parent)
    return text


def _targets(data: dict[str, Any], root: Path) -> pd.Series:
    """The values that are not missing, of train and validation."""
    declared, _ = parse_data({"data": {**data, "split": {"stratify": False}}})
    rows = sources.load(declared, root=root, seed=0)
    values: pd.Series = pd.concat([split.targets[data["target"]] for split in (rows.train, rows.valid)])
    return values.dropna()


def task_of(values: pd.Series) -> TaskKind:
    """What a column without missing values is predicted as; see `draft`."""
    different = values.nunique()
    if different <= 2:
        return "binary"
    if not is_numeric_dtype(values) or is_bool_dtype(values):
        return "multiclass"
    whole = bool(np.equal(np.mod(values.to_numpy(np.float64), 1), 0).all())
    return "multiclass" if whole and different <= MOST_CLASSES else "regression"


def searched(known: Hyperparameter) -> str:
    """A range around the default of a hyperparameter, as TOML; "" where there is no telling.

    Choices and booleans are all tried. A whole number goes from a quarter of its default to four times it; a number
    below 0.05 from a tenth to ten times, one from 0.05 to 1 from 0 to twice it, but below 1, and a greater one from a
    quarter to four times. Bounds of the signature hold. A text, and a number whose default is 0, stay as they are.
    """
    default = known.default
    if known.choices or known.type == "bool":
        choices: tuple[Scalar, ...] = known.choices or (False, True)
        return f'{{ type = "categorical", choices = {json.dumps(choices)} }}'
    if default is None or known.type == "choice":
        return "" if default is None else json.dumps(default)
    assert not isinstance(default, str)
    if default <= 0:
        return json.dumps(default)
    log = known.type == "int" or not 0.05 <= default < 1
    low: float
    high: float
    if known.type == "int":
        low, high = max(1, int(default) // 4), 4 * int(default)
    elif default < 0.05:
        low, high = default / 10, default * 10
    else:
        low, high = (0.0, min(2 * default, 0.9)) if default < 1 else (default / 4, default * 4)
    low, high = max(low, known.low), min(high, known.high)
    if known.type == "int":
        low, high = math.ceil(low), math.floor(high)
    if not low < high:
        return json.dumps(default)
    ends = ", ".join(f"{name} = {json.dumps(_short(end))}" for name, end in (("low", low), ("high", high)))
    scale = ", log = true" if log and low > 0 else ""
    return f'{{ type = "{known.type}", {ends}{scale} }}'


def _short(end: float) -> int | float:
    return end if isinstance(end, int) else float(f"{end:.3g}")
