"""The rows that were answered last, and how they differ from the training rows."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from forge_sweep.checks.drift import ColumnDrift, Drift
from forge_sweep.checks.profile import Profile


class Window:
    """A ring of raw rows. One thread adds, others measure.

    Args:
        profile: of the training rows; None where the bundle has none, and nothing is kept then.
        columns: how many numbers a row has.
        size: most rows that are kept.
        least: rows from which drift is measured.
    """

    def __init__(self, profile: Profile | None, columns: int, size: int, least: int) -> None:
        self.profile = profile
        self.size = size
        self.least = min(least, size)
        self.seen = 0
        self._rows = np.empty((size if profile is not None else 0, columns))
        self._lock = threading.Lock()
        self._measured: tuple[int, Drift] | None = None

    def add(self, raw: np.ndarray) -> None:
        """Keep rows (n, columns); the last ones, where there are more than fit."""
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
        """How the rows differ from train; None where that cannot be said. Measured anew where rows have come."""
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
            why = "the bundle was saved before bundles kept the distribution of the training rows; save it again"
            return {**about, "state": "no-reference", "why": why, "columns": [], "findings": []}
        about["training_rows"] = self.profile.rows
        found = self.drift()
        if found is None:
            why = f"{self.rows} rows were answered; {self.least} are needed"
            return {**about, "state": "too-few-rows", "why": why, "columns": [], "findings": []}
        state = "drifted" if found.drifted else "stable"
        findings = [{**vars(finding), "text": str(finding)} for finding in found.findings]
        columns = [column_values(column) for column in found.columns]
        return {**about, "state": state, "alpha": found.alpha, "columns": columns, "findings": findings}


def column_values(column: ColumnDrift) -> dict[str, Any]:
    """One column as JSON values."""
    return {
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
