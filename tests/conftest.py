import contextlib
import gc
import importlib.abc
import os
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

import downmix

if not torch.cuda.is_available():  # Triton reads this once, when it is imported
    os.environ["TRITON_INTERPRET"] = "1"

with contextlib.suppress(ImportError):  # a machine for GPU tests may lack timm
    import downmix.models


class SkipsWhatNeeds(importlib.abc.MetaPathFinder):
    """Skips each file or test that imports a package of which a machine for GPU tests may have none."""

    packages = (
        *("timm", "jsonargparse", "openvino", "segmentation_models_pytorch", "ptflops"),
        *("pytorch_grad_cam", "flask", "plotly"),
    )

    def find_spec(self, name: str, *args: object) -> None:
        if name in self.packages:
            pytest.skip(f"needs {name}", allow_module_level=True)


if torch.cuda.is_available():  # elsewhere a missing package is a fault of the installation, and has to show
    sys.meta_path.append(SkipsWhatNeeds())  # last, so asked for what no one else finds


def pytest_collection_finish() -> None:
    """What is imported by now stays, and need not be searched for garbage again and again by tests that make much."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else nanobind reports at exit what is never collected


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _kernels_for_small_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which are left to torch otherwise, as they take no longer there."""
    monkeypatch.setattr("downmix.kernels.numba.add_relu_mean.FEW", 1)


@pytest.fixture
def by_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """PiX layers run on the CPU as those of large maps do, not in one launch."""
    monkeypatch.setattr("downmix.kernels.numba.pix_sample.why_not", lambda *args: "a test wants operators")


@pytest.fixture(params=["in one launch", "by operators"])
def each_way(request: pytest.FixtureRequest) -> None:
    """PiX layers run on the CPU as those of small maps do, then as those of large ones."""
    if request.param == "by operators":
        request.getfixturevalue("by_operators")


@pytest.fixture(scope="module")
def without_kernels() -> Iterator[None]:
    """They are compiled for each window and reduction, for seconds; tests/kernels and tests/ops are for them."""
    with downmix.use_backend("reference"):
        yield


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes layers run one by one from then on."""

    def switch() -> None:
        monkeypatch.setattr("downmix.layers.pix.may_share", lambda *tensors: False)
        monkeypatch.setattr("downmix.models.pix_resnet.may_share", lambda *tensors: False)

    return switch


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN, so that an element nobody wrote shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a standard test that asks for ``option`` or ``dtype`` once for each of its class's options or dtypes."""
    if "option" in metafunc.fixturenames and metafunc.cls is not None:
        options = metafunc.cls.options
        ids = ["-".join(map(str, option.values())) or "default" for option in options]
        metafunc.parametrize("option", options, ids=ids)
    if "dtype" in metafunc.fixturenames and hasattr(metafunc.cls, "dtypes"):
        metafunc.parametrize("dtype", metafunc.cls.dtypes, ids=str)
