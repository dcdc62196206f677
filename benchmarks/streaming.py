"""Memory and time of a sweep on a pipeline: its rows in memory, in files, and in files with two worker processes.

``python benchmarks/streaming.py 1.5`` sweeps float32 arrays (64, 64, 1) of 1.5 GB, two trials of two epochs, each way
in a process of its own. The memory of that process and of all that it started is looked at every 50 ms: what is its own
(anonymous), and what it shares with the page cache. Baseline: the same sweep on a hundredth of the rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

DATA = """
import keras
import numpy as np

class Rows(keras.utils.PyDataset):
    def __len__(self): return {batches}
    def __getitem__(self, i):
        random = np.random.default_rng(i)
        y = random.integers(0, 2, 500)
        X = random.random((500, 64, 64, 1), dtype="float32")
        X[:, :8] += 0.02 * y[:, None, None, None]
        return {{"X": X, "y": y}}

def load(): return Rows()
"""

NET = """
from keras import Model, layers

def build(inputs, heads, *, width: int = 16):
    pooled = layers.Flatten()(layers.AveragePooling2D(8)(inputs["features"]))
    return Model(inputs, heads.only.output(layers.Dense(width, activation="relu")(pooled)))
"""

EXPERIMENT = """
name = "streaming"
[data]
source = "rows:load"
target = "y"
task = "binary"
[model]
builder = "net:build"
[model.search]
width = { type = "int", low = 8, high = 32 }
batch_size = 256
[objective]
metric = "val_auc"
[study]
n_trials = 2
epochs = 2
[baselines]
kinds = ["constant"]
[confirm]
top = 1
seeds = 1
"""

ONE = """
import json, sys
from pathlib import Path
from forge_sweep import sweep
from forge_sweep.experiment import load

result = sweep.run(load(Path(sys.argv[1]), sys.argv[2:]), store=Path("mlruns"))
print(json.dumps({"best": result.best, "test": result.test, "phases": result.phases}))
"""


def memory(pid: int) -> dict[str, int]:
    """Bytes of a process and of all that it started: its own, and pages of files; 0 for those that ended."""
    import psutil

    found = {"RssAnon": 0, "RssFile": 0}
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return found
    for process in processes:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(":")
            if name in found:
                found[name] += 1024 * int(value.split()[0])
    return found


def one(way: str, gigabytes: float, *settings: str) -> dict[str, Any]:
    """A sweep: its results, seconds, and the most memory that it took."""
    with tempfile.TemporaryDirectory(prefix="streaming-") as name:
        folder = Path(name)
        batches = max(2, round(gigabytes * 1e9 / (500 * 64 * 64 * 4)))
        (folder / "rows.py").write_text(DATA.format(batches=batches))
        (folder / "net.py").write_text(NET)
        (folder / "streaming.toml").write_text(EXPERIMENT)
        variables = {"PYTHONPATH": str(ROOT), "FORGE_SWEEP_CACHE": str(folder / "cache")}
        if way != "memory":
            variables["FORGE_SWEEP_ROWS_MB"] = str(gigabytes * 1e9 / 1e6 / 3)
        began = time.monotonic()
        command = [sys.executable, "-c", ONE, "streaming.toml", *settings]
        with (folder / "out").open("w") as out:
            process = subprocess.Popen(command, cwd=folder, env={**os.environ, **variables}, stdout=out)
        most = {"RssAnon": 0, "RssFile": 0}
        while process.poll() is None:
            seen = memory(process.pid)
            most = {kind: max(most[kind], seen[kind]) for kind in most}
            time.sleep(0.05)
        lines = (folder / "out").read_text().splitlines()
        assert process.returncode == 0, lines[-20:]
        return {"seconds": time.monotonic() - began, **most, **json.loads(lines[-1])}


def main() -> None:
    """Print the table."""
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 1.5
    two = ("workers.kind=processes", "workers.n=2", "workers.threads=1")
    ways: dict[str, tuple[Any, ...]] = {
        "nearly no rows, in memory": ("memory", gigabytes / 100),
        "in memory": ("memory", gigabytes),
        "in files": ("files", gigabytes),
        "nearly no rows, two processes": ("memory", gigabytes / 100, *two),
        "in files, two processes": ("files", gigabytes, *two),
    }
    print(f"{gigabytes} GB of rows\n\n| rows | own memory, GB | pages of files, GB | seconds | best AUC | test AUC |")
    print("|---|---|---|---|---|---|")
    for words, asked in ways.items():
        found = one(*asked)
        figures = f"{found['RssAnon'] / 1e9:.2f} | {found['RssFile'] / 1e9:.2f} | {found['seconds']:.0f}"
        print(f"| {words} | {figures} | {found['best']['value']!r} | {found['test']['test_auc']!r} |", flush=True)
        print({name: round(seconds, 1) for name, seconds in found["phases"].items()}, file=sys.stderr)


if __name__ == "__main__":
    main()
