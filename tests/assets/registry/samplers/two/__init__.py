"""Two samplers; one needs what no experiment file can give."""

from optuna.samplers import RandomSampler

__all__ = ["NeedySampler", "PlainSampler"]


class PlainSampler(RandomSampler):
    """Random."""


class NeedySampler(RandomSampler):
    """Wants to know more."""

    def __init__(self, search_space: object, seed: int | None = None) -> None:
        super().__init__(seed=seed)
