"""The walk of the README: its own lines, on the data that ships, each as a user types it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from forge_sweep.registry import Champions, Change
from forge_sweep.tracking import Registry
from tests import servers
from tests.serving import need_the_extra

need_the_extra()
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sys.executable).parent


@dataclass(frozen=True)
class Line:
    """One command of the README.

    Attributes:
        command: as it stands there.
        code: the exit code that its comment names, else 0.
        background: whether it ends with ``&``.
    """

    command: str
    code: int
    background: bool


def walk() -> list[Line]:
    """The lines of the first console block below the heading."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## From winner to production")[2]
    block = text.partition("```console\n")[2].partition("```")[0]
    lines = []
    for line in block.splitlines():
        command, _, comment = line.removeprefix("$ ").partition("  #")
        code = re.search(r"exit code (\d+)", comment)
        command = command.strip()
        lines.append(Line(command.removesuffix("&").strip(), int(code[1]) if code else 0, command.endswith("&")))
    return lines


@dataclass
class Shell:
    """A terminal in a folder of its own. Ports that the README leaves at their default are free ones here."""

    folder: Path
    ui_port: int = field(default_factory=servers.free_port)
    port: int = field(default_factory=servers.free_port)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environ(self) -> dict[str, str]:
        """The scripts of this environment come first; nothing opens a browser."""
        return {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "BROWSER": "true"}

    def words(self, line: Line) -> str:
        """The line with ports that are free, and a server that looks for a new champion often."""
        command = line.command.replace("localhost:8080", f"127.0.0.1:{self.port}")
        if command.startswith("forge-sweep ui"):
            return f"{command} --port {self.ui_port}"
        return f"{command} --port {self.port} --poll-s 0.3" if command.startswith("forge-sweep serve") else command

    def run(self, line: Line) -> str:
        """What the command prints; in the background, the address it answers at."""
        if not line.background:
            done = subprocess.run(
                ["bash", "-c", self.words(line)],
                **{"cwd": self.folder, "env": self.environ, "capture_output": True, "text": True, "timeout": 550},
            )
            assert done.returncode == line.code, f"{line.command}\n{done.stdout}{done.stderr}"
            assert "Traceback" not in done.stderr, done.stderr
            return str(done.stdout)
        log = self.folder / f"background-{len(self.running)}.log"
        with log.open("wb") as file:
            command = ["bash", "-c", f"exec {self.words(line)}"]
            process = subprocess.Popen(command, cwd=self.folder, env=self.environ, stdout=file, stderr=file)
        self.running.append(process)
        ui = line.command.startswith("forge-sweep ui")
        address = f"http://127.0.0.1:{self.ui_port}/health" if ui else f"http://127.0.0.1:{self.port}/readyz"
        assert servers.answers(address, process), log.read_text(errors="replace")
        return log.read_text(errors="replace")

    def post(self) -> Any:
        """The row of the README, predicted by the server."""
        return posted(f"http://127.0.0.1:{self.port}/predict", json.loads((self.folder / ROW).read_text()))

    @property
    def aliases(self) -> dict[str, str]:
        """Of the model."""
        return Registry(self.folder / "mlruns").aliases("credit")

    @property
    def history(self) -> tuple[Change, ...]:
        """Every change of champion."""
        return Champions(Registry(self.folder / "mlruns"), "credit").history()


ROW = "experiments/data/row.json"


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A checkout's experiments with their data, and no store yet."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    made = Shell(tmp_path)
    yield made
    for process in made.running:
        process.send_signal(signal.SIGTERM)
    for process in made.running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        process.kill()


def posted(address: str, body: Any) -> Any:
    """The answer to JSON."""
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def until(condition: Callable[[], bool]) -> None:
    """Wait up to two minutes until something is so."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.timeout(1500)  # three sweeps on real data, two servers, and MLflow's own
def test_the_walk_of_the_readme(shell: Shell) -> None:
    """Every line in its order, and what a person would look at after it."""
    printed: dict[str, str] = {}
    for line in walk():
        printed[line.command] = shell.run(line)
        words = line.command.split()
        if words[:2] == ["forge-sweep", "ui"]:
            best = trials_of(f"http://127.0.0.1:{shell.ui_port}")
            assert len(best) == 2 and min(best.values()) > 0.7, "the trials of both sweeps, in one UI"
        elif "--dry-run" in words:
            assert shell.aliases == {"challenger": "2"} and shell.history == ()
        elif "first model" in line.command:
            assert shell.aliases == {"champion": "1", "challenger": "2"}
            (change,) = shell.history
            assert change.figures["baseline"]["outcome"] in ("better", "as good as") and not change.forced
        elif words[1] == "predict":
            scored = pd.read_csv(shell.folder / "scored.csv")
            assert len(scored) == len(pd.read_csv(shell.folder / "experiments/data/new.csv"))
        elif words[0] == "curl":
            answer = json.loads(printed[line.command])
            assert (answer["model"], answer["version"]) == ("credit", "1")
            assert not answer["predictions"][0]["warnings"] and answer == shell.post()
            said = answer["predictions"][0]["probabilities"]["bad"]
            assert said == pytest.approx(served_by_mlflow(shell), abs=1e-5)
            assert said == pytest.approx(scored["probability"][0], abs=1e-5), "the first of the new rows"
        elif "@challenger" in line.command:
            assert "REFUSED  beats-champion" in printed[line.command]
            assert shell.aliases == {"champion": "1", "challenger": "3"}, "a refusal changes nothing"
        elif "--force" in words:
            assert "reason on record: the rows it saw are newer" in printed[line.command]
            until(lambda: shell.post()["version"] == "3")
        elif words[1] == "rollback":
            assert shell.aliases == {"champion": "1", "previous": "3"}
            until(lambda: shell.post()["version"] == "1")
            assert shell.post() == answer
        elif words[1] == "card":
            assert "<h1>credit</h1>" in (shell.folder / "card.html").read_text(encoding="utf-8")
    assert len(printed) >= 14
    assert [(change.action, change.to, change.reason) for change in shell.history] == [
        ("promote", "1", "first model"),
        ("promote", "3", "the rows it saw are newer"),
        ("rollback", "1", "complaints"),
    ]
    assert (
        "beats-champion" in shell.history[1].forced and "promote 1 -> 3" in printed["forge-sweep models history credit"]
    )
    looks = [json.loads(line) for line in (shell.folder / "mlruns" / "test_looks.jsonl").read_text().splitlines()]
    assert len({look["run"] for look in looks}) == 3, "one evaluation for each of the three models"


def trials_of(address: str) -> dict[str, float]:
    """Best val_auc of the trials of each sweep, as the page that compares them asks an MLflow server."""
    api = f"{address}/api/2.0/mlflow"
    with urllib.request.urlopen(f"{api}/experiments/search?max_results=100", timeout=60) as answer:
        ids = [each["experiment_id"] for each in json.load(answer)["experiments"]]
    wanted = {"experiment_ids": ids, "filter": "tags.`forge.kind` = 'trial'", "max_results": 100}
    best: dict[str, float] = {}
    for run in posted(f"{api}/runs/search", wanted)["runs"]:
        figures = {each["key"]: each["value"] for each in run["data"]["metrics"]}
        (parent,) = [tag["value"] for tag in run["data"]["tags"] if tag["key"] == "mlflow.parentRunId"]
        best[parent] = max(best.get(parent, 0.0), figures["best_val_auc"])
    return best


def served_by_mlflow(shell: Shell) -> float:
    """What `mlflow models serve` says of the row."""
    port = servers.free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/credit@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    uri, address = f"sqlite:///{shell.folder / 'mlruns' / 'mlflow.db'}", f"http://127.0.0.1:{port}"
    row = json.loads((shell.folder / ROW).read_text())
    with servers.running(command, f"{address}/ping", log=shell.folder / "mlflow.log", MLFLOW_TRACKING_URI=uri):
        answer = posted(f"{address}/invocations", {"dataframe_records": [row]})
    return float(answer["predictions"][0]["probability"])
