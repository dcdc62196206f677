"""A bundle in the format of another runtime, with its preprocessing where the format can hold it.

An export is written to a hidden sibling, read back by its own runtime, and gives the bundle's golden scores before it
gets its name. Beside it stands ``<name>.inputs.json``: which input takes which column, and how a missing value is
written. What is left behind: the checks of the schema (an export answers rows that a bundle refuses), the threshold and
the labels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from forge_sweep.baselines import Baseline
from forge_sweep.bundle import golden_rows, network
from forge_sweep.bundle.bundle import GOLDEN_TOLERANCE, MODEL_FILES, RAW, Bundle
from forge_sweep.bundle.exports import graph, onnx, runtimes
from forge_sweep.bundle.exports.inputs import OUTSIDE, Input, describe, feed, inputs_of
from forge_sweep.bundle.files import sync, write_json
from forge_sweep.errors import BundleError, ForgeSweepError, InputError

if TYPE_CHECKING:
    import keras
    import pandas as pd

__all__ = ["FORMATS", "TOLERANCES", "Exported", "Format", "export", "write_raw"]

Format = Literal["keras", "saved_model", "onnx", "tflite"]
FORMATS: tuple[Format, ...] = get_args(Format)

TOLERANCES: dict[Format, float] = {
    "keras": GOLDEN_TOLERANCE,
    "saved_model": GOLDEN_TOLERANCE,
    "onnx": 1e-4,
    "tflite": 1e-4,
}
"""Largest accepted difference of a golden score, in proportion to the largest one above 1."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: a file, or the folder of a SavedModel.
        inputs: its inputs; see `describe`.
        difference: largest difference of a golden score to the bundle's.
        allowed: the largest that would have been accepted.
    """

    path: Path
    inputs: list[dict[str, Any]]
    difference: float
    allowed: float


def export(
    folder: Path | str, kind: Format, path: Path | str, *, preprocessing: bool = True, trust: bool = False
) -> Exported:
    """Write a bundle in another format.

    Args:
        folder: the bundle.
        kind: ``keras``, ``saved_model``, ``onnx`` or ``tflite``.
        path: where to; must not exist.
        preprocessing: take raw columns; False takes the features that the bundle's preprocessor gives.
        trust: see `Bundle.load`.

    Raises:
        InputError: the format is unknown, cannot hold this bundle, or its packages are not installed; ``path`` exists.
        BundleError: see `Bundle.load`; or the export gives other golden scores. Nothing is written then.
    """
    folder, path = Path(folder), Path(path)
    _refuse(kind, path)
    bundle = Bundle.load(folder, trust=trust)
    return _export(bundle, kind, path, golden_rows.read(folder), preprocessing)


def write_raw(bundle: Bundle, folder: Path) -> Exported:
    """Write ``raw.keras`` into the folder of a bundle that is being saved, once its golden rows are there.

    Raises:
        BundleError: Keras' format cannot hold this bundle, or gives other golden scores.
    """
    try:
        _refuse("keras", folder / RAW)
        if not isinstance(bundle.model, Baseline):  # as it was saved: without the optimizer that trained it
            saved = network.load(folder / MODEL_FILES["network"], bundle.metadata, trust=True)
            bundle = dataclasses.replace(bundle, model=saved)
        return _export(bundle, "keras", folder / RAW, golden_rows.read(folder), preprocessing=True)
    except ForgeSweepError as error:
        hint = error.hint.replace(OUTSIDE, 'set model.preprocessing = "bundle"')
        raise BundleError(f'model.preprocessing = "in_model": {error.message}', hint=hint) from error


def _export(
    bundle: Bundle, kind: Format, path: Path, golden: tuple[pd.DataFrame, np.ndarray], preprocessing: bool
) -> Exported:
    """Write a bundle in another format, if that gives its golden scores; see `export`."""
    if isinstance(bundle.model, Baseline):
        hint = "serve the bundle (forge-sweep serve, mlflow models serve), or export a network"
        raise InputError(f"the model is a {bundle.kind}, and {kind} is for networks", hint=hint)
    numbers = "float32" if kind == "tflite" else "float64"
    inputs = inputs_of(bundle.preprocessor) if preprocessing else ()
    _refuse_columns(kind, inputs)
    frame, scores = golden
    fed = _feed(bundle, inputs, frame, numbers)

    def write(temporary: Path) -> float:
        _write(bundle, kind, temporary, inputs, numbers)
        return float(np.abs(runtimes.RUN[kind](temporary, fed) - scores).max())

    allowed = TOLERANCES[kind] * max(1.0, float(np.abs(scores).max()))
    features = [{"input": graph.FEATURES, "column": "", "type": "float32", "missing": "none"}]
    about = describe(inputs, numbers) if inputs else features
    difference = _whole(path, write, allowed, {"inputs": about, "output": graph.SCORES, "shape": "(rows, 1) each"})
    return Exported(path, about, difference, allowed)


def _refuse(kind: str, path: Path) -> None:
    """Refuse what can be told before the bundle is read."""
    if kind not in FORMATS:
        raise InputError(f"format {kind!r} is unknown", hint=f"use one of {', '.join(FORMATS)}")
    if kind == "keras" and path.suffix != ".keras":
        raise InputError(f"{path} does not end with .keras, by which Keras knows the format", hint=f"-o {path}.keras")
    parent = path.absolute().parent
    try:
        for taken in (path, _beside(path)):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(taken)  # a link that leads nowhere is there too
                raise InputError(f"{taken} exists", hint="name another output, or remove it yourself")
        if not parent.is_dir():
            raise InputError(f"there is no folder {parent}", hint="make it first")
        with tempfile.TemporaryFile(dir=parent):  # asks the file system, not the mode: it may be read-only or full
            pass
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{path} cannot be written: {why}", hint="name another output") from error
    runtimes.require(kind)


def _refuse_columns(kind: str, inputs: tuple[Input, ...]) -> None:
    """TensorFlow Lite's own operators look up no text; with others it would run where TensorFlow is, and only there."""
    texts = [each.column for each in inputs if each.is_text]
    if kind == "tflite" and texts:
        raise InputError(
            f"tflite cannot hold the encoding of text columns: {', '.join(texts)}",
            hint=f"export as saved_model or onnx, or {OUTSIDE}",
        )


def _feed(bundle: Bundle, inputs: tuple[Input, ...], frame: pd.DataFrame, numbers: str) -> dict[str, np.ndarray]:
    """The golden rows as the export takes them."""
    if not inputs:
        return {graph.FEATURES: bundle.preprocessor.transform(frame)}
    return feed(inputs, bundle.preprocessor.schema, frame, numbers)


def _write(bundle: Bundle, kind: Format, path: Path, inputs: tuple[Input, ...], numbers: str) -> None:
    """Write the model in its format."""
    trained: keras.Model = bundle.model
    preprocessor, task = bundle.preprocessor, bundle.task
    if inputs and kind != "onnx":
        model = graph.raw_model(trained, task, preprocessor, inputs, numbers)
    else:
        graph.affine(preprocessor) if inputs else None
        model = graph.scored_model(trained, task, len(preprocessor.output_names), numbers)
    runtimes.WRITE[kind](model, path)
    if inputs and kind == "onnx":
        onnx.prepend(path, preprocessor, inputs)


def _whole(path: Path, write: Callable[[Path], float], allowed: float, about: dict[str, Any]) -> float:
    """Let ``write`` fill a hidden sibling, and rename it once it is right; returns how far off it is."""
    folder = path.absolute().parent / f".export.{secrets.token_hex(4)}.tmp"  # the name itself may be as long as it can
    folder.mkdir()
    temporary = folder / path.name
    try:
        difference = write(temporary)
        if not difference <= allowed:
            raise BundleError(
                f"{path} is not written: it gives other golden scores than the bundle, {difference:.3g} off, "
                f"{allowed:.1g} allowed",
                hint=f"try another format, or {OUTSIDE}",
            )
        write_json(folder / "inputs.json", about)
        for written in [*folder.rglob("*"), folder]:
            sync(written)
        (folder / "inputs.json").rename(_beside(path))
        temporary.rename(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}", hint="name another output") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return difference


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.inputs.json")
