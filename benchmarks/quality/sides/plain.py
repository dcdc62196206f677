"""The loop that users write by hand: Optuna with its default sampler and pruner, and ``model.fit``."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from benchmarks.quality.work import Work


def load() -> None:
    """Import Keras and Optuna."""
    import optuna

    from benchmarks.quality.sides import networks

    networks.load()
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def run(work: Work) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Trials until time is up; the best epoch of all is used."""
    import keras
    import optuna

    from benchmarks.quality.sides import networks
    from benchmarks.recording import Stop

    data, best, arguments = networks.begin(work)
    name, mode = networks.monitored(data.task)

    def objective(trial: optuna.Trial) -> float:
        keras.backend.clear_session()
        model = networks.build(
            data,
            trial.suggest_int("width", 16, 256, log=True),
            trial.suggest_int("depth", 1, 4),
            trial.suggest_float("dropout", 0.0, 0.5),
            trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        )

        def prune(epoch: int, logs: Any) -> None:
            trial.report(float(logs[name]), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        pruner = keras.callbacks.LambdaCallback(on_epoch_end=prune)
        callbacks = [best, networks.early(data.task), pruner]
        fitted = model.fit(**arguments, epochs=networks.EPOCHS, callbacks=callbacks)
        values = fitted.history[name]
        return float(max(values) if mode == "max" else min(values))

    study = optuna.create_study(
        direction="maximize" if mode == "max" else "minimize", sampler=optuna.samplers.TPESampler(seed=work.seed)
    )
    with contextlib.suppress(Stop):
        study.optimize(objective)
    return best.outcome()
