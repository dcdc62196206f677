"""The profile of the training rows: counts that say as much as the rows themselves, within their bins."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from forge_sweep.checks import drift
from forge_sweep.checks.profile import CATEGORIES, ROWS, UNKNOWN_BIN, Profile
from forge_sweep.preprocessing import RowTransform
from tests.test_preprocessing import fit


def customers(n: int, seed: int, shift: float = 0.0) -> pd.DataFrame:
    """Numbers (one with a frequent value), booleans and text, with gaps."""
    random = np.random.default_rng(seed)
    amount = np.where(random.random(n) < 0.3, 0.0, random.exponential(10, n))
    frame = pd.DataFrame(
        {
            "age": random.normal(40 + shift, 10, n),
            "amount": amount,
            "city": random.choice(["Bern", "Genf", "Chur"], n, p=[0.6, 0.3, 0.1]),
            "member": random.random(n) < 0.4,
        }
    )
    frame.loc[random.random(n) < 0.1, "age"] = np.nan
    return frame


TRAIN = customers(20_000, 0)
TRANSFORM = RowTransform(fit(TRAIN))
PROFILE = Profile.learn(TRAIN, TRANSFORM)


def compared(rows: pd.DataFrame) -> drift.Drift:
    return PROFILE.compare(TRANSFORM.read_frame(rows))


def test_a_profile_survives_json() -> None:
    assert Profile.from_dict(json.loads(json.dumps(PROFILE.to_dict()))) == PROFILE
    assert PROFILE.rows == len(TRAIN)


def test_rows_of_the_same_kind_do_not_drift() -> None:
    verdicts = [compared(customers(1000, seed)).drifted for seed in range(1, 21)]
    assert sum(map(bool, verdicts)) <= 2


def test_psi_and_missing_shares_are_those_of_a_comparison_of_both_tables() -> None:
    rows = customers(3000, 5, shift=8.0)
    ours = {column.name: column for column in compared(rows).columns}
    for theirs in drift.compare(TRAIN, rows).columns:
        column = ours[theirs.name]
        assert column.psi == pytest.approx(theirs.psi, abs=1e-3), column.name
        assert column.missing == pytest.approx(theirs.missing)
        assert column.distance <= theirs.distance + 1e-9
    assert [column.name for column in compared(rows).drifted] == ["age"]


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"city": "Chur"}, "city"),
        ({"age": np.nan}, "age"),
        ({"member": True}, "member"),
        ({"amount": 0.0}, "amount"),
    ],
)
def test_what_changed_is_found(change: dict[str, object], column: str) -> None:
    found = compared(customers(500, 3).assign(**change))
    assert [each.name for each in found.drifted] == [column]
    assert [finding.subject for finding in found.findings] == [column]


def test_columns_that_were_swapped_or_scaled_are_told_from_those_that_drifted() -> None:
    rows = customers(500, 3)
    misread = [
        (found.code, found.subject)
        for found in compared(rows.rename(columns={"age": "amount", "amount": "age"})).misread
    ]
    assert misread == [("swapped-columns", "age and amount")]
    for change in (
        {"age": rows["age"] / 100},
        {"amount": (rows["amount"] - rows["amount"].mean()) / rows["amount"].std()},
    ):
        assert [found.code for found in compared(rows.assign(**change)).misread] == ["rescaled"]
    for drifted in (customers(500, 3, shift=8), rows.assign(age=rows["age"] * 1.3), rows.assign(amount=0.0)):
        assert compared(drifted).drifted and not compared(drifted).misread


def test_unknown_categories_drift() -> None:
    rows = customers(500, 3)
    rows.loc[:24, "city"] = "Rom"
    found = next(column for column in compared(rows).columns if column.name == "city")
    assert (found.drifted, found.new, found.new_share) == (True, (UNKNOWN_BIN,), pytest.approx(0.05))
    assert UNKNOWN_BIN in found.bins


def test_columns_that_are_empty_constant_or_have_many_categories_are_compared() -> None:
    n = 2000
    train = pd.DataFrame(
        {"empty": pd.Series([np.nan] * n), "one": [3.5] * n, "many": [f"k{i % 300}" for i in range(n)]}
    )
    transform = RowTransform(fit(train))
    profile = Profile.learn(train, transform)
    assert [len(column.counts) for column in profile.columns][2] == CATEGORIES + 1
    same = profile.compare(transform.read_frame(train.sample(400, random_state=0)))
    assert same.drifted == ()
    other = pd.DataFrame({"empty": [1.0] * 400, "one": [4.5] * 400, "many": ["k0"] * 400})
    drifted = {column.name for column in profile.compare(transform.read_frame(other)).drifted}
    assert drifted == {"empty", "one", "many"}


def test_no_rows_are_no_drift() -> None:
    assert compared(TRAIN.head(0)).drifted == ()


def test_of_very_many_rows_evenly_spaced_ones_are_counted() -> None:
    n = ROWS + 50_000
    train = pd.DataFrame({"x": np.arange(n, dtype=float)})
    profile = Profile.learn(train, RowTransform(fit(train)))
    assert profile.rows == ROWS
    assert max(profile.columns[0].counts) - min(profile.columns[0].counts) <= 10
