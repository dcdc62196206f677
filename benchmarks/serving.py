"""Requests per second of `forge-sweep serve` against `mlflow models serve`, on the same registered version, in one run.

    python benchmarks/serving.py [--seconds 8] [--skip-mlflow]

One row per request over connections that stay open, at 1, 8 and 64 clients that each wait for their answer; then rows
per second in batches, against the bare `model.predict` of Keras on the same preprocessed rows. The clients are a
process of their own that writes prepared bytes into sockets, so that they take little of the two cores. Ours checks
every row, keeps the drift window and writes its access log, as it does by default.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

CLIENTS = (1, 8, 64)
BATCHES = (100, 1_000, 10_000)
NUMBERS, CATEGORIES = 24, 6
TRAIN_ROWS = 5_000
START_S = 180


def frame(n: int) -> Any:
    """Raw rows: numbers with gaps, and text."""
    import pandas as pd

    random = np.random.default_rng(0)
    columns: dict[str, Any] = {f"n{i:02}": random.normal(i, 1 + i, n) for i in range(NUMBERS)}
    columns |= {f"c{i}": random.choice([f"kind-{j}" for j in range(8)], n) for i in range(CATEGORIES)}
    rows = pd.DataFrame(columns)
    rows.loc[:: max(n // 50, 1), "n00"] = np.nan
    return rows


def registered(store: Path) -> Any:
    """A network of 128, 128 units, as it begins, as version 1 of ``bench`` in a new store; and its bundle."""
    import pandas as pd

    from forge_sweep import models, tracking, training
    from forge_sweep.bundle import Bundle
    from forge_sweep.preprocessing import Preprocessor, Schema
    from forge_sweep.task import Task
    from forge_sweep.tracking import Tracker

    rows = frame(TRAIN_ROWS)
    task = Task.learn("binary", pd.DataFrame({"y": np.arange(TRAIN_ROWS) % 2}))
    preprocessor = Preprocessor.fit(
        rows, Schema.learn(rows), scaler="standard", impute="median", fill=0.0, max_categories=50
    )
    training.seed_everything(1)
    model = models.build("mlp", preprocessor.spec, task, {"width": 128, "depth": 2})
    bundle = Bundle(model, preprocessor, task, 0.5, {"experiment": {"name": "bench"}})
    bundle.save(store / "bundle", rows)
    with Tracker("bench", store) as tracker:
        tracker.run("a", "a", kind="confirm").finish("FINISHED")
        needed = tracking.requirements("network")
        tracker.register(
            "a", store / "bundle", model_name="bench", columns=list(rows.columns), requirements=needed, tags={}
        )
    return bundle


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], port: int, path: str, store: Path) -> Iterator[float]:
    """A server, once it answers; gives the seconds that took."""
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    uri = f"sqlite:///{store.absolute() / 'mlflow.db'}"
    environ = {**os.environ, "PATH": scripts, "MLFLOW_TRACKING_URI": uri, "CUDA_VISIBLE_DEVICES": "-1"}
    started = time.monotonic()
    with (store / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5):
                break
            if process.poll() is not None or time.monotonic() - started > START_S:
                raise SystemExit((store / "server.log").read_text(errors="replace")[-3000:])
            time.sleep(0.2)
        yield time.monotonic() - started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def request(path: str, body: bytes) -> bytes:
    """The bytes of one request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client(asyncio.Protocol):
    """Sends its requests one after the other, each once the last was answered."""

    def __init__(self, requests: list[bytes], position: int, taken: list[float], failed: list[bytes]) -> None:
        self.requests, self.position = requests, position
        self.taken, self.failed = taken, failed
        self.buffer, self.wanted = b"", 0

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self.transport = transport
        self.send()

    def send(self) -> None:
        """The next request."""
        self.position = (self.position + 1) % len(self.requests)
        self.sent = time.perf_counter()
        self.transport.write(self.requests[self.position])

    def data_received(self, data: bytes) -> None:
        """Part of an answer."""
        self.buffer += data
        if not self.wanted:
            head, found, _ = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            self.wanted = len(head) + 4 + int(length)
        if len(self.buffer) >= self.wanted:
            self.taken.append(time.perf_counter() - self.sent)
            if not self.buffer.startswith(b"HTTP/1.1 200"):
                self.failed.append(self.buffer)
            self.buffer, self.wanted = b"", 0
            self.send()


async def load(port: int, requests: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    """Requests per second and quantiles of the latency in milliseconds, after a second of warming up."""
    taken, failed = list[float](), list[bytes]()
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda i=i: Client(requests, i, taken, failed), "127.0.0.1", port)
        for i in range(clients)
    ]
    await asyncio.sleep(1.0)
    taken.clear()
    started = time.perf_counter()
    await asyncio.sleep(seconds)
    ran, found = time.perf_counter() - started, np.array(taken)
    for transport, _ in made:
        transport.abort()
    if failed:
        raise SystemExit(f"{len(failed)} requests failed, such as {failed[0][:1000]!r}")
    p50, p99 = (np.quantile(found, [0.5, 0.99]) * 1000).tolist() if len(found) else (float("nan"),) * 2
    mean = found.mean() * 1000 if len(found) else float("nan")
    return {"rps": len(found) / ran, "mean_ms": mean, "p50_ms": p50, "p99_ms": p99}


def measured(port: int, path: str, bodies: list[bytes], clients: int, seconds: float, folder: Path) -> dict[str, float]:
    """`load` in a process of its own."""
    (folder / "bodies.json").write_text(json.dumps([body.decode() for body in bodies]))
    words = ["--load", str(folder / "bodies.json"), path, str(port), str(clients), str(seconds)]
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


def load_main(words: list[str]) -> None:
    """The process of the clients."""
    bodies, path, port, clients, seconds = words
    requests = [request(path, body.encode()) for body in json.loads(Path(bodies).read_text())]
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.install()
    print(json.dumps(asyncio.run(load(int(port), requests, int(clients), float(seconds)))))


def records(rows: Any) -> list[dict[str, Any]]:
    """Rows as JSON has them."""
    return list(json.loads(rows.to_json(orient="records", double_precision=15)))


def single_rows(name: str, port: int, path: str, wrap: Any, seconds: float, store: Path) -> list[dict[str, float]]:
    """One row per request."""
    bodies = [json.dumps(wrap([row])).encode() for row in records(frame(200))]
    found = []
    for clients in CLIENTS:
        figures = measured(port, path, bodies, clients, seconds, store)
        found.append(figures)
        print(
            f"{name:<22} {clients:>3} clients  {figures['rps']:>8.0f} requests/s   "
            f"p50 {figures['p50_ms']:>7.2f} ms   p99 {figures['p99_ms']:>7.2f} ms",
            flush=True,
        )
    return found


def batches(name: str, port: int, path: str, wrap: Any, seconds: float, store: Path) -> None:
    """Many rows per request, one client."""
    for rows in BATCHES:
        bodies = [json.dumps(wrap(records(frame(rows)))).encode()]
        figures = measured(port, path, bodies, 1, seconds, store)
        print(f"{name:<22} {rows:>6} rows a request  {rows / figures['mean_ms'] * 1000:>10.0f} rows/s", flush=True)


def bare(bundle: Any) -> None:
    """What Keras alone does with rows that are preprocessed already, and the bundle with a frame of raw rows."""
    for rows in BATCHES:
        table = frame(rows)
        features = bundle.preprocessor.transform(table)
        timed("model.predict", rows, partial(bundle.model.predict, features, batch_size=4096, verbose=0))
        timed("Bundle.scores (frame)", rows, partial(bundle.scores, table))


def timed(name: str, rows: int, call: Callable[[], Any]) -> None:
    """Rows per second of one call, over two seconds."""
    call()
    started, times = time.perf_counter(), 0
    while time.perf_counter() - started < 2:
        call()
        times += 1
    speed = times * rows / (time.perf_counter() - started)
    print(f"{name:<22} {rows:>6} rows a call     {speed:>10.0f} rows/s", flush=True)


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--skip-mlflow", action="store_true")
    options = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{machine}, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        bundle = registered(store)
        port = free_port()
        ours_command = [sys.executable, "-c", "from forge_sweep.cli import main; main()", "serve", "models:/bench/1"]
        ours_command += ["--port", str(port), "--store", str(store)]
        with running(ours_command, port, "/readyz", store) as start:
            print(f"forge-sweep serve      ready after {start:.1f} s")
            ours = single_rows("forge-sweep serve", port, "/predict", lambda rows: rows[0], options.seconds, store)
            batches("forge-sweep serve", port, "/predict", lambda rows: rows, options.seconds / 2, store)
        theirs = []
        if not options.skip_mlflow:
            port = free_port()
            command = [
                sys.executable,
                "-m",
                "mlflow",
                "models",
                "serve",
                "-m",
                "models:/bench/1",
                "--env-manager",
                "local",
            ]
            command += ["--host", "127.0.0.1", "--port", str(port)]

            def wrap(rows: list[dict[str, Any]]) -> Any:
                return {"dataframe_records": rows}

            with running(command, port, "/ping", store) as start:
                print(f"mlflow models serve    ready after {start:.1f} s")
                theirs = single_rows("mlflow models serve", port, "/invocations", wrap, options.seconds, store)
                batches("mlflow models serve", port, "/invocations", wrap, options.seconds / 2, store)
        bare(bundle)
        for clients, our, their in zip(CLIENTS, ours, theirs, strict=False):
            print(
                f"{clients:>3} clients: {our['rps'] / their['rps']:.1f} times the requests, "
                f"p99 {our['p99_ms'] / their['p99_ms']:.3f} of theirs"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        load_main(sys.argv[2:])
    else:
        main()
