"""The bundle as an MLflow pyfunc model: raw rows in, predictions out.

MLflow imports this code from the installed package (``loader_module``); the registered artefact is plain data, so it
loads with ``MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from forge_sweep.bundle import Bundle


class BundleModel:
    """What ``mlflow.pyfunc.load_model`` holds.

    Attributes:
        bundle: the loaded bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Predictions for raw rows, index kept; the order of the columns does not matter.

        Args:
            model_input: a frame with the columns of the training data.
            params: what MLflow hands on; the bundle has no parameters.

        Raises:
            SchemaError: a column is missing or mistyped.
        """
        return self.bundle.predict(model_input)


def _load_pyfunc(path: str) -> BundleModel:
    """Called by MLflow with the bundle's folder inside the downloaded model."""
    from forge_sweep.bundle import Bundle

    return BundleModel(Bundle.load(Path(path)))
