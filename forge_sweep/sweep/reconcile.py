"""Do Optuna and MLflow agree on a sweep? What an older version, or a kill at a bad moment, left is put right.

The study says what is true: a trial's state, figures and reports. MLflow is made to agree with it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forge_sweep.errors import InputError, TrackingDown
from forge_sweep.experiment import derived_seed
from forge_sweep.study import Shared, Study, TrialRow, find_shared, no_study, owners
from forge_sweep.sweep import STATUSES, parent_params
from forge_sweep.sweep.trials import trial_name
from forge_sweep.tracking import PARENT_TAG, Found, Review, Tracker

OPEN = ("RUNNING", "SCHEDULED")
ENDED = ("finished", "pruned", "failed")


@dataclass
class Difference:
    """One thing on which the study and MLflow differ, or that nobody alive stands for.

    Attributes:
        what: a trial or a run.
        seen: how it is.
        expected: how it should be.
        repaired: whether it was put right.
        repair: puts it right; false where it could not.
    """

    what: str
    seen: str
    expected: str
    repaired: bool = False
    repair: Callable[[], object] | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {name: getattr(self, name) for name in ("what", "seen", "expected", "repaired")}


@dataclass(frozen=True)
class Reconciled:
    """What was compared, and what differed.

    Attributes:
        study: name of the study.
        trials: how many it has.
        runs: how many runs of trials MLflow has.
        differences: all that were found.
    """

    study: str
    trials: int
    runs: int
    differences: tuple[Difference, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "study": self.study,
            "trials": self.trials,
            "runs": self.runs,
            "differences": [one.to_dict() for one in self.differences],
        }


def silent(text: str) -> None:
    """Say nothing."""


def reconcile(experiment_name: str, store: Path, *, repair: bool, say: Callable[[str], None] = silent) -> Reconciled:
    """Compare a sweep's study with its runs, and put right what differs.

    Safe beside processes that run it: what belongs to a living one is left alone.

    Args:
        experiment_name: whose newest study is meant.
        store: folder of the embedded stores and the journal.
        repair: whether to change anything.
        say: told of what takes long.

    Raises:
        InputError: there is no such study, or its runs are in another MLflow store.
        TrackingDown: MLflow cannot be reached.
    """
    study = find_shared(experiment_name, store)
    if study is None:
        raise no_study(experiment_name, store)
    begun = study.notes("sweep:").get("sweep:begin")
    key = str(begun["key"]) if begun else ""
    review = Review(experiment_name, store, key)
    refuse_other_store(study, review)
    settle(study, say)
    found = list(of_journal(review, experiment_name, store)) if review.unwritten else []
    if repair:
        mend(found)
    compare = Comparison(study, review, key)
    # Each stage is compared with what the one before has made of it.
    for stage in (compare.of_trials, compare.of_missing_parent, compare.of_missing, compare.of_runs, compare.of_model):
        stage_found = list(stage())
        if repair:
            mend(stage_found)
        found += stage_found
    return Reconciled(study.name, len(own_rows(study)), len(compare.trial_runs()), tuple(found))


def mend(differences: list[Difference]) -> None:
    """Repair what can be repaired, one after the other."""
    for one in differences:
        if one.repair is not None:
            one.repaired = one.repair() is not False


def refuse_other_store(study: Shared, review: Review) -> None:
    """Runs that are elsewhere are not missing."""
    notes = study.notes("sweep:")
    noted = notes.get("sweep:store")
    here = noted not in (None, review.address) and review.is_embedded and str(noted).startswith("sqlite")
    moved = here and bool(review.with_key(str(notes.get("sweep:begin", {}).get("key", ""))))
    if noted not in (None, review.address) and not moved:
        raise InputError(
            f"the runs of sweep {study.name} are in {noted}, and MLflow is now at {review.address}",
            hint="set MLFLOW_TRACKING_URI as it was",
        )


def settle(study: Shared, say: Callable[[str], None]) -> None:
    """Wait until it is known of every process whether it lives."""
    if unknown := study.unknown_owners():
        words = ", ".join(owner.words for owner in unknown)
        say(f"watching for up to {owners.LEASE_S:g} s whether {words} still lives")
    while study.unknown_owners():
        time.sleep(min(1.0, owners.BEAT_S / 2))


def of_journal(review: Review, experiment_name: str, store: Path) -> Iterator[Difference]:
    """Writes that were made while MLflow was down and still wait."""

    def replay() -> bool:
        tracker = Tracker(experiment_name, store)  # makes what waits, and what was refused
        if tracker.pending:
            raise TrackingDown(tracker.missing(), hint="start MLflow and run the same command again")
        tracker.close()
        return not tracker.set_aside

    yield Difference("journal", review.unwritten, "none", repair=replay)


def own_rows(study: Shared) -> list[TrialRow]:
    """The trials that this study ran itself."""
    return [row for row in study.rows() if not row.imported]


class Comparison:
    """One sweep, seen from both sides.

    Args:
        study: its study.
        review: its MLflow experiment.
        key: of its parent run; "" where it never began.
    """

    def __init__(self, study: Shared, review: Review, key: str) -> None:
        self.study = study
        self.review = review
        self.key = key
        begun = study.notes("sweep:").get("sweep:begin", {})
        self.first_epoch = int(begun.get("first_epoch", 0))
        self.objective = str(study.resolved["objective"]["metric"])

    def of_trials(self) -> Iterator[Difference]:
        """Trials that run although their process is dead."""
        for number, words in self.study.dead_running().items():
            seen = f"running, by {words}, which is dead"
            yield Difference(f"trial {number}", seen, "waiting", repair=self.study.requeue)

    def parent(self) -> Found | None:
        """The parent run."""
        found = self.review.with_key(self.key) if self.key else []
        return found[0] if found else None

    def trial_runs(self) -> list[Found]:
        """The runs of trials."""
        return [run for run in self.below() if run.tags.get("forge.kind") == "trial"]

    def below(self) -> list[Found]:
        """All runs of the sweep but its parent."""
        return self.review.below(self.key, self.parent()) if self.key else []

    def of_missing_parent(self) -> Iterator[Difference]:
        """A sweep with something done and no parent run: its MLflow database, or the run, is gone."""
        done = [row for row in own_rows(self.study) if row.state in ENDED]
        if self.key and self.parent() is None and (done or self.study.notes("baseline:")):
            seen = f"no parent run, but {len(done)} trials in the study"
            yield Difference("the sweep", seen, "one parent run", repair=self.make_parent)

    def make_parent(self) -> None:
        """The parent run from MLflow's bin, or a new one from what the study knows."""
        if self.review.restore(self.key):
            return
        notes, resolved = self.study.notes("sweep:"), self.study.resolved
        tags = {"optuna.study_name": self.study.name, "forge.n_trials": resolved["study"]["n_trials"]}
        name = f"{resolved['name']} {notes['sweep:begin'].get('began', '')}".strip()
        made = self.review.make(self.key, name, "sweep", None, parent_params(resolved), tags)
        final = self.study.final()
        self.review.end(made, "FINISHED" if final else "KILLED")
        if final is None:
            self.review.set_tags(made, {"forge.state": "interrupted"})
            return
        winner = final["winner"]
        told = {f"confirmed_{self.objective}": winner["mean"], f"confirmed_{self.objective}_std": winner["spread"]}
        self.review.log(made, {**told, **final.get("test", {})})
        self.review.set_tags(
            made, {"forge.verdict": final["verdict"], "forge.winner": winner["words"], "forge.model": final["model"]}
        )

    def expected(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """The name of every run that has ended, with what makes it from the study."""
        rows = {row.number: row for row in own_rows(self.study)}
        for row in rows.values():
            if row.state in ENDED:
                yield trial_name(row.number), functools.partial(self.make, row)
        for key, note in self.study.notes("baseline:").items():
            kind = key.removeprefix("baseline:")
            if note["value"] is not None:
                params: dict[str, Any] = {"baseline": kind, "seed": self.seed("baseline", kind)}
                name = f"baseline-{kind}"
                yield name, functools.partial(self.make_other, name, "baseline", params, note)
        for key, note in self.study.notes("confirm:").items():
            _, label, s = key.split(":")
            params = {"seed": self.seed("confirm", label, int(s)), "confirm_seed": int(s)}
            if label.isdecimal() and int(label) in rows:
                params |= {**rows[int(label)].params, "trial_number": int(label)}
            else:
                params |= {"baseline": label}
            name = f"confirm-{label}-s{s}"
            yield name, functools.partial(self.make_other, name, "confirm", params, note)

    def seed(self, *words: str | int) -> int:
        """A seed of the sweep, as the run had it."""
        seed: int = derived_seed(int(self.study.resolved["seed"]), *words)
        return seed

    def of_missing(self) -> Iterator[Difference]:
        """Runs that ended and are missing, or are under another parent than the sweep's."""
        parent, children = self.parent(), self.below()
        there = {run.key for run in children}
        dead = {trial_name(number) for number in self.study.dead_running()}
        for name, make in self.expected():
            if f"{self.key}/{name}" not in there and name not in dead:  # those are told by `of_trials`
                yield Difference(f"run {name}", "missing", "one run", repair=make)
        if parent is None:
            return
        for run in (run for run in children if run.tags.get(PARENT_TAG) != parent.id):
            put = functools.partial(self.review.set_tags, run, {PARENT_TAG: parent.id})
            yield Difference(f"run {run.name}", "under another parent", f"under {parent.name}", repair=put)

    def of_model(self) -> Iterator[Difference]:
        """A registered model that is gone, and what a kill left of a registration."""
        if self.study.is_carried():
            return
        for run, model in self.review.half_registered(
            [r for r in self.below() if r.tags.get("forge.kind") == "confirm"]
        ):
            remove = functools.partial(self.review.remove_model, model)
            yield Difference(f"logged model {model} of {run.name}", "PENDING", "removed", repair=remove)
        final = self.study.final()
        if final is None:
            return
        model = str(final["model"])
        if not self.review.is_registered(model):
            yield Difference(f"model {model}", "gone from the registry", "registered: run the sweep again")
        elif self.review.has_lost_alias(model):
            put = functools.partial(self.review.set_alias, model)
            yield Difference(f"model {model}", "without an alias", "@challenger", repair=put)

    def of_runs(self) -> Iterator[Difference]:
        """Runs that say something else than the study, or are there twice."""
        parent, rows = self.parent(), own_rows(self.study)
        if parent is None:
            return
        children = self.below()
        yield from self.of_parent(parent)
        yield from self.of_others([run for run in children if run.tags.get("forge.kind") != "trial"])
        dead = self.study.dead_running()
        known = set()
        for row in rows:
            key = f"{self.key}/{trial_name(row.number)}"
            known.add(key)
            runs = [run for run in children if run.key == key]
            if row.number not in dead and runs:  # told by `of_trials` and `of_missing`
                yield from self.of_trial(row, runs)
        for run in children:
            if run.tags.get("forge.kind") == "trial" and run.key not in known:
                yield self.no_such_trial(run)

    def no_such_trial(self, run: Found) -> Difference:
        """A run without a trial goes to MLflow's bin."""
        return Difference(f"run {run.name}", "no such trial", "deleted", repair=lambda: self.review.delete(run))

    def of_parent(self, parent: Found) -> Iterator[Difference]:
        """A parent run that runs while nobody carries the sweep."""
        if parent.status not in OPEN or self.study.is_carried():
            return

        def end() -> None:
            self.review.end(parent, "KILLED")
            self.review.set_tags(parent, {"forge.state": "interrupted"})

        yield Difference(f"run {parent.name}", f"{parent.status}, but nobody carries the sweep", "KILLED", repair=end)

    def of_others(self, runs: list[Found]) -> Iterator[Difference]:
        """Baselines and confirmations are run by the process that carries the sweep."""
        if self.study.is_carried():
            return
        for run in (run for run in runs if run.status in OPEN):

            def end(run: Found = run) -> None:
                self.review.end(run, "FAILED")
                self.review.set_tags(run, {"forge.failure": "lost-worker"})

            yield Difference(f"run {run.name}", f"{run.status}, but nobody carries the sweep", "FAILED", repair=end)

    def of_trial(self, row: TrialRow, runs: list[Found]) -> Iterator[Difference]:
        """One trial and its runs."""
        name = trial_name(row.number)
        kept = max(runs, key=lambda run: (run.status == STATUSES[row.state], len(run.metrics)))
        for run in (run for run in runs if run.id != kept.id):
            seen = f"{len(runs)} runs"
            yield Difference(f"run {name}", seen, "one run", repair=functools.partial(self.review.delete, run))
        if row.state != "running":
            yield from self.of_state(row, kept)
        if row.state in ("finished", "pruned"):
            yield from self.of_figures(row, kept)
            yield from self.of_curve(row, kept)

    def of_state(self, row: TrialRow, run: Found) -> Iterator[Difference]:
        """Status, and the tags that go with it."""
        expected = STATUSES[row.state]
        if (run.status, run.tags.get("forge.state")) != (expected, row.state):
            seen = f"{run.status}, forge.state = {run.tags.get('forge.state', '')}"
            wanted = f"{expected}, forge.state = {row.state}"
            yield Difference(f"run {run.name}", seen, wanted, repair=lambda: self.review.end(run, expected))
        if run.tags.get("forge.failure", "") != row.failure:
            tags = {"forge.failure": row.failure, "forge.cause": row.cause}
            seen, wanted = (f"forge.failure = {value}" for value in (run.tags.get("forge.failure", ""), row.failure))
            yield Difference(f"run {run.name}", seen, wanted, repair=lambda: self.review.set_tags(run, tags))

    def figures(self, row: TrialRow) -> dict[str, float]:
        """The summary that a finished or pruned trial's run has, as far as the study knows it."""
        known = {
            **{f"best_{name}": value for name, value in row.attrs.get("metrics", {}).items()},
            f"best_{self.objective}": row.value,
            "best_epoch": row.attrs.get("best_epoch"),
            "epochs_run": row.epochs or None,
            "seconds": None if row.cost is None else row.cost.total.seconds,
        }
        return {name: float(value) for name, value in known.items() if value is not None}

    def of_figures(self, row: TrialRow, run: Found) -> Iterator[Difference]:
        """Figures that are missing, or others than those of the study."""
        told = {name: value for name, value in self.figures(row).items() if name != "seconds"}  # measured elsewhere
        wrong = {name: value for name, value in told.items() if run.metrics.get(name, value) != value}
        if wrong:
            seen = ", ".join(f"{name} {run.metrics[name]:.6g}" for name in wrong)
            wanted = ", ".join(f"{value:.6g}" for value in wrong.values())
            yield Difference(f"run {run.name}", seen, wanted, repair=lambda: self.review.log(run, wrong))
        missing = {name: value for name, value in self.figures(row).items() if name not in run.metrics}
        if missing:
            seen = f"without {', '.join(missing)}"
            yield Difference(f"run {run.name}", seen, "logged", repair=lambda: self.review.log(run, missing))

    def of_curve(self, row: TrialRow, run: Found) -> Iterator[Difference]:
        """Points that are missing, or there twice."""
        points = self.review.curves(run)
        first = self.first_epoch
        missing = [epoch for epoch in self.study.reports(row.number) if not points[self.objective, epoch + first]]
        if missing:
            seen = f"{self.objective} without epoch {', '.join(str(epoch + first) for epoch in missing)}"
            yield Difference(
                f"run {run.name}", seen, f"{row.epochs} epochs", repair=lambda: self.log_curve(row, run, missing)
            )
        single = {"delta_vs_baseline", *self.figures(row)}
        beyond = sorted({step for _, step in points if step >= row.epochs + first > first})
        if beyond:
            seen = f"points of epoch {', '.join(map(str, beyond[:5]))}"
            yield Difference(
                f"run {run.name}",
                seen,
                f"{row.epochs} epochs",
                repair=lambda: self.review.rewrite(run, row.epochs + first),
            )
        twice = sorted({name for (name, _), count in points.items() if count > 1 and name not in single})
        if twice and not beyond:  # leaving those out takes away what is there twice, too
            seen = f"{', '.join(twice)} with several points of one epoch"
            yield Difference(f"run {run.name}", seen, "one point", repair=lambda: self.review.rewrite(run))

    def log_curve(self, row: TrialRow, run: Found, epochs: list[int]) -> None:
        """Add what the study knows of the objective."""
        reports = self.study.reports(row.number)
        for epoch in epochs:
            self.review.log(run, {self.objective: reports[epoch]}, epoch + self.first_epoch)

    def make(self, row: TrialRow) -> None:
        """The run from MLflow's bin, or a new one from what the study knows of its trial."""
        name = trial_name(row.number)
        if self.review.restore(f"{self.key}/{name}"):
            return
        params = {**row.params, "seed": self.seed("trial", row.number), "trial_number": row.number}
        tags = {"optuna.trial_number": row.number, "forge.attempt": row.attempt}
        made = self.review.make(f"{self.key}/{name}", name, "trial", self.parent(), params, tags)
        self.review.end(made, STATUSES[row.state])
        if row.failure:
            self.review.set_tags(made, {"forge.failure": row.failure, "forge.cause": row.cause})
            return
        self.review.log(made, self.figures(row))
        reports = self.study.reports(row.number)
        self.log_curve(row, made, list(reports))
        gone = f"curves but {self.objective}" + ("" if len(reports) >= row.epochs else ", of which some epochs lack")
        self.review.set_tags(made, {"forge.reconciled": f"from the study, without its {gone}"})

    def make_other(self, name: str, kind: str, params: dict[str, Any], note: dict[str, Any]) -> None:
        """The run of a baseline or a confirmation, likewise."""
        if self.review.restore(f"{self.key}/{name}"):
            return
        made = self.review.make(f"{self.key}/{name}", name, kind, self.parent(), params, {})
        if note["value"] is None:
            self.review.end(made, "FAILED")
            self.review.set_tags(made, {"forge.failure": "diverged", "forge.cause": str(note.get("cause", ""))})
            return
        self.review.end(made, "FINISHED")
        metrics = {**note.get("metrics", {}), self.objective: note["value"]}
        seconds = {} if note.get("seconds") is None else {"seconds": float(note["seconds"])}
        best = {f"best_{metric}": value for metric, value in metrics.items()}
        self.review.log(made, {**(metrics if kind == "baseline" else {}), **best, **seconds})


# What a sweep does about it when it goes on


def compare_stores(study: Study, tracker: Tracker, review: Review, key: str, tell: Callable[[str], None]) -> bool:
    """Before a sweep goes on: what MLflow lost of it is said, and made again from the study.

    Args:
        study: which this process carries.
        tracker: of its runs.
        review: likewise.
        key: of the parent run.
        tell: told what is gone.

    Returns:
        Whether the parent run was made again. Where MLflow cannot be reached, nothing is compared.
    """
    if tracker.pending:
        return False
    compare = Comparison(study, review, key)
    try:
        orphans = list(compare.of_missing_parent())
        mend(orphans)
        found = list(compare.of_missing())
        mend(found)
    except TrackingDown:
        return False
    if orphans or found:
        names = [one.what.removeprefix("run ") for one in found]
        some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        what = [*(["its parent run"] if orphans else []), *([some] if names else [])]
        tell(
            f"MLflow at {review.address} had lost a part of {study.name}: {' and '.join(what)}; it was put back from "
            "MLflow's bin, or made again from what the study knows"
        )
    return bool(orphans)


def report_lost_study(study: Study, review: Review, key: str, tell: Callable[[str], None]) -> None:
    """Before a sweep begins: runs of a sweep by this name whose study is gone are said, and ended where they run."""
    try:
        lost = [run for run in review.sweeps(study.name) if run.key != key]
        for run in lost:
            ending = ""
            if run.status in OPEN and review.is_embedded:  # on a server it may be somebody else's
                review.end(run, "KILLED")
                review.set_tags(run, {"forge.state": "interrupted", "forge.cause": "its study is gone"})
                ending = "; its run is ended"
            tell(
                f"MLflow has the sweep {run.name}, whose study is not in the study database (was its file deleted?): "
                f"nothing of it can be gone on with, and a new sweep begins{ending}"
            )
    except TrackingDown:
        return
