"""Several processes on one sweep: whichever of them dies, exactly the trials that were asked for are run."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from forge_sweep.errors import ResumeRefused, SweepStopped
from forge_sweep.sweep import Joined, join
from tests.joiner import Process, spec, started, together
from tests.postgres import database, server
from tests.surface import EPOCHS, experiment, fake_run, no_network
from tests.test_sweep import check_nothing_is_lost, curve, run, runs, study_of

__all__ = ["database", "server"]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def shared(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables under which processes meet: the store alone, or a server for the study."""
    monkeypatch.delenv("FORGE_SWEEP_STORAGE", raising=False)
    if request.param == "sqlite":
        return {}
    made: Callable[..., str] = request.getfixturevalue("database")
    url = made().replace("postgresql://", "postgresql+psycopg://")
    monkeypatch.setenv("FORGE_SWEEP_STORAGE", url)
    return {"FORGE_SWEEP_STORAGE": url}


def trials_of(process: Process) -> list[int]:
    """Numbers of the trials that a process began."""
    return [event["number"] for event in process.of("trial_started")]


def test_a_worker_that_starts_first_shares_the_trials_and_leaves(tmp_path: Path) -> None:
    """No baseline, no confirmation, no model of its own; Optuna and MLflow agree in the end."""
    with together((tmp_path, 12, 0.3), (tmp_path, 12, 0.3)) as (carrier, worker):
        assert carrier.end() == 0, carrier.complaints
        assert worker.end() == 0, worker.complaints
        assert sorted(trials_of(carrier) + trials_of(worker)) == list(range(12))
        assert trials_of(worker)
        assert not worker.of("baseline") and not worker.of("confirm")
    check_nothing_is_lost(tmp_path, 12)
    assert len(runs(tmp_path, "baseline")) == 1


@pytest.mark.slow
def test_trials_of_a_worker_that_was_killed_run_again_at_once(shared: dict[str, str], tmp_path: Path) -> None:
    """In the same place its death is seen without waiting; the carrying process waits for exactly n trials."""
    with together((tmp_path, 8, 0.2), (tmp_path, 8, 0.2)) as (carrier, worker):
        worker.wait_until(lambda: worker.of("epoch"))
        cut_off = trials_of(worker)[-1]
        worker.kill()
        assert carrier.end() == 0, carrier.complaints
        assert carrier.said(f"trial {cut_off} was cut off and runs again")
    check_nothing_is_lost(tmp_path, 8)
    assert study_of(tmp_path).rows()[cut_off].attempt == 2


@pytest.mark.slow
def test_a_killed_run_is_taken_up_by_the_same_command_while_a_worker_goes_on(
    shared: dict[str, str], tmp_path: Path
) -> None:
    """The worker's live trial is neither begun again nor ended in MLflow."""
    with together((tmp_path, 10, 0.15), (tmp_path, 10, 0.15)) as (first, worker):
        worker.wait_until(lambda: worker.of("epoch"))
        first.kill()
        first.process.wait()
        with started("run", tmp_path, 10, 0.15) as second:
            assert second.end() == 0, second.complaints
        assert worker.end() == 0, worker.complaints
        began = Counter(trials_of(first) + trials_of(worker) + trials_of(second))
    check_nothing_is_lost(tmp_path, 10)
    again = {number for number, times in began.items() if times > 1}
    assert len(again) <= 1, "only the trial of the killed process runs twice"
    assert not again & set(trials_of(worker)[:1])


@pytest.mark.slow
def test_sigterm_puts_the_trials_of_a_worker_back(tmp_path: Path) -> None:
    """As SLURM and Kubernetes send it, also twice; no attempt is counted."""
    with together((tmp_path, 6, 0.2), (tmp_path, 6, 0.2)) as (carrier, worker):
        worker.wait_until(lambda: worker.of("epoch"))
        worker.kill(signal.SIGTERM)
        worker.kill(signal.SIGTERM)
        assert worker.end() == 130
        assert carrier.end() == 0, carrier.complaints
    check_nothing_is_lost(tmp_path, 6)
    assert {row.attempt for row in study_of(tmp_path).rows()} == {1}


@pytest.mark.slow
def test_a_second_run_from_another_machine_is_refused_and_a_dead_one_is_taken_over_from(
    tmp_path: Path, database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes by the beat alone: other place, other store folder."""
    url = database().replace("postgresql://", "postgresql+psycopg://")
    where = {"FORGE_SWEEP_STORAGE": url, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    with started("run", tmp_path / "one", 6, 0.5, "one", **where) as first:
        first.wait_until(lambda: first.of("epoch"))
        with started("run", tmp_path / "two", 6, 0.5, "two", **where) as second:
            assert second.end() == 1
            assert second.said(f"study surface is being run by process {first.process.pid} on host")
            assert second.said("last heartbeat")
        first.kill()
        with started("run", tmp_path / "two", 6, 0.0, "two", **where) as third:
            assert third.end() == 0, third.complaints
            assert third.said(f"study surface was run by process {first.process.pid}")
    check_nothing_is_lost(tmp_path, 6)


@pytest.mark.slow
def test_a_process_that_was_paused_too_long_drops_its_trial_and_goes_on(
    tmp_path: Path, database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is written twice, neither a point of a curve nor an end."""
    url = database().replace("postgresql://", "postgresql+psycopg://")
    where = {"FORGE_SWEEP_STORAGE": url, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    one, two = (tmp_path / "one", 40, 0.3, "one"), (tmp_path / "two", 40, 0.3, "two")
    with together(one, two, **where) as (carrier, worker):
        worker.wait_until(lambda: worker.of("epoch"))
        worker.kill(signal.SIGSTOP)
        lost = trials_of(worker)[-1]
        carrier.wait_until(lambda: carrier.said(f"trial {lost} was cut off and runs again"))
        worker.kill(signal.SIGCONT)
        worker.wait_until(lambda: worker.said(f"trial {lost} of surface was taken over by another process"))
        worker.wait_until(lambda: len(trials_of(worker)) > trials_of(worker).index(lost) + 1)
        carrier.kill(signal.SIGTERM)
        assert carrier.end() == 130
        worker.kill(signal.SIGTERM)
        assert worker.end() == 130, worker.complaints
    study = study_of(tmp_path)
    taken = study.rows()[lost]
    assert taken.attempt == 2 and taken.epochs <= EPOCHS
    for child in runs(tmp_path, "trial"):
        points = curve(tmp_path, child.info.run_id, "val_auc")
        assert points == sorted(set(points)), child.info.run_name


def joined(store: Path, n_trials: int) -> Joined:
    with no_network(fake_run()):
        return join(spec(n_trials), store=store, wait_s=0.0)


def test_a_worker_without_a_sweep_says_what_it_waited_for(tmp_path: Path) -> None:
    with pytest.raises(SweepStopped, match=r"no study of surface appeared within 0 s(.|\n)*forge-sweep run"):
        joined(tmp_path, 3)
    assert not (tmp_path / "optuna.db").exists()


def test_a_worker_of_another_experiment_is_refused_with_the_differences(tmp_path: Path) -> None:
    run(spec(2), tmp_path)
    with pytest.raises(ResumeRefused, match=r"study\.patience: .* -> 3"), no_network(fake_run()):
        join(experiment(study__pruner="none", study__patience=3), store=tmp_path, wait_s=0.0)


def test_a_worker_that_comes_when_all_is_done_leaves_at_once(tmp_path: Path) -> None:
    run(spec(2), tmp_path)
    before = len(runs(tmp_path))
    left = joined(tmp_path, 2)
    assert left == Joined("surface", {}, "all 2 trials are done")
    assert len(runs(tmp_path)) == before
    with pytest.raises(SweepStopped, match="no process searched study surface within 0 s"):
        joined(tmp_path, 5)


@pytest.mark.slow
def test_the_total_is_that_of_the_sweep_not_of_the_workers_file(tmp_path: Path) -> None:
    """A worker with a larger `n_trials` begins no more than the sweep is to have."""
    with together((tmp_path, 6, 0.1), (tmp_path, 50, 0.1)) as (carrier, worker):
        assert carrier.end() == 0, carrier.complaints
        assert worker.end() == 0, worker.complaints
    check_nothing_is_lost(tmp_path, 6)


@pytest.mark.slow
def test_a_budget_of_the_sweep_ends_the_trials_of_a_worker_too(shared: dict[str, str], tmp_path: Path) -> None:
    """Though its own file has none. Nothing ends after the sweep did: what is confirmed is the best of all."""
    budgets = json.dumps({"plateau_trials": 4, "plateau_delta": 0.05})
    both = tmp_path, 500, 0.2
    with together(both, both, of_run={"SURFACE_BUDGETS": budgets}) as (carrier, worker):
        assert carrier.end() == 0, carrier.complaints
        assert worker.end() == 0, worker.complaints
        assert trials_of(worker)
    study = study_of(tmp_path)
    ended_by = study.ended_by()
    assert ended_by is not None and ended_by.key == "study.plateau_trials"
    assert {row.state for row in study.rows()} <= {"finished", "waiting"} and study.n_done < 100
    (key,) = study.notes("final:")
    assert key.startswith(f"final:{study.n_done}:")


@pytest.mark.slow
def test_a_worker_goes_on_without_the_process_that_carries_the_sweep(tmp_path: Path) -> None:
    """What is left then is taken up by the next run: confirmation and registration."""
    with together((tmp_path, 8, 0.1), (tmp_path, 8, 0.1)) as (carrier, worker):
        worker.wait_until(lambda: worker.of("epoch"))
        carrier.kill()
        carrier.process.wait()
        assert worker.end() == 0, worker.complaints
    assert sum(row.state == "finished" for row in study_of(tmp_path).rows()) == 8, "the killed process's trial included"
    with started("run", tmp_path, 8, 0.0) as second:
        assert second.end() == 0, second.complaints
        assert not trials_of(second)
    check_nothing_is_lost(tmp_path, 8)
