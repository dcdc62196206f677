"""An example that is killed, as by `kill -9`: `python -m tests.killed EXAMPLE STORE KIND NUMBER AT OVERRIDES`.

It ends with the first event of the kind, such as ``epoch`` or ``part``, of this trial that has come to ``AT``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from forge_sweep import sweep
from forge_sweep.experiment import load
from forge_sweep.sweep import Event

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def kill(example: str, store: Path, kind: str, number: int, at: int, words: list[str]) -> None:
    """Run an example of ``experiments/`` until it is killed there."""
    said = [example, store, kind, number, at, *words]
    killed = subprocess.run([sys.executable, "-m", "tests.killed", *map(str, said)])
    assert killed.returncode == -signal.SIGKILL


def main() -> None:
    """The process that dies."""
    example, store, kind, number, at, *words = sys.argv[1:]

    def watch(event: Event) -> None:
        if (event.kind, str(event.data.get("number"))) == (kind, number) and event.data.get(kind) == int(at):
            os.kill(os.getpid(), signal.SIGKILL)

    sweep.run(load(EXPERIMENTS / f"{example}.toml", words), store=Path(store), watch=watch)


if __name__ == "__main__":
    main()
