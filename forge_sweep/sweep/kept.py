"""Keeps the validation predictions of every training in its MLflow run; `forge_sweep.predictions` reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from forge_sweep import predictions
from forge_sweep.baselines import SPACES
from forge_sweep.errors import ForgeSweepError, InputError, TrackingDown
from forge_sweep.predictions import FILE, NOTE, TAG
from forge_sweep.sweep.context import Context
from forge_sweep.tracking import Run
from forge_sweep.trial import Recipe

OFF = {
    "why": "[tracking] predictions = false",
    "fix": "set it to true and raise study.n_trials: the trials that are run from then on are kept",
}


def prepare(context: Context, parent: Run, *, remade: bool) -> None:
    """Decide whether predictions are kept, before the first training, and log the targets of their rows.

    Said once: where they would take more than ``tracking.predictions_mb``.
    """
    tracking, before = context.experiment.tracking, context.study.notes("predictions:").get(NOTE, {})
    if not tracking.predictions:
        note: dict[str, Any] = {"rows": "", **OFF}
    else:
        task = Recipe.of(context.experiment).learn_task(context.dataset.learned_from.targets)
        encoded = task.encode(context.dataset.judged.targets)
        rows, size = _fingerprint(context, encoded), _size_mb(context, len(encoded), task.units)
        note = {"rows": rows}
        if size > tracking.predictions_mb:
            why = (
                f"{len(encoded):,} rows x {task.units} outputs of {_trainings(context):,} trainings take up to "
                f"{size:,.0f} MB, more than tracking.predictions_mb = {tracking.predictions_mb:g}"
            )
            note = {"rows": "", "why": why, "fix": f"set predictions_mb = {int(size) + 1} under [tracking]"}
        elif remade or not before.get("rows"):
            _log(parent, predictions.pack_rows(task, encoded, rows))
            parent.set_tags({TAG: rows})
    if note == before:
        return
    context.study.note(NOTE, note)
    if "fix" in note and tracking.predictions and "predictions_mb" not in before.get("fix", ""):
        context.inform(f"validation predictions are not kept: {note['why']}; {note['fix']}")


def keep(context: Context, run: Run, packed: bytes | None) -> Mapping[str, str]:
    """Write the predictions of a training to its run, before the study knows its end; gives the tag that says so.

    Where they cannot be written, it is said, and the training counts all the same.
    """
    if packed is None:
        return {}
    try:
        _log(run, packed)
    except TrackingDown:
        raise
    except (InputError, OSError) as error:
        context.warn(f"the predictions of {run.key.rpartition('/')[2]} are not kept: {error}")
        return {}
    return {TAG: context.kept_rows}


def optimism(context: Context) -> dict[str, Any] | None:
    """What the best of the trials is worth once that it was chosen is corrected for; None where it is not known."""
    if not context.kept_rows:
        return None
    try:
        found = predictions.optimism(context.study, context.store)
        if found is not None and context.dataset.folds:  # one figure of all rows, where the value is a mean over folds
            found["words"] += ", by the predictions of all folds together"
        return found
    except ForgeSweepError as error:
        context.warn(f"how optimistic the best of the trials is, is not known: {error}")
        return None


def _log(run: Run, content: bytes) -> None:
    with TemporaryDirectory(prefix="forge-sweep-") as folder:
        path = Path(folder) / FILE
        path.write_bytes(content)
        run.log_file(path)


def _fingerprint(context: Context, encoded: np.ndarray) -> str:
    """Of the validation rows in their order: of their features, which the dataset has, and of their targets."""
    found = hashlib.sha256(np.ascontiguousarray(context.dataset.judged_prints).tobytes())
    found.update(np.ascontiguousarray(encoded).tobytes())
    return found.hexdigest()[:16]


def _trainings(context: Context) -> int:
    experiment = context.experiment
    confirmed, kinds = (experiment.confirm.top + 1) * experiment.confirm.seeds, experiment.baselines.kinds
    tune = experiment.baselines.tune
    tuned = tune.trials * len(SPACES.keys() & set(kinds)) if tune else 0
    return experiment.study.n_trials + len(kinds) + tuned + confirmed


def _size_mb(context: Context, rows: int, units: int) -> float:
    """Before compression: the limit must be known to hold before anything is trained."""
    return 4e-6 * rows * units * _trainings(context)
