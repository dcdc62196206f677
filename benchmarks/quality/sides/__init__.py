"""Who takes part: one module each, with ``load()`` for its imports and ``run(work)``; each in a process of its own.

All choose by `statistics.PRIMARY` on the same validation rows, and are as their users would write them: the sides with
trees encode categories as such, those with networks one-hot with rare ones joined, median imputing with indicators, and
standard scaling.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

OURS, REFERENCE = "ours", "xgboost"
AUTOGLUON_PYTHON = "FORGE_BENCH_AUTOGLUON"
"""Environment variable with the interpreter that has AutoGluon; by default that of ``.venv-autogluon``."""


@dataclass(frozen=True)
class Side:
    """One column of the results.

    Attributes:
        title: what tables call it.
        needs: modules without which it is left out.
        beside: whether it runs in an environment of its own, because its dependencies are not ours.
    """

    title: str
    needs: tuple[str, ...] = ()
    beside: bool = False

    @property
    def python(self) -> str:
        """The interpreter that runs it."""
        if not self.beside:
            return sys.executable
        here = Path(__file__).resolve().parents[3] / ".venv-autogluon" / "bin" / "python"
        return os.environ.get(AUTOGLUON_PYTHON) or str(here)

    def missing(self) -> str:
        """Why it cannot run here; "" where it can."""
        if not Path(self.python).exists():
            return f"there is no {self.python}; make .venv-autogluon, or name one in {AUTOGLUON_PYTHON}"
        test = "import importlib.util, sys; print(*[m for m in sys.argv[1:] if importlib.util.find_spec(m) is None])"
        done = subprocess.run([self.python, "-c", test, *self.needs], capture_output=True, text=True, check=False)
        lacking = done.stdout.strip()
        if done.returncode:
            return f"{self.python} does not run: {done.stderr[-200:]}"
        return f"{self.python} lacks {lacking}" if lacking else ""


SIDES = {
    OURS: Side("forge-sweep, default experiment"),
    "keras_tuner": Side("KerasTuner, Hyperband", needs=("keras_tuner", "tensorboard")),
    "plain": Side("Optuna + Keras by hand"),
    REFERENCE: Side("XGBoost tuned by Optuna"),
    "hgb": Side("HistGradientBoosting, untuned"),
    "hgb_tuned": Side("HistGradientBoosting tuned by Optuna"),
    "autogluon": Side("AutoGluon, its portfolio of trees", needs=("autogluon.tabular", "pyarrow"), beside=True),
}
