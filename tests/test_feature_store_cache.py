"""The cache of training and validation rows: read once, verified each time, whole or not there."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from forge_sweep.errors import DataError
from forge_sweep.feature_store import cache, reading
from forge_sweep.feature_store.codec import Block
from forge_sweep.feature_store.connection import Address, connect
from forge_sweep.feature_store.versions import Version, drop
from forge_sweep.sources import Dataset
from tests.postgres import behind, get, put_frame


@pytest.fixture
def version(store: Address, tmp_path: Path) -> Version:
    """A version with a key of text, which is the hardest to read."""
    i = np.arange(200)
    frame = pd.DataFrame({"id": [f"k{n:03d}" for n in i], "x": i / 7, "city": ["ab"[n % 2] for n in i], "y": i % 2})
    frame.loc[3, "x"] = np.nan
    return put_frame(frame, tmp_path, store, key="id")


def same(first: Dataset, second: Dataset) -> None:
    for one, other in ((first.train, second.train), (first.valid, second.valid)):
        pd.testing.assert_frame_equal(one.features, other.features)
        pd.testing.assert_frame_equal(one.targets, other.targets)
        np.testing.assert_array_equal(one.rows, other.rows)


def spoiled(dataset: Dataset) -> bool:
    """Whether the dataset warns that its cache file was not what it was."""
    return any("was not the rows of" in warning for warning in dataset.warnings)


def test_a_second_load_reads_no_rows_from_the_server(version: Version, store: Address) -> None:
    """There are none any more; without the cache that is found out."""
    first = get(version)
    behind(store.conninfo, f"DELETE FROM {version.partition}")
    same(get(version), first)
    assert not spoiled(get(version))
    cache.forget(version)
    with pytest.raises(DataError, match="0 rows"):
        get(version)


def test_the_cache_is_private_and_holds_no_test_row(version: Version) -> None:
    dataset = get(version)
    (path,) = cache.folder().iterdir()
    assert path == cache.path_of(version)
    assert path.stat().st_mode & 0o777 == 0o600 and cache.folder().stat().st_mode & 0o777 == 0o700
    table = parquet.read_table(path)
    assert set(table.column(0).to_pylist()) == {0, 1}
    assert sorted(table.column(1).to_pylist()) == sorted([*dataset.train.rows, *dataset.valid.rows])


def test_a_flipped_byte_is_found_wherever_it_is(version: Version) -> None:
    """The file is removed, the user is told, and the rows are read again; or the byte was of no account."""
    true = get(version)
    path = cache.path_of(version)
    content = path.read_bytes()
    found = 0
    for position in range(4, len(content), len(content) // 60):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        dataset = get(version)
        same(dataset, true)
        found += spoiled(dataset)
        assert not spoiled(get(version))
    assert found > 30


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table at all", bytes(5000)])
def test_what_is_no_cache_file_is_replaced(content: bytes, version: Version) -> None:
    true = get(version)
    cache.path_of(version).write_bytes(content)
    dataset = get(version)
    assert spoiled(dataset) and not spoiled(get(version))
    same(dataset, true)


def test_a_file_that_is_cut_off_is_replaced(version: Version) -> None:
    path, true = cache.path_of(version), get(version)
    os.truncate(path, path.stat().st_size // 2)
    dataset = get(version)
    assert spoiled(dataset)
    same(dataset, true)


def test_the_cache_of_another_version_is_not_used(version: Version, store: Address, tmp_path: Path) -> None:
    """Of the same name, once the first one was dropped."""
    get(version)
    drop(store, version.name)
    i = np.arange(200)
    other = put_frame(pd.DataFrame({"x": i, "y": i % 2}), tmp_path, store, version=version.name)
    assert list(get(other).train.features) == ["x"]


def blocks_of(store: Address, version: Version) -> list[Block]:
    with connect(store) as connection, reading.rows(connection, version, ("train", "val")) as blocks:
        return list(blocks)


def die_writing(path: Path, blocks: list[Block]) -> None:
    """A process that is killed between two blocks."""
    for _ in cache.write(path, blocks):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_leaves_no_half_written_file(version: Version, store: Address) -> None:
    """What it began is removed by whoever writes next."""
    path, blocks = cache.path_of(version), blocks_of(store, version)
    process = multiprocessing.get_context("spawn").Process(target=die_writing, args=(path, blocks))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not path.exists()
    assert len(list(cache.folder().iterdir())) == 1
    get(version)
    assert list(cache.folder().iterdir()) == [path]


def test_rows_that_turn_out_wrong_leave_no_file(version: Version, store: Address) -> None:
    def broken() -> Iterator[Block]:
        yield from blocks_of(store, version)
        raise DataError("not those that were ingested")

    with pytest.raises(DataError, match="not those"):
        list(cache.write(cache.path_of(version), broken()))
    assert list(cache.folder().iterdir()) == []


def test_loads_at_once_do_not_disturb_each_other(version: Version) -> None:
    """All of them write the file, and one of them is the last."""
    with ThreadPoolExecutor(4) as threads:
        datasets = list(threads.map(lambda _: get(version), range(4)))
    for dataset in (*datasets[1:], get(version)):
        same(dataset, datasets[0])
        assert not spoiled(dataset)
    assert list(cache.folder().iterdir()) == [cache.path_of(version)]


def test_a_cache_that_cannot_be_written_only_costs_the_cache(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FORGE_SWEEP_CACHE", str(tmp_path / "file" / "cache"))
    same(get(version), get(version))


def test_a_folder_that_was_there_keeps_its_mode(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be one that others use, such as /tmp."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    monkeypatch.setenv("FORGE_SWEEP_CACHE", str(tmp_path / "shared"))
    get(version)
    assert cache.path_of(version).exists()
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o777
