"""A bundle in the format of another runtime, with its preprocessing where the format can hold it.

An export leaves behind the checks of the schema (it answers rows that a bundle refuses), the threshold and the labels.
"""

from __future__ import annotations

from forge_sweep.exports.base import Format, Input, Unexportable, feed, inputs_of
from forge_sweep.exports.export import FORMATS, Exported, export, format_of, write_raw

__all__ = [
    "FORMATS",
    "Exported",
    "Format",
    "Input",
    "Unexportable",
    "export",
    "feed",
    "format_of",
    "inputs_of",
    "write_raw",
]
