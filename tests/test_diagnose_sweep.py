"""What the trials of a sweep say together: said where it is so, and not where it is not."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from forge_sweep import sweep
from forge_sweep.api import Sweep
from forge_sweep.checks.findings import Finding
from forge_sweep.checks.search import ENOUGH, Influence, Searched, Tried, of_sweep
from forge_sweep.cli.watchers import print_result
from forge_sweep.experiment import Dimension
from forge_sweep.study import diagnosis
from tests.surface import experiment, fake_run, no_network
from tests.sweeps import RATE, SPACE, STUDY, at, simulated
from tests.test_sweep import runs

ROOT = Path(__file__).parents[1]


def tried(place: float, n: int = 20, **more: Any) -> list[Tried]:
    """Trials spread over `RATE`, the better the nearer they are to a place from 0 to 1."""
    shares = [float(share) for share in np.linspace(0, 1, n)]
    return [Tried(i, 1 - abs(s - place), {"learning_rate": 1e-4 * 100**s}, **more) for i, s in enumerate(shares)]


def said(trials: list[Tried], space: Any = None, direction: Any = "maximize", **more: Any) -> tuple[Finding, ...]:
    """What is said of these trials, of which nothing else is known."""
    return of_sweep(Searched(trials, space or {"learning_rate": RATE}, direction, **more))


def codes(seen: Searched) -> list[str]:
    """The codes of what is said of a sweep."""
    return [each.code for each in of_sweep(seen)]


def test_the_best_trials_at_the_edge_of_a_range_widen_it() -> None:
    (found,) = said(tried(1.0))
    assert found.code == "edge-of-range" and "near to high = 0.01" in found.seen
    assert found.fix == 'learning_rate = { type = "float", low = 0.0001, high = 0.1, log = true } under [model.search]'
    assert said(tried(0.5)) == ()
    assert said(tried(1.0, ENOUGH - 1)) == ()
    (found,) = said([replace(t, value=-t.value) for t in tried(0.0)], direction="minimize")
    assert "low = 1e-05" in found.fix


def test_a_wider_range_keeps_its_step_and_its_condition() -> None:
    trials = [Tried(i, i / 20, {"momentum": 0.5 + i / 50}) for i in range(20)]
    space = {"momentum": Dimension(type="float", low=0.5, high=0.9, step=0.02, when={"optimizer": ("sgd", "rmsprop")})}
    assert said(trials, space) == ()  # nothing lies beyond
    (found,) = said([replace(t, value=-t.value) for t in trials], space)
    assert found.fix.startswith(
        'momentum = { type = "float", low = 0.3, high = 0.9, step = 0.02, when = { optimizer = '
    )


def test_a_range_ends_where_nothing_lies_beyond() -> None:
    trials = [Tried(i, 1 - i / 20, {"dropout": i / 40}) for i in range(20)]
    assert said(trials, {"dropout": Dimension(type="float", low=0.0, high=0.5)}) == ()


def test_epochs_that_are_too_few_for_the_best_trials() -> None:
    (found,) = said(tried(0.5, codes=("still-improving",)), study={**STUDY, "pruner": "none"})
    assert found.code == "epochs-too-few" and found.fix == "epochs = 60 under [study]"
    (found,) = said(tried(0.5, codes=("flat-loss",)))
    assert found.code == "nothing-learned" and found.seen.startswith("20 of 20")


HEALTHY, RATE_ALLOWED = 300, 0.02
"""Simulated sweeps of which nothing should be said, and how often each thing may be all the same."""


def test_of_hundreds_of_healthy_sweeps_next_to_nothing_is_said_and_the_page_says_how_much() -> None:
    counts = Counter(code for seed in range(HEALTHY) for code in codes(simulated(seed)))
    assert {code: n for code, n in counts.items() if n > RATE_ALLOWED * HEALTHY} == {}
    page = (ROOT / "docs/failures.md").read_text()
    table = dict(re.findall(r"^\| `([a-z-]+)` \| (\d+) of 300 \|", page, re.MULTILINE))
    assert {code: int(n) for code, n in table.items() if int(n)} == counts


def test_of_a_sampler_that_is_no_better_than_chance_it_is_said_as_often_as_ten_random_trials_allow() -> None:
    for pruner in (True, False):
        found = Counter(code for k in range(60) for code in codes(simulated(k, n=80, learns=False, pruner=pruner)))
        assert 6 <= found["sampler-no-better"] <= 24
        assert not any("sampler-no-better" in codes(simulated(k, n=80, pruner=pruner)) for k in range(30))
    seen = [each for k in range(60) for each in of_sweep(simulated(k, n=80, learns=False))]
    found_one = next(each for each in seen if each.code == "sampler-no-better")
    assert "(rank test, p = 0." in found_one.seen and "n_trials = 160 under [study]" in found_one.fix
    assert "sampler-no-better" not in codes(replace(simulated(0, n=80, learns=False), startup=None))


def test_luck_with_the_seed_is_told_from_differences_between_configurations() -> None:
    flat = {"weights": (0.0, 0.0, 0.0), "noise": 0.02, "pruner": False}
    lucky = Counter(code for seed in range(60) for code in codes(simulated(seed, **flat)))
    assert lucky["seed-luck"] > 25
    networks = [[0.80, 0.70, 0.90], [0.78, 0.88, 0.70], [0.79, 0.69, 0.88]]
    trials = [replace(t, value=0.8 + (t.value - 0.5) / 10) for t in tried(0.5)]
    (found,) = said(trials, confirmed=networks)
    assert found.code == "seed-luck" and found.fix == "top = 5 and seeds = 5 under [confirm]"
    assert said(trials, confirmed=[[each] for each in (0.8, 0.7, 0.9)]) == ()  # one seed shows no spread
    assert said(trials, confirmed=[[0.8, 0.8, 0.8]]) == ()  # nothing is random


def test_a_lead_within_the_noise_of_seeds_asks_for_more_of_them() -> None:
    trials = [replace(t, value=0.8 + (t.value - 0.5) / 10) for t in tried(0.5)]
    (found,) = said(trials, confirmed=[[0.80, 0.81, 0.79], [0.79, 0.80, 0.775]])
    assert found.code == "top-not-told-apart" and found.fix == "seeds = 12 under [confirm]" and "(p = 0.1" in found.seen
    assert said(trials, confirmed=[[0.80, 0.81, 0.79], [0.70, 0.71, 0.69]]) == ()


def test_a_parameter_below_random_ones_is_fixed_at_its_best_value() -> None:
    chance = (0.05, 0.06, 0.08, 0.05, 0.04)
    found = {"learning_rate": Influence(0.9, chance), "dropout": Influence(0.045, chance)}
    seen = replace(simulated(0, pruner=False), influence=found)
    (one,) = of_sweep(seen)
    assert one.code == "no-influence" and one.subject == "model.search.dropout" and one.severity == "info"
    assert one.fix.startswith(f"dropout = {seen.ranked[0].params['dropout']:.4g} under [model.search]")
    assert codes(replace(seen, influence={**found, "dropout": Influence(0.055, chance)})) == []  # two had less
    assert codes(replace(seen, trials=seen.trials[:39])) == []


def test_importance_is_that_of_finished_trials_beside_random_parameters() -> None:
    import optuna

    from forge_sweep.study.importance import influences

    stream = np.random.default_rng(0)
    study = optuna.create_study(direction="maximize")
    ranges: dict[str, Any] = {
        **{"a": optuna.distributions.FloatDistribution(0, 1), "b": optuna.distributions.IntDistribution(0, 9)},
        **{"one": optuna.distributions.CategoricalDistribution(["x"])},
    }
    for _ in range(40):
        params = {"a": float(stream.random()), "b": int(stream.integers(10)), "one": "x"}
        study.add_trial(optuna.trial.create_trial(value=params["a"], params=params, distributions=ranges))
    found = influences(study)
    assert set(found) == {"a", "b"} and found["a"].share > 0.8 and len(found["a"].random) == 5
    assert found["a"].share > max(found["a"].random) > found["b"].share * 0.2
    assert influences(optuna.create_study()) == {}


def test_a_network_that_is_worse_on_its_training_rows_than_a_tree_on_others_is_too_small() -> None:
    behind = simulated(1, lead=-0.1)
    (found,) = of_sweep(replace(behind, trials=[replace(t, loss=0.4) for t in behind.trials]))
    assert found.code == "underfitting" and "0.4, is above that of xgboost on rows that it never saw, 0.3" in found.seen
    assert found.fix == 'width = { type = "int", low = 16, high = 1024, log = true } under [model.search]'
    (found,) = of_sweep(behind)  # its loss on the training rows is low
    assert found.code == "trees-ahead" and found.severity == "info" and "xgboost has 1.0" in found.seen
    assert codes(replace(behind, outcome="as good as")) == []  # the verdict knows more
    assert codes(replace(behind, baselines={"constant": (0.5, 0.69)})) == []


@pytest.mark.parametrize(
    ("states", "failure", "words", "fix"),
    [
        (["failed"] * 5, "diverged", "5 failed (5 of them as diverged)", "ten times lower"),
        (["failed"] * 5, "time-out", "5 failed (5 of them as time-out)", "trial_timeout_s = 120 under [study]"),
        (["pruned"] * 6, "", "6 were pruned, 0 failed", "startup_trials = 6 under [study]"),
    ],
)
def test_a_sweep_of_which_no_trial_finishes(states: list[str], failure: str, words: str, fix: str) -> None:
    trials = [Tried(i, math.nan, {}, state=state, failure=failure) for i, state in enumerate(states)]
    (found,) = said(trials, study={**STUDY, "trial_timeout_s": 60.0})
    assert found.code == "none-finished" and words in found.seen and fix in found.fix
    assert said(trials[:4], study=STUDY) == ()


@pytest.mark.parametrize(
    ("epochs", "study", "words", "fix"),
    [
        (0, {}, "none of them ever reported val_auc", 'pruner = "none"'),
        (12, {"warmup_epochs": 20}, "the longest had 12 of 30 epochs, and no trial is judged before it had 20", "= 3"),
        (25, {"startup_trials": 90}, "the first 90 are not judged", "startup_trials = 5"),
        (25, {}, "each of the 25 that it judged was among the better ones", 'pruner = "none"'),
        (25, {"pruner": "hyperband"}, "each of the 30 that it judged", 'pruner = "none"'),
    ],
)
def test_a_pruner_that_prunes_nothing(epochs: int, study: dict[str, Any], words: str, fix: str) -> None:
    seen = replace(simulated(0, n=30, pruner=False), study={**STUDY, **study})
    seen = replace(seen, trials=[replace(t, epochs=epochs) for t in seen.trials])
    (found,) = of_sweep(seen)
    assert found.code == "never-prunes" and words in found.seen and fix in found.fix


@pytest.mark.parametrize(
    "study", [{"pruner": "none"}, {"pruner": "wilcoxon"}, {"pruner": "percentile", "percentile": 90}]
)
def test_a_pruner_that_may_let_all_pass_is_not_blamed_for_it(study: dict[str, Any]) -> None:
    assert codes(replace(simulated(0, n=30, pruner=False), study={**STUDY, **study})) == []


def test_imported_trials_are_none_of_the_pruner_and_the_sampler() -> None:
    seen = simulated(0, pruner=False)
    imported = [replace(trial, imported=True) for trial in seen.trials]
    assert "never-prunes" not in codes(replace(seen, trials=imported, study={**STUDY, "warmup_epochs": 90}))


def test_parameters_lie_where_their_places_say() -> None:
    assert at(np.array([0.5, 0.5, 1.0])) == pytest.approx({"learning_rate": 1e-3, "dropout": 0.4, "width": 256})
    assert set(SPACE) == {"learning_rate", "dropout", "width"}


# Of a sweep that ran


def test_what_a_sweep_says_is_at_the_end_of_run_on_its_run_and_in_its_report(tmp_path: Path, capsys: Any) -> None:
    """On a surface whose best point is at the ends of two ranges."""
    more = {"study__sampler": "random", "study__pruner": "none", "confirm__top": 1, "confirm__seeds": 1}
    with no_network(fake_run()):
        result = sweep.run(experiment(study__n_trials=12, **more), store=tmp_path)
    (edge,) = (each for each in result.findings if each["code"] == "edge-of-range")
    assert edge["section"] == "docs/failures.md#edge-of-range" and "under [model.search]" in edge["fix"]
    print_result("surface", result)
    printed = capsys.readouterr().out
    assert f"warning   {edge['subject']}: {edge['seen']}; fix: {edge['fix']} [{edge['section']}]" in printed
    (parent,) = runs(tmp_path, "sweep")
    assert edge["seen"] in parent.data.tags["forge.finding.edge-of-range"]
    own = Sweep.open("surface", store=tmp_path)
    page = own.report(tmp_path / "report.html").read_text()
    assert "<td>edge-of-range</td>" in page and "<h2>Diagnosis</h2>" in page
    assert [each.code for each in own.findings] == [each["code"] for each in result.findings]


def test_a_study_that_cannot_be_read_stops_nothing(tmp_path: Path) -> None:
    broken: Any = SimpleNamespace(resolved={}, rows=list)
    (found,) = diagnosis.findings(broken, broken, {})
    assert found.code == "not-diagnosed" and "KeyError: 'model'" in found.seen
