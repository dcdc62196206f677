"""Workers on a real Ray cluster: the conformance suite, what Ray alone promises, and sweeps while nodes come and go."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from forge_sweep import sweep, workers
from forge_sweep.errors import InputError, SweepStopped, TrialFailed
from forge_sweep.experiment import Experiment, WorkersSpec
from forge_sweep.study import find_study
from forge_sweep.sweep import Event, Interrupted
from forge_sweep.trial import TrialResult
from forge_sweep.workers import Limits, Plan, Say, Worker, WorkerLost, Workers
from tests import ray_cluster, test_workers
from tests.surface import experiment, fake_run
from tests.test_sweep import check_nothing_is_lost, run, runs, study_of
from tests.test_workers import NO_LIMIT, WorkersConformance, await_end, pid, silent, sleep

ray_cluster.require_ray()

import ray  # noqa: E402

from forge_sweep.workers.ray import RayWorkers, Stored, actor, places  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Any]:
    """One node of 2 CPUs and a GPU that is only counted; RAY_ADDRESS names it."""
    with ray_cluster.cluster(num_cpus=2, num_gpus=1) as made:
        os.environ["RAY_ADDRESS"] = made.address
        yield made


def on_ray(plan: Plan | None = None, **spec: Any) -> RayWorkers:
    """One worker, unless said otherwise."""
    return RayWorkers(WorkersSpec(**{"kind": "ray", "n": 1, **spec}), plan or Plan())


def call(crew: Workers, *tasks: Any, relay: Say = silent, limits: Limits = NO_LIMIT) -> list[Any]:
    """What each task gave or raised, on the one worker of a crew."""
    ended: list[Any] = []

    def job(worker: Worker) -> None:
        for task in tasks[len(ended) :]:
            try:
                ended.append(worker.call(task, relay, limits))
            except Exception as error:
                ended.append(error)

    with crew:
        crew.run(job)
    return ended


class TestRay(WorkersConformance):
    def make(self) -> Workers:
        return workers.make(WorkersSpec(kind="ray", n=2))


def test_a_worker_keeps_its_process_between_two_runs_and_close_leaves_none() -> None:
    found: list[int] = []
    with on_ray() as crew:
        for _ in range(2):
            crew.run(lambda worker: found.extend(worker.call(pid, silent, NO_LIMIT) for _ in range(2)))
        assert len(set(found)) == 1 and found[0] != os.getpid()
    await_end(found)
    assert not ray.is_initialized()


def test_a_killed_process_is_lost_and_replaced() -> None:
    lost, other = call(on_ray(), sleep, pid, relay=lambda there: os.kill(there, signal.SIGKILL))
    assert isinstance(lost, WorkerLost) and "its process died" in str(lost)
    assert other != os.getpid()


def test_what_ray_prints_of_a_killed_process_goes_to_the_log(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Standard output is what others read: JSON lines, a table."""
    caplog.set_level("INFO", logger=places.__name__)

    def kill(there: Any) -> None:
        os.kill(there, signal.SIGKILL)
        until = time.monotonic() + 60
        while "died" not in caplog.text and time.monotonic() < until:
            time.sleep(0.05)
        print("ours")

    call(on_ray(), sleep, relay=kill)
    assert "died" in caplog.text
    assert capsys.readouterr().out == "ours\n"


def test_a_worker_whose_process_was_killed_stops_and_another_one_goes_on() -> None:
    """The job is called again, on a new worker: the trial that was lost may be anybody's next one."""
    ids: list[str] = []

    def job(worker: Worker) -> None:
        ids.append(worker.id)
        assert not worker.stopping
        if len(ids) == 1:
            with pytest.raises(WorkerLost):
                worker.call(sleep, lambda there: os.kill(there, signal.SIGKILL), NO_LIMIT)
            assert worker.stopping

    with on_ray() as crew:
        crew.run(job)
    assert len(set(ids)) == len(ids) == 2


def test_a_process_that_hangs_is_lost_and_one_that_works_in_silence_is_not() -> None:
    """Its own waiting for a message is no work."""
    hung, done = call(on_ray(), sleep, test_workers.compute, relay=lambda there: None, limits=Limits(silent_s=2.0))
    assert isinstance(hung, WorkerLost) and "hung" in str(hung)
    assert done == "done"


def test_a_stopped_process_gives_no_sign_of_life_and_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose node is cut off: nobody there can say that it hangs."""
    monkeypatch.setattr(places, "PULSE_S", 0.5)
    (lost,) = call(on_ray(), sleep, relay=lambda there: os.kill(there, signal.SIGSTOP), limits=Limits(silent_s=1.0))
    assert isinstance(lost, WorkerLost) and "no sign of life" in str(lost)


def test_a_task_beyond_its_time_fails_as_time_out_and_its_process_is_gone() -> None:
    there: list[int] = []
    (failed,) = call(on_ray(), sleep, relay=there.append, limits=Limits(seconds=0.5))
    assert isinstance(failed, TrialFailed) and failed.failure == "time-out"
    await_end(there)


def test_a_task_beyond_its_memory_fails_as_out_of_memory_and_one_below_does_not() -> None:
    hog, modest = (functools.partial(test_workers.hoard, megabytes=megabytes) for megabytes in (300, 20))
    failed, done = call(on_ray(Plan(memory_bytes=100_000_000)), hog, modest)
    assert isinstance(failed, TrialFailed) and failed.failure == "out-of-memory"
    assert done == 20_000_000


def test_a_process_has_the_shared_variables_and_no_gpu_that_it_did_not_ask_for() -> None:
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    (found,) = call(
        on_ray(Plan(shared={"OMP_NUM_THREADS": "7"})), functools.partial(test_workers.environment_of, names=names)
    )
    assert found == ["7", "-1"]


def test_two_workers_share_a_gpu_and_a_third_has_no_place_on_it() -> None:
    """Without a number there are as many as the cluster has room for; Ray says which GPU it is."""
    found: list[list[str | None]] = []
    names = ("CUDA_VISIBLE_DEVICES", "TF_FORCE_GPU_ALLOW_GROWTH")
    task = functools.partial(test_workers.environment_of, names=names)
    both = threading.Barrier(2)

    def job(worker: Worker) -> None:
        found.append(worker.call(task, silent, NO_LIMIT))
        both.wait(60)

    with on_ray(Plan(n=10), n=None, gpus=0.5) as crew:
        crew.run(job)
    assert found == [["0", "true"]] * 2


def test_a_process_that_cannot_be_set_up_stops_the_sweep_with_its_own_error() -> None:
    for setup, words in (
        (test_workers.refuse_to_start, "no such backend"),
        (test_workers.die_at_once, "no process can"),
    ):
        with on_ray(Plan(setup=setup)) as crew, pytest.raises(SweepStopped, match=words):
            crew.run(lambda worker: None)


def test_without_room_for_one_trial_the_sweep_stops_and_says_what_there_is() -> None:
    said: list[str] = []
    spec = WorkersSpec(kind="ray", cpus=64, gpus=2.0, wait_s=1.0)
    with RayWorkers(spec, Plan(), said.append) as crew, pytest.raises(SweepStopped) as caught:
        crew.run(lambda worker: None)
    assert "each trial asks for 64 CPU, 2 GPU; 1 node(s): 2 CPU, 1 GPU" in str(caught.value)
    assert "workers.cpus" in str(caught.value)


def test_a_gpu_that_nobody_asks_for_is_said() -> None:
    said: list[str] = []
    with RayWorkers(WorkersSpec(kind="ray", n=1), Plan(), said.append) as crew:
        crew.run(lambda worker: None)
    assert any("has 1 GPU, and no trial asks for one" in text for text in said)


def test_a_node_with_other_packages_is_refused_with_the_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    here = actor.versions()
    assert here["keras"] and here["numpy"] and here["code of forge_sweep"]
    monkeypatch.setattr(places, "versions", lambda: {**here, "keras": "0.1"})
    with on_ray() as crew, pytest.raises(SweepStopped, match=rf"keras {here['keras']} instead of 0\.1"):
        crew.run(lambda worker: None)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nonsense", "ray://127.0.0.1:10001"])
def test_an_address_where_no_cluster_is_is_refused_at_once(address: str) -> None:
    with on_ray(address=address) as crew, pytest.raises(InputError, match=f"workers.address = '{address}'"):
        crew.run(lambda worker: None)
    assert not ray.is_initialized()


def test_ctrl_c_in_the_calling_thread_gives_up_every_task_at_once() -> None:
    """A worker that waits for a place too: there are three, and two places."""
    started: list[int] = []

    def relay(there: int) -> None:
        started.append(there)
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with on_ray(n=3) as crew, pytest.raises(KeyboardInterrupt):
        crew.run(lambda worker: worker.call(sleep, relay, NO_LIMIT))
    await_end(started)


def test_the_users_own_connection_and_handlers_are_left_as_they_are(cluster: Any) -> None:
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        (there,) = call(on_ray(), pid)
        assert ray.is_initialized()
        await_end([there])
        with on_ray(address="10.0.0.5:6379") as crew, pytest.raises(InputError, match="is connected to"):
            crew.run(lambda worker: None)
    finally:
        ray.shutdown()
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        call(on_ray(), pid)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


# Data.

VALUES = 10_000_000


def total(say: Say, stored: Stored) -> dict[str, Any]:
    """How a worker sees an array, while everybody has it."""
    import numpy as np

    process = psutil.Process()
    before = anonymous(process)
    values = stored.get()["x"]
    sum_, again = float(values.sum()), stored.get()["x"]
    say("has it")
    return {
        "sum": sum_,
        "same": np.shares_memory(values, again),
        "writeable": values.flags.writeable,
        "offset": values.ctypes.data % 64,
        "own": anonymous(process) - before,
        "pid": os.getpid(),
    }


def anonymous(process: psutil.Process) -> int:
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def test_all_workers_of_a_node_read_one_copy_of_the_data() -> None:
    """40 MB: no process takes a tenth of that for itself; the arrays are aligned as TensorFlow wants them."""
    import numpy as np

    seen: list[dict[str, Any]] = []
    together = threading.Barrier(2)
    with on_ray(n=2) as crew:
        kept: list[Stored] = []
        lock = threading.Lock()

        def job(worker: Worker) -> None:
            with lock:
                if not kept:
                    kept.append(Stored.put({"x": np.ones(VALUES, np.float32), "about": "odd length " * 3}))
            seen.append(worker.call(functools.partial(total, stored=kept[0]), lambda word: together.wait(60), NO_LIMIT))

        crew.run(job)
        used = ray.cluster_resources()["object_store_memory"]
        assert used < 3 * 4 * VALUES  # two copies and the driver's would not fit
    assert [(one["sum"], one["same"], one["writeable"], one["offset"]) for one in seen] == [
        (VALUES, True, False, 0)
    ] * 2
    assert all(one["own"] < 0.4 * VALUES for one in seen)
    assert len({one["pid"] for one in seen}) == 2


# Sweeps.


def cluster_sweep(**values: Any) -> Experiment:
    """The surface on Ray."""
    return experiment(**{"workers": {"kind": "ray"}, **values})


@dataclass(frozen=True)
class Where(fake_run):
    """Says where it ran and what its process has imported; does not begin as long as there is a file."""

    closed: Path | None = None

    def __call__(self, experiment: Experiment, splits: Any, *words: Any, **options: Any) -> TrialResult:
        await_true(lambda: self.closed is None or not self.closed.exists())
        engines = [name for name in ("optuna", "mlflow", "sqlalchemy") if name in sys.modules]
        node = ray.get_runtime_context().get_node_id()
        seen = (f"node={node}", f"engines={engines}", f"rows={type(splits).__name__}", f"pid={os.getpid()}")
        return replace(super().__call__(experiment, splits, *words, **options), events=seen)


def seen_by(store: Path) -> list[dict[str, str]]:
    """What `Where` said of each trial."""
    tags = [found.data.tags["forge.events"] for found in runs(store, "trial")]
    return [dict(part.split("=", 1) for part in text.split("; ")) for text in tags]


class Nodes:
    """Lets a node leave, and another one join, while a sweep runs; `watch` is told of its events.

    Args:
        cluster: of the test.
        taken: filled with every place that a worker gets.
        closed: file that is there from when the node joins until a worker has its place on it.
    """

    def __init__(self, cluster: Any, taken: list[places.Place], closed: Path) -> None:
        self.cluster = cluster
        self.taken = taken
        self.closed = closed
        self.leaves = cluster.add_node(num_cpus=1, object_store_memory=ray_cluster.STORE_BYTES)
        self.joins: Any = None
        self.events: list[Event] = []

    def watch(self, event: Event) -> None:
        self.events.append(event)
        if event.kind == "epoch" and self.leaves and self.has_place(self.leaves):
            self.cluster.remove_node(self.leaves, allow_graceful=False)
            self.leaves = None
            self.cluster._shutdown_at_exit = False  # its hooks are for the main thread, and this is a worker's
            self.joins = self.cluster.add_node(num_cpus=1, object_store_memory=ray_cluster.STORE_BYTES)
            self.closed.touch()  # the trials wait, not this thread: who watches holds up the whole sweep
            threading.Thread(target=self.open, daemon=True).start()

    def open(self) -> None:
        await_true(lambda: self.has_place(self.joins))  # from here on it takes its part of the trials
        self.closed.unlink()

    def has_place(self, node: Any) -> bool:
        return any(place.about and place.about.node == node.node_id for place in self.taken)

    @property
    def said(self) -> list[str]:
        return [event.data["text"] for event in self.events if event.kind == "message"]


def await_true(condition: Any) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[places.Place]:
    """Every place that a worker gets."""
    found_places: list[places.Place] = []
    original = places.Pool.get

    def get(self: places.Pool, *words: Any) -> places.Place | None:
        found = original(self, *words)
        found_places.extend([found] if found else [])
        return found

    monkeypatch.setattr(places.Pool, "get", get)
    return found_places


@pytest.mark.slow
def test_a_sweep_goes_on_while_a_node_is_lost_and_another_one_joins(
    cluster: Any, taken: list[places.Place], tmp_path: Path
) -> None:
    """Exactly N trials, Optuna and MLflow agree, one point per epoch; what was cut off runs again elsewhere."""
    nodes = Nodes(cluster, taken, tmp_path / "closed")
    joined = None
    fake = Where(0.1, closed=nodes.closed)
    try:
        result = run(cluster_sweep(study__n_trials=16, study__pruner="none"), tmp_path, fake, watch=nodes.watch)
        joined = nodes.joins.node_id
    finally:
        for node in (nodes.leaves, nodes.joins):
            if node is not None:
                cluster.remove_node(node)
    assert result.trials == {"finished": 16}
    check_nothing_is_lost(tmp_path, 16)
    rows = study_of(tmp_path).rows()
    assert {row.attempt for row in rows} == {1, 2} and not any(row.failure for row in rows)
    seen = seen_by(tmp_path)
    assert joined in {one["node"] for one in seen}
    assert {(one["engines"], one["rows"]) for one in seen} == {("[]", "StoredArrays")}
    assert any("runs again" in text for text in nodes.said)
    assert any(text.startswith("Ray: each trial asks for 1 CPU; 2 node(s)") for text in nodes.said)
    assert {found.data.tags["forge.workers"] for found in runs(tmp_path, "trial")} == {"ray"}


@pytest.mark.slow
def test_a_node_that_was_taken_away_with_a_word_costs_its_trial_no_attempt(cluster: Any) -> None:
    """As a cloud does with cheap nodes: drained, then gone. One that just dies does."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    spot = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    lost: dict[bool, WorkerLost] = {}
    for announced in (True, False):
        node = cluster.add_node(num_cpus=3, object_store_memory=ray_cluster.STORE_BYTES)

        def leave(there: int, node: Any = node, announced: bool = announced) -> None:
            if announced:
                GcsClient(cluster.address).drain_node(node.node_id, spot, "spot", int((time.time() + 1) * 1000))
                time.sleep(3)
            cluster.remove_node(node, allow_graceful=False)

        def job(worker: Worker, announced: bool = announced, leave: Any = leave) -> None:
            if announced in lost:
                return
            with pytest.raises(WorkerLost) as caught:
                worker.call(sleep, leave, NO_LIMIT)
            lost[announced] = caught.value
            raise InputError("seen")

        with on_ray(cpus=3) as crew, pytest.raises(InputError, match="seen"):
            crew.run(job)
    assert lost[True].announced and "taken away" in str(lost[True])
    assert not lost[False].announced and "node" in str(lost[False])


@pytest.mark.slow
def test_the_first_ctrl_c_puts_every_running_trial_back_and_the_next_command_goes_on(tmp_path: Path) -> None:
    """The bundles of the confirmation come from the nodes."""
    calls: list[int] = []

    def stopping() -> bool:
        calls.append(1)
        return len(calls) > 25

    with pytest.raises(Interrupted):
        run(cluster_sweep(), tmp_path, fake_run(0.05), stopping=stopping)
    states = [row.state for row in study_of(tmp_path).rows()]
    assert "running" not in states and states.count("waiting") in (1, 2)
    result = run(cluster_sweep(), tmp_path, fake_run(0.05))
    check_nothing_is_lost(tmp_path, 6)
    assert len(result.confirmed) == 3 and all(len(one["values"]) == 2 for one in result.confirmed)
    assert not (tmp_path / "checkpoints" / "surface").exists()


@pytest.mark.slow
def test_networks_on_a_local_ray_equal_those_of_the_serial_sweep_bit_for_bit(tmp_path: Path) -> None:
    """Parameters, states and values of every trial and the weights of the winner, with as many threads."""
    from forge_sweep.bundle import Bundle
    from tests.test_sweep_workers import real

    weights: list[list[Any]] = []
    rows: list[Any] = []
    on_local = {"kind": "ray", "address": "local", "n": 1, "cpus": len(os.sched_getaffinity(0))}
    for store, spec in (("serial", {}), ("ray", on_local)):
        result = sweep.run(real(spec, n_trials=3), store=tmp_path / store)
        assert not result.winner["baseline"]
        (folder,) = {path.parent for path in (tmp_path / store / "artifacts").rglob("bundle.json")}
        weights.append(Bundle.load(folder).model.get_weights())  # type: ignore[union-attr]
        study = find_study("real", tmp_path / store)
        assert study is not None
        rows.append([(row.params, row.state, row.value) for row in study.rows()])
    assert rows[0] == rows[1]
    assert all((one == other).all() for one, other in zip(*weights, strict=True))


ORPHANS = """
import os
from tests import test_workers
from forge_sweep.experiment import WorkersSpec
from forge_sweep.workers import Limits, make
if __name__ == "__main__":
    with make(WorkersSpec(kind="ray", address="local", n=2)) as crew:
        crew.run(lambda worker: worker.call(test_workers.sleep, lambda there: print(there, flush=True), Limits()))
"""


@pytest.mark.slow
def test_no_process_of_a_local_ray_outlives_a_driver_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "orphans.py").write_text(ORPHANS)
    paths = os.pathsep.join([str(test_workers.ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(tmp_path / "orphans.py")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths})
    assert parent.stdout is not None
    busy = [int(parent.stdout.readline()) for _ in range(2)]
    family = [process.pid for process in psutil.Process(parent.pid).children(recursive=True)]
    assert set(busy) <= set(family)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    await_end(busy)
    await_true(lambda: not any(map(test_workers.alive, family)))  # Ray's own agents take up to a minute
