"""`forge-sweep data`: versions of datasets in the feature store, which FORGE_SWEEP_DATABASE_URL names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forge_sweep.cli.options import MLRUNS, AsJson, Store
from forge_sweep.cli.printing import console, emit, print_features, print_table, say
from forge_sweep.cli.surroundings import refuse_unwritable
from forge_sweep.errors import GateRefused, InputError

if TYPE_CHECKING:
    from forge_sweep.feature_store.admin import Progress
    from forge_sweep.feature_store.connection import Address
    from forge_sweep.feature_store.versions import Version
    from forge_sweep.tracking import ModelVersion

INTERRUPTED = 130

app = typer.Typer(
    help="Versions of datasets in PostgreSQL: frozen, in one order, test rows out of reach.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class TaskKind(StrEnum):
    """What is predicted."""

    BINARY = "binary"
    MULTICLASS = "multiclass"
    MULTILABEL = "multilabel"
    REGRESSION = "regression"


class StoredScaler(StrEnum):
    """The scalers that a version keeps."""

    STANDARD = "standard"
    MINMAX = "minmax"
    NONE = "none"


class Impute(StrEnum):
    """What missing numbers become."""

    MEDIAN = "median"
    MEAN = "mean"
    CONSTANT = "constant"


Name = Annotated[str, typer.Argument(metavar="VERSION", help="Name of the version.", show_default=False)]
Reference = Annotated[str, typer.Argument(metavar="A", help="The version to compare with.", show_default=False)]
Current = Annotated[str, typer.Argument(metavar="B", help="The version that is compared.", show_default=False)]


@app.command()
def init() -> None:
    """Create the tables and roles in the database, or bring them up to date; safe to repeat."""
    from forge_sweep.feature_store.schema import init as make

    say(make(_address()))


@app.command()
def ingest(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="CSV (.csv, .csv.gz) or Parquet.", show_default=False)
    ] = None,
    *,
    version: Annotated[str, typer.Option(help="Name of the new version.", show_default=False)],
    other: Annotated[str | None, typer.Option("--from", help="Take the rows of this version, not of a file.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Target column; several for multilabel or one-hot targets.")
    ] = None,
    task: Annotated[TaskKind | None, typer.Option(help="What is predicted.")] = None,
    key: Annotated[str | None, typer.Option(help="Unique column that fixes the order of rows; not a feature.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Column to leave out; repeat for more.")] = None,
    categorical: Annotated[
        list[str] | None, typer.Option(help="Column of numeric codes to treat as categories; repeat for more.")
    ] = None,
    positive: Annotated[str | None, typer.Option(help="The positive label of a binary target.")] = None,
    separator: Annotated[str | None, typer.Option(help="Field separator of a CSV file.", show_default="','")] = None,
    split: Annotated[
        str | None, typer.Option(help="random, column=COLUMN, group=COLUMN or time=COLUMN.", show_default="random")
    ] = None,
    shares: Annotated[
        str | None, typer.Option(help="Shares of train, val and test rows.", show_default="0.7,0.15,0.15")
    ] = None,
    no_stratify: Annotated[bool, typer.Option("--no-stratify", help="Do not keep class shares alike.")] = False,
    seed: Annotated[int | None, typer.Option(help="Decides random and group splits.", min=0, show_default="0")] = None,
    scaler: Annotated[
        StoredScaler | None, typer.Option(help="Of the scaled vectors, learned on train.", show_default="standard")
    ] = None,
    impute: Annotated[Impute | None, typer.Option(help="What missing numbers become.", show_default="median")] = None,
    fill: Annotated[float | None, typer.Option(help="The value of --impute constant.", show_default="0")] = None,
    max_categories: Annotated[
        int | None, typer.Option(help="Most frequent categories kept per column.", show_default="50")
    ] = None,
    parent: Annotated[str | None, typer.Option(help="Version that this one follows.")] = None,
    max_errors: Annotated[int, typer.Option(help="Wrong rows that may be left out.", min=0)] = 0,
    rejects: Annotated[Path | None, typer.Option(help="CSV file to write wrong rows to.")] = None,
    as_json: AsJson = False,
) -> None:
    """Store a file, or another version, as a new frozen version; all of it or nothing."""
    from forge_sweep.experiment import toml_value
    from forge_sweep.feature_store.admin import Declaration, Strictness, ingest_file, ingest_version

    data = {
        "target": target,
        "task": task and task.value,
        "key": key,
        "drop": drop,
        "categorical": categorical,
        "positive": None if positive is None else toml_value(positive),
        "separator": separator,
    }
    preprocessing = {
        "scaler": scaler and scaler.value,
        "impute": impute and impute.value,
        "fill": fill,
        "max_categories": max_categories,
    }
    declared = Declaration(data, _splitting(split, shares, no_stratify), preprocessing, seed)
    _refuse_contradiction(file, other, parent, max_errors=max_errors, rejects=rejects)
    refuse_unwritable(rejects, option="--rejects")
    with progressing() as progress:
        if other is not None:
            made = ingest_version(_address(), version, other, declared, progress=progress)
        else:
            assert file is not None  # one of both was given
            strictness = Strictness(max_errors, rejects)
            made = ingest_file(
                _address(), version, file, declared, parent=parent, strictness=strictness, progress=progress
            )
    if as_json:
        _emit_version(made)
        return
    counts = ", ".join(f"{count:,} {name}" for name, count in made.row_counts.items())
    say(f"{made.version}: {made.rows:,} rows ({counts}), {len(made.features)} features, frozen")
    say(f'train on it with source = "postgres" and version = "{made.name}" under [data]')


@app.command("list")
def list_versions(as_json: AsJson = False) -> None:
    """Every version in the store, the oldest first."""
    from forge_sweep.feature_store.admin import as_dict, listed

    found = listed(_address())
    if as_json:
        emit([as_dict(version) for version in found])
        return
    if not found:
        say("no version yet; store one with `forge-sweep data ingest FILE --version NAME ...`")
        return
    rows = []
    for version in found:
        target = ", ".join(column.name for column in version.targets)
        counts = [f"{count:,}" for count in version.row_counts.values()]
        frozen = f"{version.frozen_at:%Y-%m-%d %H:%M}"
        rows.append((version.version, version.task, target, len(version.features), *counts, version.parent, frozen))
    print_table(("version", "task", "target", "features", "train", "val", "test", "parent", "frozen"), rows)


@app.command()
def show(version: Name, as_json: AsJson = False) -> None:
    """All that is known of a version: columns, rows, digests, normalization, looks at its test rows."""
    from forge_sweep.feature_store.admin import described

    found = described(_address(), version)
    if as_json:
        emit(found.to_dict())
        return
    _print_version(found.version)
    _print_normalization(found.normalization)
    say(f"\ntest evaluations: {len(found.looks)}")
    for look in found.looks:
        say(f"  {look.looked_at:%Y-%m-%d %H:%M:%S}  {look.who}  {look.purpose}" + f"  run {look.run}" * bool(look.run))


@app.command()
def audit(
    version: Name,
    scaler: Annotated[StoredScaler, typer.Option(help="What a sweep would scale with.")] = StoredScaler.STANDARD,
    as_json: AsJson = False,
) -> None:
    """The audit that a sweep begins with; exit code 3 where it would stop."""
    from forge_sweep.checks.findings import errors
    from forge_sweep.experiment import PreprocessingSpec
    from forge_sweep.feature_store.admin import audited

    found = audited(_address(), version, PreprocessingSpec(scaler=scaler.value))
    rows = found.features.reset_index().to_dict("records")
    if as_json:
        emit({"findings": [vars(finding) for finding in found.findings], "features": rows})
    else:
        print_features([{str(name): value for name, value in row.items()} for row in rows])
        for finding in found.findings:
            if finding.severity != "error":
                say(str(finding))
    if wrong := errors(found.findings):
        raise GateRefused(f"audit of {version}: {len(wrong)} errors", wrong)


@app.command()
def diff(a: Reference, b: Current, as_json: AsJson = False) -> None:
    """What rows and columns changed from A to B; test rows are compared by their digests only."""
    from forge_sweep.feature_store.diff import diff as compare

    found = compare(_address(), a, b)
    if as_json:
        emit(found.to_dict())
        return
    for line in found.lines():
        say(line)


@app.command()
def drift(
    a: Reference,
    b: Current,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file to write, with pictures.")] = None,
    gate: Annotated[bool, typer.Option("--gate", help="Exit code 3 where anything drifted.")] = False,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """How the distributions of B differ from those of A, and what models trained on A score on B."""
    from forge_sweep.feature_store.drift import drift as compare
    from forge_sweep.feature_store.drift_page import write_html

    refuse_unwritable(output)
    found = compare(a, b, store=store)
    if output is not None:
        write_html(found, output)
    if as_json:
        emit(found.to_dict())
    else:
        for line in found.lines():
            say(line)
        if output is not None:
            say(f"wrote {output}")
    if gate and found.findings:
        raise GateRefused(f"{b} differs from {a}", found.findings)


@app.command()
def export(
    version: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help=".parquet (exact) or .csv.", show_default=False)],
    with_test: Annotated[
        bool, typer.Option("--with-test", help="The test rows too: a look at them, and a line in the ledger.")
    ] = False,
    split_column: Annotated[str, typer.Option(help="Column that says train, val or test.")] = "split",
) -> None:
    """Write the rows of a version to a file."""
    from forge_sweep.feature_store.admin import export as write

    refuse_unwritable(file, option="FILE")
    with progressing("nothing was written") as progress:
        rows = write(_address(), version, file, with_test=with_test, split_column=split_column, progress=progress)
    say(f"wrote {file}: {rows:,} rows" + ("" if with_test else "; test rows only come --with-test"))


@app.command()
def drop(
    version: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: Store = MLRUNS,
) -> None:
    """Remove a version with all of its rows; the ledger of test evaluations stays."""
    from forge_sweep.feature_store.admin import dropped

    def agree(found: Version, models: tuple[ModelVersion, ...]) -> bool:
        say(f"{found.version}: {found.rows:,} rows")
        for model in models:
            names = "".join(f", {alias}" for alias in model.aliases)
            say(f"  {model.uri}{names} was trained on it, and could not be reproduced any more")
        return yes or typer.confirm("remove it for good?")

    gone = dropped(_address(), version, store, agree)
    say(f"removed {version}" if gone else "nothing was removed")


def _address() -> Address:
    from forge_sweep.feature_store.connection import Address

    return Address.from_environment()


def _splitting(split: str | None, shares: str | None, no_stratify: bool) -> dict[str, Any]:
    """``[data.split]`` of the three options; empty where none is given."""
    said: dict[str, Any] = {}
    if split is not None:
        kind, _, column = split.partition("=")
        said = {"kind": kind, **({kind: column} if column and kind in ("column", "group", "time") else {})}
        if column and kind not in ("column", "group", "time"):
            raise InputError(
                f"--split {split}: expected random, column=COLUMN, group=COLUMN or time=COLUMN", hint="choose one"
            )
    if shares is not None:
        try:
            train, valid, test = map(float, shares.split(","))
        except ValueError:
            raise InputError(f"--shares {shares}: expected three numbers that sum to 1", hint="0.7,0.15,0.15") from None
        said |= {"train": train, "valid": valid, "test": test}
    return said | ({"stratify": False} if no_stratify else {})


def _refuse_contradiction(
    file: Path | None, other: str | None, parent: str | None, *, max_errors: int, rejects: Path | None
) -> None:
    if (file is None) == (other is None):
        raise InputError(
            "data ingest takes rows from one place: FILE, or --from VERSION",
            hint="forge-sweep data ingest data/fraud.csv --version fraud_v1 --target is_fraud --task binary",
        )
    if other is not None and parent not in (None, other):
        raise InputError(f"--parent {parent}: the parent of rows --from {other} is {other}", hint="leave it out")
    if other is not None and (max_errors or rejects):
        raise InputError("--max-errors and --rejects are for files: rows --from a version are right", hint="leave them")


@contextmanager
def progressing(interrupted: str = "nothing was stored") -> Iterator[Progress]:
    """A progress bar on a terminal (standard error), and nothing elsewhere; Ctrl-C says what became of the command."""
    from rich import progress

    columns = (
        progress.TextColumn("{task.description:<9}"),
        progress.BarColumn(),
        progress.TextColumn("{task.completed:>12,.0f} rows"),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    out = console(err=True)
    try:
        with progress.Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
            phases: dict[str, progress.TaskID] = {}

            def show(phase: str, done: int, total: int | None) -> None:
                if phase not in phases:
                    phases[phase] = bar.add_task(phase, total=total)
                bar.update(phases[phase], completed=done, total=total)

            yield show
    except KeyboardInterrupt:
        say(f"interrupted: {interrupted}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _emit_version(version: Version) -> None:
    from forge_sweep.feature_store.admin import as_dict

    emit(as_dict(version))


def _print_version(version: Version) -> None:
    counts = ", ".join(f"{count:,} {name}" for name, count in version.row_counts.items())
    lines = {
        "version": version.version,
        "rows": f"{version.rows:,} ({counts})",
        "task": version.task,
        "target": ", ".join(column.name for column in version.targets),
        "classes": ", ".join(map(str, version.classes)) or "-",
        "key": "-" if version.key is None else version.key.name,
        "split": _split_in_words(version.split),
        "left out": ", ".join(version.dropped) or "-",
        "digest": version.digest,
        "source": version.source,
        "parent": version.parent or "-",
        "frozen": f"{version.frozen_at:%Y-%m-%d %H:%M:%S %Z} by {version.created_by}",
    }
    for name, value in lines.items():
        say(f"{name:<14}{value}")
    rows = []
    for column in version.features:
        kinds = ", ".join(map(_shortened, column.categories[:5])) + ", ..." * (len(column.categories) > 5)
        rows.append((column.name, column.dtype, kinds or None))
    say("")
    print_table(("feature", "type", "categories"), rows)


def _shortened(text: str, longest: int = 40) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."


def _split_in_words(split: dict[str, Any]) -> str:
    if split["kind"] == "column":
        return f"by column {split['column']!r}"
    shares = ", ".join(f"{split[role]:g} {role}" for role in ("train", "valid", "test"))
    column = split.get(split["kind"])
    words = f"by {split['kind']} {column!r}" if column else "random"
    stratified = ", stratified" if split["kind"] == "random" and split["stratify"] else ""
    return f"{words}: {shares}{stratified}; seed {split['seed']}"


def _print_normalization(stored: dict[str, Any]) -> None:
    recipe = stored["recipe"]
    say(
        f"\nnormalization {recipe['scaler']}, missing values become the {recipe['impute']}, "
        f"learned on {stored['row_count']:,} training rows"
    )
    names = ("means", "stds", "mins", "maxes")
    rows = [
        (feature, *(stored[name][position] for name in names))
        for position, feature in enumerate(stored["feature_names"])
    ]
    print_table(("numeric column", "mean", "std", "min", "max"), rows)
