"""The quickstart on every backend of Keras, and each registered model on the two others.

Two rounds of one process per backend: a sweep into a store of its own, then ``mlflow.pyfunc`` loads all three winners,
the one of this backend first, which decides what Keras runs on. All rows of the set are predicted.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.running import ROOT, SideFailed, call, folder
from benchmarks.tables import say, table

BACKENDS = ("tensorflow", "jax", "torch")
MODEL = "models:/quickstart@challenger"
NETWORKS = ('baselines.kinds=["constant"]',)  # a better one would be registered in the place of a network


def train(backend: str, stores: dict[str, str], overrides: list[str]) -> dict[str, Any]:
    """The sweep of the quickstart: its seconds, and the score of its winner on the test split."""
    from forge_sweep import Sweep
    from forge_sweep.sweep import ignore

    path = ROOT / "experiments" / "quickstart.toml"
    sweep = Sweep.from_toml(path, f"backend={backend}", *NETWORKS, *overrides, store=stores[backend])
    began = time.perf_counter()
    result = sweep.run(watch=ignore)
    seconds = time.perf_counter() - began
    if backend != "tensorflow" and "tensorflow" in sys.modules:
        raise SideFailed(f"a sweep on {backend} imported TensorFlow")
    return {"seconds": seconds, "test_auc": result.test["test_auc"]}


def predict(backend: str, stores: dict[str, str]) -> dict[str, Any]:
    """The probabilities of every row by each winner, by the backend that trained it."""
    import mlflow
    from sklearn.datasets import load_breast_cancer

    rows = load_breast_cancer(as_frame=True).frame.drop(columns="target")
    found: dict[str, Any] = {}
    for trained_on in sorted(stores, key=lambda name: name != backend):
        mlflow.set_tracking_uri(f"sqlite:///{stores[trained_on]}/mlflow.db")
        found[trained_on] = mlflow.pyfunc.load_model(MODEL).predict(rows)["probability"].tolist()
        if os.environ["KERAS_BACKEND"] != backend:
            raise SideFailed(f"the model of {backend} was loaded on {os.environ['KERAS_BACKEND']}")
    return found


def measure(overrides: list[str]) -> dict[str, Any]:
    """Train and predict; two processes at a time."""
    with folder() as place, ThreadPoolExecutor(2) as pool:
        stores = {backend: str(place / backend) for backend in BACKENDS}

        def each(function: str, **arguments: Any) -> dict[str, Any]:
            begun = {
                backend: pool.submit(call, f"backends:{function}", backend=backend, stores=stores, **arguments)
                for backend in BACKENDS
            }
            return {backend: future.result() for backend, future in begun.items()}

        return {"trained": each("train", overrides=overrides), "scores": each("predict")}


def differences(results: dict[str, Any]) -> dict[tuple[str, str], float]:
    """The largest difference of a probability to the backend that trained the model, by (trained on, predicted on)."""
    scores = results["scores"]
    return {
        (mine, other): max(abs(a - b) for a, b in zip(scores[mine][mine], scores[other][mine], strict=True))
        for mine in scores
        for other in scores
    }


def show(results: dict[str, Any]) -> None:
    """The table.

    Raises:
        SideFailed: a difference is beyond what a bundle is allowed.
    """
    from forge_sweep.bundle import BACKEND_TOLERANCE

    found = differences(results)
    say("### Largest difference of a probability on another backend than the model was trained on\n")
    rows = []
    for mine, about in results["trained"].items():
        off = [f"{found[mine, other]:.1e}" if other != mine else "-" for other in BACKENDS]
        rows.append([mine, *off, f"{about['test_auc']:.4f}", f"{about['seconds']:.0f}"])
    table(["trained on", *(f"predicted on {name}" for name in BACKENDS), "test_auc", "sweep, s"], rows)
    if not max(found.values()) <= BACKEND_TOLERANCE:
        raise SideFailed(f"a probability differs by {max(found.values()):.1g}; {BACKEND_TOLERANCE:g} are allowed")
