"""Rows from a function of the user's own: `data.source = "my_data:load"`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from forge_sweep import registry, reproduce, sources, sweep
from forge_sweep.errors import DataError, ExperimentError, InputError
from forge_sweep.experiment import Experiment, load, parse, restore
from forge_sweep.sources import Dataset
from forge_sweep.testing import SourceContract, StoredSourceContract
from forge_sweep.tracking import read_record

BEGIN = """
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

X = load_digits().images[:120].astype("float32")
Y = load_digits().target[:120] % 3
"""

WHOLE = {
    "arrays": "def load(): return {'X': X, 'y': Y}",
    "pair": "def load(): return X, Y",
    "cells": "def load(): return pd.DataFrame({'X': list(X), 'y': Y})",
    "batches": "def load():\n    for i in range(0, 120, 50):\n        yield X[i:i + 50], Y[i:i + 50]",
    "dataset": """
import keras
class Batches(keras.utils.PyDataset):
    def __len__(self): return 3
    def __getitem__(self, i): return X[40 * i:40 * i + 40], Y[40 * i:40 * i + 40]
def load(): return Batches()
""",
    "pipeline": """
import tensorflow as tf
def load(): return tf.data.Dataset.from_tensor_slices(({'X': X}, Y)).batch(50)
""",
}


def experiment(folder: Path, text: str, target: Any = "y", **data: Any) -> Experiment:
    (folder / "my_data.py").write_text(BEGIN + text)
    raw = {
        "name": "own",
        "data": {"source": "my_data:load", "target": target, "task": "multiclass", **data},
        "objective": {"metric": "val_loss"},
        "study": {"n_trials": 1},
    }
    return parse(raw, root=folder)


def read(folder: Path, code: str, target: Any = "y", **data: Any) -> Dataset:
    made = experiment(folder, code, target, **data)
    return sources.load(made.data, root=folder, seed=0, code=made.source_code)


class TestOwnSource(SourceContract):
    """A function is a source as any other."""

    def declare(self, folder: Path) -> dict[str, Any]:
        """See `SourceContract`."""
        (folder / "my_data.py").write_text(BEGIN + "def load(): yield {'X': X, 'y': Y}")
        return {"source": "my_data:load", "target": "y", "task": "multiclass"}


class TestOwnTable(StoredSourceContract):
    """Also for whole tables."""

    def store(self, frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
        """See `StoredSourceContract`."""
        frame.to_pickle(folder / "rows.pickle")
        (folder / "my_data.py").write_text(
            "import pandas\ndef load(root): return pandas.read_pickle(root / 'rows.pickle')"
        )
        return {"source": "my_data:load"}


@pytest.mark.parametrize("form", list(WHOLE))
def test_arrays_frames_and_pipelines_give_the_rows_of_an_archive(form: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", X=load_digits().images[:120], y=load_digits().target[:120] % 3)
    spec = experiment(tmp_path, WHOLE["pair"]).data.model_copy(update={"source": "file", "path": "d.npz", "code": None})
    wanted, found = sources.load(spec, root=tmp_path, seed=0), read(tmp_path, WHOLE[form])
    assert (found.digest, found.split_digest) == (wanted.digest, wanted.split_digest)
    assert (found.name, found.source) == ("my_data.load", "my_data:load")


def test_a_function_gives_the_splits_or_leaves_them_to_the_file(tmp_path: Path) -> None:
    code = """
def load():
    return {role: (X[rows], Y[rows]) for role, rows in
            {'test': slice(90, 120), 'train': slice(60), 'valid': slice(60, 90)}.items()}
"""
    found = read(tmp_path, code)
    assert found.sizes == {"train": 60, "valid": 30, "test": 30}
    assert list(found.valid.targets["y"]) == list(load_digits().target[60:90] % 3)
    with pytest.raises(DataError, match=r"gives train, valid and test, and data\.split says how"):
        read(tmp_path, code, split={"train": 0.5, "valid": 0.25, "test": 0.25})
    with pytest.raises(DataError, match="gives train, valid; expected train, valid and test"):
        read(tmp_path, "def load(): return {'train': (X, Y), 'valid': (X, Y)}")


def test_texts_and_several_targets_of_a_pipeline_are_columns(tmp_path: Path) -> None:
    """TensorFlow has texts as bytes."""
    code = """
import tensorflow as tf
def load():
    city = np.array([f'city {i % 4}' for i in range(120)])
    return tf.data.Dataset.from_tensor_slices(({'X': X, 'city': city}, np.eye(3)[Y])).batch(50)
"""
    inputs = {"scan": {"kind": "tensor", "column": "X"}, "city": {"columns": ["city"], "encode": "codes"}}
    found = read(tmp_path, code, ["a", "b", "c"], inputs=inputs)
    assert found.train.features["city"].iloc[0].startswith("city ") and list(found.train.targets) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def load(): return None", "gives nothing"),
        ("def load(): return 'rows.csv'", "gives a builtins str"),
        ("def load(): return X", "gives a numpy ndarray"),
        ("def load(): return iter([])", "a pipeline gives no batches"),
        ("def load(): return X, Y[:5]", "different lengths"),
        ("def load(): return zip(X, Y)", "rows in batches"),
        ("def load(): return {'X': X, 'y': Y, 'who': np.array([None] * 5)}", "'who' has 5 rows; expected 120"),
        ("def load():\n    return 1 / 0", r"load failed: ZeroDivisionError: division by zero \(my_data\.py:9\)"),
        ("import nowhere\ndef load(): return X, Y", r"my_data cannot be imported: ModuleNotFoundError.*my_data\.py:8"),
        (
            "class Endless(list):\n    as_numpy_iterator = cardinality = lambda self: -1\ndef load(): return Endless()",
            "without an end",
        ),
        (
            "class Shuffled(list):\n    def __iter__(self):\n        rows = np.random.permutation(120)\n"
            "        return iter([(X[rows], Y[rows])])\ndef load(): return Shuffled()",
            "gives other rows when it is read again",
        ),
    ],
)
def test_what_gives_no_rows_is_refused_in_words(code: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read(tmp_path, code)


def test_columns_of_a_table_that_would_not_fit_in_memory_are_refused_with_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first batch where it says how many there are, else when it comes to it."""
    monkeypatch.setenv("FORGE_SWEEP_ROWS_MB", "0.0015")
    table = "{'x': X[:50, 0, 0], 'y': Y[:50]}"
    many = f"class Many(list):\n    num_batches = 9\n    def __getitem__(self, i): return {table}\n"
    with pytest.raises(DataError, match=r"a pipeline of 9 batches: its columns of a table take 0\.0 GB of memory"):
        read(tmp_path, f"{many}def load(): return Many()")
    with pytest.raises(DataError, match=r"what a pipeline gave so far: its columns beside arrays take 0\.0 GB"):
        read(tmp_path, WHOLE["batches"])


def test_the_digest_is_computed_or_declared(tmp_path: Path) -> None:
    first, known = read(tmp_path, WHOLE["pair"]), "ab" * 32
    declared = read(tmp_path, WHOLE["pair"], digest=known)
    assert (declared.digest, declared.version) == (known, f"my_data.load@{known[:12]}")
    assert declared.split_digest == first.split_digest
    assert read(tmp_path, "def load(): return X + 1, Y").digest != first.digest


def test_its_code_is_part_of_the_contract_and_pinned_by_its_digest(tmp_path: Path) -> None:
    first = experiment(tmp_path, WHOLE["pair"])
    assert first.source_code is not None and first.data.code == first.source_code.digest
    other = experiment(tmp_path, WHOLE["pair"] + "  # changed")
    assert first.contract() != other.contract()
    assert list(other.differences(first.resolved())) == ["data.code"]
    again = restore(first.resolved(), root=tmp_path)
    assert again.source_code is None
    with pytest.raises(DataError, match="are not those that are recorded"):
        sources.load(again.data, root=tmp_path, seed=0)
    assert restore(other.resolved(), root=tmp_path).source_code == other.source_code
    with pytest.raises(ExperimentError, match=r"data\.code = .*the digest of .*my_data\.py"):
        experiment(tmp_path, WHOLE["pair"], code="ab" * 32)


@pytest.mark.parametrize(
    ("code", "data", "words"),
    [
        ("def lode(): ...", {}, r'data\.source = "my_data:load": expected a function.*did you mean "lode"'),
        ("def load(path): ...", {}, r"without arguments, or with root.*\(my_data\.py:8\); it takes path"),
        ("def load(root, *, year): ...", {}, "it takes year"),
        ("def load(: ...", {}, r"data\.source.*expected Python"),
        ("def load(): ...", {"source": "your_data:load"}, r"data\.source = .*there is no your_data\.py"),
        ("def load(): ...", {"path": "d.csv"}, r"data\.path = .*nothing beside data\.source"),
        (
            "def load(): ...",
            {"source": "sample", "name": "iris", "digest": "ab" * 32},
            r"data\.digest.*of your own source",
        ),
    ],
)
def test_mistakes_are_found_where_the_file_is_read(code: str, data: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=words):
        experiment(tmp_path, code, **data)


EXPERIMENT = """
name = "own"
[data]
source = "my_data:load"
target = "target"
task = "multiclass"
[model.search]
width = 8
batch_size = 64
[objective]
metric = "val_loss"
[study]
n_trials = 1
epochs = 2
[baselines]
kinds = ["constant"]
[confirm]
top = 1
seeds = 1
"""


@pytest.mark.slow
def test_a_sweep_says_what_it_read_and_what_was_recorded_runs_with_trust_only(tmp_path: Path) -> None:
    store, other = tmp_path / "mlruns", tmp_path / "other"
    other.mkdir()
    (tmp_path / "own.toml").write_text(EXPERIMENT)
    (tmp_path / "rows.py").write_text("from sklearn.datasets import load_wine\nROWS = load_wine(as_frame=True).frame")
    (tmp_path / "my_data.py").write_text("from rows import ROWS\ndef load(): return ROWS")
    said: list[str] = []

    def watch(event: Any) -> None:
        said.append(str(event.data.get("text", "")))

    made = load(tmp_path / "own.toml")
    result = sweep.run(made, store=store, watch=watch)
    assert made.source_code is not None
    assert any(f"is read from my_data.py, rows.py; digest {made.data.code}" in each for each in said)
    assert any("was computed over 178 rows" in each for each in said)
    assert read_record(result.model, store).source_code == dict(made.source_code.files)
    assert "my_data" not in sys.modules
    with pytest.raises(InputError, match=r"(?s)my_data:load in .* is not what run .* was trained with.*--trust"):
        reproduce.reproduce(result.model, store=store, root=other)
    assert reproduce.reproduce(result.model, store=store, root=other, trust=True).verdict.word == "exact"
    told: list[Any] = []
    with pytest.raises(registry.Refused):
        registry.promote("own", "1", store=store, dry_run=True, tell=told.append)
    assert any("names code that gives its rows: my_data:load" in finding.seen for finding in told)
    told.clear()
    with pytest.raises(registry.Refused, match="constant predictor"):
        registry.promote("own", "1", store=store, dry_run=True, trust=True, tell=told.append)
    assert [finding.severity for finding in told if finding.code == "dataset"] == ["info"]
