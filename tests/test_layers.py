"""Layers for tables: what they compute, that they travel, and that nothing but them is taken from a bundle."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from forge_sweep import models
from forge_sweep.bundle import Bundle
from forge_sweep.errors import BundleError
from forge_sweep.exports import FORMATS, export
from forge_sweep.models.layers import NTPDense, ParametricActivation, Periodic, PiecewiseLinear, Scale
from forge_sweep.training.networks import signature
from tests.test_bundle import customers, fitted, sign

ROWS = np.random.default_rng(0).normal(size=(400, 4)).astype("float32")
ROWS[:, 2] = ROWS[:, 2] > 0
ROWS[:, 3] = np.arange(400) % 5


def adapted(layer: Any) -> Any:
    layer.adapt(ROWS)
    return layer


MADE: dict[str, Callable[[], Any]] = {
    "piecewise": lambda: adapted(PiecewiseLinear(3, bins=8)),
    "piecewise, tokens": lambda: adapted(PiecewiseLinear(3, bins=8, flatten=False)),
    "plr": lambda: adapted(Periodic(3, 5)),
    "plr, lite": lambda: Periodic(3, 5, lite=True, flatten=False),
    "pbld": lambda: adapted(Periodic(3, 5, form="pbld")),
    "scale": Scale,
    "tangent": lambda: NTPDense(6, "mish"),
    "zeros": lambda: NTPDense(6, zeros=True),
    "parametric": lambda: ParametricActivation("selu"),
}


def of(layer: Any) -> keras.Model:
    inputs = keras.Input((4,), name="features")
    return keras.Model(inputs, keras.layers.Dense(1, name="output")(keras.layers.Flatten()(layer(inputs))))


# What they compute


def test_the_bins_are_as_the_paper_has_them() -> None:
    layer = PiecewiseLinear(3, edges=[[-1.0, 0.0, 2.0, 3.0]])
    layer.build((None, 1))
    weights = [np.random.default_rng(1).normal(size=weight.shape) for weight in layer.weights]
    layer.set_weights(weights)
    linear, bias, kernel = (weight[0] for weight in weights)
    x = np.array([-5.0, -1.0, -0.5, 0.0, 1.0, 2.5, 3.0, 9.0])
    bins = [np.minimum(x + 1, 1), np.clip(x / 2, 0, 1), np.maximum(x - 2, 0)]
    expected = x[:, None] * linear + bias + np.stack(bins, 1) @ kernel
    assert np.array(layer(x[:, None])) == pytest.approx(expected, abs=1e-5)


def test_at_the_start_it_is_linear() -> None:
    keras.utils.set_random_seed(1)
    layer = PiecewiseLinear(3, edges=[[-1.0, 0.0, 2.0]])
    found = np.array(layer(np.array([[-3.0], [0.0], [3.0]], "float32")))
    assert found[0] + found[2] == pytest.approx(2 * found[1], abs=1e-5)


def test_periodic_waves_are_as_the_papers_have_them() -> None:
    x = np.array([[0.3], [-1.2]], "float32")
    for form, lite in (("plr", False), ("plr", True), ("pbld", False)):
        layer = Periodic(3, 5, sigma=1.0, form=form, lite=lite)
        layer.build((None, 1))
        weights = {weight.name: np.array(weight)[0] for weight in layer.weights}
        angles = 2 * np.pi * x * weights["waves"]
        if form == "pbld":
            bent = np.cos(angles + weights["phases"]) @ weights["kernel"] + weights["bias"]
            expected = np.concatenate([x, bent], 1)
        else:
            both = np.concatenate([np.cos(angles), np.sin(angles)], 1)
            expected = np.maximum(both @ weights["kernel"] + weights["bias"], 0)
        assert np.array(layer(x)) == pytest.approx(expected, abs=1e-5), form


@pytest.mark.parametrize("name", ["piecewise", "plr", "pbld"])
def test_columns_of_two_values_are_passed_on_behind_the_others(name: str) -> None:
    layer = MADE[name]()
    found = np.array(layer(ROWS))
    assert found.shape == layer.compute_output_shape(ROWS.shape) == (400, 10)
    assert (found[:, 9] == ROWS[:, 2]).all()
    assert layer.sources == (0, 0, 0, 1, 1, 1, 3, 3, 3, 2)


def test_tokens_are_of_every_column() -> None:
    assert MADE["piecewise, tokens"]()(ROWS).shape == MADE["plr, lite"]()(ROWS).shape == (400, 4, 3)


def test_indicators_alone_pass_through() -> None:
    layer = PiecewiseLinear(3)
    layer.adapt(ROWS[:, 2:3])
    assert (np.array(layer(ROWS[:, 2:3])) == ROWS[:, 2:3]).all() and not layer.weights


def test_bins_lie_between_unique_quantiles() -> None:
    skewed = np.r_[np.zeros(90), np.arange(10.0)]
    layer = PiecewiseLinear(3, bins=4)
    layer.adapt(np.c_[np.arange(100.0), skewed, np.full(100, 7.0), np.arange(100) % 3])
    assert layer.edges == [pytest.approx([0, 24.75, 49.5, 74.25, 99]), [0, 9], [7], [0, 1, 2]]


def test_values_beyond_float32_and_missing_ones_leave_the_bins_alone() -> None:
    layer = PiecewiseLinear(3, bins=2)
    layer.adapt(np.array([[1.0], [2.0], [3.0], [np.inf], [np.nan]]))
    assert layer.edges == [[1, 2, 3]]


def test_without_rows_every_column_has_all_bins() -> None:
    layer = PiecewiseLinear(3, bins=6)
    layer.adapt(None)
    assert layer(ROWS).shape == (400, 12) and layer.kernel.shape == (4, 6, 3)


def test_sixteen_bits_get_what_they_ask_for_and_bins_are_computed_in_more() -> None:
    layer = PiecewiseLinear(3, edges=[[0.0, 1e-4, 2e-4]], dtype="mixed_bfloat16")
    x = np.array([[0.0], [1e-4], [2e-4]], "float32")
    assert keras.backend.standardize_dtype(layer(x).dtype) == "bfloat16"
    layer.set_weights([np.zeros((1, 1, 3)), np.zeros((1, 1, 3)), np.ones((1, 2, 3))])
    assert np.array(layer(x), "float32")[:, 0].tolist() == [0, 1, 2]


def test_dense_layers_are_scaled_by_their_inputs() -> None:
    layer = NTPDense(2, "relu", bias_rate=0.5)
    layer.build((None, 4))
    layer.set_weights([np.ones((4, 2)), np.array([3.0, -99.0])])
    assert np.array(layer(np.full((1, 4), 5.0, "float32"))).tolist() == [[11.5, 0.0]]


@pytest.mark.parametrize("rate", [0.1, 1.0, 6.0])
def test_a_weight_learns_at_a_rate_of_its_own(rate: float) -> None:
    """A step of Adam moves what counts by that many times the learning rate, whatever the gradient."""
    for layer, start in (
        (Scale(rate), 1.0),
        (ParametricActivation("relu", rate), 1.0),
        (NTPDense(1, zeros=True, bias_rate=rate), 0.0),
    ):
        model = of(layer) if not isinstance(layer, NTPDense) else keras.Sequential([keras.Input((4,)), layer])
        before = np.array(layer.weights[-1]) * rate
        assert before == pytest.approx(start)
        model.compile(keras.optimizers.Adam(1e-3), "mse")
        model.train_on_batch(ROWS - 0.5, np.full((400, 1), 5.0))
        moved = np.abs(np.array(layer.weights[-1]) * rate - before)
        assert moved == pytest.approx(rate * 1e-3, rel=0.01), layer.name


def test_a_unit_takes_as_much_of_its_activation_as_it_learned() -> None:
    layer = ParametricActivation("relu", rate=0.5)
    layer.build((None, 2))
    layer.set_weights([np.array([2.0, 1.0])])
    assert np.array(layer(np.array([[-4.0, -4.0]], "float32"))).tolist() == [[0.0, -2.0]]


# What they refuse


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PiecewiseLinear(0), "dims = 0: expected a whole number from 1 to 4096"),
        (lambda: PiecewiseLinear(3.5), "dims = 3.5"),
        (lambda: PiecewiseLinear(3, bins=10**9), "bins = 1000000000"),
        (lambda: PiecewiseLinear(3, edges=[[0.0, 0.0]]), "increasing order"),
        (lambda: PiecewiseLinear(3, edges=[[0.0, float("nan")]]), "finite numbers"),
        (lambda: PiecewiseLinear(3, edges=[[0.0, 1e-45]]), "increasing order"),
        (lambda: PiecewiseLinear(3, edges=[0.0, 1.0]), "for each column"),
        (lambda: PiecewiseLinear(3, edges=[range(5000)]), "5000 of one column"),
        (lambda: PiecewiseLinear(3)(ROWS), "knows no bins; give it edges, or adapt it"),
        (lambda: PiecewiseLinear(3).adapt(ROWS[:0]), "expected rows"),
        (lambda: adapted(PiecewiseLinear(3))(ROWS[:, :2]), "edges for 4 columns, and there are 2"),
        (lambda: adapted(PiecewiseLinear(3))(ROWS[:, :, None]), r"takes \(rows, columns\)"),
        (lambda: Periodic(3, sigma=float("inf")), "sigma = inf"),
        (lambda: Periodic(3, form="x"), "expected plr or pbld"),
        (lambda: Periodic(1, form="pbld"), "dims of pbld = 1"),
        (lambda: NTPDense(10**9), "units = 1000000000"),
        (lambda: NTPDense(3, "os.system"), "activation = 'os.system': expected one of gelu"),
        (lambda: Scale(0.0), "rate = 0.0: expected a number above 0"),
        (lambda: ParametricActivation(["relu"]), "activation = "),
        (lambda: Periodic(3, plain=[9])(ROWS), r"\[9\] are no columns of 4"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_what_is_built_is_not_adapted_again() -> None:
    for layer in (MADE["piecewise"](), MADE["plr"]()):
        layer(ROWS)
        with pytest.raises(ValueError, match=r"adapt it before it is called"):
            layer.adapt(ROWS)


# That they travel


def round_trip(folder: Path) -> dict[str, Any]:
    """Trained for a step on the backend that is there, saved and loaded: bit-equal, and like in every other call."""
    found = {}
    for name, make in MADE.items():
        keras.utils.set_random_seed(3)
        model = of(make())
        model.compile("adam", "mse")
        model.fit(ROWS, ROWS[:, :1] ** 2, batch_size=100, verbose=0)
        before = keras.ops.convert_to_numpy(model(ROWS, training=False))
        model.save(folder / "model.keras")
        again = keras.saving.load_model(folder / "model.keras", safe_mode=True)
        after = keras.ops.convert_to_numpy(again(ROWS, training=False))
        found[name] = bool(np.isfinite(before).all() and np.array_equal(before, after))
    return found


def test_a_round_trip_is_bit_equal(tmp_path: Path) -> None:
    assert set(round_trip(tmp_path).values()) == {True}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_round_trip_is_bit_equal_on_other_backends(backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    environ = {**os.environ, "KERAS_BACKEND": backend}
    environ.pop("PYTHONWARNINGS", None)
    command = [sys.executable, "-m", "tests.test_layers", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(MADE, True)


def test_one_architecture_is_traced_once_and_other_edges_are_another() -> None:
    def signed(make: Callable[[], Any]) -> str | None:
        keras.backend.clear_session()  # names count from 1
        model = of(make())
        model.compile("adam", "mse")
        return signature(model)

    once, again = signed(MADE["piecewise"]), signed(MADE["piecewise"])
    assert once is not None and once == again != signed(lambda: PiecewiseLinear(3, edges=[[0.0, 1.0, 2.0]] * 4))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a network with each of the layers."""
    bundle = fitted("network", "binary")
    features = bundle.preprocessor.transform(customers())
    inputs = keras.Input(features.shape[1:], name="features")
    numbers, waves = PiecewiseLinear(3, bins=6), Periodic(3, 4, form="pbld")
    numbers.adapt(features)
    waves.adapt(features)
    hidden = keras.layers.Concatenate()([numbers(inputs), waves(Scale()(inputs))])
    hidden = ParametricActivation("mish")(NTPDense(4)(hidden))
    model = keras.Model(inputs, models.Heads.of(bundle.task).only.output(hidden), name="mlp")
    folder = tmp_path_factory.mktemp("layers") / "bundle"
    dataclasses.replace(bundle, model=model).save(folder, customers())
    return folder


def test_a_bundle_with_them_needs_no_trust(saved: Path) -> None:
    assert np.isfinite(Bundle.load(saved).scores(customers())).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_holds_them(kind: str, saved: Path, tmp_path: Path) -> None:
    """An export whose golden rows have other scores in its own runtime is not written."""
    export(saved, kind, tmp_path / f"model{FORMATS[kind].suffix}", preprocessing=kind != "tflite")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dims": 10**9}, "dims = 1000000000"),
        ({"dims": "os.system"}, "dims = 'os.system'"),
        ({"bins": -1}, "bins = -1"),
        ({"edges": "/etc/passwd"}, "edges"),
        ({"edges": [[1.0, 0.0]]}, "increasing"),
        ({"edges": [{"class_name": "function", "module": "os", "config": "system"}]}, "not trusted: os.system"),
    ],
)
def test_a_configuration_that_is_none_is_refused(
    change: dict[str, Any], words: str, saved: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with zipfile.ZipFile(folder / "model.keras") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(entries["config.json"])
    (layer,) = (each for each in config["config"]["layers"] if each["class_name"] == "PiecewiseLinear")
    layer["config"].update(change)
    entries["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    sign(folder)
    with pytest.raises(BundleError, match=words):
        Bundle.load(folder)


def test_another_class_of_the_module_is_not_trusted(saved: Path, tmp_path: Path) -> None:
    from forge_sweep.bundle import network

    with zipfile.ZipFile(saved / "model.keras") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["config.json"] = entries["config.json"].replace(b'"PiecewiseLinear"', b'"NumberEmbedding"')
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(BundleError, match=r"not trusted: forge_sweep\.models\.layers\.numbers\.NumberEmbedding"):
        network.check(tmp_path / "model.keras")


if __name__ == "__main__":
    print(json.dumps(round_trip(Path(sys.argv[1]))))
