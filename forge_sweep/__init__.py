"""Hyperparameter sweeps for Keras: one TOML file in, one registered model out.

Importing this package is cheap: TensorFlow, MLflow and Optuna are imported by the functions that need them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forge_sweep.api import Sweep, export_model, load_model

__version__ = "0.1.0"
__all__ = ["Sweep", "__version__", "export_model", "load_model"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from forge_sweep import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
