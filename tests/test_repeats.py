"""Configurations that are trained with several seeds: what counts of one is the mean (`study.repeats = "average"`)."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from forge_sweep import reproduce, sweep
from forge_sweep.experiment import Experiment, load
from forge_sweep.study import Study, find_study, join_study, key_of
from forge_sweep.sweep import Event
from forge_sweep.trial import TrialResult
from tests.killed import kill
from tests.surface import experiment as on_surface
from tests.surface import fake_run
from tests.test_study import DATASET, embedded_store, experiment, opened
from tests.test_sweep import run, runs, study_of

__all__ = ["embedded_store"]

ROOT = Path(__file__).parents[1]
FEW: dict[str, Any] = {
    "depth": {"type": "int", "low": 1, "high": 3},
    "batch_norm": {"type": "categorical", "choices": [True, False]},
}
LUCK = (0.3, 0.0, -0.3)


def few(**study: Any) -> Experiment:
    return experiment(FEW, **{"n_trials": 30, "repeats": "average", **study})


def tell(study: Study, number: int, depth: int) -> None:
    """Deeper is better, and luck is larger than that."""
    study.tell(number, "finished", depth / 10 + LUCK[number % 3])


def driven(study: Study, at_most: int = 1000) -> Study:
    with study.hold():
        study.requeue()
        for _ in range(at_most):
            if (asked := study.ask()) is None:
                break
            tell(study, asked.number, int(asked.params["depth"]))
    return study


def test_the_best_configuration_is_that_of_the_best_mean_and_trials_keep_their_own_scores(
    tmp_path: Path,
) -> None:
    study = driven(opened(tmp_path, few(sampler="random")))
    rows, values = study.rows(), defaultdict[str, list[float]](list)
    for row in rows:
        assert row.value == pytest.approx(int(row.params["depth"]) / 10 + LUCK[row.number % 3])
        values[key_of(row.params)].append(row.value or 0.0)
    assert len(values) == 6 and study.n_done == 30
    for row in rows:
        alike = values[key_of(row.params)]
        assert row.seeds == len(alike)
        assert row.mean == (pytest.approx(statistics.fmean(alike)) if len(alike) > 1 else None)
        assert any("on average" in remark for remark in row.remarks) == (len(alike) > 1)
    means = sorted((statistics.fmean(each) for each in values.values()), reverse=True)
    assert [row.value for row in study.ranked()] == pytest.approx(means)
    best = find_study("fraud", tmp_path).best()  # type: ignore[union-attr]
    assert best is not None and best.value == pytest.approx(means[0]) and best.seeds > 1
    assert study.objectives() == [(row.number, row.value) for row in rows]
    again = opened(tmp_path, few(sampler="random", repeats=True, n_trials=30))
    driven(again)
    best = again.best()
    assert best is not None and best.value == max(row.value or 0.0 for row in rows) and best.seeds == 1


def test_the_sampler_sees_the_mean(tmp_path: Path) -> None:
    """What Optuna is shown; and the next suggestions are others than from single scores."""
    found = []
    for repeats in (True, "average"):
        study = driven(opened(tmp_path / str(repeats), few(repeats=repeats, n_trials=40)))
        shown = {key_of(row.params): set[float | None]() for row in study.rows()}
        for trial, row in zip(study._study.get_trials(deepcopy=False), study.rows(), strict=True):
            shown[key_of(row.params)].add(trial.value)
        assert all(len(each) == 1 for each in shown.values()) == (repeats == "average")
        found.append([row.params for row in study.rows()])
    assert found[0][:10] == found[1][:10] and found[0] != found[1]


def test_a_sweep_that_is_cut_off_again_and_again_averages_the_same(tmp_path: Path) -> None:
    whole = driven(opened(tmp_path / "whole", few()))
    for _ in range(5):
        study = driven(opened(tmp_path / "cut", few()), at_most=4)
        with study.hold():
            study.requeue()
            assert study.ask() is not None  # and the process dies
    study = driven(opened(tmp_path / "cut", few()))
    assert [(row.params, row.value, row.mean, row.seeds) for row in study.rows()] == [
        (row.params, row.value, row.mean, row.seeds) for row in whole.rows()
    ]


def test_what_did_not_finish_counts_for_nothing(tmp_path: Path) -> None:
    two = {"depth": {"type": "categorical", "choices": [2, 3]}}
    study = opened(tmp_path, experiment(two, n_trials=40, repeats="average", sampler="random"))
    ends: list[Any] = [("finished", 0.9), ("pruned", 0.1), ("failed", None), ("finished", 0.7)]
    with study.hold():
        while ends and (asked := study.ask()):
            state, value = ends.pop(0) if asked.params["depth"] == 2 else ("failed", None)
            study.tell(asked.number, state, value, failure="code" if state == "failed" else "", cause="x")
    means = [row.mean for row in study.rows() if row.params["depth"] == 2]
    assert means == [pytest.approx(0.8), None, None, pytest.approx(0.8)]
    other = opened(tmp_path, experiment(two, n_trials=40, sampler="random"))
    with other.hold():
        worker = join_study(experiment(two, repeats="average", sampler="random"), dataset=DATASET, store=tmp_path)
        assert worker is not None
        with worker.join():  # as the sweep has it
            assert {row.seeds for row in worker.rows()} == {1}


def test_a_pruner_that_takes_seeds_out_of_the_mean_is_warned_of() -> None:
    assert not few().warnings
    assert any("takes the worse ones out of it" in said for said in few(pruner="median").warnings)


@dataclass(frozen=True)
class Lucky(fake_run):
    """The surface, with luck by the seed that is larger than what configurations differ by."""

    def __call__(
        self, experiment: Any, splits: Any, params: Any, seed: int, on_epoch: Any, **options: Any
    ) -> TrialResult:
        """See `fake_run`."""
        result = super().__call__(experiment, splits, params, seed, on_epoch, **options)
        return replace(result, value=result.value + (seed % 100) / 200)


def test_the_configurations_with_the_best_means_are_confirmed(tmp_path: Path) -> None:
    search = {"width": {"type": "categorical", "choices": [8, 16, 32]}, "dropout": 0.1}
    spec = on_surface(
        model__search=search,
        study__n_trials=15,
        study__repeats="average",
        study__pruner="none",
        study__sampler="random",
    )
    events: list[Event] = []
    result = run(spec, tmp_path, Lucky(), watch=events.append)
    study = study_of(tmp_path)
    top = study.ranked()
    final = study.final()
    assert final is not None and len(top) == 3 and all(row.seeds > 1 for row in top)
    networks = [each for each in final["confirmed"] if not each["baseline"]]
    assert sorted(each["searched"] for each in networks) == pytest.approx(sorted(row.value or 0.0 for row in top[:2]))
    assert result.best["value"] == pytest.approx(top[0].value)


@pytest.mark.slow
def test_the_example_of_averaged_repeats(tmp_path: Path) -> None:
    """experiments/averaged.toml on a small budget, killed in its fourth trial; a repeated one is made again."""
    words = ["study.n_trials=5", "study.epochs=2", "confirm.top=1", "confirm.seeds=1", 'baselines.kinds=["constant"]']
    words += ["model.search.width=8", "model.search.depth={ type = 'int', low = 1, high = 2 }"]
    kill("averaged", tmp_path, "epoch", 3, 1, words)
    sweep.run(load(ROOT / "experiments/averaged.toml", words), store=tmp_path)
    rows = study_of(tmp_path, "averaged").rows()
    assert {row.seeds for row in rows} <= {1, 2, 3, 4} and sum(row.mean is not None for row in rows) >= 4
    assert len({row.value for row in rows}) == 5  # each with a seed of its own
    assert [row.attempt for row in rows] == [1, 1, 1, 2, 1]
    again = next(row for row in reversed(rows) if row.mean is not None)
    ids = {child.info.run_name: child.info.run_id for child in runs(tmp_path, "trial")}
    assert reproduce.reproduce(ids[f"trial-{again.number:04d}"], store=tmp_path).verdict.word == "exact"
