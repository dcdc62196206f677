"""The data audit that stands before every sweep, and the histograms that go with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from forge_sweep.checks import columns, leaks, splits
from forge_sweep.checks.evidence import Evidence
from forge_sweep.checks.findings import Finding

if TYPE_CHECKING:
    from forge_sweep.experiment import PreprocessingSpec
    from forge_sweep.sources.base import Dataset
    from forge_sweep.task import TaskKind

Rule = Callable[[Evidence], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    columns.target_missing,
    columns.infinite_values,
    columns.all_missing,
    columns.unscaled_range,
    columns.outlying_value,
    columns.numbers_as_text,
    columns.digits_lost,
    leaks.target_copy,
    leaks.target_leak,
    splits.duplicated_rows,
    splits.class_coverage,
    splits.class_imbalance,
    splits.few_rows_per_class,
    splits.class_shift,
    splits.mean_shift,
    splits.unseen_categories,
    columns.constant_feature,
    columns.duplicate_features,
    columns.id_like,
    columns.many_missing,
)

MAX_FINDINGS_PER_RULE = 10
MAX_NAMED = 30
HISTOGRAM_ROWS = 10_000
HISTOGRAM_COLUMNS = 100

_SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True, eq=False)
class Audit:
    """What the audit found.

    Attributes:
        findings: errors first, then warnings, then infos; of one rule and severity at most 10, and one that names the
            rest.
        features: figures over the train rows, one row per feature (index ``feature``): ``dtype``, ``min``, ``max``,
            ``mean``, ``std``, ``missing``, ``inf``, ``distinct``; see ``evidence.profile``.
    """

    findings: tuple[Finding, ...]
    features: pd.DataFrame


def audit(dataset: Dataset, task_kind: TaskKind, preprocessing: PreprocessingSpec, *, scaled: bool) -> Audit:
    """Look for what makes training fail in silence or scores lie.

    Pure: the same data gives the same findings. Test features and targets are never read; rows shared with test are
    found by the fingerprints that the source took. What a single feature tells is measured on at most 20,000 rows,
    chosen by a fixed seed.

    Args:
        dataset: the split data.
        task_kind: the task.
        preprocessing: the preprocessing section, for the fix of an unscaled range.
        scaled: False when any scaler a trial may use is "none".

    Returns:
        The findings (``rows`` are positions in the source) and the feature table.
    """
    evidence = Evidence(dataset, task_kind, preprocessing.scaler, scaled)
    found = (finding for rule in RULES for finding in _bounded(rule(evidence)))
    return Audit(tuple(sorted(found, key=_severity)), evidence.features)


def histograms_html(dataset: Dataset) -> str:
    """Distributions of features and targets over train, as one HTML page that needs no network.

    Bounded to 10,000 rows (chosen by a fixed seed) and 100 columns (the targets and the first features); its title
    says so. Infinite values are left out: they have no place on an axis, and the audit reports them.
    """
    from skrub import TableReport

    train = dataset.train
    frame = pd.concat([train.targets, train.features], axis=1).iloc[:, :HISTOGRAM_COLUMNS]
    picked = np.random.default_rng(0).permutation(len(frame))[:HISTOGRAM_ROWS]
    title = f"{dataset.version}: {len(picked)} of {len(frame)} train rows, {frame.shape[1]} columns"
    shown = frame.iloc[np.sort(picked)].reset_index(drop=True).replace([np.inf, -np.inf], np.nan)
    report = TableReport(
        shown, title=title, verbose=0, plot_distributions=True, compute_associations=False, open_tab="distributions"
    )
    return str(report.html())


def _bounded(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The first findings of each severity of one rule, and one that names the rest."""
    for _, group in groupby(sorted(findings, key=_severity), key=_severity):
        same = list(group)
        yield from same[:MAX_FINDINGS_PER_RULE]
        if rest := same[MAX_FINDINGS_PER_RULE:]:
            names = [finding.subject for finding in rest]
            named = ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
            yield replace(rest[0], subject=f"{len(rest)} more", seen=f"the same holds for {named}", rows=())


def _severity(finding: Finding) -> int:
    return _SEVERITIES.index(finding.severity)
