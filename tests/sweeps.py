"""Sweeps without a training: a surface of known shape, a sampler that learns, a pruner, seeds. Pure, and quick."""

from __future__ import annotations

from typing import Any

import numpy as np

from forge_sweep.checks.search import Searched, Tried
from forge_sweep.experiment import Dimension

RATE = Dimension(type="float", low=1e-4, high=1e-2, log=True)
DROPOUT = Dimension(type="float", low=0.0, high=0.8)
WIDTH = Dimension(type="int", low=16, high=256, log=True)
SPACE = {"learning_rate": RATE, "dropout": DROPOUT, "width": WIDTH}
STUDY = {
    **{"sampler": "tpe", "pruner": "median", "n_trials": 40, "epochs": 30},
    **{"startup_trials": 5, "warmup_epochs": 5, "percentile": 25.0},
}


def at(shares: np.ndarray) -> dict[str, Any]:
    """Hyperparameters at these places of their ranges, from 0 to 1."""
    rate, dropout, width = map(float, shares)
    return {"learning_rate": 1e-4 * 100**rate, "dropout": 0.8 * dropout, "width": round(16 * 16**width)}


def simulated(
    seed: int,
    *,
    n: int = 40,
    noise: float = 0.003,
    learns: bool = True,
    pruner: bool = True,
    lead: float = 0.03,
    weights: tuple[float, ...] = (0.3, 0.2, 0.1),
    best: tuple[float, float] = (0.3, 0.7),
) -> Searched:
    """A sweep of ``n`` trials: ten at random, then near the best so far, closer and closer.

    Args:
        seed: of everything.
        n: trials.
        noise: standard deviation that the seed of a training adds; the surface itself spans about 0.2.
        learns: whether the sampler does.
        pruner: whether those below the median, but for one in four, are pruned.
        lead: of the best trial over the best baseline.
        weights: of the parabola in each hyperparameter.
        best: between which places of each range its optimum lies.
    """
    stream = np.random.default_rng(seed)
    optimum = stream.uniform(*best, 3)

    def truth(place: np.ndarray) -> float:
        return 0.95 - float(np.dot(weights, (place - optimum) ** 2))

    trials: list[Tried] = []
    places: list[np.ndarray] = []
    for number in range(n):
        place = stream.random(3)
        if number >= 10 and learns:
            nearest = max((t for t in trials if t.state == "finished"), key=lambda t: t.value).number
            wide = 0.25 * 0.95 ** (number - 10)
            place = np.clip(places[nearest] + wide * stream.standard_normal(3), 0, 1)
        places.append(place)
        value = truth(place) + noise * stream.standard_normal()
        finished = [trial.value for trial in trials if trial.state == "finished"]
        hopeless = number >= 5 and value < np.median(finished) and stream.random() > 0.25
        state = "pruned" if pruner and hopeless else "finished"
        trials.append(Tried(number, value, at(place), state=state, epochs=8 if state == "pruned" else 25, loss=0.2))
    ranked = sorted((t for t in trials if t.state == "finished"), key=lambda trial: -trial.value)
    confirmed = [[truth(places[t.number]) + noise * stream.standard_normal() for _ in range(3)] for t in ranked[:3]]
    return Searched(
        trials=trials,
        space=SPACE,
        direction="maximize",
        metric="val_auc",
        study={**STUDY, "n_trials": n, "pruner": "median" if pruner else "none"},
        confirmed=confirmed,
        baselines={"constant": (0.5, 0.69), "xgboost": (ranked[0].value - lead, 0.3)},
        startup=10,
    )
