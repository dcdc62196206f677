"""From any exception of a trial to its failure class and a one-line cause.

A sweep stops after three failures in a row with the same cause: what differs from trial to trial is taken out.
"""

from __future__ import annotations

import re
from concurrent.futures import BrokenExecutor

from forge_sweep.errors import Failure, InputError, TrialFailed
from forge_sweep.models import cause, where

# Class names instead of classes: no backend is imported to find out that it was not the one.
_OUT_OF_MEMORY = ("ResourceExhaustedError", "OutOfMemoryError", "MemoryError", "_ArrayMemoryError")
_OUT_OF_MEMORY_TEXT = re.compile(r"RESOURCE_EXHAUSTED|out of memory|bad_alloc|OOM when allocating", re.IGNORECASE)
_GPU_LOST_TEXT = re.compile(
    r"CUDA_ERROR_(LAUNCH_FAILED|ILLEGAL_ADDRESS|ECC_UNCORRECTABLE|DEVICE_UNAVAILABLE|NO_DEVICE|UNKNOWN|DEINITIALIZED)"
    r"|GPU (is lost|has fallen off the bus)|device[- ]side assert|failed to synchronize",
    re.IGNORECASE,
)
"""What the driver says once a device or its context is gone; no later computation of the process can succeed."""
_DIVERGED_TEXT = re.compile(r"Tensor had (NaN|Inf)|loss is (nan|inf)\b", re.IGNORECASE)
_DATA_TEXT = re.compile(r"Input [Xy] contains|contains (NaN|infinity)|[Ll]abel.* contains", re.IGNORECASE)

_VARYING = (
    (re.compile(r"0x[0-9a-fA-F]+"), "0x..."),
    (re.compile(r"(?<=[A-Za-z])_\d+\b"), "_N"),  # dense_12, functional_7
    (re.compile(r"(?<![\w.])/[^\s'\":,)]+/"), ".../"),  # folders of this machine or run
)


def classify(error: BaseException) -> TrialFailed:
    """The failure of whatever ended a trial, to raise ``from error``; a ``TrialFailed`` is returned as it is.

    It names the line of the user's own builder that the error passed last.
    """
    if isinstance(error, TrialFailed):
        return error
    failure = _failure(error)
    if failure == "out-of-memory":
        hint = f"lower batch_size, width or depth under [model.search]; {cause(error)}"
        return TrialFailed(failure, f"out of memory ({type(error).__name__})", hint=hint)
    text = cause(error) or "no message"
    for pattern, replacement in _VARYING:
        text = pattern.sub(replacement, text)
    place = f" ({found})" if (found := where(error)) else ""
    return TrialFailed(failure, f"{type(error).__name__}: {text}{place}", hint=getattr(error, "hint", ""))


def _failure(error: BaseException) -> Failure:
    text = str(error)
    if type(error).__name__ in _OUT_OF_MEMORY or isinstance(error, MemoryError) or _OUT_OF_MEMORY_TEXT.search(text):
        return "out-of-memory"
    if isinstance(error, BrokenExecutor) or _GPU_LOST_TEXT.search(text):
        return "lost-worker"
    if isinstance(error, TimeoutError):
        return "time-out"
    if isinstance(error, FloatingPointError) or _DIVERGED_TEXT.search(text):
        return "diverged"
    if isinstance(error, InputError) or (isinstance(error, ValueError) and _DATA_TEXT.search(text)):
        return "data"
    return "code"
