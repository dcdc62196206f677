"""The gates: what a version has to be before it becomes the champion.

A finding is ``info`` where the gate is passed, ``warning`` where something cannot be known, ``error`` where it refuses.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from forge_sweep import environment, sources, training, trial
from forge_sweep.bundle import GOLDEN_TOLERANCE, read_golden, replay_golden
from forge_sweep.bundle.bundle import PACKAGES, versions
from forge_sweep.bundle.layout import CARD_FILES
from forge_sweep.checks.findings import Finding, Severity
from forge_sweep.environment import NONE, UNKNOWN
from forge_sweep.errors import ForgeSweepError, TrackingDown
from forge_sweep.experiment import Experiment, Params, PromotionSpec, derived_seed
from forge_sweep.registry.candidate import (
    Candidate,
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
from forge_sweep.sources import Dataset
from forge_sweep.task import LEVEL, SEED, Gain, Task
from forge_sweep.tracking import Registry

WARM_UP, TIMED = 10, 200
"""Rows predicted one by one: before, and while the clock runs."""

LEDGER = "test_looks.jsonl"
FEW = 2
"""So many evaluations on the same test rows are not worth a warning."""

SAME_FIT = 1e-6
"""By how much the validation score of a baseline that is fitted again may differ, in proportion above 1."""


def without_test(candidate: Candidate, settings: PromotionSpec) -> Iterator[Finding]:
    """Every gate that needs no test row: is it whole, does it answer as it did, fast enough, on data that holds?"""
    yield passed("hashes", candidate.version.uri, "every file is as the manifest has it", "the same")
    yield golden(candidate, settings)
    yield card(candidate)
    yield packages(candidate)
    yield image(candidate, settings)
    yield latency(candidate, settings)
    yield superseded(candidate)


def passed(code: str, subject: str, seen: str, expected: str) -> Finding:
    """A gate that is passed."""
    return Finding("info", code, subject, seen, expected, "nothing to do")


def gate(ok: bool, code: str, subject: str, seen: str, expected: str, fix: str) -> Finding:
    """A gate that is passed or refuses."""
    return passed(code, subject, seen, expected) if ok else Finding("error", code, subject, seen, expected, fix)


def golden(candidate: Candidate, settings: PromotionSpec) -> Finding:
    """The golden rows get the scores that they had."""
    _, scores = read_golden(candidate.folder)
    allowed = settings.max_golden_difference
    if allowed is None:
        allowed = GOLDEN_TOLERANCE * max(1.0, float(np.abs(scores).max()))
    off = replay_golden(candidate.folder, candidate.bundle)
    seen = f"the scores of {len(scores)} golden rows are {off:.3g} off"
    fix = "install the packages it was saved with, or raise max_golden_difference under [promotion]"
    return gate(off <= allowed, "golden", candidate.version.uri, seen, f"at most {allowed:.1g}", fix)


def card(candidate: Candidate) -> Finding:
    """The model card is in the bundle."""
    absent = sorted(name for name in CARD_FILES if not (candidate.folder / name).is_file())
    seen = f"{', '.join(absent)} missing in the bundle" if absent else f"{' and '.join(sorted(CARD_FILES))} are there"
    fix = "register it anew with this forge-sweep: run the sweep again under another name"
    return gate(not absent, "card", candidate.version.uri, seen, "a model card", fix)


def packages(candidate: Candidate) -> Finding:
    """The packages that decide its answers are pinned, and those of this environment are the same."""
    here = versions()
    other = [
        f"{name} {version} (here {here.get(name, 'none')})"
        for name, version in candidate.packages.items()
        if name in PACKAGES and here.get(name) != version and _matters(candidate, name)
    ]
    uri, expected = candidate.version.uri, "known, and the same as here"
    if candidate.requirements is None or not candidate.packages:
        seen, fix = "it does not say which packages it needs", "register it anew with this forge-sweep"
        return Finding("error", "packages", uri, seen, expected, fix)
    pinned = sum("==" in line for line in candidate.requirements)
    seen = f"{pinned} requirements pinned; what decides its answers is the same here"
    if other:
        seen = f"it was saved with {', '.join(other)}"
    fix = "promote from the environment that serves, made from its lock"
    return gate(not other, "packages", uri, seen, expected, fix)


def _matters(candidate: Candidate, name: str) -> bool:
    """Whether a package has a part in the answers of this kind of model."""
    kind = candidate.bundle.kind
    if name in ("keras", "tensorflow", "jax", "torch"):
        backend = candidate.metadata.get("experiment", {}).get("backend", "tensorflow")
        return kind == "network" and name in ("keras", backend)
    if name.startswith("xgboost"):
        return kind == "xgboost"
    return name != "skops" or kind in ("random_forest", "hist_gradient_boosting")


def image(candidate: Candidate, settings: PromotionSpec) -> Finding:
    """It was trained in the image that this process, which stands for the serving environment, runs in."""
    trained = candidate.version.tags.get("forge.image_digest", UNKNOWN)
    here = environment.image_digest(os.environ, environment.in_container())
    seen = f"trained in {trained}, and this environment is {here}"
    subject, expected = candidate.version.uri, "one image digest, the same in training and serving"
    if {trained, here} & {NONE, UNKNOWN}:
        severity: Severity = "error" if settings.image == "required" else "warning"
        fix = f"train and promote in the image, with {environment.IMAGE_VARIABLE} set (`make image-run` does)"
        return Finding(severity, "image", subject, seen, expected, fix)
    same = trained.rpartition("@")[2] == here.rpartition("@")[2]
    return gate(same, "image", subject, seen, expected, "promote from the image that it was trained in")


def latency(candidate: Candidate, settings: PromotionSpec) -> Finding:
    """One raw row is answered fast enough, measured here on golden rows."""
    frame, _ = read_golden(candidate.folder)
    rows = [frame.iloc[[i % len(frame)]] for i in range(WARM_UP + TIMED)]
    seconds = []
    for row in rows:
        began = time.perf_counter()
        candidate.bundle.predict(row)
        seconds.append(time.perf_counter() - began)
    p95, limit = 1000 * float(np.quantile(seconds[WARM_UP:], 0.95)), settings.max_latency_ms
    seen = f"{p95:.2f} ms for one row (95th percentile of {TIMED} calls)"
    fix = "search for smaller networks, or raise max_latency_ms under [promotion]"
    return gate(p95 <= limit, "latency", candidate.version.uri, seen, f"at most {limit:g} ms", fix)


def superseded(candidate: Candidate) -> Finding:
    """No version that was made from its data has drifted away from it."""
    trained, recorded = str(candidate.metadata.get("dataset_version")), candidate.metadata.get("experiment", {})
    expected = "no newer version that drifted"
    try:
        source = sources.source(recorded.get("data", {}).get("source", "file"))
        if isinstance(source, sources.Versioned):
            return newer_versions(source, trained)
    except ForgeSweepError as error:
        fix = "set FORGE_SWEEP_DATABASE_URL to the store of its data; see `forge-sweep data list`"
        seen = f"the feature store was not asked: {' '.join(error.message.split())}"
        return Finding("error", "superseded", trained, seen, expected, fix)
    seen = f"{trained} is no version of the feature store: newer ones are not on record"
    return passed("superseded", trained, seen, f"{expected} (not applicable)")


def newer_versions(source: sources.Versioned, trained: str) -> Finding:
    """The newest version that was made from this one, compared with it."""
    name, expected = trained.partition("@")[0], "no version made from it that drifted"
    newest = source.successor(name)
    if newest is None:
        return passed("superseded", trained, "no version was made from it", expected)
    drift = f"drifted in {', '.join(newest.drifted)}" if newest.drifted else "shows no drift"
    fix = f"train on it; see `forge-sweep data drift {name} {newest.name}`"
    return gate(not newest.drifted, "superseded", trained, f"{newest.version}, made from it, {drift}", expected, fix)


@dataclass(frozen=True)
class Contest:
    """The findings of gates, and figures for the ledger."""

    findings: tuple[Finding, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)


def contest(
    candidate: Candidate,
    champion: Candidate | None,
    settings: PromotionSpec,
    registry: Registry,
    *,
    unknown: str = "",
    fix: str = "",
    gone: str = "",
) -> Contest:
    """Every gate on the test rows: no worse than the best baseline, better than the champion by more than chance?

    A test evaluation that this takes is recorded, and its figures are kept. ``champion`` is None where there is none or
    it cannot be loaded (``unknown`` says why, ``fix`` what helps); ``gone`` says what became of it by the ledger.
    """
    uri, ledger = candidate.version.uri, registry.store / LEDGER
    try:
        dataset = candidate.dataset()
        kinds = _baselines_to_fit(candidate)
        unseen, leaks = _unseen_by(champion, candidate, dataset)
        if champion is not None:
            unknown = _incomparable(candidate, champion, dataset, unseen)
        question = Question(candidate, None if unknown else champion, dataset, unseen, kinds, settings)
        found = kept(registry, question) if question.needs_test_rows else brought_along(candidate)
        baseline = _best_of(kinds, candidate, dataset) if kinds and found is None else None
    except TrackingDown:
        raise
    except ForgeSweepError as error:
        seen, hint = " ".join(error.message.split()), error.hint or "name the experiment file: --experiment FILE"
        return Contest((Finding("error", "dataset", uri, seen, "the frozen rows it was trained on", hint),))
    looked = found is None
    if found is None:
        rivals = [question.champion.version.uri] if question.champion is not None else []
        rivals += [baseline.bundle.metadata["baseline"]] if baseline is not None else []
        purpose = f"promotion of {uri} against {' and '.join(rivals)}"
        split = dataset.look_at_test(purpose, ledger, run=candidate.version.run_id)
        found = measured(question, split, baseline)
        keep(registry, question, found)
    rows = dataset.sizes["test"]
    seen = f"{dataset.version}, split {dataset.split_digest[:12]}, {rows:,} test rows"
    findings = [
        passed("dataset", uri, seen, "the frozen rows it was trained on"),
        _judged_before(dataset, ledger, looked),
        *_differences(candidate, found),
        *leaks,
        against_baseline(candidate, found.baseline),
        *_against_champion(candidate, champion, found, unknown, fix, gone),
        *_calibrated(candidate, found, settings, unknown),
        *(_by_group(candidate, champion, found, settings, dataset) if found.champion is not None else ()),
    ]
    figures: dict[str, Any] = {"metric": candidate.metric, "rows": rows, "dataset": dataset.version, "looked": looked}
    if found.baseline is not None:
        figures["baseline"] = _gain_dict(found.baseline.gain) | {"kind": found.baseline.name}
    if found.champion is not None:
        figures["champion"] = _gain_dict(found.champion.gain) | {"version": found.champion.name}
    return Contest(tuple(findings), figures)


def _judged_before(dataset: Dataset, ledger: Path, looked: bool) -> Finding:
    evaluations = dataset.count_looks(ledger)
    severity: Severity = "info" if evaluations <= FEW else "warning"
    how = "the test rows were read for it" if looked else "from figures that are on record"
    seen = f"evaluations on its test rows so far: {evaluations}; this comparison: {how}"
    expected = f"few, {FEW} at most: whoever chooses by the test rows makes their scores optimistic"
    fix = "bring new rows as a new version of the data before long"
    return Finding(severity, "test-looks", dataset.version, seen, expected, fix)


def _differences(candidate: Candidate, found: Measured) -> Iterator[Finding]:
    """What does not come out again as the sweep had it."""
    fix = "compare package versions and hardware with those of the sweep"
    if found.refitted is not None and found.baseline is not None:
        kind, metric = found.baseline.name, candidate.metadata["experiment"]["objective"]["metric"]
        expected = candidate.metadata.get("baselines", {}).get(kind)
        if expected is not None and abs(found.refitted - expected) > SAME_FIT * max(1.0, abs(expected)):
            seen = f"fitted again, its {metric} is {found.refitted:.6g}; the sweep had {expected:.6g}"
            yield Finding("warning", "baseline-differs", kind, seen, "the same", fix)
    if found.drifted:
        seen = f"its scores are up to {found.off:.3g} off those of its sweep's test evaluation"
        yield Finding("warning", "evaluation-differs", candidate.version.uri, seen, "the same scores", fix)


def _baselines_to_fit(candidate: Candidate) -> tuple[str, ...]:
    """None where the sweep's own evaluation has the best other one, or knows of none.

    Of older versions the best other one on record, or else all others; the constant predictor only where alone.
    """
    evaluation = candidate.evaluation
    if evaluation is not None and (evaluation.baseline is None or brought_along(candidate).baseline is not None):
        return ()
    recorded: dict[str, float] = candidate.metadata.get("baselines", {})
    kinds = list(recorded) or list(candidate.experiment().baselines.kinds)
    own = candidate.metadata.get("baseline", candidate.bundle.kind)
    others = [kind for kind in kinds if kind != own]
    others = [kind for kind in others if kind != "constant"] or others
    return tuple(others[:1] if recorded else others)


def _best_of(kinds: tuple[str, ...], candidate: Candidate, dataset: Dataset) -> trial.TrialResult:
    experiment, tuned = candidate.experiment(), candidate.metadata.get("tuned", {})
    sign = 1 if experiment.direction == "maximize" else -1
    fitted = (fit(experiment, dataset, kind, tuned.get(kind)) for kind in kinds)
    return max(fitted, key=lambda each: sign * each.value)


def fit(experiment: Experiment, dataset: Dataset, kind: str, params: Params | None = None) -> trial.TrialResult:
    """A baseline as the sweep fitted it; ``params`` are those of tuned trees."""
    training.select_backend(experiment.backend, experiment.deterministic)
    return trial.run_baseline(experiment, dataset, kind, derived_seed(experiment.seed, "baseline", kind), params)


def against_baseline(candidate: Candidate, against: Versus | None) -> Finding:
    """Not worse than the best other baseline; within noise it is as good, which is a warning on record.

    The constant predictor has to be beaten by more than noise: who is as good as it has learned nothing.
    """
    uri, kind = candidate.version.uri, candidate.bundle.kind
    if kind == "constant" or against is None:
        seen = "it is the constant predictor: nothing was learned" if kind == "constant" else "no baseline was fitted"
        fix = "name kinds under [baselines] and run the sweep again"
        return Finding("error", "beats-baseline", uri, seen, "at least as good as the best other baseline", fix)
    other, constant = f"the baseline {against.name}", against.name == "constant"
    seen = f"{_outcome(against.gain)}: {_in_words(against, other)}"
    expected = f"better than {other} by more than noise" if constant else f"not worse than {other} by more than noise"
    if _outcome(against.gain) == "as good as" and not constant:
        fix = f"nothing, or keep {other} if it is the simpler one; the promotion has it on record"
        return Finding("warning", "beats-baseline", uri, seen, expected, fix)
    keeping = "check the data: nothing was learned" if constant else f"keep {other}"
    fix = f"search on, or {keeping}; --force REASON overrules this on the record"
    return gate(against.gain.beyond_noise, "beats-baseline", uri, seen, expected, fix)


def _outcome(found: Gain) -> str:
    if not np.isfinite([found.gain.value, found.gain.low, found.gain.high]).all():
        return "not comparable"
    return "better" if found.beyond_noise else "worse" if found.gain.high < 0 else "as good as"


def _in_words(against: Versus, other: str) -> str:
    found = against.gain
    return (
        f"{found.metric} {found.one:.4f} and {found.other:.4f} of {other} on {against.rows:,} test rows: a gain of "
        f"{found.gain.value:.4f} ({found.gain.low:.4f} to {found.gain.high:.4f}; {LEVEL:.0%} of "
        f"{against.resamples:,} paired bootstrap resamples, seed {SEED})"
    )


def _gain_dict(found: Gain) -> dict[str, Any]:
    values = {"candidate": found.one, "other": found.other, "gain": found.gain.value}
    values |= {"low": found.gain.low, "high": found.gain.high}
    figures = {name: round(value, 6) if np.isfinite(value) else None for name, value in values.items()}
    return {**figures, "outcome": _outcome(found)}


def _unseen_by(champion: Candidate | None, candidate: Candidate, dataset: Dataset) -> tuple[np.ndarray, list[Finding]]:
    """Which test rows (n,) the champion was not trained on or chosen by, and the findings about it.

    It would know their answers; rows are told by the fingerprints of their features (docs/decisions/0004).
    """
    prints = dataset.fingerprints["test"]
    all_rows = np.ones(len(prints), bool)
    if champion is None or champion.frozen == candidate.frozen:
        return all_rows, []
    subject, expected = champion.version.uri, "test rows that neither model was trained on"
    trained = str(champion.metadata.get("dataset_version"))
    try:
        of_champion = champion.dataset()
    except ForgeSweepError as error:
        seen = f"it was trained on {trained}, which cannot be read: {' '.join(error.message.split())}"
        fix = "keep the rows of a champion: test rows that it was trained on make it look better than it is"
        return all_rows, [Finding("warning", "leakage", subject, seen, expected, fix)]
    if not of_champion.train.features.dtypes.map(str).equals(dataset.train.features.dtypes.map(str)):
        seen = f"it was trained on {trained}, whose columns differ: rows of both cannot be told"
        fix = "make sure that none of the test rows was among its training rows"
        return all_rows, [Finding("warning", "leakage", subject, seen, expected, fix)]
    known = np.concatenate([of_champion.fingerprints["train"], of_champion.fingerprints["valid"]])
    unseen = ~np.isin(prints, known)
    seen = f"it was trained on {trained}; both are scored on the candidate's test rows"
    if unseen.all():
        return unseen, [passed("leakage", subject, f"{seen}, none of which it has seen", expected)]
    seen = f"{seen}, without the {int((~unseen).sum()):,} of {len(unseen):,} that it was trained on or chosen by"
    fix = "give both the same version and split to compare them on all test rows"
    return unseen, [Finding("warning", "leakage", subject, seen, expected, fix)]


def _incomparable(candidate: Candidate, champion: Candidate, dataset: Dataset, unseen: np.ndarray) -> str:
    """Why the champion's answers cannot be compared with the candidate's, or ""; told without a test evaluation."""
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


def _against_champion(
    candidate: Candidate, champion: Candidate | None, found: Measured, unknown: str, fix: str, gone: str
) -> Iterator[Finding]:
    uri, expected = candidate.version.uri, "better than the champion"
    if unknown:
        seen = f"it cannot be compared with the champion: {unknown}"
        fix = f"{fix or 'fix what is named'}; --force REASON promotes without the comparison, on the record"
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
    seen, fix = (
        _in_words(found.champion, name),
        f"search on, or keep {name}; --force REASON overrules this on the record",
    )
    expected = f"better than {name} by more than noise: the whole interval above 0"
    yield gate(found.champion.gain.beyond_noise, "beats-champion", uri, seen, expected, fix)


def _calibrated(candidate: Candidate, found: Measured, settings: PromotionSpec, unknown: str) -> Iterator[Finding]:
    uri, (own, its) = candidate.version.uri, found.calibration
    if all(head.kind == "regression" for head in candidate.bundle.task.heads.values()):
        yield passed("calibration", uri, "a regression has no probabilities", "not applicable")
        return
    if own is None or its is None:
        words = ", ".join(f"{name} {value:.4f}" for name, value in (own or {}).items()) or "not recorded"
        seen = f"{words}; {'not compared with the champion' if unknown else 'there is no champion to compare with'}"
        yield passed("calibration", uri, seen, "not worse than the champion")
        return
    for name, allowed in (("ece", settings.max_ece_loss), ("brier", settings.max_brier_loss)):
        chance = [each.get(f"{name}_by_chance", 0.0) for each in (own, its)]
        by_chance = f" (by chance {chance[0]:.4f} and {chance[1]:.4f})" if name == "ece" else ""
        seen = f"{name} {own[name]:.4f}, and {its[name]:.4f} of the champion{by_chance}"
        expected = f"at most {allowed:g} more{', less what chance gives' if by_chance else ''}"
        excess = [max(each[name] - part, 0.0) for each, part in zip((own, its), chance, strict=True)]
        fix = f"check the card's calibration, or raise max_{name}_loss under [promotion]"
        yield gate(excess[0] - excess[1] <= allowed, "calibration", uri, seen, expected, fix)


def _by_group(
    candidate: Candidate, champion: Candidate | None, found: Measured, settings: PromotionSpec, dataset: Dataset
) -> Iterator[Finding]:
    assert champion is not None
    columns = list(dataset.train.features)
    if not settings.groups:
        expected = "columns whose groups are compared (not applicable)"
        yield passed("groups", candidate.version.uri, "no groups are named", expected)
    for absent in [column for column in settings.groups if column not in columns]:
        fix = f"correct groups under [promotion]; there is {', '.join(map(str, columns[:10]))}"
        yield Finding("error", "groups", absent, "no such column among the features", "a feature", fix)
    for each in found.groups:
        yield _group(each, settings, f"the champion {champion.version.uri}", candidate.bundle.task)


def _group(each: GroupGain, settings: PromotionSpec, name: str, task: Task) -> Finding:
    subject = f"{each.column} = {each.category}"
    expected = f"not worse than {name} by more than {settings.max_group_loss:g} and by more than noise"
    if each.against is None:
        return passed("groups", subject, f"{each.rows} test rows, too few to judge", expected)
    found = each.against.gain
    if not np.isfinite(found.gain.value):
        return passed("groups", subject, f"{found.metric} is not defined on its {each.rows} test rows", expected)
    # The margin of a metric without an upper end is a share of the champion's value.
    share = 1.0 if math.isfinite(task.limits(found.metric)[1]) else abs(found.other)
    seen = f"{found.metric} {found.one:.4f} and {found.other:.4f} on {each.rows:,} rows: {found.gain.value:+.4f} "
    seen += f"({found.gain.low:.4f} to {found.gain.high:.4f})"
    if found.gain.value >= -settings.max_group_loss * share:
        return passed("groups", subject, seen, expected)
    severity: Severity = "error" if found.gain.high < 0 else "warning"
    fix = "check these rows; give them more weight or more data, or raise max_group_loss under [promotion]"
    return Finding(severity, "groups", subject, seen, expected, fix)
