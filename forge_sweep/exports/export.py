"""The formats, and `export`, which writes a bundle in one of them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forge_sweep import plugins
from forge_sweep.baselines import Baseline
from forge_sweep.bundle import Bundle, network
from forge_sweep.bundle.files import sync, write_json
from forge_sweep.bundle.layout import ENSEMBLE, MODEL_FILES, RAW, read_golden
from forge_sweep.errors import BundleError, ForgeSweepError, InputError, MissingExtra
from forge_sweep.exports.base import MISSING_TEXT, SCORES, Format, Input, Unexportable, feed, inputs_of
from forge_sweep.exports.keras import KERAS, SAVED_MODEL, TFLITE
from forge_sweep.exports.onnx import ONNX
from forge_sweep.preprocessing import FEATURES

FORMATS: dict[str, Format] = {"keras": KERAS, "saved_model": SAVED_MODEL, "onnx": ONNX, "tflite": TFLITE}
"""Our own formats by the name that ``--format`` takes; others are entry points of ``forge_sweep.formats``."""


class _OtherScores(BundleError):
    """Than the bundle gives for its golden rows."""


@dataclass(frozen=True)
class Exported:
    """What was written: a file, or the folder of a SavedModel.

    ``difference`` is the largest one of a golden score to the bundle's, ``allowed`` what would have been accepted.
    """

    path: Path
    inputs: list[dict[str, Any]]
    difference: float
    allowed: float


def export(
    folder: Path | str, kind: str, path: Path | str, *, preprocessing: bool = True, trust: bool = False
) -> Exported:
    """Write a bundle in another format, once that format's own runtime gives the bundle's golden scores.

    Beside it stands ``<name>.inputs.json``: which input takes which column, and how a missing value is written.

    Args:
        folder: the bundle.
        kind: one of `FORMATS`, or the name of a plugin.
        path: where to; must not exist.
        preprocessing: take raw columns; False takes the features that the bundle's preprocessor gives.
        trust: see `Bundle.load`.
    """
    folder, path = Path(folder), Path(path)
    _refuse(kind, path)
    return _export(Bundle.load(folder, trust=trust), folder, kind, path, preprocessing)


def write_raw(bundle: Bundle, folder: Path) -> None:
    """Write ``raw.keras`` into the folder of a bundle that is being saved, once its golden rows are there."""
    try:
        _refuse("keras", folder / RAW)
        if bundle.kind == "network":  # as it was saved: without the optimizer that trained it
            saved = network.load(folder / MODEL_FILES["network"], bundle.code, trust=True)
            bundle = dataclasses.replace(bundle, model=saved)
        _export(bundle, folder, "keras", folder / RAW, preprocessing=True)
    except ForgeSweepError as error:
        way_out = 'set model.preprocessing = "bundle"'
        hint = f"{error.fix}, or {way_out}" if isinstance(error, Unexportable) else error.hint
        hint = way_out if isinstance(error, _OtherScores) else hint
        raise BundleError(f'model.preprocessing = "in_model": {error.message}', hint=hint) from error


def _export(bundle: Bundle, folder: Path, kind: str, path: Path, preprocessing: bool) -> Exported:
    if bundle.kind == ENSEMBLE:
        hint = (
            "serve the bundle (forge-sweep serve, mlflow models serve); or run the sweep again with ensemble.ship = "
            '"never", which registers the best single model from the trials that are there, and export that'
        )
        raise InputError(f"the model is an ensemble of {len(bundle.kinds)} models, and {kind} holds one", hint=hint)
    if isinstance(bundle.model, Baseline):
        hint = "serve the bundle (forge-sweep serve, mlflow models serve), or export a network"
        raise InputError(f"the model is a {bundle.kind}, and {kind} is for networks", hint=hint)
    form = format_of(kind)
    inputs = inputs_of(bundle.preprocessor) if preprocessing else ()
    frame, scores = read_golden(folder)
    if inputs:
        fed = feed(inputs, bundle.preprocessor.schema, frame, form.numbers)
        about = [
            {"input": each.name, "column": each.column, "type": each.dtype(form.numbers), "missing": missing(each)}
            | ({"shape": list(each.shape)} if each.kind == "tensor" else {})
            for each in inputs
        ]
    else:
        batch = bundle.preprocessor.batch(frame)
        fed = batch if isinstance(batch, dict) else {FEATURES: batch}
        spec = bundle.preprocessor.spec
        about = [
            {"input": name, "column": "", "type": each.dtype, "missing": "none"}
            | ({"shape": list(each.shape)} if len(each.shape) > 1 else {})
            for name, each in spec.items()
        ]
    allowed = form.tolerance * max(1.0, float(np.abs(scores).max()))
    # The hidden folder is not named after the path, whose name may be as long as a name can be.
    hidden = path.absolute().parent / f".export.{secrets.token_hex(4)}.tmp"
    hidden.mkdir()
    try:
        form.write(bundle, inputs, hidden / path.name)
        difference = float(np.abs(form.run(hidden / path.name, fed) - scores).max())
        if not difference <= allowed:
            raise _OtherScores(
                f"{path} is not written: it gives other golden scores than the bundle, {difference:.3g} off, "
                f"{allowed:.1g} allowed",
                hint="try another format, or export with --without-preprocessing",
            )
        shape = "(rows, 1) each; where an input has a shape, rows of that shape"
        write_json(hidden / "inputs.json", {"inputs": about, "output": SCORES, "shape": shape})
        for written in [*hidden.rglob("*"), hidden]:
            sync(written)
        (hidden / "inputs.json").rename(_beside(path))
        (hidden / path.name).rename(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}", hint="name another output") from error
    except ForgeSweepError:
        raise
    except Exception as error:  # of a converter or a runtime, each of its own kind
        why = " ".join(str(error).split())[:300]
        raise Unexportable(
            f"{kind} cannot hold this network: {type(error).__name__}: {why}",
            "export as saved_model, which takes any network that TensorFlow runs, or serve the bundle",
            network=True,
        ) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return Exported(path, about, difference, allowed)


def missing(taken: Input) -> str:
    """How a missing value is written for an input."""
    return "none" if taken.kind == "tensor" else MISSING_TEXT if taken.is_text else "NaN"


def format_of(kind: str) -> Format:
    """The format that ``--format`` calls so; InputError where there is none, or its distribution is broken."""
    found: Format = FORMATS.get(kind) or plugins.load(plugins.FORMATS, kind, ["write", "run"])
    return found


def _refuse(kind: str, path: Path) -> None:
    """Refuse what can be told before the bundle is read."""
    form = format_of(kind)
    if form.suffix and path.suffix != form.suffix:
        hint = f"-o {path}{form.suffix}"
        raise InputError(f"{path} does not end with {form.suffix}, by which {kind} is recognised", hint=hint)
    parent = path.absolute().parent
    try:
        for taken in (path, _beside(path)):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(taken)  # a link that leads nowhere is there too
                raise InputError(f"{taken} exists", hint="name another output, or remove it yourself")
        if not parent.is_dir():
            raise InputError(f"there is no directory {parent}", hint="create it first")
        with tempfile.TemporaryFile(dir=parent):  # asks the file system, not the mode: it may be read-only or full
            pass
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{path} cannot be written: {why}", hint="name another output") from error
    import keras

    if keras.config.backend() != "tensorflow":
        hint = "start a new process with KERAS_BACKEND=tensorflow; a network of any backend can be exported there"
        raise InputError(f"exports are written by TensorFlow, and Keras runs on {keras.config.backend()}", hint=hint)
    if any(importlib.util.find_spec(name) is None for name in form.packages):
        raise MissingExtra(f"the format {kind}", "export")


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.inputs.json")
