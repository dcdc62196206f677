"""Budgets of a search and the cost of its trials, on a fake clock: each epoch takes ten seconds and eight CPU-seconds.

Run as a script it is a sweep whose process is killed in mid-trial: `python -m tests.test_budget STORE EPOCHS`.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from typer.testing import CliRunner

from forge_sweep import reproduce, sweep, trial
from forge_sweep.cli import app
from forge_sweep.errors import ExperimentError, InputError, SweepStopped, TrialFailed
from forge_sweep.experiment import BUDGET_FIELDS, Experiment, WorkersSpec, load
from forge_sweep.study import END_S, Cost, Progress, Spent, Study, TrialCost, open_study, over, union_s
from forge_sweep.sweep import Event, Interrupted, budget, pool
from forge_sweep.sweep.budget import Budget
from forge_sweep.trial import TrialResult
from tests import surface
from tests.forked import Forked
from tests.surface import EPOCHS, STORY, experiment, fake_run, no_network
from tests.test_sweep import run, runs, study_of

WALL_S, CPU_S = 10.0, 8.0
"""What an epoch takes."""

NOW = {"wall": 0.0, "cpu": 0.0}
"""The clocks of this process; each worker process has its own."""


def fake_wall() -> float:
    return NOW["wall"]


def fake_cpu() -> float:
    return NOW["cpu"]


def fake_date() -> float:
    return NOW["wall"] + 1e6  # after all that a killed process may have noted


CLOCKS = budget.Clocks(fake_wall, fake_cpu, fake_date)


def advance(wall_s: float) -> None:
    NOW["wall"] += wall_s
    NOW["cpu"] += CPU_S


@dataclass(frozen=True)
class Costly(fake_run):
    """Each epoch moves the clocks; after `kill_after` epochs the process is killed."""

    wall_s: float = WALL_S
    marks: Path | None = None
    kill_after: int | None = None

    def __call__(
        self, experiment: Experiment, splits: Any, params: Any, seed: int, on_epoch: Any, **options: Any
    ) -> TrialResult:
        def costly(epoch: int, metrics: dict[str, float]) -> bool:
            advance(self.wall_s)
            answer = bool(on_epoch(epoch, metrics))
            self.die(epoch, seed)
            return answer

        return super().__call__(experiment, splits, params, seed, costly, **options)

    def die(self, epoch: int, seed: int) -> None:
        """End the process, as by the OOM killer: once for each seed where there are marks."""
        mark = None if self.marks is None else self.marks / str(seed)
        if self.kill_after is None or epoch + 1 < self.kill_after or (mark is not None and mark.exists()):
            return
        if mark is not None:
            mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(autouse=True)
def clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here takes any time but what is said to."""
    monkeypatch.setattr(budget, "CLOCKS", CLOCKS)


def spec(**values: Any) -> Experiment:
    """The surface without a pruner: every trial has `EPOCHS` epochs unless it is cut off."""
    return experiment(**{"study__pruner": "none", "confirm": {"top": 1, "seeds": 1}, **values})


def processes(n: int = 2, **values: Any) -> Experiment:
    return spec(**{"workers": {"kind": "processes", "n": n}, **values})


def epochs_heard(store: Path) -> int:
    """Over all trials."""
    return sum(row.epochs for row in study_of(store).rows())


def said(events: list[Event], word: str) -> list[str]:
    """Messages with a word."""
    return [e.data["text"] for e in events if e.kind == "message" and word in e.data["text"]]


def test_a_cpu_budget_ends_the_search_in_mid_trial_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    """After the epoch that used it up. The trial waits, what finished is confirmed, and all of it is said."""
    events: list[Event] = []
    first = run(spec(study__cpu_budget_s=2.5 * EPOCHS * CPU_S), tmp_path, Costly(), watch=events.append)
    assert first.trials == {"finished": 2, "waiting": 1}
    assert epochs_heard(tmp_path) == 2.5 * EPOCHS
    assert first.ended_by == "study.cpu_budget_s" and first.model == "models:/surface/1"
    text = "study.cpu_budget_s = 120 is exhausted (120 CPU-seconds)"
    assert f"The search ended with 2 of 6 trials: {text}." in first.verdict
    assert len(said(events, "is exhausted")) == 1
    assert {r.data.tags["forge.ended_by"] for r in runs(tmp_path, "sweep")} == {"study.cpu_budget_s"}
    assert [r.info.status for r in runs(tmp_path, "trial")] == ["FINISHED", "FINISHED", "SCHEDULED"]
    before = dict(NOW)
    events.clear()
    again = run(spec(study__cpu_budget_s=2.5 * EPOCHS * CPU_S), tmp_path, Costly(), watch=events.append)
    assert again == first and before == NOW
    assert said(events, "complete") == [f"sweep surface is complete with 2 of 6 trials: {text}; raise it to go on"]
    larger = run(spec(study__cpu_budget_s=1000), tmp_path, Costly())
    assert larger.trials == {"finished": 6} and larger.ended_by == "study.n_trials"
    assert "The search ended" not in larger.verdict


def test_a_budget_that_buys_no_whole_trial_more_changes_nothing(tmp_path: Path) -> None:
    """No second look at test, no second version; the epochs are counted all the same."""
    first = run(spec(study__cpu_budget_s=EPOCHS * CPU_S + CPU_S), tmp_path, Costly())
    before = NOW["cpu"]
    second = run(spec(study__cpu_budget_s=EPOCHS * CPU_S + 2 * CPU_S), tmp_path, Costly())
    assert NOW["cpu"] - before == CPU_S, "and nothing is confirmed again"
    assert second.trials == {"finished": 1, "waiting": 1} and second.model == first.model
    assert len((tmp_path / "test_looks.jsonl").read_text().splitlines()) == 1
    (_, waiting) = study_of(tmp_path).rows()
    assert waiting.cost is not None and waiting.cost.total.cpu_s == 2 * CPU_S
    assert waiting.cost.lost.cpu_s == CPU_S, "this fake trains its first epoch again"


def test_a_trial_that_ends_with_the_budget_is_not_cut_off(tmp_path: Path) -> None:
    """What a process spends itself it knows to the epoch, without a look at the study."""
    quick = Costly(wall_s=0.0)
    run(spec(study__cpu_budget_s=2 * EPOCHS * CPU_S), tmp_path, quick)
    assert [row.state for row in study_of(tmp_path).rows()] == ["finished", "finished"]
    run(spec(study__cpu_budget_s=3.5 * EPOCHS * CPU_S), tmp_path, quick)
    costs = [row.cost and row.cost.total.cpu_s / CPU_S for row in study_of(tmp_path).rows()]
    assert costs == [EPOCHS, EPOCHS, EPOCHS, EPOCHS / 2]


def test_a_time_budget_holds_over_restarts(tmp_path: Path) -> None:
    """What an interrupted command searched is counted, and the time between two commands is not."""
    timed = spec(study__timeout_s=3 * EPOCHS * WALL_S)
    calls = itertools.count()
    with pytest.raises(Interrupted):
        run(timed, tmp_path, Costly(), stopping=lambda: next(calls) > EPOCHS + 4)
    searched = study_of(tmp_path).wall_s()
    assert 0 < searched < 2 * EPOCHS * WALL_S
    NOW["wall"] += 10_000  # nobody searches meanwhile
    result = run(timed, tmp_path, Costly())
    assert result.ended_by == "study.timeout_s"
    assert study_of(tmp_path).wall_s() == 3 * EPOCHS * WALL_S
    assert result.trials["finished"] == 2 and result.trials["waiting"] == 1


TRIAL_S = EPOCHS * WALL_S


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_whole_sweep_fits_into_its_time(tmp_path: Path, interrupted: bool) -> None:
    """Room for the confirmation is left, one training is known to take as long as the other; and over restarts."""
    whole = spec(study__total_s=13.8 * TRIAL_S + END_S, study__n_trials=50, confirm={"top": 1, "seeds": 3})
    if interrupted:
        calls = itertools.count()
        with pytest.raises(Interrupted):
            run(whole, tmp_path, Costly(), stopping=lambda: next(calls) > EPOCHS + 4)
        NOW["wall"] += 10_000
    events: list[Event] = []
    result = run(whole, tmp_path, Costly(), watch=events.append)
    assert result.ended_by == "study.total_s"
    assert result.trials == {"finished": 10}, "no trial is begun in half of its time"
    assert [len(row["values"]) for row in result.confirmed if not row["baseline"]] == [3]
    assert sum(result.phases.values()) <= 13.8 * TRIAL_S + END_S
    assert f"study.total_s = {13.8 * TRIAL_S + END_S:g} is exhausted (" in result.verdict
    assert not said(events, "are left to confirm")
    assert run(whole, tmp_path, Costly()).ended_by == "study.total_s"
    assert len(runs(tmp_path, "confirm")) == 3 * len(result.confirmed)


def test_less_is_confirmed_where_time_is_short(tmp_path: Path) -> None:
    """The first trial took so long that it cannot be trained twice more; that is said with the figures."""
    events: list[Event] = []
    short = spec(study__total_s=2 * TRIAL_S + END_S, study__n_trials=2, confirm={"top": 3, "seeds": 2})
    result = run(short, tmp_path, Costly(), watch=events.append)
    (text,) = said(events, "are left to confirm")
    assert "3 configurations with 2 seeds each would take about" in text and text.endswith("confirmed are 1 with 1")
    assert result.model == "models:/surface/1"
    assert [len(row["values"]) for row in result.confirmed if not row["baseline"]] == [1]


def test_a_network_that_the_time_ends_is_kept_and_confirmed_as_it_stands(tmp_path: Path) -> None:
    """After two of six epochs a third one would leave no time to confirm it; its confirmation has two epochs too."""
    events: list[Event] = []
    result = run(spec(study__total_s=TRIAL_S), tmp_path, Costly(), watch=events.append)
    assert result.trials == {"finished": 1} and result.ended_by == "study.total_s"
    (row,) = study_of(tmp_path).rows()
    assert row.epochs == row.attrs["ended_after"] == 2
    assert sum(result.phases.values()) <= TRIAL_S
    assert said(events, "trial 0 ends with epoch 2: another one would leave no time to confirm it (study.total_s)")
    assert not said(events, "are left to confirm")
    (trained,) = runs(tmp_path, "trial")
    assert trained.info.status == "FINISHED" and trained.data.tags["forge.ended_after"] == "2"
    assert "ended after epoch 2, for the time of the whole sweep" in trained.data.tags["forge.events"]
    (again,) = [each for each in runs(tmp_path, "confirm") if "baseline" not in each.data.params]
    assert again.data.metrics["epochs_run"] == 2 and again.data.tags["forge.ended_after"] == "2"
    assert not list(tmp_path.glob("checkpoints/*"))
    larger = run(spec(study__total_s=20 * TRIAL_S, study__n_trials=3), tmp_path, Costly())
    assert larger.trials == {"finished": 3} and [r.epochs for r in study_of(tmp_path).rows()] == [2, EPOCHS, EPOCHS]


@pytest.mark.parametrize(("better", "epochs"), [(True, 4), (False, None)])
def test_of_later_trials_the_best_one_is_kept_and_others_wait(
    tmp_path: Path, better: bool, epochs: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second trial is cut off where there is no time to confirm it after one epoch more."""
    seen: list[Any] = []

    def height(params: Any) -> float:
        seen.append(params)
        return 0.3 if params == seen[0] else 0.9 if better else 0.2

    monkeypatch.setattr(surface, "height", height)
    run(spec(study__total_s=2.7 * TRIAL_S + END_S), tmp_path, Costly())
    first, second = study_of(tmp_path).rows()
    assert (first.state, first.attrs.get("ended_after")) == ("finished", None)
    assert second.state == ("finished" if better else "waiting") and second.attrs.get("ended_after") == epochs


def test_a_network_that_the_time_ended_is_made_again_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one, whose epochs take a minute each by the clock of the budgets."""
    (tmp_path / "rows.csv").write_text(load_breast_cancer(as_frame=True).frame.iloc[:300].to_csv(index=False))
    (tmp_path / "short.toml").write_text(SHORT)
    real_run = trial.run

    def slow(spec: Any, splits: Any, params: Any, seed: int, on_epoch: Any, **options: Any) -> TrialResult:
        def minute(epoch: int, metrics: dict[str, float]) -> bool:
            advance(60)
            return bool(on_epoch(epoch, metrics))

        return real_run(spec, splits, params, seed, minute, **options)

    monkeypatch.setattr(trial, "run", slow)
    result = sweep.run(load(tmp_path / "short.toml"), store=tmp_path / "mlruns")
    monkeypatch.undo()
    assert result.trials == {"finished": 1} and not result.winner["baseline"]
    found = reproduce.reproduce(result.model, store=tmp_path / "mlruns")
    assert found.verdict.word == "exact", found.verdict.text


SHORT = """
name = "short"
[data]
path = "rows.csv"
target = "target"
task = "binary"
[model]
builder = "mlp"
[model.search]
width = { type = "int", low = 8, high = 32 }
learning_rate = 0.01
batch_size = 16
[objective]
metric = "val_auc"
[study]
total_s = 400
epochs = 20
[baselines]
kinds = ["constant"]
[ensemble]
ship = "never"
"""


def test_a_time_in_which_no_network_can_be_confirmed_ends_with_the_best_baseline(tmp_path: Path) -> None:
    events: list[Event] = []
    result = run(spec(study__total_s=WALL_S * 1.5 + END_S), tmp_path, Costly(), watch=events.append)
    (text,) = said(events, "no trial finished")
    assert "only the best baseline is confirmed" in text and "trial 0 took" in text
    assert result.trials == {"waiting": 1} and result.winner["baseline"] and result.model == "models:/surface/1"
    assert "no network could be confirmed" in result.verdict


@pytest.mark.slow
def test_what_a_killed_sweep_had_spent_counts_for_the_next_one(tmp_path: Path) -> None:
    """`kill -9` in the third epoch: what was trained is lost, is paid for, and stands in the report as lost."""
    assert Forked("tests.test_budget", tmp_path, 3).wait() == -signal.SIGKILL
    result = run(spec(study__cpu_budget_s=(3 + EPOCHS) * CPU_S), tmp_path, Costly())
    assert result.trials == {"finished": 1} and result.ended_by == "study.cpu_budget_s"
    (row,) = study_of(tmp_path).rows()
    assert row.attempt == 2 and row.cost == TrialCost(
        total=Cost((3 + EPOCHS) * WALL_S, (3 + EPOCHS) * CPU_S), lost=Cost(3 * WALL_S, 3 * CPU_S), epochs=EPOCHS
    )
    table = {cost["state"]: (cost["count"], cost["cpu_s"]) for cost in result.costs}
    assert table == {"finished": (1, EPOCHS * CPU_S), "lost": (1, 3 * CPU_S)}
    assert study_of(tmp_path).wall_s() == (3 + EPOCHS) * WALL_S


def test_no_trial_finished_within_the_budget_is_an_error_with_the_price(tmp_path: Path) -> None:
    """And raising the budget goes on with the trial that was cut off."""
    small = spec(study__cpu_budget_s=2 * CPU_S)
    for _ in range(2):
        with pytest.raises(
            SweepStopped, match=r"no trial finished: trial 0 took 20\.0 s \(16\.0 CPU-.*for 2 epochs"
        ) as e:
            run(small, tmp_path, Costly())
    assert "raise study.cpu_budget_s" in e.value.hint
    result = run(spec(study__n_trials=1, study__cpu_budget_s=100), tmp_path, Costly())
    assert result.trials == {"finished": 1}


@pytest.mark.parametrize("metric", ["val_auc", "val_log_loss"])
def test_a_plateau_ends_the_search_in_either_direction(tmp_path: Path, metric: str) -> None:
    """As many trials as were given brought no gain, and one more was not begun."""
    flat = spec(study__n_trials=40, study__plateau_trials=4, study__plateau_delta=0.02, objective__metric=metric)
    result = run(flat, tmp_path, Costly())
    values = [value for _, value in study_of(tmp_path).objectives()]
    assert result.ended_by == "study.plateau_trials" and len(values) == sum(result.trials.values()) < 40
    sign = -1 if metric == "val_log_loss" else 1
    best, without = -9.0, 0
    for value in values:
        assert without < 4 and value is not None
        best, without = (sign * value, 0) if sign * value > best + 0.02 else (best, without + 1)
    assert without == 4


@pytest.mark.slow
def test_a_budget_over_all_workers_is_kept_to_within_an_epoch_of_each(tmp_path: Path) -> None:
    """Their CPU-seconds are measured in their own processes; nobody begins another trial."""
    events: list[Event] = []
    limited = processes(2, study__n_trials=50, study__cpu_budget_s=5 * EPOCHS * CPU_S)
    result = run(limited, tmp_path, Costly(0.02), watch=events.append)
    rows = study_of(tmp_path).rows()
    spent = sum(row.cost.total.cpu_s for row in rows if row.cost is not None)
    assert 5 * EPOCHS * CPU_S <= spent <= (5 * EPOCHS + 1) * CPU_S
    assert spent == CPU_S * epochs_heard(tmp_path)
    assert {row.state for row in rows} <= {"finished", "waiting"} and result.ended_by == "study.cpu_budget_s"
    assert len(said(events, "is exhausted")) == 1
    waiting = sum(row.state == "waiting" for row in rows)
    assert sum(r.info.status == "SCHEDULED" for r in runs(tmp_path, "trial")) == waiting
    assert run(processes(2, study__n_trials=len(rows)), tmp_path, Costly()).trials == {"finished": len(rows)}


@pytest.mark.slow
def test_a_time_budget_ends_the_trials_of_all_workers(tmp_path: Path) -> None:
    """The sweep's own clock moves with each epoch that it hears of."""

    def watch(event: Event) -> None:
        if event.kind == "epoch":
            NOW["wall"] += 1.0

    limited = processes(2, study__n_trials=50, study__timeout_s=4.0 * EPOCHS)
    result = run(limited, tmp_path, fake_run(0.02), watch=watch)
    assert 4 * EPOCHS <= epochs_heard(tmp_path) <= 4 * EPOCHS + 2
    assert result.ended_by == "study.timeout_s" and result.trials["finished"] >= 3


@pytest.mark.slow
def test_a_killed_worker_costs_what_it_had_said(tmp_path: Path) -> None:
    """Each trial dies once, after its second epoch."""
    marks = tmp_path / "marks"
    marks.mkdir()
    result = run(processes(2, study__n_trials=3), tmp_path / "store", Costly(marks=marks, kill_after=2))
    table = {cost["state"]: (cost["count"], cost["cpu_s"]) for cost in result.costs}
    assert table == {"finished": (3, 3 * EPOCHS * CPU_S), "lost": (3, 3 * 2 * CPU_S)}


def test_a_training_that_is_called_again_with_a_smaller_batch_costs_both_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in the third epoch; from the beginning again, the first two are lost."""
    monkeypatch.setattr(trial, "can_halve", lambda params, halvings: halvings < 2)
    full = itertools.count()

    @dataclass(frozen=True)
    class Hungry(Costly):
        def die(self, epoch: int, seed: int) -> None:
            if next(full) == 1:
                raise TrialFailed("out-of-memory", "it did not fit")

    run(spec(study__n_trials=1), tmp_path, Hungry())
    (row,) = study_of(tmp_path).rows()
    assert row.state == "finished" and row.attempt == 1
    assert row.cost == TrialCost(
        Cost((2 + EPOCHS) * WALL_S, (2 + EPOCHS) * CPU_S), lost=Cost(2 * WALL_S, 2 * CPU_S), epochs=EPOCHS
    )


def test_gpu_seconds_are_seconds_times_the_part_that_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "gpus_held", lambda spec, gpus, n: 0.5)
    monkeypatch.setattr(STORY, "refuse_gpu_budget", lambda experiment, gpus: None)  # this machine has none
    result = run(spec(study__gpu_budget_s=1.5 * EPOCHS * WALL_S / 2), tmp_path, Costly())
    assert result.trials == {"finished": 1, "waiting": 1} and result.ended_by == "study.gpu_budget_s"
    assert sum(cost["gpu_s"] for cost in result.costs) == 1.5 * EPOCHS * WALL_S / 2


def test_a_budget_of_gpu_seconds_without_a_gpu_is_refused() -> None:
    with pytest.raises(InputError, match=r"study\.gpu_budget_s = 5, but no trial holds a GPU"):
        STORY.refuse_gpu_budget(spec(study__gpu_budget_s=5.0), ())
    STORY.refuse_gpu_budget(spec(study__gpu_budget_s=5.0), ("one",))
    STORY.refuse_gpu_budget(spec(study__gpu_budget_s=5.0, workers={"kind": "ray", "gpus": 0.5}), ())


def test_the_part_of_a_gpu_that_a_worker_holds() -> None:
    several = WorkersSpec(kind="processes", per_gpu=2)
    assert pool.gpus_held(WorkersSpec(), 2, 1) == 2.0
    assert pool.gpus_held(several, 2, 4) == 0.5
    assert pool.gpus_held(several, 1, 4) == 0.25, "more workers than places share what there is"
    assert pool.gpus_held(several, 0, 4) == 0.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with a pruned, a waiting and several finished trials."""
    folder = tmp_path_factory.mktemp("costs") / "mlruns"
    with pytest.MonkeyPatch.context() as patch, no_network(Costly()):
        patch.setattr(budget, "CLOCKS", CLOCKS)
        sweep.run(experiment(study__cpu_budget_s=3.5 * EPOCHS * CPU_S), store=folder)
    return folder


def invoke(*words: str) -> str:
    """Standard output of a command that ends well."""
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_status_trials_and_report_show_what_trials_cost(store: Path, tmp_path: Path) -> None:
    """Per trial and per state, for people and for machines, with the budget that ended the search."""
    where = ("surface", "--store", str(store))
    status = json.loads(invoke("status", *where, "--json"))
    rows = json.loads(invoke("trials", *where, "--json"))
    assert status["ended_by"]["key"] == "study.cpu_budget_s"
    assert status["searched_s"] == 3.5 * EPOCHS * WALL_S
    spent = Counter({cost["state"]: cost["cpu_s"] for cost in status["cost"]})
    by_hand = Counter[str]()
    for row in rows:
        assert row["cost"]["cpu_s"] == CPU_S * row["epochs"]
        by_hand[row["state"]] += row["cost"]["cpu_s"]
    assert spent == by_hand and "pruned" in spent
    assert sum(cost["share"] for cost in status["cost"]) == pytest.approx(1, abs=1e-3)
    text = invoke("status", *where)
    assert "study.cpu_budget_s = 168 is exhausted" in text and "CPU s" in text
    assert f"{by_hand['pruned']:.1f}" in text
    assert "CPU s" in invoke("trials", *where)
    invoke("report", *where, "-o", str(tmp_path / "report.html"))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Cost</h2>" in html and f"<td>{by_hand['pruned']:.1f}</td>" in html and "is exhausted" in html


def test_cpu_seconds_are_logged_beside_the_others(store: Path) -> None:
    for child in runs(store, "trial"):
        if child.info.status != "SCHEDULED":
            assert child.data.metrics["cpu_seconds"] == CPU_S * child.data.metrics["epochs_run"]


def test_a_short_trial_writes_its_cost_with_its_end_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study's database is asked for nothing that it was not asked before."""
    monkeypatch.setattr(budget, "CLOCKS", budget.Clocks(lambda: 0.0, lambda: 0.0))
    written: list[int] = []
    monkeypatch.setattr(Study, "spend", lambda study, number, cost: written.append(number))
    result = run(spec(study__n_trials=2), tmp_path, fake_run())
    assert result.trials == {"finished": 2} and not written
    assert all(row.cost is not None for row in study_of(tmp_path).rows())


def test_checkpoints_of_trials_that_wait_are_kept(tmp_path: Path) -> None:
    """They go on from there once the budget is raised; all else goes."""

    @dataclass(frozen=True)
    class Saving(Costly):
        def die(self, epoch: int, seed: int) -> None:
            folder = tmp_path / "checkpoints" / "surface"
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("trial-0000.progress", "trial-0001.progress", ".trial-0001.partial", "confirm-0000"):
                (folder / name).touch()

    run(spec(study__cpu_budget_s=1.5 * EPOCHS * CPU_S), tmp_path, Saving())
    left = {path.name for path in (tmp_path / "checkpoints" / "surface").iterdir()}
    assert left == {"trial-0001.progress", ".trial-0001.partial"}


def test_what_another_process_spends_on_the_same_study_counts(tmp_path: Path) -> None:
    """Within the seconds after which it is looked at."""
    data = {"version": "v", "digest": "d" * 64, "split_digest": "s" * 64}
    limited = spec(study__cpu_budget_s=100, study__timeout_s=1e6)
    here, there = (open_study(limited, dataset=data, store=tmp_path) for _ in range(2))
    budget = Budget(here, here.resolved["study"], lambda text: None, CLOCKS)
    asked = there.ask()
    assert asked is not None and not budget.is_over()
    there.spend(asked.number, TrialCost(Cost(10, 60), epochs=1))
    there.note("search:there", {"began": 0.0, "seconds": 33.0})
    assert not budget.is_over() and budget.spent == Spent()
    NOW["wall"] += 6
    assert not budget.is_over() and budget.spent == Spent(wall_s=33, cpu_s=60)
    there.tell(asked.number, "finished", 0.5, attrs={"forge.cost": TrialCost(Cost(20, 120)).to_dict()})
    NOW["wall"] += 6
    assert budget.is_over()


def test_untuned_baselines_have_a_tenth_of_the_whole_time_unless_they_are_given_one() -> None:
    assert spec().first_look_s == 3600 and spec(study__total_s=90).first_look_s == 9
    assert spec(study__total_s=90, study__trial_timeout_s=5).first_look_s == 5
    assert spec(study__total_s=90, baselines__timeout_s=50).first_look_s == 50


def test_plateau_delta_alone_is_refused_and_budgets_may_change_between_runs() -> None:
    with pytest.raises(ExperimentError, match=r"study\.plateau_trials: expected a number of trials, since"):
        spec(study__plateau_delta=0.1)
    with pytest.raises(ExperimentError, match=r"study\.cpu_budget_s"):
        spec(study__cpu_budget_s=-1)
    changed = {
        "timeout_s": 1.0,
        "total_s": 9.0,
        "cpu_budget_s": 1.0,
        "gpu_budget_s": 1.0,
        "plateau_trials": 3,
        "plateau_delta": 0.1,
    }
    assert {f"study.{key}" for key in changed} < set(BUDGET_FIELDS)
    assert spec(**{f"study__{key}": value for key, value in changed.items()}).contract() == spec().contract()


def test_each_budget_is_over_when_it_is_used_up() -> None:
    assert over({}, Spent(1e9, 1e9, 1e9, 10**6)) is None
    for key, spent in {
        "timeout_s": Spent(wall_s=5),
        "cpu_budget_s": Spent(cpu_s=5),
        "gpu_budget_s": Spent(gpu_s=5),
        "plateau_trials": Spent(without_gain=5),
        "total_s": Spent(total_s=2, end_s=2, next_s=1),
    }.items():
        assert over({key: 6}, spent) is None
        found = over({key: 5}, spent)
        assert found is not None and found.key == f"study.{key}" and f"study.{key} = 5 is exhausted" in found.text


def test_pruned_trials_count_towards_a_plateau_and_failed_ones_do_not() -> None:
    """A gain is measured from the last gain, so that many small steps add up to one."""
    progress = Progress("minimize", 0.1)
    found = []
    for number, value in enumerate([None, 1.0, 0.95, None, 0.89, 0.85, 0.8, 2.0]):
        progress.take(number, value)
        progress.take(number, value)
        found.append(progress.without_gain)
    assert found == [0, 0, 1, 2, 0, 1, 2, 3]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=8))
def test_wall_clock_is_counted_once_where_commands_overlap(sessions: list[tuple[int, int]]) -> None:
    covered = {second for began, seconds in sessions for second in range(began, began + seconds)}
    assert union_s([{"began": began, "seconds": seconds} for began, seconds in sessions]) == len(covered)


@given(st.integers(0, 20), st.integers(0, 20))
def test_epochs_that_are_trained_again_are_lost_once(known: int, epoch: int) -> None:
    cost = TrialCost(Cost(100.0 + known, 50.0, 25.0), Cost(100.0), known)
    resumed = cost.resumed_at(epoch)
    assert resumed.total == cost.total and resumed.epochs == min(known, epoch)
    assert resumed.kept.cpu_s == pytest.approx(50.0 * (1 if epoch >= known else epoch / known))
    assert TrialCost.of(json.loads(json.dumps(resumed.to_dict()))).to_dict() == resumed.to_dict()


if __name__ == "__main__":
    budget.CLOCKS = budget.Clocks(fake_wall, fake_cpu, fake_wall)
    with no_network(Costly(kill_after=int(sys.argv[2]))):
        sweep.run(spec(), store=Path(sys.argv[1]))
