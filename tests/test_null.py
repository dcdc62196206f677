"""The null sweep: its p-values are uniform where nothing can be learned, and small where something is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from forge_sweep import Sweep, sources, sweep, training, trial
from forge_sweep.cli import app
from forge_sweep.errors import InputError, TrialFailed
from forge_sweep.experiment import Experiment, load
from forge_sweep.sources import Dataset
from forge_sweep.sweep.null import CONFIGURATIONS, configurations, on_permuted_targets, p_value, refuse_null, train
from tests.surface import experiment, fake_run, no_network
from tests.test_sweep import run, runs, study_of

EXAMPLE = Path(__file__).parents[1] / "experiments/null_sweep.toml"
SPLIT = {"train": 0.5, "valid": 0.3, "test": 0.2}
PLAIN: dict[str, Any] = {"study__pruner": "none", "ensemble": {"ship": "never"}}


def on_rows(folder: Path, seed: int, signal: float, **values: Any) -> Experiment:
    """An experiment on 150 rows of four features; the target follows the first one as much as ``signal`` says."""
    stream = np.random.default_rng(seed)
    rows = pd.DataFrame(stream.standard_normal((150, 4)), columns=[*"abcd"])
    rows["y"] = (signal * rows["a"] + stream.standard_normal(150) > 0).astype(int)
    rows.to_csv(folder / f"{seed}.csv", index=False)
    data = {"path": str(folder / f"{seed}.csv"), "target": "y", "task": "binary", "split": SPLIT}
    return experiment(data=data, seed=seed, **values)


def logistic(experiment: Experiment, splits: Any, params: Any, seed: int, *_: Any, **__: Any) -> Any:
    """In place of `trial.run`: a model that is quick to fit, on the real preprocessing of the real rows."""
    data = trial.arrays_of(splits, trial.Recipe.of(experiment, experiment.scalers[0])).data
    (x_train,), (x_valid,) = training.leaves(data.x_train), training.leaves(data.x_valid)
    model = LogisticRegression(C=10.0 ** -int(params["width"])).fit(x_train, data.y_train.squeeze())
    return SimpleNamespace(value=float(roc_auc_score(data.y_valid.squeeze(), model.predict_proba(x_valid)[:, 1])))


def p_of(spec: Experiment, dataset: Dataset, permutations: int) -> float:
    """The p-value of the better of two models."""
    trained = [
        [
            train(spec, on_permuted_targets(dataset, spec.seed, at), {"width": width}, 0, lambda: False)
            for width in (0, 3)
        ]
        for at in range(permutations + 1)
    ]
    best = [max(value for value in values if value is not None) for values in trained]
    return p_value(best[0], best[1:], maximize=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "run", logistic)
    monkeypatch.setattr(training, "release", lambda: None)


@pytest.mark.slow
def test_p_values_are_uniform_where_nothing_can_be_learned(tmp_path: Path, quick: None) -> None:
    """A hundred data sets of noise, nine permutations each."""
    found = []
    for seed in range(100):
        spec = on_rows(tmp_path, seed, signal=0.0)
        found.append(p_of(spec, sources.load(spec.data, root=spec.root, seed=spec.seed), 9))
    assert set(found) <= {(1 + n) / 10 for n in range(10)}
    assert stats.kstest(np.array(found) - 1 / 20, "uniform").pvalue > 0.05, sorted(found)


def test_a_planted_signal_is_below_one_in_a_hundred(tmp_path: Path, quick: None) -> None:
    spec = on_rows(tmp_path, 3, signal=1.5)
    assert p_of(spec, sources.load(spec.data, root=spec.root, seed=spec.seed), 100) < 0.01


def test_the_p_value_counts_what_is_at_least_as_good() -> None:
    assert p_value(0.9, [0.5, 0.9, 0.7], maximize=True) == 0.5
    assert p_value(0.9, [0.5, 0.95, 0.7], maximize=False) == 0.75
    assert p_value(None, [0.5, None], maximize=True) == 1.0, "a failure is worse than any score"
    assert p_value(0.1, [None, None, None], maximize=True) == 0.25


def test_targets_are_permuted_within_their_split_and_features_stay() -> None:
    spec = experiment()
    dataset = sources.load(spec.data, root=spec.root, seed=spec.seed)
    one, again, two = (on_permuted_targets(dataset, 3, at) for at in (1, 1, 2))
    assert on_permuted_targets(dataset, 3, 0) is dataset
    for role in ("train", "valid"):
        before, after = getattr(dataset, role), getattr(one, role)
        pd.testing.assert_frame_equal(before.features, after.features)
        assert (before.targets.index == after.targets.index).all()
        assert before.targets["target"].value_counts().equals(after.targets["target"].value_counts())
        assert not before.targets.equals(after.targets)
        pd.testing.assert_frame_equal(after.targets, getattr(again, role).targets)
        assert not after.targets.equals(getattr(two, role).targets)


def test_with_folds_targets_are_permuted_within_each_fold() -> None:
    """So that the observed rows are one of the arrangements that are drawn: their classes were put into shares."""
    spec = experiment(data__split={"folds": 4})
    dataset = sources.load(spec.data, root=spec.root, seed=spec.seed)
    one = on_permuted_targets(dataset, 3, 1)
    assert not one.pool.targets.equals(dataset.pool.targets)
    pd.testing.assert_frame_equal(one.pool.features, dataset.pool.features)
    for before, after in zip(dataset.folds, one.folds, strict=True):
        assert (before.rows.valid.rows == after.rows.valid.rows).all()
        counts = [each.rows.valid.targets["target"].value_counts().sort_index() for each in (before, after)]
        assert counts[0].equals(counts[1])
    with pytest.raises(InputError, match=r"data\.split\.repeats = 2 a row is in several"):
        refuse_null(experiment(data__split={"folds": 4, "repeats": 2}))


def counted(calls: list[int], fail: Callable[[int], BaseException | None] = lambda _: None) -> Any:
    """A `trial.run` of the surface that counts its calls; it scores as high on any targets."""

    def called(*words: Any, **more: Any) -> Any:
        calls.append(len(calls))
        if (error := fail(len(calls))) is not None:
            raise error
        return fake_run()(*words, **more)

    return called


def test_a_sweep_that_scores_alike_on_any_targets_has_a_p_value_of_one(tmp_path: Path) -> None:
    """What was trained is not trained again: after an interruption, and where more permutations are asked for."""
    spec, calls, said = experiment(study__n_trials=8, **PLAIN), list[int](), list[sweep.Event]()
    run(spec, tmp_path)
    stop = KeyboardInterrupt()
    with no_network(counted(calls, lambda n: stop if n == 5 else None)), pytest.raises(KeyboardInterrupt):
        sweep.null_sweep(spec, 2, store=tmp_path)
    with no_network(counted(calls)):
        found = Sweep(spec, store=tmp_path).null_sweep(2, watch=sweep.ignore)
        assert len(calls) == 1 + 3 * CONFIGURATIONS, "the one that was cut off began twice"
        more = sweep.null_sweep(spec, 3, store=tmp_path)
        assert len(calls) == 1 + 4 * CONFIGURATIONS
        fewer = sweep.null_sweep(spec, 1, store=tmp_path, watch=said.append)
        assert len(calls) == 1 + 4 * CONFIGURATIONS and fewer == more, "what is known is not thrown away"
    assert (found.p, found.trials, len(found.permuted)) == (1.0, (0, 1, 2), 2)
    assert any(event.data.get("text") == "null sweep, 3 permutations: 0 trainings are left" for event in said)
    assert (more.p, len(more.permuted)) == (1.0, 3) and more.permuted[:2] == found.permuted
    (parent,) = runs(tmp_path, "sweep")
    assert parent.data.metrics["null_p"] == 1.0 and parent.data.tags["forge.null"] == more.words
    assert parent.info.status == "FINISHED" and study_of(tmp_path).null() == more.to_dict()


def test_failures_are_worse_than_any_score(tmp_path: Path) -> None:
    spec = experiment(study__n_trials=4, **PLAIN)
    run(spec, tmp_path)
    with no_network(fake_run(fail=lambda params: TrialFailed("diverged", "loss is nan"))):
        found = sweep.null_sweep(spec, 1, store=tmp_path)
    assert found.observed is None and found.p == 1.0
    assert "no score on the true targets and no score on 1 permutation of them" in found.words


def test_only_configurations_that_no_target_chose_are_taken(tmp_path: Path) -> None:
    """Not what TPE suggested, not what a fork or a warm start brought."""
    run(experiment(study__n_trials=4, **PLAIN), tmp_path)
    assert [row.number for row in configurations(study_of(tmp_path))] == [0, 1, 2]
    run(experiment(study__n_trials=4, study__epochs=7, **PLAIN), tmp_path, fork=True)
    assert configurations(study_of(tmp_path)) != [] and all(
        not row.imported for row in configurations(study_of(tmp_path))
    )
    warm = experiment(name="warm", study__n_trials=6, study__warm_start="surface", **PLAIN)
    with no_network(fake_run()):
        sweep.run(warm, store=tmp_path)
    assert [row.number for row in configurations(study_of(tmp_path, "warm"))] == [5], (
        "five of them are of earlier sweeps"
    )
    only = experiment(name="only", study__n_trials=4, study__warm_start="surface", **PLAIN)
    with no_network(fake_run()):
        sweep.run(only, store=tmp_path)
        with pytest.raises(InputError, match="only has no trial whose configuration was drawn before"):
            sweep.null_sweep(only, 1, store=tmp_path)


@pytest.mark.parametrize("kind", ["group", "time"])
def test_rows_that_may_not_be_exchanged_are_refused(tmp_path: Path, kind: str) -> None:
    spec = experiment(data={"path": "x.csv", "target": "y", "task": "binary", "split": {"kind": kind, kind: "day"}})
    with pytest.raises(InputError, match=f'data.split.kind = "{kind}"'):
        sweep.null_sweep(spec, 1, store=tmp_path)
    path = tmp_path / "e.toml"
    split = f'split = {{ kind = "{kind}", {kind} = "day" }}'
    path.write_text(
        f'name = "e"\n[data]\npath = "x.csv"\ntarget = "y"\ntask = "binary"\n{split}\n'
        '[model.search]\nwidth = { type = "int", low = 4, high = 8 }\n[objective]\nmetric = "val_auc"\n'
    )
    done = CliRunner().invoke(app, ["run", str(path), "--null", "3", "--store", str(tmp_path)])
    assert isinstance(done.exception, InputError) or done.exit_code == 2, "before the sweep, not after it"
    assert "permutes targets" in f"{done.exception}{done.output}"


def test_a_sweep_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    with no_network(fake_run()), pytest.raises(InputError, match="surface has not ended"):
        sweep.null_sweep(experiment(), 1, store=tmp_path)


@pytest.mark.slow
def test_the_example_tells_a_real_network_from_nothing(tmp_path: Path) -> None:
    """experiments/null_sweep.toml as a user runs it, and what status and report then say."""
    short = ["study.n_trials=2", "study.epochs=4", "confirm.top=1", "confirm.seeds=1", "baselines.tune=false"]
    words = [str(EXAMPLE), *short, 'baselines.kinds=["constant"]', "--null", "3", "--store", str(tmp_path), "--json"]
    done = CliRunner().invoke(app, ["run", *words])
    assert done.exit_code == 0, done.output
    (found,) = [event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == "null"]
    assert found["p"] == 0.25 and found["observed"] > max(found["permuted"])
    said = CliRunner().invoke(app, ["status", "null_sweep", "--store", str(tmp_path)], env={"COLUMNS": "500"}).stdout
    assert f"null sweep: {found['words']}" in said and found["words"].endswith("the least that 3 permutations can show")
    page = tmp_path / "report.html"
    CliRunner().invoke(app, ["report", "null_sweep", "--store", str(tmp_path), "--output", str(page)])
    assert "Null sweep: the best of 2 configurations" in page.read_text()
    assert load(EXAMPLE, short).objective.metric == "val_r2"
