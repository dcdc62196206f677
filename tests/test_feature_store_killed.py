"""An ingest that is killed anywhere leaves nothing; and neither ingest nor reading needs memory for all of the rows."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from forge_sweep.feature_store import reading
from forge_sweep.feature_store.connection import Address, connect
from forge_sweep.feature_store.ingest import PREFIX
from forge_sweep.feature_store.schema import init
from forge_sweep.feature_store.versions import Version, drop, find
from tests.postgres import ask, get, put

SECTION = {"path": "table.parquet", "target": "y", "task": "binary", "key": "id", "version": "fraud_v1"}
KILLS = 20


# Killed


def ingest_in_child(url: str, folder: Path, started: Connection, die_at: int | None) -> None:
    """Ingest in a process of its own, which kills itself at a call of progress, or is killed."""
    tempfile.tempdir = str(folder / "tmp")
    calls = 0

    def progress(phase: str, done: int, total: int | None) -> None:
        nonlocal calls
        calls += 1
        if calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    started.send("started")
    put(SECTION, folder, 3, Address.parse(url), progress=progress)
    started.send(calls)


class Children:
    """Ingests in processes that have imported everything before they begin."""

    def __init__(self, store: Address, folder: Path) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.postgres"])
        self.store, self.folder = store, folder

    def run(self, *, die_at: int | None = None, kill_after_s: float | None = None) -> tuple[int | None, int, float]:
        """Exit code, calls of progress (0 where it was killed), and seconds."""
        here, there = self.context.Pipe()
        process = self.context.Process(target=ingest_in_child, args=(self.store.conninfo, self.folder, there, die_at))
        process.start()
        there.close()
        assert here.recv() == "started"
        began = time.perf_counter()
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            process.kill()
        process.join()
        seconds = time.perf_counter() - began
        return process.exitcode, here.recv() if process.exitcode == 0 else 0, seconds


def wait_for_server(url: str) -> None:
    """Until the server has noticed that its client is gone."""
    ours = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'forge-sweep'"
    while ask(url, ours):
        time.sleep(0.01)


def left_behind(url: str) -> dict[str, int]:
    """What the database holds of any version."""
    queries = {
        "descriptions": "SELECT count(*) FROM dataset_versions",
        "rows": "SELECT count(*) FROM training_features",
        "parameters": "SELECT count(*) FROM normalization_params",
        "tables": "SELECT count(*) FROM pg_class WHERE relname LIKE 'training_features_v%'",
    }
    return {name: ask(url, query)[0][0] for name, query in queries.items()}


def spooled(folder: Path) -> list[str]:
    return [path.name for path in (folder / "tmp").iterdir() if path.name.startswith(PREFIX)]


@pytest.mark.slow
def test_an_ingest_that_is_killed_anywhere_leaves_nothing(store: Address, tmp_path: Path) -> None:
    """At twenty moments: calls of progress from the first to the last, and times all over a whole ingest."""
    n, rng = 30_000, np.random.default_rng(7)
    frame = pd.DataFrame(rng.normal(size=(n, 8)), columns=[f"x{i}" for i in range(8)])
    frame.assign(id=rng.permutation(n), y=np.arange(n) % 2).to_parquet(tmp_path / "table.parquet")
    (tmp_path / "tmp").mkdir()
    children = Children(store, tmp_path)
    code, calls, seconds = children.run()
    assert code == 0
    undisturbed = described(store)
    drop(store, undisturbed.name)

    at_calls = np.linspace(1, calls, KILLS // 2).round().astype(int)
    at_times = rng.permutation(np.linspace(0.0, 0.95, KILLS - KILLS // 2)) * seconds
    moments = [{"die_at": int(call)} for call in at_calls] + [{"kill_after_s": float(delay)} for delay in at_times]
    killed = 0
    for moment in moments:
        code, *_ = children.run(**moment)
        wait_for_server(store.conninfo)
        assert "removed" not in init(store)
        if code == 0:  # the machine was faster than before
            drop(store, "fraud_v1")
        killed += code == -signal.SIGKILL
        left = left_behind(store.conninfo)
        if left["descriptions"]:  # it died after its commit: then all of it is there
            assert described(store).digest == undisturbed.digest, moment
            drop(store, undisturbed.name)
            left = left_behind(store.conninfo)
        assert set(left.values()) == {0}, moment
        if killed % 5 == 0:
            assert children.run()[0] == 0
            again = described(store)
            assert (again.digest, again.split_digest) == (undisturbed.digest, undisturbed.split_digest)
            assert again.normalization_version == undisturbed.normalization_version
            assert spooled(tmp_path) == []
            drop(store, again.name)
    assert killed > KILLS // 2


def described(store: Address) -> Version:
    with connect(store) as connection:
        return find(connection, "fraud_v1")


def test_the_folder_of_an_ingest_that_runs_is_left_alone(
    store: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another ingest begins in the midst of it; folders of dead processes go."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp" / f"{PREFIX}{2**22 + 1}-dead").mkdir()  # beyond any number of a process
    pd.DataFrame({"id": np.arange(60), "x": np.arange(60), "y": np.arange(60) % 2}).to_parquet(
        tmp_path / "table.parquet"
    )
    seen: list[int] = []

    def progress(phase: str, done: int, total: int | None) -> None:
        if phase == "storing" and not seen:
            seen.append(len(spooled(tmp_path)))
            put({**SECTION, "version": "another"}, tmp_path, 3, store)
            seen.append(len(spooled(tmp_path)))

    assert get(put(SECTION, tmp_path, 3, store, progress=progress)).sizes["train"] == 42
    assert seen == [1, 1]
    assert spooled(tmp_path) == []


# Memory

FEATURES = 20


def write_numbers(path: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    names = [f"x{i}" for i in range(FEATURES)]
    schema = pa.schema([*((name, pa.float64()) for name in names), ("y", pa.int64())])
    with parquet.ParquetWriter(path, schema) as file:
        for _ in range(rows // 50_000):
            columns = [*rng.normal(size=(FEATURES, 50_000)), np.arange(50_000) % 2]
            file.write_table(pa.table(list(map(pa.array, columns)), schema=schema))


def ingest_numbers(url: str, folder: Path, rows: int) -> int:
    """Peak memory (bytes) of a process that ingests."""
    section = {"path": f"{rows}.parquet", "target": "y", "task": "binary", "version": f"v{rows}"}
    put(section, folder, 0, Address.parse(url))
    return peak()


def read_numbers(url: str, folder: Path, rows: int) -> int:
    """Peak memory (bytes) of a process that reads every row, verified."""
    with connect(Address.parse(url)) as connection:
        version = find(connection, f"v{rows}")
        with reading.rows(connection, version) as blocks:
            assert sum(len(block.splits) for block in blocks) == rows
    return peak()


def peak() -> int:
    """Most memory that this process ever had (getrusage would count that of its parent)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to measure memory")
def test_memory_does_not_grow_with_the_rows(store: Address, tmp_path: Path) -> None:
    """What is added to the peak is less than two thirds of the rows that are added."""
    few, many = 150_000, 750_000
    for rows in (few, many):
        write_numbers(tmp_path / f"{rows}.parquet", rows)
    for work in (ingest_numbers, read_numbers):
        small, large = (in_child(work, store.conninfo, tmp_path, rows) for rows in (few, many))
        assert large - small < (many - few) * FEATURES * 8 * 2 // 3, (work.__name__, small, large)


def in_child(work: Callable[[str, Path, int], int], url: str, folder: Path, rows: int) -> int:
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(work, (url, folder, rows))
