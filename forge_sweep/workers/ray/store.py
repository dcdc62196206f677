"""Values in Ray's object store, and tasks that carry them: a node has one copy, whatever the number of its workers."""

from __future__ import annotations

import functools
import io
import pickle
from dataclasses import dataclass
from typing import Any

import ray


@dataclass(frozen=True)
class Stored:
    """A value in the object store. Small; tasks of `RayWorkers` carry it to any node.

    Attributes:
        ref: where it is.
    """

    ref: Any

    @classmethod
    def put(cls, value: Any) -> Stored:
        """Store a value; its arrays are copied once, and stay as long as somebody refers to them."""
        return cls(ray.put(value))

    def get(self) -> Any:
        """The value. Its arrays are views of this node's copy, and cannot be written to."""
        return _get(self.ref)


@functools.cache
def _get(ref: Any) -> Any:
    """Cached for the life of the process: a copy that somebody uses stays on the node."""
    return ray.get(ref)


class _Pickler(pickle.Pickler):
    """Leaves the references out: they travel beside the pickle, so that Ray knows who holds them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.refs: list[Any] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, ray.ObjectRef):
            return None
        self.refs.append(value)
        return len(self.refs) - 1


class _Unpickler(pickle.Unpickler):
    """Puts them back."""

    def __init__(self, file: io.BytesIO, refs: list[Any]) -> None:
        super().__init__(file)
        self.refs = refs

    def persistent_load(self, number: Any) -> Any:
        return self.refs[number]


def dumps(value: Any) -> tuple[bytes, list[Any]]:
    """A value as bytes, and the references in it."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    return file.getvalue(), pickler.refs


def loads(pickled: bytes, refs: list[Any]) -> Any:
    """What `dumps` was given."""
    return _Unpickler(io.BytesIO(pickled), refs).load()
