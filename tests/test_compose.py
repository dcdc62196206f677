"""compose.yaml and its script, as far as they can be judged without a container engine; the script runs for real."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from forge_sweep import sources
from forge_sweep.experiment import DataSpec
from forge_sweep.feature_store.connection import Address
from forge_sweep.feature_store.ingest import ingest
from forge_sweep.feature_store.schema import init
from tests.one_server import DATABASES, LOGINS, ROOT, Postgres, composed, is_well, postgres

TEXT = (ROOT / "compose.yaml").read_text(encoding="utf-8")
PLAIN: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = PLAIN["services"]
PASSWORDS = {f"FORGE_SWEEP_{login.upper()}_PASSWORD": f"word-{login}" for login in LOGINS}
SCRIPT = ROOT / "compose" / "databases.sh"

each_service = pytest.mark.parametrize("name", SERVICES)


@pytest.fixture(scope="module")
def prepared() -> Iterator[Postgres]:
    """A real server on which the script ran, twice."""
    with postgres() as server:
        for _ in range(2):
            done = server.create_databases()
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        yield server


def test_the_services_are_those_of_the_guide() -> None:
    assert set(SERVICES) == {"postgres", "mlflow", "optuna-dashboard"}


@each_service
def test_what_runs_is_pinned(name: str) -> None:
    """By digest, or built here: from a base that the Dockerfile pins and a lock with hashes."""
    service = SERVICES[name]
    if "build" not in service:
        assert re.fullmatch(r"[a-z./-]+:[\w.-]+@sha256:[0-9a-f]{64}", service["image"])
    else:
        assert service["build"]["context"] == "."
        lock = (ROOT / service["build"]["args"]["LOCK"]).read_text(encoding="utf-8")
        needed = {"mlflow": "mlflow==", "optuna-dashboard": "optuna-dashboard=="}[name]
        assert re.search(rf"^{needed}", lock, flags=re.MULTILINE)
        assert re.search(r"^psycopg-binary==", lock, flags=re.MULTILINE)


@each_service
def test_ports_are_open_to_this_machine_only(name: str) -> None:
    ports = composed(PASSWORDS)["services"][name]["ports"]
    assert ports
    for port in ports:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@each_service
def test_every_service_says_whether_it_is_well_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} < set(service["healthcheck"])


@each_service
def test_servers_wait_for_a_database_that_is_ready(name: str) -> None:
    expected = None if name == "postgres" else {"postgres": {"condition": "service_healthy"}}
    assert SERVICES[name].get("depends_on") == expected


@pytest.mark.parametrize("missing", PASSWORDS)
def test_a_password_that_is_missing_or_empty_is_asked_for_by_name(missing: str) -> None:
    for passwords in ({k: v for k, v in PASSWORDS.items() if k != missing}, PASSWORDS | {missing: ""}):
        with pytest.raises(KeyError, match=missing):
            composed(passwords)


def test_passwords_are_in_the_environment_of_those_who_need_them_and_nowhere_else() -> None:
    """No literal, none on a command line, and none in a URL, where signs such as / and @ would break it."""
    whole = composed(PASSWORDS)["services"]
    needed = {
        "postgres": set(LOGINS),
        "mlflow": {"mlflow"},
        "optuna-dashboard": {"optuna"},
    }
    for name, service in whole.items():
        environment = service.pop("environment")
        held = {value for value in environment.values() if "word-" in value}
        assert held == {f"word-{login}" for login in needed[name]}
        assert "word-" not in str(service)
    for service in SERVICES.values():
        passwords = [value for key, value in service["environment"].items() if "PASSWORD" in key]
        assert all(re.fullmatch(r"\$\{\w+_PASSWORD:\?[^}]+\}", value) for value in passwords)
    assert not re.search(r"//\w+:[^@\s]+@", TEXT)


@each_service
def test_every_file_and_volume_it_names_is_there(name: str) -> None:
    volumes = SERVICES[name].get("volumes", [])
    for volume in volumes:
        source = volume.partition(":")[0]
        assert (ROOT / source).is_file() if source.startswith("./") else source in PLAIN["volumes"]


def test_the_script_is_where_the_image_looks_for_it_and_can_be_run() -> None:
    folder = "/docker-entrypoint-initdb.d/"
    assert f"./compose/databases.sh:{folder}databases.sh:ro" in SERVICES["postgres"]["volumes"]
    assert os.access(SCRIPT, os.X_OK)
    assert subprocess.run(["sh", "-n", str(SCRIPT)], check=False).returncode == 0


def test_postgresql_keeps_its_files_where_image_18_puts_them() -> None:
    """Below /var/lib/postgresql/data, as up to 17, they would be lost with the container."""
    major = re.search(r"postgres:(\d+)", SERVICES["postgres"]["image"])
    assert major is not None and int(major[1]) >= 18
    assert "postgres:/var/lib/postgresql" in SERVICES["postgres"]["volumes"]


def test_artifacts_are_kept_in_a_folder_that_the_images_user_may_write() -> None:
    (volume,) = SERVICES["mlflow"]["volumes"]
    mount = volume.partition(":")[2]
    destination = f"--artifacts-destination={mount}/artifacts"
    assert destination in SERVICES["mlflow"]["command"]
    assert f"chmod 1777 {mount}" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_postgresql_is_well_once_it_answers_over_tcp(prepared: Postgres) -> None:
    """By the very command that Compose runs."""
    assert is_well("postgres", prepared, {"5432": prepared.port})
    assert not is_well("postgres", prepared, {"5432": 1})


def test_the_script_makes_three_databases_with_an_owner_each(prepared: Postgres) -> None:
    columns = "datname, pg_get_userbyid(datdba), pg_encoding_to_char(encoding)"
    query = f"SELECT {columns} FROM pg_database WHERE NOT datistemplate"
    found = {name: (owner, encoding) for name, owner, encoding in prepared.rows("postgres", query)}
    found.pop("postgres")
    assert found == {name: (name, "UTF8") for name in DATABASES}


def test_no_login_has_more_rights_than_it_needs(prepared: Postgres) -> None:
    """None is a superuser, makes roles or databases, or passes row-level security by."""
    rights = "rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls"
    query = f"SELECT rolname FROM pg_roles WHERE rolcanlogin AND NOT ({rights})"
    assert {name for (name,) in prepared.rows("postgres", query)} == {"features", "sweeps", "mlflow", "optuna"}
    query = "SELECT pg_get_userbyid(member), pg_get_userbyid(roleid) FROM pg_auth_members"
    held = {(login, role) for login, role in prepared.rows("postgres", query) if not login.startswith("pg_")}
    assert held == {(login, role) for login in ("features", "sweeps") for role in ("forge_tuner", "forge_confirm")}


def test_each_login_gets_into_its_own_database_by_its_password_only(prepared: Postgres) -> None:
    allowed = {("sweeps", "features"), *((name, name) for name in DATABASES)}
    entered = set()
    for login in ("features", "sweeps", "mlflow", "optuna"):
        for name in DATABASES:
            try:
                psycopg.connect(prepared.url(login, name, "postgresql")).close()
                entered.add((login, name))
            except psycopg.OperationalError as error:
                assert "permission denied for database" in str(error)
    assert entered == allowed
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(prepared.url("mlflow", "mlflow", "postgresql").replace("@127", "x@127"))


def test_sweeps_may_make_nothing_in_the_feature_store(prepared: Postgres) -> None:
    with (
        psycopg.connect(prepared.url("sweeps", "features", "postgresql")) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("CREATE TABLE mine (x integer)")


def test_the_script_changes_a_password_when_it_runs_again(prepared: Postgres) -> None:
    assert prepared.create_databases(FORGE_SWEEP_OPTUNA_PASSWORD="another").returncode == 0
    where = f"127.0.0.1:{prepared.port}/optuna"
    psycopg.connect(f"postgresql://optuna:another@{where}").close()
    prepared.create_databases()


@pytest.mark.parametrize("login", ["features", "sweeps", "mlflow", "optuna"])
def test_the_script_names_a_password_that_is_not_set(prepared: Postgres, login: str) -> None:
    variable = f"FORGE_SWEEP_{login.upper()}_PASSWORD"
    refused = prepared.create_databases(**{variable: ""})
    assert refused.returncode != 0
    assert f"{variable}: is not set" in refused.stderr


def test_the_servers_log_holds_no_password_even_where_a_statement_fails(prepared: Postgres) -> None:
    """And where it is told to log every statement."""
    prepared.rows("postgres", "ALTER SYSTEM SET log_statement = 'all'")
    prepared.rows("postgres", "SELECT pg_reload_conf()")
    failed = prepared.create_databases(PGOPTIONS="-c default_transaction_read_only=on")
    assert failed.returncode != 0
    assert prepared.create_databases().returncode == 0
    log = (prepared.folder / "log").read_text(encoding="utf-8")
    assert "cannot execute ALTER ROLE in a read-only transaction" in log
    assert not [login for login, word in prepared.passwords.items() if word.partition(" ")[0] in log]


def test_the_statements_of_the_guide_set_up_a_store_that_sweeps_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a server where nothing was set up: the owner ingests, and a further person reads."""
    guide = (ROOT / "docs" / "feature-store.md").read_text(encoding="utf-8")
    setup, person = re.findall(r"```sql\n(.*?)```", guide, flags=re.DOTALL)[:2]
    statements = re.sub(r"--.*", "", setup + person).split(";")
    with postgres() as server:
        for statement in filter(str.strip, statements):
            server.rows("postgres", statement)
        for login in ("features", "sweeps", "anna"):
            server.rows("postgres", f"ALTER ROLE {login} PASSWORD 'word'")
        urls = {login: f"postgresql://{login}:word@127.0.0.1:{server.port}/features" for login in ("features", "anna")}
        owner = Address.parse(urls["features"])
        init(owner)
        section: dict[str, Any] = {"target": "Status", "task": "binary", "positive": "bad"}
        spec = DataSpec(path="credit.csv", key="id", **section)
        ingest(spec, name="v1", root=ROOT / "experiments" / "data", seed=0, address=owner)
        monkeypatch.setenv("FORGE_SWEEP_DATABASE_URL", urls["anna"])
        monkeypatch.setenv("FORGE_SWEEP_CACHE", str(tmp_path))
        dataset = sources.load(DataSpec(source="postgres", version="v1", **section), root=Path(), seed=0)
        assert dataset.warnings == ()
        dataset.look_at_test("a test", tmp_path / "looks.jsonl")
        assert server.rows("features", "SELECT db_user, purpose FROM test_looks") == [("anna", "a test")]
        for table, columns in server.rows("features", TABLES):
            assert f"| `{table}` |" in guide
            assert [name for name in columns if f"`{name}`" not in guide] == []


TABLES = """
SELECT table_name::text, array_agg(column_name::text) FROM information_schema.columns
WHERE table_schema = 'public' AND table_name !~ '_v[0-9]+$|^alembic' GROUP BY table_name
"""
