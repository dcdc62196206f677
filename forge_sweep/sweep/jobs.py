"""One training as a train job: a value that a worker can be handed, the progress that it reports, and its outcome.

Progress comes back over one channel, one `Progress` per epoch, and `Monitor` is the one place that handles it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from forge_sweep import exports, predictions, training
from forge_sweep.bundle import Bundle, choose_golden, measure
from forge_sweep.bundle.ensemble import Ensemble
from forge_sweep.bundle.files import replace_whole
from forge_sweep.checks import findings
from forge_sweep.checks.findings import Finding
from forge_sweep.errors import BundleError, TrialFailed
from forge_sweep.experiment import Experiment, Params
from forge_sweep.study import Asked
from forge_sweep.sweep.budget import CLOCKS, Account, Clocks
from forge_sweep.sweep.context import BudgetOver, Context, Interrupted, rank, stop_if_asked
from forge_sweep.task.words import figure
from forge_sweep.tracking import FIRST_EPOCH, Run
from forge_sweep.trial import Rows, TrialResult
from forge_sweep.workers import Say

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

STOP = "stop"  # Answer to a progress: end the training in order, with a checkpoint saved; it will go on later
ENOUGH = "enough"  # Answer to a progress: this epoch is the last one, and the training counts as finished


class Stopped(BaseException):
    """The training was told to `STOP`. No `Exception`: nothing in a training may take it for its own failure."""


@dataclass(frozen=True)
class Progress:
    """How far a train job is. Seconds are those of the job, not of its trial."""

    seconds: float = 0.0  # wall clock
    cpu_s: float = 0.0  # of its process
    epoch: int | None = None  # 0-based, that was completed; None where another event is reported
    part: str = ""  # of several trainings that are the epochs of the job: ``epoch`` is one within it
    metrics: dict[str, float] = field(default_factory=dict)  # of that epoch
    behind: int = 0  # epochs that were there already when the job began, and are reported again
    measured: dict[str, float] = field(default_factory=dict)  # of the model before its training; in a report of its own
    checkpoint: bytes | None = None  # for the driver to keep, from a job on another machine
    ended: bool = False  # the job is over, however it ended


@dataclass(frozen=True)
class Outcome:
    """A `TrialResult` without its model, which stays where it was trained."""

    state: Literal["finished", "pruned"]
    value: float  # the objective at the best epoch
    metrics: dict[str, float]  # on validation, at the best epoch
    epochs: int  # 0 for a baseline; of a trial of several trainings how many
    best_epoch: int  # 0-based
    seconds: float  # wall clock
    batch_size: int  # rows per gradient step, as trained
    events: tuple[str, ...]
    threshold: float  # chosen on validation
    weights: str = ""  # `Bundle.weights_sha256`
    halvings: int = 0  # how often the batch was halved because memory ran out
    precision: str = "float32"  # that it was trained in
    findings: tuple[Finding, ...] = ()  # see `checks.diagnose`
    shares: dict[str, float] = field(default_factory=dict)  # of the time, such as ``cost/setup_share``
    loss: float | None = None  # on the training rows at the best epoch; None for a baseline
    ended_after: int | None = None  # epochs after which `ENOUGH` ended what would have gone on
    predictions: bytes | None = field(default=None, repr=False)  # of the validation rows; see `forge_sweep.predictions`
    measured: dict[str, float] = field(default_factory=dict)  # `Experiment.measures`; of a finished one
    longest: int = 0  # epochs that its best one was chosen among, of several trainings in the longest
    out_of_fold: np.ndarray | None = field(default=None, repr=False, compare=False)  # of a model that is kept

    @property
    def figures(self) -> dict[str, float]:
        """Metrics and measures by name: what may be an objective."""
        return {**self.metrics, **self.measured}

    @property
    def tags(self) -> dict[str, str]:
        """What `forge_sweep.reproduce` needs to know of it, besides parameters and seed."""
        known = {"forge.events": "; ".join(self.events), "forge.batch_size": str(self.batch_size)}
        known |= findings.tags(self.findings)
        known |= {} if self.precision == "float32" else {"forge.precision": self.precision}
        known |= {} if self.ended_after is None else {"forge.ended_after": str(self.ended_after)}
        return {**known, "forge.weights_sha256": self.weights, "forge.halvings": str(self.halvings)}

    @classmethod
    def of(cls, result: TrialResult, rows: str = "") -> Outcome:
        """The figures of a result, and its predictions where the ``rows`` have a fingerprint: then they are kept."""
        return cls(
            state=result.state,
            value=result.value,
            metrics=result.metrics,
            epochs=len(result.history),
            best_epoch=result.best_epoch,
            seconds=result.seconds,
            batch_size=result.batch_size,
            events=result.events,
            threshold=result.bundle.threshold,
            weights=result.bundle.weights_sha256,
            halvings=result.halvings,
            precision=result.precision,
            findings=result.findings,
            shares=result.shares,
            loss=result.history[result.best_epoch].get("loss") if result.history else None,
            longest=result.longest or len(result.history),
            predictions=predictions.pack(result.scores, rows) if rows and result.scores is not None else None,
        )

    def summary(self, objective: str, first_epoch: int) -> dict[str, float]:
        """What every training that ended logs, a network's or a tree's, so that all runs sort together.

        ``best_val_auc`` and so on are those of the model that is kept; the curves of the same name end where the
        training did. Of a tree there is one value, which stands under both names.
        """
        figures = {f"best_{name}": value for name, value in self.metrics.items()} | {f"best_{objective}": self.value}
        figures |= self.measured
        if not self.epochs:
            return {**self.metrics, **figures}
        return {**figures, **self.shares, "best_epoch": self.best_epoch + first_epoch, "epochs_run": self.epochs}


def infeasible(experiment: Experiment, outcome: Outcome) -> TrialFailed | None:
    """What a trained model fails with that is above a limit of ``[constraints]``; None where it keeps all."""
    limits = experiment.constraints
    if not (said := limits.missed(outcome.measured)):
        return None
    scored = f"{experiment.objective.metric} is {figure(outcome.value)}"
    return TrialFailed("infeasible", f"{said}; {scored}", excess=limits.excess(outcome.measured))


def of_baseline(context: Context, result: TrialResult, folder: Path | None = None) -> Outcome:
    """The outcome of a baseline, measured where models are; ``folder``: where its bundle was saved."""
    outcome, golden = Outcome.of(result, context.kept_rows), context.dataset.learned_from.features
    return dataclasses.replace(outcome, measured=_measured(context.experiment, result.bundle, golden, folder))


def _measured(experiment: Experiment, bundle: Bundle, golden: pd.DataFrame, folder: Path | None) -> dict[str, float]:
    """What is limited or an objective, of a model in the form in which it would be registered."""
    if not (wanted := experiment.measures):
        return {}
    if isinstance(bundle.model, Ensemble) and bundle.kinds[0] == "network" and experiment.averaged == 1:
        one = bundle.model.members[0]  # of a trial's folds, in whose place one network would be registered
        bundle, folder = dataclasses.replace(bundle, model=one.model, preprocessor=one.preprocessor), None
    inside = experiment.model.preprocessing == "in_model" and bundle.kind == "network"
    return measure(bundle, wanted, choose_golden(golden), folder, exports.write_raw if inside else None)


@dataclass(frozen=True, eq=False)
class TrainJob:
    """One network to train."""

    run: Callable[..., TrialResult]  # `trial.run`, or what stands in its place
    experiment: Experiment
    rows: Rows  # arrays for a process that has no dataset
    params: Params
    seed: int
    checkpoint: training.Checkpoint | None
    deadline_s: float | None = None  # after which it fails as ``time-out``
    halvings: int = 0  # how often memory ran out before
    keep: Path | None = None  # folder for the bundle, where it is wanted
    needed: bool = True  # the bundle; else a pruned training keeps none, and one that cannot be kept is no failure
    golden: pd.DataFrame | None = None  # raw rows that the bundle is tried on, and measured with
    clocks: Clocks = CLOCKS
    kept_rows: str = ""  # fingerprint of the validation rows, where their predictions are kept
    measures_first: bool = False  # the model before its training, too: see `Experiment.prunes_by_measures`

    def __call__(self, say: Say) -> Outcome:
        """Train.

        ``say`` is told each `Progress` and answers to an epoch whether to stop as pruned, `STOP` or `ENOUGH`.

        Raises:
            Stopped: that was the answer.
        """
        began, cpu_began = self.clocks.wall(), self.clocks.cpu()
        enough = False

        def report(**news: Any) -> Any:
            return say(Progress(self.clocks.wall() - began, self.clocks.cpu() - cpu_began, **news))

        def on_inner(part: str, epoch: int, metrics: dict[str, float]) -> None:
            if report(part=part, epoch=epoch, metrics=metrics) == STOP:
                raise Stopped

        def on_epoch(epoch: int, metrics: dict[str, float]) -> bool:
            nonlocal enough
            answer = report(epoch=epoch, metrics=metrics)
            if answer == STOP:
                raise Stopped
            enough = answer == ENOUGH
            return bool(answer)

        def on_built(bundle: Bundle) -> None:
            assert self.golden is not None
            report(measured=_measured(self.experiment, bundle, self.golden, None))

        folded, more = self.experiment.data.split.folds > 1, dict[str, Any]()
        if self.experiment.trainings > 1:
            more = {"on_inner": on_inner, "final": self.needed and self.keep is not None}
        if self.measures_first:
            more["on_built"] = on_built
        try:
            result = self.run(
                self.experiment,
                self.rows,
                self.params,
                self.seed,
                on_epoch,
                checkpoint=self.checkpoint,
                deadline_s=self.deadline_s,
                halvings=self.halvings,
                on_resume=lambda epochs: report(behind=epochs),
                **more,
            )
            outcome = Outcome.of(result, self.kept_rows)
            if enough and outcome.state == "pruned":  # to the training both are one
                events = (*outcome.events, f"ended after epoch {outcome.epochs}, for the time of the whole sweep")
                outcome = dataclasses.replace(outcome, state="finished", events=events, ended_after=outcome.epochs)
            if self.keep is not None and (self.needed or outcome.state == "finished"):
                assert self.golden is not None
                with contextlib.nullcontext() if self.needed else contextlib.suppress(BundleError, OSError):
                    result.bundle.save(self.keep, self.golden)
                if folded:
                    outcome = dataclasses.replace(outcome, out_of_fold=result.repeated)
            if self.experiment.measures and outcome.state == "finished":
                assert self.golden is not None
                measured = _measured(self.experiment, result.bundle, self.golden, self.keep)
                outcome = dataclasses.replace(outcome, measured=measured)
            return outcome
        except TrialFailed as failure:
            if failure.failure == "out-of-memory":
                training.forget()
            raise
        finally:
            training.release()
            with contextlib.suppress(Exception):  # nobody may listen any more
                report(ended=True)


@dataclass(eq=False)
class Monitor:
    """Handles the progress of one training; called in the process of the sweep, with each `Progress`.

    What goes wrong in here is kept apart from failures of the training. A wish to stop is answered first: the training
    saves its checkpoint. Nothing prunes a training of the confirmation or of an audit: nothing was asked of the study.
    One of the confirmation ends after the ``epochs`` that its trial had, where `ENOUGH` ended that one.
    """

    context: Context
    run: Run
    asked: Asked | None = None
    account: Account | None = None
    epochs: int | None = None
    checkpoint: training.Checkpoint | None = None  # keeps the state of a job on another machine
    outcome: Outcome | None = None  # once the training ended with a score
    wish: Interrupted | None = None  # to stop
    error: Exception | None = None  # went wrong in here
    seen: dict[int, float] = field(default_factory=dict)  # the objective by 0-based epoch
    measured: dict[str, float] = field(default_factory=dict)  # of the model before its training

    def __call__(self, progress: Progress) -> bool | str | None:
        """Log an epoch and answer whether to prune, `STOP` or `ENOUGH`; to a checkpoint, why it cannot be kept."""
        if progress.checkpoint is not None:
            assert self.checkpoint is not None
            try:
                self.checkpoint.save(progress.checkpoint)
            except OSError as error:
                return str(error)
            return None
        if self.account is not None:
            self.account.charge(progress.seconds, progress.cpu_s, behind=progress.behind, ended=progress.ended)
        self.measured |= progress.measured
        if progress.epoch is None:
            return None
        if not progress.part:
            self.seen[progress.epoch] = progress.metrics[self.context.experiment.objective.metric]
        try:
            stop_if_asked(self.context)
            if progress.part:
                self._within(progress.part, progress.epoch, progress.metrics)
                return None
            answer: bool | str = self.epochs is not None and progress.epoch + 1 >= self.epochs and ENOUGH
            if self.asked is not None:
                answer = self._report(self.asked, progress.epoch, progress.metrics)
            # Last: a trial that another process runs by now gets no point twice.
            self.run.log_epoch(progress.epoch + self.context.first_epoch, progress.metrics)
            return answer
        except Interrupted as wish:
            self.wish = wish
            return STOP
        except Exception as error:
            self.error = error
            raise

    def _within(self, part: str, epoch: int, metrics: dict[str, float]) -> None:
        """An epoch of one fold or rung: its own curves, and no word of the pruner's, which judges whole ones."""
        if self.asked is not None:
            at = {"number": self.asked.number, "part": part, "epoch": epoch + FIRST_EPOCH}
            self.context.tell("epoch", **at, metrics=metrics)
            self.context.budget.went_on(self.asked.number)
            if self.context.budget.is_over():
                raise BudgetOver
        named = {f"{part}/{name}": value for name, value in metrics.items()}
        self.run.log_epoch(epoch + self.context.first_epoch, named)

    def _report(self, asked: Asked, epoch: int, metrics: dict[str, float]) -> bool | str:
        context, several = self.context, self.context.experiment.trainings > 1
        step = {"part": epoch + FIRST_EPOCH} if several else {"epoch": epoch + FIRST_EPOCH}
        context.tell("part" if several else "epoch", number=asked.number, metrics=metrics, **step)
        value = metrics[context.experiment.objective.metric]
        objective, known = context.experiment.objective, {**metrics, **self.measured}
        further = {name: known[name] for name in objective.names[1:] if name in known}
        prune = context.study.report(asked.number, epoch, value, further)
        context.budget.completed(asked.number, epoch)
        if prune or epoch + 1 >= context.experiment.steps.epochs:
            return prune
        best = min(self.seen.values(), key=functools.partial(rank, context))
        if not several and context.budget.is_enough(asked.number, best):  # a mean over fewer folds is no result
            why = "another one would leave no time to confirm it (study.total_s)"
            context.inform(f"trial {asked.number} ends with epoch {epoch + FIRST_EPOCH}: {why}")
            return ENOUGH
        if context.budget.is_over():
            raise BudgetOver
        return False


# Jobs on another machine: the checkpoint travels with the job and back with its progress, the bundle with the outcome.
# Processes of this machine write to the driver's folders directly and need none of this.


@dataclass(frozen=True)
class _SentCheckpoint:
    """A checkpoint that the driver keeps; see `training.Checkpoint`."""

    say: Say
    content: bytes | None

    def load(self) -> bytes | None:
        return self.content

    def save(self, content: bytes) -> None:
        if error := self.say(Progress(checkpoint=content)):
            raise OSError(error)


@dataclass(frozen=True, eq=False)
class RemoteJob:
    """A train job below a temporary folder of whatever machine it comes to, with what its checkpoint held."""

    job: TrainJob
    content: bytes | None

    @classmethod
    def of(cls, job: TrainJob) -> RemoteJob:
        """A job of the driver, made to travel."""
        content = None if job.checkpoint is None else job.checkpoint.load()
        return cls(dataclasses.replace(job, checkpoint=None), content)

    def __call__(self, say: Say) -> tuple[Outcome, bytes]:
        """Train; gives the outcome, and the bundle as an archive where one is to be kept."""
        keep = self.job.keep
        with tempfile.TemporaryDirectory(prefix="forge-sweep-") as name:
            kept = None if keep is None else Path(name) / keep.name
            job = dataclasses.replace(self.job, checkpoint=_SentCheckpoint(say, self.content), keep=kept)
            outcome = job(say)
            return outcome, b"" if kept is None or not kept.is_dir() else pack(kept)


def pack(folder: Path) -> bytes:
    """The files of a folder as a zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return file.getvalue()


def unpack(packed: bytes, folder: Path) -> None:
    """Write a packed bundle to a folder, whole or not at all. A bundle that stands there is replaced."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(packed))
    except zipfile.BadZipFile as error:
        raise BundleError(f"what came back for {folder} is not an archive: {error}") from error

    def write(temporary: Path) -> None:
        for name in archive.namelist():
            if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
                raise BundleError(f"the archive for {folder} holds {name!r}, which is not a file of a bundle")
            (temporary / name).write_bytes(archive.read(name))

    with archive:
        replace_whole(folder, write)
