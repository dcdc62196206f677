"""The default experiment as a new user writes it, run through the public `Sweep`.

The file names the rows, the target, the metric and a time for the whole sweep (`study.total_s`); every other key has
its default, the search space too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.statistics import PRIMARY
from benchmarks.quality.work import NoTime, Work

AROUND_S = 3.0
"""Of the budget, for what the sweep does not know of: reading its own result, and predicting the test rows again."""

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

[objective]
metric = "val_{metric}"

[study]
total_s = {total_s:.1f}
n_trials = 1000                       # the time ends the search
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


def text(work: Work) -> str:
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
        total_s=max(1.0, work.seconds - AROUND_S),
    )


def run(work: Work) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """``shipped``: the registered bundle; ``network``: the best confirmed network; one and the same where it won."""
    from forge_sweep import Sweep, sweep
    from forge_sweep.bundle import Evaluation
    from forge_sweep.errors import SweepStopped
    from forge_sweep.tracking import fetched, locate

    store = Path(work.store)
    store.mkdir(parents=True, exist_ok=True)
    path = Path(work.folder) / f"experiment-{work.seed}.toml"
    path.write_text(text(work))
    swept = Sweep.from_toml(path, store=store)
    try:
        result = swept.run(watch=sweep.ignore)
    except SweepStopped as stopped:
        raise NoTime(stopped.message) from stopped
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
