"""The named inputs of an exported model: one per raw column."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from forge_sweep.bundle.golden_rows import as_json
from forge_sweep.errors import InputError
from forge_sweep.preprocessing import Kind, Preprocessor, Schema

TAKEN = re.compile(
    "(add|cast|concatenate|equal|functional|mlp|multiply|not_equal|sequential|sigmoid|softmax|subtract|sum|take"
    r"|true_divide|where)(_\d+)?",
    re.IGNORECASE,
)
"""How Keras names networks and operations; no two parts of a model may have the same name."""

OUTSIDE = "export with --without-preprocessing"
"""The way out for what cannot be put inside."""

MISSING_TEXT = ""
"""How a missing category is written; a missing number is NaN."""


@dataclass(frozen=True)
class Input:
    """One input.

    Attributes:
        name: of the input: the column's, with ``_`` for what a graph cannot have in a name.
        column: of the raw rows.
        kind: of the column.
        categories: those with an output of their own, in their order.
        other: whether the rest has an output.
        missing: whether missing values have one.
    """

    name: str
    column: str
    kind: Kind
    categories: tuple[str, ...] = ()
    other: bool = False
    missing: bool = False

    @property
    def is_text(self) -> bool:
        """Whether it takes text."""
        return self.kind == "categorical"

    @property
    def codes(self) -> tuple[list[str], list[int]]:
        """Texts whose codes count from 1 (missing, then the categories), and the code of each output; others are 0."""
        known = [MISSING_TEXT, *self.categories]
        outputs = list(range(2, 2 + len(self.categories)))
        return known, [*outputs, *([0] if self.other else []), *([1] if self.missing else [])]


def inputs_of(preprocessor: Preprocessor) -> tuple[Input, ...]:
    """One input per column, in the order of the schema.

    Raises:
        InputError: a category is the text that stands for a missing one.
    """
    names, found = set[str](), []
    for column in preprocessor.schema.columns:
        name = _unique(column.name, names)
        kept = column.categories[: preprocessor.max_categories]
        if MISSING_TEXT in column.categories:
            raise InputError(
                f"column {column.name!r} has the empty text as a category, which an export takes for a missing value",
                hint=f"write such cells as missing and train again, or {OUTSIDE}",
            )
        found.append(Input(name, column.name, column.kind, kept, len(column.categories) > len(kept), column.missing))
    return tuple(found)


def _unique(column: str, names: set[str]) -> str:
    """A name that every format can have, unlike those before."""
    safe = re.sub(r"\W", "_", column, flags=re.ASCII)
    safe = safe if re.match(r"[A-Za-z]", safe) and not TAKEN.fullmatch(safe) else f"c_{safe}"
    name, number = safe, 2
    while name.lower() in names:
        name, number = f"{safe}_{number}", number + 1
    names.add(name.lower())
    return name


def feed(inputs: tuple[Input, ...], schema: Schema, frame: pd.DataFrame, numbers: str) -> dict[str, np.ndarray]:
    """Raw rows as the inputs take them, (rows, 1) each.

    Args:
        inputs: see `inputs_of`.
        schema: of the columns.
        frame: raw rows.
        numbers: type of numbers and booleans, ``float64`` or ``float32``.
    """
    values = schema.values(frame)
    return {each.name: _column(each, values, numbers)[:, None] for each in inputs}


def _column(each: Input, values: Mapping[str, np.ndarray], numbers: str) -> np.ndarray:
    cells = values[each.column]
    if not each.is_text:
        return cells.astype(numbers)
    return np.array([MISSING_TEXT if as_json(cell) is None else cell for cell in cells], object)


def describe(inputs: tuple[Input, ...], numbers: str) -> list[dict[str, Any]]:
    """The inputs for people and programs: name, column, type, and how a missing value is written."""
    return [
        {
            "input": each.name,
            "column": each.column,
            "type": "string" if each.is_text else numbers,
            "missing": MISSING_TEXT if each.is_text else "NaN",
        }
        for each in inputs
    ]
