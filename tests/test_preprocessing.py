"""Preprocessing: what is learned, what is refused, and what a row becomes."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import preprocessing as sk

from forge_sweep import sources
from forge_sweep.errors import BundleError, DataError, SchemaError
from forge_sweep.experiment import DataSpec
from forge_sweep.preprocessing import Preprocessor, Schema
from forge_sweep.testing import table

SCALERS = ("standard", "minmax", "robust", "robust_smooth", "quantile", "none")


def mixed(n: int = 60) -> pd.DataFrame:
    """Every kind of column, with and without missing values."""
    i = np.arange(n)
    return pd.DataFrame(
        {
            "age": 20 + i * 13 % 60,
            "income": np.where(i % 7 == 3, np.nan, (i * 37 % 101) * 10.5),
            "city": [None if k % 11 == 5 else "aabbc"[k % 5] for k in i],
            "plan": [("basic", "plus", "pro")[k % 3] for k in i],
            "member": i % 3 == 0,
            "active": pd.array([None if k % 9 == 4 else k % 5 < 3 for k in i], dtype="boolean"),
            "code": [str(k * 7 % 4) for k in i],
        }
    )


def fit(frame: pd.DataFrame, categorical: tuple[str, ...] = (), **changes: Any) -> Preprocessor:
    settings = {"scaler": "standard", "impute": "median", "fill": 0.0, "max_categories": 50, **changes}
    return Preprocessor.fit(frame, Schema.learn(frame, categorical), **settings)


def output(preprocessor: Preprocessor, frame: pd.DataFrame, name: str) -> list[float]:
    return preprocessor.transform(frame)[:, preprocessor.output_names.index(name)].tolist()


def first_rows(**columns: Any) -> pd.DataFrame:
    """Rows of `mixed` with some columns replaced."""
    n = len(next(iter(columns.values())))
    return mixed().head(n).drop(columns=list(columns)).assign(**columns)


# The schema


def test_the_schema_tells_kinds_missing_ranges_and_categories() -> None:
    columns = {column.name: column for column in Schema.learn(mixed(), ["code"]).columns}
    assert {name: column.kind for name, column in columns.items()} == {
        "age": "numeric",
        "income": "numeric",
        "city": "categorical",
        "plan": "categorical",
        "member": "boolean",
        "active": "boolean",
        "code": "categorical",
    }
    assert [name for name, column in columns.items() if column.missing] == ["income", "city", "active"]
    assert (columns["age"].low, columns["age"].high, columns["age"].dtype) == (20.0, 79.0, "int64")
    assert set(columns["city"].categories) == {"a", "b", "c"}
    assert columns["code"].dtype == "code"


def test_categories_come_by_frequency_then_by_name() -> None:
    frame = pd.DataFrame({"x": list("dccbbaaa")})
    assert Schema.learn(frame).columns[0].categories == ("a", "b", "c", "d")


def test_a_schema_survives_json() -> None:
    schema = Schema.learn(mixed(), ["code"])
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


@settings(deadline=None, max_examples=25)
@given(st.permutations(list(mixed().columns)), st.sampled_from(SCALERS))
def test_the_order_of_columns_never_matters(order: list[str], scaler: str) -> None:
    frame, preprocessor = mixed(), fit(mixed(), ("code",), scaler=scaler)
    pd.testing.assert_frame_equal(preprocessor.schema.align(frame[order]), preprocessor.schema.align(frame))
    assert preprocessor.transform(frame[order]).tobytes() == preprocessor.transform(frame).tobytes()


def test_aligning_twice_is_aligning_once() -> None:
    schema = Schema.learn(mixed(), ["code"])
    aligned = schema.align(mixed())
    pd.testing.assert_frame_equal(schema.align(aligned), aligned)


def test_aligned_rows_keep_their_index_and_have_the_types_of_the_schema() -> None:
    aligned = Schema.learn(mixed()).align(mixed().set_index(np.arange(60) * 2))
    assert list(aligned.index[:3]) == [0, 2, 4]
    assert aligned["age"].dtype == np.float64
    assert aligned["member"].dtype == bool
    assert aligned["active"].dtype == "boolean"


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("income", [1, 2], [1.0, 2.0]),
        ("income", pd.array([1, None], dtype="Int64"), [1.0, None]),
        ("income", pd.array([1.5, None], dtype="Float64"), [1.5, None]),
        ("income", pd.Series([3, None], dtype=object), [3.0, None]),
        ("income", pd.Series([Decimal("1.5"), pd.NA], dtype=object), [1.5, None]),
        ("income", pd.Series([None, None], dtype=object), [None, None]),
        ("income", pd.Series([1, 2], dtype="category"), [1.0, 2.0]),
        ("member", [0, 1], [False, True]),
        ("member", [1.0, np.nan], [True, None]),
        ("member", pd.Series([True, None], dtype=object), [True, None]),
        ("member", pd.array([True, None], dtype="boolean"), [True, None]),
        ("city", pd.Series(["a", None], dtype=object), ["a", None]),
        ("city", pd.Categorical(["a", "b"]), ["a", "b"]),
        ("city", pd.Series(["a", pd.NA], dtype="string"), ["a", None]),
        ("code", [3, 1], ["3", "1"]),
        ("code", [3.0, np.nan], ["3", None]),
        ("code", pd.Series(["3", 1, None], dtype=object)[:2], ["3", "1"]),
    ],
)
def test_values_are_brought_to_the_type_of_train(column: str, values: Any, expected: list[Any]) -> None:
    aligned = Schema.learn(mixed(), ["code"]).align(first_rows(**{column: values}))[column]
    assert [None if pd.isna(value) else value for value in aligned] == expected


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("income", ["1", "2"], r"~ income: expected numbers, got text in rows 0, 1 \('1', '2'\)"),
        ("income", pd.Series([1.0, "x"], dtype=object), r"~ income: expected numbers, got text in rows 1 \('x'\)"),
        ("income", [True, False], "~ income: expected numbers, got bool"),
        ("income", pd.to_datetime(["2026-01-01"]), "~ income: expected numbers, got Timestamp in rows 0"),
        ("member", [0, 2], r"~ member: expected booleans, got .* in rows 1"),
        ("member", ["True", "False"], "~ member: expected booleans, got text"),
        ("city", [1, 2], r"~ city: expected text such as 'a', got .*; read it as text \(dtype=\{'city': str\}\)"),
        ("code", [1.5, 2.0], r"~ code: expected whole numbers .* or text such as '0', got .* in rows 0"),
        ("code", [True, False], "~ code: expected whole numbers .*, got bool"),
    ],
)
def test_mistyped_columns_are_refused_with_rows_and_values(column: str, values: Any, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        Schema.learn(mixed(), ["code"]).align(first_rows(**{column: values}))


def test_all_differences_are_listed_at_once() -> None:
    frame = first_rows(income=["1", "2"]).rename(columns={"age": "agee"}).assign(extra=1)
    with pytest.raises(SchemaError) as error:
        Schema.learn(mixed()).align(frame)
    lines = str(error.value).splitlines()
    assert [line.strip()[:8] for line in lines[1:5]] == ["- age: m", "+ agee: ", "+ extra:", "~ income"]
    assert 'did you mean "age"?' in str(error.value)


def test_a_column_given_twice_is_refused() -> None:
    frame = pd.concat([mixed(), mixed()[["age"]]], axis=1)
    with pytest.raises(SchemaError, match="~ age: given 2 times"):
        Schema.learn(mixed()).align(frame)


def test_a_schema_is_not_learned_from_times() -> None:
    with pytest.raises(SchemaError, match="column 'when' holds datetime"):
        Schema.learn(pd.DataFrame({"when": pd.to_datetime(["2026-01-01"])}))


# The matrix


def test_outputs_are_named_in_blocks() -> None:
    preprocessor = fit(mixed(), max_categories=2)
    assert preprocessor.output_names[:7] == (
        *("age", "income", "member", "active"),
        *("income=(missing)", "active=(missing)"),
        f"city={preprocessor.schema.columns[2].categories[0]}",
    )
    assert [name for name in preprocessor.output_names if name.startswith("plan")] == [
        "plan=basic",
        "plan=plus",
        "plan=(other)",
    ]
    matrix = preprocessor.transform(mixed())
    assert (matrix.dtype, matrix.shape) == (np.float32, (60, len(preprocessor.output_names)))
    assert np.isfinite(matrix).all()


@pytest.mark.parametrize(("impute", "expected"), [("median", 2.0), ("mean", 4.0), ("constant", -1.0)])
def test_missing_numbers_are_imputed_and_marked(impute: str, expected: float) -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0, 9.0, np.nan], "y": [1.0, 2.0, 3.0, 4.0]})
    preprocessor = fit(frame, scaler="none", impute=impute, fill=-1.0)
    assert output(preprocessor, frame, "x") == [1.0, 2.0, 9.0, expected]
    assert output(preprocessor, frame, "x=(missing)") == [0.0, 0.0, 0.0, 1.0]
    assert "y=(missing)" not in preprocessor.output_names


def test_a_number_missing_for_the_first_time_is_imputed() -> None:
    preprocessor = fit(pd.DataFrame({"x": [1.0, 2.0, 9.0]}), scaler="none")
    assert preprocessor.transform(pd.DataFrame({"x": [None]})).tolist() == [[2.0]]


def test_a_number_never_seen_in_train_becomes_zero() -> None:
    frame = pd.DataFrame({"x": [np.nan, np.nan], "y": [1.0, 2.0]})
    preprocessor = fit(frame)
    assert output(preprocessor, frame, "x") == [0.0, 0.0]
    assert output(preprocessor, frame, "x=(missing)") == [1.0, 1.0]


def test_booleans_are_zero_and_one_and_imputed_by_majority() -> None:
    frame = pd.DataFrame({"x": pd.array([True, True, False, None], dtype="boolean")})
    preprocessor = fit(frame)
    assert output(preprocessor, frame, "x") == [1.0, 1.0, 0.0, 1.0]
    assert output(preprocessor, frame, "x=(missing)") == [0.0, 0.0, 0.0, 1.0]


def test_rare_unseen_and_missing_categories_have_their_outputs() -> None:
    train = pd.DataFrame({"x": ["a", "a", "a", "b", "b", "c", None]})
    preprocessor = fit(train, max_categories=2)
    assert preprocessor.output_names == ("x=a", "x=b", "x=(other)", "x=(missing)")
    rows = pd.DataFrame({"x": ["a", "b", "c", "new", None]})
    assert preprocessor.transform(rows).argmax(axis=1).tolist() == [0, 1, 2, 2, 3]
    assert (preprocessor.transform(rows).sum(axis=1) == 1).all()


def test_unseen_and_missing_categories_are_zeros_where_train_had_none() -> None:
    preprocessor = fit(pd.DataFrame({"x": ["a", "b"]}))
    assert preprocessor.output_names == ("x=a", "x=b")
    assert preprocessor.transform(pd.DataFrame({"x": ["new", None]})).sum() == 0


@pytest.mark.parametrize("scaler", ["standard", "minmax", "robust", "quantile"])
def test_scaling_is_scikit_learn_to_the_bit(scaler: str) -> None:
    """On numeric columns only; the restored scaler is what scikit-learn fitted."""
    frame = pd.DataFrame(np.random.default_rng(0).lognormal(size=(300, 4)), columns=list("abcd")).assign(e=1.0, f=True)
    reference = {
        "standard": sk.StandardScaler(),
        "minmax": sk.MinMaxScaler(),
        "robust": sk.RobustScaler(),
        "quantile": sk.QuantileTransformer(
            n_quantiles=300, output_distribution="normal", subsample=100_000, random_state=0
        ),
    }[scaler].fit(np.ascontiguousarray(frame[list("abcde")]))  # the order of summation is that of the memory
    preprocessor, restored = fit(frame, scaler=scaler), fit(frame, scaler=scaler).sklearn_scaler()
    new = frame.assign(a=frame["a"] * 3 - 1)
    expected = reference.transform(new[list("abcde")].to_numpy())
    assert preprocessor.transform(new)[:, :5].tobytes() == expected.astype(np.float32).tobytes()
    assert (preprocessor.transform(new)[:, 5] == 1).all()
    assert restored.transform(new[list("abcde")].to_numpy()).tobytes() == expected.tobytes()
    fitted = {name for name in vars(reference) if name.endswith("_") and not name.startswith("_")}
    assert fitted <= set(vars(restored)), "an attribute that scikit-learn sets when fitting is not restored"


def test_the_smooth_scaler_is_that_of_its_paper() -> None:
    """By the quartiles; by half the range where they are equal; a constant column is shifted. Then within 3."""
    columns = {"spread": np.arange(9.0), "rare": [0.0] * 8 + [4.0], "constant": [5.0] * 9}
    frame = pd.DataFrame(columns)
    z = np.column_stack([(frame["spread"] - 4) / 4, frame["rare"] / 2, frame["constant"] * 0])
    fitted = fit(frame, scaler="robust_smooth")
    np.testing.assert_allclose(fitted.transform(frame), z / np.sqrt(1 + (z / 3) ** 2), rtol=1e-6)
    far = fitted.transform(frame.assign(spread=1e9, constant=-1e9))
    np.testing.assert_allclose(far[:, [0, 2]], [[3.0, -3.0]] * 9, rtol=1e-6)
    assert fitted.sklearn_scaler() is None


def test_without_scaler_or_numbers_there_is_no_scaler() -> None:
    assert fit(mixed(), scaler="none").sklearn_scaler() is None
    assert fit(mixed()[["plan", "member"]]).sklearn_scaler() is None


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(SCALERS),
    st.sampled_from(["median", "mean", "constant"]),
    st.integers(1, 4),
    st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=3, max_size=40),
)
def test_saving_and_loading_keeps_every_bit(
    tmp_path_factory: pytest.TempPathFactory, scaler: str, impute: str, kept: int, numbers: list[float | None]
) -> None:
    folder = tmp_path_factory.mktemp("saved")
    frame = mixed(len(numbers)).assign(income=pd.Series(numbers, dtype="float64"))
    preprocessor = fit(frame, ("code",), scaler=scaler, impute=impute, fill=0.1, max_categories=kept)
    preprocessor.save(folder)
    loaded = Preprocessor.load(folder)
    assert loaded.output_names == preprocessor.output_names
    assert loaded.transform(frame).tobytes() == preprocessor.transform(frame).tobytes()
    assert (loaded.schema, loaded.scaler, loaded.impute, loaded.fill) == (preprocessor.schema, scaler, impute, 0.1)


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        fit(mixed(), scaler="quantile").save(tmp_path / name)
    for file in ("preprocessor.json", "preprocessor.npz"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_format_of_the_future_is_refused(tmp_path: Path) -> None:
    fit(mixed()).save(tmp_path)
    path = tmp_path / "preprocessor.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 4'))
    with pytest.raises(BundleError, match="format 4; expected 1 to 3"):
        Preprocessor.load(tmp_path)


@pytest.mark.parametrize("scaler", SCALERS)
def test_a_row_is_the_same_alone_and_among_others(scaler: str) -> None:
    preprocessor = fit(mixed(), scaler=scaler)
    matrix = preprocessor.transform(mixed())
    for row in (0, 3, 59):
        assert preprocessor.transform(mixed().iloc[[row]]).tobytes() == matrix[[row]].tobytes()


def test_no_rows_are_no_rows() -> None:
    preprocessor = fit(mixed())
    assert preprocessor.transform(mixed().head(0)).shape == (0, len(preprocessor.output_names))


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300])
def test_numbers_that_float32_cannot_hold_are_refused_by_column_and_row(value: float) -> None:
    """A network would answer them with NaN and a label, a tree with a guess."""
    frame = pd.DataFrame({"x": [1.0, 2.0, value]})
    with pytest.raises(SchemaError, match=r"column 'x' holds .*\(rows 2\)"):
        fit(frame.head(2)).transform(frame)


def test_infinite_numbers_are_refused_in_training() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0, np.inf]})
    with pytest.raises(DataError, match=r"infinite values: x \(1 rows\)"):
        fit(frame)


@pytest.mark.parametrize("scaler", SCALERS)
def test_only_train_is_learned_from(tmp_path: Path, scaler: str) -> None:
    """Other numbers and categories in every row of valid and test change no bit of what is learned."""
    frame = table().drop(columns=["booked", "id"])
    changed = frame.copy()
    outside = frame["part"] != "train"
    changed.loc[outside, "amount"] = 1e6
    changed.loc[outside, "age"] = -5
    changed.loc[outside, "city"] = "Atlantis"
    changed.loc[outside, "active"] = pd.NA
    split = {"kind": "column", "column": "part"}
    spec = DataSpec(path="t.parquet", target=("label",), task="binary", categorical=("code",), split=split)
    learned = []
    for version in (frame, changed):
        version.to_parquet(tmp_path / "t.parquet")
        dataset = sources.load(spec, root=tmp_path, seed=0)
        preprocessor = fit(dataset.train.features, dataset.categorical, scaler=scaler)
        preprocessor.save(tmp_path)
        files = [(tmp_path / name).read_bytes() for name in ("preprocessor.json", "preprocessor.npz")]
        learned.append((*files, preprocessor.transform(dataset.train.features).tobytes()))
        preprocessor.transform(dataset.valid.features)
    assert learned[0] == learned[1]
