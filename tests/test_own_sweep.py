"""A model of the user's own from its experiment file to the champion: experiments/subclassed.toml."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from sklearn.datasets import load_wine
from typer.testing import CliRunner

from forge_sweep import exports, registry, reproduce, sweep
from forge_sweep.cli import app
from forge_sweep.errors import BundleError, GateRefused, InputError
from forge_sweep.experiment import load
from forge_sweep.serving.files import predict_file
from forge_sweep.study import find_study
from forge_sweep.tracking import fetched, locate, read_record
from tests.serving import need_the_extra, serving

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

Swept = tuple[Path, sweep.SweepResult]

FILE = Path(__file__).parent.parent / "experiments" / "subclassed.toml"

TRIALS = ["study.n_trials=2"]

LOADED = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/subclassed/1", model_config={"trust": True})
print(json.dumps(model.predict(pd.read_csv(sys.argv[2])).iloc[:, 0].tolist()))
"""


def killed(store: str) -> None:
    """A sweep whose process is killed in the second epoch of its second trial."""

    def watch(event: sweep.Event) -> None:
        if event.kind == "epoch" and (event.data["number"], event.data["epoch"]) == (1, 2):
            os.kill(os.getpid(), signal.SIGKILL)

    sweep.run(load(FILE, TRIALS), store=Path(store), watch=watch)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """The store of a sweep that was killed and run again, and how it ended."""
    store = tmp_path_factory.mktemp("own") / "mlruns"
    ended = subprocess.run([sys.executable, "-m", "tests.test_own_sweep", str(store)], cwd=FILE.parent.parent)
    assert ended.returncode == -signal.SIGKILL
    return store, sweep.run(load(FILE, TRIALS), store=store)


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
    study = find_study("subclassed", store)
    assert study is not None and study.notes("sweep:")["sweep:run"] == result.run_id, "which has the source, too"


def test_a_killed_sweep_goes_on_with_the_trial_that_it_was_in(swept: Swept) -> None:
    """Its two trials have a run each, and every epoch of each once."""
    store, _ = swept
    client = MlflowClient(f"sqlite:///{store.absolute()}/mlflow.db")
    found = client.search_runs(["1"], "tags.`forge.kind` = 'trial'")
    assert sorted((run.info.run_name, run.info.status) for run in found) == [
        ("trial-0000", "FINISHED"),
        ("trial-0001", "FINISHED"),
    ]
    for run in found:
        steps = [each.step for each in client.get_metric_history(run.info.run_id, "val_loss")]
        assert steps == [*range(1, len(steps) + 1)]


def test_raw_rows_are_predicted_with_trust_only(swept: Swept, rows: Path, tmp_path: Path) -> None:
    """The refusal has the command that fetches the code to be read."""
    store, _ = swept
    with pytest.raises(BundleError, match=r"code that came with it: subclassed\.Consistent") as refused:
        predict_file("models:/subclassed/1", rows, tmp_path / "out.csv", store=store)
    command = f"`MLFLOW_TRACKING_URI=sqlite:///{store.absolute()}/mlflow.db mlflow artifacts download "
    assert f"{command}-u models:/subclassed/1 -d FOLDER` fetches its files" in refused.value.hint
    assert "read code.subclassed.py in models:/subclassed/1, and give --trust" in refused.value.hint
    assert predict_file("models:/subclassed/1", rows, tmp_path / "out.csv", store=store, trust=True).rows == 5


def test_a_fresh_process_predicts_through_mlflow(swept: Swept, rows: Path, tmp_path: Path) -> None:
    """In another folder, where no such module is."""
    store, _ = swept
    uri = f"sqlite:///{store.absolute()}/mlflow.db"
    command = [sys.executable, "-c", LOADED, uri, str(rows)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(json.loads(done.stdout.splitlines()[-1])) == 5


def test_a_class_of_its_own_is_exported_as_what_it_computes(swept: Swept, tmp_path: Path) -> None:
    store, result = swept
    with fetched(locate(result.model, store), store) as folder:
        with pytest.raises(InputError, match=r"(?s)classes of your own \(Consistent\).*saved_model, onnx or tflite"):
            exports.export(folder, "keras", tmp_path / "net.keras", trust=True)
        assert exports.export(folder, "saved_model", tmp_path / "net", trust=True).difference < 1e-5


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


def test_it_is_promoted_and_rolled_back_with_trust(swept: Swept) -> None:
    store, _ = swept
    again = load(FILE, ["study.n_trials=1", "name=again", "tracking.model_name=subclassed"])
    assert sweep.run(again, store=store).model == "models:/subclassed/2"
    for version in ("1", "2"):
        with pytest.raises(registry.Refused, match="code that came with it") as refusal:
            registry.promote("subclassed", version, store=store, dry_run=True)
        assert [each.code for each in refusal.value.promotion.refused] == ["trust"]
        registry.promote("subclassed", version, store=store, trust=True, force="" if version == "1" else "a test")
    with pytest.raises(GateRefused, match="code that came with it"):
        registry.rollback("subclassed", store=store)
    assert registry.rollback("subclassed", store=store, trust=True).to == "1"


def test_it_is_exported_with_trust(swept: Swept, tmp_path: Path) -> None:
    store, _ = swept
    words = ["export", "models:/subclassed/1", "--format", "onnx", "-o", str(tmp_path / "net.onnx")]
    words += ["--store", str(store)]
    refused = CliRunner().invoke(app, words)
    assert "code that came with it" in str(refused.exception) and "--trust" in str(refused.exception)
    done = CliRunner().invoke(app, [*words, "--trust"], catch_exceptions=False)
    assert done.exit_code == 0 and (tmp_path / "net.onnx").is_file()


def test_it_is_served_with_trust(swept: Swept, rows: Path, tmp_path: Path) -> None:
    """Over HTTP, as curl asks; the answers are those of a file of the same rows."""
    need_the_extra()
    store, _ = swept
    words = ["serve", "models:/subclassed/1", "--port", "0", "--store", str(store)]
    refused = CliRunner().invoke(app, words)
    assert "code that came with it" in str(refused.exception) and "--trust" in str(refused.exception)
    predict_file("models:/subclassed/1", rows, tmp_path / "out.csv", store=store, trust=True)
    labels = pd.read_csv(tmp_path / "out.csv")["label"].tolist()
    with serving("models:/subclassed/1", tmp_path / "server", "--trust", "--store", str(store)) as api:
        answer = api.predict(pd.read_csv(rows).to_dict("records"))
        assert answer.status == 200, answer.body
        assert [each["label"] for each in answer.json["predictions"]] == labels


if __name__ == "__main__":
    killed(sys.argv[1])
