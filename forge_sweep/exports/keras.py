"""Keras, SavedModel and TensorFlow Lite: a bundle as one Keras model of stock layers and operations."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.bundle import Bundle, network
from forge_sweep.exports.base import SCORES, Format, Input, Numbers, Unexportable
from forge_sweep.preprocessing import FEATURES, Codes, Tensor
from forge_sweep.task import Task

if TYPE_CHECKING:
    import keras


def model_of(bundle: Bundle, inputs: tuple[Input, ...], dtype: str) -> keras.Model:
    """Preprocessing, network and task as one model of ``inputs``; without any, of preprocessed features."""
    import keras
    from keras import ops

    feed = bundle.preprocessor.feed
    if not inputs:
        taken = {name: keras.Input(spec.shape, name=name, dtype=spec.dtype) for name, spec in feed.spec.items()}
        fed: Any = taken[FEATURES] if list(taken) == [FEATURES] else taken
        return keras.Model(taken, _scores(bundle, fed, dtype), name="features")

    def joined(parts: list[Any], dtype: str, name: str) -> Any:
        return keras.layers.Concatenate(dtype=dtype, name=name)(parts) if len(parts) > 1 else parts[0]

    columns = {each.name: keras.Input(each.shape, name=each.name, dtype=each.dtype(dtype)) for each in inputs}
    parts = []
    numbers = Numbers.of(bundle.preprocessor, inputs)
    if numbers.inputs:
        fills, center, scale = (each[None, :].astype(dtype) for each in (numbers.fills, numbers.center, numbers.scale))
        raw = joined([columns[each.name] for each in numbers.inputs], dtype, "prepared.numbers")
        missing = ops.not_equal(raw, raw)  # NaN alone is unlike itself, and every format knows this operation
        # Not keras.layers.Normalization: it keeps its mean in float32, too coarse for times, and squares the scale.
        scaled = (ops.where(missing, fills, raw) - center) / scale
        if numbers.bend.any():
            scaled = scaled / ops.sqrt(scaled * scaled * numbers.bend[None, :].astype(dtype) + 1.0)
        parts.append(ops.cast(scaled, "float32"))
        if numbers.indicated:
            parts.append(ops.cast(ops.take(missing, numbers.indicated, axis=1), "float32"))
    coded, codes = bundle.preprocessor.coded, dict[str, Any]()
    for each in inputs:
        known, outputs = each.codes
        if each.is_text and (outputs or each.column in coded):
            unlike = "[other]" + "]" * max(map(len, known))  # no text is that long
            lookup = keras.layers.StringLookup(
                vocabulary=known, num_oov_indices=1, mask_token=None, oov_token=unlike, name=f"{each.name}.code"
            )
            code = lookup(columns[each.name])
            if each.column in coded:
                codes[each.column] = ops.cast(code, "int32")
            else:
                parts.append(ops.cast(ops.equal(code, np.asarray([outputs], np.int64)), "float32"))
    features = joined(parts, "float32", "prepared.features") if parts else None
    made = {}
    for name, part in feed.parts.items():
        if isinstance(part, Codes):
            ordered = [codes[column] for column in feed.spec[name].columns]
            made[name] = joined(ordered, "int32", f"prepared.{name}") + part.starts[None, :]
        elif isinstance(part, Tensor):
            (taken,) = (columns[each.name] for each in inputs if each.column == part.column)
            made[name] = (
                taken if part.scale == 1.0 else keras.layers.Rescaling(part.scale, name=f"prepared.{name}")(taken)
            )
        else:
            made[name] = ops.take(features, part.outputs.tolist(), axis=1)
    fed = features if not made else made[FEATURES] if list(made) == [FEATURES] else made
    return keras.Model(columns, _scores(bundle, fed, dtype), name="raw_rows")


def _scores(bundle: Bundle, features: Any, dtype: str) -> dict[str, Any]:
    """The network, and what `Task.to_scores` gives, in the graph."""
    from keras import ops

    def of_head(task: Task, outputs: Any) -> Any:
        if task.kind == "regression":
            return ops.cast(outputs, dtype) * np.asarray([task.std], dtype) + np.asarray([task.mean], dtype)
        if task.kind == "multiclass":
            shares = ops.softmax(outputs, axis=-1) if task.from_logits else outputs
            return shares / ops.sum(shares, axis=-1, keepdims=True)
        return ops.sigmoid(outputs) if task.from_logits else ops.cast(outputs, "float32")

    # Layers for augmentation are active unless they are told otherwise.
    outputs, begin, scores = bundle.model(features, training=False), 0, list[Any]()  # type: ignore[operator]
    if bundle.task.kind != "joint":
        return {SCORES: of_head(bundle.task, outputs)}
    for task in bundle.task.heads.values():
        of_task = ops.take(outputs, list(range(begin, begin + task.units)), axis=1)
        scores.append(ops.cast(of_head(task, of_task), dtype))
        begin += task.units
    return {SCORES: ops.concatenate(scores, axis=1)}


def _tensors(fed: Mapping[str, np.ndarray]) -> dict[str, Any]:
    import tensorflow as tf

    return {name: tf.constant(values) for name, values in fed.items()}


def _write_keras(bundle: Bundle, inputs: tuple[Input, ...], path: Path) -> None:
    model_of(bundle, inputs, "float64").save(path)
    if own := network.check(path, bundle.code, trust=True, raw=True):
        names = ", ".join(sorted({each.__name__ for each in own.values()}))
        raise Unexportable(
            f"the network has classes of your own ({names}), which a Keras file names but does not hold",
            "export as saved_model, onnx or tflite, which hold what they compute, or serve the bundle",
            network=True,
        )


def _run_keras(path: Path, fed: Mapping[str, np.ndarray]) -> np.ndarray:
    import keras

    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    return np.asarray(model(_tensors(fed))[SCORES])


def _write_saved_model(bundle: Bundle, inputs: tuple[Input, ...], path: Path) -> None:
    model_of(bundle, inputs, "float64").export(str(path), format="tf_saved_model", verbose=False)


def _run_saved_model(path: Path, fed: Mapping[str, np.ndarray]) -> np.ndarray:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return np.asarray(loaded.signatures["serving_default"](**_tensors(fed))[SCORES])


def _write_tflite(bundle: Bundle, inputs: tuple[Input, ...], path: Path) -> None:
    if texts := [each.column for each in inputs if each.is_text]:
        # Its own operators look up no text; with others it would run only where TensorFlow is.
        raise Unexportable(
            f"tflite cannot hold the encoding of text columns: {', '.join(texts)}", "export as saved_model or onnx"
        )
    import tensorflow as tf

    model = model_of(bundle, inputs, "float32")
    # By way of a SavedModel: given the function alone, the converter of TensorFlow 2.21 loses the weights.
    with tempfile.TemporaryDirectory(dir=path.parent) as between, warnings.catch_warnings():
        model.export(f"{between}/saved", format="tf_saved_model", verbose=False)
        warnings.simplefilter("ignore")
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(f"{between}/saved").convert())


def _run_tflite(path: Path, fed: Mapping[str, np.ndarray]) -> np.ndarray:
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the interpreter also comes as a package of its own
        interpreter = tf.lite.Interpreter(model_path=str(path))
    return np.asarray(interpreter.get_signature_runner()(**fed)[SCORES])


KERAS = Format(_write_keras, _run_keras, suffix=".keras")
SAVED_MODEL = Format(_write_saved_model, _run_saved_model)
TFLITE = Format(_write_tflite, _run_tflite, tolerance=1e-4, numbers="float32")
