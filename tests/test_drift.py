"""Drift: what is planted is found first, and what is not there is not found more often than stated."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from forge_sweep.checks.drift import ALPHA, DISTANCE, PSI, compare
from forge_sweep.checks.effects import KEPT, stability

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
    assert max(drift.columns[0].effect) >= PSI and not drift.drifted


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


def test_noise_of_many_categories_does_not_come_first() -> None:
    """150 categories in 1,000 rows give a larger PSI by chance alone than the planted shift has."""
    for seed in range(0, 20, 2):
        reference, current = table(seed, 1_000), table(seed + 1, 1_000)
        for frame, own in ((reference, seed), (current, seed + 1)):
            frame["street"] = np.random.default_rng(own).integers(0, 150, 1_000).astype(str)
        current["x7"] *= 1.5
        drift = compare(reference, current)
        by_psi = max(drift.columns, key=lambda column: column.psi)
        assert drift.columns[0].name == "x7" and by_psi.name == "street" and by_psi.psi > PSI
        assert [column.name for column in drift.drifted] == ["x7"]


def test_a_few_rows_are_not_flagged_by_an_approximate_p_value() -> None:
    """Five rows that lie above five others: the exact p-value is 2 / 252, the asymptotic one 0."""
    columns = {f"x{i}": np.arange(5.0) for i in range(20)}
    reference = pd.DataFrame(columns)
    (column,) = [c for c in compare(reference, reference.assign(x3=np.arange(5.0) + 9)).columns if c.name == "x3"]
    assert column.p == pytest.approx(2 / 252) and column.distance == 1 and not column.drifted


def test_a_new_value_below_all_others_moves_the_index() -> None:
    """A frequent value has a bin of its own: what was 0 and became -1 is not in one bin with it."""
    rng = np.random.default_rng(0)
    reference = pd.DataFrame({"fee": np.where(rng.random(ROWS) < 0.6, 0.0, rng.lognormal(size=ROWS)), "one": 2.0})
    drift = compare(reference, reference.replace({"fee": {0.0: -1.0}}).assign(one=1.0))
    assert [column.name for column in drift.drifted] == ["one", "fee"]
    assert all(column.psi > 1 for column in drift.columns)
    assert drift.columns[1].bins[:2] == ("-1", "0")


def test_the_tail_of_a_column_of_zeros_is_seen() -> None:
    """Nine in ten are zero, and the others changed their unit."""
    rng = np.random.default_rng(0)
    fees = pd.DataFrame({"fee": np.where(rng.random(ROWS) < 0.9, 0.0, rng.lognormal(size=ROWS))})
    (column,) = compare(fees, fees * 100).columns
    assert column.drifted and column.psi > PSI


def test_a_rare_flag_that_became_frequent_is_seen() -> None:
    """Few distinct numbers take the chi-squared test: Kolmogorov-Smirnov alone does not see it among 40 columns."""
    reference, current = table(0, 1_000), table(1, 1_000)
    for frame, rows in ((reference, 5), (current, 60)):
        frame["flag"] = (np.arange(1_000) < rows).astype(int)
    drift = compare(reference, current)
    assert [column.name for column in drift.drifted] == ["flag"]
    assert drift.columns[0].distance < DISTANCE


def test_a_few_missing_values_in_a_large_table_are_no_drift() -> None:
    """One in a hundred, where there were none: an empty bin does not weigh more for there being more rows."""
    reference = pd.DataFrame({"x": np.random.default_rng(0).normal(size=200_000)})
    current = reference.mask(np.random.default_rng(1).random(reference.shape) < 0.01)
    (column,) = compare(reference, current).columns
    assert column.adjusted < 1e-9 and not column.drifted


def test_a_column_without_any_value_lost_them_and_keeps_its_type() -> None:
    """It is of numbers in a table that was read anew, whatever it held before."""
    reference, current = table(0), table(1)
    current["city"] = np.nan
    drift = compare(reference, current)
    assert not drift.retyped and drift.drifted[0].name == "city" and drift.drifted[0].missing == (0.0, 1.0)
    assert not drift.drifted[0].gone


def test_labels_are_the_same_as_whole_numbers_and_as_floats() -> None:
    frame = table(0)
    drift = compare(frame, frame.astype({"label": float}), discrete=["label"])
    (label,) = [column for column in drift.columns if column.name == "label"]
    assert label.kind == "categories" and not label.new and label.psi == 0


def test_texts_that_never_repeat_are_neither_drift_nor_endless() -> None:
    """Nothing can be tested; how many are new is counted, and the first are listed."""
    reference, current = (pd.DataFrame({"id": [f"{side}{i}" for i in range(5_000)]}) for side in "ab")
    (column,) = compare(reference, current).columns
    assert not column.drifted and np.isnan(column.p) and column.new_share == 1
    assert (column.new_count, column.gone_count, len(column.new), len(column.gone)) == (5_000, 5_000, KEPT, KEPT)


def test_bins_add_up_to_one_and_are_few() -> None:
    """Of many categories the most frequent are bins, missing values the last one."""
    reference, current = table(0), table(1)
    for frame in (reference, current):
        frame["many"] = np.random.default_rng(len(frame)).integers(0, 100, ROWS).astype(str)
        frame["many"] = frame["many"].mask(np.arange(ROWS) % 7 == 0)
    for column in compare(reference, current).columns:
        assert len(column.bins) == len(set(column.bins)) == len(column.shares[0]) <= KEPT + 2
        assert np.allclose(np.sum(column.shares, axis=1), 1)
        assert ("(missing)" in column.bins) == (column.bins[-1] == "(missing)") == any(column.missing)


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
