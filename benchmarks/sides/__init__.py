"""The sides of the comparison, one module each, with ``run(**work)``; each runs in a process of its own.

`OURS` is one process and `OURS_2` two worker processes; `PLAIN` is the loop that users write by hand.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Side:
    """One row of a table.

    Attributes:
        title: what the table calls it.
        function: see `running.call`.
        workers: trials at once.
        needs: modules without which it is left out.
    """

    title: str
    function: str
    workers: int = 1
    needs: tuple[str, ...] = ()


OURS, OURS_2, PLAIN = "ours", "ours-2", "plain"

SIDES = {
    OURS: Side("ours, one process", "sides.ours:run"),
    OURS_2: Side("ours, two worker processes", "sides.ours:run", workers=2),
    PLAIN: Side("Optuna, `model.fit` and MLflow by hand", "sides.plain:run", needs=("optuna_integration",)),
    "keras-tuner": Side("KerasTuner", "sides.keras_tuner:run", needs=("keras_tuner", "tensorboard")),
    "ray-tune": Side("Ray Tune, two at a time", "sides.ray_tune:run", workers=2, needs=("ray",)),
}
