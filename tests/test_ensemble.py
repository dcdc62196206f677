"""An ensemble is registered where it is better by more than noise, and never on noise.

Run as a script it is a sweep whose process ends, as by `kill -9`, after a function of the sweep:
`python -m tests.test_ensemble STORE MODULE:FUNCTION`.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.ensemble
from sklearn.datasets import load_breast_cancer

from forge_sweep import reproduce, sweep, training, trial
from forge_sweep.baselines import Baseline
from forge_sweep.bundle import Bundle
from forge_sweep.errors import InputError
from forge_sweep.experiment import Experiment, load
from forge_sweep.registry import promote
from forge_sweep.sources import test_looks as looks_at_test
from forge_sweep.task import Task, TaskKind
from forge_sweep.task.selection import greedy, out_of_bag
from forge_sweep.tracking import fetched, locate
from tests.forked import Forked
from tests.serving import need_the_extra, serving
from tests.surface import die_after, experiment, fake_run, no_network
from tests.test_sweep import client, runs

ROOT = Path(__file__).parent.parent
PUBLISH: Any = importlib.import_module("forge_sweep.sweep.publish")


def known(kind: TaskKind, n: int, seed: int) -> tuple[Task, np.ndarray, np.ndarray]:
    """A task, encoded targets (n, 1) and the truth that they follow (n,), in [0, 1]."""
    random = np.random.default_rng(seed)
    truth = random.random(n)
    values = truth if kind == "regression" else (random.random(n) < truth).astype(int)
    frame = pd.DataFrame({"y": values})
    task = Task.learn(kind, frame)
    return task, task.encode(frame), truth


@pytest.mark.parametrize(
    ("kind", "metric", "seed"),
    [*(("binary", "auc", seed) for seed in range(3)), *(("regression", "r2", seed) for seed in (3, 4))],
)
def test_nothing_is_gained_on_pure_noise(kind: TaskKind, metric: str, seed: int) -> None:
    """Eight models that know nothing: on the rows that choose, their blend looks better; on others it is not.

    The mean of noise has a better R² than noise, and is no better than a constant.
    """
    task, encoded, _ = known(kind, 300, seed)
    scores = np.random.default_rng(seed + 100).random((8, 300, 1))
    blend = greedy(task, encoded, scores, metric, 0.5)
    alone = max(greedy(task, encoded, scores[[i]], metric, 0.5).value for i in range(8))
    best = int(blend.weights.argmax())
    found = out_of_bag(task, encoded, scores, best, metric, 0.5, resamples=20)
    assert blend.value > alone
    assert not found.beyond_noise


def test_models_that_err_apart_are_better_together() -> None:
    """The truth with noise of its own each: the gain is seen, and an equal copy of the best gains nothing."""
    task, encoded, truth = known("binary", 600, 1)
    noise = np.random.default_rng(2).normal(0, 0.5, (8, 600))
    scores = np.clip(truth + noise, 0.001, 0.999)[:, :, None]
    found = out_of_bag(task, encoded, scores, 0, "auc", 0.5, resamples=20)
    assert found.beyond_noise and found.ensemble > found.single + 0.03
    same = out_of_bag(task, encoded, scores[[0, 0, 0]], 0, "auc", 0.5, resamples=20)
    assert same.gain.value == 0 and not same.beyond_noise


def test_the_best_prefix_is_kept_and_an_error_is_made_small() -> None:
    """One good model among bad ones stays alone; counts are the shares."""
    task, encoded, truth = known("regression", 300, 3)
    random = np.random.default_rng(4)
    scores = np.stack([truth, *(truth + random.normal(0, 1, 300) for _ in range(3))])[:, :, None]
    blend = greedy(task, encoded, scores, "rmse", 0.5)
    assert blend.counts == (1, 0, 0, 0) and blend.weights.tolist() == [1, 0, 0, 0]
    pair = greedy(task, encoded, np.stack([truth + 1, truth - 1])[:, :, None], "rmse", 0.5)
    assert pair.counts == (1, 1) and pair.value == pytest.approx(0, abs=1e-6)


@dataclasses.dataclass(frozen=True)
class one_tree(fake_run):  # stands where a function does
    """A `trial.run` whose models are single trees that differ by their seeds, or are all alike."""

    alike: bool = False

    def __call__(self, experiment: Experiment, splits: Any, params: Any, seed: int, on_epoch: Any, **more: Any) -> Any:
        result = super().__call__(experiment, splits, params, seed, on_epoch, **more)
        prepared = trial.arrays_of(splits, trial.Recipe.of(experiment, experiment.scalers[0]))
        data, task = prepared.data, prepared.task
        (x_train,), (x_valid,) = training.leaves(data.x_train), training.leaves(data.x_valid)
        tree = sklearn.ensemble.RandomForestClassifier(
            n_estimators=1, max_depth=3, max_features=2, random_state=0 if self.alike else seed
        )
        model = Baseline("random_forest", tree.fit(x_train, data.y_train.squeeze()), {}, task)
        scores = task.to_scores(model.outputs(x_valid))
        bundle = trial.as_bundle(experiment, prepared, model, scores, {"params": {}, "seed": seed})
        value = task.score(data.y_valid, scores)["auc"]
        return dataclasses.replace(result, bundle=bundle, value=value)


def cancer(**values: Any) -> Experiment:
    """With 227 rows of validation."""
    data = {"source": "sample", "name": "breast_cancer", "target": "target", "task": "binary"}
    split = {"train": 0.4, "valid": 0.4, "test": 0.2}
    return experiment(data={**data, "split": split}, **values)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, sweep.SweepResult]:
    """A sweep whose ensemble is better."""
    store = tmp_path_factory.mktemp("shipped")
    with no_network(one_tree()):
        return store, sweep.run(cancer(), store=store)


def test_an_ensemble_that_is_better_is_registered_under_a_run_of_its_own(shipped: tuple[Path, Any]) -> None:
    """One bundle, one look at test, and a sentence with both figures and the cost."""
    store, result = shipped
    version = client(store).get_model_version_by_alias("surface", "challenger")
    (run,) = runs(store, "ensemble")
    assert (version.run_id, version.tags["forge.kind"]) == (run.info.run_id, "ensemble")
    assert run.info.status == "FINISHED" and "confirm-" in run.data.tags["forge.members"]
    assert "Registered is, better still, an ensemble of" in result.verdict and " ms against " in result.verdict
    assert result.winner["ensemble"] >= 2
    with fetched(locate(result.model, store), store) as folder:
        bundle = Bundle.load(folder, verify=True)
        card = (folder / "card.md").read_text()
    assert len(bundle.kinds) == result.winner["ensemble"] and "## Members" in card
    assert bundle.metadata["ensemble"]["gain"]["low"] > 0
    digest = run.data.tags["forge.dataset_digest"]
    assert len(looks_at_test(store / "test_looks.jsonl", digest)) == 1
    assert not (store / "checkpoints" / "surface").exists()


def test_a_complete_sweep_with_an_ensemble_stays_as_it_is(shipped: tuple[Path, Any]) -> None:
    """Run again, nothing is made; reproducing the model names the runs of its members."""
    store, result = shipped
    with no_network(one_tree()):
        assert sweep.run(cancer(), store=store) == result
    with pytest.raises(InputError, match="the mean of") as refused:
        reproduce.reproduce(result.model, store=store)
    assert "reproduce its members" in refused.value.hint


@pytest.mark.parametrize("point", ["publish:score_on_test", "publish:register"])
def test_a_sweep_that_is_killed_while_it_ends_registers_the_same_ensemble(
    shipped: tuple[Path, Any], tmp_path: Path, point: str
) -> None:
    """Once, of the same members with the same shares, and with one look at test."""
    assert Forked("tests.test_ensemble", tmp_path, point).wait() == 9
    with no_network(one_tree()):
        result = sweep.run(cancer(), store=tmp_path)
    assert result.model == "models:/surface/1" and len(runs(tmp_path, "ensemble")) == 1
    found = []
    for store, model in ((tmp_path, result.model), (shipped[0], shipped[1].model)):
        with fetched(locate(model, store), store) as folder:
            found.append(Bundle.load(folder, verify=True).metadata["ensemble"]["members"])
    assert found[0] == found[1]
    digest = runs(tmp_path, "ensemble")[0].data.tags["forge.dataset_digest"]
    assert len(looks_at_test(tmp_path / "test_looks.jsonl", digest)) == 1


def test_an_ensemble_is_promoted_and_served_with_its_own_scores(shipped: tuple[Path, Any], tmp_path: Path) -> None:
    need_the_extra()
    store, _ = shipped
    assert promote("surface", "1", store=store).change is not None
    with fetched(locate("models:/surface@champion", store), store) as folder:
        bundle = Bundle.load(folder)
    rows = load_breast_cancer(as_frame=True).data.head(5)
    with serving("models:/surface@champion", tmp_path / "server", "--store", str(store)) as api:
        answer = api.predict(rows.to_dict("records"))
    assert answer.status == 200, answer.body
    positive = str(bundle.task.classes[1])
    said = [each["probabilities"][positive] for each in answer.json["predictions"]]
    assert said == pytest.approx(bundle.scores(rows)[:, 0].tolist(), abs=1e-6)


def test_a_sweep_that_is_asked_for_one_model_ends_anew_with_it(shipped: tuple[Path, Any]) -> None:
    """`ensemble.ship = "never"` after the fact."""
    store, before = shipped
    with no_network(one_tree()):
        result = sweep.run(cancer(ensemble={"ship": "never"}), store=store)
    assert result.model != before.model and "nsemble" not in result.verdict
    assert client(store).get_model_version("surface", result.model.rpartition("/")[2]).tags["forge.kind"] != "ensemble"


def test_the_example_averages_networks_and_trees(tmp_path: Path) -> None:
    """experiments/ensemble.toml with a small budget, as a user runs it."""
    small = ["study.n_trials=2", "study.epochs=4", "confirm.top=1", "confirm.seeds=2"]
    small += ["ensemble.size=6", 'baselines.kinds=["constant"]']  # boosting of ten classes takes longest
    result = sweep.run(load(ROOT / "experiments/ensemble.toml", small), store=tmp_path)
    assert "nsemble" in result.verdict
    with fetched(locate(result.model, tmp_path), tmp_path) as folder:
        bundle = Bundle.load(folder, verify=True)
    assert bundle.kind == ("ensemble" if result.winner.get("ensemble") else result.winner["baseline"] or "network")


def test_models_that_are_alike_are_not_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said with its figures; and of the trials no more bundles wait than are wanted."""
    kept: list[str] = []
    original = PUBLISH.publish

    def look(context: Any, *words: Any) -> Any:
        kept.extend(sorted(path.name for path in context.checkpoints.glob("kept-*")))
        return original(context, *words)

    monkeypatch.setattr(importlib.import_module("forge_sweep.sweep.run"), "publish", look)
    monkeypatch.setattr(importlib.import_module("forge_sweep.sweep.ensemble"), "KEPT", 2)
    with no_network(one_tree(alike=True)):
        result = sweep.run(cancer(), store=tmp_path)
    assert "No ensemble is registered" in result.verdict and "ensemble" not in result.winner
    assert len(kept) == 2


if __name__ == "__main__":
    die_after(sys.argv[2])
    with no_network(one_tree()):
        sweep.run(cancer(), store=Path(sys.argv[1]))
