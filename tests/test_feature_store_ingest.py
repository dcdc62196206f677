"""Files on their way into the feature store: wrong rows are refused by line, right ones come back as they were."""

from __future__ import annotations

import csv
import gzip
import json
import resource
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from forge_sweep import sources
from forge_sweep.errors import DataError, InputError
from forge_sweep.experiment import DataSpec
from forge_sweep.feature_store import checking, tables
from forge_sweep.feature_store.connection import Address
from forge_sweep.sources import Dataset, reading
from tests.postgres import ask, get, put, put_frame

ROWS = 60


def right(n: int = ROWS) -> list[str]:
    """Lines of a CSV file of x, city and y: all of them right."""
    return [f"{i / 7},{'ab'[i % 2]},{i % 2}" for i in range(n)]


def put_lines(lines: list[str], folder: Path, store: Address, *, header: str = "x,city,y", **more: Any) -> Any:
    """Ingest a CSV file; settings of `ingest` are told from keys of the section by their names."""
    (folder / "table.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    settings = {name: more.pop(name) for name in ("max_errors", "rejects") if name in more}
    section = {"path": "table.csv", "target": "y", "task": "binary", "version": "table", **more}
    return put(section, folder, 0, store, **settings)


def refused(lines: list[str], folder: Path, store: Address, **more: Any) -> str:
    """The message about a file that is refused; nothing of it is in the store."""
    with pytest.raises(DataError) as caught:
        put_lines(lines, folder, store, **more)
    assert ask(store.conninfo, "SELECT count(*) FROM dataset_versions") == [(0,)]
    assert ask(store.conninfo, "SELECT relname FROM pg_class WHERE relname LIKE 'training_features_v%'") == []
    return str(caught.value)


# Wrong rows

WRONG = {
    "text among numbers": ("abc,a,1", "line 8, column 'x': 'abc'; expected numbers"),
    "an infinite number": ("inf,a,1", "line 8, column 'x': 'inf'; expected finite numbers, or none"),
    "an infinite number in words": ("-Infinity,a,1", "line 8, column 'x': '-Infinity'; expected finite numbers"),
    "no target": ("1,a,", "line 8, column 'y': missing; expected a value in every row"),
    "a NaN target": ("1,a,NaN", "line 8, column 'y': missing; expected a value in every row"),
    "an unknown label": ("1,a,2", "line 8, column 'y': '2'; expected one of the two labels before it"),
    "too few fields": ("1,a", "line 8: 2 fields; expected 3 fields"),
    "too many fields": ("1,a,1,1", "line 8: 4 fields; expected 3 fields"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_row_is_refused_by_line_and_column(what: str, store: Address, tmp_path: Path) -> None:
    lines, (wrong, message) = right(), WRONG[what]
    lines[6] = wrong
    assert message in refused(lines, tmp_path, store)


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_row_that_may_be_is_left_out(what: str, store: Address, tmp_path: Path) -> None:
    """The version is that of a file without it."""
    lines, (wrong, _) = right(), WRONG[what]
    kept = [*lines[:6], *lines[7:]]
    version = put_lines([*lines[:6], wrong, *lines[7:]], tmp_path, store, max_errors=1)
    assert version.rows == ROWS - 1
    other = put_lines(kept, tmp_path, store, version="without")
    assert (version.digest, version.split_digest) == (other.digest, other.split_digest)


def test_rejects_are_kept_with_their_lines(store: Address, tmp_path: Path) -> None:
    """As many as may be, whatever is wrong with them; the file holds every field."""
    lines = right()
    lines[3], lines[9], lines[20] = "abc,a,1", "1,a,1,1", '2,"b, c",7'
    put_lines(lines, tmp_path, store, max_errors=3, rejects=tmp_path / "deep" / "rejects.csv")
    with (tmp_path / "deep" / "rejects.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted((row["line"], row["column"], row["value"]) for row in rows) == [
        ("11", "", "4 fields"),
        ("22", "y", "'7'"),
        ("5", "x", "'abc'"),
    ]
    kept = {row["line"]: json.loads(row["row"]) for row in rows}
    assert kept == {"5": {"x": "abc", "city": "a", "y": "1"}, "22": {"x": "2", "city": "b, c", "y": "7"}} | {
        "11": {"text": "1,a,1,1"}
    }


def test_one_wrong_row_too_many_is_refused_and_all_are_kept(store: Address, tmp_path: Path) -> None:
    lines = [f"abc,a,{i % 2}" if i % 16 == 15 else line for i, line in enumerate(right(240))]
    message = refused(lines, tmp_path, store, max_errors=14, rejects=tmp_path / "rejects.csv")
    assert "15 wrong rows; expected at most 14; all of them are in" in message
    assert message.count("line ") == 10 and "and 5 more" in message
    assert len((tmp_path / "rejects.csv").read_text().splitlines()) == 16


def test_wrong_rows_far_from_the_start_are_found(
    store: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a column is was decided long before; lines count on through blocks and through malformed rows."""
    monkeypatch.setattr(reading, "CSV_BLOCK", 4096)
    lines = right(5000)
    lines[10], lines[2999], lines[4000], lines[4999] = "1,a", "1,a,1,1", "abc,a,1", "1,a,x"
    message = refused(lines, tmp_path, store)
    for line, column in ((12, ""), (3001, ""), (4002, ", column 'x': 'abc'"), (5001, ", column 'y': 'x'")):
        assert f"line {line}{column}" in message


def test_a_file_of_wrong_rows_only_is_refused(store: Address, tmp_path: Path) -> None:
    assert "holds no rows" in refused(["1,a", "2,b"], tmp_path, store, max_errors=5)


def test_a_full_disk_is_an_error_that_says_where(store: Address, tmp_path: Path) -> None:
    """The coded rows need room in the folder for temporary files."""
    pd.DataFrame({"x": np.arange(20_000), "y": np.arange(20_000) % 2}).to_parquet(tmp_path / "table.parquet")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DataError, match=r"(?s)has no room for the coded rows: .*export TMPDIR="):
            put({"path": "table.parquet", "target": "y", "task": "binary"}, tmp_path, 0, store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_hopeless_file_is_not_read_to_its_end(
    store: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a separator is wrong, say, the message comes soon."""
    monkeypatch.setattr(checking, "HOPELESS", 20)
    assert "at least 21 wrong rows" in refused([*right(10), *["1,a"] * 1000], tmp_path, store)


def test_rejects_that_cannot_be_written_are_an_error(store: Address, tmp_path: Path) -> None:
    lines = [*right(), "abc,a,1"]
    assert "--rejects" in refused(lines, tmp_path, store, max_errors=1, rejects=tmp_path)


def test_wrong_values_of_a_parquet_file_are_named_by_row(store: Address, tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(ROWS) / 8, "y": [None if i == 4 else i % 2 for i in range(ROWS)]})
    frame.loc[7, "x"] = np.inf
    with pytest.raises(DataError) as caught:
        put_frame(frame, tmp_path, store)
    assert "row 5, column 'y': missing" in str(caught.value)
    assert "row 8, column 'x': 'inf'" in str(caught.value)


@pytest.mark.parametrize(
    ("target", "task", "wrong", "message"),
    [
        (["a", "b"], "multilabel", "1,0,2", "line 62, column 'b': '2'; expected 0 or 1"),
        (["a", "b"], "multiclass", "1,1,1", "line 62, column 'a': '1'; expected exactly one 1 among a, b"),
        ("x", "regression", "abc,0,1", "line 62, column 'x': 'abc'; expected numbers"),
        ("x", "regression", "inf,0,1", "line 62, column 'x': 'inf'; expected a value in every row"),
    ],
)
def test_targets_of_every_task_are_checked(
    target: Any, task: str, wrong: str, message: str, store: Address, tmp_path: Path
) -> None:
    lines = [f"{i / 8},{i % 2},{1 - i % 2}" for i in range(ROWS)]
    assert message in refused([*lines, wrong], tmp_path, store, header="x,a,b", target=target, task=task)


def test_a_number_that_no_network_takes_is_refused_by_row(store: Address, tmp_path: Path) -> None:
    """Beyond float32 once it is scaled; rows are counted through the file."""
    frame = pd.DataFrame({"x": np.arange(40_000.0), "y": np.arange(40_000) % 2})
    frame.loc[39_000, "x"] = 1e39
    with pytest.raises(InputError, match=r"column 'x' holds 1e\+39 \(rows 39000\)"):
        put_frame(frame, tmp_path, store, scaling={"scaler": "none"})
    assert ask(store.conninfo, "SELECT count(*) FROM dataset_versions") == [(0,)]


@pytest.mark.parametrize("number", [2**53 + 1, 2**53, -(2**53), 2**60])
def test_a_whole_number_that_float64_does_not_hold_is_refused(number: int, store: Address, tmp_path: Path) -> None:
    """It would come back as another one."""
    lines = [f"{i},a,{i % 2}" for i in range(ROWS)]
    message = f"line 62, column 'x': '{number}'; expected whole numbers that float64 holds: below 2**53"
    assert message in refused([*lines, f"{number},a,1"], tmp_path, store)


@pytest.mark.parametrize("column", ["x", "id", "y"])
def test_text_that_postgres_cannot_hold_is_refused_by_row(column: str, store: Address, tmp_path: Path) -> None:
    """A text with a zero byte, of which Parquet has no fear: in a feature, the key or the target."""
    frame = pd.DataFrame({"x": ["a", "c"] * 30, "id": [f"k{i}" for i in range(60)], "y": ["n", "n", "y", "y"] * 15})
    frame.loc[7, column] = "a\0b"
    with pytest.raises(
        DataError, match=rf"1 wrong row;(?s:.*)row 8, column '{column}': 'a\\x00b'; expected text without"
    ):
        put_frame(frame, tmp_path, store, key="id")


def test_text_that_postgres_cannot_hold_may_be_left_out(store: Address, tmp_path: Path) -> None:
    version = put_lines([*right(), "1,a\0,1"], tmp_path, store, max_errors=1)
    assert version.rows == ROWS and version.features[1].categories == ("a", "b")


# Wrong files


def test_declared_columns_that_are_not_there_are_listed(store: Address, tmp_path: Path) -> None:
    message = refused(right(), tmp_path, store, target="label", drop=["town"])
    assert "data.target = 'label': no such column" in message and "data.drop = 'town'" in message


def test_columns_of_one_name_are_refused(store: Address, tmp_path: Path) -> None:
    assert "several columns named x" in refused(right(), tmp_path, store, header="x,x,y")


def test_a_column_without_a_name_is_refused(store: Address, tmp_path: Path) -> None:
    assert "column 1 of" in refused(right(), tmp_path, store, header=",city,y")


@pytest.mark.parametrize("content", ["", "x,city,y", "x,city,y\n", "x,city,y\n\n\n"])
def test_a_file_without_rows_is_refused(content: str, store: Address, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(content)
    with pytest.raises(DataError, match=r"table\.csv (holds no rows|cannot be read: .*Empty CSV file)"):
        put({"path": "table.csv", "target": "y", "task": "binary"}, tmp_path, 0, store)


@pytest.mark.parametrize("place", ["header", "first", "last"])
def test_a_file_that_is_not_utf8_is_refused(
    place: str, store: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CSV_BLOCK", 4096)
    text = {"header": "x,größe,y", "first": "1,é,1", "last": "1,é,1"}[place]
    lines = ["x,city,y", *right(1000)]
    lines[{"header": 0, "first": 1, "last": -1}[place]] = text
    (tmp_path / "table.csv").write_bytes("\n".join(lines).encode("latin-1"))
    with pytest.raises(DataError, match=r"table\.csv.*(UTF|utf)"):
        put({"path": "table.csv", "target": "y", "task": "binary"}, tmp_path, 0, store)


def test_another_separator_is_suggested(store: Address, tmp_path: Path) -> None:
    assert "set separator = ';'" in refused(["1;a;0"], tmp_path, store, header="x;city;y")


def test_a_class_that_is_too_rare_is_refused_before_anything_is_stored(store: Address, tmp_path: Path) -> None:
    assert "too few to stratify" in refused([*["1,a,0"] * 50, "1,a,1"], tmp_path, store)


def test_a_scaler_that_the_store_cannot_keep_is_refused(store: Address, tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(ROWS), "y": np.arange(ROWS) % 2})
    with pytest.raises(DataError, match="scaler = 'quantile': a stored version keeps one of standard, minmax, none"):
        put_frame(frame, tmp_path, store, scaling={"scaler": "quantile"})


# Right files that are hard to read


def from_file(section: dict[str, Any], folder: Path) -> Dataset:
    return sources.load(DataSpec(**section), root=folder, seed=0)


def same_as_file(folder: Path, store: Address, **section: Any) -> Dataset:
    """The dataset of a file that was ingested, once it is what the file source makes of it."""
    declared = {"path": "table.csv", "target": "y", "task": "binary", **section}
    stored, read = get(put(declared, folder, 0, store)), from_file(declared, folder)
    assert (stored.digest, stored.split_digest) == (read.digest, read.split_digest)
    for one, other in ((stored.train, read.train), (stored.valid, read.valid)):
        pd.testing.assert_frame_equal(one.features, other.features)
        pd.testing.assert_frame_equal(one.targets, other.targets)
    return stored


HARD = {
    "quoted line breaks": [f'{i},"one\ntwo {i % 3}",{i % 2}' for i in range(500)],
    "quoted quotes": [f'{i},"say ""{i % 3}""",{i % 2}' for i in range(500)],
    "empty lines": [line for i in range(500) for line in (f"{i},a,{i % 2}", "")],
    "a column without values": [f"{i},,{i % 2}" for i in range(500)],
    "fractions that come late": [f"{i if i < 400 else i + 0.5},a,{i % 2}" for i in range(500)],
    "missing numbers that come late": [f"{i if i < 400 else ''},a,{i % 2}" for i in range(500)],
    "values that come late": [f"{'' if i < 400 else i},{'' if i < 400 else 'a'},{i % 2}" for i in range(500)],
    "fractions first in a late column": [f"{'' if i < 400 else i / 2},a,{i % 2}" for i in range(500)],
    "booleans in a late column": [f"{i},{'' if i < 400 else 'true'},{i % 2}" for i in range(500)],
    "labels as text": [f"{i},a,{('no', 'yes')[i % 2]}" for i in range(500)],
    "labels as booleans": [f"{i},a,{('true', 'false')[i % 2]}" for i in range(500)],
    "labels as fractions": [f"{i},a,{i % 2 + 0.5}" for i in range(500)],
    "words for missing": [f"{('NA', 'nan', i)[i % 3]},{('None', 'null', 'a')[i % 3]},{i % 2}" for i in range(500)],
    "numbers with signs": [f"{('+1', '-2', '1e3', '.5')[i % 4]},b,{i % 2}" for i in range(500)],
    "whole numbers with signs": [f"{('+1', '-2', '3')[i % 3]},b,{i % 2}" for i in range(500)],
    "numbers with spaces": [f" {i} , a,{i % 2}" for i in range(500)],
    "large whole numbers": [f"{2**53 - 1 - i},a,{i % 2}" for i in range(500)],
    "random bits": [f"{x!r},a,{i % 2}" for i, x in enumerate(np.random.default_rng(0).normal(size=500).tolist())],
}


@pytest.mark.parametrize("what", HARD)
def test_a_file_is_read_as_training_from_it_reads_it(
    what: str, store: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks, which show less than the whole; digests, types and splits are the same."""
    monkeypatch.setattr(reading, "CSV_BLOCK", 1024)
    text = "\n".join(["x,city,y", *HARD[what]])
    (tmp_path / "table.csv").write_text(text, encoding="utf-8")
    same_as_file(tmp_path, store)


def test_a_compressed_file_and_one_with_a_mark_are_read(store: Address, tmp_path: Path) -> None:
    text = "\n".join(["x,city,y", *right()])
    (tmp_path / "table.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "table.csv").write_text("\ufeff" + text, encoding="utf-8")
    assert same_as_file(tmp_path, store, path="table.csv.gz").digest == same_as_file(tmp_path, store).digest


def test_text_where_the_first_block_shows_numbers_is_wrong(
    store: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the message says how codes are declared, which the next ingest then takes as text."""
    monkeypatch.setattr(reading, "CSV_BLOCK", 1024)
    lines = [f"{i % 4 if i < 900 else 'A'},a,{i % 2}" for i in range(1000)]
    assert "where texts are codes, --categorical COLUMN" in refused(lines, tmp_path, store)
    put_lines(lines, tmp_path, store, categorical=["x"])
    assert same_as_file(tmp_path, store, categorical=["x"]).train.features["x"].nunique() == 5


KEYS = {
    "whole numbers": lambda i: i,
    "negative numbers": lambda i: -i,
    "fractions": lambda i: i / 8,
    "large whole numbers": lambda i: 2**60 + i,
    "larger whole numbers": lambda i: 2**63 + i,
    "texts": lambda i: f"k{i:04d} ü'\"",
    "times": lambda i: pd.Timestamp("2026-01-01") + pd.Timedelta(seconds=i * 60_000.000001),
    "days": lambda i: (pd.Timestamp("1950-03-01") + pd.Timedelta(days=i)).date(),
}


@pytest.mark.parametrize("numbers", [[2**63 + i for i in range(60)], [0.5, *(2**53 + i for i in range(59))]])
def test_whole_numbers_that_float64_would_round_are_refused(
    numbers: list[float], store: Address, tmp_path: Path
) -> None:
    """Also where a CSV file has numbers beyond int64, or fractions, in the same column."""
    said = refused([f"{number},a,{i % 2}" for i, number in enumerate(numbers)], tmp_path, store)
    assert "whole numbers that float64 holds: below 2**53" in said


def test_large_numbers_written_as_floats_are_what_float64_makes_of_them(store: Address, tmp_path: Path) -> None:
    put_lines([f"{i}.5e30,a,{i % 2}" for i in range(60)], tmp_path, store)
    assert same_as_file(tmp_path, store).train.features["x"].max() > 5e31


def test_decimals_beyond_float64_are_refused(store: Address, tmp_path: Path) -> None:
    """A Parquet file can hold 38 digits."""
    x = [Decimal(f"1234567890123456789{i % 10}.12345") for i in range(60)]
    with pytest.raises(DataError, match=r"column 'x'.*below 2\*\*53"):
        put_frame(pd.DataFrame({"x": x, "y": np.arange(60) % 2}), tmp_path, store)


def test_lines_are_those_of_an_editor(store: Address, tmp_path: Path) -> None:
    """Blank lines and line breaks within quotes count, in a compressed file too."""
    records = ["x,c,y", "", "", *(f'{i},"a\nb",{i % 2}' for i in range(40)), "four,a,0", "", "41,a", "5,a,"]
    for name, pack in (("a.csv", bytes), ("b.csv.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(("\ufeff" + "\n".join(records)).encode()))
        with pytest.raises(DataError) as error:
            put({"path": name, "target": ["y"], "task": "binary"}, tmp_path, 0, store)
        for line in ("line 84, column 'x': 'four'", "line 86: 2 fields", "line 87, column 'y': missing"):
            assert line in str(error.value)


def test_lines_of_wrong_rows_are_found_in_any_order(tmp_path: Path) -> None:
    """Malformed rows are told before wrong values of the same block; a field may be of any length."""
    (tmp_path / "a.csv").write_text("x,y\n\n" + 'a,"1\n2"\n\n' * 50 + "long" * 50_000 + ",1\nb,2\n")
    limit = csv.field_size_limit()
    lines = tables.Lines(tmp_path / "a.csv", ",")
    assert [lines.of(row) for row in (51, 3, 50, 0)] == [154, 12, 153, 3]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
def test_a_file_in_another_encoding_is_to_be_saved_as_utf8(encoding: str, store: Address, tmp_path: Path) -> None:
    """With the mark of UTF-16 or without."""
    text = "\n".join(["x,city,y", "1,é,1", *right()])
    (tmp_path / "table.csv").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match="fix: save the file as UTF-8"):
        put({"path": "table.csv", "target": "y", "task": "binary"}, tmp_path, 0, store)


def test_views_of_text_are_text(store: Address, tmp_path: Path) -> None:
    """As some writers of Parquet keep it."""
    views = pa.array(["a", None, "b"] * 20, pa.string_view())
    parquet.write_table(pa.table({"x": views, "y": [0, 1] * 30}), tmp_path / "views.parquet")
    assert same_as_file(tmp_path, store, path="views.parquet").train.features["x"].nunique() == 2


BEYOND_CSV = "larger whole numbers"  # than int64, which is all that a CSV file has


@pytest.mark.parametrize(
    ("what", "kind"),
    [(what, kind) for what in KEYS for kind in ("csv", "parquet") if (what, kind) != (BEYOND_CSV, "csv")],
)
def test_a_key_of_any_type_orders_the_rows(what: str, kind: str, store: Address, tmp_path: Path) -> None:
    """Rows that are shuffled are another file, and the same dataset."""
    frame = pd.DataFrame({"id": [KEYS[what](i * 77 % 1009) for i in range(300)], "x": np.arange(300) / 7})
    path = tmp_path / f"table.{kind}"
    digests = set()
    for rows in (frame, frame.sample(frac=1, random_state=1)):
        rows = rows.assign(y=(rows["x"] * 7).round().astype(int) % 2)
        rows.to_csv(path, index=False) if kind == "csv" else rows.to_parquet(path)
        dataset = same_as_file(tmp_path, store, path=path.name, key="id")
        digests.add((dataset.digest, dataset.split_digest))
    assert len(digests) == 1


NAMES = [
    '"quoted"',
    "100%",
    "%s",
    "größe",
    "two words",
    "{braces}",
    "a'b",
    "semi;colon",
    "back\\slash",
    "x\ny",
    "🙂",
    "$1",
]


def test_column_names_with_any_sign_survive(store: Address, tmp_path: Path) -> None:
    values = {name: np.arange(ROWS) * (position + 1) for position, name in enumerate(NAMES)}
    pd.DataFrame({**values, "the %target": np.arange(ROWS) % 2}).to_csv(tmp_path / "table.csv", index=False)
    dataset = same_as_file(tmp_path, store, target="the %target", key="two words", drop=["$1"], categorical=["%s"])
    assert list(dataset.train.features) == [name for name in NAMES if name not in ("two words", "$1")]
    assert dataset.preprocessor is not None
    assert dataset.preprocessor.schema.names == tuple(dataset.train.features)
