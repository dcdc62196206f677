"""Writing each format, and running what was written by the runtime it is for."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.bundle.exports import onnx
from forge_sweep.bundle.exports.graph import SCORES
from forge_sweep.errors import InputError, MissingExtra

if TYPE_CHECKING:
    import keras

Feed = Mapping[str, np.ndarray]

PACKAGES = {"onnx": ("tf2onnx", "onnx", "onnxruntime")}


def require(kind: str) -> None:
    """Refuse a format whose packages are not there, or that needs another backend.

    Raises:
        MissingExtra: install the extra ``export``.
        InputError: Keras runs on another backend than TensorFlow, by which all formats are written.
    """
    import keras

    if keras.config.backend() != "tensorflow":
        hint = "start a new process with KERAS_BACKEND=tensorflow; a network of any backend can be exported there"
        raise InputError(f"exports are made by TensorFlow, and Keras runs on {keras.config.backend()}", hint=hint)
    if any(importlib.util.find_spec(name) is None for name in PACKAGES.get(kind, ())):
        raise MissingExtra(f"the format {kind}", "export")


def _write_keras(model: keras.Model, path: Path) -> None:
    model.save(path)


def _write_saved_model(model: keras.Model, path: Path) -> None:
    model.export(str(path), format="tf_saved_model", verbose=False)


def _write_onnx(model: keras.Model, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras and tf2onnx each bring their own, about NumPy
        onnx.write(model, path)


def _write_tflite(model: keras.Model, path: Path) -> None:
    """By way of a SavedModel: given the function alone, the converter of TensorFlow 2.21 loses the weights."""
    import tensorflow as tf

    between = path.with_name("saved_model")
    _write_saved_model(model, between)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(between)).convert())
    shutil.rmtree(between)


def _run_keras(path: Path, fed: Feed) -> np.ndarray:
    import keras

    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    return np.asarray(model(_tensors(fed))[SCORES])


def _run_saved_model(path: Path, fed: Feed) -> np.ndarray:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return np.asarray(loaded.signatures["serving_default"](**_tensors(fed))[SCORES])


def _run_onnx(path: Path, fed: Feed) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([SCORES], dict(fed))[0])


def _run_tflite(path: Path, fed: Feed) -> np.ndarray:
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the interpreter also comes as a package of its own
        interpreter = tf.lite.Interpreter(model_path=str(path))
    return np.asarray(interpreter.get_signature_runner()(**fed)[SCORES])


def _tensors(fed: Feed) -> dict[str, Any]:
    import tensorflow as tf

    return {name: tf.constant(values) for name, values in fed.items()}


WRITE: dict[str, Callable[[keras.Model, Path], None]] = {
    "keras": _write_keras,
    "saved_model": _write_saved_model,
    "onnx": _write_onnx,
    "tflite": _write_tflite,
}
RUN: dict[str, Callable[[Path, Feed], np.ndarray]] = {
    "keras": _run_keras,
    "saved_model": _run_saved_model,
    "onnx": _run_onnx,
    "tflite": _run_tflite,
}
