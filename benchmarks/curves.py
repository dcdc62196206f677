"""Does a pruner that extrapolates learning curves pay? A parametric one against ours, on recorded curves.

`Curves` fits y = a - b * t**-c to the epochs so far, by least squares in a and b for some c, weighs these by their
likelihood, and prunes where the objective at the last epoch is unlikely to reach the best quarter of finished trials
(after Domhan et al. 2015, https://www.ijcai.org/Proceedings/15/Papers/487.pdf, and the power laws of Viering and Loog
2021, https://arxiv.org/abs/2103.10948). Trials of random configurations are trained to their ends once; every pruner is
then told the same curves, in several orders.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import optuna
from scipy import stats

from benchmarks.problems import PROBLEMS, Work, experiment_of
from benchmarks.running import call, folder
from benchmarks.tables import note, say, table

EXPONENTS = (0.25, 0.5, 1.0, 2.0)
LEAST = 4
"""Epochs below which no curve is fitted."""
QUARTER = 75.0
TRIALS, EPOCHS, ORDERS = 40, 40, 25
UNLIKELY = (0.05, 0.2, 0.5)
"""Probabilities of reaching it below which it prunes, one side each."""
LIBRARY: dict[str, dict[str, Any]] = {
    "median": {"pruner": "median"},
    **{f"percentile, {kept} % kept": {"pruner": "percentile", "percentile": float(kept)} for kept in (25, 60, 75, 90)},
    "hyperband": {"pruner": "hyperband"},
    "successive_halving": {"pruner": "successive_halving"},
}


class Curves(optuna.pruners.BasePruner):
    """See the module; nothing is pruned before so many trials ended, nor before so many epochs of the trial."""

    def __init__(self, epochs: int, startup: int, warmup: int, unlikely: float) -> None:
        self.epochs, self.startup, self.warmup, self.unlikely = epochs, startup, max(warmup, LEAST), unlikely

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Whether the trial is unlikely to become one of the best."""
        ended = [t.value for t in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])]
        sign = 1.0 if study.direction.name == "MAXIMIZE" else -1.0
        if len(ended) < self.startup or len(trial.intermediate_values) < self.warmup:
            return False
        target = float(np.percentile([sign * value for value in ended], QUARTER))
        steps = np.array(sorted(trial.intermediate_values), dtype=float)
        seen = sign * np.array([trial.intermediate_values[int(step)] for step in steps])
        return seen.max() < target and reaches(steps, seen, self.epochs, target) < self.unlikely


def reaches(steps: np.ndarray, seen: np.ndarray, last: int, target: float) -> float:
    """The probability that a curve is at ``target`` or above at the ``last`` epoch; higher is better."""
    weights, chances = [], []
    for exponent in EXPONENTS:
        x = np.column_stack([np.ones_like(steps), -(steps**-exponent)])
        fitted, *_ = np.linalg.lstsq(x, seen, rcond=None)
        left = float(np.square(seen - x @ fitted).sum()) + 1e-12
        freedom = len(steps) - 2
        ahead = np.array([1.0, -(float(last) ** -exponent)])
        wide = math.sqrt(left / freedom * (1 + ahead @ np.linalg.pinv(x.T @ x) @ ahead))
        chances.append(float(stats.t.sf((target - ahead @ fitted) / wide, freedom)))
        weights.append(-0.5 * len(steps) * math.log(left))
    shares = np.exp(np.array(weights) - max(weights))
    return float(shares @ chances / shares.sum())


def record(problem: str, trials: int, epochs: int) -> list[dict[str, Any]]:
    """Parameters and curve of so many trials of random configurations."""
    with folder() as data:
        call("problems:prepare", problem=problem, folder=str(data), trials=trials, seed=0)
        return list(call("curves:train", problem=problem, data=str(data), trials=trials, epochs=epochs))


def train(problem: str, data: str, trials: int, epochs: int) -> list[dict[str, Any]]:
    """In a process of its own."""
    from forge_sweep import sources, training, trial
    from forge_sweep.experiment import parse
    from forge_sweep.study.samplers import at

    work = Work(problem, data, store="", trials=trials)
    spec = parse(experiment_of(work, study={"epochs": epochs, "patience": 8}), root=Path())
    training.select_backend("tensorflow")
    rows, stream, found = sources.load(spec.data, root=Path(), seed=0), np.random.default_rng(0), []
    for number in range(trials):
        drawn = {name: at(float(stream.random()), each) for name, each in searched_of(spec).items()}
        curve: list[float] = []
        trial.run(
            spec,
            rows,
            {**spec.space, **drawn},
            number,
            lambda epoch, metrics, curve=curve: bool(curve.append(metrics["val_auc"])),
        )
        found.append({"number": number, "params": drawn, "curve": curve})
        training.release()
    return found


def searched_of(spec: Any) -> dict[str, Any]:
    """The searched hyperparameters of an experiment, without conditions."""
    from forge_sweep.experiment import Dimension

    return {name: each for name, each in spec.space.items() if isinstance(each, Dimension)}


def compare(curves: Sequence[dict[str, Any]], epochs: int, orders: int = ORDERS) -> list[dict[str, Any]]:
    """Each pruner on the same curves: means over several orders."""
    from forge_sweep.experiment.spec import StudySpec
    from forge_sweep.study import pruners
    from forge_sweep.study.replay import Recorded, replay

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    best = max(max(each["curve"]) for each in curves)
    results = []
    ours = {f"curve, below {chance:g}": chance for chance in UNLIKELY}
    for name in (*LIBRARY, *ours):
        spec = StudySpec(epochs=epochs, **LIBRARY.get(name, {"pruner": "wilcoxon"}))  # which reads every report
        patch: Any = contextlib.nullcontext()
        if name in ours:
            own = Curves(epochs, spec.startup_trials, spec.warmup_epochs, ours[name])
            patch = mock.patch.object(pruners, "make", lambda _, own=own: own)
        saved, false, lost = [], [], []
        with patch:
            for order in range(orders):
                shuffled = np.random.default_rng(order).permutation(len(curves))
                told = [
                    Recorded(at, "finished", dict(enumerate(curves[which]["curve"], 1)), True, 1.0)
                    for at, which in enumerate(shuffled)
                ]
                found = replay(f"{order}", told, spec, "maximize", {})
                saved.append(found.epochs_saved / found.epochs)
                false.append(found.false_prune_rate or 0.0)
                # Those are all that it prunes above the best that it lets finish.
                lost.append(
                    best - max(max(each.curve.values()) for each in told if each.number not in found.would_have_won)
                )
        means = {"saved": saved, "false": false, "lost": lost}
        results.append({"pruner": name, **{key: statistics.fmean(values) for key, values in means.items()}})
    return results


def measure(problems: Sequence[str], trials: int = TRIALS, epochs: int = EPOCHS) -> dict[str, list[dict[str, Any]]]:
    """Every pruner on every problem."""
    return {problem: compare(record(problem, trials, epochs), epochs) for problem in problems}


def show(found: dict[str, list[dict[str, Any]]]) -> None:
    """Print what each saves and loses."""
    for problem, rows in found.items():
        say(f"{PROBLEMS[problem].title}: {TRIALS} random configurations")
        cells = [(row["pruner"], f"{row['saved']:.0%}", f"{row['false']:.0%}", f"{row['lost']:.5f}") for row in rows]
        table(("pruner", "epochs saved", "of the best quarter pruned", "AUC of the best trial lost"), cells)
    note(f"means over {ORDERS} orders of the trials; one trial at a time")
