"""An MLflow server that answers reads and fails writes: everything waits, and is there once the server is mended."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from forge_sweep.errors import TrackingDown
from forge_sweep.tracking import Tracker, prepare_store
from tests.proxy import Proxy, proxied
from tests.servers import free_port, running
from tests.surface import EPOCHS, experiment
from tests.test_sweep import run, study_of

pytestmark = pytest.mark.slow


@contextmanager
def mlflow_server(folder: Path, database: str = "") -> Iterator[str]:
    """An MLflow server on the stores in a folder."""
    port = free_port()
    stores = ["--backend-store-uri", database or f"sqlite:///{folder}/mlflow.db"]
    command = [sys.executable, "-m", "mlflow", "server", *stores, "--artifacts-destination", str(folder / "artifacts")]
    address = f"http://127.0.0.1:{port}"
    words = [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    off = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running(words, f"{address}/health", log=folder / "server.log", **off):
        yield address


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("server")
    prepare_store(f"sqlite:///{made}/mlflow.db", made)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    with mlflow_server(folder) as address:
        yield address


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxied(server) as made:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", made.uri)
        yield made


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def runs(uri: str, experiment_name: str) -> dict[str, Any]:
    found = client(uri).get_experiment_by_name(experiment_name)
    assert found is not None
    return {one.info.run_name: one for one in client(uri).search_runs([found.experiment_id])}


@pytest.mark.parametrize("status", [500, 503, 429, 401])
def test_writes_that_fail_on_the_servers_side_wait_however_often_they_fail(
    proxy: Proxy, tmp_path: Path, status: int
) -> None:
    name = f"fails-{status}"
    with Tracker(name, tmp_path, retry_s=0.0) as tracker:
        tracker.run("s", "sweep", kind="sweep")
        first = tracker.run("s/a", "a", kind="trial", parent="s", params={"width": 64})
        proxy.status = status
        first.log_metrics({"loss": 1.0}, step=0)
        for _ in range(5):
            assert not tracker.replay()
        first.log_text("hi", "notes/a.txt")
        first.finish("FINISHED", metrics={"seconds": 1.0})
        second = tracker.run("s/b", "b", kind="trial", parent="s")
        second.finish("FINISHED")
        assert proxy.failed > 5 and tracker.set_aside == 0
        assert tracker.pending == 5 and "lacks 5 writes" in tracker.missing()
        proxy.status = 0
        assert tracker.replay() and tracker.missing() == ""
    found = runs(proxy.uri, name)
    assert {run_name: one.info.status for run_name, one in found.items()} == {
        "sweep": "RUNNING",
        "a": "FINISHED",
        "b": "FINISHED",
    }
    assert found["a"].data.metrics == {"loss": 1.0, "seconds": 1.0}
    assert [each.path for each in client(proxy.uri).list_artifacts(found["a"].info.run_id)] == ["notes"]


@pytest.mark.parametrize("only", ["", "mlflow-artifacts"])
def test_a_sweep_beside_a_server_that_fails_writes_loses_nothing(proxy: Proxy, tmp_path: Path, only: str) -> None:
    """It says so with its exit code; once the server is mended, the same command ends it."""
    spec = experiment(name=f"through{only}", study__n_trials=2, tracking__model_name=f"through{only}")
    proxy.status, proxy.only = 503, only
    with pytest.raises(TrackingDown, match="is not registered"):
        run(spec, tmp_path)
    assert study_of(tmp_path, spec.name).n_done == 2
    proxy.status = 0
    result = run(spec, tmp_path)
    assert result.missing == "" and result.model == f"models:/{spec.name}/1"
    found = runs(proxy.uri, spec.name)
    assert len(found) == 1 + 1 + 2 + 6, "parent, baseline, trials, confirmations"
    assert {one.info.status for one in found.values()} <= {"FINISHED", "KILLED"}
    history = client(proxy.uri).get_metric_history(found["trial-0000"].info.run_id, "val_auc")
    assert len(history) == EPOCHS
    parent = next(one for one in found.values() if one.data.tags["forge.kind"] == "sweep")
    assert "experiment.json" in {each.path for each in client(proxy.uri).list_artifacts(parent.info.run_id)}


def test_a_server_whose_database_is_read_only_is_waited_for(folder: Path, server: str, tmp_path: Path) -> None:
    with Tracker("read-only", tmp_path, uri=server) as tracker:
        tracker.run("s", "sweep", kind="sweep")
    with (
        mlflow_server(folder, f"sqlite:///file:{folder}/mlflow.db?mode=ro&uri=true") as address,
        Tracker("read-only", tmp_path, uri=address, retry_s=0.0) as tracker,
    ):
        trial = tracker.run("s/a", "a", kind="trial", parent="s")
        trial.log_metrics({"loss": 1.0})
        trial.finish("FINISHED")
        for _ in range(4):
            assert not tracker.replay()
        assert (tracker.pending, tracker.set_aside) == (3, 0)
    with Tracker("read-only", tmp_path, uri=server) as tracker:
        assert tracker.missing() == ""
    assert runs(server, "read-only")["a"].data.metrics == {"loss": 1.0}


def test_an_artifact_folder_that_cannot_be_written_is_waited_for(folder: Path, server: str, tmp_path: Path) -> None:
    with Tracker("artifacts", tmp_path, uri=server, retry_s=0.0) as tracker:
        trial = tracker.run("s/a", "a", kind="trial")
        kept = folder / "artifacts"
        if kept.exists():
            kept.rename(folder / "moved")
        kept.write_text("no folder")
        trial.log_text("hi", "notes/a.txt")
        trial.finish("FINISHED")
        for _ in range(4):
            assert not tracker.replay()
        assert (tracker.pending, tracker.set_aside) == (2, 0)
        kept.unlink()
        if (folder / "moved").exists():
            (folder / "moved").rename(kept)
        assert tracker.replay() and tracker.set_aside == 0
    found = runs(server, "artifacts")["a"]
    assert found.info.status == "FINISHED"
    assert [each.path for each in client(server).list_artifacts(found.info.run_id)] == ["notes"]
