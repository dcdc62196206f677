"""Runs `forge-sweep` many times in surroundings of a test's choice, each in a fork of one process that is warm.

A fork has its own folder, variables, streams and limits, as a process that was started there would have; only the
imports are done already. The pre-flight and the Keras backend are left out, as in `tests.surface.no_network`.
As a script it reads one JSON object a line and answers with one.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from forge_sweep import sweep

ROOT = Path(__file__).parents[1]
SECONDS = 60


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code (negative: a signal) and what it printed."""

    code: int
    stdout: str
    stderr: str


class Warm:
    """The warm process, as a context."""

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()

    def __call__(
        self,
        *words: str,
        cwd: Path,
        env: Mapping[str, str | None] | None = None,
        encoding: str = "utf-8",
        stdout: str = "",
        gone: bool = False,
    ) -> Done:
        """Run one command.

        Args:
            words: its arguments.
            cwd: the folder that it runs in.
            env: variables; None takes one away.
            encoding: of its streams, as the locale would give it.
            stdout: a path in place of a file that is read, ``closed``, or ``pipe`` for one that nobody reads.
            gone: whether the folder is deleted under its feet.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        asked = {"words": words, "cwd": str(cwd), "env": dict(env or {}), "encoding": encoding, "stdout": stdout}
        self.process.stdin.write(json.dumps({**asked, "gone": gone}) + "\n")
        self.process.stdin.flush()
        return Done(**json.loads(self.process.stdout.readline()))


def serve() -> None:
    """Answer until nobody asks."""
    from typer.testing import CliRunner

    from forge_sweep.cli import app
    from tests.surface import experiment, fake_run, no_network

    with tempfile.TemporaryDirectory() as folder, no_network(fake_run()):
        store = ["--store", folder]
        sweep.run(experiment(study__n_trials=1, confirm__top=1, confirm__seeds=1), store=Path(folder))
        report = ["report", "surface", "-o", f"{folder}/report.html"]
        for words in (["trials", "surface"], ["models", "list"], ["card", "surface", "1"], report):
            CliRunner().invoke(app, [*words, *store])
        CliRunner().invoke(app, ["predict", "models:/none/1", "x.csv", *store])
        CliRunner().invoke(app, ["data", "list"])

    with no_network(fake_run()):
        for line in sys.stdin:
            sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
            sys.stdout.flush()


def answer(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Run one command in a fork."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            try:
                become(asked, out.fileno(), err.fileno())
            finally:
                os._exit(99)  # `main` leaves by itself
        _, status = os.waitpid(child, 0)
        for file in (out, err):
            file.seek(0)
        texts = {"stdout": out.read(), "stderr": err.read()}
    shown = {name: text.decode("utf-8", "backslashreplace") for name, text in texts.items()}
    return {"code": os.waitstatus_to_exitcode(status), **shown}


def become(asked: Mapping[str, Any], out: int, err: int) -> None:
    """Be `forge-sweep` in those surroundings."""
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    os.dup2(stdout_of(asked["stdout"], out), 1)
    os.dup2(err, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if asked["stdout"] == "closed":
        os.close(1)
        sys.stdout = None  # type: ignore[assignment]
    else:
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), encoding=asked["encoding"], errors="strict")
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), encoding=asked["encoding"], errors="backslashreplace")
    os.chdir(asked["cwd"])
    if asked["gone"]:
        os.rmdir(asked["cwd"])
    for name, value in asked["env"].items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    sys.argv = ["forge-sweep", *asked["words"]]
    from forge_sweep.cli import main

    try:
        main()
    except SystemExit as leaving:
        os._exit(leaving.code if isinstance(leaving.code, int) else 1)
    except BaseException:  # what a real process would print
        import traceback

        os.write(2, traceback.format_exc().encode())
        os._exit(1)


def stdout_of(wanted: str, out: int) -> int:
    """A file descriptor for standard output."""
    if wanted == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
        return writer
    return os.open(wanted, os.O_WRONLY) if wanted not in ("", "closed") else out


def leaves(command: Any, path: Sequence[str] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every command below a group with the words that lead to it."""
    if hasattr(command, "commands"):
        return [
            leaf
            for name in command.list_commands(None)
            for leaf in leaves(command.get_command(None, name), (*path, name))
        ]
    return [(tuple(path), command)]


if __name__ == "__main__":
    serve()
