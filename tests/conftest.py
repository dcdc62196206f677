"""What every test starts from: none of the user's own stores."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tests import schemas

pytest_plugins = ["tests.postgres"]

# A busy machine fails no test: hypothesis would measure how long examples take.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

LONGEST = (
    *("workers_ray", "sweep", "cli", "sweep_workers", "joining", "own_sweep", "heads", "end_to_end", "two_inputs"),
    *("broken_surroundings", "garden_data", "budget", "sweep_resume", "walk", "garden_training", "losses_more"),
    *("gates", "serving_life", "data_drift", "outages", "registry", "own_preflight", "in_model", "verdict"),
    *("feature_store_killed", "contest", "reproduce", "deterministic", "recorded", "networks", "epoch", "one_server"),
)
"""Files of one to five minutes, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first: one that began last would be run by one process while the others have no work."""
    place = {f"test_{name}.py": at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(autouse=True, scope="session")
def one_schema_of_mlflow(tmp_path_factory: pytest.TempPathFactory) -> None:
    """MLflow's migrations run once in each test process, not for each new store."""
    schemas.copy_one(tmp_path_factory.mktemp("schema") / "mlflow.db")


@pytest.fixture(autouse=True)
def no_stores_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's variables nor what another test's `mlflow.set_tracking_uri` exported says where runs go.

    Nor does what JAX exported when another test imported it say how much TensorFlow prints in a process of its own.
    """
    foreign = ("MLFLOW_TRACKING", "MLFLOW_REGISTRY", "FORGE_SWEEP_", "TF_CPP_MIN_LOG_LEVEL")
    for name in [name for name in os.environ if name.startswith(foreign)]:
        monkeypatch.delenv(name)
