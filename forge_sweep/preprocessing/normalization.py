"""What was learned on the training rows of a stored version, as the rows of a table keep it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from forge_sweep.errors import BundleError
from forge_sweep.preprocessing.preprocessor import FORMAT, Preprocessor
from forge_sweep.preprocessing.schema import Schema

COLUMNS = {"standard": {"mean_": "means", "scale_": "stds"}, "minmax": {"data_min_": "mins", "data_max_": "maxes"}}
"""Which learned attribute of a scaler stands in which column of the store."""

STORED = ("feature_names", "means", "stds", "mins", "maxes", "fills", "recipe", "row_count")
"""What the store keeps."""


@dataclass(frozen=True, eq=False)
class Normalization:
    """A preprocessor with the statistics of the numeric columns, all over imputed training rows.

    Attributes:
        preprocessor: scaler ``standard``, ``minmax`` or ``none``.
        means: (numeric,) float64.
        stds: (numeric,) float64, what a standard scaler divides by: 1 for a constant column.
        mins: (numeric,) float64.
        maxes: (numeric,) float64.
        row_count: training rows.
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
        settings = {name: getattr(pre, name) for name in ("scaler", "impute", "fill", "max_categories")}
        learned = {name: values.tolist() for name, values in pre.learned.items() if name not in stored_elsewhere}
        statistics = {name: getattr(self, name).tolist() for name in ("means", "stds", "mins", "maxes")}
        return {
            **statistics,
            "feature_names": [column.name for column in pre.schema.columns if column.kind == "numeric"],
            "fills": pre.fills.tolist(),
            "recipe": {"format": FORMAT, **settings, "schema": pre.schema.to_dict(), "learned": learned},
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
    """Whether a preprocessor was learned with these ``scaler``, ``impute``, ``fill`` and ``max_categories``.

    The constant counts only where it is imputed.
    """
    names = [field.name for field in dataclasses.fields(preprocessor) if field.name in settings]
    if settings.get("impute") != "constant":
        names = [name for name in names if name != "fill"]
    return all(getattr(preprocessor, name) == settings[name] for name in names)
