"""Several models as one bundle: the weighted mean, kept with the guarantees of every bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forge_sweep import exports
from forge_sweep.bundle import Bundle, files, layout
from forge_sweep.bundle.card import card_of
from forge_sweep.errors import BundleError, InputError
from forge_sweep.serving.predict import Served, Window
from forge_sweep.task import TaskKind
from forge_sweep.tracking import Located, requirements
from tests.test_bundle import METADATA, customers, fitted

WEIGHTS = [0.5, 0.3, 0.2]


def members(task_kind: TaskKind) -> list[Bundle]:
    """A network, and two trees of which one has another scaler."""
    return [
        fitted("network", task_kind),
        fitted("xgboost", task_kind),
        fitted("hist_gradient_boosting", task_kind, "minmax"),
    ]


def together(task_kind: TaskKind) -> Bundle:
    told = {"members": [{"words": f"trial {n}", "value": 0.5} for n in range(3)], "latency_ms": 1.25}
    return Bundle.ensemble(members(task_kind), WEIGHTS, threshold=0.3, metadata={**METADATA, "ensemble": told})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble") / "bundle"
    together("multiclass").save(folder, customers(), card=True)
    return folder


@pytest.mark.parametrize("task_kind", ["binary", "regression"])
def test_the_scores_are_the_weighted_mean_of_the_members(task_kind: TaskKind) -> None:
    """Probabilities, and values in their own units."""
    rows = customers()
    expected = sum(w * each.scores(rows) for w, each in zip(WEIGHTS, members(task_kind), strict=True))
    assert np.allclose(together(task_kind).scores(rows), expected, rtol=1e-12)
    assert together(task_kind).scores(rows[:0]).shape == (0, expected.shape[1])


def test_it_is_read_back_as_it_was(saved: Path) -> None:
    """Scores, digest, threshold; equal preprocessors are kept once; the card names the members and one latency."""
    made, read = together("multiclass"), Bundle.load(saved, verify=True)
    assert np.array_equal(read.scores(customers()), made.scores(customers()))
    assert (read.kind, read.kinds) == ("ensemble", ("network", "xgboost", "hist_gradient_boosting"))
    assert (read.weights_sha256, read.threshold) == (made.weights_sha256, 0.3)
    names = {path.name for path in saved.iterdir()}
    assert {"member0.model.keras", "member1.tree.json", "member2.tree.skops", "preprocessor1.npz"} <= names
    assert "preprocessor2.json" not in names
    (told,) = [section for section in card_of(saved).sections if section.title == "Members"]
    assert [row[0] for row in told.rows] == ["trial 0", "trial 1", "trial 2"] and "1.25 ms" in told.lines[0]


def test_serving_gives_the_same_scores_from_raw_numbers(saved: Path) -> None:
    """Each member gets the features of its own preprocessor."""
    bundle = Bundle.load(saved)
    served = Served(bundle, Located("m", "1"), Window(None, 0, 1, 1))
    answer = served.answer(served.transform.read_frame(customers()))
    assert np.allclose(answer.scores, bundle.scores(customers()), rtol=1e-6)


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(about: dict[str, Any]) -> None:
        about["members"][0][path] = value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_set("weight", 0.9), "do not sum to 1"),
        (_set("weight", -0.5), "a share above 0"),
        (_set("weight", True), "a share above 0"),
        (_set("kind", "pickle"), "none of"),
        (_set("preprocessor", 3), "not there"),
        (_set("file", "../x"), "kind, preprocessor and weight"),
        (lambda about: about.update(members=[]), "has 1 to"),
        (lambda about: about.update(format=layout.FORMAT), "bundle format 1"),
        (lambda about: about.update(kind="network"), "bundle format 2"),
        (lambda about: about["members"].pop(), "do not sum to 1"),
    ],
)
def test_a_changed_list_of_members_is_refused_before_a_model_is_read(
    saved: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], expected: str
) -> None:
    """Even where the manifest was written anew."""
    folder = Path(shutil.copytree(saved, tmp_path / "changed"))
    about = json.loads((folder / "bundle.json").read_text())
    change(about)
    files.write_json(folder / "bundle.json", about)
    (folder / files.MANIFEST).unlink()
    files.write_manifest(folder)
    with pytest.raises(BundleError, match=expected):
        Bundle.load(folder)


def test_a_member_that_is_missing_or_too_many_is_named(saved: Path, tmp_path: Path) -> None:
    """The files are exactly those of the members."""
    folder = Path(shutil.copytree(saved, tmp_path / "changed"))
    (folder / "member1.tree.json").rename(folder / "member7.tree.json")
    (folder / files.MANIFEST).unlink()
    files.write_manifest(folder)
    with pytest.raises(BundleError, match=r"missing: member1\.tree\.json; unexpected: member7\.tree\.json"):
        Bundle.load(folder)


def test_what_does_not_belong_together_is_refused() -> None:
    """Other targets, an ensemble in an ensemble, weights that are no shares."""
    one, other = fitted("xgboost", "binary"), fitted("xgboost", "regression")
    with pytest.raises(BundleError, match="cannot stand in one ensemble"):
        Bundle.ensemble([one, other], [0.5, 0.5], threshold=0.5, metadata={})
    with pytest.raises(BundleError, match="cannot stand in one ensemble"):
        Bundle.ensemble([together("binary"), one], [0.5, 0.5], threshold=0.5, metadata={})
    with pytest.raises(BundleError, match="sum to 1"):
        Bundle.ensemble([one, one], [0.5, 0.4], threshold=0.5, metadata={})


def test_an_export_says_what_can_be_done(saved: Path, tmp_path: Path) -> None:
    """A format holds one network."""
    with pytest.raises(InputError, match="an ensemble of 3 models") as refused:
        exports.export(saved, "keras", tmp_path / "model.keras")
    assert "ensemble.ship" in refused.value.hint


def test_it_requires_what_all_of_its_members_do() -> None:
    """Each package once."""
    found = [
        name.partition("==")[0] for name in requirements("ensemble", "tensorflow", ("network", "xgboost", "xgboost"))
    ]
    assert "keras" in found and any(name.startswith("xgboost") for name in found)
    assert len(found) == len(set(found))
