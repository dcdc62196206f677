"""Several objectives in a sweep: the file, the study, the pruner, what is confirmed, and what is shown of the front."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from forge_sweep import Sweep, reproduce, sweep
from forge_sweep.cli import app
from forge_sweep.errors import ExperimentError, ResumeRefused
from forge_sweep.experiment import Experiment, Params, load, restore
from forge_sweep.study import Asked, Study
from forge_sweep.sweep import Event
from forge_sweep.trial import TrialResult
from tests.forked import Forked
from tests.surface import experiment, fake_run, height, no_network
from tests.test_study import experiment as study_experiment
from tests.test_study import opened
from tests.test_sweep import check_nothing_is_lost, run, runs, study_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

EXAMPLE = Path(__file__).parents[1] / "experiments" / "several_objectives.toml"
TWO = {"metrics": ["val_auc", "val_accuracy"]}
EPOCHS = 6


def made(objective: Mapping[str, Any] = TWO, **sections: Any) -> Experiment:
    """A small experiment with several objectives."""
    study = {"n_trials": 16, "epochs": EPOCHS, "startup_trials": 4, "warmup_epochs": 1, **sections.pop("study", {})}
    about = {"confirm": {"top": 3, "seeds": 2}, "tracking": {"predictions": False}, **sections}
    return experiment(objective=dict(objective), study=study, **about)


@dataclass(frozen=True)
class Trade(fake_run):
    """A surface on which a wide network ranks better and a narrow one is right more often; dropout helps neither."""

    def __call__(
        self, experiment: Experiment, splits: Any, params: Params, *others: Any, **options: Any
    ) -> TrialResult:
        seed, on_epoch = others
        share = float(params["width"]) / 64

        def told(epoch: int, metrics: dict[str, float]) -> bool:
            rise, noise = 1 - 0.3 ** (epoch + 1), (seed % 997) / 1e6
            metrics["val_auc"] = (height(params) - 0.2 * share - 0.4 * float(params["dropout"])) * rise + noise
            metrics["val_accuracy"] = (0.9 - 0.1 * share - 0.6 * float(params["dropout"])) * rise + noise
            return bool(on_epoch(epoch, metrics))

        return super().__call__(experiment, splits, params, seed, told, **options)


# The file


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"objective": {"metrics": ["val_auc", "val_auc"]}}, "each objective once"),
        ({"objective": {"metrics": ["val_auc", "latency"]}}, 'did you mean "latency_ms"?'),
        ({"objective": {"metrics": ["val_auc", "f1"]}}, 'did you mean "val_f1"?'),
        ({"objective": {"metrics": ["val_auc", "test_f1"]}}, "the test split is evaluated once"),
        ({"objective": {"metrics": ["parameters", "val_auc"]}}, "a validation metric first"),
        ({"objective": {"metrics": ["val_auc", "val_f1"], "metric": "val_f1"}}, "the first of objective.metrics"),
        ({"objective": {"metrics": []}}, "objective.metric: expected a value"),
        ({"objective": {"metric": "val_auc", "tolerance": 0.1}}, "objective.tolerance = 0.1: expected nothing"),
        ({"objective": {**TWO, "tolerance": -0.1}}, "objective.tolerance = -0.1: expected 0.0 or more"),
        ({"study": {"sampler": "cmaes"}}, 'study.sampler = "cmaes": expected tpe, gp, random, qmc or grid'),
        ({"study": {"repeats": "average"}}, 'study.repeats = "average": expected true or false, since there are'),
        ({"study": {"pruner": "median"}}, 'study.pruner = "median": expected "dominated" or "none"'),
        ({"study": {"plateau_trials": 3}}, "study.plateau_trials = 3"),
        ({"study": {"audit_pruned": 0.5}}, "study.audit_pruned = 0.5"),
        ({"ensemble": {"ship": "better"}}, 'ensemble.ship = "better": expected "never"'),
        ({"objective": {"metric": "val_auc"}, "study": {"pruner": "dominated"}}, "with one objective nothing is"),
    ],
)
def test_what_several_objectives_cannot_be_is_refused_by_its_key(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        made(**{"objective": TWO, **sections})
    assert words in str(refused.value)


def test_the_first_objective_is_the_metric_and_directions_follow() -> None:
    spec = made({"metrics": ["val_auc", "val_log_loss", "bundle_mb"]})
    assert (spec.objective.metric, spec.direction, spec.study.pruner) == ("val_auc", "maximize", "dominated")
    assert spec.directions == {"val_auc": "maximize", "val_log_loss": "minimize", "bundle_mb": "minimize"}
    assert spec.measures == ("bundle_mb",) and spec.prunes_by_measures
    assert restore(spec.resolved(), root=Path()).directions == spec.directions
    assert made(study={"pruner": "none"}).study.pruner == "none"


def test_one_objective_is_what_it_was_however_it_is_written() -> None:
    """Old sweeps go on; another objective makes another experiment, another tolerance does not."""
    plain = experiment()
    record = plain.resolved()
    record["objective"] = {"metric": "val_auc", "direction": "maximize", "sum": {}}
    assert plain.differences(record) == {}
    alone = experiment(objective={"metrics": ["val_auc"]})
    assert alone.contract() == plain.contract() and alone.study.pruner == "median" and alone.objective.metrics == ()
    several = made()
    assert next(iter(several.differences(record))) == "objective.metrics"
    assert several.contract() == made({**TWO, "tolerance": 0.1}).contract()
    assert several.contract() != made({"metrics": ["val_auc", "val_f1"]}).contract()


# The study


def tell(study: Study, asked: Asked) -> str:
    """One trial of two objectives that are at odds, and how it ended."""
    wide, deep = float(asked.params["width"]) / 256, float(asked.params["depth"]) / 4
    for epoch in range(8):
        rise = 1 - 0.5 ** (epoch + 1)
        auc, size = (0.6 + 0.1 * wide - 0.8 * float(asked.params["dropout"])) * rise, wide + deep
        if study.report(asked.number, epoch, auc, {"parameters": size}):
            study.tell(asked.number, "pruned", auc, further={"parameters": size})
            return "pruned"
    study.tell(asked.number, "finished", auc, further={"parameters": size})
    return "finished"


def of_two(**study: Any) -> Experiment:
    spec = study_experiment(pruner="none", epochs=8, **study)
    raw = {**spec.resolved(), "objective": {"metric": "val_auc", "metrics": ["val_auc", "parameters"]}}
    raw["study"] = {**raw["study"], "pruner": "dominated", "startup_trials": 4}
    found = restore(raw, root=Path())
    return found.model_copy(update={"objective": found.objective.model_copy(update={"direction": "maximize"})})


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "gp"])
def test_a_study_opened_anew_for_each_trial_suggests_and_prunes_as_one_that_was_not(
    tmp_path: Path, sampler: str
) -> None:
    if sampler == "gp":
        pytest.importorskip("torch")
    spec = of_two(sampler=sampler, n_trials=11 if sampler == "gp" else 24)

    def reopened(store: Path) -> list[Any]:
        for _ in range(1000):
            study = opened(store, spec)
            with study.hold():
                study.requeue()
                asked = study.ask()
                if asked is None:
                    break
                tell(study, asked)
        return [(row.params, row.state, row.value, row.values) for row in opened(store, spec).rows()]

    whole = opened(tmp_path / "whole", spec)
    with whole.hold():
        while asked := whole.ask():
            tell(whole, asked)
    expected = [(row.params, row.state, row.value, row.values) for row in whole.rows()]
    assert reopened(tmp_path / "reopened") == expected
    front = whole.front()
    assert front is not None and front.finished == whole.counts()["finished"]
    if sampler != "gp":
        assert whole.counts()["pruned"] >= 1
        beaten = next(row for row in whole.rows() if row.beaten_by)
        assert beaten.state == "pruned" and "were better in every objective" in beaten.remarks[0]


def test_what_was_reported_before_a_death_stands(tmp_path: Path) -> None:
    """Also what was measured: another look at the clock is another number."""
    spec = of_two(n_trials=8)
    study = opened(tmp_path, spec)
    with study.hold():
        for _ in range(4):
            asked = study.ask()
            assert asked is not None
            tell(study, asked)
        asked = study.ask()
        assert asked is not None
        study.report(asked.number, 0, 0.9, {"parameters": 1.0})
        study.report(asked.number, 1, 0.91, {"parameters": 1.0})
        study.put_back(asked.number)
        again = study.ask()
        assert again is not None and (again.number, again.params) == (asked.number, asked.params)
        study.report(asked.number, 1, 0.1, {"parameters": 99.0})
        assert study.reports(asked.number) == {0: 0.9, 1: 0.91}
        study.tell(asked.number, "finished", 0.91, further={"parameters": 1.0})
    assert study.rows()[asked.number].values == (0.91, 1.0)


def test_a_trial_without_one_of_its_objectives_failed_and_an_infeasible_one_informs_the_sampler(tmp_path: Path) -> None:
    spec = of_two(n_trials=4)
    study = opened(tmp_path, spec)
    with study.hold():
        numbers = [asked.number for _ in range(4) if (asked := study.ask())]
        for number in numbers:
            study.report(number, 0, 0.5)
        study.tell(numbers[0], "finished", 0.9, further={"parameters": float("nan")})
        study.tell(numbers[1], "finished", 0.9)
        excess = {"parameters": 0.5}
        more: Any = {"failure": "infeasible", "cause": "too large", "excess": excess}
        study.tell(numbers[2], "failed", 0.99, further={"parameters": 9.0}, **more)
        study.tell(numbers[3], "failed", None, **more)
    rows, kept = study.rows(), study._study.get_trials()
    assert [row.state for row in rows] == ["failed"] * 4
    assert [row.cause for row in rows[:2]] == [
        "parameters is nan at the best epoch",
        "parameters is None at the best epoch",
    ]
    assert [trial.state.name for trial in kept] == ["FAIL", "FAIL", "COMPLETE", "PRUNED"]
    assert kept[2].values == [0.99, 9.0] and study.front() is None and study.best() is None


def test_only_the_same_objectives_are_imported_by_a_fork(tmp_path: Path) -> None:
    """A trial of one objective has no value of the second."""
    old = opened(tmp_path, study_experiment(n_trials=2, pruner="none"))
    with old.hold():
        while asked := old.ask():
            old.tell(asked.number, "finished", 0.5)
    with pytest.raises(ResumeRefused, match=re.escape('objective.metrics: [] -> ["val_auc", "parameters"]')):
        opened(tmp_path, of_two(n_trials=4))
    several = opened(tmp_path, of_two(n_trials=6), fork=True)
    assert several.imported == 0 and "objective.metrics" in several.skipped
    with several.hold():
        while asked := several.ask():
            tell(several, asked)
    changed = of_two(n_trials=6, startup_trials=4, patience=3)
    fork = opened(tmp_path, changed, fork=True)
    ended = [row for row in several.rows() if row.state in ("finished", "pruned")]
    assert fork.imported == len(ended) == 6 and fork.front() is None, "imported trials are not ranked"
    assert [row.values for row in fork.rows()] == [row.values for row in several.rows()]


# The sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """A whole sweep with two objectives."""
    store = tmp_path_factory.mktemp("several")
    yield store, run(made(), store, Trade())


def test_the_front_its_rule_and_its_choice_are_shown_everywhere(swept: tuple[Path, Any]) -> None:
    store, result = swept
    study = study_of(store)
    front, rows = study.front(), study.rows()
    assert front is not None and len(front.points) > 1
    for row in (row for row in rows if row.state == "finished"):
        better = [n for n in front.points if all(a >= b for a, b in zip(front.points[n], row.values, strict=True))]
        assert better, "the front has it, or one that is at least as good in both"
    assert result.front == front.to_dict() and "Pareto front" in result.verdict and "is chosen (" in result.verdict
    assert "the chosen network (" in result.verdict
    check_nothing_is_lost(store, 16)
    (parent,) = runs(store, "sweep")
    assert parent.data.metrics["front_trials"] == len(front.points)
    assert parent.data.metrics["front_hypervolume"] == pytest.approx(front.hypervolume)
    assert parent.data.tags["forge.front_rule"] == front.rule
    assert parent.data.tags["forge.front"].startswith(f"trial {front.chosen} (val_auc ")
    tagged = {run.data.params["trial_number"]: run.data.tags.get("forge.front") for run in runs(store, "trial")}
    assert {int(n) for n, said in tagged.items() if said in ("yes", "chosen")} == set(front.points)
    assert [int(n) for n, said in tagged.items() if said == "chosen"] == [front.chosen]

    def shown(*words: str) -> str:
        found = CliRunner().invoke(app, [*words, "surface", "--store", str(store)], env={"COLUMNS": "400"})
        assert found.exit_code == 0, found.output
        return found.stdout

    for command in ("status", "best"):
        assert f"{front.chosen} (chosen)" in shown(command) and front.rule in shown(command)
        assert json.loads(shown(command, "--json"))["front"] == front.to_dict()
    listed = shown("trials")
    assert "val_accuracy" in listed and " yes " in listed
    assert json.loads(shown("trials", "--json"))[front.chosen]["values"] == list(front.points[front.chosen])
    assert "Traceback" not in shown("diagnose") and "not-diagnosed" not in shown("diagnose")
    sweep_ = Sweep.open("surface", store=store)
    assert sweep_.front == front
    table = sweep_.trials
    assert (
        set(table.index[table["front"]]) == set(front.points) and table["val_accuracy"].notna().sum() == front.finished
    )
    assert "on the Pareto front" in sweep_.explain(front.chosen)["beside"]
    outside = next(row.number for row in rows if row.state == "finished" and row.number not in front.points)
    assert "it is not on the Pareto front" in sweep_.explain(outside)["beside"]
    page = sweep_.report(store / "report.html").read_text()
    assert "<h2>Pareto front</h2>" in page and "Pareto front of the trials" in page and front.rule in page
    assert "surface" in sweep_._repr_html_()


def test_the_rule_decides_what_is_confirmed_and_registered_and_may_be_changed(tmp_path: Path) -> None:
    """The same trials, another tolerance: another winner, and no new study."""
    strict = run(made({**TWO, "tolerance": 0.0}), tmp_path, Trade())
    front = study_of(tmp_path).front()
    assert front is not None and strict.winner["words"] == f"trial {front.chosen}"
    best = study_of(tmp_path).best()
    assert best is not None and front.chosen == best.number
    loose = run(made({**TWO, "tolerance": 0.5}), tmp_path, Trade())
    again = study_of(tmp_path).front()
    assert again is not None and again.chosen != front.chosen
    accurate = max(again.points, key=lambda n: again.points[n][1])
    assert loose.winner["words"] == f"trial {accurate}" and loose.winner["further"]["val_accuracy"] > 0.5
    assert loose.model != strict.model and study_of(tmp_path).name == "surface"
    assert {row["words"] for row in loose.confirmed} >= {f"trial {best.number}", f"trial {accurate}"}
    told = {each.info.run_name: each.data.tags.get("forge.front") for each in runs(tmp_path, "trial")}
    assert told[f"trial-{accurate:04d}"] == "chosen" and told[f"trial-{front.chosen:04d}"] == "yes"


def test_a_sweep_that_was_killed_ends_as_one_that_was_not(tmp_path: Path, swept: tuple[Path, Any]) -> None:
    store, whole = swept
    for at in ("5:3", "11:1"):
        process = Forked("tests.test_several", "trade", tmp_path, at)
        assert process.wait() == -signal.SIGKILL
    result = run(made(), tmp_path, Trade())
    seen = [[(row.params, row.state, row.values) for row in study_of(each).rows()] for each in (tmp_path, store)]
    assert seen[0] == seen[1]
    assert "pruned" in result.trials and result.trials == whole.trials
    assert result.front == whole.front and result.winner["words"] == whole.winner["words"]
    check_nothing_is_lost(tmp_path, 16)


def test_a_warm_start_takes_the_best_of_a_sweep_with_several_objectives(
    swept: tuple[Path, Any], tmp_path: Path
) -> None:
    store, _ = swept
    best = study_of(store).best()
    assert best is not None
    spec = experiment(name="next", study={"n_trials": 2, "epochs": EPOCHS, "warm_start": ["surface"]})
    run(spec, store, fake_run())
    rows = study_of(store, "next").rows()
    assert f"surface#{best.number}" in {row.warm for row in rows}


# Real networks


@pytest.mark.slow
def test_the_example_is_killed_goes_on_and_its_model_is_made_again(tmp_path: Path) -> None:
    """Trials are measured before they are trained, the front is of sizes, and `reproduce` is exact."""
    short = [
        *("study.epochs=6", "study.n_trials=9", "study.startup_trials=3", "study.warmup_epochs=1"),
        *("confirm.top=2", "confirm.seeds=2", 'baselines.kinds=["constant"]', "model.search.width.high=64"),
    ]
    killed = subprocess.run([sys.executable, "-m", "tests.test_several", "example", str(tmp_path), "4:2", *short])
    assert killed.returncode == -signal.SIGKILL
    spec = load(EXAMPLE, short)
    result = sweep.run(spec, store=tmp_path)
    study = study_of(tmp_path, "several_objectives")
    rows, front = study.rows(), study.front()
    assert front is not None and len(rows) == 9 and {row.state for row in rows} <= {"finished", "pruned"}
    for row in (row for row in rows if row.state == "finished"):
        assert row.values == (row.value, row.measured["parameters"])
    assert result.winner["further"].keys() == {"parameters"} and "Pareto front" in result.verdict
    assert reproduce.reproduce(result.model, store=tmp_path).verdict.word == "exact"
    (some,) = [each for each in runs(tmp_path, "trial") if each.info.run_name == f"trial-{front.chosen:04d}"]
    assert reproduce.reproduce(some.info.run_id, store=tmp_path).verdict.word == "exact", "measuring changed no weight"


def dies_at(point: str) -> Any:
    """A watcher that ends its process, as by `kill -9`, after that epoch of that trial."""
    number, epoch = map(int, point.split(":"))

    def watch(event: Event) -> None:
        if event.kind == "epoch" and (event.data["number"], event.data["epoch"]) == (number, epoch):
            os.kill(os.getpid(), signal.SIGKILL)

    return watch


if __name__ == "__main__":
    what, where, when, *words = sys.argv[1:]
    if what == "example":
        sweep.run(load(EXAMPLE, words), store=Path(where), watch=dies_at(when))
    else:
        with no_network(Trade()):
            sweep.run(made(), store=Path(where), watch=dies_at(when))
