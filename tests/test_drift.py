"""Drift: what is planted is found first, and what is not there is not found more often than stated."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from forge_sweep.checks.drift import ALPHA, compare, stability

ROWS = 4_000


def table(seed: int, rows: int = ROWS, columns: int = 40) -> pd.DataFrame:
    """Numbers with missing values, whole numbers, categories and a label."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.lognormal(size=(rows, columns - 2)), columns=[f"x{i}" for i in range(columns - 2)])
    frame = frame.mask(rng.random(frame.shape) < 0.05)
    frame["count"] = rng.poisson(3, rows)
    frame["city"] = rng.choice(["Bern", "Basel", "Genf", "Chur"], rows, p=[0.5, 0.3, 0.19, 0.01])
    frame["label"] = rng.integers(0, 2, rows)
    return frame


def named(reference: pd.DataFrame, current: pd.DataFrame) -> list[str]:
    return [column.name for column in compare(reference, current, targets=["label"], discrete=["label"]).drifted]


@pytest.mark.parametrize("rows", [300, 3_000])
def test_random_halves_of_one_table_are_flagged_no_more_often_than_stated(rows: int) -> None:
    """Of 60 comparisons without drift, no more show any flag than the stated rate allows."""
    flagged = 0
    for seed in range(60):
        frame = table(seed, 2 * rows, columns=12).sample(frac=1.0, random_state=seed)
        flagged += bool(named(frame.iloc[:rows], frame.iloc[rows:]))
    assert flagged <= binom.ppf(0.999, 60, ALPHA)


@pytest.mark.parametrize("column", ["x7", "count", "city", "label"])
def test_a_planted_shift_is_named_first(column: str) -> None:
    """One of 41 columns is shifted; it has the largest effect, and nothing else is flagged."""
    reference, current = table(0), table(1)
    if column == "city":
        current["city"] = current["city"].where(np.random.default_rng(2).random(ROWS) < 0.7, "Chur")
    elif column == "label":
        current["label"] = (np.random.default_rng(2).random(ROWS) < 0.75).astype(int)
    else:
        current[column] = current[column] + 1
    assert named(reference, current) == [column]


def test_a_significant_but_tiny_shift_is_no_drift() -> None:
    """Half a million rows make a shift of a hundredth of a standard deviation significant; it does not matter."""
    rng = np.random.default_rng(0)
    a, b = (pd.DataFrame({"x": rng.normal(shift, 1, 500_000)}) for shift in (0.0, 0.02))
    (column,) = compare(a, b).columns
    assert column.adjusted < ALPHA and not column.drifted


def test_a_large_effect_by_chance_is_no_drift() -> None:
    """Twelve rows differ widely, and it means nothing."""
    rng = np.random.default_rng(1)
    drift = compare(pd.DataFrame({"x": rng.normal(size=12)}), pd.DataFrame({"x": rng.normal(size=12)}))
    assert drift.columns[0].matters and not drift.drifted


def test_more_missing_values_are_drift() -> None:
    """The values that are there did not change."""
    reference, current = table(0), table(1)
    current["x3"] = current["x3"].mask(np.random.default_rng(2).random(ROWS) < 0.3)
    (found,) = compare(reference, current).drifted
    assert found.name == "x3" and found.p > ALPHA
    assert "missing 5" in found.finding().seen and found.missing[1] > 0.3


def test_new_and_gone_categories_are_listed() -> None:
    """The most frequent first."""
    reference, current = table(0), table(1)
    current["city"] = current["city"].replace({"Genf": "Genève"})
    (found,) = compare(reference, current).drifted
    assert (found.new, found.gone) == (("Genève",), ("Genf",))
    assert 0.17 < found.new_share < 0.21


def test_columns_that_differ_are_findings() -> None:
    """Added, gone, and of numbers here but texts there."""
    reference, current = table(0), table(0)
    current = current.rename(columns={"x1": "y1"}).astype({"x2": str})
    drift = compare(reference, current)
    assert (drift.added, drift.gone, drift.retyped) == (("y1",), ("x1",), ("x2",))
    assert {finding.subject for finding in drift.findings} == {"y1", "x1", "x2"}


@pytest.mark.parametrize("values", [[np.nan] * 5, [1.0] * 5, [], [True, False, True, True, False]])
def test_columns_without_variation_are_compared(values: list[object]) -> None:
    """All missing, constant, no rows, booleans: no drift against themselves, and no warning."""
    frame = pd.DataFrame({"x": values})
    drift = compare(frame, frame)
    assert not drift.drifted and drift.columns[0].psi == pytest.approx(0)


def test_the_stability_index_is_that_of_the_textbook() -> None:
    """Sum of (b - a) ln(b / a)."""
    expected = (0.6 - 0.5) * np.log(0.6 / 0.5) + (0.4 - 0.5) * np.log(0.4 / 0.5)
    assert stability(np.array([0.5, 0.5]), np.array([0.6, 0.4]), 100, 100) == pytest.approx(expected)
