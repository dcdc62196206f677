"""Boosted trees that are tuned before the search: configuration by configuration, each a child run and a note.

TPE suggests the next one from the notes alone, so that a sweep which was killed goes on where the tuning was, with the
configurations of one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from forge_sweep import trial
from forge_sweep.baselines import DEFAULTS, SPACES, tuned_name, untuned_kind
from forge_sweep.errors import TrialFailed
from forge_sweep.experiment import Experiment, Params, TuneSpec, derived_seed
from forge_sweep.study import TUNED, StudyView
from forge_sweep.sweep.context import Context, finish, finish_failed, finite, rank, stop_if_asked
from forge_sweep.sweep.jobs import infeasible, of_baseline
from forge_sweep.sweep.kept import keep
from forge_sweep.training import classify

BEGUN = "tuning"
"""The note of a study whose trees are tuned; its values say which tuning ended by its time."""

SHORTEST_S = 0.5
"""A configuration is not begun in less time than this."""


def tuning(experiment: Experiment, study: StudyView) -> TuneSpec | None:
    """How trees are tuned in this sweep; None where they are not.

    A study whose search began without it, by an older version or with ``tune = false``, stays as it is unless the
    experiment file asks for it.
    """
    tune = experiment.baselines.tune
    if not tune or not set(experiment.baselines.kinds) & set(SPACES):
        return None
    asked = "tune" in experiment.baselines.model_fields_set
    return tune if asked or BEGUN in study.notes(BEGUN) or not study.n_done else None


def to_tune(context: Context) -> tuple[str, ...]:
    """The kinds of baselines that are tuned, in their order."""
    experiment = context.experiment
    if tuning(experiment, context.study) is None:
        return ()
    several = experiment.data.task != "multiclass" and len(experiment.data.target) > 1
    kinds = [kind for kind in experiment.baselines.kinds if kind in SPACES]
    return tuple(kind for kind in kinds if not (several and kind == "hist_gradient_boosting"))


def tune_baselines(context: Context) -> None:
    """Tune every kind that can be, for its share of the time that is left; the untuned ones are fitted before."""
    tune, kinds = tuning(context.experiment, context.study), to_tune(context)
    if tune is None:
        if context.experiment.baselines.tune and set(context.experiment.baselines.kinds) & set(SPACES):
            context.inform("the search began without tuned trees, and goes on so; state baselines.tune to tune them")
        return
    if "hist_gradient_boosting" in set(context.experiment.baselines.kinds) - set(kinds):
        context.inform("hist_gradient_boosting is not tuned: it predicts one target, and there are several")
    if BEGUN not in context.study.notes(BEGUN):
        context.study.note(BEGUN, {})
    untuned = context.study.notes("baseline:")
    for place, kind in enumerate(kinds):
        first = untuned.get(f"baseline:{kind}") or {}
        if first.get("value") is None and "infeasible" not in first:
            context.warn(f"{kind} is not tuned, since the untuned one has no score")
            continue
        spent = sum(float(note["seconds"]) for note in context.study.notes(TUNED).values())
        left = (context.experiment.tune_timeout_s - spent) / (len(kinds) - place)
        _tune(context, kind, tune.trials, left)


def configuration(notes: Mapping[str, Any], name: str) -> Params | None:
    """The best configuration of tuned models by the notes of baselines; None for a baseline that is not tuned."""
    params: Params | None = notes.get(f"baseline:{name}", {}).get("params") if untuned_kind(name) else None
    return params


def n_chosen_among(context: Context, values: Mapping[str, float]) -> int:
    """Among how many configurations the best baseline was chosen, the constant aside: a tuned one counts for all."""
    notes = context.study.notes("baseline:")
    others = [kind for kind in values if kind != "constant"]
    return sum(int(notes.get(f"baseline:{kind}", {}).get("configurations", 1)) for kind in others)


def run_name(name: str, number: int) -> str:
    """Name of the run of one configuration, such as ``baseline-xgboost_tuned-0003``."""
    return f"baseline-{name}-{number:04d}"


def _tune(context: Context, kind: str, trials: int, time_s: float) -> None:
    """Fit the configurations that are left, the library's defaults first, and note the best one."""
    name, began = tuned_name(kind), time.monotonic()
    seed = derived_seed(context.experiment.seed, "baseline", name)
    limit, ended = context.experiment.tune_timeout_s, context.study.notes(BEGUN)[BEGUN].get(name)
    by_time = ended is not None and limit <= ended
    while (number := len(known := context.study.notes(f"{TUNED}{name}:"))) < trials and not by_time:
        stop_if_asked(context)
        left = time_s - (time.monotonic() - began)
        if left < SHORTEST_S or not _fit(context, name, number, _next(context, kind, known), seed, left):
            by_time = True
            context.study.note(BEGUN, context.study.notes(BEGUN)[BEGUN] | {name: limit})
    if by_time:
        context.warn(
            f"{name}: {number} of {trials} configurations, since the {limit:g} s of all tuning are over "
            "(baselines.tune.timeout_s)"
        )
    done = {int(key[-4:]): note for key, note in known.items() if note["value"] is not None}
    if not done:
        causes = {str(note["cause"]) for note in known.values()}
        context.warn(f"{name} has no score: no configuration was fitted and feasible ({'; '.join(sorted(causes)[:3])})")
        return
    best = min(done, key=lambda number: (rank(context, done[number]["value"]), number))
    seconds = sum(float(note["seconds"]) for note in known.values())
    told = {"number": best, "configurations": len(done), "tried": len(known), "seconds": seconds}
    context.study.note(f"baseline:{name}", {**done[best], **told})
    context.tell("baseline", name=name, value=done[best]["value"], seconds=seconds)


def _next(context: Context, kind: str, known: Mapping[str, Any]) -> Params:
    if not known:
        return dict(DEFAULTS[kind])
    from forge_sweep.study.samplers import next_point  # Optuna's samplers are slow to load

    told = [(note["params"], note["value"]) for _, note in sorted(known.items()) if note["value"] is not None]
    seed = derived_seed(context.experiment.seed, "tune", kind, len(known))
    return next_point(SPACES[kind], told, direction=context.experiment.direction, seed=seed)


def _fit(context: Context, name: str, number: int, params: Params, seed: int, left_s: float) -> bool:
    """Fit one configuration as a child run and note its score; whether there was time enough for it."""
    about = {"baseline": name, "seed": seed, "configuration": number, **params}
    run = context.open_run(run_name(name, number), "baseline", about)
    context.tell("baseline_started", name=f"{name} {number}")
    note: dict[str, Any] = {"params": params}
    began, own_s = time.monotonic(), context.experiment.baseline_timeout_s
    try:
        result = trial.run_baseline(context.experiment, context.dataset, name, seed, params, left_s)
    except Exception as error:
        failure = classify(error)
        if failure.failure == "time-out" and left_s < own_s:
            finish_failed(run, TrialFailed("time-out", "the time of the tuning (baselines.tune.timeout_s) was over"))
            return False
        finish_failed(run, failure)
        context.warn(f"{name}, configuration {number}, failed: {failure.message}")
        note |= {"value": None, "cause": failure.message, "seconds": time.monotonic() - began}
        context.study.note(f"{TUNED}{name}:{number:04d}", note)
        return True
    run.log_params({k: v for k, v in result.bundle.metadata["params"].items() if k not in params})
    outcome = of_baseline(context, result)
    if (missed := infeasible(context.experiment, outcome)) is not None:
        finish_failed(run, missed)
        context.study.note(
            f"{TUNED}{name}:{number:04d}",
            note | {"value": None, "cause": missed.message, "seconds": result.seconds, "infeasible": True},
        )
        return True
    figures = outcome.summary(context.experiment.objective.metric, context.first_epoch)
    tags = {"forge.weights_sha256": outcome.weights, **keep(context, run, outcome.predictions)}
    finish(run, "finished", "FINISHED", {**figures, "seconds": result.seconds}, tags)
    note |= {"value": result.value, "metrics": finite(result.metrics), "seconds": result.seconds}
    context.study.note(f"{TUNED}{name}:{number:04d}", note)
    context.remember(name, result.value, result.bundle)
    return True
