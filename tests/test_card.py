"""The model card: all of it from what is recorded, in the bundle of what a sweep registers, and made anew."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from forge_sweep import sweep
from forge_sweep.bundle import Bundle
from forge_sweep.bundle.card import Section, card, card_of
from forge_sweep.bundle.evaluation import SMALLEST, calibration, figures
from forge_sweep.errors import InputError
from forge_sweep.experiment import parse
from forge_sweep.registry import make_card
from forge_sweep.sources import test_looks as looks_at_test
from forge_sweep.sweep import SweepResult
from forge_sweep.task import METRICS, Task
from forge_sweep.tracking import Registry, fetched
from tests.shop import loans
from tests.surface import experiment

ODD = "Zürich | <b>*bold*</b>"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepResult]:
    """A store with one real, tiny sweep, and how it ended."""
    folder = tmp_path_factory.mktemp("card")
    frame = loans()
    frame["city"] = frame["city"].replace("Bern", ODD)
    frame.to_csv(folder / "loans.csv", index=False)
    spec = {
        "name": "loans",
        "description": "Decides who gets a loan & who does not",
        "data": {"path": "loans.csv", "target": "label", "task": "binary"},
        "objective": {"metric": "val_auc"},
        "model": {"search": {"width": {"type": "int", "low": 8, "high": 16}, "learning_rate": 0.01}},
        "study": {"n_trials": 2, "epochs": 6, "pruner": "none"},
        "baselines": {"kinds": ["constant"]},
        "confirm": {"top": 1, "seeds": 2},
    }
    return folder / "mlruns", sweep.run(parse(spec, root=folder), store=folder / "mlruns")


@pytest.mark.slow
def test_a_sweep_registers_its_model_with_a_card(swept: tuple[Path, SweepResult]) -> None:
    """Purpose, data, hyperparameters, metrics with intervals, baselines, calibration, classes, slices, cost, limits."""
    store, result = swept
    registry = Registry(store)
    with fetched(registry.version("loans", "1"), registry.store) as folder:
        text, page = (folder / "card.md").read_text(), (folder / "card.html").read_text()
        metadata = Bundle.load(folder).metadata
        assert card_of(folder).markdown() == text, "nothing in it depends on the moment"
    parts = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert parts == [
        *("Purpose", "Data", "Inputs", "Hyperparameters", "Metrics", "Compared on test", "Baselines", "Calibration"),
        *("By class, on test", "By slice, on test", "Search cost", "Environment", "Limits"),
    ]
    assert "Decides who gets a loan & who does not" in text
    assert str(metadata["dataset_digest"]) in text and str(metadata["split_digest"]) in text
    for name, value in result.test.items():
        found, low, high = metadata["figures"]["test"]["metrics"][name.removeprefix("test_")]
        assert found == pytest.approx(value) and low <= found <= high
        assert f"{found:.4g} ({low:.4g} to {high:.4g})" in text
    (cost,) = metadata["cost"]["states"]
    assert (cost["state"], cost["count"]) == ("finished", 2) and metadata["cost"]["epochs"] > 2
    assert f"| {cost['count']} | {cost['seconds']:.5g} |" in text
    assert metadata["baselines"] == result.baselines
    assert "Zürich \\| \\<b\\>\\*bold\\*\\</b\\>" in text, "a table stays a table"
    assert "Zürich | &lt;b&gt;*bold*&lt;/b&gt;" in page and "<b>" not in page
    assert "http" not in page.split("</style>")[1], "it loads nothing"
    assert parsed(page)[0] == 1


def parsed(page: str) -> tuple[int, int]:
    """How many titles and tables a page has."""
    tags: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)

    Tags().feed(page)
    return tags.count("h1"), tags.count("table")


@pytest.mark.slow
def test_the_card_is_made_anew_with_what_the_registry_knows(swept: tuple[Path, SweepResult]) -> None:
    """Nothing is scored for it: the look of the sweep stays the only one."""
    store, _ = swept
    version, made = make_card("loans", "@challenger", store=store)
    assert (version.version, made.sections[1].title) == ("1", "Registry")
    assert "models:/loans/1, registered" in made.markdown() and "aliases: challenger" in made.html()
    assert len(looks_at_test(store / "test_looks.jsonl", str(version.tags["forge.dataset_digest"]))) == 1


@pytest.mark.slow
def test_what_is_kept_of_the_test_rows_is_no_row(swept: tuple[Path, SweepResult]) -> None:
    """Aggregates over at least 30 rows, in the study's note and in the bundle."""
    from forge_sweep.study import find_study

    store, _ = swept
    study = find_study("loans", store)
    assert study is not None
    (note,) = study.notes("test:").values()
    found = note["figures"]
    assert all(each["rows"] >= SMALLEST for each in found["slices"]) and found["rows"] == 180
    assert {each["category"] for each in found["slices"]} <= {"Basel", "Genf", ODD}
    assert len(json.dumps(found)) < 10_000


def test_a_group_that_is_no_feature_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    """Not at the end of the sweep, after its look at the test rows."""
    with pytest.raises(InputError, match=r"promotion.groups = 'alcohl'.*\n.*alcohol"):
        sweep.check(experiment(promotion__groups=["alcohl"]))


def test_an_older_bundle_says_what_is_not_recorded() -> None:
    """A card without figures, and one with a section in front."""
    about = {"kind": "xgboost", "threshold": 0.5, "packages": {"numpy": "2.1"}, "metadata": {"params": {"depth": 3}}}
    task = Task.learn("binary", pd.DataFrame({"y": [0, 0, 1, 1]})).to_dict()
    made = card(about, task, {"columns": []}, Section("Registry", ("models:/a/1",)))
    text = made.markdown()
    assert text.count("not recorded") >= 3 and "No purpose was stated" in text and "models:/a/1" in text
    assert parsed(made.html())[0] == 1


def test_figures_of_every_task_are_plain_json() -> None:
    """Classes, labels and targets each have their own; a regression has no calibration."""
    import dataclasses

    from forge_sweep import sources, trial

    tasks = {
        "multiclass": {"source": "sample", "name": "iris", "target": "target", "task": "multiclass"},
        "regression": {"source": "sample", "name": "diabetes", "target": "target", "task": "regression"},
    }
    for task, data in tasks.items():
        metric = "val_log_loss" if task == "multiclass" else "val_rmse"
        spec = parse(
            {
                "name": "x",
                "data": data,
                "objective": {"metric": metric},
                "model": {"search": {"width": 4}},
                "study": {"n_trials": 1},
            },
            root=Path(),
        )
        dataset = sources.load(spec.data, root=Path(), seed=0)
        bundle = trial.run_baseline(spec, dataset, "hist_gradient_boosting", 1).bundle
        found = figures(bundle, dataset.valid)
        assert set(found["metrics"]) == set(METRICS[spec.data.task])
        assert (found["calibration"] is None) == (task == "regression")
        assert len(found["classes"]) == (3 if task == "multiclass" else 0)
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        nobody = dataclasses.replace(
            dataset.valid, features=dataset.valid.features.head(1), targets=dataset.valid.targets.head(1)
        )
        json.dumps(figures(bundle, nobody), allow_nan=False)


def test_calibration_is_zero_where_shares_equal_probabilities() -> None:
    """And their distance where they do not."""
    import numpy as np

    task = Task.learn("binary", pd.DataFrame({"y": [0, 1, 0, 1]}))
    encoded = task.encode(pd.DataFrame({"y": [0, 0, 0, 1] * 50}))
    right = calibration(task, encoded, np.full((200, 1), 0.25))
    wrong = calibration(task, encoded, np.full((200, 1), 0.75))
    assert right is not None and wrong is not None
    assert right["ece"] == pytest.approx(0) and right["brier"] == pytest.approx(0.1875)
    assert 0.01 < right["ece_by_chance"] < 0.05 and 0.01 < wrong["ece_by_chance"] < 0.05
    assert wrong["ece"] == pytest.approx(0.5) and wrong["brier"] == pytest.approx(0.4375)
