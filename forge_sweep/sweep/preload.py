"""What the fork server of the workers imports, so that each process starts with it and they share its memory.

Imports only: a computation would start threads, and a process forked after that hangs at its first own computation.
"""

import signal
import sys

from forge_sweep import training
from forge_sweep.sweep import jobs

__all__ = ["jobs"]

if "multiprocessing.forkserver" in " ".join(sys.orig_argv):
    # A batch system ends a job by SIGTERM to all its processes; the sweep then ends its trials in order, and us after.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

training.load_backend()
training.settle()
