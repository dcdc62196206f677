"""The loop that a user would write: Optuna, `model.fit`, MLflow called after each epoch, both on SQLite.

Without a target there is no pruning; with one, Optuna's default sampler and pruner, the latter through the callback of
optuna-integration.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from benchmarks.problems import Work


def run(**arguments: Any) -> dict[str, Any]:
    """The figures of `recording.outcome`."""
    import keras
    import mlflow
    import optuna
    from optuna_integration import KerasPruningCallback

    from benchmarks.network import ExactAuc, build, stop_at
    from benchmarks.recording import EpochLog, Stop, outcome
    from benchmarks.search import Points, suggest

    work = Work(**arguments)
    arrays, log = work.arrays(), EpochLog(work.store)
    began = 0.0
    mlflow.set_tracking_uri(f"sqlite:///{work.store}/mlflow.db")
    mlflow.set_experiment("bench")

    def objective(trial: optuna.Trial) -> float:
        params = suggest(trial, work.spec)
        keras.utils.clear_session()
        keras.utils.set_random_seed(work.seed + trial.number)
        model = build(params, arrays["x_train"].shape[1])
        tracked = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: mlflow.log_metrics(logs, step=epoch))
        watched = ExactAuc(log, arrays, stop_at(work.target, began, work.cap_s))
        pruned = [] if work.equal else [KerasPruningCallback(trial, "val_auc")]
        with mlflow.start_run(run_name=f"trial-{trial.number}"):
            mlflow.log_params(params)
            fitted = model.fit(
                arrays["x_train"],
                arrays["y_train"],
                validation_data=(arrays["x_valid"], arrays["y_valid"]),
                batch_size=params["batch_size"],
                epochs=work.spec.epochs,
                callbacks=[tracked, watched, *pruned],
                verbose=0,
            )
        return float(max(fitted.history["val_auc"]))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{work.store}/optuna.db",
        direction="maximize",
        sampler=Points(work.points()) if work.equal else optuna.samplers.TPESampler(seed=work.seed),
        pruner=optuna.pruners.NopPruner() if work.equal else optuna.pruners.MedianPruner(),
    )
    began = time.time()
    with contextlib.suppress(Stop):
        study.optimize(objective, n_trials=work.trials if work.equal else None)
    return outcome(log, began, time.time(), target=work.target)
