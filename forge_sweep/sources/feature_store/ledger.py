"""The ledger of looks at test rows, and what a look opens besides them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from forge_sweep.sources.feature_store.versions import Version

if TYPE_CHECKING:
    import psycopg

    from forge_sweep.sources.base import TestLook


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
