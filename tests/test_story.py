"""`forge-sweep explain`: what a trial tried, where that comes from, how it ended, and what the best one did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from forge_sweep import Sweep
from forge_sweep.cli import app
from forge_sweep.errors import InputError, TrialFailed
from forge_sweep.study.story import story
from tests.surface import experiment, fake_run
from tests.test_study import experiment as spec_of
from tests.test_study import opened
from tests.test_sweep import run, study_of

SEARCH = {"depth": {"type": "int", "low": 1, "high": 8}, "dropout": {"type": "float", "low": 0.0, "high": 0.5}}
PLAIN: dict[str, Any] = {"ensemble": {"ship": "never"}}


def told(store: Path, number: int, name: str = "surface") -> dict[str, str]:
    view = study_of(store, name)
    return dict(story(view, view.rows()[number]))


def test_every_kind_of_end_is_told(tmp_path: Path) -> None:
    """A sweep with a pruner and failures: each trial has its story, the best and the others."""

    def fail(params: Any) -> TrialFailed | None:
        return TrialFailed("diverged", f"loss is nan at width {params['width']}") if params["width"] > 40 else None

    run(experiment(study__n_trials=12, **PLAIN), tmp_path, fake_run(fail=fail))
    view = study_of(tmp_path)
    rows, best = view.rows(), view.best()
    assert best is not None
    found = {row.number: dict(story(view, row)) for row in rows}
    assert {row.state for row in rows} >= {"finished", "pruned", "failed"}
    for row in rows:
        about = found[row.number]
        assert f"width {row.params['width']}" in about["tried"] and "dropout" in about["tried"]
        assert ("before it had read a score" in about["from"]) == (row.number < 10)
        if row.state == "failed":
            assert (
                about["ended"].startswith("after 0 epochs as diverged: loss is nan at width") and "course" not in about
            )
        elif row.state == "pruned":
            assert 'by study.pruner = "median": val_auc is' in about["ended"] and "earlier trial" in about["ended"]
        else:
            assert about["ended"] == "after 6 epochs, as many as study.epochs allows"
            assert about["course"].startswith("val_auc ") and "after epoch 1, best" in about["course"]
        assert about["cost"].endswith("in 1 attempt")
    assert found[best.number]["beside"].startswith("it is the best of ")
    other = next(row for row in rows if row.state == "finished" and row.number != best.number)
    assert (
        f"trial {best.number} is the best" in found[other.number]["beside"]
        and "this one is number" in found[other.number]["beside"]
    )
    assert f"width {best.params['width']}" in found[other.number]["beside"]


def test_where_a_configuration_comes_from_is_told(tmp_path: Path) -> None:
    """A warm start, a fork, the values that authors recommend."""
    run(experiment(study__n_trials=3, study__pruner="none", **PLAIN), tmp_path)
    run(experiment(name="warm", study__n_trials=3, study__warm_start="surface", **PLAIN), tmp_path)
    assert (
        told(tmp_path, 0, "warm")["from"].startswith("surface#")
        and "study.warm_start" in told(tmp_path, 0, "warm")["from"]
    )
    run(experiment(study__n_trials=1, study__epochs=7, **PLAIN), tmp_path, fork=True)
    assert told(tmp_path, 0)["from"] == "surface#0, which a fork took over with its score"
    resnet = experiment(name="resnet", model={"builder": "resnet"}, study__n_trials=2)
    from forge_sweep.study import open_study
    from tests.test_study import DATASET

    study = open_study(resnet, dataset=DATASET, store=tmp_path)
    asked = study.ask()
    assert asked is not None
    assert dict(story(study, study.rows()[0]))["from"] == "what the builder's authors recommend"
    assert told(tmp_path, 0, "resnet")["ended"] == "not yet: it is running, after 0 epochs"
    assert "its process ended after 0 epochs" in dict(story(study, study.rows()[0]))["ended"], "nobody holds its lease"


def test_an_infeasible_trial_says_by_how_much(tmp_path: Path) -> None:
    study = opened(tmp_path, spec_of(SEARCH, n_trials=2, pruner="none"))
    asked = study.ask()
    assert asked is not None
    attrs = {"measured": {"latency_ms": 7.1}}
    cause = "latency_ms = 7.1, at most 5 (42% over)"
    study.tell(asked.number, "failed", 0.9, failure="infeasible", cause=cause, attrs=attrs, excess={"latency_ms": 0.42})
    about = dict(story(study, study.rows()[0]))
    assert about["ended"] == f"after 0 epochs as infeasible: {cause}" and about["measured"] == "latency_ms 7.1"
    assert "beside" not in about, "nothing has finished"


def test_the_command_prints_it_and_refuses_a_number_that_is_not_there(tmp_path: Path) -> None:
    run(experiment(study__n_trials=2, study__pruner="none", **PLAIN), tmp_path)
    asked = ["explain", "surface", "1", "--store", str(tmp_path)]
    shown = CliRunner().invoke(app, asked, env={"COLUMNS": "300"}).stdout.splitlines()
    assert shown[0].startswith("trial 1 of surface: finished, 0.")
    assert [line.split()[0] for line in shown[1:]] == ["tried", "from", "course", "ended", "cost", "beside"]
    found = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    assert found["trial"] == 1 and found["ended"] == told(tmp_path, 1)["ended"]
    assert Sweep(experiment(study__n_trials=2, study__pruner="none", **PLAIN), store=tmp_path).explain(1) == told(
        tmp_path, 1
    )
    with pytest.raises(InputError, match="surface has no trial 7") as refused:
        CliRunner().invoke(app, ["explain", "surface", "7", "--store", str(tmp_path)], catch_exceptions=False)
    assert "it has 0 to 1" in str(refused.value)
