"""Behaviour of `forge_sweep.study`, on real SQLite files; training is replaced by a known surface."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import math
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import optuna
import pytest

from forge_sweep import experiment as experiments
from forge_sweep.errors import InputError, MissingExtra, ResumeRefused, SweepStopped
from forge_sweep.experiment import NETWORKS, Dimension, Experiment, Params, derived_seed
from forge_sweep.study import Asked, Requeued, Study, find_study, join_study, open_study, resumable, storage_url
from forge_sweep.study.space import configurations, fits, key_of
from forge_sweep.study.storage import open_storage

DATASET = {"version": "cards@abc", "digest": "a" * 64, "split_digest": "b" * 64}
OTHER_DATA = {**DATASET, "digest": "c" * 64}

MIXED: dict[str, Any] = {
    "width": {"type": "int", "low": 16, "high": 256, "log": True},
    "depth": {"type": "int", "low": 1, "high": 4},
    "dropout": {"type": "float", "low": 0.0, "high": 0.5},
    "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "batch_size": {"type": "categorical", "choices": [64, 128, 256]},
    "optimizer": {"type": "categorical", "choices": ["adam", "sgd"]},
    "momentum": {"type": "float", "low": 0.5, "high": 0.99, "when": {"optimizer": "sgd"}},
}
GRID: dict[str, Any] = {
    "depth": {"type": "int", "low": 1, "high": 3},
    "dropout": {"type": "float", "low": 0.0, "high": 0.3, "step": 0.1},
    "batch_norm": {"type": "categorical", "choices": [True, False]},
}


@pytest.fixture(autouse=True)
def embedded_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORGE_SWEEP_STORAGE", raising=False)


def experiment(search: Mapping[str, Any] = MIXED, *, name: str = "fraud", seed: int = 7, **study: Any) -> Experiment:
    return experiments.parse(
        {
            "name": name,
            "seed": seed,
            "data": {"source": "sample", "name": "breast_cancer", "target": "target", "task": "binary"},
            "model": {"search": dict(search)},
            "objective": {"metric": "val_auc"},
            "study": {"n_trials": 14, "epochs": 3, "warmup_epochs": 1, "pruner": "none", **study},
        },
        root=Path(),
    )


def surface(params: Mapping[str, Any]) -> float:
    """A smooth objective between 0 and 1, best at learning rate 1e-3, depth 2, dropout 0.2."""
    distance = (math.log10(params["learning_rate"]) + 3) ** 2 + (params["depth"] - 2) ** 2 + params["dropout"] ** 2
    return 1 / (1 + distance + 0.1 * params.get("momentum", 0.3))


def curve(params: Mapping[str, Any], epoch: int) -> float:
    return surface(params) * (1 - 0.5 ** (epoch + 1))


def train(study: Study, asked: Asked, epochs: int = 3) -> None:
    """What a sweep does with one trial."""
    value = math.nan
    for epoch in range(epochs):
        value = curve(asked.params, epoch)
        if study.report(asked.number, epoch, value):
            study.tell(asked.number, "pruned", value)
            return
    study.tell(asked.number, "finished", value, attrs={"best_epoch": epochs - 1})


def drive(study: Study, at_most: int = 1000) -> None:
    with study.hold():
        study.requeue()
        for _ in range(at_most):
            asked = study.ask()
            if asked is None:
                return
            train(study, asked)


def opened(
    store: Path, spec: Experiment | None = None, *, data: Mapping[str, str] = DATASET, fork: bool = False
) -> Study:
    if "FORGE_SWEEP_STORAGE" not in os.environ and not (store / "optuna.db").exists():
        store.mkdir(parents=True, exist_ok=True)
        (store / "optuna.db").write_bytes(empty_database())
    return open_study(spec or experiment(), dataset=data, store=store, fork=fork)


@functools.cache
def empty_database() -> bytes:
    """The tables alone: creating them takes half a second, which most tests need not spend."""
    with tempfile.TemporaryDirectory() as folder:
        open_storage(storage_url(Path(folder)), Path(folder)).engine.dispose()
        return (Path(folder) / "optuna.db").read_bytes()


def swept(store: Path, spec: Experiment | None = None) -> Study:
    study = opened(store, spec)
    drive(study)
    return study


def params_of(study: Study) -> list[Params]:
    return [row.params for row in study.rows()]


# The same parameters, however often a sweep was interrupted


@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [
        ("tpe", "none"),
        ("tpe", "hyperband"),
        ("cmaes", "none"),
        ("cmaes", "hyperband"),
        ("random", "median"),
        ("qmc", "none"),
        ("grid", "none"),
        ("gp", "none"),
    ],
)
def test_an_interrupted_sweep_asks_for_the_same_parameters(sampler: str, pruner: str, tmp_path: Path) -> None:
    """Fourteen trials in one go, or six, a killed one, and the rest from a new process: equal trial by trial."""
    if sampler == "gp" and importlib.util.find_spec("torch") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI has no PyTorch: .ci/run installs it")
        pytest.skip("needs PyTorch: pip install '.[gp]'")
    spec = experiment(GRID if sampler == "grid" else MIXED, sampler=sampler, pruner=pruner)
    whole = swept(tmp_path / "whole", spec)

    drive(opened(tmp_path / "parts", spec), at_most=6)
    killed = opened(tmp_path / "parts", spec)
    asked = killed.ask()
    assert asked is not None
    killed.report(asked.number, 0, curve(asked.params, 0))
    rest = swept(tmp_path / "parts", spec)

    assert params_of(rest) == params_of(whole)
    assert [row.state for row in rest.rows()] == [row.state for row in whole.rows()]
    assert rest.rows()[asked.number].attempt == 2


@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
def test_the_first_trial_has_the_recommended_values(sampler: str, tmp_path: Path) -> None:
    """Once, also where it is cut off or a process dies before it begins it; the others are sampled."""
    default = NETWORKS["mlp"].search
    spec = experiment({name: each.model_dump() for name, each in default.items()}, sampler=sampler, n_trials=4)
    cut_off = opened(tmp_path, spec).ask()
    assert cut_off is not None
    study = swept(tmp_path, spec)
    first, *others = [{name: row.params[name] for name in spec.first} for row in study.rows()]
    assert len(others) == 3
    assert first == spec.first == {name: cut_off.params[name] for name in spec.first}
    assert spec.first not in others
    assert study.rows()[0].attempt == 2


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_gp_without_torch_names_the_install_command_and_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"study\.sampler = \"gp\"(?s:.*)pip install '\.\[gp\]'"):
        open_study(experiment(sampler="gp"), dataset=DATASET, store=tmp_path)
    assert not (tmp_path / "optuna.db").exists()


def test_a_suggestion_does_not_tell_that_pytorch_found_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A CUDA build of PyTorch does so where there is no driver, in the middle of a Gaussian process's fit."""
    ask = optuna.samplers.TPESampler.sample_relative

    def ask_as_torch(*words: Any) -> Any:
        warnings.warn("CUDA initialization: Unexpected error from cudaGetDeviceCount(). Did you ...", stacklevel=1)
        return ask(*words)

    monkeypatch.setattr(optuna.samplers.TPESampler, "sample_relative", ask_as_torch)
    assert swept(tmp_path, experiment(n_trials=1)).n_done == 1


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "qmc"])
def test_a_kill_in_the_middle_of_suggesting_changes_nothing(sampler: str, tmp_path: Path) -> None:
    """Some parameters are stored, the others are drawn again by the next process, to the same values."""
    spec = experiment(sampler=sampler, n_trials=13)
    whole = swept(tmp_path / "whole", spec)
    for number in (2, 12):
        study = opened(tmp_path / "parts", spec)
        drive(study, at_most=number - study.n_done)
        half = opened(tmp_path / "parts", spec)._study.ask()
        assert half.number == number
        half.suggest_categorical("optimizer", ["adam", "sgd"])
    assert params_of(swept(tmp_path / "parts", spec)) == params_of(whole)


def test_another_seed_gives_other_parameters(tmp_path: Path) -> None:
    first, second = (swept(tmp_path / str(seed), experiment(seed=seed, n_trials=3)) for seed in (1, 2))
    assert all(a != b for a, b in zip(params_of(first), params_of(second), strict=True))


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests_study import DATASET, drive, experiment, open_study, train
import tests_study
study = open_study(experiment(), dataset=DATASET, store=Path(sys.argv[1]))
def slow(study, asked):
    time.sleep(0.03)
    train(study, asked)
    print("told", flush=True)
tests_study.train = slow
drive(study)
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_no_trial_and_repeats_none(tmp_path: Path) -> None:
    """Each process ends two trials and dies somewhere in the next ones; the rest goes on to exactly n_trials."""
    spec = experiment()
    module = tmp_path / "tests_study.py"
    module.write_text(Path(__file__).read_text())
    moments = random.Random(1)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "store"), str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout as lines:
            assert [lines.readline() for _ in range(2)] == ["told\n"] * 2
            time.sleep(moments.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    before = opened(tmp_path / "store", spec).n_done
    study = swept(tmp_path / "store", spec)

    assert 6 <= before < 14
    assert [row.number for row in study.rows()] == list(range(14))
    assert {row.state for row in study.rows()} == {"finished"}
    assert params_of(study) == params_of(swept(tmp_path / "whole", spec))
    with sqlite3.connect(tmp_path / "store" / "optuna.db") as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    database.close()


# Parameters


def test_params_are_complete_and_conditional_ones_are_there_only_where_active(tmp_path: Path) -> None:
    rows = swept(tmp_path, experiment(n_trials=8)).rows()
    for params in (row.params for row in rows):
        assert ("momentum" in params) == (params["optimizer"] == "sgd")
        assert params["activation"] == "relu"
        assert params["batch_norm"] is True
    assert {row.params["optimizer"] for row in rows} == {"adam", "sgd"}


def test_a_range_that_is_no_multiple_of_its_step_ends_at_the_last_step(tmp_path: Path) -> None:
    search = {
        "dropout": {"type": "float", "low": 0.1, "high": 0.45, "step": 0.1},
        "width": {"type": "int", "low": 10, "high": 35, "step": 10},
    }
    rows = swept_on(search, tmp_path, n_trials=12)
    assert {round(float(row["dropout"]), 9) for row in rows} <= {0.1, 0.2, 0.3, 0.4}
    assert {row["width"] for row in rows} <= {10, 20, 30}


def swept_on(search: Mapping[str, Any], store: Path, **study: Any) -> list[Params]:
    """Parameters of a sweep over any space, told a constant."""
    opened_study = opened(store, experiment(search, **study))
    while asked := opened_study.ask():
        opened_study.tell(asked.number, "finished", 0.5)
    return params_of(opened_study)


def test_grid_visits_every_point_once_and_stops(tmp_path: Path) -> None:
    rows = swept_on(GRID, tmp_path, sampler="grid", n_trials=24)
    points = {tuple(params[name] for name in GRID) for params in rows}
    assert len(rows) == len(points) == 24


def test_grid_order_does_not_depend_on_how_many_points_are_asked_for(tmp_path: Path) -> None:
    few = swept_on(GRID, tmp_path / "few", sampler="grid", n_trials=5)
    many = swept_on(GRID, tmp_path / "many", sampler="grid", n_trials=20)
    assert many[:5] == few


def test_qmc_spreads_every_coordinate_evenly(tmp_path: Path) -> None:
    """16 points of a scrambled Sobol sequence put one value into each sixteenth of a range."""
    search = {
        "dropout": {"type": "float", "low": 0.0, "high": 0.16},
        "depth": {"type": "int", "low": 1, "high": 4},
        "learning_rate": {"type": "float", "low": 1e-4, "high": 1.0, "log": True},
    }
    rows = swept_on(search, tmp_path, sampler="qmc", n_trials=16)
    assert sorted(int(float(row["dropout"]) / 0.01) for row in rows) == list(range(16))
    assert sorted(int(row["depth"]) for row in rows) == [n for n in (1, 2, 3, 4) for _ in range(4)]
    assert sorted(int((math.log10(float(row["learning_rate"])) + 4) * 4) for row in rows) == list(range(16))


SIXTY: dict[str, Any] = {
    "optimizer": {"type": "categorical", "choices": ["adam", "sgd", "rmsprop"]},
    "depth": {"type": "int", "low": 1, "high": 4},
    "dropout": {"type": "float", "low": 0.0, "high": 0.4, "step": 0.1},
}


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "qmc"])
def test_no_configuration_is_tried_twice_and_a_space_that_has_no_more_ends(sampler: str, tmp_path: Path) -> None:
    """500 trials are asked for of 60 configurations; an interruption in between changes none of them."""
    rows = swept_on(SIXTY, tmp_path / "whole", sampler=sampler, n_trials=500)
    assert len(rows) == len(set(map(key_of, rows))) == 60
    swept_on(SIXTY, tmp_path / "halves", sampler=sampler, n_trials=41)
    assert swept_on(SIXTY, tmp_path / "halves", sampler=sampler, n_trials=500) == rows
    study = opened(tmp_path / "halves", experiment(SIXTY, sampler=sampler, n_trials=500))
    with study.hold():
        assert study.all_tried == "all 60 configurations of the space were tried, and study.n_trials = 500"
    seen = find_study(study.name, tmp_path / "halves")
    assert seen is not None and (seen.n_trials, seen.bounded(40), seen.all_tried) == (60, 40, study.all_tried)


def test_configurations_are_counted_where_a_hyperparameter_depends_on_another_one(tmp_path: Path) -> None:
    """Three optimizers, of which one has two momenta; and a space with a range of floats has no end."""
    momentum = {"type": "categorical", "choices": [0.0, 0.9], "when": {"optimizer": "sgd"}}
    search = {"optimizer": SIXTY["optimizer"], "momentum": momentum}
    rows = swept_on(search, tmp_path, sampler="random", n_trials=30)
    assert len(rows) == len(set(map(key_of, rows))) == 4
    space = experiment({**search, "dropout": {"type": "float", "low": 0.0, "high": 0.4}}).space
    assert configurations(space) is None
    assert configurations(experiment({"width": {"type": "int", "low": 1, "high": 10_001}}).space) is None


def test_who_joins_repeats_nothing_where_the_sweep_does_not(tmp_path: Path) -> None:
    """Whatever its own file says: the budget is the sweep's."""
    search = {"optimizer": SIXTY["optimizer"]}
    study = opened(tmp_path, experiment(search, n_trials=500))
    with study.hold():
        other = join_study(experiment(search, n_trials=500, repeats=True), dataset=DATASET, store=tmp_path)
        assert other is not None
        with other.join():
            while asked := other.ask():
                other.tell(asked.number, "finished", 0.5)
        assert len(set(map(key_of, params_of(study)))) == len(params_of(study)) == 3 == study.n_done
        assert study.ask() is None and study.all_tried


@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
def test_values_that_somebody_fixed_are_completed(sampler: str, tmp_path: Path) -> None:
    """As `Study.enqueue_trial` lets anybody do: a momentum is drawn where the drawn configuration has none."""
    momentum = {"type": "float", "low": 0.1, "high": 0.9, "when": {"optimizer": "sgd"}}
    spec = experiment({**SIXTY, "momentum": momentum}, sampler=sampler, n_trials=6)
    found = []
    for name in ("one", "two"):
        study = opened(tmp_path / name, spec)
        for depth in (1, 2, 3, 4):
            study._study.enqueue_trial({"optimizer": "sgd", "depth": depth})
        while asked := study.ask():
            study.tell(asked.number, "finished", 0.5)
        found.append(params_of(study))
    assert found[0] == found[1] and [row["depth"] for row in found[0][:4]] == [1, 2, 3, 4]
    assert all(0.1 <= float(row["momentum"]) <= 0.9 for row in found[0][:4])


def test_what_failed_in_passing_may_be_tried_again_and_what_diverged_may_not(tmp_path: Path) -> None:
    study = opened(tmp_path, experiment({"optimizer": SIXTY["optimizer"]}, sampler="random", n_trials=500))
    failures: list[Any] = ["lost-worker", "diverged", "code"]
    while asked := study.ask():
        failure = failures.pop(0) if failures else ""
        study.tell(asked.number, "failed" if failure else "finished", None if failure else 0.5, failure=failure)
    rows = study.rows()
    assert len(rows) == 5 and {row.failure for row in rows[3:]} == {""}
    lasting = [key_of(row.params) for row in rows if row.failure in ("", "diverged")]
    assert len(lasting) == len(set(lasting)) == 3


def test_configurations_are_trained_again_where_that_is_asked_for(tmp_path: Path) -> None:
    """What was repeated counts for itself, so that all others can still be tried once it is not asked for any more."""
    search = {"optimizer": SIXTY["optimizer"]}
    rows = swept_on(search, tmp_path, sampler="random", n_trials=2, repeats=True)
    while len(set(map(key_of, rows))) == len(rows):
        rows = swept_on(search, tmp_path, sampler="random", n_trials=len(rows) + 1, repeats=True)
    again = swept_on(search, tmp_path, sampler="random", n_trials=500)
    assert again[: len(rows)] == rows and len(set(map(key_of, again))) == 3
    assert len(again) == 3 + len(rows) - len(set(map(key_of, rows)))


def test_a_sweep_with_nothing_to_search_runs_its_one_trial(tmp_path: Path) -> None:
    for sampler in ("tpe", "random", "cmaes", "qmc", "grid"):
        assert len(swept_on({}, tmp_path / sampler, sampler=sampler, n_trials=1)) == 1


def test_tpe_learns_from_what_it_was_told(tmp_path: Path) -> None:
    """Seeds alone would pass every other test; after ten random trials the suggestions must get better."""
    values = [row.value or 0.0 for row in swept(tmp_path, experiment(n_trials=22, epochs=1)).rows()]
    assert statistics.mean(values[10:]) > statistics.mean(values[:10])


def test_seeds_are_the_same_on_every_machine_and_differ_by_purpose() -> None:
    """Recorded numbers: a sweep that was begun with an older version must go on with the same ones."""
    assert derived_seed(7, "trial", 3) == 3380511554
    seeds = [derived_seed(root, *purpose) for root in (0, 1) for purpose in ((), ("trial", 0), ("trial", 1), (0,))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)


@hypothesis.given(st.floats(0, 1, exclude_max=True), st.data())
def test_every_quasi_random_value_lies_in_its_range(unit: float, data: st.DataObject) -> None:
    from forge_sweep.study.samplers import at

    low, span, log = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 500)), data.draw(st.booleans())
    kind = data.draw(st.sampled_from(["int", "float"]))
    value = at(unit, Dimension(type=kind, low=low, high=low + span, log=log))
    assert low <= float(value) <= low + span
    assert kind == "float" or isinstance(value, int)


# Totals, states, retries


def test_n_trials_is_the_total_over_runs_and_can_be_extended(tmp_path: Path) -> None:
    assert swept(tmp_path, experiment(n_trials=4)).n_done == 4
    assert opened(tmp_path, experiment(n_trials=4)).ask() is None
    assert swept(tmp_path, experiment(n_trials=6)).n_done == 6
    found = find_study("fraud", tmp_path)
    assert found is not None
    assert found.n_trials == 6


def test_failed_and_pruned_trials_count_toward_the_total(tmp_path: Path) -> None:
    study = opened(tmp_path, experiment(n_trials=3))
    for state in ("finished", "pruned", "failed"):
        asked = study.ask()
        assert asked is not None
        study.tell(asked.number, state, None if state == "failed" else 0.5)
    assert study.ask() is None
    assert study.n_done == 3


def test_threads_that_share_a_study_never_ask_for_more_than_the_total(tmp_path: Path) -> None:
    study = opened(tmp_path, experiment(n_trials=10, sampler="random"))

    def work() -> None:
        while asked := study.ask():
            train(study, asked, epochs=1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row.state for row in study.rows()] == ["finished"] * 10


def test_trials_are_counted_by_state_in_one_order_imported_ones_and_empty_states_aside(tmp_path: Path) -> None:
    study = opened(tmp_path, experiment(n_trials=7))
    assert study.counts() == {}
    for state in ("failed", "pruned", "finished", "finished"):
        asked = study.ask()
        assert asked is not None
        study.tell(asked.number, state, None if state == "failed" else 0.5)
    put_back, left = study.ask(), study.ask()
    assert put_back is not None
    assert left is not None
    assert list(study.counts().items()) == [("finished", 2), ("pruned", 1), ("failed", 1), ("running", 2)]
    study.put_back(put_back.number)
    assert list(study.counts().items())[3:] == [("running", 1), ("waiting", 1)]
    fork = opened(tmp_path, experiment(n_trials=7, patience=3), fork=True)
    assert fork.imported == 3
    assert fork.counts() == {}


def test_a_trial_whose_process_died_three_times_fails_as_lost_worker(tmp_path: Path) -> None:
    for attempt in (1, 2, 3):
        study = opened(tmp_path)
        assert study.requeue() == Requeued(waiting=() if attempt == 1 else (0,), lost=())
        asked = study.ask()
        assert asked is not None
        assert (asked.number, asked.attempt) == (0, attempt)
    study = opened(tmp_path)
    second = study.ask()
    assert second is not None and second.number == 1
    assert study.taken_back() == Requeued(waiting=(), lost=(0,))
    assert study.taken_back() == Requeued((), ())
    assert opened(tmp_path).requeue() == Requeued(waiting=(1,), lost=())
    assert [(row.state, row.failure) for row in study.rows()] == [("failed", "lost-worker"), ("waiting", "")]
    assert "3 times" in study.rows()[0].cause
    assert opened(tmp_path).requeue() == Requeued((), ())


def test_a_trial_that_is_put_back_waits_without_losing_an_attempt(tmp_path: Path) -> None:
    study = opened(tmp_path)
    first = study.ask()
    assert first is not None
    study.put_back(first.number)
    assert [row.state for row in study.rows()] == ["waiting"]
    assert opened(tmp_path).ask() == first


def test_a_finished_trial_has_its_attributes(tmp_path: Path) -> None:
    study = opened(tmp_path)
    asked = study.ask()
    assert asked is not None
    study.report(asked.number, 0, 0.5)
    study.report(asked.number, 1, 0.6)
    assert study.rows()[0].state == "running"
    study.tell(asked.number, "finished", 0.6, attrs={"val_loss": 0.25, "run_id": "r1"})
    row = study.rows()[0]
    assert (row.state, row.value, row.epochs) == ("finished", 0.6, 2)
    assert row.attrs == {"val_loss": 0.25, "run_id": "r1"}
    assert row.params == asked.params
    assert row.seconds is not None
    assert study.best() == row


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_an_objective_that_is_no_number_fails_as_diverged(value: float | None, tmp_path: Path) -> None:
    study = opened(tmp_path)
    asked = study.ask()
    assert asked is not None
    study.tell(asked.number, "finished", value)
    row = study.rows()[0]
    assert (row.state, row.failure, row.value) == ("failed", "diverged", None)
    assert row.cause == f"val_auc is {value} at the best epoch"


def test_best_follows_the_direction_and_takes_the_earlier_of_equals(tmp_path: Path) -> None:
    study = opened(tmp_path)
    for value in (0.3, 0.9, 0.9, 0.1):
        asked = study.ask()
        assert asked is not None
        study.tell(asked.number, "finished", value)
    assert study.direction == "maximize"
    best = study.best()
    assert best is not None
    assert best.number == 1


def test_three_failures_of_one_kind_in_a_row_are_a_streak(tmp_path: Path) -> None:
    study = opened(tmp_path)
    endings = [
        ("diverged", "loss is NaN"),
        ("code", "KeyError: 'x'"),
        ("code", "KeyError: 'x'"),
        ("code", "KeyError: 'x'"),
    ]
    for failure, cause in endings:
        assert study.failing_streak() is None
        asked = study.ask()
        assert asked is not None
        study.tell(asked.number, "failed", failure=failure, cause=cause)
    assert study.failing_streak() == ("code", "KeyError: 'x'", (1, 2, 3))
    asked = study.ask()
    assert asked is not None
    study.tell(asked.number, "finished", 0.5)
    assert study.failing_streak() is None


# Pruning


@pytest.mark.parametrize("pruner", ["median", "percentile", "hyperband", "successive_halving", "wilcoxon"])
def test_every_pruner_stops_a_hopeless_trial_after_the_warm_up_and_keeps_the_best(pruner: str, tmp_path: Path) -> None:
    spec = experiment(pruner=pruner, epochs=10, warmup_epochs=3, startup_trials=2, n_trials=9, sampler="random")
    study = opened(tmp_path, spec)
    while asked := study.ask():
        level = 0.9 if asked.number < 3 else 0.3 + asked.number / 1000
        for epoch in range(10):
            if study.report(asked.number, epoch, level + epoch / 1000):
                study.tell(asked.number, "pruned", level)
                break
        else:
            study.tell(asked.number, "finished", level)
    pruned = [row for row in study.rows() if row.state == "pruned"]
    assert pruned
    assert all(3 <= row.epochs < 10 for row in pruned)
    assert all(row.value is not None for row in pruned)
    best = study.best()
    assert best is not None
    assert best.value == 0.9


@pytest.mark.parametrize(("epochs", "rungs"), [(20, {2, 6, 18}), (2, set()), (1, set())])
def test_hyperband_judges_after_exactly_its_rungs(epochs: int, rungs: set[int], tmp_path: Path) -> None:
    """Warm-up times 1, 3, 9 completed epochs; nothing is judged after the last epoch."""
    study = opened(
        tmp_path, experiment(pruner="hyperband", epochs=epochs, warmup_epochs=2, n_trials=12, sampler="random")
    )
    stopped = set()
    while asked := study.ask():
        for epoch in range(epochs):
            if study.report(asked.number, epoch, -asked.number):
                stopped.add(epoch + 1)
                study.tell(asked.number, "pruned", -asked.number)
                break
        else:
            study.tell(asked.number, "finished", -asked.number)
    assert stopped <= rungs
    assert bool(stopped) == bool(rungs)


def test_a_trial_that_is_run_again_is_judged_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Its epochs are not reported twice, and the rungs it passed are not passed for free (optuna's own retry does)."""
    spec = experiment(pruner="successive_halving", epochs=9, warmup_epochs=1, n_trials=8, sampler="random")
    states = {}
    for folder, killed in (("whole", False), ("parts", True)):
        study = opened(tmp_path / folder, spec)
        while asked := study.ask():
            if killed and asked.number == 5 and asked.attempt == 1:
                study.report(5, 0, curve(asked.params, 0))
                study = opened(tmp_path / folder, spec)
                study.requeue()
                continue
            train(study, asked, epochs=9)
        states[folder] = [(row.state, row.epochs, row.value) for row in study.rows()]
    assert states["parts"] == states["whole"]


def test_a_pruner_that_never_received_a_report_stops_the_sweep(tmp_path: Path) -> None:
    study = opened(tmp_path, experiment(pruner="median"))
    asked = study.ask()
    assert asked is not None
    with pytest.raises(SweepStopped, match=r"trial 0 ended without one report of val_auc.*study\.pruner = \"median\""):
        study.tell(asked.number, "finished", 0.9)
    assert [row.state for row in study.rows()] == ["waiting"]


def test_a_trial_that_failed_before_its_first_epoch_needs_no_report(tmp_path: Path) -> None:
    study = opened(tmp_path, experiment(pruner="median"))
    asked = study.ask()
    assert asked is not None
    study.tell(asked.number, "failed", failure="out-of-memory", cause="16 GB wanted")
    assert study.rows()[0].failure == "out-of-memory"


# Which study


def test_a_changed_experiment_is_refused_field_by_field(tmp_path: Path) -> None:
    swept(tmp_path, experiment(n_trials=1))
    changed = experiment({**MIXED, "width": 32}, n_trials=1, epochs=9, seed=8)
    with pytest.raises(ResumeRefused) as caught:
        opened(tmp_path, changed, data=OTHER_DATA)
    text = str(caught.value)
    assert "study.epochs: 3 -> 9" in text
    assert "seed: 7 -> 8" in text
    assert "model.search.width: (none) -> 32" in text
    assert "model.search.width.low: 16 -> (none)" in text
    assert "content of the data: aaaaaaaaaaaa -> cccccccccccc" in text
    assert "study.n_trials" not in text
    assert "--fork" in caught.value.hint


def test_a_file_of_own_code_that_was_edited_is_named_with_the_run_that_has_the_old_one(tmp_path: Path) -> None:
    """A study of before that was kept shows the digests."""

    def own(text: str) -> Experiment:
        (tmp_path / "net.py").write_text("import parts\ndef build(inputs, heads, *, width: int = 4): ...")
        (tmp_path / "parts.py").write_text(text)
        raw = experiment(n_trials=2).model_dump(mode="json", exclude_none=True)
        del raw["objective"]["direction"]
        search = {"width": {"type": "int", "low": 4, "high": 8}}
        return experiments.parse({**raw, "model": {"builder": "net:build", "search": search}}, root=tmp_path)

    begun = opened(tmp_path, own("WIDTH = 1"))
    assert opened(tmp_path, own("WIDTH = 1")).name == begun.name
    edited = own("WIDTH = 1  # one")
    with pytest.raises(ResumeRefused, match=r"\n  model\.code: parts\.py was edited; comments count\n") as refused:
        opened(tmp_path, edited)
    assert refused.value.hint.endswith("the old source is in code/ of its run in forge-sweep ui fraud")
    begun.note("sweep:run", "0123abcd")
    with pytest.raises(
        ResumeRefused, match=r"without its trials: --fork; the old source is in code/ of its run 0123abcd"
    ):
        opened(tmp_path, edited)
    begun._study.set_user_attr("forge.code", {})
    with pytest.raises(ResumeRefused, match=r'model\.code: "[0-9a-f]{64}" -> "[0-9a-f]{64}"'):
        opened(tmp_path, edited)


@pytest.mark.parametrize("data", [OTHER_DATA, {**DATASET, "split_digest": "d" * 64}])
def test_changed_rows_or_another_split_are_refused_but_a_new_name_for_them_is_not(
    data: dict[str, str], tmp_path: Path
) -> None:
    opened(tmp_path)
    with pytest.raises(ResumeRefused):
        opened(tmp_path, data=data)
    opened(tmp_path, data={**DATASET, "version": "cards_v2@abc"})


def test_putting_the_old_values_back_resumes_the_old_study(tmp_path: Path) -> None:
    opened(tmp_path)
    assert opened(tmp_path, experiment(epochs=9), fork=True).name == "fraud-2"
    assert opened(tmp_path, experiment(epochs=9)).name == "fraud-2"
    assert opened(tmp_path).name == "fraud"


def test_a_fork_that_was_killed_goes_on_when_it_is_asked_for_again(tmp_path: Path) -> None:
    swept(tmp_path, experiment(n_trials=2))
    changed = experiment(n_trials=4, epochs=9)
    first = opened(tmp_path, changed, fork=True)
    drive(first, at_most=1)
    again = opened(tmp_path, changed, fork=True)
    assert (again.name, again.imported, again.n_done) == (first.name, 2, 1) == ("fraud-2", 2, 1)
    assert again.accepted == first.accepted == "study.epochs: 3 -> 9"


def test_a_fork_of_an_experiment_that_did_not_change_goes_on_with_its_study(tmp_path: Path) -> None:
    assert opened(tmp_path, fork=True).name == "fraud"
    assert opened(tmp_path, experiment(epochs=9), fork=True).name == "fraud-2"
    assert opened(tmp_path, fork=True).name == "fraud"


def test_resumable_is_the_study_that_would_be_gone_on_with(tmp_path: Path) -> None:
    """None where a study would be created or forked; what would be refused is refused."""
    assert resumable(experiment(), dataset=DATASET, store=tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    swept(tmp_path, experiment(n_trials=2))
    more = resumable(experiment(n_trials=5), dataset=DATASET, store=tmp_path)
    assert more is not None
    assert (more.name, more.n_done) == ("fraud", 2)
    changed = experiment(epochs=9)
    assert resumable(changed, dataset=DATASET, store=tmp_path, fork=True) is None
    for spec, dataset in ((changed, DATASET), (experiment(), OTHER_DATA)):
        with pytest.raises(ResumeRefused, match="was begun with another experiment"):
            resumable(spec, dataset=dataset, store=tmp_path)
    assert resumable(experiment(name="other"), dataset=DATASET, store=tmp_path) is None
    opened(tmp_path, changed, fork=True)
    for spec in (experiment(), changed):
        found = resumable(spec, dataset=DATASET, store=tmp_path)
        assert found is not None
        assert found.name == opened(tmp_path, spec).name


def test_a_fork_imports_what_fits_and_counts_its_own_trials(tmp_path: Path) -> None:
    old = swept(tmp_path, experiment(pruner="hyperband", sampler="random"))
    narrow = {**MIXED, "depth": {"type": "int", "low": 2, "high": 6}}
    study = opened(tmp_path, experiment(narrow, n_trials=3), fork=True)
    fitting = [row for row in old.rows() if int(row.params["depth"]) >= 2]
    assert 0 < study.imported == len(fitting) < 14
    assert study.skipped == f"{14 - len(fitting)} of 14 trials of fraud lie outside the new search space"
    assert study.n_done == 0
    for row, source in zip(study.rows(), fitting, strict=True):
        assert (row.params, row.state, row.value, row.epochs) == (
            source.params,
            source.state,
            source.value,
            source.epochs,
        )
        assert row.imported == f"fraud#{source.number}"
    drive(study)
    assert study.n_done == 3
    assert len(study.rows()) == len(fitting) + 3
    best = study.best()
    assert best is not None
    assert not best.imported


def test_a_fork_goes_on_from_what_the_old_trials_taught(tmp_path: Path) -> None:
    """With ten imported trials TPE is past its random start: its first suggestion depends on what they scored."""
    wide, found = {**MIXED, "depth": {"type": "int", "low": 1, "high": 5}}, []
    for sign in (1, -1):
        old = opened(tmp_path / str(sign), experiment(n_trials=10))
        while asked := old.ask():
            old.tell(asked.number, "finished", sign * surface(asked.params))
        informed = opened(tmp_path / str(sign), experiment(wide, n_trials=1), fork=True)
        assert informed.imported == 10
        first = informed.ask()
        assert first is not None
        found.append(([row.params for row in informed.rows()[:10]], first.params))
    assert found[0][0] == found[1][0] and found[0][1] != found[1][1]


def varied(**sections: Mapping[str, Any]) -> Experiment:
    """The experiment of `experiment(n_trials=2)` with other values in some sections."""
    raw = experiment(n_trials=2).model_dump(mode="json", exclude_none=True)
    del raw["objective"]["direction"]
    changed = {name: {**raw[name], **values} for name, values in sections.items()}
    return experiments.parse({**raw, **changed}, root=Path())


@pytest.mark.parametrize("data", [OTHER_DATA, {**DATASET, "split_digest": "d" * 64}])
def test_a_fork_imports_nothing_where_data_or_split_changed(data: dict[str, str], tmp_path: Path) -> None:
    swept(tmp_path, varied())
    study = opened(tmp_path, varied(), data=data, fork=True)
    assert (study.imported, study.accepted) == (0, "")
    assert study.skipped.startswith("no trial of fraud was imported: ")
    assert "-> cccccccccccc" in study.skipped or "split of the rows" in study.skipped


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"objective": {"metric": "val_f1"}}, ['objective.metric: "val_auc" -> "val_f1"']),
        ({"objective": {"metric": "val_loss"}}, ['objective.metric: "val_auc" -> "val_loss"']),
        ({"data": {"target": "other"}}, ['data.target: ["target"] -> ["other"]']),
        ({"data": {"positive": 0}}, ["data.positive: null -> 0"]),
        (
            {"data": {"task": "multiclass"}, "objective": {"metric": "val_accuracy"}},
            ['data.task: "binary" -> "multiclass"', "objective.metric: "],
        ),
        (
            {"model": {"activation": "linear", "loss": "binary_crossentropy", "from_logits": True}},
            ['model.activation: null -> "linear"', "model.loss: null -> ", "model.from_logits: false -> true"],
        ),
    ],
)
def test_a_fork_imports_nothing_where_values_cannot_be_compared(
    sections: dict[str, Any], why: list[str], tmp_path: Path
) -> None:
    swept(tmp_path, varied())
    study = opened(tmp_path, varied(**sections), fork=True)
    assert (study.imported, study.accepted) == (0, "")
    assert study.skipped.startswith("no trial of fraud was imported: ")
    assert all(words in study.skipped for words in why)
    assert opened(tmp_path, varied(**sections)).skipped == study.skipped


def test_a_fork_says_which_other_differences_it_accepted_for_the_trials_it_imported(tmp_path: Path) -> None:
    """Search ranges and budget aside; a fork of a fork says what the first one accepted, too."""
    swept(tmp_path, varied())
    wide = {**MIXED, "depth": {"type": "int", "low": 1, "high": 5}}
    changed = varied(
        study={"epochs": 9, "n_trials": 5},
        preprocessing={"scaler": "robust"},
        model={"class_weight": "balanced", "search": wide},
    )
    study = opened(tmp_path, changed, fork=True)
    assert (study.imported, study.skipped) == (2, "")
    assert set(study.accepted.split("; ")) == {
        "study.epochs: 3 -> 9",
        'preprocessing.scaler: "standard" -> "robust"',
        'model.class_weight: null -> "balanced"',
    }
    third = opened(tmp_path, changed.model_copy(update={"seed": 8}), fork=True)
    assert (third.imported, third.accepted) == (2, f"{study.accepted}; seed: 7 -> 8")
    narrow = varied(model={"search": {**MIXED, "width": 512}}, study={"patience": 3})
    assert (opened(tmp_path, narrow, fork=True).imported, opened(tmp_path, narrow).accepted) == (0, "")


def test_a_fork_of_a_grid_runs_the_points_that_are_left(tmp_path: Path) -> None:
    old = swept_on(GRID, tmp_path, sampler="grid", n_trials=20)
    study = opened(tmp_path, experiment(GRID, sampler="grid", n_trials=24, patience=3), fork=True)
    assert study.imported == 20
    assert study.n_trials == 4
    while asked := study.ask():
        study.tell(asked.number, "finished", 0.5)
    points = [tuple(params[name] for name in GRID) for params in params_of(study)]
    assert len(set(points)) == len(points) == 24
    assert len(old) == 20


def test_two_experiments_share_a_store_even_when_their_study_names_meet(tmp_path: Path) -> None:
    opened(tmp_path)
    opened(tmp_path, experiment(epochs=9), fork=True)
    study = opened(tmp_path, experiment(name="fraud-2"))
    assert study.name == "fraud-2-2"
    found = find_study("fraud-2", tmp_path)
    assert found is not None
    assert found.name == "fraud-2-2"


def test_a_study_that_a_killed_process_left_half_made_is_made_anew(tmp_path: Path) -> None:
    import optuna

    swept(tmp_path, experiment(n_trials=2))
    half = optuna.create_study(study_name="fraud-2", storage=storage_url(tmp_path), direction="minimize")
    half.set_user_attr("forge.contract", "x")
    half.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={"forge.imported": "fraud#0"}))
    study = opened(tmp_path, experiment(n_trials=2, epochs=9), fork=True)
    assert (study.name, study.direction, study.imported) == ("fraud-2", "maximize", 2)


def test_a_study_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    import optuna

    opened(tmp_path, experiment(name="other"))
    theirs = optuna.create_study(study_name="fraud", storage=storage_url(tmp_path))
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert opened(tmp_path).name == "fraud-2"
    assert len(theirs.get_trials()) == 1


# One process at a time


HOLDING = """
import sys, time
from pathlib import Path
from forge_sweep.study.storage import holding
with holding(Path(sys.argv[1]) / "locks", "fraud"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_with_the_pid_of_the_first_until_that_is_killed(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", HOLDING, str(tmp_path)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as lines:
        assert lines.readline() == "held\n"
    study = opened(tmp_path)
    with pytest.raises(SweepStopped, match=f"study fraud is being run by process {process.pid} "), study.hold():
        raise AssertionError("two processes hold one study")
    process.kill()
    process.wait()
    with study.hold():
        pass


def test_the_same_process_cannot_run_a_study_twice(tmp_path: Path) -> None:
    with opened(tmp_path).hold(), pytest.raises(SweepStopped, match="is being run by"), opened(tmp_path).hold():
        raise AssertionError("held twice")


def test_one_sqlite_that_two_store_folders_share_has_one_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is a file beside the database, not in the store."""
    monkeypatch.setenv("FORGE_SWEEP_STORAGE", f"sqlite:///{tmp_path}/shared.db")
    refused = pytest.raises(SweepStopped, match="is being run by process")
    with opened(tmp_path / "one").hold(), refused, opened(tmp_path / "two").hold():
        raise AssertionError("held twice")


def test_reading_does_not_wait_for_the_process_that_runs(tmp_path: Path) -> None:
    study = opened(tmp_path)
    with study.hold():
        asked = study.ask()
        found = find_study("fraud", tmp_path)
        assert found is not None
        assert asked is not None
        assert [(row.number, row.state, row.params) for row in found.rows()] == [(0, "running", asked.params)]


# Reading


def test_looking_for_a_study_creates_no_database(tmp_path: Path) -> None:
    assert find_study("fraud", tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    opened(tmp_path, experiment(name="other"))
    assert find_study("fraud", tmp_path) is None


def test_notes_are_kept_with_the_study(tmp_path: Path) -> None:
    study = opened(tmp_path)
    study.note("baseline:xgboost", {"val_auc": 0.87})
    study.note("confirm:7", [1, 2])
    found = find_study("fraud", tmp_path)
    assert found is not None
    assert found.notes("baseline:") == {"baseline:xgboost": {"val_auc": 0.87}}
    assert set(found.notes()) == {"baseline:xgboost", "confirm:7"}


def test_figures_come_when_the_trials_allow_them(tmp_path: Path) -> None:
    study = opened(tmp_path, experiment(n_trials=12))
    assert study.figures() == {}
    drive(study, at_most=1)
    assert set(study.figures()) == {"history", "epochs"}
    drive(study)
    figures = study.figures()
    assert set(figures) == {"history", "epochs", "importances", "parallel_coordinate", "slice"}
    assert "val_auc" in figures["history"].to_json()


def test_figures_of_equal_values_and_of_nothing_searched_do_not_fail(tmp_path: Path) -> None:
    assert swept_on(MIXED, tmp_path / "equal", n_trials=4)
    equal = find_study("fraud", tmp_path / "equal")
    assert swept_on({}, tmp_path / "fixed", n_trials=1)
    fixed = find_study("fraud", tmp_path / "fixed")
    assert equal is not None
    assert fixed is not None
    assert "history" in equal.figures()
    assert set(fixed.figures()) == {"history"}


def test_the_store_is_sqlite_in_wal_mode_unless_the_environment_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert storage_url(tmp_path) == f"sqlite:///{tmp_path}/optuna.db"
    open_study(experiment(), dataset=DATASET, store=tmp_path)
    database = sqlite3.connect(tmp_path / "optuna.db")
    assert database.execute("pragma journal_mode").fetchone() == ("wal",)
    database.close()
    monkeypatch.setenv("FORGE_SWEEP_STORAGE", f"sqlite:///{tmp_path}/elsewhere.db")
    opened(tmp_path)
    assert (tmp_path / "elsewhere.db").exists()


def test_a_storage_that_cannot_be_used_is_an_input_error_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in ("nosuch://me:secret@host/db", "secret", "sqlite:////nosuch/folder/secret.db"):
        monkeypatch.setenv("FORGE_SWEEP_STORAGE", url)
        with pytest.raises(InputError, match="FORGE_SWEEP_STORAGE") as caught:
            opened(tmp_path)
        assert "secret" not in str(caught.value) or url == "secret"


# What fits


PARAMS: Callable[[], Params] = lambda: {"optimizer": "sgd", "momentum": 0.9, "depth": 2, "dropout": 0.3}  # noqa: E731
SPACE = {
    "optimizer": Dimension(type="categorical", choices=("adam", "sgd")),
    "depth": Dimension(type="int", low=1, high=4),
    "dropout": Dimension(type="float", low=0.0, high=0.5, step=0.1),
    "momentum": Dimension(type="float", low=0.5, high=0.99, when={"optimizer": ("sgd",)}),
}


@pytest.mark.parametrize(
    ("change", "space", "fitting"),
    [
        ({}, {}, True),
        ({"depth": 5}, {}, False),
        ({"dropout": 0.1 + 0.2}, {}, True),
        ({"dropout": 0.25}, {}, False),
        ({"optimizer": "adam"}, {}, False),
        ({}, {"depth": 2}, True),
        ({}, {"depth": 3}, False),
        ({}, {"l2": 0.0}, True),
        ({}, {"l2": Dimension(type="float", low=0.0, high=1.0)}, False),
        ({"gone": 1}, {}, False),
    ],
)
def test_an_old_trial_fits_a_space_it_could_have_come_from(
    change: Params, space: dict[str, Any], fitting: bool
) -> None:
    assert fits({**PARAMS(), **change}, {**SPACE, **space}) is fitting


def test_a_trial_that_ran_out_of_memory_is_infeasible_for_the_sampler_and_failed_for_people(tmp_path: Path) -> None:
    """TPE reads its parameters with a violated constraint; no value is made up for it, and a fork leaves it behind."""
    study = opened(tmp_path)
    one = study.ask()
    assert one
    study.report(one.number, 0, 0.9)
    study.tell(one.number, "failed", failure="out-of-memory", cause="out of memory (ResourceExhaustedError)")
    two = study.ask()
    assert two
    study.report(two.number, 0, 0.5)
    study.tell(two.number, "finished", 0.5)
    row, other = study.rows()
    assert (row.state, row.failure, row.value) == ("failed", "out-of-memory", None)
    assert study.counts() == {"finished": 1, "failed": 1}
    assert study.best() == other
    assert study.objectives() == [(two.number, 0.5)]
    kept = study._study.get_trials()[one.number]
    assert kept.state.name == "PRUNED"
    assert kept.constraints == {"memory": 1.0}
    assert kept.user_attrs["forge.params"] == one.params


# What Optuna is told

DEPRECATED = {"x0", "sigma0", "restart_strategy", "inc_popsize", "constraints_func"} | {
    "consider_prior",
    "prior_weight",
    "consider_magic_clip",
    "consider_endpoints",
    "gamma",
    "weights",
}
"""Arguments that Optuna 5 warns of where they are given."""


@pytest.mark.parametrize("name", ["TPESampler", "CmaEsSampler", "GPSampler", "RandomSampler"])
def test_every_argument_of_a_sampler_is_stated(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna 5 changed the defaults of `multivariate` and `constant_liar`; a release must not change a suggestion."""
    from forge_sweep.study import samplers

    pytest.importorskip("torch") if name == "GPSampler" else None
    kind = {"TPESampler": "tpe", "CmaEsSampler": "cmaes", "GPSampler": "gp", "RandomSampler": "random"}[name]
    stated = spied(samplers.samplers, name, monkeypatch)
    samplers.make(experiment(sampler=kind))
    assert stated, "it was built"
    if name == "TPESampler":
        assert stated["multivariate"] is True and stated["constant_liar"] is False


@pytest.mark.parametrize("pruner", ["median", "percentile", "hyperband", "successive_halving", "wilcoxon"])
def test_every_argument_of_a_pruner_is_stated(pruner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from forge_sweep.study import pruners

    name = f"{pruner.title().replace('_', '')}Pruner"
    stated = spied(pruners.pruners, name, monkeypatch)
    pruners.make(experiment(pruner=pruner).study)
    assert stated, "it was built"


def spied(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments that a class of Optuna is built with: none but deprecated ones may be left to its defaults."""
    built, stated = getattr(module, name), dict[str, Any]()

    def build(*words: Any, **options: Any) -> Any:
        assert not words
        expected = set(inspect.signature(built.__init__).parameters) - {"self"} - DEPRECATED
        assert not expected - set(options) - {"warn_independent_sampling"}
        stated.update(options)
        return built(**options)

    monkeypatch.setattr(module, name, build)
    return stated


# What other tools show


def test_a_study_names_its_metric_and_one_that_was_begun_without_gets_the_name(tmp_path: Path) -> None:
    import optuna

    study = opened(tmp_path)
    url = study.url
    assert optuna.load_study(study_name="fraud", storage=url).metric_names == [experiment().objective.metric]
    old = optuna.create_study(study_name="old", storage=url)
    for key, value in optuna.load_study(study_name="fraud", storage=url).user_attrs.items():
        old.set_user_attr(key, value)
    optuna.delete_study(study_name="fraud", storage=url)  # "old" is now the study of the experiment
    assert optuna.load_study(study_name="old", storage=url).metric_names is None
    again = opened(tmp_path)
    assert optuna.load_study(study_name="old", storage=url).metric_names == [experiment().objective.metric]
    drive(again)
