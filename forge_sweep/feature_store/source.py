"""``data.source = "postgres"``: a version of the feature store as a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from forge_sweep.errors import DataError
from forge_sweep.experiment.words import nearest
from forge_sweep.feature_store import cache, reading
from forge_sweep.feature_store.codec import Block
from forge_sweep.feature_store.columns import StoredColumn
from forge_sweep.feature_store.connection import (
    CONFIRM,
    TUNER,
    Address,
    connect,
    may_confirm,
    privileges,
    retrying,
)
from forge_sweep.feature_store.schema import HEAD, require_schema
from forge_sweep.feature_store.versions import (
    RESTORE,
    SPLITS,
    Version,
    find,
    looks,
    normalization,
    versions,
    with_unseen,
    write_look,
)
from forge_sweep.preprocessing import Preprocessor, from_store, name_of
from forge_sweep.sources.base import ROLES, Dataset, Split, Successor, TestLook, evaluations
from forge_sweep.sources.digest import fingerprints

if TYPE_CHECKING:
    import psycopg

    from forge_sweep.checks.drift import Drift
    from forge_sweep.experiment import DataSpec

VISIBLE = ("train", "val")


class FeatureStoreSource:
    """Reads the version ``data.version`` of the store that ``FORGE_SWEEP_DATABASE_URL`` names.

    Rows are read in the role forge_tuner, which sees no test row; the test rows are read in the role forge_confirm.
    """

    def load(self, spec: DataSpec, *, root: Path, seed: int) -> Dataset:
        """See `forge_sweep.sources.base.Source.load`; order and split were fixed at ingest, whatever ``seed`` is."""
        address = Address.from_environment()
        return retrying(lambda: _load(address, spec))

    def state(self) -> str:
        """Where the store is, of which revision, and how many versions it holds, in a sentence.

        Raises:
            DataError: it refuses the login, or has tables of another version of forge_sweep.
            StoreDown: it does not answer, at the first attempt.
        """
        address = Address.from_environment()
        with connect(address, patience_s=0.0) as connection:
            require_schema(connection)
            return f"{address} has revision {HEAD} and {len(versions(connection))} versions"

    def successor(self, name: str) -> Successor | None:
        """See `forge_sweep.sources.base.Versioned.successor`."""
        address = Address.from_environment()

        def read() -> list[Version]:
            with connect(address) as connection:
                return versions(connection)

        made, newest = {name}, None
        for version in retrying(read):  # the oldest first
            if version.parent in made:
                made.add(version.name)
                newest = version
        if newest is None:
            return None
        found = visible(address, name).drift(visible(address, newest.name))
        return Successor(newest.name, newest.version, tuple(finding.subject for finding in found.findings))


def spec_of(version: Version) -> DataSpec:
    """The section ``[data]`` that names a version."""
    from forge_sweep.experiment import DataSpec

    names = tuple(column.name for column in version.targets)
    return DataSpec(source="postgres", version=version.name, target=names, task=version.task, positive=version.positive)


@dataclass(frozen=True)
class StoredTest:
    """The test rows of a version, where they are.

    Attributes:
        address: the store.
        version: whose rows.
    """

    address: Address
    version: Version

    def read(self, look: TestLook) -> Split:
        """The test rows; each session that reads them leaves a line in the store's ledger first."""
        return retrying(lambda: as_split(*_read_test(self.address, self.version, look)))

    def count(self) -> int:
        """How many evaluations on these test rows the store has on record."""

        def counted() -> int:
            with connect(self.address, role=TUNER) as connection:
                found = looks(connection, self.version.digest, self.version.split_digest)
                return evaluations(look.run for look in found)

        return retrying(counted)


@dataclass(frozen=True, eq=False)
class VisibleRows:
    """The visible rows of a version.

    Attributes:
        version: the version.
        block: its training and validation rows.
    """

    version: Version
    block: Block

    def columns(self) -> dict[str, tuple[StoredColumn, np.ndarray]]:
        """Features and targets with their values as they are stored, (n,) float64."""
        features = zip(self.version.features, self.block.raw.T, strict=True)
        targets = zip(self.version.targets, self.block.labels.T, strict=True)
        return {column.name: (column, values) for column, values in (*features, *targets)}

    def of_split(self, split: int) -> VisibleRows:
        """Its training rows (0) or validation rows (1)."""
        return VisibleRows(self.version, self.block.of_split(split))

    def frame(self) -> pd.DataFrame:
        """(n, columns) features and targets."""
        split = as_split(self.version, self.block)
        return pd.concat([split.features, split.targets], axis=1)

    def drift(self, other: VisibleRows) -> Drift:
        """How the distributions of the other version's rows differ from those of these."""
        from forge_sweep.checks.drift import compare

        targets = [(rows.version.task, column.name) for rows in (self, other) for column in rows.version.targets]
        labels = {name for task, name in targets if task != "regression"}
        return compare(self.frame(), other.frame(), targets={name for _, name in targets}, discrete=labels)

    def prints(self) -> np.ndarray:
        """Fingerprints (n,) uint64 of the features."""
        return fingerprints(reading.features(self.version, self.block), reading.kinds(self.version))

    def prints_as(self, other: Version) -> np.ndarray | None:
        """Fingerprints (n,) uint64 over the features of another version; None where they are not the same columns."""
        wanted = {column.name: column.kind for column in other.features}
        known = reading.kinds(self.version)
        if any(known.get(name) != kind for name, kind in wanted.items()):
            return None
        return fingerprints(reading.content(self.version, self.block)[list(wanted)], known)


def _read_test(address: Address, version: Version, look: TestLook) -> tuple[Version, Block]:
    """The version with all of its texts, and its verified test rows, with a line in the ledger."""
    with connect(address, role=CONFIRM) as connection:
        write_look(connection, version, look)
        whole = with_unseen(connection, version)
        with reading.rows(connection, whole, ("test",)) as blocks:
            return whole, reading.gather(blocks, whole, whole.row_counts["test"])


def visible(address: Address, name: str) -> VisibleRows:
    """The verified training and validation rows of the version of this name, in its order.

    Raises:
        DataError: there is no such version, or its rows are not those that were ingested.
        StoreDown: the store cannot be reached.
    """

    def read() -> VisibleRows:
        with connect(address, role=TUNER) as connection:
            version = find(connection, name)
            return VisibleRows(version, _visible(connection, version)[0])

    return retrying(read)


def as_split(version: Version, block: Block) -> Split:
    """Rows as a split of a dataset."""
    return Split(reading.features(version, block), reading.targets(version, block), block.source_rows)


def _load(address: Address, spec: DataSpec) -> Dataset:
    warnings = []
    with connect(address, role=TUNER) as connection:
        version = find(connection, str(spec.version))
        _refuse_other(spec, version)
        preprocessor = _preprocessor(version, normalization(connection, version.normalization_version))
        if (why := privileges(connection)) is not None:
            warnings.append(
                f"the login of the feature store could read test rows without a trace ({why}): "
                "give sweeps a login that is only a member of forge_tuner and forge_confirm"
            )
        if not may_confirm(connection):
            warnings.append(
                f"the login of the feature store is not a member of {CONFIRM}: a sweep will stop before its test "
                f'evaluation; as an administrator: GRANT {CONFIRM} TO "{connection.info.user}"'
            )
        block, spoiled = _visible(connection, version)
        warnings.extend(spoiled)
    return _dataset(address, version, block, preprocessor, tuple(warnings))


def _preprocessor(version: Version, stored: Mapping[str, Any]) -> Preprocessor:
    preprocessor = from_store(stored)
    if (found := name_of(stored)) != version.normalization_version:
        raise DataError(
            f"data.version: the normalization_params of {version.version} are not those that were learned: {found}; "
            f"expected {version.normalization_version}",
            hint=RESTORE,
        )
    return preprocessor


def _visible(connection: psycopg.Connection[Any], version: Version) -> tuple[Block, list[str]]:
    """The verified rows from the cache, or from the store; and what is to be said about the cache."""
    path = cache.path_of(version)
    rows = sum(version.row_counts[name] for name in VISIBLE)
    block, spoiled = _cached(path, version, rows)
    if block is None:
        with reading.rows(connection, version, VISIBLE) as fresh:
            block = reading.gather(cache.write(path, fresh), version, rows)
    words = f"{path} was not the rows of {version.version}; it was removed, and they were read again"
    return block, [words] if spoiled else []


def _cached(path: Path, version: Version, rows: int) -> tuple[Block | None, bool]:
    """The verified rows of the cache file; and whether there was one that had to be removed."""
    try:
        return reading.gather(reading.verified(cache.read(path, version), version, VISIBLE), version, rows), False
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None, False
    except Exception:  # whatever a reader makes of changed bytes
        path.unlink(missing_ok=True)
        return None, True


def _dataset(
    address: Address, version: Version, block: Block, preprocessor: Preprocessor, warnings: tuple[str, ...]
) -> Dataset:
    train, valid = (as_split(version, block.of_split(code)) for code in range(len(VISIBLE)))
    prints = {
        "train": fingerprints(train.features, reading.kinds(version)),
        "valid": fingerprints(valid.features, reading.kinds(version)),
        "test": np.frombuffer(version.test_fingerprints, "<u8").astype(np.uint64),
    }
    if print_of(prints["train"]) != version.train_print:
        raise DataError(
            f"data.version: rows of {version.version} have other fingerprints than this version of pandas computes; "
            "duplicates of test rows could not be found",
            hint="install the pandas version that ingested it, or ingest it as a new version",
        )
    return Dataset(
        name=version.name,
        version=version.version,
        digest=version.digest,
        split_digest=version.split_digest,
        train=train,
        valid=valid,
        sizes={role: version.row_counts[name] for role, name in zip(ROLES, SPLITS, strict=True)},
        source=f"{address} {version.name}",
        categorical=version.categorical,
        fingerprints=prints,  # type: ignore[arg-type]  # its keys are roles
        _test=StoredTest(address, version),
        preprocessor=preprocessor,
        normalization_version=version.normalization_version,
        warnings=warnings,
    )


def print_of(fingerprints: np.ndarray) -> str:
    """SHA-256 (hex) of fingerprints (n,) uint64."""
    return hashlib.sha256(fingerprints.astype("<u8").tobytes()).hexdigest()


def _refuse_other(spec: DataSpec, version: Version) -> None:
    """Raise DataError where the experiment declares another target or task than the version has."""
    known = tuple(column.name for column in version.targets)
    if spec.target != known:
        absent = next((name for name in spec.target if name not in known), spec.target[0])
        suggestion = nearest(absent, known)
        raise DataError(
            f"data.target = {absent!r}: no such column among the targets of {version.name}"
            + (f"; {suggestion}" if suggestion else ""),
            hint=f"write target = {list(known)} under [data]; another target needs another version",
        )
    if spec.task != version.task:
        raise DataError(
            f'data.task = "{spec.task}": version {version.name} was ingested for "{version.task}"',
            hint=f'write task = "{version.task}" under [data]; another task needs another version',
        )
