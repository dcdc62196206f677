"""A drafted experiment file is one that `check` takes, and says what it took the rows for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from forge_sweep.cli import app
from forge_sweep.draft import draft, searched, task_of
from forge_sweep.experiment import Dimension, Hyperparameter, load

BUILDER = """
from typing import Literal
import keras

def build(inputs, heads, *, units: int = 64, dropout: float = 0.2, l2: float = 1e-4, skip: bool = False,
          activation: Literal["relu", "gelu"] = "relu", learning_rate: float = 1e-3, name: str = "net"):
    hidden = keras.layers.Dense(units, activation=activation)(inputs["features"])
    return keras.Model(inputs, heads.only.output(hidden))
"""


def rows(folder: Path) -> Path:
    """Two numbers, a text, and targets of each task."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=90), "b": rng.normal(size=90), "kind": ["x", "y", "z"] * 30})
    frame.assign(paid=rng.integers(0, 2, 90), price=rng.normal(size=90)).to_csv(folder / "loan book.csv", index=False)
    return folder / "loan book.csv"


@pytest.mark.parametrize(
    ("target", "task", "metric"),
    [("paid", "binary", "val_auc"), ("kind", "multiclass", "val_balanced_accuracy"), ("price", "regression", "val_r2")],
)
def test_a_draft_is_an_experiment_of_the_task_that_its_target_shows(
    target: str, task: str, metric: str, tmp_path: Path
) -> None:
    path = rows(tmp_path)
    done = CliRunner().invoke(app, ["init", str(path), "--target", target])
    assert done.exit_code == 0, done.output
    found = load(path.with_suffix(".toml"))
    assert (found.name, found.data.task, found.objective.metric) == ("loan-book", task, metric)
    again = CliRunner().invoke(app, ["init", str(path), "--target", target])
    assert again.exit_code != 0 and "is there already" in str(again.exception)


def test_the_ranges_of_an_own_builder_follow_from_its_signature(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(BUILDER)
    path = rows(tmp_path)
    (tmp_path / "loan.toml").write_text(draft(path, "paid", builder="net:build"))
    space = load(tmp_path / "loan.toml").space
    assert space["units"] == Dimension(type="int", low=16, high=256, log=True)
    assert space["dropout"] == Dimension(type="float", low=0.0, high=0.4)
    assert space["l2"] == Dimension(type="float", low=1e-5, high=1e-3, log=True)
    assert space["skip"] == Dimension(type="categorical", choices=(False, True))
    assert space["activation"] == Dimension(type="categorical", choices=("relu", "gelu"))
    assert space["name"] == "net" and isinstance(space["learning_rate"], Dimension) and "width" not in space


def test_an_id_becomes_the_key_and_inputs_by_name_are_left_to_the_user(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(BUILDER.replace('inputs["features"]', 'inputs["money"] + inputs["money"]'))
    path = rows(tmp_path)
    frame = pd.read_csv(path)
    frame.assign(loan_id=range(len(frame)), again=range(len(frame))).to_csv(path, index=False)
    text = draft(path, "paid", builder="net:build")
    assert 'key = "loan_id"' in text
    assert '# money = { columns = ["a", "b", "kind", "price", "again"] }\n' in text and text.count("# money") == 1


def test_bounds_of_the_signature_hold_and_what_cannot_be_told_stays() -> None:
    assert searched(Hyperparameter("int", 4, "", low=2, high=6)) == '{ type = "int", low = 2, high = 6, log = true }'
    assert searched(Hyperparameter("float", 0.0, "")) == "0.0"
    assert searched(Hyperparameter("int", 1, "", low=1, high=1)) == "1"
    assert searched(Hyperparameter("int", None, "")) == ""


def test_many_whole_numbers_are_a_quantity() -> None:
    assert task_of(pd.Series(range(21))) == "regression"
    assert task_of(pd.Series([*range(20)] * 2)) == "multiclass"


def test_a_column_that_is_not_there_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = rows(tmp_path)
    done = CliRunner().invoke(app, ["init", str(path), "--target", "payd"])
    assert done.exit_code != 0 and "payd" in str(done.exception or done.stderr)
    assert not path.with_suffix(".toml").exists()
