"""The servers of compose.yaml without Docker: one PostgreSQL with three databases, and an MLflow server on one of them.

Databases, logins, passwords, commands and variables are those of compose/databases.sh and compose.yaml; only addresses
and folders differ. `python -m tests.one_server COMMAND ...` runs a command beside them, with the variables set that a
client needs, and OWNER_URL for ingesting.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import yaml

from tests.postgres import running_server
from tests.servers import free_port, running

ROOT = Path(__file__).resolve().parents[1]
LOGINS = ("admin", "features", "sweeps", "mlflow", "optuna")
DATABASES = ("features", "mlflow", "optuna")
HOST = "127.0.0.1"

# As in the image: the superuser needs no password on the socket, everybody needs one over TCP.
ACCESS = "local all postgres trust\nhost all all all scram-sha-256\n"


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL that asks for passwords.

    Attributes:
        folder: of its files, and of its socket.
        port: on the loopback interface.
        programs: folder of psql, pg_dump and the others.
        passwords: by login.
        control: runs pg_ctl.
    """

    folder: Path
    port: int
    programs: Path
    passwords: Mapping[str, str] = field(repr=False)
    control: Callable[..., None] = field(repr=False)

    def start(self) -> None:
        """Start it, where it is stopped."""
        self.control("start", "-o", f"-h {HOST} -p {self.port} -k {self.folder}")

    def stop(self) -> None:
        """Stop it as a crash would."""
        self.control("stop", "-m", "immediate")

    @property
    def variables(self) -> dict[str, str]:
        """The passwords as compose.yaml and databases.sh take them."""
        return {f"FORGE_SWEEP_{login.upper()}_PASSWORD": word for login, word in self.passwords.items()}

    def url(self, login: str, database: str, scheme: str = "postgresql+psycopg") -> str:
        """The URL of a database, password included."""
        return f"{scheme}://{login}:{quote(self.passwords[login], safe='')}@{HOST}:{self.port}/{database}"

    def rows(self, database: str, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a query gives the superuser."""
        where = {"host": str(self.folder), "port": self.port, "user": "postgres", "dbname": database}
        with psycopg.connect(**where, autocommit=True) as connection:  # type: ignore[arg-type]
            cursor = connection.execute(query, values)
            return cursor.fetchall() if cursor.description else []

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the superuser, with PostgreSQL's own programs before any others."""
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        where = {"PATH": path, "PGHOST": str(self.folder), "PGPORT": str(self.port), "PGUSER": "postgres"}
        environ = {**os.environ, **where, **variables}
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)

    def create_databases(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the script that compose.yaml runs on a new server."""
        return self.run("sh", str(ROOT / "compose" / "databases.sh"), **{**self.variables, **variables})


@dataclass(frozen=True)
class OneServer:
    """PostgreSQL with its databases, and an MLflow server on it.

    Attributes:
        postgres: the database server.
        tracking: address of the MLflow server.
        folder: of artifacts and logs.
    """

    postgres: Postgres
    tracking: str
    folder: Path

    @property
    def owner_url(self) -> str:
        """The feature store, for ingesting."""
        return self.postgres.url("features", "features", "postgresql")

    @property
    def variables(self) -> dict[str, str]:
        """What whoever runs sweeps exports."""
        return {
            "MLFLOW_TRACKING_URI": self.tracking,
            "FORGE_SWEEP_STORAGE": self.postgres.url("optuna", "optuna"),
            "FORGE_SWEEP_DATABASE_URL": self.postgres.url("sweeps", "features", "postgresql"),
        }


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A new PostgreSQL; its passwords hold all signs that a shell, SQL or a URL could trip over."""
    with running_server() as server:
        folder = server.running.pgdata
        (folder / "pg_hba.conf").write_text(ACCESS, encoding="utf-8")
        passwords = {login: f"""{secrets.token_hex(8)} '"$@/:%?#\\""" for login in LOGINS}
        made = Postgres(folder, free_port(), server.running.bin_path, passwords, server.control)
        made.stop()
        made.start()
        try:
            yield made
        finally:
            made.stop()


@contextlib.contextmanager
def one_server(folder: Path) -> Iterator[OneServer]:
    """All of it, running.

    Args:
        folder: for artifacts and logs.
    """
    with postgres() as database:
        made = database.create_databases()
        assert made.returncode == 0, made.stderr
        port = free_port()
        command, variables = service("mlflow", database, {"0.0.0.0": HOST, "5000": str(port), "/work/mlruns": folder})
        address = f"http://{HOST}:{port}"
        with running(command, f"{address}/health", log=folder / "mlflow.log", **variables):
            yield OneServer(database, address, folder)


def service(name: str, database: Postgres, replaced: Mapping[str, object]) -> tuple[list[str], dict[str, str]]:
    """Command and variables of a service, as compose.yaml has them but for some words.

    Args:
        name: of the service.
        database: the server that stands for the service `postgres`.
        replaced: text to replace and what stands for it on this machine.
    """
    wanted = composed(database.variables)["services"][name]
    words = {"@postgres:5432": f"@{HOST}:{database.port}", **replaced}
    command = [here(word, words) for word in (*wanted["entrypoint"], *wanted["command"])]
    command[0] = str(Path(sys.executable).with_name(command[0]))
    return command, {key: here(value, words) for key, value in wanted["environment"].items()}


def is_well(name: str, database: Postgres, replaced: Mapping[str, object]) -> bool:
    """Whether the health check of a service is content with a server on this machine."""
    words = composed(database.variables)["services"][name]["healthcheck"]["test"]
    command = [here(word, replaced) for word in words[1:]]
    command[0] = {"python": sys.executable}.get(command[0], command[0])
    return database.run(*command).returncode == 0


def here(text: str, replaced: Mapping[str, object]) -> str:
    """Text of compose.yaml with the words of this machine."""
    for old, new in replaced.items():
        text = text.replace(old, str(new))
    return text


def composed(variables: Mapping[str, str]) -> Any:
    """compose.yaml with its variables put in, as Compose does it: ``${NAME:-default}`` and ``${NAME:?message}``."""

    def put_in(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: put_in(each) for key, each in value.items()}
        if isinstance(value, list):
            return [put_in(each) for each in value]
        return VARIABLE.sub(lambda found: given(*found.groups()), value) if isinstance(value, str) else value

    def given(name: str, kind: str, text: str) -> str:
        if not variables.get(name) and kind == "?":
            raise KeyError(f"{name} {text}")
        return variables.get(name) or text

    return put_in(yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8")))


VARIABLE = re.compile(r"\$\{(\w+):([-?])([^}]*)\}")


def main(command: list[str]) -> int:
    """Run a command beside the servers; its exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended by a supervisor: end the servers too
    with tempfile.TemporaryDirectory() as folder, one_server(Path(folder)) as server:
        # A cache of its own: the rows are to come from the server.
        variables = {**server.variables, "OWNER_URL": server.owner_url, "FORGE_SWEEP_CACHE": f"{folder}/cache"}
        return subprocess.run(command, env={**os.environ, **variables}, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
