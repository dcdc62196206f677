"""Callbacks of the user's own: found by name, run in every trial, unable to undo what a trial decides or records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forge_sweep import sources, trial
from forge_sweep.errors import ExperimentError, TrialFailed
from forge_sweep.experiment import Experiment, parse

NET = """
import keras
from keras.callbacks import TerminateOnNaN

def build(inputs, heads, *, width: int = 8):
    return keras.Model(inputs, heads.only.output(keras.layers.Dense(width, activation="relu")(inputs["features"])))

class Meddles(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        assert "val_auc" in logs
        logs["val_auc"], logs["mine"] = 1.0, "text"
        self.model.stop_training = False
    def on_train_end(self, logs=None):
        self.model.set_weights([weight * 0 for weight in self.model.get_weights()])

def fails():
    return keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: 1 / 0)

def none():
    return None
"""
SHRINK = """
import keras
class Shrink(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.set_weights([weight / 2 for weight in self.model.get_weights()])
"""


def experiment(root: Path, callbacks: Any = None, builder: str = "net:build", **study: Any) -> Experiment:
    (root / "net.py").write_text(NET)
    (root / "extra.py").write_text(SHRINK)
    model = {"builder": builder} | ({} if callbacks is None else {"callbacks": callbacks})
    tables = {
        "name": "callbacks",
        "data": {"source": "sample", "name": "breast_cancer", "target": "target", "task": "binary"},
        "model": model,
        "objective": {"metric": "val_loss"},
        "study": {"n_trials": 1, "epochs": 4, **study},
    }
    return parse(tables, root=root)


def trained(spec: Experiment) -> trial.TrialResult:
    dataset = sources.load(spec.data, root=spec.root, seed=spec.seed)
    return trial.run(spec, dataset, {"batch_size": 128, "learning_rate": 0.3}, 3, lambda epoch, metrics: False)


def test_a_callback_undoes_neither_early_stopping_nor_the_logs_nor_the_best_weights(tmp_path: Path) -> None:
    plain, meddled = (trained(experiment(tmp_path, names, patience=1, epochs=40)) for names in (None, ["Meddles"]))
    assert len(plain.history) < 40, "early stopping ended it"
    assert meddled.history == plain.history and meddled.events == plain.events
    assert meddled.bundle.weights_sha256 == plain.bundle.weights_sha256
    assert "Meddles" in meddled.bundle.code.files["net"], "its source goes where the model goes"


def test_a_callback_of_another_module_changes_training_and_its_source_is_digested(tmp_path: Path) -> None:
    plain, shrunk = experiment(tmp_path), experiment(tmp_path, "extra:Shrink")
    assert set(shrunk.code.files) == {"net", "extra"}
    assert shrunk.model.code != plain.model.code and shrunk.contract() != plain.contract()
    found, other = trained(shrunk), trained(plain)
    assert found.history[0] == other.history[0] and found.history[1] != other.history[1]


def test_one_that_wants_every_batch_is_trained_by_model_fit(tmp_path: Path) -> None:
    assert trained(experiment(tmp_path, ["TerminateOnNaN"])).events[0] == (
        "trained by model.fit, not by the compiled epoch: TerminateOnNaN wants to see every batch"
    )


@pytest.mark.parametrize(
    ("callbacks", "builder", "said"),
    [
        (["Medles"], "net:build", r'model\.callbacks(?s:.*)did you mean "Meddles"'),
        (["extra:Shrnk"], "net:build", r'extra\.py(?s:.*)did you mean "Shrink"'),
        (["other:Shrink"], "net:build", r"there is no other\.py"),
        (["Meddles"], "mlp", r'none with builder = "mlp"'),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest_name(
    tmp_path: Path, callbacks: list[str], builder: str, said: str
) -> None:
    with pytest.raises(ExperimentError, match=said):
        experiment(tmp_path, callbacks, builder)


@pytest.mark.parametrize(
    ("name", "said"),
    [("none", r"none\(\) gives a NoneType"), ("fails", r"ZeroDivisionError: division by zero \(net\.py:17\)")],
)
def test_one_that_is_none_or_fails_ends_the_trial_with_its_line(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(TrialFailed, match=said) as caught:
        trained(experiment(tmp_path, [name]))
    assert caught.value.failure == "code"
