"""Keras' backend: which one, its random state, its devices, and what it keeps between trials."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from forge_sweep import environment
from forge_sweep.errors import InputError

if TYPE_CHECKING:
    import keras

BACKENDS = ("tensorflow", "jax", "torch")


def select_backend(name: str, deterministic: bool | None = None) -> None:
    """Choose Keras' backend. Keras reads the choice once, when it is imported, so this comes before that.

    Variables that would cut trainings short, or bring a backend to its end, are refused here; an empty one is an unset
    one.

    TensorFlow's own messages below errors are silenced (below fatal ones where there is no NVIDIA driver, since it
    reports the missing CUDA as an error), unless ``TF_CPP_MIN_LOG_LEVEL`` says otherwise.

    Args:
        name: ``tensorflow``, ``jax`` or ``torch``.
        deterministic: what the experiment says, where something is to be trained.

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
    _refuse_other_running(name)
    if importlib.util.find_spec(name) is None:
        raise InputError(f'backend = "{name}" is not installed', hint=f"pip install {name}")
    os.environ["KERAS_BACKEND"] = name
    if not os.environ.get("TF_CPP_MIN_LOG_LEVEL"):
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2" if Path("/proc/driver/nvidia").exists() else "3"
        # It warns of retracing where one short-lived model follows another, as in every sweep.
        logging.getLogger("tensorflow").setLevel(logging.ERROR)


def load_backend() -> None:
    """Import Keras on the selected backend, without what TensorFlow prints before its log level counts.

    Those lines are written by C++ to file descriptor 2, where Python's ``sys.stderr`` cannot hold them back. They are
    shown when the import fails. What the user's ``keras.json`` says of numbers is not followed; see `KERAS_SETTINGS`.

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
                f"Keras cannot start with {environment.keras_file()}: {error}", hint="mend that file, or remove it"
            ) from error
    _fix_settings()


def _fix_settings() -> None:
    """Let Keras compute with `KERAS_SETTINGS`."""
    import keras

    fixed = environment.KERAS_SETTINGS
    if keras.config.floatx() != fixed["floatx"]:
        keras.config.set_floatx(fixed["floatx"])
        keras.config.set_dtype_policy(fixed["floatx"])  # it may have been made of the other one by now
    keras.config.set_epsilon(fixed["epsilon"])
    keras.config.set_image_data_format(fixed["image_data_format"])


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


@contextlib.contextmanager
def _held_stderr() -> Iterator[None]:
    """Hold what the process writes to its standard error; let go of it only if the block raises."""
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


def _refuse_other_running(name: str) -> None:
    """Raise InputError where Keras is imported already with another backend."""
    keras = sys.modules.get("keras")
    running = keras.config.backend() if keras is not None else name
    if running != name:
        raise InputError(
            f'the experiment has backend = "{name}", but Keras already runs on {running} in this process',
            hint=f"start a new process, or set KERAS_BACKEND={name} before Keras is imported",
        )


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and the backend: initial weights, shuffling and dropout follow from it.

    Args:
        seed: 0 to 2**32 - 1.
    """
    import keras

    keras.utils.set_random_seed(seed)


def fix_operations(deterministic: bool) -> None:
    """Let the process use deterministic operations only, or make sure that it may use all.

    On a CPU, the networks of this package give the same weights again either way; with it, other numbers come out,
    since random numbers are drawn in another way, so that it belongs to an experiment. See
    ``tf.config.experimental.enable_op_determinism``.

    Args:
        deterministic: what the experiment says; it cannot be taken back in a process.

    Raises:
        InputError: the backend is another one than TensorFlow, or the process was fixed for another experiment.
    """
    load_backend()
    import keras

    backend = keras.config.backend()
    if backend != "tensorflow":
        if deterministic:
            hint = 'set deterministic = false, or backend = "tensorflow"'
            raise InputError(f'deterministic = true is not there for backend = "{backend}"', hint=hint)
        return
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

    return tuple(device for device in keras.distribution.list_devices() if not device.startswith("cpu"))


def limit_threads(count: int) -> None:
    """Let one operation, and independent operations, use this many threads. Call it before the first operation.

    Other backends than TensorFlow go by the environment variables that are set when they are imported, such as
    ``OMP_NUM_THREADS``.

    Raises:
        RuntimeError: TensorFlow computes already.
    """
    if "tensorflow" in sys.modules:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(count)
        tf.config.threading.set_inter_op_parallelism_threads(count)


def settle() -> None:
    """Take what is loaded by now out of the garbage collector's sight. Call it once, before the first trial.

    A collection walks every live object, and TensorFlow, MLflow and scikit-learn bring more than a million of them:
    each `release` takes 0.5 s less after this.
    """
    gc.collect()
    gc.freeze()


def reuse(model: keras.Model) -> keras.Model:
    """The network to train in the place of a new one: one that was traced before, in the new one's state, or itself.

    It belongs to the caller until `release`. On other backends than TensorFlow it is always the new one.

    Args:
        model: a compiled network that was not trained yet.
    """
    import keras

    if keras.config.backend() != "tensorflow":
        return model
    from forge_sweep.training import networks

    return networks.take(model)


def forget() -> None:
    """Drop what is kept for the next trial, as when memory ran out."""
    if "keras" in sys.modules and sys.modules["keras"].config.backend() == "tensorflow":
        from forge_sweep.training import networks

        networks.forget()


def release() -> None:
    """Give back what a finished trial leaves behind. Call it between trials, when no model is in use.

    The next trial may take a network of these again, with other weights; see `reuse`.

    TensorFlow's gradient registry keeps the graph of every custom gradient for ever (tensorflow#97697), 6 MB per trial;
    neither ``clear_session`` nor the garbage collector reaches it.
    """
    if "keras" not in sys.modules:
        return
    import keras

    keras.utils.clear_session(free_memory=False)  # one collection is enough, below
    if keras.config.backend() == "tensorflow":
        from forge_sweep.training import networks

        networks.release_networks()
    if "tensorflow" in sys.modules:
        from tensorflow.python.framework import ops

        registry = ops.gradient_registry._registry
        for name in [name for name in registry if name.startswith("CustomGradient-")]:
            del registry[name]
    gc.collect()
