"""Cost of a suggestion, ask and all its hyperparameters, in a study of many finished trials: ours against bare Optuna.

TPE, four searched hyperparameters. Ours is `Study.ask` on its SQLite file; bare Optuna is `Study.ask` and `suggest_*`,
in memory and on SQLite as Optuna opens it. A trial is told before the next is asked, outside the clock. The first
suggestion of a process reads all trials from the file and is shown apart.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.problems import PROBLEMS, Work, experiment_of
from benchmarks.running import call, folder
from benchmarks.tables import note, say, table

FINISHED = (10, 1_000, 10_000)
ASKED = 10
PROBLEM = "shapes"
WAYS = {"ours": "ours, SQLite", "sqlite": "Optuna, SQLite", "memory": "Optuna, in memory"}


def finished_trials(count: int) -> list[Any]:
    """Finished trials with random parameters and values."""
    import optuna

    rng, search = random.Random(0), PROBLEMS[PROBLEM].search
    distributions = {name: distribution(found) for name, found in search.items()}
    return [
        optuna.trial.create_trial(
            value=rng.random(),
            params={name: draw(rng, found) for name, found in search.items()},
            distributions=distributions,
        )
        for _ in range(count)
    ]


def distribution(found: dict[str, Any]) -> Any:
    """Optuna's distribution of a searched hyperparameter."""
    from optuna.distributions import FloatDistribution, IntDistribution

    kind = IntDistribution if found["type"] == "int" else FloatDistribution
    return kind(found["low"], found["high"], log=found.get("log", False))


def draw(rng: random.Random, found: dict[str, Any]) -> float:
    """Any value of a searched hyperparameter."""
    ends = found["low"], found["high"]
    return rng.randint(*ends) if found["type"] == "int" else rng.uniform(*ends)


def insert(storage: Any, study_id: int, trials: list[Any]) -> None:
    """Write finished trials to a database in one transaction; `Study.add_trials` takes a minute for 10,000."""
    from optuna.storages._rdb import models

    written = [(number, trial, number + 1) for number, trial in enumerate(trials)]
    rows = {
        models.TrialModel: [trial_row(study_id, *one) for one in written],
        models.TrialValueModel: [
            {"trial_id": key, "objective": 0, "value": trial.value, "value_type": "FINITE"} for _, trial, key in written
        ],
        models.TrialParamModel: [row for _, trial, key in written for row in param_rows(trial, key)],
        models.TrialUserAttributeModel: [
            {"trial_id": key, "key": "forge.params", "value_json": json.dumps(trial.params)}
            for _, trial, key in written
        ],
    }
    with storage.engine.begin() as connection:
        for model, values in rows.items():
            connection.execute(model.__table__.insert(), values)


def trial_row(study_id: int, number: int, trial: Any, key: int) -> dict[str, Any]:
    """The row of a trial in Optuna's table."""
    times = {"datetime_start": trial.datetime_start, "datetime_complete": trial.datetime_complete}
    return {"trial_id": key, "number": number, "study_id": study_id, "state": trial.state.name, **times}


def param_rows(trial: Any, key: int) -> list[dict[str, Any]]:
    """The rows of its parameters."""
    from optuna.distributions import distribution_to_json

    return [
        {
            "trial_id": key,
            "param_name": name,
            "param_value": found.to_internal_repr(trial.params[name]),
            "distribution_json": distribution_to_json(found),
        }
        for name, found in trial.distributions.items()
    ]


def ours(finished: int, store: str) -> dict[str, float]:
    """Our study."""
    from forge_sweep.experiment import parse
    from forge_sweep.study import open_study

    work = Work(PROBLEM, store, store, trials=finished + 10 * ASKED)
    experiment = parse(experiment_of(work, study={"pruner": "none"}), root=Path(store))
    dataset = {"version": "v", "digest": "d", "split_digest": "s"}
    first = open_study(experiment, dataset=dataset, store=Path(store))
    insert(first._storage, first._study_id, finished_trials(finished))
    study = open_study(experiment, dataset=dataset, store=Path(store))  # as another process finds it

    def suggest() -> int:
        asked = study.ask()
        assert asked is not None
        return asked.number

    with study.hold():
        return timed(suggest, lambda number: study.tell(number, "finished", 0.5))


def optuna_alone(finished: int, store: str, way: str) -> dict[str, float]:
    """Bare Optuna."""
    import optuna

    from benchmarks.search import suggest

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{store}/optuna.db" if way == "sqlite" else None
    sampler = optuna.samplers.TPESampler(seed=0)
    study = optuna.create_study(study_name="bench", storage=url, direction="maximize", sampler=sampler)
    if url is None:
        study.add_trials(finished_trials(finished))
    else:
        storage = optuna.storages.RDBStorage(url)
        insert(storage, storage.get_study_id_from_name("bench"), finished_trials(finished))
        study = optuna.load_study(study_name="bench", storage=url, sampler=sampler)

    def ask() -> int:
        trial = study.ask()
        suggest(trial, PROBLEMS[PROBLEM])
        return trial.number

    return timed(ask, lambda number: study.tell(number, 0.5))


def timed(ask: Callable[[], int], tell: Callable[[int], Any]) -> dict[str, float]:
    """Milliseconds of the first suggestion, and the median of the next ones."""
    taken = []
    for _ in range(ASKED + 1):
        began = time.perf_counter()
        number = ask()
        taken.append(1000 * (time.perf_counter() - began))
        tell(number)
    return {"first_ms": taken[0], "ms": statistics.median(taken[1:])}


def measure(counts: tuple[int, ...]) -> dict[str, dict[str, dict[str, float]]]:
    """Every way at every count, each in a process of its own."""
    found: dict[str, dict[str, dict[str, float]]] = {way: {} for way in WAYS}
    for count in counts:
        for way, results in found.items():
            with folder() as store:
                function = "suggestions:ours" if way == "ours" else "suggestions:optuna_alone"
                rest = {} if way == "ours" else {"way": way}
                results[str(count)] = call(function, finished=count, store=str(store), **rest)
            note(f"suggestions: {WAYS[way]}, {count} finished: {results[str(count)]['ms']:.1f} ms")
    return found


def show(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """The table."""
    say("### A suggestion in a study of finished trials, ms (and the first one of a process)\n")
    counts = list(results["ours"])
    rows = [
        [WAYS[way], *(f"{found[count]['ms']:.1f} ({found[count]['first_ms']:,.0f})" for count in counts)]
        for way, found in results.items()
    ]
    ratios = [f"{results['ours'][count]['ms'] / results['sqlite'][count]['ms']:.2f}" for count in counts]
    table(["", *(f"{int(count):,}" for count in counts)], [*rows, ["ours, of Optuna on SQLite", *ratios]])
