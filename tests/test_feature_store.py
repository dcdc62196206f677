"""The feature store as a source: the conformance suite, the equality with files, and all that protects the rows."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forge_sweep import sources
from forge_sweep.experiment import DataSpec
from forge_sweep.sources import Dataset
from forge_sweep.sources.feature_store.address import Address
from forge_sweep.sources.feature_store.connection import connect
from forge_sweep.sources.feature_store.ingest import ingest
from forge_sweep.sources.feature_store.versions import Version, drop, versions
from forge_sweep.testing import StoredSourceContract, look, table

_names = (f"v{number}" for number in itertools.count())


def put(section: dict[str, Any], folder: Path, seed: int, store: Address, **settings: Any) -> Version:
    """Ingest a file as a section declares it."""
    name = section.get("version") or next(_names)
    spec = DataSpec(**{key: value for key, value in section.items() if key != "version"})
    return ingest(spec, name=name, root=folder, seed=seed, address=store, **settings)


def get(version: Version, **changes: Any) -> Dataset:
    """The dataset of a version."""
    section = {"target": [column.name for column in version.targets], "task": version.task}
    spec = DataSpec(**{"source": "postgres", "version": version.name, **section, **changes})
    return sources.load(spec, root=Path(), seed=0)


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
