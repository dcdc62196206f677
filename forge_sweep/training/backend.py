"""Keras' backend: which one, its random state, its devices, and what it keeps between trials.

On JAX and PyTorch TensorFlow is never imported, though it is installed: it takes seconds, 500 MB and prints.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forge_sweep import environment
from forge_sweep.errors import InputError, MissingExtra, one_line
from forge_sweep.training import networks
from forge_sweep.workers import WorkerUnfit

BACKENDS = ("tensorflow", "jax", "torch")

JAX_LEVEL = "1"
"""What JAX sets ``TF_CPP_MIN_LOG_LEVEL`` to when it is imported, where nobody else did."""


def select_backend(name: str, deterministic: bool | None = None) -> None:
    """Choose Keras' backend, before Keras is imported: it reads the choice once.

    TensorFlow's own messages below errors are silenced (below fatal ones where there is no NVIDIA device, since it
    reports the missing CUDA as an error), unless ``TF_CPP_MIN_LOG_LEVEL`` says otherwise.

    Args:
        name: one of `BACKENDS`.
        deterministic: what the experiment says, where something is to be trained.

    Raises:
        InputError: see `check_backend`.
    """
    check_backend(name, deterministic)
    os.environ["KERAS_BACKEND"] = name
    level = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "")
    if name == "tensorflow" and (not level or (level == JAX_LEVEL and "jax" in sys.modules)):
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = level = "2" if _has_nvidia_device() else "3"
    if name == "tensorflow" and level in ("2", "3"):  # a worker has it from the process that started it
        # It warns of retracing where one short-lived model follows another, as in every sweep. A filter, since it sets
        # a level of its own when it is imported in a notebook.
        logging.getLogger("tensorflow").addFilter(lambda record: record.levelno >= logging.ERROR)


def check_backend(name: str, deterministic: bool | None = None) -> None:
    """Refuse a backend that cannot be chosen here; nothing is imported, nothing is set.

    Raises:
        InputError: the name is unknown, its package is not installed, ``KERAS_BACKEND`` names another one, or Keras
            runs on another one already; or a variable asks for other numbers than the experiment does.
    """
    environment.unset_empty_variables()
    _refuse_variables(deterministic)
    if name not in BACKENDS:
        raise InputError(f'backend = "{name}" is unknown', hint=f"use one of {', '.join(BACKENDS)}")
    asked = os.environ.get("KERAS_BACKEND") or name
    if asked != name:
        raise InputError(
            f'the experiment has backend = "{name}", but the environment has KERAS_BACKEND={asked}',
            hint=f'unset KERAS_BACKEND, or set backend = "{asked}"',
        )
    keras = sys.modules.get("keras")
    running = keras.config.backend() if keras is not None else name
    if running != name:
        raise InputError(
            f'the experiment has backend = "{name}", but Keras already runs on {running} in this process',
            hint=f"start a new process, or set KERAS_BACKEND={name} before Keras is imported",
        )
    if importlib.util.find_spec(name) is None:
        if name == "tensorflow":  # comes with this package
            raise InputError('backend = "tensorflow" is not installed', hint="pip install tensorflow")
        raise MissingExtra(f'backend = "{name}"', name)


def _has_nvidia_device() -> bool:
    """Tell whether a device node is there: a container without one still shows its host's driver in ``/proc``."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()  # the latter under Windows (WSL)


def running_backend() -> str | None:
    """The backend that Keras runs on, or that ``KERAS_BACKEND`` asks for; None where nothing is decided yet."""
    keras = sys.modules.get("keras")
    running: str | None = os.environ.get("KERAS_BACKEND") or None if keras is None else keras.config.backend()
    return running


def _refuse_variables(deterministic: bool | None) -> None:
    """Raise InputError for a variable with which other numbers would come out than the experiment says."""
    for name in environment.KERAS_LIMITS:
        if name in os.environ:
            text = f"the environment has {name}={os.environ[name]}, which cuts trainings short"
            raise InputError(text, hint=f"unset {name}; set study.epochs for short trials")
    asked = os.environ.get("TF_DETERMINISTIC_OPS", "0")
    if asked.lower() not in ("0", "1", "false", "true"):
        raise InputError(
            f"the environment has TF_DETERMINISTIC_OPS={asked}, over which TensorFlow ends the process",
            hint="unset it; deterministic = true in the experiment does the same",
        )
    if deterministic is False and asked.lower() in ("1", "true"):
        raise InputError(
            f"the experiment has deterministic = false, but the environment has TF_DETERMINISTIC_OPS={asked}",
            hint="unset TF_DETERMINISTIC_OPS, or set deterministic = true",
        )


def load_backend() -> None:
    """Import Keras on the selected backend, without what TensorFlow prints before its log level counts.

    Numbers in the user's ``keras.json`` are not followed; see `environment.KERAS_SETTINGS`.

    Raises:
        InputError: Keras cannot start with that file.
    """
    if "keras" not in sys.modules:
        try:
            with _held_stderr():
                importlib.import_module("keras")
        except (ValueError, AttributeError, TypeError) as error:  # of its settings
            sys.modules.pop("keras", None)
            raise InputError(
                f"Keras cannot start with {environment.keras_file()}: {error}", hint="fix that file, or remove it"
            ) from error
    import keras

    if keras.config.backend() != "tensorflow" and "tensorflow" not in sys.modules:
        # Keras asks once whether TensorFlow is there, which imports it, before it seeds or saves anything on any
        # backend. Asked here, where the import fails, it goes on without. The user's own code may import it later.
        with _uninstalled("tensorflow"):
            keras.saving.serialize_keras_object(np.zeros(1))
    fixed = environment.KERAS_SETTINGS
    if keras.config.floatx() != fixed["floatx"]:
        keras.config.set_floatx(fixed["floatx"])
        keras.config.set_dtype_policy(fixed["floatx"])  # it may have been derived from the other one
    keras.config.set_epsilon(fixed["epsilon"])
    keras.config.set_image_data_format(fixed["image_data_format"])


@contextlib.contextmanager
def _uninstalled(name: str) -> Iterator[None]:
    """Let imports of a module fail within the block."""
    sys.modules[name] = None  # type: ignore[assignment]  # which says so, by the rules of the import system
    try:
        yield
    finally:
        del sys.modules[name]


@contextlib.contextmanager
def _held_stderr() -> Iterator[None]:
    """Hold what C++ writes to file descriptor 2, out of reach of ``sys.stderr``; show it only if the block raises."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and the backend: initial weights, shuffling and dropout follow from it.

    Args:
        seed: 0 to 2**32 - 1.
    """
    import keras

    keras.utils.set_random_seed(seed)


def fix_operations(deterministic: bool) -> None:
    """Let the process use deterministic operations only, or make sure that it may use all.

    Other numbers come out of TensorFlow's deterministic operations, on a CPU too, since random numbers are drawn in
    another way: it keeps to them for good. See ``tf.config.experimental.enable_op_determinism``. PyTorch's are switched
    on and off. JAX's follow from ``XLA_FLAGS`` on a GPU; on a CPU it has no others.

    Raises:
        InputError: the process was fixed for another experiment, or was not started as JAX wants it.
    """
    load_backend()
    import keras

    match keras.config.backend():
        case "tensorflow":
            _fix_tensorflow(deterministic)
        case "torch":
            import torch

            if deterministic:  # without it cuBLAS refuses
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(deterministic)
        case "jax" if deterministic and accelerators() and XLA_DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
            raise InputError(
                'deterministic = true with backend = "jax" on a GPU: XLA reads that when the process starts',
                hint=f"export XLA_FLAGS={XLA_DETERMINISTIC}",
            )


XLA_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def _fix_tensorflow(deterministic: bool) -> None:
    from tensorflow.python.framework import config  # the question is in no public module

    if deterministic:
        config.enable_op_determinism()
    elif config.is_op_determinism_enabled():
        raise InputError(
            "deterministic = false, but an earlier experiment made this process deterministic: numbers would differ",
            hint="start a new process",
        )


def accelerators() -> tuple[str, ...]:
    """The GPUs or TPUs that the backend computes on, such as ``gpu:0``; empty on a CPU."""
    import keras

    if keras.config.backend() == "torch":  # Keras lists none there
        import torch

        kind = keras.ops.zeros(()).device.type  # KERAS_TORCH_DEVICE has a say
        return () if kind == "cpu" else tuple(f"{kind}:{n}" for n in range(torch.accelerator.device_count()))
    return tuple(device for device in keras.distribution.list_devices() if not device.startswith("cpu"))


def precision_of(asked: str) -> tuple[str, str]:
    """The dtype policy that ``precision`` stands for here, and why where it was ``auto`` ("" otherwise).

    The least of several GPUs decides, by the compute capability of NVIDIA's: their tensor cores know float16 from 7.0
    on and bfloat16 from 8.0.
    """
    if asked != "auto":
        return asked, ""
    import keras

    found: list[tuple[int, int]] = []
    if accelerators():
        match keras.config.backend():
            case "tensorflow":
                import tensorflow as tf

                details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
                found = [each.get("compute_capability", (0, 0)) for each in details]
            case "torch":
                import torch

                found = [torch.cuda.get_device_capability(n) for n in range(torch.cuda.device_count())]
            case "jax":
                import jax

                texts = [str(getattr(device, "compute_capability", "0.0")) for device in jax.devices()]
                found = [(int(major), int(minor)) for major, _, minor in (text.partition(".") for text in texts)]
    least = min(found, default=(0, 0))
    policy = "mixed_bfloat16" if least >= (8, 0) else "mixed_float16" if least >= (7, 0) else "float32"
    seen = f"a GPU of compute capability {least[0]}.{least[1]}" if any(least) else "no GPU of NVIDIA's"
    return policy, f"precision auto: {policy}, {seen}"


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Let layers that are made within the block compute as this policy says, such as ``mixed_bfloat16``."""
    import keras

    kept = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(kept)


def settle() -> None:
    """Exempt what is loaded by now from garbage collection. Call it once, before the first trial.

    TensorFlow, MLflow and scikit-learn bring more than a million objects: each `release` takes 0.5 s less after this.
    """
    gc.collect()
    gc.freeze()


def release() -> None:
    """Give back what a finished trial leaves behind. Call it between trials, when no model is in use.

    TensorFlow's gradient registry keeps the graph of every custom gradient for ever (tensorflow#97697), 6 MB per trial;
    neither ``clear_session`` nor the garbage collector reaches it.
    """
    if "keras" not in sys.modules:
        return
    import keras

    keras.utils.clear_session(free_memory=False)  # one collection is enough, below
    networks.release_networks()
    if "tensorflow" in sys.modules:
        from tensorflow.python.framework import ops

        registry = ops.gradient_registry  # has no public way to remove an entry
        for table in (getattr(registry, slot) for slot in type(registry).__slots__):
            for name in [name for name in table if name.startswith("CustomGradient-")]:
                del table[name]
    gc.collect()


@dataclass(frozen=True)
class Setup:
    """Makes a new process ready to train: imports the backend and settles its threads, before its first operation.

    0 threads leave their number to the backend. PyTorch takes it from the variables of `as_variables`.
    """

    backend: str
    threads: int

    def __call__(self) -> None:
        """Prepare this process.

        Raises:
            WorkerUnfit: it was given a GPU, and the backend sees none (any more): it would compute on the CPU.
        """
        warnings.showwarning = _say_once
        if self.backend == "jax" and self.threads:
            os.environ.setdefault("PJRT_NPROC", str(self.threads))  # XLA's only word for it on a CPU
        select_backend(self.backend)
        load_backend()
        if self.backend == "tensorflow":
            import tensorflow as tf

            tf.config.threading.set_intra_op_parallelism_threads(self.threads)
            tf.config.threading.set_inter_op_parallelism_threads(self.threads)
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        if given not in ("", "-1") and not accelerators():
            raise WorkerUnfit(f"it was given GPU {given}, and the backend sees none")
        settle()


def _say_once(message: Warning | str, *where: Any, **more: Any) -> None:
    """A library's warning in a worker process, on standard error, without its place in the library's code."""
    text = one_line(message)
    if text not in _said:
        _said.add(text)
        sys.stderr.write(f"warning: {text}\n")


_said: set[str] = set()


def as_variables(threads: int) -> Mapping[str, str]:
    """Thread counts of the libraries that read them when they are imported."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return dict.fromkeys(names, str(threads))
