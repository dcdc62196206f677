"""Wrong rows of a file: counted, listed in the message, and kept in a file for whoever mends them."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path
from typing import Any

from forge_sweep.errors import DataError
from forge_sweep.sources.feature_store.rows import Reject

SHOWN_REJECTS = 10
HOPELESS = 10_000
"""So many rejected rows more than are allowed, and the rest of the file is not read."""


class Rejects:
    """Counts wrong rows, keeps the first for the message, and writes all of them to a file where one is asked for.

    Args:
        allowed: how many may be wrong.
        path: CSV file, or None.
        source: the file they are from.
    """

    def __init__(self, allowed: int, path: Path | None, source: Path) -> None:
        self.count = 0
        self._allowed = allowed
        self._source = source
        self._path = path
        self._first: list[Reject] = []
        self._stack = contextlib.ExitStack()
        self._writer: Any = None

    def add(self, reject: Reject) -> None:
        """Take note of a wrong row.

        Raises:
            DataError: so many are wrong that the rest need not be read.
        """
        self.count += 1
        if len(self._first) < SHOWN_REJECTS:
            self._first.append(reject)
        self._write(reject)
        if self.count > self._allowed + HOPELESS:
            self.refuse("at least ")

    def refuse(self, about: str = "") -> None:
        """Raise DataError where more rows are wrong than may be."""
        if self.count <= self._allowed:
            return
        listed = "\n  ".join(map(str, self._first))
        more = f"\n  and {self.count - len(self._first):,} more" if self.count > len(self._first) else ""
        rows = "wrong row" if self.count == 1 else "wrong rows"
        written = f"; all of them are in {self._path}" if self._path else ""
        raise DataError(
            f"{self._source}: {about}{self.count:,} {rows}; expected at most {self._allowed:,}{written}\n  "
            f"{listed}{more}",
            hint="mend these rows, or leave them out: --max-errors N, and --rejects FILE keeps them; where texts are "
            "codes and no mistakes, --categorical COLUMN",
        )

    def close(self) -> None:
        """The file is complete."""
        self._stack.close()

    def _write(self, reject: Reject) -> None:
        if self._path is None:
            return
        row = json.dumps(reject.row, ensure_ascii=False)
        try:
            self._writer = self._writer or self._begin(self._path)
            self._writer.writerow([reject.line, reject.column, reject.value, reject.reason, row])
        except OSError as error:
            raise DataError(f"--rejects {self._path} cannot be written: {error}", hint="name another file") from None

    def _begin(self, path: Path) -> Any:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = csv.writer(self._stack.enter_context(path.open("w", newline="", encoding="utf-8")))
        writer.writerow(["line", "column", "value", "expected", "row"])
        return writer
