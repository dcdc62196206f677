"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MLRUNS = Path("mlruns")

Store = Annotated[Path, typer.Option("--store", help="Directory of the embedded MLflow and Optuna stores.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

File = Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="Experiment file (TOML).", show_default=False)]
Name = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="Experiment file (TOML) or experiment name.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Override keys of the file, such as study.n_trials=4.", show_default=False
    ),
]

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the registered model.", show_default=False)]
Version = Annotated[
    str, typer.Argument(metavar="VERSION", help="Version number, or an alias such as @challenger.", show_default=False)
]
Reason = Annotated[str, typer.Option("--reason", help="Reason to record.", show_default=False)]

ModelUri = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="models:/NAME@ALIAS, models:/NAME/VERSION, or a bundle directory.", show_default=False
    ),
]
Run = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run ID, models:/NAME/VERSION or models:/NAME@ALIAS.", show_default=False),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Run the code that came with a model of your own builder, where its layers need it."),
]
IgnoreExtra = Annotated[
    bool, typer.Option("--ignore-extra", help="Drop columns that the model does not have, instead of rejecting them.")
]
