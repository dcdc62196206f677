"""Servers that go away in the middle of a sweep, and a disk that is full: nothing is lost, nothing is done twice."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forge_sweep.errors import SweepStopped
from forge_sweep.study import database as databases
from forge_sweep.study import open_study
from tests.joiner import started, together
from tests.one_server import HOST, Postgres, postgres, service
from tests.servers import free_port, running
from tests.test_study import DATASET, experiment, train
from tests.test_sweep import check_nothing_is_lost, study_of

_numbers = itertools.count()


@pytest.fixture(scope="module")
def studies() -> Iterator[Postgres]:
    """A PostgreSQL that tests stop."""
    with postgres() as made:
        assert made.create_databases().returncode == 0
        yield made


@pytest.fixture
def url(studies: Postgres, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"studies_{next(_numbers)}"
    studies.rows("postgres", f"CREATE DATABASE {name} OWNER optuna")
    made = studies.url("optuna", name)
    monkeypatch.setenv("FORGE_SWEEP_STORAGE", made)
    return made


def restart(studies: Postgres, down_s: float) -> None:
    """As a crash and a new start, seconds later."""
    studies.stop()
    time.sleep(down_s)
    studies.start()


def test_calls_wait_for_a_database_that_comes_back(
    studies: Postgres, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once; nothing is written twice."""
    study = open_study(experiment(name="waits", n_trials=3), dataset=DATASET, store=tmp_path)
    with study.hold():
        first = study.ask()
        assert first is not None
        again = threading.Thread(target=restart, args=(studies, 2.0))
        again.start()
        train(study, first)
        while asked := study.ask():
            train(study, asked)
        again.join()
    assert [row.state for row in study.rows()] == ["finished"] * 3
    said = [text for text in caplog.messages if "study database" in text]
    assert len(said) in (0, 2)
    if said:
        assert "does not answer" in said[0] and said[1] == "the study database answers again"


def test_training_goes_on_while_the_database_is_down_and_reports_are_made_up_for(
    studies: Postgres, url: str, tmp_path: Path
) -> None:
    """A report neither waits nor is lost; pruning is judged again afterwards."""
    study = open_study(experiment(name="reports", n_trials=1, pruner="median"), dataset=DATASET, store=tmp_path)
    with study.hold():
        asked = study.ask()
        assert asked is not None
        study.report(asked.number, 0, 0.5)
        studies.stop()
        assert study.report(asked.number, 1, 0.6) is False
        studies.start()
        study.report(asked.number, 2, 0.7)
        study.tell(asked.number, "finished", 0.7)
    assert study.reports(0) == {0: 0.5, 1: 0.6, 2: 0.7}


def test_an_outage_that_lasts_too_long_stops_the_sweep_and_the_next_command_goes_on(
    studies: Postgres, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "OUTAGE_S", 0.5)
    study = open_study(experiment(name="stops", n_trials=2), dataset=DATASET, store=tmp_path)
    with study.hold():
        asked = study.ask()
        assert asked is not None
        studies.stop()
        with pytest.raises(SweepStopped, match=r"the study database does not answer(.|\n)*run the same command again"):
            study.tell(asked.number, "finished", 0.5)
        with pytest.raises(SweepStopped):
            study.put_back(asked.number)
    studies.start()
    again = open_study(experiment(name="stops", n_trials=2), dataset=DATASET, store=tmp_path)
    with again.hold():
        assert again.requeue().waiting == (asked.number,)
        while left := again.ask():
            train(again, left)
    assert [row.state for row in again.rows()] == ["finished"] * 2


@pytest.mark.slow
def test_a_database_that_restarts_in_the_middle_of_a_sweep_of_two_processes_costs_no_trial(
    studies: Postgres, url: str, tmp_path: Path
) -> None:
    """Exactly n trials, none failed, none begun twice, on worker processes and in a joined process."""
    where = {"FORGE_SWEEP_STORAGE": url}
    with together((tmp_path, 14, 0.15, "", 2), (tmp_path, 14, 0.15), **where) as (carrier, worker):
        worker.wait_until(lambda: worker.of("epoch"))
        for down_s in (0.0, 3.0):
            ended = len(carrier.of("trial_done"))
            carrier.wait_until(lambda before=ended: len(carrier.of("trial_done")) > before)
            restart(studies, down_s)
        assert carrier.end() == 0, carrier.complaints
        assert worker.end() == 0, worker.complaints
        began = [e["number"] for p in (carrier, worker) for e in p.of("trial_started")]
    check_nothing_is_lost(tmp_path, 14)
    assert sorted(began) == list(range(14))
    assert {(row.state, row.attempt) for row in study_of(tmp_path).rows()} == {("finished", 1)}


@pytest.mark.slow
def test_an_mlflow_server_that_is_away_for_a_while_agrees_in_the_end(
    studies: Postgres, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be written waits in each process's journal, and is written in order."""
    port = free_port()
    command, variables = service("mlflow", studies, {"0.0.0.0": HOST, "5000": str(port), "/work/mlruns": tmp_path})
    address = f"http://{HOST}:{port}"
    where = {"FORGE_SWEEP_STORAGE": url, "MLFLOW_TRACKING_URI": address}

    def serve() -> Any:
        return running(command, f"{address}/health", log=tmp_path / "mlflow.log", **variables)

    both = (tmp_path / "one", 16, 0.2), (tmp_path / "two", 16, 0.2)
    with contextlib.ExitStack() as ending:
        with serve():
            run, worker = ending.enter_context(together(*both, **where))
            worker.wait_until(lambda: worker.of("epoch"))
        before = len(run.of("trial_done"))
        run.wait_until(lambda: len(run.of("trial_done")) > before)
        with serve():
            assert worker.end() == 0, worker.complaints
            if run.end():  # the search ended before the server was back: the same command registers the model
                assert run.said("run the same command again"), run.complaints
                with started("run", *both[0], **where) as again:
                    assert again.end() == 0, again.complaints
            check_agreement(tmp_path, 16, address, monkeypatch, url)


def check_agreement(store: Path, n_trials: int, address: str, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """As `check_nothing_is_lost`, on a server: `forge-sweep reconcile` finds nothing."""
    from forge_sweep.sweep import reconcile

    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    for folder in ("one", "two"):
        found = reconcile("surface", store / folder, repair=False)
        assert found.differences == (), folder
        assert (found.trials, found.runs) == (n_trials, n_trials)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs to mount a tmpfs, which takes root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the space that is left."""
    rest = folder / "rest"
    with rest.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"\0" * 4096)
            except OSError:
                return rest


@pytest.mark.slow
def test_a_full_disk_stops_the_sweep_with_a_clear_error_and_it_goes_on_once_there_is_room(small_disk: Path) -> None:
    store = small_disk / "store"
    with started("run", store, 10, 0.1) as first:
        first.wait_until(lambda: len(first.of("trial_done")) >= 2)
        rest = fill(small_disk)
        assert first.end() == 1
        said = "".join(first.complaints)
        assert "No space left on device" in said or "the disk is full" in said, said
        assert "Traceback" not in said and "fix: " in said, said
    rest.unlink()
    with started("run", store, 10, 0.0) as second:
        assert second.end() == 0, second.complaints
    check_nothing_is_lost(store, 10)
