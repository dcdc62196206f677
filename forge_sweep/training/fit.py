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
from forge_sweep.training.data import TrainingData, Validation, check_data
from forge_sweep.training.failures import classify

if TYPE_CHECKING:
    import keras

    from forge_sweep.training.callbacks import Course
    from forge_sweep.training.loop import Epochs
    from forge_sweep.training.probe import Probe
    from forge_sweep.training.rates import Rates

OnEpoch = Callable[[int, dict[str, float]], bool]
"""Called after each epoch with its number, from 0, and its logs (``loss``, ``val_loss``, ``val_auc``, ..., and the
learning rate as ``lr``); True stops the trial as pruned, unless this epoch was its last one anyway."""

OnResume = Callable[[int], None]
"""Called with the number of epochs that a fit which was cut off has behind it."""

Schedule = Literal["constant", "coslog4", "cosine", "one_cycle", "reduce_on_plateau"]

LEAST_RATE = 1e-6
"""Learning rate below which no plateau halves it."""

ONE_CYCLE_WARMUP = 0.3
"""Share of the steps over which ``one_cycle`` rises unless something else is asked for."""


def begin_anew(epochs: int) -> None:
    """Ignore how many epochs were there already."""


@dataclass(frozen=True)
class FitSpec:
    """How long and by which metric a network is trained.

    Attributes:
        epochs: most epochs.
        patience: epochs without improvement before training stops.
        batch_size: rows per gradient step.
        monitor: the metric that decides on the best epoch, such as ``val_auc``; ``direction`` says which way.
        schedule: ``reduce_on_plateau`` halves the learning rate, down to `LEAST_RATE`, after half of ``patience``
            epochs (rounded up) without improvement; ``constant`` leaves it as it is; ``cosine`` and ``one_cycle``
            change it step by step over all epochs, see `rates`.
        warmup: share of the steps of all epochs over which the rate rises; by default `ONE_CYCLE_WARMUP` for
            ``one_cycle`` and 0 for the others.
        deadline_s: seconds from the start of the fit after which it fails as ``time-out``.
        checkpoint: where progress is kept, from which the same fit goes on after it was cut off; None keeps nothing.
        identity: names this fit among all; a checkpoint of another one is not used.
        seed: decides the order of the rows in each epoch, 0 to 2**32 - 1; drawn from Python's random state by default.
            Not used by ``model.fit`` (see `obstacle`), which shuffles as the backend's random state has it.
        only: epochs after which training ends whatever the validation rows say, with the weights of the last one: the
            schedule is still that of ``epochs``. None lets the best epoch decide.
        rates: in the place of a plateau's, the learning rate of each epoch, the last of them for those after it.
        keeps_end: whether the checkpoint gets the end as well, for a fit that is one of several.
    """

    epochs: int
    patience: int
    batch_size: int
    monitor: str
    direction: Direction
    schedule: Schedule = "reduce_on_plateau"
    deadline_s: float | None = None
    checkpoint: Checkpoint | None = None
    identity: str = ""
    seed: int | None = None
    warmup: float | None = None
    only: int | None = None
    rates: tuple[float, ...] = ()
    keeps_end: bool = False

    @property
    def warmup_share(self) -> float:
        """``warmup``, or the default of the schedule."""
        if self.warmup is None:
            return ONE_CYCLE_WARMUP if self.schedule == "one_cycle" else 0.0
        return self.warmup


@dataclass(frozen=True)
class FitResult:
    """What a fit gave, besides the weights in the model.

    Attributes:
        state: ``pruned`` where ``on_epoch`` stopped what would have gone on.
        history: the logs of every epoch, in order.
        best_epoch: 0-based epoch whose weights the model has now.
        seconds: wall clock, over all attempts where it was taken up again.
        events: what happened on the way, such as ``learning rate 0.001 -> 0.0005 after epoch 12`` (from 1).
        batch_size: rows per gradient step, as trained; see `trainable_batch_size`.
        probe: its samples and times; None where no epoch was left to train.
    """

    state: Literal["finished", "pruned"]
    history: tuple[dict[str, float], ...]
    best_epoch: int
    seconds: float
    events: tuple[str, ...]
    batch_size: int
    probe: Probe | None = None


def fit(
    model: keras.Model,
    task: Task,
    data: TrainingData,
    spec: FitSpec,
    on_epoch: OnEpoch,
    *,
    on_resume: OnResume = begin_anew,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    columns: Sequence[str] = (),
) -> FitResult:
    """Train a compiled network and leave the weights of its best epoch by ``spec.monitor`` in it.

    A fit that was cut off goes on from ``spec.checkpoint``, after the epochs that are in it were reported once more.
    With the compiled epoch on a CPU, weights and logs are those of a fit that was not cut off, bit by bit.

    Args:
        model: a compiled Keras model. For the same fit again call ``training.seed_everything`` before it is built.
        task: scores every epoch.
        data: arrays for training and validation.
        spec: how to train.
        on_epoch: see `OnEpoch`. What it raises, KeyboardInterrupt and the like included, stops training cleanly, with
            its progress saved, and is raised again from here. Ctrl-C at any other time passes through at once, without
            the best weights.
        on_resume: see `OnResume`; called before the epochs of a checkpoint are reported again.
        callbacks: more of Keras' callbacks; they see the logs of `Validation` and run before ``on_epoch`` is called.
            Where a fit is taken up again they begin anew. See also `Guard`.
        columns: names of the features, for what is said of them.

    Raises:
        TrialFailed: ``diverged``, ``time-out``, ``out-of-memory``, ``data``, or ``code`` with what is wrong. Nothing is
            trained where the monitor does not exist or cannot be computed on these validation rows. Its findings say
            where a number that is not finite came from.
    """
    from forge_sweep.training.callbacks import Course

    course, probe, compiled = Course(), None, None
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
            rates = _rates(model, spec, len(data.y_train), batch_size, course)
            from forge_sweep.training.probe import Probe

            probe = Probe(data, columns)
            listed = _callbacks(model, spec, rates, validate, on_epoch, course, began, callbacks, progress)
            listed.append(probe)
            epochs = range(len(course.history), spec.epochs if spec.only is None else min(spec.only, spec.epochs))
            if reason := obstacle(model, listed, data):
                course.note(f"trained by model.fit, not by the compiled epoch: {reason}")
                if not model.optimizer.built:  # what is put back needs its variables
                    model.optimizer.build(model.trainable_variables)
                from forge_sweep.training.feeding import fed

                rows = fed(data, batch_size)
                model.fit(**rows, initial_epoch=epochs.start, epochs=epochs.stop, callbacks=listed, verbose=0)
            else:
                from forge_sweep.training.loop import compiled_epochs

                seed = random.getrandbits(32) if spec.seed is None else spec.seed
                compiled = compiled_epochs(_kind(), model, data, batch_size, seed, rates)
                compiled.fit(epochs, listed)
                probe.waited_s = compiled.waited_s
    except Exception as error:
        raise course.raised or _after_overflow(error, probe, compiled) or classify(error) from error
    if course.raised is not None:
        raise course.raised
    if course.failure is not None:
        raise _explained(course.failure, probe, compiled)
    return FitResult(
        state="pruned" if course.pruned else "finished",
        history=tuple(course.history),
        best_epoch=course.best_epoch,
        seconds=time.monotonic() - began,
        events=tuple(course.events),
        batch_size=batch_size,
        probe=probe,
    )


def _after_overflow(error: Exception, probe: Probe | None, compiled: Epochs | None) -> TrialFailed | None:
    """The failure of a fit that broke off over weights that are not finite: PyTorch's cross-entropy refuses them."""
    if probe is None or isinstance(error, TrialFailed):
        return None
    from forge_sweep.training.replay import left_behind

    try:
        layer, _ = left_behind(probe)
    except Exception:  # variables that are gone with what failed
        return None
    probe.step += 1  # the one that broke off
    return _explained(TrialFailed("diverged", "loss is nan"), probe, compiled) if layer else None


def _explained(failure: TrialFailed, probe: Probe | None, compiled: Epochs | None) -> TrialFailed:
    """The failure with where the first number that is not finite came from, where that is what it failed of."""
    if failure.failure != "diverged" or probe is None:
        return failure
    from forge_sweep.training.replay import first_not_finite

    try:
        found = first_not_finite(probe, compiled).finding()
    except Exception:  # it explains a failure, and must not become another one
        return failure
    hint = f"{found.seen}; {found.fix}"
    return TrialFailed(failure.failure, failure.message, hint=hint, findings=[found])


def _replay(progress: Progress, course: Course, on_epoch: OnEpoch) -> None:
    """Report the epochs of a progress again; only the answer to the last one may be new."""
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
    """Raise TrialFailed unless the monitor is among the validation metrics of the untrained network, with a value."""
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

    A batch of one row has no variance: the step learns nothing, and the moving variance is drawn towards 0. Leaving
    the row out would change the data; one row more per batch changes the least. A change is added to ``events``.

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


def _rates(model: keras.Model, spec: FitSpec, rows: int, batch_size: int, course: Course) -> Rates | None:
    """How the learning rate goes from step to step; a note says where the optimizer follows a schedule of its own.

    Raises:
        TrialFailed: it follows one of its own, and another one is asked for.
    """
    from forge_sweep.training.rates import Rates, is_settable

    rates = Rates.of(spec, rows, batch_size)
    if not is_settable(model):
        seen = "the builder's optimizer follows a learning-rate schedule of its own"
        if rates is not None:
            hint = "remove schedule and warmup under [model.search], or build the optimizer with a number"
            raise TrialFailed("code", seen, hint=hint)
        if spec.schedule == "reduce_on_plateau":
            course.note(f"{seen}, which no plateau changes")
    return rates


def _callbacks(
    model: keras.Model,
    spec: FitSpec,
    rates: Rates | None,
    validate: Validation,
    on_epoch: OnEpoch,
    course: Course,
    began: float,
    more: Sequence[keras.callbacks.Callback],
    progress: Progress | None,
) -> list[keras.callbacks.Callback]:
    """The callbacks in the order in which they have to run; no improvement is too small to count."""
    from keras.callbacks import EarlyStopping, LearningRateScheduler

    from forge_sweep.training.callbacks import Averaging, Evaluate, Guard, LastEpoch, Progressing, Reduce, Report
    from forge_sweep.training.rates import Follow, is_settable

    mode = "max" if spec.direction == "maximize" else "min"
    kind = EarlyStopping if spec.only is None else LastEpoch
    stopper = kind(spec.monitor, patience=spec.patience, mode=mode, restore_best_weights=True)
    rememberers: dict[str, tuple[Any, tuple[str, ...]]] = {
        "stopper": (stopper, ("best", "best_epoch", "wait", "stopped_epoch"))
    }
    averaging = Averaging()
    first = [averaging, Evaluate(validate, course, began, spec.deadline_s), stopper]
    if rates is not None:
        first.insert(0, Follow(rates, rates.steps // spec.epochs))
    if spec.schedule == "reduce_on_plateau" and spec.rates and is_settable(model):
        first.insert(0, LearningRateScheduler(lambda epoch, _: spec.rates[min(epoch, len(spec.rates) - 1)]))
    elif spec.schedule == "reduce_on_plateau" and is_settable(model):
        reducer = Reduce(
            spec.monitor, factor=0.5, patience=-(-spec.patience // 2), mode=mode, min_delta=0.0, min_lr=LEAST_RATE
        )
        reducer.begins_after = 0 if rates is None else rates.warmup * spec.epochs // rates.steps
        rememberers["reducer"] = (reducer, ("best", "wait", "cooldown_counter"))
        first.append(reducer)
    progressing = Progressing(spec, rememberers, progress, began, course, averaging)
    guarded = [before := Guard(), *more, Guard(before)] if more else []
    return [*first, *guarded, Report(on_epoch, stopper, course), progressing]


def _kind() -> type[Epochs]:
    """The compiled epoch of the backend."""
    import keras

    if keras.config.backend() == "jax":
        from forge_sweep.training import epoch_jax

        return epoch_jax.CompiledEpoch
    from forge_sweep.training import epoch

    return epoch.CompiledEpoch


def obstacle(
    model: keras.Model, callbacks: Sequence[keras.callbacks.Callback], data: TrainingData | None = None
) -> str | None:
    """Why a model cannot be trained by the compiled epoch but by ``model.fit`` only; None where it can."""
    import keras

    from forge_sweep.training.callbacks import needs_batches

    backend = keras.config.backend()
    if backend == "torch":
        return f"the backend is {backend}"
    if model.run_eagerly or (backend == "jax" and not model.jit_compile):
        return "the model runs eagerly"
    spread = keras.distribution.distribution() is not None
    if spread or (backend == "tensorflow" and model.distribute_strategy.num_replicas_in_sync > 1):
        return "the model is spread over several devices"
    if any(getattr(type(model), name) is not getattr(keras.Model, name) for name in ("train_step", "fit")):
        return f"{type(model).__name__} trains in a way of its own"
    batchwise = [type(callback).__name__ for callback in callbacks if needs_batches(callback)]
    if batchwise:
        return f"{', '.join(batchwise)} wants to see every batch"
    if backend == "jax" and data is not None:
        from forge_sweep.training.epoch_jax import room

        return "the train rows have no room on the device" if room(model, data).streamed else None
    return None
