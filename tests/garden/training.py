"""Faults of models, of their losses and of their training."""

from __future__ import annotations

import functools
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forge_sweep import sources, training
from forge_sweep.errors import ExperimentError
from forge_sweep.experiment import DataSpec, load
from forge_sweep.preflight import preflight
from forge_sweep.sources import Dataset
from tests.garden.data import cut
from tests.garden.plots import Fault, Fixed, Said, experiment

KINDS = {"breast_cancer": "binary", "wine": "multiclass", "digits": "multiclass", "diabetes": "regression"}
STEPS = {"breast_cancer": 64, "wine": 32, "digits": 256, "diabetes": 64}
METRICS = {"binary": "val_auc", "multiclass": "val_accuracy", "regression": "val_rmse"}
TINY = {"width": 16, "depth": 1, "batch_norm": False, "learning_rate": 0.01, "batch_size": 32}
EPOCHS = 20
"""Of the plain loops whose figures are in the table; a test that they raise nothing needs one."""

RIGHT = "loss {loss:.3g}, val_loss {val_loss:.3g}; {right:.0%} of the validation rows are called right."
NUMBERS = "loss {loss:.3g}, val_loss {val_loss:.3g}; r2 on the validation rows is {r2:.2f}."


@functools.cache
def sample(name: str) -> pd.DataFrame:
    """One of scikit-learn's sets."""
    from sklearn import datasets

    found: pd.DataFrame = getattr(datasets, f"load_{name}")(as_frame=True).frame
    return found


def source(body: str, head: str = "", arguments: str = "") -> str:
    """A builder's module; ``x`` are its features."""
    lines = textwrap.indent(f'x = inputs["features"]\n{textwrap.dedent(body).strip()}\n', "    ")
    signature = f"def build(inputs, heads, *, {arguments or 'units: int = 16'}):"
    return f"import keras\n\n{textwrap.dedent(head)}\n\n{signature}\n{lines}"


@functools.cache
def _rows(name: str) -> Dataset:
    data = DataSpec(source="sample", name=name, target=("target",), task=KINDS[name])
    return sources.load(data, root=Path(), seed=0)


def before_training(path: Path) -> list[Said]:
    """What the file and the pre-flight say. These sets are sound: their audit is left out, their rows are shared."""
    training.select_backend("tensorflow")
    training.load_backend()
    try:
        declared = load(path)
    except ExperimentError as error:
        return [Said(each.path, "file", str(each), each.hint) for each in error.mistakes]
    told = [re.fullmatch(r"(?P<seen>.*)\. fix: (?P<fix>.*) \[(?P<code>[a-z-]+)\]", each) for each in declared.warnings]
    found = [Said(each["code"], "file", each["seen"], each["fix"], "warning") for each in told if each]
    shared = declared.data.source == "sample" and not declared.data.heads
    rows = _rows(str(declared.data.name)) if shared else sources.load(declared.data, root=declared.root, seed=0)
    return found + [
        Said(each.code, "pre-flight", each.seen, each.fix, each.severity) for each in preflight(declared, rows)
    ]


class Heads:
    """The head of a plain loop, as a builder sees it."""

    def __init__(self, kind: str, classes: int) -> None:
        self.only, self.units = self, classes
        self.activation = {"binary": "sigmoid", "multiclass": "softmax", "regression": "linear"}[kind]
        losses = {"multiclass": "sparse_categorical_crossentropy", "regression": "mse"}
        self.loss = losses.get(kind, "binary_crossentropy")

    def layer(self) -> Any:
        """The output layer."""
        import keras

        return keras.layers.Dense(self.units, activation=self.activation)

    def output(self, hidden: Any) -> Any:
        """The output."""
        return self.layer()(hidden)


def loop(
    text: str, name: str, *, batch: int = 0, precision: str = "float32", one_hot: bool = False, **fit: Any
) -> dict[str, float]:
    """The last figures of a plain Keras loop over this builder: no checks, no pre-flight, no diagnosis."""
    epochs = EPOCHS
    training.select_backend("tensorflow")
    training.load_backend()
    import keras

    keras.utils.set_random_seed(1)
    kind, (x, y, x_valid, y_valid) = KINDS[name], cut(sample(name))
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    x, x_valid = (((each - mean) / np.where(deviation > 0, deviation, 1)).clip(-10, 10) for each in (x, x_valid))
    x, x_valid = x.astype(np.float32), x_valid.astype(np.float32)
    if kind == "regression":
        y, y_valid = (y - y.mean()) / y.std(), (y_valid - y.mean()) / y.std()
    module: dict[str, Any] = {"__name__": "net"}
    exec(text, module)
    heads = Heads(kind, int(y.max()) + 1 if kind == "multiclass" else 1)
    with training.dtype_policy(precision):
        model = module["build"]({"features": keras.Input((x.shape[1],), name="features")}, heads)
    if not model.compiled:
        model.compile(keras.optimizers.Adam(0.01), heads.loss)
    model.run_eagerly = epochs == 1  # a few steps are done before a graph would be traced
    if isinstance(model.input, dict):
        x, x_valid = {"features": x}, {"features": x_valid}
    codes = y_valid
    y, y_valid = (
        each.astype(np.float32) if not one_hot else np.eye(3, dtype=np.float32)[each.astype(int)]
        for each in (y, y_valid)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which nobody reads
        logs = model.fit(
            x, y, validation_data=(x_valid, y_valid), batch_size=batch or STEPS[name], epochs=epochs, verbose=0, **fit
        ).history
        outputs = np.asarray(model(x_valid, training=False))
    found = {key: float(values[-1]) for key, values in logs.items()}
    if kind == "regression":
        return found | {"r2": float(1 - ((y_valid - outputs[:, 0]) ** 2).mean() / y_valid.var())}
    guesses = outputs.argmax(axis=1) if kind == "multiclass" else outputs[:, 0] > 0.5
    return found | {"right": float((guesses == codes).mean())}


def lay(name: str, search: Mapping[str, Any], healthy: Mapping[str, Any], **sections: Any) -> Callable[..., Path]:
    """An experiment whose search space has the fault, or not."""

    def laid(folder: Path, planted: bool) -> Path:
        data = {"source": "sample", "name": name, "target": "target", "task": KINDS[name]}
        model = {"search": {**TINY, **(search if planted else healthy)}}
        return experiment(folder, data, METRICS[KINDS[name]], model=model, **sections)

    return laid


def setting(
    name: str, what: str, code: str, fault: Mapping[str, Any], healthy: Mapping[str, Any], plain: str, **more: Any
) -> Fault:
    """A fault of a hyperparameter; ``plain`` is what a builder says of it."""
    rows, metric = more.pop("rows", "digits"), more.pop("metric", "")
    batch = int(fault.get("batch_size", 0))
    return Fault(
        name=name,
        what=what,
        plain=lambda: loop(source(plain), rows, batch=batch),
        prints=RIGHT,
        lay=lay(rows, fault, healthy),
        code=code,
        when="pre-flight",
        fixed=Fixed(metric or METRICS[KINDS[rows]]),
        said=before_training,
        **more,
    )


def built(
    name: str,
    what: str,
    code: str,
    fault: str,
    healthy: str,
    *,
    rows: str = "breast_cancer",
    precision: str = "float32",
    **more: Any,
) -> Fault:
    """A fault of a builder, which has the fault in its text, or not."""

    def laid(folder: Path, planted: bool) -> Path:
        data = {"source": "sample", "name": rows, "target": "target", "task": KINDS[rows]}
        model = {"builder": "net:build", "search": {"learning_rate": 0.01, "batch_size": 32}}
        path = experiment(folder, data, METRICS[KINDS[rows]], model=model, study={"epochs": 6})
        path.write_text(f'precision = "{precision}"\n{path.read_text()}')
        (folder / "net.py").write_text(fault if planted else healthy)
        return path

    return Fault(
        name=name,
        what=what,
        plain=lambda: loop(fault, rows, precision=precision),
        prints=NUMBERS if KINDS[rows] == "regression" else RIGHT,
        lay=laid,
        code=code,
        when="pre-flight",
        said=before_training,
        **more,
    )


HIDDEN = 'x = keras.layers.Dense(units, activation="relu")(x)\n'
END = "return keras.Model(inputs, heads.only.output(x))"
SOUND = source(HIDDEN + END)
TWO_LAYERS = source(HIDDEN + HIDDEN + END)


def compiled(
    loss: str, optimizer: str = "keras.optimizers.Adam(0.01)", head: str = "", hidden: str = HIDDEN, **more: str
) -> str:
    """A builder that compiles its model."""
    last = more.get("last", "model = keras.Model(inputs, heads.only.output(x))")
    also = more.get("also", "")
    return source(f"{hidden}{last}\nmodel.compile({optimizer}, {loss}{also})\nreturn model", head)


MLP = HIDDEN + "model = keras.Model(inputs, heads.only.output(x))\nmodel.compile({}, heads.only.loss)\nreturn model"

SETTINGS = (
    setting(
        "learning rate 10",
        "The learning rate of Adam is 10.",
        "rate-too-high",
        {"learning_rate": 10.0},
        {},
        MLP.format("keras.optimizers.Adam(10.0)"),
        metric="val_loss",
    ),
    setting(
        "learning rate 1e-8",
        "The learning rate of Adam is 1e-8.",
        "rate-too-low",
        {"learning_rate": 1e-8},
        {},
        MLP.format("keras.optimizers.Adam(1e-8)"),
    ),
    setting(
        "dropout 0.95",
        "Of 16 hidden units, 95 % are dropped.",
        "dropout-too-high",
        {"dropout": 0.95},
        {"dropout": 0.2},
        HIDDEN + "x = keras.layers.Dropout(0.95)(x)\n" + END,
    ),
    setting(
        "L2 of 10",
        "The L2 penalty on the hidden kernels is 10.",
        "penalty-too-high",
        {"l2": 10.0},
        {"l2": 1e-4},
        HIDDEN.replace("units, ", "units, kernel_regularizer=keras.regularizers.L2(10.0), ") + END,
    ),
    setting(
        "batch larger than the data",
        "A batch has more rows than train.",
        "batch-too-large",
        {"batch_size": 4096},
        {},
        HIDDEN + END,
    ),
    setting(
        "gradients clipped to nothing",
        "Gradients are clipped to a norm of 1e-12.",
        "clip-too-small",
        {"clip_norm": 1e-12},
        {"clip_norm": 1.0},
        MLP.format("keras.optimizers.Adam(0.01, global_clipnorm=1e-12)"),
    ),
    setting(
        "average of the weights that never moves",
        "The weights that are kept are a moving average with momentum 0.99999.",
        "average-too-long",
        {"ema": 0.99999},
        {"ema": 0.9},
        MLP.format("keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.99999, ema_overwrite_frequency=1)"),
    ),
    setting(
        "momentum 0.9999",
        "The momentum of SGD is 0.9999.",
        "momentum-too-high",
        {"optimizer": "sgd", "momentum": 0.9999},
        {"optimizer": "sgd", "momentum": 0.9},
        MLP.format("keras.optimizers.SGD(0.01, momentum=0.9999)"),
        metric="val_loss",
    ),
    setting(
        "label smoothing of 0.9",
        "Labels are smoothed by 0.9.",
        "smoothing-too-high",
        {"label_smoothing": 0.9},
        {"label_smoothing": 0.1},
        HIDDEN
        + "model = keras.Model(inputs, heads.only.output(x))\n"
        + "model.compile(keras.optimizers.Adam(0.01), keras.losses.BinaryCrossentropy(label_smoothing=0.9))\n"
        + "return model",
        rows="breast_cancer",
        metric="val_loss",
    ),
)

ALWAYS = """
class Always(keras.layers.Layer):
    def __init__(self, kind, on, **kwargs):
        super().__init__(**kwargs)
        self.kind, self.on = kind, on
        made = {"norm": keras.layers.BatchNormalization, "drop": lambda: keras.layers.Dropout(0.5)}
        self.inner = made.get(kind, lambda: keras.layers.GaussianNoise(0.5))()
    def build(self, shape):
        self.inner.build(shape)
    def call(self, x, training=None):
        return self.inner(x, training=True if self.on else training)
    def get_config(self):
        return {**super().get_config(), "kind": self.kind, "on": self.on}
"""


def always(kind: str, on: bool) -> str:
    """A layer within a layer, in training mode whatever it is asked for."""
    return source(f'{HIDDEN}x = Always("{kind}", {on})(x)\n{END}', ALWAYS)


UNTRACKED = """
class Parts:
    pass
class Block(keras.layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.parts = Parts()
        self.parts.dense = keras.layers.Dense(units, activation="relu")
    def call(self, x):
        return self.parts.dense(x)
    def get_config(self):
        return {**super().get_config(), "units": self.units}
"""
STOPPED = """
class Stop(keras.layers.Layer):
    def call(self, x):
        return keras.ops.stop_gradient(x)
class Pass(keras.layers.Layer):
    def call(self, x):
        return x
"""


def half(also: str) -> str:
    """A builder whose loss is a millionth of the usual one."""
    last = 'model = keras.Model(inputs["features"], heads.only.output(x))'
    return compiled("heads.only.loss", last=last, also=f", loss_weights=1e-6{also}")


AWAY = """
@keras.saving.register_keras_serializable("garden")
def closeness(y, p):
    return {}keras.ops.mean((y - p) ** 2, axis=-1)
"""
DENSE = 'keras.layers.Dense({}, activation="{}")(x)'

BUILT = (
    built(
        "softmax with binary_crossentropy",
        "The one output of two classes has a softmax, with binary_crossentropy.",
        "output-activation",
        compiled('"binary_crossentropy"', last=f"model = keras.Model(inputs, {DENSE.format(1, 'softmax')})"),
        compiled('"binary_crossentropy"'),
    ),
    built(
        "sigmoid on a regression",
        "The output of a regression has a sigmoid.",
        "output-activation",
        source(f"{HIDDEN}return keras.Model(inputs, {DENSE.format(1, 'sigmoid')})"),
        SOUND,
        rows="diabetes",
    ),
    built(
        "codes with the one-hot loss",
        "Labels 0 and 1 in one column are trained with categorical_crossentropy, which is for one-hot ones.",
        "wrong-loss",
        compiled('"categorical_crossentropy"'),
        compiled('"binary_crossentropy"'),
    ),
    built(
        "dead ReLU",
        "The biases of a ReLU layer begin at -10.",
        "dead-units",
        source(HIDDEN.replace("units, ", "units, bias_initializer=keras.initializers.Constant(-10.0), ") + END),
        SOUND,
    ),
    built(
        "zero-initialised hidden layer",
        "The weights of the hidden layer begin at 0.",
        "equal-units",
        source(f'x = keras.layers.Dense(units, activation="relu", kernel_initializer="zeros")(x)\n{END}'),
        SOUND,
        rows="digits",
    ),
    built(
        "learning rate 1e-9 in the builder",
        "The builder compiles its model with a learning rate of 1e-9.",
        "rate-too-low",
        compiled('"binary_crossentropy"', "keras.optimizers.Adam(1e-9)"),
        compiled('"binary_crossentropy"'),
        beside=frozenset({"hyperparameter-ignored"}),
    ),
    built(
        "frozen layers",
        "The hidden layers are frozen, at random weights.",
        "frozen-layers",
        source(f'x = keras.layers.Dense(units, activation="relu", trainable=False)(x)\n{END}'),
        SOUND,
        rows="digits",
    ),
    built(
        "BatchNormalization in training mode at prediction",
        "BatchNormalization is called with training=True: a row is normalised by its neighbours, in validation too.",
        "batch-dependent",
        always("norm", True),
        always("norm", False),
    ),
    built(
        "a custom layer without its weights tracked",
        "A custom layer keeps its Dense in an object that Keras does not look into.",
        "untracked-weights",
        source("x = Block(units)(x)\n" + END, UNTRACKED),
        source("x = Block(units)(x)\n" + END, UNTRACKED.replace("class Parts", "class Parts(keras.layers.Layer)")),
        rows="digits",
    ),
    built(
        "augmentation active at validation",
        "Noise is added to the features when the network is validated, too.",
        "random-predictions",
        always("noise", True),
        always("noise", False),
    ),
    built(
        "training=True hard-wired",
        "Dropout is called with training=True.",
        "random-predictions",
        always("drop", True),
        always("drop", False),
        rows="digits",
    ),
    built(
        "two softmaxes",
        "A Softmax layer follows a Dense that has one.",
        "double-activation",
        source(
            f"{HIDDEN}x = {DENSE.format('heads.only.units', 'softmax')}\n"
            "return keras.Model(inputs, keras.layers.Softmax()(x))"
        ),
        SOUND,
        rows="digits",
    ),
    built(
        "from_logits over probabilities",
        "The loss is told that it gets logits, and gets what a softmax gives.",
        "loss-logits",
        compiled("keras.losses.SparseCategoricalCrossentropy(from_logits=True)"),
        compiled("keras.losses.SparseCategoricalCrossentropy()"),
        rows="digits",
    ),
    built(
        "label smoothing of 1",
        "Labels are smoothed by 1: both classes are as right.",
        "wrong-loss",
        compiled("keras.losses.BinaryCrossentropy(label_smoothing=1.0)"),
        compiled("keras.losses.BinaryCrossentropy(label_smoothing=0.1)"),
    ),
    built(
        "a loss with the wrong sign",
        "A custom loss is maximised.",
        "wrong-loss",
        compiled("closeness", head=AWAY.format("-")),
        compiled("closeness", head=AWAY.format("")),
        rows="diabetes",
    ),
    built(
        "a loss of classes on a regression",
        "Standardised numbers are trained with binary_crossentropy.",
        "wrong-loss",
        compiled('"binary_crossentropy"'),
        compiled('"mse"'),
        rows="diabetes",
    ),
    built(
        "a schedule that is 0 from the start",
        "The learning rate follows a schedule that is 0 throughout.",
        "rate-zero",
        compiled(
            '"binary_crossentropy"', "keras.optimizers.Adam(keras.optimizers.schedules.PolynomialDecay(0.0, 100, 0.0))"
        ),
        compiled(
            '"binary_crossentropy"',
            "keras.optimizers.Adam(keras.optimizers.schedules.PolynomialDecay(0.01, 1000, 0.0))",
        ),
    ),
    built(
        "a schedule that is over at once",
        "A cosine decays over 5 steps, where training has 78.",
        "schedule-too-short",
        compiled('"binary_crossentropy"', "keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 5))"),
        compiled('"binary_crossentropy"', "keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 100))"),
    ),
    built(
        "layers shared between trials",
        "A layer is made once, at the top of the module: each trial goes on with the weights of the one before.",
        "not-repeatable",
        source(
            "return keras.Model(inputs, heads.only.output(LAYER(x)))",
            'LAYER = keras.layers.Dense(16, activation="relu")',
        ),
        SOUND,
    ),
    built(
        "weights shared by mistake",
        "One layer, made in front of the loop, is called four times in it.",
        "shared-weights",
        source(
            f"{HIDDEN}layer = keras.layers.Dense(units, activation='relu')\nfor _ in range(4):\n    x = layer(x)\n{END}"
        ),
        source(f"{HIDDEN}for _ in range(4):\n    x = keras.layers.Dense(units, activation='relu')(x)\n{END}"),
    ),
    built(
        "no activation",
        "The hidden layers have no activation: four layers are one straight line.",
        "no-activation",
        source(f"for _ in range(3):\n    x = keras.layers.Dense(units)(x)\n{END}"),
        source(f"for _ in range(3):\n    x = keras.layers.Dense(units, activation='relu')(x)\n{END}"),
    ),
    built(
        "Dropout after the output",
        "Dropout follows the output layer.",
        "dropout-after-output",
        source(f"{HIDDEN}return keras.Model(inputs, keras.layers.Dropout(0.5)(heads.only.output(x)))"),
        SOUND,
    ),
    built(
        "normalised over the wrong axis",
        "Features are normalised over the rows of the batch, not over the columns of a row.",
        "batch-dependent",
        source(f"x = keras.layers.UnitNormalization(axis=0)(x)\n{HIDDEN}{END}"),
        source(f"x = keras.layers.UnitNormalization(axis=-1)(x)\n{HIDDEN}{END}"),
    ),
    built(
        "a gradient that is stopped",
        "stop_gradient stands behind the hidden layer.",
        "weights-unchanged",
        source(f"{HIDDEN}x = Stop()(x)\n{END}", STOPPED),
        source(f"{HIDDEN}x = Pass()(x)\n{END}", STOPPED),
        rows="digits",
    ),
    built(
        "a slice that takes one column",
        "The features are sliced to their first column.",
        "features-ignored",
        source(f"x = x[:, :1]\n{HIDDEN}{END}"),
        SOUND,
    ),
    built(
        "mixed precision underflow",
        "In mixed_float16 a small loss is not scaled: its gradients are 0.",
        "loss-unscaled",
        half(", auto_scale_loss=False"),
        half(""),
        precision="mixed_float16",
        rows="digits",
    ),
)

# --- refused as the file is read


def refused(name: str, what: str, key: str, fault: str, plain: Callable[[], Mapping[str, float]], prints: str) -> Fault:
    """A fault that is a line of the experiment file; without the line there is none."""

    def laid(folder: Path, planted: bool) -> Path:
        path = lay("breast_cancer", {}, {})(folder, planted)
        section = f"[{key.rpartition('.')[0]}]\n"
        if planted:
            lines = [
                each for each in path.read_text().splitlines(keepends=True) if not each.startswith(fault.split(" =")[0])
            ]
            path.write_text("".join(lines).replace(section, f"{section}{fault}\n"))
        return path

    return Fault(
        name=name, what=what, plain=plain, prints=prints, lay=laid, code=key, when="file", said=before_training
    )


def _pruned() -> dict[str, float]:
    """Two trials of a study whose pruner asks for a metric by a name that no log has."""
    import keras
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(lower=2.0))  # which prunes whatever is reported
    reported = 0

    class Pruning(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
            nonlocal reported
            if (value := (logs or {}).get("val_prauc")) is not None:
                reported += 1
                trial.report(value, epoch)
                self.model.stop_training = trial.should_prune()

    for _ in range(2):
        trial = study.ask()
        study.tell(trial, loop(SOUND, "breast_cancer", callbacks=[Pruning()])["val_loss"])
    states = [each.state.name for each in study.trials]
    return {"trials": len(states), "pruned": states.count("PRUNED"), "reported": reported}


def _worst() -> dict[str, float]:
    """A loop that keeps the epoch whose accuracy was least."""
    import keras

    text = compiled("heads.only.loss", also=', metrics=["accuracy"]')
    keep = keras.callbacks.EarlyStopping("val_accuracy", mode="min", patience=3, restore_best_weights=True)
    return loop(text, "breast_cancer", callbacks=[keep])


def _patient() -> dict[str, float]:
    """A loop that would stop after fifty epochs without a gain."""
    import keras

    return loop(SOUND, "breast_cancer", callbacks=[keras.callbacks.EarlyStopping(patience=50)])


REFUSED = (
    Fault(
        name="patience longer than the budget",
        what="Training stops after 50 epochs without a gain, and has 8.",
        plain=_patient,
        prints=RIGHT,
        lay=lambda folder, planted: lay("breast_cancer", {}, {}, study={"patience": 50 if planted else 4})(
            folder, planted
        ),
        code="patience-too-long",
        when="file",
        said=before_training,
    ),
    refused(
        "a pruner on a metric that is never reported",
        "The pruner asks for a metric by a name that no log has.",
        "objective.metric",
        'metric = "val_prauc"',
        _pruned,
        "{reported} values reported, {pruned} of {trials} trials pruned, by a pruner that stops whatever it sees.",
    ),
    refused(
        "the wrong direction",
        "The epoch and the trial are kept whose AUC is least.",
        "objective.direction",
        'direction = "minimize"',
        _worst,
        RIGHT,
    ),
    refused(
        "class weights turned round",
        "The frequent class has the greater weight.",
        "model.class_weight",
        "class_weight = { 0 = 0.01, 1 = 1.0 }",
        lambda: loop(SOUND, "breast_cancer", class_weight={0: 0.01, 1: 1.0}),
        RIGHT,
    ),
    refused(
        "learning rate 1e-9",
        "The learning rate is 1e-9.",
        "model.search.learning_rate",
        "learning_rate = 1e-9",
        lambda: loop(source(MLP.format("keras.optimizers.Adam(1e-9)")), "breast_cancer"),
        RIGHT,
    ),
)

# --- targets of their own


def _of_heads(folder: Path, planted: bool) -> Path:
    order = '["mse", "binary_crossentropy"]' if planted else '["binary_crossentropy", "mse"]'
    text = f"{HIDDEN}outputs = [heads[name].output(x) for name in ('kind', 'size')]\n"
    text += f"model = keras.Model(inputs, outputs)\nmodel.compile('adam', {order})\nreturn model"
    kind = {"target": "target", "task": "binary"}
    data = {"source": "sample", "name": "breast_cancer", "drop": ["mean perimeter", "mean radius"]}
    data["heads"] = {"kind": kind, "size": {"target": "mean area", "task": "regression"}}
    model = {"builder": "net:build", "search": {"batch_size": 32}}
    path = experiment(folder, data, "val_total_loss", model=model, baselines={"kinds": []})
    (folder / "net.py").write_text(source(text))
    return path


def _of_columns(folder: Path, planted: bool) -> Path:
    frame = sample("wine")
    names = [f"cultivar {code}" for code in range(3)]
    frame = pd.concat(
        [frame.drop(columns="target"), pd.get_dummies(frame["target"]).astype(int).set_axis(names, axis=1)], axis=1
    )
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "rows.csv", index=False)
    data = {"path": "rows.csv", "target": names, "task": "multiclass"}
    model = {"builder": "net:build", "search": {"batch_size": 32}}
    path = experiment(folder, data, "val_accuracy", model=model)
    (folder / "net.py").write_text(_sparse(planted))
    return path


def _sparse(planted: bool) -> str:
    """A cross-entropy of codes, written by hand, over one-hot columns: as they are, or after an argmax."""
    codes = "y" if planted else "keras.ops.argmax(y, axis=1, keepdims=True)"
    head = f"""
@keras.saving.register_keras_serializable("garden")
def log_loss(y, p):
    codes = keras.ops.cast({codes}, "int32")
    return -keras.ops.mean(keras.ops.log(keras.ops.take_along_axis(p, codes, axis=1) + 1e-7), axis=1)
"""
    return compiled("log_loss", head=head)


OF_TARGETS = (
    Fault(
        name="the loss of the wrong head",
        what="Of two heads, a class and a number, each has the loss of the other.",
        plain=lambda: loop(compiled('"binary_crossentropy"'), "diabetes"),
        prints=f"for the number: {NUMBERS}",
        lay=_of_heads,
        code="wrong-loss",
        when="pre-flight",
        said=before_training,
    ),
    Fault(
        name="one-hot with the sparse loss",
        what="One-hot columns are trained with a cross-entropy of codes, written by hand (Keras' own one raises).",
        plain=lambda: loop(_sparse(True), "wine", one_hot=True),
        prints=RIGHT,
        lay=_of_columns,
        code="wrong-loss",
        when="pre-flight",
        said=before_training,
    ),
)

FAULTS: tuple[Fault, ...] = (*SETTINGS, *BUILT, *REFUSED, *OF_TARGETS)
