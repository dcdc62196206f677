"""Validation predictions that a sweep kept: read back, compared and scored without its data and without training.

Each trial, baseline and confirmed training holds a file of them in its MLflow run, and the sweep's own run the targets
of the validation rows (docs/decisions/0045-kept-predictions.md). A fingerprint of the rows is in every file, so that
predictions of other rows are never compared.
"""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.errors import InputError
from forge_sweep.experiment.words import nearest
from forge_sweep.task import DEFAULT_THRESHOLD, Answers, Gain, Task, gains, task_of
from forge_sweep.task.optimism import Optimism, best_of
from forge_sweep.tracking import attached

if TYPE_CHECKING:
    from forge_sweep.study import StudyView

FILE, TAG = "predictions.npz", "forge.predictions"
NOTE = "predictions:rows"  # of the study: whether they are kept, of which rows, and why not
FORMAT = 1
COMPARED = 10**8  # rows times resamples of one comparison, above which fewer are drawn: some seconds at most

_RUNS = re.compile(r"(trial|baseline|confirm|audit)-(.+?)(?:-s(\d+))?")
_TRIAL = re.compile(r"(?:trial[:\- ])?0*(\d+)")


def pack(scores: np.ndarray, rows: str) -> bytes:
    """Scores (n, units) of the rows with this fingerprint as a file, compressed.

    They are float32. Columns beyond 1 in size, as of a regression in original units, are kept as distances from their
    mean, so that a large offset costs no digits.
    """
    scores = np.asarray(scores, dtype=np.float64)
    far = np.isfinite(scores).all(axis=0) & (np.abs(scores).max(axis=0, initial=0.0) > 1)
    offset = np.where(far, scores.mean(axis=0), 0.0)
    return _packed({"format": FORMAT, "rows": rows}, scores=(scores - offset).astype(np.float32), offset=offset)


def pack_rows(task: Task, encoded: np.ndarray, rows: str) -> bytes:
    """The targets as `Task.encode` gives them, and what they mean."""
    return _packed({"format": FORMAT, "rows": rows, "task": task.to_dict()}, encoded=encoded)


def _packed(about: Mapping[str, Any], **arrays: np.ndarray) -> bytes:
    file, text = io.BytesIO(), json.dumps(about).encode()
    np.savez_compressed(file, allow_pickle=False, about=np.frombuffer(text, dtype=np.uint8), **arrays)
    return file.getvalue()


def _unpacked(content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        arrays = {name: np.asarray(found[name]) for name in found.files}
    return json.loads(arrays.pop("about").tobytes()), arrays


@dataclass(frozen=True)
class Pair:
    """Two models on the same validation rows, over paired resamples of these rows.

    ``gain`` is by how much ``one`` is better, with the 95 % interval; positive is better whatever the metric. Nothing
    is corrected for how the two were chosen: see `Kept.optimism`.
    """

    one: str
    other: str
    gain: Gain
    rows: int
    resamples: int

    @property
    def outcome(self) -> str:
        """``better``, ``worse`` or ``as good as``: whether the interval excludes 0; "" where it is not defined."""
        low, high = self.gain.gain.low, self.gain.gain.high
        if not np.isfinite([low, high]).all():
            return ""
        return "better" if low > 0 else "worse" if high < 0 else "as good as"

    def to_dict(self) -> dict[str, Any]:
        """JSON values; what is not defined is None."""
        lead = self.gain.gain
        values = {"one_value": self.gain.one, "other_value": self.gain.other}
        values |= {"gain": lead.value, "low": lead.low, "high": lead.high}
        figures = {name: value if np.isfinite(value) else None for name, value in values.items()}
        about = {"one": self.one, "other": self.other, "metric": self.gain.metric, **figures}
        return {**about, "outcome": self.outcome, "rows": self.rows, "resamples": self.resamples}


@dataclass(frozen=True, eq=False)
class Kept:
    """The predictions of a sweep on its validation rows.

    Attributes:
        study: its name.
        task: what the scores are of.
        encoded: targets of the rows as `Task.encode` gives them.
        rows: fingerprint of the rows.
        objective: of the sweep, such as ``val_auc``.
        scores: (n, units) by label, as `Task.to_scores` gives them: float32, or float64 where there is an offset.
            Labels are ``trial:7``, ``baseline:xgboost``, ``baseline:xgboost_tuned-0003`` (the best one without
            its number), ``confirm:0007:1`` (its seed) and ``audit:7``
            (a pruned trial, trained to its end).
        finished: labels of the trials that finished, imported ones aside, by number.
        missing: why there are none, by label, of trials that ended and of runs whose file is gone.
    """

    study: str
    task: Task
    encoded: np.ndarray = field(repr=False)
    rows: str
    objective: str
    scores: Mapping[str, np.ndarray] = field(repr=False)
    finished: tuple[str, ...]
    missing: Mapping[str, str]

    @property
    def metrics(self) -> tuple[str, ...]:
        """What they can be scored by."""
        return tuple(self.task.metrics)

    def metric(self, name: str | None = None) -> str:
        """A metric of the task, ``auc`` for ``val_auc``; by default the objective, or its nearest relative for a loss.

        Raises:
            InputError: it is none of the task; lists those that are.
        """
        wanted = self.task.scored_as(self.objective) if name is None else name.removeprefix("val_")
        if wanted not in self.metrics:
            hint = nearest(wanted, self.metrics) or f"this task has {', '.join(self.metrics)}"
            raise InputError(f"there is no metric {name!r} of a {self.task.kind} task", hint=hint)
        return wanted

    def label(self, words: str) -> str:
        """The label that is meant by ``trial:7``, ``7``, ``baseline:xgboost``, ``xgboost`` or ``confirm:0007:1``.

        Raises:
            InputError: there are no predictions of it; says why, or lists those that there are.
        """
        trial = _TRIAL.fullmatch(words)
        wanted = f"trial:{int(trial[1])}" if trial else words
        if wanted not in self.scores and f"baseline:{words}" in {*self.scores, *self.missing}:
            wanted = f"baseline:{words}"
        if wanted in self.scores:
            return wanted
        if wanted in self.missing:
            raise InputError(f"{self.study} has no predictions of {wanted}: {self.missing[wanted]}")
        shown = ", ".join([*self.scores][:8]) + (", ..." if len(self.scores) > 8 else "")
        raise InputError(f"{self.study} has no model {words!r}", hint=nearest(wanted, self.scores) or f"it has {shown}")

    def answers(self, label: str) -> Answers:
        """The scores of one, decided as in the search."""
        return Answers(np.asarray(self.scores[self.label(label)], dtype=np.float64), DEFAULT_THRESHOLD)

    def score(self, metric: str) -> dict[str, float]:
        """Any metric of every model, by label; nan where the rows do not define it."""
        name = self.metric(metric)
        found = {}
        for label in self.scores:
            its = self.answers(label)
            found[label] = self.task.score(self.encoded, its.scores, threshold=its.threshold)[name]
        return found

    def compare(self, one: str, other: str, metric: str | None = None, *, beside: Kept | None = None) -> Pair:
        """By how much one model is better than another on the same rows.

        Args:
            one: label, see `label`.
            other: likewise, of the sweep ``beside``.
            metric: see `metric`.
            beside: another sweep on the same validation rows; default: this one.

        Raises:
            InputError: no such model or metric, or the rows of the two sweeps differ.
        """
        name, beside = self.metric(metric), beside or self
        if beside.rows != self.rows:
            raise InputError(
                f"{self.study} and {beside.study} were validated on different rows: fingerprints {self.rows} "
                f"({len(self.encoded):,} rows) and {beside.rows} ({len(beside.encoded):,} rows)",
                hint="compare sweeps with the same data, [data.split] and seed",
            )
        first, second = self.label(one), beside.label(other)
        resamples = max(100, min(1000, COMPARED // max(1, len(self.encoded))))
        pair = self.answers(first), beside.answers(second)
        found = gains(self.task, self.encoded, *pair, (name,), resamples=resamples)[name]
        if beside.study != self.study:
            first, second = f"{self.study}#{first}", f"{beside.study}#{second}"
        return Pair(first, second, found, len(self.encoded), resamples)

    @functools.cached_property
    def optimism(self) -> Optimism | None:
        """What the best of the finished trials is worth on rows that did not choose it; None for fewer than two.

        By `metric` of the objective; see `task.optimism.best_of`.
        """
        labels, name = [label for label in self.finished if label in self.scores], self.metric()
        gone = {metric for gap in self.task.gaps(self.encoded) if gap.whole for metric in gap.metrics}
        if len(labels) < 2 or name in gone:
            return None
        return best_of(self.task, self.encoded, [self.answers(each) for each in labels], name)


def read(study: StudyView, store: Path, *, wanted: Collection[str] | None = None) -> Kept:
    """The predictions that a sweep kept so far, from its runs in MLflow.

    Args:
        study: of the sweep.
        store: folder of the embedded stores.
        wanted: kinds of runs to fetch, of ``trial``, ``baseline``, ``confirm`` and ``audit``; default: all.

    Raises:
        InputError: it kept none; says why, and the fix.
        TrackingDown: MLflow cannot be reached.
    """
    note, begun = study.notes("predictions:").get(NOTE, {}), study.notes("sweep:").get("sweep:begin", {})

    def is_wanted(name: str) -> bool:
        run = _RUNS.fullmatch(name)
        return not name or (run is not None and (wanted is None or run[1] in wanted))

    found = attached(begun["key"], FILE, TAG, store, is_wanted) if begun else []
    own = next((each for each in found if not each.name), None)
    if own is None or own.content is None:
        why = note.get("why") or ("their targets are gone from MLflow" if note else "it is of an older version")
        raise InputError(
            f"{study.name} kept no validation predictions: {why}",
            hint=note.get("fix") or "run the sweep again under another name, or with --fork",
        )
    about, arrays = _unpacked(own.content)
    scores, missing = {}, dict[str, str]()
    for each in found:
        run = _RUNS.fullmatch(each.name)
        if run is None:
            continue
        label = _label(run)
        if each.content is None:
            missing[label] = "MLflow has its run without the file"
            continue
        its, values = _unpacked(each.content)
        if its["rows"] != about["rows"]:
            missing[label] = f"they are of other rows, {its['rows']}, than the sweep's, {about['rows']}"
            continue
        scores[label] = values["scores"] if not values["offset"].any() else values["scores"] + values["offset"]
    for name, noted in study.notes("baseline:").items():  # the best configuration stands for a tuned one
        if "number" in noted and (best := f"{name}-{noted['number']:04d}") in scores:
            scores[name] = scores.pop(best)
    rows = study.rows()
    for row in rows if wanted is None or "trial" in wanted else ():
        label = f"trial:{row.number}"
        if row.state not in ("finished", "pruned"):
            scores.pop(label, None)  # of an attempt that the study was not told of
            how = {"failed": f"failed ({row.failure})", "outside": "lies outside of the search space"}
            missing[label] = f"it {how.get(row.state, f'is {row.state}')}"
        elif row.imported:
            missing[label] = f"it was imported from {row.imported}"
        elif label not in scores:
            missing.setdefault(label, "its run in MLflow has none")
    finished = tuple(f"trial:{row.number}" for row in rows if row.state == "finished" and not row.imported)
    order = sorted(scores, key=_place)
    objective = str(study.resolved["objective"]["metric"])
    task, own_rows = task_of(about["task"]), str(about["rows"])
    by_label = {label: scores[label] for label in order}
    return Kept(study.name, task, arrays["encoded"], own_rows, objective, by_label, finished, missing)


def optimism(study: StudyView, store: Path) -> dict[str, Any] | None:
    """What the best of a sweep's trials is worth, as JSON values with ``words`` for people; see `Kept.optimism`.

    Raises:
        InputError: the sweep kept no predictions.
        TrackingDown: MLflow cannot be reached.
    """
    from forge_sweep.task.words import figure

    kept = read(study, store, wanted=("trial",))
    found = kept.optimism
    if found is None:
        return None
    ends, best = found.corrected, [label for label in kept.finished if label in kept.scores][found.best]
    words = (
        f"the best of {found.n} trials ({best}) scored {found.metric} {figure(found.value)}; corrected for choosing, "
        f"{figure(ends.value)} (95 % {figure(ends.low)} to {figure(ends.high)})"
    )
    figures = {"value": found.value, "corrected": ends.value, "low": ends.low, "high": ends.high}
    plain = {name: value if np.isfinite(value) else None for name, value in figures.items()}
    about = {"metric": found.metric, "n": found.n, "best": best, "often": found.often}
    return {**about, **plain, "rows": found.rows, "resamples": found.resamples, "words": words}


def _label(run: re.Match[str]) -> str:
    kind, name, seed = run.groups()
    if kind in ("trial", "audit"):
        return f"{kind}:{int(name)}"
    return f"{kind}:{name}" + (f":{seed}" if seed else "")


def _place(label: str) -> tuple[int, int, str]:
    kind, _, name = label.partition(":")
    return ("trial", "baseline", "confirm", "audit").index(kind), int(name) if kind == "trial" else 0, name
