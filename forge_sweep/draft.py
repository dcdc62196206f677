"""A first experiment file, drafted from the rows and from the signature of a builder."""

from __future__ import annotations

import ast
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
from forge_sweep.experiment import Code, Hyperparameter, Scalar, parse, parse_data
from forge_sweep.experiment.code import is_own
from forge_sweep.experiment.code import read as read_code
from forge_sweep.preprocessing import is_tensor
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

    It reads the rows, so that what it names is there, and every range follows from a rule: see `searched`. A column
    that tells all rows apart becomes ``data.key``. Where a builder of the user's own takes inputs by other names than
    ``features``, ``[data.inputs]`` stands there as comments, to be filled in.

    Args:
        path: of a table, CSV or Parquet; the draft is to stand in the same folder, beside the builder's module.
        target: column that is predicted.
        task: by default ``binary`` for two values, ``multiclass`` for texts and for at most `MOST_CLASSES` different
            whole numbers, and ``regression`` for other numbers.
        builder: ``mlp``, a plugin, or ``module:function`` of the user's own.
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
    rows = _read({**data, "task": task or "regression"}, path.parent, texts=task is None)
    targets: pd.Series = pd.concat([split.targets[target] for split in (rows.train, rows.valid)])
    data["task"] = task or task_of(targets.dropna())
    if (key := key_of(rows.train.features)) is not None:
        data["key"] = key
    ranges, groups = {**(OF_MLP if builder == "mlp" else {}), **OF_ALL}, list[str]()
    if is_own(builder):
        code = read_code(builder, path.parent)
        own = {name: searched(known) for name, known in code.parameters.items() if name not in OF_ALL}
        ranges = {**{name: text for name, text in own.items() if text}, **OF_ALL}
        features = [name for name in rows.train.features if name != key]
        groups = [f"# {name} = {{ columns = {json.dumps(features, ensure_ascii=False)} }}" for name in _inputs(code)]
    lines = [
        f"name = {json.dumps(re.sub('[^A-Za-z0-9_.-]+', '-', place_of(path).stem).strip('-_.') or 'sweep')}",
        "\n[data]",
        *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in data.items()),
        *(["\n# [data.inputs]: say which columns each input of your builder has", *groups] if groups else []),
        *(["\n[model]", f"builder = {json.dumps(builder)}"] if builder != "mlp" else []),
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


def place_of(path: Path) -> Path:
    """Where the draft for these rows stands: beside them, by their name without ``.csv``, ``.csv.gz`` and so on."""
    bare = path.with_suffix("")
    return (bare if bare.suffix.lower() != ".csv" else bare.with_suffix("")).with_suffix(".toml")


def _read(data: dict[str, Any], root: Path, *, texts: bool) -> sources.Dataset:
    """The rows; where the task is not known (``texts``), a target that cannot be a number may be classes."""
    declared, _ = parse_data({"data": {**data, "split": {"stratify": False}}})
    try:
        return sources.load(declared, root=root, seed=0)
    except DataError:
        if not texts:
            raise
        return _read({**data, "task": "multiclass"}, root, texts=False)


def key_of(features: pd.DataFrame) -> str | None:
    """The first column that tells all rows apart: words, or whole numbers of a column whose name ends in ``id``."""
    for name, values in features.items():
        if is_tensor(values) or is_bool_dtype(values) or len(values) < 2 or not values.is_unique:
            continue
        if is_numeric_dtype(values):
            named = values.dtype.kind == "i" and str(name).lower().endswith("id")
        else:
            named = not values.astype(str).str.contains(r"\s").any()  # sentences are no names
        if named:
            return str(name)
    return None


def _inputs(code: Code) -> list[str]:
    """Names other than ``features`` by which the builder's module takes its inputs, as ``inputs["amounts"]``."""
    found = [
        node.slice.value
        for node in ast.walk(ast.parse(code.files[code.module]))
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == "inputs"
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
    ]
    return [name for name in dict.fromkeys(found) if name != "features"]


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
