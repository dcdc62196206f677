"""What a network predicts, as its builder sees it: output layers and losses by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forge_sweep.models import compiling

if TYPE_CHECKING:
    from forge_sweep.task import Task

OUTPUT = "output"
"""Name of the last layer."""


@dataclass(frozen=True)
class Head:
    """One thing that is predicted.

    Attributes:
        name: of the target, or ``output`` where there are several columns.
        task: what its targets look like.
        layer_name: of its output layer.
    """

    name: str
    task: Task
    layer_name: str = OUTPUT

    @property
    def units(self) -> int:
        """Output units."""
        return self.task.units

    @property
    def activation(self) -> str:
        """Activation of the output layer: ``sigmoid``, ``softmax`` or ``linear``."""
        return self.task.activation

    @property
    def loss(self) -> Any:
        """The loss, as ``compile`` takes it."""
        return compiling.loss(self.task)

    def output(self, hidden: Any) -> Any:
        """The output layer on top of ``hidden``, (rows, any number): a Dense layer with these units and activation.

        It computes in float32, in mixed precision too, whose 16 bits make ties of close scores.
        """
        return self.layer()(hidden)

    def layer(self) -> Any:
        """The output layer by itself, for a Sequential or a subclassed model."""
        from keras import layers

        return layers.Dense(self.units, activation=self.activation, dtype="float32", name=self.layer_name)


class Heads(Mapping[str, Head]):
    """What is predicted, by name; ``heads.only`` where it is one thing."""

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        several = len(tasks) > 1
        self._heads = {name: Head(name, task, name if several else OUTPUT) for name, task in tasks.items()}

    @classmethod
    def of(cls, task: Task) -> Heads:
        """The heads of a task."""
        return cls(task.heads)

    @property
    def only(self) -> Head:
        """The head, where there is one."""
        if len(self._heads) != 1:
            raise ValueError(f"there are several heads: {', '.join(self._heads)}; take each by its name")
        return next(iter(self._heads.values()))

    def join(self, outputs: Mapping[str, Any]) -> Any:
        """The outputs of all heads side by side, in their order; the output itself where there is one."""
        from keras import layers

        ordered = [outputs[name] for name in self]
        return layers.Concatenate(dtype="float32", name=OUTPUT)(ordered) if len(ordered) > 1 else ordered[0]

    def __getitem__(self, name: str) -> Head:
        if name not in self._heads:
            close = difflib.get_close_matches(name, self._heads, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise KeyError(f"there is no head {name!r}, there is {', '.join(map(repr, self._heads))}{hint}")
        return self._heads[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._heads)

    def __len__(self) -> int:
        return len(self._heads)
