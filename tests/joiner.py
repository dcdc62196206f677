"""A process of a sweep on the surface, for tests that kill, pause or cut off one of several.

`python -m tests.joiner ROLE STORE N_TRIALS SECONDS_PER_EPOCH [PLACE] [N_WORKERS]`: ROLE is ``run`` or ``worker``; PLACE
names a machine of its own, so that other processes must go by its beat. ``SURFACE_BUDGETS`` holds more keys of
``[study]`` as JSON. Events go to standard output as JSON lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from forge_sweep import sweep
from forge_sweep.cli import entry
from forge_sweep.cli.run import stop_on_signals
from forge_sweep.cli.watchers import json_lines
from forge_sweep.experiment import Experiment
from forge_sweep.study import leases
from forge_sweep.sweep import trials
from tests import forked, schemas
from tests.surface import experiment, fake_run, no_network

HEARTBEAT_S, LEASE_S = 0.3, 6.0
WAIT_S = 120.0


def hasten(place: str = "") -> None:
    """Short constants, and a place of one's own."""
    leases.HEARTBEAT_S, leases.LEASE_S, trials.POLL_S = HEARTBEAT_S, LEASE_S, 0.2
    if place:
        leases.place_of_this_process = lambda: place


def spec(n_trials: int, n_workers: int = 0) -> Experiment:
    """The surface, on so many worker processes or in this one; nothing is pruned, since judging depends on timing."""
    budgets = json.loads(os.environ.get("SURFACE_BUDGETS", "{}"))
    more: dict[str, Any] = {f"study__{key}": value for key, value in budgets.items()}
    more |= {"workers": {"kind": "processes", "n": n_workers}} if n_workers else {}
    return experiment(study__n_trials=n_trials, study__pruner="none", **more)


class Process:
    """A process of a sweep.

    Attributes:
        events: what it said so far.
    """

    def __init__(self, role: str, store: Path, n_trials: int, seconds: float, *more: object, **environ: str) -> None:
        words = ("tests.joiner", role, store, n_trials, seconds, *more)
        (out, stdout), (err, stderr) = os.pipe(), os.pipe()
        self.process = forked.Forked(*words, stdout=stdout, stderr=stderr, variables=environ)
        os.close(stdout)
        os.close(stderr)
        self.events: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self._files = os.fdopen(out), os.fdopen(err)
        said, complained = self._files
        self._threads = [
            threading.Thread(target=lambda: self.events.extend(map(json.loads, said))),
            threading.Thread(target=lambda: self.complaints.extend(complained)),
        ]
        for thread in self._threads:
            thread.start()

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Events of a kind so far."""
        return [event for event in self.events if event["event"] == kind]

    def said(self, text: str) -> bool:
        """Whether a message with a text came, or a line on standard error."""
        messages = [event["text"] for event in self.of("message")]
        return any(text in message for message in (*messages, *self.complaints))

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until something is so; fail where the process ends before."""
        until = time.monotonic() + WAIT_S
        while not condition():
            if self.process.poll() is not None:
                for thread in self._threads:
                    thread.join()  # its last words
                assert condition(), "".join(self.complaints)
                return
            assert time.monotonic() < until, self.events[-5:]
            time.sleep(0.02)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to it alone."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for its end; its exit code."""
        code = self.process.wait(timeout=WAIT_S)
        for thread in self._threads:
            thread.join()
        for file in self._files:
            file.close()
        return code


@contextlib.contextmanager
def started(role: str, store: Path, n_trials: int, seconds: float, *more: object, **environ: str) -> Iterator[Process]:
    """A process that does not outlive the test."""
    made = Process(role, store, n_trials, seconds, *more, **environ)
    try:
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(made.process.pid, signal.SIGKILL)
        made.end()


@contextlib.contextmanager
def together(
    run: tuple[Any, ...], worker: tuple[Any, ...], of_run: Mapping[str, str] | None = None, **environ: str
) -> Iterator[tuple[Process, Process]]:
    """A run and a worker, the arguments of `started` each; ``of_run`` are variables of the run alone.

    The run begins once the worker waits for it: on a busy machine, one that is late would find no trial left.
    """
    with started("worker", *worker, **environ) as joining:
        joining.wait_until(lambda: joining.said("waiting up to"))
        with started("run", *run, **environ, **(of_run or {})) as carrier:
            yield carrier, joining


def main(role: str, store: str, n_trials: str, seconds: str, place: str = "", n_workers: str = "0") -> int:
    """Be that process."""
    hasten(place)
    schemas.copy_one()
    wanted = spec(int(n_trials), int(n_workers))
    options: dict[str, Any] = {"store": Path(store), "watch": json_lines}
    try:
        with no_network(fake_run(float(seconds))), stop_on_signals() as stopping:
            if role == "run":
                sweep.run(wanted, stopping=stopping, **options)
            else:
                sweep.join(wanted, stopping=stopping, wait_s=WAIT_S, **options)
    except KeyboardInterrupt:
        return entry.INTERRUPTED
    return 0


if __name__ == "__main__":
    entry.app = lambda **_: sys.exit(main(*sys.argv[1:]))
    entry.main()  # which says what went wrong, and sets the exit code
