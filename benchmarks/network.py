"""The network of the benchmark as a user of Keras writes it: the layers that our ``mlp`` builder makes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from benchmarks.recording import EpochLog, Stop, exact_auc


def build(params: Mapping[str, Any], n_features: int) -> keras.Model:
    """A compiled network with Keras' streaming AUC, which is what users watch."""
    layers = [keras.Input((n_features,))]
    for _ in range(params["depth"]):
        layers += [keras.layers.Dense(params["width"], kernel_initializer="he_normal", use_bias=False)]
        layers += [keras.layers.BatchNormalization(), keras.layers.Activation("relu")]
        layers += [keras.layers.Dropout(params["dropout"])] if params.get("dropout") else []
    model = keras.Sequential([*layers, keras.layers.Dense(1, activation="sigmoid")])
    model.compile(
        keras.optimizers.Adam(params["learning_rate"]), "binary_crossentropy", metrics=[keras.metrics.AUC(name="auc")]
    )
    return model


class ExactAuc(keras.callbacks.Callback):
    """Records the exact AUC of each epoch.

    Args:
        log: where it is written.
        arrays: ``x_valid`` and ``y_valid``.
        then: called with the AUC; may raise `recording.Stop`.
    """

    def __init__(
        self, log: EpochLog, arrays: Mapping[str, np.ndarray], then: Callable[[float], None] = lambda auc: None
    ) -> None:
        super().__init__()
        self.log = log
        self.arrays = arrays
        self.then = then
        self.rate = 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> ExactAuc:
        """KerasTuner copies callbacks for each trial; the rows need no copy."""
        return ExactAuc(self.log, self.arrays, self.then)

    def on_train_begin(self, logs: Any = None) -> None:
        """Remember which trial this is."""
        self.rate = float(np.asarray(self.model.optimizer.learning_rate))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Score and write."""
        began = time.perf_counter()
        auc = exact_auc(self.model.get_weights(), self.arrays["x_valid"], self.arrays["y_valid"])
        self.log.add(kind="epoch", rate=self.rate, epoch=epoch, auc=auc, scoring_s=time.perf_counter() - began)
        self.then(auc)


def stop_at(target: float | None, began: float, cap_s: float) -> Callable[[float], None]:
    """What ends a search in the same process: the target, or its cap."""

    def then(auc: float) -> None:
        if target is not None and (auc >= target or time.time() - began > cap_s):
            raise Stop

    return then
