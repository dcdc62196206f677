"""What the gates on test rows go by, computed once: a candidate's figures against a baseline and the champion.

Most of it comes with the version: the sweep scored the winner and the best baseline in its one look at the test rows
and kept the differences (`Evaluation`). What is left, the comparison with a champion, takes the targets of the test
rows and so a look, which is recorded; its figures are kept with the candidate's run, and nobody looks for them again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from forge_sweep import jsons
from forge_sweep.bundle import GOLDEN_TOLERANCE, Bundle
from forge_sweep.bundle.figures import calibration, slices
from forge_sweep.bundle.files import MANIFEST, sha256
from forge_sweep.registry.candidate import Candidate, Terms
from forge_sweep.sources import Dataset, Split
from forge_sweep.task import Answers, Gain, Interval, gain
from forge_sweep.tracking import Registry
from forge_sweep.trial import TrialResult

FORMAT = 1
FOLDER = "promotion"
"""Artifact folder of the candidate's run where figures are kept."""


@dataclass(frozen=True)
class Versus:
    """The candidate against another model.

    Attributes:
        name: kind of a baseline, or version of the champion.
        gain: in the objective; positive is better.
        rows: on how many test rows.
        resamples: how many the interval comes from.
    """

    name: str
    gain: Gain
    rows: int
    resamples: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Versus:
        """What `asdict` gave, from JSON that has null for what is not defined."""
        found = values["gain"]
        one, other = (_number(found[name]) for name in ("one", "other"))
        interval = Interval(*(_number(found["gain"][name]) for name in ("value", "low", "high")))
        gained = Gain(str(found["metric"]), one, other, interval)
        return cls(str(values["name"]), gained, int(values["rows"]), int(values["resamples"]))


@dataclass(frozen=True)
class GroupGain:
    """The candidate against the champion on the rows of one category.

    Attributes:
        column: of the features.
        category: its value.
        against: the comparison; None where there are too few rows to judge.
        rows: how many test rows.
    """

    column: str
    category: str
    rows: int
    against: Versus | None


@dataclass(frozen=True)
class Measured:
    """Figures of a candidate on its test rows.

    Attributes:
        baseline: against the best other baseline; None where there is none.
        champion: against the champion; None where there is none, or it cannot be compared.
        calibration: ``ece``, ``ece_by_chance`` and ``brier`` of the candidate and of the champion, None where it has no
            probabilities.
        groups: against the champion, by the categories of the named columns.
        off: largest difference of a score from the one that the sweep's look at the same rows gave; None where nothing
            was scored again.
        refitted: the objective on validation of a baseline that was fitted again for this; None where none was.
    """

    baseline: Versus | None = None
    champion: Versus | None = None
    calibration: tuple[Mapping[str, float] | None, Mapping[str, float] | None] = (None, None)
    groups: tuple[GroupGain, ...] = ()
    off: float | None = None
    refitted: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values; what is not defined is None."""
        values: dict[str, Any] = jsons.plain(asdict(self))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measured:
        """The figures that `to_dict` described."""
        own, its = map(_figures, values["calibration"])
        groups = tuple(
            GroupGain(str(each["column"]), str(each["category"]), int(each["rows"]), _versus(each["against"]))
            for each in values["groups"]
        )
        return cls(
            _versus(values["baseline"]),
            _versus(values["champion"]),
            (own, its),
            groups,
            None if values["off"] is None else float(values["off"]),
            None if values["refitted"] is None else float(values["refitted"]),
        )

    @property
    def drifted(self) -> bool:
        """Whether the model answers otherwise than in the sweep's look at the same rows."""
        return self.off is not None and not self.off <= GOLDEN_TOLERANCE


@dataclass(frozen=True, eq=False)
class Question:
    """What is to be measured: everything that the figures depend on.

    Attributes:
        candidate: what is judged.
        champion: what it is compared with; None where there is none that can be.
        dataset: the rows it was trained on.
        unseen: (n,) which test rows the champion was neither trained on nor chosen by.
        kinds: baselines to fit again and take the best of; none where the version has its baseline evaluated.
        terms: settings.
    """

    candidate: Candidate
    champion: Candidate | None
    dataset: Dataset
    unseen: np.ndarray
    kinds: tuple[str, ...]
    terms: Terms

    @property
    def key(self) -> dict[str, Any]:
        """Names it: equal for equal figures."""
        settings = self.terms.settings
        return {
            "format": FORMAT,
            "candidate": sha256(self.candidate.folder / MANIFEST),
            "champion": None if self.champion is None else sha256(self.champion.folder / MANIFEST),
            "dataset": list(self.candidate.frozen),
            "unseen": hashlib.sha256(np.packbits(self.unseen).tobytes()).hexdigest(),
            "baselines": list(self.kinds),
            "metric": self.candidate.metric,
            "resamples": settings.resamples,
            "groups": list(settings.groups),
            "min_group_rows": settings.min_group_rows,
        }

    @property
    def path(self) -> str:
        """Where the answer is kept."""
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        return f"{FOLDER}/{digest[:16]}.json"

    @property
    def needs_test_rows(self) -> bool:
        """Whether it asks for anything that the version does not bring along."""
        return self.champion is not None or bool(self.kinds)


def kept(registry: Registry, question: Question) -> Measured | None:
    """The figures that an earlier call kept, if they are of the same models, rows and settings."""
    if not question.candidate.version.run_id:
        return None
    text = registry.artifact(question.candidate.version, question.path)
    if text is None:
        return None
    try:
        values = json.loads(text)
        return Measured.from_dict(values["figures"]) if values["of"] == question.key else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # not as it was written: measured anew
        return None


def keep(registry: Registry, question: Question, found: Measured) -> None:
    """Keep figures with the candidate's run; a version that names none has no place for them."""
    if not question.candidate.version.run_id:
        return
    text = jsons.dumps({"of": question.key, "figures": found.to_dict()}, indent=1)
    registry.attach(question.candidate.version, question.path, text)


def brought_along(candidate: Candidate) -> Measured:
    """What the version knows of itself from the sweep's look at the test rows."""
    own = (candidate.metadata.get("figures", {}).get("test") or {}).get("calibration")
    evaluation = candidate.evaluation
    other = None if evaluation is None else evaluation.baseline
    if evaluation is None or other is None:
        return Measured(calibration=(own, None))
    found = evaluation.compared(other, candidate.metric)
    if found is None:
        return Measured(calibration=(own, None))
    return Measured(Versus(other.kind, found.gain, len(evaluation.fingerprints), found.resamples), None, (own, None))


def measured(question: Question, split: Split, baseline: TrialResult | None) -> Measured:
    """Everything, on the test rows.

    Args:
        question: what.
        split: the test rows.
        baseline: the best one of ``question.kinds``, fitted again; None where there are none.
    """
    candidate, champion, settings = question.candidate, question.champion, question.terms.settings
    task, unseen, first = candidate.bundle.task, question.unseen, known_answers(candidate, question.dataset)
    encoded, own = task.encode(split.targets), answers_of(candidate.bundle, split)

    def against(name: str, other: Answers, rows: np.ndarray) -> Versus:
        one, another = (Answers(each.scores[rows], each.threshold) for each in (own, other))
        found = gain(task, encoded[rows], one, another, candidate.metric, resamples=settings.resamples)
        return Versus(name, found, int(rows.sum()), settings.resamples)

    found = brought_along(candidate)
    if baseline is not None:
        versus = against(baseline.bundle.kind, answers_of(baseline.bundle, split), np.ones(len(encoded), bool))
        found = replace(found, baseline=versus, refitted=float(baseline.value))
    if first is not None and first.scores.shape == own.scores.shape:
        scale = max(1.0, float(np.abs(first.scores).max()))
        found = replace(found, off=float(np.abs(first.scores - own.scores).max()) / scale)
    if champion is None:
        return replace(found, calibration=(calibration(task, encoded, own.scores), None))
    its = known_answers(champion, question.dataset) or answers_of(champion.bundle, split)
    named = [column for column in settings.groups if column in split.features]
    parts = [(*each, rows & unseen) for *each, rows in slices(candidate.bundle, split.features, named)] if named else []
    return replace(
        found,
        champion=against(champion.version.version, its, unseen),
        calibration=(
            calibration(task, encoded[unseen], own.scores[unseen]),
            calibration(task, encoded[unseen], its.scores[unseen]),
        ),
        groups=tuple(
            GroupGain(
                *(column, category, int(rows.sum())),
                against(category, its, rows) if rows.sum() >= settings.min_group_rows else None,
            )
            for column, category, rows in parts
        ),
    )


def answers_of(bundle: Bundle, split: Split, *, rows: int | None = None) -> Answers:
    """A model's answers, to the first rows only where a number is given; columns that it does not know are no fault.

    Raises:
        SchemaError: it takes columns that the rows do not have, or others.
    """
    wanted = [name for name in bundle.preprocessor.schema.names if name in split.features]
    return Answers(bundle.scores(split.features[wanted].iloc[:rows]), bundle.threshold)


def known_answers(candidate: Candidate, dataset: Dataset) -> Answers | None:
    """What a model said of these test rows in its own sweep's look at them, if that is kept."""
    evaluation = candidate.evaluation
    if evaluation is None or not evaluation.is_of(dataset.digest, dataset.split_digest):
        return None
    same = np.array_equal(evaluation.fingerprints, dataset.fingerprints["test"])
    return evaluation.registered.answers if same else None


def _versus(values: Mapping[str, Any] | None) -> Versus | None:
    return None if values is None else Versus.from_dict(values)


def _figures(values: Mapping[str, Any] | None) -> dict[str, float] | None:
    return None if values is None else {str(name): float(value) for name, value in values.items()}


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
