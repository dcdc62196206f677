"""A sweep on the surface whose space a test changes and whose process it kills.

`python -m tests.growing STORE HIGH [POINT]`: width up to HIGH; see `surface.die_after` for POINT.
"""

from __future__ import annotations

import sys
from pathlib import Path

from forge_sweep import sweep
from forge_sweep.experiment import Experiment
from tests.surface import die_after, experiment, fake_run, no_network

N_TRIALS = 8


def widened(high: int) -> Experiment:
    """The surface with another end of its range of widths."""
    search = {
        "width": {"type": "int", "low": 4, "high": high, "log": True},
        "dropout": {"type": "float", "low": 0.0, "high": 0.5},
    }
    return experiment(model__search=search, study__n_trials=N_TRIALS, study__pruner="none")


if __name__ == "__main__":
    from tests import schemas

    schemas.copy_one()
    for point in sys.argv[3:]:
        die_after(point)
    with no_network(fake_run()):
        sweep.run(widened(int(sys.argv[2])), store=Path(sys.argv[1]))
