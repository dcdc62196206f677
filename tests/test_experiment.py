"""The experiment file: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import copy
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_sweep.errors import ExperimentError, InputError
from forge_sweep.experiment import Dimension, flatten, json_schema, load, parse, restore

BASE = """
name = "fraud"
seed = 7
[data]
path = "fraud.csv"
target = "is_fraud"
task = "binary"
[model.search]
width = { type = "int", low = 16, high = 256, log = true }
depth = { type = "int", low = 1, high = 4 }
[objective]
metric = "val_auc"
"""


def base() -> dict[str, Any]:
    """A small experiment without mistakes."""
    return tomllib.loads(BASE)


def with_values(**values: Any) -> dict[str, Any]:
    """The base with ``section__key=value`` set."""
    raw = base()
    for path, value in values.items():
        *parents, last = path.split("__")
        table = raw
        for parent in parents:
            table = table.setdefault(parent, {})
        table[last] = value
    return raw


def mistakes(raw: dict[str, Any]) -> dict[str, str]:
    """TOML path -> message of every mistake."""
    with pytest.raises(ExperimentError) as caught:
        parse(raw, root=Path())
    return {mistake.path: str(mistake) for mistake in caught.value.mistakes}


def test_a_file_without_mistakes_gives_a_complete_experiment(tmp_path: Path) -> None:
    """Defaults are filled in and the direction follows from the metric."""
    path = tmp_path / "fraud.toml"
    path.write_text(BASE)
    experiment = load(path)
    assert experiment.direction == "maximize"
    assert experiment.root == tmp_path
    assert experiment.model_name == "fraud"
    assert experiment.data.target == ("is_fraud",)
    assert experiment.space["learning_rate"] == 1e-3
    assert isinstance(experiment.space["width"], Dimension)


def test_five_mistakes_are_listed_at_once() -> None:
    """One bad key hides no other mistake, not even a contradiction that involves its own section."""
    raw = with_values(
        data__taget="x",
        data__task="regression",
        study__n_trials="40",
        study__pruner="hyperbnd",
        preprocessing__scaler="std",
    )
    found = mistakes(raw)
    assert set(found) == {"data.taget", "objective.metric", "study.n_trials", "study.pruner", "preprocessing.scaler"}
    assert 'did you mean "target"?' in found["data.taget"]
    assert 'did you mean "hyperband"?' in found["study.pruner"]
    assert '"40"' in found["study.n_trials"] and "a whole number" in found["study.n_trials"]


CONTRADICTIONS = [
    ({"data__stratfy": True}, "data.stratfy", "did you mean data.split.stratify?"),
    ({"objective__metric": "val_rmse"}, "objective.metric", "a metric of binary"),
    ({"objective__metric": "auc"}, "objective.metric", 'did you mean "val_auc"?'),
    ({"objective__metric": "test_auc"}, "objective.metric", "looked at once"),
    ({"objective__direction": "minimize"}, "objective.direction", '"maximize", the direction of val_auc'),
    ({"data__name": "iris"}, "data.name", 'data.source = "file"'),
    ({"data__source": "sample"}, "data.name", "a value"),
    ({"data__target": ["a", "b"]}, "data.target", "one column for binary"),
    ({"data__task": "multilabel"}, "data.target", "two or more columns"),
    ({"data__drop": "is_fraud"}, "data.drop", "data.target already"),
    ({"data__split": {"kind": "time"}}, "data.split.time", "a column name"),
    ({"data__split": {"time": "when"}}, "data.split.time", 'set data.split.kind = "time"'),
    ({"data__split": {"train": 0.9}}, "data.split", "train + valid + test = 1.2"),
    ({"data__path": {"train": "a.csv", "test": "b.csv"}}, "data.path", "train, valid and test"),
    ({"data__positive": 1, "data__task": "regression", "objective__metric": "val_r2"}, "data.positive", "only binary"),
    ({"model__loss": "categorical_crossentropy"}, "model", "1 unit"),
    ({"model__activation": "softmax"}, "model", "always 1.0"),
    ({"model__from_logits": True, "model__activation": "sigmoid"}, "model", "on top of sigmoid"),
    ({"model__activation": "linear"}, "model", "raw outputs"),
    ({"model__search__widht": 3}, "model.search.widht", 'did you mean "width"?'),
    ({"model__search__width": 1.5}, "model.search.width", "a whole number"),
    ({"model__search__width": {"type": "int", "low": 9, "high": 3}}, "model.search.width", "low below high"),
    ({"model__search__width": {"type": "int", "low": 1}}, "model.search.width.high", "a number"),
    ({"model__search__width": {"type": "float", "low": 1.0, "high": 9.0}}, "model.search.width.type", '"int"'),
    (
        {"model__search__dropout": {"type": "float", "low": 0.0, "high": 1.5}},
        "model.search.dropout.high",
        "from 0 to 0.95",
    ),
    ({"model__search__l2": {"type": "float", "low": 0.0, "high": 0.1, "log": True}}, "model.search.l2.low", "above 0"),
    (
        {"model__search__optimizer": {"type": "categorical", "choices": ["adam", "sdg"]}},
        "model.search.optimizer.choices",
        'did you mean "sgd"?',
    ),
    (
        {"model__search__momentum": {"type": "float", "low": 0.5, "high": 0.9}},
        "model.search.momentum",
        'add when = { optimizer = "sgd" }',
    ),
    (
        {"model__search__dropout": {"type": "float", "low": 0.0, "high": 0.5, "when": {"deph": 2}}},
        "model.search.dropout.when.deph",
        'did you mean "depth"?',
    ),
    (
        {"model__search__dropout": {"type": "float", "low": 0.0, "high": 0.5, "when": {"depth": 9}}},
        "model.search.dropout.when.depth",
        "a value that depth can take",
    ),
    ({"study__sampler": "grid", "study__n_trials": 2000}, "study.n_trials", "at most 964"),
    (
        {"study__sampler": "grid", "model__search__l2": {"type": "float", "low": 0.0, "high": 0.1}},
        "model.search.l2.step",
        "a step",
    ),
    ({"preprocessing__scaler": "robust", "model__search__scaler": "minmax"}, "model.search.scaler", "one place"),
    (
        {"model__class_weight": "balanced", "data__task": "regression", "objective__metric": "val_r2"},
        "model.class_weight",
        "regression",
    ),
    ({"name": "a/b"}, "name", "letters, digits"),
    ({"backend": "theano"}, "backend", "tensorflow"),
]


@pytest.mark.parametrize(("values", "path", "words"), CONTRADICTIONS)
def test_a_contradiction_is_refused_by_its_toml_path(values: dict[str, Any], path: str, words: str) -> None:
    """Each mistake names its key and says what was expected."""
    found = mistakes(with_values(**values))
    assert path in found, found
    assert words in found[path]


def test_one_path_per_split_implies_the_kind_of_split() -> None:
    """Nothing more needs to be written than the three paths."""
    raw = with_values(data__path={"train": "a.csv", "valid": "b.csv", "test": "c.csv"})
    assert parse(raw, root=Path()).data.split.kind == "files"


def test_overrides_are_toml_values_and_are_recorded() -> None:
    """A number stays a number, a bare word is text, a whole table is a table."""
    words = ["study.n_trials=4", "description=a small one", "model.search.width=32", "study.sampler=random"]
    experiment = parse(base(), root=Path(), overrides=words)
    assert experiment.study.n_trials == 4
    assert experiment.description == "a small one"
    assert experiment.space["width"] == 32
    assert experiment.overrides == tuple(words)


@pytest.mark.parametrize("word", ["n_trials", "=3", "study=3"])
def test_a_broken_override_is_refused(word: str) -> None:
    """The message shows the form that was expected."""
    with pytest.raises(ExperimentError):
        parse(base(), root=Path(), overrides=[word])


def test_the_contract_ignores_the_budget_and_nothing_else() -> None:
    """More trials extend a sweep; other epochs make another one."""
    contract = parse(base(), root=Path()).contract()
    assert parse(with_values(study__n_trials=99, description="x", confirm__top=1), root=Path()).contract() == contract
    assert parse(with_values(study__epochs=99), root=Path()).contract() != contract
    assert parse(with_values(seed=8), root=Path()).contract() != contract
    assert parse(base(), root=Path("elsewhere")).contract() == contract


def test_conditional_hyperparameters_come_after_their_conditions() -> None:
    """So that a sampler knows the condition when it reaches them."""
    search = {
        "batch_size": {"type": "int", "low": 8, "high": 64, "when": {"depth": [1, 2]}},
        "depth": {"type": "int", "low": 1, "high": 4},
    }
    space = parse(with_values(model__search=search), root=Path()).space
    assert list(space).index("batch_size") > list(space).index("depth")
    dimension = space["batch_size"]
    assert isinstance(dimension, Dimension)
    assert dimension.active({"depth": 2}) and not dimension.active({"depth": 3})


def test_a_missing_file_and_broken_toml_are_input_errors(tmp_path: Path) -> None:
    """Both name the file."""
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    with pytest.raises(InputError, match=r"broken\.toml is not TOML"):
        load(broken)


def test_the_json_schema_describes_what_a_file_may_hold() -> None:
    """Internal fields are not part of it."""
    schema = json_schema()
    assert "study" in schema["properties"] and "root" not in schema["properties"]
    assert schema["required"] == ["name", "data", "objective"]


@pytest.mark.parametrize("scaler", [[], ["model__search__scaler"]], ids=["stated", "searched"])
def test_the_resolved_experiment_reads_back_as_the_same_experiment(scaler: list[str]) -> None:
    """What is recorded with a run is enough to run it again; its defaults do not contradict what is searched."""
    searched = {key: {"type": "categorical", "choices": ["standard", "robust"]} for key in scaler}
    experiment = parse(
        with_values(model__search__momentum=0.9, model__search__optimizer="sgd", **searched), root=Path()
    )
    again = restore(json.loads(experiment.model_dump_json()), root=Path())
    assert again.resolved() == experiment.resolved() and again.contract() == experiment.contract()


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
)
junk = scalars | st.dictionaries(st.sampled_from(["type", "low", "high", "kind", "path", "x"]), scalars, max_size=3)


@given(st.sampled_from(sorted(flatten(base()))), junk)
def test_any_value_anywhere_is_accepted_or_refused_but_never_crashes(path: str, value: Any) -> None:
    """The only way out besides an experiment is the list of mistakes."""
    raw = copy.deepcopy(base())
    *parents, last = path.split(".")
    table = raw
    for parent in parents:
        table = table[parent]
    table[last] = value
    try:
        parse(raw, root=Path())
    except ExperimentError as error:
        assert error.mistakes
