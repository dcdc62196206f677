"""A trial that was cut off, ran out of memory or lost its GPU goes on, under its number and its run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forge_sweep import sweep, trial
from forge_sweep.errors import SweepStopped, TrialFailed
from forge_sweep.experiment import Experiment, Params
from forge_sweep.sweep import Event, Interrupted, pool
from forge_sweep.training import FileCheckpoint, Setup
from forge_sweep.trial import TrialResult
from forge_sweep.trial import run as real_run
from forge_sweep.workers import Limits, Plan, ProcessWorkers, Say, WorkerUnfit
from tests.surface import experiment, fake_run
from tests.test_sweep import check_nothing_is_lost, curve, run, runs, study_of
from tests.test_sweep_workers import processes, real

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SLOWLY = {"epochs": 6, "patience": 6, "pruner": "none", "n_trials": 2}


def save_each_epoch() -> None:
    """Small trainings would be over before their progress is saved for the first time."""
    from forge_sweep.training import callbacks

    callbacks.SAVE_FIRST_S = callbacks.SAVE_EVERY_S = 0.0
    callbacks.SAVE_SHARE = 1e9


@dataclass(frozen=True)
class DeadlyNetwork:
    """A real training whose process is killed once, after three epochs."""

    marks: Path

    def __call__(
        self, experiment: Experiment, splits: Any, params: Params, seed: int, on_epoch: Any, **options: Any
    ) -> TrialResult:
        save_each_epoch()
        mark = self.marks / str(seed)
        deadly = not mark.exists()
        mark.touch()

        def deadly_epoch(epoch: int, metrics: dict[str, float]) -> bool:
            answer = bool(on_epoch(epoch, metrics))
            if deadly and epoch == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return real_run(experiment, splits, params, seed, deadly_epoch, **options)


def results(store: Path) -> list[tuple[Any, ...]]:
    """All that a trial gave."""
    return [(row.params, row.state, row.value, row.attrs["metrics"]) for row in study_of(store, "real").rows()]


@pytest.mark.slow
def test_a_killed_trial_goes_on_from_its_last_epoch_and_ends_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three kinds of end: of the worker, of the whole sweep by SIGKILL, and by Ctrl-C."""
    sweep.run(real({}, **SLOWLY), store=tmp_path / "whole")
    marks = tmp_path / "marks"
    marks.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(trial, "run", DeadlyNetwork(marks))
        sweep.run(real({"kind": "processes", "n": 1}, **SLOWLY), store=tmp_path / "worker")
    killed = subprocess.run([sys.executable, "-m", "tests.test_sweep_resume", str(tmp_path / "sweep")])
    assert killed.returncode == -signal.SIGKILL
    sweep.run(real({}, **SLOWLY), store=tmp_path / "sweep")
    interrupted(tmp_path / "ctrl_c", {})
    interrupted(tmp_path / "ctrl_c_process", {"kind": "processes", "n": 1})
    for store, resumed in (("worker", 2), ("sweep", 1), ("ctrl_c", 1), ("ctrl_c_process", 1)):
        assert results(tmp_path / store) == results(tmp_path / "whole")
        found = runs(tmp_path / store, "trial")
        events = [run.data.tags["forge.events"] for run in found]
        assert sum(bool(re.search(r"taken up again after epoch [123]", text)) for text in events) == resumed
        assert [curve(tmp_path / store, run.info.run_id, "val_auc") for run in found] == [list(range(1, 7))] * 2
        assert {run.info.status for run in runs(tmp_path / store)} == {"FINISHED"}
        assert not (tmp_path / store / "checkpoints" / "real").exists()


def interrupted(store: Path, workers: dict[str, Any]) -> None:
    """A sweep that was stopped in its second trial, long before its progress would be saved, and went on."""
    calls = Counter[str]()

    def stopping() -> bool:
        calls["n"] += 1
        return calls["n"] > 13  # twice between phases, once for the baseline and each trial, once for each epoch

    with pytest.raises(Interrupted):
        sweep.run(real(workers, **SLOWLY), store=store, stopping=stopping)
    (left,) = (store / "checkpoints" / "real").glob("trial-*.npz")
    assert left.name == "trial-0001.npz"
    sweep.run(real(workers, **SLOWLY), store=store)


@dataclass(frozen=True)
class Hungry(fake_run):
    """Runs out of memory with more than so many rows per batch."""

    most: int = 32
    how: str = "raises"

    def __call__(self, experiment: Experiment, splits: Any, params: Params, *words: Any, **options: Any) -> TrialResult:
        used = trial.smaller(params, options["halvings"])
        if int(used["batch_size"]) > self.most:
            if self.how == "takes":
                bytearray(400_000_000)[:] = b"1" * 400_000_000
                self._wait()
            raise TrialFailed("out-of-memory", "out of memory (ResourceExhaustedError)")
        return super().__call__(experiment, splits, params, *words, **options)

    @staticmethod
    def _wait() -> None:
        held = [b"1" * 400_000_000]
        signal.pause()
        del held


def batches(**values: Any) -> Experiment:
    """The surface with batches of 128."""
    return experiment(**{"model__search__batch_size": 128, "model__search__learning_rate": 0.01, **values})


@pytest.mark.parametrize("workers", [{}, {"kind": "processes", "n": 2}])
def test_a_trial_that_runs_out_of_memory_is_run_again_with_half_a_batch(
    tmp_path: Path, workers: dict[str, Any]
) -> None:
    events: list[Event] = []
    result = run(batches(workers=workers, study__n_trials=3), tmp_path, Hungry(), watch=events.append)
    assert sum(result.trials.values()) == 3
    check_nothing_is_lost(tmp_path, 3)
    said = [e.data["text"] for e in events if e.kind == "message"]
    for number in range(3):
        assert f"trial-{number:04d} ran out of memory with batches of 128 and goes on with 64" in said
        assert f"trial-{number:04d} ran out of memory with batches of 64 and goes on with 32" in said
    assert any(text.startswith("confirm-") for text in said)
    assert [row.attempt for row in study_of(tmp_path).rows()] == [1] * 3


@pytest.mark.slow
def test_a_process_that_is_killed_for_its_memory_is_run_again_with_half_a_batch(tmp_path: Path) -> None:
    workers = {"kind": "processes", "n": 1, "memory_limit_mb": 250}
    spec = batches(workers=workers, study__n_trials=1, confirm={"top": 1, "seeds": 1})
    result = run(spec, tmp_path, Hungry(most=64, how="takes"))
    assert result.trials == {"finished": 1}
    check_nothing_is_lost(tmp_path, 1)


def test_the_number_of_halvings_outlives_the_process(tmp_path: Path) -> None:
    """The process dies between two halves; the next one does not begin with the whole batch again."""
    checkpoint = FileCheckpoint(tmp_path / "checkpoints" / "trial-0000.npz")
    assert pool.halved(checkpoint) == 0
    checkpoint.path.parent.mkdir()
    pool.halvings_file(checkpoint).write_text("2")
    assert pool.halved(checkpoint) == 2
    pool.forget_progress(checkpoint)
    assert pool.halved(checkpoint) == 0
    assert not list(checkpoint.path.parent.iterdir())


def test_below_the_smallest_batch_a_trial_fails_as_out_of_memory(tmp_path: Path) -> None:
    with pytest.raises(SweepStopped, match=r"failed alike \(out-of-memory\)"):
        run(batches(), tmp_path, Hungry(most=0))
    assert {(row.state, row.failure) for row in study_of(tmp_path).rows()} == {("failed", "out-of-memory")}
    assert {r.info.status for r in runs(tmp_path, "trial")} == {"FAILED"}


def test_half_a_batch_takes_a_smaller_learning_rate() -> None:
    """Linear with SGD, by the square root with the others; seldom asked for, always said."""
    asked: Params = {"batch_size": 64, "learning_rate": 0.08, "optimizer": "sgd", "width": 8}
    assert trial.smaller(asked, 0) is asked
    assert trial.smaller(asked, 2) == {**asked, "batch_size": 16, "learning_rate": pytest.approx(0.02)}
    adaptive = trial.smaller({**asked, "optimizer": "adam"}, 2)
    assert adaptive["learning_rate"] == pytest.approx(0.04)
    assert trial.can_halve(asked, 3) and not trial.can_halve(asked, 4)
    (event,) = trial.halved_event(asked, trial.smaller(asked, 1))
    assert event == "out of memory: batch size 64 -> 32, learning rate 0.08 -> 0.04"
    assert trial.halved_event(asked, asked) == ()


@dataclass(frozen=True)
class Falling(fake_run):
    """Loses its GPU once per trial."""

    marks: Path = Path()

    def __call__(
        self, experiment: Experiment, splits: Any, params: Params, seed: int, *words: Any, **options: Any
    ) -> Any:
        mark = self.marks / str(seed)
        if not mark.exists():
            mark.write_text(str(os.getpid()))
            raise TrialFailed("lost-worker", "InternalError: CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure")
        assert int(mark.read_text()) != os.getpid()
        return super().__call__(experiment, splits, params, seed, *words, **options)


def test_a_trial_whose_gpu_fell_off_runs_again_in_a_new_process(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    run(processes(2, study__n_trials=3), tmp_path / "store", Falling(marks=marks))
    check_nothing_is_lost(tmp_path / "store", 3)
    assert [row.attempt for row in study_of(tmp_path / "store").rows()] == [2] * 3


def test_the_only_process_without_its_gpu_stops_and_the_trial_waits(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    with pytest.raises(SweepStopped, match="the GPU is gone: InternalError"):
        run(experiment(), tmp_path / "store", Falling(marks=marks))
    assert [row.state for row in study_of(tmp_path / "store").rows()] == ["waiting"]


@dataclass(frozen=True)
class Blind:
    """A setup that finds no GPU where one was given."""

    backend: str
    threads: int

    def __call__(self) -> None:
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "0":
            raise WorkerUnfit("it was given GPU 0, and the backend sees none")


def on_places(monkeypatch: pytest.MonkeyPatch, *places: dict[str, str]) -> Experiment:
    """An experiment whose workers have these places; call it within the fakes."""
    planned = pool.plan

    def plan(*words: Any) -> Plan:
        found = planned(*words)
        return Plan(**{**vars(found), "environment": places, "setup": Blind("tensorflow", 1)})

    monkeypatch.setattr(pool, "plan", plan)
    return processes(len(places))


def test_a_worker_without_its_gpu_leaves_its_work_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    run(on_places(monkeypatch, {"CUDA_VISIBLE_DEVICES": "0"}, {}), tmp_path, fake_run(0.01), watch=events.append)
    check_nothing_is_lost(tmp_path, 6)
    said = [e.data["text"] for e in events if e.kind == "message" and "given up" in e.data["text"]]
    assert set(said) == {"a worker is given up: it was given GPU 0, and the backend sees none"}


def test_no_worker_with_a_gpu_stops_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"CUDA_VISIBLE_DEVICES": "0"}
    with pytest.raises(SweepStopped, match="no worker is left: it was given GPU 0"):
        run(on_places(monkeypatch, gone, gone), tmp_path, fake_run())
    assert "running" not in {row.state for row in study_of(tmp_path).rows()}


def no_task(say: Say) -> None:
    """Nothing to do."""


@pytest.mark.slow
def test_a_process_that_was_given_a_gpu_refuses_to_compute_on_the_cpu() -> None:
    """For real: this machine has none (or none with this number)."""
    given = {"CUDA_VISIBLE_DEVICES": "99"}
    raised: list[BaseException] = []

    def job(worker: Any) -> None:
        with pytest.raises(WorkerUnfit, match="it was given GPU 99, and the backend sees none") as error:
            worker.call(no_task, lambda message: None, Limits())
        raised.append(error.value)

    with ProcessWorkers(Plan(environment=(given,), start="spawn", setup=Setup("tensorflow", 1))) as workers:
        workers.run(job)
    assert len(raised) == 1


if __name__ == "__main__":
    save_each_epoch()

    class Last:
        """Ends the process in the second trial."""

        trials = 0

        def __call__(self, event: Event) -> None:
            Last.trials += event.kind == "trial_started"
            if Last.trials == 2 and event.kind == "epoch" and event.data["epoch"] == 3:
                os.kill(os.getpid(), signal.SIGKILL)

    sweep.run(real({}, **SLOWLY), store=Path(sys.argv[1]), watch=Last())
