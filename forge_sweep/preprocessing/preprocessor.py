"""Imputation, encoding and scaling, learned on the training rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forge_sweep.errors import BundleError, DataError, SchemaError
from forge_sweep.preprocessing.schema import Column, Kind, Schema, is_missing

FORMAT = 1
"""Version of preprocessor.json and preprocessor.npz."""

FIT_ROWS = 65_536
"""Rows that standard and minmax scalers, and means, are learned over at a time: so a stream gives the same bits."""

QUANTILE_ROWS = 100_000
"""Rows that quantiles are learned from at most."""

FITTED = {
    "standard": ("mean_", "scale_", "var_", "n_samples_seen_"),
    "minmax": ("min_", "scale_", "data_min_", "data_max_", "data_range_", "n_samples_seen_"),
    "robust": ("center_", "scale_"),
    "quantile": ("quantiles_", "references_"),
}
"""The learned attributes of each scaler, as scikit-learn documents them."""


@dataclass(frozen=True, eq=False)
class Preprocessor:
    """Imputation, encoding and scaling as learned on the training rows. The module says which outputs there are.

    Attributes:
        schema: the raw columns.
        scaler: ``standard``, ``minmax``, ``robust``, ``quantile`` (to a normal distribution) or ``none``.
        impute: ``median``, ``mean`` or ``constant``, for numeric columns.
        fill: the constant.
        max_categories: most categories with an output of their own, per column.
        fills: (numeric + boolean,) float64, what a missing value becomes, numeric columns first. A numeric column
            without any value in train becomes 0 (or ``fill``).
        learned: the fitted attributes of scikit-learn's scaler, see `FITTED`; empty without scaler or numeric columns.
    """

    schema: Schema
    scaler: str
    impute: str
    fill: float
    max_categories: int
    fills: np.ndarray
    learned: Mapping[str, np.ndarray]

    @classmethod
    def fit(
        cls,
        train_features: pd.DataFrame,
        schema: Schema,
        *,
        scaler: str,
        impute: str,
        fill: float,
        max_categories: int,
    ) -> Preprocessor:
        """Learn from the training rows, and from nothing else.

        Args:
            train_features: (n, features) training rows.
            schema: learned on the same rows.
            scaler: see the class.
            impute: see the class.
            fill: see the class.
            max_categories: see the class.

        Raises:
            DataError: a numeric column is infinite somewhere.
        """
        values = schema.values(train_features)
        numeric = _stack(values, schema, "numeric")
        _refuse_infinite(numeric, schema)
        centers = [_center(column, impute, fill) for column in numeric.T]
        modes = [_mode(column) for column in _stack(values, schema, "boolean").T]
        filled = imputed(numeric, np.array(centers))
        learned = _learn_scaler(scaler, filled) if scaler != "none" and filled.shape[1] else {}
        return cls(schema, scaler, impute, fill, max_categories, np.array([*centers, *modes], np.float64), learned)

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        """Name of every column of the matrix, in order."""
        columns = self.schema.columns
        plain = [column.name for kind in ("numeric", "boolean") for column in columns if column.kind == kind]
        indicators = [f"{column.name}=(missing)" for column in self._indicated]
        one_hot = [f"{block.name}={output}" for block in self._blocks for output in block.outputs]
        return (*plain, *indicators, *one_hot)

    def transform(self, features: pd.DataFrame) -> np.ndarray:
        """Raw rows as the matrix of the model. A row gives the same numbers alone as among others.

        Args:
            features: (n, features) raw rows, in any order of columns.

        Returns:
            (n, outputs) float32, all finite.

        Raises:
            SchemaError: see `Schema.align`; also a number that is infinite, or beyond float32 once it is scaled: a
                network would answer it with NaN, a tree with a guess.
        """
        values = self.schema.values(features)
        matrix = np.zeros((len(features), len(self.output_names)), np.float32)
        with np.errstate(over="ignore"):  # a number beyond float32 is infinite, as it would be in the model
            numbers = self._numbers(values)
            matrix[:, : numbers.shape[1]] = numbers
        self._refuse_not_finite(matrix[:, : numbers.shape[1]], features)
        first = numbers.shape[1]
        for position, column in enumerate(self._indicated, first):
            matrix[:, position] = is_missing(values[column.name])
        first += len(self._indicated)
        for block in self._blocks:
            rows, outputs = block.ones(values[block.name])
            matrix[rows, first + outputs] = 1.0
            first += len(block.outputs)
        return matrix

    def _refuse_not_finite(self, numbers: np.ndarray, features: pd.DataFrame) -> None:
        bad = ~np.isfinite(numbers)
        if not bad.any():
            return
        rows, columns = np.nonzero(bad)
        name = self.output_names[columns[0]]
        first = ", ".join(map(str, features.index[np.unique(rows[columns == columns[0]])][:10]))
        seen = features[name].iloc[rows[0]]
        raise SchemaError(
            f"column {name!r} holds {seen} (rows {first}); expected numbers that float32 can hold",
            hint="correct these rows, or give a missing value",
        )

    def sklearn_scaler(self) -> Any | None:
        """A fitted scikit-learn scaler of the imputed numeric columns in schema order; None where nothing is scaled."""
        return _restore_scaler(self.scaler, self.learned) if self.learned else None

    def save(self, folder: Path) -> None:
        """Write ``preprocessor.json`` and ``preprocessor.npz`` into an existing folder: plain data, no pickle."""
        settings = {name: getattr(self, name) for name in ("scaler", "impute", "fill", "max_categories")}
        text = json.dumps({"format": FORMAT, **settings, "schema": self.schema.to_dict()}, indent=1, ensure_ascii=False)
        (folder / "preprocessor.json").write_text(text, encoding="utf-8")
        scaler = {f"scaler.{name}": values for name, values in self.learned.items()}
        np.savez(folder / "preprocessor.npz", allow_pickle=False, fills=self.fills, **scaler)

    @classmethod
    def load(cls, folder: Path) -> Preprocessor:
        """The preprocessor that `save` wrote; it transforms to the same bits.

        Raises:
            BundleError: another version of forge_sweep wrote it, in a format that this one does not know.
        """
        settings = json.loads((folder / "preprocessor.json").read_text(encoding="utf-8"))
        if (seen := settings.pop("format")) != FORMAT:
            raise BundleError(
                f"{folder / 'preprocessor.json'}: format {seen}; expected {FORMAT}",
                hint="load it with the forge_sweep version that wrote it",
            )
        with np.load(folder / "preprocessor.npz", allow_pickle=False) as arrays:
            learned = {name.removeprefix("scaler."): arrays[name] for name in arrays.files if name != "fills"}
            return cls(
                schema=Schema.from_dict(settings.pop("schema")), fills=arrays["fills"], learned=learned, **settings
            )

    @cached_property
    def _indicated(self) -> tuple[Column, ...]:
        """The columns with a missing indicator."""
        return tuple(c for kind in ("numeric", "boolean") for c in self.schema.columns if c.kind == kind and c.missing)

    @cached_property
    def _blocks(self) -> tuple[OneHot, ...]:
        """The one-hot encoders of the categorical columns."""
        return tuple(OneHot(c, self.max_categories) for c in self.schema.columns if c.kind == "categorical")

    @cached_property
    def _scale(self) -> Callable[[np.ndarray], np.ndarray] | None:
        scaler = self.sklearn_scaler()
        return None if scaler is None else scaler.transform

    def _numbers(self, values: dict[str, np.ndarray]) -> np.ndarray:
        """Numeric columns imputed and scaled, then boolean columns imputed; float64."""
        numeric, boolean = _stack(values, self.schema, "numeric"), _stack(values, self.schema, "boolean")
        filled = np.concatenate([numeric, boolean], axis=1)
        filled = np.where(np.isnan(filled), self.fills, filled)
        if self._scale is not None and len(filled):  # scikit-learn refuses no rows
            filled[:, : numeric.shape[1]] = unchecked(self._scale, filled[:, : numeric.shape[1]])
        return filled


class OneHot:
    """One categorical column and its outputs.

    Attributes:
        name: the column.
        outputs: what the outputs are called: the kept categories, then (other) and (missing) where train had them.
    """

    def __init__(self, column: Column, max_categories: int) -> None:
        kept = column.categories[:max_categories]
        other = len(column.categories) > len(kept)
        self.name = column.name
        self.outputs = (*kept, *(["(other)"] if other else []), *(["(missing)"] if column.missing else []))
        self._index = pd.Index(kept, dtype=object)
        self._unseen = len(kept) if other else -1
        self._missing = len(self.outputs) - 1 if column.missing else -1

    def ones(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and outputs, (k,) each, that are one; a row without is all zeros.

        Args:
            values: (n,) objects, str or missing.
        """
        codes = self._index.get_indexer(pd.Index(values, dtype=object))
        codes[codes < 0] = self._unseen
        codes[pd.isna(values)] = self._missing
        rows = np.flatnonzero(codes >= 0)
        return rows, codes[rows]


def _stack(values: dict[str, np.ndarray], schema: Schema, kind: Kind) -> np.ndarray:
    """The columns of one kind as float64 (n, columns)."""
    columns = [values[column.name] for column in schema.columns if column.kind == kind]
    n = len(next(iter(values.values()), ()))
    return np.column_stack(columns) if columns else np.empty((n, 0))


def _refuse_infinite(numeric: np.ndarray, schema: Schema) -> None:
    infinite = np.isinf(numeric)
    if infinite.any():
        names = [column.name for column in schema.columns if column.kind == "numeric"]
        seen = [f"{names[i]} ({infinite[:, i].sum()} rows)" for i in np.flatnonzero(infinite.any(axis=0))]
        raise DataError(
            f"features hold infinite values: {', '.join(seen)}; expected finite or missing numbers",
            hint="write a missing value or the true number instead",
        )


def _center(column: np.ndarray, impute: str, fill: float) -> float:
    """What a missing number of this column (n,) becomes."""
    present = column[~np.isnan(column)]
    if impute == "constant":
        return fill
    if present.size == 0:
        return 0.0
    if impute == "median":
        return float(np.median(present))
    blocks = [block[~np.isnan(block)] for block in fit_blocks(column)]
    return mean_of_sums([float(block.sum()) for block in blocks], present.size)


def mean_of_sums(sums: Sequence[float], n: int) -> float:
    """The mean of n values, of which consecutive blocks have these sums; 0 for none."""
    return math.fsum(sums) / n if n else 0.0


def imputed(numbers: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Numbers (n, columns) to be learned from: missing ones replaced, and one zero, since a minimum may be either."""
    filled = np.where(np.isnan(numbers), centers, numbers)
    filled += 0.0  # -0.0 + 0.0 is 0.0
    return filled


def fit_blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The blocks of `FIT_ROWS` rows that are learned over, contiguous."""
    return (np.ascontiguousarray(rows[first : first + FIT_ROWS]) for first in range(0, len(rows), FIT_ROWS))


def _mode(column: np.ndarray) -> float:
    """The more frequent of 0 and 1 in a column (n,); 0 in a tie and in a column without values."""
    present = column[~np.isnan(column)]
    return float(2 * present.sum() > present.size)


def new_scaler(kind: str, n_quantiles: int = 1) -> Any:
    """An unfitted scaler of scikit-learn."""
    from sklearn import preprocessing

    if kind == "quantile":
        return preprocessing.QuantileTransformer(
            n_quantiles=n_quantiles, output_distribution="normal", subsample=QUANTILE_ROWS, random_state=0
        )
    return {
        "standard": preprocessing.StandardScaler,
        "minmax": preprocessing.MinMaxScaler,
        "robust": preprocessing.RobustScaler,
    }[kind]()


def _learn_scaler(kind: str, filled: np.ndarray) -> dict[str, np.ndarray]:
    """Fit scikit-learn's scaler on (n, columns) and take what it learned."""
    scaler = new_scaler(kind, n_quantiles=min(1000, len(filled)))
    if hasattr(scaler, "partial_fit"):
        for block in fit_blocks(filled):
            scaler.partial_fit(block)
    else:
        scaler.fit(filled)
    return {name: np.asarray(getattr(scaler, name)) for name in FITTED[kind]}


def _restore_scaler(kind: str, learned: Mapping[str, np.ndarray]) -> Any:
    """A scaler as if it had been fitted, from the attributes that fitting sets."""
    scaler = new_scaler(kind, n_quantiles=len(learned.get("references_", ())))
    for name, values in learned.items():
        setattr(scaler, name, values if values.ndim else values.item())
    scaler.n_features_in_ = learned[FITTED[kind][0]].shape[-1]
    if kind == "quantile":
        scaler.n_quantiles_ = len(learned["references_"])
    return scaler


def unchecked(transform: Callable[[np.ndarray], np.ndarray], numbers: np.ndarray) -> np.ndarray:
    """Scale without scikit-learn's checks: they cost more than a row, and refuse infinite values."""
    import sklearn

    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        return transform(numbers)
