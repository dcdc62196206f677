"""Pipelines whose rows do not fit in memory: their arrays lie in files, and every number is as if they did not."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forge_sweep import reproduce, sources, sweep, training, trial
from forge_sweep.checks import audit
from forge_sweep.errors import DataError
from forge_sweep.experiment import Experiment, load, parse
from forge_sweep.preflight import preflight
from forge_sweep.preprocessing import Mapped, array_files, mapped
from forge_sweep.sources import Dataset, spool

ROOT = Path(__file__).parent.parent

CODE = """
import numpy as np

def batch(i, rows=50):
    random = np.random.default_rng(i)
    y = random.integers(0, 3, rows)
    X = random.normal(0, 1, (rows, 12, 12, 1)).astype("float32") + y[:, None, None, None]
    picture = (random.integers(0, 250, (rows, 8, 8, 3)) // (y[:, None, None, None] + 1)).astype("uint8")
    picture[0] = 7
    return {"X": X, "picture": picture, "age": random.normal(0, 1, rows), "id": 977 * i + np.arange(rows), "y": y}

class Rows(list):
    num_batches = 8
    def __getitem__(self, i): return batch(i)
"""

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "counted": ("def load(): return Rows()", {"drop": ["id"]}),
    "uncounted": ("def load():\n    for i in range(8): yield batch(i)", {"drop": ["id"]}),
    "by key": ("def load(): return [batch(i) for i in (5, 0, 7, 2, 1, 3, 6, 4)]", {"key": "id"}),
    "splits": (
        "def load(): return {'train': Rows(), 'valid': batch(8), 'test': iter([batch(9)])}",
        {"drop": ["id"]},
    ),
}

NET = """
import keras
def build(inputs, heads, *, width: int = 8, learning_rate: float = 1e-3):
    flat = [keras.layers.Flatten()(inputs[name]) for name in ("scan", "logo")]
    hidden = keras.layers.Dense(width, activation="relu")(keras.layers.Concatenate()([*flat, inputs["rest"]]))
    return keras.Model(inputs, heads.only.output(hidden))
"""

INPUTS = {
    "scan": {"column": "X", "kind": "tensor"},
    "logo": {"column": "picture", "kind": "image", "shape": [8, 8, 3]},
    "rest": {"columns": ["age"]},
}

PARAMS: dict[str, Any] = {"width": 8, "learning_rate": 1e-3, "batch_size": 64}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the spools of this test alone."""
    monkeypatch.setenv("FORGE_SWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rows"


def experiment(folder: Path, text: str, backend: str = "tensorflow", **data: Any) -> Experiment:
    (folder / "my_data.py").write_text(CODE + text)
    (folder / "net.py").write_text(NET)
    raw = {
        "name": "spooled",
        "backend": backend,
        "data": {"source": "my_data:load", "target": "y", "task": "multiclass", "inputs": INPUTS, **data},
        "model": {"builder": "net:build", "search": {"batch_size": 64}},
        "objective": {"metric": "val_loss"},
        "study": {"n_trials": 1, "epochs": 2},
    }
    return parse(raw, root=folder)


def read(made: Experiment, room: float | None = None) -> Dataset:
    """The rows, with room for them or with so many megabytes."""
    with pytest.MonkeyPatch.context() as patch:
        if room is not None:
            patch.setenv("FORGE_SWEEP_ROWS_MB", str(room))
        return sources.load(made.data, root=made.root, seed=0, code=made.source_code)


def findings(made: Experiment, dataset: Dataset) -> list[str]:
    found = audit.audit(dataset, "multiclass", made.preprocessing, scaled=True, images=["picture"]).findings
    return [str(each) for each in found]


@pytest.mark.parametrize("form", list(FORMS))
def test_rows_in_files_are_those_in_memory(form: str, tmp_path: Path) -> None:
    """Order, splits, digests, fingerprints, what the audit says of them, and what a network gets, bit by bit."""
    text, data = FORMS[form]
    made = experiment(tmp_path, text, **data)
    held, filed = read(made), read(made, room=0.6)
    assert mapped(held.train.features["X"]) is None and mapped(filed.train.features["X"]) is not None
    assert (filed.digest, filed.split_digest, filed.sizes) == (held.digest, held.split_digest, held.sizes)
    assert list(filed.train.features) == list(held.train.features)
    for role in sources.ROLES:
        assert (filed.fingerprints[role] == held.fingerprints[role]).all()
        assert all((filed.array_prints[name][role] == held.array_prints[name][role]).all() for name in ("X", "picture"))
    assert findings(made, filed) == findings(made, held)
    recipe = trial.Recipe.of(made)
    wanted, found = (trial.prepare(each, recipe).data for each in (held, filed))
    for some, others in ((wanted.x_train, found.x_train), (wanted.x_valid, found.x_valid)):
        assert isinstance(some, dict) and isinstance(others, dict)
        assert all(np.array_equal(values, others[name][:]) for name, values in some.items())
        assert [type(values).__name__ for values in others.values()] == ["Mapped", "Mapped", "ndarray"]


def test_a_trial_learns_the_same_from_files(tmp_path: Path) -> None:
    """The compiled epoch streams what is in files; a fit that was not would find the rows in memory as well."""
    made = experiment(tmp_path, *FORMS["counted"][:1], drop=["id"])
    training.select_backend("tensorflow")
    results = []
    for room in (None, 0.6):
        dataset = read(made, room)
        results.append(trial.run(made, dataset, PARAMS, 3, lambda epoch, logs: False))
        scores = results[-1].bundle.scores(dataset.valid.features)
        results[-1].bundle.save(tmp_path / f"bundle-{room}", dataset.train.features)
    held, filed = results
    assert held.history == filed.history and held.metrics == filed.metrics
    assert not any("model.fit" in event for event in filed.events)
    assert held.bundle.weights_sha256 == filed.bundle.weights_sha256
    assert np.isfinite(scores).all()
    golden = [(tmp_path / f"bundle-{room}" / "golden.json").read_text() for room in (None, 0.6)]
    assert golden[0] == golden[1]
    (memory,) = [each for each in preflight(made, dataset) if each.code == "memory"]
    assert "x 1 features x" in memory.seen, "what is in files takes no memory"


def on_another_backend(backend: str, folder: Path) -> None:
    """In a process of its own: a trial from memory and from files, by ``model.fit``."""
    training.select_backend(backend)
    made = experiment(folder, FORMS["counted"][0], backend, drop=["id"])
    training.load_backend()
    held, filed = (trial.run(made, read(made, room), PARAMS, 3, lambda epoch, logs: False) for room in (None, 0.6))
    assert any("model.fit" in event for event in filed.events), filed.events
    if backend == "torch":
        assert held.history == filed.history
        assert held.bundle.weights_sha256 == filed.bundle.weights_sha256
    assert filed.history[1]["loss"] < filed.history[0]["loss"]
    assert "tensorflow" not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_model_fit_takes_rows_from_files_too(backend: str, tmp_path: Path) -> None:
    """PyTorch in the order of memory; JAX, whose compiled epoch has all rows on the device, by other means."""
    pytest.importorskip(backend)
    code = f"from tests.test_spooled_sources import *; on_another_backend({backend!r}, Path({str(tmp_path)!r}))"
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_files_go_with_the_last_who_uses_them(tmp_path: Path, cache: Path) -> None:
    made = experiment(tmp_path, FORMS["counted"][0], drop=["id"])
    first, second = read(made, 0.6), read(made, 0.6)
    assert [each.name[:5] for each in cache.iterdir() if each.is_dir()] == ["once-"], "one folder per content"
    rows = mapped(first.train.features["X"])
    assert rows is not None
    expected = rows[:5]
    del first, rows
    gc.collect()
    splits = "{'train': iter(rows[:4]), 'valid': iter(rows[4:6]), 'test': iter(rows[6:])}"
    text = f"def load():\n    rows = [batch(i) for i in range(8)]\n    return {splits}"
    split = read(experiment(tmp_path, text, drop=["id"]), 0.6)
    assert split.sizes == {"train": 200, "valid": 100, "test": 100}, "the same arrays, in other splits"
    del split
    other = mapped(second.train.features["X"])
    assert other is not None and np.array_equal(other[:5], expected)
    assert "X, picture (0.0 GB) are read from" in sources.in_files(second)
    del second, other
    gc.collect()
    assert [each for each in cache.iterdir() if each.is_dir()] == []


def test_what_a_killed_process_was_writing_is_removed_by_the_next(tmp_path: Path, cache: Path) -> None:
    """Killed in the middle of the pass; and with its files in use."""
    made = experiment(tmp_path, FORMS["uncounted"][0], drop=["id"])
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    for text in (f"def load():\n    for i in range(9):\n        if i == 8: {kill}\n        yield batch(i)", ""):
        script = (
            "from tests.test_spooled_sources import *\n"
            f"made = experiment(Path({str(tmp_path)!r}), {text or FORMS['uncounted'][0]!r}, drop=['id'])\n"
            f"rows = read(made, 0.6); {kill}"
        )
        died = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        assert died.returncode == -signal.SIGKILL, died.stderr
        left = [each for each in cache.iterdir() if each.is_dir()]
        assert [each.name[:5] for each in left] == [".part" if text else "once-"]
    made = experiment(tmp_path, FORMS["counted"][0], drop=["id"])
    dataset = read(made, 0.6)
    assert len([each for each in cache.iterdir() if each.is_dir()]) == 1
    del dataset


def test_rows_of_a_declared_digest_are_found_again(tmp_path: Path, cache: Path) -> None:
    """Without a look at the function; damaged ones, and those of another digest or other code, are read."""
    text = f"def load():\n    with open({str(tmp_path / 'log')!r}, 'a') as log: log.write('read ')\n    return Rows()"
    made = experiment(tmp_path, text, drop=["id"], digest="ab" * 32)
    digests = [read(made, 0.6).split_digest for _ in range(2)]
    assert (tmp_path / "log").read_text() == "read " and digests[0] == digests[1]
    words = sources.in_files(read(made))
    assert "kept for the declared digest" in words
    (place,) = cache.glob("kept-*/")
    gc.collect()
    with (place / "0.rows").open("r+b") as file:
        file.truncate(100)
    again = read(made, 0.6).digest
    assert again == "ab" * 32
    assert (tmp_path / "log").read_text() == "read read "
    os.utime(place / "about.json", (0, 0))
    read(experiment(tmp_path, text, drop=["id"], digest="cd" * 32), 0.6)
    assert (tmp_path / "log").read_text() == "read read read "
    assert not place.exists(), "nobody used it for long"


def test_what_fits_nowhere_is_refused_with_the_figures(tmp_path: Path, cache: Path) -> None:
    endless = "class Many(Rows):\n    num_batches = 10 ** 9\ndef load(): return Many()"
    of_arrays = {name: INPUTS[name] for name in ("scan", "logo")}
    with pytest.raises(DataError, match=r"takes 38400\.0 GB on disk; [0-9.]+ GB are free in .*rows"):
        read(experiment(tmp_path, endless, drop=["id", "age"], inputs=of_arrays), 1e7)
    assert [each for each in cache.iterdir() if each.is_dir()] == []
    other = "def load():\n    yield from map(batch, range(7))\n    yield {**batch(7), 'X': batch(7)['X'][:, :6]}"
    with pytest.raises(DataError, match=r"'X' has rows of shape \(6, 12, 1\), float32; before they had \(12, 12, 1\)"):
        read(experiment(tmp_path, other, drop=["id"]), 0.6)
    assert [each for each in cache.iterdir() if each.is_dir()] == []


def test_rows_in_a_file_are_taken_in_parts_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy in another process opens the file for itself; pages that were read are let go of."""
    dataset = read(experiment(tmp_path, FORMS["counted"][0], drop=["id"]), 0.6)
    column = dataset.train.features["X"]
    rows = mapped(column)
    assert isinstance(rows, Mapped)
    with pytest.raises(TypeError, match="taken in parts"):
        np.asarray(rows)
    monkeypatch.setattr(array_files, "LET_GO", 10_000)
    copied = pickle.loads(pickle.dumps(rows))
    assert np.array_equal(copied[100:140], rows[np.arange(100, 140)])
    assert column.isna().sum() == 0 and column.iloc[3].shape == (12, 12, 1)
    assert np.array_equal(pd.concat([column, column]).iloc[len(column) + 3], column.iloc[3])
    assert spool.folder().is_dir()


EXPERIMENT = """
name = "spooled"
[data]
source = "my_data:load"
target = "y"
task = "multiclass"
drop = ["id"]
[data.inputs]
scan = { column = "X", kind = "tensor" }
logo = { column = "picture", kind = "image", shape = [8, 8, 3] }
rest = { columns = ["age"] }
[model]
builder = "net:build"
[model.search]
batch_size = 64
width = { type = "int", low = 4, high = 16 }
[objective]
metric = "val_loss"
[study]
n_trials = 2
epochs = 2
[baselines]
kinds = ["constant"]
[confirm]
top = 1
seeds = 1
[workers]
kind = "processes"
n = 2
threads = 1
"""


def swept(folder: Path, kill: bool) -> sweep.SweepResult:
    """A sweep whose rows lie in files; it kills itself and its workers in the second epoch of a trial."""

    def watch(event: sweep.Event) -> None:
        if kill and event.kind == "epoch" and event.data["epoch"] == 2:
            os.killpg(os.getpid(), signal.SIGKILL)

    return sweep.run(load(folder / "spooled.toml"), store=folder / "mlruns", watch=watch)


@pytest.mark.slow
def test_a_killed_sweep_goes_on_from_files_and_is_reproduced_from_memory(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two worker processes; "exact" compares digests, weights and metrics, bit by bit."""
    experiment(tmp_path, FORMS["counted"][0])
    (tmp_path / "spooled.toml").write_text(EXPERIMENT)
    with monkeypatch.context() as patch:
        patch.setenv("FORGE_SWEEP_ROWS_MB", "0.6")
        code = f"from tests.test_spooled_sources import *; swept(Path({str(tmp_path)!r}), kill=True)"
        died = subprocess.run([sys.executable, "-c", code], cwd=ROOT, start_new_session=True, capture_output=True)
        assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-2000:]
        assert len(list(cache.glob("once-*"))) == 1, "left over, and taken for what it is by the next"
        result = swept(tmp_path, kill=False)
    assert result.trials == {"finished": 2}
    assert reproduce.reproduce(result.model, store=tmp_path / "mlruns", root=tmp_path).verdict.word == "exact"
