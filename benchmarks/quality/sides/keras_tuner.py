"""KerasTuner's Hyperband, its one tuner that ends hopeless trials early, begun again until time is up."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from benchmarks.quality.work import Work


def load() -> None:
    """Import Keras and KerasTuner."""
    import keras_tuner

    from benchmarks.quality.sides import networks

    networks.load()
    assert keras_tuner.Hyperband


def run(work: Work) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Trials until time is up; the best epoch of all is used, which is kind to a bracket that was cut off."""
    import keras_tuner

    from benchmarks.quality.sides import networks
    from benchmarks.recording import Stop

    data, best, arguments = networks.begin(work)

    def model_of(hp: Any) -> Any:
        return networks.build(
            data,
            hp.Int("width", 16, 256, sampling="log"),
            hp.Int("depth", 1, 4),
            hp.Float("dropout", 0.0, 0.5),
            hp.Float("learning_rate", 1e-4, 1e-2, sampling="log"),
        )

    tuner = keras_tuner.Hyperband(
        model_of,
        keras_tuner.Objective(*networks.monitored(data.task)),
        max_epochs=networks.EPOCHS,
        hyperband_iterations=1000,
        seed=work.seed,
        directory=work.store,
        project_name="quality",
        executions_per_trial=1,
    )
    with contextlib.suppress(Stop):
        tuner.search(**arguments, callbacks=[best, networks.early(data.task)])
    return best.outcome()
