"""Gates on the test rows: no worse than the best baseline, better than the champion by more than chance?

What they go by is in `measured`: figures that came with the version, or of one recorded look at the candidate's frozen
test rows. Rows that the champion was trained on or chosen by are left out, by the fingerprints of their features
(docs/decisions/0004), since it would know the answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep import training, trial
from forge_sweep.checks.findings import Finding, Severity
from forge_sweep.errors import ForgeSweepError, TrackingDown
from forge_sweep.experiment import derived_seed
from forge_sweep.registry.candidate import Candidate, Terms
from forge_sweep.registry.gates import passed
from forge_sweep.registry.measured import (
    GroupGain,
    Measured,
    Question,
    Versus,
    answers_of,
    brought_along,
    keep,
    kept,
    measured,
)
from forge_sweep.task import LEVEL, SEED, Gain
from forge_sweep.tracking import Registry

if TYPE_CHECKING:
    from forge_sweep.experiment import Experiment
    from forge_sweep.sources import Dataset

LEDGER = "test_looks.jsonl"
FEW = 2
"""So many evaluations on the same test rows are not worth a warning."""

SAME_FIT = 1e-6
"""By how much the validation score of a baseline that is fitted again may differ, in proportion above 1."""

UNBOUNDED = ("rmse", "mae", "medae", "log_loss")
"""Metrics without an upper end: a margin of theirs is a share of the champion's value."""


@dataclass(frozen=True)
class Contest:
    """How it ended.

    Attributes:
        findings: of every gate.
        figures: for the ledger.
    """

    findings: tuple[Finding, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)


def contest(
    candidate: Candidate,
    champion: Candidate | None,
    terms: Terms,
    registry: Registry,
    *,
    unknown: str = "",
    gone: str = "",
) -> Contest:
    """Judge a candidate on its test rows; where that takes a look at them, it is recorded and its figures are kept.

    Args:
        candidate: what is judged.
        champion: what it has to beat; None where there is none or it cannot be loaded.
        terms: what it is judged by.
        registry: of the models; the ledger of looks is in the folder of its store.
        unknown: why the champion cannot be loaded, or "".
        gone: what became of the champion by the ledger, where it is none any more, or "".
    """
    uri, ledger = candidate.version.uri, registry.store / LEDGER
    try:
        dataset = candidate.dataset(terms.root)
        kinds = other_baselines(candidate, terms)
        unseen, leaks = unseen_by(champion, candidate, dataset, terms)
        if champion is not None:
            unknown = incomparable(candidate, champion, dataset, unseen)
        question = Question(candidate, None if unknown else champion, dataset, unseen, kinds, terms)
        found = kept(registry, question) if question.needs_test_rows else brought_along(candidate)
        baseline = best_of(candidate, dataset, terms, kinds) if found is None else None
    except TrackingDown:
        raise
    except ForgeSweepError as error:
        fix = error.hint or "name the experiment file: --experiment FILE"
        seen = " ".join(error.message.split())
        return Contest((Finding("error", "dataset", uri, seen, "the frozen rows it was trained on", fix),))
    looked = found is None
    if found is None:
        rivals = [question.champion.version.uri] if question.champion is not None else []
        rivals += [baseline.bundle.kind] if baseline is not None else []
        purpose = f"promotion of {uri} against {' and '.join(rivals)}"
        split = dataset.look_at_test(purpose, ledger, run=candidate.version.run_id)
        found = measured(question, split, baseline)
        keep(registry, question, found)
    rows = dataset.sizes["test"]
    seen = f"{dataset.version}, split {dataset.split_digest[:12]}, {rows:,} test rows"
    findings = [
        passed("dataset", uri, seen, "the frozen rows it was trained on"),
        judged_before(dataset, ledger, looked),
        *refitted(candidate, found),
        *drifted(candidate, found),
        *leaks,
        against_baseline(candidate, found.baseline),
        *against_champion(candidate, champion, found, unknown, gone),
        *calibrated(candidate, found, terms),
        *(by_group(candidate, champion, found, terms, dataset) if found.champion is not None else ()),
    ]
    figures: dict[str, Any] = {"metric": candidate.metric, "rows": rows, "dataset": dataset.version, "looked": looked}
    if found.baseline is not None:
        figures["baseline"] = gain_dict(found.baseline.gain) | {"kind": found.baseline.name}
    if found.champion is not None:
        figures["champion"] = gain_dict(found.champion.gain) | {"version": found.champion.name}
    return Contest(tuple(findings), figures)


def judged_before(dataset: Dataset, ledger: Path, looked: bool) -> Finding:
    """How many models have been judged by the test rows."""
    evaluations = dataset.count_looks(ledger)
    severity: Severity = "info" if evaluations <= FEW else "warning"
    how = "the test rows were read for it" if looked else "from figures that are on record, without a look"
    return Finding(
        severity,
        "test-looks",
        dataset.version,
        f"evaluations on its test rows so far: {evaluations}; this comparison: {how}",
        f"few, {FEW} at most: whoever chooses by the test rows makes their scores optimistic",
        "bring new rows as a new version of the data before long",
    )


def drifted(candidate: Candidate, found: Measured) -> Iterator[Finding]:
    """Whether it answers as it did in its sweep's look at the same rows."""
    if found.drifted:
        seen = f"its scores are up to {found.off:.3g} off those of its sweep's look at the same test rows"
        fix = "compare package versions and hardware with those of the sweep"
        yield Finding("warning", "evaluation-differs", candidate.version.uri, seen, "the same scores", fix)


# Against the best baseline


def other_baselines(candidate: Candidate, terms: Terms) -> tuple[str, ...]:
    """Baselines to fit again: none where the sweep's own evaluation has the best other one, or knows of none.

    Of older versions it is the best other one, where the sweep recorded which, or else all others. A candidate that is
    a baseline itself is compared with the others, and with the constant predictor only where there is no other.
    """
    evaluation = candidate.evaluation
    if evaluation is not None and (evaluation.baseline is None or brought_along(candidate).baseline is not None):
        return ()
    recorded: dict[str, float] = candidate.metadata.get("baselines", {})
    kinds = list(recorded) or list(candidate.experiment(terms.root).baselines.kinds)
    others = [kind for kind in kinds if kind != candidate.bundle.kind]
    others = [kind for kind in others if kind != "constant"] or others
    return tuple(others[:1] if recorded else others)


def best_of(candidate: Candidate, dataset: Dataset, terms: Terms, kinds: tuple[str, ...]) -> trial.TrialResult | None:
    """The best of these baselines on validation, fitted again on the same rows with the same seed."""
    if not kinds:
        return None
    experiment = candidate.experiment(terms.root)
    sign = 1 if experiment.direction == "maximize" else -1
    return max((fit(experiment, dataset, kind) for kind in kinds), key=lambda each: sign * each.value)


def fit(experiment: Experiment, dataset: Dataset, kind: str) -> trial.TrialResult:
    """A baseline as the sweep fitted it."""
    training.select_backend(experiment.backend, experiment.deterministic)
    return trial.run_baseline(experiment, dataset, kind, derived_seed(experiment.seed, "baseline", kind))


def refitted(candidate: Candidate, found: Measured) -> Iterator[Finding]:
    """Whether a baseline that was fitted again is what it was in the sweep."""
    if found.refitted is None or found.baseline is None:
        return
    kind, metric = found.baseline.name, candidate.metadata["experiment"]["objective"]["metric"]
    expected = candidate.metadata.get("baselines", {}).get(kind)
    if expected is not None and abs(found.refitted - expected) > SAME_FIT * max(1.0, abs(expected)):
        seen = f"fitted again, its {metric} is {found.refitted:.6g}; the sweep had {expected:.6g}"
        fix = "compare package versions and hardware with those of the sweep"
        yield Finding("warning", "baseline-differs", kind, seen, "the same", fix)


def against_baseline(candidate: Candidate, against: Versus | None) -> Finding:
    """It is not worse than the best other baseline; within noise it is as good, on record as a warning.

    The constant predictor has to be beaten by more than noise: who is as good as it has learned nothing.
    """
    uri, kind = candidate.version.uri, candidate.bundle.kind
    if kind == "constant" or against is None:
        seen = "it is the constant predictor: nothing was learned" if kind == "constant" else "no baseline was fitted"
        fix = "name kinds under [baselines] and run the sweep again"
        return Finding("error", "beats-baseline", uri, seen, "at least as good as the best other baseline", fix)
    other, constant = f"the baseline {against.name}", against.name == "constant"
    seen = f"{outcome(against.gain)}: {in_words(against, other)}"
    expected = f"better than {other} by more than noise" if constant else f"not worse than {other} by more than noise"
    if against.gain.beyond_noise:
        return passed("beats-baseline", uri, seen, expected)
    if outcome(against.gain) == "as good as" and not constant:
        fix = f"nothing, or keep {other} if it is the simpler one; the promotion has it on record"
        return Finding("warning", "beats-baseline", uri, seen, expected, fix)
    keeping = "look at the data: nothing was learned" if constant else f"keep {other}"
    fix = f"search on, or {keeping}; --force REASON overrules this on the record"
    return Finding("error", "beats-baseline", uri, seen, expected, fix)


def outcome(found: Gain) -> str:
    """What may be said of a gain: ``better``, ``as good as``, ``worse``; ``not comparable`` where it is undefined."""
    if not np.isfinite([found.gain.value, found.gain.low, found.gain.high]).all():
        return "not comparable"
    return "better" if found.beyond_noise else "worse" if found.gain.high < 0 else "as good as"


def in_words(against: Versus, other: str) -> str:
    """A comparison with its interval."""
    found = against.gain
    return (
        f"{found.metric} {found.one:.4f} and {found.other:.4f} of {other} on {against.rows:,} test rows: a gain of "
        f"{found.gain.value:.4f} ({found.gain.low:.4f} to {found.gain.high:.4f}; {LEVEL:.0%} of "
        f"{against.resamples:,} paired bootstrap resamples, seed {SEED})"
    )


def gain_dict(found: Gain) -> dict[str, Any]:
    """A gain for the ledger."""
    values = {
        "candidate": found.one,
        "other": found.other,
        "gain": found.gain.value,
        "low": found.gain.low,
        "high": found.gain.high,
    }
    figures = {name: round(value, 6) if np.isfinite(value) else None for name, value in values.items()}
    return {**figures, "outcome": outcome(found)}


# Against the champion


def unseen_by(
    champion: Candidate | None, candidate: Candidate, dataset: Dataset, terms: Terms
) -> tuple[np.ndarray, list[Finding]]:
    """Which test rows (n,) the champion has not been trained on or chosen by, and what is to be said of it."""
    prints = dataset.fingerprints["test"]
    if champion is None or champion.frozen == candidate.frozen:
        return np.ones(len(prints), bool), []
    subject = champion.version.uri
    expected = "test rows that neither model was trained on"
    trained = str(champion.metadata.get("dataset_version"))
    try:
        of_champion = champion.dataset(terms.root)
    except ForgeSweepError as error:
        seen = f"it was trained on {trained}, which cannot be read: {' '.join(error.message.split())}"
        fix = "keep the rows of a champion: test rows that it was trained on make it look better than it is"
        return np.ones(len(prints), bool), [Finding("warning", "leakage", subject, seen, expected, fix)]
    if not comparable(of_champion, dataset):
        seen = f"it was trained on {trained}, whose columns differ: rows of both cannot be told"
        fix = "make sure that none of the test rows was among its training rows"
        return np.ones(len(prints), bool), [Finding("warning", "leakage", subject, seen, expected, fix)]
    known = np.concatenate([of_champion.fingerprints["train"], of_champion.fingerprints["valid"]])
    unseen = ~np.isin(prints, known)
    seen = f"it was trained on {trained}; both are scored on the candidate's test rows"
    if unseen.all():
        return unseen, [passed("leakage", subject, f"{seen}, none of which it has seen", expected)]
    seen = f"{seen}, without the {int((~unseen).sum()):,} of {len(unseen):,} that it was trained on or chosen by"
    fix = "give both the same version and split to compare them on all test rows"
    return unseen, [Finding("warning", "leakage", subject, seen, expected, fix)]


def comparable(a: Dataset, b: Dataset) -> bool:
    """Whether equal rows of the two have equal fingerprints: the same columns with the same types."""
    return dict(a.train.features.dtypes) == dict(b.train.features.dtypes)


def incomparable(candidate: Candidate, champion: Candidate, dataset: Dataset, unseen: np.ndarray) -> str:
    """Why the champion's answers cannot be compared with the candidate's, or ""; told without a look at test rows."""
    mine, its = candidate.bundle.task, champion.bundle.task
    if (mine.kind, mine.targets, mine.classes) != (its.kind, its.targets, its.classes):
        return f"it predicts {', '.join(its.targets)} ({its.kind}, classes {list(its.classes)})"
    if not unseen.any():
        return "it was trained on every test row of the candidate"
    try:
        answers_of(champion.bundle, dataset.valid, rows=1)
    except ForgeSweepError as error:
        return f"it cannot answer the candidate's rows: {' '.join(error.message.split())}"
    return ""


def against_champion(
    candidate: Candidate, champion: Candidate | None, found: Measured, unknown: str, gone: str
) -> Iterator[Finding]:
    """It beats the champion by more than noise."""
    uri, expected = candidate.version.uri, "better than the champion"
    if unknown:
        seen = f"it cannot be compared with the champion: {unknown}"
        fix = "mend what is named; --force REASON promotes without the comparison, on the record"
        yield Finding("error", "beats-champion", uri, seen, expected, fix)
        return
    if champion is None or found.champion is None:
        if gone:
            seen, fix = f"nothing to compare with: {gone}", "nothing; the promotion has it on record"
            yield Finding("warning", "beats-champion", uri, seen, expected, fix)
        else:
            yield passed("beats-champion", uri, "there is no champion to compare with", expected)
        return
    name = f"the champion {champion.version.uri}"
    if gone:
        name = champion.version.uri
        seen, fix = f"{gone}; compared with {name} in its place", "nothing; the promotion has it on record"
        yield Finding("warning", "champion-gone", uri, seen, expected, fix)
    seen = in_words(found.champion, name)
    expected = f"better than {name} by more than noise: the whole interval above 0"
    if found.champion.gain.beyond_noise:
        yield passed("beats-champion", uri, seen, expected)
        return
    fix = f"search on, or keep {name}; --force REASON overrules this on the record"
    yield Finding("error", "beats-champion", uri, seen, expected, fix)


def calibrated(candidate: Candidate, found: Measured, terms: Terms) -> Iterator[Finding]:
    """Its probabilities are as right as the champion's."""
    uri, settings, (own, its) = candidate.version.uri, terms.settings, found.calibration
    if candidate.bundle.task.kind == "regression":
        yield passed("calibration", uri, "a regression has no probabilities", "not applicable")
        return
    if own is None or its is None:
        words = ", ".join(f"{name} {value:.4f}" for name, value in (own or {}).items()) or "not recorded"
        seen = f"{words}; there is no champion to compare with"
        yield passed("calibration", uri, seen, "not worse than the champion")
        return
    for name, allowed in (("ece", settings.max_ece_loss), ("brier", settings.max_brier_loss)):
        chance = [each.get(f"{name}_by_chance", 0.0) for each in (own, its)]
        by_chance = f" (by chance {chance[0]:.4f} and {chance[1]:.4f})" if name == "ece" else ""
        seen = f"{name} {own[name]:.4f}, and {its[name]:.4f} of the champion{by_chance}"
        expected = f"at most {allowed:g} more{', less what chance gives' if by_chance else ''}"
        excess = [max(each[name] - part, 0.0) for each, part in zip((own, its), chance, strict=True)]
        if excess[0] - excess[1] <= allowed:
            yield passed("calibration", uri, seen, expected)
        else:
            fix = f"look at the card's calibration, or raise max_{name}_loss under [promotion]"
            yield Finding("error", "calibration", uri, seen, expected, fix)


def by_group(
    candidate: Candidate, champion: Candidate | None, found: Measured, terms: Terms, dataset: Dataset
) -> Iterator[Finding]:
    """No group of rows is worse off than with the champion, by more than the margin and by more than noise."""
    assert champion is not None
    columns = list(dataset.train.features)
    if not terms.settings.groups:
        seen = "no groups are named"
        expected = "columns whose groups are compared (not applicable)"
        yield passed("groups", candidate.version.uri, seen, expected)
        return
    for absent in [column for column in terms.settings.groups if column not in columns]:
        fix = f"correct groups under [promotion]; there is {', '.join(map(str, columns[:10]))}"
        yield Finding("error", "groups", absent, "no such column among the features", "a feature", fix)
    for each in found.groups:
        yield group(each, terms, f"the champion {champion.version.uri}")


def group(each: GroupGain, terms: Terms, name: str) -> Finding:
    """One group."""
    settings, subject = terms.settings, f"{each.column} = {each.category}"
    expected = f"not worse than {name} by more than {settings.max_group_loss:g} and by more than noise"
    if each.against is None:
        return passed("groups", subject, f"{each.rows} test rows, too few to judge", expected)
    found = each.against.gain
    if not np.isfinite(found.gain.value):
        return passed("groups", subject, f"{found.metric} is not defined on its {each.rows} test rows", expected)
    share = abs(found.other) if found.metric in UNBOUNDED else 1.0
    seen = f"{found.metric} {found.one:.4f} and {found.other:.4f} on {each.rows:,} rows: {found.gain.value:+.4f} "
    seen += f"({found.gain.low:.4f} to {found.gain.high:.4f})"
    if found.gain.value >= -settings.max_group_loss * share:
        return passed("groups", subject, seen, expected)
    severity: Severity = "error" if found.gain.high < 0 else "warning"
    fix = "look at these rows; give them more weight or more data, or raise max_group_loss under [promotion]"
    return Finding(severity, "groups", subject, seen, expected, fix)
