"""What the tests of Triton's kernels share."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from downmix.ops import _define

from .random_cases import DEVICE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "triton_for_all" in getattr(item, "fixturenames", ()):  # whose numpy warns about NaN and infinity
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))


@pytest.fixture
def triton_for_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's kernels run on the CPU as well, in its interpreter; without Triton the tests are skipped."""
    pytest.importorskip("triton")
    common = importlib.import_module("downmix.kernels.triton._common")
    here = common.Launch.here

    def launched_with_what_it_was_compiled_for(launch: Any, *tensors: torch.Tensor) -> None:
        """As a launch keeps its code, another dtype would be read and written as the first; the interpreter has no
        code."""
        dtypes = [tensor.dtype for tensor in tensors]
        assert launch.__dict__.setdefault("dtypes", dtypes) == dtypes
        here(launch, *tensors)

    if DEVICE == "cpu":
        importlib.import_module("tests.kernels.interpreter").compute_as_compiled_code(monkeypatch)
    monkeypatch.setattr(common.Launch, "here", launched_with_what_it_was_compiled_for)
    monkeypatch.setattr(_define, "_KERNEL_FOLDERS", {"cpu": "triton", "cuda": "triton"})
    _define._kernel_module.cache_clear()
    yield
    _define._kernel_module.cache_clear()
