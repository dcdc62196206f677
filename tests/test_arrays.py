"""Columns of arrays and images: read, refused by name, trained on, kept in a bundle and predicted."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from forge_sweep import models, sources, trial
from forge_sweep.bundle import Bundle, choose_golden, read_golden
from forge_sweep.bundle.layout import write_golden
from forge_sweep.checks.audit import audit
from forge_sweep.errors import DataError, ExperimentError, SchemaError, TrialFailed
from forge_sweep.experiment import Experiment, PreprocessingSpec, parse
from forge_sweep.preprocessing import InputSpec, cells

X, Y = (load_digits().images[:200] * 15.9).astype(np.uint8), load_digits().target[:200]
LOGO = {"logo": {"kind": "image", "column": "logo_path", "shape": [8, 8, 1]}, "rest": {"columns": ["ink"]}}


def read(folder: Path, path: str, inputs: dict[str, Any] | None = None) -> tuple[Experiment, sources.Dataset]:
    raw = {
        "name": "digits",
        "data": {"path": path, "target": "y", "task": "multiclass", "inputs": inputs or {}},
        "objective": {"metric": "val_loss"},
        "study": {"n_trials": 1},
    }
    made = parse(raw, root=folder)
    return made, sources.load(made.data, root=folder, seed=0)


def pictures(folder: Path, x: np.ndarray = X) -> pd.DataFrame:
    (folder / "img").mkdir()
    for row, pixels in enumerate(x):
        Image.fromarray(pixels).save(folder / "img" / f"{row}.png")
    paths = [f"img/{row}.png" for row in range(len(x))]
    frame = pd.DataFrame({"logo_path": paths, "ink": x.reshape(len(x), -1).mean(axis=1), "y": Y[: len(x)]})
    frame.to_csv(folder / "rows.csv", index=False)
    return frame


def build(builder: str, spec: Any, task: Any, params: Any) -> Any:
    inputs = {name: keras.Input(each.shape, name=name) for name, each in spec.items()}
    joined = [keras.layers.Flatten()(tensor) for tensor in inputs.values()]
    hidden = keras.layers.Concatenate()(joined) if len(joined) > 1 else joined[0]
    taken = inputs if len(inputs) > 1 else next(iter(inputs.values()))
    model = keras.Model(taken, keras.layers.Dense(task.units, activation=task.activation)(hidden))
    model.compile(optimizer="adam", loss=task.loss)
    return model


def test_an_archive_is_one_input_and_its_bundle_takes_nested_lists(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(models, "build", build)
    np.savez(tmp_path / "d.npz", X=X[..., None] / 255.0, y=Y)
    made, dataset = read(tmp_path, "d.npz")
    result = trial.run(made, dataset, {"batch_size": 32}, 1, lambda epoch, logs: epoch == 1)
    assert result.bundle.preprocessor.spec == {"features": InputSpec((8, 8, 1))}
    result.bundle.save(tmp_path / "bundle", dataset.train.features)
    again, lists = Bundle.load(tmp_path / "bundle", verify=True), dataset.valid.features.copy()
    wanted = again.scores(lists)
    lists["X"] = [cell.tolist() for cell in lists["X"]]
    np.testing.assert_array_equal(again.scores(lists), wanted)
    with pytest.raises(SchemaError, match=r"X: expected arrays of shape \(8, 8, 1\), float32"):
        again.scores(pd.DataFrame({"X": [[1.0, 2.0]]}))
    with pytest.raises(TrialFailed, match=r"xgboost takes the columns of a table, and there are only arrays \(X\)"):
        trial.run_baseline(made, dataset, "xgboost", 1)
    np.savez(tmp_path / "e.npz", X=X[..., None] / 254.0, y=Y)
    assert read(tmp_path, "e.npz")[1].digest != dataset.digest


def test_images_beside_a_table_are_scaled_and_come_as_base64_too(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(models, "build", build)
    pictures(tmp_path)
    made, dataset = read(tmp_path, "rows.csv", LOGO)
    result = trial.run(made, dataset, {"batch_size": 32}, 1, lambda epoch, logs: epoch == 1)
    assert result.bundle.preprocessor.spec["logo"] == InputSpec((8, 8, 1), scale=1 / 255)
    batch = result.bundle.preprocessor.batch(dataset.valid.features)
    assert isinstance(batch, dict) and 0.9 < batch["logo"].max() <= 1.0
    texts, buffer = dataset.valid.features.head(1).copy(), io.BytesIO()
    Image.fromarray(texts["logo_path"].iloc[0][..., 0]).save(buffer, "PNG")
    texts["logo_path"] = [base64.b64encode(buffer.getvalue()).decode()]
    wanted = result.bundle.scores(dataset.valid.features.head(1))
    np.testing.assert_array_equal(result.bundle.scores(texts), wanted)
    assert trial.run_baseline(made, dataset, "hist_gradient_boosting", 1).bundle.preprocessor.output_names == ("ink",)


def test_images_that_cannot_be_taken_are_named(tmp_path: Path) -> None:
    frame = pictures(tmp_path)
    (tmp_path / "img/3.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "img/4.png")
    (tmp_path / "img/5.png").unlink()
    (tmp_path / "img/6.png").write_bytes((tmp_path / "img/6.png").read_bytes()[:60])
    with pytest.raises(DataError, match="4 images of column 'logo_path' cannot be taken") as caught:
        read(tmp_path, "rows.csv", LOGO)
    for said in (
        "3.png: it is neither",
        "4.png: 9 x 8 pixels, not 8 x 8",
        "5.png: there is no such file",
        "6.png: it is",
    ):
        assert f"img/{said}" in str(caught.value)
    assert len(frame) == 200


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": X, "y": Y[:3]}, "different lengths"),
        ({"X": np.where(X == 0, np.nan, X), "y": Y}, "float32 does not have in 200 rows"),
        ({"X": X.astype(object), "y": Y}, "cannot be read"),
        ({"X": X, "z": X, "y": Y}, r"beside others; expected data\.inputs"),
    ],
)
def test_archives_that_are_no_rows_are_refused(arrays: dict[str, Any], words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=words):
        read(tmp_path, "d.npz")


def test_groups_of_arrays_and_of_tables_are_told_apart(tmp_path: Path) -> None:
    pictures(tmp_path)
    with pytest.raises(ExperimentError, match=r'logo\.shape.*nothing beside kind = "tensor"'):
        read(tmp_path, "rows.csv", {"logo": LOGO["logo"] | {"kind": "tensor"}, "rest": LOGO["rest"]})
    np.savez(tmp_path / "d.npz", X=X, y=Y)
    with pytest.raises(DataError, match="column 'X' holds arrays; give it an input of its own"):
        read(tmp_path, "d.npz", {"all": {"columns": ["*"]}})


def test_the_audit_names_what_it_leaves_out_and_images_in_two_splits(tmp_path: Path) -> None:
    twice = np.concatenate([X[:100], X[:100]])
    twice[:20] = 0
    pictures(tmp_path, twice)
    made, dataset = read(tmp_path, "rows.csv", LOGO)
    found = audit(dataset, made.data.task, PreprocessingSpec(), scaled=True).findings
    codes = {(finding.code, finding.subject) for finding in found}
    assert {("left-out", "logo_path"), ("blank-array", "logo_path"), ("repeated-array", "logo_path")} <= codes


@pytest.mark.parametrize(
    ("x", "images", "said"),
    [
        (X[..., None], {"X"}, ""),
        (X[..., None] // 16, {"X"}, "stretch the images to 0..255"),
        (X[..., None], (), 'take X as kind = "image"'),
        (X[..., None] / 255, (), ""),
        (X[..., None] * 1.0, (), "scale X before it is stored"),
    ],
)
def test_the_audit_names_ranges_that_no_network_should_get(x: Any, images: Any, said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", X=x, y=Y)
    _, dataset = read(tmp_path, "d.npz")
    found = audit(dataset, "multiclass", PreprocessingSpec(), scaled=True, images=images).findings
    assert [finding.fix for finding in found if finding.code == "array-range" and said in finding.fix] or not said
    assert said or "array-range" not in {finding.code for finding in found}


def test_golden_arrays_are_kept_bit_by_bit_and_those_of_older_bundles_are_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"X": pd.Series(cells(np.float32(X[:30, :, :, None] / 7)), dtype=object), "a": range(30)})
    golden = choose_golden(frame)
    write_golden(tmp_path, golden, np.zeros((len(golden), 1)))
    found, _ = read_golden(tmp_path)
    stored = json.loads((tmp_path / "golden.json").read_text())
    stored["rows"] = [[x.tolist(), a] for x, a in zip(golden["X"], golden["a"].tolist(), strict=True)]
    del stored["shapes"]
    (tmp_path / "golden.json").write_text(json.dumps(stored))
    for each in (found, read_golden(tmp_path)[0]):
        np.testing.assert_array_equal(np.stack(list(each["X"])), np.stack(list(golden["X"])))
        assert each["X"].iloc[0].dtype == np.float32 and len(each) == 20
    large = pd.DataFrame({"X": pd.Series(cells(np.zeros((9, 400, 1000), np.uint8)), dtype=object)})
    assert len(choose_golden(large)) == 5


def test_lists_of_different_shapes_are_refused_with_their_rows(tmp_path: Path) -> None:
    lists = [row.tolist() for row in X[:20].reshape(20, 64)]
    lists[7] = lists[7][:63]
    pd.DataFrame({"X": lists, "y": Y[:20]}).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"shapes \(64,\) \(19 rows\), \(63,\) \(1 rows\).*unlike the others: rows 7"):
        read(tmp_path, "d.parquet")
