"""MLflow, Optuna and the feature store on one PostgreSQL, each in its own database: a sweep from end to end.

The servers are those of compose.yaml, started without Docker; the sweep is killed in the middle and run again.
"""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from forge_sweep import sources
from forge_sweep.errors import InputError, MissingExtra, SweepStopped
from forge_sweep.experiment import DataSpec
from forge_sweep.feature_store.connection import Address, connect
from forge_sweep.feature_store.ingest import ingest
from forge_sweep.feature_store.schema import init
from forge_sweep.feature_store.versions import versions
from forge_sweep.study import find_study
from forge_sweep.study.storage import open_storage
from tests.one_server import DATABASES, ROOT, OneServer, is_well, one_server, postgres, service
from tests.servers import free_port, running, ui

pytestmark = pytest.mark.slow

TRIALS = 6
Variables = dict[str, str] | None

SWEEP = """
import json, sys
from pathlib import Path
from forge_sweep import sweep
from tests.surface import experiment, fake_run, no_network

store, version, name, trials, seconds = sys.argv[1:]
data = {"source": "postgres", "version": version, "target": "Status", "task": "binary", "positive": "bad"}
with no_network(fake_run(float(seconds))):
    told = lambda event: print(event.kind, dict(event.data), file=sys.stderr)
    made = sweep.run(experiment(name=name, data=data, study__n_trials=int(trials)), store=Path(store), watch=told)
print(json.dumps(made.to_dict()))
"""


@dataclass(frozen=True)
class Swept:
    """A sweep that came to its end.

    Attributes:
        result: as the sweep returned it.
        store: folder of what stays on this machine.
        printed: everything its processes said.
    """

    result: dict[str, Any]
    store: Path
    printed: str


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneServer]:
    """The servers, and two versions of a real table in the feature store."""
    with one_server(tmp_path_factory.mktemp("servers")) as server:
        owner = Address.parse(server.owner_url)
        init(owner)
        for name, drop in (("credit_v1", ()), ("credit_v2", ("Time",))):
            section: dict[str, Any] = {
                "target": "Status",
                "task": "binary",
                "positive": "bad",
                "key": "id",
                "drop": drop,
            }
            spec = DataSpec(path="credit.csv", **section)
            ingest(spec, name=name, root=ROOT / "experiments" / "data", seed=1, address=owner)
        yield server


@pytest.fixture(scope="module")
def swept(one: OneServer, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Killed in the middle of its trials, and run again by the same command."""
    store = tmp_path_factory.mktemp("client") / "mlruns"
    with (store.parent / "first.log").open("w") as log:
        process = start(one, store, "credit_v1", "surface", 0.1, stdout=log, stderr=log)
        while process.poll() is None and done(one) < 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 2 <= done(one) < TRIALS, (store.parent / "first.log").read_text()
    again = finish(one, store, "credit_v1", "surface")
    return Swept(again.result, store, (store.parent / "first.log").read_text() + again.printed)


def start(
    one: OneServer, store: Path, version: str, name: str, seconds: float, variables: Variables = None, **to: Any
) -> subprocess.Popen[str]:
    """A sweep in a process of its own."""
    words = [sys.executable, "-c", SWEEP, str(store), version, name, str(TRIALS), str(seconds)]
    environ = {**os.environ, "FORGE_SWEEP_CACHE": str(store.parent / "cache"), **one.variables, **(variables or {})}
    return subprocess.Popen(words, cwd=ROOT, env=environ, text=True, start_new_session=True, **to)


def finish(one: OneServer, store: Path, version: str, name: str, variables: Variables = None) -> Swept:
    """A sweep, run to its end."""
    process = start(one, store, version, name, 0.0, variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return Swept(json.loads(out.splitlines()[-1]), store, out + err)


def done(one: OneServer) -> int:
    """Trials in the study's database that came to an end."""
    database = one.postgres
    if not database.rows("optuna", "SELECT 1 FROM pg_tables WHERE tablename = 'trials'"):
        return 0
    ((count,),) = database.rows("optuna", "SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')")
    return int(count)


def client(uri: str) -> Any:
    """MLflow at an address."""
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


def runs(mlflow: Any, name: str) -> list[Any]:
    """The runs of an experiment, by name."""
    found = mlflow.search_runs([mlflow.get_experiment_by_name(name).experiment_id], max_results=1000)
    return sorted(found, key=lambda run: run.info.run_name)


def looks(one: OneServer, version: str) -> list[tuple[Any, ...]]:
    """The ledger of a version: run and login of each look."""
    return one.postgres.rows("features", "SELECT run, db_user FROM test_looks WHERE version_name = %s", version)


def test_runs_studies_and_rows_are_each_in_their_own_database(one: OneServer, swept: Swept) -> None:
    """Whose tables belong to the login of that name; no embedded store lies beside them."""
    tables = {
        name: {
            row[0]: row[1]
            for row in one.postgres.rows(
                name, "SELECT tablename, tableowner FROM pg_tables WHERE schemaname = 'public'"
            )
        }
        for name in DATABASES
    }
    homes = {"runs": "mlflow", "registered_models": "mlflow", "studies": "optuna", "trial_values": "optuna"}
    homes |= {"training_features": "features", "dataset_versions": "features", "test_looks": "features"}
    for table, home in homes.items():
        assert [name for name in DATABASES if table in tables[name]] == [home]
    assert all(set(owners.values()) == {name} for name, owners in tables.items())
    assert not [path for path in swept.store.rglob("*") if path.suffix == ".db"]


def test_a_sweep_killed_in_the_middle_ends_with_exactly_its_trials(
    one: OneServer, swept: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Optuna and in MLflow alike, with one point per epoch."""
    for name, value in one.variables.items():
        monkeypatch.setenv(name, value)
    study = find_study("surface", swept.store)
    assert study is not None
    rows = study.rows()
    assert [row.number for row in rows] == list(range(TRIALS))
    mlflow = client(one.tracking)
    children = [run for run in runs(mlflow, "surface") if run.data.tags["forge.kind"] == "trial"]
    statuses = {"finished": "FINISHED", "pruned": "KILLED"}
    assert [run.info.status for run in children] == [statuses[row.state] for row in rows]
    for run, row in zip(children, rows, strict=True):
        points = mlflow.get_metric_history(run.info.run_id, "val_auc")
        assert [point.step for point in points] == list(range(1, row.epochs + 1))


def test_the_ledger_holds_one_look_and_the_run_it_was_for(one: OneServer, swept: Swept) -> None:
    """The run of the registered model, as a later promotion of it names it."""
    mlflow = client(one.tracking)
    (parent,) = [run for run in runs(mlflow, "surface") if run.data.tags["forge.kind"] == "sweep"]
    assert parent.info.run_id == swept.result["run_id"]
    assert parent.data.tags["forge.test_looks"] == "1"
    registered = mlflow.get_model_version_by_alias("surface", "challenger")
    assert looks(one, "credit_v1") == [(registered.run_id, "sweeps")]


def test_every_run_and_the_model_version_name_data_and_normalization(one: OneServer, swept: Swept) -> None:
    columns = "digest, normalization_version, row_counts"
    ((digest, normalization, counts),) = one.postgres.rows(
        "features", f"SELECT {columns} FROM dataset_versions WHERE name = 'credit_v1'"
    )
    expected = {
        "forge.dataset_version": f"credit_v1@{digest[:12]}",
        "forge.dataset_digest": digest,
        "forge.normalization_version": normalization,
    }
    mlflow = client(one.tracking)
    found = runs(mlflow, "surface")
    assert len(found) >= TRIALS + 4  # parent, baseline, trials, confirmations
    version = mlflow.get_model_version_by_alias("surface", "challenger")
    for tags in (*(run.data.tags for run in found), version.tags):
        assert {name: tags.get(name) for name in expected} == expected
    for run in found:
        inputs = run.inputs.dataset_inputs
        assert [each.dataset.name for each in inputs] in ([], ["credit_v1"])
        assert all(json.loads(each.dataset.profile)["num_rows"] == sum(counts.values()) for each in inputs)


def test_the_registered_model_answers_from_the_servers_artifacts(
    one: OneServer, swept: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And takes rows of the file that was ingested."""
    import mlflow
    import pandas as pd

    monkeypatch.setenv("MLFLOW_TRACKING_URI", one.tracking)
    frame = pd.read_csv(ROOT / "experiments" / "data" / "credit.csv").drop(columns=["Status", "id"])
    model: Any = mlflow.pyfunc.load_model(swept.result["model"])
    assert len(model.predict(frame.head(20))) == 20


def test_the_login_of_sweeps_sees_no_test_row_and_no_other_database(one: OneServer, swept: Swept) -> None:
    assert "could read test rows" not in swept.printed
    with psycopg.connect(one.variables["FORGE_SWEEP_DATABASE_URL"]) as connection:
        seen = connection.execute("SELECT split, count(*) FROM training_features GROUP BY split").fetchall()
        assert {split for split, _ in seen} == {"train", "val"}
    for database in ("mlflow", "optuna"):
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            psycopg.connect(one.postgres.url("sweeps", database, "postgresql"))


def test_passwords_may_stay_in_a_password_file(
    one: OneServer, swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So says the guide; the file needs a backslash before a colon and before a backslash."""
    place, file = f"127.0.0.1:{one.postgres.port}", tmp_path / "pgpass"
    lines = [
        f"{place}:{database}:{login}:" + re.sub(r"([\\:])", r"\\\1", one.postgres.passwords[login])
        for database, login in (("features", "sweeps"), ("optuna", "optuna"))
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    monkeypatch.setenv("FORGE_SWEEP_STORAGE", f"postgresql+psycopg://optuna@{place}/optuna")
    assert find_study("surface", swept.store) is not None
    with connect(Address.parse(f"postgresql://sweeps@{place}/features")) as connection:
        assert [version.name for version in versions(connection)] == ["credit_v1", "credit_v2"]


def test_a_backup_brings_back_versions_ledger_and_protection(
    one: OneServer, swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dumped and restored by the owner of the store, as the guide says, into a database of another name."""
    one.postgres.rows("postgres", "CREATE DATABASE restored OWNER features")
    dump, restored = str(tmp_path / "features.dump"), one.postgres.url("features", "restored", "postgresql")
    for command in (
        ["pg_dump", "--format=custom", f"--file={dump}", one.owner_url],
        ["pg_restore", f"--dbname={restored}", dump],
    ):
        done = one.postgres.run(*command)
        assert done.returncode == 0, done.stderr
    monkeypatch.setenv("FORGE_SWEEP_DATABASE_URL", one.postgres.url("sweeps", "restored", "postgresql"))
    monkeypatch.setenv("FORGE_SWEEP_CACHE", str(tmp_path / "cache"))
    data = DataSpec(source="postgres", version="credit_v1", target="Status", task="binary", positive="bad")
    dataset = sources.load(data, root=Path(), seed=0)  # verified
    assert (dataset.count_looks(tmp_path / "looks.jsonl"), dataset.warnings) == (1, ())
    with psycopg.connect(restored) as connection, pytest.raises(psycopg.errors.ReadOnlySqlTransaction, match="frozen"):
        connection.execute("DELETE FROM training_features")


def test_no_password_is_in_any_output_file_or_database(one: OneServer, swept: Swept) -> None:
    """Neither as it is nor as a URL writes it: the first half of each is the same in both."""
    dumps = [one.postgres.run("pg_dump", name).stdout for name in DATABASES]
    assert all("PostgreSQL database dump complete" in dump for dump in dumps)
    files = [*one.folder.rglob("*"), *swept.store.parent.rglob("*"), one.postgres.folder / "log"]
    texts = [path.read_bytes().decode("utf-8", errors="replace") for path in files if path.is_file()]
    assert len(texts) > 10
    for login, password in one.postgres.passwords.items():
        token = password.partition(" ")[0]
        assert not [text[:200] for text in (*dumps, *texts, swept.printed) if token in text], login


def test_mlflow_and_optuna_can_be_used_without_the_mlflow_server(one: OneServer, swept: Swept, tmp_path: Path) -> None:
    """Directly on the database; the password of its URL is nowhere either, nor in the arguments of a process."""
    uri = one.postgres.url("mlflow", "mlflow")
    direct = finish(one, tmp_path / "mlruns", "credit_v2", "direct", {"MLFLOW_TRACKING_URI": uri})
    (parent,) = [run for run in runs(client(uri), "direct") if run.data.tags["forge.kind"] == "sweep"]
    assert parent.info.run_id == direct.result["run_id"]
    registered = client(uri).get_model_version_by_alias("direct", "challenger")
    assert looks(one, "credit_v2") == [(registered.run_id, "sweeps")]
    tokens = {word.partition(" ")[0] for word in one.postgres.passwords.values()}
    with ui(direct.store, {**one.variables, "MLFLOW_TRACKING_URI": uri}) as link:
        assert link.startswith("http://127.0.0.1:")
        arguments = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert any("optuna_dashboard" in words for words in arguments)
    assert not [words for words in arguments if any(token in words for token in tokens)]
    files = [path.read_bytes().decode("utf-8", errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    dumps = [one.postgres.run("pg_dump", name).stdout for name in DATABASES]
    for text in (*files, *dumps, direct.printed):
        assert not [text[:200] for token in tokens if token in text]


def test_optuna_dashboard_shows_the_study(one: OneServer, swept: Swept) -> None:
    """By `forge-sweep ui`, whose link leads to the MLflow server."""
    with ui(swept.store, one.variables) as link:
        assert link == swept.result["link"]
        assert link.startswith(f"{one.tracking}/#/experiments/")


def test_the_dashboard_of_compose_starts_and_is_healthy(one: OneServer, swept: Swept) -> None:
    port = free_port()
    replaced = {"0.0.0.0": "127.0.0.1", "8080": port}
    command, variables = service("optuna-dashboard", one.postgres, replaced)
    address = f"http://127.0.0.1:{port}"
    with (
        running(command, f"{address}/dashboard", log=swept.store.parent / "dashboard.log", **variables),
        urllib.request.urlopen(f"{address}/api/studies", timeout=30) as answer,
    ):
        names = [study["study_name"] for study in json.load(answer)["study_summaries"]]
        assert is_well("optuna-dashboard", one.postgres, {"8080": port})
    assert any(name.startswith("surface") for name in names)


def test_the_mlflow_server_is_well_and_answers_only_to_the_names_it_has_in_compose(one: OneServer) -> None:
    """Another name in the Host header is an attack by DNS rebinding."""

    def status(host: str) -> int:
        request = urllib.request.Request(f"{one.tracking}/api/2.0/mlflow/experiments/get?experiment_id=0")
        request.add_header("Host", host)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    port = one.tracking.rpartition(":")[2]
    assert is_well("mlflow", one.postgres, {"5000": port})
    assert not is_well("mlflow", one.postgres, {"5000": 1})
    asked = ("mlflow:5000", "localhost:5000", "127.0.0.1:5000", "evil.example:5000")
    assert [status(host) for host in asked] == [200, 200, 200, 403]


def test_a_wrong_password_of_the_study_database_is_said_and_not_repeated(
    one: OneServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGE_SWEEP_STORAGE", f"postgresql+psycopg://optuna:wr0ng@127.0.0.1:{one.postgres.port}/optuna")
    with pytest.raises(InputError, match="password authentication failed") as caught:
        find_study("surface", tmp_path)
    assert "wr0ng" not in str(caught.value)


def test_a_study_database_whose_driver_is_not_installed_names_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setenv("FORGE_SWEEP_STORAGE", "postgresql+psycopg://optuna:wr0ng@127.0.0.1/optuna")
    with pytest.raises(MissingExtra, match=r"\.\[postgres\]") as caught:
        find_study("surface", tmp_path)
    assert "wr0ng" not in str(caught.value)


def test_a_study_database_that_goes_away_stops_the_sweep_and_is_found_again(tmp_path: Path) -> None:
    """With the fix, not with Optuna's words on invalid data; connections that broke are replaced."""
    with postgres() as database:
        assert database.create_databases().returncode == 0
        storage = open_storage(database.url("optuna", "optuna"), tmp_path)
        assert storage.get_all_studies() == []
        database.stop()
        for _ in range(2):
            with pytest.raises(SweepStopped, match=r"study database does not answer(.|\n)*run the same command again"):
                storage.get_all_studies()
        database.start()
        assert storage.get_all_studies() == []
        ((open_now,),) = database.rows("optuna", CONNECTIONS)
        assert open_now == 1
        del storage
        gc.collect()
        assert database.rows("optuna", CONNECTIONS) == [(0,)]


CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'optuna'"
