"""`forge-sweep serve` and `forge-sweep predict`: a registered model, or a bundle, on raw rows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from forge_sweep.cli.options import MLRUNS, IgnoreExtra, ModelUri, Store, Trust
from forge_sweep.cli.printing import say
from forge_sweep.cli.surroundings import MaskingFormatter, refuse_unwritable


def serve(
    model: ModelUri,
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.", min=0, max=65535)] = 8080,
    store: Store = MLRUNS,
    max_batch: Annotated[int, typer.Option(help="Maximum rows per forward pass, over several requests.", min=1)] = 256,
    max_wait_ms: Annotated[float, typer.Option(help="Maximum wait for the requests of a batch.", min=0)] = 2.0,
    max_rows: Annotated[int, typer.Option(help="Maximum rows per request.", min=1)] = 10_000,
    max_body_mb: Annotated[float, typer.Option(help="Maximum size of a request body.", min=0.001)] = 16.0,
    max_array_mb: Annotated[
        float, typer.Option(help="Maximum size of the arrays and images of a request, decoded.", min=0.001)
    ] = 256.0,
    max_waiting: Annotated[int, typer.Option(help="Maximum queued rows; beyond it, status 503.", min=1)] = 20_000,
    timeout_s: Annotated[float, typer.Option(help="Request timeout.", min=0.1)] = 30.0,
    poll_s: Annotated[float, typer.Option(help="Interval between checks of the alias.", min=0.1)] = 10.0,
    drift_window: Annotated[int, typer.Option(help="Number of recent rows to measure drift on.", min=1)] = 5_000,
    drift_least: Annotated[int, typer.Option(help="Minimum number of rows to measure drift on.", min=2)] = 200,
    ignore_extra: IgnoreExtra = False,
    trust: Trust = False,
    no_access_log: Annotated[bool, typer.Option("--no-access-log", help="Do not log requests.")] = False,
    no_docs: Annotated[
        bool, typer.Option("--no-docs", help="Disable the page /docs, whose scripts a browser loads from a CDN.")
    ] = False,
) -> None:
    """Serve a model over HTTP and follow its alias; set FORGE_SWEEP_API_KEY to require a key."""
    from forge_sweep import serving

    _log_to_stderr()
    settings = serving.Settings(
        host=host,
        port=port,
        store=store,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        max_rows=max_rows,
        max_body_mb=max_body_mb,
        max_array_mb=max_array_mb,
        max_waiting=max_waiting,
        timeout_s=timeout_s,
        poll_s=poll_s,
        drift_window=drift_window,
        drift_least=drift_least,
        ignore_extra=ignore_extra,
        trust=trust,
        access_log=not no_access_log,
        docs=not no_docs,
    )
    serving.serve(model, settings, echo=lambda line: say(line, err=True))


def predict(
    model: ModelUri,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Raw rows: CSV, Parquet or .npz.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write: .csv, .parquet or .jsonl.", show_default="CSV on stdout"),
    ] = None,
    store: Store = MLRUNS,
    keep: Annotated[list[str] | None, typer.Option(help="Input column to copy to the output; repeat for more.")] = None,
    ignore_extra: IgnoreExtra = False,
    trust: Trust = False,
    separator: Annotated[
        str | None, typer.Option(help="Field separator of a CSV file.", show_default="that of the training file")
    ] = None,
) -> None:
    """Predict the rows of a file in chunks, with the same checks as the server."""
    from forge_sweep.serving.files import predict_file

    refuse_unwritable(output)
    done = predict_file(
        model, file, output, store=store, keep=keep or (), ignore_extra=ignore_extra, separator=separator, trust=trust
    )
    if done.ignored:
        say(f"ignored columns that are not features of the model: {', '.join(done.ignored)}", err=True)
    found = ", ".join(f"{count} {code}" for code, count in sorted(done.warnings.items())) or "no warnings"
    say(f"{done.model}: {done.rows} rows predicted, {found}", err=True)


COMMANDS = (serve, predict)


def _log_to_stderr() -> None:
    """Standard output is for the access log."""
    handler = logging.StreamHandler()
    handler.setFormatter(MaskingFormatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("forge_sweep.serving")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns about the shapes that are warmed up
