"""A real Ray for tests: skipped with a reason where the extra is not installed, and an error where CI is to have it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

STORE_BYTES = 100_000_000


def require_ray() -> None:
    """Skip the module where there is no Ray."""
    if importlib.util.find_spec("ray") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Ray is not installed: pip install -e '.[ray]'", pytrace=False)
        pytest.skip("Ray is not installed: pip install -e '.[ray]'", allow_module_level=True)


@contextmanager
def cluster(**head: Any) -> Iterator[Any]:
    """A cluster of one node, to which tests add others; `RAY_ADDRESS` says where.

    Args:
        head: resources of the first node, such as ``num_cpus``.
    """
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options = {"object_store_memory": STORE_BYTES, "include_dashboard": False, **head}
    made = Cluster(initialize_head=True, head_node_args=options)
    try:
        yield made
    finally:
        made.shutdown()
        os.environ.clear()
        os.environ.update(before)
