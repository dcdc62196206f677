"""Behaviour of `forge_sweep.workers`: a conformance suite, run for each backend, and what processes alone promise."""

from __future__ import annotations

import abc
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from forge_sweep import workers
from forge_sweep.errors import SweepStopped, TrialFailed
from forge_sweep.experiment import WorkersSpec
from forge_sweep.workers import Limits, Plan, ProcessWorkers, Say, Worker, WorkerLost, Workers, processes

ROOT = Path(__file__).parents[1]
NO_LIMIT = Limits()

# Tasks. A worker process imports them by name.


def pid(say: Say) -> int:
    return os.getpid()


def converse(say: Say, words: tuple[str, ...]) -> list[Any]:
    return [say(word) for word in words]


def fail(say: Say, error: BaseException) -> None:
    raise error


def sleep(say: Say) -> None:
    say(os.getpid())
    time.sleep(600)


def compute(say: Say) -> str:
    """Says nothing for a while and works."""
    until = time.process_time() + 3
    while time.process_time() < until:
        pass
    return "done"


def hoard(say: Say, megabytes: int) -> int:
    """Hold memory, then let it be looked at."""
    held = bytearray(os.urandom(1)) * (megabytes * 1_000_000)
    time.sleep(1)
    return len(held)


def environment_of(say: Say, names: tuple[str, ...]) -> list[str | None]:
    return [os.environ.get(name) for name in names]


def silent(message: Any) -> None:
    """A relay for tasks that say nothing."""
    raise AssertionError(message)


def refuse_to_start() -> None:
    """A set-up that cannot be."""
    raise SweepStopped("there is no such backend")


def die_at_once() -> None:
    """A set-up that crashes."""
    os._exit(7)


class WorkersConformance(abc.ABC):
    """What every backend holds to; subclass it once per backend."""

    @abc.abstractmethod
    def make(self) -> Workers:
        """A backend with at least one worker."""

    @pytest.fixture
    def crew(self) -> Iterator[Workers]:
        with self.make() as crew:
            yield crew

    def test_each_worker_gets_an_id_of_its_own(self, crew: Workers) -> None:
        ids: list[str] = []
        crew.run(lambda worker: ids.append(worker.id))
        assert ids
        assert all(ids)
        assert len(set(ids)) == len(ids)

    def test_run_waits_until_the_shared_work_is_done(self, crew: Workers) -> None:
        left, done = list(range(20)), list[int]()

        def job(worker: Worker) -> None:
            while left:
                done.append(left.pop())

        crew.run(job)
        assert sorted(done) == list(range(20))

    @pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
    def test_an_exception_of_a_job_arrives_as_it_is(self, crew: Workers, error: BaseException) -> None:
        def job(worker: Worker) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            crew.run(job)
        assert caught.value is error

    def test_one_backend_runs_several_jobs_one_after_the_other(self, crew: Workers) -> None:
        ids: list[str] = []
        crew.run(lambda worker: ids.append(worker.id))
        first = len(ids)
        crew.run(lambda worker: ids.append(worker.id))
        assert len(ids) == 2 * first

    def test_a_task_speaks_with_the_job_that_called_it_and_gives_its_result(self, crew: Workers) -> None:
        """The relay runs in the thread of the job, so that it may use what belongs to it."""
        whole: list[list[tuple[str, bool]]] = []

        def job(worker: Worker) -> None:
            here = threading.current_thread()
            heard: list[tuple[str, bool]] = []

            def relay(word: str) -> str:
                heard.append((word, threading.current_thread() is here))
                return word.upper()

            assert worker.call(functools.partial(converse, words=("a", "b")), relay, NO_LIMIT) == ["A", "B"]
            whole.append(heard)

        crew.run(job)
        assert whole and all(heard == [("a", True), ("b", True)] for heard in whole)

    @pytest.mark.parametrize(
        "error",
        [
            TrialFailed("diverged", "loss is nan", hint="lower the learning rate"),
            SweepStopped("no", hint="yes"),
            ZeroDivisionError("by zero"),
            KeyboardInterrupt(),
        ],
    )
    def test_what_a_task_raises_is_raised_by_the_call_and_the_worker_goes_on(
        self, crew: Workers, error: BaseException
    ) -> None:
        """Class, message, hint and failure class arrive whole."""

        def job(worker: Worker) -> None:
            with pytest.raises(type(error)) as caught:
                worker.call(functools.partial(fail, error=error), silent, NO_LIMIT)
            assert str(caught.value) == str(error)
            assert getattr(caught.value, "failure", "") == getattr(error, "failure", "")
            assert worker.call(pid, silent, NO_LIMIT)

        crew.run(job)

    def test_what_the_relay_raises_ends_the_task_and_the_run(self, crew: Workers) -> None:
        """An error of the job's own side, such as a full disk, is not the task's."""

        def relay(word: str) -> None:
            raise OSError(f"no space for {word}")

        def job(worker: Worker) -> None:
            worker.call(functools.partial(converse, words=("a", "b")), relay, NO_LIMIT)

        with pytest.raises(OSError, match="no space for a"):
            crew.run(job)


class TestSerial(WorkersConformance):
    def make(self) -> Workers:
        return workers.make(WorkersSpec(kind="serial"))

    def test_the_job_runs_once_in_the_calling_thread(self) -> None:
        """Ctrl-C and a debugger reach it there."""
        threads: list[threading.Thread] = []
        self.make().run(lambda worker: threads.append(threading.current_thread()))
        assert threads == [threading.current_thread()]

    def test_a_task_runs_in_the_calling_process(self) -> None:
        self.make().run(lambda worker: worker.call(pid, silent, NO_LIMIT) == os.getpid() or pytest.fail("elsewhere"))


class TestProcesses(WorkersConformance):
    def make(self) -> Workers:
        return workers.make(WorkersSpec(kind="processes", n=2))


class TestSpawn(WorkersConformance):
    """Where there is a GPU or no fork server."""

    def make(self) -> Workers:
        return ProcessWorkers(Plan(n=1, start="spawn"))


def call(plan: Plan, task: Any, relay: Say = silent, limits: Limits = NO_LIMIT, then: Any = pid) -> list[Any]:
    """Run a task on one worker, then another; what each gave or raised."""
    ended: list[Any] = []

    def job(worker: Worker) -> None:
        for each in (task, then):
            try:
                ended.append(worker.call(each, relay, limits))
            except Exception as error:
                ended.append(error)

    with ProcessWorkers(plan) as crew:
        crew.run(job)
    return ended


def alive(number: int) -> bool:
    """Whether a process is there; a zombie is not."""
    return psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE


def await_end(numbers: list[int]) -> None:
    """Wait until none of them is alive."""
    until = time.monotonic() + 30
    while any(map(alive, numbers)):
        assert time.monotonic() < until, f"{numbers} are alive"
        time.sleep(0.05)


def test_a_worker_keeps_its_process_and_close_leaves_none() -> None:
    """Traces and arrays stay warm between two tasks; afterwards neither a process nor a fork server is there."""
    before = set(psutil.Process().children(recursive=True))
    with ProcessWorkers(Plan(n=2)) as crew:
        found: dict[str, set[int]] = {}

        def job(worker: Worker) -> None:
            found.setdefault(worker.id, set()).update(worker.call(pid, silent, NO_LIMIT) for _ in range(3))

        crew.run(job)
        crew.run(job)
        assert [len(numbers) for numbers in found.values()] == [1, 1]
        assert len(set.union(*found.values())) == 2
    await_end([*set.union(*found.values())])
    left = {process for process in psutil.Process().children(recursive=True) if alive(process.pid)} - before
    assert all("resource_tracker" in " ".join(process.cmdline()) for process in left)  # of the interpreter, for good


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_process_is_lost_and_replaced(number: signal.Signals) -> None:
    lost, other = call(Plan(), sleep, lambda there: os.kill(there, number))
    assert isinstance(lost, WorkerLost) and number.name in str(lost)
    assert other != os.getpid()


def test_the_siblings_of_a_killed_process_do_not_notice() -> None:
    """Each thread sees the end of its own process only."""
    seen: list[Any] = []
    killed = threading.Event()

    def job(worker: Worker) -> None:
        if worker.id.endswith("-0"):
            with pytest.raises(WorkerLost):
                worker.call(sleep, lambda there: os.kill(there, signal.SIGKILL), NO_LIMIT)
            killed.set()
        else:
            task = functools.partial(converse, words=("a", "b"))
            seen.append(worker.call(task, lambda word: killed.wait(60) and word, NO_LIMIT))

    with ProcessWorkers(Plan(n=2)) as crew:
        crew.run(job)
    assert seen == [["a", "b"]]


def test_a_process_that_hangs_is_lost_and_one_that_works_in_silence_is_not() -> None:
    hung, done = call(Plan(), sleep, lambda there: None, Limits(silent_s=1.0), then=compute)
    assert isinstance(hung, WorkerLost) and "hung" in str(hung)
    assert done == "done"


def test_a_task_beyond_its_time_fails_as_time_out_and_its_process_is_gone() -> None:
    there: list[int] = []
    failed, _ = call(Plan(), sleep, there.append, Limits(seconds=0.5))
    assert isinstance(failed, TrialFailed) and failed.failure == "time-out"
    await_end(there)


def test_a_task_beyond_its_memory_fails_as_out_of_memory_and_one_below_does_not() -> None:
    hog = functools.partial(hoard, megabytes=300)
    failed, done = call(Plan(memory_bytes=100_000_000), hog, then=functools.partial(hoard, megabytes=20))
    assert isinstance(failed, TrialFailed) and failed.failure == "out-of-memory"
    assert done == 20_000_000


def test_each_worker_has_its_own_variables_in_turn_and_all_have_the_shared_ones() -> None:
    """A GPU each, round robin, and the same number of threads."""
    own = tuple({"CUDA_VISIBLE_DEVICES": device} for device in "01")
    plan = Plan(n=3, environment=own, shared={"OMP_NUM_THREADS": "1"})
    found: list[list[str | None]] = []

    def job(worker: Worker) -> None:
        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
        found.append(worker.call(functools.partial(environment_of, names=names), silent, NO_LIMIT))

    before = os.environ.get("OMP_NUM_THREADS")
    with ProcessWorkers(plan) as crew:
        crew.run(job)
    assert sorted(map(tuple, found)) == [("0", "1"), ("0", "1"), ("1", "1")]
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_variables_reach_the_processes_of_a_fork_server_that_somebody_else_started() -> None:
    context = multiprocessing.get_context("forkserver")
    first = context.Process(target=pid, args=(silent,))
    first.start()
    first.join()
    server = processes.fork_server()
    assert server is not None
    with ProcessWorkers(Plan(shared={"OMP_NUM_THREADS": "1"})) as crew:
        seen: list[list[str | None]] = []
        task = functools.partial(environment_of, names=("OMP_NUM_THREADS",))
        crew.run(lambda worker: seen.append(worker.call(task, silent, NO_LIMIT)))
    assert list(map(list, seen)) == [["1"]]
    assert processes.fork_server() == server, "it is not ours to end"
    server.kill()


def test_a_process_that_cannot_be_set_up_stops_the_sweep_with_its_own_error() -> None:
    stopped, _ = call(Plan(setup=refuse_to_start), pid)
    assert isinstance(stopped, SweepStopped) and "no such backend" in str(stopped)


def test_processes_that_die_while_they_start_stop_the_sweep() -> None:
    stopped, _ = call(Plan(setup=die_at_once), pid)
    assert isinstance(stopped, SweepStopped) and "exit code 7" in str(stopped)


def test_after_an_error_the_other_workers_are_told_to_begin_nothing_new() -> None:
    def job(worker: Worker) -> None:
        if worker.id.endswith("-0"):
            raise ValueError("broken")
        until = time.monotonic() + 60
        while not worker.stopping:
            assert time.monotonic() < until
            time.sleep(0.01)

    with ProcessWorkers(Plan(n=2)) as crew, pytest.raises(ValueError, match="broken"):
        crew.run(job)


def test_ctrl_c_in_the_calling_thread_gives_up_every_task_at_once() -> None:
    """Every job sees it as KeyboardInterrupt, and the processes are gone when `run` has ended."""
    started: list[int] = []
    interrupted: list[str] = []

    def relay(there: int) -> None:
        started.append(there)
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    def job(worker: Worker) -> None:
        try:
            worker.call(sleep, relay, NO_LIMIT)
        except KeyboardInterrupt:
            interrupted.append(worker.id)
            raise

    with ProcessWorkers(Plan(n=2)) as crew, pytest.raises(KeyboardInterrupt):
        crew.run(job)
    assert len(interrupted) == 2
    await_end(started)


ORPHANS = """
import sys
from tests import test_workers
from forge_sweep.workers import Limits, Plan, ProcessWorkers
if __name__ == "__main__":
    with ProcessWorkers(Plan(n=2, start=sys.argv[1])) as crew:
        crew.run(lambda worker: worker.call(test_workers.sleep, lambda there: print(there, flush=True), Limits()))
"""


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_no_process_outlives_a_parent_that_was_killed(tmp_path: Path, start: str) -> None:
    """Not in the middle of a task either; the fork server ends too."""
    (tmp_path / "orphans.py").write_text(ORPHANS)
    command = [sys.executable, str(tmp_path / "orphans.py"), start]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths})
    assert parent.stdout is not None
    busy = [int(parent.stdout.readline()) for _ in range(2)]
    family = [process.pid for process in psutil.Process(parent.pid).children(recursive=True)]
    assert set(busy) <= set(family)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    await_end(family)


def test_a_process_that_is_killed_while_it_starts_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    original = processes.Child.await_ready
    killed: list[int] = []

    def kill_the_first(self: processes.Child) -> None:
        if not killed:
            killed.append(self.pid)
            os.kill(self.pid, signal.SIGKILL)
        original(self)

    monkeypatch.setattr(processes.Child, "await_ready", kill_the_first)
    first, second = call(Plan(), pid)
    assert killed and first == second != killed[0]


def test_a_fork_server_that_dies_while_it_starts_a_process_is_started_again() -> None:
    with ProcessWorkers(Plan()) as crew:

        def job(worker: Worker) -> None:
            worker.call(pid, silent, NO_LIMIT)
            with pytest.raises(WorkerLost):
                worker.call(sleep, lambda there: os.kill(there, signal.SIGKILL), NO_LIMIT)
            server = processes.fork_server()
            assert server is not None
            server.suspend()
            threading.Timer(0.5, server.kill).start()  # by then its answer is awaited
            assert worker.call(pid, silent, NO_LIMIT) != os.getpid()

        crew.run(job)
