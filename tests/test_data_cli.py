"""`forge-sweep data` as a user meets it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from forge_sweep.cli import app
from forge_sweep.errors import DataError, ExperimentError, ForgeSweepError, GateRefused, InputError, Key
from forge_sweep.feature_store.admin import in_options
from forge_sweep.feature_store.connection import Address
from forge_sweep.testing import TABLE_DIGEST, table

COLUMNS = ["--target", "label", "--task", "binary", "--key", "id", "--categorical", "code"]
LEFT_OUT = ["--drop", "booked", "--drop", "part"]


def call(*words: str) -> Result:
    """`forge-sweep data WORDS`, whatever becomes of it."""
    return CliRunner().invoke(app, ["data", *words])


def say(*words: str) -> str:
    """Standard output of a command that ends well."""
    result = call(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def refusal(*words: str) -> str:
    """The message of a command that refuses."""
    result = call(*words)
    assert isinstance(result.exception, ForgeSweepError), (result.output, result.exception)
    return str(result.exception)


def read(*words: str) -> dict[str, object]:
    """The JSON that a command prints."""
    found: dict[str, object] = json.loads(say(*words, "--json"))
    return found


@pytest.fixture
def rows(store: Address, tmp_path: Path) -> Path:
    """A file of every kind of column, beside an empty store."""
    table().to_parquet(tmp_path / "table.parquet")
    return tmp_path / "table.parquet"


@pytest.fixture
def v1(rows: Path) -> Path:
    """The file, ingested as v1."""
    say("ingest", str(rows), "--version", "v1", *COLUMNS, *LEFT_OUT)
    return rows


def test_an_ingested_file_is_listed_and_shown(v1: Path) -> None:
    """With its digest, sizes per split in order, types, vocabularies and what was learned."""
    line = say("list").splitlines()[1]
    assert f"v1@{TABLE_DIGEST[:12]}" in line and line.split()[3:7] == ["7", "84", "18", "18"]
    text = say("show", "v1")
    assert TABLE_DIGEST in text and "random: 0.7 train, 0.15 valid, 0.15 test, stratified; seed 0" in text
    assert "Basel, Stadt, Genève, Zürich" in text and "learned on 84 training rows" in text
    assert "test evaluations: 0" in text
    values = read("show", "v1")
    assert values["row_counts"] == {"train": 84, "val": 18, "test": 18} and values["digest"] == TABLE_DIGEST
    assert values["normalization"]["feature_names"] == ["amount", "age"]  # type: ignore[index]


def test_init_says_what_it_did(store: Address) -> None:
    """A second time it is up to date."""
    assert "is up to date (revision" in say("init")


def test_an_empty_store_says_how_to_begin(store: Address) -> None:
    """No table without rows."""
    assert "data ingest FILE" in say("list")


def test_mistakes_of_the_declaration_are_listed_at_once_by_option(rows: Path) -> None:
    """As those of an experiment file are, with the options' names."""
    words = ["--version", "v1", "--target", "label", "--task", "regression", "--positive", "3", "--key", "label"]
    result = call("ingest", str(rows), *words, "--split", "column", "--max-categories", "0")
    assert isinstance(result.exception, ExperimentError) and result.exception.exit_code == 2
    paths = [mistake.path for mistake in result.exception.mistakes]
    assert set(paths) >= {"--key", "--positive", "--split", "--max-categories"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shares", "0.5,0.5"], "--shares 0.5,0.5: expected three numbers"),
        (["--split", "random=x"], "--split random=x: expected random, column=COLUMN"),
        (["--split", "rows"], "--split"),
        (["--from", "v0"], "rows from one place"),
        (["--drop", "ctiy"], "--drop = 'ctiy': no such column; did you mean \"city\"?"),
        (["--scaler", "standard", "--version", "v 1"], "expected letters, digits"),
        (["--parent", "v0"], "no such version"),
    ],
)
def test_what_cannot_be_meant_is_refused(rows: Path, words: list[str], said: str) -> None:
    """With the option's name; nothing is stored."""
    assert said in refusal("ingest", str(rows), "--version", "v1", *COLUMNS, *LEFT_OUT, *words)
    assert json.loads(say("list", "--json")) == []


def test_a_version_from_a_version_keeps_what_is_not_said(v1: Path) -> None:
    """Target, key, categories, the split of every row and the scaler; what is said changes."""
    say("ingest", "--from", "v1", "--version", "v2")
    first, second = read("show", "v1"), read("show", "v2")
    same = ("digest", "split_digest", "row_counts", "normalization_version", "categorical", "task", "classes")
    assert {name: first[name] for name in same} == {name: second[name] for name in same}
    assert second["parent"] == "v1" and second["source"] == f"version v1@{TABLE_DIGEST[:12]}"
    say("ingest", "--from", "v1", "--version", "v3", "--drop", "code", "--drop", "city", "--scaler", "minmax")
    third = read("show", "v3")
    assert [column["name"] for column in third["features"]] == ["amount", "age", "member", "active", "customer"]  # type: ignore[attr-defined, index]
    assert third["split_digest"] == first["split_digest"] and third["digest"] != first["digest"]
    assert str(third["normalization_version"]).startswith("minmax-median-")
    say("ingest", "--from", "v1", "--version", "v4", "--split", "random", "--seed", "9")
    assert read("show", "v4")["split_digest"] != first["split_digest"]
    looks = read("show", "v1")["test_looks"]
    assert [look["purpose"] for look in looks] == [f"ingest of {name} from v1" for name in ("v2", "v3", "v4")]  # type: ignore[attr-defined, index]


def test_a_version_from_a_version_refuses_columns_that_are_not_there(v1: Path) -> None:
    """By option, with the nearest name."""
    assert '--drop ctiy: version v1 has no such column\n  fix: did you mean "city"?' in refusal(
        "ingest", "--from", "v1", "--version", "v2", "--drop", "ctiy"
    )


def test_an_export_holds_no_test_row_unless_it_is_asked_for(v1: Path, tmp_path: Path) -> None:
    """And then the ledger has a line."""
    say("export", "v1", str(tmp_path / "visible.parquet"))
    assert set(pd.read_parquet(tmp_path / "visible.parquet")["split"]) == {"train", "val"}
    assert read("show", "v1")["test_looks"] == []
    say("export", "v1", str(tmp_path / "all.parquet"), "--with-test")
    assert (pd.read_parquet(tmp_path / "all.parquet")["split"] == "test").sum() == 18
    assert [look["purpose"] for look in read("show", "v1")["test_looks"]] == ["export to all.parquet"]  # type: ignore[attr-defined, index]


def test_an_exported_version_ingested_again_is_the_same(v1: Path, tmp_path: Path) -> None:
    """Digests of content and split."""
    path = str(tmp_path / "all.parquet")
    say("export", "v1", path, "--with-test", "--split-column", "where")
    made = json.loads(say("ingest", path, "--version", "again", *COLUMNS, "--split", "column=where", "--json"))
    first = read("show", "v1")
    assert (made["digest"], made["split_digest"]) == (first["digest"], first["split_digest"])


def test_an_export_refuses_what_the_file_could_not_say(rows: Path, tmp_path: Path) -> None:
    """The text NA in CSV, a column's name taken by the split, an unknown kind of file."""
    frame = table().drop(columns=["booked", "part"]).assign(city=["NA", "Bern"] * 60)
    frame.to_parquet(rows)
    say("ingest", str(rows), "--version", "v1", *COLUMNS)
    assert "has the text 'NA'" in refusal("export", "v1", str(tmp_path / "x.csv"))
    assert "has a column 'city' of its own" in refusal(
        "export", "v1", str(tmp_path / "x.parquet"), "--split-column", "city"
    )
    assert "not of a known kind" in refusal("export", "v1", str(tmp_path / "x.xlsx"))
    assert not list(tmp_path.glob("*x.*"))


def test_an_audit_exits_3_where_a_sweep_would_stop(rows: Path) -> None:
    """The findings name the column."""
    table().assign(copy=lambda frame: frame["label"]).to_parquet(rows)
    say("ingest", str(rows), "--version", "v1", *COLUMNS, *LEFT_OUT)
    result = call("audit", "v1")
    assert isinstance(result.exception, GateRefused) and result.exception.exit_code == 3
    assert "copy" in str(result.exception)
    say("ingest", "--from", "v1", "--version", "v2", "--drop", "copy")
    assert "amount" in say("audit", "v2")


def test_a_drop_is_asked_for_and_keeps_the_ledger(v1: Path, tmp_path: Path) -> None:
    """No answer means no; a parent stays while its children do."""
    say("export", "v1", str(tmp_path / "all.parquet"), "--with-test")
    store = ["--store", str(tmp_path / "mlruns")]
    assert call("drop", "v1", *store).exit_code == 1
    assert CliRunner().invoke(app, ["data", "drop", "v1", *store], input="n\n").stdout.endswith("nothing was removed\n")
    say("ingest", "--from", "v1", "--version", "v2")
    assert "is the parent of v2" in refusal("drop", "v1", "--yes", *store)
    for name in ("v2", "v1"):
        assert say("drop", name, "--yes", *store).endswith(f"removed {name}\n")
    say("ingest", str(v1), "--version", "v1", *COLUMNS, *LEFT_OUT)
    assert len(read("show", "v1")["test_looks"]) == 2  # type: ignore[arg-type]


def test_rejected_rows_are_named_kept_and_counted(store: Address, tmp_path: Path) -> None:
    """By line; --max-errors lets them be left out, --rejects keeps them."""
    path = tmp_path / "rows.csv"
    lines = [f"{i},{i % 7},{i % 2}" for i in range(60)]
    lines[10], lines[20] = "10,four,0", "20,6,"
    path.write_text("\n".join(["id,x,y", *lines]))
    words = ["ingest", str(path), "--version", "v1", "--target", "y", "--task", "binary", "--key", "id"]
    said = refusal(*words)
    assert "line 12, column 'x': 'four'; expected numbers" in said and "line 22, column 'y': missing" in said
    rejects = tmp_path / "rejects.csv"
    assert "58 rows" in say(*words, "--max-errors", "2", "--rejects", str(rejects))
    assert list(pd.read_csv(rejects)["line"]) == [12, 22]


def test_without_an_address_every_command_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable and its form."""
    monkeypatch.delenv("FORGE_SWEEP_DATABASE_URL", raising=False)
    result = call("list")
    assert isinstance(result.exception, DataError) and result.exception.exit_code == 2
    assert "FORGE_SWEEP_DATABASE_URL" in str(result.exception)


def test_options_for_files_do_not_go_with_a_version(store: Address) -> None:
    """Nothing is passed over in silence."""
    for words in (["--max-errors", "3"], ["--parent", "v0"]):
        result = call("ingest", "--from", "v1", "--version", "v2", *words)
        assert isinstance(result.exception, InputError) and words[0] in str(result.exception)


def test_a_traceback_asked_for_shows_no_login(store: Address, tmp_path: Path) -> None:
    """`--debug` prints what went on, but neither name nor password."""
    url = "postgresql://someone:s3cr%40t@127.0.0.1:1/features"
    code = (
        "import sys, forge_sweep.feature_store.connection as c\n"
        "c.PATIENCE_S = 0.1\n"
        "import forge_sweep.cli; sys.argv = ['forge-sweep', '--debug', 'data', 'list']; forge_sweep.cli.main()"
    )
    environment = {"FORGE_SWEEP_DATABASE_URL": url, "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" in done.stderr and "does not answer" in done.stderr
    assert "s3cr" not in done.stderr + done.stdout


def test_log_lines_are_masked() -> None:
    """Whatever a library puts into them."""
    from forge_sweep.cli.surroundings import MaskingFormatter

    record = logging.LogRecord("x", 10, "x", 1, "open %s", ("postgresql://me:se@cret@db/x?password=hush&a=1",), None)
    assert MaskingFormatter().format(record) == "open postgresql://***@db/x?password=***&a=1"


def test_drift_is_a_gate_where_it_is_asked_to_be(v1: Path, tmp_path: Path) -> None:
    """Exit code 3 with the columns; without --gate it is a report."""
    store = ["--store", str(tmp_path / "mlruns")]
    shifted = table()
    shifted["amount"] += 100
    shifted.to_parquet(v1)
    say("ingest", str(v1), "--version", "v2", *COLUMNS, *LEFT_OUT)
    assert "amount" in say("drift", "v1", "v2", *store)
    result = call("drift", "v1", "v2", "--gate", *store)
    assert isinstance(result.exception, GateRefused) and result.exception.exit_code == 3
    assert "warning: amount" in str(result.exception) and "amount" in result.stdout
    say("drift", "v1", "v1", "--gate", *store)


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("a;y\n1;0\n2;1\n", ["--target", "y"], "--separator ';'"),
        ("d,x,y\n2026-01-01,1,0\n2026-01-02,2,1\n", ["--target", "y"], "--drop 'd'"),
        (",x,y\n1,1,0\n2,2,1\n", ["--target", "y"], '--drop ""'),
        ("x,y\n1,0\n2,0\n3,0\n4,1\n", ["--target", "y"], "--no-stratify"),
        ("x,y\n1,0\n2,1\n", ["--target", "y", "--shares", "0.5,0.5,0.5"], "--shares = train + valid + test = 1.5"),
        (None, ["--target", "y"], "the working directory"),
    ],
)
def test_a_fix_is_told_in_options(
    text: str | None, words: list[str], said: str, store: Address, tmp_path: Path
) -> None:
    """Not in keys of an experiment file, which the command has none of."""
    if text is not None:
        (tmp_path / "rows.csv").write_text(text)
    told = refusal("ingest", str(tmp_path / "rows.csv"), "--version", "v1", "--task", "binary", *words)
    assert said in told and "[data" not in told and "data." not in told


def test_a_version_is_named_where_a_temporary_file_is_read(v1: Path) -> None:
    """A column that is not there, for one."""
    told = refusal("ingest", "--from", "v1", "--version", "v2", "--split", "time=booked")
    assert "version v1" in told and "rows.parquet" not in told


@pytest.mark.parametrize(
    ("key", "form", "in_file", "as_option"),
    [
        (Key("data.key"), "", "data.key", "--key"),
        (Key("data.path"), "", "data.path", "FILE"),
        (Key("data.positive"), "under", "positive under [data]", "--positive"),
        (Key("data.task", '"binary"'), "", 'task = "binary" under [data]', '--task "binary"'),
        (Key("data.drop", "['d e']"), "", "drop = ['d e'] under [data]", "--drop 'd e'"),
        (Key("data.split.stratify", "false"), "", "stratify = false under [data.split]", "--no-stratify"),
        (Key("data.split.stratify", "true"), "", "stratify = true under [data.split]", "no --no-stratify"),
        (Key("data.split.train"), "under", "train under [data.split]", "--shares"),
        (Key("data.split.time"), "", "data.split.time", "--split time=COLUMN"),
        (Key("data.split.kind"), "", "data.split.kind", "--split"),
        (Key("data.split.kind", '"time"'), "is", 'data.split.kind = "time"', "--split time=COLUMN"),
        (Key("preprocessing.max_categories"), "", "preprocessing.max_categories", "--max-categories"),
    ],
)
def test_a_key_in_an_error_is_said_as_its_option(key: Key, form: str, in_file: str, as_option: str) -> None:
    """In message and fix alike; what else stands there stays, such as paths and names that look like keys."""
    text, other = f"choose another {key:{form}}", "/data.key/my data.split.csv, column 'data.key'"
    error = DataError(f"{text}: {other}", hint=text)
    assert (error.message, error.hint) == (f"choose another {in_file}: {other}", f"choose another {in_file}")
    with pytest.raises(DataError) as caught, in_options():
        raise error
    assert (caught.value.message, caught.value.hint) == (
        f"choose another {as_option}: {other}",
        f"choose another {as_option}",
    )


def test_a_temporary_file_is_called_by_its_version() -> None:
    """Without the word FILE before it: no file was named."""
    path = Path("/tmp/a/rows.parquet")
    with pytest.raises(DataError) as caught, in_options(path, "version v1"):
        raise DataError(f"{Key('data.path')}: {path} holds no rows")
    assert caught.value.message == "--from: version v1 holds no rows"


def test_mistakes_of_a_declaration_name_no_key_of_a_file(rows: Path) -> None:
    """Neither in what is expected nor in the fix."""
    told = refusal("ingest", str(rows), "--version", "v1", *COLUMNS, "--split", "time", "--drop", "label")
    assert "--split time=COLUMN" in told and "data.split" not in told and "data.target" not in told
