"""The story of a sweep, told once from top to bottom.

Every phase leaves a durable note in the study, so a sweep that was killed anywhere goes on where it was.
"""

from __future__ import annotations

import datetime
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from forge_sweep import environment, jsons, sources, training, workers
from forge_sweep.addresses import refuse_unwritable
from forge_sweep.checks.audit import Audit
from forge_sweep.checks.audit import audit as audit_dataset
from forge_sweep.checks.findings import Finding, errors
from forge_sweep.environment import Environment
from forge_sweep.errors import GateRefused, InputError, TrackingDown
from forge_sweep.experiment import Experiment, flatten, is_budget
from forge_sweep.experiment.rules import nearest
from forge_sweep.preflight import preflight
from forge_sweep.sources import Dataset
from forge_sweep.study import Study, TrialState, check_storage, open_study, require_packages, resumable
from forge_sweep.sweep.confirm import confirm, typical_seed
from forge_sweep.sweep.context import Context, Event, Interrupted, Watch, baseline_values, ignore
from forge_sweep.sweep.crew import Crew
from forge_sweep.sweep.ending import clear_checkpoints, ended_by, goes_on, refuse_nothing_finished, why_over
from forge_sweep.sweep.phases import Stopwatch
from forge_sweep.sweep.publish import final_key, log_setting, publish
from forge_sweep.sweep.trials import best_value, end_lost, fit_baselines, run_trials, trial_name
from forge_sweep.tracking import FIRST_EPOCH, Review, Run, Tracker, check_store

__all__ = ["Event", "Interrupted", "SweepResult", "Watch", "check", "run"]


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended.

    Attributes:
        study: name of the study.
        trials: number of trials by state.
        objective: the metric.
        best: number, value and parameters of the best trial of the search; empty where none finished. What won is
            `winner`.
        baselines: objective of each baseline, best first.
        verdict: who won by how much, in words.
        winner: figures and parameters of what is registered: the best network where it is better than the best
            baseline, which is registered otherwise.
        test: the winner's metrics on the test split.
        run_id: the parent run.
        model: ``models:/NAME/VERSION``.
        link: the MLflow UI on this sweep's trials.
        confirmed: the figures of every candidate.
        ended_by: the key of the budget that ended the search: ``study.n_trials``, ``study.timeout_s`` and so on.
        costs: what the trials of each state cost; see `StateCost`.
        missing: what MLflow lacks of it, and what to do; "" where it lacks nothing.
        outcome: ``better``, ``as good as`` or ``worse``, of the best network against the best baseline on validation;
            "" where there is nothing to compare.
        comparison: the same in figures: ``lead`` (positive is better) with ``low`` and ``high``; see `Judgement`.
        evaluation: every model that the look at the test rows scored, with intervals and differences; see
            `forge_sweep.bundle.Evaluation`. None for a sweep of an older version.
        phases: seconds of each phase, over interruptions; see `StudyView.phases`.
    """

    study: str
    trials: dict[str, int]
    objective: str
    best: dict[str, Any]
    baselines: dict[str, float]
    verdict: str
    winner: dict[str, Any]
    test: dict[str, float]
    run_id: str
    model: str
    link: str
    confirmed: list[dict[str, Any]] = field(default_factory=list)
    ended_by: str = "study.n_trials"
    costs: list[dict[str, Any]] = field(default_factory=list)
    missing: str = ""
    outcome: str = ""
    comparison: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    phases: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def never() -> bool:
    """Nobody asks to stop."""
    return False


def run(
    experiment: Experiment,
    *,
    store: Path = Path("mlruns"),
    fork: bool = False,
    watch: Watch = ignore,
    stopping: Callable[[], bool] = never,
) -> SweepResult:
    """Run a sweep to its end, or go on with one that was interrupted.

    Args:
        experiment: what to run.
        store: folder of the embedded stores.
        fork: begin a new study where the experiment changed, with the old one's trials as its start.
        watch: told of every event.
        stopping: asked after every epoch; true leaves the sweep in order.

    Raises:
        GateRefused: the audit or the pre-flight found errors; nothing was trained.
        ResumeRefused: the experiment or its data changed since the study began.
        SweepStopped: three trials in a row failed alike, or nothing can be confirmed.
        TrackingDown: the end cannot be registered; run again.
        Interrupted: ``stopping`` said so; what finished stays finished.
    """
    stopwatch = Stopwatch()
    stopwatch.enter("start")
    here = look_around(experiment, store, watch)
    refuse_unwritable(store)
    stopwatch.enter("audit")
    dataset = load_data(experiment, watch)
    audit = inspect(experiment, dataset, watch)
    stopwatch.enter("start")
    stop_between(stopping)
    begun = resumable(experiment, dataset=identity(dataset), store=store)
    if begun is None or goes_on(experiment, begun) or final_key(experiment, begun) not in begun.notes("final:"):
        stopwatch.enter("preflight")
        try_models(experiment, dataset, watch)  # before there is a study: a wrong file leaves nothing behind
        stopwatch.enter("start")
    stop_between(stopping)
    study = open_study(experiment, dataset=identity(dataset), store=store, fork=fork)
    with study.hold(stopping):
        report_opening(study, watch)
        known = study.notes("sweep:").get("sweep:begin", {}).get("key", "")
        tracker = Tracker(experiment.name, store, description=experiment.description, sweep=known)
        key = begin(study)["key"]
        context = Context(experiment, dataset, study, tracker, here, store, key, watch, stopping, stopwatch=stopwatch)
        try:
            ended = go(context, audit, begun=bool(known))
        finally:
            tracker.close()
    return replace(ended, missing=tracker.missing())


def go(context: Context, audit: Audit, *, begun: bool) -> SweepResult:
    """Run what is left of a sweep under its parent run."""
    refuse_other_store(context)
    remade = find_losses(context, begun=begun)
    if remade and context.tracker.set_aside:  # for want of the run
        context.tracker.retry()
    done = context.study.notes("final:").get(final_key(context.experiment, context.study))
    lost: dict[str, Any] | None = None
    if done is not None and (why := why_over(context)):
        whole = with_model(context, done, remade=remade)
        if whole is not None:
            context.tell("message", text=f"sweep {context.study.name} is complete{why}", severity="info")
            return result(context, whole)
        lost = done
    training.load_backend()
    parent = open_parent(context)
    context.stopwatch.keep_in(context.study)
    try:
        prepare(context, parent, audit, remade=remade)
        final = phases(context, parent, lost)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        parent.set_tags({"forge.state": "interrupted" if interrupted else "failed", "forge.cause": str(error)[:500]})
        log_phases(context, parent)
        parent.finish("KILLED" if interrupted else "FAILED")
        raise
    ended = ended_by(context)
    final |= {"ended_by": ended}
    log_phases(context, parent)
    parent.set_tags({"forge.state": "finished", "forge.model": final["model"], "forge.ended_by": ended})
    parent.finish("FINISHED")
    final |= {"run_id": parent.run_id, "link": link(context), "ended": time.time()}
    context.study.note("sweep:link", link(context))
    context.study.note(final_key(context.experiment, context.study), final)
    clear_checkpoints(context)
    return result(context, final)


def find_losses(context: Context, *, begun: bool) -> bool:
    """Compare study and MLflow before anything goes on; returns whether the parent run had to be made again."""
    from forge_sweep.sweep.reconcile import compare_stores, report_lost_study

    def tell(text: str) -> None:
        context.tell("message", text=text, severity="warning")

    review = Review(context.experiment.name, context.store, context.key if begun else "")
    if begun:
        return compare_stores(context.study, context.tracker, review, context.key, tell)
    report_lost_study(context.study, review, context.key, tell)
    return False


def with_model(context: Context, done: dict[str, Any], *, remade: bool) -> dict[str, Any] | None:
    """The end of a complete sweep, with its model registered again where it is gone.

    Returns:
        None where its files are gone, too: then the winner is trained again.
    """
    model = str(done["model"])
    try:
        if not context.tracker.is_registered(model):
            text = f"the model {model} of this sweep is gone from the registry"
            name, winner = context.experiment.model_name, done["winner"]
            typical = typical_seed(tuple(winner["values"]), context.experiment.direction)
            again = context.tracker.register_again(f"{context.key}/confirm-{winner['label']}-s{typical}", name)
            if again is None:
                text = f"{text}, and so are its files: the winner is trained again"
                context.tell("message", text=text, severity="warning")
                return None
            done = {**done, "model": f"models:/{name}/{again}", "version": again}
            context.tell("message", text=f"{text}: registered again as {done['model']}", severity="warning")
            context.tracker.existing(context.key).set_tags({"forge.model": done["model"]})
            context.study.note(final_key(context.experiment, context.study), done)
        elif context.tracker.has_lost_alias(model):
            context.tracker.set_alias(model)
            context.tell("message", text=f"{model} had lost its alias: it is @challenger again", severity="warning")
        if remade:
            done = {**done, "link": link(context)}
            context.study.note(final_key(context.experiment, context.study), done)
    except TrackingDown as error:
        context.tell("message", text=f"whether {model} is there cannot be seen: {error.message}", severity="warning")
    return done


def log_phases(context: Context, parent: Run) -> None:
    """How long each phase took so far, as ``seconds_baselines`` and so on."""
    context.stopwatch.enter("")
    parent.log_metrics({f"seconds_{name}": seconds for name, seconds in context.study.phases().items()})


def phases(context: Context, parent: Run, again: dict[str, Any] | None = None) -> dict[str, Any]:
    """Baselines, trials, confirmation, the end; without ``again``, which is an end that has no model any more."""
    context.stopwatch.enter("baselines")
    kinds, noted = context.experiment.baselines.kinds, context.study.notes("baseline:")
    fitted = sum(f"baseline:{kind}" in noted for kind in kinds)
    context.tell("phase", name="baselines", total=len(kinds), done=fitted)
    fit_baselines(context)
    context.stopwatch.enter("trials")
    about = {"total": context.study.n_trials, "done": context.study.n_done, "states": context.study.counts()}
    context.tell("phase", name="trials", best=best_value(context), baselines=baseline_values(context), **about)
    with Crew(context) as crew:
        run_trials(context, crew)
        refuse_nothing_finished(context)
        known: dict[str, Any] | None = context.study.notes("final:").get(final_key(context.experiment, context.study))
        if known is not None and known != again:  # a budget was raised and bought no whole trial
            return known
        context.stopwatch.enter("confirm")
        context.tell("phase", name="confirm")
        confirmed = confirm(context, crew)
    context.stopwatch.enter("publish")
    context.tell("phase", name="publish")
    return publish(context, parent, confirmed)


STATUSES: dict[TrialState, str] = {
    "finished": "FINISHED",
    "pruned": "KILLED",
    "failed": "FAILED",
    "waiting": "SCHEDULED",
    "running": "RUNNING",
}
"""MLflow's status for each state of a trial."""


def prepare(context: Context, parent: Run, audit: Audit, *, remade: bool = False) -> None:
    """Before the first trial: the setting is on record, and trials of dead processes wait again or are given up."""
    if remade or "sweep:setting" not in context.study.notes("sweep:"):
        log_setting(context, parent, audit)
        context.study.note("sweep:setting", "logged")
    record_environment(context, parent, again=remade)
    requeued = context.study.requeue()
    for number in requeued.waiting:
        context.tell("message", text=f"trial {number} was cut off and runs again", severity="info")
    for number in requeued.lost:
        end_lost(context, number)
    rows = context.study.rows()
    if parent.run_id is not None:  # it answers: from here on the sweep's runs are there and nowhere else
        context.study.note("sweep:store", context.tracker.address)
    states = {f"{context.key}/{trial_name(row.number)}": STATUSES[row.state] for row in rows}
    # Others may have begun a few more since the rows were read.
    next_ones = range(len(rows), min(context.study.n_total, len(rows) + 1000))
    later = {f"{context.key}/{trial_name(number)}": "RUNNING" for number in next_ones}
    context.tracker.reap(context.key, {**later, **states})
    context.study.note("sweep:link", link(context))


def try_models(experiment: Experiment, dataset: Dataset, watch: Watch) -> tuple[Finding, ...]:
    """The pre-flight; its errors stop here."""
    watch(Event("phase", {"name": "preflight"}))
    training.load_backend()
    training.fix_operations(experiment.deterministic)
    findings = preflight(experiment, dataset)
    report_findings(findings, watch)
    refuse("the pre-flight found errors; no trial was started", findings)
    return findings


def look_around(experiment: Experiment, store: Path, watch: Watch) -> Environment:
    """What `run` and `check` refuse before they read a row: packages, backend, stores, machine.

    Raises:
        InputError: something of it cannot work.
    """
    for text in experiment.warnings:
        watch(Event("message", {"text": text, "severity": "warning"}))
    require_packages(experiment)
    workers.require_packages(experiment.workers)
    training.select_backend(experiment.backend, experiment.deterministic)
    refuse_store(store)
    check_storage(store)
    check_store(store)
    here = capture_environment(experiment, watch)
    refuse_gpu_budget(experiment, here)
    return here


def refuse_store(store: Path) -> None:
    """Raise InputError for a folder that cannot be made or written to."""
    home, wrong = store.absolute(), ""
    try:
        while not home.exists() and home != home.parent:
            home = home.parent
        if not home.is_dir():
            wrong = "is a file" if home == store.absolute() else f"cannot be made: {home} is a file"
        elif not os.access(home, os.W_OK):
            wrong = f"cannot be written to: no permission in {home}"
    except OSError as error:
        wrong = f"cannot be used: {error.strerror}"
    if wrong:
        raise InputError(f"the store {store} {wrong}", hint="give a folder: --store mlruns")


def check(experiment: Experiment, *, store: Path = Path("mlruns"), watch: Watch = ignore) -> tuple[Finding, ...]:
    """Audit and pre-flight without a study or a run.

    Args:
        experiment: what would be run.
        store: folder of the embedded stores that it would be run with; nothing is made there.
        watch: told of every event.

    Raises:
        GateRefused: there are errors among the findings.
        InputError: `run` would not begin.
    """
    look_around(experiment, store, watch)
    dataset = load_data(experiment, watch)
    audit = inspect(experiment, dataset, watch)
    return (*audit.findings, *try_models(experiment, dataset, watch))


def check_stores(store: Path) -> None:
    """Refuse a store, or an address of one, that nothing could be kept in.

    Raises:
        InputError: names the store and the cause.
    """
    refuse_unwritable(store)
    check_storage(store)
    check_store(store)


def stop_between(stopping: Callable[[], bool]) -> None:
    """Leave where the user asked to, between two phases."""
    if stopping():
        raise Interrupted


def capture_environment(experiment: Experiment, watch: Watch) -> Environment:
    """Machine, packages, image and commit; what could not be found out is said."""
    here = environment.capture(experiment.root, experiment.backend)
    for text in filter(None, (*here.warnings(), environment.ignored_settings())):
        watch(Event("message", {"text": text, "severity": "warning"}))
    return here


def refuse_gpu_budget(experiment: Experiment, here: Environment) -> None:
    """A budget of GPU-seconds that no trial can spend would never end anything."""
    limit, spec = experiment.study.gpu_budget_s, experiment.workers
    if limit is not None and not (spec.gpus if spec.kind == "ray" else here.gpus):
        raise InputError(
            f"study.gpu_budget_s = {limit:g}, but no trial holds a GPU",
            hint="set study.cpu_budget_s, or on a Ray cluster workers.gpus",
        )


def load_data(experiment: Experiment, watch: Watch) -> Dataset:
    """The rows of an experiment, split; what their source has to say about them is said."""
    dataset = sources.load(experiment.data, root=experiment.root, seed=experiment.seed)
    for text in dataset.warnings:
        watch(Event("message", {"text": text, "severity": "warning"}))
    refuse_unknown_groups(experiment, dataset)
    return dataset


def refuse_unknown_groups(experiment: Experiment, dataset: Dataset) -> None:
    """Raise InputError, before anything is trained, for groups that the promotion could not compare."""
    known = list(map(str, dataset.train.features.columns))
    for name in experiment.promotion.groups:
        if name not in known:
            hint = nearest(name, known) or f"name features, such as {', '.join(known[:5])}"
            raise InputError(f"promotion.groups = {name!r}: {dataset.version} has no such feature", hint=hint)


def inspect(experiment: Experiment, dataset: Dataset, watch: Watch) -> Audit:
    """Audit the data; errors stop here, before any training."""
    watch(Event("phase", {"name": "audit", "dataset": dataset.version, "rows": dict(dataset.sizes)}))
    audit = audit_dataset(
        dataset, experiment.data.task, experiment.preprocessing, scaled="none" not in experiment.scalers
    )
    watch(Event("features", {"table": audit.features.reset_index().to_dict("records")}))
    known = experiment.data.known_before
    findings = tuple(
        replace(found, severity="warning") if found.code == "target-leak" and found.subject in known else found
        for found in audit.findings
    )
    report_findings(findings, watch)
    refuse(f"the audit of {dataset.version} found errors; nothing was trained", findings)
    return replace(audit, findings=findings)


def report_findings(findings: Iterable[Finding], watch: Watch) -> None:
    """Show findings to whoever watches."""
    for finding in findings:
        watch(Event("finding", {**asdict(finding), "text": str(finding)}))


def refuse(title: str, findings: Iterable[Finding]) -> None:
    """Stop where there are errors."""
    found = errors(findings)
    if found:
        raise GateRefused(title, found)


def identity(dataset: Dataset) -> dict[str, str]:
    """What makes two datasets the same for a study."""
    return {"version": dataset.version, "digest": dataset.digest, "split_digest": dataset.split_digest}


def report_opening(study: Study, watch: Watch) -> None:
    """Say what was found: a study to go on with, or trials imported by a fork."""
    if study.imported or study.skipped:
        skipped = f"; {study.skipped}" if study.skipped else ""
        accepted = f"; accepted differences: {study.accepted}" if study.accepted else ""
        text = f"{study.name} imported {study.imported} trials{skipped}{accepted}"
        watch(Event("message", {"text": text, "severity": "info"}))
    if study.n_done:
        text = f"going on with {study.name}: {study.n_done} trials are done"
        watch(Event("message", {"text": text, "severity": "info"}))


def begin(study: Study) -> dict[str, Any]:
    """Identity and start of the sweep; the random part keeps a deleted study from sharing runs with a new one."""
    noted: dict[str, Any] | None = study.notes("sweep:").get("sweep:begin")
    if noted is None:
        now = datetime.datetime.now().astimezone()
        noted = {
            "key": f"{study.name}/{uuid.uuid4().hex[:12]}",
            "began": now.strftime("%Y-%m-%d %H:%M:%S"),
            "first_epoch": FIRST_EPOCH,
        }
        study.note("sweep:begin", noted)
    return noted


def refuse_other_store(context: Context) -> None:
    """A sweep's runs stay in one MLflow store: half of them elsewhere would be lost to whoever compares them."""
    noted, tracker = context.study.notes("sweep:").get("sweep:store"), context.tracker
    if noted not in (None, tracker.address):
        # The embedded store that was moved or copied with its studies holds the sweep's own run.
        if tracker.is_embedded and noted.startswith("sqlite") and tracker.has(context.key):
            context.study.note("sweep:store", tracker.address)
            context.tell("message", text=f"the store was at {noted} before and goes on here", severity="info")
            return
        raise InputError(
            f"the runs of sweep {context.study.name} are in {noted}, and MLflow is now at {context.tracker.address}",
            hint="set MLFLOW_TRACKING_URI as it was, or begin a new sweep under another name",
        )


def open_parent(context: Context) -> Run:
    """The parent run, new or found again."""
    experiment = context.experiment
    began = begin(context.study)["began"]
    parent = context.tracker.run(
        context.key,
        f"{experiment.name} {began}",
        kind="sweep",
        parent=None,
        tags={
            **context.provenance,
            "forge.state": "running",
            "forge.n_trials": str(experiment.study.n_trials),
            "forge.overrides": " ".join(experiment.overrides),
            "forge.root": str(experiment.root.absolute()),
        },
        params=parent_params(experiment.resolved()),
        dataset=context.used,
    )
    return parent


def parent_params(resolved: dict[str, Any]) -> dict[str, Any]:
    """What a parent run has as params: what makes a trial what it is, and no budget."""
    fixed = (
        "seed",
        "backend",
        "data.",
        "preprocessing.",
        "model.",
        "objective.",
        "study.sampler",
        "study.pruner",
        "study.epochs",
    )
    flat = {path: value for path, value in flatten(resolved).items() if path.startswith(fixed) and not is_budget(path)}
    return {path: jsons.dumps(value) if isinstance(value, list | dict) else value for path, value in flat.items()}


def record_environment(context: Context, parent: Run, *, again: bool = False) -> None:
    """Record every environment that the sweep ran in, and say what changed: numbers made elsewhere may differ."""
    known: dict[str, dict[str, Any]] = context.study.notes("environment:")
    key = f"environment:{context.environment_digest}"
    if key in known and not again:
        return
    parent.log_environment(context.environment, f"environment/{context.environment_digest}")
    if key in known:
        return
    now = flatten(context.environment.to_dict())
    if known:
        before = max(known.values(), key=lambda one: float(one["since"]))["values"]
        changed = list(changes(before, now))
        more = f" and {len(changed) - 10} more" if len(changed) > 10 else ""
        text = f"the environment changed since the last start; numbers may differ: {'; '.join(changed[:10])}{more}"
        if changed:
            context.tell("message", text=text, severity="warning")
    values = {path: value for path, value in now.items() if path != "git_diff"}
    context.study.note(key, {"since": time.time(), "values": values})


def changes(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """What differs between two environments; what an older version did not record is not compared."""
    recorded = {path.partition(".")[0] for path in before}
    known = {path for path in {*before, *now} if path.partition(".")[0] in recorded and path != "git_diff"}
    paths = sorted(path for path in known if before.get(path) != now.get(path))
    yield from (f"{path}: {before.get(path)} -> {now.get(path)}" for path in paths)
    if not paths and {path.partition(".")[0] for path in now} <= {*recorded, "git_diff"}:
        yield "the uncommitted changes"


def link(context: Context) -> str:
    """The UI's page with the curves of this sweep's trials, best first."""
    return context.tracker.link(
        context.key, f"best_{context.experiment.objective.metric}", context.experiment.direction
    )


def result(context: Context, final: dict[str, Any]) -> SweepResult:
    """The end as a value."""
    experiment, best = context.experiment, context.study.best()
    return SweepResult(
        study=context.study.name,
        trials={str(state): count for state, count in context.study.counts().items()},
        objective=experiment.objective.metric,
        best={} if best is None else {"number": best.number, "value": best.value, "params": best.params},
        baselines=baseline_values(context),
        verdict=final["verdict"],
        winner=final["winner"],
        test=final["test"],
        run_id=final["run_id"],
        model=final["model"],
        link=final["link"],
        confirmed=final["confirmed"],
        ended_by=final.get("ended_by", "study.n_trials"),
        costs=[cost.to_dict() for cost in context.study.costs_by_state()],
        outcome=final.get("outcome", ""),
        comparison=final.get("comparison", {}),
        evaluation=final.get("evaluation"),
        phases=context.study.phases(),
    )
