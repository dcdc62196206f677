"""Trainings that run to their end and learn nothing, or less than they could, say why; sound ones say nothing."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forge_sweep import sources, sweep, training, trial
from forge_sweep.checks.diagnose import Times, Training, of_training
from forge_sweep.checks.relation import Relation, relation
from forge_sweep.checks.samples import LayerSample, Sample
from forge_sweep.experiment import parse
from forge_sweep.study import find_shared
from forge_sweep.task import Task
from tests.serving import COMMAND

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

BINARY = Task.learn("binary", pd.DataFrame({"y": [0, 1] * 50}))
TRUTH = np.tile([[0.0], [1.0]], (50, 1)).astype(np.float32)
GOOD = np.where(TRUTH == 1, 0.9, 0.1) + np.linspace(0, 0.05, 100)[:, None]


def seen(loss: Any, val_loss: Any = None, *, scores: np.ndarray = GOOD, epochs: int = 10, **changes: Any) -> Training:
    """A training with these curves; ``val_auc`` is 1 less the validation loss."""
    val = list(loss if val_loss is None else val_loss)
    history = [{"loss": a, "val_loss": b, "val_auc": 1 - b} for a, b in zip(loss, val, strict=True)]
    given: dict[str, Any] = {
        **{"monitor": "val_auc", "direction": "maximize", "best_epoch": int(np.argmin(val)), "epochs": epochs},
        **{"task": BINARY, "encoded": TRUTH, "scores": scores, "params": {"learning_rate": 1e-3}},
    }
    return Training(history=history, **{**given, **changes})


def codes(found: Training) -> list[str]:
    """The codes of what is said."""
    return [each.code for each in of_training(found)]


def test_a_training_that_went_well_says_nothing() -> None:
    assert codes(seen([0.7, 0.5, 0.3, 0.25, 0.24], [0.7, 0.5, 0.35, 0.36, 0.36])) == []
    assert codes(seen([0.7, 0.7])) == []  # two epochs say nothing yet


DENSE = LayerSample("dense", gradient=0.1, weights=1.0, moved=0.1, trainable=1.0)


def sample(*layers: LayerSample, **changes: Any) -> Callable[[], list[Sample]]:
    """Takes a sample of a network with these layers."""
    return lambda: [Sample(epochs=4, steps=40, rows=256, layers=layers or (DENSE,), **changes)]


@pytest.mark.parametrize(
    ("code", "cause", "fix", "changes"),
    [
        ("rate-too-low", "learning_rate 1e-09", "learning_rate = 1e-3", {"params": {"learning_rate": 1e-9}}),
        ("rate-too-high", "learning_rate 5", "learning_rate = 1e-3", {"params": {"learning_rate": 5.0}}),
        ("dropout-too-high", "dropout 0.95", "dropout = 0.0", {"params": {"dropout": 0.95}}),
        ("penalty-too-high", "l2 10", "l2 = 0.0", {"params": {"l2": 10.0}}),
        ("labels-unrelated", "(p = 0.6)", "rows and labels belong", {"related": lambda: {"": Relation(0.0, 0.6)}}),
    ],
)
def test_a_flat_loss_has_its_likely_cause(code: str, cause: str, fix: str, changes: dict[str, Any]) -> None:
    flat, found = of_training(seen([0.693, 0.692, 0.693, 0.693], **changes))
    assert flat.code == "flat-loss" and cause in flat.seen and fix in flat.fix
    assert "0.6931 of a constant" in flat.seen
    assert found.code == code and cause in found.seen and fix in found.fix


@pytest.mark.parametrize(
    ("code", "subject", "changed"),
    [
        ("dead-units", "second", sample(DENSE, LayerSample("second", constant=0.9))),
        ("dead-units", "second", sample(LayerSample("first", constant=0.4), LayerSample("second", constant=1.0))),
        ("saturated-units", "first", sample(LayerSample("first", constant=0.9, saturated=1.0))),
        ("frozen-layers", "first", sample(LayerSample("first", weights=1.0, trainable=0.0), DENSE)),
        ("frozen-layers", "first", sample(LayerSample("first", 0.0, 0.0, 0.1, 1.0, 0.0, 1.0), DENSE)),
        ("zero-weights", "first", sample(LayerSample("first", weights=0.0, gradient=0.0, moved=0.1, trainable=1.0))),
        ("vanishing-gradients", "first", sample(replace(DENSE, name="first", gradient=1e-7), DENSE)),
        ("rate-too-low", "learning_rate", sample(replace(DENSE, moved=1e-6))),
        ("penalty-too-high", "l2", sample(penalty=0.95)),
        ("dropout-too-high", "drop", sample(DENSE, LayerSample("drop", rate=0.9))),
        ("unscaled-input", "amount", sample(columns=(("age", 1.0), ("amount", 3e4)))),
        ("half-precision-range", "precision", sample(scale=1e-3, applied=40)),
        ("half-precision-range", "precision", sample(scale=2.0, applied=3)),
        ("half-precision-range", "precision", sample(replace(DENSE, gradient=0.0), DENSE, scale=2.0, applied=40)),
    ],
)
def test_a_sample_says_which_layer_it_is(code: str, subject: str, changed: Callable[[], list[Sample]]) -> None:
    flat, found, *_ = of_training(seen([0.693, 0.692, 0.693, 0.693], sampled=changed))
    assert (flat.code, found.code, found.subject) == ("flat-loss", code, subject)
    assert found.seen in flat.seen and flat.fix == found.fix
    assert codes(seen([0.7, 0.5, 0.3, 0.25, 0.24], [0.7, 0.5, 0.35, 0.36, 0.36], sampled=changed)) == []


def test_a_sample_from_an_earlier_epoch_says_since_when() -> None:
    taken = [Sample(epochs=n, steps=n, rows=9, layers=(LayerSample("a", constant=n / 4),)) for n in (1, 4)]
    _, found = of_training(seen([0.693] * 4, sampled=lambda: taken))
    assert found.seen == "100% of the units of a give one value for every row, 25% after epoch 1"


def test_where_no_cause_is_found_it_says_whether_there_is_anything_to_learn() -> None:
    flat = [0.693, 0.692, 0.693, 0.693]
    (found,) = of_training(seen(flat, sampled=sample(), related=lambda: {"": Relation(0.41, 0.005)}))
    assert found.code == "flat-loss" and "a tree of depth 3 does learn (R2 0.41, p = 0.005), the network" in found.seen
    (found,) = of_training(seen(flat, sampled=sample(missing=("activations not sampled: it is no graph",))))
    assert found.seen.endswith("say nothing of the target; activations not sampled: it is no graph")
    (found,) = of_training(seen(flat, sampled=sample()))  # too few rows to tell
    assert "the features may say nothing of the target" in found.seen


def test_a_shallow_tree_tells_features_that_say_something_from_noise() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 5)).astype(np.float32)
    y = (x[:, 2] > 0).astype(int)
    found = relation(x[:300], y[:300], x[300:], y[300:], classes=True)
    assert found is not None and found.found and found.p == 0.005 and found.score > 0.9
    ps = [
        relation(x[:300], noise[:300], x[300:], noise[300:], classes=False) for noise in random.normal(size=(20, 400))
    ]
    assert sum(each is not None and each.found for each in ps) <= 2
    assert relation(x[:300], y[:300], x[300:310], y[300:310], classes=True) is None


def test_a_loss_that_is_flat_below_that_of_a_constant_is_no_fault() -> None:
    assert codes(seen([0.1, 0.1, 0.1], scores=GOOD)) == []


def test_one_answer_and_one_class_are_told_apart() -> None:
    assert codes(seen([0.7, 0.6, 0.5], scores=np.full((100, 1), 0.5))) == ["one-answer"]
    (found,) = of_training(seen([0.7, 0.6, 0.5], scores=GOOD / 3))
    assert found.code == "one-class" and found.seen == "every validation row is called 0, and none 1 (50% of them)"
    rare = TRUTH.copy()
    rare[10:] = 0  # five of a hundred rows
    assert codes(seen([0.7, 0.6, 0.5], scores=GOOD / 3, encoded=rare)) == ["near-constant"]  # 0.2 of a constant


def test_curves_that_part_rise_or_end_too_early() -> None:
    params: Any = {"learning_rate": 1e-3, "dropout": 0.0, "l2": 0.0, "width": 64}
    (found,) = of_training(seen([0.7, 0.5, 0.3, 0.2, 0.1], [0.7, 0.5, 0.4, 0.5, 0.6], params=params))
    assert found.code == "overfitting" and "from 0.4 after epoch 3 to 0.6" in found.seen and found.severity == "info"
    assert "a gap of 0.5, 0.1 before" in found.seen
    order = [
        found.fix.index(each) for each in ("patience = 1", "dropout = 0.2", "l2 = 0.0001", "width = 32", "more rows")
    ]
    assert order == sorted(order)
    (found,) = of_training(seen([0.7, 0.3, 0.2, 0.9, 2.0], [0.7, 0.3, 0.2, 0.21, 0.2]))
    assert found.code == "unstable-loss" and "0.2 after epoch 3 and rose to 2 at learning_rate 0.001" in found.seen
    (found,) = of_training(seen(np.linspace(0.7, 0.3, 8), epochs=8))
    assert found.code == "still-improving" and found.fix == "epochs = 16 under [study]"
    assert codes(seen(np.linspace(0.7, 0.3, 8), epochs=9)) == []  # it was pruned
    (found,) = of_training(seen([0.75, 0.7, 0.69, 0.69], [0.7, 0.69, 0.69, 0.69]))
    assert found.code == "near-constant" and found.severity == "info"


def test_validation_that_never_beat_a_constant_has_a_cause_too() -> None:
    unrelated = {"related": lambda: {"": Relation(0.0, 0.6)}}
    under = seen([0.75, 0.7, 0.69, 0.69], [0.7, 0.69, 0.69, 0.69], **unrelated)
    assert codes(under) == ["near-constant", "labels-unrelated"]
    over = seen([0.7, 0.5, 0.3, 0.2], [0.7, 0.71, 0.72, 0.73], **unrelated)
    assert codes(over) == ["overfitting", "labels-unrelated"]
    assert codes(replace(over, related=dict)) == ["overfitting"]
    one = seen([0.7, 0.6, 0.5], scores=GOOD / 3, sampled=sample(penalty=0.95), **unrelated)
    assert codes(one) == ["one-class", "penalty-too-high"]
    assert codes(replace(one, sampled=sample())) == ["one-class"]  # what is called by one class may still be ranked


def test_a_frozen_layer_is_a_fact_where_the_network_learned() -> None:
    good = seen([0.7, 0.5, 0.3, 0.25, 0.24], frozen=("base",))
    (found,) = of_training(good)
    assert (found.severity, found.code, found.subject) == ("info", "frozen-layers", "base")


def test_a_rate_that_a_schedule_raised_too_far_is_named() -> None:
    rates = [{"lr": rate} for rate in (0.01, 0.02, 0.03, 0.5, 0.5)]
    given = seen([0.7, 0.3, 0.2, 0.9, 2.0], [0.7, 0.3, 0.2, 0.21, 0.2])
    history = [{**row, **rate} for row, rate in zip(given.history, rates, strict=True)]
    (found,) = of_training(replace(given, history=history))
    assert "at learning_rate 0.5, which had been 0.03" in found.seen and 'schedule = "cosine"' in found.fix


def test_what_a_trial_waits_for_is_said_with_its_share() -> None:
    good = [0.7, 0.5, 0.3, 0.25, 0.24]
    assert codes(seen(good, times=Times(20.0, setup=12.0))) == ["compile-bound"]
    assert codes(seen(good, times=Times(20.0, setup=1.0, waiting=11.0))) == ["input-bound"]
    assert codes(seen(good, times=Times(2.0, setup=1.9))) == []  # nobody waits for that
    assert Times(20.0, 12.0, 0.0, 0.1).shares()["cost/diagnosis_share"] == 0.005


# Real trainings: each fault trains without any error


def trained(folder: Path, labels: str = "", **search: Any) -> tuple[str, ...]:
    """The codes of a training on real rows, 30 columns, with these hyperparameters."""
    from sklearn.datasets import load_breast_cancer

    frame = load_breast_cancer(as_frame=True).frame
    if labels == "shuffled":
        frame["target"] = frame["target"].sample(frac=1, random_state=1).to_numpy()
    frame.to_csv(folder / "rows.csv", index=False)
    table: dict[str, Any] = {
        "name": "garden",
        "data": {"path": "rows.csv", "target": "target", "task": "binary"},
        "objective": {"metric": "val_auc"},
        "study": {"n_trials": 1, "epochs": 6},
        "model": {"search": {"width": 16, "depth": 2, **search}},
    }
    declared = parse(table, root=folder)
    training.select_backend("tensorflow")
    params: Any = dict(declared.space)
    rows = sources.load(declared.data, root=folder, seed=0)
    found = trial.run(declared, rows, params, 1, lambda epoch, logs: False).findings
    training.release()
    return tuple(each.code for each in found if each.severity != "info")


@pytest.mark.parametrize(
    ("expected", "search"),
    [
        ((), {}),
        ((), {"activation": "gelu", "dropout": 0.3}),
        (("flat-loss", "rate-too-low"), {"learning_rate": 1e-8, "batch_norm": False}),
        (
            ("one-answer", "penalty-too-high"),
            {"l2": 10.0, "learning_rate": 0.04, "optimizer": "sgd", "batch_norm": False},
        ),
    ],
)
def test_a_planted_fault_is_said_of_a_real_training(tmp_path: Path, expected: Any, search: dict[str, Any]) -> None:
    assert trained(tmp_path, **search) == expected


# Kept, and shown


def test_findings_are_kept_with_the_trial_and_shown(tmp_path: Path) -> None:
    data = {"source": "sample", "name": "diabetes", "target": "target", "task": "regression"}
    rates = {"type": "categorical", "choices": [1e-8, 10.0]}
    table: dict[str, Any] = {
        **{"name": "flat", "data": data, "objective": {"metric": "val_rmse"}, "baselines": {"kinds": ["constant"]}},
        **{"study": {"n_trials": 2, "epochs": 4, "sampler": "grid"}, "confirm": {"top": 1, "seeds": 1}},
        "model": {"search": {"width": 4, "depth": 1, "learning_rate": rates, "batch_norm": False, "optimizer": "sgd"}},
    }
    sweep.run(parse(table, root=tmp_path), store=tmp_path / "mlruns")
    study = find_shared("flat", tmp_path / "mlruns")
    assert study is not None
    rows = {row.params["learning_rate"]: row for row in study.rows()}
    row, wild = rows[1e-8], rows[10.0]
    assert [each.code for each in row.findings] == ["flat-loss", "rate-too-low"] and "1e-08" in row.findings[0].seen
    assert (wild.state, wild.failure) == ("failed", "diverged")
    assert [each.code for each in wild.findings] == ["not-finite"] and "epoch 1, step" in wild.findings[0].seen
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}")
    found = client.search_runs([e.experiment_id for e in client.search_experiments()], "tags.`forge.kind` = 'trial'")
    tags = {run.data.tags["optuna.trial_number"]: run.data.tags for run in found}
    assert "flat-loss" in tags[str(row.number)]["forge.finding.flat-loss"]
    assert "learning rate 10" in tags[str(wild.number)]["forge.finding.not-finite"]
    metrics = {run.data.tags["optuna.trial_number"]: run.data.metrics for run in found}[str(row.number)]
    assert {"cost/setup_share", "cost/waiting_share", "cost/diagnosis_share"} <= metrics.keys()

    def forge_sweep(*words: str) -> str:
        done = subprocess.run([*COMMAND, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "flat-loss" in forge_sweep("trials", "flat")
    one, _ = json.loads(forge_sweep("diagnose", "flat", "--trial", str(row.number), "--json"))
    assert one["code"] == "flat-loss" and "learning_rate = 1e-3" in one["fix"]
    assert "not-finite" in forge_sweep("diagnose", "flat", "--trial", str(wild.number))


def test_every_code_has_its_section() -> None:
    root = Path(__file__).parents[1]

    def source(*names: str) -> str:
        return "".join((root / f"forge_sweep/checks/{name}.py").read_text() for name in names)

    page, text = (root / "docs/failures.md").read_text(), source("diagnose", "samples", "nonfinite")
    known = {*re.findall(r'"([a-z]+(?:-[a-z]+)+)"', text), *re.findall(r'Finding\(\s*"[a-z]+", "([a-z-]+)"', text)}
    known |= {"patience-too-long"}  # of the experiment file
    known |= {
        *re.findall(r'Finding\(\s*"[a-z]+", "([a-z-]+)"', source("search", "luck", "pruning", "../study/diagnosis"))
    }
    assert len(known) >= 28 and known == set(re.findall(r"^### ([a-z-]+)$", page, re.MULTILINE))
