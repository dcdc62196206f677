"""What the pre-flight sees before the first trial."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from forge_sweep import experiment, models, sources
from forge_sweep.checks.findings import errors
from forge_sweep.preflight import available_memory, corner_params, preflight

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


def test_a_head_that_does_not_fit_is_an_error_and_nothing_is_built():
    settings = made()
    model = settings.model.model_copy(update={"loss": "categorical_crossentropy"})
    (finding,) = preflight(settings.model_copy(update={"model": model}), rows(settings))
    assert (finding.severity, finding.code) == ("error", "loss-activation")


def test_an_objective_that_training_does_not_log_is_an_error_that_lists_what_it_logs():
    settings = made()
    objective = settings.objective.model_copy(update={"metric": "val_acu"})
    found = errors(preflight(settings.model_copy(update={"objective": objective}), rows(settings)))
    assert [finding.code for finding in found] == ["monitor-missing"]
    assert "val_auc" in found[0].seen
    assert "learning_rate" in found[0].seen


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


def test_a_model_that_does_not_fit_into_memory_is_an_error_and_is_not_built():
    settings = made(search={"width": {"type": "int", "low": 4, "high": 65_536}, "depth": 16})
    found = errors(preflight(settings, rows(settings)))
    assert [finding.code for finding in found] == ["memory"]
    assert "TB" in found[0].seen
    assert available_memory() > 0


def test_a_model_that_cannot_be_built_is_an_error_with_its_cause(monkeypatch):
    def broken(n_features, task, params):
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
