"""One loaded version: checked, warm, able to answer raw numbers, with a window of recent rows for drift."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep import training
from forge_sweep.bundle import GOLDEN_TOLERANCE, Bundle, read_golden, read_profile, ready_backend
from forge_sweep.checks.drift import Drift
from forge_sweep.checks.profile import Profile
from forge_sweep.errors import BundleError
from forge_sweep.preprocessing import NO_TENSORS, UNKNOWN, Misfit, RowTransform
from forge_sweep.task import Task
from forge_sweep.tracking import Located, fetched

if TYPE_CHECKING:
    from forge_sweep.serving.bodies import Rows
    from forge_sweep.serving.settings import Settings

WARMED = tuple(1 << power for power in range(4, 13))  # rows of every chunk that `training.outputs` fills up to


class Window:
    """A ring of the ``size`` last raw rows, whose drift is measured from ``least`` of them on.

    One thread adds, others measure. Nothing is kept without a profile of the training rows, or without ``columns`` of a
    table: arrays have no drift.
    """

    def __init__(self, profile: Profile | None, columns: int, size: int, least: int) -> None:
        self.profile = profile if columns else None
        self._why = (
            "the bundle was saved before bundles kept the distribution of the training rows; save it again"
            if columns
            else "the model takes arrays only; drift is measured on the columns of a table"
        )
        self.size = size
        self.least = min(least, size)
        self.seen = 0
        self._rows = np.empty((size if self.profile is not None else 0, columns))
        self._lock = threading.Lock()
        self._measured: tuple[int, Drift] | None = None

    def add(self, raw: np.ndarray) -> None:
        """Keep the last of these rows (n, columns)."""
        if self.profile is None or not len(raw):
            return
        kept = raw[-self.size :]
        with self._lock:
            start = (self.seen + len(raw) - len(kept)) % self.size
            head = min(len(kept), self.size - start)
            self._rows[start : start + head] = kept[:head]
            self._rows[: len(kept) - head] = kept[head:]
            self.seen += len(raw)

    @property
    def rows(self) -> int:
        """How many rows are kept."""
        return min(self.seen, self.size)

    def drift(self) -> Drift | None:
        """How the rows differ from train, measured again once rows have come; None where that cannot be said."""
        if self.profile is None or self.rows < self.least:
            return None
        with self._lock:
            seen = self.seen
            if self._measured is not None and self._measured[0] == seen:
                return self._measured[1]
            rows = self._rows[: self.rows].copy()
        found = self.profile.compare(rows)
        self._measured = seen, found
        return found

    def report(self) -> dict[str, Any]:
        """The drift as JSON values, with the reason where there is none."""
        about: dict[str, Any] = {"rows": self.rows, "window": self.size, "least": self.least, "seen": self.seen}
        if self.profile is None:
            return {**about, "state": "no-reference", "why": self._why, "columns": [], "findings": []}
        about["training_rows"] = self.profile.rows
        if (found := self.drift()) is None:
            why = f"{self.rows} rows were answered; {self.least} are needed"
            return {**about, "state": "too-few-rows", "why": why, "columns": [], "findings": []}
        state = "drifted" if found.drifted else "stable"
        findings = [{**vars(finding), "text": str(finding)} for finding in found.findings]
        columns = [
            {
                "column": column.name,
                "drifted": column.drifted,
                "psi": column.psi,
                "psi_by_chance": column.chance[0],
                "distance": column.distance,
                "adjusted_p": column.adjusted,
                "missing_share": {"train": column.missing[0], "served": column.missing[1]},
                "unknown_share": column.new_share,
                "bins": column.bins,
                "shares": {"train": column.shares[0], "served": column.shares[1]},
            }
            for column in found.columns
        ]
        return {**about, "state": state, "alpha": found.alpha, "columns": columns, "findings": findings}


@dataclass(frozen=True, eq=False)
class Answer:
    """Scores (n, units) of some rows, and (row, column) of raw numbers that train did not have.

    ``misfits`` are rows that have no answer; none of the others counts then.
    """

    scores: np.ndarray
    flagged: tuple[tuple[int, int], ...] = ()
    misfits: tuple[Misfit, ...] = ()


class Served:
    """A version in service. One thread at a time computes `answer`; any may use `transform` and `render`."""

    def __init__(self, bundle: Bundle, located: Located, window: Window, *, ignore_extra: bool = False) -> None:
        self.bundle = bundle
        self.located = located
        self.window = window
        self.transform = RowTransform(
            bundle.preprocessor, ignore_extra=ignore_extra, others=bundle.others, feed=bundle.feed
        )
        self.golden_difference = float("nan")
        self.loaded_at = time.time()
        self._head: dict[str, Any] = {"model": located.name, "version": located.version}
        if any(head.kind in ("binary", "multilabel") for head in bundle.task.heads.values()):
            self._head["threshold"] = bundle.threshold
        self._prediction = renderer(bundle.task, bundle.threshold)
        schema = bundle.preprocessor.schema
        columns = schema.tabular
        self.row_bytes = 4 * sum(math.prod(column.shape) for column in schema.tensors)
        self._low = np.array([-np.inf if c.low is None or c.kind != "numeric" else c.low for c in columns])
        self._high = np.array([np.inf if c.high is None or c.kind != "numeric" else c.high for c in columns])
        self._low[[c.kind == "categorical" for c in columns]] = UNKNOWN + 0.5
        self._complete = np.array([not c.missing for c in columns], bool)

    @property
    def label(self) -> str:
        """``fraud/3``."""
        return f"{self.located.name}/{self.located.version}"

    @cached_property
    def shape(self) -> dict[str, Any]:
        """What callers rely on; a version that differs in it never takes the place of this one."""
        task, schema = self.bundle.task, self.bundle.preprocessor.schema
        columns = {c.name: f"{c.kind} {c.shape} {c.dtype}" if c.shape else c.kind for c in schema.columns}
        classes = [label for head in task.heads.values() for label in head.classes]
        return {"task": task.kind, "targets": list(task.targets), "classes": classes, "columns": columns}

    def answer(self, raw: np.ndarray, tensors: Mapping[str, np.ndarray] = NO_TENSORS) -> Answer:
        """The answer to raw numbers (n, columns) and arrays (n, ...) by column, n > 0; see `RowTransform`."""
        features = self.transform.features(raw, tensors)
        misfits = self.transform.not_finite(raw, features)
        for values in training.leaves(features) if misfits else ():
            values[refused_rows(misfits)] = 0
        scores = self.bundle.scores_of(features)
        if not np.isfinite(scores).all():
            rows = np.flatnonzero(~np.isfinite(scores).all(axis=1)).tolist()
            expected = "numbers of the order of the training rows"
            misfits += [Misfit(row, "", "no-score", "the model has no finite score for it", expected) for row in rows]
        strange = (raw < self._low) | (raw > self._high) | (np.isnan(raw) & self._complete)
        flagged = zip(*(positions.tolist() for positions in np.nonzero(strange)), strict=True)
        return Answer(scores, tuple(flagged), tuple(misfits))

    def warm_up(self, golden: Path) -> None:
        """Compute every shape that will occur, and refuse other golden scores than when the bundle was saved."""
        frame, scores = read_golden(golden)
        raw, tensors = self.transform.read_frame(frame), self.transform.tensors(frame)
        features = self.transform.features(raw, tensors)
        for rows in (rows for rows in WARMED if rows <= training.chunk_rows(features)):
            self.bundle.scores_of(training.each(partial(_repeated, rows=rows), features))
        self.golden_difference = float(np.abs(self.answer(raw, tensors).scores - scores).max())
        allowed = GOLDEN_TOLERANCE * max(1.0, float(np.abs(scores).max()))
        if not self.golden_difference <= allowed:
            raise BundleError(
                f"{self.label} gives other golden scores than when it was saved: {self.golden_difference:.3g} off, "
                f"{allowed:.1g} allowed, over {len(frame)} rows",
                hint="serve it with the versions it was trained with; bundle.json names them",
            )

    def warning(self, column: int, value: float, seen: Any) -> dict[str, Any]:
        """What is strange about a raw number that was flagged; ``seen`` is what came in."""
        about = self.bundle.preprocessor.schema.columns[column]
        if value != value:
            code, expected = "missing", "a value: none was missing in train"
        elif about.kind == "categorical":
            code, expected = "unknown-category", f"one of the {len(about.categories)} categories of train"
        elif value < self._low[column]:
            code, expected = "below-range", f"at least {about.low}, the smallest in train"
        else:
            code, expected = "above-range", f"at most {about.high}, the largest in train"
        return {"column": about.name, "code": code, "seen": seen, "expected": expected}

    def render(self, rows: Rows, answer: Answer) -> dict[str, Any]:
        """The answer as JSON values."""
        predictions = [{**self._prediction(scores), "warnings": []} for scores in answer.scores.tolist()]
        names = self.transform.schema.names
        for row, column in answer.flagged:
            warning = self.warning(column, rows.raw[row][column], rows.cell(row, names[column]))
            predictions[row]["warnings"].append(warning)
        return {**self._head, "predictions": predictions}


def _repeated(values: np.ndarray, rows: int) -> np.ndarray:
    return np.resize(values, (rows, *values.shape[1:]))


def refused_rows(misfits: Iterable[Misfit]) -> list[int]:
    """Positions of rows that have no answer."""
    return sorted({misfit.row for misfit in misfits if misfit.row is not None})


def renderer(task: Task, threshold: float) -> Callable[[list[float]], dict[str, Any]]:
    """What makes a prediction of the scores of one row; the labels are those of `Task.predictions`."""
    if task.kind == "joint":
        heads, begin = list[tuple[str, slice, Callable[[list[float]], dict[str, Any]]]](), 0
        for name, head in task.heads.items():
            heads.append((name, slice(begin, begin + head.units), renderer(head, threshold)))
            begin += head.units
        return lambda scores: {name: of_head(scores[own]) for name, own, of_head in heads}
    names, targets = task.class_names, [str(name) for name in task.targets]

    def prediction(scores: list[float]) -> dict[str, Any]:
        if task.kind == "regression":
            return {"values": dict(zip(targets, scores, strict=True))}
        if task.kind == "binary":
            label = task.classes[int(scores[0] >= threshold)]
            return {"label": label, "probabilities": dict(zip(names, (1.0 - scores[0], scores[0]), strict=True))}
        probabilities = dict(zip(names, scores, strict=True))
        if task.kind == "multiclass":
            return {"label": task.classes[int(np.argmax(scores))], "probabilities": probabilities}
        labels = {name: int(score >= threshold) for name, score in probabilities.items()}
        return {"labels": labels, "probabilities": probabilities}

    return prediction


def load(located: Located, settings: Settings) -> Served:
    """Fetch, check, load and warm up a version."""
    with fetched(located, settings.store) as folder:
        ready_backend(folder)
        bundle = Bundle.load(folder, verify=True, trust=settings.trust)
        schema = bundle.preprocessor.schema
        rows = Window(read_profile(folder), len(schema.tabular), settings.drift_window, settings.drift_least)
        served = Served(bundle, located, rows, ignore_extra=settings.ignore_extra)
        served.warm_up(folder)
    return served
