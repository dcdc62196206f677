"""What every audit rule looks at: the visible splits, and the figures that several rules share, computed once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from forge_sweep.checks import notations
from forge_sweep.checks.findings import Finding, Severity
from forge_sweep.preprocessing import is_tensor, mapped

if TYPE_CHECKING:
    from forge_sweep.sources.base import Dataset, Role, Split
    from forge_sweep.task import TaskKind


class Facts(NamedTuple):
    """What the rules look at in a column of arrays; ``blank`` (n,): which have one value everywhere."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    blank: np.ndarray
    low: float
    high: float

    @classmethod
    def of(cls, column: pd.Series) -> Facts:
        """The facts of a column; of one in a file from what was kept when it was written."""
        if (found := mapped(column)) is not None:
            lows, highs = found.file.low[found.rows], found.file.high[found.rows]
        else:
            values = np.stack(list(column))
            flat = values.reshape(len(values), -1)
            lows, highs = flat.min(axis=1), flat.max(axis=1)
        first = column.iloc[0]
        return cls(first.dtype, first.shape, lows == highs, float(lows.min()), float(highs.max()))


@dataclass(frozen=True, eq=False)
class Arrays:
    """Columns of arrays in the visible splits: facts by name and role, and per role their fingerprints.

    ``images`` are those that the network gets as 0..1; the others it gets as they are.
    """

    facts: Mapping[str, Mapping[Role, Facts]]
    prints: Mapping[str, Mapping[Role, np.ndarray]]
    images: frozenset[str] = frozenset()

    @classmethod
    def of(cls, dataset: Dataset, images: Collection[str] = ()) -> Arrays:
        """The columns of a dataset that hold arrays."""
        train = dataset.train.features
        visible: tuple[tuple[Role, Split], ...] = (("train", dataset.train), ("valid", dataset.valid))
        names = [str(name) for name in train if is_tensor(train[name])]
        facts = {name: {role: Facts.of(split.features[name]) for role, split in visible} for name in names}
        return cls(facts, dataset.array_prints, frozenset(images))


NEAR_UNIQUE = 0.95
MIN_ROWS_FOR_ID = 50
NEARLY_ALL = 0.80
NOTED_ROWS = 10_000  # rows whose notation is checked
SHOWN_ROWS = 10
LONGEST_VALUE = 60  # characters
SHOWN_VALUES = 5

Rule = Callable[["Evidence"], Iterator[Finding]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """The data under audit: train, valid and the row fingerprints. Test features and targets are no part of it.

    Attributes:
        kind: the task.
        scaler: of the preprocessing section.
        scaled: whether every trial scales its numeric features.
        arrays: the columns that hold arrays, which ``dataset`` lacks.
        metric: the objective, such as ``val_auc``; "" where there is none.
        split: how rows were assigned, the ``kind`` of ``[data.split]``; "" where that is not known.
    """

    dataset: Dataset
    kind: TaskKind
    scaler: str
    scaled: bool
    arrays: Arrays | None = None
    metric: str = ""
    split: str = ""
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What several rules look at and one of them makes."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    @property
    def visible(self) -> tuple[tuple[str, Split], tuple[str, Split]]:
        """The splits that may be read, with their names."""
        return ("train", self.dataset.train), ("valid", self.dataset.valid)

    @cached_property
    def features(self) -> pd.DataFrame:
        """The table of ``profile``."""
        return profile(self.dataset.train.features)

    @cached_property
    def numeric(self) -> tuple[str, ...]:
        """Names of numeric features, booleans left out."""
        train = self.dataset.train.features
        return tuple(str(name) for name in train if is_numeric_dtype(train[name]) and not is_bool_dtype(train[name]))

    @cached_property
    def categorical(self) -> tuple[str, ...]:
        """Names of text and category features."""
        train = self.dataset.train.features
        return tuple(str(name) for name in train if not is_numeric_dtype(train[name]))

    @cached_property
    def near_unique(self) -> tuple[str, ...]:
        """Names of features of which more than 95 % of the values differ, over at least 50 rows."""
        present = self.dataset.sizes["train"] - self.features["missing"]
        chosen = (present >= MIN_ROWS_FOR_ID) & (self.features["distinct"] > NEAR_UNIQUE * present)
        return tuple(str(name) for name in self.features.index[chosen])

    @cached_property
    def noted(self) -> dict[str, notations.Written]:
        """Features of text that is numbers in a notation that no program reads, and how they are written."""
        train, found = self.dataset.train.features, {}
        for name in self.categorical:
            if name not in self.dataset.categorical:
                written = notations.written(train[name].dropna().astype(str).iloc[:NOTED_ROWS])
                if written.ways and written.share >= NEARLY_ALL:
                    found[name] = written
        return found

    def classes(self) -> Iterator[tuple[str, np.ndarray, np.ndarray, tuple[Any, ...]]]:
        """Each classification target as (name, train codes, valid codes, labels); a one-hot target is one of classes.

        Codes count up in the order of ``labels``; rows without a target are left out.
        """
        train, valid = self.dataset.train.targets, self.dataset.valid.targets
        if self.kind == "regression":
            return
        if self.kind == "multiclass" and train.shape[1] > 1:
            labels = tuple(str(name) for name in train)
            coded = (part.dropna().to_numpy(dtype=float).argmax(axis=1) for part in (train, valid))
            yield ", ".join(labels), *coded, labels
            return
        for name in train:
            known = [targets[name].dropna().astype(object) for targets in (train, valid)]
            codes, found = pd.factorize(pd.concat(known, ignore_index=True))
            yield str(name), codes[: len(known[0])], codes[len(known[0]) :], tuple(found)


class Seen(NamedTuple):
    """What a rule saw, for a `Finding`; ``rows`` are all positions concerned, the rest differs from case to case."""

    subject: object
    seen: str
    fix: str
    rows: np.ndarray | None = None
    severity: Severity | None = None
    expected: str = ""


def rule(
    severity: Severity, code: str, *, expected: str = ""
) -> Callable[[Callable[[Evidence], Iterator[Seen]]], Rule]:
    """Make an audit rule of a function that yields what it saw; of the rows the first ones are shown."""

    def make(look: Callable[[Evidence], Iterator[Seen]]) -> Rule:
        @wraps(look)
        def found(evidence: Evidence) -> Iterator[Finding]:
            for subject, seen, fix, rows, its_severity, its_expected in look(evidence):
                shown = () if rows is None else tuple(np.sort(rows)[:SHOWN_ROWS].tolist())
                yield Finding(its_severity or severity, code, str(subject), seen, its_expected or expected, fix, shown)

        return found

    return make


def profile(features: pd.DataFrame) -> pd.DataFrame:
    """Figures of each feature, one row each, the index.

    They are ``dtype``, ``min``, ``max``, ``mean``, ``std`` (population; all four over finite values, nan for text),
    ``missing``, ``inf`` and ``distinct`` (counts; missing is not a value).
    """
    index = pd.Index(features.columns, name="feature")
    table = pd.DataFrame([_figures(features[name]) for name in features], index=index)
    columns = ["dtype", "min", "max", "mean", "std", "missing", "inf", "distinct"]
    return table.reindex(columns=columns).astype({"missing": "int64", "inf": "int64", "distinct": "int64"})


def values_of(column: pd.Series) -> np.ndarray:
    """A numeric or boolean column as float64, missing as nan."""
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def drop_fix(name: object) -> str:
    """The fix that takes a feature out."""
    return f'drop = ["{name}"] under [data]'


def some(values: Iterable[Any]) -> str:
    """The first values of a sequence, as a message lists them."""
    listed = [value.item() if hasattr(value, "item") else value for value in values]
    more = f" and {len(listed) - SHOWN_VALUES} more" if len(listed) > SHOWN_VALUES else ""
    texts = map(repr, listed[:SHOWN_VALUES])
    return ", ".join(text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..." for text in texts) + more


def _figures(column: pd.Series) -> dict[str, object]:
    figures: dict[str, object] = {"dtype": str(column.dtype), "missing": int(column.isna().sum()), "inf": 0}
    figures |= {"distinct": int(column.nunique()), "min": np.nan, "max": np.nan, "mean": np.nan, "std": np.nan}
    if not is_numeric_dtype(column):
        return figures
    values = values_of(column)
    finite = values[np.isfinite(values)]
    figures["inf"] = int(np.isinf(values).sum())
    if len(finite):
        with np.errstate(over="ignore", invalid="ignore"):
            figures |= {"min": finite.min(), "max": finite.max(), "mean": finite.mean(), "std": finite.std()}
    return figures
