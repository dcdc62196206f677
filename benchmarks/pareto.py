"""Does pruning with several objectives pay? Time saved, and the hypervolume of what is found, over several seeds.

A grid of configurations is trained once, until it stops early, with every metric of every epoch. Sweeps then search it
through `forge_sweep.study`, as if they trained: the same suggestions, reports and prunings, at the price of
nothing. Time is counted in epochs.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from benchmarks.problems import PROBLEMS, Work, experiment_of
from benchmarks.running import call, folder
from benchmarks.tables import note, say, table

GRID: dict[str, list[Any]] = {
    "width": [8, 16, 32, 64, 128],
    "depth": [1, 2, 3],
    "dropout": [0.0, 0.3],
    "learning_rate": [1e-4, 5e-4, 2e-3, 1e-2],
}
EPOCHS, PATIENCE, TRIALS = 40, 8, 40
SEEDS = tuple(range(5, 10))
"""Seeds 0 to 4 chose `pareto.BEATEN_BY` among 1, 2 and 3, and its margin."""
OBJECTIVES = (("val_auc", "parameters"), ("val_auc", "val_log_loss", "parameters"))
PRUNERS = ("none", "dominated")


def record(problem: str, epochs: int = EPOCHS) -> list[dict[str, Any]]:
    """Parameters, metrics of every epoch and number of weights of each configuration of the grid."""
    with folder() as data:
        call("problems:prepare", problem=problem, folder=str(data), trials=2, seed=0)
        return list(call("pareto:train", problem=problem, data=str(data), epochs=epochs))


def train(problem: str, data: str, epochs: int) -> list[dict[str, Any]]:
    """In a process of its own."""
    from forge_sweep import sources, training, trial
    from forge_sweep.bundle import measure
    from forge_sweep.experiment import parse

    study = {"epochs": epochs, "patience": PATIENCE}
    spec = parse(experiment_of(Work(problem, data, store="", trials=2), study=study), root=Path())
    training.select_backend("tensorflow")
    rows, found = sources.load(spec.data, root=Path(), seed=0), []
    for number, values in enumerate(itertools.product(*GRID.values())):
        params, curve = dict(zip(GRID, values, strict=True)), list[dict[str, float]]()
        result = trial.run(
            spec,
            rows,
            {**spec.space, **params},
            number,
            lambda epoch, metrics, curve=curve: bool(curve.append(metrics)),
        )
        measured = measure(result.bundle, ("parameters",), rows.train.features)
        wanted = ("val_auc", "val_log_loss")
        curve = [{name: epoch[name] for name in wanted} for epoch in curve]
        found.append({"params": params, "curve": curve, "measured": measured})
        training.release()
    return found


def search(
    recorded: Sequence[Mapping[str, Any]], objectives: Sequence[str], pruner: str, seed: int, trials: int
) -> dict[str, Any]:
    """One sweep over the recorded grid: epochs, pruned trials, and the share of the hypervolume that it found."""
    from forge_sweep.experiment import parse
    from forge_sweep.study import open_study
    from forge_sweep.study.pareto import hypervolume, turned

    known = {tuple(each["params"].values()): each for each in recorded}
    spec = parse(
        {
            "name": "grid",
            "seed": seed,
            "data": {"source": "file", "path": "rows.csv", "target": "y", "task": "binary"},
            "model": {"search": {name: {"type": "categorical", "choices": each} for name, each in GRID.items()}},
            "objective": {"metrics": list(objectives)},
            "study": {"n_trials": trials, "epochs": EPOCHS, "pruner": pruner},
        },
        root=Path(),
    )
    ways = list(spec.directions.values())
    ends = {key: _scaled(turned(_ends_with(each, objectives), ways), objectives) for key, each in known.items()}
    best, worst = ([pick(column) for column in zip(*ends.values(), strict=True)] for pick in (min, max))

    def share(points: Sequence[tuple[float, ...]]) -> float:
        scaled = [
            tuple((v - low) / (high - low) for v, low, high in zip(point, best, worst, strict=True)) for point in points
        ]
        return hypervolume(scaled, (1.0,) * len(best))

    epochs, kept, course = 0, list[tuple[float, ...]](), list[tuple[int, float]]()
    with tempfile.TemporaryDirectory() as store:
        dataset = {"version": "v", "digest": "d", "split_digest": "s"}
        study = open_study(spec, dataset=dataset, store=Path(store))
        with study.hold():
            while asked := study.ask():
                key = tuple(asked.params[name] for name in GRID)
                each, pruned = known[key], False
                for epoch, metrics in enumerate(each["curve"]):
                    epochs += 1
                    further = {**metrics, **each["measured"]}
                    if pruned := study.report(asked.number, epoch, metrics[objectives[0]], further):
                        break
                values = dict(zip(objectives, _ends_with(each, objectives), strict=True))
                state = "pruned" if pruned else "finished"
                study.tell(asked.number, state, values[objectives[0]], further=values)  # type: ignore[arg-type]
                if not pruned:
                    kept.append(ends[key])
                course.append((epochs, share(kept)))
        pruned_trials = study.counts().get("pruned", 0)
    return {"epochs": epochs, "pruned": pruned_trials, "share": course[-1][1], "whole": share(list(ends.values())),
            "course": course}  # fmt: skip


def _ends_with(each: Mapping[str, Any], objectives: Sequence[str]) -> tuple[float, ...]:
    """The objectives at the best epoch by the first one."""
    at_best = max(each["curve"], key=lambda metrics: metrics[objectives[0]])
    return tuple({**at_best, **each["measured"]}[name] for name in objectives)


def _scaled(point: Sequence[float], objectives: Sequence[str]) -> tuple[float, ...]:
    """Parameters by their logarithm: they span two powers of ten, and the smallest would make up all of the volume."""
    return tuple(math.log(v) if name == "parameters" else v for v, name in zip(point, objectives, strict=True))


def compare(
    recorded: Sequence[Mapping[str, Any]], seeds: Sequence[int] = SEEDS, trials: int = TRIALS
) -> list[dict[str, Any]]:
    """Each list of objectives with and without pruning, seed by seed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = []
    for objectives in OBJECTIVES:
        for seed in seeds:
            without, pruned = (search(recorded, objectives, pruner, seed, trials) for pruner in PRUNERS)
            found = {"objectives": list(objectives), "seed": seed, "whole": without["whole"]}
            for name, each in (("none", without), ("dominated", pruned)):
                found[name] = {key: each[key] for key in ("epochs", "pruned", "share")}
            # The epochs after which each had found what both found in the end.
            level = min(without["share"], pruned["share"])
            found["to_level"] = [
                next(epochs for epochs, share in each["course"] if share >= level) for each in (without, pruned)
            ]
            rows.append(found)
    return rows


def measure(problems: Sequence[str], trials: int = TRIALS) -> dict[str, list[dict[str, Any]]]:
    """Every problem."""
    return {problem: compare(record(problem), trials=trials) for problem in problems}


def show(found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Print what pruning saves, and what it costs in hypervolume."""
    for problem, rows in found.items():
        say(f"{PROBLEMS[problem].title}: {TRIALS} of {len(list(itertools.product(*GRID.values())))} configurations")
        cells = []
        for objectives in OBJECTIVES:
            of = [row for row in rows if row["objectives"] == list(objectives)]
            saved = [1 - row["dominated"]["epochs"] / row["none"]["epochs"] for row in of]
            lost = [row["none"]["share"] - row["dominated"]["share"] for row in of]
            sooner = [1 - row["to_level"][1] / row["to_level"][0] for row in of]
            cells.append(
                (
                    ", ".join(objectives),
                    f"{statistics.fmean(row['dominated']['pruned'] for row in of):.1f}",
                    f"{statistics.fmean(saved):.0%} ({min(saved):.0%} to {max(saved):.0%})",
                    f"{statistics.fmean(row['none']['share'] for row in of):.4f}",
                    f"{statistics.fmean(row['dominated']['share'] for row in of):.4f}",
                    f"{statistics.fmean(lost):+.4f} ({min(lost):+.4f} to {max(lost):+.4f})",
                    f"{statistics.fmean(sooner):.0%}",
                )
            )
        titles = ("objectives", "pruned", "epochs saved", "hypervolume, none", "hypervolume, dominated", "lost",
                  "fewer epochs to the same hypervolume")  # fmt: skip
        table(titles, cells)
    note(
        f"means over {len(SEEDS)} seeds, in brackets the least and the most; shares of the box between the grid's ends"
    )
