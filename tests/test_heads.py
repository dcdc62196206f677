"""Several heads: one network, targets side by side, and every figure still says which head it is of."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forge_sweep import baselines, models, sources, sweep, tracking, training
from forge_sweep.bundle import Bundle
from forge_sweep.bundle.evaluation import calibration
from forge_sweep.errors import DataError, ExperimentError, TrialFailed
from forge_sweep.experiment import parse
from forge_sweep.experiment.code import from_files
from forge_sweep.preflight import preflight
from forge_sweep.preprocessing.inputs import one_matrix
from forge_sweep.serving.predict import renderer
from forge_sweep.sweep.run import load_data
from forge_sweep.task import Answers, Joint, Task, gains, intervals, resampled, task_of
from forge_sweep.tracking import locate
from forge_sweep.trial import Recipe
from tests.serving import COMMAND, need_the_extra, records, serving

ROOT = Path(__file__).parents[1]
N = 240

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def rows(n: int = N) -> pd.DataFrame:
    """Two features that tell a class, a yes or no, and two quantities."""
    random = np.random.default_rng(4)
    frame = pd.DataFrame({"a": random.normal(size=n), "b": random.normal(size=n)})
    frame["kind"] = np.array(["red", "green", "blue"])[np.digitize(frame.a + 0.2 * random.normal(size=n), [-0.5, 0.5])]
    frame["sold"] = np.where(frame.b + 0.5 * random.normal(size=n) > 0, "yes", "no")
    frame["price"] = 100 + 20 * frame.a - 5 * frame.b + random.normal(size=n)
    frame["weight"] = 3 + frame.b
    return frame


FRAME = rows()
TASKS = {
    "colour": Task.learn("multiclass", FRAME[["kind"]]),
    "sale": Task.learn("binary", FRAME[["sold"]], positive="yes"),
    "sizes": Task.learn("regression", FRAME[["price", "weight"]], loss="mae"),
}
SUMS = (("both", (("colour_accuracy", 1.0), ("sizes_rmse", -0.5))),)
JOINT = Joint.of(TASKS, [1.0, 2.0, 0.5], SUMS)
ENCODED = JOINT.encode(FRAME)
OUTPUTS = np.concatenate(
    [
        np.random.default_rng(1).dirichlet(np.ones(3), N),
        np.random.default_rng(2).random((N, 1)),
        np.random.default_rng(3).normal(size=(N, 2)),
    ],
    axis=1,
).astype(np.float32)
SCORES = JOINT.to_scores(OUTPUTS)


def test_each_head_is_scored_as_it_would_be_by_itself() -> None:
    found = JOINT.score(ENCODED, SCORES)
    assert set(found) == set(JOINT.metrics)
    for (name, task), own in zip(TASKS.items(), (OUTPUTS[:, :3], OUTPUTS[:, 3:4], OUTPUTS[:, 4:]), strict=True):
        alone = task.score(task.encode(FRAME), task.to_scores(own))
        assert {f"{name}_{metric}": value for metric, value in alone.items()}.items() <= found.items()
    assert found["both"] == pytest.approx(found["colour_accuracy"] - 0.5 * found["sizes_rmse"])
    losses = [task.loss_of(own, its) for _, task, own, its in JOINT.apart(ENCODED, OUTPUTS)]
    assert found["total_loss"] == pytest.approx(np.dot([1.0, 2.0, 0.5], losses), rel=1e-6)
    assert JOINT.loss_of(ENCODED, OUTPUTS) == pytest.approx(found["total_loss"], rel=1e-6)


def test_resamples_give_the_same_values_as_scores_of_the_drawn_rows() -> None:
    answers = Answers(SCORES, 0.5)
    found = intervals(JOINT, ENCODED, answers, resamples=100)
    assert found["both"].low < found["both"].value < found["both"].high
    other = Answers(JOINT.to_scores(np.roll(OUTPUTS, 1, axis=0)), 0.5)
    lead = gains(JOINT, ENCODED, answers, other, ["sizes_rmse", "both"], resamples=100)
    first, second = (JOINT.score(ENCODED, each.scores) for each in (answers, other))
    assert lead["sizes_rmse"].gain.value == pytest.approx(second["sizes_rmse"] - first["sizes_rmse"])  # less is better
    assert lead["both"].gain.value == pytest.approx(first["both"] - second["both"])
    value, drawn = resampled(JOINT, ENCODED, answers, "loss", resamples=100)
    assert value == pytest.approx(JOINT.score(ENCODED, SCORES)["total_loss"]) and np.isfinite(drawn).all()


def test_it_is_described_and_restored() -> None:
    again = task_of(json.loads(json.dumps(JOINT.to_dict())))
    assert again == JOINT and again.score(ENCODED, SCORES) == JOINT.score(ENCODED, SCORES)


def test_predictions_name_their_head() -> None:
    found = JOINT.predictions(SCORES)
    colours = [f"colour_probability_{name}" for name in ("blue", "green", "red")]
    sizes = ["sizes_price", "sizes_weight"]
    assert list(found) == ["colour_label", *colours, "sale_probability", "sale_label", *sizes]
    assert list(found["sale_label"]) == list(np.where(OUTPUTS[:, 3] >= 0.5, "yes", "no"))
    one = renderer(JOINT, 0.5)([*map(float, SCORES[0])])
    assert set(one) == {"colour", "sale", "sizes"} and one["sizes"]["values"]["weight"] == SCORES[0, 5]
    alone = Joint.of({"colour": TASKS["colour"], "price": Task.learn("regression", FRAME[["price"]])}, [1, 1])
    assert list(alone.predictions(np.ones((2, 4))))[-1] == "price"


def test_a_metric_that_one_head_does_not_define_takes_its_sums_along() -> None:
    same = JOINT.encode(FRAME.assign(weight=FRAME["weight"].iloc[0]))
    summed = Joint.of(TASKS, [1, 1, 1], (("fit", (("sizes_r2", 1.0),)), *SUMS))
    (gap,) = summed.gaps(same)
    assert gap.metrics == ("sizes_r2", "fit")
    assert np.isnan(summed.score(same, SCORES)["fit"]) and np.isfinite(summed.score(same, SCORES)["both"])


def test_calibration_is_that_of_the_heads_with_probabilities() -> None:
    found = calibration(JOINT, ENCODED, SCORES)
    each = [calibration(head, own, its) for _, head, own, its in JOINT.apart(ENCODED, SCORES)]
    assert found is not None and each[2] is None
    assert found["ece"] == pytest.approx(np.mean([one["ece"] for one in each[:2] if one is not None]))


def test_a_constant_is_that_of_each_head() -> None:
    outputs = baselines.fit("constant", JOINT, np.zeros((N, 1)), ENCODED, seed=0).outputs(np.zeros((2, 1)))
    shares = FRAME["kind"].value_counts(normalize=True)
    assert outputs[0, :3] == pytest.approx([shares["blue"], shares["green"], shares["red"]])
    assert outputs[1, 3:] == pytest.approx([(FRAME["sold"] == "yes").mean(), 0, 0], abs=1e-6)


# The experiment file

HEADS: dict[str, Any] = {
    "colour": {"target": "kind", "task": "multiclass"},
    "sale": {"target": "sold", "task": "binary", "positive": "yes", "weight": 2.0},
    "sizes": {"target": "price", "task": "regression", "loss": "mae"},
}


def table(**changes: Any) -> dict[str, Any]:
    """An experiment over three heads; ``section__key=value`` changes it."""
    found: dict[str, Any] = {
        "name": "heads",
        "data": {"path": "rows.csv", "heads": HEADS, "drop": ["weight"]},
        "objective": {"metric": "val_colour_accuracy"},
        "study": {"n_trials": 2, "epochs": 4},
        "model": {"search": {"width": {"type": "int", "low": 4, "high": 8}, "depth": 1, "learning_rate": 0.01}},
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        found.setdefault(section, {})[key] = value
    return found


def test_targets_and_task_follow_from_the_heads() -> None:
    found = parse(table(), root=Path())
    assert found.data.target == ("kind", "sold", "price") and found.data.task == "joint"
    assert found.baselines.kinds == ("constant",) and any("only baseline" in text for text in found.warnings)
    assert parse(found.resolved() | {"name": "heads"}, root=Path()).contract() == found.contract()
    assert parse(table(objective__metric="val_sizes_rmse"), root=Path()).direction == "minimize"
    both = parse(table(objective__metric="val_both", objective__sum={"sale_auc": 1, "sizes_rmse": -0.1}), root=Path())
    assert both.direction == "maximize"


@pytest.mark.parametrize(
    ("path", "said", "changes"),
    [
        ("data.heads", "two heads or more", {"data__heads": {"colour": HEADS["colour"]}}),
        ("data.heads.val", "a name of letters", {"data__heads": {**HEADS, "val": {"target": "x", "task": "binary"}}}),
        ("data.heads.b.target", "already", {"data__heads": {**HEADS, "b": {"target": "sold", "task": "binary"}}}),
        ("data.heads.b.task", "binary, multi", {"data__heads": {**HEADS, "b": {"target": "x", "task": "joint"}}}),
        (
            "data.heads.b.target",
            "one column",
            {"data__heads": {**HEADS, "b": {"target": ["x", "y"], "task": "binary"}}},
        ),
        (
            "data.heads.b.loss",
            "a loss that fits binary",
            {"data__heads": {**HEADS, "b": {"target": "x", "task": "binary", "loss": "mse"}}},
        ),
        ("data.heads.b.wieght", "a known key", {"data__heads": {**HEADS, "b": {"target": "x", "wieght": 1}}}),
        ("data.task", "nothing beside", {"data__task": "binary"}),
        ("data.target", "nothing beside", {"data__target": "kind"}),
        ("data.positive", "nothing beside", {"data__positive": "yes"}),
        ("model.loss", "nothing beside", {"model__loss": "mse"}),
        ("model.class_weight", "nothing beside", {"model__class_weight": "balanced"}),
        ("baselines.kinds", "a tree predicts one target", {"baselines__kinds": ["xgboost"]}),
        ("objective.metric", "val_colour_accuracy", {"objective__metric": "val_accuracy"}),
        ("objective.sum.sale_acu", "sale_auc", {"objective__sum": {"sale_acu": 1.0}, "objective__metric": "val_s"}),
        ("objective.metric", "a name of your own", {"objective__sum": {"sale_auc": 1.0}}),
        (
            "objective.sum",
            "(sizes_rmse) a negative weight",
            {"objective__sum": {"sale_auc": 1.0, "sizes_rmse": 1.0}, "objective__metric": "val_s"},
        ),
    ],
)
def test_a_mistake_is_named(path: str, said: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ExperimentError) as caught:
        parse(table(**changes), root=Path())
    assert any(mistake.path == path and said in str(mistake) for mistake in caught.value.mistakes), caught.value


@pytest.mark.parametrize(
    ("path", "said", "heads"),
    [
        ("data.heads.sale.task", "this key is required", {**HEADS, "sale": {"target": "sold"}}),
        ("data.heads.sale.weight", "greater than 0", {**HEADS, "sale": {**HEADS["sale"], "weight": -1.0}}),
        ("data.heads.sale.target", "already", {**HEADS, "sale": {**HEADS["sale"], "target": "kind"}}),
        ("data.heads", "a table, such as [data.heads.NAME]", [{"target": "sold", "task": "binary"}]),
    ],
)
def test_one_mistake_in_a_head_is_one_mistake(path: str, said: str, heads: Any) -> None:
    with pytest.raises(ExperimentError) as caught:
        parse(table(data__heads=heads, objective__metric="val_s", objective__sum={"sale_auc": 1.0}), root=Path())
    (mistake,) = caught.value.mistakes
    assert mistake.path == path and said in str(mistake)


def test_heads_need_a_table_of_theirs_and_a_sum_needs_heads() -> None:
    alone = {"path": "rows.csv", "target": "sold", "task": "joint"}
    with pytest.raises(ExperimentError, match=r"under \[data\.heads\]"):
        parse(table() | {"data": alone}, root=Path())
    with pytest.raises(ExperimentError, match=r"nothing without \[data\.heads\]"):
        parse(
            table(objective__metric="val_s", objective__sum={"auc": 1.0}) | {"data": alone | {"task": "binary"}},
            root=Path(),
        )


def test_targets_that_do_not_fit_name_their_head(tmp_path: Path) -> None:
    found = parse(table(), root=tmp_path)
    with pytest.raises(DataError, match=r"^data\.heads\.sale: "):
        Recipe.of(found).learn_task(FRAME.assign(sold=FRAME["kind"]))
    FRAME.assign(sold=FRAME["price"]).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(
        DataError, match=r'^data\.heads\.sale\.task = "binary": target \'sold\' has \d+ different values'
    ):
        load_data(found, lambda event: None)


def test_rows_are_stratified_by_the_first_head_of_classes_and_each_head_is_audited(tmp_path: Path) -> None:
    FRAME.assign(copy=FRAME["sold"] == "yes").to_csv(tmp_path / "rows.csv", index=False)
    dataset = load_data(parse(table(), root=tmp_path), lambda event: None)
    shares = dataset.valid.targets["kind"].value_counts(normalize=True)
    assert shares.to_numpy() == pytest.approx(FRAME["kind"].value_counts(normalize=True)[shares.index], abs=0.03)
    from forge_sweep.checks.audit import audit

    declared = parse(table(), root=tmp_path)
    found = audit(dataset, "joint", declared.preprocessing, scaled=True, heads=declared.data.heads)
    (leak,) = [finding for finding in found.findings if finding.severity == "error"]
    assert leak.code == "target-leak-copy" and leak.subject == "copy"


# The network

TRUNK = 'hidden = keras.layers.Dense(width, activation="relu")(inputs["features"])\n    '
OUT = "{name: head.output(hidden) for name, head in heads.items()}"


def code(ending: str, head: str = "", trunk: str = TRUNK) -> Any:
    """A module whose function ends so."""
    text = f"import keras\n{head}\ndef build(inputs, heads, *, width: int = 4):\n    {trunk}{ending}\n"
    return from_files("net", "build", {"net": text})


SUBCLASS = """
class Net(keras.Model):
    def __init__(self, heads, **kwargs):
        super().__init__(**kwargs)
        self.ends = {name: head.layer() for name, head in heads.items()}
    def call(self, inputs):
        return {name: layer(inputs) for name, layer in self.ends.items()}
"""
SHAPES = {
    "by name": code(f"return keras.Model(inputs, {OUT})"),
    "in another order": code(f"return keras.Model(inputs, dict(reversed({OUT}.items())))"),
    "as a list": code(f"return keras.Model(inputs, list({OUT}.values()))"),
    "as a list with the names of the heads": code(f"return keras.Model(inputs, list(reversed({OUT}.values())))"),
    "joined": code(f"return keras.Model(inputs, heads.join({OUT}))"),
    "subclassed": code("return Net(heads)", SUBCLASS, ""),
    "a model class with a train_step of its own": code(
        f"return Own(inputs, {OUT})",
        "class Own(keras.Model):\n    def train_step(self, data): return super().train_step(data)",
    ),
    "compiled": code(
        f"model = keras.Model(inputs, {OUT})\n    losses = {{name: head.loss for name, head in heads.items()}}\n"
        '    model.compile(optimizer="adam", loss=losses, loss_weights={"colour": 1.0, "sale": 2.0, "sizes": 0.5})\n'
        "    return model"
    ),
    "mlp": "mlp",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_of_any_form_train_side_by_side(shape: str) -> None:
    training.select_backend("tensorflow")
    training.seed_everything(1)
    params: Any = {"width": 4, "depth": 1, "batch_size": 32, "learning_rate": 0.01}
    model = models.build(SHAPES[shape], one_matrix(2), JOINT, params)
    x = FRAME[["a", "b"]].to_numpy(np.float32)
    outputs = training.outputs(model, x)
    assert outputs.shape == (N, 6) and outputs[:, :3].sum(axis=1) == pytest.approx(np.ones(N), abs=1e-5)
    assert training.data_loss(model, JOINT, ENCODED, outputs) == pytest.approx(
        JOINT.loss_of(ENCODED, outputs), rel=1e-5
    )
    data = training.TrainingData(x, ENCODED, x, ENCODED)
    spec = training.FitSpec(epochs=2, patience=2, batch_size=32, monitor="val_both", direction="maximize")
    fitted = training.fit(model, JOINT, data, spec, lambda epoch, logs: False)
    assert fitted.history[1]["loss"] < fitted.history[0]["loss"] and "val_sale_auc" in fitted.history[1]
    last = fitted.history[-1]
    assert last["val_loss"] == pytest.approx(last["val_total_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("said", "ending"),
    [
        ("gives 2 outputs (colour, sale), expected one for each head", f"o = {OUT}; del o['sizes']"),
        ("gives (rows, 1) for the head sizes, expected (rows, 2)", f"o = {OUT}; o['sizes'] = o['sale']"),
        ("gives (rows, 4), expected (rows, 6)", "o = keras.layers.Dense(4)(hidden)"),
        ("there is no head 'colur', there is 'colour', 'sale', 'sizes'; did you mean", "heads['colur']"),
        ("there are several heads: colour, sale, sizes; take each by its name", "heads.only"),
    ],
)
def test_a_builder_that_misses_a_head_is_told(said: str, ending: str) -> None:
    training.select_backend("tensorflow")
    with pytest.raises(TrialFailed) as caught:
        models.build(code(f"{ending}\n    return keras.Model(inputs, o)"), one_matrix(2), JOINT, {"width": 4})
    assert said in caught.value.message


def test_the_wrong_activation_is_that_of_a_head(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "rows.csv", index=False)
    wrong = TRUNK + f"outputs = {OUT}\n    outputs['sale'] = keras.layers.Dense(1, name='sale')(hidden)\n    "
    (tmp_path / "net.py").write_text(
        f"import keras\ndef build(inputs, heads, *, width: int = 8):\n    {wrong}return keras.Model(inputs, outputs)\n"
    )
    settings = parse({**table(), "model": {"builder": "net:build"}, "study": {"n_trials": 1}}, root=tmp_path)
    training.select_backend("tensorflow")
    found = preflight(settings, sources.load(settings.data, root=tmp_path, seed=0))
    (one,) = {(each.code, each.subject, each.fix) for each in found if each.severity == "error"}
    assert one == (
        "output-activation",
        "net:build, head sale",
        'end that branch with heads["sale"].output(hidden)',
    )


def test_labels_are_smoothed_where_a_head_can() -> None:
    training.select_backend("tensorflow")
    params: Any = {"width": 4, "label_smoothing": 0.2}
    model = models.build(SHAPES["by name"], one_matrix(2), JOINT, params)
    assert model.loss.label_smoothing == 0.2
    x = FRAME[["a", "b"]].to_numpy(np.float32)
    outputs = training.outputs(model, x)
    loss = JOINT.loss_of(ENCODED, outputs)
    assert training.data_loss(model, JOINT, ENCODED, outputs) == pytest.approx(loss, rel=1e-5)
    assert float(model.loss(ENCODED, outputs)) != pytest.approx(loss, rel=1e-3)


def test_the_package_s_own_network_is_swept_and_kept_with_its_preprocessing_inside(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "rows.csv", index=False)
    declared = parse(
        table(
            model__preprocessing="in_model",
            confirm__top=1,
            confirm__seeds=1,
            baselines__kinds=[],
            objective__metric="val_both",
            objective__sum={"colour_accuracy": 1.0, "sizes_r2": 1.0},
        ),
        root=tmp_path,
    )
    result = sweep.run(declared, store=tmp_path / "mlruns")
    assert result.model is not None
    with tracking.fetched(locate(result.model, tmp_path / "mlruns"), tmp_path / "mlruns") as folder:
        assert (folder / "raw.keras").exists()  # verified against the golden scores as it was written
        bundle = Bundle.load(folder, verify=True)
        assert isinstance(bundle.task, Joint) and bundle.kind == "network"
        assert list(bundle.predict(FRAME[["a", "b"]].head(2)))[-1] == "sizes"


@pytest.mark.slow
def test_two_heads_are_swept_registered_predicted_served_and_the_run_is_made_again(tmp_path: Path) -> None:
    need_the_extra()
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}

    def forge_sweep(*words: str) -> str:
        command = [*COMMAND, *words]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    small = ["study.n_trials=2", "study.epochs=3", "confirm.top=1", "confirm.seeds=1", "ensemble.ship=never"]
    forge_sweep("run", str(ROOT / "experiments/two_heads.toml"), *small)
    new = pd.read_csv(ROOT / "experiments/data/new.csv").drop(columns="Price")
    new.to_csv(tmp_path / "new.csv", index=False)
    forge_sweep("predict", "models:/two_heads/1", "new.csv", "-o", "found.jsonl")
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert len(found) == 10 and all({"outcome_probability", "outcome_label", "price"} <= set(row) for row in found)
    assert "exact" in forge_sweep("reproduce", "models:/two_heads/1")
    with serving("models:/two_heads/1", tmp_path / "serve", "--store", str(tmp_path / "mlruns")) as api:
        (answer,) = api.predict(records(new.head(1))).json["predictions"]
        assert answer["price"]["values"]["Price"] == pytest.approx(found[0]["price"], abs=1e-3)
        assert answer["outcome"]["label"] == found[0]["outcome_label"]
        schema = api.get("/openapi.json").json["components"]["schemas"]["Prediction"]
        assert set(schema["required"]) == {"outcome", "price", "warnings"}
