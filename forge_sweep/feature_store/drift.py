"""How the distributions of one version in the feature store differ from those of another, and what it does to models.

Training and validation rows only. The measures and tests are those of `forge_sweep.checks.drift`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep import training, trial
from forge_sweep.bundle import Bundle, ready_backend
from forge_sweep.checks.drift import ColumnDrift, Drift
from forge_sweep.checks.findings import Finding
from forge_sweep.errors import DataError, ForgeSweepError
from forge_sweep.feature_store.connection import Address
from forge_sweep.feature_store.diff import TRAIN, VAL
from forge_sweep.feature_store.source import VisibleRows, as_split, visible
from forge_sweep.feature_store.words import counted, listed, named
from forge_sweep.sources import Split

if TYPE_CHECKING:
    from forge_sweep.feature_store.versions import Version
    from forge_sweep.tracking import ModelVersion

LISTED = 20
"""So many columns the terminal shows, and every drifted one."""


@dataclass(frozen=True)
class DriftReport:
    """Two versions compared.

    Attributes:
        a: the reference, ``<name>@<first 12 digits of the digest>``.
        b: the current one, likewise.
        drift: every column, drifted ones first, the largest effect first.
        shared: rows of B that equal a row of A in every feature; None where B lacks features of A.
        models: registered models that were trained on A, on the validation rows of both.
        validation: how many rows they were scored on, of A and of B.
        known: validation rows of B that were left out of it: they have the features of a training row of A.
        models_why: why the models could not be looked up, or "".
    """

    a: str
    b: str
    drift: Drift
    shared: int | None = None
    models: tuple[ModelScore, ...] = ()
    validation: tuple[int, int] = (0, 0)
    known: int = 0
    models_why: str = ""

    @property
    def drifted(self) -> bool:
        """Whether a column drifted, came, went or changed its type."""
        return bool(self.drift.findings)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """One finding per column that drifted, came, went or changed its type."""
        return self.drift.findings

    def to_dict(self) -> dict[str, Any]:
        """JSON values; what cannot be computed is None."""
        columns = [_column_dict(column) for column in self.drift.columns]
        models = [
            {**asdict(model), "a": _finite(model.a), "b": _finite(model.b), "worse": model.worse}
            for model in self.models
        ]
        return {
            **asdict(replace(self, models=(), drift=replace(self.drift, columns=()))),
            "drifted": [column.name for column in self.drift.drifted],
            "columns": columns,
            "models": models,
        }

    def lines(self) -> list[str]:
        """The report for a terminal."""
        return [*_head_lines(self), *_column_lines(self.drift), *_model_lines(self)]


def drift(a: str, b: str, *, store: Path) -> DriftReport:
    """Compare the distributions of two versions in the store that ``FORGE_SWEEP_DATABASE_URL`` names.

    Args:
        a: name of the reference.
        b: name of the current version.
        store: folder of the embedded MLflow store, where models that were trained on A are looked for.

    Raises:
        DataError: there is no such version, or its rows are not those that were ingested.
        StoreDown: the feature store cannot be reached.
    """
    address = Address.from_environment()
    one, other = (visible(address, name) for name in (a, b))
    report = DriftReport(one.version.version, other.version.version, one.drift(other), _shared_rows(one, other))
    return _with_models(report, one, other, store)


def _shared_rows(a: VisibleRows, b: VisibleRows) -> int | None:
    prints = b.prints_as(a.version)
    return None if prints is None else int(np.isin(prints, a.prints()).sum())


def _with_models(report: DriftReport, a: VisibleRows, b: VisibleRows, store: Path) -> DriftReport:
    from forge_sweep.tracking import models_trained_on

    try:
        models = models_trained_on(a.version.version, store)
    except ForgeSweepError as error:  # the columns are compared whether MLflow answers or not
        return replace(report, models_why=" ".join(error.message.split()))
    if not models:
        return report
    validation = ValidationRows.of(a, b)
    return replace(
        report,
        models=_scored(models, validation, store),
        validation=(len(validation.of_a.rows), len(validation.of_b.rows)),
        known=validation.known,
    )


def _column_dict(column: ColumnDrift) -> dict[str, Any]:
    values = asdict(column)
    psi, distance = values.pop("chance")
    values |= {"chance_psi": psi, "chance_distance": distance}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def _head_lines(report: DriftReport) -> Iterator[str]:
    found = report.drift
    yield f"A  {report.a}: {counted(found.rows[0], 'row')}"
    yield f"B  {report.b}: {counted(found.rows[1], 'row')}"
    yield "training and validation rows; test rows are not read"
    if report.shared:
        yield f"{report.shared:,} rows of B equal a row of A in every feature, which makes drift look smaller"
    yield verdict(found)
    for what, names in (("only in B", found.added), ("only in A", found.gone), ("of another type", found.retyped)):
        if names:
            yield f"{counted(len(names), 'column')} {what}: {listed(names)}"


def verdict(found: Drift) -> str:
    """Which columns drifted, and how often chance alone would say so."""
    names = [column.name + (" (label shift)" if column.target else "") for column in found.drifted]
    said = f"{len(names)} of {counted(len(found.columns), 'column')} drifted"
    said += f": {listed(names)}" if names else ""
    return f"{said}; where nothing drifted, the chance of any flag is at most {found.alpha:.0%}"


HEADER = ("column", "PSI", "by chance", "distance", "missing A", "missing B", "adjusted p", "")


def _column_lines(found: Drift) -> list[str]:
    shown = found.columns[: max(LISTED, len(found.drifted))]
    cells = [HEADER, *(_column_cells(column) for column in shown)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADER))]
    table = ["  ".join(_aligned(row, widths)).rstrip() for row in cells] if shown else []
    more = len(found.columns) - len(shown)
    rest = [f"and {more:,} columns of smaller effect"] if more else []
    return ["", *table, *rest, *(line for column in shown for line in _category_lines(column))]


def _column_cells(column: ColumnDrift) -> tuple[str, ...]:
    sign = ("label shift" if column.target else "drift") if column.drifted else "target" if column.target else ""
    figures = f"{column.psi:.3f}", f"{column.chance[0]:.3f}", f"{column.distance:.3f}"
    missing = (f"{share:.1%}" for share in column.missing)
    return (named(column.name), *figures, *missing, p_text(column), sign)


def p_text(column: ColumnDrift) -> str:
    """The adjusted p-value; a dash where nothing could be tested."""
    tested = not (math.isnan(column.p) and math.isnan(column.missing_p))
    return f"{column.adjusted:.2g}" if tested else "-"


def _aligned(row: tuple[str, ...], widths: list[int]) -> Iterator[str]:
    for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if i in (0, len(row) - 1) else cell.rjust(width)


def _category_lines(column: ColumnDrift) -> Iterator[str]:
    if column.new:
        share = f"{column.new_share:.1%} of the values in B"
        yield f"{named(column.name)}: new categories, {share}: {listed(column.new, column.new_count)}"
    if column.gone:
        yield f"{named(column.name)}: gone categories: {listed(column.gone, column.gone_count)}"


def _model_lines(report: DriftReport) -> Iterator[str]:
    """The models that were trained on A, each with its metrics on A and on B."""
    yield ""
    if report.models_why:
        yield f"models trained on {report.a} were not looked up: {report.models_why}"
    elif not report.models:
        yield f"no registered model was trained on {report.a}"
    else:
        yield f"registered models trained on {report.a}: {scored_on(report)}"
        yield from (f"  {_model_line(model)}" for model in report.models)


def scored_on(report: DriftReport) -> str:
    """Which rows the models are scored on."""
    a, b = report.validation
    known = f" (without {report.known:,} that are training rows of A)" if report.known else ""
    return f"{counted(a, 'validation row')} of A -> {b:,} of B{known}"


def _model_line(model: ModelScore) -> str:
    """``models:/fraud/3 (champion, network): auc 0.91 -> 0.85, worse; ...``."""
    about = ", ".join([*model.aliases, *([model.kind] if model.kind else [])])
    head = f"{model.uri} ({about})" if about else model.uri
    if model.why:
        return f"{head}: not scored: {model.why}"
    objective = f"{metric_text(model, model.objective)}{', worse' if model.worse else ''}"
    others = ", ".join(metric_text(model, name) for name in model.a if name != model.objective)
    return f"{head}: {objective}" + (f"; {others}" if others else "")


def metric_text(model: ModelScore, name: str) -> str:
    """``auc 0.9123 -> 0.8456``."""
    return f"{name} {model.a[name]:.4g} -> {model.b[name]:.4g}"


SCORED = 20
"""So many models are scored: those with an alias, then the newest."""


@dataclass(frozen=True)
class ModelScore:
    """A registered model that was trained on A, on the validation rows of A and of B.

    Attributes:
        uri: ``models:/NAME/VERSION``.
        aliases: such as ``champion``.
        kind: ``network``, or the kind of the baseline; "" where it could not be read.
        objective: metric that its sweep optimised, such as ``auc``; likewise.
        better: whether more (``maximize``) or less of it is better; likewise.
        a: its metrics on A by name; nan where one cannot be computed; empty where it was not scored.
        b: its metrics on B, likewise.
        why: why it was not scored, or "".
    """

    uri: str
    aliases: tuple[str, ...]
    kind: str = ""
    objective: str = ""
    better: str = ""
    a: dict[str, float] = field(default_factory=dict)
    b: dict[str, float] = field(default_factory=dict)
    why: str = ""

    @property
    def worse(self) -> bool:
        """Whether the objective is worse on B."""
        if not (self.a and self.b):
            return False
        change = self.b[self.objective] - self.a[self.objective]
        return change < 0 if self.better == "maximize" else change > 0


@dataclass(frozen=True, eq=False)
class ValidationRows:
    """What models are scored on.

    Attributes:
        a: the version they were trained on.
        b: the newer one.
        of_a: validation rows of A.
        of_b: those of B whose features are not those of a training row of A.
        known: how many are, and were left out: the model has seen them.
    """

    a: Version
    b: Version
    of_a: Split
    of_b: Split
    known: int

    @classmethod
    def of(cls, a: VisibleRows, b: VisibleRows) -> ValidationRows:
        """From the visible rows of both."""
        valid = b.of_split(VAL)
        prints, seen = valid.prints_as(a.version), a.of_split(TRAIN).prints()
        known = np.zeros(len(valid.block.splits), bool) if prints is None else np.isin(prints, seen)
        unseen = valid.block.take(np.flatnonzero(~known))
        on_a = as_split(a.version, a.of_split(VAL).block)
        return cls(a.version, b.version, on_a, as_split(b.version, unseen), int(known.sum()))


def _scored(models: Sequence[ModelVersion], validation: ValidationRows, store: Path) -> tuple[ModelScore, ...]:
    """Score models that were trained on A; one that cannot be scored says why. Keras is loaded for networks only.

    Args:
        models: in order.
        validation: what they are scored on.
        store: folder of the embedded stores.
    """
    found = [_score(model, validation, store) for model in models[:SCORED]]
    why = f"only the first {SCORED} models are scored, those with an alias and then the newest"
    return (*found, *(ModelScore(model.uri, model.aliases, why=why) for model in models[SCORED:]))


def _score(model: ModelVersion, validation: ValidationRows, store: Path) -> ModelScore:
    from forge_sweep.tracking import fetched

    about = ModelScore(model.uri, model.aliases)
    try:
        with fetched(model, store) as folder:
            ready_backend(folder)
            bundle = Bundle.load(folder)
        about = _described(about, bundle)
        _refuse_other(bundle, validation)
        return replace(about, a=_metrics(bundle, validation.of_a), b=_metrics(bundle, validation.of_b))
    except ForgeSweepError as error:
        return replace(about, why=" ".join(error.message.split()))
    finally:
        training.release()  # does nothing where Keras is not loaded


def _described(about: ModelScore, bundle: Bundle) -> ModelScore:
    declared = bundle.metadata.get("experiment", {}).get("objective", {}).get("metric", "val_loss")
    metric = bundle.task.scored_as(str(declared))
    return replace(about, kind=bundle.kind, objective=metric, better=bundle.task.direction(metric))


def _refuse_other(bundle: Bundle, validation: ValidationRows) -> None:
    a, b = validation.a, validation.b
    if bundle.metadata.get("split_digest") != a.split_digest:
        raise DataError(f"it was trained on another split of the rows of {a.version}")
    if bundle.task.kind != b.task:
        raise DataError(f"it is for a {bundle.task.kind} task, and {b.name} is for {b.task}")
    if not len(validation.of_b.rows):
        raise DataError(f"every validation row of {b.name} is a training row of {a.name}")


def _metrics(bundle: Bundle, split: Split) -> dict[str, float]:
    """Metrics of a bundle by name; columns that it does not know are no reason to fail."""
    wanted = [name for name in bundle.preprocessor.schema.names if name in split.features]
    found = trial.score(bundle, replace(split, features=split.features[wanted]), "on")
    return {name.removeprefix("on_"): value for name, value in found.items()}


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
