"""Trials per hour against the loop that a user would write: Optuna, `model.fit`, MLflow called after each epoch.

    python benchmarks/trials.py                     # breast cancer: both sides, prints ratios
    python benchmarks/trials.py --data synthetic    # 10,000 x 40, width 128, depth 2, batches of 256

Both sides search the same space on the same rows with the same number of trials and epochs, without pruning and early
stopping, on SQLite stores, each in a process of its own. Imports are not counted. The other peers (KerasTuner, Ray
Tune) come with the fast engine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRIALS = 8


@dataclass(frozen=True)
class Problem:
    """What both sides train on and search; two equal ends fix a hyperparameter."""

    epochs: int
    batch_size: int
    width: tuple[int, int]
    depth: tuple[int, int]


PROBLEMS = {
    "breast_cancer": Problem(epochs=15, batch_size=32, width=(16, 128), depth=(1, 3)),
    "synthetic": Problem(epochs=20, batch_size=256, width=(128, 128), depth=(2, 2)),
}


def rows(name: str) -> tuple[Any, Any]:
    """Features and target as arrays."""
    from sklearn import datasets

    if name == "breast_cancer":
        return datasets.load_breast_cancer(return_X_y=True)
    return datasets.make_classification(10_000, 40, n_informative=15, flip_y=0.05, random_state=0)


def declared(name: str, store: Path) -> dict[str, Any]:
    """The same rows as a ``[data]`` section."""
    if name == "breast_cancer":
        return {"source": "sample", "name": name, "target": "target", "task": "binary"}
    import pandas as pd

    features, target = rows(name)
    table = pd.DataFrame(features, columns=[f"x{i}" for i in range(features.shape[1])])
    table.assign(target=target).to_parquet(store / "rows.parquet")
    return {"source": "file", "path": str(store / "rows.parquet"), "target": "target", "task": "binary"}


def ours(name: str, store: Path) -> dict[str, float]:
    """Our sweep from its first trial to its last."""
    from forge_sweep import sweep
    from forge_sweep.experiment import parse

    problem = PROBLEMS[name]
    (least, most), (shallow, deep) = problem.width, problem.depth
    raw: dict[str, Any] = {
        "name": "bench",
        "data": declared(name, store),
        "model": {
            "search": {
                "width": {"type": "int", "low": least, "high": most, "log": True} if least < most else most,
                "depth": {"type": "int", "low": shallow, "high": deep} if shallow < deep else deep,
                "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
                "batch_size": problem.batch_size,
            }
        },
        "objective": {"metric": "val_auc"},
        "study": {"n_trials": TRIALS, "epochs": problem.epochs, "patience": problem.epochs, "pruner": "none"},
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


def plain(name: str, store: Path) -> dict[str, float]:
    """The hand-written loop, with Keras' streaming AUC and one MLflow call per epoch."""
    import keras
    import mlflow
    import optuna
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    problem = PROBLEMS[name]
    features, target = rows(name)
    x_train, x_rest, y_train, y_rest = train_test_split(
        features, target, test_size=0.3, stratify=target, random_state=0
    )
    x_valid, _, y_valid, _ = train_test_split(x_rest, y_rest, test_size=0.5, random_state=0)
    scaler = StandardScaler().fit(x_train)
    x_train, x_valid = scaler.transform(x_train), scaler.transform(x_valid)
    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    mlflow.set_experiment("bench")

    def objective(trial: optuna.Trial) -> float:
        width, depth = trial.suggest_int("width", *problem.width, log=True), trial.suggest_int("depth", *problem.depth)
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
                batch_size=problem.batch_size,
                epochs=problem.epochs,
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
    """Run both sides and compare, or the one that is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", nargs="?", choices=SIDES)
    parser.add_argument("--data", choices=PROBLEMS, default="breast_cancer")
    asked = parser.parse_args()
    if asked.side:
        with tempfile.TemporaryDirectory() as store:
            sys.stdout.write(json.dumps(SIDES[asked.side](asked.data, Path(store))) + "\n")
        return
    found = {}
    for side in SIDES:
        command = [sys.executable, __file__, side, "--data", asked.data]
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
