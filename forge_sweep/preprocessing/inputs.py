"""What a model is fed: arrays by the name of the input, and what is known of each before there are rows.

Without ``[data.inputs]`` the only input is `FEATURES`, the whole matrix. A group of columns is an input of its own:

- as values: those columns of the matrix that come from the group's columns, in the order of the matrix;
- as codes: one int32 per column, in the order of the schema, for an embedding. 0 is a category that train did not have
  or that is not among its ``max_categories`` most frequent ones, 1 is missing, the others follow by frequency. Columns
  of one group share no code: those of the second begin where those of the first end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from forge_sweep.errors import DataError, Key
from forge_sweep.experiment.words import as_toml, nearest
from forge_sweep.preprocessing.array_files import Mapped, scaled
from forge_sweep.preprocessing.schema import WORDS, Schema

if TYPE_CHECKING:
    from forge_sweep.experiment import InputGroup

FEATURES = "features"
"""The name of the only input of a model where the experiment declares no groups of columns."""

Batch = dict[str, np.ndarray]
"""Arrays by name, rows first, as many rows in each; a `Mapped` may stand for one whose rows lie in a file."""

NO_TENSORS: Mapping[str, np.ndarray] = MappingProxyType({})

ROWS = 10_000
"""Training rows that layers learn from at most."""

OTHERS = 2
"""Codes that stand for no category: unknown and missing."""


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        shape: of one row.
        dtype: of its values.
        vocabulary: how many codes there are, from 0 on, where the values are codes for an embedding; else None.
        columns: names of the values of a row, in order, where it is a row of a table; else empty.
        scale: what raw values are multiplied by: 1/255 for images, which so lie within 0 and 1.
        rows: of a table some training rows as the model gets them, spread evenly over all, (at most `ROWS`, width), for
            layers that learn from them, such as quantiles; None where there are none at hand.
    """

    shape: tuple[int, ...]
    dtype: Literal["float32", "int32"] = "float32"
    vocabulary: int | None = None
    columns: tuple[str, ...] = ()
    scale: float = 1.0
    rows: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def size(self) -> int:
        """Values per row."""
        return int(np.prod(self.shape, dtype=np.int64))


Spec = dict[str, InputSpec]
"""The inputs of a model by name, in the order of the experiment."""


def with_rows(spec: Spec, batch: Any) -> Spec:
    """The spec with some of these training rows, as a model takes them; inputs of arrays, or of codes, have none."""
    arrays = batch if isinstance(batch, Mapping) else {FEATURES: batch}
    found = dict(spec)
    for name, each in spec.items():
        values = arrays.get(name)
        if each.columns and each.vocabulary is None and isinstance(values, np.ndarray) and len(values):
            chosen = np.linspace(0, len(values) - 1, min(len(values), ROWS)).astype(np.int64)
            found[name] = replace(each, rows=values[chosen])
    return found


def one_matrix(width: int, columns: tuple[str, ...] = ()) -> Spec:
    """The spec of a model that takes one float32 matrix of this width."""
    return {FEATURES: InputSpec((width,), columns=columns)}


@dataclass(frozen=True)
class Group:
    """Columns that are one input. In an experiment ``columns`` may be patterns; a preprocessor has their names.

    ``shape`` is that of an image, as declared.
    """

    name: str
    columns: tuple[str, ...]
    encode: Literal["values", "codes"] = "values"
    kind: Literal["table", "tensor", "image"] = "table"
    shape: tuple[int, ...] = ()


def declared(inputs: Mapping[str, InputGroup]) -> tuple[Group, ...]:
    """The groups of ``[data.inputs]``."""
    return tuple(
        Group(name, each.columns or (str(each.column),), each.encode, each.kind, each.shape or ())
        for name, each in inputs.items()
    )


def by_default(schema: Schema) -> tuple[Group, ...]:
    """The groups where none are declared: none for a table, the only input for a single tensor.

    Raises:
        DataError: there are tensors and other features.
    """
    if not schema.tensors:
        return ()
    if len(schema.columns) == 1:
        return (Group(FEATURES, schema.names, kind="tensor"),)
    example = schema.tensors[0].name
    raise DataError(
        f"{_some([column.name for column in schema.tensors])}: features that hold arrays, beside others; expected "
        f"{Key('data.inputs')}, which says which input of the model takes what",
        hint=f'for instance {example} = {{ column = "{example}", kind = "tensor" }}, and groups of the others',
    )


def resolved(groups: Sequence[Group], schema: Schema) -> tuple[Group, ...]:
    """The groups with the names of their columns, in the order of the schema.

    Raises:
        DataError: a column is in no group or in two, a name or a pattern stands for none, or a column of numbers is to
            be given as codes; all of them are listed.
    """
    lines, owners = list[str](), dict[str, str]()
    for group in groups:
        key = Key(f"data.inputs.{group.name}.{'columns' if group.kind == 'table' else 'column'}")
        for word in group.columns:
            matching = [word] if word in schema.names else [name for name in schema.names if fnmatchcase(name, word)]
            if not matching and any(sign in word for sign in "*?["):
                lines.append(f"{key} = {as_toml(word)}: no feature is called so")
            elif not matching:
                close = nearest(word, schema.names)
                lines.append(f"{key} = {as_toml(word)}: no such feature{f'; {close}' if close else ''}")
            for name in matching:
                if (owner := owners.setdefault(name, group.name)) != group.name:
                    lines.append(f"{key} = {as_toml(word)}: column {name!r} is in {owner} already")
    of_arrays = _tensor_lines(groups, owners, schema)
    lines += of_arrays
    left = [name for name in schema.names if name not in owners]
    if left:
        lines.append(f"{Key('data.inputs')}: in no group: {_some(left)}")
    codes = {group.name for group in groups if group.encode == "codes"}
    numeric = [c.name for c in schema.tabular if owners.get(c.name) in codes and c.kind != "categorical"]
    for name in numeric:
        path = Key(f"data.inputs.{owners[name]}.encode")
        lines.append(f'{path} = "codes": column {name!r} is not text and not declared in {Key("data.categorical")}')
    if lines:
        hints = {
            "put each feature into exactly one group by its name or a pattern such as balance_*, or leave it out with "
            f"{Key('data.drop')}, or name it as {Key('data.key')} where it tells rows apart": len(lines)
            > len(numeric) + len(of_arrays),
            f"name columns of numeric codes in {Key('data.categorical')}, or take them as values": bool(numeric),
        }
        raise DataError(
            "\n  ".join(["the inputs do not fit the features", *lines]),
            hint=". ".join(
                [*(hint for hint, holds in hints.items() if holds), f"The features are {_some(schema.names)}"]
            ),
        )
    by_group = {group.name: [name for name in schema.names if owners[name] == group.name] for group in groups}
    return tuple(replace(group, columns=tuple(by_group[group.name])) for group in groups)


def _tensor_lines(groups: Sequence[Group], owners: Mapping[str, str], schema: Schema) -> list[str]:
    """What is wrong with the groups of arrays."""
    lines, by_name = list[str](), {group.name: group for group in groups}
    for column in schema.columns:
        if (group := by_name.get(owners.get(column.name, ""))) is None:
            continue
        key = Key(f"data.inputs.{group.name}")
        if column.kind == "tensor" and group.kind == "table":
            lines.append(
                f"{key}: column {column.name!r} holds arrays; give it an input of its own, "
                f'{{ column = "{column.name}", kind = "tensor" }}'
            )
        elif column.kind != "tensor" and group.kind != "table":
            lines.append(f"{key}: column {column.name!r} holds {WORDS[column.kind]}, no arrays")
        elif group.kind == "image" and column.dtype != "uint8":
            lines.append(f'{key}: column {column.name!r} holds {column.dtype}, not uint8; take it as kind = "tensor"')
        elif group.kind == "image" and group.shape and group.shape != column.shape:
            lines.append(
                f"{key}.shape = {list(group.shape)}: column {column.name!r} has {list(column.shape)}; leave shape out, "
                "or store the images so"
            )
    return lines


def _some(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class Feed:
    """From raw numbers (n, columns) to what a model of these groups takes; see `Preprocessor.batch`.

    Args:
        schema: the raw columns.
        groups: with the names of their columns; none for the whole matrix.
        max_categories: most categories with a code of their own, per column.
        matrix: makes the matrix of the columns that are not coded; ``sources`` says of which raw column each is.

    Attributes:
        spec: of the inputs.
        parts: what makes each input, by its name; empty for the whole matrix.
    """

    def __init__(self, schema: Schema, groups: Sequence[Group], max_categories: int, matrix: Any) -> None:
        self._matrix = matrix
        self.parts: dict[str, Values | Codes | Tensor] = {}
        self.spec: Spec = {} if groups else one_matrix(len(matrix.names), matrix.names)
        by_name = {column.name: column for column in schema.tensors}
        for group in groups:
            if group.kind != "table":
                column, scale = by_name[group.columns[0]], 1 / 255 if group.kind == "image" else 1.0
                self.spec[group.name] = InputSpec(column.shape, scale=scale)
                self.parts[group.name] = Tensor(column.name, scale)
                continue
            positions = [i for i, name in enumerate(schema.names) if name in set(group.columns)]
            if group.encode == "codes":
                codes = Codes([schema.columns[i].categories for i in positions], positions, max_categories)
                self.spec[group.name] = InputSpec((len(positions),), "int32", codes.vocabulary, group.columns)
                self.parts[group.name] = codes
            else:
                outputs = np.flatnonzero(np.isin(matrix.sources, positions))
                names = tuple(matrix.names[i] for i in outputs)
                self.spec[group.name] = InputSpec((len(outputs),), columns=names)
                self.parts[group.name] = Values(outputs)

    def __call__(self, raw: np.ndarray, tensors: Mapping[str, np.ndarray] = NO_TENSORS) -> np.ndarray | Batch:
        """One array where the only input is `FEATURES`, else arrays by name; numbers beyond float32 are infinite."""
        matrix = self._matrix(raw)
        if not self.parts:
            made: np.ndarray = matrix
            return made
        batch = {
            name: part(tensors) if isinstance(part, Tensor) else part(raw, matrix) for name, part in self.parts.items()
        }
        return batch[FEATURES] if list(batch) == [FEATURES] else batch


@dataclass(frozen=True, eq=False)
class Values:
    """The values of a group: these columns of the matrix."""

    outputs: np.ndarray

    def __call__(self, raw: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """(n, outputs) float32 of raw numbers and of the matrix that was made of them."""
        return np.ascontiguousarray(matrix[:, self.outputs])


@dataclass(frozen=True)
class Tensor:
    """The values of a column of arrays."""

    column: str
    scale: float

    def __call__(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """(n, ...) float32 of the arrays by column; those of a file stay there until they are taken out."""
        values: np.ndarray | Mapped = tensors[self.column]
        if isinstance(values, Mapped):
            return cast(np.ndarray, values.scaled(self.scale))
        return scaled(values, self.scale)


class Codes:
    """The codes of the columns at these positions, given their categories, the most frequent first."""

    def __init__(self, categories: Sequence[Sequence[str]], positions: Iterable[int], max_categories: int) -> None:
        self.positions = np.array(list(positions), np.intp)
        kept = [min(len(each), max_categories) for each in categories]
        self.starts = np.concatenate([[0], np.cumsum([count + OTHERS for count in kept])[:-1]]).astype(np.int32)
        self.vocabulary = int(sum(kept)) + OTHERS * len(kept)
        self._kept = np.array(kept, np.float64)

    def __call__(self, raw: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """(n, columns) int32 of raw numbers."""
        found = raw[:, self.positions]
        missing = np.isnan(found)
        known = (found >= 0) & (found < self._kept)
        codes = np.where(known, np.where(missing, 0.0, found) + OTHERS, 0.0)
        codes[missing] = 1.0
        return codes.astype(np.int32) + self.starts
