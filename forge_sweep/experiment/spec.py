"""The sections of an experiment file as frozen, closed models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, SkipValidation, Tag
from pydantic.fields import FieldInfo

from forge_sweep import plugins
from forge_sweep.errors import InputError
from forge_sweep.experiment.code import Code, is_own
from forge_sweep.experiment.data import DataSpec
from forge_sweep.experiment.fields import (
    LONGEST_NAME,
    MANY,
    NAME_PATTERN,
    Backend,
    BaselineKind,
    BuilderName,
    Count,
    DeviceSeconds,
    Few,
    Later,
    Names,
    Precision,
    Pruner,
    Sampler,
    Scaler,
    Schedule,
    Seconds,
    Section,
    names_of,
)
from forge_sweep.experiment.networks import NETWORKS, hyperparameters_of
from forge_sweep.experiment.space import Dimension, Hyperparameter, Params, Scalar, SearchValue, as_tuple, by_shape
from forge_sweep.task import METRICS, Direction
from forge_sweep.task.joint import joint_metrics

BUDGET_FIELDS = (
    "description",
    "study.n_trials",
    "study.repeats",
    "study.warm_start",
    "study.timeout_s",
    "study.total_s",
    "study.cpu_budget_s",
    "study.gpu_budget_s",
    "study.plateau_trials",
    "study.plateau_delta",
    "study.audit_pruned",
    "objective.tolerance",
    "baselines.timeout_s",
    "baselines.tune",
    "model.preprocessing",
    "confirm",
    "ensemble",
    "tracking",
    "workers",
    "promotion",
)
"""What may change between two runs of one sweep: how much of it is run, where it is shown and in which form its
winner is kept, not what a trial is."""


ROW_SHARES = (1 / 9, 1 / 3, 1.0)
"""Of the training rows, one after the other, with ``study.fidelity = "rows"``."""


class PreprocessingSpec(Section):
    """``[preprocessing]``: learned on the training rows only."""

    scaler: Scaler = Field("standard", description="Scaling of numeric columns; also searchable under [model.search].")
    impute: Literal["median", "mean", "constant"] = Field(
        "median", description="What missing numbers become; an indicator column is added."
    )
    fill: float = Field(0.0, description='The value of `impute = "constant"`.')
    max_categories: int = Field(50, ge=1, le=10_000, description="Most frequent categories kept per column.")


class ModelSpec(Section):
    """``[model]``: the network and its search space."""

    builder: BuilderName = Field(
        "mlp",
        description="Which network is built: one of the package, a plugin, or with `module:function` your own "
        "([docs/models.md](models.md)). A file with neither builder nor [model.search] has `tabm` and its space.",
        json_schema_extra=names_of(plugins.BUILDERS),
    )
    code: Annotated[str | None, Later(None)] = Field(
        None,
        description="SHA-256 of your own builder's source, as `forge-sweep check` shows it. Follows from its "
        "files; stating another one is refused.",
    )
    callbacks: Annotated[Names, Later([])] = Field(
        (),
        description="Keras callbacks of your own for every trial, by name: classes, or functions without arguments, of "
        "the module of your own builder, or `module:name` of another one beside the experiment file.",
    )
    class_weight: Literal["balanced"] | None = Field(
        None, description="Weigh classes by the inverse of their frequency."
    )
    activation: str | None = Field(None, description="Activation of the output layer; follows from the task.")
    loss: str | None = Field(None, description="Loss; follows from the task. For regression `mse` or `mae`.")
    from_logits: bool = Field(False, description="The output layer is linear and the loss applies the activation.")
    preprocessing: Literal["bundle", "in_model"] = Field(
        "bundle",
        description="Where the registered network has its preprocessing: beside it in the bundle, or with `in_model` "
        "also inside `raw.keras`, which takes raw columns in plain Keras.",
    )
    search: dict[str, SearchValue] = Field(
        default_factory=dict,
        description="Hyperparameters: a value is fixed, a table is searched. Where there is none, what is searched "
        "with this builder by default.",
    )


MEASURES: dict[str, Direction] = {"latency_ms": "minimize", "parameters": "minimize", "bundle_mb": "minimize"}
"""What a model costs: what ``[constraints]`` limits, and what may be a further objective."""


def _with_metrics_alone(schema: dict[str, Any]) -> None:
    """For editors: the first of ``metrics`` stands for ``metric``."""
    schema["anyOf"] = [{"required": [name]} for name in ("metric", "metrics")]
    schema.pop("required")


class ObjectiveSpec(Section):
    """``[objective]``: what the sweep optimises."""

    model_config = ConfigDict(json_schema_extra=_with_metrics_alone)

    metric: str = Field(description="A validation metric, such as val_auc; with `metrics` its first.")
    metrics: Annotated[Names, Later([])] = Field(
        (),
        description="Several objectives: `metric` first, which baselines, early stopping and the verdict go by, then "
        "other validation metrics, or `latency_ms`, `parameters` and `bundle_mb` of the trained model (as under "
        "[constraints]).",
    )
    tolerance: Annotated[float | None, Later(None)] = Field(
        None,
        ge=0,
        description="With `metrics`: how much of `metric` may be given up, in its own unit. Of the models that are no "
        "further from the best, the one that is best by the second objective is confirmed and registered. Default: the "
        "noise of `metric` over epochs and seeds.",
    )
    direction: Direction | None = Field(None, description="Follows from the metric; stating another one is refused.")
    sum: Annotated[dict[str, float], Later({})] = Field(
        default_factory=dict,
        description="With [data.heads]: what a metric of a name of your own is, `{ species_auc = 1.0, size_r2 = 0.5 }` "
        "as the weighted sum of metrics of heads.",
    )

    @property
    def names(self) -> tuple[str, ...]:
        """All objectives, ``metric`` first."""
        return self.metrics or (self.metric,)

    @property
    def sums(self) -> dict[str, dict[str, float]]:
        """The weighted sum under its own name, where there is one."""
        return {self.metric.removeprefix("val_"): dict(self.sum)} if self.sum else {}

    def known(self, data: DataSpec) -> dict[str, Direction]:
        """What models of these data are scored by, with the direction that is better; ValueError for a sum of none.

        Of a validation metric the name follows ``val_``; ``loss`` is one besides.
        """
        if not data.heads:
            return METRICS[data.task]
        return joint_metrics({name: METRICS[head.task] for name, head in data.heads.items()}, self.sums)


class StudySpec(Section):
    """``[study]``: the Optuna study and its budgets; the first that is over ends the search."""

    sampler: Sampler = Field(
        "tpe",
        description="Which sampler suggests the parameters; `auto` is Optuna's AutoSampler, `hub:samplers/NAME` any "
        "other one of OptunaHub, `hub:samplers/NAME:CLASS` where it has several (the extra `hub`).",
    )
    sampler_ref: Annotated[str | None, Later(None)] = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
        max_length=100,
        description="Git ref of OptunaHub's registry that its sampler is taken from, such as a commit; `main` by "
        "default.",
    )
    sampler_folder: Annotated[str | None, Later(None)] = Field(
        None,
        min_length=1,
        description="Folder that has `samplers/NAME` in the place of OptunaHub's registry, relative to this file: your "
        "own samplers, or a copy.",
    )
    pruner: Pruner = Field(
        "median",
        description="Which pruner stops hopeless trials. With several objectives `dominated`, which is the default "
        "then, or `none`.",
    )
    n_trials: Count = Field(40, description="Trials in total, over interruptions.")
    epochs: Count = Field(60, description="Most epochs of one trial.")
    fidelity: Annotated[Literal["epochs", "rows"], Later("epochs")] = Field(
        "epochs",
        description="What a pruner sees of a trial before its end: its first epochs, or with `rows` what it comes to "
        "on a ninth, then on a third of the training rows, each time trained from the beginning.",
    )
    patience: Count = Field(8, description="Epochs without improvement of the objective before a trial stops.")
    schedule: Annotated[Schedule, Later("plateau")] = Field(
        "plateau",
        description="What becomes of the learning rate: `plateau` halves it, down to 1e-6, after half of `patience` "
        "epochs (rounded up) without improvement of the objective; `none` leaves it as it is.",
    )
    repeats: bool | Literal["average"] = Field(
        False,
        description="Train a configuration again that another trial had, with a seed of its own; with `average` what "
        "counts of it, for the sampler and for the choice of the best, is the mean over its finished trials. Without "
        "it another one is drawn, and the search ends where all were tried.",
    )
    warm_start: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        (),
        description="Names of earlier experiments in the same store, whose best configurations, up to 5 in all, are "
        "the first trials of this one. Read when a sweep begins.",
    )
    timeout_s: Seconds | None = Field(None, description="Seconds of searching, summed over interruptions.")
    total_s: Seconds | None = Field(
        None,
        description="Seconds of the whole sweep, from its start to the registered model, summed over interruptions. "
        "The search ends early enough for the confirmation, and the best network that still trains then is kept as it "
        "stands; where time is short, fewer configurations, then fewer seeds, are confirmed.",
    )
    cpu_budget_s: DeviceSeconds | None = Field(
        None, description="CPU seconds of all trials, over workers and interruptions."
    )
    gpu_budget_s: DeviceSeconds | None = Field(
        None,
        description="GPU seconds likewise: the seconds of a trial times the GPUs, or the part of one, that it holds.",
    )
    plateau_trials: Count | None = Field(
        None, description="Finished and pruned trials after the last gain, in the order in which they ended."
    )
    plateau_delta: float = Field(
        0.0, ge=0, description="A finished trial is a gain where it is better than the last gain by more than this."
    )
    trial_timeout_s: Seconds | None = Field(None, description="Seconds after which a trial fails as `time-out`.")
    startup_trials: int = Field(
        5, ge=0, le=MANY, description="Trials before median, percentile and dominated pruning begins."
    )
    warmup_epochs: int = Field(5, ge=0, le=MANY, description="Epochs of a trial before it may be pruned.")
    percentile: float = Field(25.0, gt=0, lt=100, description="The share kept by the percentile pruner, in percent.")
    audit_pruned: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the pruned trials that is trained to its end after the search, to see whether pruning "
        "was right; changes no result.",
    )


class TuneSpec(Section):
    """``[baselines.tune]``: boosted trees that are tuned: `hist_gradient_boosting` and `xgboost`, where in `kinds`."""

    trials: int = Field(10, ge=1, le=10_000, description="How many configurations of each kind.")
    timeout_s: Seconds | None = Field(
        None,
        description="Seconds for the tuning of all kinds together, over interruptions; a tenth of `study.timeout_s` or "
        "`study.total_s` by default, or else 30.",
    )


class ConstraintsSpec(Section):
    """``[constraints]``: what a model may cost; one above a limit is infeasible, and is never registered."""

    latency_ms: Annotated[float | None, Later(None)] = Field(
        None,
        gt=0,
        description="Most milliseconds from one raw row to its scores: the quickest of 15 calls, in the process that "
        "trained the model.",
    )
    parameters: Annotated[int | None, Later(None)] = Field(
        None,
        ge=1,
        description="Most parameters of a network, known before it is trained; of an ensemble, and of the average of "
        "folds, of all its networks together. Trees have none.",
    )
    bundle_mb: Annotated[float | None, Later(None)] = Field(
        None, gt=0, description="Most megabytes (10^6 bytes) of the saved model with its preprocessing and golden rows."
    )

    @property
    def limits(self) -> dict[str, float]:
        """Those that are set, by name."""
        return {name: float(limit) for name, limit in self if limit is not None}

    def excess(self, measured: Mapping[str, float]) -> dict[str, float]:
        """By what share of its limit each measure is above it, such as 0.42 for 42 %; at most 0 where it is kept."""
        return {name: measured[name] / limit - 1 for name, limit in self.limits.items() if name in measured}

    def missed(self, measured: Mapping[str, float]) -> str:
        """The limits that a model is above, as ``latency_ms = 7.1, at most 5 (42 % over)``; "" where it keeps all."""
        over = {name: share for name, share in self.excess(measured).items() if share > 0}
        told = (
            f"{name} = {measured[name]:,.6g}, at most {self.limits[name]:,.6g} ({share:.0%} over)"
            for name, share in over.items()
        )
        return "; ".join(told)


class BaselinesSpec(Section):
    """``[baselines]``: models that a network has to beat."""

    kinds: Annotated[tuple[BaselineKind, ...], BeforeValidator(as_tuple)] = Field(
        ("constant", "random_forest", "hist_gradient_boosting", "xgboost"), description="Which baselines are fitted."
    )
    tune: Annotated[
        Annotated[TuneSpec, Tag("table")] | Annotated[Literal[False], Tag("value")], Discriminator(by_shape)
    ] = Field(
        TuneSpec(),  # of new studies: those begun without it stay as they are, see `sweep.tuning`
        description="Boosted trees that are tuned beside the untuned ones: the table `[baselines.tune]`, or `false`. "
        "By default on, but for studies that were begun without.",
    )
    timeout_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which a baseline is given up as `time-out`; `study.trial_timeout_s` by default, or "
        "else an hour, and before the search a tenth of `study.total_s` at most.",
    )


class ConfirmSpec(Section):
    """``[confirm]``: the best configurations again, over several seeds."""

    top: int = Field(3, ge=1, le=1000, description="How many configurations.")
    seeds: int = Field(3, ge=1, le=1000, description="How many seeds each.")


class EnsembleSpec(Section):
    """``[ensemble]``: the mean of several trained models in place of one."""

    ship: Literal["better", "never"] = Field(
        "better",
        description="Register an ensemble where it is better than the winner by more than noise, judged on validation "
        "rows that did not choose it; with fewer than 200 validation rows none is made. `never` makes none.",
    )
    size: int = Field(25, ge=2, le=1000, description="Most models to average, each counted as often as it was chosen.")


class WorkersSpec(Section):
    """``[workers]``: where trials run."""

    kind: Literal["serial", "processes", "ray"] = Field(
        "serial",
        description="One trial at a time in this process, each worker's trials in a process of its own, or on a Ray "
        "cluster.",
    )
    n: Few | None = Field(
        None,
        description="Number of workers; follows from cores, memory and GPUs, for `ray` from the cluster while it grows "
        "and shrinks. 1 for `serial`.",
    )
    threads: Few | None = Field(
        None, description="Threads of one worker process; its share of the cores by default, for `ray` its `cpus`."
    )
    per_gpu: int = Field(1, ge=1, le=64, description="Worker processes on one GPU (kind `processes`).")
    memory_limit_mb: int | None = Field(
        None,
        ge=1,
        le=1_000_000_000,
        description="Most MB that a trial may take before its process is killed; by default a share of what is free, "
        "for `ray` what Ray lets it take.",
    )
    address: str | None = Field(
        None,
        min_length=1,
        description="The Ray cluster: `host:port`, `auto` for the one of this machine, `local` for one of its own; "
        "RAY_ADDRESS by default, or else `local` (kind `ray`).",
    )
    cpus: Few | None = Field(None, description="CPUs of one trial; `threads` or 1 by default (kind `ray`).")
    gpus: float | None = Field(
        None, gt=0, le=1024, description="GPUs of one trial, a part such as 0.25 allowed; none by default (kind `ray`)."
    )
    wait_s: Seconds = Field(
        300.0, description="Seconds without a place for a single trial after which the sweep stops (kind `ray`)."
    )

    @property
    def parallel(self) -> bool:
        """Whether several trials may run at once."""
        return self.kind != "serial" and self.n != 1


class TrackingSpec(Section):
    """``[tracking]``: names in MLflow; the store comes from MLFLOW_TRACKING_URI or is mlruns/mlflow.db."""

    model_name: str | None = Field(
        None, pattern=NAME_PATTERN, max_length=250, description="Registered model; default: the name above."
    )
    predictions: bool = Field(
        True, description="Keep the validation predictions of every training, and the targets of these rows."
    )
    predictions_mb: float = Field(
        200, gt=0, description="Megabytes for the predictions of the whole sweep, above which none are kept."
    )


class PromotionSpec(Section):
    """``[promotion]``: what `forge-sweep promote` asks of a model before it becomes the champion."""

    groups: Names = Field((), description="Categorical columns whose groups may not do worse than with the champion.")
    min_group_rows: int = Field(50, ge=1, le=10**12, description="Test rows of a group below which it is not judged.")
    max_group_loss: float = Field(
        0.02,
        ge=0,
        description="By how much the objective of a group may be worse; a share of the champion's for errors.",
    )
    max_ece_loss: float = Field(0.02, ge=0, description="By how much the expected calibration error may be higher.")
    max_brier_loss: float = Field(0.01, ge=0, description="By how much the Brier score may be higher.")
    max_latency_ms: float = Field(100.0, gt=0, description="Most milliseconds for one row, 95th percentile.")
    max_golden_difference: float | None = Field(
        None, ge=0, description="Largest difference of a golden score; default: what a bundle is verified with."
    )
    image: Literal["optional", "required"] = Field(
        "optional", description="Whether an unknown image digest is a warning or refuses the promotion."
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="Resamples of the bootstrap over test rows.")


class Experiment(Section):
    """One experiment, complete and consistent, as `load` checked it.

    Relative paths start at ``root``, the file's folder; ``overrides`` are already applied.
    """

    name: str = Field(pattern=NAME_PATTERN, max_length=LONGEST_NAME, description="Optuna study and MLflow experiment.")
    description: str = Field("", description="One line for people.")
    seed: int = Field(0, ge=0, lt=2**32, description="Every random number follows from it.")
    backend: Backend = Field("tensorflow", description="Backend of Keras.")
    deterministic: bool = Field(
        False,
        description="Use deterministic operations only (TensorFlow): the same weights again on GPUs too, more slowly.",
    )
    precision: Annotated[Precision, Later("float32")] = Field(
        "float32",
        description="In what trials compute: `mixed_float16` and `mixed_bfloat16` in 16 bits, with float32 weights and "
        "outputs (Keras' mixed precision). `auto`: `mixed_bfloat16` on GPUs of compute capability 8.0 and more, "
        "`mixed_float16` on 7.x, else `float32`. A registered model computes in float32.",
    )
    data: DataSpec
    preprocessing: PreprocessingSpec = Field(default_factory=PreprocessingSpec)
    model: ModelSpec = Field(default_factory=ModelSpec)
    objective: ObjectiveSpec
    study: StudySpec = Field(default_factory=StudySpec)
    constraints: ConstraintsSpec = Field(default_factory=ConstraintsSpec)
    baselines: BaselinesSpec = Field(default_factory=BaselinesSpec)
    confirm: ConfirmSpec = Field(default_factory=ConfirmSpec)
    ensemble: EnsembleSpec = Field(default_factory=EnsembleSpec)
    workers: WorkersSpec = Field(default_factory=WorkersSpec)
    tracking: TrackingSpec = Field(default_factory=TrackingSpec)
    promotion: PromotionSpec = Field(default_factory=PromotionSpec)
    root: Path = Field(Path(), exclude=True)
    overrides: tuple[str, ...] = Field((), exclude=True)
    code: SkipValidation[Code | None] = Field(None, exclude=True)
    source_code: SkipValidation[Code | None] = Field(None, exclude=True)

    @property
    def hyperparameters(self) -> Mapping[str, Hyperparameter]:
        """What [model.search] may hold.

        Without the source of an own builder, as in a record that is only read, what its parameters are is not known.
        """
        if self.code is not None:
            return self.code.hyperparameters
        return {} if is_own(self.model.builder) else hyperparameters_of(self.model.builder)

    @property
    def builder(self) -> str | Code:
        """What `forge_sweep.models` builds with: a name, or the source of an own builder.

        Raises:
            InputError: the experiment was restored from a record, and its builder's source is not there.
        """
        if self.code is None and is_own(self.model.builder):
            raise InputError(
                f"the source of {self.model.builder} is not here",
                hint="put its file beside the experiment file, as it was",
            )
        return self.code or self.model.builder

    @property
    def direction(self) -> Direction:
        """Of the objective."""
        assert self.objective.direction is not None  # resolved by load
        return self.objective.direction

    @property
    def steps(self) -> StudySpec:
        """``[study]`` in the steps that a trial reports and a pruner judges: epochs, or whole folds or rungs."""
        if self.trainings == 1:
            return self.study
        return self.study.model_copy(update={"epochs": self.trainings, "warmup_epochs": 1})

    @property
    def trainings(self) -> int:
        """How many trainings a trial is: one for each fold, or for each rung of ``study.fidelity = "rows"``, or 1."""
        return len(ROW_SHARES) if self.study.fidelity == "rows" else self.data.split.trainings

    @property
    def averaged(self) -> int:
        """How many networks are registered as one: those of all folds where ``data.split.final`` says so, or 1."""
        return self.data.split.trainings if self.data.split.final == "average" else 1

    @property
    def step(self) -> str:
        """What trials report after: ``epoch``, ``fold`` or ``rung``."""
        return "rung" if self.study.fidelity == "rows" else "epoch" if self.trainings == 1 else "fold"

    @property
    def directions(self) -> dict[str, Direction]:
        """Of all objectives, by name, the one of ``metric`` first."""
        further = self.objective.names[1:]
        known = {f"val_{name}": better for name, better in self.objective.known(self.data).items()} if further else {}
        known |= {"val_loss": "minimize", **MEASURES}
        return {self.objective.metric: self.direction, **{name: known[name] for name in further}}

    @property
    def measures(self) -> tuple[str, ...]:
        """What is measured of a trained model: what is limited, and what is an objective."""
        return tuple(name for name in MEASURES if name in {*self.constraints.limits, *self.objective.names})

    @property
    def prunes_by_measures(self) -> bool:
        """Whether trials are measured before they are trained, for the pruner."""
        return self.study.pruner == "dominated" and any(name in MEASURES for name in self.objective.names)

    @property
    def baseline_timeout_s(self) -> float:
        """Seconds after which a baseline is given up."""
        return self.baselines.timeout_s or self.study.trial_timeout_s or 3600.0

    @property
    def first_look_s(self) -> float:
        """Seconds after which a baseline is given up that is fitted before the search."""
        if self.baselines.timeout_s or self.study.total_s is None:
            return self.baseline_timeout_s
        return min(self.baseline_timeout_s, self.study.total_s / 10)

    @property
    def tune_timeout_s(self) -> float:
        """Seconds for the tuning of trees."""
        limit = self.study.timeout_s or self.study.total_s
        default = 30.0 if limit is None else limit / 10
        return (self.baselines.tune.timeout_s if self.baselines.tune else None) or default

    @property
    def model_name(self) -> str:
        """Name of the registered model."""
        return self.tracking.model_name or self.name

    @property
    def space(self) -> dict[str, Dimension | Scalar]:
        """The search space with its defaults, in one fixed order; conditional ones come after their conditions."""
        values = {name: self.model.search.get(name, known.default) for name, known in self.hyperparameters.items()}
        values |= self.model.search
        space = [(name, value) for name, value in values.items() if value is not None]
        return dict(sorted(space, key=lambda item: isinstance(item[1], Dimension) and bool(item[1].when)))

    @property
    def first(self) -> Params:
        """What trial 0 has of the searched hyperparameters: the values that its builder's authors recommend.

        Empty where it is sampled like the others: of a builder that is not the package's, of `mlp` with a space of the
        user's own, on a grid, and where a recommended value lies outside the space.
        """
        known, searched = NETWORKS.get(self.model.builder), self.model.search
        of_user = self.model.builder == "mlp" and (known is None or searched != dict(known.search))
        if known is None or of_user or self.study.sampler == "grid":
            return {}
        defaults = {
            name: each.default for name, each in known.hyperparameters.items() if each.default is not None
        } | known.start
        first: Params = {}
        for name, value in self.space.items():
            if not isinstance(value, Dimension):
                continue
            wanted = defaults.get(name)
            if not value.active({**defaults, **first}):
                continue
            if wanted is None or not value.holds(wanted):
                return {}
            first[name] = wanted
        return first

    @property
    def scalers(self) -> tuple[str, ...]:
        """Every scaler that a trial may use."""
        value = self.space.get("scaler", self.preprocessing.scaler)
        return tuple(map(str, value.choices)) if isinstance(value, Dimension) else (str(value),)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is right and surely not meant, such as ends of ranges that no trial will have."""
        found = []
        patience, epochs = self.study.patience, self.study.epochs
        if "patience" in self.study.model_fields_set and patience >= epochs:
            found.append(
                f"study.patience: {patience} epochs without improvement never pass in epochs = {epochs}; "
                f"no trial stops early. fix: patience = {max(1, epochs // 4)} under [study], or more epochs "
                "[patience-too-long]"
            )
        if self.trainings > 1 and "warmup_epochs" in self.study.model_fields_set:
            found.append(
                f"study.warmup_epochs: {self.study.warmup_epochs} epochs do not count here: trials are pruned after "
                f"whole {self.step}s, from the first one on. fix: leave warmup_epochs out"
            )
        if self.data.heads and self.baselines.kinds:
            found.append(
                "[data.heads]: trees predict one target, so that a constant is the only baseline. "
                "fix: sweep each target by itself to compare with trees, and set baselines.kinds = [] here"
            )
        if self.study.repeats == "average" and self.study.pruner != "none":
            found.append(
                'study.repeats: "average" is the mean over the seeds that finished, and study.pruner = '
                f'"{self.study.pruner}" takes the worse ones out of it. fix: pruner = "none" under [study]'
            )
        for name, value in self.model.search.items():
            if not isinstance(value, Dimension):
                continue
            if value.type != "categorical" and value.last != value.high:
                found.append(
                    f"model.search.{name}: high = {value.high:g} is never tried; from low = {value.low:g} in steps of "
                    f"{value.step:g} the last value is {value.last:g}. fix: set high = {value.last:g}, or another step"
                )
            for other, wanted in value.when.items():
                target = self.model.search.get(other)
                found += [
                    f"model.search.{name}.when: {other} is never {each}: its step leads past it. "
                    f"fix: name a value that {other} has"
                    for each in wanted
                    if isinstance(target, Dimension) and not target.holds(each)
                ]
        return tuple(found)

    def resolved(self) -> dict[str, Any]:
        """The whole experiment with its defaults, as JSON values."""
        return self.model_dump(mode="json")

    def contract(self, *, search: bool = True) -> str:
        """SHA-256 (hex) of everything that decides what a trial is, that is all but `BUDGET_FIELDS`.

        Without ``search``, of what decides it beside its parameters.
        """
        later = _before(type(self))
        resolved = self.resolved()
        if not search:
            del resolved["model"]["search"]
        flat = flatten(resolved).items()
        fields = {path: v for path, v in flat if not is_budget(path) and not (path in later and later[path] == v)}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def differences(self, recorded: Mapping[str, Any]) -> dict[str, str]:
        """What decides a trial and differs from a recorded experiment, as ``study.epochs: 20 -> 30`` by TOML path.

        The order of keys, the spelling of a number and a default that is written out are no difference. A key that the
        record lacks has its default, see also `Later`; one that this version does not know counts as it stands.
        """
        old, new = (_meaning(values, type(self), self.hyperparameters) for values in (recorded, self.resolved()))
        paths = [path for path in [*new, *sorted(set(old) - set(new))] if not is_budget(path)]
        return {p: f"{p}: {_shown(old, p)} -> {_shown(new, p)}" for p in paths if _plain(old, p) != _plain(new, p)}


def _before(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """What each field marked `Later` was before, by TOML path."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if section := section_of(field):
            found |= _before(section, f"{prefix}{name}.")
        found |= {f"{prefix}{name}": mark.before for mark in field.metadata if isinstance(mark, Later)}
    return found


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _meaning(
    values: Mapping[str, Any], model: type[BaseModel], hyperparameters: Mapping[str, Hyperparameter]
) -> dict[str, Any]:
    """A recorded experiment by TOML path, complete; hyperparameters fixed at their default left out."""
    complete = _complete(values, model)
    search = complete["model"]["search"]
    complete["model"]["search"] = {
        name: _complete(value, Dimension) if isinstance(value, Mapping) else value
        for name, value in search.items()
        if name not in hyperparameters or value != hyperparameters[name].default
    }
    return flatten(json.loads(json.dumps(complete)))


def _complete(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    complete = dict(values)
    for name, field in model.model_fields.items():
        section, later = section_of(field), [mark.before for mark in field.metadata if isinstance(mark, Later)]
        if section is not None:
            complete[name] = _complete(values.get(name, {}), section)
        elif name not in values and not field.exclude and not field.is_required():
            default = later[0] if later else field.get_default(call_default_factory=True)
            complete[name] = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
    return complete


def _plain(fields: Mapping[str, Any], path: str) -> str:
    """A value for comparison: 1 and 1.0 are equal, 1 and true are not."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(each) for each in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return json.dumps(plain(fields[path])) if path in fields else ""


def _shown(fields: Mapping[str, Any], path: str) -> str:
    return json.dumps(fields[path]) if path in fields else "(none)"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested table as ``{"study.n_trials": 40, ...}``; an empty table is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat |= flatten(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
    return flat


def is_budget(path: str) -> bool:
    """Whether a TOML path belongs to `BUDGET_FIELDS`."""
    return any(path == field or path.startswith(f"{field}.") for field in BUDGET_FIELDS)


def derived_seed(root: int, *purpose: str | int) -> int:
    """A 32-bit seed from the experiment's seed and what it is for, such as ``("trial", 7)``.

    Hashed (BLAKE2b), so that neighbouring trials and experiments share nothing; equal on every machine.
    """
    text = ":".join(map(str, (root, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
