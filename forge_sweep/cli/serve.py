"""`forge-sweep serve` and `forge-sweep predict`: a registered model, or a bundle, on raw rows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from forge_sweep.cli.printing import MLRUNS, Store, say
from forge_sweep.cli.surroundings import refuse_unwritable
from forge_sweep.errors import masked

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="models:/NAME@ALIAS, models:/NAME/3, or the folder of a bundle.", show_default=False
    ),
]
IgnoreExtra = Annotated[
    bool, typer.Option("--ignore-extra", help="Drop columns that the model does not have, instead of refusing them.")
]


def serve(
    model: Model,
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8080,
    store: Store = MLRUNS,
    max_batch: Annotated[int, typer.Option(help="Most rows of several requests in a forward pass.", min=1)] = 256,
    max_wait_ms: Annotated[float, typer.Option(help="Longest wait for requests that are expected.", min=0)] = 2.0,
    max_rows: Annotated[int, typer.Option(help="Most rows of one request.", min=1)] = 10_000,
    max_body_mb: Annotated[float, typer.Option(help="Largest body of one request.", min=0.001)] = 16.0,
    max_waiting: Annotated[int, typer.Option(help="Most rows that wait; beyond that, 503.", min=1)] = 20_000,
    timeout_s: Annotated[float, typer.Option(help="Most seconds of one request.", min=0.1)] = 30.0,
    poll_s: Annotated[float, typer.Option(help="Seconds between two looks at the alias.", min=0.1)] = 10.0,
    drift_window: Annotated[int, typer.Option(help="Last rows that drift is measured on.", min=1)] = 5_000,
    drift_least: Annotated[int, typer.Option(help="Rows from which drift is measured.", min=2)] = 200,
    ignore_extra: IgnoreExtra = False,
    no_access_log: Annotated[bool, typer.Option("--no-access-log", help="Do not log requests.")] = False,
    no_docs: Annotated[
        bool, typer.Option("--no-docs", help="No page at /docs, whose scripts a browser loads from a CDN.")
    ] = False,
) -> None:
    """Serve a model over HTTP, and follow its alias; FORGE_SWEEP_API_KEY, where set, is what callers have to show."""
    from forge_sweep import serving

    start_logging()
    settings = serving.Settings(
        host=host,
        port=port,
        store=store,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        max_rows=max_rows,
        max_body_mb=max_body_mb,
        max_waiting=max_waiting,
        timeout_s=timeout_s,
        poll_s=poll_s,
        drift_window=drift_window,
        drift_least=drift_least,
        ignore_extra=ignore_extra,
        access_log=not no_access_log,
        docs=not no_docs,
    )
    serving.serve(model, settings, echo=lambda line: say(line, err=True))


def predict(
    model: Model,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Raw rows: CSV or Parquet.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write: .csv, .parquet or .jsonl.", show_default="CSV, printed"),
    ] = None,
    store: Store = MLRUNS,
    keep: Annotated[
        list[str] | None, typer.Option(help="Column of the file to write beside the predictions; repeat for more.")
    ] = None,
    ignore_extra: IgnoreExtra = False,
    separator: Annotated[
        str | None, typer.Option(help="Field separator of a CSV file.", show_default="that of the training file")
    ] = None,
) -> None:
    """Predict the rows of a file, a chunk at a time, with the checks of the server."""
    from forge_sweep.serving.files import predict_file

    refuse_unwritable(output)
    done = predict_file(
        model, file, output, store=store, keep=keep or (), ignore_extra=ignore_extra, separator=separator
    )
    if done.ignored:
        say(f"ignored, no features of the model: {', '.join(done.ignored)}", err=True)
    strange = ", ".join(f"{count} {code}" for code, count in sorted(done.warnings.items())) or "no warnings"
    say(f"{done.model}: {done.rows} rows predicted, {strange}", err=True)


def start_logging() -> None:
    """What the server has to say, on standard error; the access log has standard output."""
    handler = logging.StreamHandler()
    handler.setFormatter(Plain("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("forge_sweep.serving")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of the shapes that are warmed up


class Plain(logging.Formatter):
    """Lines without logins."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return masked(super().format(record))


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(serve)
    app.command()(predict)
