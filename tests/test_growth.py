"""A search space that changes within a sweep: what still fits stays, and nothing else is taken for what it is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from forge_sweep import reproduce, sweep
from forge_sweep.errors import ResumeRefused, SweepStopped
from forge_sweep.experiment import load
from forge_sweep.study import Study, find_shared, find_study, join_study, resumable
from forge_sweep.sweep import Event
from forge_sweep.sweep.reconcile import reconcile
from tests.forked import Forked
from tests.growing import N_TRIALS, widened
from tests.surface import fake_run
from tests.test_study import DATASET, GRID, MIXED, drive, embedded_store, experiment, opened, params_of, surface, swept
from tests.test_sweep import check_nothing_is_lost, run, runs, study_of

__all__ = ["embedded_store"]

ROOT = Path(__file__).parents[1]
DEEPER = {**MIXED, "depth": {"type": "int", "low": 1, "high": 6}}
SHALLOW = {**MIXED, "depth": {"type": "int", "low": 1, "high": 2}}
MORE_CHOICES = {**MIXED, "batch_size": {"type": "categorical", "choices": [64, 128, 256, 512]}}
FIXED = {**{name: each for name, each in MIXED.items() if name != "momentum"}, "optimizer": "adam"}


def outside(study: Study) -> list[int]:
    return [row.number for row in study.rows() if row.state == "outside"]


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_wider_space_keeps_every_trial_and_its_number(sampler: str, tmp_path: Path) -> None:
    old = swept(tmp_path, experiment(n_trials=12, sampler=sampler)).rows()
    study = swept(tmp_path, experiment(DEEPER, n_trials=30, sampler=sampler))
    assert study.name == "fraud" and study.rows()[:12] == old
    assert [row.number for row in study.rows()] == list(range(30)) and study.counts() == {"finished": 30}
    assert study.grown.endswith("model.search.depth: 1..4 -> 1..6; all 12 trials fit and stay")
    assert sampler == "tpe" or max(int(row.params["depth"]) for row in study.rows()[12:]) > 4
    assert [len(space["outside"]) for space in study.spaces()] == [0, 0]


@pytest.mark.parametrize(("space", "teaches"), [(DEEPER, True), (MORE_CHOICES, True), ({**MIXED, "depth": 5}, False)])
def test_trials_that_stay_teach_the_sampler_and_those_outside_teach_nothing(
    space: Mapping[str, Any], teaches: bool, tmp_path: Path
) -> None:
    """With ten trials TPE is past its random start: turning their scores around turns its suggestion, or does not."""
    found = []
    for sign in (1, -1):
        study = opened(tmp_path / str(sign), experiment(n_trials=10))
        with study.hold():
            while asked := study.ask():
                study.tell(asked.number, "finished", sign * surface(asked.params))
        other = opened(tmp_path / str(sign), experiment(space, n_trials=20))
        with other.hold():
            asked = other.ask()
        assert asked is not None and asked.number == 10
        assert outside(other) == ([] if teaches else list(range(10)))
        found.append(asked.params)
    assert (found[0] != found[1]) == teaches


def test_a_trial_outside_is_never_the_best_and_says_why_and_how_it_ended(tmp_path: Path) -> None:
    old = swept(tmp_path, experiment(sampler="random"))
    deep = [row for row in old.rows() if int(row.params["depth"]) > 2]
    study = swept(tmp_path, experiment(SHALLOW, sampler="random"))
    assert 0 < len(deep) < 14 and outside(study) == [row.number for row in deep]
    assert study.n_done == study.n_trials == 14 and len(study.rows()) == 14 + len(deep)
    best, row = study.best(), study.row(deep[0].number)
    assert best is not None and best.state == "finished"
    assert row.value is None and row.params == deep[0].params
    assert row.outside == (
        f"depth = {row.params['depth']}, and the range is 1 to 2 (it finished with {deep[0].value:.6g})"
    )
    assert row.remarks == (f"lies outside of the search space of now: {row.outside}",)
    assert not {row.number for row in deep} & {number for number, _ in study.objectives()}
    numbers = ", ".join(str(row.number) for row in deep)
    assert study.grown.startswith("the space of fraud has changed: model.search.depth: 1..4 -> 1..2; ")
    assert f"{14 - len(deep)} of 14 trials fit and stay, trials {numbers} do not" in study.grown
    assert sum(cost.count for cost in study.costs_by_state() if cost.state == "outside") == len(deep)
    assert find_shared("fraud", tmp_path).status()["outside"] == len(deep)  # type: ignore[union-attr]


def test_a_space_that_is_put_back_brings_its_trials_back(tmp_path: Path) -> None:
    old = swept(tmp_path, experiment(sampler="random")).rows()
    narrow = swept(tmp_path, experiment(SHALLOW, sampler="random"))
    again = swept(tmp_path, experiment(sampler="random", n_trials=14))
    assert outside(narrow) and not outside(again)
    assert again.rows()[:14] == old and again.rows()[14:] == narrow.rows()[14:]
    assert len(again.spaces()) == 3 and again.n_done == len(again.rows())


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_the_curve_of_a_trial_outside_prunes_nothing(pruner: str, tmp_path: Path) -> None:
    """All trials of before are far better than any of the new space can be."""
    spec = {"pruner": pruner, "epochs": 9, "startup_trials": 1}
    study = opened(tmp_path, experiment({"depth": {"type": "int", "low": 1, "high": 4}}, n_trials=4, **spec))
    with study.hold():
        while asked := study.ask():
            for epoch in range(9):
                study.report(asked.number, epoch, 10.0)
            study.tell(asked.number, "finished", 10.0)
    study = opened(tmp_path, experiment({"depth": {"type": "int", "low": 5, "high": 9}}, n_trials=1, **spec))
    with study.hold():
        asked = study.ask()
        assert asked is not None and asked.number == 4
        assert not any(study.report(asked.number, epoch, 0.1) for epoch in range(8))


@pytest.mark.parametrize("space", [MORE_CHOICES, FIXED, {**MIXED, "width": {"type": "int", "low": 16, "high": 256}}])
def test_what_optuna_refuses_in_one_study_is_searched_all_the_same(space: Mapping[str, Any], tmp_path: Path) -> None:
    """Other choices, another scale, a value that was fixed; and a sweep that is interrupted suggests the same."""
    found = []
    for pieces in (1, 3):
        store = tmp_path / str(pieces)
        swept(store, experiment(n_trials=12))
        for _ in range(pieces - 1):
            drive(opened(store, experiment(space, n_trials=20)), at_most=2)
            cut_off = opened(store, experiment(space, n_trials=20))
            with cut_off.hold():
                cut_off.requeue()
                asked = cut_off.ask()  # and its process dies
            assert asked is not None
        study = swept(store, experiment(space, n_trials=20))
        found.append([(row.number, row.params, row.state) for row in study.rows()])
        assert study.n_done == 20
    assert found[0] == found[1]
    back = swept(tmp_path / "1", experiment(n_trials=22))  # the first space again: under its own names
    assert back.n_done >= 22


def test_a_fixed_value_that_is_searched_from_now_on_is_known_of_old_trials(tmp_path: Path) -> None:
    swept(tmp_path, experiment(FIXED, n_trials=6))
    freed = {**FIXED, "activation": {"type": "categorical", "choices": ["relu", "gelu"]}}
    study = swept(tmp_path, experiment(freed, n_trials=12))
    assert not outside(study) and {row.params["activation"] for row in study.rows()} == {"relu", "gelu"}
    assert 'model.search.activation: "relu" -> ["relu", "gelu"]' in study.grown
    trials = study._study.get_trials(deepcopy=False)
    assert all(trial.params["activation"] in ("relu", "gelu") for trial in trials)


def test_a_trial_that_was_cut_off_goes_on_where_it_fits_and_ends_with_a_reason_where_not(tmp_path: Path) -> None:
    study = opened(tmp_path, experiment(n_trials=6, sampler="random"))
    with study.hold():
        asked = [study.ask() for _ in range(6)]
        for each in asked:
            assert each is not None
            study.put_back(each.number)
    deep = [each.number for each in asked if each is not None and int(each.params["depth"]) > 2]
    other = opened(tmp_path, experiment(SHALLOW, n_trials=6, sampler="random"))
    drive(other)
    assert 0 < len(deep) < 6 and outside(other) == deep and other.n_done == 6
    assert "it was cut off, and is not gone on with" in other.row(deep[0]).outside
    kept = [each.params for each in asked if each is not None and each.number not in deep]
    assert [row.params for row in other.rows()[:6] if row.number not in deep] == kept


def test_a_grid_leaves_out_the_points_that_were_tried(tmp_path: Path) -> None:
    swept_grid(tmp_path, GRID, 10)
    wider = {**GRID, "depth": {"type": "int", "low": 1, "high": 4}}
    study = swept_grid(tmp_path, wider, 32)
    points = [tuple(params[name] for name in GRID) for params in params_of(study)]
    assert len(points) == len(set(points)) == study.n_trials == study.n_done == 32
    narrow = {**GRID, "batch_norm": True}
    again = swept_grid(tmp_path, narrow, 12)
    assert again.n_done == again.n_trials == 12 and len(again.rows()) == 32


def swept_grid(store: Path, space: Mapping[str, Any], n_trials: int) -> Study:
    study = opened(store, experiment(space, sampler="grid", n_trials=n_trials))
    with study.hold():
        while asked := study.ask():
            study.tell(asked.number, "finished", 0.5)
    return study


def test_what_else_differs_and_what_a_sampler_cannot_take_over_is_refused(tmp_path: Path) -> None:
    swept(tmp_path, experiment(n_trials=2, sampler="cmaes"))
    with pytest.raises(ResumeRefused, match=r"another search space:\n  model\.search\.depth\.high: 4 -> 6") as refused:
        opened(tmp_path, experiment(DEEPER, n_trials=2, sampler="cmaes"))
    assert "--fork" in refused.value.hint
    with pytest.raises(ResumeRefused, match=r"study\.sampler"):
        opened(tmp_path, experiment(DEEPER, n_trials=2))
    assert opened(tmp_path, experiment(DEEPER, n_trials=2, sampler="cmaes"), fork=True).imported == 2


def test_who_opened_it_while_another_process_changed_the_space_sees_the_new_one(tmp_path: Path) -> None:
    """Both have the new file; the second one gets its turn when the first has ended."""
    swept(tmp_path, experiment(sampler="random"))
    second = opened(tmp_path, experiment(SHALLOW, sampler="random", n_trials=16))
    first = swept(tmp_path, experiment(SHALLOW, sampler="random"))
    drive(second)
    assert outside(second) == outside(first) != [] and not second.grown
    assert second.n_done == 16 and len(second.spaces()) == 2


def test_the_old_file_cannot_join_and_a_process_that_joined_with_it_leaves(tmp_path: Path) -> None:
    first = opened(tmp_path, experiment(n_trials=9))
    with first.hold():
        first.requeue()
    worker = join_study(experiment(), dataset=DATASET, store=tmp_path)
    assert worker is not None
    with worker.join():
        asked = worker.ask()
        assert asked is not None
        running = opened(tmp_path, experiment(DEEPER, n_trials=9))
        with running.hold():
            worker.tell(asked.number, "finished", 0.5)  # it fits: nothing is lost
            with pytest.raises(SweepStopped, match=r"the search space of fraud was changed") as left:
                worker.ask()
            assert "join again" in left.value.hint
            assert running.n_done == 1
            with pytest.raises(ResumeRefused):
                join_study(experiment(), dataset=DATASET, store=tmp_path)
            assert join_study(experiment(DEEPER), dataset=DATASET, store=tmp_path) is not None


def test_a_fork_and_a_warm_start_know_what_lies_outside(tmp_path: Path) -> None:
    """A fork of a sweep that was narrowed imports what fits *its* space, also what had stepped aside."""
    swept(tmp_path, experiment(sampler="random"))
    narrow = swept(tmp_path, experiment(SHALLOW, sampler="random"))
    fork = opened(tmp_path, experiment(sampler="random", epochs=9), fork=True)
    assert outside(narrow) and fork.imported == len(narrow.rows())
    grown = swept(tmp_path, experiment(DEEPER, sampler="random", epochs=9, n_trials=3))
    assert (grown.name, grown.imported, grown.n_done) == ("fraud-2", fork.imported, 3)
    less = swept(tmp_path, experiment(SHALLOW, sampler="random", epochs=9, n_trials=3))
    assert less.n_done == 3 and all(row.imported for row in less.rows()[: fork.imported])
    warm = opened(tmp_path, experiment(SHALLOW, name="next", warm_start="fraud"))
    assert len([row for row in warm.rows() if row.warm]) == 5


def test_configurations_of_a_warm_start_that_no_longer_fit_are_not_begun(tmp_path: Path) -> None:
    swept(tmp_path, experiment(sampler="random"))
    spec: dict[str, Any] = {"name": "next", "warm_start": "fraud", "sampler": "random", "n_trials": 8}
    begun = opened(tmp_path, experiment(**spec))
    assert len([row for row in begun.rows() if row.warm]) == 5
    deep = {**MIXED, "depth": {"type": "int", "low": 3, "high": 4}}
    study = swept(tmp_path, experiment(deep, **spec))
    assert study.n_done == 8 and outside(study)
    assert all(int(row.params["depth"]) > 2 for row in study.rows() if row.state == "finished")


def test_values_that_somebody_fixed_are_completed_in_the_new_space(tmp_path: Path) -> None:
    study = opened(tmp_path, experiment(sampler="random", n_trials=3))
    for depth in (1, 4):
        study._study.enqueue_trial({"depth": depth})
    other = swept(tmp_path, experiment({**SHALLOW, "activation": "gelu"}, sampler="random", n_trials=3))
    assert outside(other) == [1] and other.n_done == 3
    assert (other.rows()[0].params["depth"], other.rows()[0].params["activation"]) == (1, "gelu")


def test_who_reads_sees_the_space_of_now_and_nothing_is_changed_before_the_sweep_is_held(tmp_path: Path) -> None:
    swept(tmp_path, experiment(sampler="random"))
    assert resumable(experiment(SHALLOW, sampler="random"), dataset=DATASET, store=tmp_path) is None
    opened(tmp_path, experiment(SHALLOW, sampler="random"))
    view = find_study("fraud", tmp_path)
    assert view is not None and not view.spaces() and view.counts() == {"finished": 14}
    study = swept(tmp_path, experiment(SHALLOW, sampler="random"))
    view = find_study("fraud", tmp_path)
    assert view is not None and view.rows() == study.rows()
    assert view.resolved["model"]["search"]["depth"]["high"] == 2
    assert set(view.figures()) >= {"history", "slice"}


# Whole sweeps


@pytest.mark.parametrize(("point", "changed"), [("study.growth:changed", False), ("study.growth:words", True)])
def test_a_kill_while_the_space_changes_leaves_the_old_one_or_the_new_one(
    point: str, changed: bool, tmp_path: Path
) -> None:
    assert Forked("tests.growing", tmp_path, 16).wait() == 0
    before = study_of(tmp_path).rows()
    assert Forked("tests.growing", tmp_path, 64, point).wait() == 9
    view = study_of(tmp_path)
    assert bool(view.spaces()) == changed and view.rows() == before
    assert view.resolved["model"]["search"]["width"]["high"] == (64 if changed else 16)
    assert Forked("tests.growing", tmp_path, 8).wait() == 0
    check_space(tmp_path, 8)
    assert Forked("tests.growing", tmp_path, 64).wait() == 0
    check_space(tmp_path, 64)
    assert study_of(tmp_path).rows()[:N_TRIALS] == before


def check_space(store: Path, high: int) -> None:
    """So many trials of the space, and each run of a trial outside says so."""
    rows = study_of(store).rows()
    aside = {row.number for row in rows if row.outside}
    assert aside == {row.number for row in rows if int(row.params["width"]) > high}
    assert len(rows) - len(aside) >= N_TRIALS
    children = runs(store, "trial")
    assert [int(child.data.params["trial_number"]) for child in children] == [row.number for row in rows]
    assert {n for n, child in enumerate(children) if child.data.tags.get("forge.outside")} == aside
    assert {child.info.status for child in children} == {"FINISHED"}
    assert not reconcile("surface", store, repair=False).differences


def test_a_sweep_that_has_ended_goes_on_in_a_wider_space_and_ends_anew(tmp_path: Path) -> None:
    """The better widths are beyond the first range: the winner is one of them, and the old one stays on record."""
    first = run(widened(16), tmp_path, fake_run())
    events: list[Event] = []
    second = run(widened(64), tmp_path, fake_run(), watch=events.append)
    said = [event.data["text"] for event in events if event.kind == "message"]
    assert "the space of surface has changed: model.search.width: 4..16 (log) -> 4..64 (log); all 8 trials fit" in str(
        said
    )
    assert second.trials == {"finished": N_TRIALS} and second.model == first.model  # as many trials as were asked for
    wide = widened(64)
    more = wide.model_copy(update={"study": wide.study.model_copy(update={"n_trials": 20})})
    third = run(more, tmp_path, fake_run())
    check_nothing_is_lost(tmp_path, 20)
    assert third.trials == {"finished": 20} and third.model != first.model
    assert run(more, tmp_path, fake_run()).verdict == third.verdict
    narrow = run(widened(8), tmp_path, fake_run())
    assert "outside" not in narrow.trials and sum(narrow.trials.values()) >= N_TRIALS
    final = study_of(tmp_path).final()
    assert final is not None and f"choosing among {len(study_of(tmp_path).rows())} configurations" in final["verdict"]
    networks = [each for each in final["confirmed"] if not each["baseline"]]
    assert networks and all(each["params"]["width"] <= 8 for each in networks)


@pytest.mark.slow
def test_the_example_of_a_growing_space(tmp_path: Path) -> None:
    """experiments/growing.toml, run, widened and run again; both trainings can be made again, bit by bit."""
    few = ["study.n_trials=2", "study.epochs=2", "confirm.top=1", "confirm.seeds=1", 'baselines.kinds=["constant"]']
    sweep.run(load(ROOT / "experiments/growing.toml", few), store=tmp_path)
    wider = [*few, "study.n_trials=4", "model.search.width.high=128", "model.search.dropout=0.2"]
    sweep.run(load(ROOT / "experiments/growing.toml", wider), store=tmp_path)
    rows = study_of(tmp_path, "growing").rows()
    assert [row.state for row in rows] == ["outside"] * 2 + ["finished"] * 4
    by_name = {child.info.run_name: child.info.run_id for child in runs(tmp_path, "trial")}
    for name in ("trial-0000", "trial-0005"):
        found = reproduce.reproduce(by_name[name], store=tmp_path)
        assert found.verdict.word == "exact"
        assert not [each for each in found.differences if each.what.startswith("experiment")]
