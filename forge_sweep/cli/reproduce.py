"""``forge-sweep reproduce`` and ``forge-sweep export``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from forge_sweep.cli.printing import MLRUNS, AsJson, Store, echo, emit, say
from forge_sweep.cli.surroundings import refuse_unwritable

if TYPE_CHECKING:
    from forge_sweep.reproduce import Reproduction

Reference = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run's id, models:/NAME/VERSION or models:/NAME@alias.", show_default=False),
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(reproduce)
    app.command()(export)


def reproduce(
    run: Reference,
    env: Annotated[
        bool, typer.Option("--env", help="Print the commands that would restore its environment, and do nothing.")
    ] = False,
    root: Annotated[
        Path | None, typer.Option(help="Folder that the experiment's paths start from; default: the recorded one.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Train with another seed, to see that it matters; nothing is written.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference of a metric or prediction, in proportion to its size above 1.")
    ] = 1e-3,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Train a recorded run again and say whether it gives the same: exact, within tolerance or different (exit 1)."""
    from forge_sweep import reproduce as reproducing

    if env:
        lines = reproducing.commands(reproducing.read_record(run, store))
        emit(list(lines)) if as_json else echo("\n".join(lines))
        return
    found = reproducing.reproduce(run, store=store, root=root, seed=seed, tolerance=tolerance)
    if as_json:
        emit(found.to_dict())
    else:
        print_reproduction(found)
    if found.verdict.word == "different":
        raise typer.Exit(1)


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="models:/NAME/VERSION, models:/NAME@alias, or a bundle's folder.", show_default=False
        ),
    ],
    kind: Annotated[str, typer.Option("--format", help="keras, saved_model, onnx or tflite.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="File or folder to write.", show_default=False)],
    without_preprocessing: Annotated[
        bool, typer.Option("--without-preprocessing", help="Take preprocessed features, not raw columns.")
    ] = False,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="For bundles saved from Python with an own builder: import its module and take its Keras objects.",
        ),
    ] = False,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Write a network in another format, with its preprocessing, once it gives the bundle's golden scores there."""
    refuse_unwritable(output, folder=True)
    from forge_sweep import training
    from forge_sweep.tracking import fetched, locate

    training.select_backend("tensorflow")
    training.load_backend()
    from forge_sweep.bundle import exports

    with fetched(locate(model, store), store) as folder:
        preprocessing = not without_preprocessing
        found = exports.export(folder, cast(exports.Format, kind), output, preprocessing=preprocessing, trust=trust)
    if as_json:
        emit({**asdict(found), "path": str(found.path)})
        return
    say(f"wrote {found.path}: golden scores {found.difference:.2g} off, {found.allowed:.2g} allowed")
    for each in found.inputs:
        column = f" takes column {each['column']!r}" if each["column"] else ""
        say(f"  input {each['input']}{column}, {each['type']}, missing: {each['missing'] or 'empty text'}")


def print_reproduction(found: Reproduction) -> None:
    """The differences, then the verdict."""
    for difference in found.differences:
        say(f"differs   {difference}")
    if not found.differences:
        say("differs   nothing: data, code, packages and machine are as they were")
    say(f"trained   {found.name} ({found.run_id}) in {found.seconds:.1f} s")
    say(f"verdict   {found.verdict.word}: {found.verdict.text}")
