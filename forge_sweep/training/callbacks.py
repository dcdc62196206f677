"""Callbacks of the training loop. What ends a trial they do not raise: they set ``model.stop_training`` and keep it.

A callback that raises inside ``fit`` makes Keras skip ``on_train_end`` of all callbacks, so best weights would not be
restored. Imports Keras, so `fit` imports it when a fit begins.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from forge_sweep.errors import TrialFailed
from forge_sweep.training.checkpoint import Progress, pack

if TYPE_CHECKING:
    from forge_sweep.training.fit import FitSpec, OnEpoch

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
        over: whether training would end after the last epoch of the history anyway.
        pruned: whether ``on_epoch`` stopped what would have gone on.
        failure: why the trial failed.
        raised: what ``on_epoch`` raised, KeyboardInterrupt and the like included.
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
    return not isinstance(callback, BetweenSteps) and not all(_is_default(callback, hook) for hook in hooks)


def _is_default(callback: keras.callbacks.Callback, hook: str) -> bool:
    """Whether a hook is the empty one of Keras' base class; some callbacks put functions in their place."""
    found = getattr(callback, hook)
    return getattr(found, "__func__", found) is getattr(keras.callbacks.Callback, hook)


class Evaluate(BetweenSteps):
    """Puts validation metrics and the learning rate into the logs; fails a loss that is not finite, or out of time.

    It comes first: Keras hands one dictionary to all callbacks of an epoch, and later ones monitor what is added here.
    """

    def __init__(
        self,
        validate: Callable[[keras.Model], dict[str, float]],
        course: Course,
        began: float,
        limit_s: float | None = None,
    ) -> None:
        super().__init__()
        self.validate = validate
        self.course = course
        self.began = began
        self.limit_s = limit_s
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Remember the epoch for messages."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Check the mean loss of the epoch so far."""
        self._check("loss", (logs or {}).get("loss", 0.0))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Add to the logs of the epoch."""
        assert logs is not None
        logs[RATE] = learning_rate(self.model)
        logs.update(self.validate(self.model))
        self._check("val_loss", logs["val_loss"])

    def _check(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            hint = f"it began in epoch {self.epoch + 1}; lower learning_rate under [model.search]"
            self.course.fail(self.model, TrialFailed("diverged", f"{name} is {value}", hint=hint))
        if self.limit_s is not None and time.monotonic() - self.began > self.limit_s:
            hint = "raise study.trial_timeout_s, or narrow the search space"
            failure = TrialFailed("time-out", f"training took longer than its {self.limit_s:g} s", hint=hint)
            self.course.fail(self.model, failure)


class Averaging(keras.callbacks.Callback):
    """Puts the moving averages of an optimizer with ``use_ema`` into the model at the end of each epoch.

    What comes after it sees them, the best weights among it; `leave` comes last and puts the trained weights back.
    Keras' own `SwapEMAWeights` swaps by adding and subtracting, which changes the last bits of both.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Take the averages, if there are any: all steps of an epoch may have overflowed in half precision."""
        optimizer = self.model.optimizer
        if getattr(optimizer, "inner_optimizer", optimizer).use_ema and int(optimizer.iterations):
            self.trained = [np.array(variable) for variable in self.model.trainable_variables]
            optimizer.finalize_variable_values(self.model.trainable_variables)
            for variable in self.model.trainable_variables:
                variable.assign(np.array(variable))  # a copy: JAX would share the array, and predicting takes it

    def leave(self) -> None:
        """Put the trained weights back."""
        if self.trained:
            for variable, value in zip(self.model.trainable_variables, self.trained, strict=True):
                variable.assign(value)
            self.trained = []


class LastEpoch(keras.callbacks.EarlyStopping):
    """In the place of the early stopping: takes the last epoch for the best, and stops nothing."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Keep the weights of the epoch."""
        self.best, self.best_epoch, self.best_weights = (logs or {})[self.monitor], epoch, self.model.get_weights()


class Reduce(keras.callbacks.ReduceLROnPlateau):
    """Halves the learning rate on a plateau, after a warm-up.

    Attributes:
        begins_after: epochs that do not count.
    """

    begins_after = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """See Keras' own."""
        if epoch >= self.begins_after:
            super().on_epoch_end(epoch, logs)


class Guard(BetweenSteps):
    """Stands before, and again after, the callbacks of the user's: they cannot undo what ours decided or recorded.

    What is kept is the model of the best epoch as it was scored, whatever they make of the weights in the end; weights
    that they change at the end of an epoch are those that training goes on with.
    """

    def __init__(self, before: Guard | None = None) -> None:
        super().__init__()
        self.before = before
        self.stopped = False
        self.logs: dict[str, float] = {}
        self.weights: list[np.ndarray] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Keep to a stop."""
        self._keep()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Keep to a stop, and to the logs."""
        assert logs is not None
        self._keep()
        if self.before is None:
            self.logs = dict(logs)
        else:
            logs.clear()
            logs.update(self.before.logs)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Keep the best weights, which were put back before."""
        if self.before is None:
            self.weights = self.model.get_weights()
        else:
            self.model.set_weights(self.before.weights)

    def _keep(self) -> None:
        if self.before is None:
            self.stopped = self.model.stop_training
        else:
            self.model.stop_training = self.model.stop_training or self.before.stopped


class Report(keras.callbacks.Callback):
    """Records each whole epoch and asks ``on_epoch`` whether to go on.

    The answer does not count after an epoch that ends training anyway: there is nothing left to prune.
    """

    def __init__(self, on_epoch: OnEpoch, stopper: keras.callbacks.EarlyStopping, course: Course) -> None:
        super().__init__()
        self.on_epoch = on_epoch
        self.stopper = stopper
        self.course = course

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Report the epoch, unless the trial failed in it."""
        course = self.course
        if course.failure is not None:
            return
        # Keras' own name for it is also that of the hyperparameter, which stands for the rate at the beginning.
        row = {"lr" if name == RATE else name: float(value) for name, value in (logs or {}).items()}
        course.history.append(row)
        course.best_epoch = int(self.stopper.best_epoch)
        now = learning_rate(self.model)
        if now != row["lr"]:
            course.events.append(f"learning rate {row['lr']:.3g} -> {now:.3g} after epoch {epoch + 1}")
        if self.stopper.stopped_epoch:
            best, monitor = self.stopper.best_epoch + 1, self.stopper.monitor
            course.events.append(f"early stop after epoch {epoch + 1}: {monitor} was best in epoch {best}")
        course.over = bool(self.model.stop_training) or epoch + 1 == self.params["epochs"]
        try:
            course.pruned = bool(self.on_epoch(epoch, dict(row))) and not course.over
        except BaseException as error:  # `fit` raises it again once the best weights are back
            course.raised = error
        if course.pruned or course.raised:
            self.model.stop_training = True


class Progressing(keras.callbacks.Callback):
    """Takes training up from a progress, and saves the progress from time to time; comes last.

    An epoch is saved after it was reported: what was reported twice after a kill is an epoch that is trained again, bit
    by bit the same on a CPU.

    Args:
        rememberers: callbacks before this one, by a name, and the attributes that they go by; ``stopper`` is the early
            stopping, which has the best weights.
        began: when training would have begun without interruptions.
    """

    def __init__(
        self,
        spec: FitSpec,
        rememberers: Mapping[str, tuple[keras.callbacks.Callback, Sequence[str]]],
        progress: Progress | None,
        began: float,
        course: Course,
        averaging: Averaging,
    ) -> None:
        super().__init__()
        self.averaging = averaging
        self.spec = spec
        self.rememberers = rememberers
        self.stopper = rememberers["stopper"][0]
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
        self.averaging.leave()
        due = time.monotonic() - self.saved_at >= self.due_s or self.course.raised is not None
        keep = self.spec.checkpoint
        due = due or (self.spec.keeps_end and self.course.over)
        if keep is None or not due or self.course.failure is not None or self.course.pruned:
            return
        began = time.monotonic()
        try:
            keep.save(pack(self._progress()))
        except OSError as error:  # a full disk is no reason to end a training that needs none
            self.course.note(f"progress could not be saved: {error}")
        self.saved_at = time.monotonic()
        self.due_s = max(SAVE_EVERY_S, (self.saved_at - began) / SAVE_SHARE)

    def _progress(self) -> Progress:
        remembered = {
            name: {attribute: as_json(getattr(callback, attribute)) for attribute in attributes}
            for name, (callback, attributes) in self.rememberers.items()
        }
        return Progress(
            identity=self.spec.identity,
            weights=[np.array(variable) for variable in self.model.variables],
            optimizer=[np.array(variable) for variable in self.model.optimizer.variables],
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
    variables = (*model.variables, *model.optimizer.variables)
    for variable, value in zip(variables, (*progress.weights, *progress.optimizer), strict=True):
        variable.assign(value)
    if begins_with != progress.base_rate:
        model.optimizer.learning_rate = learning_rate(model) * begins_with / progress.base_rate


def as_json(value: Any) -> int | float | None:
    """A count as it is, a metric as a float."""
    return value if value is None or isinstance(value, int) else float(value)


def learning_rate(model: keras.Model) -> float:
    """The optimizer's present learning rate."""
    return float(model.optimizer.learning_rate)
