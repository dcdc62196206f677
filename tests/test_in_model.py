"""Behaviour of ``model.preprocessing = "in_model"``: the registered network also as one Keras file for raw columns."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

from forge_sweep import models, sources, sweep, training
from forge_sweep.bundle import Bundle
from forge_sweep.errors import BundleError, ExperimentError, GateRefused
from forge_sweep.experiment import load, parse
from forge_sweep.exports import FORMATS, feed, inputs_of, write_raw
from forge_sweep.preflight import preflight
from forge_sweep.preprocessing import Preprocessor, Schema
from forge_sweep.task import Task
from tests.surface import experiment as surface
from tests.surface import fake_run, no_network
from tests.test_bundle import METADATA, customers, fitted, sign
from tests.test_bundle_security import copy, external, flip, rezip
from tests.test_end_to_end import SMALL, credit
from tests.test_export import awkward, strangers, trained

RAW = ("raw.keras", "raw.keras.inputs.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved bundle with ``raw.keras``; copy before you change it."""
    folder = tmp_path_factory.mktemp("raw") / "bundle"
    trained("binary").save(folder, awkward(), raw=write_raw)
    return folder


# The bundle


def test_a_bundle_holds_the_network_that_takes_raw_columns_and_says_which(whole: Path, tmp_path: Path) -> None:
    """Beside the files of always, listed; it gives the bundle's scores for rows that train did not have."""
    trained("binary").save(tmp_path / "plain", awkward())
    names, plain = ({path.name for path in folder.iterdir()} for folder in (whole, tmp_path / "plain"))
    assert names - plain == set(RAW) and plain < names
    assert set(RAW) <= json.loads((whole / "manifest.json").read_text()).keys()
    inputs = json.loads((whole / RAW[1]).read_text())["inputs"]
    bundle = Bundle.load(whole, verify=True)
    assert [each["column"] for each in inputs] == list(bundle.preprocessor.schema.names)
    rows = strangers(bundle)
    fed = feed(inputs_of(bundle.preprocessor), bundle.preprocessor.schema, rows, "float64")
    np.testing.assert_allclose(FORMATS["keras"].run(whole / RAW[0], fed), bundle.scores(rows), rtol=1e-4, atol=1e-5)


def test_loading_runs_nothing_of_raw_keras(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at and left to whoever loads it; Keras reads the network alone."""
    read = keras.saving.load_model
    seen: list[Path] = []
    monkeypatch.setattr(keras.saving, "load_model", lambda path, **rest: (seen.append(path), read(path, **rest))[1])
    Bundle.load(whole)
    assert [path.name for path in seen] == ["model.keras"]


def test_a_network_with_other_scores_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(FORMATS["keras"], run=lambda path, fed: np.full((20, 1), 2.0))
    monkeypatch.setitem(FORMATS, "keras", wrong)
    with pytest.raises(BundleError, match=r'model\.preprocessing = "in_model".*gives other golden scores'):
        trained("binary").save(tmp_path / "bundle", awkward(), raw=write_raw)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["quantile", "tree", "empty text"])
def test_what_cannot_go_inside_is_not_saved_and_says_how_to_go_on(what: str, tmp_path: Path) -> None:
    made: dict[str, Callable[[], tuple[Bundle, pd.DataFrame, str]]] = {
        "quantile": lambda: (
            trained("binary", "quantile"),
            awkward(),
            r"quantile(?s:.*)model\.preprocessing = \"bundle",
        ),
        "tree": lambda: (
            fitted("constant", "binary"),
            customers(),
            "the model is a constant, and keras is for networks",
        ),
        "empty text": lambda: (*with_empty_text(), r"'city' has the empty text(?s:.*)write such cells as missing"),
    }
    bundle, rows, words = made[what]()
    with pytest.raises(BundleError, match=f'(?s)model.preprocessing = "in_model": .*{words}'):
        bundle.save(tmp_path / "bundle", rows, raw=write_raw)
    assert not list(tmp_path.iterdir())


def with_empty_text() -> tuple[Bundle, pd.DataFrame]:
    """A network for rows in which the empty text is a category."""
    rows = pd.DataFrame({"city": ["", "Bern"] * 10, "x": np.arange(20.0)})
    task = Task.learn("binary", pd.DataFrame({"y": [0, 1] * 10}))
    fit = Preprocessor.fit(rows, Schema.learn(rows), scaler="none", impute="mean", fill=0.0, max_categories=5)
    return Bundle(models.build("mlp", fit.spec, task, {"width": 4}), fit, task, 0.5, METADATA), rows


def test_columns_may_have_the_names_of_keras_own_parts(tmp_path: Path) -> None:
    """Keras wants every name once, and gives operations names of its own."""
    names = ["features", "numbers", "mlp", "where", "cast_1", "city_code", "Sum", "city"]
    rows = pd.DataFrame({name: np.arange(40.0) for name in names[:-1]} | {"city": ["a", "b"] * 20})
    rows.loc[3, ["where", "features"]] = np.nan
    task = Task.learn("binary", pd.DataFrame({"y": [0, 1] * 20}))
    fit = Preprocessor.fit(rows, Schema.learn(rows), scaler="standard", impute="mean", fill=0.0, max_categories=5)
    keras.utils.clear_session()  # Keras counts the names it gave
    training.seed_everything(1)
    model = models.build("mlp", fit.spec, task, {"width": 4})
    Bundle(model, fit, task, 0.5, METADATA).save(tmp_path / "bundle", rows, raw=write_raw)
    inputs = json.loads((tmp_path / "bundle" / RAW[1]).read_text())["inputs"]
    assert [each["column"] for each in inputs] == names
    assert [each["input"] for each in inputs[2:5]] == ["c_mlp", "c_where", "c_cast_1"]


# Attacks


@pytest.mark.parametrize("name", RAW)
def test_a_changed_byte_is_refused_before_anything_is_parsed(
    name: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(*words: Any, **options: Any) -> None:
        raise AssertionError("a file was parsed")

    folder = copy(whole, tmp_path)
    flip(folder, name)
    monkeypatch.setattr("forge_sweep.bundle.bundle.read_about", parsed)
    with pytest.raises(BundleError, match=f"changed: {name}"):
        Bundle.load(folder)


@pytest.mark.parametrize("name", RAW)
def test_half_of_the_pair_is_refused(name: str, whole: Path, tmp_path: Path) -> None:
    folder = copy(whole, tmp_path)
    (folder / name).unlink()
    sign(folder)
    with pytest.raises(BundleError, match=f"missing: {name}"):
        Bundle.load(folder)


def test_beside_a_tree_it_is_refused(whole: Path, tmp_path: Path) -> None:
    fitted("constant", "binary").save(tmp_path / "tree", customers())
    for name in RAW:
        shutil.copy(whole / name, tmp_path / "tree")
    sign(tmp_path / "tree")
    with pytest.raises(BundleError, match=r"unexpected: raw\.keras, raw\.keras\.inputs\.json"):
        Bundle.load(tmp_path / "tree")


Change = Callable[[dict[str, Any]], Any]


def lookup(**values: Any) -> Change:
    """Change the first layer that looks texts up."""

    def change(config: dict[str, Any]) -> None:
        layers = config["config"]["layers"]
        next(layer for layer in layers if layer["class_name"] == "StringLookup")["config"].update(values)

    return change


def operation(**values: Any) -> Change:
    """Let the first operation be another one."""

    def change(config: dict[str, Any]) -> None:
        layers = config["config"]["layers"]
        next(layer for layer in layers if layer["class_name"] == "NotEqual").update(values)

    return change


HOSTILE: dict[str, Change] = {
    "keras.layers.StringLookup": lookup(vocabulary="/etc/passwd"),
    "keras.layers.Lambda": operation(module="keras.layers", class_name="Lambda"),
    "keras.layers.TFSMLayer": operation(module="keras.layers", class_name="TFSMLayer", config={"filepath": "/etc"}),
    "keras.src.ops.core.CustomGradient": operation(module="keras.src.ops.core", class_name="CustomGradient"),
    "keras.src.ops.numpy.function": operation(class_name="function", config="where"),
    "os.system": operation(module="os", class_name="function", config="system"),
}


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_it_names_beside_preprocessing_is_refused_by_name(
    name: str, trust: bool, whole: Path, tmp_path: Path
) -> None:
    """Every digest is right: an attacker has signed the folder anew."""
    folder = copy(whole, tmp_path)

    def edited(content: dict[str, bytes], archive: zipfile.ZipFile) -> None:
        config = json.loads(content["config.json"])
        HOSTILE[name](config)
        content["config.json"] = json.dumps(config).encode()

    rezip(folder / RAW[0], edited)
    sign(folder)
    words = name.removesuffix("function")  # a function goes by its own name
    with pytest.raises(BundleError, match=f"raw.keras holds objects that are not trusted: {words}"):
        Bundle.load(folder, trust=trust)


def test_the_network_itself_may_not_have_parts_of_preprocessing(whole: Path, tmp_path: Path) -> None:
    """The longer list is for ``raw.keras`` alone."""
    folder = copy(whole, tmp_path)
    shutil.copy(folder / RAW[0], folder / "model.keras")
    sign(folder)
    with pytest.raises(BundleError, match=r"model\.keras holds objects that are not trusted: .*StringLookup"):
        Bundle.load(folder)


def test_entries_and_weights_that_lie_elsewhere_are_refused(whole: Path, tmp_path: Path) -> None:
    import h5py

    def more(content: dict[str, bytes], archive: zipfile.ZipFile) -> None:
        content["../evil.py"] = b""

    def linked(content: dict[str, bytes], archive: zipfile.ZipFile) -> None:
        path = tmp_path / "weights.h5"
        path.write_bytes(content["model.weights.h5"])
        with h5py.File(path, "a") as file:
            external(file)
        content["model.weights.h5"] = path.read_bytes()

    for number, (change, words) in enumerate([(more, "names that do not belong"), (linked, "weights.h5 has")]):
        folder = copy(whole, tmp_path / str(number))
        rezip(folder / RAW[0], change)
        sign(folder)
        with pytest.raises(BundleError, match=f"(?s)raw.keras.*{words}"):
            Bundle.load(folder)


# The experiment


def made(**values: Any) -> Any:
    """A small experiment; ``section__key=value`` sets a key."""
    raw: dict[str, Any] = {
        "name": "wine",
        "data": {"source": "sample", "name": "wine", "target": "target", "task": "multiclass"},
        "objective": {"metric": "val_auc"},
        "model": {"search": {"width": {"type": "int", "low": 4, "high": 8}}},
    }
    for path, value in values.items():
        *parents, last = path.split("__")
        functools.reduce(lambda table, key: table.setdefault(key, {}), parents, raw)[last] = value
    return parse(raw, root=Path())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"preprocessing__scaler": "quantile"}, r'preprocessing\.scaler = "quantile": expected standard, minmax'),
    ({"model__search__scaler": "quantile"}, r'model\.search\.scaler = "quantile": expected standard, minmax'),
    (
        {"model__search__scaler": {"type": "categorical", "choices": ["minmax", "quantile"]}},
        r'model\.search\.scaler\.choices = \["minmax", "quantile"\]: expected standard, minmax',
    ),
    ({"backend": "jax"}, 'backend = "jax": expected "tensorflow"'),
    ({"backend": "torch"}, 'backend = "torch": expected "tensorflow"'),
]


@pytest.mark.parametrize(("values", "words"), REFUSED)
def test_what_no_keras_file_can_hold_is_refused_where_it_is_read(values: dict[str, Any], words: str) -> None:
    """With the key, what stood there, what was expected and both ways out; with the bundle alone it is fine."""
    made(**values)
    with pytest.raises(ExperimentError, match=f'{words}.*since model.preprocessing = "in_model".*"bundle"'):
        made(**values, model__preprocessing="in_model")


def test_the_key_has_a_default_and_is_named_where_it_is_misplaced() -> None:
    assert made().model.preprocessing == "bundle"
    with pytest.raises(ExperimentError, match=r'preprocessing = "in_model".*did you mean model\.preprocessing\?'):
        made(preprocessing="in_model")


def test_it_does_not_change_what_a_trial_is() -> None:
    """Studies that began before the key was there, or with its other value, go on."""
    assert made(model__preprocessing="in_model").contract() == made().contract()


def test_the_preflight_saves_a_network_this_way_and_says_nothing() -> None:
    spec = made(model__preprocessing="in_model")
    found = preflight(spec, sources.load(spec.data, root=spec.root, seed=spec.seed))
    assert [finding.code for finding in found if finding.severity != "info"] == []


def test_an_empty_category_is_refused_before_any_training(tmp_path: Path) -> None:
    """Parquet can tell the empty text from a missing one, and an input of text cannot."""
    random = np.random.default_rng(2)
    rows = pd.DataFrame({"city": random.choice(["", "Bern", "Chur"], 300), "x": random.normal(size=300)})
    rows["y"] = (rows["x"] + random.normal(size=300) > 0).astype(int)
    rows.to_parquet(tmp_path / "rows.parquet")
    text = 'name="t"\n[data]\npath="rows.parquet"\ntarget="y"\ntask="binary"\n[objective]\nmetric="val_auc"\n'
    text += '[model]\npreprocessing="in_model"\n[model.search]\nwidth=4\n[study]\nn_trials=1\n'
    (tmp_path / "t.toml").write_text(text)
    words = r"(?s)no trial was started.*model\.preprocessing.*'city' has the empty text.*write such cells as missing"
    with pytest.raises(GateRefused, match=words):
        sweep.run(load(tmp_path / "t.toml"), store=tmp_path / "mlruns")
    assert not (tmp_path / "mlruns").exists()


# The sweep


def test_a_winner_without_layers_is_registered_without_it_and_that_is_said(tmp_path: Path) -> None:
    """The networks of the surface are trees. It is said once, and no second version is made of the same bundle."""
    said: list[str] = []
    with no_network(fake_run()):
        sweep.run(surface(), store=tmp_path)
        for _ in range(2):
            found = sweep.run(
                surface(model__preprocessing="in_model"),
                store=tmp_path,
                watch=lambda event: said.append(str(event.data.get("text", ""))),
            )
    assert found.model == "models:/surface/1"
    (told,) = (text for text in said if "raw.keras" in text)
    assert 'model.preprocessing = "in_model": the winner is a random_forest' in told and "baselines.kinds = []" in told
    assert not any("test evaluation 2" in text for text in said)
    assert not list(tmp_path.rglob("raw.keras"))


SCRIPT = """
import json, sys
sys.modules["forge_sweep"] = None  # importing it fails
import keras, numpy as np, pandas as pd, tensorflow as tf
folder, rows, answers = sys.argv[1:]
model = keras.models.load_model(f"{folder}/raw.keras")
rows, fed = pd.read_pickle(rows), {}
for each in json.load(open(f"{folder}/raw.keras.inputs.json"))["inputs"]:
    column = rows[each["column"]]
    if each["type"] == "string":
        cells = ["" if pd.isna(cell) else str(cell) for cell in column]
    else:
        cells = column.to_numpy(each["type"], na_value=np.nan)
    fed[each["input"]] = tf.constant(cells, tf.as_dtype(each["type"]), shape=(len(rows), 1))
np.save(answers, model(fed)["scores"])
"""


@pytest.mark.slow
def test_the_registered_network_takes_raw_rows_in_plain_keras(tmp_path: Path) -> None:
    """Categories, missing values and all, in a process that cannot import forge_sweep.

    The key may be set once the sweep is complete: the same winner becomes a version of its own, with no look at test.
    """
    import mlflow

    frame = credit()
    frame.to_csv(tmp_path / "rows.csv", index=False)
    head = 'name = "loans"\nseed = 5\n[data]\npath = "rows.csv"\ntarget = "Status"\ntask = "binary"\n'
    head += '[objective]\nmetric = "val_auc"\n[model]\npreprocessing = "in_model"\n'
    (tmp_path / "loans.toml").write_text(head + SMALL)
    words = ['baselines.kinds=["constant"]', "confirm.seeds=1"]
    plain = load(tmp_path / "loans.toml", [*words, 'model.preprocessing="bundle"'])
    before = sweep.run(plain, store=tmp_path / "mlruns")
    found = sweep.run(load(tmp_path / "loans.toml", words), store=tmp_path / "mlruns")
    assert (before.model, found.model) == ("models:/loans/1", "models:/loans/2")
    assert (before.test, before.trials) == (found.test, found.trials)
    assert len((tmp_path / "mlruns" / "test_looks.jsonl").read_text().splitlines()) == 1
    address = f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    mlflow.set_tracking_uri(address)
    copied = Path(mlflow.artifacts.download_artifacts(found.model, dst_path=str(tmp_path / "copy")))
    (raw,) = copied.rglob("raw.keras")
    bundle = Bundle.load(raw.parent, verify=True)
    rows = frame.drop(columns=["Status"])
    schema = bundle.preprocessor.schema
    assert {column.kind for column in schema.columns} >= {"numeric", "categorical"}
    rows = rows.loc[rows.isna().any(axis=1).sort_values(ascending=False, kind="stable").index].head(200)
    assert rows.isna().any(axis=1).sum() > 10
    rows.to_pickle(tmp_path / "rows.pickle")
    words = [str(raw.parent), str(tmp_path / "rows.pickle"), str(tmp_path / "answers.npy")]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    subprocess.run([sys.executable, "-c", SCRIPT, *words], check=True, env=environment, timeout=240)
    np.testing.assert_allclose(np.load(tmp_path / "answers.npy"), bundle.scores(rows), rtol=1e-4, atol=1e-5)
    assert len(np.unique(np.load(tmp_path / "answers.npy"))) > 20
    mlflow.set_tracking_uri(None)
    flavour = mlflow.pyfunc.load_model(str(copied)).predict(rows)
    pd.testing.assert_frame_equal(flavour, bundle.predict(rows))
