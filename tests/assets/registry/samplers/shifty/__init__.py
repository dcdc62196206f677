"""A sampler that cannot be told a seed, and so cannot be asked the same twice."""

from optuna.samplers import RandomSampler

__all__ = ["ShiftySampler"]


class ShiftySampler(RandomSampler):
    """Seeded by the clock."""

    def __init__(self) -> None:
        super().__init__()
