"""A bundle as one Keras model: raw columns in, scores out, stock layers and operations only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.bundle.exports.inputs import OUTSIDE, Input
from forge_sweep.errors import InputError
from forge_sweep.preprocessing import Preprocessor
from forge_sweep.task import Task

if TYPE_CHECKING:
    import keras

SCORES = "scores"
FEATURES = "features"


def raw_model(
    network: keras.Model, task: Task, preprocessor: Preprocessor, inputs: tuple[Input, ...], numbers: str
) -> keras.Model:
    """Preprocessing, network and task as one model.

    Args:
        network: from features to outputs.
        task: makes scores of outputs.
        preprocessor: from columns to features.
        inputs: see `inputs_of`.
        numbers: ``float64``, or ``float32`` where a format has nothing else.

    Raises:
        InputError: the scaler cannot be expressed.
    """
    import keras

    columns = {
        each.name: keras.Input((1,), name=each.name, dtype="string" if each.is_text else numbers) for each in inputs
    }
    parts = [*_numbers(preprocessor, inputs, columns, numbers), *_categories(inputs, columns)]
    features = (
        keras.layers.Concatenate(name="prepared.features", dtype="float32")(parts) if len(parts) > 1 else parts[0]
    )
    return keras.Model(columns, {SCORES: scores(network(features), task, numbers)}, name="raw_rows")


def scored_model(network: keras.Model, task: Task, n_features: int, numbers: str) -> keras.Model:
    """Network and task as one model, for rows that are preprocessed already."""
    import keras

    features = keras.Input((n_features,), name=FEATURES, dtype="float32")
    return keras.Model({FEATURES: features}, {SCORES: scores(network(features), task, numbers)}, name="features")


def scores(outputs: Any, task: Task, numbers: str) -> Any:
    """What `Task.to_scores` gives, in the graph."""
    from keras import ops

    if task.kind == "regression":
        return ops.cast(outputs, numbers) * np.asarray([task.std], numbers) + np.asarray([task.mean], numbers)
    if task.kind == "multiclass":
        shares = ops.softmax(outputs, axis=-1) if task.from_logits else outputs
        return shares / ops.sum(shares, axis=-1, keepdims=True)
    return ops.sigmoid(outputs) if task.from_logits else ops.cast(outputs, "float32")


def affine(preprocessor: Preprocessor) -> tuple[np.ndarray, np.ndarray]:
    """Centers and scales, so that ``(numbers - center) / scale`` is what the scaler gives.

    Raises:
        InputError: the scaler is another kind of function.
    """
    learned = preprocessor.learned
    n = sum(column.kind == "numeric" for column in preprocessor.schema.columns)
    if not learned:
        return np.zeros(n), np.ones(n)
    if preprocessor.scaler == "standard":
        return learned["mean_"], learned["scale_"]
    if preprocessor.scaler == "robust":
        return learned["center_"], learned["scale_"]
    if preprocessor.scaler == "minmax":  # numbers * scale_ + min_
        return -learned["min_"] / learned["scale_"], 1.0 / learned["scale_"]
    raise InputError(
        f"scaler = {preprocessor.scaler!r} cannot be put into an exported model: it interpolates between "
        f"{len(learned['references_'])} quantiles per column",
        hint=f"train with the scaler standard, minmax or robust, or {OUTSIDE}",
    )


def _numbers(preprocessor: Preprocessor, inputs: tuple[Input, ...], columns: dict[str, Any], numbers: str) -> list[Any]:
    """Numbers imputed and scaled, booleans imputed, and which of them were missing; float32."""
    from keras import ops

    ordered = [each for kind in ("numeric", "boolean") for each in inputs if each.kind == kind]
    if not ordered:
        return []
    raw = _together([columns[each.name] for each in ordered], numbers)
    missing = ops.not_equal(raw, raw)  # NaN alone is unlike itself, and every format knows this operation
    center, scale = affine(preprocessor)
    rest = len(ordered) - len(center)
    mean = np.concatenate([center, np.zeros(rest)])[None, :].astype(numbers)
    spread = np.concatenate([scale, np.ones(rest)])[None, :].astype(numbers)
    filled = ops.where(missing, preprocessor.fills[None, :].astype(numbers), raw)
    # Not keras.layers.Normalization: it keeps its mean in float32, too coarse for times, and squares the scale.
    normal = (filled - mean) / spread
    indicated = [position for position, each in enumerate(ordered) if each.missing]
    indicators = [ops.cast(ops.take(missing, indicated, axis=1), "float32")] if indicated else []
    return [ops.cast(normal, "float32"), *indicators]


def _together(columns: list[Any], numbers: str) -> Any:
    import keras

    return keras.layers.Concatenate(dtype=numbers, name="prepared.numbers")(columns) if len(columns) > 1 else columns[0]


def _categories(inputs: tuple[Input, ...], columns: dict[str, Any]) -> list[Any]:
    """One-hot outputs of each categorical column."""
    import keras
    from keras import ops

    blocks = []
    for each in inputs:
        known, outputs = each.codes
        if each.is_text and outputs:
            lookup = keras.layers.StringLookup(
                vocabulary=known, num_oov_indices=1, mask_token=None, oov_token=_unlike(known), name=f"{each.name}.code"
            )
            codes = ops.equal(lookup(columns[each.name]), np.asarray([outputs], np.int64))
            blocks.append(ops.cast(codes, "float32"))
    return blocks


def _unlike(texts: list[str]) -> str:
    """A text that is none of these."""
    token = "[other]"
    while token in texts:
        token += "]"
    return token
