"""Mistakes in a builder of the user's own, each refused before training with one sentence that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from forge_sweep import sources, training
from forge_sweep.checks.findings import errors
from forge_sweep.experiment import parse
from forge_sweep.preflight import preflight

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
ROWS = """
from sklearn import datasets, model_selection
ROWS = datasets.load_breast_cancer().data
ROWS = (ROWS - ROWS.mean(axis=0)) / ROWS.std(axis=0)
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


def tried(body: str, folder: Path, head: str = "", scaler: str = "standard"):
    """Findings on a builder of this body; ``x`` are its features."""
    lines = "".join(f"    {line}\n" for line in ['x = inputs["features"]', *body.strip().splitlines()])
    (folder / "net.py").write_text(f"import keras\n{head}\ndef build(inputs, heads, *, width: int = 4):\n{lines}")
    data = {"source": "sample", "name": "breast_cancer", "target": "target", "task": "binary"}
    table = {"name": "own", "data": data, "objective": {"metric": "val_auc"}, "study": {"n_trials": 1}}
    model = {"builder": "net:build"}
    settings = parse({**table, "model": model, "preprocessing": {"scaler": scaler}}, root=folder)
    training.select_backend("tensorflow")
    return preflight(settings, sources.load(settings.data, root=folder, seed=0))


def test_a_sound_model_passes(tmp_path):
    body = "return keras.Model(inputs, heads.only.output(keras.layers.Dense(width)(x)))"
    assert [found.code for found in tried(body, tmp_path)] == ["memory"]


@pytest.mark.parametrize(
    ("code", "said", "body", "head"),
    [
        ("model-fails", "ZeroDivisionError: division by zero (net.py:5)", "width / 0", ""),
        ("model-fails", "returned nothing", "pass", ""),
        ("model-fails", "gives (rows, 2), expected (rows, 1)", "return keras.Model(x, keras.layers.Dense(2)(x))", ""),
        (
            "output-activation",
            "softmax over one unit is always 1",
            'return keras.Model(x, keras.layers.Dense(1, activation="softmax")(x))',
            "",
        ),
        ("output-activation", "values from -", "return keras.Model(x, keras.layers.Dense(1)(x))", ""),
        (
            "nothing-trains",
            "one step changed none",
            "return Own(x, heads.only.output(x))",
            STUCK,
        ),
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
    found = [finding for finding in errors(tried(body, tmp_path, head)) if finding.code == code]
    assert found and said in str(found[0]), [str(finding) for finding in tried(body, tmp_path, head)]


def test_a_global_array_of_training_rows_is_found(tmp_path):
    head = ROWS.replace("ROWS = (ROWS - ROWS.mean(axis=0)) / ROWS.std(axis=0)\n", "")
    body = "return keras.Model(inputs, heads.only.output(x))"
    found = errors(tried(body, tmp_path, head, scaler="none"))
    assert "rows-captured" in [finding.code for finding in found]
    assert "net.ROWS holds" in str(next(finding for finding in found if finding.code == "rows-captured"))


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
