"""`forge-sweep promote`, `rollback`, `card` and `models`: registered models and who is champion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forge_sweep.cli.printing import MLRUNS, AsJson, Store, complain, echo, emit, print_table
from forge_sweep.cli.printing import say as tell_user
from forge_sweep.cli.surroundings import refuse_unwritable
from forge_sweep.errors import InputError

if TYPE_CHECKING:
    from forge_sweep.checks.findings import Finding
    from forge_sweep.registry import Champions, Change

REFUSED = 3

app = typer.Typer(
    help="Registered models: versions, aliases, and who was champion when.", no_args_is_help=True, rich_markup_mode=None
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the registered model.", show_default=False)]
Version = Annotated[
    str,
    typer.Argument(metavar="VERSION", help="Number of the version, or an alias: @challenger.", show_default=False),
]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the record.", show_default=False)]


def add_to(main: typer.Typer) -> None:
    """Put the commands of this file into the command line."""
    for command in (promote, rollback, card):
        main.command()(command)
    main.add_typer(app, name="models")


def promote(
    model: Model,
    version: Version,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Judge and change nothing; what takes a look at the test rows is kept for the promotion."
        ),
    ] = False,
    force: Annotated[
        str | None,
        typer.Option(
            metavar="REASON", help="Promote whatever the gates say; the reason is recorded.", show_default=False
        ),
    ] = None,
    reason: Reason = "",
    experiment: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Take [promotion] and the place of the data from this file.", show_default=False
        ),
    ] = None,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion if every gate lets it; exit code 3, and nothing changed, where one refuses."""
    from forge_sweep import registry

    if force is not None and not force.strip():
        raise InputError("--force needs a reason, which is recorded", hint='--force "agreed with the fraud team"')

    def tell(found: Finding) -> None:
        if not as_json:
            print_gate(found)

    try:
        done = registry.promote(
            model,
            version,
            store=store,
            dry_run=dry_run,
            force=force or "",
            reason=reason,
            experiment=experiment,
            tell=tell,
            say=say,
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
        tell_user(f"version {done.version} of {model} would be promoted; nothing was changed")
    else:
        print_change(model, done.change)


def rollback(model: Model, reason: Reason = "", store: Store = MLRUNS, as_json: AsJson = False) -> None:
    """Make the previous champion the champion again."""
    from forge_sweep import registry

    change = registry.rollback(model, store=store, reason=reason, say=say)
    if as_json:
        emit(change.to_dict())
    else:
        print_change(model, change)


def card(
    model: Model,
    version: Version,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML (or .md) file to write.", show_default=False),
    ] = None,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """The model card, made anew with what the registry knows; Markdown on the screen, HTML in a file."""
    from dataclasses import asdict

    from forge_sweep.registry import make_card

    refuse_unwritable(output)
    wanted, made = make_card(model, version, store=store)
    if output is not None:
        text = made.markdown() if output.suffix == ".md" else made.html()
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    if as_json:
        sections = [asdict(section) for section in made.sections]
        emit({"model": model, "version": wanted.version, "sections": sections, "file": output})
    else:
        echo(made.markdown() if output is None else f"wrote {output}")


@app.command("list")
def listed(store: Store = MLRUNS, as_json: AsJson = False) -> None:
    """Every registered model with its aliases."""
    from dataclasses import asdict

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
            say(text)


@app.command()
def history(model: Model, store: Store = MLRUNS, as_json: AsJson = False) -> None:
    """Every change of champion: who, when, why, by which figures."""
    champions = of(model, store)
    changes = champions.history()
    if as_json:
        emit([{**change.to_dict(), "record": champions.record(change)} for change in changes])
        return
    rows = []
    for change in changes:
        state = change.done[:19] or ("revoked" if change.revoked else "under way")
        words = f"{change.action} {change.before or '-'} -> {change.to or '-'}"
        overruled = ", ".join(change.forced) or None
        rows.append((str(change.number), state, words, change.who, change.reason, overruled, gain_in_words(change)))
    print_table(("", "when (UTC)", "change", "who", "why", "overruled", "gain over champion"), rows)
    warn(champions)


@app.command()
def at(
    model: Model,
    moment: Annotated[
        str,
        typer.Argument(metavar="DATE", help="2026-05-01 (a day, UTC) or 2026-05-01T12:00+02:00.", show_default=False),
    ],
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Who was champion at a moment, or in the course of a day."""
    champions = of(model, store)
    terms = champions.at(moment)
    warn(champions)
    if as_json:
        emit([term.to_dict() for term in terms])
        return
    for term in terms:
        until = "now" if term.until is None else f"{term.until:%Y-%m-%d %H:%M:%S}"
        tell_user(f"version {term.version or 'none'}: {term.since:%Y-%m-%d %H:%M:%S} to {until} UTC")
    if not terms:
        tell_user(f"{model} had no champion on record then")


@app.command()
def show(model: Model, version: Version, store: Store = MLRUNS, as_json: AsJson = False) -> None:
    """What is recorded of a version."""
    from dataclasses import asdict

    from forge_sweep.tracking import Registry

    found = Registry(store).version(model, version)
    changes = [each for each in of(model, store).history() if found.version in (each.to, each.before)]
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
        tell_user(f"{name:<24}{value}")
    for change in changes:
        tell_user(
            f"change {change.number:<17}{change.action} {change.before or '-'} -> {change.to or '-'}, {change.when}"
        )


def of(model: str, store: Path) -> Champions:
    """The champions of a model."""
    from forge_sweep.registry import Champions
    from forge_sweep.tracking import Registry

    return Champions(Registry(store), model)


def warn(champions: Champions) -> None:
    """Say what does not agree with the ledger."""
    for text in champions.disagreements():
        say(text)


def say(text: str) -> None:
    """Something that was noticed, on standard error."""
    tell_user(f"note: {text}", err=True)


def print_gate(found: Finding) -> None:
    """A gate on one line; with the fix where it is not passed."""
    mark = {"info": "ok", "warning": "warning", "error": "REFUSED"}[found.severity]
    tell_user(f"{mark:<8} {found.code:<15} {found.subject}: {found.seen}")
    if found.severity != "info":
        tell_user(f"{'':<24} expected {found.expected}; fix: {found.fix}")


def print_change(model: str, change: Change) -> None:
    """A change of champion."""
    if change.revoked:
        tell_user(f"change {change.number} was revoked: {change.revoked}")
        return
    tell_user(
        f"{model}: version {change.to} is the champion (before: {change.before or 'none'}); change {change.number}"
    )
    if change.forced:
        tell_user(f"overruled: {', '.join(change.forced)}; reason on record: {change.reason}")


def gain_in_words(change: Change) -> str:
    """``auc +0.0123 (0.0040 to 0.0210)``; of a promotion without a champion, what it was beside the best baseline."""
    found, baseline = change.figures.get("champion"), change.figures.get("baseline")
    if found and found["gain"] is not None:
        return f"{change.figures['metric']} {found['gain']:+.4f} ({found['low']:.4f} to {found['high']:.4f})"
    if found or not baseline or "outcome" not in baseline:
        return "-"
    than = "" if baseline["outcome"].endswith(" as") else "than "
    return f"none; {baseline['outcome']} {than}{baseline['kind']}"
