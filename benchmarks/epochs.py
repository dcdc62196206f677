"""Seconds per epoch of the compiled epoch against `model.fit`, on TensorFlow and JAX, the validation left out."""

from __future__ import annotations

import itertools
import time
from typing import Any

from benchmarks.running import call
from benchmarks.tables import say, table

BACKENDS = ("tensorflow", "jax")
SIZES = {
    "400 x 30, batches of 32": (400, 30, 32),
    "7,000 x 40, batches of 128": (7_000, 40, 128),
    "100,000 x 10, batches of 256": (100_000, 10, 256),
}
PARAMS = {"width": 128, "depth": 2, "dropout": 0.2, "learning_rate": 1e-3}
SEED = 0


def now() -> tuple[float, float]:
    """On the clock, and of the processor."""
    return time.perf_counter(), time.process_time()


def run(backend: str, rows: int, columns: int, batch_size: int, epochs: int) -> dict[str, list[list[float]]]:
    """Seconds of each epoch of one network, on the clock and of the processor; the first has compiling in it."""
    import importlib

    import pandas as pd
    from sklearn.datasets import make_classification

    from forge_sweep import models, training
    from forge_sweep.preprocessing import one_matrix
    from forge_sweep.task import Task

    training.select_backend(backend)
    training.load_backend()
    import keras

    from forge_sweep.training.loop import compiled_epochs

    kind = importlib.import_module(f"forge_sweep.training.epoch{'_jax' if backend == 'jax' else ''}").CompiledEpoch
    x, y = make_classification(rows, columns, n_informative=columns // 2, random_state=SEED)
    x, targets = x.astype("float32"), pd.DataFrame({"y": y})
    task = Task.learn("binary", targets)
    y = task.encode(targets)
    data = training.TrainingData(x, y, x[:1], y[:1])
    found: dict[str, list[list[float]]] = {}
    for side in ("model.fit", "compiled epoch"):
        times = [now()]
        clock = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs, times=times: times.append(now()))
        training.seed_everything(SEED)
        model = models.build("mlp", one_matrix(columns), task, PARAMS)
        if side == "model.fit":
            model.fit(x, y, batch_size=batch_size, epochs=epochs, callbacks=[clock], verbose=0)
        else:
            compiled_epochs(kind, model, data, batch_size, SEED).fit(range(epochs), [clock])
        found[side] = [[b - a for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(times)]
    return found


def measure(epochs: int) -> dict[str, Any]:
    """A process for each backend and size, one after the other."""
    return {
        size: {
            backend: call("epochs:run", backend=backend, rows=rows, columns=columns, batch_size=batch, epochs=epochs)
            for backend in BACKENDS
        }
        for size, (rows, columns, batch) in SIZES.items()
    }


def show(results: dict[str, Any]) -> None:
    """The table: the quickest epoch, which others on the machine disturbed least, and the first."""
    say("### Seconds per epoch: width 128, depth 2, validation left out\n")
    rows = []
    for size, by_backend in results.items():
        for backend, sides in by_backend.items():
            clock, cpu = ([min(each[kind] for each in seconds[1:]) for seconds in sides.values()] for kind in (0, 1))
            firsts = [f"{seconds[0][1]:.1f}" for seconds in sides.values()]
            figures = [
                figure for fit, ours in (clock, cpu) for figure in (f"{fit:.4f}", f"{ours:.4f}", f"{fit / ours:.1f}")
            ]
            rows.append([size, backend, *figures, *firsts])
    columns = ("model.fit", "compiled", "ratio", "CPU, model.fit", "CPU, compiled", "ratio")
    header = ["", "backend", *columns, "first epoch, CPU, model.fit", "compiled"]
    table(header, rows)
