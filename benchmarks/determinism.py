"""The price of ``deterministic = true``, and whether it buys equal weights.

The same sweep runs once without it and twice with it, in one process each time and a new one for each. The weights of
every trial are hashed as they were trained.
"""

from __future__ import annotations

import hashlib
from typing import Any

from benchmarks.problems import PROBLEMS, Work
from benchmarks.running import call, folder
from benchmarks.tables import say, table

KEY = "deterministic"


def known() -> bool:
    """Whether the experiment file has the key."""
    from forge_sweep.experiment import Experiment

    return KEY in Experiment.model_fields


def run(deterministic: bool | None, **arguments: Any) -> dict[str, Any]:
    """Seconds per trial and the SHA-256 of all weights of each trial, in the order of the trials."""
    from benchmarks.sides.ours import sweep_of
    from forge_sweep import trial

    work, digests = Work(**arguments), []
    trained = trial.run

    def hashed(*order: Any, **rest: Any) -> Any:
        result = trained(*order, **rest)
        digest = hashlib.sha256()
        for weights in result.bundle.model.get_weights():
            digest.update(weights.tobytes())
        digests.append(digest.hexdigest())
        return result

    trial.run = hashed
    study = {"sampler": "qmc", "pruner": "none", "patience": work.spec.epochs}
    course = sweep_of(work, study=study, **({} if deterministic is None else {KEY: deterministic}))
    total = course.phases["confirm"] - course.phases["trials"]
    return {"trial_s": total / work.trials, "digests": digests[: work.trials]}


def measure(problem: str, trials: int) -> dict[str, Any]:
    """Off, on and on again; without the key, only twice as it is."""
    asked = [False, True, True] if known() else [None, None]
    found = []
    with folder() as data:
        call("problems:prepare", problem=problem, folder=str(data), trials=trials, seed=0)
        for deterministic in asked:
            with folder() as store:
                work = Work(problem, str(data), str(store), trials=trials)
                found.append(call("determinism:run", deterministic=deterministic, **work.to_dict()))
    return {"problem": problem, "trials": trials, "runs": found}


def show(results: dict[str, Any]) -> None:
    """The table."""
    runs = results["runs"]
    say(f"### Price of determinism: {PROBLEMS[results['problem']].title}, {results['trials']} trials\n")
    equal = "bit-identical" if runs[-1]["digests"] == runs[-2]["digests"] else "DIFFERENT"
    if len(runs) == 2:
        say(f"skipped: this version has no key `{KEY}`. Weights of two runs without it: {equal}.\n")
        return
    off, on = runs[0]["trial_s"], (runs[1]["trial_s"] + runs[2]["trial_s"]) / 2
    rows = [
        [f"`{KEY} = false`", f"{off:.3f}", "1", "-"],
        [f"`{KEY} = true`, mean of two runs", f"{on:.3f}", f"{on / off:.2f}", equal],
    ]
    table(["", "a trial, s", "ratio", "weights of the two runs"], rows)
