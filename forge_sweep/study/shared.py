"""What every process that changes a study needs: who runs which trial, and how a trial changes hands."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep.errors import TrialTaken
from forge_sweep.jsons import plain
from forge_sweep.study.storage import locks_of
from forge_sweep.study.view import ATTEMPT, CAUSE, FAILURE, NOTE, OWNER, StudyView

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from forge_sweep.study.database import Database
    from forge_sweep.study.owners import Owner

MAX_ATTEMPTS = 3
"""A trial whose process died this often fails: it may be the trial that kills it."""


@dataclass(frozen=True)
class Requeued:
    """The trials that a dead process left running.

    Attributes:
        waiting: numbers of those that wait and will be run again.
        lost: numbers of those that failed as ``lost-worker``: they were begun too often already.
    """

    waiting: tuple[int, ...]
    lost: tuple[int, ...]


class Shared(StudyView):
    """A study whose trials can be taken back from dead processes. Threads may share the object."""

    def __init__(self, study: optuna.Study, storage: Database, url: str, store: Path) -> None:
        from forge_sweep.study.owners import Owners

        super().__init__(study, url)
        self._storage = storage
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._locks = locks_of(url, store)
        self._lock = threading.RLock()
        self._owners = Owners(storage, self._study_id, study.study_name, self._locks)

    @property
    def owner(self) -> str:
        """Id of this process among those that run trials; "" before the first `ask`, `hold` or `join`."""
        return self._owners.me.id if self._owners.me is not None else ""

    def requeue(self) -> Requeued:
        """Take back the trials of processes that died; call it under `hold` or `join`, before the first `ask`.

        Such a trial waits again, with its number and parameters, or fails as ``lost-worker`` when it was begun three
        times already. Trials of a process that may live are left alone; `ask` takes them back once it is known dead.
        """
        with self._lock, self._owners.turn():
            return self._take_back_dead()

    def _take_back_dead(self, but: str = "") -> Requeued:
        """Take back what runs and belongs to nobody alive; call it in a turn.

        Args:
            but: an owner whose trials are left alone.
        """
        waits: dict[int, bool] = {}
        found = self._owners.look()
        for trial in self._running_trials():
            owner = trial.user_attrs.get(OWNER, "")
            if owner != but and self._owners.is_dead(owner, found):
                with contextlib.suppress(_finished_meanwhile(), TrialTaken):
                    waits[trial.number] = self._take_back(trial)
        self._clean(found)
        return Requeued(
            waiting=tuple(number for number, again in waits.items() if again),
            lost=tuple(number for number, again in waits.items() if not again),
        )

    def _clean(self, found: Mapping[str, Owner]) -> None:
        """Note which owners died, and forget those that nothing refers to."""
        for owner in found.values():
            if self._owners.lives(owner) is False and owner.id != self.owner:
                self._owners.bury(owner, "not heard any more")
        self._owners.clean({str(trial.user_attrs.get(OWNER, "")) for trial in self._running_trials()})

    def _running_trials(self) -> list[FrozenTrial]:
        return [trial for trial in self._own_trials() if trial.state.name == "RUNNING"]

    def _take_back(self, trial: FrozenTrial) -> bool:
        """Let a trial wait again, or give it up; one that a kill cut off before it had an owner costs no attempt."""
        owner, attempt = str(trial.user_attrs.get(OWNER, "")), int(trial.user_attrs.get(ATTEMPT, 1))
        with self._storage.on_behalf_of(owner, ""):
            self._write(trial.number, {OWNER: ""})  # from here on its old owner writes no more
            if trial.user_attrs.get(OWNER) == "":
                self._wait(trial.number)
                return True
            if attempt >= MAX_ATTEMPTS:
                cause = f"the process ended {attempt} times before the trial did"
                self._write(trial.number, {FAILURE: "lost-worker", CAUSE: cause})
                self._study.tell(trial.number, state=state_named("FAIL"))
                return False
            self._write(trial.number, {ATTEMPT: attempt + 1})
            self._wait(trial.number)
            return True

    def dead_running(self) -> dict[int, str]:
        """Trials that run and whose process is dead, with words on it; changes nothing."""
        found = self._owners.look()
        owners = {trial.number: str(trial.user_attrs.get(OWNER, "")) for trial in self._running_trials()}
        dead = {number: found.get(id) for number, id in owners.items() if self._owners.is_dead(id, found)}
        return {number: "nobody" if owner is None else owner.words for number, owner in dead.items()}

    def unknown_owners(self) -> list[Owner]:
        """Processes that matter and of which it has yet to be seen whether they live; each look brings that nearer."""
        referred = {trial.user_attrs.get(OWNER) for trial in self._running_trials()}
        matter = [owner for owner in self._owners.look().values() if owner.role == "run" or owner.id in referred]
        return [owner for owner in matter if self._owners.lives(owner) is None]

    def is_carried(self) -> bool:
        """Whether a living process carries the sweep to its end."""
        found = self._owners.look().values()
        return any(owner.role == "run" and self._owners.lives(owner) is not False for owner in found)

    def elsewhere(self) -> tuple[int, ...]:
        """Numbers of the trials that other processes run now, or ran until they died."""
        return tuple(t.number for t in self._running_trials() if t.user_attrs.get(OWNER) != self.owner)

    def has_company(self) -> bool:
        """Whether other processes than this one run trials of the study, or did until they died."""
        return any(id != self.owner for id in self._owners.look())

    def _release(self, number: int) -> None:
        """In this order: a kill in between leaves a trial that belongs to nobody, which `ask` lets wait."""
        with self._storage.on_behalf_of():
            self._write(number, {OWNER: ""})
        with self._storage.on_behalf_of(""):
            self._wait(number)

    def note(self, key: str, value: Any) -> None:
        """Keep a JSON value with the study, such as ``baseline:xgboost``: what a sweep has behind it besides trials."""
        self._study.set_user_attr(f"{NOTE}{key}", plain(value))

    def _write(self, number: int, attrs: Mapping[str, Any]) -> None:
        for key, value in attrs.items():
            self._storage.set_trial_user_attr(self._trial_id(number), key, value)

    def _wait(self, number: int) -> None:
        self._storage.set_trial_state_values(self._trial_id(number), state_named("WAITING"))

    def _trial_id(self, number: int) -> int:
        trial_id: int = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        return trial_id


def _finished_meanwhile() -> type[Exception]:
    """What Optuna raises where a trial ended while it was being taken back."""
    from optuna.exceptions import UpdateFinishedTrialError

    return UpdateFinishedTrialError


def state_named(name: str) -> optuna.trial.TrialState:
    """Optuna's state of that name."""
    from optuna.trial import TrialState

    return TrialState[name]
