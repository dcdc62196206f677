"""Behaviour of `forge_sweep.exports`: raw rows go in, the bundle's own scores come out."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from forge_sweep import models, training
from forge_sweep.bundle import Bundle, read_golden
from forge_sweep.cli import app
from forge_sweep.errors import BundleError, InputError, MissingExtra
from forge_sweep.exports import FORMATS, export, feed, inputs_of
from forge_sweep.preprocessing import Preprocessor, Schema
from forge_sweep.task import Task, TaskKind
from tests.test_bundle import METADATA, TASKS, customers, sign, targets

SUFFIX = {"keras": ".keras", "saved_model": "", "onnx": ".onnx", "tflite": ".tflite"}


def needs(kind: str) -> Any:
    """Skip where a format's packages are not installed; with CI=true they have to be."""
    absent = [name for name in FORMATS[kind].packages if importlib.util.find_spec(name) is None]
    skip = bool(absent) and not os.environ.get("CI")
    return pytest.param(kind, marks=pytest.mark.skipif(skip, reason=f"{', '.join(absent)}: pip install '.[export]'"))


EVERY = [needs(kind) for kind in FORMATS]


def awkward(text: bool = True) -> pd.DataFrame:
    """Customers with names that no graph can have, a far offset, many categories and missing values of each kind."""
    frame = customers().rename(columns={"age": "age (years)", "orders": "1/orders"})
    frame["booked at"] = 1.7e9 + np.arange(len(frame)) * 3600.0
    frame["flag"] = frame.pop("member").astype("boolean")
    frame.loc[[3, 70], "flag"] = pd.NA
    frame["shop"] = [f"s{i % 13}" for i in range(len(frame))]
    frame["Age_years_"] = 1.0
    return frame if text else frame.drop(columns=["city", "shop", "booked at"])


@functools.cache
def trained(task_kind: TaskKind, scaler: str = "standard", text: bool = True, from_logits: bool = False) -> Bundle:
    """A network with weights that let every feature count."""
    frame, wanted = awkward(text), targets(task_kind)
    task = Task.learn(task_kind, wanted, from_logits=from_logits)
    preprocessor = Preprocessor.fit(
        frame, Schema.learn(frame), scaler=scaler, impute="median", fill=0.0, max_categories=10
    )
    training.seed_everything(4)
    params = {"width": 8, "depth": 2, "batch_norm": True, "dropout": 0.1}
    model = models.build("mlp", preprocessor.spec, task, params)
    return Bundle(model, preprocessor, task, 0.4, METADATA)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saved bundles, each made once."""
    root = tmp_path_factory.mktemp("shelf")

    @functools.cache
    def saved(*what: Any) -> Path:
        folder = root / "-".join(map(str, what))
        trained(*what).save(folder, awkward(trained(*what).preprocessor.schema.names.count("shop") > 0))
        return folder

    return saved


def strangers(bundle: Bundle) -> pd.DataFrame:
    """Rows that train did not have: other categories, missing values in every column."""
    names = list(bundle.preprocessor.schema.names)
    frame = awkward()[names].sample(40, random_state=1).reset_index(drop=True)
    for row, name in enumerate(names):
        frame[name] = frame[name].astype(object if frame[name].dtype.kind not in "fb" else frame[name].dtype)
        frame.loc[row, name] = None
    if "city" in names:
        frame.loc[20, "city"], frame.loc[21, "shop"] = "Atlantis", "s99"
    return frame


def run(kind: str, path: Path, bundle: Bundle, frame: pd.DataFrame) -> np.ndarray:
    """Raw rows through an export."""
    fed = feed(inputs_of(bundle.preprocessor), bundle.preprocessor.schema, frame, FORMATS[kind].numbers)
    return FORMATS[kind].run(path, fed)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("task_kind", TASKS)
def test_raw_rows_give_the_scores_of_the_bundle(
    kind: str, task_kind: TaskKind, shelf: Callable[..., Path], tmp_path: Path
) -> None:
    """Also rows with new categories and with gaps that train did not have."""
    text = kind != "tflite"
    bundle, path = trained(task_kind, "standard", text), tmp_path / f"model{SUFFIX[kind]}"
    found = export(shelf(task_kind, "standard", text), kind, path)
    assert found.difference <= found.allowed
    frame = strangers(bundle)
    np.testing.assert_allclose(run(kind, path, bundle, frame), bundle.scores(frame), rtol=1e-4, atol=1e-5)
    listed = json.loads((tmp_path / f"{path.name}.inputs.json").read_text())["inputs"]
    assert listed == found.inputs and [each["column"] for each in listed] == list(bundle.preprocessor.schema.names)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([path.name, f"{path.name}.inputs.json"])


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("scaler", ["minmax", "robust", "robust_smooth", "none"])
def test_every_affine_scaler_goes_inside(kind: str, scaler: str, shelf: Callable[..., Path], tmp_path: Path) -> None:
    bundle, path = trained("binary", scaler, False, True), tmp_path / f"model{SUFFIX[kind]}"
    export(shelf("binary", scaler, False, True), kind, path)
    frame = strangers(bundle)
    np.testing.assert_allclose(run(kind, path, bundle, frame), bundle.scores(frame), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", EVERY)
def test_a_quantile_scaler_is_refused_unless_the_preprocessing_stays_outside(
    kind: str, shelf: Callable[..., Path], tmp_path: Path
) -> None:
    folder, path = shelf("binary", "quantile", False), tmp_path / f"model{SUFFIX[kind]}"
    with pytest.raises(InputError, match=r"(?s)'quantile' cannot be put into.*--without-preprocessing"):
        export(folder, kind, path)
    assert not list(tmp_path.iterdir())
    found = export(folder, kind, path, preprocessing=False)
    bundle, frame = Bundle.load(folder), read_golden(folder)[0]
    scores = FORMATS[kind].run(path, {"features": bundle.preprocessor.transform(frame)})
    np.testing.assert_allclose(scores, bundle.scores(frame), rtol=1e-4, atol=1e-5)
    assert found.inputs[0]["input"] == "features"


def test_a_folder_is_exported_from_the_command_line(shelf: Callable[..., Path], tmp_path: Path) -> None:
    words = ["export", str(shelf("binary")), "--format", "keras", "-o", str(tmp_path / "net.keras")]
    done = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found["difference"] <= found["allowed"] and found["path"] == str(tmp_path / "net.keras")
    assert {"input": "c_1_orders", "column": "1/orders", "type": "float64", "missing": "NaN"} in found["inputs"]
    words[-1] = str(tmp_path / "other.keras")
    text = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    assert "input city takes column 'city', string, missing: empty text" in text
    with pytest.raises(InputError, match="names no model"):
        CliRunner().invoke(app, ["export", str(tmp_path / "none"), *words[2:-1], "x.keras"], catch_exceptions=False)


def test_names_are_made_fit_for_graphs_and_stay_apart() -> None:
    names = [each.name for each in inputs_of(trained("binary").preprocessor)]
    assert names == ["age__years_", "c_1_orders", "city", "booked_at", "flag", "shop", "Age_years_"]
    twins = pd.DataFrame({"a b": [1.0, 2.0], "a_b": [1.0, 2.0], "A?B": [1.0, 2.0]})
    fitted = Preprocessor.fit(twins, Schema.learn(twins), scaler="none", impute="mean", fill=0.0, max_categories=5)
    assert [each.name for each in inputs_of(fitted)] == ["a_b", "a_b_2", "A_B_3"]


def test_an_export_that_gives_other_scores_is_not_written(
    shelf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = dataclasses.replace(
        FORMATS["keras"],
        write=lambda bundle, inputs, path: path.touch(),
        run=lambda path, fed: np.full((20, 1), 2.0),
    )
    monkeypatch.setitem(FORMATS, "keras", wrong)
    with pytest.raises(BundleError, match="is not written: it gives other golden scores"):
        export(shelf("binary"), "keras", tmp_path / "model.keras")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    shelf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shelf("binary")
    with pytest.raises(InputError, match="--format pickle: no such export format"):
        export(folder, "pickle", tmp_path / "model")
    with pytest.raises(InputError, match=r"does not end with \.keras"):
        export(folder, "keras", tmp_path / "model.h5")
    with pytest.raises(InputError, match="text columns: city, shop"):
        export(folder, "tflite", tmp_path / "model.tflite")
    with pytest.raises(InputError, match="there is no directory"):
        export(folder, "keras", tmp_path / "a" / "model.keras")
    broken = dataclasses.replace(FORMATS["saved_model"], packages=("not_a_package",))
    monkeypatch.setitem(FORMATS, "saved_model", broken)
    with pytest.raises(MissingExtra, match=r"\.\[export\]"):
        export(folder, "saved_model", tmp_path / "model")
    (tmp_path / "model.keras").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        export(folder, "keras", tmp_path / "model.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_an_empty_category_is_refused_since_it_stands_for_a_missing_one() -> None:
    frame = pd.DataFrame({"city": ["", "Bern", "", "Bern"]})
    fitted = Preprocessor.fit(frame, Schema.learn(frame), scaler="none", impute="mean", fill=0.0, max_categories=5)
    with pytest.raises(InputError, match="'city' has the empty text"):
        inputs_of(fitted)


def test_trees_are_refused(tmp_path: Path) -> None:
    from tests.test_bundle import fitted

    fitted("constant", "binary").save(tmp_path / "bundle", customers())
    with pytest.raises(InputError, match="is a constant, and keras is for networks"):
        export(tmp_path / "bundle", "keras", tmp_path / "model.keras")


def test_a_changed_bundle_is_not_exported(shelf: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shelf("binary"), tmp_path / "bundle"))
    (folder / "task.json").write_text((folder / "task.json").read_text() + " ")
    with pytest.raises(BundleError, match=r"changed: task\.json"):
        export(folder, "keras", tmp_path / "model.keras")
    sign(folder)
    assert dataclasses.asdict(export(folder, "keras", tmp_path / "model.keras"))["difference"] < 1e-5
