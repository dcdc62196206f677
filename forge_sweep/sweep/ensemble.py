"""The ensemble of a sweep: the best finished trials and all confirmed trainings, averaged where that is better.

The bundles of the best finished trials are kept until the end, those of the confirmation wait there anyway. Who joins a
sweep from another process keeps none: a model that is not there is no candidate, and that is said.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forge_sweep.bundle import Bundle, choose_golden, latency_ms, measure
from forge_sweep.bundle.layout import MODEL_FILES
from forge_sweep.errors import BundleError
from forge_sweep.study import StudyView
from forge_sweep.sweep.confirm import Confirmed, bundle_folder, confirm_name, waiting_bundle
from forge_sweep.sweep.context import Context, rank
from forge_sweep.task import DEFAULT_THRESHOLD as SEARCHED_AT
from forge_sweep.task import LEVEL
from forge_sweep.task.selection import LEAST_ROWS, greedy, out_of_bag, value_of
from forge_sweep.task.words import between, figure

NAME = "ensemble"
"""Of its run, and of what it is called beside ``0007`` and ``xgboost``."""

KEPT = 10
"""How many finished trials keep their bundles until the end."""

CANDIDATES = 12


@dataclass(frozen=True, eq=False)
class Chosen:
    """What came of the selection; ``bundle`` is None where the single model is registered."""

    about: dict[str, Any]  # JSON values
    words: str
    bundle: Bundle | None = None


def is_on(context: Context) -> bool:
    """Whether a model is looked for that is an average of several; with folds one is registered as it is."""
    if context.dataset.folds:
        return False
    wanted = context.experiment.ensemble.ship == "better" and knows_ensembles(context.study)
    wanted = wanted and len(context.experiment.objective.names) == 1  # an average is no point of a front
    return wanted and len(context.dataset.valid.rows) >= LEAST_ROWS


def knows_ensembles(study: StudyView) -> bool:
    """Whether the sweep was begun by a version that has ensembles; an older one ends as it would have."""
    return bool(study.notes("sweep:").get("sweep:begin", {}).get("ensembles"))


def kept_name(number: int) -> str:
    """Name of the folder of a trial's bundle."""
    return f"kept-{number:04d}"


def folder_for(context: Context, number: int) -> Path | None:
    """Where the bundle of a trial is kept once it finished; None where it is not."""
    if not (context.study.coordinates and is_on(context)):
        return None
    return bundle_folder(context, kept_name(number))


def _best(context: Context) -> list[tuple[int, float]]:
    """Number and objective of the best finished trials."""
    rows = [row for row in context.study.rows() if row.state == "finished" and not row.imported]
    found = [(row.number, row.value) for row in rows if row.value is not None]
    return sorted(found, key=lambda each: (rank(context, each[1]), each[0]))[:KEPT]


def tidy(context: Context) -> None:
    """Remove the bundles of ended trials that are none of the best any more."""
    if not is_on(context):
        return
    best = {number for number, _ in _best(context)}
    for row in context.study.rows():
        if row.state in ("finished", "pruned", "failed", "outside") and row.number not in best:
            shutil.rmtree(bundle_folder(context, kept_name(row.number)), ignore_errors=True)


def choose(context: Context, confirmed: tuple[Confirmed, ...], winner: Confirmed, single: Bundle) -> Chosen | None:
    """Select an ensemble on the validation rows and judge it out of the bag; None where none is looked for."""
    if not is_on(context) or single.kind == "constant":
        return None
    named = {
        confirm_name(each.contender.label, s): f"{each.contender.words}, seed {s}"
        for each in confirmed
        for s in each.seeds
        if each.contender.baseline != "constant"
    }
    named |= {kept_name(number): f"trial {number}" for number, _ in _best(context)}
    valid, metric = context.dataset.valid, context.experiment.objective.metric.removeprefix("val_")
    task, encoded = single.task, single.task.encode(valid.targets)
    scores, values, missing = dict[str, np.ndarray](), dict[str, float](), 0
    for name in named:
        try:
            scores[name] = waiting_bundle(context, name).scores(valid.features)
        except BundleError:
            missing += 1
            continue
        values[name] = value_of(task, encoded, scores[name], metric, SEARCHED_AT)
    usable = [name for name in scores if np.isfinite(values[name])]
    usable = sorted(usable, key=lambda name: -values[name])[:CANDIDATES]
    if winner.name not in scores or len(usable) < 2:
        return None
    names = usable if winner.name in usable else [*usable[:-1], winner.name]
    stacked, size = np.stack([scores[name] for name in names]), context.experiment.ensemble.size
    judged = out_of_bag(task, encoded, stacked, names.index(winner.name), metric, SEARCHED_AT, rounds=size)
    blend = greedy(task, encoded, stacked, metric, SEARCHED_AT, rounds=size)
    chosen = [(name, float(share)) for name, share in zip(names, blend.weights, strict=True) if share > 0]
    sign = 1.0 if context.experiment.direction == "maximize" else -1.0
    ends = (judged.gain.low, judged.gain.high)
    about: dict[str, Any] = {
        "shipped": judged.beyond_noise and len(chosen) > 1,
        "candidates": len(names),
        "missing": missing,
        "out_of_bag": _plain({"ensemble": sign * judged.ensemble, "single": sign * judged.single}),
        "gain": _plain({"value": judged.gain.value, "low": ends[0], "high": ends[1]}),
        "level": LEVEL,
        "resamples": judged.resamples,
        "members": [
            {"run": name, "words": named[name], "weight": share, "value": sign * values[name]} for name, share in chosen
        ],
    }
    scored = (
        f"on validation rows that did not choose it, {metric} is {figure(sign * judged.ensemble)} against "
        f"{figure(sign * judged.single)} of {winner.contender.words} alone, a gain of {figure(judged.gain.value)} "
        f"({between(ends)}; {LEVEL:.0%} over {judged.resamples} resamples)"
    )
    lost = f" {missing} kept model{'s' * (missing != 1)} could not be read and took no part." if missing else ""
    if not about["shipped"]:
        return Chosen(about, f" No ensemble is registered: averaging shows no gain beyond noise; {scored}.{lost}")
    members = [waiting_bundle(context, name) for name, _ in chosen]
    mixed = np.tensordot(blend.weights, stacked, axes=1)
    rows = context.dataset.train.features.iloc[:1]
    whole = Bundle.ensemble(
        members, [share for _, share in chosen], threshold=task.best_threshold(encoded, mixed), metadata={}
    )
    limits = context.experiment.constraints
    if limits.limits:
        measured = measure(whole, limits.limits, choose_golden(context.dataset.train.features))
        if missed := limits.missed(measured):
            return Chosen({**about, "shipped": False, "missed": missed}, f" No ensemble is registered: {missed}.{lost}")
    about |= {"latency_ms": latency_ms(whole, rows), "single_latency_ms": latency_ms(single, rows)}
    about |= {"bytes": sum(_size(context, name) for name, _ in chosen), "single_bytes": _size(context, winner.name)}
    kept = {name: value for name, value in single.metadata.items() if name not in ("params", "seed")}
    made = {"params": {"members": len(chosen)}, "seed": context.experiment.seed, NAME: about}
    words = (
        f" Registered is, better still, an ensemble of {len(chosen)} of {len(names)} models: {scored}. One row takes "
        f"{about['latency_ms']:.3g} ms against {about['single_latency_ms']:.3g} ms, its models "
        f"{about['bytes'] / 1e6:.3g} MB against {about['single_bytes'] / 1e6:.3g} MB.{lost}"
    )
    return Chosen(about, words, Bundle(whole.model, whole.preprocessor, task, whole.threshold, kept | made, whole.code))


def _size(context: Context, name: str) -> int:
    folder = bundle_folder(context, name)
    return sum(path.stat().st_size for path in folder.iterdir() if path.name in MODEL_FILES.values())


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in values.items()}
