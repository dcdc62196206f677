"""What a third party writes to add a source, a builder, an export format and a command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import typer

from forge_sweep.bundle import Bundle
from forge_sweep.errors import DataError
from forge_sweep.exports import Format, Input, Unexportable
from forge_sweep.models import Builder
from forge_sweep.sources import Dataset
from forge_sweep.sources.assemble import assemble

if TYPE_CHECKING:
    from forge_sweep.experiment import DataSpec
    from forge_sweep.task import Task


class JsonLines:
    """``data.source = "jsonlines"``: one JSON object per line of ``data.path``."""

    def load(self, spec: DataSpec, *, root: Path, seed: int) -> Dataset:
        """See `forge_sweep.sources.Source.load`."""
        path = root / str(spec.path)
        if not path.is_file():
            raise DataError(f"data.path: {path} does not exist", hint="name a file of JSON lines")
        frame = pd.read_json(path, lines=True)
        return assemble(frame, spec, name=path.stem, source=str(path), seed=seed)


def build(n_features: int, task: Task, params: Mapping[str, Any]) -> Any:
    """``model.builder = "linear"``: the head alone."""
    import keras

    features = keras.Input((n_features,), name="features")
    model = keras.Model(features, keras.layers.Dense(task.units, activation=task.activation, name="output")(features))
    model.compile(optimizer=keras.optimizers.Adam(params.get("learning_rate", 0.01)), loss=task.loss)
    return model


def size(n_features: int, task: Task, params: Mapping[str, Any]) -> tuple[int, int]:
    """Its parameters, and the values that its layers give per row."""
    return (n_features + 1) * task.units, n_features + task.units


LINEAR = Builder(build, size)


def write(bundle: Bundle, inputs: tuple[Input, ...], path: Path) -> None:
    """``--format coefficients``: a binary linear model as JSON, for preprocessed features."""
    if inputs:
        raise Unexportable("coefficients are of preprocessed features", "write another format")
    weights, bias = bundle.model.get_weights()
    path.write_text(json.dumps({"weights": weights.tolist(), "bias": bias.tolist()}))


def run(path: Path, fed: Mapping[str, np.ndarray]) -> np.ndarray:
    """Scores (rows, 1) of preprocessed features."""
    model = json.loads(path.read_text())
    return np.asarray(1 / (1 + np.exp(-(fed["features"] @ np.array(model["weights"]) + model["bias"]))))


COEFFICIENTS = Format(write, run, tolerance=1e-5, suffix=".json")

app = typer.Typer(help="Not shown in the list of commands, which imports nothing.")


@app.command()
def greet(name: str) -> None:
    """Say hello."""
    print(f"hello {name}")


@app.command()
def leave() -> None:
    """Say goodbye."""
    print("goodbye")
