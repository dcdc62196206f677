"""Train a recorded run again, with its parameters, seed and threads, in a process of its own, and compare.

Nothing is checked out or installed: what differs between the record and here is listed.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from forge_sweep import baselines, environment, jsons, sources, tracking, training, trial, workers
from forge_sweep.bundle import Bundle
from forge_sweep.environment import NONE, UNKNOWN, Environment
from forge_sweep.errors import DataError, ExperimentError, InputError
from forge_sweep.experiment import Code, Dimension, Experiment, Params, Scalar, derived_seed, restore
from forge_sweep.experiment.code import from_files, is_own
from forge_sweep.sources import Dataset
from forge_sweep.tracking import CODE, SOURCE_CODE, Record, fetched, read_record
from forge_sweep.training import Setup, as_variables
from forge_sweep.trial import TrialResult
from forge_sweep.workers import Limits, ProcessWorkers, Say, Worker

__all__ = ["TOLERANCE", "Difference", "Reproduction", "Verdict", "commands", "read_record", "reproduce"]

TAG = "forge.reproduced"

TOLERANCE = 1e-3
"""Largest difference of a metric or a prediction that counts as the same, in proportion to its size above 1."""


@dataclass(frozen=True)
class Reproduction:
    """A run that was trained again; ``when`` is an ISO time, ``seconds`` are of the training alone."""

    run_id: str
    name: str
    verdict: Verdict
    differences: tuple[Difference, ...]
    when: str
    seconds: float

    @property
    def tag(self) -> str:
        """The verdict in one line, as it is written on the run."""
        count = len(self.differences)
        noun = "difference" if count == 1 else "differences"
        return f"{self.verdict.word} at {self.when}: {self.verdict.text}; {count or 'no'} {noun} to the record"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def reproduce(
    reference: str,
    *,
    store: Path = Path("mlruns"),
    root: Path | None = None,
    seed: int | None = None,
    tolerance: float = TOLERANCE,
    trust: bool = False,
) -> Reproduction:
    """Train a recorded run again and write the verdict on it.

    Args:
        reference: a run's id, ``models:/NAME/VERSION`` or ``models:/NAME@alias``.
        store: folder of the embedded stores.
        root: folder that the experiment's paths start from; default: the recorded one, else the working directory.
        seed: replaces the recorded one; the verdict is then not written.
        tolerance: see `TOLERANCE`.
        trust: run the code that was recorded of an own builder or source, where the one below ``root`` is another.

    Raises:
        InputError: there is no such run, it did not finish, or its data cannot be read.
        TrackingDown: the store cannot be reached.
        TrialFailed: the training failed this time.
    """
    record = read_record(reference, store)
    recorded = Path(record.root) if record.root and Path(record.root).is_dir() else Path()
    experiment = restore(record.experiment, root=recorded if root is None else root)
    if is_own(experiment.model.builder) and experiment.code is None and not record.params.get("baseline"):
        experiment = experiment.model_copy(update={"code": _recorded_code(experiment, record, trust)})
    if is_own(experiment.data.source) and experiment.source_code is None:
        found_code = _recorded_code(experiment, record, trust, source=True)
        experiment = experiment.model_copy(update={"source_code": found_code})
    planned = plan(record, experiment, seed)
    dataset = _rows(experiment)
    here = environment.capture(experiment.root, experiment.backend)
    differences = compare(record, experiment, planned, dataset, here)
    if record.model is None:
        again = train_again(Order(experiment, planned))
    else:
        with fetched(record.model, store) as folder:
            again = train_again(Order(experiment, planned, folder))
    verdict = judge(record, planned, again, tolerance)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    found = Reproduction(record.run_id, record.name, verdict, differences, when, again.seconds)
    if seed is None:
        name = when.replace(":", "").replace("+0000", "Z")
        tracking.write_verdict(record, {TAG: found.tag}, jsons.plain(found.to_dict()), name, store)
    return found


def _rows(experiment: Experiment) -> Dataset:
    if experiment.source_code is not None:
        training.select_backend(experiment.backend)  # the user's module may import Keras
    try:
        return sources.load(experiment.data, root=experiment.root, seed=experiment.seed, code=experiment.source_code)
    except DataError as error:
        error.hint += "; if the data moved, give the folder that its path starts from: --root FOLDER"
        raise


def _recorded_code(experiment: Experiment, record: Record, trust: bool, *, source: bool = False) -> Code:
    """The code of an own builder, or of an own source, as its sweep recorded it."""
    builder = experiment.data.source if source else experiment.model.builder
    digest = str(experiment.data.code if source else experiment.model.code)
    module, _, function = builder.partition(":")
    seen = f"{builder} in {experiment.root} is not what run {record.run_id} was trained with (digest {digest[:12]})"
    back = f"put the source back ({SOURCE_CODE if source else CODE}/ of run {record.parent_id} in MLflow has it)"
    try:
        code = from_files(module, function, record.source_code if source else record.code, source=source)
    except ExperimentError:
        code = None
    if code is None or code.digest != digest:
        raise InputError(f"{seen}, and its sweep has no record of that", hint="put the source back, or give its --root")
    if not trust:
        raise InputError(seen, hint=f"{back}, or give --trust to run it from there")
    return code


# What was trained


@dataclass(frozen=True)
class Plan:
    """What is trained again.

    Attributes:
        baseline: its kind; "" for a network.
        params: every hyperparameter of a network, or of tuned trees.
        seed: of the training, as are the one on record and the one that follows from the experiment's.
        halvings: how often the batch was halved when memory ran out.
        epochs: after which it was stopped, as pruned or for the time of the sweep; None for one that ran to its end.
        threads: that one operation could use; 0 for all cores.
        precision: that it was trained in, which follows from the GPU where the experiment has ``auto``.
        final: whether its model could be registered, which matters with folds.
    """

    baseline: str
    params: Params
    seed: int
    recorded_seed: int
    derived_seed: int
    halvings: int
    epochs: int | None
    threads: int
    precision: str = "float32"
    final: bool = False


def plan(record: Record, experiment: Experiment, seed: int | None = None) -> Plan:
    """What a record says was trained; ``seed`` replaces the recorded one.

    Raises:
        InputError: the run neither finished nor was pruned, nor is infeasible though trained, or lacks a parameter.
    """
    state = record.tags.get("forge.state", "")
    was_trained = record.tags.get("forge.failure") == "infeasible" and "forge.weights_sha256" in record.tags
    if state not in ("finished", "pruned") and not was_trained:
        raise InputError(
            f"run {record.run_id} is {state or 'in no state'}", hint="give one that finished or was pruned"
        )
    baseline = record.params.get("baseline", "")
    recorded = int(_param(record, "seed"))
    if not baseline and (tagged := record.tags.get("forge.threads", "")).isdigit():
        threads = int(tagged)
    else:  # a serial sweep, and every baseline, had all cores of its machine
        threads = int(cast(Any, record.environment.get("cores", 0)))
    return Plan(
        baseline=baseline,
        params=typed(
            baselines.SPACES.get(baselines.untuned_kind(baseline), {}) if baseline else experiment.space, record
        ),
        seed=recorded if seed is None else seed,
        recorded_seed=recorded,
        derived_seed=_derived(record, experiment, baseline),
        halvings=0 if baseline else _halvings(record),
        epochs=int(record.metrics["epochs_run"]) if state == "pruned" or "forge.ended_after" in record.tags else None,
        threads=threads,
        precision=record.tags.get("forge.precision", "float32"),
        final=record.kind == "confirm",
    )


def typed(space: Mapping[str, Dimension | Scalar], record: Record) -> Params:
    """The hyperparameters of a run with the types that the experiment's space gives them; MLflow keeps text."""
    return {name: _value(known, record.params[name]) for name, known in space.items() if name in record.params}


def _value(known: Dimension | Scalar, text: str) -> Scalar:
    if not isinstance(known, Dimension):
        return known if str(known) == text else type(known)(text)
    if known.type == "int":
        return int(text)
    if known.type == "float":
        return float(text)
    return next((choice for choice in known.choices or () if str(choice) == text), text)


def _param(record: Record, name: str) -> str:
    try:
        return record.params[name]
    except KeyError:
        raise InputError(f"run {record.run_id} has no param {name!r}", hint="give a run of forge-sweep run") from None


def _derived(record: Record, experiment: Experiment, baseline: str) -> int:
    if record.kind == "baseline":
        return derived_seed(experiment.seed, "baseline", baseline)
    number = 0 if baseline else int(_param(record, "trial_number"))
    if record.kind in ("trial", "audit"):  # an audit is its trial, trained to the end
        return derived_seed(experiment.seed, "trial", number)
    return derived_seed(experiment.seed, "confirm", baseline or f"{number:04d}", int(_param(record, "confirm_seed")))


def _halvings(record: Record) -> int:
    if "forge.halvings" in record.tags:
        return int(record.tags["forge.halvings"])
    # older runs: from the batch size asked for and the one trained with, which batch normalisation may enlarge
    used = int(record.tags.get("forge.batch_size", 0))
    asked = int(record.params.get("batch_size", used))
    return next(halvings for halvings in range(asked.bit_length() + 1) if asked >> halvings <= used or not used)


# Training it again


@dataclass(frozen=True)
class Again:
    """What a training gave this time.

    Attributes:
        weights: `Bundle.weights_sha256`.
        metrics: validation metrics at the best epoch.
        history: the metrics of every epoch; empty for a baseline.
        recorded_weights: of the recorded model; "" without one.
        scores_off: largest difference to the recorded model's predictions on the validation rows, relative to the
            largest of them above 1; None without such a model, or where the two predict different things.
    """

    weights: str
    metrics: Mapping[str, float]
    history: tuple[dict[str, float], ...]
    seconds: float
    recorded_weights: str = ""
    scores_off: float | None = None


@dataclass(frozen=True)
class Order:
    """One training, as a picklable job; ``model`` is the folder of the recorded bundle to compare with."""

    experiment: Experiment
    plan: Plan
    model: Path | None = None

    def __call__(self, say: Say) -> Again:
        """Load the rows, train and compare."""
        experiment, began = self.experiment, time.monotonic()
        dataset = _rows(experiment)
        try:
            result = self._train(dataset)
        except Exception as error:
            raise training.classify(error) from error
        again = Again(
            weights=result.bundle.weights_sha256,
            metrics=result.metrics,
            history=result.history,
            seconds=time.monotonic() - began,
        )
        if self.model is None:
            return again
        # The source below the root is this user's own, and of the same digest as the record's.
        recorded, rows = Bundle.load(self.model, trust=experiment.model.code or False), dataset.valid.features
        again = replace(again, recorded_weights=recorded.weights_sha256)
        names = list(recorded.preprocessor.schema.names)
        if result.bundle.task.units != recorded.task.units or not set(names) <= set(rows):
            return again
        scores, other = result.bundle.scores(rows), recorded.scores(rows[names])
        return replace(again, scores_off=float(np.abs(scores - other).max() / max(1.0, np.abs(other).max())))

    def _train(self, dataset: Dataset) -> TrialResult:
        plan = self.plan
        if plan.baseline:
            return trial.run_baseline(self.experiment, dataset, plan.baseline, plan.seed, plan.params or None)

        def on_epoch(epoch: int, metrics: dict[str, float]) -> bool:
            return plan.epochs is not None and epoch + 1 >= plan.epochs

        experiment = self.experiment.model_copy(update={"precision": plan.precision})
        return trial.run(
            experiment, dataset, plan.params, plan.seed, on_epoch, halvings=plan.halvings, final=plan.final
        )


def train_again(order: Order) -> Again:
    """Run an order in a new process.

    Raises:
        TrialFailed: it failed.
        WorkerLost: its process died.
    """
    threads = order.plan.threads
    limit = 0 if threads == environment.cores() else threads  # all cores: left to the libraries, as in a sweep
    setup = workers.Plan(
        start="spawn", shared=as_variables(limit) if limit else {}, setup=Setup(order.experiment.backend, limit)
    )
    found: list[Again] = []

    def job(worker: Worker) -> None:
        found.append(worker.call(order, lambda message: None, Limits()))

    with ProcessWorkers(setup) as pool:
        pool.run(job)
    return found[0]


# The verdict


@dataclass(frozen=True)
class Verdict:
    """How a training compares with its record.

    Attributes:
        word: ``exact`` means equal weights, bit by bit.
        text: how far off, or where.
        weights: SHA-256 of the weights this time.
        recorded_weights: as recorded; "" where they were not.
        metrics_off: of each validation metric at the best epoch, this time less recorded.
        scores_off: as in `Again`.
        first_epoch: the first epoch, from 1, whose metrics differ in any bit; None for none.
    """

    word: Literal["exact", "within tolerance", "different"]
    text: str
    weights: str
    recorded_weights: str
    metrics_off: dict[str, float]
    scores_off: float | None
    first_epoch: int | None


def judge(record: Record, plan: Plan, again: Again, tolerance: float = TOLERANCE) -> Verdict:
    """Compare weights, then metrics and predictions."""
    recorded = record.tags.get("forge.weights_sha256", "") or again.recorded_weights
    metrics = _recorded_metrics(record, plan)
    off = {name: again.metrics[name] - value for name, value in metrics.items() if name in again.metrics}
    first = first_difference(record.curves, again.history)
    far = [name for name, by in off.items() if not abs(by) <= tolerance * max(1.0, abs(metrics[name]))]
    if again.scores_off is not None and not again.scores_off <= tolerance:
        far.append("predictions")
    if recorded == again.weights:
        word, text = "exact", f"all weights are the same, bit by bit (SHA-256 {again.weights[:12]})"
    elif off and not far:
        word, text = "within tolerance", _how_far(off, again)
        text += "; weights are not the same bits" if recorded else "; weights were not recorded"
    else:
        parts = [] if first is None else [f"the curves part at epoch {first}"]
        parts.append(f"beyond tolerance: {', '.join(sorted(far))}" if far else "weights are not the same bits")
        word, text = "different", "; ".join([*parts, _how_far(off, again)])
    return Verdict(word, text, again.weights, recorded, off, again.scores_off, first)  # type: ignore[arg-type]


def _recorded_metrics(record: Record, plan: Plan) -> dict[str, float]:
    """Validation metrics at the best epoch, as logged; of a baseline there is one value each."""
    if plan.baseline:
        return {name: value for name, value in record.metrics.items() if name.startswith("val_")}
    best = -1 if record.best_epoch is None else record.best_epoch
    return {name: curve[best] for name, curve in record.curves.items() if name.startswith("val_") and best in curve}


def first_difference(curves: Mapping[str, Mapping[int, float]], history: tuple[dict[str, float], ...]) -> int | None:
    """The first epoch, from 1, in which a metric differs in any bit or that one side lacks; None for none."""
    last = max((epoch for curve in curves.values() for epoch in curve), default=-1)
    if not history:
        return None
    for epoch in range(max(last + 1, len(history))):
        now = history[epoch] if epoch < len(history) else {}
        then = {name: curve[epoch] for name, curve in curves.items() if epoch in curve}
        if bool(now) != bool(then) or any(now.get(name) != value for name, value in then.items()):
            return epoch + 1
    return None


def _how_far(off: Mapping[str, float], again: Again) -> str:
    if not off:
        return "there are no recorded metrics to compare with"
    worst = max(off, key=lambda name: abs(off[name]) if math.isfinite(off[name]) else math.inf)
    predictions = "" if again.scores_off is None else f", predictions on the validation rows by {again.scores_off:.3g}"
    return f"metrics are off by at most {abs(off[worst]):.3g} ({worst}){predictions}"


# What differs

SAME_PLACE = ("image_digest", "python", "platform", "cpu", "cores", "gpus", "cuda", "backend")
"""Fields of an `Environment` that are compared as they are."""

ABSENT = "not there"

Pair = tuple[str, Any, Any]
"""What is compared, as recorded, and here."""


@dataclass(frozen=True)
class Difference:
    """One thing, such as ``data`` or ``package numpy``, that is not as it was."""

    what: str
    recorded: str
    here: str

    def __str__(self) -> str:
        return f"{self.what}: {self.recorded} -> {self.here}"


def compare(
    record: Record, experiment: Experiment, plan: Plan, dataset: Dataset, here: Environment
) -> tuple[Difference, ...]:
    """Everything that differs; what an older version did not record is not compared."""
    tags, recorded, contract = record.tags, record.environment, experiment.contract()
    pairs: list[Pair] = [
        ("data (digest of all rows)", tags.get("forge.dataset_digest", dataset.digest), dataset.digest),
        ("split (digest)", tags.get("forge.split_digest", dataset.split_digest), dataset.split_digest),
        ("seed", plan.recorded_seed, plan.seed),
        ("seed (recorded, and as it follows from the experiment's)", plan.recorded_seed, plan.derived_seed),
        ("experiment (digest recorded, and of experiment.json)", tags.get("forge.contract", contract), contract),
        ("git commit", recorded.get("git_commit", here.git_commit), here.git_commit),
    ]
    if record.git_diff != here.git_diff:
        pairs.append(("uncommitted changes", _lines(record.git_diff), _lines(here.git_diff) + " (other ones)"))
    then = recorded.get("packages", {})
    for name in sorted({*then, *here.packages}) if then else ():
        pairs.append((f"package {name}", then.get(name, ABSENT), here.packages.get(name, ABSENT)))
    pairs += _machine(recorded, here)
    return tuple(Difference(what, str(then), str(now)) for what, then, now in pairs if then != now)


def _lines(diff: str) -> str:
    return f"{len(diff.splitlines())} lines of git diff" if diff else "none"


def _machine(recorded: Mapping[str, Any], here: Environment) -> Iterator[Pair]:
    now = here.to_dict()
    for name in SAME_PLACE:
        yield name.replace("_", " "), recorded.get(name, now[name]), now[name]
    for group, what in (("threads", "variable"), ("flags", "variable"), ("variables", "variable"), ("keras", "Keras'")):
        then = recorded.get(group, now[group])
        for name in sorted({*then, *now[group]} - {"KERAS_BACKEND"}):  # it says what the backend says
            yield f"{what} {name}", then.get(name, ABSENT), now[group].get(name, ABSENT)


# The commands that would restore the environment; they are printed, never run


def commands(record: Record) -> tuple[str, ...]:
    """Shell commands, in order; lines that begin with ``#`` say what cannot be restored."""
    if not record.environment:
        return (f"# run {record.run_id} has no environment on record",)
    return (*_checkout(record), *_installs(record))


def _checkout(record: Record) -> Iterator[str]:
    commit, remote = record.environment.get("git_commit", UNKNOWN), record.environment.get("git_remote", UNKNOWN)
    if commit == UNKNOWN:
        yield "# the commit was not recorded: the experiment was not in a git repository"
        return
    if remote != UNKNOWN:
        yield f"git clone {shlex.quote(remote)} restored && cd restored"
    yield f"git checkout {commit}"
    if record.git_diff:
        path = f"{record.environment_folder}/git.diff"
        yield f"mlflow artifacts download --run-id {record.parent_id} --artifact-path {path} --dst-path ."
        yield f"git apply {path if '/' not in path else path.rpartition('/')[2]}"
        yield from (line for line in record.git_diff.splitlines() if line.startswith("# untracked: "))


def _installs(record: Record) -> Iterator[str]:
    digest = record.environment.get("image_digest", NONE)
    if digest == UNKNOWN:
        yield "# it ran in a container whose digest was not recorded"
    elif "@" in digest:
        yield f"docker pull {shlex.quote(digest)}"
    elif digest != NONE:
        yield f"docker pull IMAGE@{digest}  # put the name of the image in the place of IMAGE"
    yield f"python{'.'.join(record.environment.get('python', '3').split('.')[:2])} -m venv .venv"
    packages = record.environment.get("packages", {})
    pins = [
        f"{name}=={version.partition('+')[0]}"
        for name, version in sorted(packages.items())
        if name not in ("forge-sweep", "pip", "setuptools", "wheel")
    ]
    yield f".venv/bin/pip install --no-deps {' '.join(map(shlex.quote, pins))}"
    version = packages.get("forge-sweep", UNKNOWN)
    yield f".venv/bin/pip install --no-deps CHECKOUT  # put the path of forge-sweep {version} in the place of CHECKOUT"
    groups = ("threads", "flags", "variables")
    known = {name: value for group in groups for name, value in record.environment.get(group, {}).items()}
    for name, value in sorted(known.items()):
        yield f"export {name}={shlex.quote(value)}"
