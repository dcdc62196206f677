"""KerasTuner, one trial after the other in this process, with its own records (JSON files, weights of the best epoch).

At equal work a tuner of the kind that its users begin with, random search, is handed the prepared configurations: its
other tuners differ only in what they suggest, or in how long they train. With a target it is Hyperband, its only tuner
that ends hopeless trials early.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from benchmarks.problems import Work


def run(**arguments: Any) -> dict[str, Any]:
    """The figures of `recording.outcome`."""
    import keras
    import keras_tuner

    from benchmarks.network import ExactAuc, build, stop_at
    from benchmarks.recording import EpochLog, Stop, outcome
    from benchmarks.search import declare

    work = Work(**arguments)
    arrays, log = work.arrays(), EpochLog(work.store)

    def model_of(hp: Any) -> keras.Model:
        return build(declare(hp, work.spec), arrays["x_train"].shape[1])

    keras.utils.set_random_seed(work.seed)
    tuner = make(work, model_of)
    began = time.time()
    with contextlib.suppress(Stop):
        tuner.search(
            arrays["x_train"],
            arrays["y_train"],
            validation_data=(arrays["x_valid"], arrays["y_valid"]),
            batch_size=work.spec.fixed["batch_size"],
            epochs=work.spec.epochs,
            callbacks=[ExactAuc(log, arrays, stop_at(work.target, began, work.cap_s))],
            verbose=0,
        )
    ended = time.time()
    assert isinstance(tuner, keras_tuner.Tuner)
    return outcome(log, began, ended, target=work.target)


def make(work: Work, model_of: Any) -> Any:
    """The tuner of a work."""
    import keras_tuner

    points = work.points()

    class Prepared(keras_tuner.oracles.RandomSearchOracle):
        """Random search whose draws are the prepared configurations."""

        def populate_space(self, trial_id: str) -> dict[str, Any]:
            """The configuration of one trial."""
            values = {name: points[int(trial_id)][name] for name in work.spec.search}
            return {"status": "RUNNING", "values": values}

    objective = keras_tuner.Objective("val_auc", "max")
    if work.equal:
        oracle = Prepared(objective=objective, max_trials=work.trials, seed=work.seed)
        return keras_tuner.Tuner(oracle, model_of, directory=work.store, project_name="bench")
    return keras_tuner.Hyperband(
        model_of,
        objective,
        max_epochs=work.spec.epochs,
        hyperband_iterations=1000,  # until the target or the cap
        seed=work.seed,
        directory=work.store,
        project_name="bench",
    )
