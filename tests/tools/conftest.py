import pytest

from tests import tiny_networks  # noqa: F401, registers them


@pytest.fixture(autouse=True, scope="module")
def _without_kernels(without_kernels: None) -> None:
    """What commands print and write does not depend on what computes it."""
