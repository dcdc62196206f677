"""What a model may cost: one above a limit is infeasible, says by how much, and is never registered."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from forge_sweep import Sweep, exports, reproduce, sources, sweep, trial
from forge_sweep.bundle import Bundle, choose_golden, measure
from forge_sweep.cli import app
from forge_sweep.errors import ExperimentError, ResumeRefused, SweepStopped, TrialFailed
from forge_sweep.experiment import Experiment, load
from forge_sweep.experiment.spec import ConstraintsSpec
from forge_sweep.preflight import preflight
from forge_sweep.study import open_study
from forge_sweep.study.story import story
from forge_sweep.sweep import Event
from forge_sweep.sweep.run import identity
from forge_sweep.trial import TrialResult
from tests.killed import kill
from tests.surface import experiment, fake_run, height
from tests.test_ensemble import cancer, one_tree
from tests.test_preflight import made, rows
from tests.test_study import DATASET, opened
from tests.test_study import experiment as spec_of
from tests.test_sweep import run, runs, study_of

EXAMPLE = Path(__file__).parents[1] / "experiments/constraints.toml"
SEARCH = {"depth": {"type": "int", "low": 1, "high": 64}, "dropout": {"type": "float", "low": 0.0, "high": 0.5}}
SIZES = {"width": 8, "depth": {"type": "int", "low": 1, "high": 2}}
ALONE: dict[str, Any] = {"study__pruner": "none", "ensemble": {"ship": "never"}}


@dataclasses.dataclass(frozen=True)
class sized(fake_run):
    """The wider the network, the larger its bundle: 20 kB for each unit, with an odd seed as much again."""

    doubled: bool = False

    def __call__(self, experiment: Experiment, splits: Any, params: Any, seed: int, *rest: Any, **more: Any) -> Any:
        result = super().__call__(experiment, splits, params, seed, *rest, **more)
        size = 20_000 * int(params["width"]) * (2 if self.doubled and seed % 2 else 1)
        ballast = {**result.bundle.metadata, "ballast": "x" * size}
        return dataclasses.replace(result, bundle=dataclasses.replace(result.bundle, metadata=ballast))


def study_data() -> dict[str, str]:
    """The identity of the data that the study was begun with."""
    spec = experiment()
    return identity(sources.load(spec.data, root=spec.root, seed=spec.seed))


def network(parameters: int | None = None, **params: Any) -> TrialResult:
    """A real network of one epoch."""
    spec = made(
        search={"width": 8, "depth": 1},
        study={"epochs": 1, "n_trials": 1},
        constraints={"parameters": parameters} if parameters else {},
    )
    values = {**spec.space, **params}
    return trial.run(spec, rows(spec), values, 1, lambda epoch, metrics: False)


# The limits


def test_limits_say_by_how_much_they_are_missed() -> None:
    limits = experiment(constraints={"latency_ms": 5, "parameters": 1_000_000}).constraints
    assert limits.limits == {"latency_ms": 5.0, "parameters": 1e6}
    measured = {"latency_ms": 7.1, "parameters": 2.5e5, "bundle_mb": 99.0}
    assert limits.excess(measured) == pytest.approx({"latency_ms": 0.42, "parameters": -0.75})
    assert limits.missed(measured) == "latency_ms = 7.1, at most 5 (42% over)"
    assert limits.missed({"parameters": 1e6}) == "", "the limit itself is kept"
    assert limits.missed({}) == ""


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        ({"latency_ms": 0}, "constraints.latency_ms = 0"),
        ({"parameters": -5}, "constraints.parameters = -5"),
        ({"parameters": 1.5}, "constraints.parameters = 1.5"),
        ({"bundle_mb": "small"}, 'constraints.bundle_mb = "small"'),
        ({"latency": 5}, "constraints.latency"),
    ],
)
def test_a_limit_that_cannot_be_one_is_refused_by_its_key(constraints: Any, words: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        experiment(constraints=constraints)
    assert words in str(refused.value)


def test_an_experiment_without_limits_is_what_it_was_before_there_were_any() -> None:
    """Old sweeps go on; a limit that is set, or changed, makes another experiment."""
    plain, limited = experiment(), experiment(constraints={"parameters": 1000})
    record = plain.resolved()
    del record["constraints"]
    assert plain.differences(record) == {}
    assert plain.contract() != limited.contract()
    assert list(limited.differences(record)) == ["constraints.parameters"]


# What is measured


def test_a_network_is_measured_as_it_is_served(tmp_path: Path) -> None:
    result = network()
    spec = made()
    golden = choose_golden(rows(spec).train.features)
    result.bundle.save(tmp_path / "bundle", golden)
    wanted = ("latency_ms", "parameters", "bundle_mb")
    measured = measure(result.bundle, wanted, golden)
    assert measured["parameters"] == result.bundle.model.count_params() > 100
    assert measured["bundle_mb"] == pytest.approx(
        sum(f.stat().st_size for f in (tmp_path / "bundle").iterdir()) / 1e6, rel=0.01
    )
    assert 0 < measured["latency_ms"] < 10_000
    assert measure(result.bundle, ("parameters",), golden) == {"parameters": measured["parameters"]}
    twice = Bundle.ensemble([result.bundle, result.bundle], [0.5, 0.5], threshold=0.5, metadata={})
    assert measure(twice, ("parameters",), golden)["parameters"] == 2 * measured["parameters"]


def test_a_network_with_its_preprocessing_inside_is_measured_with_it() -> None:
    """What is registered has both forms, and the limit is for both together."""
    result, golden = network(), choose_golden(rows(made()).train.features)
    alone = measure(result.bundle, ("bundle_mb",), golden)["bundle_mb"]
    assert measure(result.bundle, ("bundle_mb",), golden, raw=exports.write_raw)["bundle_mb"] > 1.5 * alone
    spec = made(model={"preprocessing": "in_model", "search": SIZES}, constraints={"bundle_mb": 1.2 * alone})
    found = [each for each in preflight(spec, rows(spec)) if each.code == "infeasible"]
    assert [each.severity for each in found] == ["error"]


def test_a_network_with_too_many_parameters_is_not_trained() -> None:
    epochs: list[int] = []
    size = int(measure(network().bundle, ("parameters",), rows(made()).train.features)["parameters"])
    assert network(parameters=size).state == "finished"
    spec = made(
        search={"width": 8, "depth": 1}, study={"epochs": 1, "n_trials": 1}, constraints={"parameters": size - 1}
    )
    with pytest.raises(TrialFailed, match=f"parameters = {size:,}, at most {size - 1:,}") as failed:
        trial.run(spec, rows(spec), dict(spec.space), 1, lambda epoch, metrics: bool(epochs.append(epoch)))
    assert failed.value.failure == "infeasible" and failed.value.excess == {"parameters": size / (size - 1) - 1}
    assert epochs == []


@pytest.mark.parametrize("name", ["parameters", "bundle_mb"])
def test_limits_that_the_smallest_network_misses_are_refused_before_the_first_trial(name: str) -> None:
    spec = made(constraints={name: 1 if name == "parameters" else 0.001})
    (found,) = [each for each in preflight(spec, rows(spec)) if each.code == "infeasible"]
    assert (found.severity, found.subject) == ("error", f"constraints.{name}")
    assert "of the smallest network" in found.seen and f"raise {name} under [constraints]" in found.fix


def test_a_row_that_takes_the_smallest_network_too_long_is_a_warning_and_enough_room_is_none() -> None:
    spec = made(constraints={"latency_ms": 1e-6, "parameters": 10**9, "bundle_mb": 1000.0})
    found = [each for each in preflight(spec, rows(spec)) if each.code == "infeasible"]
    assert [(each.severity, each.subject) for each in found] == [("warning", "constraints.latency_ms")]


# What the study makes of it


def test_an_infeasible_trial_is_complete_for_the_sampler_and_failed_for_people(tmp_path: Path) -> None:
    """It has its value and by how much it missed; what was not trained has none. Neither stops or wins anything."""
    study = opened(tmp_path, spec_of(SEARCH, n_trials=5, pruner="none"))
    asked = [study.ask() for _ in range(5)]
    numbers = [each.number for each in asked if each is not None]
    study.tell(numbers[0], "failed", 0.99, failure="infeasible", cause="too slow", excess={"latency_ms": 0.4})
    for number in numbers[1:4]:
        study.tell(number, "failed", failure="infeasible", cause="too large", excess={"parameters": 0.2})
    assert study.failing_streak() is None, "nothing is broken"
    study.tell(numbers[4], "finished", 0.5, excess={"latency_ms": -0.1, "parameters": -0.5})
    kept = study._study.get_trials()
    assert [trial.state.name for trial in kept] == ["COMPLETE", "PRUNED", "PRUNED", "PRUNED", "COMPLETE"]
    assert kept[0].value == 0.99 and kept[0].constraints == {"latency_ms": 0.4}
    assert kept[4].constraints == {"latency_ms": -0.1, "parameters": -0.5}
    best = study.best()
    assert best is not None and best.number == numbers[4]
    assert study.objectives() == [(numbers[4], 0.5)], "no gain, whatever its value"
    row = study.rows()[0]
    assert (row.state, row.failure, row.cause, row.value) == ("failed", "infeasible", "too slow", None)
    assert study.counts() == {"finished": 1, "failed": 4}
    new = opened(tmp_path, spec_of(SEARCH, name="next", pruner="none", warm_start=["fraud"]))
    assert [each.warm for each in new.rows()] == [f"fraud#{numbers[4]}"], "a warm start takes none of them"


def test_what_a_process_measured_before_it_died_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the constraints and before the state; the trial runs again, and Optuna takes no second value."""
    study = opened(tmp_path, spec_of(SEARCH, n_trials=1, pruner="none"))
    first = study.ask()
    assert first is not None
    with monkeypatch.context() as died:
        died.setattr(study, "_end", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            study.tell(first.number, "failed", 0.9, failure="infeasible", cause="too slow", excess={"latency_ms": 0.4})
    study.put_back(first.number)
    again = study.ask()
    assert again is not None and again.number == first.number and again.params == first.params
    study.tell(again.number, "finished", 0.9, excess={"latency_ms": -0.1})
    assert study._study.get_trials()[0].constraints == {"latency_ms": 0.4}
    assert study.rows()[0].state == "finished"


@pytest.mark.parametrize(("sampler", "n"), [("tpe", 60), ("gp", 15)])
def test_the_sampler_learns_to_keep_below_the_limit(tmp_path: Path, sampler: str, n: int) -> None:
    """The deeper the better, and above 16 of 64 infeasible: most of the last are feasible, the best is near it.

    TPE learns from what was not trained, too.
    """
    if sampler == "gp":
        pytest.importorskip("torch")
    study = opened(tmp_path, spec_of(SEARCH, n_trials=n, pruner="none", sampler=sampler))
    while asked := study.ask():
        depth = int(asked.params["depth"])
        excess = {"parameters": depth / 16 - 1}
        if depth > 16:
            value = depth / 64 if sampler == "gp" else None
            study.tell(asked.number, "failed", value, failure="infeasible", cause="too large", excess=excess)
        else:
            study.tell(asked.number, "finished", depth / 64, excess=excess)
    depths = np.array([int(row.params["depth"]) for row in study.rows()])
    assert (depths[:10] > 16).mean() > 0.5, "drawn at random, three of four are above it"
    assert (depths[-n // 3 :] <= 16).mean() > 0.5
    best = study.best()
    assert best is not None and 12 <= int(best.params["depth"]) <= 16


def test_a_gaussian_process_takes_no_trials_without_constraints(tmp_path: Path) -> None:
    """It wants the same ones of each trial, and an older sweep has none."""
    pytest.importorskip("torch")
    old = opened(tmp_path, spec_of(SEARCH, n_trials=2, pruner="none", sampler="gp"))
    while asked := old.ask():
        old.tell(asked.number, "finished", 0.5)
    limits = ConstraintsSpec(parameters=1000)
    spec = spec_of(SEARCH, n_trials=2, pruner="none", sampler="gp").model_copy(update={"constraints": limits})
    new = open_study(spec, dataset=DATASET, store=tmp_path, fork=True)
    assert new.rows() == [] and 'study.sampler = "gp" takes none beside [constraints]' in new.skipped


# What the sweep makes of it


def test_what_is_above_a_limit_never_wins_and_says_by_how_much_it_missed(tmp_path: Path) -> None:
    """The best trials of the surface are the widest, and too large."""
    said: list[Event] = []
    spec = experiment(study__n_trials=12, constraints={"bundle_mb": 0.7}, **ALONE)
    result = run(spec, tmp_path, sized(), watch=said.append)
    rows = study_of(tmp_path).rows()
    above, kept = [row for row in rows if row.failure], [row for row in rows if row.state == "finished"]
    assert above and kept and len(above) + len(kept) == 12
    for row in above:
        assert row.failure == "infeasible" and "bundle_mb = " in row.cause and "at most 0.7 (" in row.cause
        assert (
            "val_auc is" in row.cause and row.attrs["measured"]["bundle_mb"] > 0.7 and row.attrs["metrics"]["val_auc"]
        )
    assert max(height(row.params) for row in above) > max(height(row.params) for row in kept)
    assert result.winner["params"]["width"] in {row.params["width"] for row in kept}
    assert result.best["number"] in {row.number for row in kept}
    logged = {each.info.run_name: each for each in runs(tmp_path, "trial")}
    for row in rows:
        its = logged[f"trial-{row.number:04d}"]
        assert (its.data.metrics["bundle_mb"] > 0.7) == bool(row.failure) and "best_val_auc" in its.data.metrics
        assert (its.info.status, its.data.tags.get("forge.failure")) == (
            ("FAILED", "infeasible") if row.failure else ("FINISHED", None)
        )
    shown = CliRunner().invoke(app, ["trials", "surface", "--store", str(tmp_path)], env={"COLUMNS": "400"}).stdout
    assert f"trial {above[0].number} is infeasible: bundle_mb = " in shown
    told = CliRunner().invoke(app, ["status", "surface", "--store", str(tmp_path)], env={"COLUMNS": "400"}).stdout
    assert f"Above a limit of [constraints], and so left out: {len(above)} of 12 trials" in told
    measured = Sweep(spec, store=tmp_path).trials["bundle_mb"]
    assert list(measured) == [row.to_dict()["measured"]["bundle_mb"] for row in rows]
    (parent,) = runs(tmp_path, "sweep")
    assert parent.data.params["constraints.bundle_mb"] == "0.7"
    assert f"Above a limit of [constraints], and so left out: {len(above)} of 12 trials" in result.verdict
    ended = [event.data for event in said if event.kind == "trial_done" and event.data["state"] == "failed"]
    assert {each["failure"] for each in ended} == {"infeasible"} and len(ended) == len(above)
    with pytest.raises(ResumeRefused, match=r"constraints\.bundle_mb: 0\.7 -> 0\.4"):
        run(experiment(study__n_trials=12, constraints={"bundle_mb": 0.4}, **ALONE), tmp_path, sized())
    lower = experiment(study__n_trials=1, constraints={"bundle_mb": 0.4}, **ALONE)
    fork = open_study(lower, dataset=study_data(), store=tmp_path, fork=True)
    imported = [row.measured["bundle_mb"] for row in fork.rows()]
    assert imported and max(imported) <= 0.4 and "trials of surface are above a new limit" in fork.skipped
    assert dict(story(fork, fork.rows()[0]))["beside"].startswith("it informs the sampler and is not ranked")


def test_where_no_network_keeps_the_limits_the_baseline_is_shipped_or_the_sweep_says_so(tmp_path: Path) -> None:
    spec = experiment(study__n_trials=4, constraints={"bundle_mb": 0.1}, **ALONE)
    result = run(spec, tmp_path / "one", sized())
    assert result.winner["baseline"] == "constant" and result.trials == {"failed": 4}
    assert "no network could be confirmed" in result.verdict and "4 of 4 trials" in result.verdict
    with pytest.raises(SweepStopped, match="4 trials were infeasible: their models are above a limit"):
        run(
            experiment(study__n_trials=4, constraints={"bundle_mb": 0.1}, baselines__kinds=[], **ALONE),
            tmp_path / "two",
            sized(),
        )


def test_a_baseline_above_a_limit_is_none_and_is_fitted_once(tmp_path: Path) -> None:
    """A forest is a hundred times as large as a constant."""
    said: list[str] = []
    limits = {"baselines__kinds": ["constant", "random_forest"], "constraints": {"bundle_mb": 0.2}}

    def swept(n: int) -> Any:
        said.clear()
        spec = experiment(study__n_trials=n, **limits, **ALONE)
        return run(spec, tmp_path, fake_run(), watch=lambda event: said.append(str(event.data.get("text", ""))))

    result = swept(2)
    assert list(result.baselines) == ["constant"] and "the baseline random_forest" in result.verdict
    assert any("baseline random_forest is infeasible: bundle_mb = " in text for text in said)
    (forest,) = [each for each in runs(tmp_path, "baseline") if each.info.run_name == "baseline-random_forest"]
    assert forest.info.status == "FAILED" and forest.data.tags["forge.failure"] == "infeasible"
    swept(3)
    assert not any("random_forest is infeasible" in text for text in said)


def test_a_configuration_that_misses_a_limit_under_another_seed_is_left_out(tmp_path: Path) -> None:
    """It is measured at every training: what kept the limit by luck is not registered."""
    said: list[str] = []
    spec = experiment(study__n_trials=6, constraints={"bundle_mb": 0.7}, confirm={"top": 6, "seeds": 3}, **ALONE)
    result = run(spec, tmp_path, sized(doubled=True), watch=lambda event: said.append(str(event.data.get("text", ""))))
    left = [text for text in said if "failed under another seed: bundle_mb = " in text and text.endswith("; left out")]
    assert left
    confirmed = {each["label"] for each in result.confirmed}
    for label in confirmed - {"constant"}:
        assert all(
            each.data.metrics["bundle_mb"] <= 0.7 for each in runs(tmp_path, "confirm") if label in each.info.run_name
        )


def test_an_ensemble_above_a_limit_is_not_registered(tmp_path: Path) -> None:
    """Each of its members keeps the limit, all of them together do not; without a limit it is registered."""
    run(cancer(name="one", study__n_trials=1, constraints={"bundle_mb": 100.0}), tmp_path, one_tree())
    single = study_of(tmp_path, "one").rows()[0].attrs["measured"]["bundle_mb"]
    result = run(cancer(constraints={"bundle_mb": 1.05 * single}), tmp_path, one_tree())
    assert "failed" not in result.trials and "ensemble" not in result.winner
    assert " No ensemble is registered: bundle_mb = " in result.verdict


@pytest.mark.slow
def test_the_example_is_killed_goes_on_and_its_model_is_made_again(tmp_path: Path) -> None:
    short = [
        *("study.epochs=2", "study.pruner=none", "study.n_trials=3", "confirm.top=1", "confirm.seeds=1"),
        *('baselines.kinds=["constant"]', "constraints.parameters=1100"),
    ]
    kill("constraints", tmp_path, "epoch", 0, 1, short)
    result = sweep.run(load(EXAMPLE, short), store=tmp_path)
    rows = study_of(tmp_path, "constraints").rows()
    above = [row for row in rows if row.failure]
    assert len(rows) == 3 and {row.failure for row in above} == {"infeasible"}
    assert all("it was not trained" in row.cause and row.epochs == 0 for row in above)
    for row in (row for row in rows if not row.failure):
        assert (
            row.attrs["measured"]["parameters"] <= 1100 and {"latency_ms", "bundle_mb"} <= row.attrs["measured"].keys()
        )
    assert reproduce.reproduce(result.model, store=tmp_path).verdict.word == "exact"
