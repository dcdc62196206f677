"""Imputation, encoding and scaling, learned on the training rows."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forge_sweep.errors import BundleError, DataError, SchemaError
from forge_sweep.preprocessing.array_files import Mapped, mapped
from forge_sweep.preprocessing.inputs import Batch, Feed, Group, Spec, by_default, resolved
from forge_sweep.preprocessing.schema import Schema
from forge_sweep.preprocessing.tensors import images

FORMAT = 1
"""Version of preprocessor.json and preprocessor.npz."""

FORMAT_WITH_INPUTS = 2
"""The same with the key ``inputs``: groups of columns, which versions before would overlook."""

FORMAT_WITH_SMOOTH = 3
"""The same with the scaler `SMOOTH`, which versions before would take for another one."""

SMOOTH = "robust_smooth"
"""Robust scaling and a smooth clip, z / sqrt(1 + (z / 3)^2), as in RealMLP (Holzmüller et al. 2024, arXiv 2407.04491).

z is (x - median) / (q75 - q25); where the quartiles are equal, 2 (x - median) / (max - min); a constant is shifted."""

CLIP = 3.0
"""What `SMOOTH` keeps numbers within."""

FIT_ROWS = 65_536
"""Rows that standard and minmax scalers, and means, are learned over at a time: so a stream gives the same bits."""

QUANTILE_ROWS = 100_000
"""Rows that quantiles are learned from at most."""

FITTED = {
    "standard": ("mean_", "scale_", "var_", "n_samples_seen_"),
    "minmax": ("min_", "scale_", "data_min_", "data_max_", "data_range_", "n_samples_seen_"),
    "robust": ("center_", "scale_"),
    "robust_smooth": ("center_", "scale_"),
    "quantile": ("quantiles_", "references_"),
}
"""The learned attributes of each scaler, as scikit-learn documents them; `robust_smooth` is not one of its own."""


@dataclass(frozen=True, eq=False)
class Preprocessor:
    """Imputation, encoding and scaling as learned on the training rows. The module says which outputs there are.

    Attributes:
        schema: the raw columns.
        scaler: ``standard``, ``minmax``, ``robust``, ``robust_smooth`` (`SMOOTH`), ``quantile`` (to a normal
            distribution) or ``none``.
        impute: ``median``, ``mean`` or ``constant``, for numeric columns.
        fill: the constant.
        max_categories: most categories with an output of their own, per column.
        fills: (numeric + boolean,) float64, what a missing value becomes, numeric columns first. A numeric column
            without any value in train becomes 0 (or ``fill``).
        learned: the fitted attributes of scikit-learn's scaler, see `FITTED`; empty without scaler or numeric columns.
        groups: the inputs of the model with their columns; none where it takes the whole matrix.
    """

    schema: Schema
    scaler: str
    impute: str
    fill: float
    max_categories: int
    fills: np.ndarray
    learned: Mapping[str, np.ndarray]
    groups: tuple[Group, ...] = ()

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
        """Learn from the training rows (n, features), and from nothing else; the other arguments are as in the class.

        Raises:
            DataError: a numeric column is infinite somewhere.
        """
        values = schema.values(train_features)
        names = {kind: [c.name for c in schema.columns if c.kind == kind] for kind in ("numeric", "boolean")}
        numeric = np.empty((len(train_features), len(names["numeric"])))
        for position, name in enumerate(names["numeric"]):
            numeric[:, position] = values[name]
        infinite = np.isinf(numeric).sum(axis=0)
        if infinite.any():
            seen = [f"{name} ({count} rows)" for name, count in zip(names["numeric"], infinite, strict=True) if count]
            raise DataError(
                f"features hold infinite values: {', '.join(seen)}; expected finite or missing numbers",
                hint="write a missing value or the true number instead",
            )
        centers = [_center(column, impute, fill) for column in numeric.T]
        # The more frequent of 0 and 1; 0 in a tie and in a column without values.
        modes = [float(2 * np.nansum(values[name]) > np.isfinite(values[name]).sum()) for name in names["boolean"]]
        filled = imputed(numeric, np.array(centers))
        learned = _learn_scaler(scaler, filled) if scaler != "none" and filled.shape[1] else {}
        return cls(schema, scaler, impute, fill, max_categories, np.array([*centers, *modes], np.float64), learned)

    def grouped(self, groups: Sequence[Group]) -> Preprocessor:
        """The same for a model of these inputs, whose columns may be given as patterns; none for the default.

        Raises:
            DataError: see `resolved` and `by_default`.
        """
        groups = groups or by_default(self.schema)
        return dataclasses.replace(self, groups=resolved(groups, self.schema) if groups else ())

    @property
    def settings(self) -> dict[str, Any]:
        """What `fit` was given but for the rows."""
        return {name: getattr(self, name) for name in ("scaler", "impute", "fill", "max_categories")}

    @cached_property
    def matrix(self) -> Matrix:
        """What makes the matrix of raw numbers."""
        return Matrix(self)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Name of every column of the matrix, in order."""
        return self.matrix.names

    @property
    def coded(self) -> frozenset[str]:
        """The columns that are given as codes."""
        return frozenset(name for group in self.groups if group.encode == "codes" for name in group.columns)

    @property
    def spec(self) -> Spec:
        """The inputs of a model of these features."""
        return self.feed.spec

    @cached_property
    def feed(self) -> Feed:
        """What makes the inputs of raw numbers; the one-hot columns of what is given as codes are never made."""
        matrix = Matrix(self, self.coded) if self.coded else self.matrix
        return Feed(self.schema, self.groups, self.max_categories, matrix)

    def batch(self, features: pd.DataFrame) -> np.ndarray | Batch:
        """Raw rows as a model of `spec` takes them: arrays by name, or one where the only input is ``features``.

        Raises:
            SchemaError: see `transform`.
        """
        raw, tensors = self._raw(self.with_images(features))
        batch = self.feed(raw, tensors)
        made = batch.values() if isinstance(batch, dict) else [batch]
        if not all(isinstance(values, Mapped) or np.isfinite(values).all() for values in made):
            self._refuse_infinite(features, self.matrix(raw))
        return batch

    @cached_property
    def images(self) -> dict[str, tuple[int, ...]]:
        """The columns of images with their shapes."""
        names = {group.columns[0] for group in self.groups if group.kind == "image"}
        return {column.name: column.shape for column in self.schema.tensors if column.name in names}

    def with_images(self, features: pd.DataFrame) -> pd.DataFrame:
        """The rows with arrays in place of images that come as base64, or as the bytes of a file.

        Raises:
            SchemaError: one is no such image.
        """
        for name, shape in self.images.items():
            if name not in features or mapped(features[name]) is not None:
                continue
            if any(isinstance(cell, str | bytes) for cell in features[name]):
                found, wrong = images(features[name], shape)
                for row, why in wrong.items():
                    raise SchemaError(
                        f"column {name!r}: the image of row {row} cannot be taken: {why}"
                        + f" ({len(wrong)} such rows)" * (len(wrong) > 1),
                        hint=f"give a PNG or JPEG of {shape[0]} x {shape[1]} pixels as base64, or an array of {shape}",
                    )
                features = features.assign(**{name: found})
        return features

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
        matrix = self.matrix(self._raw(features)[0])
        self._refuse_infinite(features, matrix)
        return matrix

    def _raw(self, features: pd.DataFrame) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Raw numbers (n, tabular columns), and the arrays of the others by name."""
        values = self.schema.values(features)
        raw = np.empty((len(features), len(self.schema.tabular)))
        for i, column in enumerate(self.schema.tabular):
            raw[:, i] = column.raw(values[column.name])
        return raw, {column.name: values[column.name] for column in self.schema.tensors}

    def _refuse_infinite(self, features: pd.DataFrame, matrix: np.ndarray) -> None:
        bad = ~np.isfinite(matrix[:, : len(self.matrix.numbers)])
        if bad.any():
            rows, columns = np.nonzero(bad)
            name = self.output_names[columns[0]]
            first = ", ".join(map(str, features.index[np.unique(rows[columns == columns[0]])][:10]))
            raise SchemaError(
                f"column {name!r} holds {features[name].iloc[rows[0]]} (rows {first}); "
                "expected numbers that float32 can hold",
                hint="correct these rows, or give a missing value",
            )

    def sklearn_scaler(self) -> Any | None:
        """A fitted scikit-learn scaler of the imputed numeric columns in schema order; None where it has none such."""
        if not self.learned or self.scaler == SMOOTH:
            return None
        scaler = new_scaler(self.scaler, n_quantiles=len(self.learned.get("references_", ())))
        for name, values in self.learned.items():
            setattr(scaler, name, values if values.ndim else values.item())
        scaler.n_features_in_ = self.learned[FITTED[self.scaler][0]].shape[-1]
        if self.scaler == "quantile":
            scaler.n_quantiles_ = len(self.learned["references_"])
        return scaler

    def save(self, folder: Path, name: str = "preprocessor") -> None:
        """Write ``<name>.json`` and ``<name>.npz`` into an existing folder: plain data, no pickle."""
        stored = {"format": FORMAT, **self.settings, "schema": self.schema.to_dict()}
        if self.groups:
            stored |= {"format": FORMAT_WITH_INPUTS, "inputs": [dataclasses.asdict(group) for group in self.groups]}
        if self.scaler == SMOOTH:
            stored["format"] = FORMAT_WITH_SMOOTH
        text = json.dumps(stored, indent=1, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
        scaler = {f"scaler.{learned}": values for learned, values in self.learned.items()}
        np.savez(folder / f"{name}.npz", fills=self.fills, **scaler)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path, name: str = "preprocessor") -> Preprocessor:
        """The preprocessor that `save` wrote; it transforms to the same bits.

        Raises:
            BundleError: another version of forge_sweep wrote it, in a format that this one does not know.
        """
        settings = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        if (seen := settings.pop("format")) not in range(FORMAT, FORMAT_WITH_SMOOTH + 1):
            raise BundleError(
                f"{folder / f'{name}.json'}: format {seen}; expected {FORMAT} to {FORMAT_WITH_SMOOTH}",
                hint="load it with the forge_sweep version that wrote it",
            )
        inputs = settings.pop("inputs", ())
        lists = ("columns", "shape")
        groups = tuple(Group(**each | {key: tuple(each[key]) for key in lists if key in each}) for each in inputs)
        with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
            learned = {key.removeprefix("scaler."): arrays[key] for key in arrays.files if key != "fills"}
            schema = Schema.from_dict(settings.pop("schema"))
            return cls(schema=schema, fills=arrays["fills"], learned=learned, groups=groups, **settings)


class Matrix:
    """From raw numbers (n, columns) to the matrix of the model (n, outputs), by what a preprocessor learned.

    Attributes:
        names: of the outputs.
        sources: (outputs,) position in the schema of the column that each comes from.
        numbers: positions in the schema of the numeric columns, then of the boolean ones.
    """

    def __init__(self, preprocessor: Preprocessor, without: Collection[str] = ()) -> None:
        """``without``: names of categorical columns that are left out."""
        columns = preprocessor.schema.columns
        numeric, boolean, categorical = (
            np.array([i for i, c in enumerate(columns) if c.kind == kind and c.name not in without], np.intp)
            for kind in ("numeric", "boolean", "categorical")
        )
        self.numbers = np.concatenate([numeric, boolean])
        self._numeric = len(numeric)
        self._preprocessor = preprocessor
        self._indicated = np.array([i for i in self.numbers if columns[i].missing], np.intp)
        names = [columns[i].name for i in self.numbers]
        names += [f"{columns[i].name}=(missing)" for i in self._indicated]
        sources = [*self.numbers, *self._indicated]

        # The output of each category of each column, in one table: unknown, the categories, missing; -1 for none.
        outputs, starts = list[int](), list[int]()
        for i in categorical:
            name, categories, first = columns[i].name, columns[i].categories, len(names)
            names += [f"{name}={category}" for category in categories[: preprocessor.max_categories]]
            kept, other, missing = len(names) - first, -1, -1
            if len(categories) > kept:
                other = len(names)
                names.append(f"{name}=(other)")
            if columns[i].missing:
                missing = len(names)
                names.append(f"{name}=(missing)")
            sources += [i] * (len(names) - first)
            starts.append(len(outputs) + 1)
            outputs += [other, *range(first, first + kept), *[other] * (len(categories) - kept), missing]
        self._categorical = categorical
        self._outputs, self._starts = np.array(outputs, np.intp), np.array(starts, np.intp)
        self._missing = np.array([len(columns[i].categories) for i in categorical], np.float64)
        self.names, self.sources = tuple(names), np.array(sources, np.intp)

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """(n, columns) float64 to (n, outputs) float32; numbers beyond float32 are infinite."""
        matrix = np.zeros((len(raw), len(self.names)), np.float32)
        numbers = raw[:, self.numbers]
        numbers = np.where(np.isnan(numbers), self._preprocessor.fills, numbers)
        with np.errstate(over="ignore", invalid="ignore"):
            if self._preprocessor.learned and len(raw):  # scikit-learn refuses no rows
                numbers[:, : self._numeric] = self._scaled(numbers[:, : self._numeric])
            matrix[:, : len(self.numbers)] = numbers
        first = len(self.numbers)
        if len(self._indicated):
            matrix[:, first : first + len(self._indicated)] = np.isnan(raw[:, self._indicated])
        if len(self._categorical):
            codes = raw[:, self._categorical]
            codes = np.where(np.isnan(codes), self._missing, codes).astype(np.intp)
            outputs = self._outputs[codes + self._starts]
            rows, blocks = np.nonzero(outputs >= 0)
            matrix[rows, outputs[rows, blocks]] = 1.0
        return matrix

    @cached_property
    def _quantiles(self) -> Any:
        return self._preprocessor.sklearn_scaler()

    def _scaled(self, numbers: np.ndarray) -> np.ndarray:
        """What scikit-learn's scaler makes of them, in its own order of operations."""
        scaler, learned = self._preprocessor.scaler, self._preprocessor.learned
        if scaler == "quantile":
            import sklearn

            # Its checks cost more than a row, and refuse infinite values.
            with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
                return np.asarray(self._quantiles.transform(numbers))
        if scaler == "minmax":
            scaled: np.ndarray = numbers * learned["scale_"] + learned["min_"]
        else:
            scaled = (numbers - learned["mean_" if scaler == "standard" else "center_"]) / learned["scale_"]
            if scaler == SMOOTH:
                scaled = scaled / np.sqrt(1.0 + (scaled / CLIP) ** 2)
        return scaled


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
    if kind == SMOOTH:
        low, center, high = np.quantile(filled, (0.25, 0.5, 0.75), axis=0)
        half = (filled.max(axis=0) - filled.min(axis=0)) / 2
        scale = np.where(high > low, high - low, half)
        return {"center_": center, "scale_": np.where(scale > 0, scale, 1.0)}
    scaler = new_scaler(kind, n_quantiles=min(1000, len(filled)))
    if hasattr(scaler, "partial_fit"):
        for block in fit_blocks(filled):
            scaler.partial_fit(block)
    else:
        scaler.fit(filled)
    return {name: np.asarray(getattr(scaler, name)) for name in FITTED[kind]}
