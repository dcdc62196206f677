"""The worker's side of a study."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from forge_sweep.errors import Failure, SweepStopped, TrialTaken
from forge_sweep.experiment import Experiment, Params
from forge_sweep.experiment.fields import is_of_hub
from forge_sweep.jsons import plain
from forge_sweep.study import leases
from forge_sweep.study.pareto import Track, beaten_by, turned
from forge_sweep.study.repeats import AVERAGE
from forge_sweep.study.space import configurations, key_of, suggest
from forge_sweep.study.storage import held, holding, locks_of
from forge_sweep.study.trials import (
    NO_COST,
    OPTUNA_STATES,
    SAMPLER_NOTE,
    Attr,
    StudyView,
    TrialCost,
    attrs_of,
    curve,
    points_of,
    recorded,
    state_of,
)

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from forge_sweep.study.database import Database

_log = logging.getLogger("forge_sweep")

ASK_ATTEMPTS = 3  # how often a trial is asked for where another process was quicker each time
SEND_AGAIN_S = 1.0  # how long reports wait before the next attempt to write them, while the database does not answer
MAX_ATTEMPTS = 3  # a trial whose process died this often fails: it may be the trial that kills it
MEMORY = "memory"
"""Optuna's constraint that a trial violates which ran out of memory. Like one above a limit of ``[constraints]``, it is
complete or pruned for Optuna: samplers read these, and keep away without taking it for a bad score. Failed ones they do
not read. `StudyView` shows both as failed."""


class Requeued(NamedTuple):
    """Numbers of the trials that a dead process left running: they wait, or failed since they were begun too often."""

    waiting: tuple[int, ...]
    lost: tuple[int, ...]


class Shared(StudyView):
    """A study whose trials can be taken back from dead processes. Threads may share the object."""

    def __init__(self, study: optuna.Study, storage: Database, url: str, store: Path) -> None:
        super().__init__(study, url)
        self._storage = storage
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._locks = locks_of(url, store)
        self._lock = threading.RLock()
        self._leases = leases.Leases(storage, self._study_id, study.study_name, self._locks)

    @property
    def owner(self) -> str:
        """Id of this process among those that run trials; "" before the first `ask`, `hold` or `join`."""
        return self._leases.me.id if self._leases.me is not None else ""

    def requeue(self) -> Requeued:
        """Take back the trials of processes that died; call it under `hold` or `join`, before the first `ask`.

        Such a trial waits again, with its number and parameters, or fails as ``lost-worker`` when it was begun three
        times already. Trials of a process that may live are left alone; `ask` takes them back once it is known dead.
        """
        with self._lock, self._leases.turn():
            return self._take_back_dead()

    def _take_back_dead(self, but: str = "") -> Requeued:
        """Take back what runs and belongs to nobody alive, nor to the owner ``but``; call it in a turn."""
        from optuna.exceptions import UpdateFinishedTrialError

        waits: dict[int, bool] = {}
        found = self._leases.observe()
        for trial in self._running_trials():
            owner = trial.user_attrs.get(Attr.OWNER, "")
            if owner != but and self._leases.is_dead(owner, found):
                with contextlib.suppress(UpdateFinishedTrialError, TrialTaken):
                    waits[trial.number] = self._take_back(trial)
        for lease in found.values():
            if self._leases.is_alive(lease) is False and lease.id != self.owner:
                self._leases.mark_ended(lease, "its lease expired")
        self._leases.clean({str(trial.user_attrs.get(Attr.OWNER, "")) for trial in self._running_trials()})
        return Requeued(
            waiting=tuple(number for number, again in waits.items() if again),
            lost=tuple(number for number, again in waits.items() if not again),
        )

    def _running_trials(self) -> list[FrozenTrial]:
        return [trial for trial in self._own_trials() if trial.state.name == "RUNNING"]

    def _take_back(self, trial: FrozenTrial) -> bool:
        """Let a trial wait again, or give it up; one that a kill cut off before it had an owner costs no attempt."""
        owner, attempt = str(trial.user_attrs.get(Attr.OWNER, "")), int(trial.user_attrs.get(Attr.ATTEMPT, 1))
        with self._storage.on_behalf_of(owner, ""):
            self._write(trial.number, {Attr.OWNER: ""})  # from here on its old owner writes no more
            counts = trial.user_attrs.get(Attr.OWNER) != ""
            if counts and attempt >= MAX_ATTEMPTS:
                cause = f"the process ended {attempt} times before the trial did"
                self._write(trial.number, {Attr.FAILURE: "lost-worker", Attr.CAUSE: cause})
                self._end(trial.number, "FAIL")
                return False
            if counts:
                self._write(trial.number, {Attr.ATTEMPT: attempt + 1})
            self._end(trial.number, "WAITING")
            return True

    def dead_running(self) -> dict[int, str]:
        """Trials that run and whose process is dead, with words on it; changes nothing."""
        found = self._leases.observe()
        ids = {trial.number: str(trial.user_attrs.get(Attr.OWNER, "")) for trial in self._running_trials()}
        dead = {number: found.get(id) for number, id in ids.items() if self._leases.is_dead(id, found)}
        return {number: "no process" if owner is None else owner.words for number, owner in dead.items()}

    def unknown_owners(self) -> list[leases.Lease]:
        """Processes that matter and of which it has yet to be seen whether they live; each look brings that nearer."""
        referred = {trial.user_attrs.get(Attr.OWNER) for trial in self._running_trials()}
        matter = [owner for owner in self._leases.observe().values() if owner.role == "run" or owner.id in referred]
        return [owner for owner in matter if self._leases.is_alive(owner) is None]

    def is_carried(self) -> bool:
        """Whether a living process runs the sweep to its end."""
        found = self._leases.observe().values()
        return any(owner.role == "run" and self._leases.is_alive(owner) is not False for owner in found)

    def status(self) -> dict[str, Any]:
        """How far the sweep is, what it cost, and whether a process runs it (``carried``), as JSON values."""
        best, over, audit, ahead, front = self.best(), self.ended_by(), self.audit(), self.outlook(), self.front()
        return {
            "study": self.name,
            "trials": self.counts(),
            "done": self.n_done,
            "n_trials": self.n_trials,
            "best": None if best is None else best.to_dict(),
            **({} if front is None else {"front": front.to_dict()}),
            "cost": [cost.to_dict() for cost in self.costs_by_state()],
            "searched_s": round(self.wall_s(), 3),
            "phases": self.phases(),
            "ended_by": None if over is None else asdict(over),
            "outlook": None if ahead is None else ahead.to_dict(),
            "null": self.null(),
            "outside": len([row for row in self.rows() if row.outside]),
            "spaces": self.spaces(),
            "carried": self.is_carried(),
            "audit": None if audit is None else audit.to_dict(),
        }

    def elsewhere(self) -> tuple[int, ...]:
        """Numbers of the trials that other processes run now, or ran until they died."""
        return tuple(t.number for t in self._running_trials() if t.user_attrs.get(Attr.OWNER) != self.owner)

    def has_company(self) -> bool:
        """Whether other processes than this one run trials of the study, or did until they died."""
        return any(id != self.owner for id in self._leases.observe())

    def _release(self, number: int) -> None:
        """In this order: a kill in between leaves a trial that belongs to nobody, which `ask` lets wait."""
        self._write(number, {Attr.OWNER: ""})
        with self._storage.on_behalf_of(""):
            self._end(number, "WAITING")

    def note(self, key: str, value: Any) -> None:
        """Keep a JSON value with the study, such as ``baseline:xgboost``: what a sweep has behind it besides trials."""
        self._study.set_user_attr(f"{Attr.NOTE}{key}", plain(value))

    def _write(self, number: int, attrs: Mapping[str, Any]) -> None:
        for key, value in attrs.items():
            self._storage.set_trial_user_attr(self._trial_id(number), key, value)

    def _end(self, number: int, state: str, values: Sequence[float] | None = None) -> None:
        from optuna.trial import TrialState

        self._storage.set_trial_state_values(self._trial_id(number), TrialState[state], values)

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


@dataclass(frozen=True)
class Asked:
    """A trial to run."""

    number: int  # dense from 0; the seed of the trial follows from it
    params: Params  # every hyperparameter with its value; conditional ones only where they are active
    attempt: int  # 1, or more where the trial's process died
    cost: TrialCost = NO_COST  # what earlier attempts took
    made: float = field(default=0.0, compare=False)  # seconds since 1970; 0 where the trial had waited
    warm: str = ""  # see `TrialRow.warm`


PASSING = ("code", "data", "lost-worker")
"""Failures after which a configuration may be tried again: their cause is not the configuration."""


@dataclass
class _Running:
    """A trial that this process runs."""

    trial: optuna.Trial
    reported: dict[int, float]  # the objective by completed epochs
    sent: set[int]  # completed epochs whose reports Optuna has
    points: dict[int, tuple[float, ...]]  # with several objectives, all of them by completed epochs
    judged: int = 0  # completed epochs that the pruner was last asked at


class Study(Shared):
    """The study of one experiment, for a process that runs trials of it.

    Ask, run, report, tell: each trial that `ask` gives is ended by `tell`, `put_back` or `lose` of the same object.
    Threads may share the object. `hold` it and `requeue` before the first `ask`::

        with study.hold():
            study.requeue()
            while asked := study.ask():
                ...
                study.tell(asked.number, "finished", value)

    Other processes `join` it and do the same. Together they run exactly `n_trials` trials, whichever of them dies: what
    a dead one ran waits again. A process whose lease expired gets `TrialTaken` for the trials that it lost.

    With one process and one worker, parameters depend on nothing but the experiment, its seed and the values told,
    however often the sweep was interrupted.

    Attributes:
        coordinates: whether this process runs the sweep to its end.
        imported: trials that a fork brought in; they inform sampler and pruner and do not count toward ``n_trials``.
        skipped: why the fork that began the study left trials behind, in words, or "".
        accepted: how the experiment of imported trials differs, search ranges aside, as ``study.epochs: 20 -> 30``.
        cold: why a warm start took nothing from an earlier sweep, in words, or "".
        grown: how the search space changed when this process took the sweep over, in words, or "".
    """

    def __init__(self, study: optuna.Study, storage: Database, url: str, experiment: Experiment, store: Path) -> None:
        super().__init__(study, storage, url, store)
        self.coordinates = False
        attrs = study.user_attrs
        self.imported = sum(Attr.IMPORTED in trial.user_attrs for trial in study.get_trials(deepcopy=False))
        self.skipped = str(attrs.get(Attr.SKIPPED, ""))
        self.accepted = str(attrs.get(Attr.ACCEPTED, ""))
        self.cold = str(attrs.get(Attr.COLD, ""))
        self.grown = ""
        self._experiment = experiment
        self._repeats: bool | str = experiment.study.repeats
        storage.averages = self._repeats == AVERAGE
        self._kept_size = attrs.get(Attr.SIZE)
        self._look(attrs.get(Attr.SPACES, ()))
        self._tracks: dict[int, Track] = {}  # of finished trials, with several objectives
        self._running: dict[int, _Running] = {}
        self._send_again = -math.inf
        self._news = Requeued((), ())
        self._joined = False

    def _look(self, spaces: Sequence[Mapping[str, Any]]) -> None:
        """See the trials in terms of the last of the study's spaces, and sample from that of the experiment."""
        from forge_sweep.study import samplers
        from forge_sweep.study.growth import Lens

        self._n_spaces = len(spaces)
        self._before = int(spaces[-1]["trials"]) if spaces else 0  # so many trials when the space changed
        if spaces:
            self._storage.lens = Lens(self._study_id, spaces)
        trials = self._study.get_trials(deepcopy=False)
        inside = [trial for trial in trials if Attr.OUTSIDE not in trial.user_attrs and Attr.PARAMS in trial.user_attrs]
        known = [t.user_attrs[Attr.PARAMS] for t in inside if Attr.IMPORTED in t.user_attrs or t.number < self._before]
        self._study.sampler = samplers.make(self._experiment, self.imported, known, self._before)
        found = configurations(self._experiment.space)
        self._points = None if found is None else len(found)
        self._keys: dict[int, str | None] = {}  # of ended trials
        self._size = self._size_by(self._own_trials())

    def _enter_space(self) -> None:
        """Let the space of the experiment be that of the study, in one write; of one that is it already, do nothing."""
        from forge_sweep.study import growth

        with self._lock, self._leases.turn():
            attrs = self._study.user_attrs
            search = recorded(attrs)["model"]["search"]
            known = attrs.get(Attr.SPACES, ())
            if not self._experiment.differences(recorded(attrs)):
                if len(known) != self._n_spaces:  # another process changed it since this one opened the study
                    self._look(known)
                return
            self._storage.lens = None
            stored = self._study.get_trials(deepcopy=False)
            spaces = growth.changed(self._experiment, attrs, stored, search)
            self._study.set_user_attr(Attr.SPACES, spaces)
            self._look(spaces)
        self.grown = growth.words(self.name, spaces)

    @property
    def left_out(self) -> int:
        """Trials that do not count toward ``n_trials``: imported ones, and those outside of the search space."""
        return len(self._study.get_trials(deepcopy=False)) - len(self._own_trials())

    def _size_by(self, trials: list[FrozenTrial]) -> int | None:
        """How many trials the space has: one more for each that repeated another one, or failed in passing."""
        size: int | None = getattr(self._study.sampler, "size", None)  # of a grid, whose imported points are left out
        if size is not None:
            size += sum(trial.number < self._before for trial in trials)
        if size is None and self._points is not None and not self._repeats:
            begun = sum(Attr.PARAMS in trial.user_attrs for trial in trials)
            size = self._points + begun - len(self._tried(trials))
        return size

    def _measure(self, trials: list[FrozenTrial]) -> None:
        """Keep the size of the space with the study, for those who have no search space in hand."""
        self._size = self._size_by(trials)
        if self._size != self._kept_size:
            self._study.set_user_attr(Attr.SIZE, self._size)
            self._kept_size = self._size

    def _tried(self, trials: list[FrozenTrial]) -> set[str]:
        """The configurations that are not drawn again; see `space.key_of`."""
        under_way = set[str]()
        for trial in (trial for trial in trials if trial.number not in self._keys and Attr.PARAMS in trial.user_attrs):
            key = key_of(trial.user_attrs[Attr.PARAMS])
            if trial.state.is_finished():
                self._keys[trial.number] = None if attrs_of(trial).get(Attr.FAILURE) in PASSING else key
            else:
                under_way.add(key)
        return under_way.union(filter(None, self._keys.values()))

    @property
    def n_trials(self) -> int:
        """How many trials the sweep is to have in total, imported ones aside; fewer where the space has fewer."""
        wanted: int = super().n_trials if self._joined else self._experiment.study.n_trials
        return wanted if self._size is None else min(wanted, self._size)

    @contextlib.contextmanager
    def hold(self, stopping: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Be the one process that runs the sweep to its end, until the block ends or the process dies.

        On SQLite a lock file decides. On a shared database another process in the same place is known to live or not;
        one elsewhere is watched for up to `LEASE_S`, and superseded if it sends no heartbeat. ``stopping`` is asked
        while waiting for anything; true ends the waiting.

        Raises:
            SweepStopped: another process runs it; the message names it.
            KeyboardInterrupt: ``stopping`` said so.
        """
        from forge_sweep.study import hub

        with holding(self._locks, self.name):
            self._take_over(stopping)
            self.coordinates = True
            with self._taking_part(stopping):
                self._enter_space()
                self._study.set_user_attr(Attr.RESOLVED, self._experiment.resolved())  # the budget may have changed
                self._measure(self._own_trials())
                if is_of_hub(self._experiment.study.sampler) and not self.notes(SAMPLER_NOTE):
                    self.note(SAMPLER_NOTE, hub.load(self._experiment).to_dict())
                yield
            self.coordinates = False

    @contextlib.contextmanager
    def join(self, stopping: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Be one more process that runs trials, until the block ends or the process dies; see `hold`."""
        self._joined, self._repeats = True, self.resolved["study"].get("repeats", False)  # as the sweep has it
        self._storage.averages = self._repeats == AVERAGE
        self._leases.begin("worker")
        with self._taking_part(stopping):
            yield

    @contextlib.contextmanager
    def _taking_part(self, stopping: Callable[[], bool]) -> Iterator[None]:
        from forge_sweep.study import database

        self._storage.outage_s, self._storage.stopping = database.OUTAGE_S, stopping
        try:
            with self._leases.renewing():
                yield
        finally:
            self._storage.outage_s = 0.0

    def _take_over(self, stopping: Callable[[], bool]) -> None:
        """Become the process that runs the sweep, once it is certain that no other does."""
        self._leases.observe_anew()
        watched: set[str] = set()
        while (rival := self._leases.coordinate(alone=self.url.startswith("sqlite"))) is not None:
            if self._leases.is_alive(rival):
                raise held(self.name, f"{rival.words}, last heartbeat {self._leases.silent_s(rival):.0f} s ago")
            if rival.id not in watched:
                watched.add(rival.id)
                text = "study %s was run by %s; waiting up to %g s to see whether it still is"
                _log.warning(text, self.name, rival.words, leases.LEASE_S)
            if stopping():
                raise KeyboardInterrupt
            time.sleep(min(1.0, leases.HEARTBEAT_S / 2))

    def check_held(self) -> None:
        """Raise SweepStopped where another process runs the sweep; costs nothing while the heartbeat is recent."""
        if self.coordinates and not self._leases.is_recent():
            self._leases.renew()
        if successor := self._leases.superseded_by:
            raise SweepStopped(
                f"the lease of this process expired; {successor} now runs study {self.name}",
                hint="leave it to that process; `forge-sweep worker` runs trials beside it",
            )

    def check_mine(self, number: int) -> None:
        """Raise TrialTaken where a trial is no longer this process's; costs nothing while the heartbeat is recent."""
        if self._leases.surely_alive():
            return
        trial = self._study.get_trials(deepcopy=False)[number]
        if trial.state.name != "RUNNING" or trial.user_attrs.get(Attr.OWNER) != self.owner:
            self._forget(number)
            raise self._taken(number)

    def _taken(self, number: int) -> TrialTaken:
        return TrialTaken(
            f"trial {number} of {self.name} was taken over by another process: the lease of this one expired"
        )

    def ask(self) -> Asked | None:
        """The next trial, or None when ``n_trials`` are done or under way.

        Finished, pruned and failed trials count as done. A waiting trial comes before a new one. Trials of processes
        that died are taken back first; `taken_back` says which.

        Raises:
            SweepStopped: this process was taken for dead, and another one carries the sweep.
        """
        from forge_sweep.study.database import Full

        with self._lock:
            self.check_held()
            if self._leases.me is None:
                self._leases.begin("worker")
            for _ in range(ASK_ATTEMPTS):
                with self._leases.turn(), self._storage.one_look(), contextlib.suppress(Full, TrialTaken):
                    return self._begin_next(self._recovered())
            return None

    def _recovered(self) -> list[FrozenTrial]:
        """The trials, after those that belong to nobody wait again."""
        trials = self._own_trials()
        unknown = [t for t in trials if t.state.name == "RUNNING" and t.number not in self._running]
        for trial in (t for t in unknown if t.user_attrs.get(Attr.OWNER) == self.owner):
            self._release(trial.number)  # made in an attempt whose answer an outage swallowed
        if any(t.user_attrs.get(Attr.OWNER) != self.owner for t in unknown):
            requeued = self._take_back_dead(but=self.owner)
            self._news = Requeued(self._news.waiting + requeued.waiting, self._news.lost + requeued.lost)
        return self._own_trials() if unknown else trials

    def _begin_next(self, trials: list[FrozenTrial]) -> Asked | None:
        """Begin a waiting trial or a new one, unless another process that took the turn was quicker.

        That is a TrialTaken, or a Full where there are enough: one may be this process's own, whose answer was lost.
        """
        if self._joined and len(self._study.user_attrs.get(Attr.SPACES, ())) != self._n_spaces:
            raise SweepStopped(
                f"the search space of {self.name} was changed by the process that runs the sweep",
                hint="join again, with the experiment file that it has",
            )
        self._measure(trials)
        n_trials = self.n_trials
        waiting = {trial.number: trial for trial in trials if trial.state.name == "WAITING"}
        n_done = sum(trial.state.is_finished() for trial in trials)
        if n_done >= n_trials or not (waiting or len(trials) < n_trials):
            return None
        self._storage.limit = n_trials + self.left_out
        if not trials and (first := self._experiment.first):
            self._study.enqueue_trial(first)
            waiting = {trial.number: trial for trial in self._own_trials()}
        asked_at = time.time()
        tried = set[str]() if self._repeats else self._tried(trials)
        self._study.sampler.tried = tried  # type: ignore[union-attr]  # our own
        with self._storage.collecting():
            with self._storage.on_behalf_of(""):  # a waiting trial belongs to nobody yet
                trial = self._study.ask()
                if trial.number in waiting:
                    trial.set_user_attr(Attr.OWNER, self.owner)
            params = suggest(trial, self._experiment.space)
            trial.set_user_attr(Attr.PARAMS, params)
        attrs: dict[str, Any] = {}
        running = self._running[trial.number] = _Running(trial, {}, set(), {})
        if (before := waiting.get(trial.number)) is not None:
            attrs = attrs_of(before)
            running.reported, running.sent = curve(before), set(before.intermediate_values)
            running.points = points_of(before)
        cost = TrialCost.of(attrs[Attr.COST]) if Attr.COST in attrs else NO_COST
        made = 0.0 if Attr.PARAMS in attrs else asked_at
        return Asked(trial.number, params, attrs.get(Attr.ATTEMPT, 1), cost, made, attrs.get(Attr.WARM, ""))

    def is_left_to_others(self) -> bool:
        """Whether trials are missing that this process does not run."""
        with self._lock:
            return self.n_done + len(self._running) < self.n_trials

    def taken_back(self) -> Requeued:
        """What `ask` took back from dead processes since this was asked last."""
        with self._lock:
            news, self._news = self._news, Requeued((), ())
            return news

    def report(self, number: int, epoch: int, value: float, further: Mapping[str, float] | None = None) -> bool:
        """Report the objective after an epoch (from 0) and ask whether to prune. Optuna's step is ``epoch + 1``.

        A trial that is run again reports epochs a second time; the first report of an epoch stands, and pruning is
        asked from the last reported epoch on. It is never pruned after the last epoch, when nothing is left to save,
        nor while the database does not answer: reports wait then, and the trial goes on.

        ``further`` are the other objectives of several, as far as they are known, by name.

        Raises:
            TrialTaken: another process took the trial over; drop it.
        """
        from forge_sweep.study.database import Outage

        with self._lock, self._as_owner(number):
            step, reported = epoch + 1, self._running[number].reported
            last = max(reported, default=0)
            if step < last:
                return False
            reported.setdefault(step, value)
            if len(self._ways) > 1:
                known = {**(further or {}), self._experiment.objective.metric: value}
                point = tuple(known.get(name, math.nan) for name in self._experiment.objective.names)
                self._running[number].points.setdefault(step, point)
            if time.monotonic() < self._send_again:
                return False
            try:
                with self._storage.impatient():
                    self.check_mine(number)
                    return self._judge(number, step, again=step == last)
            except Outage as outage:
                self._storage.say_down(outage)
                self._send_again = time.monotonic() + SEND_AGAIN_S
                return False

    def _judge(self, number: int, step: int, again: bool) -> bool:
        """Give the pruner what it reads, and ask it; ``again``: an epoch that was reported before."""
        from forge_sweep.study import pruners

        spec, running = self._experiment.steps, self._running[number]
        if step >= spec.epochs:
            return False
        if again and running.trial.user_attrs.get(Attr.PRUNED_AT) == step:
            return True
        if not pruners.has_a_say(spec, running.judged, step):
            return False
        if len(self._ways) > 1:  # of which Optuna takes no reports
            return self._judge_among_several(number, step)
        if self._experiment.trainings > 1 and spec.pruner in ("median", "percentile"):
            rows = (trial for trial in self._study.get_trials(deepcopy=False) if state_of(trial) == "finished")
            others = [curve(trial).get(step, math.nan) for trial in rows]
            known = [value for value in others if math.isfinite(value)]
            prune = pruners.is_behind(running.reported[step], known, spec, self.direction)
            if prune:
                running.trial.set_user_attr(Attr.PRUNED_AT, step)
            return prune
        steps = sorted(running.reported) if pruners.reads_every_report(spec) else [step]
        for unsent in (each for each in steps if each <= step and each not in running.sent):
            running.trial.report(self._for_optuna(number, unsent), unsent)
            running.sent.add(unsent)
        running.judged = step
        with pruners.quiet():
            prune = bool(running.trial.should_prune())
        if prune:  # kept, since successive halving lets a trial pass that it has judged before
            running.trial.set_user_attr(Attr.PRUNED_AT, step)
        return prune

    def _for_optuna(self, number: int, step: int) -> float:
        """What was reported at a step; to Wilcoxon's test over folds, what that fold alone gave."""
        reported = self._running[number].reported
        if self._experiment.trainings == 1 or self._experiment.study.pruner != "wilcoxon":
            return reported[step]
        return step * reported[step] - (step - 1) * reported.get(step - 1, 0.0)  # of means, with it and without it

    def _judge_among_several(self, number: int, step: int) -> bool:
        """Keep what was reported, and say whether finished trials make it hopeless; see `pareto.beaten_by`."""
        running = self._running[number]
        self._write(number, {Attr.POINTS: _plain_points(running.points)})
        finished = [trial for trial in self._study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
        finished = [trial for trial in finished if Attr.FAILURE not in attrs_of(trial)]
        for trial in (trial for trial in finished if trial.number not in self._tracks):
            points = {at: turned(point, self._ways) for at, point in points_of(trial).items()}
            self._tracks[trial.number] = Track(points, turned(trial.values, self._ways))
        if len(finished) < self._experiment.study.startup_trials:
            return False
        track = Track({at: turned(point, self._ways) for at, point in running.points.items()})
        better = beaten_by(track, {trial.number: self._tracks[trial.number] for trial in finished}, step)
        if better:
            self._write(number, {Attr.BEATEN_BY: list(better), Attr.PRUNED_AT: step})
        return bool(better)

    def tell(
        self,
        number: int,
        state: Literal["finished", "pruned", "failed"],
        value: float | None = None,
        *,
        further: Mapping[str, float] | None = None,
        failure: Failure | Literal[""] = "",
        cause: str = "",
        attrs: Mapping[str, Any] | None = None,
        excess: Mapping[str, float] | None = None,
    ) -> None:
        """End a trial. Its attributes are written before its state: a trial that is done has them all.

        Args:
            number: as `ask` gave it.
            state: how it ended; ``finished`` with a value that is NaN or infinite is recorded as failed, ``diverged``.
            value: the objective at the best epoch; None for a failed trial, but for an infeasible one that was trained.
            further: the other objectives of several, at that epoch and of that model, by name; a finished trial has
                all of them.
            failure: class of the failure.
            cause: in one line.
            attrs: JSON values to keep with the trial.
            excess: by what share of its limit each constraint is exceeded, at most 0 where it is kept; for the sampler.

        Raises:
            SweepStopped: a pruner is set and the trial never reported. It waits again and loses nothing.
            TrialTaken: another process took the trial over; nothing was changed.
        """
        with self._lock, self._as_owner(number):
            if number not in self._running:
                raise self._taken(number)
            if state != "failed":
                self._check_reported(number)
            if state == "finished" and (value is None or not math.isfinite(value)):
                cause = f"{self._experiment.objective.metric} is {value} at the best epoch"
                state, failure, value = "failed", "diverged", None
            names = self._experiment.objective.names
            values = [value, *((further or {}).get(name) for name in names[1:])]
            whole = [each for each in values if each is not None and math.isfinite(each)]
            if state == "finished" and len(whole) < len(names):
                lacking = next(name for name, each in zip(names, values, strict=True) if each not in whole)
                cause = f"{lacking} is {dict(zip(names, values, strict=True))[lacking]} at the best epoch"
                state, failure, value = "failed", "diverged", None
            own: dict[str, Any] = {Attr.FAILURE: failure, Attr.CAUSE: cause} if state == "failed" else {}
            if value is not None and math.isfinite(value):
                own[Attr.VALUE] = value
                if len(names) > 1 and len(whole) == len(names):
                    own[Attr.VALUES] = whole
            self._keep(number, {**(attrs or {}), **own})
            if constraints := {MEMORY: 1.0} if failure == "out-of-memory" else dict(excess or {}):
                known = self._study.get_trials(deepcopy=False)[number].constraints  # from an attempt that died here
                for name in constraints.keys() - known.keys():
                    self._running[number].trial.set_constraint(name, constraints[name])
            scored = Attr.VALUE in own and len(whole) == len(names)
            infeasible = failure in ("out-of-memory", "infeasible")
            ends = OPTUNA_STATES["finished" if infeasible and scored else "pruned" if infeasible else state]
            # `optuna.Study.tell` would put the last report in the place of a pruned trial's value.
            # Of several it takes all or none: a pruned trial has none, and says so where not to go.
            told = scored and (infeasible or state != "failed") and (len(names) == 1 or ends == "COMPLETE")
            self._end(number, ends, whole if told else None)
            self._forget(number)

    def _keep(self, number: int, attrs: Mapping[str, Any]) -> None:
        """Write in one transaction what is known of a trial."""
        reported = self._running[number].reported.items()
        reports = {step: value if math.isfinite(value) else str(value) for step, value in reported}
        points = {Attr.POINTS: _plain_points(kept)} if (kept := self._running[number].points) else {}
        curves = {Attr.CURVE: reports, **points} if reports else {}
        self._write(number, {Attr.RESULT: {**attrs, **curves}})

    def _check_reported(self, number: int) -> None:
        pruner, metric = self._experiment.study.pruner, self._experiment.objective.metric
        if pruner == "none" or self._running[number].reported:
            return
        self.put_back(number)
        raise SweepStopped(
            f'trial {number} ended without one report of {metric}: study.pruner = "{pruner}" never saw it',
            hint='call Study.report after each epoch, or set study.pruner = "none"',
        )

    def put_back(self, number: int) -> None:
        """Let a trial wait again, after Ctrl-C for example; counts as no attempt, and does nothing to a taken one."""
        with self._lock, contextlib.suppress(TrialTaken), self._leases.turn():
            self._release(number)
        self._forget(number)

    def lose(self, number: int) -> bool:
        """Take back a trial whose worker died; whether it runs again, instead of failing as ``lost-worker``."""
        with self._lock:
            again = True
            with contextlib.suppress(TrialTaken), self._leases.turn():
                again = self._take_back(self._study.get_trials(deepcopy=False)[number])
            self._forget(number)
            return again

    @contextlib.contextmanager
    def _as_owner(self, number: int) -> Iterator[None]:
        """Say of which trial it is that another process took it over, or ended it."""
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            yield
        except (TrialTaken, UpdateFinishedTrialError):
            self._forget(number)
            raise self._taken(number) from None

    def spend(self, number: int, cost: TrialCost) -> None:
        """Keep what a trial that goes on, or waits again, has cost so far; `tell` takes it among its ``attrs``."""
        with self._lock, self._as_owner(number):
            self._keep(number, {Attr.COST: cost.to_dict()})

    def _forget(self, number: int) -> None:
        self._running.pop(number, None)


def _plain_points(points: Mapping[int, Sequence[float]]) -> dict[int, list[float | str]]:
    """What JSON can hold of them."""
    return {step: [v if math.isfinite(v) else str(v) for v in values] for step, values in points.items()}
