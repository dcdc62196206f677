"""Learning a preprocessor on rows that come in blocks, in memory that does not grow with their number, and storing it.

The result equals `Preprocessor.fit` on all rows at once, to the last bit: both learn scalers and means over the same
blocks of `FIT_ROWS` rows, and medians are selected exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forge_sweep.errors import BundleError, DataError
from forge_sweep.preprocessing.preprocessor import (
    FIT_ROWS,
    FITTED,
    FORMAT,
    Preprocessor,
    fit_blocks,
    imputed,
    mean_of_sums,
    new_scaler,
)
from forge_sweep.preprocessing.schema import Column, Kind, Schema

STORED_SCALERS = ("standard", "minmax", "none")
"""The scalers that means, standard deviations, minima and maxima describe."""

COLUMNS = {"standard": {"mean_": "means", "scale_": "stds"}, "minmax": {"data_min_": "mins", "data_max_": "maxes"}}
"""Which learned attribute of a scaler stands in which column of the store."""

STORED = ("feature_names", "means", "stds", "mins", "maxes", "fills", "recipe", "row_count")
"""What the store keeps."""

Blocks = Callable[[], Iterable[np.ndarray]]


@dataclass(frozen=True)
class Coded:
    """A raw column as float64: numbers and booleans as they are, categories by their position; NaN is missing."""

    name: str
    kind: Kind
    dtype: str  # see `Column.dtype`
    categories: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Normalization:
    """A preprocessor with the statistics of the numeric columns (numeric,), all over imputed training rows.

    Its scaler is one of `STORED_SCALERS`; ``stds`` are what a standard scaler divides by: 1 for a constant column.
    """

    preprocessor: Preprocessor
    means: np.ndarray
    stds: np.ndarray
    mins: np.ndarray
    maxes: np.ndarray
    row_count: int

    @property
    def name(self) -> str:
        """``standard-median-`` and the first 12 digits of the SHA-256 over all of it: equal names, equal parameters."""
        return name_of(self.to_store())

    def to_store(self) -> dict[str, Any]:
        """The columns of ``normalization_params`` but for the name and the time."""
        pre = self.preprocessor
        stored_elsewhere = COLUMNS.get(pre.scaler, {})
        learned = {name: values.tolist() for name, values in pre.learned.items() if name not in stored_elsewhere}
        statistics = {name: getattr(self, name).tolist() for name in ("means", "stds", "mins", "maxes")}
        return {
            **statistics,
            "feature_names": [column.name for column in pre.schema.columns if column.kind == "numeric"],
            "fills": pre.fills.tolist(),
            "recipe": {"format": FORMAT, **pre.settings, "schema": pre.schema.to_dict(), "learned": learned},
            "row_count": self.row_count,
        }


def name_of(row: Mapping[str, Any]) -> str:
    """The name that `Normalization.to_store` belongs to, whether the row comes from there or from the store."""
    learned = {name: row[name] for name in STORED}
    digest = hashlib.sha256(json.dumps(learned, sort_keys=True).encode()).hexdigest()[:12]
    return f"{row['recipe']['scaler']}-{row['recipe']['impute']}-{digest}"


def from_store(row: Mapping[str, Any]) -> Preprocessor:
    """The preprocessor that `Normalization.to_store` described; it transforms to the same bits.

    Raises:
        BundleError: another version of forge_sweep stored it, in a format that this one does not know.
    """
    recipe = dict(row["recipe"])
    if (seen := recipe.pop("format")) != FORMAT:
        raise BundleError(
            f"normalization_params: format {seen}; expected {FORMAT}",
            hint="use the forge_sweep version that ingested it, or ingest the data as a new version",
        )
    learned = {name: np.asarray(values) for name, values in recipe.pop("learned").items()}
    if row["feature_names"]:
        columns = COLUMNS.get(recipe["scaler"], {})
        learned |= {name: np.asarray(row[column], np.float64) for name, column in columns.items()}
    schema = Schema.from_dict(recipe.pop("schema"))
    return Preprocessor(schema=schema, fills=np.asarray(row["fills"], np.float64), learned=learned, **recipe)


def same_settings(preprocessor: Preprocessor, settings: Mapping[str, Any]) -> bool:
    """Whether a preprocessor was learned with these settings, as far as they are given.

    The constant counts only where it is imputed.
    """
    counting = {name for name in settings if name != "fill" or settings.get("impute") == "constant"}
    return all(settings[name] == value for name, value in preprocessor.settings.items() if name in counting)


@np.errstate(over="ignore", invalid="ignore")  # what overflows is refused by name
def fit_stream(
    blocks: Blocks,
    columns: Sequence[Coded],
    *,
    scaler: str,
    impute: str,
    fill: float,
    max_categories: int,
) -> Normalization:
    """Learn from training rows (n, columns), float64, which ``blocks`` gives from the start each time it is called.

    The scaler is one of `STORED_SCALERS`; it and the other settings are as in `Preprocessor`.

    Raises:
        DataError: the scaler is none that the store can keep, or numbers are too large for it.
    """
    if scaler not in STORED_SCALERS:
        raise DataError(
            f"scaler = {scaler!r}: a stored version keeps one of {', '.join(STORED_SCALERS)}",
            hint="name one of them; an experiment may still search over others, which are learned by its trials",
        )
    counts = [Count(column) for column in columns]
    for block in blocks():
        for values, count in zip(block.T, counts, strict=True):
            count.update(values)
    schema = Schema(tuple(each.column() for each in counts))
    numeric = [i for i, column in enumerate(columns) if column.kind == "numeric"]
    boolean = [counts[i] for i, column in enumerate(columns) if column.kind == "boolean"]
    centers = _centers(blocks, numeric, [counts[i].present for i in numeric], impute, fill)
    statistics = _statistics(blocks, numeric, [counts[i] for i in numeric], centers)
    learned = statistics.get(scaler, {}) if numeric else {}
    finite = [np.isfinite(values) for values in learned.values() if values.ndim]
    if infinite := [columns[i].name for i, *each in zip(numeric, *finite, strict=False) if not all(each)]:
        raise DataError(
            f"columns hold numbers that are too large to be scaled: {', '.join(infinite)}",
            hint="write them in a larger unit, or leave these columns out",
        )
    modes = [float(2 * each.ones > each.present) for each in boolean]
    fills = np.array([*centers, *modes], np.float64)
    preprocessor = Preprocessor(schema, scaler, impute, fill, max_categories, fills, learned)
    return Normalization(
        preprocessor,
        means=statistics["standard"]["mean_"],
        stds=statistics["standard"]["scale_"],
        mins=statistics["minmax"]["data_min_"],
        maxes=statistics["minmax"]["data_max_"],
        row_count=counts[0].rows,
    )


class Count:
    """What one pass shows of a column."""

    def __init__(self, coded: Coded) -> None:
        self.coded = coded
        self.rows = self.present = self.ones = 0
        self.low, self.high = np.inf, -np.inf
        self.frequency = np.zeros(len(coded.categories), np.int64)

    def update(self, values: np.ndarray) -> None:
        """Take the next values (n,)."""
        present = values[~np.isnan(values)]
        self.rows += len(values)
        self.present += len(present)
        if self.coded.kind == "categorical":
            self.frequency += np.bincount(present.astype(np.intp), minlength=len(self.frequency))
        elif self.coded.kind == "boolean":
            self.ones += int(present.sum())
        elif len(present):
            self.low, self.high = min(self.low, float(present.min())), max(self.high, float(present.max()))

    @property
    def missing(self) -> bool:
        """Whether a value was missing."""
        return self.present < self.rows

    def column(self) -> Column:
        """The column of the schema."""
        name, kind, dtype, names = self.coded.name, self.coded.kind, self.coded.dtype, self.coded.categories
        order = sorted(np.flatnonzero(self.frequency), key=lambda code: (-self.frequency[code], names[code]))
        low, high = (self.low, self.high) if kind == "numeric" and self.present else (None, None)
        return Column(name, kind, dtype, self.missing, tuple(names[code] for code in order), low, high)


def _centers(blocks: Blocks, numeric: list[int], present: list[int], impute: str, fill: float) -> np.ndarray:
    """What a missing number of each numeric column becomes; 0 where a column has no number at all."""
    if impute == "constant":
        return np.full(len(numeric), fill)
    if impute == "median":
        return medians(lambda: (block[:, numeric] for block in blocks()), np.array(present, np.int64))
    sums: list[list[float]] = [[] for _ in numeric]
    for block in regrouped(block[:, numeric] for block in blocks()):
        for parts, values in zip(sums, block.T, strict=True):
            parts.append(float(values[~np.isnan(values)].sum()))
    return np.array([mean_of_sums(parts, n) for parts, n in zip(sums, present, strict=True)])


def _statistics(
    blocks: Blocks, numeric: list[int], counts: list[Count], centers: np.ndarray
) -> dict[str, dict[str, Any]]:
    """The fitted attributes of both scalers over imputed numbers."""
    if not numeric:
        empty = np.empty(0)
        return {"standard": {"mean_": empty, "scale_": empty}, "minmax": {"data_min_": empty, "data_max_": empty}}
    standard, minmax = new_scaler("standard"), new_scaler("minmax")
    for block in regrouped(block[:, numeric] for block in blocks()):
        standard.partial_fit(imputed(block, centers))
    missing = np.where([each.missing for each in counts], centers, np.nan)
    ends = [np.fmin([each.low for each in counts], missing), np.fmax([each.high for each in counts], missing)]
    minmax.fit(np.stack(ends) + 0.0)  # learned from both ends of each column; with one zero, as `imputed` has
    minmax.n_samples_seen_ = int(standard.n_samples_seen_)
    return {
        kind: {name: np.asarray(getattr(scaler, name)) for name in FITTED[kind]}
        for kind, scaler in (("standard", standard), ("minmax", minmax))
    }


def regrouped(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same rows in the blocks that `Preprocessor.fit` learns over."""
    pending: list[np.ndarray] = []
    rows = 0
    for block in blocks:
        pending.append(block)
        rows += len(block)
        if rows >= 2 * FIT_ROWS:
            whole = np.concatenate(pending)
            cut = len(whole) // FIT_ROWS * FIT_ROWS
            yield from fit_blocks(whole[:cut])
            pending, rows = [whole[cut:]], len(whole) - cut
    if rows:
        yield from fit_blocks(np.concatenate(pending))


# Exact medians, selected by radix: the 64 bits of a float64, put in an order that is that of the numbers, are found 16
# at a time from the top, by counting how many values have each of the 65,536 continuations of what is known. Once few
# enough values are left they are collected and sorted. Knuth, The Art of Computer Programming 3, 5.2.5 and 5.3.3,
# describe both halves.

DIGIT = 16
"""Bits per pass."""

COLLECTED = 65_536
"""Values of one column that are sorted in memory at most."""

SIGN = np.uint64(1 << 63)


@dataclass
class Search:
    """The search for the value of this 0-based ``rank`` among the ``left`` ones of a column that share ``known`` bits.

    ``bits`` says how many bits are known, from the top.
    """

    column: int
    rank: int
    left: int
    known: int = 0
    bits: int = 0

    @property
    def state(self) -> tuple[int, int, int]:
        """Equal for searches that look at the same values."""
        return self.column, self.known, self.bits


def medians(blocks: Blocks, present: np.ndarray) -> np.ndarray:
    """The median of every column (columns,) without its NaN, as `numpy.median` gives it; 0 where there is no value.

    ``blocks`` is as in `fit_stream`, ``present`` (columns,) says how many values are no NaN.
    """
    # An even number of values has two middle ones.
    searches = [Search(i, rank, n) for i, n in enumerate(present.tolist()) if n for rank in ((n - 1) // 2, n // 2)]
    while pending := [each for each in searches if each.left > COLLECTED and each.bits < 64]:
        _narrow(blocks(), pending)
    found = _collect(blocks(), searches) if searches else []
    result = np.zeros(len(present))
    for search, low, high in zip(searches[::2], found[::2], found[1::2], strict=True):
        result[search.column] = np.mean([low, high])
    return result


def ordered(values: np.ndarray) -> np.ndarray:
    """Float64 as uint64 in the same order; both zeros are the same."""
    bits = (values + 0.0).view(np.uint64)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _narrow(blocks: Iterable[np.ndarray], searches: list[Search]) -> None:
    """Find the next bits of every search in one pass; two that share all they know are counted once."""
    counts = {search.state: np.zeros(1 << DIGIT, np.int64) for search in searches}
    for block in blocks:
        for (column, known, bits), count in counts.items():
            keys = _sharing(block[:, column], known, bits)
            digits = (keys >> np.uint64(64 - bits - DIGIT)) & np.uint64((1 << DIGIT) - 1)
            count += np.bincount(digits.astype(np.intp), minlength=1 << DIGIT)
    for search in searches:
        count = counts[search.state]
        below = np.cumsum(count)
        digit = int(np.searchsorted(below, search.rank, side="right"))
        search.rank -= int(below[digit] - count[digit])
        search.left = int(count[digit])
        search.known, search.bits = search.known << DIGIT | digit, search.bits + DIGIT


def _collect(blocks: Iterable[np.ndarray], searches: list[Search]) -> list[float]:
    """The value of every search: what its 64 bits say, or the one of its rank among the few that are left."""
    parts: dict[tuple[int, int, int], list[np.ndarray]] = {each.state: [] for each in searches if each.bits < 64}
    for block in blocks if parts else ():
        for (column, known, bits), part in parts.items():
            part.append(_sharing(block[:, column], known, bits))
    left = {state: np.sort(np.concatenate(part)) for state, part in parts.items()}
    found = np.array([each.known if each.bits == 64 else left[each.state][each.rank] for each in searches], np.uint64)
    back: list[float] = np.where(found & SIGN, found ^ SIGN, ~found).view(np.float64).tolist()  # what `ordered` did
    return back


def _sharing(values: np.ndarray, known: int, bits: int) -> np.ndarray:
    """The ordered bits of the values, NaN left out, that begin with the known ones."""
    keys = ordered(np.ascontiguousarray(values[~np.isnan(values)]))
    return keys[keys >> np.uint64(64 - bits) == np.uint64(known)] if bits else keys
