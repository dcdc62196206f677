"""What all sides train on and search: the same rows, arrays, networks and configurations.

`prepare` writes a folder that every side reads: the rows with their split for us, the arrays that our preprocessor
makes of them for the peers, and the configurations that all of them train at equal work.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "experiments" / "data"
SPLIT_SEED = 0

LEARNING_RATE = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
SHAPES = {
    "width": {"type": "int", "low": 16, "high": 256, "log": True},
    "depth": {"type": "int", "low": 1, "high": 4},
    "dropout": {"type": "float", "low": 0.0, "high": 0.5},
    "learning_rate": LEARNING_RATE,
}


@dataclass(frozen=True)
class Problem:
    """Data, search space and length of a trial.

    Attributes:
        title: what the tables call it.
        rows: makes the table.
        data: the rest of our section ``[data]``.
        search: the searched hyperparameters, in the words of an experiment file.
        fixed: the others.
        epochs: of each trial.
        scaler: of the numeric columns.
    """

    title: str
    rows: Callable[[], pd.DataFrame]
    data: dict[str, Any]
    search: dict[str, dict[str, Any]]
    fixed: dict[str, int]
    epochs: int
    scaler: str = "standard"


@dataclass(frozen=True)
class Work:
    """What one side is to do.

    Attributes:
        problem: a key of `PROBLEMS`.
        folder: what `prepare` wrote.
        store: an empty folder for databases and logs.
        trials: how many, at equal work.
        seed: of sampler and networks.
        workers: trials at once, for sides that can.
        target: stop at the first epoch with this exact validation AUC, pruning on the way; None for equal work, which
            is the prepared configurations, all epochs, no pruning.
        cap_s: seconds after which a search for the target is given up.
        study: replaces keys of our section ``[study]``.
    """

    problem: str
    folder: str
    store: str
    trials: int = 8
    seed: int = 0
    workers: int = 1
    target: float | None = None
    cap_s: float = 120.0
    study: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> Problem:
        """The problem itself."""
        return PROBLEMS[self.problem]

    @property
    def equal(self) -> bool:
        """Whether all sides are to do the same work."""
        return self.target is None

    def arrays(self) -> dict[str, np.ndarray]:
        """``x_train``, ``y_train``, ``x_valid``, ``y_valid``: float32, targets of 0 and 1 as (rows, 1)."""
        import numpy as np

        with np.load(Path(self.folder) / "arrays.npz") as stored:
            return {name: stored[name] for name in stored.files}

    def points(self) -> list[dict[str, Any]]:
        """The configurations of equal work."""
        found: list[dict[str, Any]] = json.loads((Path(self.folder) / "points.json").read_text())
        return found[: self.trials]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def synthetic() -> pd.DataFrame:
    """10,000 x 40 numbers, 15 of them informative."""
    import pandas as pd
    from sklearn.datasets import make_classification

    features, target = make_classification(10_000, 40, n_informative=15, flip_y=0.05, random_state=0)
    return pd.DataFrame(features, columns=[f"x{i:02d}" for i in range(40)]).assign(target=target)


def small() -> pd.DataFrame:
    """The first 600 rows of `synthetic`, for tests of the benchmark itself and for memory."""
    return synthetic().iloc[:600]


def credit() -> pd.DataFrame:
    """4,454 applications for credit; see experiments/data/README.md."""
    import pandas as pd

    return pd.read_csv(EXAMPLES / "credit.csv").drop(columns="id")


def give_me_some_credit() -> pd.DataFrame:
    """150,000 borrowers; fetched by the script of the examples."""
    import pandas as pd

    path = EXAMPLES / "give_me_some_credit.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main()
    return pd.read_csv(script.TARGET).drop(columns="id")


BINARY = {"target": "target", "task": "binary"}

PROBLEMS = {
    "synthetic": Problem(
        "synthetic, 10,000 x 40, width 128, depth 2",
        synthetic,
        BINARY,
        {"learning_rate": LEARNING_RATE},
        {"width": 128, "depth": 2, "batch_size": 256},
        epochs=20,
    ),
    "shapes": Problem("synthetic, searched shapes", synthetic, BINARY, SHAPES, {"batch_size": 256}, epochs=20),
    "credit": Problem(
        "credit, 4,454 x 13, categories and missing values",
        credit,
        {"target": "Status", "task": "binary", "positive": "bad"},
        SHAPES,
        {"batch_size": 64},
        epochs=20,
        scaler="quantile",
    ),
    "borrowers": Problem(
        "Give Me Some Credit, 150,000 x 10, missing values",
        give_me_some_credit,
        {"target": "SeriousDlqin2yrs", "task": "binary", "positive": 1},
        SHAPES,
        {"batch_size": 1024},
        epochs=8,
        scaler="quantile",
    ),
    "small": Problem(
        "small, 600 x 40, searched shapes",
        small,
        BINARY,
        {**SHAPES, "width": {"type": "int", "low": 8, "high": 64, "log": True}},
        {"batch_size": 64},
        epochs=3,
    ),
}


def experiment_of(work: Work, **sections: Any) -> dict[str, Any]:
    """Our experiment as the content of a file.

    Args:
        work: what to do.
        sections: replace sections, or top-level keys; those of ``study`` are merged.
    """
    problem = work.spec
    study = {"n_trials": work.trials, "epochs": problem.epochs, **sections.pop("study", {})}
    return {
        "name": "bench",
        "seed": work.seed,
        "data": {
            "source": "file",
            "path": str(Path(work.folder) / "rows.parquet"),
            "split": {"kind": "column", "column": "split"},
            **problem.data,
        },
        "preprocessing": {"scaler": problem.scaler},
        "model": {"search": {**problem.search, **problem.fixed}},
        "objective": {"metric": "val_auc"},
        "study": study,
        "baselines": {"kinds": []},
        "confirm": {"top": 1, "seeds": 1},
        "workers": {"kind": "processes", "n": work.workers} if work.workers > 1 else {"kind": "serial"},
        **sections,
    }


def prepare(problem: str, folder: str, trials: int, seed: int) -> dict[str, Any]:
    """Write rows, arrays and configurations; returns their sizes."""
    import numpy as np

    from forge_sweep import sources, trial
    from forge_sweep.experiment import parse
    from forge_sweep.study.samplers import SobolSampler
    from forge_sweep.study.space import searched

    work = Work(problem, folder, store="", trials=trials, seed=seed)
    write_rows(work)
    experiment = parse(experiment_of(work), root=Path(folder))
    dataset = sources.load(experiment.data, root=experiment.root, seed=experiment.seed)
    data = trial.prepare(dataset, trial.Recipe.of(experiment)).data
    names = ("x_train", "y_train", "x_valid", "y_valid")
    np.savez(Path(folder) / "arrays.npz", **{name: getattr(data, name) for name in names})
    sobol = SobolSampler(searched(experiment.space), seed, n_before=0)
    points = [{**sobol.point(index), **work.spec.fixed} for index in range(trials)]
    (Path(folder) / "points.json").write_text(json.dumps(points))
    return {"train": len(data.y_train), "valid": len(data.y_valid), "columns": int(np.shape(data.x_train)[1])}


def write_rows(work: Work) -> None:
    """The table with a column that says which rows train, so that no seed of a search moves the split."""
    from sklearn.model_selection import train_test_split

    table, target = work.spec.rows(), work.spec.data["target"]
    _, rest = train_test_split(table, test_size=0.3, stratify=table[target], random_state=SPLIT_SEED)
    valid, test = train_test_split(rest, test_size=0.5, stratify=rest[target], random_state=SPLIT_SEED)
    table.loc[:, "split"] = "train"
    table.loc[valid.index, "split"], table.loc[test.index, "split"] = "valid", "test"
    table.to_parquet(Path(work.folder) / "rows.parquet")
