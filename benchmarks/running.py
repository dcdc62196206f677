"""One measurement in a process of its own, so that no side warms up, or fills, the memory of the next one."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 1800.0
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "RAY_DEDUP_LOGS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
OTHERS = ("MLFLOW_", "FORGE_SWEEP_", "KERAS_", "OPTUNA_")
"""Variables that would send a side to stores or engines of the user's."""


class SideFailed(Exception):
    """A measurement ended without a figure."""


def call(
    function: str,
    *,
    variables: dict[str, str] | None = None,
    python: str = sys.executable,
    timeout_s: float = TIMEOUT_S,
    **arguments: Any,
) -> Any:
    """Run ``module:function`` of this package with JSON arguments in a new process and return its JSON answer.

    Args:
        function: such as ``sides.plain:run``.
        variables: environment variables to add.
        python: the interpreter.
        timeout_s: after which it is killed, with all that it started.
        arguments: passed by name.

    Raises:
        SideFailed: with the end of what the process wrote.
    """
    with folder() as place:
        answer, errors = place / "answer.json", place / "errors.txt"
        command = [python, "-m", "benchmarks.running", function, json.dumps(arguments), str(answer)]
        with errors.open("wb") as file:
            code = wait(
                subprocess.Popen(
                    command,
                    cwd=place,
                    env=environment(variables or {}),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                ),
                timeout_s,
            )
        if code or not answer.exists():
            said = errors.read_text(errors="replace")[-3000:]
            raise SideFailed(f"{function} ended with {code}:\n{said}")
        return json.loads(answer.read_text())


def wait(process: subprocess.Popen[bytes], timeout_s: float) -> int:
    """The exit code; the process and all that it started is killed when it takes too long or we are told to stop."""
    try:
        return process.wait(timeout_s)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def environment(variables: dict[str, str]) -> dict[str, str]:
    """Ours, without what would reach the user's own stores."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS)}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, **QUIET, "PYTHONPATH": path, **variables}


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder that goes when the block ends."""
    with tempfile.TemporaryDirectory(prefix="forge-sweep-bench-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def main() -> None:
    """Run in the new process."""
    function, arguments, answer = sys.argv[1:]
    module, _, name = function.partition(":")
    found = getattr(importlib.import_module(f"benchmarks.{module}"), name)(**json.loads(arguments))
    Path(answer).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
