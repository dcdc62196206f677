"""``[data]`` of an experiment file: where rows come from, what is predicted, and which rows train."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from forge_sweep import plugins
from forge_sweep.experiment.fields import Later, Names, Section, Side, SourceName, names_of
from forge_sweep.experiment.space import OneScalar, as_tuple, by_shape
from forge_sweep.task import TaskKind


class SplitSpec(Section):
    """``[data.split]``: which rows train, validate and test."""

    kind: Literal["random", "column", "group", "time", "files"] = Field(
        "random", description="How rows are assigned; `files` follows from one path per split."
    )
    train: float = Field(0.70, gt=0, lt=1, description="Share of the training rows.")
    valid: float = Field(0.15, gt=0, lt=1, description="Share of the validation rows.")
    test: float = Field(0.15, gt=0, lt=1, description="Share of the test rows.")
    stratify: bool = Field(
        True, description="Keep class shares alike (kind `random`, one target of classes, or the first head with one)."
    )
    column: str | None = Field(None, description="Column that holds train, valid or test (kind `column`).")
    group: str | None = Field(None, description="Column whose values never stand in two splits (kind `group`).")
    time: str | None = Field(None, description="Column to sort by: the oldest rows train (kind `time`).")
    folds: Annotated[int, Later(1)] = Field(
        1,
        ge=1,
        le=20,
        description="With 2 or more, a trial is the mean over so many folds of the training and validation rows "
        "together: each row is predicted by a model that has not seen it (kinds `random`, `group`, `time`).",
    )
    repeats: Annotated[int, Later(1)] = Field(
        1, ge=1, le=20, description="How often the rows are divided into folds, each time otherwise."
    )
    final: Annotated[Literal["average", "refit"], Later("average")] = Field(
        "average",
        description="With folds, what is registered: the average of the models of all folds, or one model trained on "
        "the rows of all folds, for as many epochs as the folds' best ones on average.",
    )

    @property
    def trainings(self) -> int:
        """How many trainings a trial is: one for each fold, or 1."""
        return self.folds * self.repeats if self.folds > 1 else 1


class InputGroup(Section):
    """``[data.inputs]``: columns that are one input of the model."""

    columns: Names = Field(
        (), description="Names of features, or patterns with `*`; each feature stands in exactly one group."
    )
    encode: Literal["values", "codes"] = Field(
        "values",
        description="`values`: float32, as [preprocessing] says, categories as 0 and 1. `codes`: categories as int32 "
        "for an embedding: 0 is unknown or beyond `preprocessing.max_categories`, 1 missing, then the most frequent "
        "first.",
    )
    kind: Literal["table", "tensor", "image"] = Field(
        "table",
        description="`table`: `columns` of numbers, booleans and text. `tensor`: one `column` of arrays, as a NumPy "
        "archive or lists in Parquet have it. `image`: one `column` of uint8 arrays or of paths of PNG and JPEG files, "
        "which start at the folder of the table; the model gets 0..1.",
    )
    column: str | None = Field(None, description="The column of a `tensor` or `image`.")
    shape: Annotated[tuple[Side, ...], BeforeValidator(as_tuple)] | None = Field(
        None,
        description="Height, width and channels (1, 3 or 4) of an `image`; each file has to have this size.",
    )


class HeadSpec(Section):
    """``[data.heads]``: one of several things that a network predicts."""

    target: Names = Field(description="Target column, or a list (multilabel, one-hot).", min_length=1)
    task: TaskKind = Field(description="What this head predicts; not `joint`.")
    positive: OneScalar | None = Field(
        None, description="The positive label of a binary target; by default the second of the two in sorted order."
    )
    loss: str | None = Field(None, description="Loss; follows from the task. For regression `mse` or `mae`.")
    weight: float = Field(1.0, gt=0, le=1e6, description="Weight of its loss in the loss of the network.")

    @property
    def one_hot(self) -> bool:
        """Whether the classes of a multiclass target stand in one column each."""
        return self.task == "multiclass" and len(self.target) > 1


class DataSpec(Section):
    """``[data]``: where the rows come from and what is predicted."""

    source: SourceName = Field(
        "file",
        description="A file, a sample set of scikit-learn, a version in the feature store (PostgreSQL), a plugin, or "
        "with `module:function` your own ([docs/guide.md](guide.md#rows-from-your-own-python)).",
        json_schema_extra=names_of(plugins.SOURCES),
    )
    path: (
        Annotated[
            Annotated[dict[Literal["train", "valid", "test"], str], Tag("table")] | Annotated[str, Tag("value")],
            Discriminator(by_shape),
        ]
        | None
    ) = Field(
        None,
        description="CSV, Parquet, NumPy archive (`.npz`) or a folder of images with one sub-folder per class, "
        "relative to the experiment file; or one path each for train, valid and test.",
    )
    name: str | None = Field(None, description="Name of the sample set: breast_cancer, digits, diabetes, iris, wine.")
    target: Names = Field(
        description="Target column, or a list (multilabel, one-hot). Follows from [data.heads].", min_length=1
    )
    task: TaskKind = Field(description="What is predicted; `joint` follows from [data.heads].")
    version: str | None = Field(
        None, description="Your name for this content; its digest is recorded in any case. For `postgres`: which."
    )
    key: str | None = Field(None, description="Unique column that fixes the order of rows; not a feature.")
    drop: Names = Field((), description="Columns to leave out.")
    categorical: Names = Field((), description="Columns of numeric codes to treat as categories.")
    positive: OneScalar | None = Field(
        None, description="The positive label of a binary target; by default the second of the two in sorted order."
    )
    separator: str = Field(
        ",",
        min_length=1,
        max_length=1,
        pattern=r"^[\x01-\x09\x0b\x0c\x0e-\x21\x23-\x7f]$",
        description="Field separator of a CSV file: one ASCII character.",
    )
    known_before: Names = Field(
        (), description="Features that may predict the target perfectly, since they are known before it is."
    )
    split: SplitSpec = Field(default_factory=SplitSpec)
    inputs: Annotated[dict[str, InputGroup], Later({})] = Field(
        default_factory=dict, description="Groups of columns, each an input of the model by its name."
    )
    heads: Annotated[dict[str, HeadSpec], Later({})] = Field(
        default_factory=dict, description="Several things to predict at once, by name, in place of `target` and `task`."
    )

    code: Annotated[str | None, Later(None)] = Field(
        None,
        description="SHA-256 of your own source's files, as `forge-sweep check` shows it. Follows from them; stating "
        "another one is refused.",
    )
    digest: Annotated[str | None, Later(None)] = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 by which you know the content of your own source; taken as it is, where it would be "
        "computed over all rows.",
    )

    @property
    def one_hot(self) -> bool:
        """Whether the classes of a multiclass target stand in one column each."""
        return self.task == "multiclass" and len(self.target) > 1

    @property
    def tasks(self) -> dict[str, HeadSpec]:
        """What is predicted, by its TOML path: ``data``, or each of ``data.heads``."""
        if self.heads:
            return {f"data.heads.{name}": head for name, head in self.heads.items()}
        return {"data": HeadSpec(target=self.target, task=self.task, positive=self.positive, loss=None, weight=1.0)}
