"""Which process a trial belongs to, and when its owner counts as dead."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forge_sweep.errors import SweepStopped, TrialTaken
from forge_sweep.experiment import Experiment
from forge_sweep.study import Requeued, Study, leases, open_study
from forge_sweep.study.database import Full
from forge_sweep.study.leases import Lease, Leases
from forge_sweep.study.trials import Attr
from tests.postgres import database, server
from tests.test_study import DATASET, experiment, opened, train

__all__ = ["database", "server"]

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["sqlite", "postgresql"])
def anywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A study database in the environment, on either kind."""
    monkeypatch.delenv("FORGE_SWEEP_STORAGE", raising=False)
    if request.param == "postgresql":
        made: Callable[..., str] = request.getfixturevalue("database")
        monkeypatch.setenv("FORGE_SWEEP_STORAGE", made().replace("postgresql://", "postgresql+psycopg://"))
    return str(request.param)


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(leases.time, "monotonic", made)
    return made


def random(n_trials: int = 6, **study: Any) -> Experiment:
    return experiment(sampler="random", n_trials=n_trials, **study)


def observer(study: Study) -> Leases:
    return study._leases


def foreign(study: Study, **values: Any) -> Lease:
    """The record of a process elsewhere."""
    made = replace(Lease.here("worker"), host="lab-9", pid=4711, place="another machine", **values)
    write(study, made)
    return made


def write(study: Study, owner: Lease) -> None:
    study._study.set_user_attr(f"forge.owner.{owner.id}", owner.values())


def given_to(study: Study, owner: Lease) -> int:
    """A trial that another process runs."""
    asked = study.ask()
    assert asked is not None
    study._write(asked.number, {Attr.OWNER: owner.id})
    study._forget(asked.number)
    return asked.number


# When an owner is dead


def test_an_owner_elsewhere_is_dead_once_its_beat_was_seen_to_stand_still_for_the_lease(
    tmp_path: Path, clock: Clock
) -> None:
    study = opened(tmp_path, random())
    owner = foreign(study)
    seen = observer(study)
    seen.observe()
    assert seen.is_alive(owner) is None, "one look says nothing"
    for _ in range(5):
        clock.now += leases.HEARTBEAT_S
        seen.observe()
    assert seen.is_alive(owner) is None
    clock.now += leases.HEARTBEAT_S
    seen.observe()
    assert seen.is_alive(owner) is False


def test_a_beat_that_grows_shows_life_however_seldom_anybody_looks(tmp_path: Path, clock: Clock) -> None:
    study = opened(tmp_path, random())
    owner = foreign(study)
    seen = observer(study)
    for beat in range(1, 4):
        seen.observe()
        clock.now += 10 * leases.LEASE_S
        write(study, replace(owner, heartbeats=beat))
    seen.observe()
    assert seen.is_alive(owner) is True and seen.silent_s(owner) == 0.0


def test_time_in_which_the_database_was_not_read_does_not_count(tmp_path: Path, clock: Clock) -> None:
    """After an outage of an hour, an owner that could not write its beat is not dead."""
    study = opened(tmp_path, random())
    owner = foreign(study)
    seen = observer(study)
    seen.observe()
    clock.now += 3600.0
    seen.observe()
    assert seen.is_alive(owner) is None and seen.silent_s(owner) == 2 * leases.HEARTBEAT_S


def test_an_owner_in_the_same_place_is_dead_as_soon_as_its_process_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = leases._start_of(child.pid)
        assert started
        owner = replace(Lease.here("worker"), pid=child.pid, started=started)
        assert owner.alive_here() is True
        assert replace(owner, started="1").alive_here() is False, "the number was given to another process"
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert owner.alive_here() is False, "also while nobody waited for it"
    assert owner.alive_here() is False
    assert replace(owner, place="").alive_here() is None and replace(owner, place="elsewhere").alive_here() is None
    assert replace(owner, place="elsewhere", ended="in order").alive_here() is False


def test_a_beat_that_cannot_be_written_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna's own heartbeat ends with the first error, and its trials are then failed."""
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.02)
    study = opened(tmp_path, random())
    plain, failures, beaten = study._storage.get_study_user_attrs, [5], threading.Event()

    def broken(study_id: int) -> dict[str, Any]:
        if threading.current_thread().name == "forge-sweep-heartbeat" and failures[0]:
            failures[0] -= 1
            raise OSError("no route to host")
        if threading.current_thread().name == "forge-sweep-heartbeat":
            beaten.set()
        return plain(study_id)

    monkeypatch.setattr(study._storage, "get_study_user_attrs", broken)
    with study.hold():
        assert beaten.wait(30)
    assert failures == [0]


def test_an_end_in_order_is_noted_and_forgotten_once_nothing_refers_to_it(tmp_path: Path) -> None:
    first = opened(tmp_path, random())
    with first.hold():
        pass
    assert [owner.ended for owner in observer(first).records().values()] == ["in order"]
    second = opened(tmp_path, random())
    with second.hold():
        second.requeue()
        assert [owner.id for owner in observer(second).records().values()] == [second.owner]


# Whose a trial is


def test_a_live_trial_of_another_process_is_left_alone_until_its_owner_is_dead(
    anywhere: str, tmp_path: Path, clock: Clock
) -> None:
    study = opened(tmp_path, random())
    owner = foreign(study)
    number = given_to(study, owner)
    assert study.requeue() == Requeued((), ())
    assert study.elsewhere() == (number,)
    for beat in range(12):
        clock.now += leases.HEARTBEAT_S
        write(study, replace(owner, heartbeats=beat + 1))
        assert study.requeue() == Requeued((), ())
    for _ in range(6):
        clock.now += leases.HEARTBEAT_S
        observer(study).observe()
    asked = study.ask()
    assert asked is not None
    assert (asked.number, asked.attempt) == (number, 2)
    assert study.taken_back() == Requeued((number,), ())
    assert study.elsewhere() == ()


@pytest.mark.parametrize("heard_again", [False, True])
def test_a_process_that_lost_its_trial_writes_nothing_to_it(
    anywhere: str, tmp_path: Path, clock: Clock, heard_again: bool
) -> None:
    """Neither before its next beat nor after it: after a pause, the beat may come first."""
    study = opened(tmp_path, random(pruner="median"))
    lost = [study.ask() for _ in range(4)]
    numbers = [asked.number for asked in lost if asked is not None]
    for number in numbers:
        study.report(number, 0, 0.5)
    clock.now += leases.LEASE_S  # from here on it may have been taken for dead
    other = opened(tmp_path, random(pruner="median"))
    assert other.requeue().waiting == tuple(numbers)
    again = other.ask()
    assert again is not None and again.number == numbers[0]
    before = other.rows()
    if heard_again:
        observer(study).renew()
    with pytest.raises(TrialTaken, match="trial 0 of fraud was taken over by another process"):
        study.report(numbers[0], 1, 0.1)
    with pytest.raises(TrialTaken):
        study.tell(numbers[1], "finished", 0.1)
    with pytest.raises(TrialTaken):
        study.check_mine(numbers[2])
    study.put_back(numbers[2])
    assert study.lose(numbers[3])
    assert other.rows() == before


def test_a_trial_that_is_taken_back_while_it_ends_stays_ended(anywhere: str, tmp_path: Path) -> None:
    """The other process told the end between the look and the write."""
    study = opened(tmp_path, random())
    asked = study.ask()
    assert asked is not None
    other = opened(tmp_path, random())
    running = other._running_trials()
    train(study, asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(other, "_running_trials", lambda: running)
        assert other.requeue() == Requeued((), ())
    assert study.rows()[0].state == "finished"


def test_no_trial_is_made_beyond_the_total_whatever_was_seen_before(anywhere: str, tmp_path: Path) -> None:
    """The last look is in the transaction that creates the trial, so that not even a lost turn makes one too many."""
    study, other = opened(tmp_path, random(2)), opened(tmp_path, random(2))
    before = other._own_trials()
    with study.join():
        for _ in range(2):
            assert study.ask() is not None
        other._leases.begin("worker")
        other._storage.limit = 2
        with pytest.raises(Full):
            other._begin_next(before)
        assert other.ask() is None
    assert len(study.rows()) == 2


def test_a_trial_whose_creation_was_never_answered_is_found_and_run(anywhere: str, tmp_path: Path) -> None:
    """The last trial was made, but an outage swallowed the answer: the next attempt finds that there are enough."""
    study = opened(tmp_path, random(1))
    lost = study.ask()
    assert lost is not None
    study._forget(lost.number)
    assert study.is_left_to_others()
    again = study.ask()
    assert again is not None and (again.number, again.params, again.attempt) == (0, lost.params, 1)
    assert not study.is_left_to_others()


KILLED = """
import os, sys, optuna
from pathlib import Path
from tests.test_study import DATASET, experiment
from forge_sweep.study import open_study
study = open_study(experiment(sampler="random", n_trials=6), dataset=DATASET, store=Path(sys.argv[1]))
plain = optuna.Trial.set_user_attr
def deadly(trial, key, value):
    if key == sys.argv[2]:
        os._exit(9)
    plain(trial, key, value)
optuna.Trial.set_user_attr = deadly
with study.join():
    study.ask()
"""


@pytest.mark.parametrize(("key", "attempt"), [("forge.owner", 1), ("forge.params", 2)])
def test_a_kill_in_the_middle_of_asking_loses_no_trial(anywhere: str, tmp_path: Path, key: str, attempt: int) -> None:
    """Between taking a waiting trial and marking it as one's own, or after that; with the same parameters."""
    study = opened(tmp_path, random())
    first = study.ask()
    assert first is not None
    study.put_back(first.number)
    words = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), key]
    assert subprocess.run(words, cwd=ROOT, check=False, timeout=120).returncode == 9
    assert study.rows()[0].state == "running"
    again = study.ask()
    assert again is not None
    assert (again.number, again.params, again.attempt) == (first.number, first.params, attempt)


SHARING = """
import sys
from pathlib import Path
from tests.test_study import DATASET, experiment, train
from forge_sweep.study import open_study
study = open_study(experiment(sampler="random", n_trials=30, epochs=1), dataset=DATASET, store=Path(sys.argv[1]))
with study.join():
    print("ready", flush=True)
    sys.stdin.readline()
    while asked := study.ask():
        print(asked.number, flush=True)
        train(study, asked, epochs=1)
"""


@pytest.mark.slow
def test_processes_that_share_a_study_run_each_trial_once(anywhere: str, tmp_path: Path) -> None:
    open_study(experiment(sampler="random", n_trials=30, epochs=1), dataset=DATASET, store=tmp_path)
    words = [sys.executable, "-c", SHARING, str(tmp_path)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(words, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = [""] * 3

    def drive(i: int) -> None:
        outputs[i] = processes[i].communicate("go\n", timeout=200)[0]

    threads = [threading.Thread(target=drive, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert Counter(map(int, "".join(outputs).split())) == Counter(range(30))
    study = opened(tmp_path, experiment(sampler="random", n_trials=30, epochs=1))
    assert [row.state for row in study.rows()] == ["finished"] * 30


# Who carries the sweep


def test_another_process_may_carry_a_sweep_only_once_the_first_is_dead(
    database: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines: other store folders, other places."""
    monkeypatch.setenv("FORGE_SWEEP_STORAGE", database().replace("postgresql://", "postgresql+psycopg://"))
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(leases, "LEASE_S", 1.5)
    first, second = opened(tmp_path / "one", random()), opened(tmp_path / "two", random())
    awake, renew = threading.Lock(), observer(first).renew

    def renew_while_awake() -> None:
        with awake:
            renew()

    monkeypatch.setattr(observer(first), "renew", renew_while_awake)
    with first.hold():
        here = observer(first).me
        assert here is not None
        observer(first).me = replace(here, place="another machine")
        observer(first).renew()
        refused = pytest.raises(SweepStopped, match=r"is being run by process \d+ on host .*, last heartbeat \d+ s ago")
        with refused, second.hold():
            raise AssertionError("two processes carry one sweep")
        asked = first.ask()
        assert asked is not None
        awake.acquire()  # it is paused, with no heartbeat on its way
        with second.hold():
            assert second.requeue().waiting == (asked.number,)
            awake.release()
            monkeypatch.undo()
            observer(first)._renewed = float("-inf")
            with pytest.raises(SweepStopped, match=r"process \d+ on host .* now runs study fraud"):
                first.ask()
            with pytest.raises(TrialTaken):
                first.report(asked.number, 0, 0.5)
            second.check_held()


def test_a_dropped_study_object_of_this_process_is_no_living_owner(tmp_path: Path) -> None:
    first = opened(tmp_path, random())
    with first.join():
        asked = first.ask()
        assert asked is not None
        assert opened(tmp_path, random()).requeue() == Requeued((), ())
    assert opened(tmp_path, random()).requeue() == Requeued((asked.number,), ())
