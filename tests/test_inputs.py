"""Groups of columns as inputs of a model: what each holds, what is refused, and what works as with one input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

from forge_sweep import models, sources, training, trial
from forge_sweep.bundle import Bundle, replay_golden
from forge_sweep.checks.profile import Profile
from forge_sweep.errors import BundleError, DataError, ExperimentError, InputError
from forge_sweep.experiment import Experiment, parse
from forge_sweep.exports import export, feed, inputs_of, write_raw
from forge_sweep.preprocessing import Group, InputSpec, Preprocessor, RowTransform, Spec
from forge_sweep.serving.predict import Served, Window
from forge_sweep.sweep.pool import SavedArrays, save
from forge_sweep.task import Task
from forge_sweep.testing import table
from forge_sweep.tracking import Located
from forge_sweep.trial import Recipe
from tests.test_bundle import METADATA
from tests.test_export import EVERY, FORMATS, SUFFIX
from tests.test_preprocessing import fit, mixed

GROUPS = (
    Group("money", ("income", "a*e"), "values"),
    Group("places", ("city", "co?e"), "codes"),
    Group("rest", ("plan", "member"), "values"),
)
BINARY = Task.learn("binary", pd.DataFrame({"y": [0, 1, 0, 1]}))


def grouped(groups: tuple[Group, ...] = GROUPS, **changes: Any) -> Preprocessor:
    return fit(mixed(), ("code",), **changes).grouped(groups)


def network(spec: Spec, task: Task = BINARY, *, width: int = 4) -> Any:
    """A model of any inputs, whose names are those of the spec."""
    training.seed_everything(2)
    inputs = {name: keras.Input(each.shape, name=name, dtype=each.dtype) for name, each in spec.items()}
    parts = []
    for name, tensor in inputs.items():
        if vocabulary := spec[name].vocabulary:
            tensor = keras.layers.Flatten()(keras.layers.Embedding(vocabulary, 3, name=f"{name}_vectors")(tensor))
        parts.append(tensor)
    hidden = keras.layers.Dense(width, activation="relu")(keras.layers.Concatenate()(parts))
    model = keras.Model(inputs, keras.layers.Dense(task.units, activation=task.activation)(hidden), name="net")
    model.compile(optimizer="adam", loss=task.loss)
    return model


def bundle() -> Bundle:
    preprocessor = grouped()
    return Bundle(network(preprocessor.spec), preprocessor, BINARY, 0.5, METADATA)


# What an input holds


def test_a_group_of_values_has_the_columns_of_the_matrix_that_come_from_its_own() -> None:
    preprocessor = grouped()
    batch, matrix = preprocessor.batch(mixed()), preprocessor.transform(mixed())
    assert isinstance(batch, dict) and list(batch) == ["money", "places", "rest"]
    names = ("age", "income", "active", "income=(missing)", "active=(missing)")
    assert preprocessor.spec["money"] == InputSpec((5,), columns=names)
    assert preprocessor.spec["rest"].columns == ("member", "plan=basic", "plan=plus", "plan=pro")
    for name in ("money", "rest"):
        wanted = [preprocessor.output_names.index(column) for column in preprocessor.spec[name].columns]
        np.testing.assert_array_equal(batch[name], matrix[:, wanted])


def test_codes_are_unknown_missing_and_then_the_most_frequent_first_apart_for_each_column() -> None:
    preprocessor = grouped(max_categories=2)
    city, code = (c for c in preprocessor.schema.columns if c.name in ("city", "code"))
    assert preprocessor.spec["places"] == InputSpec((2,), "int32", vocabulary=8, columns=("city", "code"))
    rows = (
        mixed()
        .head(5)
        .assign(
            city=[city.categories[0], city.categories[1], city.categories[2], None, "Atlantis"],
            code=[code.categories[1], code.categories[0], "99", None, code.categories[3]],
        )
    )
    batch = preprocessor.batch(rows)
    assert isinstance(batch, dict) and batch["places"].dtype == np.int32
    assert batch["places"].tolist() == [[2, 7], [3, 6], [0, 4], [1, 5], [0, 4]]


def test_one_group_named_features_is_one_array() -> None:
    preprocessor = fit(mixed()).grouped([Group("features", ("*",))])
    np.testing.assert_array_equal(preprocessor.batch(mixed()), preprocessor.transform(mixed()))
    assert preprocessor.spec == fit(mixed()).spec
    assert isinstance(fit(mixed()).grouped([Group("all", ("*",))]).batch(mixed()), dict)


def test_rows_and_frames_become_the_same_bits() -> None:
    preprocessor = grouped()
    transform, batch = RowTransform(preprocessor), preprocessor.batch(mixed())
    found = transform.features(transform.read_frame(mixed()))
    assert isinstance(batch, dict) and isinstance(found, dict)
    assert {name: each.tobytes() for name, each in found.items()} == {n: each.tobytes() for n, each in batch.items()}
    raw = transform.read_frame(mixed().head(2).assign(age=[1e300, 1.0]))
    assert [str(misfit)[:19] for misfit in transform.not_finite(raw, transform.features(raw))] == [
        "row 0: age: 1e+300;"
    ]


# What is refused


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"money": ("incom",)}, r'data\.inputs\.money\.columns = "incom": no such feature; did you mean "income"\?'),
        ({"money": ("balance_*",)}, r'data\.inputs\.money\.columns = "balance_\*": no feature is called so'),
        ({"a": ("*",), "b": ("age",)}, r"data\.inputs\.b\.columns = \"age\": column 'age' is in a already"),
        ({"a": ("age", "code")}, r"in no group: income, city, plan, member, active"),
    ],
)
def test_groups_that_do_not_fit_the_features_are_refused(groups: dict[str, tuple[str, ...]], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        fit(mixed()).grouped([Group(name, columns) for name, columns in groups.items()])
    assert "exactly one group" in caught.value.hint and "The features are age, income" in caught.value.hint


def test_codes_of_numbers_are_refused_with_the_key_that_makes_categories_of_them() -> None:
    with pytest.raises(DataError, match=r'data\.inputs\.all\.encode = "codes": column \'age\' is not text') as caught:
        fit(mixed()).grouped([Group("all", ("*",), "codes")])
    assert "data.categorical" in caught.value.hint and "exactly one group" not in caught.value.hint


def experiment(inputs: dict[str, Any] | None = None, **data: Any) -> Experiment:
    raw = {
        "name": "inputs",
        "data": {"path": "rows.csv", "target": "y", "task": "binary", **data},
        "objective": {"metric": "val_loss"},
        "study": {"n_trials": 1},
    }
    if inputs is not None:
        raw["data"]["inputs"] = inputs
    return parse(raw, root=Path())


def test_an_experiment_without_inputs_has_the_contract_it_had() -> None:
    """Of every earlier version; with inputs it is another experiment."""
    assert experiment().contract() == experiment({}).contract()
    assert "data.inputs" not in json.dumps(experiment().differences(experiment({}).resolved()))
    inputs = {"all": {"columns": "*"}}
    assert experiment(inputs).contract() != experiment().contract()
    old = experiment().resolved()
    old["data"].pop("inputs")
    assert {"data.inputs.all.columns", "data.inputs"} <= set(experiment(inputs).differences(old))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"a": {"colums": ["x"]}}, r'data\.inputs\.a\.colums.*did you mean "columns"'),
        (
            {"a": {"columns": ["x"], "encode": "code"}},
            r'data\.inputs\.a\.encode = "code": expected one of values, codes',
        ),
        ({"a": {"columns": []}}, r"data\.inputs\.a\.columns"),
        ({"a": ["x"]}, r"data\.inputs\.a = .*a table \[data\.inputs\.a\]"),
        ({"a b": {"columns": ["x"]}}, r"data\.inputs\.a b: expected a name of letters, digits and _"),
        ({"a": {"columns": ["y"]}}, r'data\.inputs\.a\.columns = "y": expected a feature, not data\.target'),
        ({"a": {"columns": ["id"]}}, r'data\.inputs\.a\.columns = "id": expected a feature, not data\.key'),
    ],
)
def test_a_group_that_is_none_is_a_mistake_of_the_file(inputs: dict[str, Any], words: str) -> None:
    with pytest.raises(ExperimentError, match=words):
        experiment(inputs, key="id")


def test_a_builder_of_one_matrix_refuses_groups() -> None:
    with pytest.raises(
        InputError, match=r"mlp.* inputs .* money \(5,\), places \(2,\) of codes, rest \(4,\)"
    ) as caught:
        models.build("mlp", grouped().spec, BINARY, {})
    assert "[data.inputs]" in caught.value.hint
    with pytest.raises(InputError, match="features"):
        models.build("mlp", {"features": InputSpec((2,), "int32", vocabulary=9)}, BINARY, {})


# What works as with one input


def test_groups_are_kept_with_the_preprocessor_and_older_files_have_none(tmp_path: Path) -> None:
    grouped().save(tmp_path)
    again = Preprocessor.load(tmp_path)
    assert again.groups == grouped().groups and again.spec == grouped().spec
    fit(mixed()).save(tmp_path)
    stored = json.loads((tmp_path / "preprocessor.json").read_text())
    assert stored["format"] == 1 and "inputs" not in stored
    assert Preprocessor.load(tmp_path).groups == ()
    (tmp_path / "preprocessor.json").write_text(json.dumps(stored | {"format": 4}))
    with pytest.raises(BundleError, match="format 4; expected 1 to 3"):
        Preprocessor.load(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs") / "bundle"
    bundle().save(folder, mixed(), raw=write_raw)  # also with its preprocessing inside, for plain Keras
    return folder


def test_a_bundle_of_several_inputs_predicts_raw_rows_again(saved: Path) -> None:
    again, frame = Bundle.load(saved, verify=True), mixed()
    np.testing.assert_array_equal(again.scores(frame), bundle().scores(frame))
    assert replay_golden(saved) == 0.0
    shuffled = frame[list(frame.columns[::-1])].sample(frac=1.0, random_state=1)
    np.testing.assert_array_equal(again.scores(shuffled), again.scores(frame)[shuffled.index])


def test_a_bundle_of_several_inputs_is_served(saved: Path) -> None:
    """Warm, row by row as in batches; a row that has no answer keeps the others from none."""
    loaded = Bundle.load(saved)
    profile = Profile.learn(mixed(), RowTransform(loaded.preprocessor))
    columns = len(loaded.preprocessor.schema.columns)
    served = Served(loaded, Located("folder", "m", "1"), Window(profile, columns, 100, 10))
    served.warm_up(saved)
    rows = [{k: None if pd.isna(v) else v for k, v in row.items()} for row in mixed().astype(object).to_dict("records")]
    answer = served.answer(served.transform.read_all(rows))
    np.testing.assert_array_equal(answer.scores, loaded.scores(mixed()))
    rows[1]["income"] = 1e300
    answer = served.answer(served.transform.read_all(rows[:3]))
    assert [misfit.row for misfit in answer.misfits] == [1]
    np.testing.assert_array_equal(answer.scores[[0, 2]], loaded.scores(mixed())[[0, 2]])


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("preprocessing", [True, False], ids=["raw", "prepared"])
def test_a_bundle_of_several_inputs_is_exported(kind: str, preprocessing: bool, saved: Path, tmp_path: Path) -> None:
    """Raw columns go to their groups; tflite, which holds no text, takes prepared inputs only, and says so."""
    path, loaded = tmp_path / f"model{SUFFIX[kind]}", Bundle.load(saved)
    if kind == "tflite" and preprocessing:
        with pytest.raises(InputError, match="text columns: city, plan, code"):
            export(saved, kind, path)
        return
    found = export(saved, kind, path, preprocessing=preprocessing)
    assert found.difference <= found.allowed
    strangers = mixed().assign(city="Atlantis", plan=None, code="99", age=np.nan)
    if preprocessing:
        fed = feed(inputs_of(loaded.preprocessor), loaded.preprocessor.schema, strangers, FORMATS[kind].numbers)
    else:
        assert [each["input"] for each in found.inputs] == ["money", "places", "rest"]
        batch = loaded.preprocessor.batch(strangers)
        assert isinstance(batch, dict)
        fed = batch
    np.testing.assert_allclose(FORMATS[kind].run(path, fed), loaded.scores(strangers), rtol=1e-4, atol=1e-5)


# A trial


INPUTS = {
    "numbers": {"columns": ["amount", "age", "member", "active"]},
    "words": {"columns": ["city", "code", "customer"], "encode": "codes"},
}
DATA = {"target": "label", "key": "id", "drop": ["booked", "part"], "categorical": ["code"]}


def credit(folder: Path, inputs: dict[str, Any]) -> Experiment:
    table().to_csv(folder / "rows.csv", index=False)
    return experiment(inputs, **DATA).model_copy(update={"root": folder})


def test_groups_are_refused_when_the_rows_are_read(tmp_path: Path) -> None:
    made = credit(tmp_path, {"numbers": INPUTS["numbers"]})
    with pytest.raises(DataError, match=r"data\.inputs: in no group: city, code, customer"):
        sources.load(made.data, root=tmp_path, seed=0)


def test_a_trial_takes_groups_and_a_baseline_the_one_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here and in a worker, which reads the arrays from files."""
    monkeypatch.setattr(models, "build", lambda builder, spec, task, params: network(spec, task, width=params["width"]))
    made = credit(tmp_path, INPUTS)
    dataset = sources.load(made.data, root=tmp_path, seed=0)
    params = {"width": 4, "batch_size": 32}

    def run(rows: Any) -> trial.TrialResult:
        return trial.run(made, rows, params, 1, lambda epoch, logs: epoch == 2)

    result = run(dataset)
    assert list(result.bundle.preprocessor.spec) == ["numbers", "words"]
    assert [event for event in result.events if "model.fit" in event] == []  # the compiled epoch takes them
    recipe = Recipe.of(made)
    save(trial.prepare(dataset, recipe), recipe, tmp_path / "arrays")
    assert run(SavedArrays(tmp_path / "arrays")).bundle.weights_sha256 == result.bundle.weights_sha256
    baseline = trial.run_baseline(made, dataset, "hist_gradient_boosting", 1)
    plain = credit(tmp_path, {})
    assert baseline.metrics == trial.run_baseline(plain, dataset, "hist_gradient_boosting", 1).metrics
    baseline.bundle.save(tmp_path / "baseline", dataset.train.features)
    assert Bundle.load(tmp_path / "baseline").preprocessor.groups == ()


def test_what_a_store_has_learned_is_used_for_groups_too(tmp_path: Path) -> None:
    made = credit(tmp_path, INPUTS)
    dataset = sources.load(made.data, root=tmp_path, seed=0)
    learned = trial.prepare(dataset, dataclasses.replace(Recipe.of(made), inputs=())).preprocessor
    stored = dataclasses.replace(dataset, preprocessor=learned, normalization_version="standard-median-1")
    prepared = trial.prepare(stored, Recipe.of(made))
    assert prepared.origin["normalization_version"] == "standard-median-1"
    assert prepared.spec == trial.prepare(dataset, Recipe.of(made)).spec and len(prepared.spec) == 2
