"""One trial as a plain function: parameters and a seed in, scores and a model out.

Nothing here knows Optuna, MLflow or workers. The sweep calls `run` with suggested parameters, the confirmation with the
winner's parameters and new seeds, a reproduction with recorded ones.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from forge_sweep import baselines, models, parts, training
from forge_sweep.bundle import Bundle
from forge_sweep.checks.findings import Finding
from forge_sweep.errors import DataError, ForgeSweepError, TrialFailed
from forge_sweep.experiment import (
    ROW_SHARES,
    SCALERS,
    Experiment,
    HeadSpec,
    Params,
    Scalar,
    derived_seed,
)
from forge_sweep.parts import OnInner, Part
from forge_sweep.preprocessing import Group, Preprocessor, Schema, Spec, declared, same_settings, with_rows
from forge_sweep.sources import Dataset, Fold, Split, rungs
from forge_sweep.task import Joint, Task, TaskKind
from forge_sweep.training import Checkpoint, FitSpec, OnEpoch, OnResume, Schedule, TrainingData, begin_anew

if TYPE_CHECKING:
    import keras
    import numpy as np
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Prepared:
    """The splits as arrays, for one choice of scaler; task and preprocessor are learned on train.

    ``origin`` says which rows these are, for a model's metadata: versions and digests of the dataset.
    """

    task: Task
    preprocessor: Preprocessor
    data: TrainingData
    origin: dict[str, Any]

    @functools.cached_property
    def spec(self) -> Spec:
        """The inputs of the model, with some training rows for layers that learn from them."""
        return with_rows(self.preprocessor.spec, self.data.x_train)


@dataclass(frozen=True, eq=False)
class TrialResult:
    """What one trial gave.

    Attributes:
        state: ``finished``, or ``pruned`` where ``on_epoch`` asked to stop.
        value: the objective at the best epoch.
        metrics: all validation metrics (``val_auc``, ``val_loss``, ...) at the best epoch.
        history: the metrics of every epoch, in order; empty for a baseline.
        best_epoch: 0-based epoch whose weights the bundle holds.
        seconds: wall clock of preparing, training (over all attempts) and scoring.
        batch_size: rows per gradient step, as trained.
        events: what happened on the way, such as ``learning rate 0.001 -> 0.0005 after epoch 12``, which counts from 1.
        bundle: the model with all it needs to take raw rows.
        halvings: how often the batch was halved because memory ran out.
        findings: why it learned nothing, or less than it could; see `checks.diagnose`.
        precision: in what it was trained; the bundle computes in float32.
        shares: of its time, such as ``cost/setup_share``; see `checks.diagnose.Times`.
        scores: (n, units) of the validation rows, as `Task.to_scores` gives them, at the best epoch.
        repeated: with folds, (repeats, n, units) of each repeat; ``scores`` are those of the first.
        longest: of several trainings, the epochs of the longest fold, or of the last rung; 0 of one.
    """

    state: Literal["finished", "pruned"]
    value: float
    metrics: dict[str, float]
    history: tuple[dict[str, float], ...]
    best_epoch: int
    seconds: float
    batch_size: int
    events: tuple[str, ...]
    bundle: Bundle
    halvings: int = 0
    findings: tuple[Finding, ...] = ()
    precision: str = "float32"
    shares: dict[str, float] = field(default_factory=dict)
    scores: np.ndarray | None = field(default=None, repr=False, compare=False)
    repeated: np.ndarray | None = field(default=None, repr=False, compare=False)
    longest: int = 0


class Arrays(Protocol):
    """Rows that were prepared elsewhere, in the place of a `Dataset`: what a worker process gets."""

    def prepared(self, recipe: Recipe) -> Prepared:
        """The arrays of one recipe, as `prepare` makes them from the rows."""
        ...


@dataclass(frozen=True, eq=False)
class Several:
    """The rows, or arrays, of a trial of several trainings.

    Attributes:
        parts: those of each fold or rung.
        whole: those that a final model is trained on.
        split_digest: of the whole dataset.
    """

    parts: tuple[Fold[Any], ...]
    whole: Any
    split_digest: str


Rows = Dataset | Arrays | Several


def several(experiment: Experiment, dataset: Dataset) -> Several | None:
    """The rows of each training, where a trial is more than one.

    Raises:
        DataError: there are too few rows for it.
    """
    if experiment.study.fidelity == "rows":
        heads = [head for head in experiment.data.tasks.values() if head.task in ("binary", "multiclass")]
        found = rungs(dataset, heads[0].target if heads else (), ROW_SHARES, experiment.seed)
        return Several(found, dataset, dataset.split_digest)
    return Several(dataset.folds, dataset.whole, dataset.split_digest) if dataset.folds else None


def run(
    experiment: Experiment,
    splits: Rows,
    params: Params,
    seed: int,
    on_epoch: OnEpoch,
    *,
    checkpoint: Checkpoint | None = None,
    deadline_s: float | None = None,
    halvings: int = 0,
    on_resume: OnResume = begin_anew,
    on_inner: OnInner = parts.say_nothing,
    final: bool = False,
    part: Part | None = None,
    on_built: Callable[[Bundle], None] | None = None,
) -> TrialResult:
    """Train one network and score it on the validation split; the test split stays untouched.

    With folds, or less of the rows first, it is several networks, and an epoch of the result is one of them: see
    `parts`.

    Args:
        experiment: its search space is not read.
        splits: train and validation rows, or the arrays that were made of them.
        params: every hyperparameter with its value.
        seed: seeds initial weights, shuffling and dropout.
        on_epoch: called with (epoch, metrics) after each epoch; True stops the trial as pruned.
        checkpoint: where progress is kept, and where a trial that was cut off goes on from.
        deadline_s: seconds of training, over all attempts, after which the trial fails as ``time-out``.
        halvings: how often memory ran out before; see `smaller`.
        on_resume: called with the number of epochs in ``checkpoint``, before they are reported again.
        on_inner: called after each epoch of each of several trainings.
        final: the model may be registered: with folds ``data.split.final`` says what it is, and less of the rows is not
            tried first.
        part: this training is one of several of a trial.
        on_built: called with the network before it is trained, as a bundle to be measured.

    Raises:
        TrialFailed: the trial cannot give a score; its ``failure`` says of which kind.
    """
    if part is None and isinstance(splits, Dataset) and (found := several(experiment, splits)) is not None:
        splits = found
    if isinstance(splits, Several) and experiment.study.fidelity == "rows" and final:
        splits = splits.whole
    if isinstance(splits, Several):
        return _run_several(
            experiment, splits, params, seed, on_epoch, checkpoint, deadline_s, halvings, on_resume, on_inner, final
        )
    began = time.monotonic()
    try:
        prepared = arrays_of(splits, Recipe.of(experiment, params.get("scaler")))
        training.fix_operations(experiment.deterministic)
        training.seed_everything(seed)
        used = smaller(params, halvings)
        precision, said = training.precision_of(experiment.precision)
        model = training.reuse(build(experiment, prepared, used, precision))
        _refuse_too_large(experiment, model)
        if on_built is not None:
            about = {"experiment": experiment.resolved(), **prepared.origin, "params": used, "seed": seed}
            on_built(Bundle(model, prepared.preprocessor, prepared.task, 0.5, about, code=experiment.code))
        # A checkpoint is used by the same training only; its batch may be halved since.
        named = {"contract": experiment.contract(search=False), "params": params, "seed": seed, **prepared.origin}
        named |= {} if precision == "float32" else {"precision": precision}
        spec = FitSpec(
            epochs=experiment.study.epochs,
            patience=experiment.study.patience,
            batch_size=int(used["batch_size"]),
            monitor=experiment.objective.metric,
            direction=experiment.direction,
            schedule=schedule_of(experiment, params),
            warmup=float(params["warmup"]) if "warmup" in params else None,
            deadline_s=deadline_s,
            checkpoint=checkpoint,
            identity=hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest(),
            seed=seed,
            only=None if part is None else part.only,
            rates=() if part is None else part.rates,
            keeps_end=part is not None,
        )
        fit_began = time.monotonic()
        more = models.callbacks(experiment.code, experiment.model.callbacks) if experiment.code is not None else ()
        fitted = training.fit(
            model,
            prepared.task,
            prepared.data,
            spec,
            on_epoch,
            on_resume=on_resume,
            callbacks=more,
            columns=prepared.preprocessor.output_names,
        )
        earlier_s = max(0.0, fitted.seconds - (time.monotonic() - fit_began))
        if precision != "float32":
            weights = model.get_weights()
            model = build(experiment, prepared, used, "float32")
            model.set_weights(weights)
        scores = prepared.task.to_scores(training.outputs(model, prepared.data.x_valid))
    except ForgeSweepError:
        raise
    except Exception as error:
        raise training.classify(error) from error
    at_best = fitted.history[fitted.best_epoch]
    if not math.isfinite(at_best[experiment.objective.metric]):
        raise TrialFailed("diverged", f"{experiment.objective.metric} is not finite at the best epoch")
    seconds = earlier_s + time.monotonic() - began
    findings, undiagnosed, times = training.explain(
        model, prepared.task, prepared.data, spec, fitted, scores, used, fit_began - began, seconds
    )
    return TrialResult(
        state=fitted.state,
        value=at_best[experiment.objective.metric],
        metrics={name: value for name, value in at_best.items() if name.startswith("val_")},
        history=fitted.history,
        best_epoch=fitted.best_epoch,
        seconds=earlier_s + time.monotonic() - began,
        batch_size=fitted.batch_size,
        events=(*filter(None, [said, undiagnosed]), *halved_event(params, used), *fitted.events),
        bundle=as_bundle(experiment, prepared, model, scores, {"params": used, "seed": seed}),
        halvings=halvings,
        findings=findings,
        precision=precision,
        shares=times.shares(),
        scores=scores,
    )


def _run_several(
    experiment: Experiment,
    splits: Several,
    params: Params,
    seed: int,
    on_epoch: OnEpoch,
    checkpoint: Checkpoint | None,
    deadline_s: float | None,
    halvings: int,
    on_resume: OnResume,
    on_inner: OnInner,
    final: bool,
) -> TrialResult:
    kept, pieces = parts.Checkpoints(checkpoint), splits.parts

    def train(
        rows: Any, seed: int, tell: OnEpoch, name: str, left_s: float | None, part: Part = parts.ONE_OF_SEVERAL
    ) -> TrialResult:
        how: dict[str, Any] = {"deadline_s": left_s, "halvings": halvings, "part": part}
        return run(experiment, rows, params, seed, tell, checkpoint=kept.of(name), **how)

    on_resume(kept.done)
    if experiment.study.fidelity == "rows":
        seeds = [*(derived_seed(seed, "rung", number) for number in range(1, len(pieces))), seed]
        results, pruned = parts.train(
            pieces, train, kept, seeds, on_epoch, on_inner, deadline_s, word="rung", told=parts.newest
        )
        return parts.climbed(results, pruned=pruned)
    seeds = parts.seeds_of(seed, pieces)
    results, pruned = parts.train(pieces, train, kept, seeds, on_epoch, on_inner, deadline_s)
    whole = _combined(experiment, splits, Recipe.of(experiment, params.get("scaler")), results, seed, pruned=pruned)
    if pruned or not final or experiment.data.split.final == "average":
        return whole

    def tell_final(epoch: int, metrics: dict[str, float]) -> bool:
        on_inner("final", epoch, metrics)
        return False

    left_s = None if deadline_s is None else deadline_s - whole.seconds
    last = train(splits.whole, seed, tell_final, "final", left_s, parts.refit(results))
    said = f"trained again on the rows of all folds: {last.best_epoch + 1} epochs"
    return dataclasses.replace(
        whole,
        bundle=dataclasses.replace(last.bundle, threshold=whole.bundle.threshold, metadata=whole.bundle.metadata),
        seconds=whole.seconds + last.seconds,
        events=(*whole.events, said, *(f"final: {event}" for event in last.events)),
    )


def _combined(
    experiment: Experiment,
    splits: Several,
    recipe: Recipe,
    results: list[TrialResult],
    seed: int,
    *,
    pruned: bool = False,
) -> TrialResult:
    """The result of a trial from those of its folds."""
    split = experiment.data.split
    targets = [arrays_of(fold.rows, recipe).data.y_valid for fold in splits.parts]
    about = {"n": split.folds, "repeats": split.repeats, "final": split.final}
    origin = {"split_digest": splits.split_digest, "seed": seed, "folds": about}
    return parts.combined(results, splits.parts, targets, experiment.objective.metric, origin, pruned=pruned)


def build(experiment: Experiment, prepared: Prepared, params: Params, precision: str) -> keras.Model:
    """A compiled network whose layers compute as this dtype policy says; its weights are float32 in any case."""
    with training.dtype_policy(precision):
        return models.build(experiment.builder, prepared.spec, prepared.task, params)


def _refuse_too_large(experiment: Experiment, model: keras.Model) -> None:
    """The one constraint that is known before the training, which would be for nothing."""
    limits = experiment.constraints
    measured = {} if limits.parameters is None else {"parameters": float(model.count_params() * experiment.averaged)}
    if said := limits.missed(measured):
        raise TrialFailed("infeasible", f"{said}; it was not trained", excess=limits.excess(measured))


def run_baseline(
    experiment: Experiment,
    splits: Dataset | Arrays,
    kind: str,
    seed: int,
    params: Params | None = None,
    timeout_s: float | None = None,
) -> TrialResult:
    """Fit one baseline on the same rows and score it with the same metrics as a network.

    It takes one matrix, whatever the inputs of the network are, and leaves columns of arrays out. With folds it is the
    average of one for each, whatever ``data.split.final`` says: tuned trees stop early by rows that they do not see.

    Args:
        experiment: what is swept.
        splits: the rows, or the arrays made of them.
        kind: one of `baselines.KINDS`, or the name of tuned models, such as ``xgboost_tuned``.
        seed: of the trees.
        params: the configuration of tuned models, which stop early by the validation rows; None otherwise.
        timeout_s: seconds after which it is given up, at most `Experiment.baseline_timeout_s`, the default.

    Raises:
        TrialFailed: it took longer than its time, its objective is not finite, or there are arrays only.
    """
    began = time.monotonic()
    recipe = dataclasses.replace(Recipe.of(experiment, experiment.scalers[0]), inputs=(), one_matrix=True)
    limit = min(experiment.baseline_timeout_s, math.inf if timeout_s is None else timeout_s)
    if isinstance(splits, Dataset) and splits.folds:
        of_folds = several(experiment, splits)
        assert of_folds is not None

        def fit(rows: Any, seed: int, tell: OnEpoch, name: str, left_s: float | None) -> TrialResult:
            return run_baseline(experiment, rows, kind, seed, params, left_s)

        kept, seeds = parts.Checkpoints(None), parts.seeds_of(seed, of_folds.parts)
        results, _ = parts.train(of_folds.parts, fit, kept, seeds, parts.go_on, parts.say_nothing, limit)
        return _combined(experiment, of_folds, recipe, results, seed)
    assert not isinstance(splits, Several)
    prepared = arrays_of(splits, recipe)
    if kind != "constant" and not prepared.preprocessor.output_names:
        arrays = ", ".join(column.name for column in prepared.preprocessor.schema.tensors)
        raise TrialFailed("data", f"{kind} takes the columns of a table, and there are only arrays ({arrays})")
    data = prepared.data
    task = dataclasses.replace(prepared.task, from_logits=False)  # trees give probabilities whatever the network gives
    (x_train,), (x_valid,) = training.leaves(data.x_train), training.leaves(data.x_valid)
    how: dict[str, Any] = {"seed": seed, "class_weight": experiment.model.class_weight, "timeout_s": limit}
    if params is None:
        model = baselines.fit(kind, task, x_train, data.y_train, **how)
    else:
        train, valid, untuned = (x_train, data.y_train), (x_valid, data.y_valid), baselines.untuned_kind(kind)
        model = baselines.fit_tuned(untuned, task, train, valid, params, **how)
    about = {"params": model.params, "seed": seed, "baseline": kind}
    outputs = model.outputs(x_valid)
    scores = task.to_scores(outputs)
    metrics = task.score(data.y_valid, scores)
    metrics["loss"] = task.loss_of(data.y_valid, outputs)
    metrics = {f"val_{name}": value for name, value in metrics.items()}
    if not math.isfinite(metrics[experiment.objective.metric]):
        raise TrialFailed("diverged", f"{experiment.objective.metric} of {kind} is not finite")
    return TrialResult(
        state="finished",
        value=metrics[experiment.objective.metric],
        metrics=metrics,
        history=(),
        best_epoch=0,
        seconds=time.monotonic() - began,
        batch_size=len(x_train),
        events=(),
        bundle=as_bundle(experiment, prepared, model, scores, about),
        scores=scores,
    )


def score(bundle: Bundle, split: Split, prefix: str) -> dict[str, float]:
    """Metrics of a bundle on raw rows at its own threshold, as ``<prefix>_auc`` and so on."""
    encoded = bundle.task.encode(split.targets)
    scores = bundle.scores(split.features)
    found = bundle.task.score(encoded, scores, threshold=bundle.threshold)
    return {f"{prefix}_{name}": value for name, value in found.items()}


@dataclass(frozen=True)
class Recipe:
    """All that decides how the splits become arrays; see `DataSpec`, `PreprocessingSpec` and `ModelSpec`."""

    task: TaskKind
    positive: Scalar | None
    activation: str | None
    loss: str | None
    from_logits: bool
    class_weight: str | None
    scaler: str
    impute: str
    fill: float
    max_categories: int
    inputs: tuple[Group, ...] = ()
    heads: tuple[tuple[str, HeadSpec], ...] = ()
    sums: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = ()
    one_matrix: bool = False  # for a baseline, which takes nothing else

    @classmethod
    def of(cls, experiment: Experiment, scaler: Scalar | None = None) -> Recipe:
        """The recipe of an experiment; ``scaler`` overrides its own."""
        model, preprocessing = experiment.model, experiment.preprocessing
        return cls(
            task=experiment.data.task,
            positive=experiment.data.positive,
            activation=model.activation,
            loss=model.loss,
            from_logits=model.from_logits,
            class_weight=model.class_weight,
            scaler=str(scaler or preprocessing.scaler),
            impute=preprocessing.impute,
            fill=preprocessing.fill,
            max_categories=preprocessing.max_categories,
            inputs=declared(experiment.data.inputs),
            heads=tuple(experiment.data.heads.items()),
            sums=tuple((name, tuple(terms.items())) for name, terms in experiment.objective.sums.items()),
        )

    def learn_task(self, train_targets: pd.DataFrame) -> Task:
        """The task as these targets show it; see `Task.learn`."""
        if self.heads:
            tasks = {}
            for name, head in self.heads:
                try:
                    targets = train_targets[list(head.target)]
                    tasks[name] = Task.learn(head.task, targets, positive=head.positive, loss=head.loss)
                except DataError as error:
                    hint = error.hint.replace("under [data]", f"under [data.heads.{name}]")
                    raise DataError(f"data.heads.{name}: {error.message}", hint=hint) from error
            return Joint.of(tasks, [head.weight for _, head in self.heads], self.sums)
        return Task.learn(
            self.task,
            train_targets,
            positive=self.positive,
            activation=self.activation,
            loss=self.loss,
            from_logits=self.from_logits,
        )

    def fit(self, train_features: pd.DataFrame, schema: Schema) -> Preprocessor:
        """The preprocessor learned from these rows."""
        fitted = Preprocessor.fit(train_features, schema, **self.settings)
        return fitted if self.one_matrix else fitted.grouped(self.inputs)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `Preprocessor.fit` but for the rows."""
        names = ("scaler", "impute", "fill", "max_categories")
        return {name: getattr(self, name) for name in names}


def arrays_of(splits: Dataset | Arrays, recipe: Recipe) -> Prepared:
    """The splits as arrays: made here, or taken as they are."""
    if not isinstance(splits, Dataset):
        return splits.prepared(recipe)
    return prepare(splits, recipe) if splits.known is None else prepare_part(splits, recipe)


@functools.lru_cache(maxsize=len(SCALERS))
def prepare(splits: Dataset, recipe: Recipe) -> Prepared:
    """Learn task, schema and preprocessor on train and turn both splits into arrays.

    A preprocessor that is stored with the data is used where its settings are those of the recipe. Cached, since most
    trials of a sweep share both arguments; the arrays must not be written to.
    """
    train, valid = splits.train, splits.valid
    known = splits.train if splits.known is None else splits.known
    task = recipe.learn_task(known.targets)
    preprocessor = splits.preprocessor
    if preprocessor is None or not same_settings(preprocessor, recipe.settings):
        preprocessor = recipe.fit(train.features, Schema.learn(known.features, splits.categorical))
    elif recipe.inputs and not recipe.one_matrix:
        preprocessor = preprocessor.grouped(recipe.inputs)
    y_train = task.encode(train.targets)
    data = TrainingData(
        x_train=preprocessor.batch(train.features),
        y_train=y_train,
        x_valid=preprocessor.batch(valid.features),
        y_valid=task.encode(valid.targets),
        class_weight=task.class_weights(y_train) if recipe.class_weight else None,
    )
    stored = splits.preprocessor is not None and preprocessor.fills is splits.preprocessor.fills
    origin = {
        "dataset_version": splits.version,
        "dataset_digest": splits.digest,
        "split_digest": splits.split_digest,
        "normalization_version": splits.normalization_version if stored else None,
    }
    return Prepared(task, preprocessor, data, origin)


# There are several of each recipe. Folds are of few rows, and rungs together of less than half of them.
prepare_part = functools.lru_cache(maxsize=256)(prepare.__wrapped__)


def schedule_of(experiment: Experiment, params: Params) -> Schedule:
    """How the learning rate goes: as the hyperparameter says, or else as ``study.schedule`` does."""
    of_study = "reduce_on_plateau" if experiment.study.schedule == "plateau" else "constant"
    return cast(Schedule, params.get("schedule", of_study))


SMALLEST_BATCH = 8
"""Rows of a batch that is not halved any more when memory runs out."""

LINEAR = ("sgd",)
"""Optimizers whose learning rate goes with the batch size, the others' with its square root; see `smaller`."""


def smaller(params: Params, halvings: int) -> Params:
    """The parameters with their batch halved, for a trial that ran out of memory, and a learning rate that fits it.

    Half a batch takes half the learning rate with SGD (Goyal et al. 2017, https://arxiv.org/abs/1706.02677) and
    1/sqrt(2) of it with optimizers that scale by the gradient's size (Malladi et al. 2022,
    https://arxiv.org/abs/2205.10287).
    """
    if not halvings:
        return params
    batch_size = int(params["batch_size"]) >> halvings
    share = batch_size / int(params["batch_size"])
    if "learning_rate" not in params:  # of an own builder that does not take it: the model has it
        return {**params, "batch_size": batch_size}
    rate = float(params["learning_rate"]) * (share if params.get("optimizer", "adam") in LINEAR else math.sqrt(share))
    return {**params, "batch_size": batch_size, "learning_rate": rate}


def can_halve(params: Params, halvings: int) -> bool:
    """Whether the batch may be halved this often."""
    return int(params["batch_size"]) >> halvings >= SMALLEST_BATCH


def halved_event(asked: Params, used: Params) -> tuple[str, ...]:
    """What is said of a trial with a smaller batch than it was asked for."""
    if asked == used:
        return ()
    sizes = f"batch size {asked['batch_size']} -> {used['batch_size']}"
    if "learning_rate" not in asked:
        return (f"out of memory: {sizes}",)
    rates = f"learning rate {asked['learning_rate']:.3g} -> {used['learning_rate']:.3g}"
    return (f"out of memory: {sizes}, {rates}",)


def as_bundle(
    experiment: Experiment, prepared: Prepared, model: Any, scores: np.ndarray, made_by: dict[str, Any]
) -> Bundle:
    """A trained model with all it needs to take raw rows; its threshold is chosen on validation."""
    task = prepared.task
    return Bundle(
        model=model,
        preprocessor=prepared.preprocessor,
        task=task,
        threshold=task.best_threshold(prepared.data.y_valid, scores),
        metadata={"experiment": experiment.resolved(), **prepared.origin, **made_by},
        code=experiment.code,
    )
