"""`data drift`: the planted shift is named first, halves of one version show none, models are scored on new rows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from forge_sweep import sweep
from forge_sweep.checks.drift import ALPHA
from forge_sweep.experiment import DataSpec, Experiment
from forge_sweep.feature_store import drift as scoring
from forge_sweep.feature_store.connection import Address, connect
from forge_sweep.feature_store.drift import DriftReport, drift
from forge_sweep.feature_store.drift_page import MOST_PICTURES, write_html
from forge_sweep.feature_store.ingest import ingest
from forge_sweep.feature_store.versions import Version
from forge_sweep.tracking import models_trained_on, prepare_store
from tests.surface import experiment, fake_run, no_network

Put = Callable[..., Version]


def loans(seed: int, rows: int = 1_500) -> pd.DataFrame:
    """Numbers with missing values and noise columns, whole numbers, categories, booleans, and a label that follows."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.lognormal(size=(rows, 6)), columns=[f"x{i}" for i in range(6)])
    frame["x1"] = frame["x1"].mask(rng.random(rows) < 0.05)
    frame["children"] = rng.poisson(1.2, rows)
    frame["city"] = rng.choice(["Bern", "Basel", "Genf", "Chur"], rows, p=[0.5, 0.3, 0.19, 0.01])
    frame["street"] = [f"street {n}" for n in rng.integers(0, 150, rows)]
    frame["owner"] = rng.random(rows) < 0.4
    frame["label"] = np.where(frame["x0"] + rng.normal(size=rows) > 1.5, "yes", "no")
    return frame


@pytest.fixture
def put(store: Address, tmp_path: Path) -> Put:
    """Ingests a frame under a name."""

    def put(name: str, frame: pd.DataFrame, **section: Any) -> Version:
        frame.to_parquet(tmp_path / f"{name}.parquet")
        spec = DataSpec(path=f"{name}.parquet", **{"target": "label", "task": "binary", **section})
        return ingest(spec, name=name, root=tmp_path, seed=0, address=store)

    return put


def compared(a: str, b: str, store: Path = Path("nowhere")) -> DriftReport:
    """The report; its JSON form is one."""
    report = drift(a, b, store=store)
    json.dumps(report.to_dict(), allow_nan=False)
    return report


def test_a_planted_shift_is_named_first_and_alone(put: Put, tmp_path: Path) -> None:
    """Among eleven columns, one of them of 150 categories whose noise alone gives a PSI above 0.1."""
    put("a", loans(0))
    shifted = loans(1)
    shifted["x3"] *= 1.4
    put("b", shifted)
    report = compared("a", "b")
    assert report.drifted and [column.name for column in report.drift.drifted] == ["x3"]
    assert report.drift.columns[0].name == "x3"
    assert max(report.drift.columns, key=lambda column: column.psi).name == "street", "noise is larger, and not first"
    shown = report.lines()
    assert any(line.startswith("1 of 11 columns drifted: x3;") and "at most 5%" in line for line in shown)
    rows = [line.split()[0] for line in shown if re.search(r"\d\.\d{3} +\d\.\d{3}", line)]
    assert rows[0] == "x3" and len(rows) == 11
    assert next(line for line in shown if line.startswith("x3")).endswith("drift")
    assert "no registered model was trained on" in shown[-1]
    assert not (tmp_path / "nowhere").exists() and not Path("nowhere").exists()


def test_random_halves_of_one_version_are_flagged_no_more_often_than_stated(put: Put) -> None:
    """Twelve pairs of versions from the same source; where nothing drifted, a flag has a chance of 5% at most."""
    flagged = 0
    for seed in range(12):
        frame = loans(seed, rows=700).sample(frac=1.0, random_state=seed)
        put(f"a{seed}", frame.iloc[:350], split={"kind": "random", "stratify": False})
        put(f"b{seed}", frame.iloc[350:], split={"kind": "random", "stratify": False})
        flagged += compared(f"a{seed}", f"b{seed}").drifted
    assert flagged <= binom.ppf(0.999, 12, ALPHA)


def test_a_label_shift_is_called_one(put: Put) -> None:
    put("a", loans(0))
    put("b", loans(1).assign(label=lambda frame: np.where(frame["x0"] > 3, "yes", "no")))
    report = compared("a", "b")
    assert [column.name for column in report.drift.drifted] == ["label"]
    assert report.findings[0].code == "label-shift"
    assert any("label (label shift)" in line for line in report.lines())


def test_categories_and_columns_that_came_and_went_are_listed(put: Put, tmp_path: Path) -> None:
    """In lines and on the page."""
    put("a", loans(0))
    after = loans(1).drop(columns="x5").assign(tall=1.0, children=lambda frame: "n" + frame["children"].astype(str))
    after["city"] = after["city"].replace({"Genf": "Genève"})
    put("b", after)
    report = compared("a", "b")
    found = report.drift
    assert (found.added, found.gone, found.retyped) == (("tall",), ("x5",), ("children",))
    assert report.drifted and report.shared is None
    shown = "\n".join(report.lines())
    assert re.search(r"city: new categories, 1\d\.\d% of the values in B: Genève", shown)
    assert "city: gone categories: Genf" in shown and "1 column of another type: children" in shown
    write_html(report, tmp_path / "drift.html")
    page = (tmp_path / "drift.html").read_text()
    assert "Genève" in page and "Of another type" in page and "gone: Genf" in page


def test_rows_of_both_versions_are_counted(put: Put) -> None:
    """A version that grew from another one shares rows with it, which hides drift of the new ones."""
    before = loans(0)
    put("a", before)
    put("b", pd.concat([before, loans(1, rows=300)], ignore_index=True))
    report = compared("a", "b")
    assert report.shared is not None and 600 < report.shared < len(before)
    assert any("equal a row of A in every feature" in line for line in report.lines())


def test_the_page_is_self_contained_and_escapes_what_the_data_says(put: Put, tmp_path: Path) -> None:
    """No address, no script; names and categories are text; pictures have words for people who cannot see them."""
    evil = "<script>alert(1)</script>"
    frame = loans(0).rename(columns={"x2": evil})
    put("a", frame)
    put("b", frame.assign(**{evil: frame[evil] + 1, "city": frame["city"].replace("Bern", "<img src=x onerror=y>")}))
    report = compared("a", "b")
    path = tmp_path / "new" / "drift.html"
    write_html(report, path)
    write_html(report, path)
    page = path.read_text(encoding="utf-8")
    assert [each.name for each in path.parent.iterdir()] == ["drift.html"], "replaced as a whole, nothing left over"
    assert "<script" not in page and "<img" not in page and "http:" not in page and "https:" not in page
    assert not re.search(r"\s(src|href)=|url\(|@import", page.replace("&lt;img src=x", ""))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "&lt;img src=x onerror=y&gt;" in page
    assert page.count("<svg") == page.count('role="img"') == len(report.drift.columns)
    assert page.count("<desc") == page.count("<svg") and "prefers-color-scheme: dark" in page


def test_the_page_stays_below_a_megabyte(put: Put, tmp_path: Path) -> None:
    """Two hundred drifted columns have a row in the table each; not all have a picture."""
    rng = np.random.default_rng(0)
    names = [f"column {i}" for i in range(200)]
    for name, shift in (("a", 0), ("b", 1)):
        frame = pd.DataFrame(rng.normal(shift, 1, (600, 200)), columns=names)
        put(name, frame.assign(label=np.arange(600) % 2))
    report = compared("a", "b")
    assert len(report.drift.drifted) == 200
    write_html(report, tmp_path / "drift.html")
    page = (tmp_path / "drift.html").read_text()
    assert page.count("<svg") == MOST_PICTURES and page.count('<td class="name">column') == 200
    assert len(page.encode()) < 1_000_000


def small(version: Version, name: str = "loans", **values: Any) -> Experiment:
    """A sweep of one trial on a version of the store."""
    data = {"source": "postgres", "version": version.name, "target": "label", "task": version.task}
    budget = {"study__n_trials": 1, "confirm__top": 1, "confirm__seeds": 1, "tracking__model_name": "loans"}
    return experiment(name=name, data=data, **{**budget, **values})


def train_on(version: Version, store: Path, kind: str, name: str = "loans") -> None:
    """A sweep that registers this kind of baseline: no network is trained, and the stand-in is worse."""
    with no_network(fake_run()):
        sweep.run(small(version, name, baselines__kinds=[kind]), store=store)


@pytest.mark.slow
def test_models_trained_on_a_are_scored_on_b(put: Put, tmp_path: Path) -> None:
    """With their aliases and objective; rows that the model was trained on are left out and counted."""
    mlruns = tmp_path / "mlruns"
    before, after = loans(0), loans(1)
    after["label"] = np.where(np.random.default_rng(5).random(len(after)) < 0.5, "yes", "no")
    version = put("a", before)
    put("b", pd.concat([after, before.iloc[:500]], ignore_index=True))
    train_on(version, mlruns, "hist_gradient_boosting")
    train_on(version, mlruns, "xgboost", "again")
    report = compared("a", "b", mlruns)
    newest, oldest = report.models
    assert (newest.uri, newest.aliases) == ("models:/loans/2", ("challenger",)) and oldest.uri == "models:/loans/1"
    assert report.known > 20 and report.validation[1] + report.known == 300
    assert newest.objective == "auc" and newest.worse and not newest.why
    assert newest.a["auc"] > 0.75 and newest.b["auc"] < newest.a["auc"] - 0.1
    assert newest.a.keys() == newest.b.keys() >= {"auc", "pr_auc", "f1", "log_loss"}
    shown = "\n".join(report.lines())
    assert re.search(r"models:/loans/2 \(challenger, xgboost\): auc 0\.\d+ -> 0\.\d+, worse; ", shown)
    assert f"(without {report.known} that are training rows of A)" in shown
    write_html(report, tmp_path / "drift.html")
    assert "models:/loans/2" in (tmp_path / "drift.html").read_text()


def test_a_model_that_cannot_be_scored_says_why(put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing column, a label it does not know, another task; a further column is no reason."""
    mlruns = tmp_path / "mlruns"
    version = put("a", loans(0))
    train_on(version, mlruns, "hist_gradient_boosting")
    put("less", loans(1).drop(columns="x2"))
    put("more", loans(1).assign(tall=1.0))
    put("labels", loans(1).replace({"label": {"no": "never"}}))
    put("numbers", loans(1).assign(label=lambda frame: frame["x0"]), task="regression")
    reasons = {"less": "x2: missing", "more": "", "labels": "never", "numbers": "binary task, and numbers is for regr"}
    for name, reason in reasons.items():
        (model,) = compared("a", name, mlruns).models
        assert reason in model.why and bool(model.why) == bool(reason), name
        assert bool(model.b) == (not reason)
    report = compared("a", "less", mlruns)
    assert any("not scored" in line and "x2: missing" in line for line in report.lines())
    write_html(report, tmp_path / "drift.html")
    assert "x2: missing" in (tmp_path / "drift.html").read_text()
    (model,) = compared("a", "a", mlruns).models
    assert not model.why and model.a == model.b, "validation rows are no training rows"
    monkeypatch.setattr(scoring, "SCORED", 0)
    (model,) = compared("a", "more", mlruns).models
    assert "only the first 0 models" in model.why


def test_models_of_other_versions_are_none_of_this_one(put: Put, tmp_path: Path) -> None:
    version, other = put("a", loans(0)), put("b", loans(1))
    train_on(version, tmp_path, "hist_gradient_boosting")
    (trained,) = models_trained_on(version.version, tmp_path)
    assert (trained.uri, trained.aliases) == ("models:/loans/1", ("challenger",))
    assert models_trained_on(other.version, tmp_path) == ()


def test_columns_are_compared_whether_mlflow_answers_or_not(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report says that the models were not looked up, and why."""
    put("a", loans(0))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    report = compared("a", "a", tmp_path)
    assert report.drift.columns and report.models_why
    assert any("were not looked up" in line for line in report.lines())


@pytest.mark.slow
def test_no_test_row_is_read_and_no_backend_loaded(
    put: Put, store: Address, login: Callable[..., str], tmp_path: Path
) -> None:
    """In a process of its own, as a member of forge_tuner only, with a tree to be scored."""
    version = put("a", loans(0))
    put("b", loans(1))
    train_on(version, tmp_path / "mlruns", "hist_gradient_boosting")
    script = f"""
    import os, sys
    from pathlib import Path
    from forge_sweep.feature_store.drift import drift
    os.environ["FORGE_SWEEP_DATABASE_URL"] = {login(store, "forge_tuner")!r}
    report = drift("a", "b", store=Path({str(tmp_path / "mlruns")!r}))
    assert report.models[0].b, report.models
    assert not {{"tensorflow", "keras"}} & set(sys.modules), "no network, no backend"
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=120)
    with connect(store) as connection:
        looks = connection.execute("SELECT count(*) FROM test_looks WHERE purpose NOT LIKE 'final score%'").fetchone()
    assert looks == (0,)


@pytest.mark.slow
def test_a_network_is_scored_in_a_fresh_process(put: Put, tmp_path: Path) -> None:
    """It brings its backend itself, and prints nothing about it. With enough epochs it surely beats the constant."""
    version = put("a", loans(0))
    put("b", loans(1))
    declared = small(version, study__epochs=30, confirm__seeds=3, baselines__kinds=["constant"])
    sweep.run(declared, store=tmp_path / "mlruns")
    script = f"""
    from pathlib import Path
    from forge_sweep.feature_store.drift import drift
    (model,) = drift("a", "b", store=Path({str(tmp_path / "mlruns")!r})).models
    assert model.kind == "network" and model.b, model
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_models_are_found_where_the_variable_says(put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the embedded stores may not even be there; a version that holds no bundle says so."""
    from mlflow import MlflowClient

    version = put("a", loans(0))
    address = f"sqlite:///{tmp_path}/elsewhere/mlflow.db"
    prepare_store(address, tmp_path / "elsewhere")
    client = MlflowClient(address)
    client.create_registered_model("foreign")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no model")
    client.create_model_version("foreign", str(tmp_path / "empty"), tags={"forge.dataset_version": version.version})
    assert not compared("a", "a", tmp_path / "mlruns").models
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    (model,) = compared("a", "a", tmp_path / "mlruns").models
    assert model.uri == "models:/foreign/1" and model.why == "models:/foreign/1 holds no bundle"
