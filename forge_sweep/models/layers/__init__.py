"""Layers for tables, for `keras.Model`s of your own as for the package's. Imports Keras.

They use `keras.ops` alone, and so compute the same on TensorFlow, JAX and PyTorch. All are registered with Keras under
the package name ``forge_sweep``, and a bundle that has them needs no ``--trust``.
"""

from __future__ import annotations

from forge_sweep.models.layers.members import MemberDense, MemberLoss, MemberOutput, Members
from forge_sweep.models.layers.numbers import Periodic, PiecewiseLinear
from forge_sweep.models.layers.tangent import NTPDense, ParametricActivation, Scale
from forge_sweep.models.layers.tokens import FeatureTokens

__all__ = [
    "FeatureTokens",
    "MemberDense",
    "MemberLoss",
    "MemberOutput",
    "Members",
    "NTPDense",
    "ParametricActivation",
    "Periodic",
    "PiecewiseLinear",
    "Scale",
]
