"""The dense network that both peers with Keras search, and what keeps the best epoch of all until time is up."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from benchmarks.quality.sides.encoding import Matrices, matrices
from benchmarks.quality.work import Work
from benchmarks.recording import Stop

EPOCHS, PATIENCE = 60, 8
"""As our own defaults."""
LARGE = 50_000
"""Train rows from which a batch has 1024 rows instead of 256."""


def load() -> None:
    """The imports above are all that is needed; this makes Keras start its backend."""
    keras.ops.zeros(1)


def build(data: Matrices, width: int, depth: int, dropout: float, rate: float) -> keras.Model:
    """A compiled network: dense layers with batch normalisation, ReLU and dropout."""
    layers = [keras.Input((data.x["train"].shape[1],))]
    for _ in range(depth):
        layers += [keras.layers.Dense(width, kernel_initializer="he_normal", use_bias=False)]
        layers += [keras.layers.BatchNormalization(), keras.layers.Activation("relu"), keras.layers.Dropout(dropout)]
    activation, loss, metrics = {
        "binary": ("sigmoid", "binary_crossentropy", [keras.metrics.AUC(name="auc")]),
        "multiclass": ("softmax", "sparse_categorical_crossentropy", []),
        "regression": ("linear", "mse", []),
    }[data.task]
    model = keras.Sequential([*layers, keras.layers.Dense(data.units, activation=activation)])
    model.compile(keras.optimizers.Adam(rate), loss, metrics=metrics)
    return model


def monitored(task: str) -> tuple[str, str]:
    """What Keras gives each epoch that is nearest to the metric of the task, and its direction."""
    return ("val_auc", "max") if task == "binary" else ("val_loss", "min")


class Best(keras.callbacks.Callback):
    """Keeps the weights of the best epoch of all trials, and ends the search when time is up.

    Args:
        work: says how much time is left.
        data: for the task, and for the predictions.
    """

    def __init__(self, work: Work, data: Matrices) -> None:
        super().__init__()
        self.work, self.data = work, data
        self.found: dict[str, Any] = {}
        self.trials = self.epochs = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Best:
        """KerasTuner copies callbacks for each trial; there is one best of all."""
        return self

    def on_train_begin(self, logs: Any = None) -> None:
        """Count."""
        self.trials += 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """An epoch may be long; only the first of all is let go on beyond the budget, or there were no model."""
        if self.work.left <= 0 and self.found:
            raise Stop

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Compare, keep, and look at the clock."""
        name, mode = monitored(self.data.task)
        value = float((logs or {})[name]) * (1 if mode == "max" else -1)
        self.epochs += 1
        if not self.found or value > self.found["value"]:
            self.found = {"value": value, "model": self.model, "weights": self.model.get_weights()}
        if self.work.left <= 0:
            raise Stop

    def outcome(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Predictions of test by the best epoch."""
        model = self.found["model"]
        model.set_weights(self.found["weights"])
        outputs = model.predict(self.data.x["test"], batch_size=4096, verbose=0)
        facts = {"trials": self.trials, "epochs": self.epochs, "value": self.found["value"]}
        return {"shipped": self.data.restore(outputs)}, facts


def begin(work: Work) -> tuple[Matrices, Best, dict[str, Any]]:
    """The data, what watches, and the arguments of ``fit`` without callbacks."""
    keras.utils.set_random_seed(work.seed)
    data = matrices(work)
    arguments = {
        "x": data.x["train"],
        "y": data.y["train"],
        "validation_data": (data.x["valid"], data.y["valid"]),
        "batch_size": 1024 if len(data.y["train"]) >= LARGE else 256,
        "verbose": 0,
    }
    return data, Best(work, data), arguments


def early(task: str) -> keras.callbacks.Callback:
    """Stops a trial that gets no better."""
    name, mode = monitored(task)
    return keras.callbacks.EarlyStopping(name, mode=mode, patience=PATIENCE)
