"""The command line: parse, call one function, print, exit code.

TensorFlow, MLflow and Optuna are imported by the command that needs them, so that ``--help`` answers at once.
Exit codes: 0 ok, 1 failure, 2 usage or experiment file, 3 a gate refused, 130 interrupted.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forge_sweep import __version__
from forge_sweep.cli import data, models, reproduce, serve
from forge_sweep.cli.printing import (
    MLRUNS,
    AsJson,
    Store,
    cell,
    complain,
    console,
    echo,
    emit,
    print_costs,
    print_features,
    print_table,
    say,
)
from forge_sweep.cli.surroundings import leave_quietly, refuse_unwritable, settle
from forge_sweep.cli.surroundings import report as report_error
from forge_sweep.errors import InputError, masked

if TYPE_CHECKING:
    from types import FrameType

    from forge_sweep.experiment import Experiment
    from forge_sweep.study import Shared, TrialRow
    from forge_sweep.sweep import Event

REFUSED = 3
INTERRUPTED = 130

app = typer.Typer(
    name="forge-sweep",
    help="Hyperparameter sweeps for Keras: one TOML file in, one registered model out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

File = Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="Experiment file (TOML).", show_default=False)]
Name = Annotated[
    str,
    typer.Argument(metavar="EXPERIMENT", help="Experiment file (TOML), or an experiment's name.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Override keys of the file, such as study.n_trials=4.", show_default=False
    ),
]


def main() -> None:
    """Entry point of ``forge-sweep``."""
    settle()
    code: int | str | None = 0
    try:
        app(standalone_mode=True)
    except SystemExit as leaving:
        code = leaving.code
    except KeyboardInterrupt:
        say("interrupted", err=True)
        code = INTERRUPTED
    except BrokenPipeError:
        code = 1
    except Exception as error:
        try:
            code = report_error(error)
        except OSError:  # nobody hears it
            code = 1
    leave_quietly()
    sys.exit(code)


class Masking(logging.Formatter):
    """Log lines without logins."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return masked(super().format(record))


def start_debugging(wanted: bool) -> None:
    """Let everything that is logged through, on standard error."""
    if wanted:
        handler = logging.StreamHandler()
        handler.setFormatter(Masking("%(asctime)s %(name)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(handler)
        for name in ("forge_sweep", "psycopg", "alembic"):
            logging.getLogger(name).setLevel(logging.DEBUG)


def print_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        echo(f"forge-sweep {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", callback=start_debugging, help="Print log lines and tracebacks, logins masked."),
    ] = False,
) -> None:
    """Hyperparameter sweeps for Keras: one TOML file in, one registered model out."""


app.add_typer(data.app, name="data")
reproduce.add_to(app)
serve.add_to(app)


@app.command()
def run(
    experiment: File,
    overrides: Overrides = None,
    fork: Annotated[
        bool, typer.Option("--fork", help="The experiment changed: begin a new study with the old trials as its start.")
    ] = False,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Run a sweep to its end, or go on with one that was interrupted."""
    from forge_sweep.cli.watchers import watching

    loaded = read(experiment, overrides)
    try:
        with stop_on_signals() as stopping, watching(loaded, as_json=as_json, console=console()) as watch:
            from forge_sweep import sweep

            result = sweep.run(loaded, store=store, fork=fork, watch=watch, stopping=stopping)
    except KeyboardInterrupt:
        say("interrupted: what finished is kept; run the same command again to go on", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        emit({"event": "done", **result.to_dict()}, indent=None)
    else:
        from forge_sweep.cli.result import print_result

        print_result(loaded.name, result)
    if result.missing:
        complain(f"the sweep is complete, but {result.missing}")
        raise typer.Exit(1)


@app.command()
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
    """Join a sweep that `forge-sweep run` carries: run trials of it here, until none is left."""
    from forge_sweep.cli.watchers import watching

    loaded = read(experiment, overrides)
    try:
        with stop_on_signals() as stopping, watching(loaded, as_json=as_json, console=console()) as watch:
            from forge_sweep.sweep import joining

            joined = joining.join(loaded, store=store, wait_s=wait, watch=watch, stopping=stopping)
    except KeyboardInterrupt:
        say("interrupted: running trials wait again; others, or the next run, take them up", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        emit({"event": "done", **joined.to_dict()}, indent=None)
    else:
        counts = ", ".join(f"{count} {state}" for state, count in joined.trials.items()) or "no trial"
        say(f"left {joined.study}: {joined.left}; ended here: {counts}")
    if joined.missing:
        complain(joined.missing)
        raise typer.Exit(1)


@app.command()
def check(experiment: File, overrides: Overrides = None, store: Store = MLRUNS, as_json: AsJson = False) -> None:
    """Audit the data and try the smallest and the largest model, without starting a sweep."""
    from forge_sweep.cli.watchers import watching

    loaded = read(experiment, overrides)
    with watching(loaded, as_json=as_json, console=console()) as watch:
        from forge_sweep import sweep

        def show(event: Event) -> None:
            if event.kind == "features" and not as_json:
                print_features(event.data["table"])
            watch(event)

        findings = sweep.check(loaded, store=store, watch=show)
    if not as_json:
        warnings = sum(finding.severity == "warning" for finding in findings)
        say(f"{loaded.name}: ready to run ({warnings} warning{'' if warnings == 1 else 's'})")


@app.command()
def schema() -> None:
    """Print the JSON schema of the experiment file, for editors."""
    from forge_sweep.experiment import json_schema

    emit(json_schema())


@app.command()
def status(experiment: Name, store: Store = MLRUNS, as_json: AsJson = False) -> None:
    """How far a sweep is: trials by state, best so far, what they cost, which budget is over, how long it took."""
    from forge_sweep.study import phases_words

    study = find(experiment, store)
    states, best, costs, over = study.counts(), study.best(), study.costs_by_state(), study.ended_by()
    carried, phases = study.is_carried(), study.phases()
    if as_json:
        shown = {"study": study.name, "trials": states, "done": study.n_done, "n_trials": study.n_trials}
        shown["best"] = None if best is None else row_as_dict(best)
        spent = {"cost": [cost.to_dict() for cost in costs], "searched_s": round(study.wall_s(), 3), "phases": phases}
        emit({**shown, **spent, "ended_by": None if over is None else asdict(over), "carried": carried})
        return
    counts = ", ".join(f"{count} {state}" for state, count in states.items()) or "none begun"
    say(f"{study.name}: {study.n_done} of {study.n_trials} trials are done ({counts})")
    if not carried and study.final() is None:
        say("nobody carries this sweep: `forge-sweep run` with its experiment goes on with it")
    from forge_sweep.cli.result import searched, winner_words

    objective, final = study.resolved["objective"]["metric"], study.final()
    if final is not None:
        say(f"winner: {winner_words(final['winner'], objective)}; {final['model']}")
    if best is not None:
        say(f"best in the search: {searched(best, objective)}")
    if over is not None:
        say(over.text)
    if phases:
        say(f"took {phases_words(phases)}")
    print_costs(costs)


@app.command()
def trials(experiment: Name, store: Store = MLRUNS, as_json: AsJson = False) -> None:
    """Every trial with its state, score and parameters."""
    study = find(experiment, store)
    rows = study.rows()
    if as_json:
        emit([row_as_dict(row) for row in rows])
        return
    from forge_sweep.report import COSTS, costs_of, tenths, varying

    names = varying(rows)
    print_table(
        ("trial", "state", "value", "epochs", *names, *COSTS),
        [
            (
                *(str(row.number), row.state, row.value, row.epochs),
                *(row.params.get(name) for name in names),
                *map(tenths, costs_of(row)),
            )
            for row in rows
        ],
    )
    print_costs(study.costs_by_state())
    for row in rows:
        if row.failure:
            say(f"trial {row.number} failed ({row.failure}): {row.cause}")


@app.command()
def reconcile(
    experiment: Name,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what differs; exit code 3 where anything does.")
    ] = False,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Compare a sweep's trials in Optuna with its runs in MLflow, and repair what a kill left."""
    from forge_sweep.sweep.reconcile import reconcile as compare

    name = read(Path(experiment), None).name if experiment.endswith(".toml") else experiment
    found = compare(name, store, repair=not dry_run, say=lambda text: say(text, err=True))
    if as_json:
        emit(found.to_dict())
    elif not found.differences:
        say(f"{found.study}: nothing to repair")
    else:
        titles = ("what", "is", "should be", *(() if dry_run else ("repaired",)))
        repaired = {True: "yes", False: "no"}
        rows = [(one.what, one.seen, one.expected, repaired[one.repaired]) for one in found.differences]
        print_table(titles, [row[: len(titles)] for row in rows])
    if found.differences and dry_run:
        raise typer.Exit(REFUSED)
    if not all(one.repaired for one in found.differences):
        raise typer.Exit(1)


@app.command()
def best(experiment: Name, store: Store = MLRUNS, as_json: AsJson = False) -> None:
    """The confirmed winner, the registered model, and the best trial of the search."""
    study = find(experiment, store)
    row, final = study.best(), study.final()
    if row is None and final is None:
        raise InputError(f"{study.name} has no finished trial yet", hint=f"look at `forge-sweep trials {experiment}`")
    winner = None if final is None else final["winner"]
    gone = "" if final is None else why_gone(final["model"], store)
    if as_json:
        shown = {"study": study.name, "winner": winner, "best": None if row is None else row_as_dict(row)}
        emit({**shown, "final": final, "gone": gone})
        if gone:
            raise typer.Exit(1)
        return
    from forge_sweep.cli.result import searched, winner_words
    from forge_sweep.task.words import side_by_side

    objective = study.resolved["objective"]["metric"]
    if final is None:
        say(f"best in the search so far: {searched(row, objective)}")
        say("not confirmed yet: the sweep has not ended")
    else:
        say(f"winner: {winner_words({**final['winner'], 'params': {}}, objective)}")
    params = final["winner"]["params"] if final is not None else row.params if row is not None else {}
    for name, value in params.items():
        say(f"  {name} = {cell(value)}")
    if final is not None:
        say(f"{final['verdict']}\nmodel: {final['model']}")
        if final.get("evaluation"):
            print_table(*side_by_side(final["evaluation"]))
        say(f"best in the search: {searched(row, objective)}")
    if gone:
        complain(gone)
        raise typer.Exit(1)


def why_gone(model: str, store: Path) -> str:
    """What is said of a registered model that is not there any more; "" where it is, or where that cannot be seen."""
    from forge_sweep.tracking import model_is_there

    if model_is_there(model, store) is not False:
        return ""
    return f"{model} is gone from MLflow\n  fix: `forge-sweep run` with its experiment registers it again"


@app.command()
def report(
    experiment: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
    store: Store = MLRUNS,
) -> None:
    """Write tables and plots of a finished or running sweep as one self-contained HTML file."""
    from forge_sweep.report import write_report

    refuse_unwritable(output)
    study = find(experiment, store)
    write_report(study, output)
    say(f"wrote {output}")
    final = study.final()
    if final is not None and (gone := why_gone(final["model"], store)):
        complain(f"the report names a model: {gone}")


@app.command()
def ui(
    experiment: Name,
    store: Store = MLRUNS,
    port: Annotated[int, typer.Option(help="Port of the MLflow UI; optuna-dashboard takes the next one.")] = 5000,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the addresses only; so it is where there is no browser.")
    ] = False,
) -> None:
    """Open the MLflow UI and optuna-dashboard on an experiment's stores."""
    from forge_sweep.ui import has_browser, serve

    study = find(experiment, store)
    serve(study, store, port, echo=echo, open_browser=not no_browser and has_browser())


models.add_to(app)


def read(path: Path, overrides: list[str] | None) -> Experiment:
    """The experiment of a file."""
    from forge_sweep.experiment import load

    return load(path, overrides or ())


def find(experiment: str, store: Path) -> Shared:
    """The newest study of an experiment, for reading."""
    from forge_sweep.study import find_shared, no_study

    name = read(Path(experiment), None).name if experiment.endswith(".toml") else experiment
    study = find_shared(name, store)
    if study is None:
        raise no_study(name, store)
    return study


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks the sweep to stop after the running epoch; the second aborts at once.

    SIGTERM, which SLURM, Kubernetes and Docker send, is like the first, however often it comes: they kill soon enough.
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


def row_as_dict(row: TrialRow) -> dict[str, Any]:
    """A trial for machines."""
    names = ("number", "state", "value", "params", "failure", "cause", "epochs", "seconds", "imported")
    cost = None if row.cost is None else row.cost.to_dict()
    return {**{name: getattr(row, name) for name in names}, "cost": cost}
