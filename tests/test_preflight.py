"""What the pre-flight sees before the first trial."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forge_sweep import environment, experiment, models, sources, trial
from forge_sweep.checks.findings import errors
from forge_sweep.errors import DataError
from forge_sweep.preflight import corner_params, preflight
from forge_sweep.task import METRICS as METRIC_NAMES

# Keras 3.15 turns its variables into arrays in a way that NumPy 2 deprecates, in ReduceLROnPlateau among others.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SEARCH = {"width": {"type": "int", "low": 4, "high": 32, "log": True}, "depth": {"type": "int", "low": 1, "high": 3}}
METRICS = {"binary": "val_auc", "multiclass": "val_auc", "regression": "val_rmse"}


def made(name="breast_cancer", task="binary", search=None, **sections):
    """An experiment on one of scikit-learn's sets."""
    data = {"source": "sample", "name": name, "target": "target", "task": task}
    table = {"data": data, "objective": {"metric": METRICS[task]}, "model": {"search": search or SEARCH}, **sections}
    return experiment.parse({"name": name, **table}, root=Path())


def rows(settings):
    """The rows of an experiment."""
    return sources.load(settings.data, root=settings.root, seed=settings.seed)


def codes(findings, *severities):
    """Codes of the findings of these severities."""
    return [finding.code for finding in findings if finding.severity in severities]


@pytest.mark.parametrize(
    ("name", "task"), [("breast_cancer", "binary"), ("digits", "multiclass"), ("diabetes", "regression")]
)
def test_a_sound_experiment_passes_and_its_memory_is_told(name, task):
    settings = made(name, task)
    findings = preflight(settings, rows(settings))
    assert codes(findings, "error", "warning") == []
    (memory,) = findings
    assert memory.code == "memory"
    assert "parameters x 4" in memory.seen


def test_features_far_from_unit_scale_show_in_the_initial_loss():
    settings = made(preprocessing={"scaler": "none"})
    finding = preflight(settings, rows(settings))[1]
    assert (finding.severity, finding.code) == ("warning", "initial-loss")
    assert "before training" in finding.seen
    assert "0.693 (log 2" in finding.expected


def test_the_l2_penalty_is_not_taken_for_a_bad_start():
    settings = made(search={**SEARCH, "l2": 10.0})
    assert "initial-loss" not in codes(preflight(settings, rows(settings)), "warning")


def test_an_objective_that_training_does_not_log_is_an_error_that_lists_what_it_logs():
    settings = made()
    objective = settings.objective.model_copy(update={"metric": "val_acu"})
    found = errors(preflight(settings.model_copy(update={"objective": objective}), rows(settings)))
    assert [finding.code for finding in found] == ["monitor-missing"]
    assert "val_auc" in found[0].seen
    assert "lr" in found[0].seen.split(", ")


def test_an_objective_that_validation_cannot_give_is_an_error():
    """AUC needs both classes."""
    settings = made()
    dataset = rows(settings)
    labels = dataset.valid.targets["target"]
    one_class = np.flatnonzero(labels == labels.iloc[0])
    valid = dataclasses.replace(
        dataset.valid,
        features=dataset.valid.features.iloc[one_class],
        targets=dataset.valid.targets.iloc[one_class],
        rows=dataset.valid.rows[one_class],
    )
    found = errors(preflight(settings, dataclasses.replace(dataset, valid=valid)))
    assert [finding.code for finding in found] == ["monitor-undefined"]
    assert f"all {len(one_class)} targets are" in found[0].seen


@pytest.mark.parametrize("metric", METRIC_NAMES["regression"])
def test_validation_targets_that_are_all_the_same_define_no_r2(metric, tmp_path):
    """Case 03: scikit-learn says 0 or 1, and a search for the greatest of them finds nothing. All else is defined."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=200), "split": ["train"] * 100 + ["valid"] * 60 + ["test"] * 40})
    frame["y"] = np.where(frame["split"] == "valid", 0.0, rng.normal(size=200))
    frame.to_csv(tmp_path / "rows.csv", index=False)
    data = {"path": "rows.csv", "target": "y", "task": "regression", "split": {"kind": "column", "column": "split"}}
    table = {"name": "constant", "data": data, "objective": {"metric": f"val_{metric}"}, "model": {"search": SEARCH}}
    settings = experiment.parse(table, root=tmp_path)
    found = preflight(settings, rows(settings))
    if metric == "r2":
        (error,) = errors(found)
        assert error.code == "monitor-undefined" and "all 60 values of y are the same" in error.seen
    else:
        assert not errors(found) and "metric-undefined" in codes(found, "warning")


def test_a_model_that_does_not_fit_into_memory_is_an_error_and_is_not_built():
    settings = made(search={"width": {"type": "int", "low": 4, "high": 65_536}, "depth": 16})
    found = errors(preflight(settings, rows(settings)))
    assert [finding.code for finding in found] == ["memory"]
    assert "TB" in found[0].seen


def no_preparing(*arguments):
    """In place of `trial.prepare`, where it must not be called."""
    raise AssertionError("the matrices were made")


def test_data_that_do_not_fit_into_memory_are_an_error_and_are_not_prepared(monkeypatch):
    monkeypatch.setattr(environment, "memory", lambda: environment.Memory(total=10**6, available=10**5))
    monkeypatch.setattr(trial, "prepare", no_preparing)
    settings = made()
    (finding,) = preflight(settings, rows(settings))
    assert (finding.severity, finding.code) == ("error", "memory")
    assert "at most the 100 kB available" in finding.expected


def test_the_memory_of_the_data_is_that_of_the_arrays_to_come(adult):
    """Columns with missing values, with categories, and with more categories than are kept."""
    settings, dataset = adult
    prepared = trial.prepare(dataset, trial.Recipe.of(settings))
    whole = prepared.data
    memory = preflight(settings, dataset)[0]
    assert prepared.preprocessor.output_names == ("age", "age=(missing)", "job=a", "job=b", "job=(other)")
    assert f"{len(whole.x_train) + len(whole.x_valid)} rows x {whole.x_train.shape[1]} features x 2:" in memory.seen
    assert "rows x 1 numbers x 4" in memory.seen


@pytest.fixture
def adult(tmp_path):
    """An experiment on a file with a number that is missing at times and a category, and its rows."""
    n = 200
    age = [None if i % 10 == 0 else 20 + i % 50 for i in range(n)]
    job = [("a", "a", "b", "b", "c", "d")[i % 6] for i in range(n)]
    frame = pd.DataFrame({"age": age, "job": job, "rich": [i % 7 < 3 for i in range(n)]})
    frame.to_csv(tmp_path / "adult.csv", index=False)
    data = {"source": "file", "path": str(tmp_path / "adult.csv"), "target": "rich", "task": "binary"}
    table = {"data": data, "objective": {"metric": "val_auc"}, "model": {"search": SEARCH}}
    settings = experiment.parse({"name": "adult", "preprocessing": {"max_categories": 2}, **table}, root=tmp_path)
    return settings, rows(settings)


def test_every_scaler_of_the_space_keeps_its_matrix_in_memory():
    settings = made(search={**SEARCH, "scaler": {"type": "categorical", "choices": ["standard", "robust", "none"]}})
    assert "features x 4:" in preflight(settings, rows(settings))[0].seen


@pytest.mark.parametrize("scalers", [["standard", "none"], ["none", "standard"]])
def test_a_scaler_that_gives_no_finite_numbers_is_an_error_and_models_are_tried_with_another(scalers):
    """A number beyond float32 is infinite unless it is scaled."""
    settings = made(search={**SEARCH, "scaler": {"type": "categorical", "choices": scalers}})
    dataset = rows(settings)
    features = dataset.train.features.copy()
    features.iloc[3, 0] = 1e39
    broken = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, features=features))
    (finding,) = errors(preflight(settings, broken))
    assert (finding.code, finding.subject) == ("scaler-fails", 'scaler "none"')
    assert "data: " in finding.seen and "mean radius" in finding.seen


def test_a_validation_label_that_train_does_not_have_is_not_blamed_on_a_scaler():
    settings = made()
    dataset = rows(settings)
    targets = dataset.valid.targets.copy()
    targets.iloc[0, 0] = "unclear"
    with pytest.raises(DataError, match="unclear"):
        preflight(settings, dataclasses.replace(dataset, valid=dataclasses.replace(dataset.valid, targets=targets)))


def test_a_model_that_cannot_be_built_is_an_error_with_its_cause(monkeypatch):
    def broken(n_features, task, params, rows=None):
        raise TypeError("build() got an unexpected keyword argument 'heads'")

    monkeypatch.setitem(models.BUILDERS, "mlp", dataclasses.replace(models.BUILDERS["mlp"], build=broken))
    settings = made()
    found = errors(preflight(settings, rows(settings)))
    assert [finding.code for finding in found] == ["model-fails", "model-fails"]
    assert "unexpected keyword argument 'heads'" in found[0].seen
    assert found[0].subject == "smallest model (width=4, depth=1)"


def test_a_gpu_that_lies_idle_is_a_warning_unless_it_was_hidden(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Tesla T4, 15360 MiB, 535.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    settings = made()
    dataset = rows(settings)
    (finding,) = (finding for finding in preflight(settings, dataset) if finding.severity == "warning")
    assert finding.code == "gpu-unused"
    assert "Tesla T4" in finding.seen
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert codes(preflight(settings, dataset), "warning") == []


def test_the_corners_of_the_space_are_the_smallest_and_the_largest_model():
    settings = made(
        search={
            "width": {"type": "categorical", "choices": [128, 16, 64]},
            "depth": {"type": "int", "low": 1, "high": 4},
            "shape": {"type": "categorical", "choices": ["constant", "taper"]},
            "batch_size": {"type": "categorical", "choices": [256, 32]},
            "batch_norm": {"type": "categorical", "choices": [True, False]},
            "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "l2": 0.001,
        }
    )
    smallest, largest = corner_params(settings, "smallest"), corner_params(settings, "largest")
    shown = ("width", "depth", "shape", "batch_size", "batch_norm", "learning_rate", "l2")
    assert [smallest[name] for name in shown] == [16, 1, "taper", 32, False, 1e-4, 0.001]
    assert [largest[name] for name in shown] == [128, 4, "constant", 256, True, 1e-2, 0.001]
    assert largest["optimizer"] == "adam"


def test_a_conditional_hyperparameter_is_there_where_its_condition_holds():
    search = {
        "optimizer": {"type": "categorical", "choices": ["adam", "sgd"]},
        "momentum": {"type": "float", "low": 0.5, "high": 0.9, "when": {"optimizer": "sgd"}},
    }
    settings = made(search=search)
    assert "momentum" not in corner_params(settings, "smallest")
    assert corner_params(settings, "largest")["momentum"] == 0.9
