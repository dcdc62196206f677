"""How the distributions of one version in the feature store differ from those of another, and what it does to models.

Training and validation rows only. The measures and tests are those of `forge_sweep.checks.drift`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from forge_sweep.checks.drift import ColumnDrift, Drift, compare
from forge_sweep.checks.findings import Finding
from forge_sweep.data.models import ModelScore, ValidationRows, finite, scored
from forge_sweep.data.rows import Rows
from forge_sweep.data.words import counted, listed, named
from forge_sweep.errors import ForgeSweepError
from forge_sweep.sources.feature_store.address import Address
from forge_sweep.sources.feature_store.source import visible

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
        columns = [column_dict(column) for column in self.drift.columns]
        models = [
            {**asdict(model), "a": finite(model.a), "b": finite(model.b), "worse": model.worse} for model in self.models
        ]
        return {
            **asdict(replace(self, models=(), drift=replace(self.drift, columns=()))),
            "drifted": [column.name for column in self.drift.drifted],
            "columns": columns,
            "models": models,
        }

    def lines(self) -> list[str]:
        """The report for a terminal."""
        return [*head_lines(self), *column_lines(self.drift), *model_lines(self)]


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
    one, other = (Rows(*visible(address, name)) for name in (a, b))
    targets = {column.name for rows in (one, other) for column in rows.version.targets}
    labels = {
        column.name for rows in (one, other) if rows.version.task != "regression" for column in rows.version.targets
    }
    found = compare(one.frame(), other.frame(), targets=targets, discrete=labels)
    report = DriftReport(one.version.version, other.version.version, found, shared_rows(one, other))
    return with_models(report, one, other, store)


def shared_rows(a: Rows, b: Rows) -> int | None:
    """How many rows of B have the features of a row of A."""
    prints = b.prints_as(a.version)
    return None if prints is None else int(np.isin(prints, a.prints()).sum())


def with_models(report: DriftReport, a: Rows, b: Rows, store: Path) -> DriftReport:
    """The report with the scores of registered models."""
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
        models=scored(models, validation, store),
        validation=(len(validation.of_a.rows), len(validation.of_b.rows)),
        known=validation.known,
    )


def write_html(report: DriftReport, path: Path) -> None:
    """Write the report with pictures as one HTML file that loads nothing from elsewhere.

    Args:
        report: what `drift` gave.
        path: HTML file; replaced as a whole, never half-written.
    """
    from forge_sweep.data.drift_page import render

    text = render(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def column_dict(column: ColumnDrift) -> dict[str, Any]:
    """A column as JSON values."""
    values = asdict(column)
    psi, distance = values.pop("chance")
    values |= {"chance_psi": psi, "chance_distance": distance}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def head_lines(report: DriftReport) -> Iterator[str]:
    """What was compared, and the verdict."""
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


def column_lines(found: Drift) -> list[str]:
    """A table of the columns, and below it which categories came and went."""
    shown = found.columns[: max(LISTED, len(found.drifted))]
    cells = [HEADER, *(column_cells(column) for column in shown)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADER))]
    table = ["  ".join(aligned(row, widths)).rstrip() for row in cells] if shown else []
    more = len(found.columns) - len(shown)
    rest = [f"and {more:,} columns of smaller effect"] if more else []
    return ["", *table, *rest, *(line for column in shown for line in category_lines(column))]


def column_cells(column: ColumnDrift) -> tuple[str, ...]:
    """A row of the table."""
    sign = ("label shift" if column.target else "drift") if column.drifted else "target" if column.target else ""
    figures = f"{column.psi:.3f}", f"{column.chance[0]:.3f}", f"{column.distance:.3f}"
    missing = (f"{share:.1%}" for share in column.missing)
    return (named(column.name), *figures, *missing, p_text(column), sign)


def p_text(column: ColumnDrift) -> str:
    """The adjusted p-value; a dash where nothing could be tested."""
    tested = not (math.isnan(column.p) and math.isnan(column.missing_p))
    return f"{column.adjusted:.2g}" if tested else "-"


def aligned(row: tuple[str, ...], widths: list[int]) -> Iterator[str]:
    """Names to the left, figures to the right."""
    for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if i in (0, len(row) - 1) else cell.rjust(width)


def category_lines(column: ColumnDrift) -> Iterator[str]:
    """Which categories of a column came and went."""
    if column.new:
        share = f"{column.new_share:.1%} of the values in B"
        yield f"{named(column.name)}: new categories, {share}: {listed(column.new, column.new_count)}"
    if column.gone:
        yield f"{named(column.name)}: gone categories: {listed(column.gone, column.gone_count)}"


def model_lines(report: DriftReport) -> Iterator[str]:
    """The models that were trained on A, each with its metrics on A and on B."""
    yield ""
    if report.models_why:
        yield f"models trained on {report.a} were not looked up: {report.models_why}"
    elif not report.models:
        yield f"no registered model was trained on {report.a}"
    else:
        yield f"registered models trained on {report.a}: {scored_on(report)}"
        yield from (f"  {model_line(model)}" for model in report.models)


def scored_on(report: DriftReport) -> str:
    """Which rows the models are scored on."""
    a, b = report.validation
    known = f" (without {report.known:,} that are training rows of A)" if report.known else ""
    return f"{counted(a, 'validation row')} of A -> {b:,} of B{known}"


def model_line(model: ModelScore) -> str:
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
