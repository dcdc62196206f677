"""CSV and Parquet files: what is read, and what is refused with the path, the key and the fix."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forge_sweep import sources
from forge_sweep.errors import DataError
from forge_sweep.experiment import DataSpec


def load(folder: Path, path: Any, **changes: Any) -> sources.Dataset:
    spec = {"path": path, "target": "y", "task": "binary", **changes}
    return sources.load(DataSpec(**spec), root=folder, seed=0)


def frame(n: int = 40) -> pd.DataFrame:
    return pd.DataFrame({"x": np.arange(n) / 7, "y": np.arange(n) % 2})


def test_numbers_keep_every_bit_through_a_csv_file(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=300) * 10.0 ** np.arange(-150, 150)
    pd.DataFrame({"x": values, "y": np.arange(300) % 2}).to_csv(tmp_path / "t.csv", index=False)
    train = load(tmp_path, "t.csv").train
    assert (train.features["x"].to_numpy() == values[train.rows]).all()


def test_a_type_is_inferred_from_all_rows(tmp_path: Path) -> None:
    """A first fraction after a million bytes of whole numbers does not break the file."""
    lines = [f"{i},{i % 2}" for i in range(200_000)] + ["0.5,1"]
    (tmp_path / "t.csv").write_text("x,y\n" + "\n".join(lines))
    assert load(tmp_path, "t.csv").train.features["x"].dtype == np.float64


def test_a_compressed_file_has_the_digest_of_the_plain_one(tmp_path: Path) -> None:
    text = frame().to_csv(index=False)
    (tmp_path / "t.csv").write_text(text)
    (tmp_path / "u.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert load(tmp_path, "t.csv").digest == load(tmp_path, "u.csv.gz").digest


def test_codes_keep_their_zeros(tmp_path: Path) -> None:
    rows = "".join(f"{i % 3:03d},{i},{i % 2}\n" for i in range(40))
    (tmp_path / "t.csv").write_text("zip,x,y\n" + rows)
    assert set(load(tmp_path, "t.csv", categorical=["zip"]).train.features["zip"]) == {"000", "001", "002"}


def test_codes_with_missing_values_are_the_same_in_csv_and_parquet(tmp_path: Path) -> None:
    table = frame().assign(code=[np.nan if i % 5 == 0 else i % 3 for i in range(40)])
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    csv, parquet = (load(tmp_path, f"t.{kind}", categorical=["code"]) for kind in ("csv", "parquet"))
    assert csv.digest == parquet.digest
    assert set(csv.train.features["code"].dropna()) == {"0", "1", "2"}


def test_missing_words_are_missing(tmp_path: Path) -> None:
    rows = "".join(f"{word},{i},{i % 2}\n" for i, word in enumerate(["NA", "", "null", "Namibia"] * 10))
    (tmp_path / "t.csv").write_text("country,x,y\n" + rows)
    assert set(load(tmp_path, "t.csv").train.features["country"].dropna()) == {"Namibia"}


def test_categories_decimals_and_an_index_in_parquet_are_understood(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = frame().assign(kind=pd.Categorical(["a", "b"] * 20))
    table.sample(frac=1.0, random_state=1).to_parquet(tmp_path / "t.parquet")
    features = load(tmp_path, "t.parquet").train.features
    assert list(features.columns) == ["x", "kind"] and set(features["kind"]) == {"a", "b"}
    arrow = pa.table({"x": pa.array(range(40)).cast(pa.decimal128(21, 2)), "y": [0, 1] * 20})
    parquet.write_table(arrow, tmp_path / "d.parquet")
    assert load(tmp_path, "d.parquet").train.features["x"].dtype == np.float64


def write_splits(folder: Path, *, valid: pd.DataFrame | None = None) -> dict[str, str]:
    parts = {
        "train": frame(40).iloc[:20],
        "valid": frame(40).iloc[20:30] if valid is None else valid,
        "test": frame(40).iloc[30:],
    }
    for role, part in parts.items():
        part.to_csv(folder / f"{role}.csv", index=False)
    return {role: f"{role}.csv" for role in parts}


def test_one_file_per_split_is_one_dataset(tmp_path: Path) -> None:
    """Rows are counted per file; the content is that of one file of them all."""
    dataset = load(tmp_path, write_splits(tmp_path), split={"kind": "files"})
    assert dataset.sizes == {"train": 20, "valid": 10, "test": 10}
    assert list(dataset.valid.rows) == list(range(10))
    frame().to_csv(tmp_path / "all.csv", index=False)
    assert dataset.digest == load(tmp_path, "all.csv").digest
    assert dataset.name == tmp_path.name


def test_split_files_with_different_columns_are_refused_with_the_difference(tmp_path: Path) -> None:
    paths = write_splits(tmp_path, valid=frame(10).rename(columns={"x": "z"}))
    with pytest.raises(DataError, match=r"- z is missing in data.path.train(.|\n)*- x is missing in data.path.valid"):
        load(tmp_path, paths, split={"kind": "files"})


def test_split_files_with_different_types_are_refused_with_the_types(tmp_path: Path) -> None:
    paths = write_splits(tmp_path, valid=frame(10).assign(x="text"))
    with pytest.raises(DataError, match=r"~ x: double in data.path.train, large_string in data.path.valid"):
        load(tmp_path, paths, split={"kind": "files"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", None, r"data\.path: .*t\.csv does not exist"),
        ("t.xlsx", b"x", r"of no known kind; expected \.csv, \.csv\.gz, \.parquet"),
        ("t.csv", b"", "cannot be read: Empty CSV file"),
        ("t.csv", b"x,y\n", "holds no rows"),
        ("t.csv", b"x,y\n1,2\n1,2,3\n", "Expected 2 columns, got 3"),
        ("t.csv", b"x,x,y\n1,2,0\n", "several columns named x"),
        ("t.csv", b",x,y\n0,1,0\n", r"column 1 of .* has no name(.|\n)*index=False"),
        ("t.csv", b"x,y\n\xff\xfe,1\n", "column 'x' of .* is not UTF-8"),
        ("t.csv", b"x;y\n1;0\n2;1\n", "set separator = ';'"),
        ("t.parquet", b"not a parquet file", "cannot be read: "),
        ("t.csv.gz", b"not gzip", "cannot be read: "),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path, name)


def test_columns_that_are_no_values_are_refused_unless_dropped(tmp_path: Path) -> None:
    frame().assign(tags=[[1, 2]] * 40).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="tags: features that hold arrays, beside others"):
        load(tmp_path, "t.parquet")
    assert list(load(tmp_path, "t.parquet", drop=["tags"]).train.features) == ["x"]
