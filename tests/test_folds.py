"""A trial over folds: which rows, what is learned from which, predictions out of fold, pruning, resuming, the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_sweep import parts, predictions, reproduce, sources, sweep, tracking, trial
from forge_sweep.bundle import Bundle
from forge_sweep.bundle.ensemble import Ensemble
from forge_sweep.errors import DataError, ExperimentError, TrialFailed
from forge_sweep.experiment import Experiment, load, parse
from forge_sweep.experiment.spec import ConstraintsSpec
from forge_sweep.preflight import preflight
from forge_sweep.sources.assemble import assemble
from forge_sweep.study.story import story
from forge_sweep.sweep import Event
from forge_sweep.training import FileCheckpoint
from tests.killed import kill
from tests.test_study import opened
from tests.test_sweep import run, runs, study_of

EXAMPLE = Path(__file__).parents[1] / "experiments/folds.toml"
PARAMS: dict[str, Any] = {"width": 8, "depth": 1, "learning_rate": 0.01, "batch_size": 32}


def experiment(task: str = "multiclass", name: str = "wine", **split: Any) -> Experiment:
    """A small one on real data."""
    metric = {"multiclass": "val_loss", "regression": "val_rmse"}[task]
    return parse(
        {
            "name": "folded",
            "seed": 4,
            "data": {
                "source": "sample",
                "name": name,
                "target": "target",
                "task": task,
                "split": {"folds": 3, **split},
            },
            "model": {"search": {**PARAMS, "learning_rate": {"type": "float", "low": 1e-3, "high": 1e-2, "log": True}}},
            "objective": {"metric": metric},
            "study": {"n_trials": 4, "epochs": 3, "startup_trials": 1},
            "baselines": {"kinds": ["constant"]},
            "confirm": {"top": 1, "seeds": 1},
        },
        root=Path(),
    )


def rows(spec: Experiment) -> sources.Dataset:
    """Its rows."""
    return sources.load(spec.data, root=Path(), seed=spec.seed)


def made(frame: pd.DataFrame, *, task: str = "binary", seed: int = 0, **split: Any) -> sources.Dataset:
    """A dataset of these rows."""
    data = {"source": "file", "path": "rows.csv", "target": "y", "task": task, "split": split}
    metric = "val_auc" if task == "binary" else "val_rmse"
    spec = parse({"name": "made", "data": data, "objective": {"metric": metric}}, root=Path()).data
    return assemble(frame, spec, name="made", source="rows.csv", seed=seed)


def table(n: int, seed: int = 0, **columns: Any) -> pd.DataFrame:
    """Rows with a quarter of ones."""
    x = np.random.default_rng(seed).normal(size=n)
    return pd.DataFrame({"x": x, "y": (np.arange(n) % 4 == 0).astype(int), **columns})


# Which rows


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(40, 300),
    n_folds=st.integers(2, 6),
    repeats=st.integers(1, 3),
    stratify=st.booleans(),
    seed=st.integers(0, 9),
)
def test_every_row_is_validated_once_in_each_repeat_and_by_a_fold_that_does_not_train_on_it(
    n: int, n_folds: int, repeats: int, stratify: bool, seed: int
) -> None:
    found = made(table(n), seed=seed, folds=n_folds, repeats=repeats, stratify=stratify)
    pool, test = set(found.pool.rows), set(range(n)) - set(found.pool.rows)
    assert len(test) == found.sizes["test"]
    often = np.zeros(n, int)
    for fold in found.folds:
        train, valid = set(fold.rows.train.rows), set(fold.rows.valid.rows)
        assert train | valid == pool and not train & valid
        assert list(found.judged.rows[fold.at]) == list(fold.rows.valid.rows)
        often[fold.rows.valid.rows] += 1
    assert set(often[list(pool)]) == {repeats} and not often[list(test)].any()
    sizes = [len(fold.rows.valid.rows) for fold in found.folds]
    assert max(sizes) - min(sizes) <= (2 if stratify else 1)
    if stratify:
        ones = [int(fold.rows.valid.targets["y"].sum()) for fold in found.folds]
        assert max(ones) - min(ones) <= 1
    assert len({fold.rows.split_digest for fold in found.folds}) == len(found.folds)


def test_the_same_seed_gives_the_same_folds_and_another_one_others() -> None:
    one, same, other = (made(table(80), seed=seed, folds=4) for seed in (1, 1, 2))
    digests = [[fold.rows.split_digest for fold in each.folds] for each in (one, same, other)]
    assert digests[0] == digests[1] and not set(digests[0]) & set(digests[2])
    repeated = made(table(80), seed=1, folds=4, repeats=2)
    assert [fold.rows.split_digest for fold in repeated.folds][:4] == digests[0]
    assert made(table(80), seed=1).split_digest == one.split_digest  # the test rows are those of one split


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_group_is_never_on_both_sides(task: str) -> None:
    frame = table(200, g=np.repeat(np.arange(40), 5))
    found = made(frame, task=task, kind="group", group="g", folds=4, repeats=2)
    for fold in found.folds:
        train, valid = (set(frame["g"].iloc[split.rows]) for split in (fold.rows.train, fold.rows.valid))
        assert not train & valid and train and valid
    assert len(found.judged.rows) == len(found.pool.rows)


@settings(max_examples=30, deadline=None)
@given(moments=st.integers(12, 60), n_folds=st.integers(2, 6), seed=st.integers(0, 5))
def test_by_time_a_fold_trains_on_what_is_older_than_what_it_validates(moments: int, n_folds: int, seed: int) -> None:
    times = np.random.default_rng(seed).integers(0, moments, 200)
    times[:moments] = np.arange(moments)
    frame = table(200, t=times)
    found = made(frame, kind="time", time="t", folds=n_folds)
    newest = -1
    for fold in found.folds:
        train, valid = (frame["t"].iloc[split.rows] for split in (fold.rows.train, fold.rows.valid))
        assert train.max() < valid.min() and valid.min() > newest
        newest = int(valid.max())
    assert frame["t"].iloc[found.judged.rows].min() > frame["t"].iloc[found.folds[0].rows.train.rows].max()
    assert len(found.judged.rows) + len(found.folds[0].rows.train.rows) == len(found.pool.rows)


def test_too_few_rows_of_a_class_groups_or_moments_are_refused_with_a_number_that_does() -> None:
    rare = table(60).assign(y=lambda frame: (frame.index % 15 == 0).astype(int))
    with pytest.raises(DataError, match=r"data.split.folds = 5: class 1 has 3 of the 51 rows.*\n.*folds = 3 under"):
        made(rare, folds=5)
    made(rare, folds=3)
    groups = table(60, g=np.repeat(np.arange(6), 10))
    with pytest.raises(DataError, match=r"there are \d groups in column 'g' among the rows that train and validate"):
        made(groups, kind="group", group="g", folds=6)
    late = table(60, t=np.arange(60)).assign(y=lambda frame: (frame.index > 25).astype(int))
    with pytest.raises(DataError, match=r"fold 1 trains on \d+ rows, and none has class 1"):
        made(late, kind="time", time="t", folds=3)
    with pytest.raises(DataError, match=r"3 different times after the oldest in column 't'.*\n.*folds = 3 under"):
        made(table(60, t=np.repeat(np.arange(5), 12)), kind="time", time="t", folds=4)


@pytest.mark.parametrize(
    ("split", "more", "said"),
    [
        ({"repeats": 2}, {}, "data.split.repeats = 2: expected nothing without folds"),
        ({"final": "refit"}, {}, 'data.split.final = "refit": expected nothing without folds'),
        ({"folds": 3, "kind": "column", "column": "c"}, {}, "expected 1, since a column says which rows validate"),
        ({"folds": 3, "repeats": 2, "kind": "time", "time": "t"}, {}, "there is one order of time"),
        ({"folds": 3}, {"study": {"pruner": "hyperband"}}, "a pruner that can judge whole folds"),
        ({"folds": 3}, {"model": {"preprocessing": "in_model"}}, "the average of the folds' models is registered"),
        ({"folds": 1.5}, {}, "data.split.folds = 1.5"),
        ({"folds": 3}, {"objective": {"metrics": ["val_auc", "parameters"]}}, "since there are 2 objectives"),
    ],
)
def test_what_goes_with_no_folds_is_refused(split: dict[str, Any], more: dict[str, Any], said: str) -> None:
    data = {"source": "file", "path": "rows.csv", "target": "y", "task": "binary", "split": split}
    with pytest.raises(ExperimentError, match=said.replace(".", r"\.")):
        parse({"name": "x", "data": data, **{"objective": {"metric": "val_auc"}, **more}}, root=Path())


def test_a_sweep_that_was_begun_before_there_were_folds_is_the_same_one() -> None:
    data = {"source": "sample", "name": "wine", "target": "target", "task": "multiclass"}
    raw: dict[str, Any] = {"name": "x", "data": data, "objective": {"metric": "val_auc"}}
    now = parse(raw, root=Path())
    before = now.resolved()
    for key in ("folds", "repeats", "final"):
        del before["data"]["split"][key]
    assert not now.differences(before)
    folded = parse({**raw, "data": {**data, "split": {"folds": 3}}}, root=Path())
    assert folded.differences(before) == {"data.split.folds": "data.split.folds: 1 -> 3"}
    assert folded.contract() != now.contract()


# What is learned from which


def train(spec: Experiment, data: sources.Dataset, **more: Any) -> trial.TrialResult:
    """One trial."""
    return trial.run(spec, data, {**dict(spec.space), **PARAMS}, 1, more.pop("on_epoch", parts.go_on), **more)


def test_a_trial_is_the_mean_over_folds_and_predicts_each_row_by_a_model_that_has_not_seen_it() -> None:
    spec = experiment(repeats=2)
    data, told, within = rows(spec), dict[int, dict[str, float]](), list[tuple[str, int]]()
    result = train(
        spec,
        data,
        on_epoch=lambda fold, metrics: bool(told.update({fold: metrics})),
        on_inner=lambda fold, epoch, metrics: within.append((fold, epoch)),
    )
    assert list(told) == list(range(6)) and result.history == tuple(told.values())
    assert within == [(f"fold_{n}", epoch) for n in range(1, 7) for epoch in range(3)]
    assert isinstance(result.bundle.model, Ensemble) and result.scores is not None
    members = [
        dataclasses.replace(result.bundle, model=member.model, preprocessor=member.preprocessor)
        for member in result.bundle.model.members
    ]
    assert result.repeated is not None
    values, opinions = [], np.zeros_like(result.repeated)
    for member, fold in zip(members, data.folds, strict=True):
        scores = member.scores(fold.rows.valid.features)
        opinions[len(values) // 3, fold.at] = scores
        values.append(member.task.score(member.task.encode(fold.rows.valid.targets), scores)["log_loss"])
    assert np.allclose(opinions, result.repeated, atol=1e-6) and opinions.shape[0] == 2
    assert np.array_equal(result.scores, result.repeated[0])  # the second opinion is no part of what is kept and shown
    assert result.metrics["val_log_loss"] == pytest.approx(np.mean(values), abs=1e-6)
    assert [row["val_log_loss"] for row in result.history] == pytest.approx(
        [np.mean(values[: n + 1]) for n in range(6)], abs=1e-6
    )


def test_what_a_fold_validates_has_no_part_in_its_model() -> None:
    """The labels of its validation rows are shuffled, and the same model comes out, but for which epoch is the best."""
    spec = experiment(final="average")
    spec = spec.model_copy(update={"study": spec.study.model_copy(update={"epochs": 1})})
    data = rows(spec)
    fold = data.folds[1]
    targets = fold.rows.valid.targets.sample(frac=1, random_state=0).set_axis(fold.rows.valid.targets.index)
    other = dataclasses.replace(fold.rows, valid=dataclasses.replace(fold.rows.valid, targets=targets))
    part = parts.ONE_OF_SEVERAL
    one, same = (train(spec, each, part=part).bundle.weights_sha256 for each in (fold.rows, other))
    assert one == same
    assert train(spec, data.folds[0].rows, part=part).bundle.weights_sha256 != one


def test_classes_and_categories_are_those_of_all_folds_and_the_scale_of_columns_is_the_folds_own() -> None:
    """A category that one fold never trains on is known to its model, and so all models take the same rows."""
    n = 60
    frame = table(n, seed=1, c=["rare" if i in (3, 7) else "abc"[i % 3] for i in range(n)])
    data = made(frame, folds=3, seed=2)
    recipe = trial.Recipe.of(experiment())
    recipe = dataclasses.replace(recipe, task="binary")
    prepared = [trial.arrays_of(fold.rows, recipe) for fold in data.folds]
    assert len({p.preprocessor.output_names for p in prepared}) == 1
    assert len({str(p.preprocessor.schema.to_dict()) for p in prepared}) == 1
    assert len({float(np.ravel(p.data.x_train)[0]) for p in prepared}) == 3


def test_a_failure_says_in_which_fold() -> None:
    spec = experiment()
    data = rows(spec)
    broken = data.train.features.copy()
    params = {**dict(spec.space), **PARAMS, "learning_rate": 1e30}
    with pytest.raises(TrialFailed, match=r"^fold 1: ") as failed:
        trial.run(spec, data, params, 1, parts.go_on)
    assert failed.value.failure == "diverged" and len(broken)


def test_the_time_of_a_trial_is_that_of_all_its_folds() -> None:
    class Slow:
        seconds, history, best_epoch, metrics = 3.0, (), 0, {"val_loss": 1.0}

    def one(rows: Any, seed: int, tell: Any, name: str, left_s: float | None, part: Any = None) -> Any:
        lefts.append(left_s)
        return Slow()

    lefts: list[float | None] = []
    three = rows(experiment()).folds
    with pytest.raises(TrialFailed, match=r"^its folds took longer than 5 s together") as failed:
        parts.train(three, one, parts.Checkpoints(None), [1, 2, 3], parts.go_on, parts.say_nothing, 5.0)
    assert failed.value.failure == "time-out" and lefts == [5.0, 2.0]


# The model


@pytest.mark.parametrize(("task", "name"), [("multiclass", "wine"), ("regression", "diabetes")])
def test_the_average_of_the_folds_models_is_one_bundle_and_loads(task: str, name: str, tmp_path: Path) -> None:
    spec = experiment(task, name)
    data = rows(spec)
    result = train(spec, data, final=True)
    assert result.bundle.kinds == ("network",) * 3
    assert result.bundle.metadata["folds"] == {"n": 3, "repeats": 1, "final": "average"}
    assert result.bundle.metadata["split_digest"] == data.split_digest
    result.bundle.save(tmp_path / "bundle", data.pool.features)
    loaded = Bundle.load(tmp_path / "bundle", verify=True)
    assert loaded.weights_sha256 == result.bundle.weights_sha256


def test_a_refit_is_one_network_on_the_rows_of_all_folds_for_as_long_as_their_best_epochs() -> None:
    spec = experiment(final="refit")
    data, within = rows(spec), list[str]()
    searched = train(spec, data)
    assert searched.bundle.kind == "ensemble"  # a trial of the search needs no more
    result = train(spec, data, final=True, on_inner=lambda fold, epoch, metrics: within.append(fold))
    assert result.bundle.kind == "network" and result.value == searched.value
    assert result.bundle.threshold == searched.bundle.threshold and result.metrics == searched.metrics
    alone = [train(spec, fold.rows, part=parts.ONE_OF_SEVERAL) for fold in data.folds]
    epochs = parts.refit(alone).only
    assert epochs == within.count("final")
    assert np.array_equal(np.asarray(result.scores), np.asarray(searched.scores))
    assert f"trained again on the rows of all folds: {epochs} epochs" in result.events
    again = train(spec, data.whole, part=parts.Part(only=epochs, rates=parts.refit(alone).rates))
    assert again.bundle.weights_sha256 == result.bundle.weights_sha256
    assert len(again.history) == epochs and again.best_epoch == len(again.history) - 1


def test_the_refit_takes_the_mean_of_the_best_epochs_and_the_rates_of_the_middle_fold() -> None:
    @dataclasses.dataclass
    class Ended:
        best_epoch: int
        history: tuple[dict[str, float], ...]

    def ended(best: int, rate: float) -> Any:
        return Ended(best, tuple({"lr": rate} for _ in range(best + 3)))

    found = parts.refit([ended(1, 0.1), ended(9, 0.3), ended(4, 0.2)])
    assert found.only == round((2 + 10 + 5) / 3) and set(found.rates) == {0.2}


def test_limits_hold_for_the_average_as_a_whole() -> None:
    spec = experiment()
    data, alone = rows(spec), train(spec, rows(spec).folds[0].rows, part=parts.ONE_OF_SEVERAL).bundle.model
    limit = ConstraintsSpec(parameters=2 * alone.count_params())
    three = spec.model_copy(update={"constraints": limit})
    with pytest.raises(TrialFailed, match=r"^parameters = .* \(50% over\); it was not trained") as failed:
        train(three, data)
    assert failed.value.failure == "infeasible"
    (found,) = [each for each in preflight(three, data) if each.code == "infeasible"]
    assert "of the average of 3 smallest networks" in found.seen
    one = experiment(final="refit").model_copy(update={"constraints": limit})
    assert not [each for each in preflight(one, data) if each.code == "infeasible"]
    model = train(one, data, final=True)
    assert model.state == "finished" and model.bundle.kind == "network"


def test_where_one_network_is_registered_a_trial_costs_what_one_costs(tmp_path: Path) -> None:
    found = {}
    for final in ("average", "refit"):
        spec = experiment(final=final)
        limits = ConstraintsSpec(parameters=10_000)
        spec = spec.model_copy(
            update={"constraints": limits, "study": spec.study.model_copy(update={"n_trials": 1, "epochs": 1})}
        )
        sweep.run(spec, store=tmp_path / final)
        (row,) = study_of(tmp_path / final, "folded").rows()
        found[final] = row.measured["parameters"]
    assert found["average"] == 3 * found["refit"]


# Cut off and going on


@pytest.mark.parametrize("final", ["average", "refit"])
def test_a_trial_that_was_cut_off_in_any_fold_comes_to_the_same_model_bit_by_bit(final: str, tmp_path: Path) -> None:
    spec = experiment(final=final)
    data = rows(spec)
    whole = train(spec, data, final=True)
    last = ("final", 0) if final == "refit" else ("fold_3", 1)
    for stop in [("fold_1", 1), ("fold_2", 2), last]:
        checkpoint, resumed = FileCheckpoint(tmp_path / f"{stop[0]}.npz"), list[int]()

        def ctrl_c(fold: str, epoch: int, metrics: dict[str, float], stop: Any = stop) -> None:
            if (fold, epoch) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(spec, data, final=True, checkpoint=checkpoint, on_inner=ctrl_c)
        again = train(spec, data, final=True, checkpoint=checkpoint, on_resume=resumed.append)
        assert again.bundle.weights_sha256 == whole.bundle.weights_sha256, stop
        assert again.history == whole.history
        done = 3 if stop[0] == "final" else int(stop[0][-1]) - 1
        assert resumed == [done]
        assert sum("taken up again" in event for event in again.events) >= 1


def test_a_damaged_checkpoint_is_trained_from_the_beginning(tmp_path: Path) -> None:
    checkpoint = FileCheckpoint(tmp_path / "torn.npz")
    checkpoint.save(b"PK\x03\x04 torn")
    spec = experiment()
    again = train(spec, rows(spec), checkpoint=checkpoint)
    assert again.bundle.weights_sha256 == train(spec, rows(spec)).bundle.weights_sha256


def test_a_pruned_trial_has_the_folds_that_it_had() -> None:
    spec = experiment()
    result = train(spec, rows(spec), on_epoch=lambda fold, metrics: fold == 1)
    assert result.state == "pruned" and len(result.history) == 2 and result.scores is None
    assert result.value == result.history[-1]["val_loss"]
    last = train(spec, rows(spec), on_epoch=lambda fold, metrics: fold == 2)
    assert last.state == "finished"  # after the last fold nothing is left to prune


def studied(folds: int = 5, **study: Any) -> Experiment:
    """An experiment whose trials are told to the study by hand."""
    spec = experiment(folds=folds)
    return spec.model_copy(update={"study": spec.study.model_copy(update={"n_trials": 9, **study})})


def begun(study: Any) -> int:
    """The number of the next trial."""
    asked = study.ask()
    assert asked is not None
    return int(asked.number)


@pytest.mark.parametrize("pruner", ["median", "percentile"])
def test_a_trial_is_compared_after_as_many_folds_and_an_easy_first_one_protects_none(
    pruner: str, tmp_path: Path
) -> None:
    """Optuna's own pruners take the best that a trial has had so far, here the mean over its easiest folds."""
    study = opened(tmp_path, studied(startup_trials=3, pruner=pruner, percentile=50.0))
    with study.hold():
        for _ in range(3):
            number = begun(study)
            assert not any(study.report(number, fold, mean) for fold, mean in enumerate([0.3, 0.4, 0.45, 0.49, 0.5]))
            study.tell(number, "finished", 0.5)
        number = begun(study)
        assert not study.report(number, 0, 0.29)
        assert study.report(number, 1, 1.1)  # the first fold was the best of all
        assert study.report(number, 1, 1.1)  # asked again after a kill
        study.tell(number, "pruned", 1.1)
    assert study.rows()[-1].epochs == 2


def test_wilcoxons_test_gets_single_folds_and_the_study_keeps_the_means(tmp_path: Path) -> None:
    study = opened(tmp_path, studied(pruner="wilcoxon"))
    with study.hold():
        number = begun(study)
        for fold, mean in enumerate([0.9, 0.8, 0.85]):
            study.report(number, fold, mean)
        study.tell(number, "finished", 0.85)
        assert study.reports(number) == pytest.approx({0: 0.9, 1: 0.8, 2: 0.85})
        frozen = study._study.get_trials(deepcopy=False)[0]
        assert frozen.intermediate_values == pytest.approx({1: 0.9, 2: 0.7, 3: 0.95})


def test_a_fork_takes_no_means_over_folds_for_epochs(tmp_path: Path) -> None:
    study = opened(tmp_path, studied(3))
    with study.hold():
        number = begun(study)
        study.report(number, 0, 0.4)
        study.tell(number, "finished", 0.5)
    for other, said in ((studied(4), "data.split.folds: 3 -> 4"), (studied(1), "data.split.folds: 4 -> 1")):
        fork = opened(tmp_path, other, fork=True)
        assert fork.imported == 0 and said in fork.skipped


# A sweep


@dataclasses.dataclass(frozen=True)
class Hilly:
    """A fake `trial.run` with folds: one network is trained once, the objective follows from the learning rate."""

    result: trial.TrialResult
    asked: list[tuple[int, ...]]

    def __call__(self, spec: Experiment, splits: Any, params: Any, seed: int, on_epoch: Any, **more: Any) -> Any:
        height = 1 / float(params["learning_rate"]) / 1000
        told = []
        for fold in range(spec.steps.epochs):
            more["on_inner"](f"fold_{fold + 1}", 0, {"val_loss": height})
            told.append({"val_loss": height + 0.001 * fold, "loss": height})
            if on_epoch(fold, told[-1]) and fold + 1 < spec.steps.epochs:
                break
        self.asked.append((len(told), more["final"]))
        ended = {"history": tuple(told), "best_epoch": len(told) - 1, "value": told[-1]["val_loss"]}
        pruned = len(told) < spec.steps.epochs
        return dataclasses.replace(
            self.result, state="pruned" if pruned else "finished", metrics={"val_loss": told[-1]["val_loss"]}, **ended
        )


@pytest.mark.parametrize("pruner", ["median", "percentile", "wilcoxon"])
def test_pruners_judge_whole_folds(pruner: str, tmp_path: Path) -> None:
    spec = experiment(folds=4 if pruner != "wilcoxon" else 8)
    spec = spec.model_copy(update={"study": spec.study.model_copy(update={"pruner": pruner, "n_trials": 8})})
    fake = Hilly(train(spec, rows(spec)), [])
    seen: list[Event] = []
    run(spec, tmp_path, fake, watch=seen.append)
    study = study_of(tmp_path, "folded")
    states = study.counts()
    assert states["pruned"] >= 1 and states["finished"] >= 1 and study.step == "fold"
    pruned = next(row for row in study.rows() if row.state == "pruned")
    earliest = 1 if pruner != "wilcoxon" else 4  # a signed-rank test of fewer folds cannot reach 0.1
    assert earliest <= pruned.epochs < spec.steps.epochs
    told = dict(story(study, pruned))
    assert f"pruned after {pruned.epochs} fold" in told["ended"] and "fold 1" in told["course"]
    assert {each.kind for each in seen} >= {"part", "epoch"}
    assert all("part" in each.data for each in seen if each.kind == "epoch")
    assert [final for _, final in fake.asked] == [False] * 8 + [True]  # the confirmation keeps a model
    (first,) = (each for each in runs(tmp_path, "trial") if each.info.run_name == "trial-0000")
    assert {f"fold_{n}/val_loss" for n in range(1, 5)} <= set(first.data.metrics)


def test_the_verdict_takes_predictions_out_of_fold_and_never_those_of_the_model_that_saw_the_rows(
    tmp_path: Path,
) -> None:
    """Of a model that knows all its rows by heart, the verdict and the kept predictions know that it is no good."""
    spec = experiment()
    spec = spec.model_copy(update={"study": spec.study.model_copy(update={"n_trials": 1, "epochs": 2})})
    real = train(spec, rows(spec))
    noise = np.random.default_rng(0).dirichlet(np.ones(3), len(rows(spec).judged.rows))

    def by_heart(*args: Any, **more: Any) -> Any:
        result = Hilly(real, [])(*args, **more)
        return dataclasses.replace(result, scores=noise, repeated=noise[None])

    result = run(spec, tmp_path, by_heart)
    kept = predictions.read(study_of(tmp_path, "folded"), tmp_path)
    scored = kept.score("log_loss")
    assert scored["confirm:0000:1"] == pytest.approx(scored["trial:0"]) and scored["trial:0"] > 1
    assert len(kept.encoded) == len(rows(spec).pool.rows)
    ends = result.confirmed[[each["baseline"] for each in result.confirmed].index("")]["interval"]
    assert ends[0] > 1.0, "the average itself scores about 0.9"


@pytest.mark.slow
def test_processes_train_the_same_networks_as_this_one(tmp_path: Path) -> None:
    spec = experiment(final="refit")
    spec = spec.model_copy(update={"study": spec.study.model_copy(update={"n_trials": 2})})
    weights = []
    for kind in ("serial", "processes"):
        raw = {**spec.resolved(), "workers": {"kind": kind, "n": 1 if kind == "serial" else 2}}
        own = parse({**raw, "baselines": {"kinds": ["constant"], "tune": False}}, root=Path())
        result = sweep.run(own, store=tmp_path / kind)
        study = study_of(tmp_path / kind, "folded")
        best = study.best()
        assert best is not None and result.trials["finished"] >= 1
        weights.append(tracking.read_record(result.model, tmp_path / kind).tags["forge.weights_sha256"])
    assert reproduce.reproduce(result.model, store=tmp_path / "processes").verdict.word == "exact"
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_the_example_is_killed_goes_on_and_its_model_is_made_again(tmp_path: Path) -> None:
    short = [
        *("study.epochs=6", "study.n_trials=2", "confirm.top=1", "confirm.seeds=1", "model.search.learning_rate=0.01"),
        *("model.search.width=16", "study.repeats=true", 'baselines.kinds=["constant"]', "baselines.tune=false"),
    ]
    kill("folds", tmp_path, "part", 0, 2, short)
    seen: list[Event] = []
    result = sweep.run(load(EXAMPLE, short), store=tmp_path, watch=seen.append)
    rows_of = study_of(tmp_path, "folds").rows()
    assert len(rows_of) == 2 and rows_of[0].epochs == 5 and rows_of[0].attempt == 2
    assert result.winner["baseline"] == ""
    assert reproduce.reproduce(result.model, store=tmp_path).verdict.word == "exact"
    first = next(each for each in runs(tmp_path, "trial") if each.info.run_name == "trial-0000")
    assert reproduce.reproduce(first.info.run_id, store=tmp_path).verdict.word == "exact"
