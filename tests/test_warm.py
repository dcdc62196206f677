"""A sweep that begins with what earlier ones found: their best configurations come first, and are trained again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from forge_sweep import reproduce, sweep
from forge_sweep.errors import InputError
from forge_sweep.experiment import load
from forge_sweep.study import key_of, open_study, warm_words
from forge_sweep.study.storage import open_storage, storage_url
from forge_sweep.study.warm import MOST
from forge_sweep.sweep import Event
from tests.killed import kill
from tests.surface import experiment as surface
from tests.surface import fake_run
from tests.test_study import DATASET, experiment, opened, params_of
from tests.test_sweep import run, runs, study_of

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SEARCH = {"depth": {"type": "int", "low": 1, "high": 8}, "dropout": {"type": "float", "low": 0.0, "high": 0.5}}


def searched(store: Path, name: str, *, n: int = 6, seed: int = 7) -> list[Any]:
    """A study whose trials scored as their depth is; its rows, the best first."""
    spec = experiment(SEARCH, name=name, n_trials=n, seed=seed)
    made = opened(store, spec)
    while asked := made.ask():
        made.tell(asked.number, "finished", float(asked.params["depth"]))
    return sorted(made.rows(), key=lambda row: (-(row.value or 0.0), row.number))


def test_the_best_of_each_earlier_sweep_come_first_in_turn(tmp_path: Path) -> None:
    """Five at most, equal ones once; what they scored is not taken over, and the rest is searched as ever."""
    one, two = searched(tmp_path, "one"), searched(tmp_path, "two", n=2, seed=8)
    spec = experiment(SEARCH, name="new", n_trials=8, warm_start=["one", "two"])
    study = opened(tmp_path, spec)
    rows = study.rows()
    assert [row.warm for row in rows] == [
        *(f"one#{one[0].number}", f"two#{two[0].number}", f"one#{one[1].number}", f"two#{two[1].number}"),
        f"one#{one[2].number}",
    ]
    assert len(rows) == MOST and {row.state for row in rows} == {"waiting"}
    first = study.ask()
    assert first is not None and first.params == one[0].params and first.warm == f"one#{one[0].number}"
    study.put_back(first.number)
    while asked := study.ask():
        study.tell(asked.number, "finished", 0.5)
    assert params_of(study)[:2] == [one[0].params, two[0].params] and len(study.rows()) == 8
    assert len(set(map(key_of, params_of(study)))) == 8 and not study.cold
    assert opened(tmp_path, spec).rows() == study.rows(), "once, when it began"
    assert opened(tmp_path, experiment(SEARCH, name="new", n_trials=8)).name == study.name


def test_recommended_values_stay_the_first_trial(tmp_path: Path) -> None:
    network = {"builder": "resnet"}
    few = {"model": network, "study__n_trials": 3, "study__pruner": "none"}
    old = surface(name="old", **few)
    made = open_study(old, dataset=DATASET, store=tmp_path)
    while asked := made.ask():
        made.tell(asked.number, "finished", float(asked.number))
    new = surface(name="new", study__warm_start="old", **few)
    rows = open_study(new, dataset=DATASET, store=tmp_path).rows()
    assert [row.warm for row in rows] == ["", "old#2", "old#1"], "trial 0 of both is the recommended one"


@pytest.mark.parametrize(
    ("search", "study", "why"),
    [
        (
            {"depth": {"type": "int", "low": 20, "high": 30}},
            {},
            "none of its 6 finished trials lies in the search space",
        ),
        (SEARCH, {"metric": "val_accuracy"}, 'objective.metric: "val_auc" -> "val_accuracy"'),
    ],
)
def test_a_sweep_that_does_not_fit_changes_nothing_and_is_said(
    tmp_path: Path, search: Any, study: dict[str, Any], why: str
) -> None:
    searched(tmp_path, "old")
    spec = experiment(search, name="new", warm_start=["old"])
    if study:
        spec = spec.model_copy(update={"objective": spec.objective.model_copy(update=study)})
    made = opened(tmp_path, spec)
    assert made.rows() == [] and f"nothing was taken from old ({why}" in made.cold


def test_an_experiment_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    searched(tmp_path, "fraud_q1")
    with pytest.raises(InputError, match=r"study\.warm_start: there is no study of 'fraud_q2' in") as refused:
        opened(tmp_path, experiment(SEARCH, name="new", warm_start=["fraud_q2"]))
    assert "fraud_q1" in refused.value.hint


def test_what_a_killed_process_had_begun_is_made_anew(tmp_path: Path) -> None:
    """It died after the first configuration was put down."""
    searched(tmp_path, "old")
    half = optuna.create_study(study_name="new", storage=open_storage(storage_url(tmp_path), tmp_path))
    half.enqueue_trial({"depth": 1}, user_attrs={"forge.warm_start": "old#0"})
    study = opened(tmp_path, experiment(SEARCH, name="new", warm_start=["old"]))
    assert study.name == "new" and [bool(row.warm) for row in study.rows()] == [True] * 5


def test_a_sweep_says_where_its_first_trials_are_from_and_what_they_gave(tmp_path: Path) -> None:
    few = {"study__n_trials": 4, "study__pruner": "none", "confirm": {"top": 1, "seeds": 1}}
    run(surface(name="old", **few), tmp_path, fake_run())
    events: list[Event] = []
    result = run(surface(name="new", study__warm_start=["old"], **few), tmp_path, fake_run(), watch=events.append)
    taken = [row.warm for row in study_of(tmp_path, "new").rows()]
    assert len(taken) == 4 and all(source.startswith("old#") for source in taken)
    listed = f"configurations of earlier sweeps come first: trial 0 has that of {taken[0]}"
    assert any(listed in event.data.get("text", "") for event in events)
    assert "Of 4 configurations of earlier sweeps the best is trial" in result.verdict
    assert study_of(tmp_path, "new").rows()[0].remarks == (f"has the configuration of {taken[0]}",)
    tags = [each.data.tags.get("forge.warm_start") for each in runs(tmp_path, "trial")]
    assert sorted(filter(None, tags)) == sorted(taken)


@pytest.mark.slow
def test_the_example_begins_with_what_the_quickstart_found_is_killed_and_made_again(tmp_path: Path) -> None:
    """experiments/warm_start.toml after a short quickstart, killed in its first trial, to its model made again."""
    short = ["study.epochs=2", "study.pruner=none", "confirm.top=1", "confirm.seeds=1", 'baselines.kinds=["constant"]']
    short += ["model.search.width=32", "model.search.depth=2"]  # one shape is compiled once in each process
    sweep.run(load(EXPERIMENTS / "quickstart.toml", [*short, "study.n_trials=3"]), store=tmp_path)
    kill("warm_start", tmp_path, "epoch", 0, 1, [*short, "study.n_trials=4"])
    before = study_of(tmp_path, "warm_start").rows()
    result = sweep.run(load(EXPERIMENTS / "warm_start.toml", [*short, "study.n_trials=4"]), store=tmp_path)
    rows = study_of(tmp_path, "warm_start").rows()
    assert [row.warm for row in rows] == [row.warm for row in before] + [""] and all(row.warm for row in before)
    assert result.trials == {"finished": 4} and "configurations of earlier sweeps the best is" in result.verdict
    assert reproduce.reproduce(result.model, store=tmp_path).verdict.word == "exact"


def test_what_a_warm_start_gave_is_told_in_either_direction(tmp_path: Path) -> None:
    searched(tmp_path, "old", n=1)
    study = opened(tmp_path, experiment(SEARCH, name="new", n_trials=4, warm_start=["old"]))
    for value in (0.5, 0.4, 0.5, 0.7):
        asked = study.ask()
        assert asked is not None
        study.tell(asked.number, "finished", value)
    rows, best = (
        study.rows(),
        "Of 1 configurations of earlier sweeps the best is trial 0 with the configuration of old#0",
    )
    assert warm_words(rows, "maximize") == f"{best}; trial 2 is the first as good."
    assert warm_words(rows, "minimize") == f"{best}; trial 1 is the first as good."
    assert warm_words(rows[:2], "maximize") == f"{best}; none of the 1 other finished trials is as good."
    assert warm_words(rows[:1], "maximize") == f"{best}; there is no other trial."
    assert warm_words(rows[1:], "maximize") == ""
