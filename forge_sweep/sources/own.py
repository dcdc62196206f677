"""Rows from a function of the user's own, ``data.source = "my_data:load"``: frames, arrays, or pipelines of batches.

What the function may give, for all rows or as a dictionary of train, valid and test:

- a frame (pandas, or what has ``to_pandas``), a dictionary of columns and arrays, or a pair ``(x, y)`` as Keras takes
  it: ``x`` an array, which is called ``X``, or a dictionary, ``y`` the targets in the order of ``data.target``;
- a pipeline of batches of these: a ``keras.utils.PyDataset``, a ``tf.data.Dataset``, or any other iterable.

All rows are held in memory: a pipeline is read once, and refused where its rows would not fit.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import psutil

from forge_sweep.errors import DataError, Key, TrialFailed
from forge_sweep.experiment import Code
from forge_sweep.experiment.code import read
from forge_sweep.experiment.importing import failed, module_of
from forge_sweep.preprocessing import is_tensor
from forge_sweep.sources.arrays import columns_of, refuse_too_much, with_images
from forge_sweep.sources.assemble import assemble
from forge_sweep.sources.base import ROLES, Dataset
from forge_sweep.sources.digest import prints_of

if TYPE_CHECKING:
    from forge_sweep.experiment import DataSpec

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
        frames: list[pd.DataFrame] = []
        try:
            function = getattr(module_of(code), code.function)
            given = function(**({"root": root} if "root" in inspect.signature(function).parameters else {}))
            parts = _parts(given, what)
            for role, part in parts.items():
                said = f"{what}, {role}" if role else what
                whole = _is_whole(part)
                frames.append(_columns(part, spec, said) if whole else pd.concat(_read(part, spec, said)))
        except DataError:
            raise
        except TrialFailed as error:  # on import
            raise DataError(f"{what}: {error}", hint="correct that line") from error
        except Exception as error:  # of any kind: it is the user's code
            raise DataError(str(failed(error, f"{what}: {code.function} failed")), hint="correct that line") from error
        if len(frames) > 1 and spec.split != type(spec.split)():
            raise DataError(f"{what} gives train, valid and test, and {Key('data.split')} says how", hint="remove that")
        for role, frame in zip(parts, frames, strict=True):
            if set(frame) != set(frames[0]):
                names = ", ".join(map(str, frames[0]))
                raise DataError(f"{what}: {role} has {', '.join(map(str, frame))}; expected {names}", hint=HINT)
        if not all(map(len, frames)):
            raise DataError(f"{what} gives no rows", hint=HINT)
        lengths, frame = [len(each) for each in frames], pd.concat(frames, ignore_index=True)
        return assemble(
            with_images(frame, spec, [root] * len(frame), spec.source),
            spec,
            name=spec.source.replace(":", "."),
            source=spec.source,
            seed=seed,
            rows=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
            roles=np.repeat(np.arange(len(ROLES), dtype=np.int8), lengths) if len(frames) > 1 else None,
        )


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


def _read(given: Any, spec: DataSpec, what: str) -> Iterator[pd.DataFrame]:
    """The batches of a pipeline, as long as the rows fit in memory.

    Raises:
        DataError: it is none, it has no end, it would not fit, or it gives other rows when its first batch is read
            again and nothing fixes their order.
    """
    batches, count = _batches(given, what)
    seen = 0.0
    for number, batch in enumerate(batches):
        frame = _columns(batch, spec, what)
        size = float(frame.memory_usage().sum())
        size += sum(frame[name].iloc[0].nbytes * len(frame) for name in frame if is_tensor(frame[name]))
        seen += size
        if not number and count is not None:
            refuse_too_much(2 * size * count, f"{what}: a pipeline of {count:,} batches of {size / 1e6:.1f} MB")
        # Beside what was read, there has to be room to put it together.
        if seen > psutil.virtual_memory().available:
            refuse_too_much(seen, f"{what}: what a pipeline gave in its first {number + 1:,} batches")
        if not number and spec.key is None and not isinstance(given, Iterator):
            again = next((_columns(each, spec, what) for each in itertools.islice(_batches(given, what)[0], 1)), None)
            if again is None or not _same(frame, again):
                raise DataError(
                    f"{what}: a pipeline gives other rows when it is read again",
                    hint=f"take shuffling and augmentation out (training shuffles, layers augment), or name "
                    f"{Key('data.key'):under} where only the order differs",
                )
        yield frame
    if not seen:
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
