"""Embeddings of numbers: every column becomes several values before the first dense layer sees it.

Gorishniy, Rubachev and Babenko 2022, "On Embeddings for Numerical Features in Tabular Deep Learning"
(https://arxiv.org/abs/2203.05556).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

MOST = 4096
"""Limit for each size that a configuration names, so that one from elsewhere cannot fill memory with a few words."""


class NumberEmbedding(keras.layers.Layer):  # type: ignore[misc,unused-ignore]
    """What the embeddings of this module share: which columns are embedded, and in what shape they are given.

    It computes in float32 under mixed precision too, and gives what the policy asks for: bins and waves are too narrow
    for 16 bits.

    Args:
        dims: values that a column becomes, 1 to `MOST`.
        flatten: give (rows, values) for dense layers; else (rows, columns, dims) for a transformer, in which every
            column is embedded.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, dims: int, flatten: bool, **kwargs: Any) -> None:
        super().__init__(**{"autocast": False, **kwargs})
        self.dims, self.flatten = whole("dims", dims), bool(flatten)
        self.plain: tuple[int, ...] = ()
        self.embedded: tuple[int, ...] = ()

    @property
    def sources(self) -> tuple[int, ...]:
        """The column that each flattened value comes from, once the layer is built."""
        return (*np.repeat(self.embedded, self.dims).tolist(), *self.plain)

    def _split(self, shape: Sequence[Any], plain: Sequence[int]) -> None:
        """Tell the columns that are embedded from those that are passed on as they are."""
        if len(shape) != 2 or shape[1] is None:
            raise ValueError(f"{type(self).__name__} takes (rows, columns), got {tuple(shape)}")
        if beyond := [column for column in plain if not 0 <= column < shape[1]]:
            raise ValueError(f"{type(self).__name__}: {beyond} are no columns of {shape[1]}")
        self.plain = tuple(sorted({*plain})) if self.flatten else ()
        self.embedded = tuple(column for column in range(shape[1]) if column not in set(self.plain))

    def weight(self, name: str, shape: tuple[int, ...], initializer: Any) -> Any:
        """A weight that stays float32 under mixed precision."""
        return self.add_weight(shape=shape, initializer=initializer, name=name, autocast=False)

    def call(self, inputs: Any) -> Any:
        """Embed (rows, columns)."""
        rows = ops.cast(inputs, "float32")
        if not self.embedded:
            return ops.cast(rows, self.compute_dtype)
        columns = ops.take(rows, np.asarray(self.embedded, "int32"), axis=1) if self.plain else rows
        found = self.embed(columns)
        if self.flatten:
            found = ops.reshape(found, (-1, len(self.embedded) * self.dims))
        if self.plain:
            found = ops.concatenate([found, ops.take(rows, np.asarray(self.plain, "int32"), axis=1)], axis=1)
        return ops.cast(found, self.compute_dtype)

    def embed(self, columns: Any) -> Any:
        """(rows, embedded, dims) of (rows, embedded), float32."""
        raise NotImplementedError

    def compute_output_shape(self, input_shape: Sequence[Any]) -> tuple[Any, ...]:
        """(rows, values), or (rows, columns, dims)."""
        if self.flatten:
            return (input_shape[0], len(self.embedded) * self.dims + len(self.plain))
        return (input_shape[0], len(self.embedded), self.dims)

    def get_config(self) -> dict[str, Any]:
        """What the layer is made of."""
        return {**super().get_config(), "dims": self.dims, "flatten": self.flatten}


@keras.saving.register_keras_serializable(package="forge_sweep")
class PiecewiseLinear(NumberEmbedding):
    """Piecewise-linear embedding: ``x w + b + V PLE(x)`` for each column, with weights of its own.

    PLE has a component per bin: 0 left of the bin, 1 right of it, linear within; the first bin is open to the left, the
    last to the right (equation 1 of the paper). V is zero at the start, so training begins with a linear embedding;
    there is no activation ("version B", Gorishniy, Kotelnikov and Babenko 2024, https://arxiv.org/abs/2410.24210).

    Bins are between quantiles of training rows, learned by `adapt`, or given as ``edges``. A column with fewer distinct
    values has fewer bins. One with two, such as an indicator or a one-hot category, is passed on as it is where
    ``flatten``, since one bin says no more than the number itself; these stand behind the embedded ones (`sources`).

    Args:
        dims: values that a column becomes.
        bins: most bins of a column, 2 to `MOST`; `adapt` goes by it.
        edges: of the bins, for each column in increasing order; two or fewer mean that it has one bin and is no more
            than linear.
        flatten: (rows, values) for dense layers; False: (rows, columns, dims).
        **kwargs: of `keras.layers.Layer`.

    Raises:
        ValueError: sizes or edges that are none.

    Example::

        numbers = PiecewiseLinear(dims=12, bins=32)
        numbers.adapt(inputs["features"].rows)
        hidden = numbers(inputs["features"])
    """

    def __init__(
        self,
        dims: int = 12,
        bins: int = 32,
        edges: Sequence[Sequence[float]] | None = None,
        flatten: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(dims, flatten, **kwargs)
        self.bins = whole("bins", bins, least=2)
        self.edges = None if edges is None else [_increasing(each) for each in edges]
        self.is_adapted = edges is not None

    def adapt(self, rows: Any) -> None:
        """Learn the edges from training rows, (rows, columns), before the layer is called for the first time.

        They are unique quantiles of each column. None, as where the size of a model is asked for before there are rows,
        stands for columns that are normally distributed.

        Raises:
            ValueError: the layer is built already, or there are no rows.
        """
        if self.built:
            raise ValueError(f"{self.name} has its bins already; adapt it before it is called")
        self.is_adapted = True
        if rows is None:
            self.edges = None
            return
        values = np.asarray(rows, "float32")
        if values.ndim != 2 or not len(values):
            raise ValueError(f"{self.name}: expected rows to learn the bins from, (rows, columns), got {values.shape}")
        shares = np.linspace(0, 1, self.bins + 1)
        self.edges = [_edges(column[np.isfinite(column)], shares) for column in values.T]

    def build(self, input_shape: Sequence[Any]) -> None:
        """Make the weights."""
        if not self.is_adapted:
            raise ValueError(f"{self.name} knows no bins; give it edges, or adapt it to training rows")
        self._split(input_shape, ())
        width = input_shape[1]
        if self.edges is None:
            self.edges = [np.linspace(-3, 3, self.bins + 1, dtype="float32").tolist() for _ in range(width)]
        if len(self.edges) != width:
            raise ValueError(f"{self.name} has edges for {len(self.edges)} columns, and there are {width}")
        self._split(input_shape, [column for column, each in enumerate(self.edges) if len(each) < 3])
        if not self.embedded:
            return
        count = max(1, *(len(self.edges[column]) - 1 for column in self.embedded))
        # (columns, 1, bins), which what is laid out as (columns, rows, bins) meets. Missing bins are always 0.
        left, slope, least, most = self._bins = np.zeros((4, len(self.embedded), 1, count), "float32")
        for row, column in enumerate(self.embedded):
            edges = np.asarray(self.edges[column], "float32")
            if (found := len(edges) - 1) < 2:
                continue  # linear as it is
            left[row, 0, :found], slope[row, 0, :found] = edges[:-1], 1 / np.diff(edges)
            most[row, 0, :found] = [*[1.0] * (found - 1), np.inf]
            least[row, 0, 0] = -np.inf
        shape, limit = (len(self.embedded), 1, self.dims), self.dims**-0.5
        self.linear = self.weight("linear", shape, _uniform(limit))
        self.bias = self.weight("bias", shape, _uniform(limit))
        self.kernel = self.weight("kernel", (len(self.embedded), count, self.dims), "zeros")

    def embed(self, columns: Any) -> Any:
        """One matrix product per column, with the bins beside the number itself.

        Several forms were timed (docs/decisions/0043-layers-for-tables.md); this one was the fastest on CPUs.
        """
        numbers = ops.expand_dims(ops.transpose(columns), 2)
        left, slope, least, most = map(ops.convert_to_tensor, self._bins)
        shares = ops.maximum(ops.minimum((numbers - left) * slope, most), least)
        both = ops.concatenate([numbers, shares], axis=2)
        found = ops.matmul(both, ops.concatenate([self.linear, self.kernel], axis=1)) + self.bias
        return ops.transpose(found, (1, 0, 2))

    def get_config(self) -> dict[str, Any]:
        """What the layer is made of, its edges among it."""
        return {**super().get_config(), "bins": self.bins, "edges": self.edges}


@keras.saving.register_keras_serializable(package="forge_sweep")
class Periodic(NumberEmbedding):
    """Periodic embedding: waves of trainable frequencies, then a linear map for each column.

    ``plr``: ``ReLU(W [cos(2 pi c x), sin(2 pi c x)] + b)``, c ~ N(0, sigma) (section 3.3 of the paper, "PLR").
    ``pbld``: ``x`` itself beside ``W cos(2 pi c x + d) + b`` in ``dims - 1`` values without activation, d ~ U(-pi, pi)
    (RealMLP; Holzmüller, Grinsztajn and Steinwart 2024, https://arxiv.org/abs/2407.04491).

    ``sigma`` matters most: search it from 0.01 to 1 on a log scale.

    Args:
        dims: values that a column becomes; 2 or more for ``pbld``.
        frequencies: of each column.
        sigma: standard deviation of the first frequencies; inputs are expected to be scaled.
        form: ``plr`` or ``pbld``.
        lite: one linear map for all columns, which then differ by their frequencies alone ("PLR (lite)").
        plain: positions of columns that are passed on as they are, where ``flatten``; see `adapt`.
        flatten: (rows, values) for dense layers; False: (rows, columns, dims).
        **kwargs: of `keras.layers.Layer`.

    Raises:
        ValueError: sizes that are none, or another form.
    """

    def __init__(
        self,
        dims: int = 24,
        frequencies: int = 48,
        sigma: float = 0.1,
        form: str = "plr",
        lite: bool = False,
        plain: Sequence[int] = (),
        flatten: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(dims, flatten, **kwargs)
        self.frequencies = whole("frequencies", frequencies)
        if form not in ("plr", "pbld"):
            raise ValueError(f"form = {form!r}: expected plr or pbld")
        if form == "pbld":
            whole("dims of pbld", dims, least=2)
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma = {sigma!r}: expected a number above 0")
        self.sigma, self.form, self.lite = float(sigma), form, bool(lite)
        self.passed = [whole("plain", each, least=0, most=2**31) for each in plain]

    def adapt(self, rows: Any) -> None:
        """Pass on the columns of training rows, (rows, columns), that have at most two values; None has none.

        Raises:
            ValueError: the layer is built already.
        """
        if self.built:
            raise ValueError(f"{self.name} has its weights already; adapt it before it is called")
        values = np.zeros((0, 0)) if rows is None else np.asarray(rows)
        self.passed = [position for position, column in enumerate(values.T) if len(np.unique(column)) < 3]

    def build(self, input_shape: Sequence[Any]) -> None:
        """Make the weights."""
        self._split(input_shape, self.passed)
        if not self.embedded:
            return
        bends = self.form == "pbld"
        count, waves, given = len(self.embedded), self.frequencies * (1 if bends else 2), self.dims - bends
        limit, columns = waves**-0.5, 1 if self.lite else count
        spread = keras.initializers.RandomNormal(0.0, self.sigma)
        self.waves = self.weight("waves", (count, 1, self.frequencies), spread)
        if bends:
            self.phases = self.weight("phases", (count, 1, self.frequencies), _uniform(math.pi))
        self.kernel = self.weight("kernel", (columns, waves, given), _uniform(limit))
        self.bias = self.weight("bias", (columns, 1, given), _uniform(limit))

    def embed(self, columns: Any) -> Any:
        """Waves, then one matrix product per column."""
        numbers = ops.expand_dims(ops.transpose(columns), 2)
        angles = 2 * math.pi * numbers * self.waves
        if self.form == "pbld":
            bent = ops.matmul(ops.cos(angles + self.phases), self.kernel) + self.bias
            found = ops.concatenate([numbers, bent], axis=2)
        else:
            both = ops.concatenate([ops.cos(angles), ops.sin(angles)], axis=2)
            found = ops.relu(ops.matmul(both, self.kernel) + self.bias)
        return ops.transpose(found, (1, 0, 2))

    def get_config(self) -> dict[str, Any]:
        """What the layer is made of."""
        parts = {"frequencies": self.frequencies, "sigma": self.sigma, "form": self.form, "lite": self.lite}
        return {**super().get_config(), **parts, "plain": self.passed}


def _uniform(limit: float) -> Any:
    return keras.initializers.RandomUniform(-limit, limit)


def whole(name: str, value: Any, least: int = 1, most: int = MOST) -> int:
    """A size that is one; ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise ValueError(f"{name} = {value!r}: expected a whole number from {least} to {most}")
    return int(value)


def _increasing(edges: Sequence[float]) -> list[float]:
    """Edges of one column, as they are written into a configuration."""
    values = np.asarray(edges, "float32")
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        slopes = 1 / np.diff(values) if values.ndim == 1 else np.array([np.nan])
    if not (np.isfinite(values).all() and np.isfinite(slopes).all() and (slopes > 0).all()):
        raise ValueError(f"edges = {edges!r:.80}: expected finite numbers in increasing order, for each column")
    if len(values) > MOST + 1:
        raise ValueError(f"edges: {len(values)} of one column, expected at most {MOST + 1}")
    return [float(value) for value in values]


def _edges(column: np.ndarray, shares: np.ndarray) -> list[float]:
    """Unique quantiles of a column; those whose distance has no reciprocal in float32 are one."""
    if not len(column):
        return []
    found = np.unique(np.quantile(column, shares, method="linear").astype("float32"))
    distinct = np.unique(column)
    if len(distinct) <= len(shares):
        found = distinct  # every value is an edge: a quantile between two of them is no bin of its own
    kept = np.concatenate([[True], np.diff(found) > 1e-30])
    return [float(value) for value in found[kept]]
