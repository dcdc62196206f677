"""Gates on the test rows: does it beat the champion and the best baseline by more than chance, everywhere?

All are scored on the candidate's frozen test rows, in one recorded look. Rows that the champion was trained on or
chosen by are left out, by the fingerprints of their features (docs/decisions/0004), since it would know the answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep import training, trial
from forge_sweep.bundle import Bundle
from forge_sweep.bundle.figures import calibration, slices
from forge_sweep.checks.findings import Finding, Severity
from forge_sweep.errors import ForgeSweepError
from forge_sweep.experiment import derived_seed
from forge_sweep.registry.candidate import Candidate, Terms
from forge_sweep.registry.gates import passed
from forge_sweep.task import LEVEL, SEED, Answers, Gain, gain

if TYPE_CHECKING:
    from forge_sweep.experiment import Experiment
    from forge_sweep.sources import Dataset, Split

LEDGER = "test_looks.jsonl"
SAME_FIT = 1e-6
"""By how much the validation score of a baseline that is fitted again may differ, in proportion above 1."""

UNBOUNDED = ("rmse", "mae", "medae", "log_loss")
"""Metrics without an upper end: a margin of theirs is a share of the champion's value."""


@dataclass(frozen=True, eq=False)
class Ground:
    """The test rows with the candidate's answers.

    Attributes:
        candidate: what is judged.
        terms: what it is judged by.
        dataset: the rows it was trained on.
        split: the test rows.
        encoded: their targets.
        answers: the candidate's.
    """

    candidate: Candidate
    terms: Terms
    dataset: Dataset
    split: Split
    encoded: np.ndarray
    answers: Answers

    def gain(self, other: Answers, rows: np.ndarray | None = None) -> Gain:
        """The candidate's gain over another model, on all rows or on these (n,) bool."""
        chosen = np.ones(len(self.encoded), bool) if rows is None else rows
        return gain(
            self.candidate.bundle.task,
            self.encoded[chosen],
            Answers(self.answers.scores[chosen], self.answers.threshold),
            Answers(other.scores[chosen], other.threshold),
            self.candidate.metric,
            resamples=self.terms.settings.resamples,
        )


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
    candidate: Candidate, champion: Candidate | None, terms: Terms, store: Path, *, champion_why: str = ""
) -> Contest:
    """Judge a candidate on its test rows; one look is recorded.

    Args:
        candidate: what is judged.
        champion: the champion; None where there is none or it cannot be loaded.
        terms: what it is judged by.
        store: folder of the ledger of looks.
        champion_why: why the champion cannot be loaded, or "".
    """
    uri = candidate.version.uri
    try:
        dataset = candidate.dataset(terms.root)
        baseline, said = best_baseline(candidate, dataset, terms)
    except ForgeSweepError as error:
        fix = error.hint or "name the experiment file: --experiment FILE"
        seen = " ".join(error.message.split())
        return Contest((Finding("error", "dataset", uri, seen, "the frozen rows it was trained on", fix),))
    unseen, leaks = unseen_by(champion, candidate, dataset, terms)
    against = (
        f"{champion.version.uri if champion else 'no champion'} and {baseline.kind if baseline else 'no baseline'}"
    )
    ledger = store / LEDGER
    split = dataset.look_at_test(f"promotion of {uri} against {against}", ledger, run=candidate.version.run_id)
    ground = ground_of(candidate, terms, dataset, split)
    seen = f"{dataset.version}, split {dataset.split_digest[:12]}, {len(split.rows):,} test rows"
    findings = [
        passed("dataset", uri, seen, "the frozen rows it was trained on"),
        looked(dataset, ledger),
        *said,
        *leaks,
    ]
    figures: dict[str, Any] = {"metric": candidate.metric, "rows": len(split.rows), "dataset": dataset.version}
    for of_gate, of_ledger in (
        against_baseline(ground, baseline),
        against_champion(ground, champion, unseen, champion_why),
    ):
        findings += of_gate
        figures |= of_ledger
    return Contest(tuple(findings), figures)


def ground_of(candidate: Candidate, terms: Terms, dataset: Dataset, split: Split) -> Ground:
    """The candidate's answers to the test rows."""
    bundle = candidate.bundle
    answers = answers_of(bundle, split)
    return Ground(candidate, terms, dataset, split, bundle.task.encode(split.targets), answers)


def answers_of(bundle: Bundle, split: Split) -> Answers:
    """A model's answers; columns that it does not know are no reason to fail."""
    wanted = [name for name in bundle.preprocessor.schema.names if name in split.features]
    return Answers(bundle.scores(split.features[wanted]), bundle.threshold)


def looked(dataset: Dataset, ledger: Path) -> Finding:
    """How often the test rows have been looked at."""
    looks = dataset.count_looks(ledger)
    severity: Severity = "info" if looks <= 2 else "warning"  # the sweep's own and this one
    return Finding(
        severity,
        "test-looks",
        dataset.version,
        f"this is look {looks} at its test rows",
        "few: whoever chooses by the test rows makes their scores optimistic",
        "bring new rows as a new version of the data before long",
    )


# Against the best baseline


def best_baseline(candidate: Candidate, dataset: Dataset, terms: Terms) -> tuple[Bundle | None, list[Finding]]:
    """The best baseline of the candidate's sweep, fitted again on the same rows with the same seed.

    A candidate that is a baseline itself is compared with the constant predictor.
    """
    experiment = candidate.experiment(terms.root)
    recorded: dict[str, float] = candidate.metadata.get("baselines", {})
    kinds = list(recorded) or list(experiment.baselines.kinds)
    if candidate.bundle.kind in kinds:
        kinds = ["constant"] if candidate.bundle.kind != "constant" else []
    fitted = [fit(experiment, dataset, kind) for kind in (kinds[:1] if recorded else kinds)]
    if not fitted:
        return None, []
    sign = 1 if experiment.direction == "maximize" else -1
    result = max(fitted, key=lambda each: sign * each.value)
    expected = recorded.get(result.bundle.kind)
    if expected is None or abs(result.value - expected) <= SAME_FIT * max(1.0, abs(expected)):
        return result.bundle, []
    seen = f"fitted again, its {experiment.objective.metric} is {result.value:.6g}; the sweep had {expected:.6g}"
    fix = "compare package versions and hardware with those of the sweep"
    return result.bundle, [Finding("warning", "baseline-differs", result.bundle.kind, seen, "the same", fix)]


def fit(experiment: Experiment, dataset: Dataset, kind: str) -> trial.TrialResult:
    """A baseline as the sweep fitted it."""
    training.select_backend(experiment.backend, experiment.deterministic)
    return trial.run_baseline(experiment, dataset, kind, derived_seed(experiment.seed, "baseline", kind))


def against_baseline(ground: Ground, baseline: Bundle | None) -> tuple[list[Finding], dict[str, Any]]:
    """It beats the best baseline by more than noise."""
    uri = ground.candidate.version.uri
    if baseline is None:
        kind = ground.candidate.bundle.kind
        seen = "it is the constant predictor: nothing was learned" if kind == "constant" else "no baseline was fitted"
        fix = "name kinds under [baselines] and run the sweep again"
        return [Finding("error", "beats-baseline", uri, seen, "better than the best baseline", fix)], {}
    found = ground.gain(answers_of(baseline, ground.split))
    finding = judged(ground, found, "beats-baseline", f"the baseline {baseline.kind}", len(ground.encoded))
    return [finding], {"baseline": gain_dict(found) | {"kind": baseline.kind}}


def judged(ground: Ground, found: Gain, code: str, other: str, rows: int) -> Finding:
    """A gain as a finding."""
    uri, resamples = ground.candidate.version.uri, ground.terms.settings.resamples
    seen = (
        f"{found.metric} {found.one:.4f} and {found.other:.4f} of {other} on {rows:,} test rows: a gain of "
        f"{found.gain.value:.4f} ({found.gain.low:.4f} to {found.gain.high:.4f}; {LEVEL:.0%} of {resamples:,} paired "
        f"bootstrap resamples, seed {SEED})"
    )
    expected = f"better than {other} by more than noise: the whole interval above 0"
    if found.beyond_noise:
        return passed(code, uri, seen, expected)
    fix = f"search on, or keep {other}; --force REASON overrules this on the record"
    return Finding("error", code, uri, seen, expected, fix)


def gain_dict(found: Gain) -> dict[str, Any]:
    """A gain for the ledger."""
    values = {
        "candidate": found.one,
        "other": found.other,
        "gain": found.gain.value,
        "low": found.gain.low,
        "high": found.gain.high,
    }
    return {name: round(value, 6) if np.isfinite(value) else None for name, value in values.items()}


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


def against_champion(
    ground: Ground, champion: Candidate | None, unseen: np.ndarray, why: str
) -> tuple[list[Finding], dict[str, Any]]:
    """It beats the champion by more than noise, and is worse than it nowhere."""
    uri = ground.candidate.version.uri
    if champion is None and not why:
        seen = "there is no champion to compare with"
        return [passed("beats-champion", uri, seen, "better than the champion"), *calibrated(ground, None, unseen)], {}
    try:
        if champion is None:
            raise ForgeSweepError(why)
        other = champion_answers(ground, champion, unseen)
    except ForgeSweepError as error:
        seen = f"it cannot be compared with the champion: {' '.join(error.message.split())}"
        fix = "mend what is named; --force REASON promotes without the comparison, on the record"
        return [Finding("error", "beats-champion", uri, seen, "better than the champion", fix)], {}
    found = ground.gain(other, unseen)
    name = f"the champion {champion.version.uri}"
    findings = [
        judged(ground, found, "beats-champion", name, int(unseen.sum())),
        *calibrated(ground, other, unseen),
        *by_group(ground, other, unseen, name),
    ]
    return findings, {"champion": gain_dict(found) | {"version": champion.version.version}}


def champion_answers(ground: Ground, champion: Candidate, unseen: np.ndarray) -> Answers:
    """The champion's answers to the test rows.

    Raises:
        ForgeSweepError: it predicts something else, or other columns.
    """
    mine, its = ground.candidate.bundle.task, champion.bundle.task
    if (mine.kind, mine.targets, mine.classes) != (its.kind, its.targets, its.classes):
        raise ForgeSweepError(f"it predicts {', '.join(its.targets)} ({its.kind}, classes {list(its.classes)})")
    if not unseen.any():
        raise ForgeSweepError("it was trained on every test row of the candidate")
    return answers_of(champion.bundle, ground.split)


def calibrated(ground: Ground, other: Answers | None, rows: np.ndarray) -> Iterator[Finding]:
    """Its probabilities are as right as the champion's."""
    task, uri, settings = ground.candidate.bundle.task, ground.candidate.version.uri, ground.terms.settings
    own = calibration(task, ground.encoded[rows], ground.answers.scores[rows])
    if own is None:
        yield passed("calibration", uri, "a regression has no probabilities", "not applicable")
        return
    if other is None:
        words = ", ".join(f"{name} {value:.4f}" for name, value in own.items())
        yield passed(
            "calibration", uri, f"{words}; there is no champion to compare with", "not worse than the champion"
        )
        return
    its = calibration(task, ground.encoded[rows], other.scores[rows])
    assert its is not None
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


def by_group(ground: Ground, other: Answers, unseen: np.ndarray, name: str) -> Iterator[Finding]:
    """No group of rows is worse off than with the champion, by more than the margin and by more than noise."""
    settings, features = ground.terms.settings, ground.split.features
    if not settings.groups:
        seen = "no groups are named"
        expected = "columns whose groups are compared (not applicable)"
        yield passed("groups", ground.candidate.version.uri, seen, expected)
        return
    for absent in [column for column in settings.groups if column not in features]:
        fix = f"correct groups under [promotion]; there is {', '.join(map(str, list(features)[:10]))}"
        yield Finding("error", "groups", absent, "no such column among the features", "a feature", fix)
    known = [column for column in settings.groups if column in features]
    for column, category, rows in slices(ground.candidate.bundle, features, known) if known else ():
        yield group(ground, other, f"{column} = {category}", rows & unseen, name)


def group(ground: Ground, other: Answers, subject: str, rows: np.ndarray, name: str) -> Finding:
    """One group."""
    settings, n = ground.terms.settings, int(rows.sum())
    expected = f"not worse than {name} by more than {settings.max_group_loss:g} and by more than noise"
    if n < settings.min_group_rows:
        return passed("groups", subject, f"{n} test rows, too few to judge", expected)
    found = ground.gain(other, rows)
    if not np.isfinite(found.gain.value):
        return passed("groups", subject, f"{found.metric} is not defined on its {n} test rows", expected)
    share = abs(found.other) if found.metric in UNBOUNDED else 1.0
    seen = f"{found.metric} {found.one:.4f} and {found.other:.4f} on {n:,} rows: {found.gain.value:+.4f} "
    seen += f"({found.gain.low:.4f} to {found.gain.high:.4f})"
    if found.gain.value >= -settings.max_group_loss * share:
        return passed("groups", subject, seen, expected)
    severity: Severity = "error" if found.gain.high < 0 else "warning"
    fix = "look at these rows; give them more weight or more data, or raise max_group_loss under [promotion]"
    return Finding(severity, "groups", subject, seen, expected, fix)
