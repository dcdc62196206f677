"""The garden: planted faults that train without any exception, and ten healthy experiments."""

import pytest

pytest.register_assert_rewrite("tests.garden.proof")
