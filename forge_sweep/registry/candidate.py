"""A registered version as it is judged: its bundle, its experiment, its rows, and its figures on the test rows.

Most figures come with the version, from the sweep's one test evaluation (`Evaluation`). The comparison with a champion
takes a test evaluation of its own, which is recorded; its figures are kept with the candidate's run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from forge_sweep import jsons, sources
from forge_sweep.bundle import GOLDEN_TOLERANCE, Bundle, Evaluation, ready_backend
from forge_sweep.bundle.evaluation import calibration, gain_from_dict, slices
from forge_sweep.bundle.files import MANIFEST, sha256
from forge_sweep.errors import BundleError, DataError, ForgeSweepError
from forge_sweep.experiment import Experiment, PromotionSpec, restore
from forge_sweep.experiment.code import is_own
from forge_sweep.sources import Dataset, Split
from forge_sweep.task import Answers, Gain, gains
from forge_sweep.tracking import ModelVersion, Registry, fetched
from forge_sweep.trial import TrialResult

ROOT_TAG = "forge.root"

FORMAT = 1
FOLDER = "promotion"
"""Artifact folder of the candidate's run where figures are kept."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A version with its bundle, loaded and its hashes checked.

    ``packages`` are those that the bundle was saved with, ``requirements`` what the registered model names. Paths of
    its data start from ``root``, or else from the recorded directory. An own source runs if ``trusted``.
    """

    version: ModelVersion
    folder: Path
    bundle: Bundle
    packages: Mapping[str, str]
    requirements: tuple[str, ...] | None
    evaluation: Evaluation | None
    root: Path | None = None
    trusted: bool = False

    @property
    def metadata(self) -> dict[str, Any]:
        """What the bundle says of itself."""
        return self.bundle.metadata

    @property
    def frozen(self) -> tuple[str, str]:
        """Digests of the dataset and of its split."""
        return str(self.metadata.get("dataset_digest")), str(self.metadata.get("split_digest"))

    @property
    def metric(self) -> str:
        """The objective on any split."""
        return self.bundle.task.scored_as(str(self.metadata["experiment"]["objective"]["metric"]))

    def experiment(self) -> Experiment:
        """The experiment that made it; DataError where it recorded none that this version of forge-sweep reads."""
        try:
            return restore(self.metadata["experiment"], root=self.root or Path(self.version.tags.get(ROOT_TAG, ".")))
        except (KeyError, TypeError, ForgeSweepError) as error:
            raise DataError(f"{self.version.uri} recorded no experiment that can be read: {error}") from error

    def dataset(self) -> Dataset:
        """The rows it was trained on; DataError where they are gone, or others stand in their place."""
        experiment = self.experiment()
        if is_own(experiment.data.source) and not self.trusted:
            raise DataError(
                f"{self.version.uri} names code that gives its rows: {experiment.data.source} in {experiment.root}",
                hint="read that file, and give --trust to run it",
            )
        data, code = experiment.data, experiment.source_code
        try:
            found = sources.load(data, root=experiment.root, seed=experiment.seed, code=code)
        except DataError as error:
            error.hint += "; if the data moved with its experiment file, name that file: --experiment FILE"
            raise
        if (found.digest, found.split_digest) != self.frozen:
            what = "rows" if found.digest != self.frozen[0] else "split"
            recorded = self.metadata.get("dataset_version")
            raise DataError(
                f"the {what} at {found.source} are {found.version}, split {found.split_digest[:12]}; "
                f"{self.version.uri} was trained on {recorded}, split {self.frozen[1][:12]}",
                hint="restore the rows it was trained on, or train on the new ones: forge-sweep run EXPERIMENT",
            )
        return found


@contextlib.contextmanager
def opened(
    registry: Registry, version: ModelVersion, root: Path | None = None, *, trust: bool = False
) -> Iterator[Candidate]:
    """A version with its bundle, for a while; BundleError where a hash does not match or it cannot be read."""
    with fetched(version, registry.store) as folder:
        ready_backend(folder)
        bundle = Bundle.load(folder, trust=trust)
        packages = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["packages"]
        requirements, evaluation = _requirements_beside(folder), Evaluation.load(folder)
        found = Candidate(version, folder, bundle, packages, requirements, evaluation, root, trust)
        if evaluation is not None and not evaluation.is_of(*found.frozen):
            raise BundleError(
                f"the evaluation in {version.uri} is not of the test rows that the bundle names",
                hint="register the model again from its sweep",
            )
        yield found


def _requirements_beside(folder: Path) -> tuple[str, ...] | None:
    for above in list(folder.parents)[:2]:
        path = above / "requirements.txt"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    return None


@dataclass(frozen=True)
class Versus:
    """The candidate against a baseline (by its kind) or the champion (by its version), in the objective."""

    name: str
    gain: Gain
    rows: int
    resamples: int


@dataclass(frozen=True)
class GroupGain:
    """The candidate against the champion on the rows of one category; None where they are too few to judge."""

    column: str
    category: str
    rows: int
    against: Versus | None


@dataclass(frozen=True)
class Measured:
    """Figures of a candidate on its test rows, against the best other baseline and the champion, where there are any.

    ``calibration`` (``ece``, ``ece_by_chance``, ``brier``) is of both. ``off`` is the largest difference of a score
    from the sweep's test evaluation, ``refitted`` the objective of a baseline that was fitted again.
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
        """The figures that `to_dict` described; ValueError or TypeError where they are no such figures."""
        own, its = (each and {name: float(value) for name, value in each.items()} for each in values["calibration"])
        groups = tuple(GroupGain(**{**each, "against": _versus(each["against"])}) for each in values["groups"])
        compared = {name: _versus(values[name]) for name in ("baseline", "champion")}
        off, refitted = (None if values[name] is None else float(values[name]) for name in ("off", "refitted"))
        return cls(**compared, calibration=(own, its), groups=groups, off=off, refitted=refitted)

    @property
    def drifted(self) -> bool:
        """Whether the model answers differently than in the sweep's test evaluation."""
        return self.off is not None and not self.off <= GOLDEN_TOLERANCE


@dataclass(frozen=True, eq=False)
class Question:
    """What is to be measured: everything that the figures depend on.

    ``unseen`` (n,) are the test rows that the champion was neither trained on nor chosen by; of ``kinds``, the
    baselines to fit again, the best is taken.
    """

    candidate: Candidate
    champion: Candidate | None
    dataset: Dataset
    unseen: np.ndarray
    kinds: tuple[str, ...]
    settings: PromotionSpec

    @property
    def key(self) -> dict[str, Any]:
        """Names it: equal for equal figures."""
        settings = self.settings
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
    version = question.candidate.version
    text = registry.artifact(version, question.path) if version.run_id else None
    if text is None:
        return None
    try:
        values = json.loads(text)
        return Measured.from_dict(values["figures"]) if values["of"] == question.key else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # not as it was written: measured anew
        return None


def keep(registry: Registry, question: Question, found: Measured) -> None:
    """Keep figures with the candidate's run; a version that names none has no place for them."""
    if question.candidate.version.run_id:
        text = jsons.dumps({"of": question.key, "figures": found.to_dict()}, indent=1)
        registry.attach(question.candidate.version, question.path, text)


def brought_along(candidate: Candidate) -> Measured:
    """What the version knows of itself from the sweep's test evaluation."""
    own = (candidate.metadata.get("figures", {}).get("test") or {}).get("calibration")
    evaluation, versus = candidate.evaluation, None
    if evaluation is not None and (other := evaluation.baseline) is not None:
        found = evaluation.compared(other, candidate.metric)
        if found is not None:
            versus = Versus(other.kind, found.gain, len(evaluation.fingerprints), found.resamples)
    return Measured(versus, calibration=(own, None))


def measured(question: Question, split: Split, baseline: TrialResult | None) -> Measured:
    """Everything, on the test rows; ``baseline`` is the best one of ``question.kinds``, fitted again."""
    candidate, champion, settings = question.candidate, question.champion, question.settings
    task, unseen, first = candidate.bundle.task, question.unseen, _known_answers(candidate, question.dataset)
    encoded, own = task.encode(split.targets), answers_of(candidate.bundle, split)

    def against(name: str, other: Answers, rows: np.ndarray) -> Versus:
        one, another = (Answers(each.scores[rows], each.threshold) for each in (own, other))
        found = gains(task, encoded[rows], one, another, (candidate.metric,), resamples=settings.resamples)
        return Versus(name, found[candidate.metric], int(rows.sum()), settings.resamples)

    found = brought_along(candidate)
    if baseline is not None:
        versus = against(
            baseline.bundle.metadata["baseline"], answers_of(baseline.bundle, split), np.ones(len(encoded), bool)
        )
        found = replace(found, baseline=versus, refitted=float(baseline.value))
    if first is not None and first.scores.shape == own.scores.shape:
        scale = max(1.0, float(np.abs(first.scores).max()))
        found = replace(found, off=float(np.abs(first.scores - own.scores).max()) / scale)
    if champion is None:
        return replace(found, calibration=(calibration(task, encoded, own.scores), None))
    its = _known_answers(champion, question.dataset) or answers_of(champion.bundle, split)
    named = [column for column in settings.groups if column in split.features]
    groups = []
    for column, category, rows in slices(candidate.bundle, split.features, named) if named else ():
        rows = rows & unseen
        few = rows.sum() < settings.min_group_rows
        groups.append(GroupGain(column, category, int(rows.sum()), None if few else against(category, its, rows)))
    return replace(
        found,
        champion=against(champion.version.version, its, unseen),
        calibration=(
            calibration(task, encoded[unseen], own.scores[unseen]),
            calibration(task, encoded[unseen], its.scores[unseen]),
        ),
        groups=tuple(groups),
    )


def answers_of(bundle: Bundle, split: Split, *, rows: int | None = None) -> Answers:
    """A model's answers, to the first rows only where a number is given; columns that it does not know are left out."""
    wanted = [name for name in bundle.preprocessor.schema.names if name in split.features]
    return Answers(bundle.scores(split.features[wanted].iloc[:rows]), bundle.threshold)


def _known_answers(candidate: Candidate, dataset: Dataset) -> Answers | None:
    """A model's scores of these test rows from its own sweep's test evaluation, if they are kept."""
    evaluation = candidate.evaluation
    if evaluation is None or not evaluation.is_of(dataset.digest, dataset.split_digest):
        return None
    same = np.array_equal(evaluation.fingerprints, dataset.fingerprints["test"])
    return evaluation.registered.answers if same else None


def _versus(values: Mapping[str, Any] | None) -> Versus | None:
    """What `asdict` gave, from JSON that has null for what is not defined."""
    return None if values is None else Versus(**{**values, "gain": gain_from_dict(values["gain"])})
