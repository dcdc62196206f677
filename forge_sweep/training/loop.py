"""Fitting one network."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from forge_sweep.errors import TrialFailed
from forge_sweep.task import Direction, Task
from forge_sweep.training import checkpoint
from forge_sweep.training.checkpoint import Checkpoint, Progress
from forge_sweep.training.data import TrainingData, check_data, row_weights
from forge_sweep.training.failures import classify
from forge_sweep.training.validation import Validation

if TYPE_CHECKING:
    import keras

    from forge_sweep.training.callbacks import Course
    from forge_sweep.training.epoch import CompiledEpoch

OnEpoch = Callable[[int, dict[str, float]], bool]
"""Called after each epoch with its number, from 0, and its logs (``loss``, ``val_loss``, ``val_auc``, ..., and the
learning rate as ``lr``); True stops the trial as pruned, unless this epoch was its last one anyway."""


OnResume = Callable[[int], None]
"""Called with the number of epochs that a fit which was cut off has behind it."""


LEAST_RATE = 1e-6
"""Learning rate below which no plateau halves it."""


def begin_anew(epochs: int) -> None:
    """Nobody wants to know how many epochs were there already."""


@dataclass(frozen=True)
class FitSpec:
    """How long and by which metric a network is trained.

    Attributes:
        epochs: most epochs.
        patience: epochs without improvement before training stops.
        batch_size: rows per gradient step.
        monitor: the metric that decides on the best epoch, such as ``val_auc``.
        direction: whether more or less of it is better.
        schedule: ``plateau`` halves the learning rate, down to `LEAST_RATE`, after half of ``patience`` epochs (rounded
            up) without improvement; ``none`` leaves it as it is.
        deadline_s: seconds from the start of the fit after which it fails as ``time-out``.
        checkpoint: where progress is kept, from which the same fit goes on after it was cut off; None keeps nothing.
        identity: names this fit among all; a checkpoint of another one is not used.
        seed: decides the order of the rows in each epoch, 0 to 2**32 - 1, unless ``model.fit`` has to be used, which
            shuffles as the backend's random state has it; drawn from Python's random state by default, which
            ``training.seed_everything`` sets.
    """

    epochs: int
    patience: int
    batch_size: int
    monitor: str
    direction: Direction
    schedule: Literal["plateau", "none"] = "plateau"
    deadline_s: float | None = None
    checkpoint: Checkpoint | None = None
    identity: str = ""
    seed: int | None = None


@dataclass(frozen=True)
class FitResult:
    """What a fit gave, besides the weights in the model.

    Attributes:
        state: ``pruned`` where ``on_epoch`` stopped what would have gone on.
        history: the logs of every epoch, in order.
        best_epoch: 0-based epoch whose weights the model has now.
        seconds: wall clock, over all attempts where it was taken up again.
        events: what happened on the way, such as ``learning rate 0.001 -> 0.0005 after epoch 12``; epochs
            count from 1 in them.
        batch_size: rows per gradient step, as trained; see `trainable_batch_size`.
    """

    state: Literal["finished", "pruned"]
    history: tuple[dict[str, float], ...]
    best_epoch: int
    seconds: float
    events: tuple[str, ...]
    batch_size: int


def fit(
    model: keras.Model,
    task: Task,
    data: TrainingData,
    spec: FitSpec,
    on_epoch: OnEpoch,
    *,
    on_resume: OnResume = begin_anew,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> FitResult:
    """Train a compiled network and leave its best weights in it.

    Whichever way training ends, by its last epoch, early stopping or pruning, the weights of the best epoch by
    ``spec.monitor`` are restored. Dropout follows the backend's random state, and shuffling ``spec.seed``: call
    ``training.seed_everything`` before the model is built for the same fit again.

    On TensorFlow an epoch is one compiled function (see `epoch.CompiledEpoch`). What it cannot do goes through
    ``model.fit``, with an event that says why; see `obstacle`.

    A fit that was cut off goes on from ``spec.checkpoint``, after the epochs that are in it were reported once more to
    whoever may have lost them. With the compiled epoch on a CPU, weights and logs are those of a fit that was not cut
    off, bit by bit; ``model.fit`` goes on with another order of the rows.

    Args:
        model: a compiled Keras model.
        task: what is predicted; scores every epoch.
        data: arrays for training and validation.
        spec: how to train.
        on_epoch: called once per epoch, after early stopping has seen it. What it raises, KeyboardInterrupt and the
            like included, stops training cleanly, with its progress saved, and is raised again from here. Ctrl-C at any
            other time passes through at once, without the best weights.
        on_resume: called once, before the epochs of a checkpoint are reported again, with their number.
        callbacks: more of Keras' callbacks; they see the logs of `Validation` and run before ``on_epoch`` is called.
            Where a fit is taken up again they begin anew.

    Raises:
        TrialFailed: ``diverged``, ``time-out``, ``out-of-memory``, ``data``, or ``code`` with what is wrong. Nothing is
            trained where the monitor does not exist or cannot be computed on these validation rows.
    """
    from forge_sweep.training.callbacks import Course

    course = Course()
    progress = checkpoint.find(spec.checkpoint, spec.identity, course.events)
    began = time.monotonic() - (0.0 if progress is None else progress.seconds)
    try:
        validate = Validation(task, data.x_valid, data.y_valid)
        check_data(data)
        check_monitor(spec.monitor, validate(model))
        batch_size = trainable_batch_size(model, len(data.y_train), spec.batch_size, course.events)
        if progress is not None:
            on_resume(len(progress.history))
            _replay(progress, course, on_epoch)
        if course.over or course.pruned:
            assert progress is not None
            model.set_weights(list(progress.best))
        else:
            listed = _callbacks(spec, validate, on_epoch, course, began, callbacks, progress)
            _train(model, data, spec, batch_size, listed, course)
    except Exception as error:
        raise course.raised or classify(error) from error
    if reason := course.raised or course.failure:
        raise reason
    return FitResult(
        state="pruned" if course.pruned else "finished",
        history=tuple(course.history),
        best_epoch=course.best_epoch,
        seconds=time.monotonic() - began,
        events=tuple(course.events),
        batch_size=batch_size,
    )


def _replay(progress: Progress, course: Course, on_epoch: OnEpoch) -> None:
    """Report the epochs of a progress again; only the answer to the last one may not have been heard before."""
    course.history[:] = progress.history
    course.events[:] = [*progress.events, f"taken up again after epoch {len(progress.history)}"]
    course.best_epoch, course.over = progress.best_epoch, progress.over
    try:
        answers = [on_epoch(epoch, dict(row)) for epoch, row in enumerate(progress.history)]
    except BaseException as error:
        course.raised = error
        raise
    course.pruned = bool(answers[-1]) and not course.over


def check_monitor(monitor: str, before: dict[str, float]) -> None:
    """Raise TrialFailed unless the monitor will be in the logs and has a value.

    Args:
        monitor: the metric that decides on the best epoch.
        before: validation metrics of the untrained network.
    """
    known = ["loss", *before]
    if monitor not in known:
        hint = "set objective.metric to one of these"
        raise TrialFailed("code", f"{monitor} is not among the logs, which are {', '.join(known)}", hint=hint)
    if np.isfinite(before.get(monitor, 0.0)):
        return
    if not np.isfinite(before["val_loss"]):
        hint = "scale the features: set preprocessing.scaler"
        raise TrialFailed("diverged", f"val_loss is {before['val_loss']} before training", hint=hint)
    hint = "give validation more rows under [data.split], or set another objective.metric"
    raise TrialFailed("data", f"{monitor} is not defined on the validation rows (is there one class only?)", hint=hint)


def trainable_batch_size(model: keras.Model, rows: int, batch_size: int, events: list[str]) -> int:
    """The batch size, or the next greater one where a batch of one row would reach a BatchNormalization.

    A batch of one row has no variance: every unit is normalised to its offset, the step learns nothing, and the moving
    variance is drawn towards 0. Keras' shuffled arrays cannot drop the last batch, and leaving a row out for good would
    change the data; one row more per batch changes the least. Smaller batches than usual with two rows or more are left
    as they are.

    Args:
        model: the network; without BatchNormalization nothing is changed.
        rows: train rows.
        batch_size: what was asked for.
        events: a change is added here.

    Raises:
        TrialFailed: there is one row only.
    """
    from keras.layers import BatchNormalization

    if not any(isinstance(layer, BatchNormalization) for layer in model.layers):
        return batch_size
    if rows < 2:
        raise TrialFailed("data", "1 train row, batch normalisation needs 2 or more", hint="give train more rows")
    fitting = next(size for size in range(batch_size, batch_size + rows + 1) if size > 1 and rows % size != 1)
    if fitting != batch_size:
        events.append(f"batch size {batch_size} -> {fitting}: a batch of one row cannot be normalised")
    return fitting


def _callbacks(
    spec: FitSpec,
    validate: Validation,
    on_epoch: OnEpoch,
    course: Course,
    began: float,
    more: Sequence[keras.callbacks.Callback],
    progress: Progress | None,
) -> list[keras.callbacks.Callback]:
    """The callbacks in the order in which they have to run.

    No improvement is too small to count, for stopping and for the schedule alike.
    """
    from keras.callbacks import EarlyStopping, ReduceLROnPlateau

    from forge_sweep.training.callbacks import Deadline, Evaluate, Progressing, Report

    mode = "max" if spec.direction == "maximize" else "min"
    stopper = EarlyStopping(spec.monitor, patience=spec.patience, mode=mode, restore_best_weights=True)
    deadline = [] if spec.deadline_s is None else [Deadline(began, spec.deadline_s, course)]
    rememberers: dict[str, tuple[Any, tuple[str, ...]]] = {
        "stopper": (stopper, ("best", "best_epoch", "wait", "stopped_epoch"))
    }
    first = [Evaluate(validate, course), *deadline, stopper]
    if spec.schedule == "plateau":
        reducer = ReduceLROnPlateau(
            spec.monitor, factor=0.5, patience=-(-spec.patience // 2), mode=mode, min_delta=0.0, min_lr=LEAST_RATE
        )
        rememberers["reducer"] = (reducer, ("best", "wait", "cooldown_counter"))
        first.append(reducer)
    progressing = Progressing(spec.checkpoint, spec.identity, rememberers, progress, began, course)
    return [*first, *more, Report(on_epoch, stopper, course), progressing]


def obstacle(model: keras.Model, callbacks: Sequence[keras.callbacks.Callback]) -> str | None:
    """Why a model cannot be trained by the compiled epoch but by ``model.fit`` only; None where it can."""
    import keras

    from forge_sweep.training.callbacks import needs_batches

    if keras.config.backend() != "tensorflow":
        return f"the backend is {keras.config.backend()}"
    if model.run_eagerly:
        return "the model runs eagerly"
    if model.distribute_strategy.num_replicas_in_sync > 1:
        return "the model is spread over several devices"
    if any(getattr(type(model), name) is not getattr(keras.Model, name) for name in ("train_step", "fit")):
        return f"{type(model).__name__} trains in a way of its own"
    batchwise = [type(callback).__name__ for callback in callbacks if needs_batches(callback)]
    return f"{', '.join(batchwise)} wants to see every batch" if batchwise else None


def _train(
    model: keras.Model,
    data: TrainingData,
    spec: FitSpec,
    batch_size: int,
    callbacks: Sequence[keras.callbacks.Callback],
    course: Course,
) -> None:
    """Train what is left with the compiled epoch, or with ``model.fit`` and an event that says why."""
    seed = random.getrandbits(32) if spec.seed is None else spec.seed
    epochs = range(len(course.history), spec.epochs)
    why = obstacle(model, callbacks)
    if why is None:
        from forge_sweep.training.epoch import compiled_epoch

        _drive(model, compiled_epoch(model, data, batch_size, seed), epochs, callbacks)
        return
    course.note(f"trained by model.fit, not by the compiled epoch: {why}")
    if not model.optimizer.built:  # what is put back needs its variables
        model.optimizer.build(model.trainable_variables)
    model.fit(
        data.x_train,
        data.y_train,
        sample_weight=row_weights(data),
        batch_size=batch_size,
        initial_epoch=epochs.start,
        epochs=epochs.stop,
        callbacks=list(callbacks),
        shuffle=True,
        verbose=0,
    )


def _drive(
    model: keras.Model, epoch: CompiledEpoch, epochs: range, callbacks: Sequence[keras.callbacks.Callback]
) -> None:
    """What ``model.fit`` does around its epochs."""
    from keras.callbacks import CallbackList

    listed = CallbackList(
        list(callbacks), add_history=True, model=model, epochs=epochs.stop, steps=epoch.steps, verbose=0
    )
    model.stop_training = False
    listed.on_train_begin()
    logs: dict[str, float] = {}
    for number in epochs:
        model.reset_metrics()
        listed.on_epoch_begin(number)
        logs = epoch(number, listed)
        listed.on_epoch_end(number, logs)
        if model.stop_training:
            break
    model.optimizer.finalize_variable_values(model.trainable_weights)
    listed.on_train_end(logs)
