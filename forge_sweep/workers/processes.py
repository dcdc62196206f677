"""Workers whose tasks run in processes of their own, on this machine.

Each worker is a thread of this process and the process that it hands its tasks to. What needs the study, the tracker or
the user stays here; what may be killed, leak or hang is over there. See docs/decisions/0010-worker-processes.md.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import connection as pipes
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from forge_sweep.errors import SweepStopped, TrialFailed
from forge_sweep.workers.base import (
    START_ATTEMPTS,
    Job,
    Limits,
    Plan,
    Say,
    T,
    Task,
    Tell,
    WorkerLost,
    Workers,
    WorkerUnfit,
    first_of,
    is_lost_gpu,
    silent,
)

START_LIMITS = Limits(silent_s=120.0)
END_S = 5.0


class Child:
    """The process of one worker, as seen from here; ``given_up`` tells whether the run was aborted."""

    def __init__(self, starter: Starter, environment: dict[str, str], given_up: Callable[[], bool]) -> None:
        self.memory_bytes = starter.plan.memory_bytes
        self.given_up = given_up
        self.idle_bytes = 0
        self.connection, there = starter.context.Pipe()
        # The shared ones too: a fork server that the user's own code started does not have them.
        environment = {**starter.plan.shared, **environment}
        try:
            self.process: BaseProcess = starter.start(_serve, (there, environment, starter.plan.setup))
        except BaseException:
            self.connection.close()
            raise
        finally:
            there.close()  # so that its end is noticed here
        try:
            self.await_ready()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Its number."""
        assert self.process.pid is not None
        return self.process.pid

    def await_ready(self) -> None:
        """Wait for the end of its set-up."""
        with self._noticing_its_end():
            watch = Watch(self.pid, START_LIMITS, None, 0)
        kind, value = self._next(watch)
        if kind == "raised":
            raise value
        with contextlib.suppress(psutil.Error):
            self.idle_bytes = own_bytes(psutil.Process(self.pid))

    def call(self, pickled: bytes, relay: Say, limits: Limits) -> tuple[str, Any]:
        """Run a task: ``done`` and the result, or ``raised`` and what the task raised.

        After an exception the process is not to be used any more; see `Worker.call`.
        """
        with self._noticing_its_end():
            watch = Watch(self.pid, limits, self.memory_bytes, self.idle_bytes)
            self.connection.send_bytes(pickled)
        while True:
            kind, value = self._next(watch)
            if kind != "say":
                return kind, value
            answer = relay(value)
            with self._noticing_its_end():
                self.connection.send(answer)
            watch.heard()

    def _next(self, watch: Watch) -> tuple[str, Any]:
        while True:
            if self.given_up():
                raise KeyboardInterrupt
            ready = pipes.wait([self.connection, self.process.sentinel], timeout=LOOK_EVERY_S)
            if self.connection in ready:  # before its end: what a process said last counts
                with self._noticing_its_end():
                    message: tuple[str, Any] = self.connection.recv()
                return message
            if ready:
                raise self._lost()
            watch.look()

    @contextlib.contextmanager
    def _noticing_its_end(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError, pickle.UnpicklingError, psutil.Error):
            raise self._lost() from None

    def _lost(self) -> WorkerLost:
        self.process.join(END_S)
        code = self.process.exitcode
        with contextlib.suppress(ValueError):
            if code is not None and code < 0:
                return WorkerLost(f"its process was ended by {signal.Signals(-code).name}")
        return WorkerLost(f"its process ended with exit code {code}")

    def kill(self) -> None:
        """End it at once."""
        self.connection.close()
        self.process.kill()
        self.process.join()
        self.process.close()

    def end(self) -> None:
        """End it where it waits for a task."""
        self.connection.close()
        self.process.join(END_S)
        with contextlib.suppress(ValueError):
            self.kill()


class Slot:
    """One worker: its thread's side of the process, which is started anew when it is gone."""

    def __init__(self, number: int, starter: Starter) -> None:
        self.id = f"process-{os.getpid()}-{uuid.uuid4().hex[:8]}-{number}"
        self.environment = dict(starter.plan.environment[number % len(starter.plan.environment)])
        self.child: Child | None = None
        self._starter = starter
        self._stop = threading.Event()
        self._given_up = threading.Event()

    @property
    def stopping(self) -> bool:
        """See `Worker`."""
        return self._stop.is_set()

    def begin(self, stop: threading.Event, given_up: threading.Event) -> None:
        """Take part in a new run."""
        self._stop, self._given_up = stop, given_up

    def call(self, task: Task[T], relay: Say, limits: Limits) -> T:
        """Run the task in this worker's process; see `Worker`."""
        pickled = pickle.dumps(task)
        process = self.child or self._start()
        try:
            kind, value = process.call(pickled, relay, limits)
            if kind == "raised" and is_lost_gpu(value):
                raise WorkerLost(str(value)) from value
        except BaseException:
            self.child = None
            process.kill()
            raise
        if kind == "raised":
            raise value
        result: T = value
        return result

    def _start(self) -> Child:
        for _ in range(START_ATTEMPTS):
            try:
                self.child = Child(self._starter, self.environment, lambda: self._given_up.is_set())
            except WorkerLost as lost:
                why = lost
            else:
                return self.child
        raise SweepStopped(
            f"no worker process can be started: {why}",
            hint='what it printed says why; a script that runs a sweep needs `if __name__ == "__main__":` around it',
        )

    def close(self) -> None:
        """End the process."""
        if self.child is not None:
            self.child.end()
            self.child = None


class ProcessWorkers(Workers):
    """Runs the job in n threads, each with a process for its tasks."""

    def __init__(self, plan: Plan, tell: Tell = silent) -> None:
        self.starter = Starter(plan)
        self.slots = [Slot(number, self.starter) for number in range(plan.n)]
        self._tell = tell

    def run(self, job: Job) -> None:
        """Run the job on every worker."""
        unfit: dict[str, WorkerUnfit] = {}
        before = -1
        while len(unfit) != before:
            before = len(unfit)
            self._run_once(job, [slot for slot in self.slots if slot.id not in unfit], unfit)
            if len(unfit) == len(self.slots):
                why = next(iter(unfit.values()))
                raise SweepStopped(f"no worker is left: {why}", hint="check nvidia-smi, then run the same command")

    def _run_once(self, job: Job, slots: list[Slot], unfit: dict[str, WorkerUnfit]) -> None:
        stop, given_up = threading.Event(), threading.Event()
        # Not `Thread.join`: interrupted by Ctrl-C, Python 3.11 takes the thread for ended from then on.
        ended = {slot.id: threading.Event() for slot in slots}
        raised: list[BaseException] = []

        def work(slot: Slot) -> None:
            try:
                job(slot)
            except WorkerUnfit as error:
                unfit[slot.id] = error
                self._tell(f"a worker is given up: {error}", severity="warning")
            except BaseException as error:
                raised.append(error)
                stop.set()
            finally:
                ended[slot.id].set()

        for slot in slots:
            slot.begin(stop, given_up)
        threads = [threading.Thread(target=work, args=(slot,), name=slot.id, daemon=True) for slot in slots]
        try:
            for thread in threads:
                thread.start()
            for event in ended.values():
                event.wait()
        except BaseException:  # the second Ctrl-C, most likely
            given_up.set()
            for thread in threads:
                if thread.ident is not None:  # it was started
                    ended[thread.name].wait()
            raise
        if raised:
            raise first_of(raised)

    def close(self) -> None:
        """End all processes."""
        for slot in self.slots:
            slot.close()
        self.starter.close()


# The process of a worker.

TERM_S = 30.0
"""How long a process goes on after SIGTERM; as long as SLURM and Kubernetes wait by default before they kill."""

LOST_PARENT = 3
"""Exit code of a process whose parent is gone."""


def _serve(connection: Connection, environment: Mapping[str, str], setup: Callable[[], None] | None) -> None:
    """Take one task after the other from a pipe until the pipe, or the other side, is gone.

    The process opens no database, so that it may be killed at any moment. Messages are pairs of a kind and a value:

    | to the process | from the process |
    |---|---|
    | a pickled task, or nothing to end | ``ready``, once |
    | the answer to ``say`` | ``say`` a message |
    | | ``done`` with the result, or ``raised`` with the exception |
    """
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    signal.signal(signal.SIGTERM, _end_soon)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):  # where memory runs out, Linux is to take a trial, which is run again
        Path("/proc/self/oom_score_adj").write_text("900")

    def say(message: Any) -> Any:
        connection.send(("say", message))
        return connection.recv()

    try:
        if setup is not None:
            setup()
    except BaseException as error:
        connection.send(("raised", _portable(error)))
        return
    connection.send(("ready", None))
    with contextlib.suppress(EOFError):
        while task := connection.recv_bytes():
            connection.send(outcome(functools.partial(pickle.loads, task), say))


def _end_soon(number: int, frame: FrameType | None) -> None:
    """SIGTERM reaches the whole job of a batch system: let the parent end the task in order, but not for ever."""
    timer = threading.Timer(TERM_S, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()


def outcome(load: Callable[[], Task[Any]], say: Say) -> tuple[str, Any]:
    """Run a task: ``done`` and its result, or ``raised`` and what it raised, or why its result cannot be sent."""
    try:
        done = "done", load()(say)
        pickle.dumps(done)
    except BaseException as error:
        return "raised", _portable(error)
    return done


def _portable(error: BaseException) -> BaseException:
    """The exception as the other side can read it, with the traceback as a note since that stays behind."""
    trace = "".join(traceback.format_exception(error))
    error.__cause__ = error.__context__ = None
    try:
        if isinstance(pickle.loads(pickle.dumps(error)), type(error)):
            error.add_note(f"in a worker process:\n{trace}")
            return error
    except Exception:  # whatever a foreign exception does in there
        pass
    return RuntimeError(f"{type(error).__name__}: {error}\n{trace}")


def _die_with_parent() -> None:
    """End at once when the process that wants the results is gone, in the middle of a task too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(LOST_PARENT)


# Starting processes: one fork server for all workers that are alive, and locks around what is not made for threads.

_starting = threading.Lock()


class Starter:
    """Starts processes as a plan says, and ends the fork server that it started."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        known = plan.start in multiprocessing.get_all_start_methods()
        self.context: Any = multiprocessing.get_context(plan.start if known else "spawn")
        self._owns_server = False

    def start(self, target: Callable[..., None], args: tuple[Any, ...]) -> BaseProcess:
        """Start a process; a failure of the operating system is raised as it is.

        Raises:
            WorkerLost: the fork server died meanwhile; the next call starts another one.
        """
        process: BaseProcess = self.context.Process(target=target, args=args, daemon=True)
        with _starting, variables(self.plan.shared):
            if self.context.get_start_method() == "forkserver" and fork_server() is None:
                self.context.set_forkserver_preload(list(self.plan.preload))
                self._owns_server = True
            try:
                process.start()
            except (EOFError, ConnectionError) as error:
                raise WorkerLost(f"the fork server ended while it started a process: {error}") from error
        return process

    def close(self) -> None:
        """End the fork server; no process of it may be alive."""
        with _starting:
            server = fork_server() if self._owns_server else None
            if server is not None:
                server.kill()
                # Not reaped here: multiprocessing asks for its exit status when it starts the next one.
                while server.status() != psutil.STATUS_ZOMBIE:
                    time.sleep(0.001)
            self._owns_server = False


def fork_server() -> psutil.Process | None:
    """The fork server of this process, of which multiprocessing says nothing in public."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it ended, or is a zombie, which has no command line
            if any("multiprocessing.forkserver" in word for word in process.cmdline()):
                return process
    return None


@contextlib.contextmanager
def variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the processes that start within the block."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


# What is seen of a worker's process from outside: how long it takes, whether it lives, how much memory it holds.

LOOK_EVERY_S = 0.1
WORKING_SHARE = 0.01
"""Least CPU time, as a share of a silence, of a process that does not hang."""


class Watch:
    """Holds one task to its limits, ``memory_bytes`` being counted from ``idle_bytes``; None for no limit."""

    def __init__(self, pid: int, limits: Limits, memory_bytes: int | None, idle_bytes: int) -> None:
        self.process = psutil.Process(pid)
        self.limits = limits
        self.memory_bytes = memory_bytes
        self.idle_bytes = idle_bytes
        self.began = self.looked = time.monotonic()
        self.heard()

    def heard(self) -> None:
        """The process said something; it may be its last word."""
        self.silent_s = self.cpu_s = 0.0
        with contextlib.suppress(psutil.Error):  # it ended since: its pipe says so
            self.cpu_s = self._cpu_seconds()

    def look(self) -> None:
        """Compare with the limits, at most every `LOOK_EVERY_S`.

        Raises:
            TrialFailed: the task took too long or holds too much.
            WorkerLost: the process neither speaks nor computes.
        """
        now = time.monotonic()
        if now - self.looked < LOOK_EVERY_S:
            return
        # a pause of this process itself (Ctrl-Z) does not count as silence of the other
        self.silent_s += min(now - self.looked, 10 * LOOK_EVERY_S)
        self.looked = now
        with contextlib.suppress(psutil.Error):  # it ended between two looks: its pipe says so
            self._check(now)

    def _check(self, now: float) -> None:
        if now - self.began > self.limits.seconds:
            raise too_late(self.limits)
        if self.memory_bytes is not None and own_bytes(self.process) - self.idle_bytes > self.memory_bytes:
            limit = f"{self.memory_bytes / 1e6:.0f} MB"
            hint = "lower width, depth or batch_size under [model.search], or raise workers.memory_limit_mb"
            raise TrialFailed("out-of-memory", f"killed at its memory limit of {limit}", hint=hint)
        if self.silent_s > self.limits.silent_s:
            if self._cpu_seconds() - self.cpu_s < WORKING_SHARE * self.silent_s:
                raise WorkerLost(f"it hung: neither a word nor any work for {self.limits.silent_s:g} s")
            self.heard()

    def _cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)


def too_late(limits: Limits) -> TrialFailed:
    """Why a task was killed that passed its time."""
    hint = "raise study.trial_timeout_s, or narrow the search space"
    return TrialFailed("time-out", f"killed after {limits.seconds:g} s: it did not end by itself", hint=hint)


def own_bytes(process: psutil.Process) -> int:
    """Memory of a process without the pages of files, such as shared arrays and libraries, where that can be told."""
    memory = process.memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))
