"""The Numba kernels, beyond what the standard tests of each operator run on the CPU anyway."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from numba.core import caching

import downmix
from downmix.kernels.numba import _launch, _pix_planes, _window_pool, pix_sample
from downmix.kernels.numba import pix as pix_kernels
from downmix.ops import lip_pool, pix, power_pool, soft_pool, stochastic_pool

from ..ops.standard import LAYOUTS
from .random_cases import (
    check,
    check_lip_pool,
    check_pick_or_mix,
    check_pix_layer,
    check_power_pool,
    check_soft_pool,
    check_stochastic_mean,
    check_stochastic_pool,
    check_whole_pix_layer,
)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="random cases are made for the GPU there")


# All seeds of an operator are one test: tests that run at the same time would each compile the kernels of the others.
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    ("check_cases", "seeds"),
    [
        (check_pick_or_mix, 10),
        (check_whole_pix_layer, 6),
        (check_soft_pool, 10),
        (check_lip_pool, 4),
        (check_power_pool, 2),
        (check_stochastic_mean, 2),
        (check_stochastic_pool, 2),
    ],
)
def test_random_cases(check_cases: Callable[[int, int], None], seeds: int) -> None:
    for seed in range(100, 100 + seeds):
        check_cases(seed, 100)


@pytest.mark.usefixtures("poisoned_memory")
def test_gradients_of_pix_layers_in_random_cases() -> None:
    for seed in range(100, 110):
        check_pix_layer(seed, cases=100, roundings=1)


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
def test_a_map_of_one_column_is_contiguous_whatever_the_step_between_columns() -> None:
    x = LAYOUTS["transposed"](torch.randn(2, 3, 40, 1))
    assert x.is_contiguous()
    assert x.stride(-1) == 40
    for window in ([2, 1], [3, 1]):
        check(soft_pool._soft_pool, [x], (window, [2, 1], [1, 0], [1, 1], False, "exact"), "transposed")


@pytest.mark.usefixtures("poisoned_memory")
def test_steps_that_are_never_taken_say_nothing() -> None:
    x = torch.randn(2, 3, 40, 1).contiguous(memory_format=torch.channels_last)
    for step in (1, 7):
        odd = x.as_strided(x.shape, [120, 1, 3, step])
        check(pix._pick_or_mix, [odd, torch.rand(2, 1)], (3, 0.5, "threshold", "max+avg", False), "transposed")
        check(soft_pool._soft_pool, [odd], ([2, 1], [2, 1], [0, 0], [1, 1], False, "exact"), "transposed")


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("kernel_size", [2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_long_rows_whose_gradients_are_written_down_in_pieces(kernel_size: int, stride: int) -> None:
    for outputs in (512, 513, 1200):
        x = torch.randn(1, 2, (outputs - 1) * stride + kernel_size)
        check(soft_pool._soft_pool, [x], ([kernel_size], [stride], [0], [1], False, "exact"), "contiguous")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "window", [([1, 20_000], [1, 20_000]), ([200, 150], [200, 150]), ([40, 300], [20, 2])], ids=str
)
def test_sums_of_many_values_are_as_exact_as_torch_s(window: tuple[list[int], list[int]], layout: str) -> None:
    kernel_size, stride = window
    x = torch.randn(1, 2, kernel_size[0], kernel_size[1] + 7 * stride[1])
    constants = (kernel_size, stride, [0, 0], [1, 1], False)
    strict = {"gradient_layout": layout, "roundings": 4}
    x = LAYOUTS[layout](x)
    check(soft_pool._soft_pool, [x], (*constants, "exact"), **strict)
    for logits in (x.flip(3), x.flip(3) + 50):  # calm ones and others
        check(lip_pool._lip_pool, [x, logits], constants, **strict)
    for power in (1.0, 2.0):
        check(power_pool._power_pool, [x], (*constants, power), **strict)
    check(stochastic_pool._stochastic_mean, [x.relu()], constants, **strict)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_layer_s_mean_of_many_values_is_as_exact_as_torch_s(layout: str) -> None:
    layer, x = downmix.PiX(8, 4).requires_grad_(False), LAYOUTS[layout](torch.rand(1, 8, 300, 300))
    _, mean, _ = pix_sample.forward(x, None, layer.weight, None, 1.0, *layer.rule)
    exact = x.double().mean((2, 3))
    allowed = 2 * (x.mean((2, 3)) - exact).abs().max() + 2 * torch.finfo(torch.float32).eps * exact.max()
    assert (mean - exact).abs().max() <= allowed


@pytest.mark.usefixtures("poisoned_memory")
def test_a_window_of_a_million_values_takes_no_room_by_its_square() -> None:
    x = torch.zeros(1, 1, 1_000_000, requires_grad=True)
    logits = torch.full_like(x, 50.0)  # more than sums of columns take
    downmix.lip_pool1d(x, logits, 1_000_000).backward()
    assert x.grad is not None
    assert x.grad.unique().tolist() == pytest.approx([1e-6])


def test_who_calls_a_kernel_hears_that_it_found_no_memory() -> None:
    class Kernel:
        ctypes = staticmethod(lambda at: None)  # an error in a compiled function ends before the first task

    with pytest.raises(MemoryError, match="a kernel found no memory to work in; use a smaller window"):
        _launch.launch(Kernel, 1, 1)


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether what kernels by sums of columns met was calm, a word a run."""
    words: list[bool] = []
    run = _window_pool._was_calm
    monkeypatch.setattr(_window_pool, "_was_calm", lambda *args: words.append(run(*args)) or words[-1])
    return words


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"),
    [
        ([3, 3], [2, 2], [1, 1]),
        ([3, 3], [1, 1], [0, 0]),
        ([5, 5], [1, 1], [2, 2]),
        ([2, 4], [3, 1], [0, 2]),
        ([4, 7], [2, 3], [1, 3]),
    ],
)
def test_windows_that_share_columns(
    kernel_size: list[int], stride: list[int], padding: list[int], layout: str, calm: list[bool]
) -> None:
    """Rows of many vectors and in pieces, channels that fill no vector; exact wherever calm values lie."""
    for channels, size in ((1, (9, 274)), (70, (12, 35)), (20, (7, 7))):
        for offset, scale in ((0, 1), (30, 1), (-20, 3), (0, 7)):
            x = (torch.randn(2, channels, *size) * scale + offset).clamp(-40, 40)
            constants = (kernel_size, stride, padding, [1, 1], channels == 20, "exact" if offset else "paper")
            check(soft_pool._soft_pool, [LAYOUTS[layout](x)], constants, layout, roundings=2)
            x = torch.nn.functional.pad(x, (0, 1))[..., :-1]
            check(soft_pool._soft_pool, [LAYOUTS[layout](x)], constants, layout, roundings=2)
    assert calm
    assert all(calm)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_global_windows_and_windows_apart(layout: str, calm: list[bool]) -> None:
    for size, window in (((2, 40, 40, 40), 40), ((3, 5, 30, 33), 3), ((2, 18, 29, 21), 10)):
        x = LAYOUTS[layout](torch.randn(size))
        check(soft_pool._soft_pool, [x], ([window] * 2, [window] * 2, [0, 0], [1, 1], False, "exact"), layout)
    assert calm == [True] * len(calm)
    assert len(calm) == (6 if layout == "contiguous" else 0)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_one_value_that_is_not_calm_is_enough(layout: str, calm: list[bool]) -> None:
    constants = ([3, 3], [1, 1], [1, 1], [1, 1], False, "exact")
    for value in (40.5, -40.5, 300.0, float("nan"), float("inf"), float("-inf")):
        x = torch.randn(2, 70, 20, 40)
        x[1, 68, 19, 38] = value
        check(soft_pool._soft_pool, [LAYOUTS[layout](x)], constants, layout)
        assert calm[-2:] == [False, False]
    x = LAYOUTS[layout](torch.randn(2, 70, 20, 40))
    check(soft_pool._soft_pool, [x], constants, layout, grad_scale=1e17)
    assert calm[-2:] == [True, False]
    values, logits = (LAYOUTS[layout](torch.randn(2, 70, 20, 40)) for _ in range(2))
    for value, expected in ((-40.0, True), (-40.5, False), (float("-inf"), False)):
        logits[0, 1, 2, 3] = value
        check(lip_pool._lip_pool, [values, logits], constants[:-1], layout)
        assert calm[-2:] == [expected] * 2


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
    said = downmix.explain_backend(downmix.power_avg_pool2d, torch.randn(1, 3, 40, 40), 40)
    assert said == "power_pool runs its reference: windows of 1600 values, 1 in a row, are no faster than the reference"
    said = downmix.explain_backend(downmix.power_avg_pool2d, x, 2, norm_type=2.5)
    assert said == "power_pool runs its reference: the CPU kernels know the powers 1 and 2, not 2.5"
    said = stochastic_pool._stochastic_pool.kernel(
        x, torch.rand_like(x).double(), [1, 1], [1, 1], [0, 0], [1, 1], False
    )
    assert said == "the CPU kernels compute in torch.float32 for torch.float32, and draws are torch.float64"
    assert downmix.explain_backend(torch.nn.ReLU(), x) == "no operator of downmix runs here"


def test_where_a_layer_runs_in_one_launch() -> None:
    def runs(batch: int, size: int, *, channels: int = 64) -> bool:
        x, layer = torch.randn(batch, channels, size, size), downmix.PiX(channels, 4)
        return downmix.explain_backend(layer, x) == "pick_or_mix runs downmix.kernels.numba.pix_sample"

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert runs(1, 45)  # a small map
        assert not runs(1, 46)
        assert runs(2, 46)  # a sample a thread
        assert not runs(3, 46)
        assert runs(9, 46)
        assert not runs(10, 1, channels=512)  # a weight that samples should share
    finally:
        torch.set_num_threads(before)


def test_a_weight_that_is_not_there_is_not_read() -> None:
    layer = downmix.PiX(64, 4)
    layer.weight = torch.nn.Parameter(torch.randn(16, 32, 1, 1))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        layer(torch.randn(1, 64, 4, 4))
    elsewhere = torch.empty(16, 64, 1, 1, device="meta")
    said = pix._pick_or_mix.kernel(torch.randn(1, 64, 4, 4), None, elsewhere, None, *layer.rule, stem="pix_sample")
    assert said == "the CPU kernel of a layer takes maps and parameters that lie in the CPU's memory"


def test_a_bias_with_steps() -> None:
    x, layer, biases = torch.randn(2, 8, 3, 3), downmix.PiX(8, 4, bias=True), torch.randn(2, 2)
    layer.bias = torch.nn.Parameter(biases[:, 0])
    with torch.no_grad(), downmix.use_backend("reference"):
        expected = layer(x)
    torch.testing.assert_close(layer(x), expected)


def test_channels_more_than_2_31_elements_apart() -> None:
    memory = torch.empty((1 << 31) + 64, dtype=torch.float16)  # only the pages touched below become real
    x = memory.as_strided((1, 2, 1, 64), (0, 1 << 31, 64, 1))
    x[:, 0], x[:, 1] = 1.0, 3.0
    assert downmix.pick_or_mix(x, torch.ones(1, 1), 2).unique().item() == 2.0
    assert downmix.soft_pool2d(x, (1, 2)).squeeze().tolist() == [[1.0] * 32, [3.0] * 32]


def test_where_no_folder_can_keep_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    x, p = torch.randn(1, 8, 2, 2), torch.rand(1, 2)
    expected = downmix.pick_or_mix(x, p, 4)
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    make = _pix_planes.forward
    monkeypatch.setattr(_pix_planes, "forward", make.__wrapped__)  # compiles anew
    pix_kernels._plan.cache_clear()
    with pytest.warns(UserWarning, match="set NUMBA_CACHE_DIR to a folder"):
        assert torch.equal(downmix.pick_or_mix(x, p, 4), expected)
