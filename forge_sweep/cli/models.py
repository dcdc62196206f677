"""Commands on registered models: champions, cards, reproduction, export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forge_sweep.cli.options import MLRUNS, AsJson, Model, ModelUri, Reason, Run, Store, Trust, Version
from forge_sweep.cli.printing import complain, echo, emit, print_finding, print_table, say
from forge_sweep.cli.surroundings import REFUSED, refuse_unwritable
from forge_sweep.errors import InputError

if TYPE_CHECKING:
    from forge_sweep.registry import Champions, Change

app = typer.Typer(
    help="Registered models: versions, aliases and champion history.", no_args_is_help=True, rich_markup_mode=None
)


def promote(
    model: Model,
    version: Version,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Evaluate the gates, change nothing; test evaluations are kept and reused."),
    ] = False,
    force: Annotated[
        str | None,
        typer.Option(
            metavar="REASON", help="Promote in spite of refusing gates; the reason is recorded.", show_default=False
        ),
    ] = None,
    reason: Reason = "",
    experiment: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Take [promotion] and the data directory from this file.", show_default=False
        ),
    ] = None,
    trust: Trust = False,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion if every gate passes; otherwise change nothing and exit with code 3."""
    from forge_sweep import registry

    if force is not None and not force.strip():
        raise InputError("--force needs a reason, which is recorded", hint='--force "agreed with the fraud team"')
    try:
        done = registry.promote(
            model,
            version,
            store=store,
            dry_run=dry_run,
            force=force or "",
            reason=reason,
            experiment=experiment,
            trust=trust,
            tell=(lambda found: None) if as_json else (lambda found: print_finding(found, error="REFUSED")),
            say=_note,
        )
    except registry.Refused as refusal:
        if as_json:
            emit(refusal.promotion.to_dict())
        codes = dict.fromkeys(finding.code for finding in refusal.promotion.refused)
        complain(f"{refusal.message.splitlines()[0]}\n  refused by: {', '.join(codes)}")
        raise typer.Exit(REFUSED) from None
    if as_json:
        emit(done.to_dict())
    elif done.change is None:
        say(f"version {done.version} of {model} would be promoted; nothing was changed")
    else:
        _print_change(model, done.change)


def rollback(
    model: Model, reason: Reason = "", trust: Trust = False, store: Store = MLRUNS, as_json: AsJson = False
) -> None:
    """Make the previous champion the champion again."""
    from forge_sweep import registry

    change = registry.rollback(model, store=store, reason=reason, trust=trust, say=_note)
    if as_json:
        emit(change.to_dict())
    else:
        _print_change(model, change)


def card(
    model: Model,
    version: Version,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML (or .md) file to write.", show_default=False)
    ] = None,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Show the model card with current registry data: Markdown on the terminal, or an HTML file."""
    from forge_sweep.registry import make_card

    refuse_unwritable(output)
    wanted, made = make_card(model, version, store=store)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(made.markdown() if output.suffix == ".md" else made.html(), encoding="utf-8")
    if as_json:
        sections = [asdict(section) for section in made.sections]
        emit({"model": model, "version": wanted.version, "sections": sections, "file": output})
    else:
        echo(made.markdown() if output is None else f"wrote {output}")


def reproduce(
    run: Run,
    env: Annotated[
        bool, typer.Option("--env", help="Only print the commands that restore the run's environment.")
    ] = False,
    root: Annotated[
        Path | None, typer.Option(help="Directory that the experiment's paths start from; default: the recorded one.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Train with another seed, to see its effect; nothing is recorded.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference of a metric or prediction: absolute up to 1, relative above.")
    ] = 1e-3,
    trust: Trust = False,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Retrain a recorded run and compare the result: exact, within tolerance or different (exit code 1)."""
    from forge_sweep import reproduce as reproducing

    if env:
        lines = reproducing.commands(reproducing.read_record(run, store))
        emit(list(lines)) if as_json else echo("\n".join(lines))
        return
    found = reproducing.reproduce(run, store=store, root=root, seed=seed, tolerance=tolerance, trust=trust)
    if as_json:
        emit(found.to_dict())
    else:
        for difference in found.differences or ("nothing: data, code, packages and machine are the same",):
            say(f"differs   {difference}")
        say(f"trained   {found.name} ({found.run_id}) in {found.seconds:.1f} s")
        say(f"verdict   {found.verdict.word}: {found.verdict.text}")
    if found.verdict.word == "different":
        raise typer.Exit(1)


def export(
    model: ModelUri,
    kind: Annotated[str, typer.Option("--format", help="keras, saved_model, onnx or tflite.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="File or directory to write.", show_default=False)],
    without_preprocessing: Annotated[
        bool, typer.Option("--without-preprocessing", help="Take preprocessed features instead of raw columns.")
    ] = False,
    trust: Trust = False,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Export a network with its preprocessing, after checking its scores on the bundle's golden rows."""
    refuse_unwritable(output, folder=True)
    from forge_sweep import training
    from forge_sweep.tracking import fetched, locate

    training.select_backend("tensorflow")
    training.load_backend()
    from forge_sweep import exports

    with fetched(locate(model, store), store) as folder:
        found = exports.export(folder, kind, output, preprocessing=not without_preprocessing, trust=trust)
    if as_json:
        emit({**asdict(found), "path": str(found.path)})
        return
    say(f"wrote {found.path}: golden scores {found.difference:.2g} off, {found.allowed:.2g} allowed")
    for each in found.inputs:
        column = f" takes column {each['column']!r}" if each["column"] else ""
        shape = f" of shape {tuple(each['shape'])}" if "shape" in each else ""
        say(f"  input {each['input']}{column}, {each['type']}{shape}, missing: {each['missing'] or 'empty text'}")


COMMANDS = (promote, rollback, card, reproduce, export)


@app.command("list")
def _list(store: Store = MLRUNS, as_json: AsJson = False) -> None:
    """List the registered models and their aliases."""
    from forge_sweep.registry import overviews

    found = list(overviews(store))
    if as_json:
        emit([asdict(each) for each in found])
        return
    aliases = ("champion", "challenger", "previous")
    rows = ((each.name, each.versions, *(each.aliases.get(alias) for alias in aliases)) for each in found)
    print_table(("model", "versions", *aliases), list(rows))
    for each in found:
        for text in each.warnings:
            _note(text)


@app.command("history")
def _history(model: Model, store: Store = MLRUNS, as_json: AsJson = False) -> None:
    """List every change of champion: who, when, why, and the figures."""
    champions = _champions(model, store)
    changes = champions.history()
    if as_json:
        emit([{**change.to_dict(), "record": champions.record(change)} for change in changes])
        return
    rows = []
    for change in changes:
        state = change.done[:19] or ("revoked" if change.revoked else "in progress")
        words = f"{change.action} {change.before or '-'} -> {change.to or '-'}"
        overruled = ", ".join(change.forced) or None
        rows.append((str(change.number), state, words, change.who, change.reason, overruled, _gain(change)))
    print_table(("", "when (UTC)", "change", "who", "why", "overruled", "gain over champion"), rows)
    _note(*champions.disagreements())


@app.command("at")
def _at(
    model: Model,
    moment: Annotated[
        str,
        typer.Argument(metavar="DATE", help="2026-05-01 (a day, UTC) or 2026-05-01T12:00+02:00.", show_default=False),
    ],
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Show which version was champion at a given time, or on a given day."""
    champions = _champions(model, store)
    terms = champions.at(moment)
    _note(*champions.disagreements())
    if as_json:
        emit([term.to_dict() for term in terms])
        return
    for term in terms:
        until = "now" if term.until is None else f"{term.until:%Y-%m-%d %H:%M:%S}"
        say(f"version {term.version or 'none'}: {term.since:%Y-%m-%d %H:%M:%S} to {until} UTC")
    if not terms:
        say(f"no champion of {model} is on record for that time")


@app.command("show")
def _show(model: Model, version: Version, store: Store = MLRUNS, as_json: AsJson = False) -> None:
    """Show everything recorded for a version."""
    from forge_sweep.tracking import Registry

    found = Registry(store).version(model, version)
    changes = [each for each in _champions(model, store).history() if found.version in (each.to, each.before)]
    if as_json:
        emit({**asdict(found), "changes": [change.to_dict() for change in changes]})
        return
    lines = {
        "version": found.uri,
        "aliases": ", ".join(found.aliases) or "-",
        "registered": found.created,
        "run": found.run_id,
        **{name: value for name, value in sorted(found.tags.items()) if not name.startswith("forge.promotion.")},
    }
    for name, value in lines.items():
        say(f"{name:<24}{value}")
    for change in changes:
        title = f"change {change.number}"
        say(f"{title:<24}{change.action} {change.before or '-'} -> {change.to or '-'}, {change.when}")


def _champions(model: str, store: Path) -> Champions:
    from forge_sweep.registry import Champions
    from forge_sweep.tracking import Registry

    return Champions(Registry(store), model)


def _note(*texts: str) -> None:
    for text in texts:
        say(f"note: {text}", err=True)


def _print_change(model: str, change: Change) -> None:
    if change.revoked:
        say(f"change {change.number} was revoked: {change.revoked}")
        return
    say(f"{model}: version {change.to} is the champion (before: {change.before or 'none'}); change {change.number}")
    if change.forced:
        say(f"overruled: {', '.join(change.forced)}; reason on record: {change.reason}")


def _gain(change: Change) -> str:
    """``auc +0.0123 (0.0040 to 0.0210)``; without a champion before, the outcome against the best baseline."""
    found, baseline = change.figures.get("champion"), change.figures.get("baseline")
    if found and found["gain"] is not None:
        return f"{change.figures['metric']} {found['gain']:+.4f} ({found['low']:.4f} to {found['high']:.4f})"
    if found or not baseline or "outcome" not in baseline:
        return "-"
    than = "" if baseline["outcome"].endswith(" as") else "than "
    return f"none; {baseline['outcome']} {than}{baseline['kind']}"
