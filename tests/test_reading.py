"""How files are read, from inputs that people have: every digit stays, no row is lost, and a wrong file is named."""

from __future__ import annotations

import bz2
import datetime
import decimal
import gzip
import lzma
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from forge_sweep import sources
from forge_sweep.checks import notations
from forge_sweep.checks.audit import audit
from forge_sweep.checks.findings import Finding
from forge_sweep.errors import DataError
from forge_sweep.experiment import DataSpec, PreprocessingSpec
from forge_sweep.feature_store.checking import RowFile
from forge_sweep.sources import reading

N = 40


def load(folder: Path, path: Any, **changes: Any) -> sources.Dataset:
    spec = {"path": path, "target": "y", "task": "binary", **changes}
    return sources.load(DataSpec(**spec), root=folder, seed=0)


def table(**columns: Any) -> pa.Table:
    return pa.table({"x": np.arange(N) / 7, **columns, "y": np.arange(N) % 2})


def write(folder: Path, name: str, rows: pa.Table) -> str:
    if name.endswith(".parquet"):
        parquet.write_table(rows, folder / name)
    else:
        columns = [["" if v is None else str(v) for v in column.to_pylist()] for column in rows.columns]
        lines = [",".join(rows.column_names), *(",".join(cells) for cells in zip(*columns, strict=True))]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return name


LONG = [1234567890123456780 + i % 6 for i in range(N)]
GAPS = [None if i % 9 == 0 else value for i, value in enumerate(LONG)]
BEYOND = [20240101123456780000 + i % 6 for i in range(N)]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (LONG, pa.int64()),
        (GAPS, pa.int64()),
        ([2**64 - 1 - i % 6 for i in range(N)], pa.uint64()),
        ([None if i % 9 == 0 else 2**64 - 1 - i % 6 for i in range(N)], pa.uint64()),
        ([decimal.Decimal(value) for value in BEYOND], pa.decimal128(38, 0)),
        ([None if i % 9 == 0 else decimal.Decimal(value) for i, value in enumerate(BEYOND)], pa.decimal128(38, 0)),
        ([f"{i % 6:05d}" for i in range(N)], pa.string()),
    ],
)
def test_codes_keep_every_digit_and_are_the_same_in_csv_and_parquet(tmp_path: Path, values: Any, kind: Any) -> None:
    rows = table(code=pa.array(values, kind))
    csv, exact = (load(tmp_path, write(tmp_path, f"t.{end}", rows), categorical=["code"]) for end in ("csv", "parquet"))
    assert csv.digest == exact.digest
    seen = set(pd.concat([exact.train.features["code"], exact.valid.features["code"]]).dropna())
    assert seen <= {str(value) for value in values if value is not None} and len(seen) == 6


@pytest.mark.parametrize("values", [[BEYOND[0] + i for i in range(N)], [2**63 + 10 + i for i in range(N)]])
def test_a_key_of_long_numbers_is_unique_and_the_same_in_csv_and_parquet(tmp_path: Path, values: list[int]) -> None:
    decimals = [decimal.Decimal(value) for value in values]
    rows = table(id=pa.array(decimals, pa.decimal128(38, 0)))
    found = {load(tmp_path, write(tmp_path, f"t.{end}", rows), key="id").digest for end in ("csv", "parquet")}
    assert len(found) == 1


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.decimal128(38, 2), [decimal.Decimal(i) / 4 for i in range(N)]),
        (pa.decimal128(38, 20), [decimal.Decimal(1) + decimal.Decimal(i) / 10**20 for i in range(N)]),
        (pa.time64("us"), [datetime.time(i // 60, i % 60) for i in range(N)]),
        (pa.duration("s"), [datetime.timedelta(seconds=i) for i in range(N)]),
        (pa.date32(), [datetime.date(2026, 1, 1) + datetime.timedelta(days=i) for i in range(N)]),
        (pa.binary(16), [uuid.UUID(int=i).bytes for i in range(N)]),
        (pa.binary(), [f"{i:03d}".encode() for i in range(N)]),
        (pa.string_view(), [f"{i:03d}" for i in range(N)]),
    ],
)
@pytest.mark.parametrize("role", ["key", "group"])
def test_keys_and_groups_of_every_kind_that_can_be_told_apart_work(
    tmp_path: Path, kind: Any, values: Any, role: str
) -> None:
    named: dict[str, Any] = {"key": "id"} if role == "key" else {"split": {"kind": "group", "group": "id"}}
    dataset = load(tmp_path, write(tmp_path, "t.parquet", table(id=pa.array(values, kind))), **named)
    assert sum(dataset.sizes.values()) == N and list(dataset.train.features) == ["x"]


def test_a_uuid_is_a_key(tmp_path: Path) -> None:
    storage = pa.array([uuid.UUID(int=i).bytes for i in range(N)], pa.binary(16))
    rows = table(id=pa.ExtensionArray.from_storage(pa.uuid(), storage))
    assert load(tmp_path, write(tmp_path, "t.parquet", rows), key="id").sizes["train"] == 28


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int64()), pa.struct([("a", pa.int64())]), pa.map_(pa.string(), pa.int64())]
)
@pytest.mark.parametrize(
    ("named", "key"),
    [
        ({"key": "id"}, "data.key"),
        ({"split": {"kind": "group", "group": "id"}}, "data.split.group"),
        ({"split": {"kind": "time", "time": "id"}}, "data.split.time"),
        ({"split": {"kind": "column", "column": "id"}}, "data.split.column"),
    ],
)
def test_a_key_or_group_of_lists_is_refused_by_name(tmp_path: Path, kind: Any, named: Any, key: str) -> None:
    name = write(tmp_path, "t.parquet", table(id=pa.nulls(N, kind)))
    with pytest.raises(DataError, match=rf"{key}: column 'id' holds .* values; expected numbers, text or times"):
        load(tmp_path, name, **named)


def test_a_time_of_an_unknown_zone_is_a_key_as_any_other(tmp_path: Path) -> None:
    moments = pa.array(range(N), pa.timestamp("s", "Middle/Earth"))
    parquet.write_table(table(at=moments), tmp_path / "t.parquet")
    utc = load(tmp_path, write(tmp_path, "u.parquet", table(at=pa.array(range(N), pa.timestamp("s", "UTC")))), key="at")
    assert load(tmp_path, "t.parquet", key="at").digest == utc.digest


def test_ids_that_differ_only_in_spelling_stay_apart(tmp_path: Path) -> None:
    """007 and 7 are two patients, and 1e3 and 1000 two keys."""
    patients = [("007", "7", "8", "9")[i // 2 % 4] for i in range(N)]
    name = write(tmp_path, "t.csv", table(patient=patients))
    shares = {"train": 0.5, "valid": 0.25, "test": 0.25}
    dataset = load(tmp_path, name, split={"kind": "group", "group": "patient", **shares})
    assert sorted(dataset.sizes.values()) == [10, 10, 20]
    keys = write(tmp_path, "k.csv", table(id=["1000", "1e3", *map(str, range(N - 2))]))
    assert load(tmp_path, keys, key="id").sizes["test"] == 6


def test_a_group_called_na_is_a_group(tmp_path: Path) -> None:
    name = write(tmp_path, "t.csv", table(region=[("NA", "EU", "None", "AS")[i % 4] for i in range(N)]))
    assert min(load(tmp_path, name, split={"kind": "group", "group": "region"}).sizes.values()) == 10


def findings(dataset: sources.Dataset, code: str, task: Any = "binary") -> list[Finding]:
    return [f for f in audit(dataset, task, PreprocessingSpec(), scaled=True).findings if f.code == code]


def test_numbers_that_float64_cannot_hold_are_said(tmp_path: Path) -> None:
    (found,) = findings(
        load(tmp_path, write(tmp_path, "t.csv", table(account=[str(value) for value in BEYOND]))), "digits-lost"
    )
    assert found.subject == "account" and 'categorical = ["account"]' in found.fix


# What is dropped is not looked at


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bytes.csv", b"note,x,y\n" + b"".join(b"Jos\xe9,%d,%d\n" % (i, i % 2) for i in range(N))),
        ("twice.csv", b"note,note,x,y\n" + b"".join(b"a,b,%d,%d\n" % (i, i % 2) for i in range(N))),
        ("blank.csv", b"\n\nnote,note,x,y\n" + b"".join(b"a,b,%d,%d\n" % (i, i % 2) for i in range(N))),
    ],
)
def test_a_dropped_column_of_a_csv_file_stops_nothing(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    dataset = load(tmp_path, name, drop=["note"])
    assert list(dataset.train.features) == ["x"] and sum(dataset.sizes.values()) == N


def test_a_dropped_column_of_bytes_stops_nothing_and_another_one_is_told_to_be_dropped(tmp_path: Path) -> None:
    name = write(tmp_path, "t.parquet", table(shape=pa.array([b"\xff\x00"] * N)))
    assert list(load(tmp_path, name, drop=["shape"]).train.features) == ["x"]
    with pytest.raises(DataError, match=r"column 'shape' of .* holds bytes(.|\n)*drop = \['shape'\]"):
        load(tmp_path, name)


# Rows that a quotation mark swallows


def test_a_quotation_mark_that_swallows_rows_is_an_error_with_row_column_and_lines(tmp_path: Path) -> None:
    rows = [f"{i},5 inch,{i % 2}" for i in range(N)]
    rows[10] = '10,"3 inch,0'
    (tmp_path / "end.csv").write_text("x,size,y\n" + "\n".join(rows) + "\n")
    rows[30] = '30,7" inch,0'
    (tmp_path / "middle.csv").write_text("x,size,y\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match=r"""not closed in the row that begins with '10,"3 inch,0'"""):
        load(tmp_path, "end.csv")
    lost = r"41 lines, 20 rows\): a quotation mark is not closed.*row 10, column 'size': the cell holds 21 lines"
    for drop in ((), ("size",)):  # the rows are lost all the same
        with pytest.raises(DataError, match=lost):
            load(tmp_path, "middle.csv", drop=drop)


def test_texts_of_several_lines_are_texts(tmp_path: Path) -> None:
    cells = [f'"line one, of {i}\nline two\n\nthree, four, five, six\nend"' for i in range(N)]
    (tmp_path / "t.csv").write_text("x,text,y\n" + "".join(f"{i},{cell},{i % 2}\n" for i, cell in enumerate(cells)))
    dataset = load(tmp_path, "t.csv")
    assert sum(dataset.sizes.values()) == N and not dataset.warnings


def test_one_swallowed_row_is_a_warning(tmp_path: Path) -> None:
    rows = [f"{i},a,b,{i % 2}" for i in range(N)]
    rows[5], rows[6] = '5,"a,b,1', '6",a,b,0'
    (tmp_path / "t.csv").write_text("x,c,d,y\n" + "\n".join(rows))
    with pytest.raises(DataError, match="not closed in the row that begins with"):
        load(tmp_path, "t.csv")
    rows[5], rows[6] = '5,"a,b,1', '6,a",b,0'
    (tmp_path / "u.csv").write_text("x,c,d,y\n" + "\n".join(rows))
    (said,) = load(tmp_path, "u.csv").warnings
    assert "row 5, column 'c': the cell holds 2 lines" in said


# What a file turns out to be


TEXT = "x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(N))


SOMETHING_ELSE = [
    ("t.csv", TEXT.encode("utf-16"), "UTF-16 text"),
    ("t.csv", TEXT.encode("utf-16-le"), "UTF-16 or UTF-32 without a byte order mark"),
    ("t.csv", TEXT.encode("utf-32"), "UTF-32 text"),
    ("t.csv", ("größe," + TEXT).encode("latin-1"), "header of t.csv is not UTF-8 text, from character 3 on"),
    ("t.csv", TEXT.encode() + "20,1\nJosé,1\n".encode("latin-1"), "column 'x' of .* is not UTF-8 text in row 41"),
    ("t.csv", gzip.compress(TEXT.encode()), "compressed with gzip(.|\n)*name it .csv.gz"),
    ("t.csv", bz2.compress(TEXT.encode()), "compressed with bzip2"),
    ("t.csv", lzma.compress(TEXT.encode()), "compressed with xz"),
    ("t.csv", b"(\xb5/\xfd rest", "compressed with Zstandard"),
    ("t.csv", b"PK\x03\x04 rest", "Excel workbooks"),
    ("t.csv", b"\xd0\xcf\x11\xe0 rest", "Excel workbook"),
    ("t.csv", b"PAR1 rest", "Parquet file(.|\n)*name it .parquet"),
    ("t.csv", b"<!DOCTYPE html><html>Sign in</html>", "HTML or XML page"),
    ("t.csv", b'{"x": 1, "y": 0}\n', "JSON"),
    ("t.csv", b"sep=;\nx;y\n1;0\n", "first line, sep=;, is not a header(.|\n)*separator = ';'"),
    ("t.csv.gz", TEXT.encode(), "its content is not gzip"),
    ("t.csv.gz", gzip.compress(TEXT.encode())[:40], "cannot be unpacked|cannot be read"),
    ("t.csv.gz", gzip.compress(TEXT.encode("utf-16")), "UTF-16 text"),
    ("t.parquet", TEXT.encode(), "not a Parquet file"),
    ("t.csv", b"", "Empty CSV file"),
]


@pytest.mark.parametrize(("name", "content", "said"), SOMETHING_ELSE, ids=range(len(SOMETHING_ELSE)))
def test_a_file_that_is_something_else_is_named_without_its_bytes(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as refused:
        load(tmp_path, name)
    assert all(letter.isprintable() for letter in str(refused.value).replace("\n", ""))


def test_excel_s_first_line_asks_for_no_separator_that_is_already_set(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"sep=;\nx;y\n1;0\n")
    with pytest.raises(DataError, match="first line, sep=;, is not a header") as refused:
        load(tmp_path, "t.csv", separator=";")
    assert refused.value.hint == "remove that line"


HEADERS = {
    "Excel's first line": (b"sep=;\nx;y\n1;0\n", ";", "first line, sep=;, is not a header"),
    "Excel's first line, another separator": (b"sep=;\nx;y\n1;0\n", ",", "first line, sep=;, is not a header"),
    "not UTF-8": ("größe,y\n1,0\n".encode("latin-1"), ",", "not UTF-8 text, from character 3 on"),
    "one name twice": (b"x,x,y\n1,2,0\n", ",", "several columns named x"),
    "no name": (b",x,y\n0,1,0\n", ",", "column 1 of .* has no name"),
    "another separator": (b"x|y\n1|0\n", ",", "lacks columns that are declared"),
    "an open quotation mark": (b'x,"a,y\n1,2,0\n2,3,1\n",y\n1,2,0\n', ",", "mark of the header is not closed"),
    "empty lines": (b"\n\n", ",", "Empty CSV file"),
    "no rows in a gzip file": (gzip.compress(b""), ",", "Empty CSV file"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_data_ingest_says_the_same_of_a_file_as_training(what: str, tmp_path: Path) -> None:
    content, separator, said = HEADERS[what]
    path = tmp_path / ("t.csv.gz" if content.startswith(b"\x1f") else "t.csv")
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as training:
        load(tmp_path, path.name, separator=separator)
    with pytest.raises(DataError) as ingest:
        RowFile(path, DataSpec(path=path.name, target=("y",), task="binary", separator=separator))
    assert (ingest.value.message, ingest.value.hint) == (training.value.message, training.value.hint)


@pytest.mark.parametrize("name", ["T.CSV", "T.CSV.GZ", "t.Csv.gZ"])
def test_endings_may_be_of_any_case_and_a_mark_before_the_header_is_none_of_it(tmp_path: Path, name: str) -> None:
    content = b"\xef\xbb\xbf" + TEXT.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith("gz") else content)
    assert list(load(tmp_path, name).train.features) == ["x"]


def test_a_path_with_a_zero_byte_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="zero byte"):
        load(tmp_path, "d\0.csv")


def test_a_small_file_of_endless_text_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    free = psutil.virtual_memory()._replace(available=50_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with gzip.open(tmp_path / "t.csv.gz", "wb") as file:
        file.write(b"x,y\n")
        for _ in range(64):
            file.write(b"1,0\n2,1\n" * 65_536)
    with pytest.raises(DataError, match=r"more than 0\.0 GB of text, 0\.\d MB as it is compressed; reading takes 4"):
        load(tmp_path, "t.csv.gz")
    rows = pa.table(
        {"x": pa.DictionaryArray.from_arrays(np.zeros(4_000_000, np.int8), [1.0]), "y": np.zeros(4_000_000)}
    )
    parquet.write_table(rows, tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"4,000,000 rows of 2 columns, which take 0.1 GB"):
        load(tmp_path, "t.parquet")


# Words for missing values, and numbers in other notations


def test_a_class_called_none_is_named_and_not_thrown_away(tmp_path: Path) -> None:
    words = [("None", "Mild", "Severe", "NA")[i % 4] for i in range(80)]
    rows = pa.table({"x": np.arange(80) / 7, "y": words})
    dataset = load(tmp_path, write(tmp_path, "t.csv", rows), task="multiclass")
    found = findings(dataset, "target-missing", "multiclass")
    assert "20 rows of the file hold the word None, 20 rows of the file hold the word NA" in found[0].seen
    assert "where None, NA is a class, write it otherwise" in found[0].fix


def test_words_for_missing_values_among_declared_codes_are_said(tmp_path: Path) -> None:
    rows = table(country=[("NA", "DE", "FR")[i % 3] for i in range(N)])
    (said,) = load(tmp_path, write(tmp_path, "t.csv", rows), categorical=["country"]).warnings
    assert "'country': 14 rows hold the word NA, read as missing" in said


@pytest.mark.parametrize(
    ("values", "ways"),
    [
        (["35,000", "9,000", "700"], {"thousands comma"}),
        (["1,23,456", "12,34,567.5"], {"thousands comma"}),
        (["35.000", "1.234.567", "1.234,50"], {"thousands point", "decimal comma"}),
        (["35 000", "1 234 567"], {"thousands mark"}),
        (["35\u00a0000", "1\u202f234", "2\u2009345,5"], {"thousands mark", "decimal comma"}),
        (["35'000", "1\u2019234.5"], {"thousands mark"}),
        (["-0,2", "1,4", "1,444"], {"decimal comma"}),
        (["78%", "12 %", "3.5%"], {"percent"}),
        (["$1,500", "-$20", "$7"], {"currency", "thousands comma"}),
        (["1500 \u20ac", "20,50 \u20ac"], {"currency", "decimal comma"}),
        (["EUR 5", "USD 7", "5 CHF"], {"currency"}),
        (["(5)", "7", "(1,200)"], {"brackets", "thousands comma"}),
        (["($5)", "$(7)"], {"brackets", "currency"}),
        (["5-", "7", "8.5-"], {"sign behind"}),
        (["\u22125", "7"], {"other minus"}),
        (["\uff11\uff12", "7"], {"other digits"}),
        (["5 inch", "3 inch"], {"unit"}),
        (["7.5kg", "8kg"], {"unit"}),
    ],
)
def test_numbers_are_named_by_how_they_are_written(values: list[str], ways: set[str]) -> None:
    found = notations.written(values)
    assert set(found.ways) == ways and found.share == 1


@pytest.mark.parametrize(
    "values",
    [
        ["2026-01-31", "2026-02-01"],
        ["12:30", "13:45"],
        ["555-1234", "555-9876"],
        ["1.2.3", "10.0.0.1"],
        ["10-20", "20-30"],
        ["12345-6789"],
        ["1st", "2nd", "3rd"],
        ["A1", "B2"],
        ["1/2", "3/4"],
        ["x", "y"],
        ["1.5", "2e3", "-7"],
    ],
)
def test_dates_versions_ranges_and_names_are_no_numbers_in_a_notation(values: list[str]) -> None:
    found = notations.written(values)
    assert not found.ways or found.share < 0.8


def test_the_audit_names_the_notation_and_gives_no_other_advice(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    prices = [f'"{value:,}"' for value in random.integers(1000, 10**7, 200)]
    lines = "".join(f"{price},{i % 7},{i % 2}\n" for i, price in enumerate(prices))
    (tmp_path / "t.csv").write_text("price,x,y\n" + lines)
    found = [f for f in audit(load(tmp_path, "t.csv"), "binary", PreprocessingSpec(), scaled=True).findings]
    about = {f.code for f in found if f.subject == "price"}
    assert about == {"numbers-as-text"}
    (said,) = (f for f in found if f.code == "numbers-as-text")
    assert "commas between thousands" in said.seen and "write 35000 for 35,000" in said.fix


def test_a_regression_target_in_a_notation_is_shown(tmp_path: Path) -> None:
    from forge_sweep.task import Task

    with pytest.raises(DataError, match=r"target 'y' is .*, such as '1,234' in row 1; expected numbers"):
        Task.learn("regression", pd.DataFrame({"y": ["12", "1,234", "7"]}))


def test_what_is_looked_at_is_the_beginning_only(tmp_path: Path) -> None:
    """A letter that is cut off at the end of what is looked at is no mistake."""
    header = "x" * (reading.HEAD - 1) + "ö"
    (tmp_path / "t.csv").write_text(f"{header},y\n" + "".join(f"{i},{i % 2}\n" for i in range(N)))
    assert list(load(tmp_path, "t.csv").train.features) == [header]


@pytest.mark.parametrize("kind", [pa.decimal128(38, 0), pa.decimal256(60, 2)])
def test_decimal_codes_of_more_than_28_digits_keep_them_all(tmp_path: Path, kind: Any) -> None:
    with decimal.localcontext(prec=60):
        values = pa.array([decimal.Decimal(10**33 + i % 6) for i in range(N)], kind)
    path = write(tmp_path, "d.parquet", table(code=values))
    codes = load(tmp_path, path, categorical=["code"]).train.features["code"]
    assert set(codes) == {str(10**33 + i) for i in range(6)}


def test_decimal_keys_with_fractions_of_more_than_28_digits_stay_apart(tmp_path: Path) -> None:
    with decimal.localcontext(prec=60):
        values = pa.array(
            [decimal.Decimal(10**33 + i) + decimal.Decimal("0.5") for i in range(N)], pa.decimal128(38, 2)
        )
    assert sum(load(tmp_path, write(tmp_path, "d.parquet", table(id=values)), key="id").sizes.values()) == N


def test_a_key_of_times_beyond_nanoseconds_is_refused_by_name(tmp_path: Path) -> None:
    values = pa.array([253402300799 + i for i in range(N)], pa.int64()).cast(pa.timestamp("s"))
    with pytest.raises(DataError, match="column 'until' holds times beyond"):
        load(tmp_path, write(tmp_path, "d.parquet", table(until=values)), key="until")


def lines_with(row: int, quoted: str) -> list[str]:
    lines = ["a,y,t", *(f"{i / 7},{i % 2},t{i % 4}" for i in range(N))]
    lines[row] = f"{lines[row].rpartition(',')[0]},{quoted}"
    return lines


def test_a_quotation_mark_swallows_no_rows_where_lines_end_with_a_carriage_return(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("\r".join(lines_with(20, '"open')))
    with pytest.raises(DataError, match=r"quotation mark is not closed.*column 't': the cell holds 21 lines"):
        load(tmp_path, "d.csv")


@pytest.mark.parametrize("end", ["", "\n"])
def test_one_row_that_is_swallowed_at_the_end_of_the_file_is_a_warning(tmp_path: Path, end: str) -> None:
    (tmp_path / "d.csv").write_text("\n".join(lines_with(N - 1, '"open')) + end)
    (warning,) = load(tmp_path, "d.csv").warnings
    assert "is a quotation mark not closed?" in warning
    assert "the cell holds 2 lines" in warning


def test_a_header_whose_quotation_mark_is_not_closed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('"a,y\n' + "1,2\n3,4\n" * N + '5,6",y\n' + "1,0\n2,1\n" * N)
    with pytest.raises(DataError, match="a quotation mark of the header is not closed"):
        load(tmp_path, "d.csv")
