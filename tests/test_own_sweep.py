"""A model of the user's own from its experiment file to the champion: experiments/subclassed.toml."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sklearn.datasets import load_wine

from forge_sweep import registry, reproduce, sweep
from forge_sweep.errors import BundleError, InputError
from forge_sweep.experiment import load
from forge_sweep.serving.files import predict_file
from forge_sweep.tracking import read_record

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

Swept = tuple[Path, sweep.SweepResult]

FILE = Path(__file__).parent.parent / "experiments" / "subclassed.toml"

LOADED = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/subclassed/1", model_config={"trust": True})
print(json.dumps(model.predict(pd.read_csv(sys.argv[2])).iloc[:, 0].tolist()))
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """The store of a sweep, and how it ended."""
    store = tmp_path_factory.mktemp("own") / "mlruns"
    return store, sweep.run(load(FILE, ["study.n_trials=2"]), store=store)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw rows of the first class."""
    path = tmp_path_factory.mktemp("rows") / "new.csv"
    load_wine(as_frame=True).data.head(5).to_csv(path, index=False)
    return path


def test_it_is_swept_and_registered_with_its_source(swept: Swept) -> None:
    store, result = swept
    assert result.model == "models:/subclassed/1" and result.trials["finished"] == 2
    (source,) = store.glob("artifacts/**/code.subclassed.py")
    assert source.read_text() == FILE.with_suffix(".py").read_text()


def test_raw_rows_are_predicted_with_trust_only(swept: Swept, rows: Path, tmp_path: Path) -> None:
    store, _ = swept
    with pytest.raises(BundleError, match=r"(?s)code that came with it: subclassed\.Consistent.*--trust"):
        predict_file("models:/subclassed/1", rows, tmp_path / "out.csv", store=store)
    assert predict_file("models:/subclassed/1", rows, tmp_path / "out.csv", store=store, trust=True).rows == 5


def test_a_fresh_process_predicts_through_mlflow(swept: Swept, rows: Path, tmp_path: Path) -> None:
    """In another folder, where no such module is."""
    store, _ = swept
    uri = f"sqlite:///{store.absolute()}/mlflow.db"
    command = [sys.executable, "-c", LOADED, uri, str(rows)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(json.loads(done.stdout.splitlines()[-1])) == 5


def test_its_winner_is_reproduced_exactly(swept: Swept) -> None:
    """The file beside the experiment is what it was trained with: nothing has to be trusted."""
    store, result = swept
    assert reproduce.reproduce(result.model, store=store).verdict.word == "exact"


def test_without_its_file_a_run_is_reproduced_with_trust_only(swept: Swept, tmp_path: Path) -> None:
    """The sweep's run has the source."""
    store, result = swept
    record = read_record(result.model, store)
    assert record.code == {"subclassed": FILE.with_suffix(".py").read_text()}
    with pytest.raises(InputError, match=r"(?s)not what run .* was trained with.*--trust"):
        reproduce.reproduce(result.model, store=store, root=tmp_path)


def test_it_is_promoted_with_trust(swept: Swept) -> None:
    store, _ = swept
    with pytest.raises(registry.Refused, match="code that came with it"):
        registry.promote("subclassed", "1", store=store, dry_run=True)
    found = registry.promote("subclassed", "1", store=store, dry_run=True, trust=True, tell=lambda finding: None)
    assert not found.refused
