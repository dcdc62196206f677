"""The command line: parse, call one function, print, exit code.

TensorFlow, MLflow and Optuna are imported by the command that needs them, so that ``--help`` answers at once.
Exit codes: 0 ok, 1 failure, 2 usage or experiment file, 3 a gate refused, 130 interrupted.
"""

from forge_sweep.cli.entry import app, main

__all__ = ["app", "main"]
