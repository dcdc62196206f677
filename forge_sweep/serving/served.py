"""One loaded version: checked, warm, and able to answer raw numbers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from forge_sweep.bundle import GOLDEN_TOLERANCE, Bundle, golden_rows, ready_backend
from forge_sweep.errors import BundleError
from forge_sweep.preprocessing import UNKNOWN, Misfit, RowTransform
from forge_sweep.serving.window import Window
from forge_sweep.tracking import Located, fetched

WarningCode = Literal["missing", "unknown-category", "below-range", "above-range"]

WARMED = tuple(1 << power for power in range(4, 13))
"""Rows of every chunk that `training.outputs` fills up to."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model says about some rows.

    Attributes:
        scores: (n, units), see `Bundle.scores`.
        flagged: positions (row, column) of raw numbers that train did not have.
        misfits: rows that have no answer; none of the others counts then.
    """

    scores: np.ndarray
    flagged: tuple[tuple[int, int], ...] = ()
    misfits: tuple[Misfit, ...] = ()


class Served:
    """A version in service. It is used by one thread at a time, but for `transform`, which any may use.

    Args:
        bundle: the loaded bundle.
        located: which model it is.
        ignore_extra: see `Settings`.
        window: the rows that drift is measured on.
    """

    def __init__(self, bundle: Bundle, located: Located, window: Window, *, ignore_extra: bool = False) -> None:
        self.bundle = bundle
        self.located = located
        self.window = window
        self.transform = RowTransform(bundle.preprocessor, ignore_extra=ignore_extra)
        self.golden_difference = float("nan")
        self.loaded_at = time.time()
        columns = bundle.preprocessor.schema.columns
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
        """What callers rely on: another version may take the place of this one only where it is the same."""
        task, schema = self.bundle.task, self.bundle.preprocessor.schema
        columns = {column.name: column.kind for column in schema.columns}
        return {"task": task.kind, "targets": list(task.targets), "classes": list(task.classes), "columns": columns}

    def answer(self, raw: np.ndarray) -> Answer:
        """Scores, and what is strange about the rows.

        Args:
            raw: (n, columns) raw numbers, see `RowTransform`; n > 0.
        """
        features = self.transform.features(raw)
        misfits = self.transform.not_finite(raw, features)
        if misfits:
            features[refused_rows(misfits)] = 0.0
        scores = self.bundle.scores_of(features)
        if not np.isfinite(scores).all():
            rows = np.flatnonzero(~np.isfinite(scores).all(axis=1)).tolist()
            expected = "numbers of the order of the training rows"
            misfits += [Misfit(row, "", "no-score", "the model has no finite score for it", expected) for row in rows]
        return Answer(scores, self._flagged(raw), tuple(misfits))

    def warm_up(self, golden: Path) -> None:
        """Compute every shape that will occur, and the golden rows the way that requests go.

        Raises:
            BundleError: the golden scores are other than when the bundle was saved.
        """
        frame, scores = golden_rows.read(golden)
        raw = self.transform.read_frame(frame)
        features = self.transform.features(raw)
        for rows in WARMED:
            self.bundle.scores_of(np.resize(features, (rows, features.shape[1])))
        self.golden_difference = float(np.abs(self.answer(raw).scores - scores).max())
        allowed = GOLDEN_TOLERANCE * max(1.0, float(np.abs(scores).max()))
        if not self.golden_difference <= allowed:
            raise BundleError(
                f"{self.label} gives other golden scores than when it was saved: {self.golden_difference:.3g} off, "
                f"{allowed:.1g} allowed, over {len(frame)} rows",
                hint="serve it with the versions it was trained with; bundle.json names them",
            )

    def code(self, column: int, value: float) -> WarningCode:
        """What is strange about a raw number that was flagged."""
        if value != value:
            return "missing"
        if self.bundle.preprocessor.schema.columns[column].kind == "categorical":
            return "unknown-category"
        return "below-range" if value < self._low[column] else "above-range"

    def warning(self, column: int, value: float, seen: Any) -> dict[str, Any]:
        """What is strange about a raw number that was flagged, for the answer."""
        about = self.bundle.preprocessor.schema.columns[column]
        expected = {
            "missing": "a value: none was missing in train",
            "unknown-category": f"one of the {len(about.categories)} categories of train",
            "below-range": f"at least {about.low}, the smallest in train",
            "above-range": f"at most {about.high}, the largest in train",
        }
        code = self.code(column, value)
        return {"column": about.name, "code": code, "seen": seen, "expected": expected[code]}

    def _flagged(self, raw: np.ndarray) -> tuple[tuple[int, int], ...]:
        strange = (raw < self._low) | (raw > self._high) | (np.isnan(raw) & self._complete)
        if not strange.any():
            return ()
        return tuple(zip(*(positions.tolist() for positions in np.nonzero(strange)), strict=True))


def refused_rows(misfits: Iterable[Misfit]) -> list[int]:
    """Positions of rows that have no answer."""
    return sorted({misfit.row for misfit in misfits if misfit.row is not None})


def load(located: Located, store: Path, *, window: int, least: int, ignore_extra: bool = False) -> Served:
    """Fetch, check, load and warm up a version.

    Raises:
        BundleError: it is damaged, or gives other golden scores than when it was saved.
        TrackingDown: the store cannot be reached.
    """
    with fetched(located, store) as folder:
        ready_backend(folder)
        bundle = Bundle.load(folder, verify=True)
        rows = Window(golden_rows.read_profile(folder), len(bundle.preprocessor.schema.columns), window, least)
        served = Served(bundle, located, rows, ignore_extra=ignore_extra)
        served.warm_up(folder)
    return served
