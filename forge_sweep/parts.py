"""A trial of several trainings: one for each fold, whose mean it is, or one for each rung on more and more rows."""

from __future__ import annotations

import dataclasses
import io
import statistics
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.bundle import Bundle
from forge_sweep.errors import TrialFailed
from forge_sweep.experiment import derived_seed
from forge_sweep.sources import Fold

if TYPE_CHECKING:
    from forge_sweep.training import Checkpoint, OnEpoch
    from forge_sweep.trial import TrialResult

OnInner = Callable[[str, int, dict[str, float]], None]
"""Called after each epoch of each training with its name, such as ``fold_1``, the epoch from 0 and its logs."""


def say_nothing(part: str, epoch: int, metrics: dict[str, float]) -> None:
    """Tell nobody of the epochs within a training."""


@dataclass(frozen=True)
class Part:
    """That a training is one of several of a trial.

    Attributes:
        only: train for so many epochs, whatever the validation rows say.
        rates: the learning rate of each epoch, in the place of a plateau's; empty for none.
    """

    only: int | None = None
    rates: tuple[float, ...] = ()


ONE_OF_SEVERAL = Part()

TrainOne = Callable[[Any, int, "OnEpoch", str, "float | None"], "TrialResult"]
"""Trains on the rows of one part with a seed, telling of each epoch, under the part's name, in so many seconds."""

Told = Callable[[Sequence["TrialResult"]], dict[str, float]]
"""What is told of a trial after the trainings that it had: the logs of an epoch."""


def go_on(epoch: int, metrics: dict[str, float]) -> bool:
    """Stop nothing."""
    return False


def train(
    folds: Sequence[Fold[Any]],
    one: TrainOne,
    kept: Checkpoints,
    seeds: Sequence[int],
    on_epoch: OnEpoch,
    on_inner: OnInner,
    deadline_s: float | None,
    *,
    word: str = "fold",
    told: Told | None = None,
) -> tuple[list[TrialResult], bool]:
    """Train one after the other, until all are or ``on_epoch`` says to stop; also whether it did.

    To whoever watches a trial, an epoch is one of them: ``on_epoch`` gets what ``told`` makes of those so far, by
    default `means`. A trial that was cut off goes on in the one that it was in.

    Raises:
        TrialFailed: one of them failed; its message begins with which, such as ``fold 2``, as ``word`` says.
    """
    results: list[TrialResult] = []
    spent = 0.0
    for number, (fold, seed) in enumerate(zip(folds, seeds, strict=True), start=1):
        name = f"{word}_{number}"

        def on_epoch_within(epoch: int, metrics: dict[str, float], name: str = name) -> bool:
            on_inner(name, epoch, metrics)
            return False

        left = None if deadline_s is None else deadline_s - spent
        try:
            if left is not None and left <= 0:
                raise TrialFailed("time-out", "")
            results.append(one(fold.rows, seed, on_epoch_within, name, left))
        except TrialFailed as failure:
            said, hint = f"{word} {number}: {failure.message}", failure.hint
            if failure.failure == "infeasible":  # whatever the rows are
                said = failure.message
            elif failure.failure == "time-out":  # alike, wherever the time ended
                said, hint = f"its {word}s took longer than {deadline_s:g} s together", "raise study.trial_timeout_s"
            known: dict[str, Any] = {"findings": failure.findings, "excess": failure.excess, "hint": hint}
            raise TrialFailed(failure.failure, said, **known) from failure
        spent += results[-1].seconds
        kept.finished(number)
        if on_epoch(number - 1, (told or means)(results)) and number < len(folds):
            return results, True
    return results, False


def seeds_of(seed: int, folds: Sequence[Fold[Any]]) -> list[int]:
    """Of the training of each fold, from that of the trial."""
    return [derived_seed(seed, "fold", number) for number in range(1, 1 + len(folds))]


def _at_best(result: TrialResult) -> dict[str, float]:
    """What it was scored by at its best epoch, the training loss included."""
    row = {**(result.history[result.best_epoch] if result.history else {}), **result.metrics}
    return {name: value for name, value in row.items() if name == "loss" or name.startswith("val_")}


def means(results: Sequence[TrialResult]) -> dict[str, float]:
    """The mean of what each was scored by at its best epoch."""
    rows = [_at_best(result) for result in results]
    return {name: statistics.fmean(row[name] for row in rows) for name in rows[0] if all(name in row for row in rows)}


def newest(results: Sequence[TrialResult]) -> dict[str, float]:
    """What the last one was scored by at its best epoch."""
    return _at_best(results[-1])


def climbed(results: Sequence[TrialResult], *, pruned: bool) -> TrialResult:
    """The result of a trial from those of its rungs: that of the highest one, after all of them."""
    last = results[-1]
    return dataclasses.replace(
        last,
        state="pruned" if pruned else "finished",
        history=tuple(newest(results[: n + 1]) for n in range(len(results))),
        best_epoch=len(results) - 1,
        seconds=sum(result.seconds for result in results),
        events=_events(results, "rung"),
        scores=None if pruned else last.scores,
        longest=len(last.history),
    )


def _events(results: Sequence[TrialResult], word: str) -> tuple[str, ...]:
    return tuple(f"{word} {n}: {event}" for n, result in enumerate(results, start=1) for event in result.events)


def combined(
    results: Sequence[TrialResult],
    folds: Sequence[Fold[Any]],
    targets: Sequence[np.ndarray],
    objective: str,
    origin: Mapping[str, Any],
    *,
    pruned: bool = False,
) -> TrialResult:
    """The result of a trial from those of its folds: means, predictions out of fold, and the average of the models.

    Args:
        results: of the folds that were trained, in order.
        folds: all of them.
        targets: (n,) or (n, units) of the validation rows of each fold, encoded.
        objective: the metric that is the value.
        origin: what the metadata of the model say besides those of its members.
        pruned: not all folds were trained.
    """
    first, history = results[0], tuple(means(results[: n + 1]) for n in range(len(results)))
    task, scores, threshold, repeated = first.bundle.task, None, first.bundle.threshold, None
    if not pruned:
        repeated = out_of_fold(folds, [r.scores for r in results if r.scores is not None])
        scores = repeated[0]
        threshold = task.best_threshold(out_of_fold(folds, targets)[0], scores)
    found: dict[str, Any] = {}
    for result in results:
        for each in result.findings:
            found.setdefault(each.code, each)
    metadata = {**first.bundle.metadata, **origin}
    last = history[-1]
    return dataclasses.replace(
        first,
        state="pruned" if pruned else "finished",
        value=last[objective],
        metrics={name: value for name, value in last.items() if name.startswith("val_")},
        history=history if first.history else (),
        best_epoch=len(history) - 1 if first.history else 0,
        seconds=sum(result.seconds for result in results),
        events=_events(results, "fold"),
        bundle=Bundle.ensemble(
            [result.bundle for result in results],
            [1 / len(results)] * len(results),
            threshold=threshold,
            metadata=metadata,
        ),
        findings=tuple(found.values()),
        shares={name: statistics.fmean(r.shares[name] for r in results) for name in first.shares},
        scores=scores,
        repeated=repeated,
        longest=max(len(result.history) for result in results),
    )


def out_of_fold(folds: Sequence[Fold[Any]], values: Sequence[np.ndarray]) -> np.ndarray:
    """What each row of `Dataset.judged` got in the folds that validated it, (repeats, n) or (repeats, n, units).

    No mean over repeats: that of several models is better than what one of them says, and than one that is trained
    again. ``values`` are those of the validation rows of each fold, the folds of one repeat after those of another.
    """
    rows = 1 + max(int(fold.at.max()) for fold in folds)
    repeats = sum(len(fold.at) for fold in folds) // rows
    found = np.empty((repeats, rows, *values[0].shape[1:]), values[0].dtype)
    each = len(folds) // repeats
    for number, (fold, its) in enumerate(zip(folds, values, strict=True)):
        found[number // each, fold.at] = its
    return found


def refit(results: Sequence[TrialResult]) -> Part:
    """For how long one model is trained on all rows: as many epochs as the best ones of the folds on average.

    A plateau cannot be seen there: the learning rate goes as in the fold whose number of epochs is the median.
    """
    epochs = [result.best_epoch + 1 for result in results]
    middle = results[epochs.index(statistics.median_high(epochs))]
    rates = tuple(row["lr"] for row in middle.history if "lr" in row)
    return Part(only=max(1, round(statistics.fmean(epochs))), rates=rates)


# One checkpoint for the trainings of a trial. One that ended is in it with its end: it is not trained again.


@dataclass(eq=False)
class Checkpoints:
    """The checkpoints of several trainings in one, which is written as a whole."""

    whole: Checkpoint | None
    contents: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        content = None if self.whole is None else self.whole.load()
        if content is None:
            return
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                self.contents = {name: archive.read(name) for name in archive.namelist()}
        except (zipfile.BadZipFile, EOFError, OSError):  # damaged: trained from the beginning
            self.contents = {}

    @property
    def done(self) -> int:
        """How many trainings are over."""
        return int(self.contents.get("done", b"0"))

    def of(self, name: str) -> Checkpoint | None:
        """The checkpoint of one training."""
        return None if self.whole is None else _Inner(self, name)

    def finished(self, number: int) -> None:
        """So many are over; written with the next one's progress, as what is trained in a moment is trained again."""
        self.contents["done"] = str(number).encode()

    def save(self) -> None:
        """Write all of them."""
        assert self.whole is not None
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in self.contents.items():
                archive.writestr(name, content)
        self.whole.save(file.getvalue())


@dataclass(frozen=True)
class _Inner:
    """One of them; see `training.Checkpoint`."""

    all: Checkpoints
    name: str

    def load(self) -> bytes | None:
        return self.all.contents.get(self.name)

    def save(self, content: bytes) -> None:
        self.all.contents[self.name] = content
        self.all.save()
