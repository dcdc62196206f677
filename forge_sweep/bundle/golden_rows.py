"""Golden rows: raw rows with the scores they had when the bundle was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forge_sweep.bundle.files import read_json, write_json
from forge_sweep.checks.profile import Profile
from forge_sweep.errors import BundleError

GOLDEN = "golden.json"
GOLDEN_ROWS = 20


def choose(frame: pd.DataFrame) -> pd.DataFrame:
    """At most `GOLDEN_ROWS` rows in their order: a quarter with missing values, if there are any, and the first others.

    Raises:
        BundleError: there is no row.
    """
    if not len(frame):
        raise BundleError("a bundle needs golden rows, and none was given", hint="give some rows of train")
    gaps = np.flatnonzero(frame.isna().any(axis=1))[: GOLDEN_ROWS // 4]
    others = np.setdiff1d(np.arange(len(frame)), gaps)[: GOLDEN_ROWS - len(gaps)]
    return frame.iloc[np.sort(np.concatenate([gaps, others]))]


def write(folder: Path, frame: pd.DataFrame, scores: np.ndarray, profile: Profile | None = None) -> None:
    """Write rows, scores and the profile of train as JSON: every float reads back as the same float.

    Raises:
        BundleError: a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise BundleError("the model gives scores that are not finite; such a model is not saved")
    cells = [[as_json(cell) for cell in frame[name].tolist()] for name in frame.columns]
    golden = {
        "columns": list(frame.columns),
        "dtypes": [str(dtype) for dtype in frame.dtypes],
        "rows": [list(row) for row in zip(*cells, strict=True)],
        "scores": scores.tolist(),
        "profile": None if profile is None else profile.to_dict(),
    }
    write_json(folder / GOLDEN, golden)


def as_json(cell: Any) -> Any:
    """A cell as JSON has it; a missing one is null."""
    if pd.isna(cell):
        return None
    return cell.item() if isinstance(cell, np.generic) else cell


def read(folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """The golden rows and their scores, (rows, units).

    Raises:
        BundleError: the file has no rows, or not as many scores.
    """
    golden = read_json(folder / GOLDEN)
    try:
        cells = zip(*golden["rows"], strict=True)
        columns = zip(golden["columns"], golden["dtypes"], cells, strict=True)
        frame = pd.DataFrame({name: pd.Series(values, dtype=cell_dtype(dtype)) for name, dtype, values in columns})
        scores = np.asarray(golden["scores"], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{folder / GOLDEN} cannot be read: {error}") from error
    if not len(frame) or len(scores) != len(frame):
        raise BundleError(f"{folder / GOLDEN} has {len(frame)} rows and {len(scores)} scores")
    return frame, scores


def read_profile(folder: Path) -> Profile | None:
    """How the training rows were distributed; None for a bundle that was saved before they said it.

    Raises:
        BundleError: the file cannot be read.
    """
    values = read_json(folder / GOLDEN).get("profile")
    try:
        return None if values is None else Profile.from_dict(values)
    except (AttributeError, KeyError, TypeError) as error:
        raise BundleError(f"{folder / GOLDEN} has a profile that cannot be read: {error}") from error


def cell_dtype(dtype: str) -> str:
    """Numbers and booleans read back as they were; any text is read as objects."""
    return dtype if pd.api.types.is_numeric_dtype(dtype) else "object"
