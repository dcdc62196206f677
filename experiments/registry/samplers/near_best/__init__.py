"""A package as OptunaHub has them: its `__init__.py` exports the sampler."""

from .sampler import NearBestSampler

__all__ = ["NearBestSampler"]
