"""Callbacks of the training loop. What ends a trial they do not raise: they set ``model.stop_training`` and keep it.

A callback that raises inside ``fit`` makes Keras skip ``on_train_end`` of all callbacks, so best weights would not be
restored. What still does: a checkpoint that cannot be written, and Ctrl-C outside of ``on_epoch``. Imported by `loop`
when a fit begins, since it imports Keras.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import keras

from forge_sweep.errors import TrialFailed

OnEpoch = Callable[[int, dict[str, float]], bool]

CHECKPOINT_EVERY_S = 5.0
"""Least time between two checkpoints: writing one takes as long as an epoch of a small network."""


@dataclass
class Course:
    """How a fit goes, shared by its callbacks.

    Attributes:
        history: the logs of every whole epoch.
        events: what happened on the way, for people.
        best_epoch: the epoch that early stopping takes for the best so far.
        pruned: whether ``on_epoch`` stopped what would have gone on.
        failure: why the trial failed, if it did.
        raised: what ``on_epoch`` raised, if it did, KeyboardInterrupt and the like included.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    best_epoch: int = 0
    pruned: bool = False
    failure: TrialFailed | None = None
    raised: BaseException | None = None

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
        logs["learning_rate"] = learning_rate(self.model)
        logs.update(self.validate(self.model))
        self._require_finite("val_loss", logs["val_loss"])

    def _require_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            hint = f"it began in epoch {self.epoch}; lower learning_rate under [model.search], or scale the features"
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


class Checkpoint(keras.callbacks.Callback):
    """Keeps the best weights on disk as a ``.keras`` file, at most ``CHECKPOINT_EVERY_S`` behind.

    Keras' ``ModelCheckpoint`` writes in place, so a kill leaves half a file. This one writes beside it and renames. It
    asks ``EarlyStopping`` for the best epoch, so that both always agree, and comes after it.
    """

    def __init__(self, path: Path, stopper: keras.callbacks.EarlyStopping, course: Course) -> None:
        super().__init__()
        self.path = path
        self.stopper = stopper
        self.course = course
        self.saved_epoch = -1
        self.saved_at = -math.inf

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Write the best weights if they are new and the last write is long enough ago."""
        if self._is_behind() and time.monotonic() - self.saved_at >= CHECKPOINT_EVERY_S:
            current = self.model.get_weights()
            self.model.set_weights(self.stopper.best_weights)
            self._save()
            self.model.set_weights(current)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Write what is not on disk yet; the best weights have been restored by now."""
        if self._is_behind():
            self._save()

    def _is_behind(self) -> bool:
        best = self.stopper.best_weights is not None
        return best and self.course.failure is None and self.saved_epoch != self.stopper.best_epoch

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.stem}.partial.keras")
        try:
            self.model.save(partial)
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)
        self.saved_epoch, self.saved_at = self.stopper.best_epoch, time.monotonic()


class Report(keras.callbacks.Callback):
    """Records each whole epoch and asks ``on_epoch`` whether to go on; comes last.

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
        row = {name: float(value) for name, value in (logs or {}).items()}
        self.course.history.append(row)
        self.course.best_epoch = int(self.stopper.best_epoch)
        self._record_events(epoch, row)
        over = self.model.stop_training or epoch + 1 == self.params["epochs"]
        try:
            self.course.pruned = bool(self.on_epoch(epoch, dict(row))) and not over
        except BaseException as error:  # `fit` raises it again once the best weights are back
            self.course.raised = error
        if self.course.pruned or self.course.raised:
            self.model.stop_training = True

    def _record_events(self, epoch: int, row: dict[str, float]) -> None:
        """What the callbacks before this one did."""
        now = learning_rate(self.model)
        if now != row["learning_rate"]:
            self.course.events.append(f"learning rate {row['learning_rate']:.3g} -> {now:.3g} after epoch {epoch}")
        if self.stopper.stopped_epoch:
            best, monitor = self.stopper.best_epoch, self.stopper.monitor
            self.course.events.append(f"early stop after epoch {epoch}: {monitor} was best in epoch {best}")


def learning_rate(model: keras.Model) -> float:
    """The optimizer's present learning rate."""
    return float(model.optimizer.learning_rate)
