"""Rows from a function of the user's own, ``data.source = "my_data:load"``: frames, arrays, or pipelines of batches.

What the function may give, for all rows or as a dictionary of train, valid and test:

- a frame (pandas, or what has ``to_pandas``), a dictionary of columns and arrays, or a pair ``(x, y)`` as Keras takes
  it: ``x`` an array, which is called ``X``, or a dictionary, ``y`` the targets in the order of ``data.target``;
- a pipeline of batches of these: a ``keras.utils.PyDataset``, a ``tf.data.Dataset``, or any other iterable.

A pipeline is read once. Where its rows fit comfortably they are held in memory, as those of every source are. Where
not, its arrays go to files of this machine while it is read (`spool`) and are taken from there batch by batch; columns
of a table, targets among them, are held in memory in any case, and refused where they would not fit.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from forge_sweep.errors import DataError, Key, TrialFailed
from forge_sweep.experiment import Code
from forge_sweep.experiment.code import read
from forge_sweep.experiment.importing import failed, module_of
from forge_sweep.memory import memory
from forge_sweep.preprocessing import is_tensor
from forge_sweep.sources import spool
from forge_sweep.sources.arrays import columns_of, with_images
from forge_sweep.sources.assemble import assemble
from forge_sweep.sources.base import ROLES, Dataset
from forge_sweep.sources.digest import prints_of

if TYPE_CHECKING:
    from forge_sweep.experiment import DataSpec

VARIABLE = "FORGE_SWEEP_ROWS_MB"
"""Memory that the rows of a pipeline may take, in MB."""

AT_ONCE = 1024
"""Rows that are written to files at a time."""

HINT = "return a frame, a dictionary of arrays, a pair (x, y), or batches of these: a PyDataset, a tf.data.Dataset"


@dataclass(frozen=True)
class OwnSource:
    """The function that ``data.source`` names; ``code`` is its source, or None to read it below the root."""

    code: Code | None = None

    def load(self, spec: DataSpec, *, root: Path, seed: int) -> Dataset:
        """See `forge_sweep.sources.base.Source.load`; the function runs."""
        code = self.code or read(spec.source, root, source=True)
        what = f'{Key("data.source")} = "{spec.source}"'
        if spec.code not in (None, code.digest):
            raise DataError(
                f"{what}: its files in {root} are not those that are recorded ({code.digest[:12]}, not "
                f"{str(spec.code)[:12]})",
                hint="put them back as they were",
            )
        key = "" if spec.digest is None else _key(spec, code)
        found, dropped = spool.find(key) if key else None, set(spec.drop)
        if found is None:
            with contextlib.closing(Gathered(spec, key, what)) as rows:
                try:
                    function = getattr(module_of(code), code.function)
                    given = function(**({"root": root} if "root" in inspect.signature(function).parameters else {}))
                    _gather(rows, given, spec, what)
                    found, dropped = rows.finish(), rows.dropped
                except DataError:
                    raise
                except spool.AlreadyThere as kept:
                    found = kept.found
                except TrialFailed as error:  # on import
                    raise DataError(f"{what}: {error}", hint="correct that line") from error
                except Exception as error:  # of any kind: it is the user's code
                    failure = str(failed(error, f"{what}: {code.function} failed"))
                    raise DataError(failure, hint="correct that line") from error
        frame, lengths = found
        return assemble(
            with_images(frame, spec, [root] * len(frame), spec.source),
            spec,
            name=spec.source.replace(":", "."),
            source=spec.source,
            seed=seed,
            rows=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
            roles=np.repeat(np.arange(len(ROLES), dtype=np.int8), lengths) if len(lengths) > 1 else None,
            names=[*map(str, frame), *sorted(dropped)],
        )


def _key(spec: DataSpec, code: Code) -> str:
    """Names rows whose digest is declared."""
    return hashlib.sha256(f"{spec.digest} {spec.source} {code.digest} {sorted(spec.drop)}".encode()).hexdigest()[:32]


def _gather(rows: Gathered, given: Any, spec: DataSpec, what: str) -> None:
    """Add all that was given, split by split."""
    parts = _parts(given, what)
    if len(parts) > 1 and spec.split != type(spec.split)():
        raise DataError(f"{what} gives train, valid and test, and {Key('data.split')} says how", hint="remove that")
    for role, part in parts.items():
        said = f"{what}, {role}" if role else what
        rows.begin(said)
        if _is_whole(part):
            rows.add(_columns(part, spec, said), whole=True)
        else:
            for batch, count in _read(part, spec, said):
                rows.add(batch, count)
    if not all(rows.lengths):
        raise DataError(f"{what} gives no rows", hint=HINT)


class Gathered:
    """The rows of a function, as they come: in memory, and their arrays in files once they have no room there.

    Args:
        spec: what is dropped is not kept.
        key: names the rows where their digest is declared; "" otherwise.
        what: what messages call them.
    """

    def __init__(self, spec: DataSpec, key: str, what: str) -> None:
        self._key, self._what, self._room, self._drop = key, what, room(), spec.drop
        self.dropped = set[str]()  # columns that were there
        self._names: list[str] = []
        self._frames: list[pd.DataFrame] = []
        self._spool: spool.Spool | None = None
        self._table = self._arrays = self._ready = 0.0  # bytes so far; ``_ready``: of the arrays as float32
        self.lengths: list[int] = []  # rows per split

    def begin(self, what: str) -> None:
        """The rows of the next split come, which messages call ``what``."""
        self._what = what
        self.lengths.append(0)

    def add(self, frame: pd.DataFrame, count: int | None = None, *, whole: bool = False) -> None:
        """Take the next rows.

        Args:
            frame: a batch, or all rows of the split.
            count: how many such batches the split has, where that is known and this is the first one.
            whole: the rows are held by the function in any case: they do not go to files because of their size.

        Raises:
            DataError: other columns than in the splits before; columns of a table do not fit in memory, or arrays on
                disk.
        """
        self.dropped |= set(self._drop) & set(frame)
        frame = frame.drop(columns=[name for name in self._drop if name in frame])
        self._names = self._names or list(map(str, frame))
        if not self.lengths[-1] and set(frame) != set(self._names):
            names = ", ".join(self._names)
            raise DataError(f"{self._what} has {', '.join(map(str, frame))}; expected {names}", hint=HINT)
        arrays = [str(name) for name in frame if is_tensor(frame[name])]
        table = float(frame.memory_usage().sum()) - 8 * len(frame) * len(arrays)
        values = sum(frame[name].iloc[0].size * len(frame) for name in arrays)
        size = float(sum(frame[name].iloc[0].nbytes * len(frame) for name in arrays))
        self._table, self._arrays, self._ready = self._table + table, self._arrays + size, self._ready + 4 * values
        times = (count or 1) - 1
        coming = self._table + times * table, self._arrays + times * size, self._ready + times * 4 * values
        said = (
            f"{self._what}: a pipeline of {count:,} batches" if count else f"{self._what}: what a pipeline gave so far"
        )
        # While rows are put together and prepared there are two copies, and two as float32.
        if not whole and coming[0] * 2 > self._room:
            self._refuse(coming[0] * 2, said, bool(arrays))
        if not whole and arrays and self._spool is None and 2 * sum(coming) > self._room:
            self._spool = spool.Spool(coming[1], self._key, said)
            self._frames = [self._split(held) for held in self._frames]
        self.lengths[-1] += len(frame)
        self._frames.append(frame if self._spool is None else self._split(frame))

    def finish(self) -> tuple[pd.DataFrame, list[int]]:
        """All rows, with the number per split."""
        frame = pd.concat(self._frames, ignore_index=True)
        if self._spool is not None:
            frame = self._spool.finish(frame, self.lengths, self._names)
        return frame, self.lengths

    def close(self) -> None:
        """Let go of files that were not finished."""
        if self._spool is not None:
            self._spool.close()

    def _split(self, frame: pd.DataFrame) -> pd.DataFrame:
        """What is left of a batch once its arrays are written."""
        assert self._spool is not None
        arrays = [str(name) for name in frame if is_tensor(frame[name])]
        for start in range(0, len(frame), AT_ONCE):  # all rows of a split may come at a time
            part = frame.iloc[start : start + AT_ONCE]
            self._spool.append({name: np.stack(list(part[name])) for name in arrays})
        return frame.drop(columns=arrays)

    def _refuse(self, needed: float, said: str, arrays: bool) -> None:
        beside = "columns beside arrays" if arrays else "columns of a table"
        raise DataError(
            f"{said}: its {beside} take {needed / 1e9:.1f} GB of memory to read; {self._room / 1e9:.1f} GB are free",
            hint="they are held in memory: give fewer rows or columns, or many numbers as one array per row",
        )


def room() -> float:
    """Bytes of memory that rows may take: ``FORGE_SWEEP_ROWS_MB``, or what is free."""
    declared = os.environ.get(VARIABLE, "")
    if not declared:
        return memory().available
    try:
        return float(declared) * 1e6
    except ValueError:
        raise DataError(f"{VARIABLE} = {declared!r}; expected megabytes", hint="write a number, or unset it") from None


def _parts(given: Any, what: str) -> dict[str, Any]:
    """What was given for each split, in the order of `ROLES`; for all rows under ""."""
    if not isinstance(given, Mapping) or not set(given) & set(ROLES):
        return {"": given}
    if set(given) != set(ROLES):
        raise DataError(f"{what} gives {', '.join(map(str, given))}; expected train, valid and test", hint=HINT)
    return {role: given[role] for role in ROLES}


def _is_whole(given: Any) -> bool:
    pair = isinstance(given, tuple | list) and len(given) == 2
    return pair or isinstance(given, Mapping) or hasattr(given, "to_pandas") or isinstance(given, pd.DataFrame)


def _columns(given: Any, spec: DataSpec, what: str) -> pd.DataFrame:
    """A frame, a dictionary or a pair as columns."""
    if isinstance(given, pd.DataFrame):
        return given.reset_index(drop=True)
    if hasattr(given, "to_pandas"):
        return pd.DataFrame(given.to_pandas()).reset_index(drop=True)
    if not _is_whole(given):
        raise DataError(f"{what} gives {_kind(given)}", hint=HINT)
    if not isinstance(given, Mapping):
        x, y = given
        answers = y if isinstance(y, Mapping) else _targets(np.asarray(y), spec, what)
        given = {**(x if isinstance(x, Mapping) else {"X": x}), **answers}
    arrays = {str(name): _plain(values) for name, values in given.items()}
    if single := [name for name, array in arrays.items() if not array.ndim]:
        raise DataError(f"{what} gives one value as {single[0]!r}", hint="give rows in batches: dataset.batch(256)")
    texts = {name: array for name, array in arrays.items() if array.dtype == object and array.ndim == 1}
    others = {name: array for name, array in arrays.items() if name not in texts}
    frame = columns_of(others, spec, what, HINT) if others else pd.DataFrame()
    if odd := [name for name, array in texts.items() if others and len(array) != len(frame)]:
        raise DataError(f"{what}: {odd[0]!r} has {len(texts[odd[0]])} rows; expected {len(frame)}", hint=HINT)
    return frame.assign(**{name: pd.Series(array) for name, array in texts.items()})


def _targets(y: np.ndarray, spec: DataSpec, what: str) -> dict[str, np.ndarray]:
    """``y`` as the columns of ``data.target``."""
    if len(spec.target) == 1:
        return {spec.target[0]: y}
    if y.ndim != 2 or y.shape[1] != len(spec.target):
        expected = f"(rows, {len(spec.target)}), since {Key('data.target')} has as many names"
        raise DataError(f"{what} gives y of shape {y.shape}; expected {expected}", hint="name every column of y")
    return {name: y[:, i] for i, name in enumerate(spec.target)}


def _plain(values: Any) -> np.ndarray:
    """An array; bytes, as TensorFlow has texts, are UTF-8."""
    array = np.asarray(values)
    if array.dtype.kind == "S" or (array.dtype == object and array.ndim == 1):
        texts = [each.decode() if isinstance(each, bytes) else each for each in array.tolist()]
        return pd.Series(texts, dtype=object).to_numpy()
    return array


def _kind(given: Any) -> str:
    return "nothing" if given is None else f"a {type(given).__module__.partition('.')[0]} {type(given).__name__}"


def _read(given: Any, spec: DataSpec, what: str) -> Iterator[tuple[pd.DataFrame, int | None]]:
    """The batches of a pipeline; with the first one how many there are, where it says so.

    Raises:
        DataError: it is none, it has no end, or it gives other rows when its first batch is read again and nothing
            fixes their order.
    """
    batches, count = _batches(given, what)
    number = -1
    for number, batch in enumerate(batches):
        frame = _columns(batch, spec, what)
        if not number and spec.key is None and not isinstance(given, Iterator):
            again = next((_columns(each, spec, what) for each in itertools.islice(_batches(given, what)[0], 1)), None)
            if again is None or not _same(frame, again):
                raise DataError(
                    f"{what}: a pipeline gives other rows when it is read again",
                    hint=f"take shuffling and augmentation out (training shuffles, layers augment), or name "
                    f"{Key('data.key'):under} where only the order differs",
                )
        yield frame, None if number else count
    if number < 0:
        raise DataError(f"{what}: a pipeline gives no batches", hint=HINT)


def _batches(given: Any, what: str) -> tuple[Iterable[Any], int | None]:
    """The batches of a pipeline from its beginning, and how many there are where it says so."""
    if hasattr(given, "as_numpy_iterator"):  # a tf.data.Dataset
        count = int(given.cardinality())
        if count == -1:
            raise DataError(f"{what}: a tf.data.Dataset without an end", hint="leave repeat() out")
        return given.as_numpy_iterator(), count if count >= 0 else None
    if hasattr(given, "num_batches"):  # a keras.utils.PyDataset
        if given.num_batches is None:
            raise DataError(f"{what}: a PyDataset without an end", hint="give it a __len__")
        return (given[i] for i in range(given.num_batches)), int(given.num_batches)
    if isinstance(given, str | bytes | np.ndarray) or not isinstance(given, Iterable):
        raise DataError(f"{what} gives {_kind(given)}", hint=HINT)
    return given, len(given) if isinstance(given, Sized) else None


def _same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two batches hold the same rows, in the same order."""
    return list(one) == list(other) and all(
        np.array_equal(prints_of(one[name]), prints_of(other[name]))
        if is_tensor(one[name]) and is_tensor(other[name])
        else one[name].equals(other[name])
        for name in one
    )
