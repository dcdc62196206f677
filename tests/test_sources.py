"""Sources: the conformance suite per backend, the digest, and the splits."""

from __future__ import annotations

import hashlib
import inspect
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_sweep import sources
from forge_sweep.errors import DataError
from forge_sweep.experiment import DataSpec
from forge_sweep.sources.assemble import assemble
from forge_sweep.sources.digest import content_digest, fingerprints
from forge_sweep.sources.splits import apportion, at_random, at_random_by_class, by_group, by_time
from forge_sweep.testing import SourceContract, StoredSourceContract

SHARES = np.array([0.7, 0.15, 0.15])


class TestCsv(StoredSourceContract):
    """CSV files keep the contract."""

    def store(self, frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
        frame.to_csv(folder / "table.csv", index=False)
        return {"path": "table.csv"}


class TestParquet(StoredSourceContract):
    """Parquet files keep the contract."""

    def store(self, frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
        frame.to_parquet(folder / "table.parquet")
        return {"path": "table.parquet"}


class TestSamples(SourceContract):
    """The sets of scikit-learn keep the contract."""

    def declare(self, folder: Path) -> dict[str, Any]:
        return {"source": "sample", "name": "iris", "target": "target", "task": "multiclass"}


@pytest.mark.parametrize("suite", [TestCsv, TestParquet, TestSamples])
def test_every_suite_is_one_that_pytest_collects(suite: type) -> None:
    """A class that still lacks a method is passed over without a word."""
    assert not inspect.isabstract(suite)


@pytest.mark.parametrize(
    ("name", "task", "shape", "labels"),
    [
        ("breast_cancer", "binary", (569, 30), {"malignant", "benign"}),
        ("digits", "multiclass", (1797, 64), set(range(10))),
        ("diabetes", "regression", (442, 10), None),
        ("iris", "multiclass", (150, 4), {"setosa", "versicolor", "virginica"}),
        ("wine", "multiclass", (178, 13), {"class_0", "class_1", "class_2"}),
    ],
)
def test_samples_come_with_labels_that_mean_something(
    name: str, task: Any, shape: tuple[int, int], labels: Any
) -> None:
    spec = DataSpec(source="sample", name=name, target=("target",), task=task)
    dataset = sources.load(spec, root=Path(), seed=0)
    assert (sum(dataset.sizes.values()), dataset.train.features.shape[1]) == shape
    if labels is not None:
        assert set(dataset.train.targets["target"]) == labels


def test_an_unknown_sample_is_refused_with_the_nearest() -> None:
    spec = DataSpec(source="sample", name="brest_cancer", target=("target",), task="binary")
    with pytest.raises(DataError, match='did you mean "breast_cancer"'):
        sources.load(spec, root=Path(), seed=0)


# The digest


def by_the_book(columns: dict[str, list[Any]]) -> str:
    """The content digest as its documentation says, value by value."""
    rows = len(next(iter(columns.values())))
    message = b"forge_sweep dataset 1\n" + struct.pack("<QQ", rows, len(columns))
    for name in sorted(columns, key=str.encode):
        values = columns[name]
        message += struct.pack("<Q", len(name.encode())) + name.encode()
        if any(isinstance(value, str) for value in values):
            texts = [None if value is None else value.encode() for value in values]
            lengths = b"".join(struct.pack("<q", -1 if text is None else len(text)) for text in texts)
            joined = b"".join(text for text in texts if text is not None)
            message += b"t" + hashlib.sha256(lengths).digest() + hashlib.sha256(joined).digest()
        else:
            nan = bytes.fromhex("000000000000f87f")
            doubles = (nan if v is None else struct.pack("<d", 0.0 if v == 0 else float(v)) for v in values)
            message += b"n" + hashlib.sha256(b"".join(doubles)).digest()
    return hashlib.sha256(message).hexdigest()


numbers = st.one_of(st.none(), st.floats(allow_nan=False), st.integers(-(2**53), 2**53), st.booleans())
texts = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
cells = st.one_of(
    st.lists(numbers, min_size=5, max_size=5), st.lists(texts, min_size=5, max_size=5), st.just([None] * 5)
)
tables = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), cells, min_size=1, max_size=4)


@settings(deadline=None)
@given(tables)
def test_the_digest_is_what_its_documentation_says(columns: dict[str, list[Any]]) -> None:
    frame = pd.DataFrame(
        {
            name: pd.Series(values, dtype=object if any(isinstance(v, str) for v in values) else None)
            if any(isinstance(v, str) for v in values)
            else pd.Series([np.nan if v is None else float(v) for v in values], dtype="float64")
            for name, values in columns.items()
        }
    )
    assert content_digest(frame) == by_the_book(columns)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([True, False], [1, 0]),
        ([1, 2], [1.0, 2.0]),
        ([0.0, 1.0], [-0.0, 1.0]),
        (pd.array([1, None], dtype="Int64"), [1.0, np.nan]),
        (pd.array([True, None], dtype="boolean"), [1.0, np.nan]),
        (pd.Series([None, None], dtype=object), [np.nan, np.nan]),
        (pd.Series(["a", None], dtype="string"), pd.Series(["a", np.nan], dtype=object)),
        (pd.to_datetime(["2026-01-01 01:00+01:00"]), pd.to_datetime(["2026-01-01"]).as_unit("s")),
    ],
)
def test_equal_values_of_different_types_have_one_digest(one: Any, other: Any) -> None:
    assert content_digest(pd.DataFrame({"x": one})) == content_digest(pd.DataFrame({"x": other}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["", "a"], [None, "a"]),
        (["ab", "c"], ["a", "bc"]),
        ([2**53 + 1, 1], [2**53, 1]),
        ([1.0, 2.0], ["1", "2"]),
        ([0.0, 1.0], [np.nan, 1.0]),
    ],
)
def test_different_values_have_different_digests(one: Any, other: Any) -> None:
    assert content_digest(pd.DataFrame({"x": one})) != content_digest(pd.DataFrame({"x": other}))


def test_the_name_of_a_column_is_content() -> None:
    assert content_digest(pd.DataFrame({"x": [1]})) != content_digest(pd.DataFrame({"y": [1]}))


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(12)))
def test_with_a_key_no_order_of_rows_changes_the_dataset(order: list[int]) -> None:
    frame = pd.DataFrame({"id": range(12), "x": np.arange(12) % 5, "y": [0, 1] * 6})
    spec = DataSpec(path="x.csv", target=("y",), task="binary", key="id")
    first, second = (assemble(f, spec, name="t", source="t", seed=5) for f in (frame, frame.iloc[order]))
    assert (first.digest, first.split_digest) == (second.digest, second.split_digest)


def test_equal_rows_have_equal_fingerprints_in_any_type() -> None:
    left = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    right = pd.DataFrame({"b": pd.Series(["x", np.nan], dtype=object), "a": [1.0, 2.0]})
    assert (fingerprints(left) == fingerprints(right)).all()
    assert len(set(fingerprints(left))) == 2


# The splits


@given(st.integers(3, 3000), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_random_shares_hold_to_within_a_row(n: int, seed: int) -> None:
    sizes = np.bincount(at_random(n, SHARES, seed), minlength=3)
    assert sizes.min() >= 1
    assert n < 10 or (abs(sizes - SHARES * n) <= 1).all()


@given(st.lists(st.integers(1, 200), min_size=1, max_size=20), st.integers(0, 100))
@settings(deadline=None)
def test_apportioning_gives_whole_parts_near_their_quota(weights: list[int], extra: int) -> None:
    total = len(weights) + extra
    parts = apportion(total, np.array(weights))
    assert parts.sum() == total and parts.min() >= 1
    assert (parts <= np.maximum(1, np.ceil(total * np.array(weights) / sum(weights) + 1e-6))).all()


@given(st.lists(st.integers(20, 200), min_size=2, max_size=6), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_stratified_totals_are_exact_and_every_class_is_everywhere(sizes: list[int], seed: int) -> None:
    targets = pd.DataFrame({"y": np.repeat([f"c{i}" for i in range(len(sizes))], sizes)})
    roles = at_random_by_class(targets, SHARES, seed)
    n = len(targets)
    assert (abs(np.bincount(roles) - SHARES * n) <= 1).all()
    counts = pd.crosstab(targets["y"], roles).to_numpy()
    assert (abs(counts - np.outer(sizes, SHARES)) < 2).all()


def test_a_class_too_rare_to_stratify_is_named() -> None:
    targets = pd.DataFrame({"y": ["a"] * 50 + ["b"] * 48 + ["c"] * 2})
    with pytest.raises(DataError, match=r"class 'c' has 2 of 100 rows.*too few to stratify(.|\n)*stratify = false"):
        at_random_by_class(targets, SHARES, 0)


def test_one_hot_targets_are_stratified_by_their_combination() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    targets = pd.DataFrame(np.eye(3, dtype=int)[labels], columns=["a", "b", "c"])
    roles = at_random_by_class(targets, SHARES, 0)
    assert all(set(labels[roles == role]) == {0, 1, 2} for role in range(3))


@given(st.lists(st.integers(1, 30), min_size=3, max_size=40), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_groups_fill_every_split_and_follow_no_order(sizes: list[int], seed: int) -> None:
    groups = pd.Series(np.repeat([f"g{i:02d}" for i in range(len(sizes))], sizes))
    roles = by_group(groups, SHARES, seed)
    assert set(roles) == {0, 1, 2}
    backwards = by_group(groups[::-1], SHARES, seed)
    assert (backwards[::-1] == roles).all()


def test_many_groups_hold_the_shares() -> None:
    groups = pd.Series(np.arange(3000) % 300)
    assert (abs(np.bincount(by_group(groups, SHARES, 0)) / 3000 - SHARES) < 0.01).all()


def test_a_dataset_counts_the_groups_of_each_split_and_none_is_in_two() -> None:
    frame = pd.DataFrame({"patient": np.arange(300) % 75, "x": np.arange(300.0), "y": np.arange(300) % 2})
    spec = {"split": {"kind": "group", "group": "patient"}}
    dataset = load_frame(frame, **spec)
    train, valid = (set(frame["patient"][split.rows]) for split in (dataset.train, dataset.valid))
    assert dataset.groups == {"train": len(train), "valid": len(valid), "test": 75 - len(train | valid)}
    assert not train & valid and min(dataset.groups.values()) > 0
    assert load_frame(frame.drop(columns="patient")).groups == {}
    known = DataSpec(path="t.csv", target=("y",), task="binary", **spec)
    with pytest.raises(
        DataError, match=r"data.split.group: 75 groups of column 'patient' stand in two splits \(25, 26, "
    ):
        assemble(frame, known, name="t", source="t.csv", seed=0, roles=np.arange(300) // 100)


@given(st.lists(st.integers(0, 20), min_size=3, max_size=100).filter(lambda times: len(set(times)) >= 3))
@settings(deadline=None, max_examples=50)
def test_times_are_in_order_and_ties_together(times: list[int]) -> None:
    roles = by_time(pd.Series(times), SHARES)
    sides = [{t for t, r in zip(times, roles, strict=True) if r == role} for role in range(3)]
    assert max(sides[0]) < min(sides[1]) and max(sides[1]) < min(sides[2])


def test_times_as_text_are_read_and_bad_ones_named() -> None:
    days = pd.Series([f"2026-01-{day:02d}" for day in range(1, 21)], name="day")
    assert list(np.bincount(by_time(days, SHARES))) == [14, 3, 3]
    days[4] = "soon"
    with pytest.raises(DataError, match=r"column 'day' holds soon \(rows 4\)"):
        by_time(days, SHARES)


def load_frame(frame: pd.DataFrame, **spec: Any) -> sources.Dataset:
    defaults = {"path": "t.csv", "target": "y", "task": "binary"}
    return assemble(frame, DataSpec(**{**defaults, **spec}), name="t", source="t.csv", seed=0)


def test_an_unknown_word_in_a_split_column_is_named() -> None:
    frame = pd.DataFrame({"x": range(6), "y": [0, 1] * 3, "part": ["train", "train", "val", "holdout", None, "test"]})
    with pytest.raises(DataError, match=r"column 'part' holds holdout, .* \(rows 3, 4\); expected train"):
        load_frame(frame, split={"kind": "column", "column": "part"})


def test_an_empty_split_is_refused() -> None:
    frame = pd.DataFrame({"x": range(6), "y": [0, 1] * 3, "part": ["train", "valid"] * 3})
    with pytest.raises(DataError, match="no rows for test"):
        load_frame(frame, split={"kind": "column", "column": "part"})


@pytest.mark.parametrize(
    ("value", "what"), [(np.nan, "missing or infinite"), (2.0, "of a class that train does not have")]
)
def test_a_test_row_that_cannot_be_scored_is_refused_at_once(value: float, what: str) -> None:
    frame = pd.DataFrame({"x": range(6), "y": [0, 1] * 3, "part": ["train"] * 2 + ["valid"] * 2 + ["test"] * 2})
    frame["y"] = frame["y"].astype(float)
    frame.loc[5, "y"] = value
    with pytest.raises(DataError, match=rf"'y' is {what} in 1 rows of the test split \(rows 5\)"):
        load_frame(frame, split={"kind": "column", "column": "part"})


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_random_split_shows_bad_targets_to_the_audit(value: float, task: Any) -> None:
    """They are in train, whatever the seed: the audit never sees test rows."""
    frame = pd.DataFrame({"x": range(400), "y": [0.0, 1.0] * 200})
    frame.loc[100:199, "y"] = value
    dataset = load_frame(frame, task=task)
    assert set(range(100, 200)) <= set(dataset.train.rows)


def test_all_absent_columns_are_listed_at_once() -> None:
    frame = pd.DataFrame({"amount": range(9), "y": [0, 1, 0] * 3})
    with pytest.raises(DataError) as error:
        load_frame(frame, target="yy", key="id", drop=["amont"], categorical=["zip"])
    message = str(error.value)
    for part in (
        "data.target = 'yy'",
        "data.key = 'id'",
        "data.drop = 'amont'",
        'mean "amount"',
        "data.categorical = 'zip'",
    ):
        assert part in message


def test_a_data_set_without_features_is_refused() -> None:
    with pytest.raises(DataError, match="no column is left"):
        load_frame(pd.DataFrame({"y": [0, 1] * 5}))


@pytest.mark.parametrize("codes", [[0.5, 1.0] * 10, [True, False] * 10])
def test_codes_must_be_whole_numbers_or_text(codes: list[Any]) -> None:
    with pytest.raises(DataError, match=r"data.categorical: column 'x'"):
        load_frame(pd.DataFrame({"x": codes, "z": 1, "y": [0, 1] * 10}), categorical=["x"])


def test_looks_for_one_run_are_one_evaluation_and_other_splits_do_not_count(tmp_path: Path) -> None:
    """A look that names no run is one of its own; a line of before splits were recorded counts for all of them."""
    frame, ledger = pd.DataFrame({"x": range(40), "y": [0, 1] * 20}), tmp_path / "looks.jsonl"
    one, other = load_frame(frame), load_frame(frame, split={"train": 0.5, "valid": 0.25, "test": 0.25})
    assert one.digest == other.digest and one.split_digest != other.split_digest
    for run in ("a", "a", "b", "", ""):
        one.look_at_test("final", ledger, run=run)
    assert (one.count_looks(ledger), other.count_looks(ledger)) == (4, 0)
    assert len(sources.test_looks(ledger, one.digest)) == len(sources.test_looks(ledger, one.digest, one.split_digest))
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    del lines[2]["split_digest"]
    ledger.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert (one.count_looks(ledger), other.count_looks(ledger)) == (4, 1)


def test_a_half_written_look_does_not_hide_the_next(tmp_path: Path) -> None:
    dataset, ledger = load_frame(pd.DataFrame({"x": range(40), "y": [0, 1] * 20})), tmp_path / "looks.jsonl"
    ledger.write_text('{"dataset_digest": "a')
    dataset.look_at_test("final", ledger)
    (look,) = sources.test_looks(ledger, dataset.digest)
    assert look.purpose == "final" and "@" in look.who
    assert json.loads(ledger.read_text().splitlines()[1])["pid"] == look.pid
