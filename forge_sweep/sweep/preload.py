"""What the fork server of the workers imports, so that each process starts with it and they share its memory.

Imports only: a computation would start threads, and a process forked after that hangs at its first own computation.
"""

from forge_sweep import training
from forge_sweep.sweep import orders

__all__ = ["orders"]

training.load_backend()
training.settle()
