"""Each network from a paper the whole way: cut off and gone on, swept, registered, reproduced, exported and served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forge_sweep import exports, reproduce, sources, sweep, training, trial
from forge_sweep.experiment import Experiment, parse, with_defaults
from forge_sweep.serving.files import predict_file
from forge_sweep.sweep import SweepResult
from forge_sweep.tracking import fetched, locate
from forge_sweep.training import FileCheckpoint
from tests.serving import need_the_extra, serving

pytestmark = [
    pytest.mark.slow,
    # Keras 3.15 turns its variables into arrays in a way that NumPy 2 deprecates.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"width": 16, "embedding": "piecewise"},
    "realmlp": {"width": 16, "embedding": "pbld"},
    "tabm": {"width": 16, "depth": 2, "members": 4},
    "resnet": {"width": 16, "depth": 2},
    "ft_transformer": {"width": 16, "depth": 1},
}
"""By builder. The rows have numbers and text, and in both some are missing."""

Swept = tuple[str, Path, SweepResult, Path]


def spec(folder: Path, builder: str) -> Experiment:
    """A sweep of two short trials."""
    rng = np.random.default_rng(7)
    rows = pd.DataFrame({f"x{i}": rng.normal(size=400) for i in range(4)})
    rows["place"] = rng.choice(["north", "south", "west"], size=400)
    rows["y"] = np.where(rows["x0"] * rows["x1"] + (rows["place"] == "north") + rng.normal(size=400) > 0.3, "yes", "no")
    rows.loc[::9, "x2"], rows.loc[::7, "place"] = np.nan, None
    rows.to_csv(folder / "rows.csv", index=False)
    rate = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
    table: dict[str, Any] = {
        "name": builder.replace("_", "-"),
        "seed": 4,
        "data": {"path": "rows.csv", "target": "y", "task": "binary", "positive": "yes"},
        "objective": {"metric": "val_auc"},
        "model": {
            "builder": builder,
            "class_weight": "balanced",
            "search": {**SMALL[builder], "batch_size": 64, "learning_rate": rate},
        },
        "study": {"n_trials": 2, "epochs": 4, "pruner": "none"},
        "preprocessing": {"scaler": "robust_smooth"},  # no export holds the quantiles that some recommend
        "baselines": {"kinds": []},  # four epochs beat nothing for certain
        "confirm": {"top": 1, "seeds": 1},
    }
    return parse(table, root=folder)


class Cut(BaseException):
    """The process is gone: nothing of the trial catches it."""


@pytest.mark.parametrize("builder", SMALL)
def test_a_training_that_was_cut_off_ends_as_one_that_was_not(builder: str, tmp_path: Path) -> None:
    """Bit by bit, and so does another one with the same seed."""
    told = spec(tmp_path, builder)
    training.select_backend(told.backend, told.deterministic)
    data = sources.load(told.data, root=tmp_path, seed=told.seed)
    params = with_defaults(builder, {**SMALL[builder], "batch_size": 64, "learning_rate": 3e-3})
    whole, again = (trial.run(told, data, params, 5, lambda epoch, metrics: False) for _ in range(2))
    checkpoint, seen = FileCheckpoint(tmp_path / "progress.npz"), list[int]()

    def dies(epoch: int, metrics: Any) -> bool:
        if epoch == 2:
            raise Cut
        return False

    def goes_on(epoch: int, metrics: Any) -> bool:
        seen.append(epoch)
        return False

    with pytest.raises(Cut):
        trial.run(told, data, params, 5, dies, checkpoint=checkpoint)
    came: list[int] = []
    resumed = trial.run(told, data, params, 5, goes_on, checkpoint=checkpoint, on_resume=came.append)
    assert came and came[0] >= 1, "it began anew"
    for other in (again, resumed):
        assert other.history == whole.history and other.best_epoch == whole.best_epoch
        np.testing.assert_array_equal(other.scores, whole.scores)


@pytest.fixture(scope="module", params=SMALL)
def swept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Builder, store, result, and raw rows to predict."""
    folder = tmp_path_factory.mktemp(request.param)
    told = spec(folder, request.param)
    result = sweep.run(told, store=folder / "mlruns")
    assert result.winner["baseline"] == ""
    new = folder / "new.csv"
    sources.load(told.data, root=folder, seed=told.seed).valid.features.head(6).to_csv(new, index=False)
    return request.param, folder / "mlruns", result, new


def test_its_winner_is_reproduced_exactly(swept: Swept) -> None:
    _, store, result, _ = swept
    assert reproduce.reproduce(result.model, store=store).verdict.word == "exact"


def test_it_is_exported_and_served_with_the_scores_of_its_bundle(swept: Swept, tmp_path: Path) -> None:
    """Without trust: its layers are the package's own."""
    need_the_extra()
    _, store, result, new = swept
    with fetched(locate(result.model, store), store) as folder:
        for form in ("saved_model", "onnx"):
            assert exports.export(folder, form, tmp_path / form).difference < 1e-5
    predict_file(result.model, new, tmp_path / "out.csv", store=store)
    expected = pd.read_csv(tmp_path / "out.csv")
    rows = pd.read_csv(new).astype(object)
    with serving(result.model, tmp_path / "server", "--store", str(store)) as api:
        answer = api.predict(rows.where(rows.notna(), None).to_dict("records"))
    assert answer.status == 200, answer.body
    found = [each["label"] for each in answer.json["predictions"]]
    assert found == expected["label" if "label" in expected else expected.columns[0]].tolist()
