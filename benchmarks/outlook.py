"""Is more search worth it? What `forge_sweep.study.outlook` says of ten more trials, against what they then gave.

Optuna's TPE, with the settings of our study, searches surfaces of which everything is known: parabolas in four
hyperparameters, of which one matters most, and noise over seeds. After so many trials the outlook is asked, and ten
more are run.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.tables import note, say, table
from forge_sweep.study.outlook import AHEAD, ahead

SURFACES = 200
AFTER = (20, 30, 40, 60, 100)
NOISE = 0.003
"""Standard deviation over seeds; the surfaces span about 0.35."""
STARTUP = 10
WEIGHTS = (0.2, 0.1, 0.04, 0.01)


def searched(seed: int, trials: int) -> list[float]:
    """The observed scores of one search, in order."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    stream = np.random.default_rng(seed)
    optimum = stream.uniform(0.2, 0.8, len(WEIGHTS))
    sampler = optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=STARTUP, n_ei_candidates=24, multivariate=True, constant_liar=False
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def score(trial: Any) -> float:
        place = np.array([trial.suggest_float(f"x{i}", 0.0, 1.0) for i in range(len(WEIGHTS))])
        return 0.95 - float(np.dot(WEIGHTS, (place - optimum) ** 2)) + NOISE * stream.standard_normal()

    study.optimize(score, n_trials=trials)
    return [trial.value for trial in study.trials]


def measure(surfaces: int = SURFACES, after: Sequence[int] = AFTER) -> list[dict[str, Any]]:
    """For each number of trials: what the outlook expected of ten more, and what they gave, on average."""
    runs = [searched(seed, max(after) + AHEAD) for seed in range(surfaces)]
    rows = []
    for n in after:
        found = [ahead(run[:n], STARTUP) for run in runs]
        said = [gain for _, _, gain in filter(None, found)]
        gave = [
            max(run[: n + more]) - max(run[:n]) for run, (more, _, _) in zip(runs, filter(None, found), strict=True)
        ]
        unworthy = [gain for words, gain in zip(said, gave, strict=True) if words <= NOISE]
        rows.append(
            {
                "after": n,
                "more": min(AHEAD, (n - STARTUP) // 2),
                "said": statistics.fmean(said),
                "gave": statistics.fmean(gave),
                "error": statistics.stdev(gave) / len(gave) ** 0.5,
                "not_worth": len(unworthy) / len(runs),
                "missed": statistics.fmean(gain > NOISE for gain in unworthy) if unworthy else None,
            }
        )
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the comparison."""
    cells = [
        (
            str(row["after"]),
            str(row["more"]),
            f"{row['said']:.5f}",
            f"{row['gave']:.5f} ± {row['error']:.5f}",
            f"{row['not_worth']:.0%}",
            "-" if row["missed"] is None else f"{row['missed']:.0%}",
        )
        for row in rows
    ]
    say(f"more trials with TPE, noise over seeds {NOISE}")
    header = ("after trials", "more", "said", "gave", "said to be not worth it", "of these gained more than the noise")
    table(header, cells)
    note("means over the surfaces; ± is the standard error")
