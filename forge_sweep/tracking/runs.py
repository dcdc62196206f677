"""One run as the sweep sees it: log to it while training goes on, then finish it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from forge_sweep import jsons
from forge_sweep.environment import Environment
from forge_sweep.errors import InputError
from forge_sweep.tracking.direct import Row
from forge_sweep.tracking.writes import DatasetUse, End, File, Metrics, Params, Status, Tags, Text, Write

FIRST_EPOCH = 1
"""Number of the first epoch of a curve, and of ``best_epoch``, as in Optuna's steps and in Keras' own lines."""

EPOCH_TAG = "forge.first_epoch"
"""Of a run: its number for the first epoch. Runs of sweeps that began without the tag count from 0, to their end."""

FLUSH_S = 5.0
FLUSH_POINTS = 900
PARAM_LENGTH, TAG_LENGTH = 6000, 8000  # MLflow cuts longer values in silence

Find = Callable[[str], str | None]  # run key -> MLflow's id, None while the run only waits in the journal

_log = logging.getLogger("forge_sweep")


class Run:
    """One open run; made by `Tracker.run`.

    Attributes:
        key: its key.
    """

    def __init__(self, key: str, write: Callable[[Write], None], find: Find, flush_s: float) -> None:
        self.key = key
        self._write = write
        self._find = find
        self._flush_s = flush_s
        self._rows: list[Row] = []
        self._flushed = time.monotonic()

    @property
    def run_id(self) -> str | None:
        """MLflow's id; None while the run only waits in the journal."""
        return self._find(self.key)

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Add one point to each curve, at the step ``epoch``; written seconds later at most, with `flush` or `finish`.

        An epoch that the run has already keeps its point; values that are not finite are left out.
        """
        self._rows += _rows(metrics, epoch)
        if len(self._rows) >= FLUSH_POINTS or time.monotonic() - self._flushed >= self._flush_s:
            self.flush()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write figures at once; values that are not finite are left out."""
        if rows := _rows(metrics, step):
            self._write(Metrics(self.key, rows, once=False))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log params; those that the run has already stay."""
        self._write(Params(self.key, stored_params(params)))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._write(Tags(self.key, stored_tags(tags)))

    def log_dataset(
        self,
        name: str,
        *,
        digest: str,
        version: str,
        source: str,
        columns: Mapping[str, str],
        profile: Mapping[str, Any],
        context: str = "training",
    ) -> None:
        """Record the dataset as the run's input.

        Args:
            name: name of the dataset.
            digest: SHA-256 over all rows, 64 hex digits.
            version: version name.
            source: path or name it came from.
            columns: names and types, such as ``{"age": "float64"}``.
            profile: JSON-able figures, such as ``{"num_rows": 569}``.
            context: what it was used for.
        """
        self._write(DatasetUse(self.key, name, digest, version, source, dict(columns), dict(profile), context))

    def log_environment(self, environment: Environment, folder: str = "environment") -> None:
        """Save the whole environment as ``environment.json`` and ``git.diff`` in an artifact folder."""
        values = environment.to_dict()
        difference = values.pop("git_diff")
        self.log_text(jsons.dumps(values, indent=2, sort_keys=True), f"{folder}/environment.json")
        if difference:
            self.log_text(difference, f"{folder}/git.diff")

    def log_text(self, text: str, path: str) -> None:
        """Save a text as the artifact `path`."""
        self._write(Text(self.key, text, path))

    def log_file(self, path: Path, folder: str = "") -> None:
        """Save a file as an artifact, under its own name in `folder`.

        Raises:
            InputError: there is no such file.
        """
        if not path.is_file():
            raise InputError(f"{path} is not a file", hint="only files can be logged")
        self._write(File(self.key, str(path.absolute()), folder))

    def flush(self) -> None:
        """Write the points that were collected."""
        self._flushed = time.monotonic()
        if not self._rows:
            return
        try:
            self._write(Metrics(self.key, tuple(self._rows), once=True))
        except InputError:  # refused for good: asking again would only keep the run from finishing
            self._rows.clear()
            raise
        self._rows.clear()

    def discard(self) -> None:
        """Throw away the points that were collected."""
        self._rows.clear()

    def finish(
        self, status: Status, *, metrics: Mapping[str, float] | None = None, tags: Mapping[str, str] | None = None
    ) -> None:
        """Write what was collected and, with it, figures and tags; then the last status.

        Args:
            status: the last status.
            metrics: figures as for `log_metrics`.
            tags: as for `set_tags`.
        """
        curves, figures = tuple(self._rows), tuple(_rows(metrics or {}, 0))
        try:
            self._write(End(self.key, curves, figures, stored_tags(tags or {}), status, now_ms()))
        except InputError:
            self._rows.clear()
            raise
        self._rows.clear()


def _rows(metrics: Mapping[str, float], step: int) -> list[Row]:
    now = now_ms()
    return [(name, float(value), now, step) for name, value in metrics.items() if math.isfinite(value)]


def stored_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as MLflow keeps them."""
    return _cut(tags, TAG_LENGTH)


def stored_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Params as MLflow keeps them: text."""
    return _cut({name: str(value) for name, value in params.items()}, PARAM_LENGTH)


def _cut(values: Mapping[str, str], limit: int) -> dict[str, str]:
    """The values, those too long for MLflow cut with a warning."""
    for name in (name for name, value in values.items() if len(value) > limit):
        _log.warning("%s is cut to the %d characters that MLflow stores", name, limit)
    return {name: value if len(value) <= limit else f"{value[: limit - 3]}..." for name, value in values.items()}


def now_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)
