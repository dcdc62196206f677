"""Experiments with images and arrays, from the files of experiments/ to predictions from raw input."""

from __future__ import annotations

import base64
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forge_sweep import sweep
from forge_sweep.bundle import Bundle
from forge_sweep.experiment import load
from forge_sweep.tracking import fetched, locate

ROOT = Path(__file__).parents[1]
SMALL = ["study.n_trials=1", "study.epochs=6", 'baselines.kinds=["constant"]', "confirm.top=1"]

FRESH = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
for name in ("digits_cnn", "table_and_image"):
    model = mlflow.pyfunc.load_model(f"models:/{name}/1")
    print(json.dumps(model.predict(pd.read_json(f"{name}.json", orient="records")).to_dict("list")))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of experiments/ with its digits."""
    copy = tmp_path_factory.mktemp("images") / "experiments"
    shutil.copytree(ROOT / "experiments", copy, ignore=shutil.ignore_patterns("digits", "digits.csv", "digits.npz"))
    runpy.run_path(str(copy / "data/make_digits.py"), run_name="__main__")
    return copy


@pytest.fixture(scope="module")
def store(folder: Path) -> Path:
    """Where both experiments were swept: each registered its network."""
    store = folder.parent / "mlruns"
    for name in ("digits_cnn", "table_and_image"):
        result = sweep.run(load(folder / f"{name}.toml", SMALL), store=store)
        assert result.model == f"models:/{name}/1" and bundle(store, name).kind == "network"
    return store


def bundle(store: Path, name: str) -> Bundle:
    with fetched(locate(f"models:/{name}/1", store), store) as found:
        return Bundle.load(found)


def raw(folder: Path, n: int = 12) -> dict[str, Any]:
    """Raw rows of both models as JSON has them: nested lists, and a table whose images are base64."""
    table = pd.read_csv(folder / "data/digits.csv").head(n)
    table["image"] = [base64.b64encode((folder / "data" / path).read_bytes()).decode() for path in table["image"]]
    with np.load(folder / "data/digits.npz") as arrays:
        lists = [{"X": cell.tolist()} for cell in arrays["X"][:n]]
    return {"digits_cnn": lists, "table_and_image": table.drop(columns="digit").to_dict("records")}


@pytest.mark.slow
def test_a_fresh_process_predicts_raw_rows_of_either_through_mlflow(folder: Path, store: Path, tmp_path: Path) -> None:
    for name, rows in raw(folder).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", FRESH, f"sqlite:///{store.absolute()}/mlflow.db"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for (name, rows), line in zip(raw(folder).items(), done.stdout.splitlines()[-2:], strict=True):
        answer = pd.DataFrame(json.loads(line))
        wanted = bundle(store, name).predict(pd.DataFrame(rows))
        pd.testing.assert_frame_equal(answer, wanted, check_dtype=False, atol=1e-6)
