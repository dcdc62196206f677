"""Every command in surroundings that are broken: words and an exit code, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from forge_sweep import sweep
from forge_sweep.cli import app
from forge_sweep.experiment import parse
from tests.surface import experiment, fake_run, no_network
from tests.warm import Done, Warm, leaves

COMMANDS = dict(leaves(get_command(app)))
BLOCKING = {("serve",), ("ui",)}
FORGE_SWEEP = str(Path(sys.executable).with_name("forge-sweep"))

TOML = """
name = "surface"
seed = 3
[data]
source = "sample"
name = "wine"
target = "target"
task = "multiclass"
[model.search]
width = { type = "int", low = 4, high = 64, log = true }
dropout = { type = "float", low = 0.0, high = 0.5 }
[objective]
metric = "val_auc"
[study]
n_trials = 6
epochs = 6
startup_trials = 1
warmup_epochs = 1
[baselines]
kinds = ["constant"]
[confirm]
top = 2
seeds = 2
"""

WORDS: dict[str, str] = {
    "experiment": "e.toml",
    "model": "surface",
    "version": "1",
    "run": "models:/surface/1",
    "models": "models:/surface/1",
    "file": "rows.csv",
    "path": "rows.csv",
    "target": "b",
    "moment": "2026-05-01",
    "a": "v1",
    "b": "v2",
    "kind": "keras",
    "trial": "0",
    "output": "out.html",
}
"""What stands for each argument, and for each option that has to be given, by its name in the code."""

ADDRESSED = {("serve",), ("predict",), ("export",)}
"""Commands whose MODEL is an address."""

EXTRA = {
    ("worker",): ["--wait", "0"],
    ("doctor",): ["--quick"],
    ("data", "drop"): ["--yes"],
    ("data", "ingest"): ["--version", "v1"],
}


def words_of(path: tuple[str, ...], given: Mapping[str, str]) -> list[str]:
    """A command line that is complete."""
    words = [*path]
    known = {**WORDS, **({"model": "models:/surface/1"} if path in ADDRESSED else {}), **given}
    for param in COMMANDS[path].params:
        if param.param_type_name == "argument" and param.name not in ("overrides",):
            words.append(known[param.name])
        elif param.param_type_name == "option" and param.name in known and (param.required or param.name in given):
            words += [param.opts[-1], known[param.name]]
    return words + EXTRA.get(path, [])


def test_a_new_command_is_walked_too() -> None:
    """A new argument needs a word in `WORDS`: without it the walk would not be one."""
    for path in COMMANDS:
        assert words_of(path, {})[: len(path)] == list(path)
    assert len(COMMANDS) > 25


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as process:
        yield process


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete sweep in its store."""
    folder = tmp_path_factory.mktemp("complete")
    (folder / "e.toml").write_text(TOML)
    (folder / "rows.csv").write_text("a,b\n1,2\n")
    assert parse(tomllib.loads(TOML), root=Path()) == experiment(), "the store is that of another experiment"
    with no_network(fake_run()):
        sweep.run(experiment(), store=folder / "mlruns")
    return folder


def silent(path: tuple[str, ...], done: Done) -> str | None:
    """What is wrong with how a command ended, or None."""
    text = done.stdout + done.stderr
    if "Traceback" in text or "unexpected" in text:
        return f"{' '.join(path)}: {text[-600:]}"
    if done.code not in (0, 1, 2, 3):
        return f"{' '.join(path)}: exit code {done.code}: {text[-600:]}"
    if done.code and not done.stderr.strip():
        return f"{' '.join(path)}: exit code {done.code} without a word"
    return None


def walk(warm: Warm, cwd: Path, given: Mapping[str, str] | None = None, *, but: set[Any] = set(), **how: Any) -> None:  # noqa: B006 never changed
    """Run every command and collect what is wrong."""
    wrong = []
    for path in COMMANDS:
        if path not in but:
            wrong.append(silent(path, warm(*words_of(path, given or {}), cwd=cwd, **how)))
    assert [found for found in wrong if found] == []


def test_nothing_is_there(warm: Warm, tmp_path: Path) -> None:
    """No experiment, no store, no rows, no database."""
    walk(warm, tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"\x89PNG\r\n\x1a\n\x00\xff", TOML.encode("utf-16"), b"a = " + b"[" * 20_000, b"", b"a" * 2_000_000],
    ids=["binary", "utf-16", "nested", "empty", "long"],
)
def test_the_experiment_file_is_none(warm: Warm, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e.toml").write_bytes(content)
    walk(warm, tmp_path, but={path for path in COMMANDS if "experiment" not in names_of(path)})


@pytest.mark.parametrize("place", [".", "/dev/zero", "/proc/1/mem", "e.toml/x", "n" * 300 + ".toml", "\udcff.toml"])
def test_the_experiment_file_is_at_no_place_for_one(warm: Warm, tmp_path: Path, place: str) -> None:
    (tmp_path / "e.toml").write_text(TOML)
    given = {"experiment": place}
    walk(warm, tmp_path, given, but={path for path in COMMANDS if "experiment" not in names_of(path)})


def names_of(path: tuple[str, ...]) -> set[str]:
    """Names of a command's parameters."""
    return {param.name for param in COMMANDS[path].params}


@pytest.mark.parametrize("kind", ["file", "below a file", "not databases", "folders", "/proc"])
def test_the_store_is_none(warm: Warm, tmp_path: Path, kind: str) -> None:
    (tmp_path / "e.toml").write_text(TOML)
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    store = tmp_path / "store"
    if kind == "file":
        store.write_text("")
    elif kind == "below a file":
        store.write_text("")
        store = store / "inner"
    elif kind == "not databases":
        store.mkdir()
        for name in ("mlflow.db", "optuna.db"):
            (store / name).write_text("these are no tables\n" * 100)
    elif kind == "folders":
        for name in ("mlflow.db", "optuna.db"):
            (store / name).mkdir(parents=True)
    else:
        store = Path(kind) / "forge"
    walk(warm, tmp_path, {"store": str(store)}, but={path for path in COMMANDS if "store" not in names_of(path)})


@pytest.mark.parametrize("home", [None, "/dev/null/home"])
def test_there_is_no_home(warm: Warm, complete: Path, home: str | None) -> None:
    walk(warm, complete, env={"HOME": home}, but=BLOCKING | SLOW)


SLOW: set[tuple[str, ...]] = {("export",), ("reproduce",), ("promote",), ("rollback",), ("predict",)}
"""Commands that would load TensorFlow, or change the store, where everything is there."""


@pytest.mark.parametrize(
    "env",
    [
        {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"},
        {"MLFLOW_TRACKING_URI": "://"},
        {"MLFLOW_TRACKING_URI": "http://[::1"},
        {"MLFLOW_TRACKING_URI": "sqlite:////proc/none/mlflow.db"},
        {"FORGE_SWEEP_STORAGE": "sqlite:////proc/none/optuna.db"},
        {"FORGE_SWEEP_STORAGE": "no address"},
        {"FORGE_SWEEP_STORAGE": "postgresql://nobody@127.0.0.1:1/none"},
        {"FORGE_SWEEP_DATABASE_URL": "http://x"},
        {"FORGE_SWEEP_IMAGE_DIGEST": "latest", "FORGE_SWEEP_API_KEY": ""},
    ],
    ids=lambda env: next(iter(env)) + " " + next(iter(env.values()))[:22],
)
def test_addresses_lead_nowhere(warm: Warm, tmp_path: Path, env: dict[str, str | None]) -> None:
    (tmp_path / "e.toml").write_text(TOML)
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    long = {("run",), ("worker",)} if "http://127.0.0.1:1" in env.values() else set()  # they wait for it to come back
    concerned = {path for path in COMMANDS if ("data" in path) == ("FORGE_SWEEP_DATABASE_URL" in env)}
    walk(warm, tmp_path, env=env, but=long | BLOCKING | (COMMANDS.keys() - concerned))


@pytest.mark.parametrize("word", ["", "n" * 5000, "[/red]\udcff", "a\nb\x1b[31m"])
def test_names_that_nobody_has(warm: Warm, complete: Path, word: str) -> None:
    """Unknown names, and names that no database, file or terminal takes."""
    given = {name: word for name in WORDS if name not in ("output",)}
    walk(warm, complete, given)


@pytest.mark.parametrize("kind", ["folder", "below a file", "long", "/proc"])
def test_outputs_cannot_be_written(warm: Warm, complete: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    place = {"folder": tmp_path, "below a file": tmp_path / "file" / "x.html", "long": tmp_path / ("n" * 300 + ".html")}
    output = str(place.get(kind, "/proc/none/x.html"))
    writing = {path for path in COMMANDS if "output" in names_of(path)}
    wrong = []
    for path in writing:
        done = warm(*words_of(path, {"output": output}), cwd=complete)
        wrong.append(silent(path, done) or (None if done.code == 2 or kind == "/proc" else f"{path}: {done}"))
    assert [found for found in wrong if found] == []


HOW: dict[str, dict[str, Any]] = {
    "empty variables": {
        "env": dict.fromkeys(
            [
                *("KERAS_BACKEND", "FORGE_SWEEP_STORAGE", "FORGE_SWEEP_DATABASE_URL", "FORGE_SWEEP_CACHE", "TERM"),
                *("MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_TIMEOUT", "FORGE_SWEEP_IMAGE_DIGEST", "NO_COLOR"),
                *("COLUMNS", "LINES", "FORCE_COLOR", "HOME", "XDG_CACHE_HOME"),
            ],
            "",
        )
    },
    "60 columns": {"env": {"COLUMNS": "60", "TERM": "dumb", "FORCE_COLOR": "1"}},
    "ASCII": {"encoding": "ascii"},
    "a pipe that nobody reads": {"stdout": "pipe"},
    "no standard output": {"stdout": "closed"},
    "a full disk": {"stdout": "/dev/full"},
}


@pytest.mark.parametrize("how", HOW)
def test_the_terminal_is_poor(warm: Warm, complete: Path, how: str) -> None:
    wrong = []
    for path in COMMANDS:
        if path not in BLOCKING | SLOW:
            done = warm(*words_of(path, {}), cwd=complete, **HOW[how])
            quiet = done.code == 1 and how in ("a pipe that nobody reads", "a full disk")
            wrong.append(None if quiet and not done.stderr.strip() else silent(path, done))
    assert [found for found in wrong if found] == []


def test_the_folder_is_gone(warm: Warm, tmp_path: Path) -> None:
    """The working folder was deleted under the shell."""
    for path in COMMANDS:
        folder = tmp_path / "-".join(path)
        folder.mkdir()
        assert silent(path, warm(*words_of(path, {}), cwd=folder, gone=True)) is None


@pytest.mark.parametrize("words", [["status", "surface"], ["--help"], ["trials", "surface", "--json"], ["nonsense"]])
def test_a_real_process_in_the_c_locale(complete: Path, words: list[str]) -> None:
    """Python's own streams are ASCII then."""
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([FORGE_SWEEP, *words], cwd=complete, env=env, capture_output=True, check=False, timeout=120)
    assert b"Traceback" not in done.stderr and done.stdout.isascii()
    assert done.returncode == (2 if words == ["nonsense"] else 0)


def test_a_real_pipe_whose_reader_leaves(complete: Path) -> None:
    """As in `forge-sweep trials NAME | head -1`."""
    line = f"{FORGE_SWEEP} trials surface | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=complete, capture_output=True, check=False, timeout=120)
    assert done.stderr == b""
