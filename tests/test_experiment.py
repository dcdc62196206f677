"""The experiment file: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import copy
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from forge_sweep import plugins
from forge_sweep.errors import ExperimentError, InputError
from forge_sweep.experiment import (
    GENERAL,
    HYPERPARAMETERS,
    NETWORKS,
    UNNAMED,
    Dimension,
    Experiment,
    Later,
    StudySpec,
    flatten,
    json_schema,
    load,
    parse,
    restore,
)
from forge_sweep.models import BUILDERS

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
    ({"objective__metric": "test_auc"}, "objective.metric", "evaluated once"),
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


class _LaterStudy(StudySpec):
    """``[study]`` of a later version: two new keys; of one the default is not what was done before."""

    averaging: int = Field(0)
    pace: Annotated[str, Later("slow")] = Field("fast")


class _LaterExperiment(Experiment):
    study: _LaterStudy = Field(default_factory=_LaterStudy)
    purpose: str = Field("search")


def _later(**study: Any) -> Experiment:
    values = parse(base(), root=Path()).resolved()
    return _LaterExperiment.model_validate({**values, "study": {**values["study"], **study}})


def test_a_key_added_to_the_schema_is_no_difference_to_what_was_recorded_before_it() -> None:
    """An absent key has its default, or the value that stands for what was done before."""
    recorded = json.loads(json.dumps(parse(base(), root=Path()).resolved()))
    assert _later(pace="slow").differences(recorded) == {}
    assert _later(averaging=2).differences(recorded) == {
        "study.averaging": "study.averaging: 0 -> 2",
        "study.pace": 'study.pace: "slow" -> "fast"',
    }


def test_a_key_at_the_value_for_what_was_done_before_is_not_in_the_contract() -> None:
    """Marked `Later`, it leaves the digests of recorded experiments as they are."""

    class Marked(Experiment):
        purpose: Annotated[str, Later("search")] = Field("else")

    experiment = parse(base(), root=Path())
    values = experiment.resolved()
    assert Marked.model_validate({**values, "purpose": "search"}).contract() == experiment.contract()
    assert Marked.model_validate(values).contract() != experiment.contract()


def test_order_spelling_and_written_out_defaults_are_no_differences() -> None:
    """1 and 1.0 are one number, and a hyperparameter fixed at its default is as good as absent."""
    search = {"dropout": {"type": "float", "low": 0, "high": 0.5}, "width": 32}
    experiment = parse(with_values(model__search=search), root=Path())
    recorded = json.loads(json.dumps(experiment.resolved()))
    search = recorded["model"]["search"]
    assert (search["dropout"]["low"], search["dropout"].pop("step"), search["dropout"].pop("when")) == (0, None, {})
    search["dropout"]["low"] = 0.0
    search["depth"] = HYPERPARAMETERS["depth"].default
    recorded["preprocessing"]["fill"] = 0
    del recorded["preprocessing"]["scaler"]
    recorded["model"]["search"] = dict(reversed(search.items()))
    assert experiment.differences(dict(reversed(recorded.items()))) == {}


def test_a_real_change_is_named_and_a_budget_is_none() -> None:
    """With the value before and after; true is not 1."""
    changed = parse(with_values(study__epochs=99, study__n_trials=7, data__positive=True), root=Path())
    recorded = parse(with_values(data__positive=1), root=Path()).resolved()
    recorded["study"]["gone"] = 3
    assert changed.differences(recorded) == {
        "data.positive": "data.positive: 1 -> true",
        "study.epochs": f"study.epochs: {recorded['study']['epochs']} -> 99",
        "study.gone": "study.gone: 3 -> (none)",
    }


TEN_LINES = {
    "name": "ten",
    "data": {"path": "rows.csv", "target": "y", "task": "binary"},
    "objective": {"metric": "val_auc"},
}


def test_without_a_space_the_builders_own_is_searched_from_its_recommended_values() -> None:
    found, known = parse({**TEN_LINES, "model": {"builder": "mlp"}}, root=Path()), NETWORKS["mlp"]
    assert found.model.search == known.search
    assert found.first == {name: known.start.get(name, known.hyperparameters[name].default) for name in known.search}
    assert restore(found.resolved(), root=Path()).first == found.first
    assert parse(TEN_LINES, root=Path(), overrides=["study.n_trials=1"]).model.search == {}
    with pytest.raises(ExperimentError, match=r"model\.search"):  # an empty table is meant as such
        parse({**TEN_LINES, "model": {"search": {}}}, root=Path())


def test_a_file_without_builder_and_space_has_the_network_that_is_best_without() -> None:
    """Whatever says more about the network, or cannot be embedded, means `mlp` as it always did."""
    found = parse(TEN_LINES, root=Path())
    assert found.model.builder == UNNAMED == "tabm" and found.model.search == NETWORKS[UNNAMED].search
    assert restore(found.resolved(), root=Path()).model == found.model
    for changes in (["study.n_trials=1"], ['model.search.width={ type = "int", low = 8, high = 16 }']):
        assert parse(TEN_LINES, root=Path(), overrides=changes).model.builder == "mlp"
    inputs = {"data": {**TEN_LINES["data"], "inputs": {"a": {"columns": ["x*"]}}}}
    assert parse({**TEN_LINES, **inputs}, root=Path()).model.builder == "mlp"


def test_a_space_of_ones_own_is_sampled_from_the_beginning() -> None:
    assert parse(base(), root=Path()).first == {}


def test_every_network_of_the_package_has_a_space_that_its_rules_accept() -> None:
    """And its recommended values lie within it; the names are those of plugins and of the builders."""
    assert tuple(NETWORKS) == plugins.BUILDERS.own == tuple(BUILDERS)
    for name, network in NETWORKS.items():
        found = parse({**TEN_LINES, "model": {"builder": name}}, root=Path())
        assert found.model.search == network.search
        assert found.first.keys() <= network.search.keys() and found.first
        assert {n for n, d in network.search.items() if not d.when} <= found.first.keys()
        assert set(GENERAL) <= network.hyperparameters.keys()


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


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_of_utf_8_is_read_over(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "e.toml").write_bytes(mark + BASE.encode())
    assert load(tmp_path / "e.toml").name == "fraud"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (BASE.encode("utf-16"), "is UTF-16, and TOML is UTF-8"),
        (BASE.encode("utf-32"), "is UTF-32, and TOML is UTF-8"),
        (BASE.encode("utf-16-le"), "is UTF-16 or UTF-32"),
        (BASE.encode() + "# größe".encode("latin-1"), "is not UTF-8: byte 0xf6 in line 13"),
        (b"\x89PNG\x00\xff", "is not text"),
        (b"a = 1\x00", "is not text: it holds NUL bytes"),
        (b"a = " + b"[" * 20_000 + b"]" * 20_000, "is nested too deeply"),
        (b"a" + b".a" * 20_000 + b" = 1", "is nested too deeply"),
        (b"a = " + b"[" * 17 + b"]" * 17, "is nested too deeply"),
        (b"a = " + b"9" * 5000, "holds an invalid value"),
        (b"#" * 1_000_001, "more than 1 MB"),
        (b"a b", "is not TOML"),
    ],
)
def test_a_file_that_is_no_experiment_is_named_as_what_it_is(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "e.toml").write_bytes(content)
    with pytest.raises(InputError, match=words):
        load(tmp_path / "e.toml")


def test_a_folder_names_the_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(BASE)
    with pytest.raises(InputError, match=r"is a directory[^$]*name the file: a.toml"):
        load(tmp_path)
    with pytest.raises(InputError, match="more than 1 MB"):
        load("/dev/zero")


@pytest.mark.parametrize("word", ["study.n_trials=" + "[" * 20_000, "a" + ".a" * 20_000 + "=1", "seed=" + "9" * 5000])
def test_an_override_that_is_too_deep_or_too_long_is_a_mistake(word: str) -> None:
    with pytest.raises(ExperimentError, match=r"at most 16 levels|a value \("):
        parse(base(), root=Path(), overrides=[word])


@pytest.mark.parametrize(
    "path",
    [
        *("study__n_trials", "study__epochs", "study__patience", "confirm__seeds", "confirm__top", "workers__n"),
        *("workers__threads", "workers__per_gpu", "workers__cpus", "study__startup_trials", "study__warmup_epochs"),
        *("study__plateau_trials", "promotion__resamples", "preprocessing__max_categories", "study__timeout_s"),
    ],
)
def test_a_billion_of_anything_is_refused_with_its_bound(path: str) -> None:
    found = mistakes(with_values(**{path: 10**9}))
    assert "expected at most " in found[path.replace("__", ".")]


@pytest.mark.parametrize(
    "path", ["study__timeout_s", "preprocessing__fill", "promotion__max_ece_loss", "study__percentile"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(path: str, value: float) -> None:
    assert "finite" in mistakes(with_values(**{path: value}))[path.replace("__", ".")]


def test_names_fit_a_file_with_what_is_added_to_them() -> None:
    assert parse(with_values(name="n" * 230), root=Path()).name == "n" * 230
    assert "at most 230 characters" in mistakes(with_values(name="n" * 231))["name"]
    assert "at most 250 characters" in mistakes(with_values(tracking__model_name="n" * 251))["tracking.model_name"]


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "é", "a\n", "a\x00", "../x", "-x", "a:b", "[red]"])
def test_names_that_files_and_registries_cannot_have_are_refused(name: str) -> None:
    assert "name" in mistakes(with_values(name=name))
    assert "tracking.model_name" in mistakes(with_values(tracking__model_name=name))


def test_nul_is_refused_in_every_text() -> None:
    found = mistakes(with_values(data__path="a\x00.csv", data__drop=["b\x00"], description="c\x00"))
    assert set(found) == {"data.path", "data.drop", "description"}


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        *(("lr", "learning_rate"), ("units", "width"), ("layers", "depth"), ("n_layers", "depth"), ("hidden", "width")),
        *(("wd", "weight_decay"), ("dropout_rate", "dropout"), ("batch", "batch_size"), ("widht", "width")),
    ],
)
def test_what_other_tools_call_a_hyperparameter_is_understood(key: str, meant: str) -> None:
    raw = base()
    raw["model"]["search"][key] = 3
    assert f'did you mean "{meant}"?' in mistakes(raw)[f"model.search.{key}"]


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        *(("model__search__epochs", "study.epochs"), ("model__learning_rate", "model.search.learning_rate")),
        *(("study__batch_size", "model.search.batch_size"), ("n_trials", "study.n_trials"), ("study__seed", "seed")),
        *(("model__lr", "model.search.learning_rate"), ("metric", "objective.metric")),
    ],
)
def test_a_key_in_the_wrong_section_is_told_its_place(path: str, meant: str) -> None:
    assert f"did you mean {meant}?" in mistakes(with_values(**{path: 3}))[path.replace("__", ".")]


def test_a_list_under_search_is_one_mistake_that_says_how_to_search_it() -> None:
    raw = base()
    raw["model"]["search"] |= {"depth": [1, 2, 3], "layers": [1, 2, 3]}
    found = mistakes(raw)
    assert set(found) == {"model.search.depth", "model.search.layers"}
    assert 'write depth = { type = "categorical", choices = [1, 2, 3] }' in found["model.search.depth"]
    assert 'did you mean "depth"?' in found["model.search.layers"]
    raw["model"]["search"] = {"width": {"type": "categorical", "choices": [[1, 2], 3]}}
    assert len(mistakes(raw)) == 1


@pytest.mark.parametrize(
    ("table", "last"),
    [
        ({"type": "int", "low": 8, "high": 64, "step": 40}, 48),
        ({"type": "int", "low": 8, "high": 64, "step": 8}, 64),
        ({"type": "float", "low": 0.0, "high": 0.3, "step": 0.1}, 0.3),
        ({"type": "float", "low": 0.1, "high": 0.7, "step": 0.2}, 0.7),
        ({"type": "float", "low": 0.1, "high": 0.75, "step": 0.2}, 0.7),
        ({"type": "float", "low": 1e-3, "high": 0.95, "step": 0.3}, 0.901),
        ({"type": "int", "low": 1, "high": 100, "log": True}, 100),
        ({"type": "int", "low": 3, "high": 10}, 10),
    ],
)
def test_an_end_that_no_step_meets_is_said(table: dict[str, Any], last: float) -> None:
    """And the pre-flight tries the value that is reached, not the one that never is."""
    dimension = Dimension.model_validate(table)
    assert dimension.extremes() == (table["low"], last)
    raw = base()
    raw["model"]["search"] = {"dropout" if table["type"] == "float" else "width": table}
    raw["data"]["task"] = "binary"
    said = parse(raw | {"study": {"n_trials": 2}}, root=Path()).warnings
    assert bool(said) == (last != table["high"])
    assert all(f"the last value is {last:g}" in text for text in said)


def test_a_patience_that_no_trial_can_have_is_said() -> None:
    (said,) = parse(base() | {"study": {"n_trials": 2, "epochs": 5, "patience": 5}}, root=Path()).warnings
    assert "patience = 1 under [study]" in said and "[patience-too-long]" in said
    assert parse(base() | {"study": {"n_trials": 2, "epochs": 5}}, root=Path()).warnings == ()  # nobody asked for it


def test_a_condition_on_a_value_that_a_step_leads_past_is_said() -> None:
    raw = base()
    raw["model"]["search"]["depth"] = {"type": "int", "low": 1, "high": 5, "step": 2}
    raw["model"]["search"]["dropout"] = {"type": "float", "low": 0.0, "high": 0.5, "when": {"depth": [2, 3]}}
    (said,) = parse(raw, root=Path()).warnings
    assert "depth is never 2" in said


def test_a_range_of_a_million_steps_takes_no_memory() -> None:
    grid = Dimension.model_validate({"type": "float", "low": 0.0, "high": 1.0, "step": 1e-6}).grid()
    assert grid is not None and len(grid) == 1_000_001 and grid[-1] == 1.0 and grid[3] == 3e-6
    raw = base()
    raw["model"]["search"] = {"dropout": {"type": "float", "low": 0.0, "high": 0.5, "step": 1e-300}}
    assert "at most 1,000,000 steps" in mistakes(raw)["model.search.dropout.step"]
