"""What is learned at ingest is what training uses, to the last bit: parameters, scaled vectors, preprocessor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forge_sweep import trial
from forge_sweep.errors import DataError
from forge_sweep.feature_store import codec, ingest
from forge_sweep.feature_store.connection import Address
from forge_sweep.feature_store.versions import Version
from forge_sweep.preprocessing import (
    Coded,
    Normalization,
    Preprocessor,
    Schema,
    fit_stream,
    from_store,
    name_of,
    preprocessor,
    same_settings,
    streaming,
)
from forge_sweep.sources import Dataset
from tests.postgres import ask, get, put_frame

DEFAULTS: dict[str, Any] = {"scaler": "standard", "impute": "median", "fill": 0.0, "max_categories": 50}
ALL_SETTINGS = [{**DEFAULTS, "scaler": scaler} for scaler in ("standard", "minmax", "none")] + [
    {**DEFAULTS, "impute": "mean"},
    {**DEFAULTS, "impute": "constant", "fill": -1.5, "scaler": "minmax"},
    {**DEFAULTS, "max_categories": 2},
]


def mixed(n: int = 400) -> pd.DataFrame:
    """Every kind of column: with missing values, constant, without any value, large and tiny."""
    rng, i = np.random.default_rng(0), np.arange(n)
    return pd.DataFrame(
        {
            "age": 20 + i * 13 % 60,
            "income": np.where(i % 7 == 3, np.nan, rng.lognormal(8, 2, n)),
            "constant": 3.5,
            "nothing": np.full(n, np.nan),
            "large": rng.normal(size=n) * 1e22,
            "tiny": rng.normal(size=n) * 1e-30,
            "signed": np.where(i % 2, -0.0, 0.0),
            "member": i % 3 == 0,
            "active": pd.array([None if k % 9 == 4 else k % 5 < 3 for k in i], dtype="boolean"),
            "city": [None if k % 11 == 5 else "aabbcde"[k % 7] for k in i],
            "code": i * 7 % 4,
            "y": i % 2,
        }
    )


def put_mixed(folder: Path, store: Address, scaling: dict[str, Any]) -> Version:
    return put_frame(mixed(), folder, store, scaling=scaling, categorical=["code"])


def learned_at_once(dataset: Dataset, scaling: dict[str, Any]) -> Preprocessor:
    """What training from the same rows learns."""
    features = dataset.train.features
    return Preprocessor.fit(features, Schema.learn(features, dataset.categorical), **scaling)


def bits(values: Any) -> bytes:
    return np.ascontiguousarray(values).tobytes()


def same(first: Preprocessor, second: Preprocessor) -> None:
    """Both are equal to the last bit."""
    assert first.schema == second.schema
    assert same_settings(first, {name: getattr(second, name) for name in DEFAULTS})
    assert bits(first.fills) == bits(second.fills)
    assert sorted(first.learned) == sorted(second.learned)
    for name, values in first.learned.items():
        other = second.learned[name]
        assert (values.dtype, values.shape, bits(values)) == (other.dtype, other.shape, bits(other)), name


@pytest.mark.parametrize("scaling", ALL_SETTINGS, ids=str)
def test_a_trial_of_these_settings_uses_what_is_stored(scaling: dict[str, Any], store: Address, tmp_path: Path) -> None:
    """It is also what it would have learned from the rows itself."""
    dataset = get(put_mixed(tmp_path, store, scaling))
    recipe = trial.Recipe(
        task="binary", positive=None, activation=None, loss=None, from_logits=False, class_weight=None, **scaling
    )
    prepared = trial.prepare(dataset, recipe)
    assert prepared.preprocessor is dataset.preprocessor
    same(prepared.preprocessor, learned_at_once(dataset, scaling))


def test_a_trial_of_other_settings_learns_its_own(store: Address, tmp_path: Path) -> None:
    """Where a sweep searches over scalers, say."""
    dataset = get(put_mixed(tmp_path, store, DEFAULTS))
    for changes in ({"scaler": "robust"}, {"impute": "mean"}, {"max_categories": 3}):
        recipe = trial.Recipe(
            **{"task": "binary", "positive": None, "activation": None, "loss": None, "from_logits": False},
            **{"class_weight": None, **DEFAULTS, **changes},
        )
        assert trial.prepare(dataset, recipe).preprocessor is not dataset.preprocessor


@pytest.mark.parametrize("scaling", ALL_SETTINGS, ids=str)
def test_scaled_vectors_are_what_a_model_sees(scaling: dict[str, Any], store: Address, tmp_path: Path) -> None:
    """In every row of every split, read by SQL; in the order of the preprocessor's outputs."""
    version = put_mixed(tmp_path, store, scaling)
    dataset = get(version)
    assert dataset.preprocessor is not None
    query = "SELECT source_row, scaled_vector, normalization_version FROM training_features WHERE split = %s"
    test = dataset.look_at_test("a test", tmp_path / "looks.jsonl")
    for split, name in ((dataset.train, "train"), (dataset.valid, "val"), (test, "test")):
        stored = {row: vector for row, vector, _ in ask(store.conninfo, query, name)}
        expected = dataset.preprocessor.transform(split.features).astype(np.float64)
        assert bits([stored[row] for row in split.rows]) == bits(expected)
    assert ask(store.conninfo, "SELECT DISTINCT normalization_version FROM training_features") == [
        (version.normalization_version,)
    ]


def test_parameters_are_learned_on_training_rows_only(store: Address, tmp_path: Path) -> None:
    """And stand in the table in plain figures, over imputed values."""
    dataset = get(put_mixed(tmp_path, store, DEFAULTS))
    names = "feature_names, means, stds, mins, maxes, fills, row_count"
    ((features, means, stds, mins, maxes, fills, count),) = ask(
        store.conninfo, f"SELECT {names} FROM normalization_params"
    )
    numeric = ["age", "income", "constant", "nothing", "large", "tiny", "signed"]
    train = dataset.train.features[numeric].astype(float)
    assert (features, count) == (numeric, len(train))
    centers = train.median().fillna(0)
    filled = train.fillna(centers)
    assert fills[: len(numeric)] == list(centers)
    assert (mins, maxes) == (list(filled.min()), list(filled.max()))
    np.testing.assert_allclose(means, filled.mean(), rtol=1e-12, atol=1e-12)
    deviations = filled.std(ddof=0)
    np.testing.assert_allclose(stds, deviations.where(deviations > 0, 1.0), rtol=1e-12)


def test_equal_parameters_have_one_name(store: Address, tmp_path: Path) -> None:
    """Whatever the version is called; other settings, or another training row, are another name."""
    first, second = (put_mixed(tmp_path, store, DEFAULTS) for _ in range(2))
    assert first.normalization_version == second.normalization_version
    assert ask(store.conninfo, "SELECT count(*) FROM normalization_params") == [(1,)]
    others = [put_mixed(tmp_path, store, scaling).normalization_version for scaling in ALL_SETTINGS[1:]]
    changed = mixed().assign(age=mixed()["age"] + 1)
    others.append(put_frame(changed, tmp_path, store, categorical=["code"]).normalization_version)
    assert len({first.normalization_version, *others}) == len(ALL_SETTINGS) + 1
    assert first.normalization_version.startswith("standard-median-")


def test_text_only_is_stored_too(store: Address, tmp_path: Path) -> None:
    """No numeric column, so nothing to scale."""
    frame = pd.DataFrame({"city": ["abc"[i % 3] for i in range(60)], "y": np.arange(60) % 2})
    dataset = get(put_frame(frame, tmp_path, store))
    assert dataset.preprocessor is not None
    same(dataset.preprocessor, learned_at_once(dataset, DEFAULTS))


@pytest.mark.parametrize("scaler", ["standard", "minmax"])
def test_numbers_whose_variance_is_infinite_are_refused_by_column(scaler: str, store: Address, tmp_path: Path) -> None:
    frame = pd.DataFrame({"huge": np.where(np.arange(60) % 3, 1.7e308, -1.7e308), "y": np.arange(60) % 2})
    with pytest.raises(DataError, match="too large to be scaled: huge"):
        put_frame(frame, tmp_path, store, scaling={"scaler": scaler})


# Without a server: the stream against all rows at once


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few rows are many blocks, and medians have to be searched for."""
    for module in (preprocessor, streaming):
        monkeypatch.setattr(module, "FIT_ROWS", 7)
    monkeypatch.setattr(streaming, "COLLECTED", 3)


def streamed(frame: pd.DataFrame, sizes: list[int], scaling: dict[str, Any]) -> Normalization:
    """What `fit_stream` learns of numbers that come in blocks of these sizes, again and again."""
    values = frame.to_numpy(np.float64)

    def blocks() -> Iterator[np.ndarray]:
        at = 0
        while at < len(values):
            for size in sizes:
                yield values[at : at + size]
                at += size

    return fit_stream(blocks, [Coded(name, "numeric", "float64") for name in frame], **scaling)


COLUMN = st.lists(
    st.one_of(
        st.floats(-1e100, 1e100), st.sampled_from([0.0, -0.0, 1.0, 5e-324, -5e-324, 1e22]), st.just(float("nan"))
    ),
    min_size=1,
    max_size=60,
)


@given(
    column=COLUMN,
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    scaler=st.sampled_from(["standard", "minmax", "none"]),
    impute=st.sampled_from(["median", "mean", "constant"]),
)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore::RuntimeWarning:sklearn")  # of differences that are tiny, as for any rows
def test_a_stream_is_learned_as_all_rows_at_once_are(
    small_blocks: None, column: list[float], sizes: list[int], scaler: str, impute: str
) -> None:
    """Wherever its blocks end; and it comes back from the store as it was."""
    frame = pd.DataFrame({"x": column, "other": np.arange(len(column)) / 3})
    scaling = {**DEFAULTS, "scaler": scaler, "impute": impute}
    learned = streamed(frame, sizes, scaling)
    same(learned.preprocessor, Preprocessor.fit(frame, Schema.learn(frame), **scaling))
    stored = learned.to_store()
    same(from_store(stored), learned.preprocessor)
    assert name_of(stored) == learned.name


def test_many_rows_are_learned_as_all_at_once() -> None:
    """With the blocks that there really are."""
    values = np.random.default_rng(0).lognormal(size=(150_000, 2))
    values[::13, 1] = np.nan
    frame = pd.DataFrame(values, columns=["x", "z"])
    learned = streamed(frame, [codec.BLOCK_ROWS, 1000], DEFAULTS)
    same(learned.preprocessor, Preprocessor.fit(frame, Schema.learn(frame), **DEFAULTS))


@pytest.mark.parametrize("scaler", ["standard", "minmax"])
def test_many_blocks_are_ingested_as_all_rows_at_once(
    scaler: str, small_blocks: None, store: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "BLOCK_ROWS", 50)
    monkeypatch.setattr(ingest, "BLOCK_ROWS", 50)
    scaling = {**DEFAULTS, "scaler": scaler}
    dataset = get(put_mixed(tmp_path, store, scaling))
    assert dataset.preprocessor is not None
    same(dataset.preprocessor, learned_at_once(dataset, scaling))
