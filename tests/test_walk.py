"""The walk of the README: two sweeps, compared, promoted, served, a third refused within noise, forced, rolled back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.serving import need_the_extra, serving
from tests.shop import loans

need_the_extra()
pytestmark = pytest.mark.slow

FORGE_SWEEP = str(Path(sys.executable).with_name("forge-sweep"))

TOML = """
name = "{name}"
description = "Who pays back"
seed = 3
[data]
path = "loans.csv"
target = "label"
task = "binary"
version = "loans_v1"
[model.search]
width = {{ type = "int", low = 24, high = {high} }}
learning_rate = 0.01
[objective]
metric = "val_auc"
[study]
n_trials = 1
epochs = 12
[baselines]
kinds = ["constant"]
[confirm]
top = 1
seeds = 1
[tracking]
model_name = "loans"
[promotion]
groups = ["city"]
max_latency_ms = 60000.0
"""


ROW = {"a": 1.5, "b": 1.0, "c": 0.2, "d": 0.0, "city": "Bern"}


def posted(address: str, body: Any) -> Any:
    """The answer to JSON, as curl gets it."""
    curl = shutil.which("curl")
    text = json.dumps(body)
    if curl is None:
        request = urllib.request.Request(address, text.encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    words = [curl, "--silent", "--show-error", "--fail", address, "-H", "Content-Type: application/json", "-d", text]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout)


def until(condition: Callable[[], bool]) -> None:
    """Wait up to a minute until something is so."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_walk_of_the_readme(tmp_path: Path) -> None:
    """Every step as a user types it, each in a process of its own."""
    store = tmp_path / "mlruns"

    def forge_sweep(*words: str, code: int = 0) -> Any:
        done = subprocess.run([FORGE_SWEEP, *words], cwd=tmp_path, capture_output=True, text=True, timeout=250)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def aliases() -> dict[str, str]:
        (model,) = json.loads(forge_sweep("models", "list", "--json"))
        found: dict[str, str] = model["aliases"]
        return found

    loans(1_500).to_csv(tmp_path / "loans.csv", index=False)
    for name, high in (("first", 32), ("wider", 33), ("widest", 34)):
        (tmp_path / f"{name}.toml").write_text(textwrap.dedent(TOML.format(name=name, high=high)))

    forge_sweep("run", "first.toml")
    forge_sweep("run", "wider.toml")
    with servers.ui(store, name="wider") as link:
        compared = trials_of(link.partition("/#/")[0])
    assert set(compared) == {"first", "wider"} and min(compared.values()) > 0.5, "both sweeps, in one UI"

    done = json.loads(forge_sweep("promote", "loans", "1", "--reason", "first model", "--json"))
    assert done["promoted"] and done["champion"] is None and done["figures"]["baseline"]["low"] > 0

    with serving("models:/loans@champion", tmp_path / "served", "--store", str(store), "--poll-s", "0.3") as api:
        address = f"http://127.0.0.1:{api.port}/predict"
        answer = posted(address, ROW)
        assert (answer["model"], answer["version"]) == ("loans", "1") and not answer["predictions"][0]["warnings"]
        assert served_by_mlflow(store, tmp_path) == pytest.approx(
            answer["predictions"][0]["probabilities"]["1"], abs=1e-5
        )

        forge_sweep("run", "widest.toml")
        refused = json.loads(forge_sweep("promote", "loans", "@challenger", "--json", code=3))
        assert refused["version"] == "3" and refused["refused"] == ["beats-champion"], refused
        gain = refused["figures"]["champion"]
        assert gain["low"] <= 0 <= gain["high"] or gain["gain"] == 0
        assert aliases() == {"champion": "1", "challenger": "3"}, "a refusal changes nothing"

        shown = forge_sweep("promote", "loans", "3", "--force", "the rows it saw are newer")
        assert "overruled: beats-champion; reason on record: the rows it saw are newer" in shown
        until(lambda: posted(address, ROW)["version"] == "3")
        forge_sweep("rollback", "loans", "--reason", "complaints")
        assert aliases() == {"champion": "1", "previous": "3"}
        until(lambda: bool(posted(address, ROW) == answer))
        assert api.end() == 0

    history = json.loads(forge_sweep("models", "history", "loans", "--json"))
    assert [(each["action"], each["to"], each["reason"]) for each in history] == [
        ("promote", "1", "first model"),
        ("promote", "3", "the rows it saw are newer"),
        ("rollback", "1", "complaints"),
    ]
    assert history[1]["forced"] == ["beats-champion"]
    looks = [json.loads(line)["purpose"] for line in (store / "test_looks.jsonl").read_text().splitlines()]
    expected = ["final", "final", "promotion", "final", "promotion", "promotion"]
    assert [look.split()[0] for look in looks] == expected


def trials_of(address: str) -> dict[str, float]:
    """Best val_auc of the trials of each sweep, as the page that compares them asks an MLflow server."""
    api = f"{address}/api/2.0/mlflow"
    with urllib.request.urlopen(f"{api}/experiments/search?max_results=100", timeout=60) as answer:
        names = {each["experiment_id"]: each["name"] for each in json.load(answer)["experiments"]}
    wanted = {"experiment_ids": [*names], "filter": "tags.`forge.kind` = 'trial'", "max_results": 100}
    best: dict[str, float] = {}
    for run in posted(f"{api}/runs/search", wanted)["runs"]:
        figures = {each["key"]: each["value"] for each in run["data"]["metrics"]}
        name = names[run["info"]["experiment_id"]]
        best[name] = max(best.get(name, 0.0), figures["best_val_auc"])
    return best


def served_by_mlflow(store: Path, folder: Path) -> float:
    """What `mlflow models serve` says of the row."""
    port = servers.free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/loans@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    uri = f"sqlite:///{store / 'mlflow.db'}"
    address = f"http://127.0.0.1:{port}"
    with servers.running(command, f"{address}/ping", log=folder / "mlflow.log", MLFLOW_TRACKING_URI=uri):
        answer = posted(f"{address}/invocations", {"dataframe_records": [ROW]})
    return float(answer["predictions"][0]["probability"])
