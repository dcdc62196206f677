"""The limit: the bare matrix products of equal work in NumPy, float32, forward and backward, and nothing else.

No loss, activation, normalisation, optimizer, shuffling or score. One thread; the seconds are divided by the cores, as
if the trials were spread over them without any loss.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

from benchmarks.problems import Work

EPOCHS = 3
"""Measured per configuration; the fastest counts, times the epochs of a trial."""


def run(**arguments: Any) -> dict[str, Any]:
    """Seconds of all trials on all cores; call it with one thread per process."""
    work = Work(**arguments)
    arrays = work.arrays()
    per_epoch = [epoch_s(arrays["x_train"], arrays["x_valid"], point) for point in work.points()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    seconds = sum(per_epoch) * work.spec.epochs / cores
    return {"seconds": seconds, "start_s": 0.0, "scoring_s": 0.0, "best": {}, "cores": cores}


def epoch_s(x: Any, x_valid: Any, point: dict[str, Any]) -> float:
    """Seconds of the products of one epoch, its validation included."""
    import numpy as np

    rng = np.random.default_rng(0)
    sizes = [x.shape[1], *[point["width"]] * point["depth"], 1]
    kernels = [rng.normal(size=pair).astype(np.float32) for pair in itertools.pairwise(sizes)]
    seconds = []
    for _ in range(EPOCHS):
        began = time.perf_counter()
        for first in range(0, len(x), point["batch_size"]):
            backward(forward(x[first : first + point["batch_size"]], kernels), kernels)
        forward(x_valid, kernels)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def forward(x: Any, kernels: list[Any]) -> list[Any]:
    """The inputs of each layer and the output."""
    values = [x]
    for kernel in kernels:
        values.append(values[-1] @ kernel)
    return values


def backward(values: list[Any], kernels: list[Any]) -> None:
    """The gradients of the kernels, and those of the inputs of all layers but the first."""
    gradient = values[-1]
    for layer in range(len(kernels) - 1, -1, -1):
        values[layer].T @ gradient
        if layer:
            gradient = gradient @ kernels[layer].T
