"""The contract of a source, and the dataset that every source gives."""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar, get_args, runtime_checkable

import numpy as np

from forge_sweep import jsons

if TYPE_CHECKING:
    import pandas as pd

    from forge_sweep.experiment import DataSpec
    from forge_sweep.preprocessing import Preprocessor

Role = Literal["train", "valid", "test"]
ROLES: tuple[Role, ...] = get_args(Role)

SHOWN = 10
"""How many rows, columns or labels a message lists."""


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of one role, in canonical order. Do not change the frames.

    Attributes:
        features: (n, features); numbers are int64 or float64 with NaN where missing, booleans are bool (nullable
            ``boolean`` where some are missing), all else is text with NaN where missing, or NumPy arrays of one shape,
            which come last. The index is ``rows``.
        targets: (n, targets), values as they were read. The index is ``rows``.
        rows: (n,) int64, position of each row in its source, from 0; what messages call a row.
    """

    features: pd.DataFrame
    targets: pd.DataFrame
    rows: np.ndarray


@dataclass(frozen=True)
class TestLook:
    """One test evaluation.

    Attributes:
        dataset_digest: digest of the evaluated dataset.
        purpose: what for, such as ``final score of fraud``.
        who: user@host.
        when: UTC, ISO 8601.
        pid: process.
        run: MLflow run whose model is scored, if any: looks of one run are one evaluation.
        split_digest: of the split; "" in lines of before it was recorded.
    """

    __test__: ClassVar[bool] = False  # not a test case, whatever pytest makes of the name

    dataset_digest: str
    purpose: str
    who: str
    when: str
    pid: int
    run: str = ""
    split_digest: str = ""


class TestRows(Protocol):
    """The test rows of a dataset, wherever they are."""

    def read(self, look: TestLook) -> Split:
        """The rows, once the look is on record at the place they come from, where that keeps a record."""
        ...

    def count(self) -> int | None:
        """How many evaluations the place they come from has on record; None where it keeps no record."""
        ...


@dataclass(frozen=True, eq=False)
class HeldTest:
    """Test rows that were read with the others, as from a file, which keeps no record of who looked."""

    split: Split = field(repr=False)

    def read(self, look: TestLook) -> Split:
        """See `TestRows`."""
        return self.split

    def count(self) -> int | None:
        """See `TestRows`."""
        return None


Rows = TypeVar("Rows")


@dataclass(frozen=True, eq=False)
class Fold(Generic[Rows]):
    """What one training has of several that are one trial: a fold, or a rung.

    Attributes:
        rows: what it trains on and validates with: a `Dataset`, or the arrays made of one.
        at: (n,) position of each of its validation rows among `Dataset.judged`.
    """

    rows: Rows
    at: np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """One version of the data, split. The test rows are out of reach but for `look_at_test`.

    Attributes:
        name: the declared version name, or what the source calls itself.
        version: ``<name>@<first 12 digits of the digest>``.
        digest: SHA-256 (hex) over the content of all rows, see `forge_sweep.sources.digest`.
        split_digest: SHA-256 (hex) over the role of every row in canonical order.
        train: rows to learn from.
        valid: rows to choose by.
        sizes: number of rows per role.
        source: file path, name of the sample set, or address of the store without its secrets.
        categorical: columns of numeric codes that were declared to be categories; they hold text.
        fingerprints: per role (n,) uint64, equal for rows of equal features. The test split is included, so that
            duplicates across splits are found without evaluating it.
        preprocessor: imputation and scaling that are stored with the version; None where nothing is stored.
        normalization_version: the name of what ``preprocessor`` learned.
        warnings: what whoever uses the dataset should be told.
        scaled_whole: features that were scaled over all rows before they were split, by what they have in common, such
            as ``mean 0 and standard deviation 1``.
        missing_words: per target, how often each word for a missing value, such as ``None``, stands in it.
        groups: number of groups per role; empty unless whole groups were split.
        array_prints: per column of arrays and role (n,) uint64, equal for equal arrays; test included, as above.
        in_folds: of each fold the positions (n,) of the rows that train and (m,) that validate, among those of train
            and after them those of valid; empty where there is one split.
        known: rows that classes, categories and the scale of a target are learned from, so that all folds have the same
            ones; those of train where there are no folds. Nothing else is learned from them.
    """

    name: str
    version: str
    digest: str
    split_digest: str
    train: Split
    valid: Split
    sizes: dict[Role, int]
    source: str
    categorical: tuple[str, ...]
    fingerprints: dict[Role, np.ndarray]
    _test: TestRows = field(repr=False)
    preprocessor: Preprocessor | None = field(default=None, repr=False)
    normalization_version: str | None = None
    warnings: tuple[str, ...] = ()
    scaled_whole: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing_words: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    groups: Mapping[Role, int] = field(default_factory=dict)
    array_prints: Mapping[str, Mapping[Role, np.ndarray]] = field(default_factory=dict, repr=False)
    in_folds: tuple[tuple[np.ndarray, np.ndarray], ...] = field(default=(), repr=False)
    known: Split | None = field(default=None, repr=False)

    @functools.cached_property
    def pool(self) -> Split:
        """The rows of train, and after them those of valid."""
        return _joined(self.train, self.valid)

    @functools.cached_property
    def folds(self) -> tuple[Fold[Dataset], ...]:
        """The trainings that are one trial; empty where there is one split."""
        found = []
        for i, (train, valid) in enumerate(self.in_folds):
            digest = hashlib.sha256(f"{self.split_digest} fold {i + 1}".encode())
            for of_role in (train, valid):
                digest.update(np.ascontiguousarray(of_role, "<i8").tobytes())
            found.append(Fold(self._part(train, valid, digest.hexdigest()), np.searchsorted(self._judged, valid)))
        return tuple(found)

    @functools.cached_property
    def whole(self) -> Dataset:
        """The rows of all folds to train on; they validate as well, which chooses nothing."""
        every = np.arange(len(self.pool.rows))
        return self._part(every, every, hashlib.sha256(f"{self.split_digest} whole".encode()).hexdigest())

    @property
    def learned_from(self) -> Split:
        """The rows that the models of a trial learn from, and whose classes and categories they know."""
        return self.known or (self.pool if self.in_folds else self.train)

    @functools.cached_property
    def judged(self) -> Split:
        """The rows that models are judged on: those of valid, or all that some fold validates, in the order of rows."""
        return _taken(self.pool, self._judged) if self.in_folds else self.valid

    @property
    def judged_prints(self) -> np.ndarray:
        """`fingerprints` of the rows of `judged`."""
        if not self.in_folds:
            return self.fingerprints["valid"]
        prints = np.concatenate([self.fingerprints["train"], self.fingerprints["valid"]])
        return np.asarray(prints[self._judged])

    @functools.cached_property
    def _judged(self) -> np.ndarray:
        found: np.ndarray = np.unique(np.concatenate([valid for _, valid in self.in_folds]))
        return found

    def _part(self, train: np.ndarray, valid: np.ndarray, split_digest: str) -> Dataset:
        return replace(
            self,
            train=_taken(self.pool, train),
            valid=_taken(self.pool, valid),
            split_digest=split_digest,
            sizes={**self.sizes, "train": len(train), "valid": len(valid)},
            in_folds=(),
            known=self.pool,
        )

    def look_at_test(self, purpose: str, ledger: Path, *, run: str = "", once: bool = False) -> Split:
        """The test rows. The look is on disk before this returns, and in the store's own ledger if it has one.

        Args:
            purpose: what the rows are for.
            ledger: JSON-lines file that counts the looks; made where it does not exist.
            run: MLflow run whose model is scored.
            once: an earlier look for the same purpose and run was cut off before it came to anything: its line stands.

        Raises:
            OSError: the ledger cannot be written; nothing is returned.
            StoreDown: the store of the rows cannot be reached; nothing is returned.
        """
        look = new_look(self.digest, purpose, run, self.split_digest)
        known = test_looks(ledger, self.digest, self.split_digest) if once else []
        if all((each.run, each.purpose) != (run, purpose) for each in known):
            _append_line(ledger, jsons.dumps(asdict(look)))
        return self._test.read(look)

    def count_looks(self, ledger: Path) -> int:
        """How many evaluations on these test rows are on record: where they are, or else in the ledger on this machine.

        However often the rows are read to judge the model of one run, it is one evaluation; a look that names no run is
        one of its own.
        """
        counted = self._test.count()
        if counted is None:
            return evaluations(look.run for look in test_looks(ledger, self.digest, self.split_digest))
        return counted


def _joined(one: Split, other: Split) -> Split:
    import pandas as pd

    features, targets = pd.concat([one.features, other.features]), pd.concat([one.targets, other.targets])
    return Split(features, targets, np.concatenate([one.rows, other.rows]))


def _taken(split: Split, positions: np.ndarray) -> Split:
    return Split(split.features.iloc[positions], split.targets.iloc[positions], split.rows[positions])


class Source(Protocol):
    """Reads rows from one kind of place. `forge_sweep.testing.SourceContract` checks this contract.

    Other distributions add one as an entry point of the group ``forge_sweep.sources``: a class without arguments.

    An implementation reads every row into one frame and hands it to `forge_sweep.sources.assemble.assemble`, which
    gives the canonical order, the splits and the digests. It keeps no state between loads and changes nothing in the
    place it reads from, so one instance serves any number of threads and processes.
    """

    def load(self, spec: DataSpec, *, root: Path, seed: int) -> Dataset:
        """Read, check, order and split the rows.

        The same content gives the same digest from any source, and with a ``key`` in any order of rows. The same
        content, split section and seed give the same splits.

        Args:
            spec: the section ``[data]``.
            root: folder that relative paths start from.
            seed: decides random and group splits.

        Raises:
            DataError: the data cannot be read, or is not what ``spec`` says; names the TOML key or the column.
        """
        ...


@dataclass(frozen=True)
class Successor:
    """The newest version of a dataset that was made from another one.

    Attributes:
        name: its name in the source.
        version: ``<name>@<first 12 digits of the digest>``.
        drifted: columns whose distributions differ, over training and validation rows.
    """

    name: str
    version: str
    drifted: tuple[str, ...]


@runtime_checkable
class Versioned(Protocol):
    """A source that also knows which of its versions was made from which."""

    def successor(self, name: str) -> Successor | None:
        """The newest version that was made from this one, or from such a version; None where there is none.

        Raises:
            DataError: there is no such version.
            StoreDown: nobody answers.
        """
        ...


def new_look(digest: str, purpose: str, run: str = "", split_digest: str = "") -> TestLook:
    """A look by this process, now."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a login name
        user = str(os.getuid())
    who, when = f"{user}@{socket.gethostname()}", datetime.now(UTC).isoformat()
    return TestLook(digest, purpose, who, when, os.getpid(), run, split_digest)


def test_looks(ledger: Path, digest: str, split_digest: str = "") -> list[TestLook]:
    """Every recorded evaluation of the test split of the dataset with this digest, oldest first.

    Args:
        ledger: the file of `Dataset.look_at_test`.
        digest: of the dataset.
        split_digest: leave out looks that are known to be at the test rows of another split; "" for all.
    """
    if not ledger.exists():
        return []
    looks = []
    for line in ledger.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError, TypeError):  # half written by a dying process: it got no rows
            looks.append(TestLook(**json.loads(line)))
    looks = [look for look in looks if look.dataset_digest == digest]
    return [look for look in looks if not split_digest or look.split_digest in ("", split_digest)]


def evaluations(runs: Iterable[str]) -> int:
    """How many evaluations looks for these runs are: one for each run, and one for each look that names none."""
    names = list(runs)
    return len(set(names) - {""}) + names.count("")


test_looks.__test__ = False  # type: ignore[attr-defined]  # not a test case, whatever pytest makes of the name


def shown(values: Sequence[Any] | np.ndarray | pd.Index) -> str:
    """The first values for a message."""
    return ", ".join(map(str, values[:SHOWN])) + (", ..." if len(values) > SHOWN else "")


def _append_line(path: Path, line: str) -> None:
    """Append one line durably. The line begins on its own even after a half-written one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        torn = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(b"\n" * torn + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
