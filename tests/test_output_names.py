"""Names of users beside names of ours: no column of predictions is lost or written over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forge_sweep import baselines
from forge_sweep.bundle import Bundle
from forge_sweep.errors import InputError
from forge_sweep.preprocessing import Preprocessor, Schema
from forge_sweep.serving.files import predict_file
from forge_sweep.task import Task, TaskKind
from forge_sweep.tracking import _load_pyfunc
from tests.serving import need_the_extra

FEATURES = pd.DataFrame({"a": np.arange(40.0), "b": np.cos(np.arange(40.0))})
HIGH, ODD = (FEATURES["a"] > 19).astype(int), (FEATURES["a"] % 2).astype(int)


def saved(folder: Path, kind: TaskKind, targets: dict[str, pd.Series]) -> Bundle:
    wanted = pd.DataFrame(targets)
    task = Task.learn(kind, wanted)
    schema = Schema.learn(FEATURES)
    preprocessor = Preprocessor.fit(FEATURES, schema, scaler="none", impute="median", fill=0.0, max_categories=50)
    features = preprocessor.transform(FEATURES)
    bundle = Bundle(
        baselines.fit("random_forest", task, features, task.encode(wanted), seed=1), preprocessor, task, 0.5, {}
    )
    bundle.save(folder, FEATURES)
    return bundle


CASES: dict[str, tuple[TaskKind, dict[str, pd.Series]]] = {
    "warnings": ("regression", {"warnings": FEATURES["a"] + 1}),
    "row_warnings": ("regression", {"warnings": FEATURES["a"] + 1, "row_warnings": FEATURES["b"]}),
    "label": ("regression", {"label": FEATURES["a"], "probability": FEATURES["b"]}),
    "rain": ("multilabel", {"rain": HIGH, "probability_rain": ODD}),
    "turned": ("multilabel", {"probability_rain": HIGH, "rain": ODD}),
    "chain": ("multilabel", {"rain": HIGH, "probability_rain": ODD, "label_probability_rain": 1 - ODD}),
    "twice": ("multilabel", {"x": HIGH, "probability_x": ODD, "probability_probability_x": 1 - HIGH}),
    "multilabel-warnings": ("multilabel", {"warnings": HIGH, "label": ODD}),
    "one-hot": ("multiclass", {"label": HIGH, "warnings": 1 - HIGH}),
    "classes": ("multiclass", {"y": pd.Series(["label", "warnings", "probability_label", "label_label"] * 10)}),
    "alike": ("multiclass", {"y": pd.Series([1, "1", "class_1", 2] * 10, dtype=object)}),
}


@pytest.mark.parametrize("case", [case for case in CASES if case != "alike"])  # a column has one type
def test_every_score_and_label_is_in_every_form_of_prediction(case: str, tmp_path: Path) -> None:
    kind, targets = CASES[case]
    bundle = saved(tmp_path / "bundle", kind, targets)
    FEATURES.to_csv(tmp_path / "rows.csv", index=False)
    scores = bundle.scores(FEATURES)
    shown = _load_pyfunc(str(tmp_path / "bundle")).predict(FEATURES)
    names, labels = bundle.task.columns()
    expected = {*names, *labels}
    assert shown.columns.is_unique and set(shown.columns) == expected and len(names) == bundle.task.units
    assert np.array_equal(shown[list(names)].to_numpy(), scores)
    if kind == "multilabel":
        assert np.array_equal(shown[list(labels)].to_numpy(), (scores >= 0.5).astype(int))
    for ending in ("csv", "jsonl", "parquet"):
        output = tmp_path / f"out.{ending}"
        predict_file(str(tmp_path / "bundle"), tmp_path / "rows.csv", output, store=tmp_path)
        found = {
            "csv": pd.read_csv,
            "jsonl": lambda path: pd.DataFrame(map(json.loads, path.read_text().splitlines())),
            "parquet": pd.read_parquet,
        }[ending](output)
        assert found.columns.is_unique and len(found.columns) == len(expected) + 1
        assert np.allclose(found[list(names)].to_numpy(), scores, rtol=1e-9, atol=0)
        assert list(found.columns)[-1].endswith("warnings")


@pytest.mark.parametrize("case", ["rain", "alike", "classes", "one-hot", "warnings"])
def test_answers_of_the_server_have_every_score_too(case: str, tmp_path: Path) -> None:
    need_the_extra()
    from forge_sweep.serving.predict import renderer

    kind, targets = CASES[case]
    task = saved(tmp_path / "bundle", kind, targets).task
    answer = renderer(task, 0.5)([float(i) for i in range(task.units)])
    assert list(answer["values" if kind == "regression" else "probabilities"].values()) == list(range(task.units))


def test_names_that_do_not_collide_stay_as_they_are(tmp_path: Path) -> None:
    task = saved(tmp_path / "bundle", "multilabel", {"rain": HIGH, "wind": ODD}).task
    assert task.columns() == (("probability_rain", "probability_wind"), ("rain", "wind"))


@pytest.mark.parametrize(
    ("keep", "said"),
    [(["warnings"], "have a column of that name"), (["row_warnings"], "of that name"), (["id", "id"], "2 times")],
)
def test_a_kept_column_never_takes_the_place_of_a_prediction(keep: list[str], said: str, tmp_path: Path) -> None:
    saved(tmp_path / "bundle", *CASES["warnings"])
    rows = tmp_path / "rows.csv"
    FEATURES.assign(warnings=1, row_warnings=2, id=3).to_csv(rows, index=False)
    with pytest.raises(InputError, match=said):
        predict_file(str(tmp_path / "bundle"), rows, tmp_path / "out.csv", store=tmp_path, keep=keep, ignore_extra=True)
    assert not (tmp_path / "out.csv").exists()
