"""What one look at the test rows gave stays with the bundle, as plain data that anybody may open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forge_sweep.bundle import EVALUATION, Bundle, Comparison, Evaluation, ScoredModel, files
from forge_sweep.errors import BundleError
from forge_sweep.task import Gain, Interval
from tests.test_bundle import customers, fitted, sign


def evaluation(rows: int = 5) -> Evaluation:
    """Three models on a few rows; one figure is not defined."""
    rng = np.random.default_rng(0)

    def model(kind: str, label: str, seed: int) -> ScoredModel:
        return ScoredModel(kind, label, label, seed, 0.4, rng.random((rows, 1)))

    models = (model("xgboost", "xgboost", 2), model("random_forest", "random_forest", 0), model("network", "0003", 1))
    comparisons = (
        Comparison("xgboost", "random_forest", Gain("auc", 0.9, 0.8, Interval(0.1, -0.01, 0.2)), 1000),
        Comparison("xgboost", "0003", Gain("auc", 0.9, float("nan"), Interval(*3 * [float("nan")])), 200),
    )
    prints = rng.integers(0, 2**64, rows, dtype=np.uint64)
    return Evaluation("d" * 64, "s" * 64, prints, models, comparisons, 1)


def test_an_evaluation_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    """Inside a bundle, under its manifest; one that has none says None."""
    bundle, saved = fitted("constant", "binary"), evaluation()
    bundle.save(tmp_path / "with", customers(), evaluation=saved)
    bundle.save(tmp_path / "without", customers())
    assert EVALUATION in files.read_manifest(tmp_path / "with")
    Bundle.load(tmp_path / "with", verify=True)
    assert Evaluation.load(tmp_path / "without") is None
    found = Evaluation.load(tmp_path / "with")
    assert found is not None and found.registered.kind == "xgboost" and found.is_of("d" * 64, "s" * 64)
    assert found.baseline is not None and found.network is not None
    assert (found.baseline.label, found.network.label, found.network.seed) == ("random_forest", "0003", 1)
    assert (found.fingerprints == saved.fingerprints).all() and found.fingerprints.dtype == np.uint64
    for one, other in zip(found.models, saved.models, strict=True):
        assert one.scores is not None and other.scores is not None and (one.scores == other.scores).all()
    assert found.compared(found.baseline, "auc") == saved.comparisons[0]
    undefined = found.compared(found.network, "auc")
    assert undefined is not None and np.isnan([undefined.gain.other, undefined.gain.gain.low]).all()


def test_scores_that_are_too_large_are_left_out_and_the_figures_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forge_sweep.bundle.evaluation.LARGEST", 3 * 5 * 8 - 1)
    evaluation().save(tmp_path)
    found = Evaluation.load(tmp_path)
    assert found is not None and [model.answers for model in found.models] == [None] * 3
    assert found.comparisons[0] == evaluation().comparisons[0]


@pytest.mark.parametrize("change", ["objects", "rows", "format", "nothing", "text", "name"])
def test_a_file_that_is_no_evaluation_is_refused(change: str, tmp_path: Path) -> None:
    """Even where the manifest was written anew; nothing is unpickled."""
    folder = tmp_path / "bundle"
    fitted("constant", "binary").save(folder, customers(), evaluation=evaluation())
    with np.load(folder / EVALUATION) as found:
        arrays: dict[str, Any] = dict(found)
    about = json.loads(arrays["about"].tobytes())
    if change == "objects":
        arrays["scores_0"] = np.array([[None]] * 5, dtype=object)
    elif change == "rows":
        arrays["scores_1"] = arrays["scores_1"][:3]
    elif change == "nothing":
        arrays = {}
    elif change == "name":
        arrays["../elsewhere"] = np.zeros(1)
    else:
        about |= {"format": 99} if change == "format" else {"models": "x"}
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    np.savez(folder / EVALUATION, **arrays)
    sign(folder)
    with pytest.raises(BundleError, match=r"evaluation\.npz"):
        Bundle.load(folder)
