"""What the diagnosis of a trial costs, and how often it raises a false alarm.

The cost is the share of a trial's time that samples, snapshots and the findings themselves take, as the trial keeps it
(``cost/diagnosis_share``). Alarms are counted over healthy trials: real rows, shuffled by nobody, and hyperparameters
from a sane space, so that what is said of them as a warning is false.
"""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.problems import PROBLEMS, ROOT, Work, experiment_of
from benchmarks.running import call, folder
from benchmarks.tables import say, table

EPOCHS = 30

SETS: dict[str, dict[str, Any]] = {
    "breast_cancer": {"source": "sample", "name": "breast_cancer", "target": "target", "task": "binary"},
    "digits": {"source": "sample", "name": "digits", "target": "target", "task": "multiclass"},
    "wine": {"source": "sample", "name": "wine", "target": "target", "task": "multiclass"},
    "diabetes": {"source": "sample", "name": "diabetes", "target": "target", "task": "regression"},
    "credit": {
        **{"path": "experiments/data/credit.csv", "key": "id"},
        **{"target": "Status", "task": "binary", "positive": "bad"},
    },
}
"""Real rows, from 178 to 4,454."""

SANE: dict[str, Any] = {
    "width": {"type": "int", "low": 16, "high": 256, "log": True},
    "depth": {"type": "int", "low": 1, "high": 4},
    "dropout": {"type": "float", "low": 0.0, "high": 0.5},
    "l2": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
    "learning_rate": {"type": "float", "low": 3e-4, "high": 1e-2, "log": True},
    "batch_size": {"type": "categorical", "choices": [16, 32, 64]},
    "activation": {"type": "categorical", "choices": ["relu", "gelu", "silu"]},
    "batch_norm": {"type": "categorical", "choices": [True, False]},
}
"""What somebody who knows the field would search on rows as few."""


def healthy(**arguments: Any) -> list[dict[str, Any]]:
    """Train random trials on one set; gives of each what was said of it, and its shares of time."""
    from forge_sweep import sources, training, trial
    from forge_sweep.experiment import parse
    from forge_sweep.study.samplers import SobolSampler
    from forge_sweep.study.space import searched

    data = SETS[arguments["name"]]
    metric = "val_rmse" if data["task"] == "regression" else "val_loss"
    content = {
        **{"name": "alarms", "seed": arguments["seed"], "data": data, "objective": {"metric": metric}},
        **{"model": {"search": SANE}, "study": {"epochs": EPOCHS, "patience": EPOCHS - 1}},
    }
    experiment = parse(content, root=ROOT)
    training.select_backend("tensorflow")
    rows = sources.load(experiment.data, root=experiment.root, seed=experiment.seed)
    sobol = SobolSampler(searched(experiment.space), arguments["seed"], n_before=0)
    told = []
    for number in range(arguments["trials"]):
        params = {**experiment.space, **sobol.point(number)}
        try:
            found = trial.run(experiment, rows, params, number, lambda epoch, logs: False)
        except trial.TrialFailed as failure:
            told.append({"params": params, "findings": [["failed", failure.failure, str(failure)]], "shares": {}})
            continue
        findings = [[each.severity, each.code, str(each)] for each in found.findings]
        told.append({"params": params, "findings": findings, "shares": found.shares})
        del found
        training.release()
    return told


def alarms(trials: int, seed: int) -> dict[str, Any]:
    """What is said of healthy trials, over all sets."""
    return {name: call("diagnosis:healthy", name=name, trials=trials // len(SETS), seed=seed) for name in SETS}


def show_alarms(results: dict[str, Any]) -> None:
    """The rate of each finding; docs/failures.md has this table."""
    trials = [*itertools.chain.from_iterable(results.values())]
    say(f"### Findings of {len(trials)} healthy random trials, {EPOCHS} epochs, by set\n")
    by_set = {name: Counter(code for one in told for _, code, _ in one["findings"]) for name, told in results.items()}
    severity = {code: kind for one in trials for kind, code, _ in one["findings"]}
    rows = []
    for code, kind in sorted(severity.items(), key=lambda item: (item[1] != "warning", item[0])):
        counts = [by_set[name][code] for name in results]
        rows.append([code, kind, *counts, f"{100 * sum(counts) / len(trials):.1f} %"])
    table(["finding", "", *results, "of all"], rows)


def costs(**arguments: Any) -> list[dict[str, float]]:
    """Shares of the time of each trial of one problem at equal work."""
    from forge_sweep import sources, training, trial
    from forge_sweep.experiment import parse

    work = Work(**arguments)
    experiment = parse(experiment_of(work), root=Path(work.folder))
    training.select_backend("tensorflow")
    rows = sources.load(experiment.data, root=experiment.root, seed=experiment.seed)
    found = []
    for number, point in enumerate(work.points()):
        result = trial.run(experiment, rows, {**experiment.space, **point}, number, lambda epoch, logs: False)
        found.append({"seconds": result.seconds, **result.shares})
        del result
        training.release()
    return found


def measure(problem: str, trials: int) -> list[dict[str, float]]:
    """The cost on one problem."""
    with folder() as data, folder() as store:
        call("problems:prepare", problem=problem, folder=str(data), trials=trials, seed=0)
        work = Work(problem, str(data), str(store), trials=trials)
        found: list[dict[str, float]] = call("diagnosis:costs", **work.to_dict())
    return found


def show_costs(results: dict[str, list[dict[str, float]]]) -> None:
    """The table."""
    say("### The diagnosis of a trial (samples, snapshots, findings)\n")
    rows = []
    for problem, found in results.items():
        shares = sorted(100 * each["cost/diagnosis_share"] for each in found)
        whole = sum(each["seconds"] for each in found)
        spent = sum(each["cost/diagnosis_share"] * each["seconds"] for each in found)
        setup = sum(each["cost/setup_share"] * each["seconds"] for each in found)
        rows.append(
            [
                PROBLEMS[problem].title,
                len(found),
                f"{whole / len(found):.2f}",
                f"{100 * spent / whole:.2f} %",
                f"{shares[len(shares) // 2]:.2f} %",
                f"{shares[-1]:.2f} %",
                f"{100 * setup / whole:.0f} %",
            ]
        )
    heads = ["of all their time", "median of a trial", "most of a trial", "building and compiling"]
    table(["", "trials", "a trial, s", *heads], rows)
