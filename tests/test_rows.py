"""The short way from a row to the matrix: the same numbers as the long one, the same refusals."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_sweep.errors import SchemaError
from forge_sweep.preprocessing import UNKNOWN, Preprocessor, RowsRefused, RowTransform
from tests.test_preprocessing import SCALERS, fit, mixed

FITTED = {scaler: fit(mixed(), ("code",), scaler=scaler, max_categories=2) for scaler in SCALERS}
NAMES = list(mixed().columns)

NUMBERS = st.one_of(
    st.floats(width=64), st.integers(-(2**70), 2**70), st.sampled_from([0.0, -0.0, 1e-320, 3.5e38, -1e308])
)
TEXTS = st.one_of(
    st.sampled_from(["a", "b", "c", "pro", "basic", "0", "1", "3", "(missing)", "(other)", ""]), st.text(max_size=5)
)
ODD = st.one_of(
    st.booleans(),
    st.just([1]),
    st.just({}),
    st.just(10**400),
    st.sampled_from([pd.NA, np.float32(1.5), np.int64(1), np.bool_(True), Decimal("1.5"), datetime.date(2026, 1, 1)]),
)
ANYTHING = st.one_of(st.none(), NUMBERS, TEXTS, ODD)
FITTING = {
    "age": st.one_of(st.none(), NUMBERS),
    "income": st.one_of(st.none(), NUMBERS),
    "city": st.one_of(st.none(), TEXTS),
    "plan": st.one_of(st.none(), TEXTS),
    "member": st.one_of(st.none(), st.booleans(), st.sampled_from([0, 1, 0.0, 1.0])),
    "active": st.one_of(st.none(), st.booleans()),
    "code": st.one_of(st.none(), TEXTS, st.integers(-3, 10), st.integers(0, 3).map(float)),
}


def short(transform: RowTransform, row: dict[str, Any]) -> np.ndarray | None:
    """The matrix of one row; None where it is refused."""
    try:
        raw = transform.read_all([row])
    except RowsRefused:
        return None
    features = transform.features(raw)
    return None if transform.not_finite(raw, features) else features


def long(preprocessor: Preprocessor, row: dict[str, Any]) -> np.ndarray | None:
    """The same by a frame."""
    try:
        return preprocessor.transform(
            pd.DataFrame({name: pd.Series([value], dtype=object) for name, value in row.items()})
        )
    except (SchemaError, OverflowError):
        return None


def same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether two matrices are the same bits."""
    if a is None or b is None:
        return a is None and b is None
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("scaler", SCALERS)
@given(row=st.fixed_dictionaries(FITTING))
@settings(max_examples=150, deadline=None)
def test_a_row_that_fits_becomes_the_same_bits(scaler: str, row: dict[str, Any]) -> None:
    assert same(short(RowTransform(FITTED[scaler]), row), long(FITTED[scaler], row))


@given(row=st.fixed_dictionaries(dict.fromkeys(NAMES, ANYTHING)))
@settings(max_examples=300, deadline=None)
def test_a_hostile_row_is_refused_exactly_where_a_frame_is(row: dict[str, Any]) -> None:
    assert same(short(RowTransform(FITTED["standard"]), row), long(FITTED["standard"], row))


@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize("max_categories", [1, 2, 50])
def test_frames_and_rows_become_the_same_bits_in_any_order_of_columns(scaler: str, max_categories: int) -> None:
    preprocessor = fit(mixed(), ("code",), scaler=scaler, max_categories=max_categories)
    transform = RowTransform(preprocessor)
    frame = mixed(40)[NAMES[::-1]]
    raw = transform.read_frame(frame)
    rows = [
        {name: None if pd.isna(value) else value for name, value in row.items()}
        for row in frame.astype(object).to_dict("records")
    ]
    np.testing.assert_array_equal(transform.read_all(rows), raw)
    assert same(transform.features(raw), preprocessor.transform(frame))
    assert transform.features(raw[:0]).shape == (0, len(preprocessor.output_names))


def test_columns_without_categories_or_without_numbers_are_no_exception() -> None:
    for columns in (["age"], ["plan"], ["member"], ["city", "active"]):
        preprocessor = fit(mixed()[columns])
        transform = RowTransform(preprocessor)
        assert same(
            transform.features(transform.read_frame(mixed()[columns])), preprocessor.transform(mixed()[columns])
        )


def test_raw_numbers_are_what_they_are_called() -> None:
    row = {"age": 5, "income": None, "city": "Rom", "plan": "plus", "member": True, "active": None, "code": 3}
    columns = {column.name: column for column in FITTED["standard"].schema.columns}
    expected = [
        5.0,
        float("nan"),
        UNKNOWN,
        float(columns["plan"].categories.index("plus")),
        1.0,
        float("nan"),
        float(columns["code"].categories.index("3")),
    ]
    np.testing.assert_array_equal(RowTransform(FITTED["standard"]).read(row), expected)


def good() -> dict[str, Any]:
    return {"age": 5, "income": 1.0, "city": "a", "plan": "plus", "member": True, "active": None, "code": "3"}


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"age": "old"}, "mistyped", r"row 7: age: text 'old'; expected numbers"),
        ({"age": True}, "mistyped", r"row 7: age: bool True; expected numbers"),
        ({"age": 10**400}, "mistyped", r"row 7: age: int of 1329 bits; expected numbers"),
        ({"member": 2}, "mistyped", r"row 7: member: int 2; expected booleans"),
        ({"city": ["a", "b"]}, "mistyped", r"row 7: city: list of 2 values; expected text"),
        ({"agee": 5, "age": None}, "unknown-column", r"row 7: agee: no such column"),
    ],
)
def test_a_refusal_says_where_and_what(change: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(RowsRefused, match=words) as refused:
        RowTransform(FITTED["standard"]).read(good() | change, 7)
    assert [misfit.code for misfit in refused.value.misfits] == [code]


def test_a_misspelt_column_is_missing_and_unknown_with_the_nearest_name() -> None:
    row = {("incme" if name == "income" else name): value for name, value in good().items()}
    with pytest.raises(RowsRefused, match='did you mean "income"') as refused:
        RowTransform(FITTED["standard"]).read(row)
    assert [misfit.code for misfit in refused.value.misfits] == ["missing-column", "unknown-column"]


def test_extra_columns_are_dropped_where_that_was_asked_for() -> None:
    transform = RowTransform(FITTED["standard"], ignore_extra=True)
    extra = {"id": "x", **good(), "note": [1]}
    np.testing.assert_array_equal(transform.read(extra), RowTransform(FITTED["standard"]).read(good()))
    frame = mixed(3).assign(id="x")
    np.testing.assert_array_equal(transform.read_frame(frame), transform.read_frame(frame[NAMES]))
    with pytest.raises(RowsRefused, match="age: the column is missing"):
        transform.read({name: value for name, value in extra.items() if name != "age"})


def test_of_many_misfits_the_first_are_listed_and_all_are_counted() -> None:
    transform = RowTransform(FITTED["standard"])
    with pytest.raises(RowsRefused, match=r"row 19: age: text 'x'; expected numbers\n  and 480 more") as refused:
        transform.read_all([good() | {"age": "x"}] * 500)
    assert (len(refused.value.misfits), refused.value.count) == (20, 500)
    with pytest.raises(RowsRefused) as refused:
        transform.read_frame(mixed(50).assign(age="x"), first=1000)
    assert [refused.value.misfits[0].row, refused.value.count] == [1000, 50]
    with pytest.raises(RowsRefused) as refused:
        transform.read({f"column{i}": 1 for i in range(10_000)})
    assert refused.value.count == 10_007


def test_a_frame_with_a_column_twice_is_refused() -> None:
    frame = pd.concat([mixed(3), mixed(3)[["age"]]], axis=1)
    with pytest.raises(RowsRefused, match="age: given 2 times"):
        RowTransform(FITTED["standard"]).read_frame(frame)


def test_numbers_beyond_float32_are_named() -> None:
    transform = RowTransform(FITTED["standard"])
    raw = transform.read_all([good(), good() | {"age": 1e300}, good() | {"income": float("inf")}])
    found = transform.not_finite(raw, transform.features(raw))
    assert [(misfit.row, misfit.column, misfit.seen) for misfit in found] == [
        (1, "age", "1e+300"),
        (2, "income", "inf"),
    ]
