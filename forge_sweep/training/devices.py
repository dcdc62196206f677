"""What a backend computes on, what it was built for, and how fast it multiplies: asked in a process of its own."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from forge_sweep.errors import ForgeSweepError, InputError, masked, one_line
from forge_sweep.training.backend import accelerators, load_backend, select_backend

PRECISIONS = ("float32", "bfloat16", "float16")
SIZES = {"cpu": 512, "gpu": 8192}
"""Rows of the square matrices that are multiplied: 0.3 and 1,100 GFLOP, far more than it takes to begin."""

ATTEMPTS, LONG_S = 50, 0.5
START_S = 300.0


@dataclass(frozen=True)
class Device:
    """One device of a backend.

    Attributes:
        name: as Keras has it, such as ``gpu:0``.
        model: what its maker calls it, "" for a CPU.
        gflops: billions of operations a second by precision, of the best of 6 to 50 matrix products (2 n**3
            operations, n of `SIZES`); what went wrong, in words, where there is none.
    """

    name: str
    model: str
    gflops: dict[str, float | str]


@dataclass(frozen=True)
class Backend:
    """What a backend said of itself.

    Attributes:
        versions: of the backend and of Keras.
        cuda: version that it was built for; "" for a build without CUDA, or where it does not say.
        cudnn: the same; TensorFlow says the major version alone.
        cudnn_loaded: the version that it runs with, or that is installed beside it; "" where neither is known.
        preallocates: whether it takes (nearly) all memory of a GPU when it starts.
    """

    name: str
    versions: dict[str, str]
    devices: tuple[Device, ...]
    cuda: str
    cudnn: str
    cudnn_loaded: str
    preallocates: bool


def ask(name: str, environ: Mapping[str, str]) -> Backend:
    """Start a backend in a process of its own, which takes seconds, and let it compute.

    Args:
        name: of the backend.
        environ: the variables of that process.

    Raises:
        ForgeSweepError: it cannot start, with the last that it said.
    """
    command = [sys.executable, "-m", __name__, name]
    try:
        done = subprocess.run(command, env=dict(environ), capture_output=True, text=True, timeout=START_S, check=False)
    except subprocess.TimeoutExpired:
        hint = f"start it by hand and see where it stays: python -m {__name__} {name}"
        raise ForgeSweepError(f"{name} cannot start: no answer in {START_S:g} s", hint=hint) from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    answer = json.loads(lines[-1]) if lines else {}
    if "error" in answer:
        raise InputError(answer["error"], hint=answer["hint"])
    if done.returncode or not answer:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        last = masked(said[-1])[:300] if said else f"exit code {done.returncode} without a word"
        raise ForgeSweepError(
            f"{name} cannot start: {last}", hint=f"install it again: pip install --force-reinstall {name}"
        )
    return Backend(**{**answer, "devices": tuple(Device(**each) for each in answer["devices"])})


def look(name: str) -> Backend:
    """Start a backend in this process and let it compute on each device in each precision."""
    select_backend(name)
    load_backend()
    import keras

    found = accelerators()
    cuda = cudnn = loaded = ""
    models, preallocates = list[str](), False
    match name:
        case "tensorflow":
            import tensorflow as tf

            build = tf.sysconfig.get_build_info()
            cuda, cudnn = (str(build.get(key) or "") for key in ("cuda_version", "cudnn_version"))
            gpus = tf.config.list_physical_devices("GPU")
            models = [tf.config.experimental.get_device_details(each).get("device_name", "") for each in gpus]
            preallocates = any(not tf.config.experimental.get_memory_growth(each) for each in gpus)
        case "torch":
            import torch

            cuda = torch.version.cuda or ""
            # 92000 for 9.20.0, as cuDNN counts from 9 on
            version = torch.backends.cudnn.version() or 0  # type: ignore[no-untyped-call,unused-ignore]
            loaded = f"{version // 10_000}.{version // 100 % 100}.{version % 100}" if version else ""
            models = [torch.cuda.get_device_name(n) for n in range(len(found)) if found[n].startswith("cuda")]
        case "jax":
            import jax

            words = re.search(r"cuda (\d+)", str(getattr(jax.devices()[0].client, "platform_version", "")))
            if words:  # 12090 for 12.9
                cuda = f"{int(words[1]) // 1000}.{int(words[1]) % 1000 // 10}"
            models = [str(device.device_kind) for device in jax.devices()] if found else []
            share = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "true").lower()
            preallocates = bool(found) and share not in ("false", "0")
    beside = f"nvidia-cudnn-cu{cuda.partition('.')[0]}"
    if not loaded and any(importlib.metadata.distributions(name=beside)):
        loaded = importlib.metadata.version(beside)
    timed = list(itertools.zip_longest(found or ("cpu:0",), models, fillvalue=""))
    devices = tuple(Device(each, model, {dtype: _gflops(each, dtype) for dtype in PRECISIONS}) for each, model in timed)
    versions = {name: importlib.metadata.version(name), "keras": keras.__version__}
    return Backend(name, versions, devices, cuda, cudnn, loaded, preallocates)


def _gflops(device: str, dtype: str) -> float | str:
    import keras

    size = SIZES["cpu" if device.startswith("cpu") else "gpu"]
    best = float("inf")
    try:
        with keras.device(device):
            one = keras.ops.cast(keras.random.normal((size, size), seed=7), dtype)
            last = time.perf_counter() + LONG_S
            for attempt in range(ATTEMPTS):  # several, since the first chooses its kernel, and others compute here too
                began = time.perf_counter()
                if attempt > 5 and began > last:
                    break
                float(keras.ops.cast(keras.ops.matmul(one, one)[0, 0], "float32"))  # waits for the product
                best = min(best, time.perf_counter() - began)
    except Exception as error:  # a device that is full, or does not know the precision, is something to say
        return one_line(f"{type(error).__name__}: {error}")[:200]
    return 2 * size**3 / best / 1e9


if __name__ == "__main__":
    try:
        answer = asdict(look(sys.argv[1]))
    except ForgeSweepError as error:
        answer = {"error": error.message, "hint": error.hint}
    print(json.dumps(answer))
