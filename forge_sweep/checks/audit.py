"""The data audit that stands before every sweep, and the histograms that go with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from forge_sweep.checks import arrays, columns, labels, leaks, pairs, splits
from forge_sweep.checks.evidence import Arrays, Evidence, Rule
from forge_sweep.checks.findings import Finding
from forge_sweep.preprocessing import is_tensor

if TYPE_CHECKING:
    from forge_sweep.experiment import HeadSpec, PreprocessingSpec
    from forge_sweep.sources.base import Dataset
    from forge_sweep.task import TaskKind

RULES: tuple[Rule, ...] = (
    columns.target_missing,
    columns.infinite_values,
    columns.all_missing,
    columns.empty_rows,
    columns.unscaled_range,
    columns.outlying_value,
    columns.numbers_as_text,
    columns.digits_lost,
    leaks.target_copy,
    leaks.target_leak,
    pairs.target_leak_pair,
    labels.row_order,
    labels.labels_shifted,
    labels.labels_unrelated,
    leaks.groups_across_splits,
    splits.scaled_on_all_rows,
    splits.duplicated_rows,
    splits.class_absent_from_train,
    splits.class_absent_from_valid,
    splits.class_imbalance,
    splits.imbalanced_accuracy,
    splits.few_rows_per_class,
    splits.class_shift,
    splits.mean_shift,
    splits.unseen_categories,
    columns.constant_feature,
    columns.duplicate_features,
    columns.id_like,
    columns.many_missing,
    arrays.blank_arrays,
    arrays.repeated_arrays,
    arrays.array_range,
    arrays.left_out,
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
            rest. Their ``rows`` are positions in the source.
        features: figures over the train rows; see ``evidence.profile``.
    """

    findings: tuple[Finding, ...]
    features: pd.DataFrame


def audit(
    dataset: Dataset,
    task_kind: TaskKind,
    preprocessing: PreprocessingSpec,
    *,
    scaled: bool,
    heads: Mapping[str, HeadSpec] | None = None,
    images: Collection[str] = (),
    metric: str = "",
    split: str = "",
) -> Audit:
    """Look for what makes training fail in silence or scores lie.

    Pure: the same data gives the same findings. Test features and targets are never read; rows shared with test are
    found by the fingerprints that the source took. What a single feature tells is measured on at most 20,000 rows,
    chosen by a fixed seed. ``scaled`` is False when any scaler that a trial may use is "none". Each of several
    ``heads`` is looked at by itself. ``images`` are columns of arrays that the network gets as 0..1. ``metric`` and
    ``split`` are those of `Evidence`.
    """
    table, arrays, found = table_of(dataset), Arrays.of(dataset, images), dict[Finding, None]()
    tasks = [(head.task, list(head.target)) for head in (heads or {}).values()]
    for kind, targets in tasks or [(task_kind, [*dataset.train.targets])]:
        train, valid = (replace(split, targets=split.targets[targets]) for split in (table.train, table.valid))
        evidence = Evidence(
            replace(table, train=train, valid=valid), kind, preprocessing.scaler, scaled, arrays, metric, split
        )
        found |= dict.fromkeys(finding for rule in RULES for finding in _bounded(rule(evidence)))
    return Audit(tuple(sorted(found, key=_severity)), evidence.features)


def table_of(dataset: Dataset) -> Dataset:
    """The dataset without its columns of arrays; its fingerprints stay those of whole rows."""
    names = [name for name in dataset.train.features if is_tensor(dataset.train.features[name])]
    if not names:
        return dataset
    splits = (replace(split, features=split.features.drop(columns=names)) for split in (dataset.train, dataset.valid))
    train, valid = splits
    return replace(dataset, train=train, valid=valid)


def histograms_html(dataset: Dataset) -> str:
    """Distributions of features and targets over train, as one HTML page that needs no network.

    Bounded to 10,000 rows (chosen by a fixed seed) and 100 columns; its title says so. Infinite values, which have no
    place on an axis, are left out.
    """
    from skrub import TableReport

    train = table_of(dataset).train
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
