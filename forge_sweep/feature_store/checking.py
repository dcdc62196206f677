"""The rows of a file, checked one by one and coded as float64, in memory that does not grow with the file."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from forge_sweep.errors import DataError
from forge_sweep.feature_store.codec import ahead
from forge_sweep.feature_store.columns import Coder, NumberCoder, StoredColumn, coder, inferred, zero_bytes
from forge_sweep.feature_store.tables import CsvTable, open_table
from forge_sweep.sources.assemble import identities, key_column, refuse_absent_columns, splitting_columns
from forge_sweep.sources.files import as_identity, exact
from forge_sweep.sources.reading import Malformed, Piece

if TYPE_CHECKING:
    import pyarrow as pa

    from forge_sweep.experiment import DataSpec

STORABLE = "text without a zero byte, which PostgreSQL does not take"


@dataclass(frozen=True)
class Reject:
    """A row that is left out.

    Attributes:
        line: line of a CSV file that the record begins in (the header is line 1), row of a Parquet file from 1.
        column: the first column that is wrong, or "".
        value: what stands there.
        reason: what was expected.
        row: the row, by column, as text.
        unit: what ``line`` counts: ``line`` or ``row``.
    """

    line: int
    column: str
    value: str
    reason: str
    row: dict[str, Any]
    unit: str = "line"

    def __str__(self) -> str:
        where = f", column {self.column!r}: {self.value}" if self.column else f": {self.value}"
        return f"{self.unit} {self.line}{where}; expected {self.reason}"


@dataclass(frozen=True, eq=False)
class CodedRows:
    """Rows that are right. Codes of texts are provisional: see `Coder.remap`.

    Attributes:
        rows: (n,) int64 positions in the file.
        features: (n, k) float64.
        targets: (n, t) float64.
    """

    rows: np.ndarray
    features: np.ndarray
    targets: np.ndarray


class RowFile:
    """One file as the section ``[data]`` of an experiment declares it.

    Args:
        path: ``.csv``, ``.csv.gz`` or ``.parquet``.
        spec: the declaration.

    Raises:
        DataError: the file cannot be read, or lacks declared columns.
    """

    def __init__(self, path: Path, spec: DataSpec) -> None:
        self.spec = spec
        self.table = open_table(path, spec.separator, identities(spec))
        refuse_absent_columns(self.table.names, spec, str(path))
        self.side_names = list(dict.fromkeys([*key_column(spec), *splitting_columns(spec)]))
        left_out = {*spec.drop, *spec.target, *self.side_names}
        self.feature_names = [name for name in self.table.names if name not in left_out]
        if not self.feature_names:
            raise DataError("no column is left as a feature", hint="drop fewer columns")
        self._coders: dict[str, Coder] = {}
        self._side: list[pa.Table] = []
        self._labels: set[float] = set()
        self._undecided: set[str] = set()

    def scan(self, on_reject: Callable[[Reject], None]) -> Iterator[CodedRows]:
        """Every row once, in the order of the file; rows that are wrong go to ``on_reject`` instead."""
        columns = [*self.feature_names, *self.spec.target, *self.side_names]
        types = self.table.types(columns)
        for piece in ahead(self.table.pieces(columns)):
            for row in piece.malformed:
                on_reject(self._reject_malformed(row))
            if not len(piece.rows):
                continue
            if not self._coders:
                self._begin(piece, types)
            yield self._coded(piece, on_reject)

    def features(self) -> tuple[StoredColumn, ...]:
        """The features, after the scan."""
        return tuple(self._coders[name].column() for name in self.feature_names)

    def targets(self) -> tuple[StoredColumn, ...]:
        """The targets, after the scan."""
        return tuple(self._coders[name].column() for name in self.spec.target)

    def remaps(self) -> dict[int, np.ndarray]:
        """Final codes by provisional ones, for each column of text, counted through features and targets."""
        names = [*self.feature_names, *self.spec.target]
        found = {position: self._coders[name].remap() for position, name in enumerate(names)}
        return {position: remap for position, remap in found.items() if remap is not None}

    def side(self) -> pd.DataFrame:
        """Key and split column of every row that is right, typed by all of its values."""
        import pyarrow as pa

        if not self.side_names or not self._side:
            return pd.DataFrame(columns=self.side_names)
        table = pa.concat_tables(self._side)
        columns = {name: table.column(name) for name in self.side_names}
        for name, key in identities(self.spec).items():
            texts = columns[name]
            if isinstance(self.table, CsvTable):
                columns[name] = exact(inferred(texts), lambda texts=texts: texts, key, name)  # type: ignore[misc]
            else:
                columns[name] = as_identity(texts, key, name)
        frame: pd.DataFrame = pa.table(columns).to_pandas(ignore_metadata=True, date_as_object=False)
        return frame

    def _line(self, row: int) -> int:
        return self.table.line(row)

    def _begin(self, piece: Piece, types: dict[str, pa.DataType]) -> None:
        """Decide what each column is, once its first values are known."""
        for name in [*self.feature_names, *self.spec.target]:
            self._coders[name] = self._new_coder(name, types[name], piece.table.column(name))
            if isinstance(self.table, CsvTable) and _is_null(types[name]) and name not in self.spec.categorical:
                self._undecided.add(name)

    def _coded(self, piece: Piece, on_reject: Callable[[Reject], None]) -> CodedRows:
        """The right rows of a piece; the wrong ones are reported, each with its first mistake."""
        names = [*self.feature_names, *self.spec.target]
        coded = np.empty((len(piece.rows), len(names)))
        mistakes = Mistakes(len(piece.rows))
        for position, name in enumerate(names):
            each = self._coder(name, piece)
            values, wrong = each.code(piece.table.column(name))
            coded[:, position] = values
            mistakes.add(name, wrong, each.expected)
            mistakes.add(
                name, each.inexact(piece.table.column(name), values), "whole numbers that float64 holds: below 2**53"
            )
            mistakes.add(name, each.unstorable(values), STORABLE)
            if name not in self.spec.target:
                mistakes.add(name, np.isinf(values), "finite numbers, or none")
        for name in key_column(self.spec):
            mistakes.add(name, zero_bytes(piece.table.column(name)), STORABLE)
        self._check_targets(coded[:, len(self.feature_names) :], mistakes)
        for row in np.flatnonzero(mistakes.wrong):
            on_reject(self._reject(piece, int(row), mistakes))
        right = ~mistakes.wrong
        kept = coded if right.all() else coded[right]
        for position, name in enumerate(names):
            self._coders[name].accept(kept[:, position])
        if self.side_names:
            self._side.append(piece.table.select(self.side_names).filter(right))
        width = len(self.feature_names)
        return CodedRows(piece.rows[right], kept[:, :width], kept[:, width:])

    def _coder(self, name: str, piece: Piece) -> Coder:
        """The column's coder; where the first block showed no value, chosen by the first that comes."""
        values = piece.table.column(name)
        if name in self._undecided and values.null_count < len(values):
            self._undecided.remove(name)
            before = self._coders[name]
            self._coders[name] = self._new_coder(name, inferred(values).type, values)
            self._coders[name].missing = before.missing
        return self._coders[name]

    def _new_coder(self, name: str, kind: pa.DataType, values: pa.ChunkedArray) -> Coder:
        if name in self.spec.target and self.spec.task == "regression" and not _is_number(kind):
            return NumberCoder(name)  # whatever stands there, numbers are expected
        return coder(name, kind, values, declared=name in self.spec.categorical)

    def _check_targets(self, targets: np.ndarray, mistakes: Mistakes) -> None:
        spec = self.spec
        for name, values in zip(spec.target, targets.T, strict=True):
            mistakes.add(name, ~np.isfinite(values), "a value in every row")
            if spec.task == "multilabel" or spec.one_hot:
                mistakes.add(name, ~np.isin(values, (0, 1)), "0 or 1")
        if spec.one_hot:
            mistakes.add(spec.target[0], targets.sum(axis=1) != 1, f"exactly one 1 among {', '.join(spec.target)}")
        if spec.task == "binary":
            self._check_labels(targets[:, 0], mistakes)

    def _check_labels(self, values: np.ndarray, mistakes: Mistakes) -> None:
        """The first two labels of a binary target are its labels; any other is a mistake."""
        if len(self._labels) < 2:
            seen = pd.unique(values[np.isfinite(values)]).tolist()
            self._labels = set([*self._labels, *(label for label in seen if label not in self._labels)][:2])
        if len(self._labels) == 2:
            mistakes.add(self.spec.target[0], ~np.isin(values, list(self._labels)), "one of the two labels before it")

    def _reject_malformed(self, row: Malformed) -> Reject:
        line = self._line(row.row)
        return Reject(line, "", f"{row.seen} fields", f"{row.expected} fields", {"text": row.text}, self.table.unit)

    def _reject(self, piece: Piece, row: int, mistakes: Mistakes) -> Reject:
        values = {name: None if value is None else str(value) for name, value in _row(piece.table, row).items()}
        column, reason = mistakes.first(row)
        value = values[column]
        line = self._line(int(piece.rows[row]))
        return Reject(line, column, "missing" if value is None else repr(value), reason, values, self.table.unit)


class Mistakes:
    """The first mistake of each of n rows."""

    def __init__(self, n: int) -> None:
        self.wrong = np.zeros(n, bool)
        self._what = np.zeros(n, np.intp)
        self._known: list[tuple[str, str]] = []

    def add(self, column: str, wrong: np.ndarray, expected: str) -> None:
        """Record rows (n,) that are invalid in a column."""
        if wrong.any():
            self._what[wrong & ~self.wrong] = len(self._known)
            self._known.append((column, expected))
            self.wrong |= wrong

    def first(self, row: int) -> tuple[str, str]:
        """Column and what was expected there."""
        return self._known[int(self._what[row])]


def _row(table: pa.Table, row: int) -> dict[str, Any]:
    return {name: column[row].as_py() for name, column in zip(table.column_names, table.columns, strict=True)}


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_null(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_null(kind))


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
        """Record an invalid row.

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
            hint="correct these rows, or leave them out: --max-errors N, and --rejects FILE keeps them; where texts "
            "are codes, --categorical COLUMN",
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
