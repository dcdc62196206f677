"""From raw feature columns to the float32 matrix of a model. Everything here is learned on the training rows only.

The matrix has these blocks of columns, each in the order of the schema:

1. numeric columns: imputed, then scaled;
2. boolean columns as 0 and 1: imputed with the more frequent value, never scaled;
3. one indicator ``<column>=(missing)`` per numeric or boolean column that was missing somewhere in train;
4. per categorical column one output ``<column>=<category>`` for each of the ``max_categories`` most frequent categories
   of train (ties by name), ``<column>=(other)`` where train had more of them, and ``<column>=(missing)`` where it was
   missing somewhere in train.

What train did not have: a missing number or boolean takes the imputed value, an unseen category is (other) where that
output exists, and else all zeros; so is a missing category.
"""

from __future__ import annotations

from forge_sweep.preprocessing.array_files import ArrayFile, Mapped, MappedArray, in_memory, mapped
from forge_sweep.preprocessing.inputs import (
    FEATURES,
    NO_TENSORS,
    Batch,
    Codes,
    Group,
    InputSpec,
    Spec,
    Tensor,
    Values,
    by_default,
    declared,
    one_matrix,
    resolved,
    with_rows,
)
from forge_sweep.preprocessing.preprocessor import Preprocessor
from forge_sweep.preprocessing.rows import Misfit, RowsRefused, RowTransform
from forge_sweep.preprocessing.schema import CODE, UNKNOWN, Column, Kind, Schema
from forge_sweep.preprocessing.streaming import (
    STORED,
    Coded,
    Normalization,
    fit_stream,
    from_store,
    name_of,
    same_settings,
)
from forge_sweep.preprocessing.tensors import cells, images, is_tensor

__all__ = [
    "CODE",
    "FEATURES",
    "NO_TENSORS",
    "STORED",
    "UNKNOWN",
    "ArrayFile",
    "Batch",
    "Coded",
    "Codes",
    "Column",
    "Group",
    "InputSpec",
    "Kind",
    "Mapped",
    "MappedArray",
    "Misfit",
    "Normalization",
    "Preprocessor",
    "RowTransform",
    "RowsRefused",
    "Schema",
    "Spec",
    "Tensor",
    "Values",
    "by_default",
    "cells",
    "declared",
    "fit_stream",
    "from_store",
    "images",
    "in_memory",
    "is_tensor",
    "mapped",
    "name_of",
    "one_matrix",
    "resolved",
    "same_settings",
    "with_rows",
]
