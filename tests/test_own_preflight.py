"""Mistakes in a builder of the user's own, each refused before training with one sentence that names it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from forge_sweep import sources, training
from forge_sweep.checks.findings import errors
from forge_sweep.cli import app
from forge_sweep.errors import ExperimentError, GateRefused
from forge_sweep.experiment import parse
from forge_sweep.preflight import preflight
from forge_sweep.testing import BuilderContract

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are using a softmax over axis:UserWarning"),
    pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning"),
]

LOSSY = """
class Scale(keras.layers.Layer):
    def __init__(self, by=1.0, **kwargs):
        super().__init__(**kwargs)
        self.by = by
    def call(self, x):
        return x * self.by
"""
NOISY = """
class Net(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.noise = keras.layers.GaussianNoise(0.5, name="noise")
        self.out = keras.layers.Dense(1, activation="sigmoid")
    def call(self, x):
        return self.out(self.noise(x, training=True))
"""
STUCK = "class Own(keras.Model):\n    def train_step(self, data):\n        return {'loss': 0.0}\n"
OWN_LOSS = """
class Own(keras.Model):
    def train_step(self, data):
        import tensorflow as tf
        x, y = data[:2]
        with tf.GradientTape() as tape:
            loss = keras.ops.mean(keras.ops.square(self(x, training=True) - keras.ops.cast(y, "float32")))
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables))
        return {"loss": loss}
"""
SKLEARN = "from sklearn.datasets import load_breast_cancer\n"
KEEPER = """
class Near(keras.layers.Layer):
    def __init__(self, near, **kwargs):
        super().__init__(**kwargs)
        self.near = near
    def call(self, x):
        return x
    def get_config(self):
        return super().get_config()
    @classmethod
    def from_config(cls, config):
        return cls([0], **config)
"""
END = "return keras.Model(inputs, heads.only.output(x))"
COMPILED = "model = keras.Model(inputs, heads.only.output(x))\nmodel.compile({}, 'binary_crossentropy')\nreturn model"


def tried(
    body: str,
    folder: Path,
    head: str = "",
    *,
    scaler: str = "standard",
    search: Mapping[str, Any] | None = None,
    signature: str = "width: int = 4",
    first: str = 'x = inputs["features"]',
    inputs: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    metric: str = "val_auc",
):
    """Findings on a builder of this body; ``x`` are its features."""
    lines = "".join(f"    {line}\n" for line in [first, *body.strip().splitlines()])
    (folder / "net.py").write_text(f"import keras\n{head}\ndef build(inputs, heads, *, {signature}):\n{lines}")
    known = {"source": "sample", "name": "breast_cancer", "target": "target", "task": "binary"}
    known |= {"inputs": dict(inputs)} if inputs else {}
    data = {name: value for name, value in {**known, **(data or {})}.items() if value is not None}
    table = {"name": "own", "data": data, "objective": {"metric": metric}, "study": {"n_trials": 1}}
    model = {"builder": "net:build", "search": dict(search or {})}
    settings = parse({**table, "model": model, "preprocessing": {"scaler": scaler}}, root=folder)
    training.select_backend("tensorflow")
    return preflight(settings, sources.load(settings.data, root=folder, seed=0))


@pytest.mark.parametrize(
    ("body", "head", "options"),
    [
        ("return keras.Model(inputs, heads.only.output(keras.layers.Dense(width, 'relu')(x)))", "", {}),
        # A loss of its own: validation has that of the task.
        ("model = Own(x, heads.only.output(x))\nmodel.compile('adam')\nreturn model", OWN_LOSS, {}),
        # The rate of one group of weights is a share of the one that is asked for.
        (
            COMPILED.format("keras.optimizers.Adam(rate / 10)").replace("rate", "learning_rate"),
            "",
            {"signature": "learning_rate: float", "search": {"learning_rate": 0.01}},
        ),
        # The layer that was made last is not the one that comes last.
        (
            "return Net(heads)",
            "class Net(keras.Model):\n    def __init__(self, heads=None, **kwargs):\n"
            "        super().__init__(**kwargs)\n"
            "        self.out, self.hidden = keras.layers.Dense(1, 'sigmoid'), keras.layers.Dense(7, 'softmax')\n"
            "    def call(self, x):\n        return self.out(self.hidden(x))",
            {},
        ),
    ],
)
def test_a_sound_model_passes(body, head, options, tmp_path):
    assert [str(found) for found in tried(body, tmp_path, head, **options) if found.code != "memory"] == []


@pytest.mark.parametrize(
    ("code", "said", "body", "head"),
    [
        ("model-fails", "ZeroDivisionError: division by zero (net.py:5)", "width / 0", ""),
        (
            "model-fails",
            "net cannot be imported: ModuleNotFoundError: No module named 'nott' (net.py:2)",
            END,
            "import nott",
        ),
        ("model-fails", "net cannot be imported: SystemExit: 2 (net.py:2)", END, "raise SystemExit(2)"),
        ("model-fails", "returned nothing", "pass", ""),
        (
            "model-fails",
            "ValueError: not yet (net.py:4)",
            "return Own(x, heads.only.output(x))",
            STUCK.replace("return {'loss': 0.0}", "raise ValueError('not yet')"),
        ),
        (
            "model-fails",
            "compiled without an optimizer",
            "model = keras.Model(x, heads.only.output(x))\nmodel.compile(None, 'mse')\nreturn model",
            "",
        ),
        ("output-shape", "gives (rows, 2), expected (rows, 1)", "return keras.Model(x, keras.layers.Dense(2)(x))", ""),
        (
            "output-shape",
            "has 2 outputs, expected 1",
            "return keras.Model(x, [heads.only.output(x), keras.layers.Dense(3)(x)])",
            "",
        ),
        (
            "output-activation",
            "softmax over one unit is always 1",
            'return keras.Model(x, keras.layers.Dense(1, activation="softmax")(x))',
            "",
        ),
        ("output-activation", "values from -", "return keras.Model(x, keras.layers.Dense(1)(x))", ""),
        ("nothing-trains", "one step changed none", "return Own(x, heads.only.output(x))", STUCK),
        (
            "nothing-trains",
            "no trainable weights",
            "model = keras.Model(x, heads.only.output(x))\nmodel.trainable = False\nreturn model",
            "",
        ),
        (
            "model-not-saved",
            "predicts something else",
            "return keras.Model(x, heads.only.output(Scale(by=3.0)(x)))",
            LOSSY + "    def get_config(self):\n        return super().get_config()\n",
        ),
        (
            "random-predictions",
            "apart (noise); expected augmentation and dropout in training only",
            "return Net()",
            NOISY,
        ),
        (
            "model-not-saved",
            "use other layers of Keras",
            "hidden = keras.layers.TimeDistributed(heads.only.layer())(keras.layers.Reshape((3, 10))(x))\n"
            "return keras.Model(x, heads.only.output(keras.layers.Flatten()(hidden)))",
            "",
        ),
        (
            "model-not-saved",
            "cannot be loaded again",
            LOSSY.strip() + "\nreturn keras.Model(x, heads.only.output(Scale(by=3.0)(x)))",
            "",
        ),
    ],
)
def test_a_mistake_is_an_error_that_names_it(code, said, body, head, tmp_path):
    (found,) = errors(tried(body, tmp_path, head))
    assert found.code == code and said in str(found)


@pytest.mark.parametrize("command", ["check", "run"])
def test_check_and_run_refuse_it_before_anything_is_trained(command, tmp_path):
    (tmp_path / "net.py").write_text(
        "import keras\ndef build(inputs, heads):\n    return keras.Sequential([keras.layers.Dense(2)])"
    )
    (tmp_path / "own.toml").write_text(
        'name = "own"\n[data]\nsource = "sample"\nname = "breast_cancer"\ntarget = "target"\ntask = "binary"\n'
        '[model]\nbuilder = "net:build"\n[objective]\nmetric = "val_auc"\n[study]\nn_trials = 1\n'
    )
    done = CliRunner().invoke(app, [command, str(tmp_path / "own.toml"), "--store", str(tmp_path / "mlruns")])
    assert isinstance(done.exception, GateRefused) and "no trial was started" in str(done.exception)
    assert [finding.code for finding in done.exception.findings] == ["output-shape"]


def test_an_unknown_hyperparameter_is_refused_before_anything_is_built(tmp_path):
    with pytest.raises(ExperimentError, match=r"model\.search\.widht.*width"):
        tried(END, tmp_path, search={"widht": 3})


@pytest.mark.parametrize(
    ("said", "body", "head", "files"),
    [
        ("net.ROWS: 256 of 256", END, f"{SKLEARN}ROWS = load_breast_cancer().data", {}),
        ("net.ROWS: 256 of 256", END, f"{SKLEARN}ROWS = load_breast_cancer().data.T", {}),
        ("net.TABLE: 25", END, f"{SKLEARN}TABLE = load_breast_cancer(as_frame=True).frame", {}),
        # Of the whole file, text and other numbers among its columns, where one of them repeats what another one has.
        (
            "net.MIXED: 2",
            END,
            f"{SKLEARN}MIXED = load_breast_cancer(as_frame=True).frame.assign(id=range(569), town='Bern')\n"
            "MIXED['mean again'] = MIXED['mean area'].round()",
            {},
        ),
        ("net.SOME: 2", END, f"{SKLEARN}SOME = load_breast_cancer().data[:, 4:9].tolist()", {}),
        ("lab.rows.ROWS: 256 of 256", END, "from lab import near", {"near": "from . import rows"}),
        (
            "net.near: rows, which it closes over: 256 of 256",
            END,
            f"{SKLEARN}def made(rows):\n    def near(x):\n        return rows\n    return near\n"
            "near = made(load_breast_cancer().data)",
            {},
        ),
        (
            "layer near.near",
            'return keras.Model(x, heads.only.output(Near(rows(), name="near")(x)))',
            "",
            {},
        ),
        ("arguments", "return keras.Model(x, heads.only.output(keras.ops.matmul(x, rows()[:200].T)))", "", {}),
    ],
)
def test_training_rows_that_a_builder_holds_are_found_wherever_it_keeps_them(said, body, head, files, tmp_path):
    """As they are read, under a scaler; upright, on their side, with more columns or fewer."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "rows.py").write_text(f"{SKLEARN}ROWS = load_breast_cancer().data")
    for name, text in files.items():
        (tmp_path / "lab" / f"{name}.py").write_text(text)
    head += f"{KEEPER}\ndef rows():\n    {SKLEARN}    return load_breast_cancer().data\n"
    found = [each for each in tried(body, tmp_path, head) if each.code == "rows-captured"]
    assert found and said in found[0].seen


def test_a_copy_of_the_rows_as_they_are_fed_is_found(tmp_path):
    found = errors(tried(END, tmp_path, f"{SKLEARN}ROWS = load_breast_cancer().data", scaler="none"))
    assert "rows-captured" in [each.code for each in found]


@pytest.mark.parametrize(
    ("said", "fix", "signature", "search", "body"),
    [
        (
            "learning_rate 0.5, whether learning_rate is 0.01 or 0.005",
            "give compile the learning_rate",
            "learning_rate: float = 0.01",
            {},
            COMPILED.format("keras.optimizers.SGD(0.5)"),
        ),
        (
            "learning_rate 0.001, whether learning_rate is 0.0001 or 5e-05",
            "take learning_rate as an argument",
            "width: int = 4",
            {"learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2}},
            COMPILED.format("'adam'"),
        ),
        (
            "optimizer adam, whether optimizer is sgd or adam",
            "return the model without compile",
            "width: int = 4",
            {"optimizer": "sgd"},
            COMPILED.format("'adam'"),
        ),
    ],
)
def test_an_optimizer_that_does_not_go_by_the_trial_is_an_error_with_its_fix(
    said, fix, signature, search, body, tmp_path
):
    found = errors(tried(body, tmp_path, signature=signature, search=search))
    assert [each.code for each in found] == ["hyperparameter-ignored"]
    assert said in found[0].seen and fix in found[0].fix


@pytest.mark.parametrize(
    ("said", "body", "head"),
    [
        (
            "the same model",
            "global MADE\nMADE = MADE or keras.Model(x, heads.only.output(x))\nreturn MADE",
            "MADE = None",
        ),
        ("the same layers", "return keras.Model(x, heads.only.output(SHARED(x)))", "SHARED = keras.layers.Dense(4)"),
        (
            "the same optimizer",
            "model = keras.Model(x, heads.only.output(x))\nmodel.compile(SGD, 'binary_crossentropy')\nreturn model",
            "SGD = keras.optimizers.SGD(0.001)",
        ),
        (
            "by random numbers or state: dense",
            "CALLS.append(1)\nreturn keras.Model(x, heads.only.output(keras.layers.Dense(len(CALLS))(x)))",
            "CALLS = []",
        ),
        (
            "another configuration, by random numbers or state",
            "rate = random.random()\nreturn keras.Model(x, heads.only.output(keras.layers.Dropout(rate)(x)))",
            "import random",
        ),
    ],
)
def test_a_function_that_gives_another_model_or_the_same_one_when_it_is_called_again_is_refused(
    said, body, head, tmp_path
):
    (found,) = errors(tried(body, tmp_path, head, search={"learning_rate": {"type": "float", "low": 0.1, "high": 0.2}}))
    assert found.code == "not-repeatable" and said in found.seen


RANGE = {"type": "int", "low": 2, "high": 8}
SEARCHED = {"width": RANGE, "depth": {"type": "int", "low": 1, "high": 2}}
HELD = """
class Net(keras.Model):
    def __init__(self, heads=None, width=4, **kwargs):
        super().__init__(**kwargs)
        self.out = keras.layers.Dense(1, "sigmoid")
    def call(self, x):
        return self.out(x)
"""


@pytest.mark.parametrize(
    ("severity", "body", "head"),
    [
        (
            "error",
            "width = 5\nreturn keras.Model(x, heads.only.output(keras.layers.Dense(width + depth, 'relu')(x)))",
            "",
        ),
        # A subclass without get_config may hold more than is seen of it.
        ("warning", "net = Net()\nnet.depth = depth\nreturn net", HELD),
    ],
)
def test_an_argument_that_makes_no_difference_to_the_model_is_named(severity, body, head, tmp_path):
    found = [
        each
        for each in tried(body, tmp_path, head, signature="width: int = 4, depth: int = 1", search=SEARCHED)
        if each.code != "memory"
    ]
    assert [(each.severity, each.code) for each in found] == [(severity, "hyperparameter-ignored")]
    assert "whether width is 2 or 8" in found[0].seen


@pytest.mark.parametrize(
    ("body", "head"),
    [
        # In the largest model only.
        ("for _ in range(depth - 1):\n    x = keras.layers.Dense(width, 'relu')(x)\n" + END, ""),
        # In one branch of several.
        (
            "x = keras.layers.Dense({'a': 3, 'b': width, 'c': 4}[kind] + depth, 'relu')(x)\n" + END,
            "",
        ),
        # In an attribute of the user's own, of a model and of a loss.
        ("model = Net()\nmodel.by = width, depth\nreturn model", HELD),
        (
            "model = keras.Model(x, heads.only.output(x))\nmodel.compile('sgd', By(width / depth))\nreturn model",
            "class By(keras.losses.Loss):\n    def __init__(self, by=1.0, **kwargs):\n"
            "        super().__init__(**kwargs)\n        self.by = by\n"
            "    def call(self, y, p):\n        return keras.ops.mean((y - p) ** 2, axis=-1) * (2 + self.by)",
        ),
        # In the first weights, and in the optimizer.
        (
            "model = keras.Model(x, heads.only.output(x))\nmodel.layers[-1].bias.assign([width / 100])\n"
            "rate = keras.optimizers.schedules.ExponentialDecay(0.001, 10 + depth, 0.9)\n"
            "model.compile(keras.optimizers.SGD(rate), 'binary_crossentropy')\nreturn model",
            "",
        ),
    ],
)
def test_an_argument_that_acts_somewhere_is_no_finding(body, head, tmp_path):
    kinds = {"kind": {"type": "categorical", "choices": ["a", "b", "c"]}} if "kind" in body else {}
    signature = 'width: int = 4, depth: int = 1, kind: str = "a"'
    found = tried(body, tmp_path, head, signature=signature, search={**SEARCHED, **kinds})
    assert [str(each) for each in found if each.code != "memory"] == []


@pytest.mark.parametrize(
    ("said", "body"),
    [
        (
            "not finite are the outputs of the head output",
            "return keras.Model(x, heads.only.output(keras.ops.log(x - 100.0)))",
        ),
        (
            "loss nan before training of outputs that are finite",
            "model = keras.Model(x, heads.only.output(x))\n"
            "model.compile('sgd', lambda y, p: keras.ops.mean((y - p) / 0.0 * 0.0))\nreturn model",
        ),
    ],
)
def test_a_loss_that_is_not_finite_before_training_is_an_error_that_says_where(said, body, tmp_path):
    (found,) = errors(tried(body, tmp_path))
    assert found.code == "initial-loss" and said in found.seen


TWO = {"a": {"columns": ["mean *"]}, "b": {"columns": ["worst *", "* error"]}}


@pytest.mark.parametrize(
    ("code", "said", "body", "inputs"),
    [
        ("input-unused", "b leads to no output", "return keras.Model(inputs, heads.only.output(inputs['a']))", TWO),
        ("model-fails", "fix: the inputs are a, b, the heads target", "inputs['c']", TWO),
        ("model-fails", 'fix: set encode = "codes"', "inputs['a'].vocabulary", TWO),
        ("model-fails", "fix: it gets a dict of a, b", "return keras.Sequential([heads.only.layer()])", TWO),
        ("model-fails", "fix: correct the function", "width / 0", {}),
        # Of Keras' own message the part that tells, and the layer.
        (
            "model-fails",
            "is incompatible with the layer",
            "return keras.Model(x, heads.only.output(keras.layers.Conv1D(2, 2)(x)))",
            {},
        ),
        (
            "model-fails",
            "(in Embedding.call())",
            "y = keras.layers.Flatten()(keras.layers.Embedding(1, 2)(x))\nreturn keras.Model(x, heads.only.output(y))",
            {},
        ),
        (
            "model-fails",
            "fix: rename numpy.py: beside the builder it hides the package numpy",
            "import numpy\n" + END,
            {},
        ),
    ],
)
def test_a_finding_says_what_to_do(code, said, body, inputs, tmp_path):
    (tmp_path / "numpy.py").write_text("from numpy import array")
    line = "x = inputs['features']" if not inputs else "x = inputs['a']"
    (found,) = (each for each in tried(body, tmp_path, first=line, inputs=inputs) if each.severity != "info")
    assert found.code == code and said in str(found) and "function_node" not in str(found)


def test_with_several_heads_one_output_for_each_is_asked_for(tmp_path):
    heads = {name: {"target": name, "task": "regression"} for name in ("mean radius", "mean area")}
    data = {"target": None, "task": None, "heads": {"one": heads["mean radius"], "two": heads["mean area"]}}
    (found,) = errors(tried("return keras.Model(x, heads['one'].output(x))", tmp_path, data=data, metric="val_loss"))
    assert "fix: return {name: heads[name].output(hidden), ...}" in str(found)


def test_whole_numbers_are_numbers_with_a_point_where_the_function_takes_such(tmp_path):
    body = f"assert type(rate) is float and type(width) is int and type(learning_rate) is float\n{END}"
    search = {"rate": 0, "width": 3, "learning_rate": {"type": "categorical", "choices": [1, 0.1]}}
    found = tried(body, tmp_path, search=search, signature="rate: float, width: int, learning_rate: float")
    assert [str(each) for each in found if each.code != "memory"] == []


def test_memory_that_is_too_small_names_the_arguments_of_the_function(tmp_path):
    (found,) = errors(tried("raise MemoryError('1000000 x 1000000')", tmp_path, signature="units: int = 4"))
    assert "fix: lower units, batch_size under [model.search]" in str(found)


def test_a_layer_that_leads_nowhere_is_named(tmp_path):
    head = """
class Net(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.unused, self.out = keras.layers.Dense(3), keras.layers.Dense(1, activation="sigmoid")
    def call(self, x):
        self.unused(x)
        return self.out(x)
"""
    found = [each for each in tried("return Net()", tmp_path, head) if each.code == "weights-unchanged"]
    assert found and "kernel" in found[0].seen


class TestSubclassed(BuilderContract):
    """A builder that keeps the contract, from its experiment file."""

    experiment = "../experiments/subclassed.toml"


def test_the_contract_of_a_builder_that_breaks_it_fails_with_the_finding(tmp_path):
    """A function is found beside the tests; tables that are not given have defaults; what is meant is allowed."""
    (tmp_path / "net.py").write_text(
        "import keras\ndef build(inputs, heads):\n"
        "    model = keras.Model(inputs, heads.only.output(inputs['features']))\n"
        "    model.compile('sgd', 'binary_crossentropy')\n    return model"
    )
    spec = importlib.util.spec_from_file_location("net", tmp_path / "net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Broken(BuilderContract):
        root = tmp_path
        builder = module.build
        experiment: ClassVar[dict[str, Any]] = {"model": {"search": {"optimizer": "adam"}}}

    class Allowed(Broken):
        allowed = ("hyperparameter-ignored",)

    Broken().test_its_outputs_are_what_the_heads_score()
    with pytest.raises(AssertionError, match=r"net:build: .*optimizer sgd.*\[hyperparameter-ignored\]"):
        Broken().test_it_is_compiled_with_what_the_trial_asks_for()
    Allowed().test_it_is_compiled_with_what_the_trial_asks_for()
