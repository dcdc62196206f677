"""Commands on sweeps, and ``forge-sweep store``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from forge_sweep import jsons
from forge_sweep.cli.options import MLRUNS, AsJson, File, Name, Overrides, Store
from forge_sweep.cli.printing import (
    cell,
    complain,
    console,
    echo,
    emit,
    print_costs,
    print_features,
    print_finding,
    print_table,
    say,
)
from forge_sweep.cli.surroundings import INTERRUPTED, REFUSED, refuse_unwritable
from forge_sweep.errors import InputError

if TYPE_CHECKING:
    from types import FrameType

    from forge_sweep.experiment import Experiment
    from forge_sweep.study import Shared, TrialRow
    from forge_sweep.study.replay import Replayed
    from forge_sweep.sweep import Event
    from forge_sweep.task import TaskKind


def run(
    experiment: File,
    overrides: Overrides = None,
    fork: Annotated[
        bool, typer.Option("--fork", help="If the experiment changed, start a new study from the old trials.")
    ] = False,
    null: Annotated[
        int,
        typer.Option(
            "--null",
            min=0,
            max=100_000,
            metavar="N",
            help="Then train its first configurations on N permutations of the targets, for a p-value.",
        ),
    ] = 0,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Run a sweep to completion, or resume an interrupted one."""
    from forge_sweep.cli.watchers import print_result

    loaded = _load(experiment, overrides)
    with _training(loaded, as_json, "finished trials are kept; run the same command again to resume") as control:
        from forge_sweep import sweep

        if null:
            sweep.refuse_null(loaded)
        result = sweep.run(loaded, store=store, fork=fork, **control)
    if as_json:
        emit({"event": "done", **result.to_dict()}, indent=None)
    else:
        print_result(loaded.name, result)
    if null:
        with _training(loaded, as_json, "what was trained is kept; run the same command again to resume") as control:
            found = sweep.null_sweep(loaded, null, store=store, **control)
        if as_json:
            emit({"event": "null", **found.to_dict()}, indent=None)
        else:
            say(f"null      {found.words}")
    if result.missing:
        complain(f"the sweep is complete, but {result.missing}")
        raise typer.Exit(1)


def worker(
    experiment: File,
    overrides: Overrides = None,
    wait: Annotated[
        float,
        typer.Option("--wait", min=0, metavar="SECONDS", help="How long to wait for `forge-sweep run` to search."),
    ] = 600.0,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Join a sweep started by `forge-sweep run` and run its trials until none are left."""
    loaded = _load(experiment, overrides)
    with _training(loaded, as_json, "its running trials wait for another worker or the next run") as control:
        from forge_sweep.sweep import join

        joined = join(loaded, store=store, wait_s=wait, **control)
    if as_json:
        emit({"event": "done", **joined.to_dict()}, indent=None)
    else:
        say(f"left {joined.study}: {joined.left}; trials run here: {_counts(joined.trials) or 'none'}")
    if joined.missing:
        complain(joined.missing)
        raise typer.Exit(1)


def check(experiment: File, overrides: Overrides = None, store: Store = MLRUNS, as_json: AsJson = False) -> None:
    """Audit the data and build the smallest and the largest model, without starting a sweep."""
    from forge_sweep.cli.watchers import watching

    loaded = _load(experiment, overrides)
    with watching(loaded, as_json=as_json, console=console()) as watch:
        from forge_sweep import sweep

        said = 0  # warnings about the file, the data and the machine, which are not findings

        def show(event: Event) -> None:
            nonlocal said
            said += event.kind == "message" and event.data.get("severity") == "warning"
            if event.kind == "features" and not as_json:
                print_features(event.data["table"])
            watch(event)

        findings = sweep.check(loaded, store=store, watch=show)
    if not as_json:
        warnings = said + sum(finding.severity == "warning" for finding in findings)
        say(f"{loaded.name}: ready to run ({warnings} warning{'' if warnings == 1 else 's'})")


def doctor(
    experiment: Annotated[
        Path | None,
        typer.Argument(
            metavar="[EXPERIMENT]", help="Experiment file (TOML): check what it asks for too.", show_default=False
        ),
    ] = None,
    overrides: Overrides = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Start no backend: nothing on what it computes on, and how fast.")
    ] = False,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Check packages, variables, devices, stores and disk; exit code 3 if there are errors."""
    loaded = None if experiment is None else _load(experiment, overrides)
    from forge_sweep.doctor import examine

    areas = examine(loaded, store=store, quick=quick)
    counts = {
        kind: sum(found.severity == kind for findings in areas.values() for found in findings)
        for kind in ("error", "warning")
    }
    if as_json:
        listed = {area: [asdict(found) for found in findings] for area, findings in areas.items()}
        emit({"errors": counts["error"], "warnings": counts["warning"], "findings": listed})
    else:
        for area, findings in areas.items():
            say(area)
            for found in findings:
                print_finding(found)
    words = ", ".join(f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items())
    if counts["error"]:
        complain(words)
        raise typer.Exit(REFUSED)
    if not as_json:
        say(words)


def init(
    path: Annotated[Path, typer.Argument(metavar="ROWS", help="CSV or Parquet file.", show_default=False)],
    target: Annotated[str, typer.Option("--target", help="Column to predict.", show_default=False)],
    task: Annotated[
        str | None, typer.Option("--task", help="binary, multiclass or regression; follows from the values.")
    ] = None,
    builder: Annotated[
        str, typer.Option("--builder", help="mlp, a plugin, or module:function of your own beside the rows.")
    ] = "mlp",
    separator: Annotated[str | None, typer.Option("--separator", help="Separator of the CSV file.")] = None,
) -> None:
    """Draft an experiment file beside the rows: their task, and a range for each argument of a builder."""
    from forge_sweep.draft import METRIC, draft, place_of

    if task is not None and task not in METRIC:
        raise InputError(f"--task {task}: expected one of {', '.join(METRIC)}")
    if not path.is_file():
        raise InputError(f"ROWS: there is no file {str(path)!r}; expected a CSV or Parquet file")
    made = place_of(path)
    if made.exists():
        raise InputError(f"{made} is there already", hint="move it, or edit it")
    made.write_text(
        draft(path, target, task=cast("TaskKind | None", task), builder=builder, separator=separator), encoding="utf-8"
    )
    say(f"wrote {made}; read it, then: forge-sweep check {made}")


def schema() -> None:
    """Print the JSON schema of the experiment file, for editors."""
    from forge_sweep.experiment import json_schema

    emit(json_schema())


def status(experiment: Name, store: Store = MLRUNS, as_json: AsJson = False) -> None:
    """Show progress: trials by state, best score, cost, exhausted budget, time per phase, and whether more pays."""
    from forge_sweep.cli.watchers import print_front, searched, winner_words
    from forge_sweep.study import infeasible_words, phases_words

    study = find(experiment, store)
    if as_json:
        emit(study.status())
        return
    states, best, final, over = study.counts(), study.best(), study.final(), study.ended_by()
    running, phases, costs = study.is_carried(), study.phases(), study.costs_by_state()
    say(f"{study.name}: {study.n_done} of {study.n_trials} trials done ({_counts(states) or 'none started'})")
    if said := infeasible_words(study):
        say(said)
    for space in study.spaces()[1:]:
        say(f"search space changed at {space['at']}: {'; '.join(space['changes'])}")
    if outside := [str(row.number) for row in study.rows() if row.outside]:
        say(f"outside of the search space, and so left out: trial{'s' * (len(outside) > 1)} {', '.join(outside)}")
    if not running and final is None:
        say("no process is running this sweep; resume it with `forge-sweep run` and its experiment file")
    objective = study.resolved["objective"]["metric"]
    if final is not None:
        say(f"winner: {winner_words(final['winner'], objective)}; {final['model']}")
    if best is not None:
        say(f"best in the search: {searched(best, objective)}")
    if (front := study.front()) is not None:
        print_front(front.to_dict())
    if over is not None:
        say(over.text)
    if phases:
        say(f"took {phases_words(phases)}")
    print_costs(costs)
    if (audit := study.audit()) is not None:
        say(f"audit of pruned trials, outside these costs: {audit.words()}")
    if (null := study.null()) is not None:
        say(f"null sweep: {null['words']}")
    if (ahead := study.outlook()) is not None:
        say(f"more search: {ahead.words}")


def trials(
    experiment: Name,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="Also this metric, from the kept predictions; may be repeated."),
    ] = None,
    sort: Annotated[
        str | None, typer.Option("--sort", metavar="NAME", help="Best first by value, or by a metric.")
    ] = None,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """List every trial with its state, score, cost and parameters."""
    study = find(experiment, store)
    rows, wanted = study.rows(), [*(metric or ()), *([sort] if sort not in (None, "value") else [])]
    scored: dict[str, dict[int, float | None]] = {}
    better = {"value": study.direction}
    if wanted:
        from forge_sweep import predictions

        kept = predictions.read(study, store, wanted=("trial",))
        for name in dict.fromkeys(map(kept.metric, wanted)):
            found, better[name] = kept.score(name), kept.task.direction(name)
            scored[name] = {row.number: jsons.plain(found.get(f"trial:{row.number}")) for row in rows}
        sort = kept.metric(sort) if sort not in (None, "value") else sort
    if sort is not None:
        by = {row.number: row.value for row in rows} if sort == "value" else scored[sort]
        sign = -1.0 if better[sort] == "maximize" else 1.0
        rows.sort(key=lambda row: (by[row.number] is None, sign * (by[row.number] or 0.0)))
    if as_json:
        own = {row.number: {name: values[row.number] for name, values in scored.items()} for row in rows}
        emit([row.to_dict() | ({"metrics": own[row.number]} if scored else {}) for row in rows])
        return
    from forge_sweep.report import COSTS, costs_of, tenths, varying

    names, further = varying(rows), list(study.directions)[1:]
    front = study.front()
    on_front, cells = {} if front is None else front.points, []
    for row in rows:
        params = (row.params.get(name) for name in names)
        said = ", ".join(each.code for each in row.findings) or "-"
        figures = (row.value, *(values[row.number] for values in scored.values()))
        others = [*(row.values[1:] or [None] * len(further)), "yes" if row.number in on_front else "-"]
        about = (row.epochs, *params, *map(tenths, costs_of(row)), said)
        cells.append((str(row.number), row.state, *figures, *(others if further else ()), *about))
    titles = ("trial", "state", "value", *scored, *further, *(["front"] if further else ()), f"{study.step}s")
    print_table((*titles, *names, *COSTS, "findings"), cells)
    print_costs(study.costs_by_state())
    for row in rows:
        for remark in row.remarks:
            say(f"trial {row.number} {remark}")


def diagnose(
    experiment: Name,
    trial: Annotated[int | None, typer.Option(help="Of this trial only.")] = None,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Say why trials learned nothing, or less than they could, and what the sweep should try next."""
    study = find(experiment, store)
    rows = study.rows() if trial is None else [study.row(trial)]
    found = [(f"trial {row.number}", each) for row in rows for each in row.findings]
    if trial is None:
        found = [("sweep", each) for each in study.findings()] + found
    audit = study.audit() if trial is None else None
    if as_json:
        audited = [] if audit is None else [{"of": "audit", **audit.to_dict()}]
        emit([*({"of": of, **each.to_dict()} for of, each in found), *audited])
        return
    for of, each in found:
        say(f"{of}: {each}")
    if audit is not None:
        say(f"audit: {audit.words()}")
    ended = sum(row.state in ("finished", "pruned") for row in rows)
    if found:
        say("what each code means: docs/failures.md, in the section of its name")
    elif audit is None:
        say(f"nothing to say of {ended} ended trial{'' if ended == 1 else 's'}")


def replay(
    experiment: Name,
    pruner: Annotated[
        list[str] | None,
        typer.Option("--pruner", metavar="NAME", help="Pruner to replay; may be repeated. Default: all, and none."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="startup_trials, warmup_epochs or percentile, if not the study's.",
        ),
    ] = None,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Show which recorded trials another pruner would have pruned, and what it would have saved."""
    from forge_sweep.study.replay import replay_study

    found = replay_study(find(experiment, store), pruner or (), _settings(setting or ()))
    if as_json:
        emit([each.to_dict() for each in found])
        return
    titles = ("pruner", "pruned", "of the best quarter", "winner", "would have won", "epochs saved", "seconds saved")
    print_table((*titles, "unknown"), [_replayed_cells(each) for each in found])
    first = found[0]
    words = (
        "; of the rest nothing is known beyond the epoch at which they were pruned (study.audit_pruned trains a sample)"
    )
    rest = words if first.known < first.trials else ""
    say(f"{first.trials} trials, one after the other, {first.known} of them known to their end{rest}")


def _replayed_cells(found: Replayed) -> tuple[str, ...]:
    rate = "" if found.false_prune_rate is None else f" ({found.false_prune_rate:.0%})"
    return (
        found.pruner,
        f"{found.pruned} of {found.trials}",
        f"{found.top_pruned} of {found.top} pruned{rate}",
        {True: "survives", False: "pruned", None: "-"}[found.winner_survives],
        ", ".join(map(str, found.would_have_won)) or "-",
        f"{found.epochs_saved} of {found.epochs}",
        f"{found.seconds_saved:.1f} of {found.seconds:.1f}",
        str(len(found.unknown)),
    )


def _settings(words: Sequence[str]) -> dict[str, Any]:
    """``warmup_epochs=3`` as a key and a value of TOML."""
    from forge_sweep.experiment import toml_value

    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"--set {word} has no value", hint="write it as in TOML: --set warmup_epochs=3")
        found[name.strip()] = toml_value(text.strip())
    return found


def best(experiment: Name, store: Store = MLRUNS, as_json: AsJson = False) -> None:
    """Show the confirmed winner, the registered model, and the best trial of the search."""
    from forge_sweep.cli.watchers import print_front

    study = find(experiment, store)
    row, final = study.best(), study.final()
    if row is None and final is None:
        raise InputError(f"{study.name} has no finished trial yet", hint=f"see `forge-sweep trials {experiment}`")
    gone = "" if final is None else _why_gone(final["model"], store)
    if as_json:
        winner = None if final is None else final["winner"]
        found = {"study": study.name, "winner": winner, "best": None if row is None else row.to_dict()}
        found |= {} if (front := study.front()) is None else {"front": front.to_dict()}
        emit({**found, "final": final, "gone": gone})
    elif gone:
        complain(gone)
    if gone:
        raise typer.Exit(1)
    if not as_json:
        _print_best(row, final, study.resolved["objective"]["metric"])
        if (front := study.front()) is not None:
            print_front(front.to_dict())


def _print_best(row: TrialRow | None, final: dict[str, Any] | None, objective: str) -> None:
    from forge_sweep.cli.watchers import searched, winner_words
    from forge_sweep.task.words import side_by_side

    if final is None:
        say(f"best in the search so far: {searched(row, objective)}")
        say("not confirmed yet: the sweep has not ended")
        params = {} if row is None else row.params
    else:
        say(f"winner: {winner_words({**final['winner'], 'params': {}}, objective)}")
        params = final["winner"]["params"]
    for name, value in params.items():
        say(f"  {name} = {cell(value)}")
    if final is not None:
        say(f"{final['verdict']}\nmodel: {final['model']}")
        if final.get("evaluation"):
            print_table(*side_by_side(final["evaluation"]))
        say(f"best in the search: {searched(row, objective)}")
        if final.get("optimism"):
            say(final["optimism"]["words"])


def report(
    experiment: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
    store: Store = MLRUNS,
) -> None:
    """Write tables and plots of a finished or running sweep to one self-contained HTML file."""
    from forge_sweep.report import write_report

    refuse_unwritable(output)
    study = find(experiment, store)
    write_report(study, output)
    say(f"wrote {output}")
    final = study.final()
    if final is not None and (gone := _why_gone(final["model"], store)):
        complain(f"the report names a model: {gone}")


def ui(
    experiment: Name,
    store: Store = MLRUNS,
    port: Annotated[int, typer.Option(help="Port of the MLflow UI; optuna-dashboard takes the next one.")] = 5000,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only print the addresses; the default without a desktop.")
    ] = False,
) -> None:
    """Open the MLflow UI and optuna-dashboard for an experiment."""
    from forge_sweep.ui import has_browser, serve

    study = find(experiment, store)
    serve(study, store, port, echo=echo, open_browser=not no_browser and has_browser())


def reconcile(
    experiment: Name,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the differences; exit code 3 if there are any.")
    ] = False,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Compare a sweep's trials in Optuna with its runs in MLflow, and repair the differences."""
    from forge_sweep.sweep import reconcile as compare

    found = compare(_name(experiment), store, repair=not dry_run, say=lambda text: say(text, err=True))
    if as_json:
        emit(found.to_dict())
    elif not found.differences:
        say(f"{found.study}: nothing to repair")
    else:
        titles = ("what", "is", "should be", *(() if dry_run else ("repaired",)))
        rows = [(one.what, one.seen, one.expected, "yes" if one.repaired else "no") for one in found.differences]
        print_table(titles, [row[: len(titles)] for row in rows])
    if found.differences and dry_run:
        raise typer.Exit(REFUSED)
    if not all(one.repaired for one in found.differences):
        raise typer.Exit(1)


COMMANDS = (init, run, worker, check, doctor, schema, status, trials, diagnose, replay, best, report, ui, reconcile)

store_app = typer.Typer(help="Maintain the embedded store.", no_args_is_help=True)


@store_app.callback()
def _store() -> None:
    """Maintain the embedded store."""


@store_app.command()
def upgrade(store: Store = MLRUNS, as_json: AsJson = False) -> None:
    """Migrate the store to the installed MLflow, after copying its database."""
    from forge_sweep.tracking import default_uri, upgrade_store

    done = upgrade_store(default_uri(store))
    if as_json:
        emit({**asdict(done), "path": str(done.path), "copy": str(done.copy or "")})
    elif done.copy is None:
        echo(f"{done.path} already has the schema of the installed MLflow ({done.after}); nothing was changed")
    else:
        echo(f"{done.path}: schema {done.before} -> {done.after}\ncopy of the database before: {done.copy}")


def _load(path: Path, overrides: list[str] | None = None) -> Experiment:
    from forge_sweep.experiment import load

    return load(path, overrides or ())


def _name(experiment: str) -> str:
    return _load(Path(experiment)).name if experiment.endswith(".toml") else experiment


def find(experiment: str, store: Path) -> Shared:
    """The study of an experiment, by its file or its name; InputError where there is none."""
    from forge_sweep.study import find_shared, no_study

    name = _name(experiment)
    study = find_shared(name, store)
    if study is None:
        raise no_study(name, store)
    return study


def _counts(states: dict[Any, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _why_gone(model: str, store: Path) -> str:
    """The error for a deleted model; "" where it exists, or where MLflow cannot be reached."""
    from forge_sweep.tracking import model_is_there

    if model_is_there(model, store) is not False:
        return ""
    return f"{model} is gone from MLflow\n  fix: `forge-sweep run` with its experiment registers it again"


@contextmanager
def _training(experiment: Experiment, as_json: bool, interrupted: str) -> Iterator[dict[str, Any]]:
    """What controls a sweep: its watcher, and whether to stop; a Ctrl-C that aborts it ends the command."""
    from forge_sweep.cli.watchers import watching

    try:
        with stop_on_signals() as stopping, watching(experiment, as_json=as_json, console=console()) as watch:
            yield {"watch": watch, "stopping": stopping}
    except KeyboardInterrupt:
        say(f"interrupted: {interrupted}", err=True)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether to stop: after the first Ctrl-C or SIGTERM, once the running epoch ends.

    A second Ctrl-C aborts at once. SIGTERM, which SLURM, Kubernetes and Docker send before they kill, never does.
    """
    asked = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked:
            asked = True
            sys.stderr.write("\nstopping after this epoch; press Ctrl-C again to abort\n")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
