"""What every format shares: the contract of a format, and the named inputs of an export, one per raw column."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from forge_sweep.bundle import GOLDEN_TOLERANCE, Bundle
from forge_sweep.bundle.layout import as_json
from forge_sweep.errors import InputError
from forge_sweep.preprocessing import Kind, Preprocessor, Schema
from forge_sweep.preprocessing.preprocessor import CLIP, SMOOTH

SCORES = "scores"  # the output of every export
MISSING_TEXT = ""  # how a missing category is written; a missing number is NaN

# Keras' names of networks and operations: no two parts of a model may have the same.
_TAKEN = re.compile(
    "(add|cast|concatenate|equal|functional|mlp|multiply|not_equal|realmlp|sequential|sigmoid|softmax|subtract|sum|take"
    r"|true_divide|where)(_\d+)?",
    re.IGNORECASE,
)


class Unexportable(InputError):
    """What a format cannot hold: preprocessing, or the network.

    ``fix`` says what to change about the model or the format; for preprocessing, ``--without-preprocessing`` is always
    a way out.
    """

    def __init__(self, message: str, fix: str, *, network: bool = False) -> None:
        super().__init__(message, hint=fix if network else f"{fix}, or export with --without-preprocessing")
        self.fix = fix


@dataclass(frozen=True)
class Input:
    """One input, which takes a raw column."""

    name: str  # the column's, with _ for what a graph cannot have in a name
    column: str
    kind: Kind
    categories: tuple[str, ...] = ()  # those with an output of their own, in their order
    other: bool = False  # whether the rest has an output
    missing: bool = False  # whether missing values have one
    shape: tuple[int, ...] = (1,)  # of a row
    image: bool = False  # whether it takes pixels, uint8

    @property
    def is_text(self) -> bool:
        """Whether it takes text."""
        return self.kind == "categorical"

    def dtype(self, numbers: str) -> str:
        """What it takes: text, pixels, float32 for other arrays, or ``numbers`` as in `Format`."""
        if self.kind == "tensor":
            return "uint8" if self.image else "float32"
        return "string" if self.is_text else numbers

    @property
    def codes(self) -> tuple[list[str], list[int]]:
        """Texts whose codes count from 1 (missing, then the categories), and the code of each output; others are 0."""
        known = [MISSING_TEXT, *self.categories]
        outputs = list(range(2, 2 + len(self.categories)))
        return known, [*outputs, *([0] if self.other else []), *([1] if self.missing else [])]


@dataclass(frozen=True)
class Format:
    """One export format.

    Attributes:
        write: writes a bundle with a network to a path that does not exist yet. The inputs are raw columns; without
            any, the model takes what the bundle's preprocessor gives: the one input ``features``, or those of its spec.
            Raises `Unexportable` for what the format cannot hold.
        run: feeds what was written to its own runtime: scores (rows, units) of inputs (rows, 1), arrays (rows, ...).
        tolerance: largest accepted difference of a golden score, in proportion to the largest one above 1.
        numbers: type of numeric and boolean inputs, ``float64`` or ``float32``.
        suffix: that the path must end with, or "".
        packages: that have to be installed (extra ``export``).
    """

    write: Callable[[Bundle, tuple[Input, ...], Path], None]
    run: Callable[[Path, Mapping[str, np.ndarray]], np.ndarray]
    tolerance: float = GOLDEN_TOLERANCE
    numbers: str = "float64"
    suffix: str = ""
    packages: tuple[str, ...] = ()


def inputs_of(preprocessor: Preprocessor) -> tuple[Input, ...]:
    """One input per column, in the order of the schema."""
    taken, found = set[str](), []
    for column in preprocessor.schema.columns:
        kept = column.categories[: preprocessor.max_categories]
        if MISSING_TEXT in column.categories:
            raise Unexportable(
                f"column {column.name!r} has the empty text as a category, which an export takes for a missing value",
                "write such cells as missing and train again",
            )
        safe = re.sub(r"\W", "_", column.name, flags=re.ASCII)
        safe = safe if re.match(r"[A-Za-z]", safe) and not _TAKEN.fullmatch(safe) else f"c_{safe}"
        name, number = safe, 2
        while name.lower() in taken:
            name, number = f"{safe}_{number}", number + 1
        taken.add(name.lower())
        other = len(column.categories) > len(kept)
        image, shape = column.name in preprocessor.images, column.shape or (1,)
        found.append(Input(name, column.name, column.kind, kept, other, column.missing, shape, image))
    return tuple(found)


def feed(inputs: tuple[Input, ...], schema: Schema, frame: pd.DataFrame, numbers: str) -> dict[str, np.ndarray]:
    """Raw rows as the inputs take them, (rows, 1) each, arrays (rows, ...); ``numbers`` as in `Format`."""
    values, fed = schema.values(frame), {}
    for each in inputs:
        cells = values[each.column]
        if each.kind == "tensor":
            fed[each.name] = cells.astype(each.dtype(numbers))
            continue
        if each.is_text:
            column = np.array([MISSING_TEXT if as_json(cell) is None else cell for cell in cells], object)
        else:
            column = cells.astype(numbers)
        fed[each.name] = column[:, None]
    return fed


@dataclass(frozen=True)
class Numbers:
    """How numeric, then boolean inputs become features: z = ``(filled - center) / scale``, then missing indicators.

    ``fills``, ``center`` (0 for booleans), ``scale`` (1) and ``bend`` are (inputs,); ``indicated`` are positions of
    inputs. Where ``bend`` is not 0 anywhere, z / sqrt(1 + bend z^2) follows: the smooth clip of ``robust_smooth``.
    """

    inputs: tuple[Input, ...]
    fills: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    bend: np.ndarray
    indicated: list[int]

    @classmethod
    def of(cls, preprocessor: Preprocessor, inputs: tuple[Input, ...]) -> Numbers:
        """What a preprocessor does to numbers; Unexportable where its scaler is another kind of function."""
        ordered = tuple(each for kind in ("numeric", "boolean") for each in inputs if each.kind == kind)
        indicated = [position for position, each in enumerate(ordered) if each.missing]
        center, scale, bend = np.zeros(len(ordered)), np.ones(len(ordered)), np.zeros(len(ordered))
        if learned := preprocessor.learned:
            scaled = slice(sum(each.kind == "numeric" for each in ordered))
            if preprocessor.scaler == "standard":
                center[scaled], scale[scaled] = learned["mean_"], learned["scale_"]
            elif preprocessor.scaler in ("robust", SMOOTH):
                center[scaled], scale[scaled] = learned["center_"], learned["scale_"]
                bend[scaled] = CLIP**-2 if preprocessor.scaler == SMOOTH else 0.0
            elif preprocessor.scaler == "minmax":  # numbers * scale_ + min_
                center[scaled], scale[scaled] = -learned["min_"] / learned["scale_"], 1.0 / learned["scale_"]
            else:
                raise Unexportable(
                    f"scaler = {preprocessor.scaler!r} cannot be put into an exported model: it interpolates between "
                    f"{len(learned['references_'])} quantiles per column",
                    "train with the scaler standard, minmax, robust or robust_smooth",
                )
        return cls(ordered, preprocessor.fills, center, scale, bend, indicated)
