"""Models that a user's own function builds."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forge_sweep import models, training
from forge_sweep.bundle import network
from forge_sweep.errors import BundleError, TrialFailed
from forge_sweep.experiment import Code
from forge_sweep.experiment.code import from_files, read
from forge_sweep.experiment.importing import module_of, package_of
from forge_sweep.preprocessing.inputs import InputSpec, one_matrix
from forge_sweep.task import Task

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

BINARY = Task.learn("binary", pd.DataFrame({"sold": [0, 1, 0, 1]}))
PRICE = Task.learn("regression", pd.DataFrame({"price": [1.0, 2.0, 3.0]}))
SPEC = one_matrix(3)
X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)


def code(body: str, head: str = "import keras", signature: str = "inputs, heads, *, width: int = 4") -> Code:
    """A module with a function of this body."""
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    return from_files("net", "build", {"net": f"{head}\ndef build({signature}):\n{lines}"})


FUNCTIONAL = """
hidden = keras.layers.Dense(width)(inputs["features"])
return keras.Model(inputs, heads["sold"].output(hidden))
"""
SUBCLASS = """
class Net(keras.Model):
    def __init__(self, width, units, activation, **kwargs):
        super().__init__(**kwargs)
        self.width, self.units, self.activation = width, units, activation
        self.hidden, self.out = keras.layers.Dense(width), keras.layers.Dense(units, activation)
    def call(self, inputs):
        return self.out(self.hidden(inputs))
    def get_config(self):
        return {"width": self.width, "units": self.units, "activation": self.activation}
"""
SHAPES = {
    "over the dict of inputs": code(FUNCTIONAL),
    "over one input": code(FUNCTIONAL.replace("(inputs,", '(inputs["features"],')),
    "over a list": code(FUNCTIONAL.replace("(inputs,", '([inputs["features"]],')),
    "sequential": code("return keras.Sequential([keras.layers.Dense(width), heads.only.layer()])"),
    "sequential with its input": code("return keras.Sequential([keras.Input((3,)), heads.only.layer()])"),
    "subclassed": code("return Net(width, heads.only.units, heads.only.activation)", f"import keras{SUBCLASS}"),
    "a model class with a train_step of its own": code(
        FUNCTIONAL.replace("keras.Model", "Own"),
        "import keras\nclass Own(keras.Model):\n    def train_step(self, data): return super().train_step(data)",
    ),
    "compiled": code(
        FUNCTIONAL.replace("return", "model =") + 'model.compile("sgd", "mse")\nreturn model',
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_model_is_built_compiled_and_fed_one_array(shape):
    model = models.build(SHAPES[shape], SPEC, BINARY, {"width": 5, "batch_size": 32})
    assert training.outputs(model, X).shape == (20, 1)
    assert model.compiled and model.built
    model.train_on_batch(X, np.zeros((20, 1)))
    if shape == "compiled":
        assert (model.loss, type(model.optimizer).__name__) == ("mse", "SGD")


def test_an_uncompiled_model_gets_the_optimizer_and_the_loss_of_the_experiment():
    model = models.build(SHAPES["sequential"], SPEC, BINARY, {"optimizer": "rmsprop", "learning_rate": 0.5})
    assert (type(model.optimizer).__name__, float(model.optimizer.learning_rate)) == ("RMSprop", 0.5)
    assert type(model.loss).__name__ == "BinaryCrossentropy"


def test_the_function_gets_the_hyperparameters_that_it_takes():
    taken = code("return keras.Sequential([keras.layers.Dense(width), heads.only.layer()])")
    assert models.build(taken, SPEC, BINARY, {"width": 7, "batch_size": 1, "learning_rate": 1.0}).layers[0].units == 7
    assert models.build(taken, SPEC, BINARY, {}).layers[0].units == 4


def test_several_inputs_are_given_by_name():
    spec = {"amounts": InputSpec((3,)), "shop": InputSpec((), "int32", vocabulary=5)}
    embedded = "keras.layers.Flatten()(keras.layers.Embedding(5, 2)(inputs['shop'][:, None]))"
    joined = f"both = keras.layers.concatenate([inputs['amounts'], {embedded}])\n"
    given = {"amounts": X, "shop": np.arange(20, dtype=np.int32) % 5}
    for taken in ("inputs", "list(inputs.values())"):
        model = models.build(code(f"{joined}return keras.Model({taken}, heads.only.output(both))"), spec, BINARY, {})
        assert training.outputs(model, given).shape == (20, 1)
    with pytest.raises(TrialFailed, match="takes amounts, the experiment gives amounts, shop"):
        models.build(code("x = inputs['amounts']\nreturn keras.Model(x, heads.only.output(x))"), spec, BINARY, {})


def test_a_model_that_takes_a_dict_stays_compiled_as_its_function_did_it():
    body = (
        "x = inputs['features']\nmodel = keras.Model({'features': x}, heads.only.output(x))\n"
        "model.compile('sgd', 'binary_crossentropy', loss_weights=[0.25], run_eagerly=True)\n"
        "return model"
    )
    model = models.build(code(body), SPEC, BINARY, {})
    assert (model.run_eagerly, model.get_compile_config()["loss_weights"]) == (True, [0.25])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("hidden = 1\nwidth / 0", r"net:build: ZeroDivisionError: division by zero \(net.py:4\)"),
        (
            "heads['solt']",
            r"net:build: KeyError: .*no head 'solt', .*did you mean 'sold'\?.*\(net.py:3\)",
        ),
        ("pass", "net:build returned nothing, expected a keras.Model"),
        ("return keras.layers.Dense(1)", "net:build returned a Dense, expected a keras.Model"),
        (
            "return keras.Sequential([keras.layers.Dense(2)])",
            r"gives \(rows, 2\), expected \(rows, 1\) for binary",
        ),
        ("return keras.Sequential([keras.layers.Conv1D(2, 2)])", r"cannot be called on its inputs: ValueError: "),
    ],
)
def test_what_is_no_model_for_the_task_is_said_with_its_place(body, said):
    with pytest.raises(TrialFailed, match=said) as caught:
        models.build(code(body), SPEC, BINARY, {})
    assert caught.value.failure == "code" and "forge_sweep_own" not in str(caught.value)


def test_a_module_that_cannot_be_imported_is_said_with_its_place():
    with pytest.raises(TrialFailed, match=r"net cannot be imported: ModuleNotFoundError: .*'nothing' \(net.py:2\)"):
        models.build(code("return 1", "import keras\nimport nothing"), SPEC, BINARY, {})


def test_an_error_in_the_middle_of_training_has_its_place():
    own = code(
        "return Own(inputs['features'], heads.only.output(inputs['features']))",
        "import keras\nclass Own(keras.Model):\n    def train_step(self, data):\n        raise ValueError('broken')",
    )
    model = models.build(own, SPEC, BINARY, {})
    with pytest.raises(ValueError) as caught:
        model.train_on_batch(X, np.zeros((20, 1)))
    assert models.where(caught.value) == "net.py:4"
    assert "broken" in training.classify(caught.value).message


def test_two_versions_of_a_module_live_side_by_side_with_their_local_modules(tmp_path):
    (tmp_path / "net.py").write_text(
        "from blocks import SIZE\nimport lab.deep\ndef build(inputs, heads): return lab.deep.two()"
    )
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "deep.py").write_text("def two():\n    from . import more\n    return more.VALUE")
    (tmp_path / "lab" / "more.py").write_text("VALUE = 3")
    found = []
    for size in (1, 2):
        (tmp_path / "blocks.py").write_text(f"SIZE = {size}")
        found.append(module_of(read("net:build", tmp_path)))
    assert [module.SIZE for module in found] == [1, 2]
    assert [module.build(None, None) for module in found] == [3, 3]
    assert not {"net", "blocks", "lab"} & set(sys.modules)
    assert Path(found[1].build.__code__.co_filename) == tmp_path / "net.py", "debuggers find it"


def test_size_counts_the_model():
    assert models.size(SHAPES["over one input"], SPEC, BINARY, {"width": 5}) == (3 * 5 + 5 + 5 + 1, 3 + 1 + 3 + 5 + 1)
    assert models.size(SHAPES["subclassed"], SPEC, BINARY, {"width": 5})[0] == 26


@pytest.mark.parametrize("shape", ["over the dict of inputs", "subclassed", "compiled"])
def test_a_saved_model_loads_with_trust_where_it_is_made_of_own_classes(shape, tmp_path):
    model = models.build(SHAPES[shape], SPEC, BINARY, {})
    model.save(tmp_path / "m.keras")
    if shape == "subclassed":
        with pytest.raises(BundleError, match=r"code that came with it: net\.Net"):
            network.load(tmp_path / "m.keras", SHAPES[shape])
    loaded = network.load(tmp_path / "m.keras", SHAPES[shape], trust=shape == "subclassed")
    np.testing.assert_array_equal(training.outputs(loaded, X), training.outputs(model, X))


def test_arithmetic_on_tensors_needs_no_trust(tmp_path):
    body = """
x = inputs["features"]
hidden = keras.layers.Dense(3)(x) * 0.5 + x - keras.ops.mean(x, axis=-1, keepdims=True)
hidden = keras.ops.concatenate([keras.ops.tanh(hidden), keras.ops.relu(-hidden), x[:, 1:]], axis=-1)
hidden = keras.ops.matmul(hidden[:, None, :], keras.ops.transpose(hidden[:, None], (0, 2, 1)))[:, 0] / 2
return keras.Model(inputs, heads.only.output(hidden))
"""
    model = models.build(code(body), SPEC, BINARY, {})
    model.save(tmp_path / "m.keras")
    loaded = network.load(tmp_path / "m.keras")
    np.testing.assert_array_equal(training.outputs(loaded, X), training.outputs(model, X))


def test_a_class_registered_twice_is_the_one_of_the_bundles_own_version(tmp_path):
    """Keras keeps one class per name in a process."""
    head = "import keras\n@keras.saving.register_keras_serializable('lab')\nclass Scale(keras.layers.Layer):\n"
    bodies = [f"    def call(self, x):\n        return x * {factor}" for factor in (1.0, 2.0)]
    build = "return keras.Sequential([Scale(), heads.only.layer()])"
    first, second = (code(build, head + body) for body in bodies)
    model = models.build(first, SPEC, BINARY, {})
    model.save(tmp_path / "m.keras")
    module_of(second)
    assert package_of(first) != package_of(second)
    loaded = network.load(tmp_path / "m.keras", first, trust=True)
    np.testing.assert_array_equal(training.outputs(loaded, X), training.outputs(model, X))
