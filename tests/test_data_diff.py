"""`data diff`: every planted change is said, nothing else is, and no test row is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forge_sweep.errors import DataError
from forge_sweep.experiment import DataSpec
from forge_sweep.feature_store.connection import Address, connect
from forge_sweep.feature_store.diff import Diff, diff
from forge_sweep.feature_store.ingest import ingest
from forge_sweep.feature_store.versions import Version

ROWS = 200
Put = Callable[..., Version]


def people() -> pd.DataFrame:
    """200 rows of every kind of column, with a key and a split column."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": rng.permutation(ROWS) + 1000,
            "age": rng.integers(18, 90, ROWS),
            "income": np.round(rng.lognormal(8, 1, ROWS), 2),
            "city": rng.choice(["Bern", "Basel", "Chur"], ROWS),
            "member": rng.random(ROWS) < 0.4,
            "part": np.repeat(["train", "val", "test"], [140, 30, 30]),
            "label": rng.choice(["no", "yes"], ROWS),
        }
    )


@pytest.fixture
def put(store: Address, tmp_path: Path) -> Put:
    """Ingests a frame under a name."""

    def put(name: str, frame: pd.DataFrame, *, parent: str | None = None, **section: Any) -> Version:
        frame.to_parquet(tmp_path / f"{name}.parquet")
        known = {"target": "label", "task": "binary", "split": {"kind": "column", "column": "part"}}
        spec = DataSpec(path=f"{name}.parquet", **{**known, **section})
        return ingest(spec, name=name, root=tmp_path, seed=0, address=store, parent=parent)

    return put


def rows_of(frame: pd.DataFrame, split: str) -> pd.Index:
    return frame.index[frame["part"] == split]


def text(found: Diff) -> str:
    """What a terminal shows; the JSON form is one."""
    json.dumps(found.to_dict(), allow_nan=False)
    return "\n".join(found.lines())


def test_a_version_is_the_same_as_itself_under_another_name(put: Put, store: Address) -> None:
    """By digests, before any row is read: only where it came from differs."""
    put("a", people(), key="id")
    put("b", people(), key="id", parent="a")
    found = diff(store, "a", "b")
    assert found.same_content and found.same_split and found.rows is None and found.test.same
    assert {setting.name for setting in found.settings} == {"parent", "source"} and not found.columns
    assert "same content, and the same split" in text(found) and "parent: none -> a" in text(found)


def test_the_order_of_rows_is_no_difference_where_there_is_a_key(put: Put, store: Address) -> None:
    put("a", people(), key="id")
    put("b", people().sample(frac=1.0, random_state=1), key="id")
    found = diff(store, "a", "b")
    assert found.same_content and found.same_split and found.rows is None


def test_every_planted_change_is_said(put: Put, store: Address) -> None:
    """Rows added, gone and moved, changed values, one of them missing now, columns dropped and new, a new category."""
    before = people()
    train, val = rows_of(before, "train"), rows_of(before, "val")
    after = before.drop(columns="member").assign(tall=1.5)
    after.loc[train[:3], "age"] += 100
    after["income"] = after["income"].where(after.index != train[1])
    after.loc[val[0], "city"] = "Genf"
    after.loc[train[5], "part"] = "val"
    after = after.drop(index=[train[10], train[11]])
    after.loc[ROWS] = {**before.loc[train[0]].to_dict(), "id": 7, "tall": 1.5, "part": "train"}
    put("a", before, key="id")
    put("b", after, key="id")
    found = diff(store, "a", "b")
    assert found.rows is not None and not found.same_content
    rows = found.rows
    assert (rows.key, rows.rows) == ("id", (170, 169))
    assert (rows.added, rows.gone, rows.changed, rows.same) == (1, 2, 4, 164)
    assert rows.added_keys == (7,) and set(rows.gone_keys) == set(before.loc[[train[10], train[11]], "id"])
    assert rows.moved == {"train -> val": 1, "val -> train": 0}
    values = {change.column: change for change in rows.values}
    assert {name: change.count for name, change in values.items()} == {"age": 3, "income": 1, "city": 1}
    assert rows.values[0].column == "age", "the most changed first"
    key, age = (int(before.loc[train[1], name]) for name in ("id", "age"))
    assert (key, age, age + 100) in values["age"].examples
    assert values["income"].examples == ((key, float(before.loc[train[1], "income"]), None),)
    assert values["city"].examples[0][2] == "Genf"
    columns = {change.name: change for change in found.columns}
    assert columns.keys() == {"member", "tall", "city"}
    assert columns["member"].roles == ("feature", None) and columns["tall"].roles == (None, "feature")
    assert columns["city"].new == ("Genf",) and not columns["city"].gone
    shown = text(found)
    for line in ("- member (feature, bool)", "+ tall (feature, float64)", "~ city: new categories: Genf"):
        assert line in shown
    for line in ("+ added: 1 row (7)", "- gone: 2 rows", "> moved train -> val: 1 row", f"{key}: {age} -> {age + 100}"):
        assert line in shown
    assert found.test.only is None and "fingerprints are over other columns in A than in B" in shown


def test_without_a_key_rows_are_compared_as_bags(put: Put, store: Address) -> None:
    """Order does not matter; a changed row is a gone one and an added one; repeated rows count as often as they are."""
    before = people().drop(columns="id")
    before = pd.concat([before, before.iloc[[0, 0]]], ignore_index=True)
    after = before.drop(index=ROWS).sample(frac=1.0, random_state=3)
    train, val = rows_of(before, "train"), rows_of(before, "val")
    after.loc[train[4], "age"] += 100
    after.loc[val[0], "part"] = "train"
    put("a", before)
    put("b", after)
    rows = diff(store, "a", "b").rows
    assert rows is not None and rows.key is None and rows.changed is None
    assert (rows.added, rows.gone, rows.same) == (1, 2, 170)
    assert rows.moved == {"train -> val": 0, "val -> train": 1}


def test_another_split_of_the_same_rows_says_where_they_went(put: Put, store: Address) -> None:
    """Test rows of one version that the other one trains on are named, since a model of it has seen them."""
    before = people()
    train, test = rows_of(before, "train"), rows_of(before, "test")
    after = before.copy()
    after.loc[test[:4], "part"] = "train"
    after.loc[train[:6], "part"] = "test"
    for key in ("id", None):
        named = {"key": key} if key else {"drop": ["id"]}
        put(f"a{key}", before, **named)
        put(f"b{key}", after, **named)
        found = diff(store, f"a{key}", f"b{key}")
        assert found.rows is not None and found.same_content and not found.same_split
        assert (found.rows.added, found.rows.from_test) == (4, 4)
        assert (found.rows.gone, found.rows.to_test) == (6, 6)
        assert found.test.only == (4, 6) and not found.test.same
        assert "4 with the features of a test row of A" in text(found)


def test_settings_roles_and_types_are_compared(put: Put, store: Address) -> None:
    """Another target, codes that became categories, another split and scaler."""
    before = people()
    put("a", before, key="id")
    after = before.assign(age=before["age"].where(before["age"] > 20))
    put(
        "b", after, key="id", target="member", categorical=["age"], split={"kind": "random", "train": 0.6, "test": 0.25}
    )
    found = diff(store, "a", "b")
    columns = {change.name: change for change in found.columns}
    assert columns["member"].roles == ("feature", "target") and columns["label"].roles == ("target", "feature")
    assert columns["age"].dtypes == ("int64", "text")
    settings = {setting.name: setting for setting in found.settings}
    assert settings["categorical"].b == ["age"] and settings["classes"].a == ["no", "yes"]
    assert settings["split"].b["kind"] == "random"
    assert found.rows is not None
    changed = {change.column: change.count for change in found.rows.values}
    assert set(changed) <= {"age"}, "a code and its text are the same value, and a role is no value"
    assert all(new is None for change in found.rows.values for _, _, new in change.examples)
    assert "split: kind column -> random" in text(found)


def test_a_column_of_another_kind_is_left_out_of_bags_and_named(put: Put, store: Address) -> None:
    before = people().drop(columns="id")
    put("a", before)
    put("b", before.assign(age="old"))
    rows = diff(store, "a", "b").rows
    assert rows is not None and rows.left_out == ("age",) and (rows.added, rows.gone) == (0, 0)


def test_keys_of_text_and_time_match(put: Put, store: Address) -> None:
    """And times are shown as such."""
    before = people()
    for name, key in (("text", "k" + before["id"].astype(str)), ("time", pd.to_datetime(before["id"], unit="h"))):
        frame = before.assign(id=key)
        put(f"a_{name}", frame, key="id")
        put(f"b_{name}", frame.drop(index=rows_of(frame, "train")[0]), key="id")
        rows = diff(store, f"a_{name}", f"b_{name}").rows
        assert rows is not None and (rows.gone, rows.added, rows.changed) == (1, 0, 0)
        assert rows.gone_keys[0] == ("k" if name == "text" else "") + (
            str(before["id"][0]) if name == "text" else key.iloc[0].isoformat()
        )


def test_no_test_row_is_read(put: Put, store: Address, login: Callable[..., str]) -> None:
    """It works with a login that is a member of forge_tuner only, and the ledger stays empty."""
    frame = people()
    put("a", frame, key="id")
    put("b", frame.assign(age=frame["age"] + (frame["part"] == "test")), key="id")
    found = diff(Address.parse(login(store, "forge_tuner")), "a", "b")
    assert found.rows is not None and found.rows.changed == 0 and found.rows.same == 170
    assert not found.test.same and found.test.only == (30, 30)
    with connect(store) as connection:
        assert connection.execute("SELECT count(*) FROM test_looks").fetchone() == (0,)


def test_names_and_values_cannot_break_the_terminal(put: Put, store: Address) -> None:
    frame = people().rename(columns={"city": "ci\nty\x1b[31m"})
    put("a", frame, key="id")
    frame.loc[0, "ci\nty\x1b[31m"] = "Ge\x1b[0mnf"
    put("b", frame, key="id")
    shown = diff(store, "a", "b").lines()
    assert any("ci\\nty" in line for line in shown) and all(line.isprintable() for line in shown)


def test_a_version_that_is_not_there_is_named(store: Address) -> None:
    with pytest.raises(DataError, match="nowhere"):
        diff(None, "nowhere", "b")
