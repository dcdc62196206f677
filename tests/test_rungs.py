"""Fidelity by rows: nested parts of the training rows, a trial that climbs them, and the better half that goes on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_sweep import parts, reproduce, sources, sweep, trial
from forge_sweep.errors import DataError, ExperimentError, InputError
from forge_sweep.experiment import ROW_SHARES, Experiment, load, parse
from forge_sweep.sources.rungs import rungs
from forge_sweep.study.replay import replay_study
from forge_sweep.study.story import story
from forge_sweep.training import FileCheckpoint
from tests.killed import kill
from tests.test_folds import made
from tests.test_sweep import run, runs, study_of

EXAMPLE = Path(__file__).parents[1] / "experiments/fewer_rows.toml"
PARAMS: dict[str, Any] = {"width": 8, "depth": 1, "learning_rate": 0.01, "batch_size": 64}


def experiment(**study: Any) -> Experiment:
    """A small one on real data."""
    return parse(
        {
            "name": "rungs",
            "seed": 4,
            "data": {"source": "sample", "name": "digits", "target": "target", "task": "multiclass"},
            "model": {"search": {**PARAMS, "learning_rate": {"type": "float", "low": 1e-3, "high": 1e-2, "log": True}}},
            "objective": {"metric": "val_loss"},
            "study": {
                **{"n_trials": 8, "epochs": 3, "fidelity": "rows", "pruner": "successive_halving"},
                **study,
            },
            "baselines": {"kinds": ["constant"]},
            "confirm": {"top": 1, "seeds": 1},
            "ensemble": {"ship": "never"},
        },
        root=Path(),
    )


def rows(spec: Experiment) -> sources.Dataset:
    """Its rows."""
    return sources.load(spec.data, root=Path(), seed=spec.seed)


def train(spec: Experiment, data: Any, **more: Any) -> trial.TrialResult:
    """One trial."""
    return trial.run(spec, data, {**dict(spec.space), **PARAMS}, 1, more.pop("on_epoch", parts.go_on), **more)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1400, 4000), rare=st.floats(0.01, 0.5), seed=st.integers(0, 9))
def test_each_part_has_the_rows_of_the_one_before_and_the_classes_in_their_shares(
    n: int, rare: float, seed: int
) -> None:
    stream = np.random.default_rng(seed)
    frame = pd.DataFrame({"x": stream.normal(size=n), "y": (stream.random(n) < rare).astype(int)})
    data = made(frame)
    found = rungs(data, ("y",), ROW_SHARES, seed)
    kept = [set(part.rows.train.rows) for part in found]
    assert kept[0] < kept[1] < kept[2] == set(data.train.rows)
    assert found[-1].rows is data
    share = float(data.train.targets["y"].mean())
    for part, of_all in zip(found, ROW_SHARES, strict=True):
        size = len(part.rows.train.rows)
        assert size == int(np.ceil(of_all * len(data.train.rows)))
        assert abs(int(part.rows.train.targets["y"].sum()) - share * size) <= 1.0
        assert list(part.rows.valid.rows) == list(data.valid.rows)
        assert list(part.rows.train.rows) == sorted(part.rows.train.rows)
    assert len({part.rows.split_digest for part in found}) == 3


def test_too_few_rows_or_a_class_that_is_too_rare_are_refused() -> None:
    few = pd.DataFrame({"x": np.arange(200.0), "y": np.arange(200) % 2})
    with pytest.raises(DataError, match=r'study.fidelity = "rows": the smallest part of the 140 training rows has 16'):
        rungs(made(few), ("y",), ROW_SHARES, 0)
    rare = pd.DataFrame({"x": np.arange(2000.0), "y": (np.arange(2000) % 650 == 0).astype(int)})
    with pytest.raises(DataError, match=r"class 1 has \d of the 1400 training rows, and none of the 156"):
        rungs(made(rare), ("y",), ROW_SHARES, 0)


def test_a_small_table_is_refused_before_there_is_a_study(tmp_path: Path) -> None:
    small = parse({**experiment().resolved(), "data": {**experiment().resolved()["data"], "name": "wine"}}, root=Path())
    for begin in (sweep.check, sweep.run):
        with pytest.raises(DataError, match="the smallest part of the 124 training rows has 14"):
            begin(small, store=tmp_path)
    assert not (tmp_path / "optuna.db").exists()


@pytest.mark.parametrize(
    ("study", "split", "said"),
    [
        ({"pruner": "hyperband"}, {}, "a pruner that can judge three rungs"),
        ({"pruner": "wilcoxon"}, {}, "a pruner that can judge three rungs"),
        ({"pruner": "median"}, {"folds": 3}, "folds are for few rows: choose one"),
        ({"fidelity": "columns"}, {}, 'study.fidelity = "columns"'),
    ],
)
def test_what_does_not_go_with_it_is_refused(study: dict[str, Any], split: dict[str, Any], said: str) -> None:
    data = {"source": "sample", "name": "digits", "target": "target", "task": "multiclass", "split": split}
    with pytest.raises(ExperimentError, match=said):
        objective = {"metric": "val_loss"}
        parse({"name": "x", "data": data, "objective": objective, "study": {"fidelity": "rows", **study}}, root=Path())


def test_a_trial_that_climbs_to_the_last_rung_is_the_one_without_rungs_bit_by_bit() -> None:
    spec, told, within = experiment(), dict[int, dict[str, float]](), list[tuple[str, int]]()
    data = rows(spec)
    result = train(
        spec,
        data,
        on_epoch=lambda rung, metrics: bool(told.update({rung: metrics})),
        on_inner=lambda rung, epoch, metrics: within.append((rung, epoch)),
    )
    plain = train(experiment(fidelity="epochs", pruner="none"), data)
    assert result.bundle.weights_sha256 == plain.bundle.weights_sha256 and result.metrics == plain.metrics
    assert list(told) == [0, 1, 2] and result.history == tuple(told.values()) and result.best_epoch == 2
    assert within == [(f"rung_{n}", epoch) for n in (1, 2, 3) for epoch in range(3)]
    assert told[0]["val_loss"] > told[1]["val_loss"] > told[2]["val_loss"] == plain.value
    final = train(spec, data, final=True)
    assert final.bundle.weights_sha256 == plain.bundle.weights_sha256 and len(final.history) == 3


def test_a_pruned_one_has_seen_the_first_part_only() -> None:
    spec = experiment()
    result = train(spec, rows(spec), on_epoch=lambda rung, metrics: True)
    assert result.state == "pruned" and len(result.history) == 1 and result.value == result.history[0]["val_loss"]


@pytest.mark.parametrize("stop", [("rung_1", 1), ("rung_2", 0), ("rung_3", 2)])
def test_one_that_was_cut_off_comes_to_the_same_model(stop: tuple[str, int], tmp_path: Path) -> None:
    spec = experiment()
    data, checkpoint, resumed = rows(spec), FileCheckpoint(tmp_path / "trial.npz"), list[int]()

    def ctrl_c(rung: str, epoch: int, metrics: dict[str, float]) -> None:
        if (rung, epoch) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(spec, data, checkpoint=checkpoint, on_inner=ctrl_c)
    again = train(spec, data, checkpoint=checkpoint, on_resume=resumed.append)
    whole = train(spec, data)
    assert again.bundle.weights_sha256 == whole.bundle.weights_sha256 and again.history == whole.history
    assert resumed == [int(stop[0][-1]) - 1]


@dataclasses.dataclass(frozen=True)
class Hilly:
    """A fake `trial.run` with rungs: one network is trained once, the objective follows from the learning rate."""

    result: trial.TrialResult

    def __call__(self, spec: Experiment, splits: Any, params: Any, seed: int, on_epoch: Any, **more: Any) -> Any:
        height = 1 / float(params["learning_rate"]) / 1000
        told = [{"val_loss": height + 1 / (rung + 1), "loss": height} for rung in range(3)]
        seen = told[-1:] if more["final"] else []
        for rung, row in enumerate([] if more["final"] else told):
            more["on_inner"](f"rung_{rung + 1}", 0, row)
            seen.append(row)
            if on_epoch(rung, row) and rung < 2:
                break
        ended = {"history": tuple(seen), "best_epoch": len(seen) - 1, "value": seen[-1]["val_loss"]}
        state = "finished" if more["final"] or len(seen) == 3 else "pruned"
        return dataclasses.replace(self.result, state=state, metrics={"val_loss": seen[-1]["val_loss"]}, **ended)


@pytest.mark.parametrize("pruner", ["successive_halving", "median"])
def test_the_better_half_goes_on(pruner: str, tmp_path: Path) -> None:
    spec = experiment(pruner=pruner, n_trials=16, startup_trials=3)
    run(spec, tmp_path, Hilly(train(spec, rows(spec))))
    study = study_of(tmp_path, "rungs")
    first = {row.number: study.reports(row.number)[0] for row in study.rows()}
    climbed = {row.number: row.epochs for row in study.rows()}
    assert set(climbed.values()) == ({1, 2, 3} if pruner == "successive_halving" else {1, 3})
    assert study.best() is not None and climbed[min(first, key=lambda number: first[number])] == 3
    if pruner == "successive_halving":  # asynchronous: of the first ones more go on
        assert 0.25 <= sum(rung > 1 for rung in climbed.values()) / 16 <= 0.75
    worst = max((row for row in study.rows() if row.state == "pruned"), key=lambda row: first[row.number])
    assert "pruned after 1 rung by" in dict(story(study, worst))["ended"]
    with pytest.raises(InputError, match="report after each rung"):
        replay_study(study)
    (trial_0,) = (each for each in runs(tmp_path, "trial") if each.info.run_name == "trial-0000")
    assert {"rung_1/val_loss", "rung_3/val_loss", "val_loss"} <= set(trial_0.data.metrics)


@pytest.mark.slow
def test_the_example_is_killed_goes_on_in_processes_and_its_model_is_made_again(tmp_path: Path) -> None:
    short = [
        *("study.epochs=3", "study.n_trials=3", "confirm.top=1", "confirm.seeds=1", "model.search.width=16"),
        *("model.search.depth=1", 'baselines.kinds=["constant"]'),
    ]
    kill("fewer_rows", tmp_path, "part", 0, 1, short)
    result = sweep.run(load(EXAMPLE, [*short, "workers.kind=processes", "workers.n=1"]), store=tmp_path)
    rows_of = study_of(tmp_path, "fewer_rows").rows()
    assert len(rows_of) == 3 and rows_of[0].epochs == 3 and rows_of[0].attempt == 2
    assert reproduce.reproduce(result.model, store=tmp_path).verdict.word == "exact"
    first = next(each for each in runs(tmp_path, "trial") if each.info.run_name == "trial-0000")
    assert reproduce.reproduce(first.info.run_id, store=tmp_path).verdict.word == "exact"
