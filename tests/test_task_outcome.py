"""The three outcomes err at most as often as they say, whatever is up to chance and whatever was chosen."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks import coverage
from forge_sweep.sweep import verdict as verdicts
from forge_sweep.sweep.confirm import Confirmed, Contender
from forge_sweep.sweep.cost import Cost
from forge_sweep.task import Answers, Judgement, Seeds, Task, judge, resampled
from forge_sweep.task.bootstrap import expected_max, luck, of_one

RESAMPLES = 200
SHARED = 0.8
"""How much of what makes a row hard is the same for every model."""

BINARY = Task.learn("binary", pd.DataFrame({"y": [0, 1] * 2}))
REGRESSION = dataclasses.replace(
    Task.learn("regression", pd.DataFrame({"y": [-1.0, 1.0] * 2})), mean=(0.0,), std=(1.0,)
)


@dataclasses.dataclass(frozen=True)
class World:
    """Models of known worth: each seed moves it a little, each row is hard for all models and for one of them.

    Attributes:
        task: what is predicted.
        metric: ``auc``, or ``mae``, whose values are known without any rows.
        rows: of validation.
        gap: by how much the networks' skill is greater.
        seed_sd: how far a seed moves the skill.
        seeds: how many each model is confirmed with.
        trials: how many configurations the best is chosen among.
        epochs: how many each training chooses among.
        top: how many are confirmed.
    """

    task: Task
    metric: str
    rows: int
    gap: float
    seed_sd: float
    seeds: int = 3
    trials: int = 1
    epochs: int = 1
    top: int = 1

    def lead(self) -> float:
        """The truth: the mean lead of a network over all seeds, on all the rows there are."""
        if self.metric == "mae":  # normal errors of size 1 - skill: E|error| = size * sqrt(2 / pi)
            return self.gap * float(np.sqrt(2 / np.pi))
        both = [stats.norm.cdf((1.5 + gap) / np.sqrt(2 + sd**2)) for gap, sd in ((self.gap, self.seed_sd), (0, 0))]
        return float(both[0] - both[1])

    def judged(self, rng: np.random.Generator) -> Judgement:
        """One sweep: search, confirmation, judgement."""
        positive = rng.random(self.rows) < 0.3
        positive[:4] = [True, True, False, False]
        truth = positive if self.task is BINARY else rng.normal(size=self.rows)
        encoded = np.asarray(truth, dtype=np.float32)[:, None]
        everyone = rng.normal(size=self.rows)

        def scored(skill: float, of_configuration: np.ndarray, epochs: int) -> tuple[float, np.ndarray]:
            found = []
            for _ in range(epochs):
                own = (of_configuration + rng.normal(size=self.rows)) / np.sqrt(2)
                noise = np.sqrt(SHARED) * everyone + np.sqrt(1 - SHARED) * own
                if self.task is BINARY:
                    scores = stats.norm.cdf((1.5 + skill) * positive + noise)
                    value = self.task.score(encoded, scores[:, None])["auc"]
                else:
                    scores = truth + (1 - skill) * noise
                    value = -self.task.score(encoded, scores[:, None])["mae"]
                found.append((value, scores))
            return max(found, key=lambda one: one[0])

        def seeds(values: list[tuple[float, np.ndarray]], searched: float) -> Seeds:
            sign = 1.0 if self.metric == "auc" else -1.0
            drawn = [
                resampled(self.task, encoded, Answers(scores[:, None], 0.5), self.metric, resamples=RESAMPLES)
                for _, scores in values
            ]
            each = np.array([sign * value for value, _ in drawn]), np.stack([sign * over for _, over in drawn])
            return Seeds(*each, searched, self.epochs)

        def skill() -> float:
            return self.gap + rng.normal() * self.seed_sd

        configurations = [rng.normal(size=self.rows) for _ in range(self.trials)]
        searched = sorted(((scored(skill(), c, self.epochs)[0], i) for i, c in enumerate(configurations)), reverse=True)
        networks = [
            seeds([scored(skill(), configurations[i], self.epochs) for _ in range(self.seeds)], value)
            for value, i in searched[: self.top]
        ]
        networks.sort(key=lambda each: -each.values.mean())
        once = scored(0.0, rng.normal(size=self.rows), 1)  # a tree that no seed changes
        baseline = seeds([once] * self.seeds, once[0])
        smallest = self.task.fewest(encoded)
        return judge(networks, baseline, rows=self.rows, smallest=smallest, configurations=self.trials, baselines=1)


def pairs() -> list[World]:
    """200 pairs: few rows and many, seeds that matter and do not, the same skill, a little more, and less."""
    found = []
    for task, metric, some, more in ((BINARY, "auc", 0.15, 0.6), (REGRESSION, "mae", 0.05, 0.2)):
        for rows in (60, 150, 400, 1000, 2000):
            for seed_sd in (0.0, 0.02, 0.1, 0.2):
                for gap in (0.0, some, -some, more, 0.0):
                    found.append(World(task, metric, rows, gap, seed_sd * (1 if metric == "auc" else 0.25)))
    return found


@pytest.mark.slow
def test_on_200_pairs_with_known_truth_the_outcomes_err_at_most_as_often_as_stated() -> None:
    """An outcome errs where it says what is not so, its interval where the truth lies outside: 5 % at most each."""
    rng, said, wrong, missed = np.random.default_rng(10), Counter[str](), 0, 0
    worlds = pairs()
    assert len(worlds) == 200
    for world in worlds:
        found, truth = world.judged(rng), world.lead()
        said[found.outcome] += 1
        wrong += (found.outcome == "better" and truth <= 1e-12) or (found.outcome == "worse" and truth >= -1e-12)
        missed += not found.lead.low <= truth <= found.lead.high
    assert wrong <= 0.05 * len(worlds), (wrong, said)
    assert missed <= 0.05 * len(worlds), (missed, said)
    assert min(said["better"], said["worse"]) >= 10, f"an outcome that is never said errs never: {said}"


@pytest.mark.slow
def test_the_best_of_many_trials_and_epochs_is_not_better_for_having_been_chosen() -> None:
    """Twenty configurations of eight epochs, all as good as the tree: choosing alone gives no lead."""
    rng = np.random.default_rng(11)
    for rows in (60, 150, 400):
        world = World(BINARY, "auc", rows, 0.0, 0.05, trials=20, epochs=8, top=3)
        found = [world.judged(rng) for _ in range(5)]
        assert sum(each.apparent > 0 for each in found) > 2, "chosen, they look better than they are"
        assert {each.outcome for each in found} == {"as good as"}
        assert all(each.optimism > 0 for each in found)


def test_a_network_that_is_much_better_is_said_to_be() -> None:
    """The corrections leave that much power: chosen among twenty, with 400 rows."""
    rng = np.random.default_rng(12)
    world = World(BINARY, "auc", 400, 0.9, 0.05, trials=20, epochs=4, top=3)
    assert [world.judged(rng).outcome for _ in range(4)] == ["better"] * 4


def test_one_seed_is_judged_with_what_the_search_saw_of_its_spread() -> None:
    """A wide interval where the two differ; nothing is pretended."""
    rng, drawn = np.random.default_rng(0), np.random.default_rng(1).normal(0.9, 0.001, (1, 200))
    tree = Seeds(np.array([0.8]), rng.normal(0.8, 0.001, (1, 200)), 0.8)
    alike, apart = (Seeds(np.array([0.9]), drawn, searched) for searched in (0.9, 0.86))
    assert judge([alike], tree, rows=500, smallest=100, configurations=1, baselines=1).outcome == "better"
    found = judge([apart], tree, rows=500, smallest=100, configurations=1, baselines=1)
    assert found.outcome == "as good as" and found.seeds == 1 and found.lead.low < 0 < found.lead.high


def test_the_same_model_is_as_good_as_itself_and_a_deterministic_one_has_an_interval() -> None:
    """No ± 0: without a spread over seeds the rows are still few."""
    drawn = np.repeat(np.random.default_rng(0).normal(0.9, 0.02, 300)[None], 3, axis=0)
    tree = Seeds(np.full(3, 0.9), drawn, 0.9)
    found = judge([tree], tree, rows=100, smallest=30, configurations=1, baselines=1)
    assert found.outcome == "as good as" and (found.lead.low, found.lead.high) == (0.0, 0.0)
    alone = of_one(tree, 30)
    assert 0.85 < alone.low < 0.88 < 0.92 < alone.high < 0.96


def test_a_metric_without_a_value_decides_nothing() -> None:
    nothing = Seeds(np.full(2, np.nan), np.full((2, 50), np.nan), float("nan"))
    found = judge([nothing], nothing, rows=9, smallest=1, configurations=3, baselines=1)
    assert found.outcome == "as good as" and np.isnan(found.lead.low)


def test_few_rows_widen_and_many_choices_raise_the_expected_best() -> None:
    """The figures of the sources: E[max of 10 normal draws] is 1.54 (Royston 1982)."""
    drawn = np.random.default_rng(0).normal(0.9, 0.02, (1, 5000))
    model = Seeds(np.array([0.9]), drawn, 0.9)
    widths = [found.high - found.low for found in (of_one(model, n) for n in (3, 10, 1000))]
    assert widths[0] > widths[1] > widths[2] == pytest.approx(2 * 1.96 * 0.02, rel=0.05)
    assert expected_max(1) == 0.0 and expected_max(2) == pytest.approx(0.564, abs=0.03)
    assert expected_max(10) == pytest.approx(1.539, abs=0.02) and expected_max(100) == pytest.approx(2.508, abs=0.02)


def test_the_luck_of_the_best_is_that_of_normal_draws() -> None:
    """Efron 2011: what is chosen by worth and two kinds of chance, of which one comes back, against its simulation."""
    rng, worth, lasting, passing, m = np.random.default_rng(5), 0.03, 0.02, 0.01, 50
    chance = rng.normal(size=(1000, m)) * lasting
    scores = rng.normal(size=(1000, m)) * worth + chance + rng.normal(size=(1000, m)) * passing
    seen = np.take_along_axis(chance, scores.argmax(axis=1)[:, None], axis=1).mean()
    assert np.mean([luck(lasting, passing, m, row) for row in scores]) == pytest.approx(seen, rel=0.1)
    without = np.take_along_axis(
        chance, (chance / lasting * np.hypot(lasting, passing)).argmax(axis=1)[:, None], 1
    ).mean()
    assert luck(lasting, 0.0, m) == pytest.approx(without, rel=0.05) and luck(lasting, passing, 1) == 0.0
    failed = np.append(scores[0], [-50.0] * 10)
    assert luck(lasting, passing, m, failed) > 0.3 * seen, "settings that fail are no rivals of the best"


@pytest.mark.parametrize("metric", coverage.METRICS)
def test_the_interval_holds_the_truth_in_95_of_100_splits(metric: str) -> None:
    """A cheap form of `python -m benchmarks coverage`: its 95 % within what so few splits can tell."""
    world = coverage.World(metric, 150, trials=8, epochs=2, tuned=8, top=2)
    for s, found in coverage.coverage(world, (3,), splits=80).items():
        assert found.held >= 0.90, (s, found)
        assert found.false <= 0.05 and found.below <= 0.05, (s, found)


def test_with_one_seed_a_lead_is_possible_and_no_tie_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An AUC lead beyond -1 to 1 cannot be; and one seed gives no spread that a tie could rest on."""
    drawn = np.random.default_rng(1).normal(0.9, 0.001, (1, 200))
    scores = {
        "0001": Seeds(np.array([0.9]), drawn, 0.5),
        "xgboost": Seeds(np.array([0.85]), drawn - 0.05, 0.85),
    }
    network = Confirmed(Contender("0001", 0.5, {}), (0.9,), (1,), "maximize")
    tree = Confirmed(Contender("xgboost", 0.85, {}, "xgboost"), (0.85,), (1,), "maximize")
    objective = SimpleNamespace(metric="val_auc", names=("val_auc",))
    context: Any = SimpleNamespace(
        experiment=SimpleNamespace(direction="maximize", objective=objective, model=SimpleNamespace(code=None)),
        study=SimpleNamespace(rows=list, ranked=list, notes=lambda prefix: {}),
        dataset=SimpleNamespace(judged=SimpleNamespace(targets=pd.DataFrame({"y": np.arange(500) % 2})), folds=()),
        checkpoints=Path(),
    )
    monkeypatch.setattr(verdicts, "_scored_again", lambda context, each: scores[each.contender.label])
    monkeypatch.setattr(verdicts, "waiting_bundle", lambda context, name: SimpleNamespace(task=BINARY))
    monkeypatch.setattr(verdicts, "baseline_values", lambda context: {"xgboost": 0.85})
    costs = {"0001": Cost(4.0, 9.0), "xgboost": Cost(1.5, 0.5)}
    monkeypatch.setattr(verdicts, "cost_of", lambda context, each: costs[each.contender.label])
    found = verdicts.reach(context, (network, tree))
    assert found.judgement is not None and (found.judgement.lead.low, found.judgement.lead.high) == (-1.0, 1.0)
    said = verdicts.in_words(context, found, None, "auc")
    assert "with one seed, the best network (trial 1) 0.9000 is not shown to beat xgboost 0.8500" in said
    assert "-1.0000 to 1.0000" in said and "One seed gives no spread" in said and "as good as" not in said
    assert (
        "ship the baseline, the cheaper one (one row takes 4 ms with the network and 1.5 ms with the baseline" in said
    )
    costs["0001"] = Cost(0.5, 9.0)
    cheaper = verdicts.reach(context, (network, tree))
    assert cheaper.winner is network and cheaper.outcome == "as good as"
    said = verdicts.in_words(context, cheaper, None, "auc")
    assert "ship the network, the cheaper one (one row takes 0.5 ms" in said and "a training 9 s and 0.5 s)" in said
    monkeypatch.setattr(verdicts, "baseline_values", lambda context: {"xgboost": 0.85, "constant": 0.5})
    assert verdicts.reach(context, (network, tree)).winner is tree, "it is not shown to have learned anything"


@pytest.mark.parametrize(
    ("own", "other", "cheaper"),
    [
        (Cost(1.0, 9.0), Cost(2.5, 1.0), True),  # a row counts first
        (Cost(1.5, 1.0), Cost(2.0, 2.5), True),  # rows cost about the same
        (Cost(1.5, 1.0), Cost(2.0, 1.5), False),  # and so do trainings
        (Cost(2.5, 1.0), Cost(1.0, 9.0), False),
        (Cost(1.5, None), Cost(2.0, 2.5), False),  # trained by an older version
    ],
)
def test_only_what_costs_twice_as_much_is_dearer(own: Cost, other: Cost, cheaper: bool) -> None:
    assert own.is_below(other) is cheaper
