"""Trials per hour against the loop that a user would write: Optuna, `model.fit`, MLflow called after each epoch.

    python benchmarks/trials.py            # both sides, prints ratios

Both sides search the same space on the same rows with the same number of trials and epochs, without pruning and early
stopping, on SQLite stores, each in a process of its own. Imports are not counted. The other peers (KerasTuner, Ray
Tune) come with the fast engine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TRIALS = 8
EPOCHS = 15
BATCH_SIZE = 32


def ours(store: Path) -> dict[str, float]:
    """Our sweep from its first trial to its last."""
    from forge_sweep import sweep
    from forge_sweep.experiment import parse

    raw: dict[str, Any] = {
        "name": "bench",
        "data": {"source": "sample", "name": "breast_cancer", "target": "target", "task": "binary"},
        "model": {
            "search": {
                "width": {"type": "int", "low": 16, "high": 128, "log": True},
                "depth": {"type": "int", "low": 1, "high": 3},
                "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
                "batch_size": BATCH_SIZE,
            }
        },
        "objective": {"metric": "val_auc"},
        "study": {"n_trials": TRIALS, "epochs": EPOCHS, "patience": EPOCHS, "pruner": "none"},
        "baselines": {"kinds": []},
        "confirm": {"top": 1, "seeds": 1},
    }
    times: list[float] = []
    training: list[float] = []

    def watch(event: sweep.Event) -> None:
        if event.kind == "phase" and event.data["name"] in ("trials", "confirm"):
            times.append(time.perf_counter())
        if event.kind == "trial_done":
            training.append(event.data["seconds"])

    sweep.run(parse(raw, root=Path()), store=store, watch=watch)
    total = times[1] - times[0]
    return {"seconds": total, "overhead_s": (total - sum(training)) / TRIALS}


def plain(store: Path) -> dict[str, float]:
    """The hand-written loop, with Keras' streaming AUC and one MLflow call per epoch."""
    import keras
    import mlflow
    import optuna
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    features, target = load_breast_cancer(return_X_y=True)
    x_train, x_rest, y_train, y_rest = train_test_split(
        features, target, test_size=0.3, stratify=target, random_state=0
    )
    x_valid, _, y_valid, _ = train_test_split(x_rest, y_rest, test_size=0.5, random_state=0)
    scaler = StandardScaler().fit(x_train)
    x_train, x_valid = scaler.transform(x_train), scaler.transform(x_valid)
    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    mlflow.set_experiment("bench")

    def objective(trial: optuna.Trial) -> float:
        width, depth = trial.suggest_int("width", 16, 128, log=True), trial.suggest_int("depth", 1, 3)
        rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
        keras.utils.clear_session()
        keras.utils.set_random_seed(trial.number)
        layers = [keras.Input((x_train.shape[1],))]
        for _ in range(depth):
            layers += [keras.layers.Dense(width, kernel_initializer="he_normal", use_bias=False)]
            layers += [keras.layers.BatchNormalization(), keras.layers.Activation("relu")]
        model = keras.Sequential([*layers, keras.layers.Dense(1, activation="sigmoid")])
        model.compile(keras.optimizers.Adam(rate), "binary_crossentropy", metrics=[keras.metrics.AUC(name="auc")])
        with mlflow.start_run(run_name=f"trial-{trial.number}"):
            mlflow.log_params(trial.params)
            log = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: mlflow.log_metrics(logs, step=epoch))
            fitted = model.fit(
                x_train,
                y_train,
                validation_data=(x_valid, y_valid),
                batch_size=BATCH_SIZE,
                epochs=EPOCHS,
                callbacks=[log],
                verbose=0,
            )
        return float(max(fitted.history["val_auc"]))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=f"sqlite:///{store}/optuna.db", direction="maximize")
    began = time.perf_counter()
    study.optimize(objective, n_trials=TRIALS)
    return {"seconds": time.perf_counter() - began}


SIDES = {"ours": ours, "plain": plain}


def main() -> None:
    """Run one side (named by the first argument), or both and compare."""
    if len(sys.argv) > 1:
        with tempfile.TemporaryDirectory() as store:
            sys.stdout.write(json.dumps(SIDES[sys.argv[1]](Path(store))) + "\n")
        return
    found = {}
    for side in SIDES:
        command = [sys.executable, __file__, side]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        found[side] = json.loads(done.stdout.splitlines()[-1])
        rate = TRIALS / found[side]["seconds"] * 3600
        sys.stdout.write(
            f"{side:<6} {found[side]['seconds']:6.1f} s for {TRIALS} trials, {rate:6.0f} trials per hour\n"
        )
    ratio = found["plain"]["seconds"] / found["ours"]["seconds"]
    sys.stdout.write(f"ours / plain, trials per hour: {ratio:.2f}\n")
    sys.stdout.write(f"study and tracking per trial: {found['ours']['overhead_s']:.3f} s\n")


if __name__ == "__main__":
    main()
