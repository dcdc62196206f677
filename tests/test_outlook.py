"""Is more search worth it? What it is expected to gain, beside its price and what seeds alone do."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from forge_sweep.cli import app
from forge_sweep.study.outlook import FEWEST, Outlook, gain_of, noise_of
from tests.surface import experiment as surface
from tests.surface import fake_run
from tests.test_study import experiment, opened
from tests.test_sweep import run, study_of

SEARCH = {"dropout": {"type": "float", "low": 0.0, "high": 0.5}}


def told(store: Path, scores: list[float | None], **study: Any) -> Any:
    """A study whose trials ended so; None stands for a pruned one."""
    made = opened(store, experiment(SEARCH, n_trials=len(scores), sampler="random", **study))
    for score in scores:
        asked = made.ask()
        assert asked is not None
        made.report(asked.number, 0, score or 0.0)
        made.tell(asked.number, "finished" if score is not None else "pruned", score or 0.01)
    return made


def test_the_gain_is_what_the_last_draws_added_over_all_their_orders() -> None:
    """Counted out: of seven scores, every subset of four."""
    scores = [0.3, 0.9, 0.1, 0.4, 0.8, 0.8, 0.2]
    by_hand = max(scores) - statistics.fmean(max(each) for each in itertools.combinations(scores, 4))
    assert gain_of(scores, 3) == pytest.approx(by_hand)
    assert gain_of(scores, 3, floor=0.85) == pytest.approx(
        0.9 - statistics.fmean(max(0.85, *each) for each in itertools.combinations(scores, 4))
    )
    assert gain_of(scores, 3, floor=0.95) == 0.0, "none of them was better than what was known before"
    assert gain_of([0.5] * 20, 10) == 0.0


@pytest.mark.parametrize("draw", ["uniform", "normal", "exponential"])
def test_independent_draws_gain_no_more_than_is_said(draw: str) -> None:
    """Whatever the distribution; for twenty draws and ten more it is less than three times what they gain."""
    stream = np.random.default_rng(0)
    said, gave = [], []
    for _ in range(3000):
        values = getattr(stream, draw)(size=30)
        said.append(gain_of(values[:20].tolist(), 10))
        gave.append(values.max() - values[:20].max())
    assert statistics.fmean(gave) <= statistics.fmean(said) <= 3 * statistics.fmean(gave)


def test_the_outlook_speaks_of_the_trials_that_ended(tmp_path: Path) -> None:
    """Pruned ones count as no better than any; below ten nothing is said."""
    few = told(tmp_path / "few", [0.5] * (FEWEST - 1))
    assert few.outlook() is None
    none = told(tmp_path / "none", [None] * 12)
    assert none.outlook() is None
    scores: list[float | None] = [0.1, None, 0.7, 0.5, 0.6, None, 0.2, 0.3, 0.9, 0.4, 0.65, 0.1]
    found = told(tmp_path / "some", scores).outlook()
    assert found is not None
    assert (found.trials, found.seen, found.noise, found.metric) == (6, 12, None, "val_auc")
    assert found.gain == pytest.approx(gain_of([score if score is not None else 0.1 for score in scores], 6))
    assert "6 more trials would gain about" in found.words and "after the confirmation" in found.words


def test_a_space_that_was_tried_whole_has_no_more_trials_to_gain_from(tmp_path: Path) -> None:
    space = {"depth": {"type": "int", "low": 1, "high": 12}}
    study = opened(tmp_path, experiment(space, n_trials=50, sampler="random", pruner="none"))
    while asked := study.ask():
        study.tell(asked.number, "finished", float(asked.params["depth"]))
    assert study.n_done == 12 and study.all_tried and study.outlook() is None


def test_scores_that_are_to_be_small_gain_downwards(tmp_path: Path) -> None:
    scores = [float(n) for n in range(1, 13)]
    up = told(tmp_path / "up", list(scores)).outlook()
    spec = experiment(SEARCH, n_trials=12, sampler="random", pruner="none")
    down = opened(
        tmp_path / "down",
        spec.model_copy(update={"objective": surface(objective={"metric": "val_log_loss"}).objective}),
    )
    for score in scores:
        asked = down.ask()
        assert asked is not None
        down.tell(asked.number, "finished", score)
    found = down.outlook()
    assert up is not None and found is not None and found.gain == pytest.approx(up.gain)


def test_seeds_that_alone_do_more_make_it_not_worth_it() -> None:
    rows = [{"baseline": "", "values": [0.5, 0.7]}, {"baseline": "", "values": [0.6, 0.6]}]
    noise = noise_of({"confirmed": [*rows, {"baseline": "xgboost", "values": [0.1, 0.9]}]})
    assert noise == pytest.approx(0.1), "pooled, trees aside"
    assert noise_of({"confirmed": [{"baseline": "", "values": [0.5]}]}) is None and noise_of({}) is None
    assert "one seed gives no spread" in Outlook(10, 30, 0.1, None, 90.0, "val_auc", ended=True).words
    said = [Outlook(10, 30, gain, noise, 90.0, "val_auc").words for gain in (0.09, 0.11)]
    assert said[0].startswith(
        "10 more trials would gain about 0.0900 of val_auc on average and take about 90.0 s, and "
    )
    assert said[0].endswith("another seed alone moves a score by 0.1000: they are not worth it")
    assert said[1].endswith(": they may be worth it")


def test_status_and_report_say_it(tmp_path: Path) -> None:
    run(surface(study__n_trials=20, study__pruner="none", study__sampler="random"), tmp_path, fake_run())
    found = study_of(tmp_path).outlook()
    assert found is not None and found.noise is not None and found.seconds is not None
    text = CliRunner().invoke(app, ["status", "surface", "--store", str(tmp_path)], env={"COLUMNS": "400"}).stdout
    assert f"more search: {found.words}" in text
    told_as_json = json.loads(CliRunner().invoke(app, ["status", "surface", "--store", str(tmp_path), "--json"]).stdout)
    assert told_as_json["outlook"] == found.to_dict()
    page = tmp_path / "report.html"
    assert (
        CliRunner().invoke(app, ["report", "surface", "--store", str(tmp_path), "--output", str(page)]).exit_code == 0
    )
    assert "More search: 10 more trials would gain about" in page.read_text()
