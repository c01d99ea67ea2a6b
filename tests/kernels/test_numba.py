"""The Numba kernels, beyond what the standard tests of each operator run on the CPU anyway."""

import ctypes
from pathlib import Path

import pytest
import torch

import downmix
from downmix.kernels.numba import _launch
from downmix.ops import soft_pool, stochastic_pool

from ..ops.standard import LAYOUTS
from .random_cases import (
    check,
    check_lip_pool,
    check_pick_or_mix,
    check_power_pool,
    check_soft_pool,
    check_stochastic_mean,
    check_stochastic_pool,
)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="random cases are made for the GPU there")


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("seed", range(100, 110))
def test_pick_or_mix_in_random_cases(seed: int) -> None:
    check_pick_or_mix(seed, cases=100)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("seed", range(100, 110))
def test_soft_pool_in_random_cases(seed: int) -> None:
    check_soft_pool(seed, cases=100)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("seed", range(100, 104))
def test_lip_pool_in_random_cases(seed: int) -> None:
    check_lip_pool(seed, cases=100)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("seed", range(100, 102))
def test_power_pool_in_random_cases(seed: int) -> None:
    check_power_pool(seed, cases=100)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("seed", range(100, 102))
def test_stochastic_mean_in_random_cases(seed: int) -> None:
    check_stochastic_mean(seed, cases=100)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("seed", range(100, 102))
def test_stochastic_pool_in_random_cases(seed: int) -> None:
    check_stochastic_pool(seed, cases=100)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("kernel_size", "dtype"), [([2, 2], torch.float32), ([2, 2], torch.bfloat16), ([3, 3], torch.float32)]
)
def test_windows_that_tile_the_map(kernel_size: list[int], layout: str, dtype: torch.dtype) -> None:
    """Where none overlap and none is left out, gradients are written once, into memory that was never cleared."""
    constants = (kernel_size, kernel_size, [0, 0], [1, 1])
    for channels, size in ((1, 2), (19, 3), (32, 40)):
        x = torch.randn(2, channels, *(size * k for k in kernel_size), dtype=dtype)
        check(soft_pool._soft_pool, [LAYOUTS[layout](x)], (*constants, False, "exact"), layout)
    x = x[..., :-1]
    for ceil_mode in (False, True):  # the last column is left out, or its windows are not whole
        check(soft_pool._soft_pool, [LAYOUTS[layout](x)], (*constants, ceil_mode, "exact"), layout)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("kernel_size", [2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_long_rows_whose_gradients_are_written_down_in_pieces(kernel_size: int, stride: int) -> None:
    for outputs in (512, 513, 1200):
        x = torch.randn(1, 2, (outputs - 1) * stride + kernel_size)
        check(soft_pool._soft_pool, [x], ([kernel_size], [stride], [0], [1], False, "exact"), "contiguous")


def test_code_on_the_disk_goes_with_all_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba looks only at the file that a kernel stands in."""
    words = []
    for text in ("factor = 1", "factor = 2"):
        (tmp_path / "helper.py").write_text(text)
        monkeypatch.setattr(_launch, "__file__", str(tmp_path / "_launch.py"))
        words.append(_launch._sources.__wrapped__())
    assert words[0] != words[1]
    kernel = _launch.kernel("name")(lambda at: None)
    assert _launch._sources() in kernel.__qualname__


def test_threads_follow_torch_and_change_nothing() -> None:
    x, p = torch.randn(4, 64, 40, 40), torch.rand(4, 16)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append((downmix.pick_or_mix(x, p, 4), downmix.soft_pool2d(x, 3, 2, 1)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_threads_of_python_where_torch_has_no_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(*args: object, **options: object) -> None:
        raise OSError

    x, p = torch.randn(4, 64, 40, 40), torch.rand(4, 16)
    expected = downmix.pick_or_mix(x, p, 4)
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    _launch._parallel.cache_clear()
    try:
        assert torch.equal(downmix.pick_or_mix(x, p, 4), expected)
        assert "pool" in _launch._parallel().__code__.co_freevars
    finally:
        _launch._parallel.cache_clear()


def test_what_a_kernel_can_t_take_gets_a_sentence() -> None:
    x, p = torch.randn(1, 8, 2, 2), torch.rand(1, 2)
    said = downmix.explain_backend(downmix.pick_or_mix, x, p.double(), 4)
    assert (
        said == "pick_or_mix runs its reference: the CPU kernels compute in float32 for torch.float32, and p is float64"
    )
    said = downmix.explain_backend(downmix.pick_or_mix, x, p, 4, fusion="weighted", operator="max")
    assert "leaves the probabilities no say" in said
    said = downmix.explain_backend(downmix.AdaptiveSoftPool2d(1), torch.randn(1, 3, 40, 40))
    assert said == "soft_pool runs its reference: windows of 1600 values, 1 in a row, are no faster than the reference"
    said = downmix.explain_backend(downmix.power_avg_pool2d, x, 2, norm_type=2.5)
    assert said == "power_pool runs its reference: the CPU kernels know the powers 1 and 2, not 2.5"
    said = stochastic_pool._stochastic_pool.kernel(
        x, torch.rand_like(x).double(), [1, 1], [1, 1], [0, 0], [1, 1], False
    )
    assert said == "the CPU kernels compute in torch.float32 for torch.float32, and draws are torch.float64"
    assert downmix.explain_backend(torch.nn.ReLU(), x) == "no operator of downmix runs here"


def test_channels_more_than_2_31_elements_apart() -> None:
    memory = torch.empty((1 << 31) + 64, dtype=torch.float16)  # only the pages touched below become real
    x = memory.as_strided((1, 2, 1, 64), (0, 1 << 31, 64, 1))
    x[:, 0], x[:, 1] = 1.0, 3.0
    assert downmix.pick_or_mix(x, torch.ones(1, 1), 2).unique().item() == 2.0
    assert downmix.soft_pool2d(x, (1, 2)).squeeze().tolist() == [[1.0] * 32, [3.0] * 32]
