"""Dataset versions as the store describes them, and the ledger of looks at test rows."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from forge_sweep.errors import DataError, StoreDown
from forge_sweep.experiment.fields import NAME_PATTERN
from forge_sweep.experiment.words import nearest
from forge_sweep.feature_store.columns import StoredColumn
from forge_sweep.feature_store.connection import Address, connect, retrying, words
from forge_sweep.feature_store.schema import PARTITION, require_schema
from forge_sweep.preprocessing import STORED
from forge_sweep.sources.base import shown

if TYPE_CHECKING:
    import psycopg

    from forge_sweep.sources.base import TestLook
    from forge_sweep.task import TaskKind

SPLITS = ("train", "val", "test")
"""What the store calls the roles, in their order."""

LOCK = "hashtextextended(%s, 0)"
"""The advisory lock on a name, which whoever ingests it holds until the end of the transaction."""

DROP_WAIT_MS = 5_000

RESTORE = (
    "the tables were changed behind their triggers: restore them from a backup, or ingest the data as a new version"
)

COLUMNS = (
    *("version_id", "name", "features", "targets", "key", "categorical", "task", "positive", "classes", "row_counts"),
    *("digest", "split_digest", "role_digests", "train_print", "test_fingerprints", "parent", "source", "split"),
    *("dropped", "normalization_version", "seal", "created_by", "created_at", "frozen_at"),
)
UNSEALED = ("version_id", "seal", "created_by", "created_at", "frozen_at")
"""What says nothing about the content, or is not known before the version is stored."""


@dataclass(frozen=True)
class Version:
    """One frozen version of a dataset.

    Attributes:
        name: what people call it.
        features: k columns, in the order of ``raw_vector``.
        targets: t columns, in the order of ``labels``.
        key: column that fixed the order of rows.
        categorical: features of codes that were declared to be categories.
        task: ``binary``, ``multiclass``, ``multilabel`` or ``regression``.
        positive: the positive label that was declared.
        classes: labels in order; empty for regression.
        row_counts: rows per split (``train``, ``val``, ``test``).
        digest: SHA-256 over the content of all rows; that of the same rows in a file.
        split_digest: SHA-256 over the split of every row.
        role_digests: per split SHA-256 over the content of its rows alone.
        train_print: SHA-256 over the fingerprints of the training rows.
        test_fingerprints: uint64, little-endian, per test row.
        parent: version it was made from.
        source: file or version that was ingested.
        split: how rows were split, with the seed.
        dropped: columns that were left out.
        normalization_version: names what was learned on the training rows.
        version_id: number in the store.
        seal: SHA-256 over this description, see `_sealed`.
        created_by: login that ingested it.
        created_at: when that began.
        frozen_at: since when no row may change.
    """

    name: str
    features: tuple[StoredColumn, ...]
    targets: tuple[StoredColumn, ...]
    key: StoredColumn | None
    categorical: tuple[str, ...]
    task: TaskKind
    positive: Any
    classes: tuple[Any, ...]
    row_counts: dict[str, int]
    digest: str
    split_digest: str
    role_digests: dict[str, str]
    train_print: str
    test_fingerprints: bytes = field(repr=False)
    parent: str | None
    source: str
    split: dict[str, Any]
    dropped: tuple[str, ...]
    normalization_version: str
    version_id: int = 0
    seal: str = ""
    created_by: str = ""
    created_at: datetime | None = None
    frozen_at: datetime | None = None

    @property
    def version(self) -> str:
        """``<name>@<first 12 digits of the digest>``, as runs record it."""
        return f"{self.name}@{self.digest[:12]}"

    @property
    def rows(self) -> int:
        """Number of all rows."""
        return sum(self.row_counts.values())

    @property
    def partition(self) -> str:
        """Name of the table with its rows."""
        return f"{PARTITION}{self.version_id}"


def find(connection: psycopg.Connection[Any], name: str) -> Version:
    """The version of this name, its description verified by its seal.

    Raises:
        DataError: there is no such version, the tables are missing, or the description is not the one that was stored.
    """
    require_schema(connection)
    row = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM dataset_versions WHERE name = %s", (name,)).fetchone()
    if row is None:
        known = [row[0] for row in connection.execute("SELECT name FROM dataset_versions ORDER BY version_id")]
        listed = f"; there are {shown(known)}" if known else "; there are none"
        raise DataError(
            f"data.version = {name!r}: the feature store has no such version{listed}",
            hint=nearest(name, known) or "ingest it: forge-sweep data ingest FILE --version " + name,
        )
    version = _version(row)
    if (found := _sealed(version)) != version.seal:
        raise DataError(
            f"data.version: the description of {name} is not the one that was stored: its seal is {found[:12]}; "
            f"expected {version.seal[:12]}",
            hint=RESTORE,
        )
    return version


def _sealed(version: Version) -> str:
    """SHA-256 (hex) over all that describes the content of a version, as the store keeps it."""
    described = {name: _plain(getattr(version, name)) for name in COLUMNS if name not in UNSEALED}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """JSON values that are the same before and after JSONB, which writes whole numbers without a fraction."""
    if isinstance(value, StoredColumn):
        value = value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return value.hex()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def versions(connection: psycopg.Connection[Any]) -> list[Version]:
    """Every version, the oldest first."""
    require_schema(connection)
    rows = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM dataset_versions ORDER BY version_id")
    return [_version(row) for row in rows]


def begin(connection: psycopg.Connection[Any], name: str) -> int:
    """Reserve a name and make the table of its rows, in a transaction that `complete` ends.

    Raises:
        DataError: the name is taken, or is being ingested by another process.
    """
    from psycopg import errors, sql

    row = connection.execute(f"SELECT pg_try_advisory_xact_lock({LOCK})", (name,)).fetchone()
    if not (row and row[0]):
        raise DataError(
            f"--version {name}: another process is ingesting it", hint="wait for it, or choose another name"
        )
    _refuse_existing(connection, name)
    sequence = "SELECT nextval(pg_get_serial_sequence('dataset_versions', 'version_id'))"
    try:
        reserved = connection.execute(sequence).fetchone()
        assert reserved is not None
        number = sql.Literal(reserved[0])
        # Alone until it is complete: an attached partition would make every reader wait for this transaction.
        # The check spares that moment a scan of all rows.
        like = (
            "CREATE TABLE {} (LIKE training_features INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE,"
            " CONSTRAINT one_version CHECK (dataset_version = {}))"
        )
        connection.execute(sql.SQL(like).format(sql.Identifier(f"{PARTITION}{reserved[0]}"), number))
    except errors.InsufficientPrivilege as error:
        raise DataError(
            f"{connection.info.user} may not ingest: {error.diag.message_primary}",
            hint="ingest as the owner of the feature store, not as a login of sweeps",
        ) from None
    return int(reserved[0])


def refuse_taken(address: Address, name: str, parent: str | None) -> None:
    """Raise DataError, before any work, for a name that is taken or invalid, and for a parent that does not exist."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise DataError(
            f"--version {name!r}: expected letters, digits, _ . and -, beginning with a letter or a digit",
            hint="such as fraud_v3_2026q1",
        )

    def check() -> None:
        with connect(address) as connection:
            require_schema(connection)
            _refuse_existing(connection, name)
            if parent is not None:
                find(connection, parent)

    retrying(check)


def _refuse_existing(connection: psycopg.Connection[Any], name: str) -> None:
    if connection.execute("SELECT 1 FROM dataset_versions WHERE name = %s", (name,)).fetchone():
        raise DataError(
            f"--version {name}: the feature store has this version already, and versions do not change",
            hint=f"choose another name, or `forge-sweep data drop {name}` first",
        )


def complete(connection: psycopg.Connection[Any], version: Version, params: Mapping[str, Any]) -> Version:
    """Index and freeze the rows and describe them; all of it is there once the caller commits. Returns the version.

    Args:
        connection: the one that `begin` and the rows went through.
        version: what was ingested, with the number that `begin` gave.
        params: the row of ``normalization_params``, see `Preprocessor.to_store`.
    """
    _insert_params(connection, version.normalization_version, params)
    version = _insert_version(connection, version)
    _freeze(connection, version)
    return version


def was_stored(address: Address, version: Version) -> bool:
    """Whether a version is in the store, once the transaction that was to store it has ended.

    Raises:
        StoreDown: the server does not answer, so the outcome is unknown.
    """

    def look() -> bool:
        with connect(address) as connection:
            connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})", (version.name,))  # held until it has ended
            query = "SELECT 1 FROM dataset_versions WHERE version_id = %s"
            return connection.execute(query, (version.version_id,)).fetchone() is not None

    try:
        return retrying(look)
    except StoreDown as error:
        raise StoreDown(
            f"{error.message}; {version.name} was stored as a whole, or not at all",
            hint="once the server is there, `forge-sweep data list` says which",
        ) from None


def drop(address: Address, name: str) -> Version:
    """Remove a version, its rows, and what was learned on them unless another version uses it; the ledger stays.

    Raises:
        DataError: there is no such version, another one was made from it, it is in use, or the login is not the owner.
        StoreDown: the store cannot be reached or the connection was lost.
    """
    import psycopg

    try:
        with connect(address) as connection:
            version = find(connection, name)
            _refuse_parent(connection, name)
            _drop_rows(connection, version)
            _drop_description(connection, version)
        return version
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise StoreDown(
            f"the connection to the feature store was lost while {name} was dropped: {words(error)}",
            hint="`forge-sweep data list` says whether it is gone; if not, run the same command again",
        ) from None


def _refuse_parent(connection: psycopg.Connection[Any], name: str) -> None:
    children = connection.execute("SELECT name FROM dataset_versions WHERE parent = %s", (name,)).fetchall()
    if children:
        listed = ", ".join(row[0] for row in children)
        raise DataError(f"version {name} is the parent of {listed}", hint="drop these first")


def _drop_rows(connection: psycopg.Connection[Any], version: Version) -> None:
    from psycopg import errors, sql

    # While this waits for whoever reads or ingests, it keeps all others waiting.
    connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(DROP_WAIT_MS)))
    try:
        connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(version.partition)))
    except errors.InsufficientPrivilege:
        raise DataError(
            f"{connection.info.user} may not drop {version.name}", hint="drop it as the owner of the feature store"
        ) from None
    except errors.LockNotAvailable:
        raise DataError(
            f"version {version.name} cannot be dropped now: rows are being read or ingested",
            hint="run the same command again once that is done",
        ) from None


def _drop_description(connection: psycopg.Connection[Any], version: Version) -> None:
    connection.execute("SELECT set_config('forge_sweep.dropping', %s, true)", (version.name,))
    connection.execute("DELETE FROM dataset_versions WHERE name = %s", (version.name,))
    connection.execute(
        "DELETE FROM normalization_params p WHERE normalization_version = %s AND NOT EXISTS"
        " (SELECT FROM dataset_versions d WHERE d.normalization_version = p.normalization_version)",
        (version.normalization_version,),
    )


def normalization(connection: psycopg.Connection[Any], normalization_version: str) -> dict[str, Any]:
    """The stored parameters of this name."""
    query = f"SELECT {', '.join(STORED)} FROM normalization_params WHERE normalization_version = %s"
    row = connection.execute(query, (normalization_version,)).fetchone()
    assert row is not None, normalization_version  # a foreign key says so
    return dict(zip(STORED, row, strict=True))


def _version(row: tuple[Any, ...]) -> Version:
    values = dict(zip(COLUMNS, row, strict=True))
    for name in ("features", "targets"):
        values[name] = tuple(map(StoredColumn.from_dict, values[name]))
    for name in ("categorical", "classes", "dropped"):
        values[name] = tuple(values[name])
    values["key"] = None if values["key"] is None else StoredColumn.from_dict(values["key"])
    values["row_counts"] = {split: values["row_counts"][split] for split in SPLITS}  # JSONB keeps no order
    return Version(**values)


def _insert_params(connection: psycopg.Connection[Any], name: str, params: Mapping[str, Any]) -> None:
    from psycopg.types.json import Json, Jsonb

    values = [{"feature_names": Jsonb, "recipe": Json}.get(key, lambda value: value)(params[key]) for key in STORED]
    # Named by their content: another version that learned the very same finds them there.
    connection.execute(
        f"INSERT INTO normalization_params (normalization_version, {', '.join(STORED)})"
        f" VALUES ({', '.join(['%s'] * (len(STORED) + 1))}) ON CONFLICT (normalization_version) DO NOTHING",
        (name, *values),
    )


def _insert_version(connection: psycopg.Connection[Any], version: Version) -> Version:
    """Describe the version; returns it with its seal and with what the server knows of its making."""
    from psycopg.types.json import Jsonb

    version = replace(version, seal=_sealed(version))
    columns = [column for column in COLUMNS if not column.startswith("created") and column != "frozen_at"]
    values = [_stored(getattr(version, column)) for column in columns]
    wrapped = [Jsonb(value) if isinstance(value, dict | list) else value for value in values]
    wrapped[columns.index("positive")] = None if version.positive is None else Jsonb(version.positive)
    made = connection.execute(
        f"INSERT INTO dataset_versions ({', '.join(columns)}, frozen_at) OVERRIDING SYSTEM VALUE"
        f" VALUES ({', '.join(['%s'] * len(columns))}, clock_timestamp()) RETURNING created_by, created_at, frozen_at",
        wrapped,
    ).fetchone()
    assert made is not None
    if unseen := {column.name: list(column.unseen) for column in version.features if column.unseen}:
        connection.execute("INSERT INTO test_texts VALUES (%s, %s)", (version.version_id, Jsonb(unseen)))
    return replace(version, created_by=made[0], created_at=made[1], frozen_at=made[2])


def _stored(value: Any) -> Any:
    if isinstance(value, StoredColumn):
        return json.loads(json.dumps(value.to_dict()))
    return [_stored(each) for each in value] if isinstance(value, tuple) else value


def _freeze(connection: psycopg.Connection[Any], version: Version) -> None:
    """The primary key, the place among the versions, and the triggers that refuse every later write."""
    from psycopg import sql

    table, number = sql.Identifier(version.partition), sql.Literal(version.version_id)
    statements = (
        "ALTER TABLE {table} ADD PRIMARY KEY (dataset_version, feature_id)",
        "ALTER TABLE training_features ATTACH PARTITION {table} FOR VALUES IN ({number})",
        "CREATE TRIGGER frozen BEFORE INSERT OR UPDATE OR DELETE ON {table}"
        " FOR EACH ROW EXECUTE FUNCTION forge_sweep_refuse_frozen({name})",
        "CREATE TRIGGER frozen_whole BEFORE TRUNCATE ON {table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION forge_sweep_refuse_frozen({name})",
        # Policies of the parent hold for what is read through it; without one of its own the partition shows nothing.
        "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        "REVOKE ALL ON {table} FROM PUBLIC",
    )
    for statement in statements:
        formatted = sql.SQL(statement).format(table=table, number=number, name=sql.Literal(version.name))
        connection.execute(formatted)
    # Not the vectors: figures of arrays cost seconds, and no plan needs them.
    connection.execute(sql.SQL("ANALYZE {} (dataset_version, feature_id, split)").format(table))


@dataclass(frozen=True)
class Look:
    """One line of the ledger.

    Attributes:
        version: name of the version.
        run: MLflow run, or "".
        purpose: what for.
        who: user@host of the process.
        db_user: login.
        looked_at: when.
    """

    version: str
    run: str
    purpose: str
    who: str
    db_user: str
    looked_at: datetime


def write_look(connection: psycopg.Connection[Any], version: Version, look: TestLook) -> None:
    """A line in the ledger, committed: only then does this session see test rows.

    Args:
        connection: in the role `CONFIRM`.
        version: whose test rows are read.
        look: who reads them and what for.
    """
    connection.execute(
        "INSERT INTO test_looks (dataset_version, run, purpose, who) VALUES (%s, %s, %s, %s)",
        (version.version_id, look.run, look.purpose, look.who),
    )
    connection.commit()


def looks(connection: psycopg.Connection[Any], digest: str, split_digest: str = "") -> list[Look]:
    """Every look at the test rows of the content with this digest, the oldest first.

    Args:
        connection: in a role that reads the ledger.
        digest: of the content.
        split_digest: leave out looks at the test rows of another split, as far as their version still says which it
            had; "" for all.
    """
    rows = connection.execute(
        "SELECT version_name, run, purpose, who, db_user, looked_at FROM test_looks"
        " LEFT JOIN dataset_versions ON version_id = dataset_version"
        " WHERE test_looks.digest = %(digest)s"
        " AND (%(split)s = '' OR coalesce(split_digest, %(split)s) = %(split)s) ORDER BY look_id",
        {"digest": digest, "split": split_digest},
    )
    return [Look(*row) for row in rows]


def with_unseen(connection: psycopg.Connection[Any], version: Version) -> Version:
    """The version with the texts that only its test rows have; the connection has to be one that sees these rows."""
    query = "SELECT texts FROM test_texts WHERE dataset_version = %s"
    row = connection.execute(query, (version.version_id,)).fetchone()
    texts = row[0] if row else {}
    features = tuple(replace(column, unseen=tuple(texts.get(column.name, ()))) for column in version.features)
    return replace(version, features=features)
