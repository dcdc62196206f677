"""Do Optuna and MLflow agree on a sweep? What an older version, or a kill at a bad moment, left is repaired.

The study says what is true: a trial's state, figures and reports. MLflow is made to agree with it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forge_sweep import jsons
from forge_sweep.baselines import untuned_kind
from forge_sweep.errors import InputError, TrackingDown
from forge_sweep.experiment import derived_seed, flatten, is_budget
from forge_sweep.study import TUNED, Shared, TrialRow, TrialState, find_shared, leases, no_study
from forge_sweep.study.diagnosis import AUDIT_NOTE
from forge_sweep.sweep import ensemble
from forge_sweep.sweep.confirm import confirm_name, typical_seed
from forge_sweep.sweep.context import Context
from forge_sweep.sweep.pruned import audit_name
from forge_sweep.sweep.publish import final_key
from forge_sweep.sweep.trials import trial_name
from forge_sweep.sweep.tuning import configuration, run_name
from forge_sweep.tracking import PARENT_TAG, Found, Review, Tracker

OPEN = ("RUNNING", "SCHEDULED")
ENDED = ("finished", "pruned", "failed")

STATUSES: dict[TrialState, str] = {
    "finished": "FINISHED",
    "pruned": "KILLED",
    "failed": "FAILED",
    "waiting": "SCHEDULED",
    "running": "RUNNING",
    "outside": "FAILED",
}
"""MLflow's status for each state of a trial; one that lies outside of the search space keeps that which it has ended
with, if it has."""


STUDY_PARAMS = ("study.sampler", "study.pruner", "study.epochs")


def parent_params(resolved: dict[str, Any]) -> dict[str, Any]:
    """What a parent run has as params: what makes a trial what it is, and no budget."""
    fixed = ("seed", "backend", "data.", "preprocessing.", "model.", "objective.", *STUDY_PARAMS)
    flat = {path: value for path, value in flatten(resolved).items() if path.startswith(fixed) and not is_budget(path)}
    flat |= {f"constraints.{name}": value for name, value in (resolved.get("constraints") or {}).items() if value}
    return {path: jsons.dumps(value) if isinstance(value, list | dict) else value for path, value in flat.items()}


@dataclass
class Difference:
    """One thing on which the study and MLflow differ, or that belongs to no living process.

    Attributes:
        what: a trial or a run.
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
    """What was compared, and what differed; `runs` are those of trials."""

    study: str
    trials: int
    runs: int
    differences: tuple[Difference, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        counts = {"study": self.study, "trials": self.trials, "runs": self.runs}
        return {**counts, "differences": [one.to_dict() for one in self.differences]}


def reconcile(
    experiment_name: str, store: Path, *, repair: bool, say: Callable[[str], None] = lambda text: None
) -> Reconciled:
    """Compare a sweep's study with its runs, and repair what differs.

    Safe beside processes that run it: what belongs to a living one is left alone. Of several studies of the
    experiment the newest is meant. ``say`` is told of what takes long.

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
    refuse_other_store(study, review, lambda key: bool(review.with_key(key)))
    settle(study, say)
    compare = _Comparison(study, review, key)
    stages = compare.of_trials, compare.of_missing_parent, compare.of_missing, compare.of_runs, compare.of_model
    found: list[Difference] = []
    # Each stage is compared with what the one before has made of it.
    for stage in (functools.partial(_of_journal, review, experiment_name, store), *stages):
        differences = list(stage())
        if repair:
            _fix(differences)
        found += differences
    trial_runs = [run for run in compare.below() if run.tags.get("forge.kind") == "trial"]
    return Reconciled(study.name, len(_own_rows(study)), len(trial_runs), tuple(found))


def _fix(differences: list[Difference]) -> None:
    for one in differences:
        if one.repair is not None:
            one.repaired = one.repair() is not False


def refuse_other_store(study: Shared, runs: Review | Tracker, has: Callable[[str], bool]) -> bool:
    """Raise InputError for runs that are elsewhere: half of a sweep here would be lost there.

    True where the embedded store, which holds the sweep's own run, was moved here or copied with its studies.
    """
    notes = study.notes("sweep:")
    noted = notes.get("sweep:store")
    if noted in (None, runs.address):
        return False
    if runs.is_embedded and str(noted).startswith("sqlite") and has(str(notes.get("sweep:begin", {}).get("key", ""))):
        return True
    raise InputError(
        f"the runs of sweep {study.name} are in {noted}, and MLflow is now at {runs.address}",
        hint="set MLFLOW_TRACKING_URI as it was, or begin a new sweep under another name",
    )


def settle(study: Shared, say: Callable[[str], None]) -> None:
    """Wait until it is known of every process whether it lives."""
    if unknown := study.unknown_owners():
        words = ", ".join(owner.words for owner in unknown)
        say(f"watching for up to {leases.LEASE_S:g} s whether {words} still runs")
    while study.unknown_owners():
        time.sleep(min(1.0, leases.HEARTBEAT_S / 2))


def _of_journal(review: Review, experiment_name: str, store: Path) -> Iterator[Difference]:
    """Writes that were made while MLflow was down and still wait."""

    def replay() -> bool:
        tracker = Tracker(experiment_name, store)  # makes what waits, and what was refused
        if tracker.pending:
            raise TrackingDown(tracker.missing(), hint="start MLflow and run the same command again")
        tracker.close()
        return not tracker.set_aside

    if review.unwritten:
        yield Difference("journal", review.unwritten, "none", repair=replay)


def _of_run(run: Found, seen: str, expected: str, repair: Callable[..., object], *arguments: object) -> Difference:
    return Difference(f"run {run.name}", seen, expected, repair=functools.partial(repair, *arguments))


def _own_rows(study: Shared) -> list[TrialRow]:
    return [row for row in study.rows() if not row.imported]


class _Comparison:
    """One sweep, seen from both sides; ``key`` of its parent run is "" where it never began."""

    def __init__(self, study: Shared, review: Review, key: str) -> None:
        self.study = study
        self.review = review
        self.key = key
        begun = study.notes("sweep:").get("sweep:begin", {})
        self.first_epoch = int(begun.get("first_epoch", 0))
        self.objective = str(study.resolved["objective"]["metric"])

    def of_trials(self) -> Iterator[Difference]:
        for number, words in self.study.dead_running().items():
            seen = f"running, by {words}, which is dead"
            yield Difference(f"trial {number}", seen, "waiting", repair=self.study.requeue)

    def parent(self) -> Found | None:
        found = self.review.with_key(self.key) if self.key else []
        return found[0] if found else None

    def below(self) -> list[Found]:
        """All runs of the sweep but its parent."""
        return self.review.below(self.key, self.parent()) if self.key else []

    def of_missing_parent(self) -> Iterator[Difference]:
        """A sweep with something done and no parent run: its MLflow database, or the run, is gone."""
        done = [row for row in _own_rows(self.study) if row.state in ENDED]
        if self.key and self.parent() is None and (done or self.study.notes("baseline:")):
            seen = f"no parent run, but {len(done)} trials in the study"
            yield Difference("the sweep", seen, "one parent run", repair=self.make_parent)

    def make_parent(self) -> None:
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
        rows = {row.number: row for row in _own_rows(self.study)}
        for row in rows.values():
            if row.state in ENDED:
                yield trial_name(row.number), functools.partial(self.make, row)
        for key, note in self.study.notes("baseline:").items():
            kind = key.removeprefix("baseline:")
            if note["value"] is not None and not untuned_kind(kind):
                params: dict[str, Any] = {"baseline": kind, "seed": self.seed("baseline", kind)}
                name = f"baseline-{kind}"
                yield name, functools.partial(self.make_other, name, "baseline", params, note)
        for key, note in self.study.notes(TUNED).items():
            _, kind, place = key.split(":")
            name, seed = run_name(kind, int(place)), self.seed("baseline", kind)
            params = {"baseline": kind, "seed": seed, "configuration": int(place), **note["params"]}
            yield name, functools.partial(self.make_other, name, "baseline", params, note)
        for key, note in self.study.notes("confirm:").items():
            _, label, s = key.split(":")
            params = {"seed": self.seed("confirm", label, int(s)), "confirm_seed": int(s)}
            if label.isdecimal() and int(label) in rows:
                params |= {**rows[int(label)].params, "trial_number": int(label)}
            else:
                params |= {"baseline": label, **(configuration(self.study.notes("baseline:"), label) or {})}
            name = confirm_name(label, int(s))
            yield name, functools.partial(self.make_other, name, "confirm", params, note)

        for key, note in self.study.notes(AUDIT_NOTE).items():
            number = int(key.removeprefix(AUDIT_NOTE))
            params = {**rows[number].params, "seed": self.seed("trial", number), "trial_number": number}
            yield audit_name(number), functools.partial(self.make_other, audit_name(number), "audit", params, note)

    def seed(self, *words: str | int) -> int:
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
        for run in children:
            if run.tags.get(PARENT_TAG) != parent.id:
                below = {PARENT_TAG: parent.id}
                yield _of_run(run, "under another parent", f"under {parent.name}", self.review.set_tags, run, below)

    def of_model(self) -> Iterator[Difference]:
        """A registered model that is gone, and what a kill left of a registration."""
        if self.study.is_carried():
            return
        confirmed = [run for run in self.below() if run.tags.get("forge.kind") in ("confirm", ensemble.NAME)]
        for run, model in self.review.half_registered(confirmed):
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
        parent, rows = self.parent(), _own_rows(self.study)  # first: what ends from here on is compared the next time
        if parent is None:
            return
        children, dead = self.below(), self.study.dead_running()
        others = [run for run in children if run.tags.get("forge.kind") != "trial"]
        unended = [run for run in (parent, *others) if run.status in OPEN]
        if unended and not self.study.is_carried():  # only the process that runs the sweep has runs of these kinds
            for run in unended:
                status, tags = "FAILED", {"forge.failure": "lost-worker"}
                if run is parent:
                    status, tags = "KILLED", {"forge.state": "interrupted"}
                seen = f"{run.status}, but no process is running this sweep"
                yield _of_run(run, seen, status, self.end, run, status, tags)
        keys = {row.number: f"{self.key}/{trial_name(row.number)}" for row in rows}
        for row in rows:
            runs = [run for run in children if run.key == keys[row.number]]
            if row.number not in dead and runs:  # told by `of_trials` and `of_missing`
                yield from self.of_trial(row, runs)
        for run in children:
            if run.tags.get("forge.kind") == "trial" and run.key not in keys.values():
                yield _of_run(run, "no such trial", "deleted", self.review.delete, run)

    def end(self, run: Found, status: str, tags: dict[str, str]) -> None:
        self.review.end(run, status)
        self.review.set_tags(run, tags)

    def of_trial(self, row: TrialRow, runs: list[Found]) -> Iterator[Difference]:
        kept = max(runs, key=lambda run: (run.status == STATUSES[row.state], len(run.metrics)))
        for run in runs:
            if run.id != kept.id:
                yield _of_run(run, f"{len(runs)} runs", "one run", self.review.delete, run)
        if row.state not in ("running", "outside"):
            yield from self.of_state(row, kept)
        if row.state in ("finished", "pruned"):
            yield from self.of_figures(row, kept)
            yield from self.of_curve(row, kept)

    def of_state(self, row: TrialRow, run: Found) -> Iterator[Difference]:
        status, state, failure = STATUSES[row.state], run.tags.get("forge.state", ""), run.tags.get("forge.failure", "")
        if (run.status, state) != (status, row.state):
            seen = f"{run.status}, forge.state = {state}"
            yield _of_run(run, seen, f"{status}, forge.state = {row.state}", self.review.end, run, status)
        if failure != row.failure:
            tags = {"forge.failure": row.failure, "forge.cause": row.cause}
            wanted = f"forge.failure = {row.failure}"
            yield _of_run(run, f"forge.failure = {failure}", wanted, self.review.set_tags, run, tags)

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
        told = {name: value for name, value in self.figures(row).items() if name != "seconds"}  # measured elsewhere
        wrong = {name: value for name, value in told.items() if run.metrics.get(name, value) != value}
        if wrong:
            seen = ", ".join(f"{name} {run.metrics[name]:.6g}" for name in wrong)
            wanted = ", ".join(f"{value:.6g}" for value in wrong.values())
            yield _of_run(run, seen, wanted, self.review.log, run, wrong)
        missing = {name: value for name, value in self.figures(row).items() if name not in run.metrics}
        if missing:
            yield _of_run(run, f"without {', '.join(missing)}", "logged", self.review.log, run, missing)

    def of_curve(self, row: TrialRow, run: Found) -> Iterator[Difference]:
        points, first, epochs = self.review.curves(run), self.first_epoch, f"{row.epochs} epochs"
        missing = [epoch for epoch in self.study.reports(row.number) if not points[self.objective, epoch + first]]
        if missing:
            seen = f"{self.objective} without epoch {', '.join(str(epoch + first) for epoch in missing)}"
            yield _of_run(run, seen, epochs, self.log_curve, row, run, missing)
        single = {"delta_vs_baseline", *self.figures(row)}
        beyond = sorted({step for _, step in points if step >= row.epochs + first > first})
        if beyond:
            seen = f"points of epoch {', '.join(map(str, beyond[:5]))}"
            yield _of_run(run, seen, epochs, self.review.rewrite, run, row.epochs + first)
        twice = sorted({name for (name, _), count in points.items() if count > 1 and name not in single})
        if twice and not beyond:  # leaving those out takes away what is there twice, too
            seen = f"{', '.join(twice)} with several points of one epoch"
            yield _of_run(run, seen, "one point", self.review.rewrite, run)

    def log_curve(self, row: TrialRow, run: Found, epochs: list[int]) -> None:
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
        if row.failure:
            self.end(made, STATUSES[row.state], {"forge.failure": row.failure, "forge.cause": row.cause})
            return
        self.review.end(made, STATUSES[row.state])
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
            self.end(made, "FAILED", {"forge.failure": "diverged", "forge.cause": str(note.get("cause", ""))})
            return
        self.review.end(made, "FINISHED")
        metrics = {**note.get("metrics", {}), self.objective: note["value"]}
        took = note.get("cost", {}).get("seconds", note.get("seconds"))
        seconds = {} if took is None else {"seconds": float(took)}
        best = {f"best_{metric}": value for metric, value in metrics.items()}
        self.review.log(made, {**(metrics if kind == "baseline" else {}), **best, **seconds})


# What a sweep does about it when it goes on


def before_run(context: Context, *, begun: bool) -> bool:
    """Before a sweep goes on: what MLflow lost of it is said, and made again from the study.

    True where the parent run was made again. Where MLflow cannot be reached, nothing is compared.
    """
    take_place(context)
    review = Review(context.experiment.name, context.store, context.key if begun else "")
    try:
        if not begun:
            _report_lost_study(context, review)
            return False
        if context.tracker.pending:
            return False
        compare = _Comparison(context.study, review, context.key)
        orphans = list(compare.of_missing_parent())
        _fix(orphans)
        found = list(compare.of_missing())
        _fix(found)
    except TrackingDown:
        return False
    if orphans or found:
        names = [one.what.removeprefix("run ") for one in found]
        some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        what = [*(["its parent run"] if orphans else []), *([some] if names else [])]
        context.warn(
            f"MLflow at {review.address} had lost a part of {context.study.name}: {' and '.join(what)}; it was put "
            "back from MLflow's bin, or made again from what the study knows"
        )
    if orphans and context.tracker.set_aside:  # for want of the run
        context.tracker.retry()
    return bool(orphans)


def take_place(context: Context) -> None:
    """Refuse another store than the sweep's; one that was moved is the sweep's from here on."""
    noted = context.study.notes("sweep:").get("sweep:store")
    if refuse_other_store(context.study, context.tracker, context.tracker.has):
        context.study.note("sweep:store", context.tracker.address)
        context.inform(f"the store was at {noted} before and goes on here")


def _report_lost_study(context: Context, review: Review) -> None:
    """Before a sweep begins: runs of a sweep by this name whose study is gone are said, and ended where they run."""
    for run in (run for run in review.sweeps(context.study.name) if run.key != context.key):
        ending = ""
        if run.status in OPEN and review.is_embedded:  # on a server it may be somebody else's
            review.end(run, "KILLED")
            review.set_tags(run, {"forge.state": "interrupted", "forge.cause": "its study is gone"})
            ending = "; its run is ended"
        context.warn(
            f"MLflow has the sweep {run.name}, whose study is not in the study database (was its file deleted?): "
            f"nothing of it can be gone on with, and a new sweep begins{ending}"
        )


def with_model(context: Context, done: dict[str, Any], *, remade: bool) -> dict[str, Any] | None:
    """The end of a complete sweep, its model registered again where it is gone; None where its files are gone, too."""
    model = str(done["model"])
    try:
        if not context.tracker.is_registered(model):
            text = f"the model {model} of this sweep is gone from the registry"
            name, winner = context.experiment.model_name, done["winner"]
            typical = typical_seed(tuple(winner["values"]), context.experiment.direction)
            shipped = done.get(ensemble.NAME, {}).get("shipped")
            run = ensemble.NAME if shipped else confirm_name(winner["label"], typical)
            again = context.tracker.register_again(f"{context.key}/{run}", name)
            if again is None:
                context.warn(f"{text}, and so are its files: the winner is trained again")
                return None
            done = {**done, "model": f"models:/{name}/{again}", "version": again}
            context.warn(f"{text}: registered again as {done['model']}")
            context.tracker.existing(context.key).set_tags({"forge.model": done["model"]})
            context.study.note(final_key(context.experiment, context.study), done)
        elif context.tracker.has_lost_alias(model):
            context.tracker.set_alias(model)
            context.warn(f"{model} had lost its alias: it is @challenger again")
        if remade:
            done = {**done, "link": context.link}
            context.study.note(final_key(context.experiment, context.study), done)
    except TrackingDown as error:
        context.warn(f"whether {model} is there cannot be seen: {error.message}")
    return done
