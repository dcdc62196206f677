"""Each rule of the audit: a case that triggers it, and a near miss that does not; and real data that passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forge_sweep import sources
from forge_sweep.checks.audit import RULES, Audit, audit, histograms_html
from forge_sweep.checks.findings import Finding, errors
from forge_sweep.experiment import DataSpec, PreprocessingSpec
from forge_sweep.sources.assemble import assemble
from forge_sweep.sources.base import Dataset, Split

N_TRAIN, N_VALID, N_TEST = 400, 100, 100
N = N_TRAIN + N_VALID + N_TEST
ROLES = np.repeat(np.array([0, 1, 2], dtype=np.int8), [N_TRAIN, N_VALID, N_TEST])
VALID, TEST = slice(N_TRAIN, N_TRAIN + N_VALID), slice(N_TRAIN + N_VALID, N)

Change = Callable[[pd.DataFrame], pd.DataFrame]


def table() -> pd.DataFrame:
    """Clean rows, the first 400 train, then 100 valid and 100 test: nothing to find. ``x`` says something of ``y``."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "x": rng.normal(size=N) + np.tile([0, 0.7], N // 2),
            "n": rng.integers(0, 9, N),
            "text": rng.choice(["a", "b", "c"], N),
            "flag": rng.random(N) < 0.5,
            "y": np.tile([0, 1], N // 2),
        }
    )
    return frame.assign(price=frame["x"] + rng.normal(size=N))


def dataset(frame: pd.DataFrame, *, target: Any = "y", task: str = "binary", **declared: Any) -> Dataset:
    spec = DataSpec(source="file", path="data.csv", target=target, task=task, **declared)  # type: ignore[arg-type]
    return assemble(frame, spec, name="data", source="data.csv", seed=0, roles=ROLES)


def look(frame: pd.DataFrame, *, scaled: bool = True, task: Any = "binary", **declared: Any) -> Audit:
    scaler: Any = "standard" if scaled else "none"
    return audit(dataset(frame, task=task, **declared), task, PreprocessingSpec(scaler=scaler), scaled=scaled)


def found(report: Audit, code: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.code == code]


def only(report: Audit, code: str, severity: str, subject: str) -> Finding:
    """The one finding of a rule, which names a fix under a TOML section."""
    (finding,) = found(report, code)
    assert (finding.severity, finding.subject) == (severity, subject)
    assert "[" in finding.fix or "file" in finding.fix
    assert any(character.isdigit() for character in finding.seen) or "no " in finding.seen
    return finding


def spoil(frame: pd.DataFrame, column: str, rows: Any, value: Any) -> pd.DataFrame:
    """A copy with other values in some rows."""
    frame = frame.copy()
    if isinstance(value, float) and frame[column].dtype.kind in "ib":
        frame[column] = frame[column].astype(float)
    frame.loc[frame.index[rows], column] = value
    return frame


def test_clean_data_gives_no_finding() -> None:
    assert look(table()).findings == ()
    assert look(table(), target="price", task="regression").findings == ()


# --- targets and single columns


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("target", "task"), [("y", "binary"), ("price", "regression")])
def test_a_missing_or_infinite_target_is_an_error_with_its_source_rows(value: float, target: str, task: str) -> None:
    frame = spoil(spoil(table(), target, [3, 7], value), target, [N_TRAIN + 2], value)
    train, valid = found(look(frame, target=target, task=task), "target-missing")
    assert (train.severity, train.subject, train.rows, valid.rows) == ("error", target, (3, 7), (N_TRAIN + 2,))
    assert "2 of 400 train rows" in train.seen


def test_infinite_features_are_an_error_and_missing_ones_are_not() -> None:
    finding = only(look(spoil(table(), "x", [5, 9], -np.inf)), "infinite-values", "error", "x")
    assert finding.rows == (5, 9)
    assert not look(spoil(table(), "x", [5, 9], np.nan)).findings


def test_infinite_values_in_valid_are_found_too() -> None:
    assert found(look(spoil(table(), "x", [N_TRAIN], np.inf)), "infinite-values")[0].rows == (N_TRAIN,)


def test_unscaled_values_beyond_ten_are_an_error_that_names_the_range() -> None:
    frame = table().assign(amount=np.linspace(-3, 2500, N))
    finding = only(look(frame, scaled=False), "unscaled-range", "error", "amount")
    assert "from -3 to " in finding.seen
    assert 'scaler = "none"' in finding.seen
    assert 'scaler = "standard" under [preprocessing]' in finding.fix
    assert not found(look(frame, scaled=True), "unscaled-range")


def test_unscaled_values_within_ten_pass() -> None:
    frame = table().assign(amount=np.random.default_rng(1).permutation(np.linspace(-10, 10, N)))
    assert not look(frame, scaled=False).findings


def test_a_value_that_hides_all_others_behind_a_scaler_is_a_warning_that_names_its_row() -> None:
    finding = only(look(spoil(table(), "x", [7], 1e9)), "outlying-value", "warning", "x")
    assert finding.rows == (7,) and "1e+09" in finding.seen
    assert not found(look(spoil(table(), "x", [7], 500.0)), "outlying-value")


def test_a_word_in_a_column_of_numbers_is_named_instead_of_dropping_the_column() -> None:
    numbers = table()["x"].astype(str)
    frame = table().assign(amount=numbers.where(numbers.index != 3, "unknown"))
    report = look(frame)
    finding = only(report, "numbers-as-text", "warning", "amount")
    assert finding.rows == (3,) and "'unknown'" in finding.seen and "399 of 400" in finding.seen
    assert not found(report, "id-like")
    assert not found(look(table().assign(code=table()["n"].astype(str))), "numbers-as-text")


def test_a_scaler_searched_with_none_among_its_choices_is_named_where_it_stands() -> None:
    data = dataset(table().assign(amount=np.linspace(0, 99, N)))
    (finding,) = errors(audit(data, "binary", PreprocessingSpec(scaler="robust"), scaled=False).findings)
    assert 'scaler = "none" is a choice under [model.search]' in finding.seen


def test_a_feature_without_any_value_is_an_error_and_a_rare_one_a_warning() -> None:
    only(look(table().assign(gone=np.nan)), "all-missing", "error", "gone")
    report = look(spoil(table(), "x", slice(3, None), np.nan))
    assert not errors(report.findings)
    only(report, "many-missing", "warning", "x")


def test_half_missing_is_not_many() -> None:
    assert not found(look(spoil(table(), "x", slice(0, None, 2), np.nan)), "many-missing")


def test_a_constant_feature_is_a_warning_and_a_constant_with_gaps_is_not() -> None:
    finding = only(look(table().assign(c=1.5)), "constant-feature", "warning", "c")
    assert finding.fix == 'drop = ["c"] under [data]'
    assert not found(look(spoil(table().assign(c=1.5), "c", slice(0, None, 7), np.nan)), "constant-feature")


def test_equal_features_are_a_warning_and_one_differing_row_is_not() -> None:
    twin = table()["x"]
    finding = only(look(table().assign(copy=twin)), "duplicate-features", "warning", "copy")
    assert "'x'" in finding.seen
    assert not look(spoil(table().assign(copy=twin), "copy", [11], 0.5)).findings


def test_text_that_only_renames_the_values_of_another_column_is_its_duplicate() -> None:
    frame = table().assign(code=table()["text"].map({"a": "10", "b": "20", "c": "30"}))
    only(look(frame), "duplicate-features", "warning", "code")


@pytest.mark.parametrize(
    "values",
    [np.arange(N) + 100_000, np.random.default_rng(1).permutation(N), [f"user-{i}" for i in range(N)]],
    ids=["counting", "unique", "text"],
)
def test_a_column_that_names_its_row_is_a_warning(values: Any) -> None:
    report = look(table().assign(id=values))
    finding = only(report, "id-like", "warning", "id")
    assert "(100.0%)" in finding.seen
    assert 'key = "id"' in finding.fix
    assert not found(report, "unseen-categories")


@pytest.mark.parametrize(
    "values",
    [np.random.default_rng(1).normal(size=N), np.arange(N) // 2, [f"user-{i // 2}" for i in range(N)]],
    ids=["continuous", "repeating integers", "repeating text"],
)
def test_continuous_or_recurring_values_are_no_id(values: Any) -> None:
    assert not found(look(table().assign(id=values)), "id-like")


# --- leaks


@pytest.mark.parametrize(
    "disguise",
    [
        lambda y: y,
        lambda y: 1 - y,
        lambda y: y * 250.0 - 7,
        lambda y: y.astype(bool),
        lambda y: y.map({0: "no", 1: "yes"}),
        lambda y: y.where(y == 1),
        lambda y: y.where(np.arange(N) % 3 > 0),
    ],
    ids=["equal", "flipped", "affine", "boolean", "words", "missing is zero", "a third missing"],
)
def test_a_feature_that_is_the_target_is_an_error_that_names_it(disguise: Callable[[Any], Any]) -> None:
    report = look(table().assign(settled=disguise(table()["y"])))
    assert 'drop = ["settled"]' in only(report, "target-leak-copy", "error", "settled").fix
    assert not found(report, "target-leak")


@pytest.mark.parametrize("disguise", [lambda p: p, lambda p: -3 * p + 1, np.exp], ids=["equal", "affine", "monotone"])
def test_a_feature_that_rises_or_falls_with_a_regression_target_is_an_error(disguise: Callable[[Any], Any]) -> None:
    frame = table()
    report = look(frame.assign(settled=disguise(frame["price"])), target="price", task="regression")
    only(report, "target-leak-copy", "error", "settled")


def test_a_target_copy_with_a_few_wrong_rows_is_a_leak_by_prediction() -> None:
    y = table()["y"]
    report = look(spoil(table().assign(near=y), "near", [0, 1], 0.5))
    assert not found(report, "target-leak-copy")
    only(report, "target-leak", "error", "near")


def test_a_feature_that_decides_the_target_without_copying_it_is_an_error() -> None:
    rng = np.random.default_rng(2)
    frame = table()
    only(look(frame.assign(band=frame["y"] * 2 - 1 + rng.uniform(-0.9, 0.9, N))), "target-leak", "error", "band")
    only(look(frame.assign(edge=np.abs(frame["y"] - rng.uniform(0, 0.4, N)) * 9)), "target-leak", "error", "edge")
    code = frame["y"].astype(str) + rng.choice(list("pqr"), N)
    only(look(frame.assign(code=code)), "target-leak", "error", "code")


def test_a_feature_that_nearly_decides_the_target_is_a_warning_and_a_good_one_is_nothing() -> None:
    frame = table()
    noise = np.random.default_rng(3).normal(size=N)
    finding = only(look(frame.assign(near=frame["y"] * 4.5 + noise)), "target-leak", "warning", "near")
    assert "AUC 0.99" in finding.seen
    assert not found(look(frame.assign(good=frame["y"] * 3 + noise)), "target-leak")


def test_a_regression_target_with_a_little_noise_is_a_leak_and_a_good_feature_is_not() -> None:
    frame = table()
    noise = np.random.default_rng(3).normal(size=N)

    def with_noise(size: float) -> Audit:
        return look(frame.assign(near=frame["price"] + size * noise), target="price", task="regression")

    only(with_noise(1e-3), "target-leak", "error", "near")
    only(with_noise(1e-2), "target-leak", "warning", "near")
    assert not found(with_noise(0.2), "target-leak")


def test_a_class_number_gives_one_hot_targets_away() -> None:
    label = np.random.default_rng(4).integers(0, 3, N)
    frame = pd.concat([table(), pd.DataFrame(np.eye(3, dtype=int)[label], columns=["u", "v", "w"])], axis=1)
    report = look(frame.assign(label=label), target=["u", "v", "w"], task="multiclass")
    only(report, "target-leak", "error", "label")


def test_each_label_of_a_multilabel_target_is_guarded() -> None:
    rng = np.random.default_rng(5)
    frame = table().assign(u=rng.integers(0, 2, N), v=rng.integers(0, 2, N))
    report = look(frame.assign(same=frame["v"]), target=["u", "v"], task="multilabel")
    assert "'v'" in only(report, "target-leak-copy", "error", "same").seen


# --- between the splits


def copy_rows(frame: pd.DataFrame, to: slice, share: int, start: int = 0) -> pd.DataFrame:
    """A copy in which the first ``share`` rows of a split have the features of train rows."""
    frame, features = frame.copy(), [name for name in frame if name != "y"]
    rows = frame.index[to][:share]
    frame.loc[rows, features] = frame.loc[frame.index[start : start + share], features].to_numpy()
    return frame.astype(table().dtypes)


def test_rows_that_stand_in_train_and_valid_are_a_warning_with_their_rows() -> None:
    finding = only(look(copy_rows(table(), VALID, 3)), "duplicated-rows", "warning", "train/valid")
    assert finding.rows == (400, 401, 402)
    assert "3 of 100 valid rows (3.0%)" in finding.seen


def test_rows_that_stand_in_train_and_test_are_shown_by_their_train_rows() -> None:
    finding = only(look(copy_rows(table(), TEST, 2, start=8)), "duplicated-rows", "warning", "train/test")
    assert finding.rows == (8, 9)
    assert "2 of 100 test rows" in finding.seen


def test_more_than_a_fifth_of_duplicated_rows_is_an_error() -> None:
    only(look(copy_rows(table(), VALID, 21)), "duplicated-rows", "error", "train/valid")
    only(look(copy_rows(table(), VALID, 20)), "duplicated-rows", "warning", "train/valid")


def test_twins_that_coarse_features_cannot_avoid_do_not_stop_the_sweep() -> None:
    report = look(table()[["text", "flag", "y"]])
    assert {finding.severity for finding in found(report, "duplicated-rows")} == {"warning"}


def test_a_category_that_train_never_saw_is_a_warning_with_its_rows() -> None:
    finding = only(look(spoil(table(), "text", [N_TRAIN + 1], "new")), "unseen-categories", "warning", "text")
    assert finding.rows == (N_TRAIN + 1,)
    assert "'new' in 1 of 100 valid rows" in finding.seen
    assert not look(spoil(table(), "text", [N_TRAIN + 1], np.nan)).findings


def test_sentences_are_told_from_categories() -> None:
    frame = table()
    frame["text"] = [f"{'word ' * 20}number {row // 2}" for row in range(N)]
    finding = only(look(frame), "unseen-categories", "warning", "text")
    assert finding.fix.startswith('drop = ["text"] under [data], or store its tokens as a column of arrays')
    assert len(finding.seen) < 500


@pytest.mark.parametrize(("positives", "severity"), [(16, "warning"), (24, "info"), (76, "info")])
def test_a_rare_class_is_reported_by_its_share(positives: int, severity: str) -> None:
    rng = np.random.default_rng(6)
    y = np.concatenate([rng.permutation(np.arange(size) < positives * size // 400) for size in (400, 100, 100)])
    finding = only(look(table().assign(y=y.astype(int))), "class-imbalance", severity, "y")
    assert "class 1" in finding.seen
    assert 'class_weight = "balanced" under [model]' in finding.fix
    assert "val_pr_auc" in finding.fix


def test_a_fifth_of_the_rows_is_no_imbalance_and_ten_even_classes_are_none() -> None:
    assert not found(look(table().assign(y=(np.arange(N) % 5 == 0).astype(int))), "class-imbalance")
    assert not look(table().assign(y=np.arange(N) % 10), task="multiclass").findings


def test_a_class_that_valid_lacks_is_a_warning_and_one_that_train_lacks_an_error() -> None:
    frame = table().assign(y=np.arange(N) % 3)
    lacks_valid = frame.assign(y=np.where((ROLES > 0) & (frame["y"] == 2), 1, frame["y"]))
    assert "class 2" in only(look(lacks_valid, task="multiclass"), "class-absent-from-valid", "warning", "y").seen
    lacks_train = frame.assign(y=np.where((ROLES != 1) & (frame["y"] == 2), 1, frame["y"]))
    only(look(lacks_train, task="multiclass"), "class-absent-from-train", "error", "y")


def test_a_class_of_nine_train_rows_is_few_and_one_of_ten_is_not() -> None:
    def with_rare(rows: int) -> pd.DataFrame:
        return table().assign(y=np.where(np.isin(np.arange(N), [*range(rows), 450, 550]), 2, table()["y"]))

    assert "9 train rows: 2" in only(look(with_rare(9), task="multiclass"), "few-rows-per-class", "warning", "y").seen
    assert not found(look(with_rare(10), task="multiclass"), "few-rows-per-class")


def test_class_shares_that_differ_beyond_chance_are_a_warning() -> None:
    def with_share(share: float) -> pd.DataFrame:
        y = np.concatenate([np.arange(300) % 2 == 0, np.tile([True, False], 50), np.arange(100) < 100 * share])
        y = np.concatenate([y, np.tile([True, False], 50)])
        return table().assign(y=y.astype(int))

    finding = only(look(with_share(0.8)), "class-shift", "warning", "y")
    assert "50.0% of train" in finding.seen
    assert "stratify = true" in finding.fix
    assert not found(look(with_share(0.6)), "class-shift")  # 10 points in 100 rows: p = 0.07


@pytest.mark.parametrize("target", ["y", "price"])
def test_a_feature_whose_mean_moves_is_a_warning_and_chance_is_not(target: str) -> None:
    task = "binary" if target == "y" else "regression"

    def moved(by: float, rows: Any = VALID) -> Audit:
        frame = table()
        frame.loc[frame.index[rows], "x"] += by
        return look(frame, target=target, task=task)

    assert "+0." in only(moved(0.8), "mean-shift", "warning", "x").seen
    assert not found(moved(0.1), "mean-shift")
    assert not found(moved(30.0, TEST), "mean-shift"), "the audit looked at test"


def test_a_regression_target_whose_mean_moves_is_a_warning() -> None:
    frame = table()
    frame.loc[frame.index[VALID], "price"] += 2
    only(look(frame, target="price", task="regression"), "mean-shift", "warning", "price")


# --- the audit as a whole


def test_the_audit_never_touches_the_test_rows() -> None:
    class Untouchable(Split):
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"the audit read {name} of test")

    empty = pd.DataFrame()
    data = dataclasses.replace(dataset(table()), _test=Untouchable(empty, empty, np.array([])))
    assert audit(data, "binary", PreprocessingSpec(), scaled=False).findings == ()
    assert "x" in histograms_html(data)


def test_errors_come_first_and_the_same_data_gives_the_same_findings() -> None:
    frame = spoil(table().assign(c=1.5, leak=table()["y"]), "text", [N_TRAIN], "new")
    first, second = look(frame), look(frame)
    assert [finding.severity for finding in first.findings] == ["error", "warning", "warning"]
    assert first.findings == second.findings


def test_many_findings_of_one_rule_end_in_one_that_names_the_rest() -> None:
    frame = table().assign(**{f"c{i}": float(i) for i in range(14)})
    *single, last = found(look(frame), "constant-feature")
    assert len(single) == 10
    assert last.subject == "4 more"
    assert "c10, c11, c12, c13" in last.seen


def test_the_feature_table_has_the_figures_of_the_train_rows() -> None:
    frame = spoil(spoil(table(), "x", [0], np.nan), "x", [1], np.inf)
    features = look(frame).features
    rows: dict[str, dict[str, Any]] = features.to_dict("index")  # type: ignore[assignment]
    train = frame["x"].iloc[2:N_TRAIN].to_numpy()
    assert list(rows) == ["x", "n", "text", "flag", "price"]
    assert list(features) == ["dtype", "min", "max", "mean", "std", "missing", "inf", "distinct"]
    figures = {"min": train.min(), "max": train.max(), "mean": train.mean(), "std": train.std()}
    expected = {"dtype": "float64", **figures, "missing": 1, "inf": 1, "distinct": N_TRAIN - 1}
    assert {**rows["x"], **figures} == expected
    assert [rows["x"][name] for name in figures] == pytest.approx(list(figures.values()))
    assert rows["text"]["distinct"] == 3
    assert np.isnan(rows["text"]["mean"])
    assert rows["flag"]["max"] == 1


def test_every_rule_survives_awkward_columns() -> None:
    frame = table().assign(
        nullable=pd.array([True, False, None] * (N // 3), dtype="boolean"),
        huge=np.linspace(-1, 1, N) * 1e308,
        infinite=np.where(np.arange(N) < N_TRAIN, np.where(np.arange(N) % 3, np.inf, -np.inf), 1.0),
        gone=np.nan,
        none=pd.Series([None] * N, dtype=object),
    )
    for task in ("binary", "regression"):
        data = dataset(frame, task=task)
        assert {f.subject for f in errors(audit(data, task, PreprocessingSpec(), scaled=True).findings)} == {
            "infinite",
            "gone",
            "none",
        }


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("breast_cancer", "binary"),
        ("digits", "multiclass"),
        ("diabetes", "regression"),
        ("iris", "multiclass"),
        ("wine", "multiclass"),
    ],
)
def test_the_sets_of_scikit_learn_pass_whatever_the_split(name: str, task: Any) -> None:
    spec = DataSpec(source="sample", name=name, target=("target",), task=task)
    for seed in range(3):
        data = sources.load(spec, root=Path(), seed=seed)
        assert errors(audit(data, task, PreprocessingSpec(), scaled=True).findings) == ()


def test_rules_are_distinct_functions_with_a_docstring() -> None:
    assert len(set(RULES)) == len(RULES)
    assert all(rule.__doc__ for rule in RULES)


# --- histograms


def test_histograms_show_every_feature_and_the_target_in_one_page_and_print_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    frame = spoil(table(), "x", [3], np.inf).assign(words=np.tile(["$\\frac", "<b>", "名前"], N // 3))
    page = histograms_html(dataset(frame))
    assert all(name in page for name in ("x", "text", "flag", "words"))
    assert page.count("<svg") >= 6
    assert not any(part in page for part in ('src="http', "src='http", '<link rel="stylesheet" href="http'))
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_histograms_of_a_wide_table_stop_at_a_hundred_columns() -> None:
    rng = np.random.default_rng(0)
    wide = pd.DataFrame(rng.integers(0, 2, (N, 120)), columns=[f"bit{i}" for i in range(120)])
    page = histograms_html(dataset(wide.assign(y=table()["y"])))
    assert "bit98" in page
    assert "bit99" not in page
    assert "400 of 400 train rows, 100 columns" in page


# --- rows and labels that do not belong together


def rising(**more: Any) -> pd.DataFrame:
    """Rows of which two columns say a good deal of the target, in the order of the source."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({"a": rng.uniform(1, 9, N), "b": rng.uniform(1, 9, N)})
    return frame.assign(y=(frame["a"] + rng.normal(0, 2, N) > 5).astype(int), **more)


def look_mixed(frame: pd.DataFrame) -> Audit:
    """The audit of rows that were split at random."""
    spec = DataSpec(source="file", path="data.csv", target="y", task="binary")  # type: ignore[arg-type]
    roles = np.random.default_rng(0).permutation(ROLES)
    data = assemble(frame, spec, name="data", source="data.csv", seed=0, roles=roles)
    return audit(data, "binary", PreprocessingSpec(), scaled=True)


@pytest.mark.parametrize(("by", "word", "way"), [(1, "next", "up"), (-1, "previous", "down")])
def test_labels_one_row_off_are_told_from_their_neighbours_rows(by: int, word: str, way: str) -> None:
    frame = rising()
    report = look(frame.assign(y=np.roll(frame["y"], by)))
    finding = found(report, "labels-shifted")[0]
    assert f"the target of the {word} row" in finding.seen and f"one row {way} in the file" in finding.fix
    assert not found(report, "labels-unrelated")
    price = np.roll(frame["a"] + np.random.default_rng(0).normal(size=N), by)
    assert found(look(frame[["a", "b"]].assign(y=price), task="regression"), "labels-shifted")
    assert not found(look(rising()), "labels-shifted")


def test_rows_that_resemble_their_neighbours_are_not_taken_for_shifted_labels() -> None:
    slow = np.sin(np.arange(N) / 20)
    frame = pd.DataFrame({"a": slow + np.random.default_rng(0).normal(0, 0.3, N), "y": (slow > 0).astype(int)})
    assert not found(look(frame), "labels-shifted")


def test_rows_that_repeat_are_not_taken_for_shifted_labels() -> None:
    month = np.arange(N) % 12
    frame = pd.DataFrame({f"m{each}": (month == each).astype(int) for each in range(11)})
    assert not found(look(frame.assign(y=(month == 11).astype(int))), "labels-shifted")


def test_what_was_the_target_a_moment_ago_is_no_shift_where_rows_are_split_by_time() -> None:
    target = np.random.default_rng(0).integers(0, 2, N)
    data = dataset(pd.DataFrame({"last": np.roll(target, 1) + 0.1, "other": rising()["b"], "y": target}))
    codes = {
        split: {each.code for each in audit(data, "binary", PreprocessingSpec(), scaled=True, split=split).findings}
        for split in ("random", "time")
    }
    assert "labels-shifted" in codes["random"] and "labels-shifted" not in codes["time"]


def test_features_that_say_nothing_are_a_warning_and_those_that_matter_together_are_none() -> None:
    frame = rising()
    finding = found(look(frame.assign(y=frame["y"].sample(frac=1, random_state=2).to_numpy())), "labels-unrelated")[0]
    assert finding.severity == "warning" and "none of 2 columns" in finding.seen
    apart = frame.assign(y=((frame["a"] > 5) ^ (frame["b"] > 5)).astype(int))  # neither one says anything alone
    assert not found(look(apart), "labels-unrelated")


def test_a_counter_in_a_sorted_file_is_said_and_one_in_a_shuffled_file_is_not() -> None:
    frame = rising().sort_values("y", ignore_index=True)
    frame["number"] = np.arange(N) * 7.5
    mixed = frame.assign(number=frame["number"].sample(frac=1, random_state=0).to_numpy())
    uneven = frame.drop(columns="number").assign(share=np.sort(np.random.default_rng(0).normal(size=N)) ** 3)
    for rows, wanted in ((frame, ["number"]), (mixed, []), (uneven, []), (rising(number=np.arange(N) * 7.5), [])):
        report = look_mixed(rows)
        assert [each.subject for each in found(report, "row-order")] == wanted


# --- leaks of several columns, and of rows that belong together


@pytest.mark.parametrize("sign", ["/", "*", "-", "+"])
def test_a_target_that_was_computed_of_two_columns_is_a_warning(sign: str) -> None:
    frame = rising(c=np.random.default_rng(9).normal(size=N))
    combined = frame.eval(f"a {sign} b")
    classes = look(frame.assign(y=(combined > combined.median()).astype(int)))
    finding = only(classes, "target-leak-pair", "warning", f"a {sign} b")
    assert finding.fix.startswith('drop = ["a", "b"] under [data]')
    only(look(frame.assign(y=3 * combined), task="regression"), "target-leak-pair", "warning", f"a {sign} b")
    noise = np.random.default_rng(0).normal(0, 0.1 * combined.std(), N)
    assert not found(look(frame.assign(y=(combined + noise > combined.median()).astype(int))), "target-leak-pair")


PATIENT = np.random.default_rng(0).permutation(np.arange(N) // 6)


@pytest.mark.parametrize(
    ("name", "severity"), [(lambda p: p, "warning"), (lambda p: [f"p{each}" for each in p], "error")]
)
def test_rows_of_one_thing_in_two_splits_are_said_with_its_column(name: Callable[[Any], Any], severity: str) -> None:
    """An error where a tree, or the shares of classes per value, tell the target of that column alone."""
    ill = np.random.default_rng(1).integers(0, 2, N)[PATIENT]
    report = look(rising().assign(patient=name(PATIENT), y=ill))
    finding = only(report, "groups-across-splits", severity, "patient")
    assert finding.fix == 'kind = "group" and group = "patient" under [data.split]'
    assert not found(report, "target-leak")
    differs = np.where(np.random.default_rng(2).random(N) < 0.3, 1 - ill, ill)
    assert not found(look(rising().assign(patient=name(PATIENT), y=differs)), "groups-across-splits")


def test_a_score_that_decides_the_target_is_no_group() -> None:
    score = np.random.default_rng(0).integers(0, 100, N)
    report = look(rising().assign(score=score, y=(score > 50).astype(int)))
    assert not found(report, "groups-across-splits") and found(report, "target-leak")
    age = np.sort(np.random.default_rng(0).normal(30, 6, N).astype(int))  # in a file that is sorted by it
    assert not found(look_mixed(rising().assign(age=age, y=(age > 34).astype(int))), "groups-across-splits")


# --- what was done to the rows before they came


def test_rows_without_any_value_are_a_warning_that_names_them() -> None:
    frame = rising()
    frame.loc[[4, 8], ["a", "b"]] = np.nan
    assert only(look(frame), "empty-rows", "warning", "train").rows == (4, 8)
    frame.loc[[4, 8], "b"] = 1.0
    assert not found(look(frame), "empty-rows")


@pytest.mark.parametrize(
    "scale",
    [lambda x, rows: (x - rows.mean()) / rows.std(), lambda x, rows: (x - rows.min()) / (rows.max() - rows.min())],
    ids=["standard", "minmax"],
)
def test_a_scaler_that_saw_all_rows_is_a_warning_and_one_that_saw_train_is_none(scale: Callable[..., Any]) -> None:
    frame = rising(c=np.random.default_rng(9).normal(size=N))
    x = frame[["a", "b", "c"]]
    x.loc[N_TRAIN + 5] = x.max() + 1  # else the range of all rows may be that of train
    report = look(frame.assign(**scale(x, x)))
    assert found(report, "scaled-on-all-rows")[0].seen.startswith("'a', 'b', 'c' have")
    assert not found(look(frame.assign(**scale(x, x[:N_TRAIN]))), "scaled-on-all-rows")


def test_accuracy_is_no_objective_where_one_class_is_nearly_all() -> None:
    data = {share: dataset(rising().assign(y=(np.arange(N) % share == 0).astype(int))) for share in (50, 10)}

    def codes(share: int, metric: str) -> set[str]:
        return {f.code for f in audit(data[share], "binary", PreprocessingSpec(), scaled=True, metric=metric).findings}

    assert "imbalanced-accuracy" in codes(50, "val_accuracy")
    assert "imbalanced-accuracy" not in codes(50, "val_auc") | codes(10, "val_accuracy")
