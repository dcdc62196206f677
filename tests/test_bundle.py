"""Behaviour of `forge_sweep.bundle`: what was saved predicts the same anywhere; what was tampered with is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import joblib
import numpy as np
import pandas as pd
import pytest
import threadpoolctl

from forge_sweep import baselines, models, training
from forge_sweep.baselines import Baseline
from forge_sweep.bundle import GOLDEN_ROWS, Bundle, choose_golden, files, read_golden, replay_golden, trees
from forge_sweep.bundle.layout import write_golden
from forge_sweep.errors import BundleError, SchemaError
from forge_sweep.preprocessing import Preprocessor, Schema, one_matrix
from forge_sweep.task import Task, TaskKind

ASSET = Path(__file__).parent / "assets" / "bundle-v1"
TASKS: tuple[TaskKind, ...] = ("binary", "multiclass", "multilabel", "regression")
KINDS = ("network", *baselines.KINDS)
SAVED: tuple[tuple[str, TaskKind], ...] = (
    *(("network", task_kind) for task_kind in TASKS),
    *(("xgboost", task_kind) for task_kind in TASKS),
    *(("hist_gradient_boosting", task_kind) for task_kind in ("multiclass", "multilabel", "regression")),
    *(("random_forest", task_kind) for task_kind in ("multilabel", "regression")),
    ("constant", "multilabel"),
)
METADATA = {"dataset_digest": "a" * 64, "params": {"width": 8}, "seed": 3, "experiment": {"name": "tiny"}}


def customers(n: int = 90) -> pd.DataFrame:
    """Numbers, codes, booleans and text; ``age`` and ``city`` have gaps, of which the first 20 rows show none."""
    random = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "age": random.normal(40, 12, n),
            "orders": random.integers(0, 30, n),
            "member": random.random(n) < 0.5,
            "city": random.choice(["Bern", "Genf", "Chur"], n),
        }
    )
    frame.loc[[30, 50], "age"] = np.nan
    frame.loc[[40, 60], "city"] = np.nan
    return frame


def targets(kind: TaskKind) -> pd.DataFrame:
    rows = customers()
    many, member = rows["orders"] > 14, rows["member"]
    columns: dict[TaskKind, dict[str, Any]] = {
        "binary": {"bought": np.where(many, "yes", "no")},
        "multiclass": {"level": many.astype(int) + member.astype(int)},
        "multilabel": {"mail": many.astype(int), "shop": member.astype(int)},
        "regression": {"spent": rows["orders"] * 100.0 + 7, "visits": rows["orders"] - 5.0 * member},
    }
    return pd.DataFrame(columns[kind])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Trees this small spend their time waiting for each other's threads."""
    with threadpoolctl.threadpool_limits(1):
        yield


@functools.cache
def fitted(kind: str, task_kind: TaskKind, scaler: str = "standard") -> Bundle:
    """A bundle of each kind; the network keeps its initial weights."""
    frame, wanted = customers(), targets(task_kind)
    task = Task.learn(task_kind, wanted)
    preprocessor = Preprocessor.fit(
        frame, Schema.learn(frame), scaler=scaler, impute="median", fill=0.0, max_categories=50
    )
    features, encoded = preprocessor.transform(frame), task.encode(wanted)
    model: Any
    if kind == "network":
        training.seed_everything(3)
        model = models.build("mlp", preprocessor.spec, task, {"width": 8, "depth": 1})
    else:
        model = baselines.fit(kind, task, features, encoded, seed=3)
    return Bundle(model, preprocessor, task, 0.4, METADATA)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, TaskKind], Path]:
    """Saved bundles, each made once; copy before you change one."""
    root = tmp_path_factory.mktemp("shelf")

    def saved(kind: str, task_kind: TaskKind) -> Path:
        folder = root / f"{kind}-{task_kind}"
        if not folder.exists():
            fitted(kind, task_kind).save(folder, customers())
        return folder

    return saved


@pytest.fixture
def folder(shelf: Callable[[str, TaskKind], Path], tmp_path: Path) -> Path:
    """A saved bundle to tamper with."""
    return Path(shutil.copytree(shelf("constant", "binary"), tmp_path / "bundle"))


def sign(folder: Path) -> None:
    """What an attacker does: write the manifest anew, so that every digest is right."""
    (folder / files.MANIFEST).unlink()
    files.write_manifest(folder)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(("kind", "task_kind"), SAVED)
def test_every_kind_of_model_predicts_the_same_after_a_round_trip(
    kind: str, task_kind: TaskKind, shelf: Callable[[str, TaskKind], Path]
) -> None:
    bundle, loaded = fitted(kind, task_kind), Bundle.load(shelf(kind, task_kind), verify=True)
    assert (loaded.kind, loaded.task, loaded.threshold, loaded.metadata) == (kind, bundle.task, 0.4, METADATA)
    np.testing.assert_array_equal(loaded.scores(customers()), bundle.scores(customers()))
    pd.testing.assert_frame_equal(loaded.predict(customers()), bundle.predict(customers()))


def test_a_loaded_bundle_can_be_saved_again(shelf: Callable[[str, TaskKind], Path], tmp_path: Path) -> None:
    """As the sweep does with the winner, whose metadata it adds to."""
    for kind in KINDS:
        loaded = Bundle.load(shelf(kind, "multilabel"))
        dataclasses.replace(loaded, metadata={"verdict": "ship it"}).save(tmp_path / kind, customers())
        again = Bundle.load(tmp_path / kind)
        assert again.metadata == {"verdict": "ship it"}
        assert replay_golden(shelf(kind, "multilabel"), again) == 0


IN_A_FRESH_PROCESS = """
import json, sys
from pathlib import Path
import pandas as pd
from forge_sweep.bundle import Bundle
frame = pd.read_parquet(sys.argv[1])
print(json.dumps([Bundle.load(Path(folder)).scores(frame).tolist() for folder in sys.argv[2:]]))
"""


@pytest.mark.slow
def test_a_fresh_process_predicts_the_same_from_shuffled_columns(
    shelf: Callable[[str, TaskKind], Path], tmp_path: Path
) -> None:
    frame = customers()
    frame[["city", "member", "age", "orders"]].to_parquet(tmp_path / "rows.parquet")
    folders = [str(shelf(kind, "multilabel")) for kind in KINDS]
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(tmp_path / "rows.parquet"), *folders]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    for kind, scores in zip(KINDS, json.loads(done.stdout.splitlines()[-1]), strict=True):
        np.testing.assert_allclose(scores, fitted(kind, "multilabel").scores(frame), rtol=0, atol=1e-6, err_msg=kind)


# Predicting


def test_predictions_keep_the_index_and_do_not_depend_on_the_order_of_columns() -> None:
    frame = customers().set_index(pd.Index([f"row-{i}" for i in range(90)], name="id"))
    bundle = fitted("xgboost", "multilabel")
    found = bundle.predict(frame[["city", "orders", "member", "age"]])
    pd.testing.assert_frame_equal(found, bundle.predict(frame))
    assert found.index.equals(frame.index)
    assert list(found) == ["probability_mail", "probability_shop", "mail", "shop"]


@pytest.mark.parametrize("task_kind", TASKS)
def test_no_rows_give_no_predictions_under_the_same_columns(task_kind: TaskKind) -> None:
    bundle = fitted("xgboost", task_kind)
    empty = bundle.predict(customers().iloc[:0])
    assert len(empty) == 0
    assert list(empty) == list(bundle.predict(customers()))


@pytest.mark.parametrize("rows", [90, 0])
def test_a_frame_with_a_missing_column_is_refused_by_name(rows: int) -> None:
    with pytest.raises(SchemaError, match="city"):
        fitted("constant", "binary").predict(customers().iloc[:rows].drop(columns="city"))


def test_the_threshold_decides_the_label() -> None:
    bundle = fitted("xgboost", "binary")
    assert (bundle.predict(customers())["label"] == "yes").sum() < 90
    generous = dataclasses.replace(bundle, threshold=0.0)
    assert (generous.predict(customers())["label"] == "yes").all()


def test_a_tree_gives_probabilities_also_where_the_networks_give_logits() -> None:
    bundle = fitted("constant", "binary")
    logits = dataclasses.replace(bundle.task, activation="linear", from_logits=True)
    other = dataclasses.replace(bundle, task=logits)
    np.testing.assert_array_equal(other.scores(customers()), bundle.scores(customers()))


# Saving


def test_the_folder_has_the_documented_files_and_no_others(shelf: Callable[[str, TaskKind], Path]) -> None:
    names = {path.name for path in shelf("network", "binary").iterdir()}
    assert names == {
        *("bundle.json", "task.json", "schema.json", "preprocessor.json", "preprocessor.npz"),
        *("model.keras", "scaler.joblib", "golden.json", "manifest.json"),
    }
    about = json.loads((shelf("network", "binary") / "bundle.json").read_text())
    assert (about["format"], about["kind"], about["threshold"]) == (1, "network", 0.4)
    assert {"forge-sweep", "keras", "scikit-learn"} <= about["packages"].keys()


def test_people_can_load_the_scaler_themselves(shelf: Callable[[str, TaskKind], Path], tmp_path: Path) -> None:
    scaler = joblib.load(shelf("constant", "binary") / "scaler.joblib")
    assert scaler.mean_[1] == pytest.approx(customers()["orders"].mean())
    fitted("constant", "binary", "none").save(tmp_path / "plain", customers())
    assert not (tmp_path / "plain" / "scaler.joblib").exists()
    assert Bundle.load(tmp_path / "plain", verify=True).kind == "constant"


def test_saving_over_a_bundle_replaces_it_and_leaves_nothing_else(folder: Path) -> None:
    fitted("xgboost", "regression").save(folder, customers())
    assert Bundle.load(folder, verify=True).kind == "xgboost"
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_saving_over_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="is not a bundle"):
        fitted("constant", "binary").save(tmp_path, customers())
    assert (tmp_path / "thesis.tex").exists()


def test_a_bundle_that_cannot_be_saved_leaves_the_old_one_as_it_was(folder: Path) -> None:
    for metadata in ({"auc": float("nan")}, {"when": object()}):
        with pytest.raises(BundleError, match=r"bundle\.json cannot be written as plain JSON"):
            dataclasses.replace(fitted("constant", "regression"), metadata=metadata).save(folder, customers())
    assert Bundle.load(folder, verify=True).task.kind == "binary"
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_a_model_that_predicts_nan_is_not_saved(tmp_path: Path) -> None:
    task = fitted("constant", "binary").task
    broken = dataclasses.replace(fitted("constant", "binary"), model=Baseline("constant", (float("nan"),), {}, task))
    with pytest.raises(BundleError):
        broken.save(tmp_path / "bundle", customers())
    assert not list(tmp_path.iterdir())


# Golden rows


def test_golden_rows_show_missing_values_though_the_first_rows_have_none(
    shelf: Callable[[str, TaskKind], Path],
) -> None:
    frame, scores = read_golden(shelf("constant", "binary"))
    assert len(frame) == len(scores) == GOLDEN_ROWS
    assert frame["age"].isna().sum() == 2
    assert frame["city"].isna().sum() == 2
    assert list(frame["orders"][:16]) == list(customers()["orders"][:16])
    with pytest.raises(BundleError, match="none was given"):
        choose_golden(frame.iloc[:0])


@hypothesis.given(
    st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
    st.lists(st.none() | st.text(), min_size=2, max_size=2),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2),
    st.lists(st.none() | st.booleans(), min_size=2, max_size=2),
    st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=2),
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_golden_rows_read_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory,
    numbers: list[Any],
    texts: list[Any],
    integers: list[Any],
    flags: list[Any],
    scores: list[float],
) -> None:
    columns = {
        "number": pd.Series(numbers, dtype="float64"),
        "text": pd.Series(texts, dtype="object"),
        "integer": pd.Series(integers, dtype="int64"),
        "flag": pd.Series(flags, dtype="boolean"),
    }
    folder = tmp_path_factory.mktemp("golden")
    write_golden(folder, pd.DataFrame(columns), np.asarray([scores]).T)
    frame, read = read_golden(folder)
    pd.testing.assert_frame_equal(frame, pd.DataFrame(columns), check_exact=True)
    assert read.ravel().tolist() == scores


def test_replaying_another_model_gives_the_distance_between_the_two(shelf: Callable[[str, TaskKind], Path]) -> None:
    constant, forest = shelf("constant", "multilabel"), fitted("random_forest", "multilabel")
    frame, scores = read_golden(constant)
    assert replay_golden(constant) == 0
    assert replay_golden(constant, forest) == pytest.approx(np.abs(forest.scores(frame) - scores).max())


def test_other_golden_scores_are_refused_on_request(folder: Path) -> None:
    scores = json.loads((folder / "golden.json").read_text())["scores"]
    edit(folder / "golden.json", scores=[[scores[0][0] + 1e-3], *scores[1:]])
    sign(folder)
    assert replay_golden(folder) == pytest.approx(1e-3)
    assert Bundle.load(folder).kind == "constant"
    with pytest.raises(BundleError, match=r"other golden scores .*: 0\.001 off"):
        Bundle.load(folder, verify=True)


# Damage


@pytest.mark.parametrize("kind", KINDS)
def test_one_changed_byte_in_any_file_is_refused_by_name(
    kind: str, shelf: Callable[[str, TaskKind], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(shelf(kind, "multilabel"), tmp_path / "bundle"))
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(BundleError, match=path.name.replace(".", r"\.")):
            Bundle.load(folder)
        path.write_bytes(whole)
    Bundle.load(folder)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=200, deadline=None)
def test_no_changed_byte_anywhere_goes_unnoticed(shelf: Callable[[str, TaskKind], Path], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(shelf("constant", "binary").iterdir())))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
    try:
        path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
        with pytest.raises(BundleError):
            Bundle.load(path.parent)
    finally:
        path.write_bytes(whole)


def test_every_missing_unexpected_and_changed_file_is_listed_at_once(folder: Path) -> None:
    (folder / "task.json").unlink()
    (folder / "schema.json").unlink()
    (folder / "notes.txt").write_text("mine")
    (folder / "constant.json").write_text("[0.9]")
    with pytest.raises(BundleError) as refused:
        Bundle.load(folder)
    assert "missing: schema.json, task.json; unexpected: notes.txt; changed: constant.json" in str(refused.value)


def test_a_file_that_is_listed_but_foreign_to_the_kind_is_refused(folder: Path) -> None:
    (folder / "plugin.py").write_text("import os")
    (folder / "golden.json").unlink()
    sign(folder)
    with pytest.raises(BundleError, match=r"missing: golden\.json; unexpected: plugin\.py"):
        Bundle.load(folder)


@pytest.mark.parametrize("name", ["../secret.json", "/etc/passwd", "..", "a/b", "a\\b", "", ".hidden"])
def test_a_manifest_that_points_elsewhere_is_refused(folder: Path, name: str) -> None:
    digests = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(files.manifest_text({**digests, name: "0" * 64}))
    with pytest.raises(BundleError, match="not a plain file name"):
        Bundle.load(folder)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"task.json": 1}', '{"task.json": "ABC"}', "{}"])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.load(folder)


def test_links_folders_and_pipes_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "task.json", tmp_path / "outside.json")
    (folder / "task.json").unlink()
    (folder / "task.json").symlink_to(tmp_path / "outside.json")
    (folder / "schema.json").unlink()
    os.mkfifo(folder / "schema.json")
    (folder / "__pycache__").mkdir()
    with pytest.raises(BundleError, match=r"not a regular file: __pycache__, schema\.json, task\.json"):
        Bundle.load(folder)


def test_a_folder_that_is_none_or_has_no_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No such file"):
        Bundle.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"missing: manifest\.json"):
        Bundle.load(tmp_path)


def test_a_later_format_is_refused_with_both_versions_and_its_writer(folder: Path) -> None:
    edit(folder / "bundle.json", format=2, packages={"forge-sweep": "9.1.0"})
    sign(folder)
    with pytest.raises(BundleError, match=r"(?s)format 2, .* reads format 1.*9\.1\.0"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("[]", "is not a table"),
        ('{"format": 1, "kind": "network"}', "lacks metadata, packages, threshold"),
        ('{"format": 1, "kind": "oracle", "threshold": 0, "metadata": {}, "packages": {}}', "kind 'oracle' is none of"),
    ],
)
def test_a_description_that_is_none_is_refused(folder: Path, text: str, seen: str) -> None:
    (folder / "bundle.json").write_text(text)
    sign(folder)
    with pytest.raises(BundleError, match=rf"bundle\.json.* {seen}"):
        Bundle.load(folder)


def test_a_schema_that_says_otherwise_than_the_preprocessor_is_refused(folder: Path) -> None:
    columns = json.loads((folder / "schema.json").read_text())["columns"]
    edit(folder / "schema.json", columns=columns[:-1])
    sign(folder)
    with pytest.raises(BundleError, match="describe different columns"):
        Bundle.load(folder)


def test_a_file_its_library_cannot_read_is_named_with_the_versions_it_was_written_with(folder: Path) -> None:
    edit(folder / "bundle.json", packages={"keras": "1.0"}, kind="network")
    (folder / "constant.json").rename(folder / "model.keras")
    sign(folder)
    with pytest.raises(BundleError, match=r"(?s)model\.keras cannot be read.*keras==1\.0 \(here 3"):
        Bundle.load(folder)


# Attacks: every digest is right


class Exploit:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_in_place_of_any_file_is_refused_and_never_run(
    shelf: Callable[[str, TaskKind], Path], tmp_path: Path
) -> None:
    attack = pickle.dumps(Exploit(tmp_path / "owned"))
    for kind in KINDS:
        folder = Path(shutil.copytree(shelf(kind, "multilabel"), tmp_path / kind))
        for path in sorted({*folder.iterdir()} - {folder / "manifest.json"}):
            whole = path.read_bytes()
            path.write_bytes(attack)
            sign(folder)
            with pytest.raises(BundleError):
                Bundle.load(folder, verify=True)
            path.write_bytes(whole)
    assert not (tmp_path / "owned").exists()
    pickle.loads(attack)
    assert (tmp_path / "owned").exists(), "the attack itself works"


def forged(shelf: Callable[[str, TaskKind], Path], tmp_path: Path, model: Any) -> Path:
    """A signed bundle of a forest with another model in it."""
    folder = Path(shutil.copytree(shelf("random_forest", "multilabel"), tmp_path / "forged"))
    trees.save(model, folder / "tree.skops")
    sign(folder)
    return folder


def foreign_types() -> dict[str, Any]:
    import operator

    from sklearn.linear_model import LogisticRegression

    return {
        "operator.methodcaller": operator.methodcaller("system", "true"),
        "functools.partial": functools.partial(os.system, "true"),
        "sklearn.linear_model._logistic.LogisticRegression": LogisticRegression(),
    }


@pytest.mark.parametrize("name", foreign_types())
def test_a_type_outside_the_list_is_refused_by_name_even_if_skops_trusts_it(
    name: str, shelf: Callable[[str, TaskKind], Path], tmp_path: Path
) -> None:
    forest = pickle.loads(pickle.dumps(fitted("random_forest", "multilabel").model.model))
    forest.estimators_[0].extra_ = foreign_types()[name]
    with pytest.raises(BundleError, match=f"not trusted: .*{name}"):
        Bundle.load(forged(shelf, tmp_path, forest))


def test_a_tree_file_that_holds_no_tree_is_refused(shelf: Callable[[str, TaskKind], Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="a dict stands where a tree was expected"):
        Bundle.load(forged(shelf, tmp_path, {"estimators_": []}))


@pytest.mark.parametrize(
    ("field", "value"), [("left_child", 10**6), ("right_child", 0), ("feature", 99), ("feature", -5)]
)
def test_a_forest_whose_nodes_point_nowhere_is_refused(
    field: str, value: int, shelf: Callable[[str, TaskKind], Path], tmp_path: Path
) -> None:
    """Scikit-learn would follow them: foreign memory, or a loop without end."""
    forest = pickle.loads(pickle.dumps(fitted("random_forest", "multilabel").model.model))
    state = forest.estimators_[1].tree_.__getstate__()
    state["nodes"][field][0] = value
    forest.estimators_[1].tree_.__setstate__(state)
    with pytest.raises(BundleError, match="nodes that point nowhere"):
        Bundle.load(forged(shelf, tmp_path, forest))


@pytest.mark.parametrize(
    ("field", "value"), [("left", 10**6), ("right", 0), ("feature_idx", 99), ("is_categorical", 1)]
)
def test_a_booster_whose_nodes_point_nowhere_is_refused(
    field: str, value: int, shelf: Callable[[str, TaskKind], Path], tmp_path: Path
) -> None:
    booster = pickle.loads(pickle.dumps(fitted("hist_gradient_boosting", "multilabel").model.model))
    booster.estimators_[1]._predictors[3][0].nodes[field][0] = value
    with pytest.raises(BundleError, match="nodes that point nowhere"):
        Bundle.load(forged(shelf, tmp_path, booster))


def test_a_network_with_a_lambda_is_refused(shelf: Callable[[str, TaskKind], Path], tmp_path: Path) -> None:
    import keras

    folder = Path(shutil.copytree(shelf("network", "multilabel"), tmp_path / "forged"))
    keras.Sequential([keras.Input((8,)), keras.layers.Lambda(lambda x: x)]).save(folder / "model.keras")
    sign(folder)
    with pytest.raises(BundleError, match=r"model\.keras holds .*not trusted: .*__lambda__, keras\.layers\.Lambda"):
        Bundle.load(folder)


# Released formats


def make_asset(folder: Path = ASSET) -> None:
    """Write a bundle of the current format for `test_every_released_format_still_opens`.

    Run once per format, with ``python -m tests.test_bundle``, by the release that brings the format; never again, since
    later code has to read what this code wrote. The model: disease progression of diabetes patients (scikit-learn),
    width 8, 20 epochs; ``sex`` as text and some gaps in ``bmi``, so that every part of the preprocessor is in use.
    """
    from sklearn.datasets import load_diabetes

    features, progression = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    features["sex"] = features["sex"].map({1.0: "a", 2.0: "b"})
    features.loc[::9, "bmi"] = np.nan
    wanted = progression.to_frame("progression")
    train, valid = slice(0, 200), slice(200, None)
    task = Task.learn("regression", wanted[train])
    schema = Schema.learn(features[train])
    preprocessor = Preprocessor.fit(
        features[train], schema, scaler="quantile", impute="median", fill=0.0, max_categories=50
    )
    arrays = [preprocessor.transform(features[train]), task.encode(wanted[train])]
    arrays += [preprocessor.transform(features[valid]), task.encode(wanted[valid])]
    training.seed_everything(1)
    model = models.build(
        "mlp", one_matrix(arrays[0].shape[1]), task, {"width": 8, "depth": 1, "optimizer": "sgd", "momentum": 0.0}
    )
    spec = training.FitSpec(epochs=20, patience=20, batch_size=64, monitor="val_rmse", direction="minimize")
    training.fit(model, task, training.TrainingData(*arrays), spec, lambda epoch, metrics: False)
    about = {"dataset_digest": "diabetes of scikit-learn", "params": {"width": 8, "depth": 1}, "seed": 1}
    Bundle(model, preprocessor, task, 0.5, about).save(folder, features[train])


def test_every_released_format_still_opens() -> None:
    """A bundle written by format 1 gives its golden scores to 1e-5 of their size, and takes raw rows."""
    bundle = Bundle.load(ASSET, verify=True)
    frame, scores = read_golden(ASSET)
    assert np.abs(bundle.scores(frame) / scores - 1).max() < 1e-5
    assert frame["bmi"].isna().any()
    assert bundle.predict(frame)["progression"].between(20, 400).all()


if __name__ == "__main__":
    warnings.simplefilter("error")
    make_asset()
