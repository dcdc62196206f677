"""Conformance suites for the interfaces of this package, to be subclassed once per implementation.

Each suite is a pytest class that says in its tests what the interface promises. Needs pytest.

Example::

    class TestCsv(StoredSourceContract):
        def store(self, frame, folder):
            frame.to_csv(folder / "table.csv", index=False)
            return {"path": "table.csv"}
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import pytest

from forge_sweep import exports, models, sources, training
from forge_sweep.bundle import Bundle
from forge_sweep.checks.findings import Finding
from forge_sweep.errors import DataError, InputError
from forge_sweep.experiment import DataSpec, load, parse
from forge_sweep.preflight import preflight
from forge_sweep.preprocessing import FEATURES, Preprocessor, Schema
from forge_sweep.sources import Dataset, Split
from forge_sweep.task import Task

ROWS = 120


class BuilderContract:
    """What every builder promises, at the smallest and the largest point of its search space.

    These are the findings of ``forge-sweep check`` as tests, by default on breast cancer (binary, 30 columns).

    Attributes:
        builder: ``module:function`` as ``model.builder`` has it, or the function itself; None for that of
            ``experiment``.
        experiment: tables of an experiment, each in place of its default; or an experiment file.
        root: folder that the builder and paths start from; default: that of the subclass's file.
        allowed: codes of findings that are meant, such as ``weights-unchanged`` for a gate that starts at 0.

    Example::

        class TestGated(BuilderContract):
            builder = "gated:build"  # gated.py beside this file
            experiment = {"model": {"search": {"units": {"type": "int", "low": 16, "high": 256}}}}
    """

    builder: ClassVar[str | Callable[..., Any] | None] = None
    experiment: ClassVar[Mapping[str, Any] | str | Path] = {}
    root: ClassVar[Path | None] = None
    allowed: ClassVar[Collection[str]] = ()

    @classmethod
    @functools.cache
    def findings(cls) -> tuple[Finding, ...]:
        """What the pre-flight finds, tried once per class."""
        root, builder = cls.root or Path(inspect.getfile(cls)).parent, inspect.getattr_static(cls, "builder")
        builder = getattr(builder, "__func__", builder)  # of a staticmethod
        if callable(builder):
            builder = f"{builder.__module__}:{builder.__name__}"
        named = {} if builder is None else {"builder": builder}
        if isinstance(cls.experiment, Mapping):
            data = {"source": "sample", "name": "breast_cancer", "target": "target", "task": "binary"}
            rest = {"name": "contract", "data": data, "objective": {"metric": "val_loss"}, "study": {"n_trials": 1}}
            tables = {**rest, **cls.experiment}
            settings = parse({**tables, "model": {**tables.get("model", {}), **named}}, root=root)
        else:
            settings = load(root / cls.experiment, [f"model.builder={name}" for name in named.values()])
        training.select_backend(settings.backend, settings.deterministic)
        training.load_backend()
        return preflight(settings, sources.load(settings.data, root=settings.root, seed=settings.seed))

    def expect_none(self, *codes: str) -> None:
        """Fail where there are findings of these codes, or where nothing else could be tried."""
        wanted = {*codes, "model-fails", "output-shape"} - {*self.allowed}
        found = [str(finding) for finding in self.findings() if finding.code in wanted]
        assert not found, "\n".join(found)

    def test_it_is_built_and_trained_at_the_corners_of_the_space(self) -> None:
        """A step of training neither fails nor leads to numbers that are not finite."""
        self.expect_none()

    def test_its_outputs_are_what_the_heads_score(self) -> None:
        """As many as the heads have, and probabilities, or free numbers for regression."""
        self.expect_none("output-activation", "double-activation", "dropout-after-output", "wrong-loss", "loss-logits")

    def test_the_same_rows_are_predicted_the_same(self) -> None:
        """Dropout and augmentation are active in training only."""
        self.expect_none("random-predictions", "batch-dependent")

    def test_saved_and_loaded_it_predicts_the_same(self) -> None:
        """Keras can make every layer again from its configuration."""
        self.expect_none("model-not-saved")

    def test_one_step_changes_every_trainable_weight(self) -> None:
        """No layer leads nowhere."""
        self.expect_none("nothing-trains", "weights-unchanged", "untracked-weights", "dead-units", "equal-units")

    def test_its_loss_begins_near_chance(self) -> None:
        """Before training it knows nothing, and claims nothing."""
        self.expect_none("initial-loss")

    def test_it_knows_no_training_rows(self) -> None:
        """Neither its module nor its layers hold any."""
        self.expect_none("rows-captured")

    def test_it_is_compiled_with_what_the_trial_asks_for(self) -> None:
        """Where it comes compiled, with an optimizer that goes by the hyperparameters of the trial."""
        self.expect_none("hyperparameter-ignored")

    def test_it_goes_by_its_arguments(self) -> None:
        """Each that is searched changes the model, and the same ones give another model like the first."""
        self.expect_none("not-repeatable", "hyperparameter-ignored")

    def test_nothing_else_stops_a_sweep(self) -> None:
        """All other errors: memory, scaler, objective."""
        self.expect_none(*(finding.code for finding in self.findings() if finding.severity == "error"))


class SourceContract(ABC):
    """What every `forge_sweep.sources.Source` promises. A subclass gives `declare`."""

    @abstractmethod
    def declare(self, folder: Path) -> dict[str, Any]:
        """Prepare data with one target column of classes; return its ``[data]`` section, without a split.

        Args:
            folder: an empty folder, the root of relative paths.
        """

    def open(self, section: dict[str, Any], folder: Path, seed: int) -> Dataset:
        """The dataset of a section. A source whose rows are put there by a command overrides this.

        Args:
            section: ``[data]``, such as `declare` gives it.
            folder: the root of relative paths.
            seed: decides random and group splits.
        """
        return sources.load(DataSpec(**section), root=folder, seed=seed)

    def load(self, folder: Path, seed: int = 1, **changes: Any) -> Dataset:
        """The dataset of `declare` with changes to its section."""
        return self.open({**self.declare(folder), **changes}, folder, seed)

    def test_every_row_has_one_role(self, tmp_path: Path) -> None:
        """Train, valid and test are disjoint, and together they are all rows."""
        dataset = self.load(tmp_path)
        splits = [dataset.train, dataset.valid, look(dataset, tmp_path)]
        positions = np.concatenate([split.rows for split in splits])
        assert [len(split.features) for split in splits] == [dataset.sizes[role] for role in sources.ROLES]
        assert sorted(positions) == list(range(len(positions)))

    def test_shares_hold_to_within_a_row(self, tmp_path: Path) -> None:
        """70 / 15 / 15 by default."""
        sizes = self.load(tmp_path).sizes
        n = sum(sizes.values())
        assert [abs(sizes[role] - share * n) < 1 for role, share in zip(sources.ROLES, (0.7, 0.15, 0.15), strict=True)]

    def test_classes_have_the_same_shares_in_every_split(self, tmp_path: Path) -> None:
        """A random split is stratified by default; rounding moves a class by less than two rows."""
        dataset = self.load(tmp_path)
        counts = [s.targets.iloc[:, 0].value_counts() for s in (dataset.train, dataset.valid, look(dataset, tmp_path))]
        total = sum(counts)
        for part, share in zip(counts, (0.7, 0.15, 0.15), strict=True):
            assert ((part - share * total).abs() < 2).all()

    def test_loading_twice_gives_the_same(self, tmp_path: Path) -> None:
        """Digests, frames and fingerprints are functions of content, section and seed."""
        first, second = self.load(tmp_path), self.load(tmp_path)
        assert (first.digest, first.split_digest, first.version) == (second.digest, second.split_digest, second.version)
        pd.testing.assert_frame_equal(first.train.features, second.train.features)
        assert all((first.fingerprints[role] == second.fingerprints[role]).all() for role in sources.ROLES)

    def test_the_seed_moves_rows_and_not_the_content(self, tmp_path: Path) -> None:
        """Another seed is another split of the same dataset."""
        first, second = self.load(tmp_path, seed=1), self.load(tmp_path, seed=2)
        assert first.digest == second.digest
        assert first.split_digest != second.split_digest

    def test_the_version_is_a_name_and_the_digest(self, tmp_path: Path) -> None:
        """The declared name stands in front of the first 12 digits."""
        dataset = self.load(tmp_path, version="v3_2026q1")
        assert len(dataset.digest) == 64
        assert (dataset.name, dataset.version) == ("v3_2026q1", f"v3_2026q1@{dataset.digest[:12]}")

    def test_frames_hold_numbers_booleans_and_text_by_row(self, tmp_path: Path) -> None:
        """Features and targets have the index of their rows; the target is no feature."""
        dataset = self.load(tmp_path)
        for split in (dataset.train, dataset.valid, look(dataset, tmp_path)):
            assert split.rows.dtype == np.int64
            assert list(split.features.index) == list(split.targets.index) == list(split.rows)
            assert not set(split.features) & set(split.targets)
            assert all(
                dtype in (np.int64, np.float64, bool, "boolean", object, "str") for dtype in split.features.dtypes
            )

    def test_fingerprints_tell_rows_apart(self, tmp_path: Path) -> None:
        """One uint64 per row and role, equal just where the features are."""
        dataset = self.load(tmp_path)
        for role, split in (("train", dataset.train), ("valid", dataset.valid)):
            prints = dataset.fingerprints[role]  # type: ignore[index]  # a str that is a Role
            assert prints.dtype == np.uint64
            assert (pd.Series(prints).duplicated().to_numpy() == split.features.duplicated().to_numpy()).all()

    def test_only_a_recorded_look_shows_test_rows(self, tmp_path: Path) -> None:
        """No public attribute holds a test row, and every look leaves a line in the ledger."""
        dataset, ledger = self.load(tmp_path), tmp_path / "deep" / "looks.jsonl"
        assert sources.test_looks(ledger, dataset.digest) == []
        public = [getattr(dataset, field.name) for field in fields(dataset) if not field.name.startswith("_")]
        assert [value for value in public if isinstance(value, Split | pd.DataFrame)] == [dataset.train, dataset.valid]
        dataset.look_at_test("a first look", ledger)
        dataset.look_at_test("a second look", ledger)
        looks = sources.test_looks(ledger, dataset.digest)
        assert [look.purpose for look in looks] == ["a first look", "a second look"]
        assert sources.test_looks(ledger, "another digest") == []

    def test_an_absent_target_is_named_with_its_key(self, tmp_path: Path) -> None:
        """The TOML key, the name that was given, and the nearest one there is."""
        target = self.declare(tmp_path)["target"]
        with pytest.raises(DataError, match=rf"data\.target = '{target}x'.*did you mean \"{target}\""):
            self.load(tmp_path, target=f"{target}x")


class StoredSourceContract(SourceContract):
    """What a source promises that holds any table. A subclass gives `store`."""

    @abstractmethod
    def store(self, frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
        """Put a frame where the source reads it; return what ``[data]`` says about the place.

        Args:
            frame: columns of numbers, booleans, text and times, some with missing values; see `table`.
            folder: the root of relative paths; may hold an earlier frame, to be replaced.
        """

    def declare(self, folder: Path) -> dict[str, Any]:
        """The section of `table`."""
        return self.declare_frame(table(), folder)

    def declare_frame(self, frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
        """The section of a frame with the columns of `table`."""
        roles = [name for name in ("booked", "part") if name in frame]
        common = {"target": "label", "task": "binary", "key": "id", "categorical": ["code"], "drop": roles}
        return {**self.store(frame, folder), **common}

    def load_frame(self, frame: pd.DataFrame, folder: Path, **changes: Any) -> Dataset:
        """The dataset of a frame with the columns of `table`."""
        return self.open({**self.declare_frame(frame, folder), **changes}, folder, 1)

    def test_equal_content_has_the_digest_that_every_source_gives(self, tmp_path: Path) -> None:
        """The digest is over values; how they are stored plays no part."""
        assert self.load(tmp_path).digest == TABLE_DIGEST

    def test_with_a_key_the_order_of_rows_plays_no_part(self, tmp_path: Path) -> None:
        """Shuffled rows give the same digest, the same splits and the same frames."""
        first = self.load_frame(table(), tmp_path)
        second = self.load_frame(table().sample(frac=1.0, random_state=3), tmp_path)
        assert (first.digest, first.split_digest) == (second.digest, second.split_digest)
        pd.testing.assert_frame_equal(
            first.valid.features.reset_index(drop=True), second.valid.features.reset_index(drop=True)
        )

    def test_rows_are_positions_in_the_source(self, tmp_path: Path) -> None:
        """A message about row 7 means the eighth stored row, whatever the key order."""
        frame = table().sample(frac=1.0, random_state=3).reset_index(drop=True)
        train = self.load_frame(frame, tmp_path).train
        assert list(train.features["age"]) == list(frame["age"].iloc[train.rows])

    def test_without_a_key_the_order_of_rows_counts(self, tmp_path: Path) -> None:
        """Order is content where nothing fixes it."""
        first = self.load_frame(table(), tmp_path, key=None)
        assert first.digest != self.load_frame(table().iloc[::-1], tmp_path, key=None).digest

    def test_the_order_of_columns_plays_no_part_in_the_digest(self, tmp_path: Path) -> None:
        """Columns are digested by name."""
        first, second = (self.load_frame(frame, tmp_path) for frame in (table(), table().iloc[:, ::-1]))
        assert (first.digest, first.split_digest) == (second.digest, second.split_digest)

    @pytest.mark.parametrize(
        ("column", "value"),
        [("amount", 0.125), ("amount", None), ("city", "Bern"), ("city", None), ("member", True), ("label", "yes")],
    )
    def test_one_changed_value_is_another_digest(self, tmp_path: Path, column: str, value: Any) -> None:
        """In the last row too."""
        changed = table()
        changed.loc[ROWS - 1, column] = value
        assert self.load_frame(changed, tmp_path).digest != TABLE_DIGEST

    def test_dropped_columns_are_neither_features_nor_content(self, tmp_path: Path) -> None:
        """A changed value in a dropped column changes nothing."""
        dataset = self.load_frame(table().assign(part="train"), tmp_path)
        assert not {"booked", "part"} & set(dataset.train.features)
        assert dataset.digest == TABLE_DIGEST

    def test_kinds_survive(self, tmp_path: Path) -> None:
        """Numbers, booleans and text come back as such, missing values as missing, declared codes as text."""
        dataset = self.load(tmp_path)
        features, stored = dataset.train.features, table().iloc[dataset.train.rows]
        assert features["age"].dtype == np.int64
        assert features["member"].dtype == bool
        assert features["active"].dtype == "boolean"
        for name in ("amount", "active", "city"):
            assert list(features[name].isna()) == list(stored[name].isna())
        assert list(features["amount"].dropna()) == list(stored["amount"].dropna())
        assert list(features["code"]) == [str(code) for code in stored["code"]]

    @pytest.mark.parametrize(("value", "what"), [(None, "missing"), (5.0, "not unique")])
    def test_a_key_that_is_none_is_refused(self, tmp_path: Path, value: Any, what: str) -> None:
        """The message names the column and the rows."""
        frame = table().astype({"id": "float64"})
        frame.loc[7, "id"] = value
        with pytest.raises(DataError, match=f"data.key: column 'id' is {what} in .* rows .*7"):
            self.load_frame(frame, tmp_path)

    def test_a_split_column_is_followed(self, tmp_path: Path) -> None:
        """Each row goes where it says, and the column is no feature."""
        dataset = self.load_frame(table(), tmp_path, drop=["booked"], split={"kind": "column", "column": "part"})
        assert set(table()["part"].iloc[dataset.valid.rows]) == {"Val"}
        assert "part" not in dataset.train.features

    def test_no_group_is_on_both_sides(self, tmp_path: Path) -> None:
        """A group split keeps each group together, and its column is no feature."""
        dataset = self.load_frame(table(), tmp_path, split={"kind": "group", "group": "customer"})
        splits = [dataset.train, dataset.valid, look(dataset, tmp_path)]
        groups = [set(table()["customer"].iloc[split.rows]) for split in splits]
        assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
        assert "customer" not in dataset.train.features

    def test_a_time_split_is_in_order(self, tmp_path: Path) -> None:
        """Train is older than valid, valid older than test, and equal times stay together."""
        dataset = self.load_frame(table(), tmp_path, drop=["part"], split={"kind": "time", "time": "booked"})
        splits = [dataset.train, dataset.valid, look(dataset, tmp_path)]
        train, valid, test = (table()["booked"].iloc[split.rows] for split in splits)
        assert train.max() < valid.min() and valid.max() < test.min()
        assert "booked" not in dataset.train.features

    def test_a_time_is_no_feature(self, tmp_path: Path) -> None:
        """It is refused by name, not turned into categories."""
        with pytest.raises(DataError, match="column 'booked' holds datetime"):
            self.load_frame(table(), tmp_path, drop=["part"])

    def test_no_rows_are_refused(self, tmp_path: Path) -> None:
        """An empty table is an error, not an empty dataset."""
        with pytest.raises(DataError, match="no rows"):
            self.load_frame(table().head(0), tmp_path)


TABLE_DIGEST = "2b34f9a662a39915b106ad8a113a0ed020df33195082ccd57de3954b2e201d8e"
"""The content digest of `table`: features, target and key, without ``booked`` and ``part``."""


def table() -> pd.DataFrame:
    """A table of every kind of column (120 x 10): numbers, booleans, text, codes, times, some with missing values."""
    i = np.arange(ROWS)
    return pd.DataFrame(
        {
            "id": (i * 77) % 1009,
            "amount": np.where(i % 11 == 3, np.nan, (i * 37 % 101) / 8 - 3),
            "age": 20 + i * 13 % 60,
            "member": i % 3 == 0,
            "active": pd.array([None if k % 13 == 5 else k % 2 == 0 for k in i], dtype="boolean"),
            "city": [None if k % 17 == 2 else ("Zürich", "Genève", "Basel, Stadt")[k % 3] for k in i],
            "code": i * 7 % 4,
            "customer": [f"c{k % 19:02d}" for k in i],
            "booked": pd.Timestamp("2026-01-01") + pd.to_timedelta(i // 3 * 7, unit="h"),
            "part": [("train", "train", "Val", "TEST")[k % 4] for k in i],
            "label": np.where(i * 31 % 10 < 3, "yes", "no"),
        }
    )


def look(dataset: Dataset, folder: Path) -> Split:
    """The test split, with its look recorded in ``folder``."""
    return dataset.look_at_test("a test", folder / "looks.jsonl")


class FormatContract:
    """What every `forge_sweep.exports.Format` promises, tried on a small binary network with new weights.

    Attributes:
        format: its name, as ``--format`` takes it.
        builder: which network it is tried with.
        preprocessing: whether it holds preprocessing, and so takes raw columns.
        text: whether it takes columns of text.

    Example::

        class TestCoefficients(FormatContract):
            format, builder, preprocessing = "coefficients", "linear", False
    """

    format: ClassVar[str]
    builder: ClassVar[str] = "mlp"
    preprocessing: ClassVar[bool] = True
    text: ClassVar[bool] = True

    def saved(self, folder: Path, scaler: Literal["standard", "quantile"] = "standard") -> Path:
        """The folder of a bundle."""
        features = self.rows()
        preprocessor = Preprocessor.fit(
            features, Schema.learn(features), scaler=scaler, impute="median", fill=0.0, max_categories=10
        )
        task = Task.learn("binary", table()[["label"]])
        training.load_backend()
        training.seed_everything(1)
        model = models.build(self.builder, preprocessor.spec, task, {})
        Bundle(model, preprocessor, task, 0.5, {"dataset_digest": TABLE_DIGEST}).save(folder / "bundle", features)
        return folder / "bundle"

    def rows(self) -> pd.DataFrame:
        """Raw features, some of them missing."""
        return table()[["amount", "age", "member", "active", *(["city"] if self.text else [])]]

    def path(self, folder: Path) -> Path:
        """Where to export to, in an empty folder."""
        (folder / "exported").mkdir()
        return folder / "exported" / f"model{exports.format_of(self.format).suffix}"

    def test_its_runtime_gives_the_scores_of_the_bundle(self, tmp_path: Path) -> None:
        """For many rows as for one, also for rows that differ from those it was written by."""
        saved, path, form = self.saved(tmp_path), self.path(tmp_path), exports.format_of(self.format)
        found = exports.export(saved, self.format, path, preprocessing=self.preprocessing)
        assert found.difference <= found.allowed
        bundle, rows = Bundle.load(saved), self.rows().sample(40, random_state=2)
        rows["amount"] = rows["amount"] * 1.5 - 2
        for some in (rows, rows.head(1)):
            if self.preprocessing:
                fed = exports.feed(
                    exports.inputs_of(bundle.preprocessor), bundle.preprocessor.schema, some, form.numbers
                )
            else:
                fed = {FEATURES: bundle.preprocessor.transform(some)}
            scores = form.run(path, fed)
            assert scores.shape == (len(some), 1)
            np.testing.assert_allclose(scores, bundle.scores(some), atol=form.tolerance)

    def test_it_writes_what_it_was_asked_to_and_nothing_else(self, tmp_path: Path) -> None:
        """The export and its list of inputs; the bundle stays as it was, and so does what stands there already."""
        saved, path = self.saved(tmp_path), self.path(tmp_path)
        before = {each.name: each.read_bytes() for each in saved.iterdir()}
        found = exports.export(saved, self.format, path, preprocessing=self.preprocessing)
        assert found.path == path
        assert {each.name for each in path.parent.iterdir()} == {path.name, f"{path.name}.inputs.json"}
        assert {each.name: each.read_bytes() for each in saved.iterdir()} == before
        with pytest.raises(InputError, match="exists"):
            exports.export(saved, self.format, path, preprocessing=self.preprocessing)

    def test_preprocessing_that_it_cannot_hold_is_refused(self, tmp_path: Path) -> None:
        """With a way out, and without a trace; a format that holds it gives the scores of the bundle."""
        saved, path = self.saved(tmp_path, "quantile"), self.path(tmp_path)
        try:
            exports.export(saved, self.format, path)
        except exports.Unexportable as error:
            assert "--without-preprocessing" in error.hint
            assert not list(path.parent.iterdir())
