"""What the ledger of looks cannot be made to say, and what test rows are not to give away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psycopg
import pytest
from psycopg import errors

from forge_sweep.feature_store.admin import export
from forge_sweep.feature_store.connection import Address
from forge_sweep.testing import look
from tests.postgres import ask, get, put, put_frame

ROWS = 90


@pytest.fixture
def frame() -> pd.DataFrame:
    """Three texts everywhere, one that only validation rows have, and two that only test rows have."""
    part = np.array(["train", "val", "test"])[np.arange(ROWS) % 3]
    text = np.array(["b", "a", "d"], object)[np.arange(ROWS) // 3 % 3]
    text[[1, 4]] = "only_val"
    text[[2, 5, 8]] = ["secret_z", "c_secret", None]
    return pd.DataFrame({"text": text, "x": np.arange(ROWS) / 7, "y": np.arange(ROWS) // 3 % 2, "part": part})


BY_PART = {"split": {"kind": "column", "column": "part"}}


def insert(url: str, **values: object) -> None:
    """A line, committed."""
    line = {"dataset_version": 1, "run": "", "purpose": "a look", "who": "me", **values}
    marks = ", ".join(["%s"] * len(line))
    with psycopg.connect(url) as connection:
        connection.execute(f"INSERT INTO test_looks ({', '.join(line)}) VALUES ({marks})", list(line.values()))


def test_a_line_by_hand_names_the_version_that_it_opens(
    frame: pd.DataFrame, store: Address, tmp_path: Path, login: Callable[..., str]
) -> None:
    """And so it is counted, also where somebody has a table of the same name among his temporary ones."""
    version = put_frame(frame, tmp_path, store, **BY_PART)
    with psycopg.connect(login(store, "forge_confirm"), autocommit=True) as session:
        session.execute("CREATE TEMPORARY TABLE dataset_versions AS SELECT 1 AS version_id, 'x' AS name, 'y' AS digest")
        insertion = "INSERT INTO test_looks (dataset_version, run, purpose, who) VALUES (%s, '', 'by hand', 'me')"
        session.execute(insertion, (version.version_id,))
        assert session.execute("SELECT count(*) FROM training_features WHERE split = 'test'").fetchone() == (30,)
    assert ask(store.conninfo, "SELECT version_name, digest FROM test_looks") == [(version.name, version.digest)]
    assert get(version).count_looks(tmp_path / "looks.jsonl") == 1


def test_looks_at_another_split_of_the_same_rows_are_no_looks_at_these(
    frame: pd.DataFrame, store: Address, tmp_path: Path
) -> None:
    """Nor does one more for the same run count; every line stays in the ledger, for people."""
    one = put_frame(frame, tmp_path, store)
    other = put_frame(frame, tmp_path, store, split={"train": 0.5, "valid": 0.25, "test": 0.25})
    assert one.digest == other.digest and one.split_digest != other.split_digest
    for run in ("a", "a", "b"):
        get(one).look_at_test("final", tmp_path / "looks.jsonl", run=run)
    assert get(one).count_looks(tmp_path / "looks.jsonl") == 2
    assert get(other).count_looks(tmp_path / "looks.jsonl") == 0
    assert len(ask(store.conninfo, "SELECT run FROM test_looks")) == 3


def test_the_owner_writes_no_line_for_somebody_else(frame: pd.DataFrame, store: Address, tmp_path: Path) -> None:
    """Who and when is what the server says, to everybody."""
    version = put_frame(frame, tmp_path, store, **BY_PART)
    insert(store.conninfo, dataset_version=version.version_id, db_user="somebody", digest="0", looked_at="1999-01-01")
    seen = ask(store.conninfo, "SELECT db_user, digest, looked_at > now() - interval '1 hour' FROM test_looks")
    assert seen == [(Address.parse(store.conninfo).login, version.digest, True)]


@pytest.mark.parametrize(
    "values",
    [{"purpose": ""}, {"purpose": " "}, {"who": ""}, {"purpose": "a\nb"}, {"run": "\x1b[31m"}, {"who": "a\tb"}],
)
def test_a_line_without_words_or_with_signs_for_the_terminal_is_refused(
    values: dict[str, str], frame: pd.DataFrame, store: Address, tmp_path: Path
) -> None:
    version = put_frame(frame, tmp_path, store, **BY_PART)
    with pytest.raises(errors.CheckViolation):
        insert(store.conninfo, dataset_version=version.version_id, **values)


def test_a_line_for_no_version_is_refused(store: Address) -> None:
    with pytest.raises(errors.ForeignKeyViolation, match="no dataset version of number 99999"):
        insert(store.conninfo, dataset_version=99_999)


def test_texts_that_only_test_rows_have_are_out_of_reach(
    frame: pd.DataFrame, store: Address, tmp_path: Path, login: Callable[..., str]
) -> None:
    """Neither the description of the version nor any other table shows them to a tuner; a look does."""
    version = put_frame(frame, tmp_path, store, **BY_PART)
    url = login(store, "forge_tuner")
    described = ask(url, "SELECT dataset_versions::text FROM dataset_versions")[0][0]
    assert "only_val" in described and "secret" not in described
    with pytest.raises(errors.InsufficientPrivilege):
        ask(url, "SELECT * FROM test_texts")
    assert ask(login(store, "forge_confirm"), "SELECT * FROM test_texts") == []
    assert ask(login(store, "pg_read_all_data"), "SELECT * FROM test_texts") == []
    dataset = get(version)
    assert set(dataset.valid.features["text"].dropna()) == {"a", "b", "d", "only_val"}
    test = look(dataset, tmp_path).features["text"]
    assert list(test.dropna()) == list(frame.loc[frame["part"] == "test", "text"].dropna())


def test_a_version_with_such_texts_is_the_file_it_was_made_of(
    frame: pd.DataFrame, store: Address, tmp_path: Path
) -> None:
    """Digests, and the exported test rows."""
    version = put_frame(frame, tmp_path, store, **BY_PART)
    export(store, version.name, tmp_path / "all.parquet", with_test=True, split_column="part")
    again = put({"path": "all.parquet", "target": ["y"], "task": "binary", **BY_PART}, tmp_path, 0, store)
    assert (again.digest, again.split_digest) == (version.digest, version.split_digest)
    back = pd.read_parquet(tmp_path / "all.parquet")
    assert list(back["text"].isna()) == list(frame["text"].isna())
    assert list(back["text"].dropna()) == list(frame["text"].dropna())
