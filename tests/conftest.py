"""What every test starts from: none of the user's own stores."""

from __future__ import annotations

import os

import pytest

pytest_plugins = ["tests.postgres"]


@pytest.fixture(autouse=True)
def no_stores_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's variables nor what another test's `mlflow.set_tracking_uri` exported says where runs go."""
    foreign = ("MLFLOW_TRACKING", "MLFLOW_REGISTRY", "FORGE_SWEEP_")
    for name in [name for name in os.environ if name.startswith(foreign)]:
        monkeypatch.delenv(name)
