"""Callbacks of the training loop. What ends a trial they do not raise: they set ``model.stop_training`` and keep it.

A callback that raises inside ``fit`` makes Keras skip ``on_train_end`` of all callbacks, so best weights would not be
restored. What still does: Ctrl-C outside of ``on_epoch``. Imported by `loop` when a fit begins, since it imports Keras.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from forge_sweep.errors import TrialFailed
from forge_sweep.training.checkpoint import Checkpoint, Progress, pack

OnEpoch = Callable[[int, dict[str, float]], bool]

RATE = "learning_rate"
"""Of the learning rate in the logs that Keras hands to callbacks."""

SAVE_FIRST_S = 5.0
"""Time before the progress is saved first: what takes less is quicker trained again."""

SAVE_EVERY_S = 5.0
"""Least time between two savings."""

SAVE_SHARE = 0.02
"""Most of the time that saving may take."""


@dataclass
class Course:
    """How a fit goes, shared by its callbacks.

    Attributes:
        history: the logs of every whole epoch.
        events: what happened on the way, for people.
        best_epoch: the epoch that early stopping takes for the best so far.
        over: whether training would end after the last epoch of the history anyway.
        pruned: whether ``on_epoch`` stopped what would have gone on.
        failure: why the trial failed, if it did.
        raised: what ``on_epoch`` raised, if it did, KeyboardInterrupt and the like included.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    best_epoch: int = 0
    over: bool = False
    pruned: bool = False
    failure: TrialFailed | None = None
    raised: BaseException | None = None

    def note(self, event: str) -> None:
        """Add an event that holds for the whole fit, however often it was taken up again."""
        if event not in self.events:
            self.events.append(event)

    def fail(self, model: keras.Model, failure: TrialFailed) -> None:
        """Stop training because of ``failure``; the first one counts."""
        self.failure = self.failure or failure
        model.stop_training = True


class BetweenSteps(keras.callbacks.Callback):
    """A callback whose ``on_train_batch_end`` may come after any number of steps, as the compiled epoch calls it."""


def needs_batches(callback: keras.callbacks.Callback) -> bool:
    """Whether a callback wants to be called before or after each single batch."""
    hooks = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")
    own = [hook for hook in hooks if not _is_default(callback, hook)]
    return bool(own) and not isinstance(callback, BetweenSteps)


def _is_default(callback: keras.callbacks.Callback, hook: str) -> bool:
    """Whether a hook is the empty one of Keras' base class; some callbacks put functions in their place."""
    found = getattr(callback, hook)
    return getattr(found, "__func__", found) is getattr(keras.callbacks.Callback, hook)


class Evaluate(BetweenSteps):
    """Puts validation metrics and the learning rate into the logs, so it comes first; fails a loss that is not finite.

    Keras hands one dictionary to all callbacks of an epoch, in order: what is added here is what later ones monitor.
    """

    def __init__(self, validate: Callable[[keras.Model], dict[str, float]], course: Course) -> None:
        super().__init__()
        self.validate = validate
        self.course = course
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Remember the epoch for messages."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Stop where the mean loss of the epoch so far is not finite."""
        self._require_finite("loss", (logs or {}).get("loss", 0.0))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Add to the logs of the epoch."""
        assert logs is not None
        logs[RATE] = learning_rate(self.model)
        logs.update(self.validate(self.model))
        self._require_finite("val_loss", logs["val_loss"])

    def _require_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            hint = (
                f"it began in epoch {self.epoch + 1}; lower learning_rate under [model.search], or scale the features"
            )
            self.course.fail(self.model, TrialFailed("diverged", f"{name} is {value}", hint=hint))


class Deadline(BetweenSteps):
    """Fails the trial once its time is over, after the call or epoch that passed the limit."""

    def __init__(self, began: float, limit_s: float, course: Course) -> None:
        super().__init__()
        self.ends = began + limit_s
        self.limit_s = limit_s
        self.course = course

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Check after each step, or after the steps of one call."""
        self._check()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Check after validation."""
        self._check()

    def _check(self) -> None:
        if time.monotonic() > self.ends:
            hint = "raise study.trial_timeout_s, or narrow the search space"
            failure = TrialFailed("time-out", f"training took longer than its {self.limit_s:g} s", hint=hint)
            self.course.fail(self.model, failure)


class Report(keras.callbacks.Callback):
    """Records each whole epoch and asks ``on_epoch`` whether to go on.

    An epoch that ends training anyway, by early stopping or as the last one, is reported like any other, but the answer
    does not count: there is nothing left to prune.
    """

    def __init__(self, on_epoch: OnEpoch, stopper: keras.callbacks.EarlyStopping, course: Course) -> None:
        super().__init__()
        self.on_epoch = on_epoch
        self.stopper = stopper
        self.course = course

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Report the epoch, unless the trial failed in it."""
        if self.course.failure is not None:
            return
        # Keras' own name for it is also that of the hyperparameter, which stands for the rate at the beginning.
        row = {"lr" if name == RATE else name: float(value) for name, value in (logs or {}).items()}
        self.course.history.append(row)
        self.course.best_epoch = int(self.stopper.best_epoch)
        self._record_events(epoch, row)
        self.course.over = bool(self.model.stop_training) or epoch + 1 == self.params["epochs"]
        try:
            self.course.pruned = bool(self.on_epoch(epoch, dict(row))) and not self.course.over
        except BaseException as error:  # `fit` raises it again once the best weights are back
            self.course.raised = error
        if self.course.pruned or self.course.raised:
            self.model.stop_training = True

    def _record_events(self, epoch: int, row: dict[str, float]) -> None:
        """What the callbacks before this one did."""
        now = learning_rate(self.model)
        if now != row["lr"]:
            self.course.events.append(f"learning rate {row['lr']:.3g} -> {now:.3g} after epoch {epoch + 1}")
        if self.stopper.stopped_epoch:
            best, monitor = self.stopper.best_epoch + 1, self.stopper.monitor
            self.course.events.append(f"early stop after epoch {epoch + 1}: {monitor} was best in epoch {best}")


class Progressing(keras.callbacks.Callback):
    """Takes training up from a progress, and saves the progress from time to time; comes last.

    An epoch is saved after it was reported: what was reported twice after a kill is an epoch that is trained again, bit
    by bit the same on a CPU.

    Args:
        keep: where the progress goes; None keeps nothing.
        identity: names this training.
        rememberers: callbacks before this one, by a name, and the attributes that they go by.
        progress: what to take up.
        began: when training would have begun without interruptions.
        course: how the fit goes.
    """

    def __init__(
        self,
        keep: Checkpoint | None,
        identity: str,
        rememberers: Mapping[str, tuple[keras.callbacks.Callback, Sequence[str]]],
        progress: Progress | None,
        began: float,
        course: Course,
    ) -> None:
        super().__init__()
        self.keep = keep
        self.identity = identity
        self.rememberers = rememberers
        self.progress = progress
        self.began = began
        self.course = course
        self.base_rate = math.nan
        self.due_s = SAVE_FIRST_S
        self.saved_at = time.monotonic()

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Put everything back to where it was; the other callbacks have begun anew by now."""
        self.base_rate = learning_rate(self.model)
        if self.progress is None:
            return
        put_back(self.model, self.progress)
        for name, attributes in self.progress.callbacks.items():
            vars(self.rememberers[name][0]).update(attributes)
        self.stopper.best_weights = list(self.progress.best)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Save where the last time is long enough ago, or where ``on_epoch`` was interrupted."""
        due = time.monotonic() - self.saved_at >= self.due_s or self.course.raised is not None
        if self.keep is None or not due or self.course.failure is not None or self.course.pruned:
            return
        began = time.monotonic()
        try:
            self.keep.save(pack(self._progress(epoch)))
        except OSError as error:  # a full disk is no reason to end a training that needs none
            self.course.note(f"progress could not be saved: {error}")
        self.saved_at = time.monotonic()
        self.due_s = max(SAVE_EVERY_S, (self.saved_at - began) / SAVE_SHARE)

    @property
    def stopper(self) -> keras.callbacks.EarlyStopping:
        """It keeps the best weights."""
        return self.rememberers["stopper"][0]

    def _progress(self, epoch: int) -> Progress:
        remembered = {
            name: {attribute: as_json(getattr(callback, attribute)) for attribute in attributes}
            for name, (callback, attributes) in self.rememberers.items()
        }
        return Progress(
            identity=self.identity,
            weights=values_of(self.model.variables),
            optimizer=values_of(self.model.optimizer.variables),
            best=self.stopper.best_weights,
            history=self.course.history,
            events=self.course.events,
            best_epoch=self.course.best_epoch,
            seconds=time.monotonic() - self.began,
            base_rate=self.base_rate,
            callbacks=remembered,
            over=self.course.over,
        )


def put_back(model: keras.Model, progress: Progress) -> None:
    """Set all variables; a learning rate that is now smaller from the beginning stays so in proportion."""
    begins_with = learning_rate(model)
    assign(model.variables, progress.weights)
    assign(model.optimizer.variables, progress.optimizer)
    if begins_with != progress.base_rate:
        model.optimizer.learning_rate = learning_rate(model) * begins_with / progress.base_rate


def as_json(value: Any) -> int | float | None:
    """A count as it is, a metric as a float."""
    return value if value is None or isinstance(value, int) else float(value)


def values_of(variables: Iterable[keras.Variable]) -> list[np.ndarray]:
    """Copies of the variables' values."""
    return [np.array(variable) for variable in variables]


def assign(variables: Sequence[keras.Variable], values: Sequence[np.ndarray]) -> None:
    """Give each variable its value."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def learning_rate(model: keras.Model) -> float:
    """The optimizer's present learning rate."""
    return float(model.optimizer.learning_rate)
