"""A sweep whose trials run in worker processes: nothing that happens to one of them is lost or harms another."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from forge_sweep import environment, sweep, training, trial
from forge_sweep.errors import ExperimentError, InputError, SweepStopped, TrialFailed
from forge_sweep.experiment import Experiment, Params, load, parse
from forge_sweep.preprocessing import one_matrix
from forge_sweep.sources import load as load_rows
from forge_sweep.study import find_study
from forge_sweep.sweep import Event, Interrupted, pool
from forge_sweep.sweep.pool import SavedArrays, SharedArrays, save
from forge_sweep.trial import Recipe, TrialResult
from forge_sweep.workers import Limits, Plan, ProcessWorkers, Say
from tests.surface import EPOCHS, experiment, fake_run
from tests.test_sweep import check_nothing_is_lost, client, run, runs, study_of

ROOT = Path(__file__).parents[1]

STRESS = int(os.environ.get("FORGE_SWEEP_STRESS", "3"))
"""How many sweeps are run with kills at random moments; 50 before a release."""


def processes(n: int = 2, **values: Any) -> Experiment:
    """The surface on worker processes."""
    return experiment(**{"workers": {"kind": "processes", "n": n}, **values})


def test_two_workers_end_with_the_space_and_train_nothing_twice(tmp_path: Path) -> None:
    """12 configurations, and 500 trials that are asked for; the same command finds nothing left to do."""
    search = {
        "width": {"type": "categorical", "choices": [8, 16, 32]},
        "dropout": {"type": "float", "low": 0.0, "high": 0.3, "step": 0.1},
    }
    few = processes(model__search=search, study__n_trials=500, confirm={"top": 1, "seeds": 1})
    events: list[Event] = []
    result = run(few, tmp_path, fake_run(), watch=events.append)
    rows = study_of(tmp_path).rows()
    assert len(rows) == len({repr(sorted(row.params.items())) for row in rows}) == 12
    assert result.ended_by == "model.search" and sum(result.trials.values()) == 12
    assert "all 12 configurations of the space were tried, and study.n_trials = 500" in result.verdict
    assert any("the space has 12 configurations" in event.data.get("text", "") for event in events)
    assert run(few, tmp_path, fake_run()) == result
    more = run(
        few.model_copy(update={"study": few.study.model_copy(update={"n_trials": 14, "repeats": True})}),
        tmp_path,
        fake_run(),
    )
    assert sum(more.trials.values()) == 14 and more.ended_by == "study.n_trials"


@pytest.mark.slow
def test_the_example_of_a_small_space_trains_each_configuration_once(tmp_path: Path) -> None:
    """experiments/small_space.toml with six configurations, on real processes."""
    words = ["study.epochs=2", "confirm.top=1", "confirm.seeds=1", "model.search.dropout=0.1"]
    words += ["model.search.depth={ type = 'int', low = 1, high = 2 }", 'baselines.kinds=["constant"]']
    result = sweep.run(load(ROOT / "experiments/small_space.toml", words), store=tmp_path)
    assert result.trials == {"finished": 6} and result.ended_by == "model.search"
    assert "all 6 configurations of the space were tried, and study.n_trials = 500" in result.verdict


@dataclass(frozen=True)
class Deadly(fake_run):
    """Kills its process in the middle of a trial: of one trial always, of others at the first attempt."""

    marks: Path = Path()
    always: bool = False

    def __call__(
        self, experiment: Experiment, splits: Any, params: Params, seed: int, on_epoch: Any, **options: Any
    ) -> TrialResult:
        mark = self.marks / str(seed)
        deadly = self.always or not mark.exists()
        mark.touch()

        def deadly_epoch(epoch: int, metrics: dict[str, float]) -> bool:
            answer = bool(on_epoch(epoch, metrics))
            if deadly and epoch == seed % 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return super().__call__(experiment, splits, params, seed, deadly_epoch, **options)


@dataclass(frozen=True)
class Termed(fake_run):
    """Gets SIGTERM, as every process of a job does from a batch system."""

    def __call__(self, *words: Any, **options: Any) -> TrialResult:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().__call__(*words, **options)


@dataclass(frozen=True)
class Stuck(fake_run):
    """Never comes back."""

    def __call__(self, *words: Any, **options: Any) -> TrialResult:
        time.sleep(600)
        raise AssertionError


@dataclass(frozen=True)
class Spy(fake_run):
    """Says what its process has imported and which data it got."""

    def __call__(self, experiment: Experiment, splits: Any, *words: Any, **options: Any) -> TrialResult:
        engines = [name for name in ("optuna", "mlflow", "sqlalchemy") if name in sys.modules]
        seen = (f"pid={os.getpid()}", f"engines={engines}", f"rows={type(splits).__name__}")
        return replace(super().__call__(experiment, splits, *words, **options), events=seen)


def narrow(params: Params) -> TrialFailed | None:
    return TrialFailed("diverged", "loss is nan at epoch 0")


def test_two_workers_run_exactly_the_trials_that_were_asked_for(tmp_path: Path) -> None:
    """Also 3 workers of which two find nothing left; every trial runs once."""
    events: list[Event] = []
    result = run(processes(3, study__n_trials=7), tmp_path, fake_run(0.01), watch=events.append)
    assert sum(result.trials.values()) == 7
    check_nothing_is_lost(tmp_path, 7)
    started = Counter(e.data["number"] for e in events if e.kind == "trial_started")
    assert started == Counter(range(7))
    assert len(result.confirmed) == 3 and all(len(c["values"]) == 2 for c in result.confirmed)
    said = [e.data["text"] for e in events if e.kind == "message"]
    assert any(text.startswith("3 worker processes, 1 thread each") for text in said)
    assert not (tmp_path / "checkpoints" / "surface").exists()


@pytest.mark.slow
def test_one_process_gives_the_trials_and_the_winner_of_the_serial_sweep(tmp_path: Path) -> None:
    """Same numbers, parameters, states, values, confirmation, to the last bit."""
    serial = run(experiment(), tmp_path / "serial")
    process = run(processes(1), tmp_path / "process")
    first, second = (
        [(row.number, row.state, row.params, row.value) for row in study_of(tmp_path / store).rows()]
        for store in ("serial", "process")
    )
    assert first == second
    assert serial.winner == process.winner and serial.test == process.test


def test_a_trial_process_opens_no_database_and_reads_shared_arrays(tmp_path: Path) -> None:
    """Neither Optuna nor MLflow is imported there; the rows are memory maps; one process runs many trials."""
    spec = processes(2, study__n_trials=6, study__pruner="none", workers__threads=1)
    run(spec, tmp_path, Spy(0.01))
    seen = [r.data.tags["forge.events"].split("; ") for r in runs(tmp_path, "trial")]
    assert {tuple(events[1:]) for events in seen} == {("engines=[]", "rows=SavedArrays")}
    assert {r.data.tags["forge.threads"] for r in runs(tmp_path, "trial")} == {"1"}
    assert len({events[0] for events in seen}) <= 2 and f"pid={os.getpid()}" not in {events[0] for events in seen}


def test_a_trial_whose_process_is_killed_runs_again_under_its_number_and_run(tmp_path: Path) -> None:
    """Each trial dies once, in some epoch; its curve has one point per epoch, and it is said."""
    marks = tmp_path / "marks"
    marks.mkdir()
    events: list[Event] = []
    run(processes(2, study__n_trials=4), tmp_path / "store", Deadly(marks=marks), watch=events.append)
    check_nothing_is_lost(tmp_path / "store", 4)
    rows = study_of(tmp_path / "store").rows()
    assert [row.attempt for row in rows] == [2] * 4 and not any(row.failure for row in rows)
    assert {r.data.tags["forge.attempt"] for r in runs(tmp_path / "store", "trial")} == {"2"}
    lost = [e.data["text"] for e in events if e.kind == "message" and "runs again" in e.data["text"]]
    assert len(lost) >= 4 and all("SIGKILL" in text for text in lost)


def test_a_worker_process_that_gets_sigterm_lets_the_sweep_end_its_trial(tmp_path: Path) -> None:
    """What becomes of the trial is up to the sweep's own process, which gets the signal too."""
    run(processes(1, study__n_trials=1, study__pruner="none"), tmp_path, Termed(0.01))
    assert [(row.state, row.attempt) for row in study_of(tmp_path).rows()] == [("finished", 1)]


def test_a_trial_that_kills_its_process_three_times_fails_as_lost_worker(tmp_path: Path) -> None:
    """Three of them stop the sweep, with the place to look at."""
    marks = tmp_path / "marks"
    marks.mkdir()
    deadly = Deadly(marks=marks, always=True)
    with pytest.raises(SweepStopped, match=r"failed alike \(lost-worker\)"):
        run(processes(2, study__n_trials=6, study__pruner="none"), tmp_path / "store", deadly)
    rows = [row for row in study_of(tmp_path / "store").rows() if row.state == "failed"]
    assert len(rows) >= 3 and {row.failure for row in rows} == {"lost-worker"}
    found = runs(tmp_path / "store", "trial")
    assert {r.data.tags["forge.failure"] for r in found if r.info.status == "FAILED"} == {"lost-worker"}
    assert "RUNNING" not in {r.info.status for r in runs(tmp_path / "store")}


def test_a_hung_trial_is_killed_after_its_deadline_and_fails_as_time_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From outside, where the trial itself does not look at the clock any more."""
    monkeypatch.setattr(pool, "GRACE_S", 0.2)
    spec = processes(2, study__n_trials=2, study__trial_timeout_s=0.3, baselines__kinds=["constant"])
    result = run(spec, tmp_path, Stuck())
    assert [row.failure for row in study_of(tmp_path).rows()] == ["time-out"] * 2
    assert result.winner["baseline"] == "constant"
    check_nothing_is_lost(tmp_path, 2)


def test_three_failures_alike_stop_parallel_workers_too(tmp_path: Path) -> None:
    """What runs at that moment comes to its end; nothing new is begun."""
    with pytest.raises(SweepStopped, match=r"failed alike \(diverged\): loss is nan"):
        run(processes(2, study__n_trials=30), tmp_path, fake_run(fail=narrow))
    assert 3 <= len(study_of(tmp_path).rows()) <= 5
    assert "running" not in {row.state for row in study_of(tmp_path).rows()}


def test_the_first_ctrl_c_puts_every_running_trial_back_and_the_next_command_goes_on(tmp_path: Path) -> None:
    calls = Counter[str]()

    def stopping() -> bool:
        calls["n"] += 1
        return calls["n"] > 25

    with pytest.raises(Interrupted):
        run(processes(2), tmp_path, fake_run(0.02), stopping=stopping)
    states = Counter(row.state for row in study_of(tmp_path).rows())
    assert "running" not in states and states["waiting"] in (1, 2)
    assert "RUNNING" not in {r.info.status for r in runs(tmp_path)}
    run(processes(2), tmp_path, fake_run(0.02))
    check_nothing_is_lost(tmp_path, 6)


@contextlib.contextmanager
def random_kills(seed: int, count: int) -> Iterator[list[int]]:
    """Kill random worker processes of this process at random moments, as the OOM killer does."""
    dice, killed, over = random.Random(seed), list[int](), threading.Event()

    def work() -> None:
        while len(killed) < count and not over.wait(dice.uniform(0.05, 0.8)):
            servers = psutil.Process().children()
            with contextlib.suppress(psutil.NoSuchProcess):
                children = [child for server in servers for child in server.children()]
                if children:
                    victim = dice.choice(children)
                    victim.kill()
                    killed.append(victim.pid)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(STRESS))
def test_kill_9_of_random_workers_at_random_moments_loses_nothing(tmp_path: Path, seed: int) -> None:
    """Exactly N trials, nothing RUNNING in Optuna or MLflow, one point per epoch in each curve."""
    with random_kills(seed, count=4) as killed:
        run(processes(2, study__n_trials=10, study__pruner="none"), tmp_path, fake_run(0.1))
    assert killed
    check_nothing_is_lost(tmp_path, 10)
    assert {row.failure for row in study_of(tmp_path).rows()} <= {"", "lost-worker"}
    for child in runs(tmp_path, "confirm"):
        points = [p.step for p in client(tmp_path).get_metric_history(child.info.run_id, "val_auc")]
        assert points in ([], list(range(1, EPOCHS + 1))) or child.data.params.get("baseline")


def test_n_and_the_rest_belong_to_processes() -> None:
    with pytest.raises(ExperimentError, match=r'workers\.n = 2: expected nothing.*set workers\.kind = "processes"'):
        experiment(workers={"n": 2})
    with pytest.raises(ExperimentError, match=r"workers\.memory_limit_mb"):
        experiment(workers={"memory_limit_mb": 100})
    assert experiment(workers={"kind": "serial", "n": 1}).workers.n == 1


def test_the_number_of_workers_follows_from_gpus_or_else_from_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least one, and threads share the cores."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert pool.default_n(8, 100_000_000_000, 0) == 8
    assert pool.default_n(8, 4_000_000_000, 0) == 2
    assert pool.default_n(8, 1, 0) == 1
    spec = experiment(workers={"kind": "processes", "per_gpu": 2})
    on_gpus = pool.plan(spec, gpus=2, cores=16)
    assert on_gpus.n == 4 and on_gpus.start == "spawn" and on_gpus.shared["OMP_NUM_THREADS"] == "4"
    assert [given["CUDA_VISIBLE_DEVICES"] for given in on_gpus.environment] == ["0", "0", "1", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [given["CUDA_VISIBLE_DEVICES"] for given in pool.plan(spec, gpus=2, cores=16).environment] == ["1", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    on_cpu = pool.plan(experiment(workers={"kind": "processes", "n": 3}), gpus=2, cores=16)
    assert on_cpu.n == 3 and on_cpu.start == "forkserver" and on_cpu.shared["OMP_NUM_THREADS"] == "5"


def test_more_workers_than_memory_are_refused_with_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of 0.0 GB fails at its start, in words about the width of a layer."""
    monkeypatch.setattr(environment, "memory", lambda: environment.Memory(10_000_000_000, 8_000_000_000))
    many = experiment(workers={"kind": "processes", "n": 1000})
    with pytest.raises(InputError, match=r"workers\.n = 1000: 7\.2 GB of memory are free, 7 MB for each") as refused:
        pool.plan(many, gpus=0, cores=64)
    assert "set workers.n = 4" in str(refused.value)
    assert pool.plan(experiment(workers={"kind": "processes", "n": 2}), gpus=0, cores=2).n == 2


def test_saved_arrays_are_those_that_were_prepared_and_memory_maps(tmp_path: Path) -> None:
    spec = experiment()
    dataset = load_rows(spec.data, root=spec.root, seed=spec.seed)
    recipe = Recipe.of(spec)
    shared = SharedArrays(dataset, tmp_path / "arrays")
    saved = shared.of(recipe)
    assert shared.of(recipe) is saved
    there, here = saved.prepared(recipe), trial.prepare(dataset, recipe)
    assert there.origin == here.origin and there.task == here.task
    for name in ("x_train", "y_train", "x_valid", "y_valid"):
        mapped, made = getattr(there.data, name), getattr(here.data, name)
        assert type(mapped).__name__ == "memmap" and mapped.ctypes.data % 64 == 0
        assert mapped.dtype == made.dtype and (mapped == made).all()
    frame = dataset.valid.features
    assert (there.preprocessor.transform(frame) == here.preprocessor.transform(frame)).all()
    shared.close()
    assert not (tmp_path / "arrays").exists()


# With TensorFlow.


def real(workers: dict[str, Any], **study: Any) -> Experiment:
    """A small real sweep."""
    return parse(
        {
            "name": "real",
            "seed": 5,
            "data": {"source": "sample", "name": "breast_cancer", "target": "target", "task": "binary"},
            # One shape: a network is compiled once in each process.
            "model": {
                "search": {"width": 16, "learning_rate": {"type": "float", "low": 1e-3, "high": 1e-2, "log": True}}
            },
            "objective": {"metric": "val_auc"},
            "study": {"n_trials": 4, "epochs": 4, **study},
            "baselines": {"kinds": ["constant"]},
            "confirm": {"top": 1, "seeds": 2},
            "workers": workers,
        },
        root=Path(),
    )


@pytest.mark.slow
def test_networks_of_a_worker_process_equal_those_of_the_serial_sweep_bit_for_bit(tmp_path: Path) -> None:
    """Parameters and values of every trial, and the weights of the winner, with as many threads."""
    from forge_sweep.bundle import Bundle

    weights: list[list[Any]] = []
    rows: list[Any] = []
    for store, workers in (("serial", {}), ("process", {"kind": "processes", "n": 1})):
        result = sweep.run(real(workers), store=tmp_path / store)
        assert not result.winner["baseline"]
        (folder,) = {path.parent for path in (tmp_path / store / "artifacts").rglob("bundle.json")}
        weights.append(Bundle.load(folder).model.get_weights())  # type: ignore[union-attr]
        study = find_study("real", tmp_path / store)
        assert study is not None
        rows.append([(row.params, row.state, row.value) for row in study.rows()])
    assert rows[0] == rows[1]
    assert all((one == other).all() for one, other in zip(*weights, strict=True))


def threads(say: Say) -> tuple[int, int]:
    """What TensorFlow uses."""
    import tensorflow as tf

    return (
        tf.config.threading.get_intra_op_parallelism_threads(),
        tf.config.threading.get_inter_op_parallelism_threads(),
    )


ROWS, FEATURES = 1_200_000, 80


@dataclass(frozen=True)
class Measure:
    """Trains one epoch on shared arrays and says, while the rows are in use, what memory it takes."""

    spec: Experiment
    rows: SavedArrays

    def __call__(self, say: Say) -> None:
        """Tell (bytes of the arrays, this process's part of shared pages included, and what else it took)."""
        process = psutil.Process()
        before = anonymous(process)

        def on_epoch(epoch: int, metrics: dict[str, float]) -> bool:
            say("trained")  # everybody measures while everybody has the data
            maps = process.memory_maps(grouped=True)
            shared = sum(found.pss for found in maps if found.path.endswith(".npy"))
            say((shared, anonymous(process) - before))
            return True

        params = {"width": 8, "depth": 1, "batch_size": 4096, "learning_rate": 0.001, "optimizer": "adam"}
        trial.run(self.spec, self.rows, params, 0, on_epoch)


def anonymous(process: psutil.Process) -> int:
    """Memory that belongs to no file."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


@pytest.mark.slow
def test_two_workers_use_less_than_1_3_times_the_data_memory_of_one(tmp_path: Path) -> None:
    """The rows are read in place, by TensorFlow too; each process adds only its own network."""
    import numpy as np

    spec = real({}, epochs=1)
    recipe = Recipe.of(spec)
    dataset = load_rows(spec.data, root=spec.root, seed=spec.seed)
    small = trial.prepare(dataset, recipe)
    dice = np.random.default_rng(0)
    x = dice.standard_normal((ROWS, FEATURES), dtype=np.float32)
    y = dice.integers(0, 2, (ROWS, 1)).astype(small.data.y_train.dtype)
    large = replace(small, data=training.TrainingData(x, y, x[:2000].copy(), y[:2000].copy()))
    save(large, recipe, tmp_path / "arrays")
    used = {n: data_memory(n, Wide(spec, SavedArrays(tmp_path / "arrays"))) for n in (1, 2)}
    sys.stderr.write(f"data memory: {used} of {x.nbytes}\n")
    assert used[1] > x.nbytes
    assert used[2] < 1.3 * used[1]


@dataclass(frozen=True)
class Wide(Measure):
    """With more columns than the preprocessor gives."""

    def __call__(self, say: Say) -> None:
        """See `Measure`."""
        trial.Prepared.spec = one_matrix(FEATURES)  # type: ignore[assignment,method-assign]
        with contextlib.suppress(TrialFailed):
            super().__call__(say)


def data_memory(n: int, task: Measure) -> int:
    """Bytes that n workers take for the rows and their networks while all of them train."""
    together, found = threading.Barrier(n), list[tuple[int, int]]()

    def relay(message: Any) -> None:
        if message != "trained":
            found.append(message)
        together.wait(120)

    plan = Plan(n=n, preload=pool.PRELOAD, setup=training.Setup("tensorflow", 1))
    with ProcessWorkers(plan) as workers:
        workers.run(lambda worker: worker.call(task, relay, Limits()))
    return sum(map(sum, found))


@pytest.mark.slow
def test_a_worker_process_computes_with_its_share_of_the_threads() -> None:
    found: list[tuple[int, int]] = []
    with ProcessWorkers(Plan(preload=pool.PRELOAD, setup=training.Setup("tensorflow", 1))) as workers:
        workers.run(lambda worker: found.append(worker.call(threads, lambda message: None, Limits())))
    assert found == [(1, 1)]
