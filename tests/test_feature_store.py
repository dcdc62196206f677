"""The feature store as a source: the conformance suite, the equality with files, and rows that were changed."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forge_sweep import sources
from forge_sweep.errors import DataError
from forge_sweep.experiment import DataSpec
from forge_sweep.feature_store import reading
from forge_sweep.feature_store.codec import Block
from forge_sweep.feature_store.connection import Address, connect
from forge_sweep.feature_store.versions import Version, drop, versions
from forge_sweep.sources import Dataset
from forge_sweep.testing import StoredSourceContract, look, table
from tests.postgres import behind, get, put, put_frame, run_sql


class InStore(StoredSourceContract):
    """A file that was ingested keeps the contract."""

    @pytest.fixture(autouse=True)
    def use_store(self, store: Address) -> None:
        self.address = store

    def open(self, section: dict[str, Any], folder: Path, seed: int) -> Dataset:
        name = section.get("version", "table")
        with connect(self.address) as connection:
            known = [version.name for version in versions(connection)]
        if name in known:
            drop(self.address, name)
        return get(put({**section, "version": name}, folder, seed, self.address))


class TestFromParquet(InStore):
    """So does what came from Parquet."""

    def store(self, frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
        frame.to_parquet(folder / "table.parquet")
        return {"path": "table.parquet"}


class TestFromCsv(InStore):
    """So does what came from CSV."""

    def store(self, frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
        frame.to_csv(folder / "table.csv", index=False)
        return {"path": "table.csv"}


@pytest.mark.parametrize("suite", [TestFromParquet, TestFromCsv])
def test_every_suite_is_one_that_pytest_collects(suite: type) -> None:
    """A class that still lacks a method is passed over without a word."""
    assert not inspect.isabstract(suite)


SECTION: dict[str, Any] = {
    "path": "table.parquet",
    "target": "label",
    "task": "binary",
    "key": "id",
    "categorical": ["code"],
    "drop": ["booked", "part"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `table` as Parquet."""
    table().to_parquet(tmp_path / "table.parquet")
    return tmp_path


def same(first: Dataset, second: Dataset, folder: Path) -> None:
    """Both datasets are the same in all that training sees."""
    assert (first.digest, first.split_digest, first.sizes) == (second.digest, second.split_digest, second.sizes)
    for one, other in (
        (first.train, second.train),
        (first.valid, second.valid),
        (look(first, folder), look(second, folder)),
    ):
        pd.testing.assert_frame_equal(one.features, other.features)
        pd.testing.assert_frame_equal(one.targets, other.targets)
        assert (one.rows == other.rows).all()
    for role in sources.ROLES:
        np.testing.assert_array_equal(first.fingerprints[role], second.fingerprints[role])


def test_a_version_is_the_file_it_was_ingested_from(store: Address, folder: Path) -> None:
    """Digests, splits, frames with their types, row numbers and fingerprints."""
    from_file = sources.load(DataSpec(**SECTION), root=folder, seed=3)
    same(get(put(SECTION, folder, 3, store)), from_file, folder)


# The same rows, wherever they are


def test_postgres_parquet_and_csv_have_one_digest(store: Address, folder: Path) -> None:
    """And the same splits, rows and types."""
    table().to_csv(folder / "table.csv", index=False)
    in_csv, in_parquet = ({**SECTION, "path": f"table.{kind}"} for kind in ("csv", "parquet"))
    stored = get(put(in_csv, folder, 3, store))
    for section in (in_csv, in_parquet):
        same(stored, sources.load(DataSpec(**section), root=folder, seed=3), folder)


def test_rows_keep_their_order_when_the_table_is_rewritten(store: Address, folder: Path) -> None:
    """VACUUM FULL moves every row on the disk."""
    version = put(SECTION, folder, 3, store)
    before = rows_of(store, version)
    behind(store.conninfo, f"UPDATE {version.partition} SET source_row = source_row WHERE feature_id % 3 = 0")
    run_sql(store.conninfo, f"VACUUM FULL {version.partition}")
    same_rows(before, rows_of(store, version))


def test_a_shuffled_file_with_a_key_is_the_same_version(store: Address, folder: Path) -> None:
    """Batch by batch; only the places of the rows in their files differ."""
    first = put(SECTION, folder, 3, store)
    shuffled = table().sample(frac=1.0, random_state=3).reset_index(drop=True)
    shuffled.to_parquet(folder / "shuffled.parquet")
    second = put({**SECTION, "path": "shuffled.parquet"}, folder, 3, store)
    assert (first.digest, first.split_digest) == (second.digest, second.split_digest)
    assert first.normalization_version == second.normalization_version
    same_rows(rows_of(store, first), rows_of(store, second))
    for version, frame in ((first, table()), (second, shuffled), (first, table())):  # in turn, so that caches are read
        dataset = get(version)
        assert dataset.warnings == get(first).warnings
        assert list(dataset.train.features["age"]) == list(frame["age"].iloc[dataset.train.rows])


def test_columns_in_another_order_are_the_same_content(store: Address, folder: Path) -> None:
    """Each version gives its own order back, from the cache too."""
    table().iloc[:, ::-1].to_parquet(folder / "turned.parquet")
    first, second = put(SECTION, folder, 3, store), put({**SECTION, "path": "turned.parquet"}, folder, 3, store)
    assert first.digest == second.digest
    for version in (first, second, first, second):
        names = [column.name for column in version.features]
        assert list(get(version).train.features) == names
        assert len(get(version).warnings) == 1  # the superuser's


def rows_of(store: Address, version: Version) -> list[Block]:
    """Every row, in blocks, verified."""
    with connect(store) as connection, reading.rows(connection, version) as blocks:
        return list(blocks)


def same_rows(first: list[Block], second: list[Block]) -> None:
    """The blocks are equal but for the places in the source."""
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for name in ("splits", "raw", "labels", "keys"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_who_stops_reading_may_go_on_with_the_connection(store: Address, tmp_path: Path) -> None:
    """The query ends with its context; psycopg alone would wait for the rest of the rows forever."""
    frame = pd.DataFrame({"x": np.arange(100_000) / 7, "y": np.arange(100_000) % 2})
    version = put_frame(frame, tmp_path, store)
    with connect(store) as connection:
        with reading.rows(connection, version) as blocks:
            next(blocks)
        connection.rollback()
        assert connection.execute("SELECT count(*) FROM training_features").fetchone() == (100_000,)


# Changed behind the triggers

TAMPERED = {
    "one value": "UPDATE {rows} SET raw_vector[1] = raw_vector[1] + 1 WHERE {train}",
    "the last bit of a value": "UPDATE {rows} SET raw_vector[1] = raw_vector[1] + 1e-14 WHERE {train}",
    "a missing value": "UPDATE {rows} SET raw_vector[1] = 'NaN' WHERE {train}",
    "a label": "UPDATE {rows} SET labels[1] = 1 - labels[1] WHERE {train}",
    "a key": "UPDATE {rows} SET row_key = '5000' WHERE {train}",
    "a row is gone": "DELETE FROM {rows} WHERE {train}",
    "all rows are gone": "DELETE FROM {rows}",
    "a row twice": "INSERT INTO {rows} ({all}) SELECT {all} FROM {rows} WHERE {train}",
    "a row in another place": "UPDATE {rows} SET feature_id = feature_id + 1000 WHERE {train}",
    "a validation row that trains": "UPDATE {rows} SET split = 'train' WHERE {val}",
    "a validation row that tests": "UPDATE {rows} SET split = 'test' WHERE {val}",
    "a test row that trains": "UPDATE {rows} SET split = 'train' WHERE {test}",
    "a shorter vector": "UPDATE {rows} SET raw_vector = '{{1}}' WHERE {train}",
    "a code of no text": "UPDATE {rows} SET raw_vector[5] = 99 WHERE {train}",
}
STORED_COLUMNS = "dataset_version, split, source_row, row_key, raw_vector, scaled_vector, labels, normalization_version"


@pytest.mark.parametrize("what", TAMPERED)
def test_a_row_that_was_changed_is_found(what: str, store: Address, folder: Path) -> None:
    """By a superuser whom no trigger stops; the load refuses and says what to do."""
    version = put(SECTION, folder, 3, store)
    rows = version.partition
    of = {
        split: f"feature_id = (SELECT min(feature_id) FROM {rows} WHERE split = '{split}' AND raw_vector[1] <> 'NaN')"
        for split in ("train", "val", "test")
    }
    behind(store.conninfo, TAMPERED[what].format(rows=rows, all=STORED_COLUMNS, **of))
    with pytest.raises(DataError, match=r"(?s)rows of v\d+@.* are not those that were ingested: .*restore them from"):
        get(version)


def test_a_test_row_that_was_changed_is_found_at_the_look(store: Address, folder: Path) -> None:
    """Nothing else reads it."""
    version = put(SECTION, folder, 3, store)
    behind(store.conninfo, f"UPDATE {version.partition} SET labels[1] = 1 - labels[1] WHERE split = 'test'")
    dataset = get(version)
    with pytest.raises(DataError, match="the test rows of"):
        look(dataset, folder)


@pytest.mark.parametrize("column", ["means", "stds", "fills"])
def test_parameters_that_were_changed_are_found(column: str, store: Address, folder: Path) -> None:
    """They are named by their content."""
    version = put(SECTION, folder, 3, store)
    behind(store.conninfo, f"UPDATE normalization_params SET {column}[1] = {column}[1] + 1")
    with pytest.raises(DataError, match=r"normalization_params.* are not those that were learned"):
        get(version)


DESCRIBED = {
    "digest": "digest = repeat('0', 64)",
    "split digest": "split_digest = repeat('0', 64)",
    "task": "task = 'multiclass'",
    "classes": """classes = '["yes", "no"]'""",
    "rows per split": """row_counts = '{"train": 84, "val": 18, "test": 17}'""",
    "fingerprints": "test_fingerprints = '\\x00'",
    "name of a feature": "features = replace(features::text, 'age', 'edad')::jsonb",
    "parameters of other rows": "normalization_version = (SELECT min(normalization_version) FROM normalization_params"
    " WHERE normalization_version <> d.normalization_version)",
}


@pytest.mark.parametrize("what", DESCRIBED)
def test_a_description_that_was_changed_is_found(what: str, store: Address, folder: Path) -> None:
    """Whatever it is that runs would record, or train with; the other version is untouched."""
    version, other = (put(SECTION, folder, seed, store) for seed in (3, 4))
    behind(store.conninfo, f"UPDATE dataset_versions d SET {DESCRIBED[what]} WHERE name = '{version.name}'")
    with pytest.raises(DataError, match=rf"the description of {version.name} is not the one that was stored"):
        get(version)
    get(other)


def test_numbers_of_a_description_keep_its_seal(store: Address, tmp_path: Path) -> None:
    """Labels that JSONB writes otherwise than Python does."""
    frame = pd.DataFrame({"x": np.arange(90) / 7, "y": np.arange(90) % 3 * 1e22 - 0.5e22})
    version = put_frame(frame, tmp_path, store, task="multiclass")
    assert get(version).digest == version.digest


# Names


@pytest.mark.parametrize("name", ["a'b", 'a"b', "a;b", "a b", "-a", "a/b", "ä", "a\n", "%s", "{}"])
def test_a_name_with_other_signs_is_refused(name: str, store: Address, folder: Path) -> None:
    with pytest.raises(DataError, match=r"expected letters, digits, _ \. and -"):
        put({**SECTION, "version": name}, folder, 3, store)


def test_a_name_is_taken_once(store: Address, folder: Path) -> None:
    """It is found out before the file is read."""
    put({**SECTION, "version": "fraud_v1"}, folder, 3, store)
    with pytest.raises(DataError, match=r"(?s)has this version already.*forge-sweep data drop fraud_v1"):
        put({**SECTION, "version": "fraud_v1", "path": "not_there.csv"}, folder, 3, store)


def test_a_parent_that_is_not_there_is_refused(store: Address, folder: Path) -> None:
    with pytest.raises(DataError, match="no such version; there are none"):
        put(SECTION, folder, 3, store, parent="fraud_v0")


def test_another_target_or_task_needs_another_version(store: Address, folder: Path) -> None:
    version = put(SECTION, folder, 3, store)
    with pytest.raises(DataError, match=r"data\.target = 'labels': no such column .*did you mean"):
        get(version, target="labels")
    with pytest.raises(DataError, match=r'data\.task = "multiclass": .* was ingested for "binary"'):
        get(version, task="multiclass")
