"""The story of a sweep, told once from top to bottom.

Every phase leaves a durable note in the study, so a sweep that was killed anywhere goes on where it was.
"""

from __future__ import annotations

import datetime
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from forge_sweep import environment, jsons, sources, training, trial, workers
from forge_sweep.addresses import refuse_unwritable
from forge_sweep.checks.audit import Audit
from forge_sweep.checks.audit import audit as audit_dataset
from forge_sweep.checks.findings import Finding, Findings, errors
from forge_sweep.checks.findings import tags as tags_of
from forge_sweep.environment import Environment
from forge_sweep.errors import GateRefused, InputError, SweepStopped
from forge_sweep.experiment import Experiment, flatten
from forge_sweep.experiment.code import file_name
from forge_sweep.experiment.words import nearest
from forge_sweep.preflight import preflight
from forge_sweep.sources import Dataset
from forge_sweep.study import Study, check_storage, open_study, require_packages, resumable
from forge_sweep.sweep import kept, pruned
from forge_sweep.sweep.budget import Stopwatch, goes_on, why_over
from forge_sweep.sweep.confirm import Confirmation
from forge_sweep.sweep.context import (
    Context,
    Event,
    Interrupted,
    Watch,
    baseline_values,
    ignore,
    message,
    warn_all,
)
from forge_sweep.sweep.pool import WorkerPool
from forge_sweep.sweep.publish import final_key, log_setting, log_space, publish
from forge_sweep.sweep.reconcile import STATUSES, before_run, parent_params, with_model
from forge_sweep.sweep.result import SweepResult, result_of
from forge_sweep.sweep.trials import enter_trials, fit_baselines, report_taken_back, searching, trial_name
from forge_sweep.sweep.tuning import tune_baselines
from forge_sweep.tracking import FIRST_EPOCH, Run, Tracker, check_store


def run(
    experiment: Experiment,
    *,
    store: Path = Path("mlruns"),
    fork: bool = False,
    watch: Watch = ignore,
    stopping: Callable[[], bool] = lambda: False,
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
    audit = audit_data(experiment, dataset, watch)
    stopwatch.enter("start")
    if stopping():
        raise Interrupted
    begun = resumable(experiment, dataset=identity(dataset), store=store, fork=fork)
    if begun is None or goes_on(experiment, begun) or final_key(experiment, begun) not in begun.notes("final:"):
        stopwatch.enter("preflight")
        try_models(experiment, dataset, watch)  # before there is a study: a wrong file leaves nothing behind
        stopwatch.enter("start")
    if stopping():
        raise Interrupted
    study = open_study(experiment, dataset=identity(dataset), store=store, fork=fork)
    with study.hold(stopping):
        _report_opening(study, watch)
        known = study.notes("sweep:").get("sweep:begin", {}).get("key", "")
        with Tracker(experiment.name, store, description=experiment.description, sweep=known) as tracker:
            key = begin(study)["key"]
            context = Context(
                experiment, dataset, study, tracker, here, store, key, watch, stopping, stopwatch=stopwatch
            )
            remade = before_run(context, begun=bool(known))
            final = whole = _complete(context, remade=remade)
            if final is None or pruned.left(context):
                with _under_parent(context, audit, remade=remade, whole=whole) as (parent, lost):
                    if whole is None:
                        fit_baselines(context)
                        tune_baselines(context)
                        enter_trials(context)
                    with WorkerPool(context) as pool:
                        if whole is None:
                            with searching(context, pool) as work:
                                pool.run(work)
                            _refuse_nothing_finished(context)
                            final = _noted_end(context, but=lost)
                        if final is None:
                            context.enter("confirm")
                            confirmation = Confirmation(context, pool)
                            pool.run(confirmation.work)
                        pruned.audit_pruned(context, pool)
                    if final is None:
                        context.enter("publish")
                        final = publish(context, parent, confirmation.result())
                final = _end(context, parent, final)
            ended = result_of(context.study, final)
    return replace(ended, missing=tracker.missing())


def _noted_end(context: Context, *, but: dict[str, Any] | None = None) -> dict[str, Any] | None:
    noted: dict[str, Any] | None = context.study.notes("final:").get(final_key(context.experiment, context.study))
    return None if noted == but else noted


def _complete(context: Context, *, remade: bool) -> dict[str, Any] | None:
    """The end of a sweep of which nothing is left to do, its model registered again where it was gone; else None."""
    done, why = _noted_end(context), why_over(context.experiment, context.study)
    if done is None or not why:
        return None
    whole = with_model(context, done, remade=remade)
    if whole is not None:
        context.inform(f"sweep {context.study.name} is complete{why}")
    return whole


@contextmanager
def _under_parent(
    context: Context, audit: Audit, *, remade: bool, whole: dict[str, Any] | None
) -> Iterator[tuple[Run, dict[str, Any] | None]]:
    """Run the rest of a sweep within the block, under its parent run, which ends as failed or killed where it raises.

    Gives the run, and the noted end of a complete sweep whose model is gone for good: it is made anew. ``whole`` is the
    end of one of which no more than the audit of pruned trials is left.
    """
    over = whole is None and why_over(context.experiment, context.study)
    lost = _noted_end(context) if over else None
    training.load_backend()
    experiment = context.experiment
    parent = context.tracker.run(
        context.key,
        f"{experiment.name} {begin(context.study)['began']}",
        kind="sweep",
        parent=None,
        tags={
            **context.provenance,
            "forge.state": "running",
            "forge.n_trials": str(experiment.study.n_trials),
            "forge.overrides": " ".join(experiment.overrides),
            "forge.root": str(experiment.root.absolute()),
            **{f"forge.{name}": jsons.dumps(found) for name, found in context.study.notes("sampler").items()},
        },
        params={
            path: value
            for path, value in parent_params(experiment.resolved()).items()
            if not (context.study.spaces() and path.startswith("model.search"))  # the first one stays as it was logged
        },
        dataset=context.used,
    )
    context.stopwatch.keep_in(context.study)
    try:
        _prepare(context, parent, audit, remade=remade)
        yield parent, lost
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        parent.set_tags({"forge.state": "interrupted" if interrupted else "failed", "forge.cause": str(error)[:500]})
        _log_phases(context, parent)
        parent.finish("KILLED" if interrupted else "FAILED")
        raise


def _end(context: Context, parent: Run, final: dict[str, Any]) -> dict[str, Any]:
    over = context.budget.over()
    by_itself = "model.search" if context.study.all_tried else "study.n_trials"
    ended_by = final.get("ended_by") or (by_itself if over is None else over.key)
    _log_phases(context, parent)
    parent.set_tags({"forge.state": "finished", "forge.model": final["model"], "forge.ended_by": ended_by})
    said = context.study.findings(final)
    _log_diagnosis(context, parent, said)
    parent.finish("FINISHED")
    ended = {
        "findings": [each.to_dict() for each in said],
        "ended_by": ended_by,
        "run_id": parent.run_id,
        "link": context.link,
        "ended": time.time(),
    }
    context.study.note("sweep:link", ended["link"])
    context.study.note(final_key(context.experiment, context.study), final | ended)
    clear_checkpoints(context)
    return final | ended


def _log_diagnosis(context: Context, parent: Run, said: Iterable[Finding]) -> None:
    """What the trials say together, as tags of the parent run; what an earlier end said and is so no more, says so."""
    study = context.study
    tags = tags_of(said)
    before = study.notes("sweep:").get("sweep:findings", [])
    tags |= {name: "no longer" for name in before if name not in tags}
    if (found := study.audit()) is not None:
        tags["forge.audit"] = found.words()
        epochs, seconds = found.saved
        figures = {"audited": len(found.known), "audited_better": len(found.better)}
        parent.log_metrics({**figures, "epochs_saved_by_pruning": epochs, "seconds_saved_by_pruning": seconds})
    parent.set_tags(tags)
    study.note("sweep:findings", sorted(tags))


def _log_phases(context: Context, parent: Run) -> None:
    context.stopwatch.enter("")
    parent.log_metrics({f"seconds_{name}": seconds for name, seconds in context.study.phases().items()})


def _refuse_nothing_finished(context: Context) -> None:
    """Raise `SweepStopped`, with what trials cost, where a budget ended the search before a trial finished.

    Where the time of the whole sweep did, it ends with its best baseline.
    """
    over, study = context.budget.over(), context.study
    if over is None or study.best() is not None:
        return
    rows = [row for row in study.rows() if row.cost is not None]
    costs = [f"trial {r.number} took {r.cost.total.words()} for {r.epochs} {study.step}s" for r in rows[:3] if r.cost]
    said = f"{over.text}, and no trial finished: {'; '.join(costs) or 'none was begun'}"
    if over.key == "study.total_s" and baseline_values(context):
        context.warn(f"{said}; only the best baseline is confirmed")
        return
    raise SweepStopped(
        said,
        hint=f"raise {over.key} and run again, which goes on from here (a trial has up to "
        f"{context.experiment.study.epochs} epochs), or lower the upper ends of [model.search]",
    )


def clear_checkpoints(context: Context) -> None:
    """Trials that wait for a larger budget keep what is theirs."""
    waiting = tuple(trial_name(row.number) for row in context.study.rows() if row.state == "waiting")
    for path in context.checkpoints.glob("*") if waiting else [context.checkpoints]:
        if not (waiting and path.name.lstrip(".").startswith(waiting)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _prepare(context: Context, parent: Run, audit: Audit, *, remade: bool = False) -> None:
    """Before the first trial: the setting is on record, and trials of dead processes wait again or are given up."""
    if remade or "sweep:setting" not in context.study.notes("sweep:"):
        log_setting(context, parent, audit)
        context.study.note("sweep:setting", "logged")
    log_space(context, parent)
    kept.prepare(context, parent, remade=remade)
    record_environment(context, parent, again=remade)
    report_taken_back(context, context.study.requeue())
    rows = context.study.rows()
    if parent.run_id is not None:  # it answers: from here on the sweep's runs are there and nowhere else
        context.study.note("sweep:store", context.tracker.address)
        context.study.note("sweep:run", parent.run_id)
    states = {f"{context.key}/{trial_name(row.number)}": STATUSES[row.state] for row in rows}
    # Others may have begun a few more since the rows were read.
    next_ones = range(len(rows), min(context.study.n_trials + context.study.left_out, len(rows) + 1000))
    later = {f"{context.key}/{trial_name(number)}": "RUNNING" for number in next_ones}
    context.tracker.reap(context.key, {**later, **states})
    context.study.note("sweep:link", context.link)


def try_models(experiment: Experiment, dataset: Dataset, watch: Watch) -> tuple[Finding, ...]:
    """The pre-flight; its errors stop here."""
    watch(Event("phase", {"name": "preflight"}))
    if experiment.code is not None:
        files = ", ".join(map(file_name, experiment.code.files))
        message(watch, f"{experiment.model.builder} is read from {files}; digest {experiment.model.code}")
    trial.several(experiment, dataset)  # refused before there is a study, where there are too few rows for it
    training.load_backend()
    training.fix_operations(experiment.deterministic)
    findings = preflight(experiment, dataset)
    _report(findings, watch, refusal="the pre-flight found errors; no trial was started")
    return findings


def look_around(experiment: Experiment, store: Path, watch: Watch) -> Environment:
    """What `run` and `check` refuse before they read a row: packages, backend, stores, machine."""
    warn_all(watch, experiment.warnings)
    require_packages(experiment)
    workers.require_packages(experiment.workers)
    training.select_backend(experiment.backend, experiment.deterministic)
    _refuse_store(store)
    check_storage(store)
    check_store(store)
    here = capture_environment(experiment, watch)
    refuse_gpu_budget(experiment, here.gpus)
    return here


def _refuse_store(store: Path) -> None:
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


def check(experiment: Experiment, *, store: Path = Path("mlruns"), watch: Watch = ignore) -> Findings:
    """Audit and pre-flight without a study or a run; nothing is made in the store.

    Raises:
        GateRefused: there are errors among the findings.
        InputError: `run` would not begin.
    """
    look_around(experiment, store, watch)
    dataset = load_data(experiment, watch)
    audit = audit_data(experiment, dataset, watch)
    return Findings((*audit.findings, *try_models(experiment, dataset, watch)))


def check_stores(store: Path) -> None:
    """Refuse a store, or an address of one, that nothing could be kept in.

    Raises:
        InputError: names the store and the cause.
    """
    refuse_unwritable(store)
    check_storage(store)
    check_store(store)


def capture_environment(experiment: Experiment, watch: Watch) -> Environment:
    """The environment; what could not be found out is said."""
    here = environment.capture(experiment.root, experiment.backend)
    warn_all(watch, filter(None, (*here.warnings(), environment.ignored_settings())))
    return here


def refuse_gpu_budget(experiment: Experiment, gpus: Sequence[str]) -> None:
    """A budget of GPU-seconds that no trial can spend would never end anything."""
    limit, spec = experiment.study.gpu_budget_s, experiment.workers
    if limit is not None and not (spec.gpus if spec.kind == "ray" else gpus):
        raise InputError(
            f"study.gpu_budget_s = {limit:g}, but no trial holds a GPU",
            hint="set study.cpu_budget_s, or on a Ray cluster workers.gpus",
        )


def load_data(experiment: Experiment, watch: Watch) -> Dataset:
    """The rows of an experiment, split; what their source has to say about them is said."""
    code = experiment.source_code
    if code is not None:
        files, asked = ", ".join(map(file_name, code.files)), experiment.data.digest
        message(watch, f"{code.builder}, which gives the rows, is read from {files}; digest {code.digest}")
        training.load_backend()  # before the user's module does
    dataset = sources.load(experiment.data, root=experiment.root, seed=experiment.seed, code=code)
    if code is not None:
        how = "is the declared one" if asked else f"was computed over {sum(dataset.sizes.values()):,} rows"
        message(watch, f"the digest of the rows, {dataset.digest[:12]}, {how}")
    if in_files := sources.in_files(dataset):
        message(watch, in_files)
    warn_all(watch, dataset.warnings)
    known = list(map(str, dataset.train.features.columns))
    for name in experiment.promotion.groups:  # before anything is trained: the promotion could not compare them
        if name not in known:
            hint = nearest(name, known) or f"name features, such as {', '.join(known[:5])}"
            raise InputError(f"promotion.groups = {name!r}: {dataset.version} has no such feature", hint=hint)
    return dataset


def audit_data(experiment: Experiment, dataset: Dataset, watch: Watch) -> Audit:
    """Audit the data; errors stop here, before any training."""
    groups = {"groups": dict(dataset.groups)} if dataset.groups else {}
    watch(Event("phase", {"name": "audit", "dataset": dataset.version, "rows": dict(dataset.sizes), **groups}))
    data, scaled = experiment.data, "none" not in experiment.scalers
    images = {str(group.column) for group in data.inputs.values() if group.kind == "image"}
    audit = audit_dataset(
        dataset,
        data.task,
        experiment.preprocessing,
        scaled=scaled,
        heads=data.heads,
        images=images,
        metric=experiment.objective.metric,
        split=data.split.kind,
    )
    watch(Event("features", {"table": audit.features.reset_index().to_dict("records")}))
    known, leaks = experiment.data.known_before, ("target-leak", "groups-across-splits")
    findings = tuple(
        replace(found, severity="warning") if found.code in leaks and found.subject in known else found
        for found in audit.findings
    )
    _report(findings, watch, refusal=f"the audit of {dataset.version} found errors; nothing was trained")
    return replace(audit, findings=findings)


def _report(findings: Iterable[Finding], watch: Watch, *, refusal: str) -> None:
    for finding in findings:
        watch(Event("finding", {**asdict(finding), "text": str(finding)}))
    if found := errors(findings):
        raise GateRefused(refusal, found)


def identity(dataset: Dataset) -> dict[str, str]:
    """What makes two datasets the same for a study."""
    return {"version": dataset.version, "digest": dataset.digest, "split_digest": dataset.split_digest}


def _report_opening(study: Study, watch: Watch) -> None:
    if study.imported or study.skipped:
        skipped = f"; {study.skipped}" if study.skipped else ""
        accepted = f"; accepted differences: {study.accepted}" if study.accepted else ""
        message(watch, f"{study.name} imported {study.imported} trials{skipped}{accepted}")
    if taken := [row for row in study.rows() if row.warm and not study.n_done]:
        listed = ", ".join(f"trial {row.number} has that of {row.warm}" for row in taken)
        message(watch, f"configurations of earlier sweeps come first: {listed}")
    if study.cold:
        message(watch, f"study.warm_start: {study.cold}", "warning")
    if study.grown:
        message(watch, study.grown)
    if study.n_done:
        message(watch, f"going on with {study.name}: {study.n_done} trials are done")


def begin(study: Study) -> dict[str, Any]:
    """Identity and start of the sweep; the random part keeps a deleted study from sharing runs with a new one."""
    noted: dict[str, Any] | None = study.notes("sweep:").get("sweep:begin")
    if noted is None:
        now = datetime.datetime.now().astimezone()
        noted = {
            "key": f"{study.name}/{uuid.uuid4().hex[:12]}",
            "began": now.strftime("%Y-%m-%d %H:%M:%S"),
            "first_epoch": FIRST_EPOCH,
            "ensembles": True,
        }
        study.note("sweep:begin", noted)
    return noted


def record_environment(context: Context, parent: Run, *, again: bool = False) -> None:
    """Record every environment that the sweep ran in, and say what changed: numbers made elsewhere may differ."""
    known: dict[str, dict[str, Any]] = context.study.notes("environment:")
    key = f"environment:{context.environment_digest}"
    if key not in known or again:
        parent.log_environment(context.environment, f"environment/{context.environment_digest}")
    if key in known:
        return
    now = flatten(context.environment.to_dict())
    if known:
        before = max(known.values(), key=lambda one: float(one["since"]))["values"]
        if changed := list(changes(before, now)):
            more = f" and {len(changed) - 10} more" if len(changed) > 10 else ""
            shown = f"{'; '.join(changed[:10])}{more}"
            context.warn(f"the environment changed since the last start; numbers may differ: {shown}")
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
