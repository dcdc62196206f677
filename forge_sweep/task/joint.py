"""Several heads as one task: their targets stand side by side in one array, and so do their outputs.

So training, bundles and comparisons see one network with one target, and every figure still says which head it is of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.task.metrics import NO_END, Direction, Gap, Values
from forge_sweep.task.task import DEFAULT_THRESHOLD, Task, free_name

if TYPE_CHECKING:
    import pandas as pd

TOTAL_LOSS = "total_loss"
"""The losses of the heads, summed by weight: what `Task.loss_of` is."""


def joint_metrics(
    heads: Mapping[str, Mapping[str, Direction]], sums: Mapping[str, Mapping[str, float]]
) -> dict[str, Direction]:
    """Metrics of several heads, ``<head>_<metric>``, with their total loss and the weighted sums of them.

    More of a sum is better where that holds for each of its terms; ValueError where its terms contradict each other.
    """
    found = {f"{head}_{name}": better for head, metrics in heads.items() for name, better in metrics.items()}
    found[TOTAL_LOSS] = "minimize"
    for name, terms in sums.items():
        ups = {(found[term] == "maximize") == (weight > 0) for term, weight in terms.items()}
        if len(ups) > 1:
            raise ValueError(f"more of {name} is neither better nor worse")
        found[name] = "maximize" if ups == {True} else "minimize"
    return found


@dataclass(frozen=True)
class Joint(Task):
    """Several tasks that one network learns.

    Targets and outputs of the heads stand side by side in their order; a class code is one column of targets. A label
    of a binary or multilabel head holds from a probability of 0.5.

    Attributes:
        names: of the heads.
        tasks: of the heads.
        weights: of the heads' losses in the loss of the network.
        sums: named weighted sums of the heads' metrics, as ((name, ((metric, weight), ...)), ...).
    """

    names: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ()
    weights: tuple[float, ...] = ()
    sums: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = ()

    @classmethod
    def of(
        cls,
        heads: Mapping[str, Task],
        weights: Sequence[float],
        sums: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = (),
    ) -> Joint:
        """The task of these heads."""
        targets = tuple(name for task in heads.values() for name in task.targets)
        names, tasks = tuple(heads), tuple(heads.values())
        return cls("joint", targets, (), False, "", "joint", False, (), (), names, tasks, tuple(weights), sums)

    @property
    def heads(self) -> dict[str, Task]:
        """See `Task.heads`."""
        return dict(zip(self.names, self.tasks, strict=True))

    @property
    def units(self) -> int:
        """Output units of all heads."""
        return sum(task.units for task in self.tasks)

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each head's encoded targets."""
        return tuple(1 if task.kind == "multiclass" and not task.one_hot else task.units for task in self.tasks)

    def apart(self, encoded: np.ndarray, outputs: np.ndarray) -> Iterator[tuple[str, Task, np.ndarray, np.ndarray]]:
        """See `Task.apart`."""
        begin = 0
        for (name, task, its), width in zip(self._outputs(outputs), self.widths, strict=True):
            own = encoded[:, begin : begin + width]
            coded = task.kind == "multiclass" and not task.one_hot
            yield f"{name}_", task, own[:, 0].astype(np.int32) if coded else own, its
            begin += width

    def _outputs(self, outputs: np.ndarray) -> Iterator[tuple[str, Task, np.ndarray]]:
        begin = 0
        for name, task in zip(self.names, self.tasks, strict=True):
            yield name, task, outputs[:, begin : begin + task.units]
            begin += task.units

    @property
    def metrics(self) -> dict[str, Direction]:
        """See `Task.metrics`."""
        of_heads = {name: task.metrics for name, task in self.heads.items()}
        return joint_metrics(of_heads, {name: dict(terms) for name, terms in self.sums})

    def direction(self, metric: str) -> Direction:
        """See `Task.direction`."""
        known = self.metrics
        name = metric if metric in known else metric.partition("_")[2]  # without the split
        if name == "loss":
            return "minimize"
        if name not in known:
            raise ValueError(f"these heads have no metric {metric!r}; they have {', '.join(known)} and loss")
        return known[name]

    def limits(self, metric: str) -> tuple[float, float]:
        """See `Task.limits`."""
        of_heads = {f"{name}_{each}": task.limits(each) for name, task in self.heads.items() for each in task.metrics}
        of_losses = dict.fromkeys(("loss", TOTAL_LOSS), (0.0, NO_END))
        return {**of_heads, **of_losses}.get(metric, (-NO_END, NO_END))

    def scored_as(self, objective: str) -> str:
        """See `Task.scored_as`."""
        name = objective.removeprefix("val_")
        return TOTAL_LOSS if name == "loss" else name

    def encode(self, targets: pd.DataFrame) -> np.ndarray:
        """Targets of all heads side by side, (n, sum of the widths) float32; see `Task.encode`."""
        parts = [task.encode(targets).reshape(len(targets), -1).astype(np.float32) for task in self.tasks]
        return np.concatenate(parts, axis=1)

    def truth(self, encoded: np.ndarray) -> np.ndarray:
        """Each head has its own, see `apart`."""
        raise TypeError("several heads have no common truth")

    def to_scores(self, outputs: np.ndarray) -> np.ndarray:
        """See `Task.to_scores`; each head's scores stand where its outputs were."""
        return np.concatenate([task.to_scores(own) for _, task, own in self._outputs(np.asarray(outputs))], axis=1)

    def parts(self, encoded: np.ndarray, scores: np.ndarray, threshold: float, wanted: Collection[str]) -> list[Values]:
        """See `Task.parts`."""
        losses = {f"{name}_loss": weight for name, weight in zip(self.names, self.weights, strict=True)}
        known = {"loss": losses, TOTAL_LOSS: losses, **{name: dict(terms) for name, terms in self.sums}}
        sums = {name: terms for name, terms in known.items() if name in wanted}
        needed = {*wanted}.union(*sums.values())
        if TOTAL_LOSS in needed:  # as a term of a sum
            needed |= {*losses}
        found: list[tuple[str, Values]] = []
        for prefix, task, own, its in self.apart(encoded, scores):
            mine = [name for name in task.metrics if f"{prefix}{name}" in needed]
            of_head = task.parts(own, its, threshold, mine) if mine else []
            of_head += task.parts(own, its, threshold, ("loss",)) if f"{prefix}loss" in needed else []
            found += [(prefix, values) for values in of_head]

        def values(counts: np.ndarray) -> dict[str, np.ndarray]:
            each = {f"{prefix}{name}": value for prefix, part in found for name, value in part(counts).items()}
            if {*losses} <= {*each}:
                each[TOTAL_LOSS] = np.sum([weight * each[name] for name, weight in losses.items()], axis=0)
            summed = {
                name: np.sum([w * each[term] for term, w in terms.items()], axis=0) for name, terms in sums.items()
            }
            return {name: value for name, value in {**each, **summed}.items() if name in wanted}

        return [values]

    def constant(self, encoded: np.ndarray) -> tuple[float, ...]:
        """See `Task.constant`."""
        return tuple(value for _, task, own, _ in self.apart(encoded, encoded) for value in task.constant(own))

    def loss_of(self, encoded: np.ndarray, outputs: np.ndarray) -> float:
        """See `Task.loss_of`."""
        losses = [task.loss_of(own, its) for _, task, own, its in self.apart(encoded, outputs)]
        return float(np.dot(self.weights, losses))

    def chance(self) -> tuple[float, str]:
        """See `Task.chance`."""
        each = [task.chance() for task in self.tasks]
        words = [f"{weight:g} x {formula}" for weight, (_, formula) in zip(self.weights, each, strict=True)]
        return float(np.dot(self.weights, [loss for loss, _ in each])), " + ".join(words)

    def fewest(self, encoded: np.ndarray) -> int:
        """See `Task.fewest`; of the head that has the fewest."""
        return min(task.fewest(own) for _, task, own, _ in self.apart(encoded, encoded))

    def gaps(self, encoded: np.ndarray) -> tuple[Gap, ...]:
        """See `Task.gaps`; a sum is not defined where one of its terms is not."""
        found = []
        for prefix, task, own, _ in self.apart(encoded, encoded):
            for gap in task.gaps(own):
                metrics = {f"{prefix}{name}" for name in gap.metrics}
                sums = [name for name, terms in self.sums if not metrics.isdisjoint(dict(terms))]
                found.append(Gap((*sorted(metrics), *sums), gap.seen, gap.whole))
        return tuple(found)

    def best_threshold(self, encoded: np.ndarray, scores: np.ndarray) -> float:
        """The default: one threshold cannot be the best one of several heads."""
        return DEFAULT_THRESHOLD

    def columns(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """See `Task.columns`; all begin with the name of the head, which is all that one regression target has."""
        scores: tuple[str, ...] = ()
        labels: tuple[str, ...] = ()
        for head, task in self.heads.items():
            for name in task.columns()[0]:
                own = head if task.kind == "regression" and task.units == 1 else f"{head}_{name}"
                scores += (free_name(own, (*scores, *labels), f"{head}_"),)
            for name in task.columns()[1]:
                labels += (free_name(f"{head}_{name}", (*scores, *labels), f"{head}_"),)
        return scores, labels

    def predictions(self, scores: np.ndarray, threshold: float = DEFAULT_THRESHOLD) -> pd.DataFrame:
        """See `Task.predictions`: those of all heads beside each other, under the names of `columns`."""
        import pandas as pd

        new_scores, new_labels = (iter(names) for names in self.columns())
        frames = []
        for _, task, own in self._outputs(scores):
            frame = task.predictions(own, threshold)
            names = {name: next(new_scores) for name in task.columns()[0]}
            names |= {name: next(new_labels) for name in task.columns()[1]}
            frames.append(frame.rename(columns=names))
        return pd.concat(frames, axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values; labels keep their type."""
        heads = {name: task.to_dict() for name, task in self.heads.items()}
        sums = {name: dict(terms) for name, terms in self.sums}
        about = {"kind": self.kind, "targets": list(self.targets), "classes": []}
        return {**about, "heads": heads, "weights": list(self.weights), "sums": sums}


def task_of(data: Mapping[str, Any]) -> Task:
    """The task that `Task.to_dict` described, of one head or of several."""
    if data["kind"] != "joint":
        return Task.from_dict(data)
    sums = tuple((name, tuple(terms.items())) for name, terms in data["sums"].items())
    return Joint.of({name: Task.from_dict(task) for name, task in data["heads"].items()}, data["weights"], sums)
