"""Trees that are tuned: fits with early stopping, the points that TPE suggests, and a sweep that takes them along.

Run as a script it is a sweep that is killed in mid-tuning: `python -m tests.test_tuned_trees STORE`.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forge_sweep import baselines, reproduce, sweep
from forge_sweep.bundle.bundle import weights_digest
from forge_sweep.errors import ExperimentError, TrialFailed
from forge_sweep.experiment import load, restore
from forge_sweep.study import StudyView, find_study
from forge_sweep.study.samplers import next_point
from forge_sweep.sweep import Event, SweepResult
from forge_sweep.sweep.tuning import tuning
from forge_sweep.tracking import read_record
from tests.surface import experiment, fake_run, no_network
from tests.test_baselines import prepared

FILE = Path(__file__).parents[1] / "experiments" / "tuned_trees.toml"
BUDGET = [
    *("study.n_trials=2", "study.epochs=2", "study.pruner=none", "confirm.top=1", "confirm.seeds=2"),
    *("model.search.width=8", "model.search.depth=1", "model.search.dropout=0.0", "baselines.tune.trials=3"),
]


@pytest.mark.parametrize("kind", baselines.SPACES)
@pytest.mark.parametrize("name", ["binary", "regression"])
def test_a_configuration_gives_the_same_model_again_with_and_without_a_limit(kind: str, name: str) -> None:
    task, x, y = prepared(name)
    rows = (x[:150], y[:150]), (x[150:], y[150:])
    first = baselines.fit_tuned(kind, task, *rows, baselines.DEFAULTS[kind], seed=3)
    again = baselines.fit_tuned(kind, task, *rows, baselines.DEFAULTS[kind], seed=3, timeout_s=600)
    assert weights_digest(first) == weights_digest(again) and first.params == again.params
    assert baselines.DEFAULTS[kind].items() <= first.params.items()
    with pytest.raises(TrialFailed, match=f"{kind} was not fitted within 1e-06 s"):
        baselines.fit_tuned(kind, task, *rows, baselines.DEFAULTS[kind], seed=3, timeout_s=1e-6)


def test_early_stopping_keeps_the_trees_that_the_validation_rows_want() -> None:
    task, x, y = prepared("regression")
    fitted = [
        baselines.fit_tuned(kind, task, (x[:150], y[:150]), (x[150:], y[150:]), params, seed=3)
        for kind, params in baselines.DEFAULTS.items()
    ]
    for each in fitted:
        whole = baselines.fit(each.kind, task, x[:150], y[:150], seed=3)
        losses = [task.loss_of(y[150:], model.outputs(x[150:])) for model in (each, whole)]
        assert losses[0] < losses[1] and int(each.params["trees"]) < 100


def test_the_next_point_follows_from_what_was_told() -> None:
    space = baselines.SPACES["xgboost"]
    told: list[tuple[Any, float]] = [(dict(baselines.DEFAULTS["xgboost"]), 0.5)]
    for number in range(6):
        point = next_point(space, told, direction="maximize", seed=number)
        assert point == next_point(space, list(told), direction="maximize", seed=number)
        assert all(space[name].holds(value) for name, value in point.items()) and point.keys() == space.keys()
        told.append((point, float(number)))


def test_the_points_come_closer_to_the_best() -> None:
    space, told = {"subsample": baselines.SPACES["xgboost"]["subsample"]}, list[tuple[Any, float]]()
    for number in range(24):
        point = next_point(space, told, direction="minimize", seed=number)
        told.append((point, abs(float(point["subsample"]) - 0.7)))
    assert np.mean([value for _, value in told[12:]]) < 0.1  # 0.13 by chance


def test_tuning_is_on_by_default_and_no_part_of_the_contract() -> None:
    plain, off, more = experiment(), experiment(baselines__tune=False), experiment(baselines__tune={"trials": 40})
    assert plain.baselines.tune and plain.baselines.tune.trials == 10 and not off.baselines.tune
    assert plain.contract() == off.contract() == more.contract() and not off.differences(more.resolved())
    assert plain.tune_timeout_s == 30
    with pytest.raises(ExperimentError, match=r"baselines.tune = true: expected false or a table \[baselines.tune\]"):
        experiment(baselines__tune=True)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepResult, list[Event]]:
    """The experiment of the repository on a small budget, killed in the middle of its tuning, and run again."""
    store, seen = tmp_path_factory.mktemp("tuned"), list[Event]()
    killed = subprocess.run([sys.executable, "-m", "tests.test_tuned_trees", str(store)])
    assert killed.returncode == -signal.SIGKILL
    before = study_of(store).notes("tuned:")
    assert [key for key in before if "xgboost" in key] == ["tuned:xgboost_tuned:0000"]
    result = sweep.run(load(FILE, BUDGET), store=store, watch=seen.append)
    assert before.items() <= study_of(store).notes("tuned:").items()
    return store, result, seen


def study_of(store: Path, name: str = "tuned_trees") -> StudyView:
    study = find_study(name, store)
    assert study is not None
    return study


def test_a_killed_tuning_goes_on_where_it_was(swept: tuple[Path, SweepResult, list[Event]]) -> None:
    store, result, seen = swept
    fitted = [event.data["name"] for event in seen if event.kind == "baseline_started"]
    assert fitted == ["xgboost_tuned 1", "xgboost_tuned 2"]
    with closing(sqlite3.connect(store / "mlflow.db")) as database:
        ended = database.execute("select name, status from runs where name like 'baseline-xgboost_tuned-%'").fetchall()
    assert sorted(ended) == [(f"baseline-xgboost_tuned-{number:04d}", "FINISHED") for number in range(3)]
    notes = study_of(store).notes("tuned:")
    points = [notes[f"tuned:xgboost_tuned:{number:04d}"]["params"] for number in range(3)]
    told = [(note["params"], note["value"]) for key, note in sorted(notes.items()) if "xgboost" in key]
    assert points[0] == baselines.DEFAULTS["xgboost"] and points[1] != points[2]
    assert result.baselines["xgboost_tuned"] == max(value for _, value in told)
    assert "6 of them to tune trees" in result.verdict and len(result.baselines) == 5


@pytest.mark.parametrize("name", ["hist_gradient_boosting_tuned", "xgboost_tuned"])
def test_every_run_of_a_tuned_tree_gives_its_model_again(
    swept: tuple[Path, SweepResult, list[Event]], name: str
) -> None:
    """From what MLflow keeps, as text; the last configuration is one that TPE drew."""
    store, _, _ = swept
    with closing(sqlite3.connect(store / "mlflow.db")) as database:
        ids = dict(database.execute("select name, run_uuid from runs"))
    confirmed = f"confirm-{name}-s1"
    for run in (f"baseline-{name}-0002", *([confirmed] if confirmed in ids else [])):
        record = read_record(ids[run], store)
        spec = restore(record.experiment, root=FILE.parent)
        plan = reproduce.plan(record, spec)
        assert plan.seed == plan.derived_seed and plan.params
        again = reproduce.Order(spec, plan)(lambda message: None)
        word = reproduce.judge(record, plan, again).word
        assert word == "exact" or (run == confirmed and word == "within tolerance")  # whose weights are in no tag


def test_without_a_tree_there_is_nothing_to_tune_and_a_study_without_tuning_stays_so(tmp_path: Path) -> None:
    with no_network(fake_run()):
        first = sweep.run(experiment(), store=tmp_path)
        study = study_of(tmp_path, first.study)
        assert not study.notes("tun") and tuning(experiment(), study) is None
        trees = ["constant", "xgboost"]
        plain, asked = (experiment(baselines__kinds=trees, **more) for more in ({}, {"baselines__tune": {"trials": 3}}))
        assert tuning(plain, study) is None
        asked_for = tuning(asked, study)
        assert asked_for is not None and asked_for.trials == 3


def die_in_the_second_fit(event: Event) -> None:
    """As by `kill -9`."""
    if event.data.get("name") == "xgboost_tuned 1":
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sweep.run(load(FILE, BUDGET), store=Path(sys.argv[1]), watch=die_in_the_second_fit)
