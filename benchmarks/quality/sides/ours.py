"""The default experiment as a new user writes it, run through the public `Sweep`.

The file names the rows, the target, the metric and a time limit, and, because an experiment has to say what it
searches, the four lines of `[model.search]` of the README, which the peers with networks search too. Every other key
has its default. The limit is of the search alone: audit, pre-flight, baselines, confirmation and test come on top. So
the first try gives the search a share of the budget; where the whole then took much more or less than the budget, or
found no model in time, a second one gets what the times of the first one say, and counts where it ends with a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.statistics import PRIMARY
from benchmarks.quality.work import NoTime, Work

SHARE, LARGER, LEAST = 0.5, 0.8, 0.15
"""Of the budget for the search: at first, after a first try without a model and at most, and at least."""
NEAR = (0.85, 1.05)
"""Of the budget: what is near enough for the first try to count."""

FILE = """\
name = "quality"
seed = {seed}

[data]
path = "rows.parquet"
target = "{target}"
task = "{task}"
{positive}
[data.split]
kind = "column"
column = "split"

[model.search]
width = {{ type = "int", low = 16, high = 256, log = true }}
depth = {{ type = "int", low = 1, high = 4 }}
dropout = {{ type = "float", low = 0.0, high = 0.5 }}
learning_rate = {{ type = "float", low = 1e-4, high = 1e-2, log = true }}

[objective]
metric = "val_{metric}"

[study]
timeout_s = {timeout_s:.1f}
n_trials = 1000                       # the time limit ends the search
"""


def load() -> None:
    """Import what the first trial would."""
    import keras
    import mlflow
    import optuna
    import xgboost

    import forge_sweep.sweep
    from forge_sweep import training

    training.load_backend()
    assert all((keras, mlflow, optuna, xgboost, forge_sweep.sweep))


def run(work: Work) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """``shipped``: the registered bundle; ``network``: the best confirmed network; one and the same where it won."""
    from forge_sweep.errors import SweepStopped

    share, tries, kept = SHARE, [], None
    while len(tries) < 2:
        store = Path(work.store) / str(len(tries))
        work.restart()
        try:
            found = one_try(work, store, share * work.seconds)
        except SweepStopped as stopped:
            tries.append({"share": share, "took_s": work.used, "stopped": stopped.message})
            share = LARGER
            continue
        kept = found[0], {**found[1], "tries": tries}, work.stop()
        tries.append({"share": share, "took_s": work.used, "phases": found[1]["phases"]})
        if NEAR[0] <= work.used / work.seconds <= NEAR[1]:
            break
        share = next_share(work.seconds, work.used, found[1]["phases"])
    if kept is None:
        raise NoTime(f"no sweep had a model in time: {tries}")
    work.took = kept[2]
    return kept[:2]


def next_share(seconds: float, took_s: float, phases: Mapping[str, float]) -> float:
    """Which share the search should have had: confirmation takes its time in proportion to it, all else is fixed."""
    search, confirm = max(phases["trials"], 1.0), phases.get("confirm", 0.0)
    share = (seconds - (took_s - search - confirm)) / (1 + confirm / search) / seconds
    return min(max(LEAST, share), LARGER)


def text(work: Work, timeout_s: float) -> str:
    """The experiment file."""
    about, positive = work.about, ""
    if about["positive"] is not None:
        quoted = f'"{about["positive"]}"' if isinstance(about["positive"], str) else about["positive"]
        positive = f"positive = {quoted}\n"
    return FILE.format(
        seed=work.seed,
        target=about["target"],
        task=about["task"],
        positive=positive,
        metric=PRIMARY[about["task"]],
        timeout_s=timeout_s,
    )


def one_try(work: Work, store: Path, timeout_s: float) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """One sweep from the file to the registered bundle, and its scores of the test rows."""
    from forge_sweep import Sweep, sweep
    from forge_sweep.bundle import Evaluation
    from forge_sweep.tracking import fetched, locate

    store.mkdir(parents=True)
    path = Path(work.folder) / f"experiment-{store.name}-{work.seed}.toml"
    path.write_text(text(work, timeout_s))
    swept = Sweep.from_toml(path, store=store)
    result = swept.run(watch=sweep.ignore)
    test = work.parts()["test"][0]
    shipped = columns(swept.model.scores(test), work.about["task"])
    with fetched(locate(result.model, store), store) as folder:
        evaluation = Evaluation.load(folder)
    network = evaluation.registered if evaluation.registered.kind == "network" else evaluation.network
    predictions = {"shipped": shipped}
    if network is not None and network.scores is not None:
        predictions["network"] = columns(network.scores, work.about["task"])
    if not np.allclose(columns(evaluation.registered.scores, work.about["task"]), shipped, rtol=1e-3, atol=1e-4):
        raise RuntimeError("the test rows of the sweep are not those of the table, or in another order")
    facts = {
        "file": path.read_text(),
        "winner": result.winner["words"],
        "outcome": result.outcome,
        "trials": result.trials,
        "phases": result.phases,
        "verdict": result.verdict,
    }
    return predictions, facts


def columns(scores: np.ndarray, task: str) -> np.ndarray:
    """(n,) for binary and regression, (n, classes) for multiclass."""
    return scores if task == "multiclass" else np.asarray(scores).reshape(-1)
