"""How deep the main path is: frames of this package on the stack, counted on a real sweep in one process."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import keras
import optuna
import pytest
from typer.testing import CliRunner

import forge_sweep
from forge_sweep.cli import app
from forge_sweep.tracking import Run
from forge_sweep.training.callbacks import Report
from forge_sweep.training.epoch import CompiledEpoch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

MOST_FRAMES = 10
"""From the command to Keras' training call."""

MOST_HOPS = 8
"""From an epoch's end to the store."""

PACKAGE = str(Path(forge_sweep.__file__).parent)

EXPERIMENT = """
name = "frames"
data = { source = "sample", name = "wine", target = "target", task = "multiclass" }
model.search.width = { type = "int", low = 4, high = 8 }
objective.metric = "val_auc"
study = { n_trials = 2, epochs = 2, startup_trials = 1, pruner = "median", warmup_epochs = 0 }
baselines.kinds = ["constant"]
confirm = { top = 1, seeds = 1 }
"""


def ours(frame: FrameType | None, outermost: Any) -> list[str]:
    """The frames of this package, from that of a function on; empty where the function is not on the stack."""
    stack = [(frame.f_code, frame) for frame, _ in traceback.walk_stack(frame)][::-1]
    begins = [at for at, (code, _) in enumerate(stack) if code is outermost.__code__]
    if not begins:
        return []
    return [
        f"{code.co_filename.removeprefix(PACKAGE)}:{code.co_name}"
        for code, _ in stack[begins[0] :]
        if code.co_filename.startswith(PACKAGE)
    ]


class Deepest:
    """The longest of the stacks at some calls, by the function that is called."""

    def __init__(self, outermost: Any) -> None:
        self.outermost = outermost
        self.found: dict[str, list[str]] = {}

    def probe(self, patch: pytest.MonkeyPatch, home: Any, name: str) -> None:
        """Look at the stack of whoever calls a function, before it is entered."""
        original = getattr(home, name)

        def probed(*words: Any, **options: Any) -> Any:
            frames = ours(sys._getframe(1), self.outermost)
            key = f"{home.__name__}.{name}"
            self.found[key] = max(self.found.get(key, []), frames, key=len)
            return original(*words, **options)

        patch.setattr(home, name, probed)

    def __str__(self) -> str:
        """How deep each call is, and through what."""
        shown = (f"{key}: {len(frames)}\n  " + "\n  ".join(frames) for key, frames in self.found.items())
        return "\n".join(shown)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deepest, Deepest]]:
    """The stacks of a sweep at Keras' training calls, and at the writes of an epoch."""
    folder = tmp_path_factory.mktemp("frames")
    (folder / "frames.toml").write_text(EXPERIMENT)
    command: Any = importlib.import_module("forge_sweep.cli.run")
    down, back = Deepest(command.run), Deepest(Report.on_epoch_end)
    with pytest.MonkeyPatch.context() as patch:
        down.probe(patch, CompiledEpoch, "__call__")
        down.probe(patch, keras.Model, "fit")
        back.probe(patch, optuna.Trial, "report")
        back.probe(patch, Run, "log_epoch")
        done = CliRunner().invoke(app, ["run", str(folder / "frames.toml"), "--store", str(folder / "store")])
    assert done.exit_code == 0, done.output
    yield down, back


def test_the_main_path_is_a_staircase_of_few_functions(measured: tuple[Deepest, Deepest]) -> None:
    down, back = measured
    frames = len(down.found["CompiledEpoch.__call__"])
    hops = max(map(len, back.found.values()))
    stated = f"{frames} frames to the training call, {hops} hops from an epoch's end to the store\n{down}\n{back}"
    assert set(back.found) == {"Trial.report", "Run.log_epoch"} and min(map(len, back.found.values())) > 0, stated
    assert 0 < frames <= MOST_FRAMES, stated
    assert hops <= MOST_HOPS, stated
