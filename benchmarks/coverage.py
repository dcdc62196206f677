"""How often the verdict's 95 % interval holds the truth, over splits of a population of which everything is known.

A split draws validation rows anew. Networks of several configurations are trained on it, by several seeds and for
several epochs of which each training keeps its best; so are trees, untuned or the best of several configurations. What
they answer is drawn, so that each model's metric over all rows that there could be is known: it follows from its skill.
The choices are those of a sweep, by the scores on these rows, and the real `judge` is asked. The truth that it claims
to hold is the lead of the network that was chosen, as the mean over all seeds, over the tree that was chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.tables import note, say, table
from forge_sweep.task import Answers, Judgement, Seeds, Task, judge, resampled

CLASSES = 3
REGRESSION = Task.learn("regression", pd.DataFrame({"y": [-1.0, 1.0] * 2}))
"""A target of mean 0 and standard deviation 1, as the truth is drawn."""
TASKS = {
    "auc": Task.learn("binary", pd.DataFrame({"y": [0, 1] * 2})),
    "r2": REGRESSION,
    "rmse": REGRESSION,
    "balanced_accuracy": Task.learn("multiclass", pd.DataFrame({"y": ["a", "b", "c"] * 2})),
}

COMMON, FAMILY, CONFIGURATION, SEED = 0.80, 0.10, 0.05, 0.03
"""Shares of what makes a row hard: for every model, for all networks (or trees), for one configuration, for one
training of it; the rest, 0.02, for one epoch. The scores of two trainings of one configuration correlate with 0.95."""

METRICS = ("auc", "r2", "balanced_accuracy")
ROWS = (200, 1_000, 5_000)
CHOICES: dict[str, dict[str, Any]] = {
    "nothing chosen": {"trials": 1, "epochs": 1, "tuned": 1, "top": 1},
    "24 networks, an untuned tree": {},
    "24 networks, 24 trees": {"tuned": 24},
    "24 and 24, all equally good": {"tuned": 24, "config_sd": 0.0},
}
SEEDS = (1, 2, 3, 5)
SPLITS = 500
POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(41)


@dataclass(frozen=True)
class World:
    """A population, and how much is chosen on its validation rows.

    Attributes:
        metric: of `TASKS`; an error counts with its sign turned, so that greater is better.
        rows: of validation.
        gap: by how much the mean skill of a network is greater than a tree's.
        seed_sd: how far a seed moves the skill of a network.
        config_sd: how far configurations differ in skill, networks' and trees'.
        trials: configurations of networks that were searched.
        epochs: each training keeps the best of so many.
        tuned: configurations of trees, of which the best is kept.
        top: configurations that are confirmed.
        resamples: of the rows.
    """

    metric: str
    rows: int
    gap: float = 0.0
    seed_sd: float = 0.02
    config_sd: float = 0.02
    trials: int = 24
    epochs: int = 8
    tuned: int = 1
    top: int = 3
    resamples: int = 200

    @property
    def task(self) -> Task:
        """What is predicted."""
        return TASKS[self.metric]

    def worth(self, skill: np.ndarray | float, seed_sd: float = 0.0) -> Any:
        """The metric over all rows there could be, of the mean over seeds that move the skill by so much."""
        skills = np.asarray(skill)[..., None] + seed_sd * POINTS
        if self.metric == "auc":
            found = stats.norm.cdf((1.5 + skills) / np.sqrt(2))
        elif self.metric == "rmse":
            found = -(0.7 - 0.3 * skills)
        elif self.metric == "r2":
            found = 1 - (0.7 - 0.3 * skills) ** 2
        else:  # the right one of the classes' scores, which lies so much higher, is the greatest
            nodes = POINTS + (1.2 + skills)[..., None]
            found = (stats.norm.cdf(nodes) ** (CLASSES - 1) * WEIGHTS).sum(axis=-1) / WEIGHTS.sum()
        return (found * WEIGHTS).sum(axis=-1) / WEIGHTS.sum()


class Split:
    """One draw of validation rows, and of the models that were trained for it."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self.world, self.rng, n = world, rng, world.rows
        self.units = CLASSES if world.metric == "balanced_accuracy" else 1
        if world.metric == "auc":
            self.truth = (rng.random(n) < 0.5).astype(np.float64)
            self.encoded = self.truth.astype(np.float32)[:, None]
        elif world.metric == "balanced_accuracy":
            self.truth = np.eye(CLASSES)[rng.integers(0, CLASSES, n)]
            self.encoded = self.truth.argmax(axis=1).astype(np.int32)
        else:
            self.truth = rng.normal(size=n)
            self.encoded = self.truth.astype(np.float32)[:, None]
        self.common = self.noise()

    def noise(self) -> np.ndarray:
        """(rows,) or (rows, classes) of size 1."""
        shape = (self.world.rows, self.units) if self.units > 1 else self.world.rows
        return self.rng.normal(size=shape)

    def answers(self, skill: float, hardness: np.ndarray) -> Answers:
        """Scores of a model of that skill to which each row is so hard."""
        if self.world.metric == "auc":
            return Answers(stats.norm.cdf((1.5 + skill) * (self.truth - 0.5) + hardness)[:, None], 0.5)
        if self.world.metric == "balanced_accuracy":
            raised = np.exp((1.2 + skill) * self.truth + hardness)
            return Answers(raised / raised.sum(axis=1, keepdims=True), 0.5)
        return Answers((self.truth + (0.7 - 0.3 * skill) * hardness)[:, None], 0.5)

    def score(self, answers: Answers) -> float:
        """The metric on these rows; greater is better."""
        scores, truth = answers.scores, self.truth
        if self.world.metric == "auc":
            ranks, positives = stats.rankdata(scores[:, 0]), truth.sum()
            return float((ranks[truth == 1].sum() / positives - (positives + 1) / 2) / (len(truth) - positives))
        if self.world.metric == "balanced_accuracy":
            right = truth[np.arange(len(truth)), scores.argmax(axis=1)]
            return float(np.mean([right[truth[:, k] == 1].mean() for k in range(CLASSES)]))
        squares = np.mean((truth - scores[:, 0]) ** 2)
        return float(-np.sqrt(squares) if self.world.metric == "rmse" else 1 - squares / truth.var())

    def trained(self, skill: float, base: np.ndarray) -> tuple[float, Answers]:
        """A training: its best epoch by these rows, with its score."""
        own = base + np.sqrt(SEED) * self.noise()
        rest = np.sqrt(1 - COMMON - FAMILY - CONFIGURATION - SEED)
        epochs = (self.answers(skill, own + rest * self.noise()) for _ in range(self.world.epochs))
        return max(((self.score(each), each) for each in epochs), key=lambda one: one[0])

    def of_seeds(self, trainings: list[tuple[float, Answers]], searched: float, epochs: int) -> Seeds:
        """As the verdict scores them again."""
        sign = 1.0 if self.world.task.direction(self.world.metric) == "maximize" else -1.0
        over: dict[int, np.ndarray] = {}  # a tree that no seed changes is resampled once
        for _, each in trainings:
            if id(each) not in over:
                found = resampled(
                    self.world.task, self.encoded, each, self.world.metric, resamples=self.world.resamples
                )
                over[id(each)] = sign * found[1]
        values = np.array([value for value, _ in trainings])
        return Seeds(values, np.stack([over[id(each)] for _, each in trainings]), searched, epochs)


def judged(world: World, seeds: tuple[int, ...], rng: np.random.Generator) -> Iterator[tuple[int, Judgement, float]]:
    """A sweep on one split: for so many seeds each, the judgement and the truth that it is about."""
    split = Split(world, rng)
    of_networks, of_trees = (np.sqrt(COMMON) * split.common + np.sqrt(FAMILY) * split.noise() for _ in range(2))
    skills = world.gap + world.config_sd * rng.normal(size=world.trials)
    bases = [of_networks + np.sqrt(CONFIGURATION) * split.noise() for _ in skills]

    def training(i: int) -> tuple[float, Answers]:
        return split.trained(skills[i] + world.seed_sd * rng.normal(), bases[i])

    searched = np.array([training(i)[0] for i in range(world.trials)])
    best = np.argsort(-searched)[: world.top]
    networks = {i: [training(i) for _ in range(max(seeds))] for i in best}
    tree_skills = world.config_sd * rng.normal(size=world.tuned)
    rest = np.sqrt(1 - COMMON - FAMILY)
    trees = [split.answers(skill, of_trees + rest * split.noise()) for skill in tree_skills]
    values = [split.score(each) for each in trees]
    tree = int(np.argmax(values))
    found = {i: split.of_seeds(each, searched[i], world.epochs) for i, each in networks.items()}
    of_tree = split.of_seeds([(values[tree], trees[tree])] * max(seeds), values[tree], 1)
    smallest = world.task.fewest(split.encoded)
    for s in seeds:
        first = {
            i: dataclasses.replace(each, values=each.values[:s], drawn=each.drawn[:s]) for i, each in found.items()
        }
        order = sorted(first, key=lambda i: -first[i].values.mean())
        judgement = judge(
            [first[i] for i in order],
            dataclasses.replace(of_tree, values=of_tree.values[:s], drawn=of_tree.drawn[:s]),
            rows=world.rows,
            smallest=smallest,
            configurations=world.trials,
            baselines=world.tuned,
            searched=searched.tolist(),
            fitted=values,
        )
        truth = world.worth(skills[order[0]], world.seed_sd) - world.worth(tree_skills[tree])
        yield s, judgement, float(truth)


@dataclass(frozen=True)
class Coverage:
    """Of one world and one number of seeds."""

    splits: int
    held: float  # share of the intervals that hold the truth
    below: float  # share in which the truth is below the interval: the network was praised too much
    above: float
    false: float  # share of the outcomes that are not so
    better: float  # share of "better"
    width: float  # mean width of the interval


def coverage(world: World, seeds: tuple[int, ...] = SEEDS, splits: int = SPLITS, seed: int = 0) -> dict[int, Coverage]:
    """By number of seeds."""
    rng = np.random.default_rng([seed, world.rows])
    rows: dict[int, list[tuple[bool, bool, bool, bool, float]]] = {s: [] for s in seeds}
    for _ in range(splits):
        for s, found, truth in judged(world, seeds, rng):
            below, above = truth < found.lead.low, truth > found.lead.high
            false = (found.outcome == "better" and truth <= 0) or (found.outcome == "worse" and truth >= 0)
            rows[s].append((below, above, false, found.outcome == "better", found.lead.high - found.lead.low))
    means = {s: np.mean(each, axis=0) for s, each in rows.items()}
    return {s: Coverage(splits, float(1 - m[0] - m[1]), *map(float, m)) for s, m in means.items()}


def measure(
    metrics: Sequence[str] = METRICS, rows: Sequence[int] = ROWS, splits: int = SPLITS, seed: int = 0
) -> list[dict[str, Any]]:
    """Every metric with so many rows, and every way to choose; said as it goes."""
    found = []
    for metric in metrics:
        for n in rows:
            for choice, values in CHOICES.items():
                for s, each in coverage(World(metric, n, **values), splits=splits, seed=seed).items():
                    about = {"metric": metric, "rows": n, "choice": choice, "seeds": s}
                    found.append(about | dataclasses.asdict(each))
                note(f"{metric}, {n:,} rows, {choice}: {[round(100 * f['held'], 1) for f in found[-len(SEEDS) :]]} %")
    return found


def show(found: Sequence[dict[str, Any]]) -> None:
    """The table of `RESULTS.md`."""
    say(f"## Coverage of the verdict's 95 % interval, {found[0]['splits']} splits\n")
    lines: dict[tuple[str, int, str], dict[int, dict[str, Any]]] = {}
    for each in found:
        lines.setdefault((each["metric"], each["rows"], each["choice"]), {})[each["seeds"]] = each
    titles = ["metric", "rows", "choices", *(f"{s} seed{'s' * (s > 1)}" for s in SEEDS), "wrong outcomes", "width"]
    rows = []
    for (metric, n, choice), by_seeds in lines.items():
        held = [f"{100 * by_seeds[s]['held']:.1f} %" for s in SEEDS]
        wrong = f"{100 * max(each['false'] for each in by_seeds.values()):.1f} %"
        rows.append([metric, f"{n:,}", choice, *held, wrong, f"{by_seeds[3]['width']:.3f}"])
    table(titles, rows)
