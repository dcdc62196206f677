"""The benchmarks run: small ones, so that they do not rot between two releases. No figure is asserted."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import curves, diagnosis, folds, memory, outlook, pareto, suggestions, tables, target
from benchmarks.problems import PROBLEMS, Work, experiment_of, prepare
from benchmarks.running import ROOT, SideFailed, call
from benchmarks.sides import SIDES
from forge_sweep import sources, trial
from forge_sweep.experiment import parse


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = str(tmp_path_factory.mktemp("bench"))
    prepare("small", folder, trials=3, seed=4)
    return Work("small", folder, store="", trials=3, seed=4)


def test_the_arrays_of_the_peers_are_those_that_our_trials_train_on(prepared: Work) -> None:
    experiment = parse(experiment_of(prepared), root=Path(prepared.folder))
    dataset = sources.load(experiment.data, root=experiment.root, seed=experiment.seed)
    ours = trial.prepare(dataset, trial.Recipe.of(experiment)).data
    for name, array in prepared.arrays().items():
        np.testing.assert_array_equal(array, getattr(ours, name))


def test_another_seed_searches_elsewhere_on_the_same_rows(prepared: Work, tmp_path: Path) -> None:
    prepare("small", str(tmp_path), trials=3, seed=5)
    other = Work("small", str(tmp_path), store="", trials=3, seed=5)
    assert [point["learning_rate"] for point in other.points()] != [
        point["learning_rate"] for point in prepared.points()
    ]
    np.testing.assert_array_equal(other.arrays()["x_valid"], prepared.arrays()["x_valid"])


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_problem_is_an_experiment_that_loads(problem: str) -> None:
    parse(experiment_of(Work(problem, "", store="")), root=Path())


@pytest.mark.parametrize("problem", target.TARGETS)
def test_every_target_belongs_to_a_problem(problem: str) -> None:
    assert problem in PROBLEMS


@pytest.mark.slow
def test_sides_train_the_prepared_configurations_and_print_their_ratio(tmp_path: Path) -> None:
    """Ours and the plain loop, two tiny trials each, as `make bench` runs them."""
    written = tmp_path / "figures.json"
    asked = ["trials", "--problems", "small", "--trials", "2", "--json", str(written)]
    sides = [name for name in ("ours", "plain") if name == "ours" or installed("optuna_integration")]
    command = [sys.executable, "-m", "benchmarks", *asked, "--sides", *sides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(written.read_text())["trials"]["small"]
    assert set(found) == {*sides, "limit"}
    for name in sides:
        assert SIDES[name].title in done.stdout
        assert len(found[name]["best"]) == 2
    if "plain" in found:
        assert tables.paired(found["ours"]["best"], found["plain"]["best"])[2] == 2


@pytest.mark.slow
def test_suggestions_are_timed_in_a_study_that_holds_the_trials_it_should(tmp_path: Path) -> None:
    for way in ("sqlite", "memory"):
        (tmp_path / way).mkdir()
        assert suggestions.optuna_alone(20, str(tmp_path / way), way)["ms"] > 0
    assert suggestions.ours(20, str(tmp_path))["ms"] > 0
    import optuna

    (study,) = optuna.get_all_study_summaries(f"sqlite:///{tmp_path}/optuna.db")
    assert study.n_trials == 20 + suggestions.ASKED + 1


def test_a_side_that_fails_says_what_it_wrote() -> None:
    with pytest.raises(SideFailed, match="non-existent directory"):
        call("problems:prepare", problem="small", folder="/does/not/exist", trials=1, seed=0)


def test_configurations_are_paired_by_learning_rates_that_float32_rounded() -> None:
    ours = {"0.0006605400837614824": 0.9, "0.003215346713356591": 0.8, "0.5": 0.1}
    theirs = {"0.0006605400703847408": 0.88, "0.0032153467182070017": 0.8}
    difference, twice_error, n = tables.paired(ours, theirs)
    assert n == 2
    assert math.isclose(difference, 0.01)
    assert tables.noise(difference, twice_error).endswith("within noise")


def test_growth_is_that_of_the_second_half() -> None:
    warming, steady = [700.0 + 10 * trial for trial in range(50)], [1200 + 0.5 * trial for trial in range(50)]
    assert math.isclose(memory.growth([*warming, *steady]), 0.5)


def installed(module: str) -> bool:
    """Whether the peers' lock is installed."""
    import importlib.util

    return importlib.util.find_spec(module) is not None


def test_the_cost_of_the_diagnosis_and_its_alarms_are_counted(
    prepared: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = diagnosis.costs(**{**prepared.to_dict(), "trials": 1})
    assert 0 < found["cost/diagnosis_share"] < 1
    diagnosis.show_costs({"small": [found]})
    told = [{"findings": [["warning", "flat-loss", "..."]]}, {"findings": []}]
    diagnosis.show_alarms({"wine": told, "digits": [{"findings": []}] * 2})
    shown = capsys.readouterr().out
    assert "| flat-loss | warning | 1 | 0 | 25.0 % |" in shown and "small, 600 x 40" in shown


def test_a_curve_on_its_way_to_the_target_is_told_from_one_that_is_level() -> None:
    steps = np.arange(1.0, 9.0)
    noise = 0.001 * np.random.default_rng(0).standard_normal(8)
    rising = 0.9 - 0.3 * steps**-0.5 + noise
    assert curves.reaches(steps, rising, 40, 0.84) > 0.5 > 0.05 > curves.reaches(steps, rising, 40, 0.92)
    assert curves.reaches(steps, 0.7 + noise, 40, 0.75) < 0.05


def test_pruners_are_compared_on_the_same_curves(capsys: pytest.CaptureFixture[str]) -> None:
    """Forty that go their ways; what saves nothing loses nothing."""
    stream = np.random.default_rng(1)
    ways = [
        {"number": n, "curve": list(top - 0.4 / np.arange(1, 21))} for n, top in enumerate(stream.uniform(0.6, 0.9, 30))
    ]
    found = curves.compare(ways, 20, orders=2)
    assert [each["pruner"] for each in found][:-3] == [*curves.LIBRARY]
    assert all(0 <= each["saved"] < 1 and 0 <= each["false"] <= 1 and each["lost"] >= 0 for each in found)
    assert found[-1]["saved"] > 0
    curves.show({"small": found})
    assert "of the best quarter pruned" in capsys.readouterr().out


def test_what_more_trials_gain_is_compared_with_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = outlook.measure(surfaces=2, after=(20,))
    assert row["after"] == 20 and row["said"] >= 0 and row["gave"] >= 0
    outlook.show([row])
    assert "said to be not worth it" in capsys.readouterr().out


@pytest.mark.slow
def test_a_warm_start_is_compared_with_a_cold_one(prepared: Work, tmp_path: Path) -> None:
    asked = {**prepared.to_dict(), "store": str(tmp_path), "target": 0.0, "cap_s": 30.0, "trials": 1}
    found = call("warm:run", way="warm", trials_before=2, **asked)
    assert found["reached_s"] > 0 and found["trials"] == 1, "any AUC is above none"


def test_pruning_among_several_objectives_is_measured_on_recorded_configurations(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every configuration of the grid, with curves of a known shape; seeds do not change what was recorded."""
    recorded = []
    for values in itertools.product(*pareto.GRID.values()):
        params = dict(zip(pareto.GRID, values, strict=True))
        top = 0.6 + params["width"] / 400 - params["dropout"] / 3
        curve = [{"val_auc": top - 0.2 * 0.5**at, "val_log_loss": 1 - top} for at in range(10)]
        measured = {"parameters": float(params["width"] ** params["depth"])}
        recorded.append({"params": params, "curve": curve, "measured": measured})
    monkeypatch.setattr(pareto, "OBJECTIVES", pareto.OBJECTIVES[:1])
    found = pareto.compare(recorded, seeds=[1], trials=16)
    assert [row["objectives"] for row in found] == [["val_auc", "parameters"]]
    for row in found:
        assert row["none"]["epochs"] == 160 > row["dominated"]["epochs"] and row["dominated"]["pruned"] > 0
        assert 0 < row["dominated"]["share"] <= row["whole"] <= 1 and min(row["to_level"]) > 0
    pareto.show({"small": found})
    assert "fewer epochs to the same hypervolume" in capsys.readouterr().out


def test_one_split_and_folds_are_ranked_by_pairs_and_equal_scores_share_a_rank(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def pair(one: float, other: float) -> dict[str, dict[str, float]]:
        return {"one split": {"score": one, "trials": 9}, "five folds": {"score": other, "trials": 2}}

    folds.show({"MASS/fgl": [pair(2.0, 1.0), pair(1.0, 1.0)], "AER/CPS1985": [pair(3.0, 1.0), pair(1.0, 2.0)]}, 60.0)
    said = capsys.readouterr().out
    assert "| MASS/fgl | log_loss | 1.5 | 1 | 1 of 2 | 9 / 2 |" in said
    assert "Mean rank over 4 pairs: one split 1.62, five folds 1.38." in said
