"""A real `forge-sweep serve` in a process of its own, and callers."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forge_sweep import baselines, models, training
from forge_sweep.bundle import Bundle
from forge_sweep.preprocessing import Preprocessor, Schema
from forge_sweep.task import Task, TaskKind

PACKAGES = ("fastapi", "uvicorn", "httptools", "orjson", "prometheus_client")
COMMAND = [sys.executable, "-c", "from forge_sweep.cli import main; main()"]
START_S = 120


def need_the_extra() -> None:
    """Skip a module where the extra is not installed; in CI it has to be."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent and os.environ.get("CI") == "true":
        raise RuntimeError(f"the tests of serving need {', '.join(absent)}: pip install '.[serve]'")
    if absent:
        pytest.skip(f"{', '.join(absent)} not installed: pip install '.[serve]'", allow_module_level=True)


def customers(n: int = 300) -> pd.DataFrame:
    """Numbers, booleans and text; ``age`` and ``city`` have gaps."""
    random = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "age": random.normal(40, 12, n),
            "orders": random.integers(0, 30, n),
            "member": random.random(n) < 0.5,
            "city": random.choice(["Bern", "Genf", "Chur"], n),
        }
    )
    frame.loc[random.random(n) < 0.1, "age"] = np.nan
    frame.loc[random.random(n) < 0.1, "city"] = np.nan
    return frame


def fitted(kind: str = "network", task_kind: TaskKind = "binary", *, seed: int = 3, threshold: float = 0.4) -> Bundle:
    """A bundle; the network keeps its initial weights."""
    frame = customers()
    many, member = frame["orders"] > 14, frame["member"]
    columns: dict[TaskKind, dict[str, Any]] = {
        "binary": {"bought": np.where(many, "yes", "no")},
        "multiclass": {"level": many.astype(int) + member.astype(int)},
        "multilabel": {"mail": many.astype(int), "shop": member.astype(int)},
        "regression": {"spent": frame["orders"] * 100.0 + 7, "visits": frame["orders"] - 5.0 * member},
    }
    wanted = pd.DataFrame(columns[task_kind])
    task = Task.learn(task_kind, wanted)
    schema = Schema.learn(frame)
    preprocessor = Preprocessor.fit(frame, schema, scaler="standard", impute="median", fill=0.0, max_categories=50)
    features = preprocessor.transform(frame)
    if kind == "network":
        training.seed_everything(seed)
        model: Any = models.build("mlp", preprocessor.spec, task, {"width": 8, "depth": 1})
    else:
        model = baselines.fit(kind, task, features, task.encode(wanted), seed=seed)
    return Bundle(model, preprocessor, task, threshold, {"experiment": {"name": "tiny"}, "params": {}})


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them."""
    return [
        {name: None if pd.isna(value) else value for name, value in row.items()}
        for row in frame.astype(object).to_dict("records")
    ]


@dataclass
class Reply:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Api:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]
    out: Path
    err: Path
    headers: dict[str, str] = field(default_factory=dict)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """One request over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, {**self.headers, **given})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def get(self, path: str, **headers: str) -> Reply:
        return self.call("GET", path, **headers)

    def predict(self, rows: Any) -> Reply:
        return self.call("POST", "/predict", json.dumps(rows), Content_Type="application/json")

    def metric(self, name: str) -> float:
        """The value of a series, by its name with its labels."""
        text = self.get("/metrics").body.decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, f"no {name} in\n{text}"
        return float(found.group(1))

    def end(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@contextlib.contextmanager
def serving(model: str | Path, folder: Path, *options: str, **variables: str) -> Iterator[Api]:
    """A server, from when it is ready; it is killed at the end, if it still runs."""
    folder.mkdir(exist_ok=True)
    out, err = folder / "out.txt", folder / "err.txt"
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", **variables}
    with out.open("wb") as stdout, err.open("wb") as stderr:
        command = [*COMMAND, "serve", str(model), "--port", "0", *options]
        process = subprocess.Popen(command, env=environ, stdout=stdout, stderr=stderr, cwd=folder)
    try:
        yield Api(port_of(process, err), process, out, err)
    finally:
        process.kill()
        process.wait()


def port_of(process: subprocess.Popen[bytes], err: Path) -> int:
    """The port that a server says it took, once it listens."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"serving on http://127\.0\.0\.1:(\d+)", err.read_text(errors="replace"))
        if found:
            port = int(found.group(1))
            with contextlib.suppress(OSError), contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as c:
                c.request("GET", "/readyz")
                if c.getresponse().status == 200:
                    return port
        time.sleep(0.1)
    raise AssertionError(f"the server did not start ({process.poll()}):\n{err.read_text(errors='replace')}")
