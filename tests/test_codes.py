"""Codes: a value whose spelling says which it is, is not taken in a type that cannot hold the spelling."""

from __future__ import annotations

import datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forge_sweep.bundle import Bundle
from forge_sweep.errors import SchemaError
from forge_sweep.preprocessing import Preprocessor, RowsRefused, RowTransform, Schema

ZIPS = ["00123", "04567", "10001", "123"]
PLAIN = ["7", "123", "-5", "0", "9007199254740993"]


def learned(codes: list[str]) -> Preprocessor:
    frame = pd.DataFrame({"zip": codes * 3, "a": np.arange(3.0 * len(codes))})
    schema = Schema.learn(frame, ["zip"])
    return Preprocessor.fit(frame, schema, scaler="standard", impute="median", fill=0.0, max_categories=50)


def rows(values: Any) -> pd.DataFrame:
    zips = values if isinstance(values, pd.Series) else pd.Series(values)
    return pd.DataFrame({"zip": zips, "a": np.zeros(len(zips))})


ANY_NUMBER = [
    pd.Series([123]),
    pd.Series([123.0]),
    pd.Series([123], dtype="int8"),
    pd.Series([123], dtype="float32"),
    pd.Series([123, None], dtype="Int64"),
    pd.Series([123.0, None], dtype="Float64"),
    pd.Series([Decimal(123)], dtype=object),
    pd.Series([Fraction(123)], dtype=object),
    pd.Series([np.int64(123)], dtype=object),
    pd.Series(["00123", 123], dtype=object),
    pd.Series([123], dtype="category"),
    pd.Series([123], dtype="int64[pyarrow]"),
    pd.Series([True]),
    pd.Series([True, None], dtype="boolean"),
]


@pytest.mark.parametrize("codes", [ZIPS, ["1.0", "2.0"], ["1e3", "2"], ["TRUE", "0"], ["+5", "6"], [" 5", "6"], ["-0"]])
@pytest.mark.parametrize("given", ANY_NUMBER, ids=lambda series: str(series.dtype))
def test_numbers_are_refused_where_codes_of_train_have_a_spelling_of_their_own(
    codes: list[str], given: pd.Series
) -> None:
    preprocessor = learned(codes)
    fix = r"zip: .*text such as .*read it as text \(dtype=\{'zip': str\}\)"
    with pytest.raises(SchemaError, match=fix):
        preprocessor.transform(rows(given))
    with pytest.raises(RowsRefused, match=fix):
        RowTransform(preprocessor).read_frame(rows(given))
    for value in given.astype(object).dropna():
        if not isinstance(value, str):
            with pytest.raises(RowsRefused, match=fix):
                RowTransform(preprocessor).read({"zip": value, "a": 0.0})


@pytest.mark.parametrize("given", [[["00123"]], [{"zip": "00123"}], [datetime.date(2026, 1, 1)], [b"00123"]])
def test_what_is_neither_text_nor_a_number_is_no_code(given: list[Any]) -> None:
    series = pd.Series(given, dtype=object)
    with pytest.raises(SchemaError, match="zip: expected text"):
        learned(ZIPS).transform(rows(series))
    with pytest.raises(RowsRefused, match="zip: "):
        RowTransform(learned(ZIPS)).read({"zip": given[0], "a": 0.0})


@pytest.mark.parametrize("dtype", ["object", "string", "category", "str", "string[pyarrow]"])
def test_text_means_the_code_that_it_spells(dtype: str) -> None:
    schema = learned(ZIPS).schema
    assert list(schema.values(rows(pd.Series(ZIPS, dtype=dtype)))["zip"]) == ZIPS
    numbers = RowTransform(learned(ZIPS)).read_frame(rows(pd.Series(ZIPS, dtype=dtype)))[:, 0]
    assert numbers.tolist() == [schema.columns[0].categories.index(code) for code in ZIPS]
    assert RowTransform(learned(ZIPS)).read({"zip": np.str_("00123"), "a": 0.0})[0] == numbers[0]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (pd.Series([7]), "7"),
        (pd.Series([7.0, np.nan]), "7"),
        (pd.Series([-5], dtype="int16"), "-5"),
        (pd.Series([9007199254740993, None], dtype="Int64"), "9007199254740993"),
        (pd.Series([9007199254740993], dtype="uint64"), "9007199254740993"),
        (pd.Series([Decimal(9007199254740993)], dtype=object), "9007199254740993"),
        (pd.Series(["7.0"]), "7"),
        (pd.Series([-0.0]), "0"),
    ],
)
def test_plain_whole_numbers_are_codes_as_numbers_too(given: pd.Series, code: str) -> None:
    preprocessor = learned(PLAIN)
    wanted = preprocessor.transform(rows([code]))[0].tobytes()
    assert preprocessor.transform(rows(given))[0].tobytes() == wanted
    transform = RowTransform(preprocessor)
    assert transform.features(transform.read_frame(rows(given)))[0].tobytes() == wanted
    one = np.array([transform.read({"zip": given.astype(object).iloc[0], "a": 0.0})])
    assert transform.features(one)[0].tobytes() == wanted


@pytest.mark.parametrize(
    "given",
    [
        pd.Series([9007199254740993.0]),
        pd.Series([float(2**53)]),
        pd.Series([float(2**24)], dtype="float32"),
        pd.Series([Decimal("9007199254740993.5")], dtype=object),
        pd.Series([Decimal("Infinity")], dtype=object),
        pd.Series([1e300]),
        pd.Series([np.inf]),
        pd.Series([7.5]),
    ],
)
def test_a_number_that_may_have_lost_digits_is_no_code(given: pd.Series) -> None:
    message = r"zip: .*whole numbers with all of their digits, or text such as '-?\d+'"
    with pytest.raises(SchemaError, match="zip: expected whole numbers with all of their digits"):
        learned(PLAIN).transform(rows(given))
    with pytest.raises(RowsRefused, match=message):
        RowTransform(learned(PLAIN)).read_frame(rows(given))


def test_numbers_and_text_in_one_declared_column_are_not_learned() -> None:
    with pytest.raises(SchemaError, match="holds both numbers and text"):
        Schema.learn(rows(pd.Series(["00123", 123], dtype=object)), ["zip"])


def test_a_bundle_refuses_integers_for_codes_with_zeros_in_front(tmp_path: Path) -> None:
    from forge_sweep import baselines
    from forge_sweep.task import Task
    from forge_sweep.tracking import _load_pyfunc

    frame = pd.DataFrame({"zip": ZIPS * 10, "a": np.arange(40.0), "y": [0, 1] * 20})
    features = frame[["zip", "a"]]
    preprocessor, task = learned(ZIPS), Task.learn("binary", frame[["y"]])
    model = baselines.fit("random_forest", task, preprocessor.transform(features), task.encode(frame[["y"]]), seed=1)
    Bundle(model, preprocessor, task, 0.5, {}).save(tmp_path / "b", features)
    loaded = _load_pyfunc(str(tmp_path / "b"))
    assert len(loaded.predict(features)) == 40
    with pytest.raises(SchemaError, match=r"got .*; read it as text \(dtype=\{'zip': str\}\)"):
        loaded.predict(features.astype({"zip": int}))
