"""Making a new process ready to train: backend, threads, GPU."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

from forge_sweep.errors import one_line
from forge_sweep.training.backend import accelerators, limit_threads, load_backend, select_backend, settle
from forge_sweep.workers import WorkerUnfit


@dataclass(frozen=True)
class Setup:
    """Makes a new process ready for orders.

    Attributes:
        backend: of Keras.
        threads: that one operation, and independent operations, may use; 0 leaves it to the backend.
    """

    backend: str
    threads: int

    def __call__(self) -> None:
        """Import the backend and settle its threads, before its first operation."""
        warnings.showwarning = say_once
        select_backend(self.backend)
        load_backend()
        limit_threads(self.threads)
        require_gpu(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        settle()


def say_once(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A library's warning in a worker process, on standard error, without its place in the library's code."""
    text = one_line(message)
    if text not in _said:
        _said.add(text)
        sys.stderr.write(f"warning: {text}\n")


_said: set[str] = set()


def require_gpu(given: str) -> None:
    """Refuse to compute on the CPU in silence where a process was given a GPU that is not there, or not any more.

    Args:
        given: ``CUDA_VISIBLE_DEVICES``; empty and ``-1`` give none.

    Raises:
        WorkerUnfit: the backend sees none.
    """
    if given in ("", "-1") or accelerators():
        return
    raise WorkerUnfit(f"it was given GPU {given}, and the backend sees none")


def as_variables(threads: int) -> Mapping[str, str]:
    """Thread counts of the libraries that read them when they are imported."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return dict.fromkeys(names, str(threads))
