"""Workers whose tasks run in processes of their own, on this machine.

Each worker is a thread of this process and the process that it hands its tasks to. What needs the study, the tracker or
the user stays here; what may be killed, leak or hang is over there. See docs/decisions/0010-worker-processes.md.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import signal
import threading
import uuid
from collections.abc import Callable
from multiprocessing import connection as pipes
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import psutil

from forge_sweep.errors import SweepStopped
from forge_sweep.workers import child
from forge_sweep.workers.base import Job, Limits, Plan, Say, T, Task, WorkerLost, first_of, is_lost_gpu
from forge_sweep.workers.forkserver import Starter
from forge_sweep.workers.watch import LOOK_EVERY_S, Watch, own_bytes

START_LIMITS = Limits(silent_s=120.0)
START_ATTEMPTS = 5
END_S = 5.0


class Child:
    """The process of one worker, as seen from here.

    Args:
        starter: starts it.
        environment: its own variables.
        given_up: true once the run was aborted.
    """

    def __init__(self, starter: Starter, environment: dict[str, str], given_up: Callable[[], bool]) -> None:
        self.memory_bytes = starter.plan.memory_bytes
        self.given_up = given_up
        self.idle_bytes = 0
        self.connection, there = starter.context.Pipe()
        try:
            self.process: BaseProcess = starter.start(child.main, (there, environment, starter.plan.setup))
        except BaseException:
            self.connection.close()
            raise
        finally:
            there.close()  # so that its end is noticed here
        try:
            self._await_ready()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Its number."""
        assert self.process.pid is not None
        return self.process.pid

    def _await_ready(self) -> None:
        kind, value = self._next(self._watch(START_LIMITS, None))
        if kind == "raised":
            raise value
        with contextlib.suppress(psutil.Error):
            self.idle_bytes = own_bytes(psutil.Process(self.pid))

    def call(self, pickled: bytes, relay: Say, limits: Limits) -> tuple[str, Any]:
        """Run a task; see `Worker.call`. After an exception the process is not to be used any more.

        Returns:
            ``done`` and the result, or ``raised`` and what the task raised.
        """
        watch = self._watch(limits, self.memory_bytes)
        self._send(functools.partial(self.connection.send_bytes, pickled))
        while True:
            kind, value = self._next(watch)
            if kind != "say":
                return kind, value
            answer = relay(value)
            self._send(functools.partial(self.connection.send, answer))
            watch.heard()

    def _watch(self, limits: Limits, memory_bytes: int | None) -> Watch:
        try:
            return Watch(self.pid, limits, memory_bytes, self.idle_bytes)
        except psutil.Error:
            raise self._lost() from None

    def _next(self, watch: Watch) -> tuple[str, Any]:
        """The next message."""
        while True:
            if self.given_up():
                raise KeyboardInterrupt
            ready = pipes.wait([self.connection, self.process.sentinel], timeout=LOOK_EVERY_S)
            if self.connection in ready:  # before its end: what a process said last counts
                try:
                    message: tuple[str, Any] = self.connection.recv()
                except (EOFError, OSError, pickle.UnpicklingError):
                    raise self._lost() from None
                return message
            if ready:
                raise self._lost()
            watch.look()

    def _send(self, send: Callable[[], None]) -> None:
        try:
            send()
        except OSError:
            raise self._lost() from None

    def _lost(self) -> WorkerLost:
        """Why it ended, in words."""
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
            self.process.kill()
            self.process.join()
            self.process.close()


class Slot:
    """One worker: its thread's side of the process, which is replaced when it is gone.

    Attributes:
        child: the process; None until the first task, and after it was lost.
    """

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
        except BaseException:
            self.child = None
            process.kill()
            raise
        if kind == "raised":
            if is_lost_gpu(value):  # whatever its process computes from now on fails too
                self.child = None
                process.kill()
                raise WorkerLost(str(value)) from value
            raise value
        result: T = value
        return result

    def _start(self) -> Child:
        """A new process. One that is killed while it starts is no reason to give up, five in a row are."""
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


class ProcessWorkers:
    """Runs the job in n threads, each with a process for its tasks.

    Args:
        plan: how many, and what each process gets.
    """

    def __init__(self, plan: Plan) -> None:
        self.starter = Starter(plan)
        self.slots = [Slot(number, self.starter) for number in range(plan.n)]

    def run(self, job: Job) -> None:
        """Run the job on every worker; see `Workers`."""
        stop, given_up = threading.Event(), threading.Event()
        # Not `Thread.join`: interrupted by Ctrl-C, Python 3.11 takes the thread for ended from then on.
        ended = {slot.id: threading.Event() for slot in self.slots}
        raised: list[BaseException] = []

        def work(slot: Slot) -> None:
            try:
                job(slot)
            except BaseException as error:
                raised.append(error)
                stop.set()
            finally:
                ended[slot.id].set()

        for slot in self.slots:
            slot.begin(stop, given_up)
        threads = [threading.Thread(target=work, args=(slot,), name=slot.id, daemon=True) for slot in self.slots]
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

    def __enter__(self) -> ProcessWorkers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
