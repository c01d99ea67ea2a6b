import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import downmix
from downmix.ops import s3_pool

POOLS = {1: s3_pool.s3_pool1d, 2: s3_pool.s3_pool2d, 3: s3_pool.s3_pool3d}


def maxima(x: Tensor, size: int, rows: list[int], columns: list[int]) -> Tensor:
    """The maximum of the values of [B, C, H, W] in each window that starts at a row and a column."""
    y = x.new_empty(*x.shape[:2], len(rows), len(columns))
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        y[:, :, i, j] = x[:, :, max(row, 0) : row + size, max(column, 0) : column + size].amax((2, 3))
    return y


def test_kept_positions_are_sorted_distinct_and_uniform() -> None:
    strips = 100_000
    kept = s3_pool._draw(6 * strips, 2, 6, 3 * strips, torch.device("cpu")).reshape(strips, 3)
    inside = kept - 6 * torch.arange(strips)[:, None]
    assert inside.min() == 0
    assert inside.max() == 5
    assert (inside.diff() > 0).all()
    codes = (inside * torch.tensor([36, 6, 1])).sum(1).tolist()
    counts = [codes.count(36 * a + 6 * b + c) for a, b, c in itertools.combinations(range(6), 3)]
    assert sum(counts) == strips
    stats = pytest.importorskip("scipy.stats")  # a machine for GPU tests may lack it
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("size", "padding", "grid"), [(1, 0, 3), (2, 0, 2), (2, 1, 4), (3, 1, 6), (4, 2, 4)])
def test_a_last_strip_keeps_its_share(size: int, padding: int, grid: int) -> None:
    for length, ceil_mode in itertools.product(range(size, 17), (False, True)):
        out = F.max_pool1d(torch.zeros(1, 1, length), size, size, padding, ceil_mode=ceil_mode).shape[-1]
        positions = length + padding
        kept = s3_pool._draw(positions, size, grid, out, torch.device("cpu"))
        assert kept.numel() == out
        assert (kept.diff() > 0).all()
        assert 0 <= kept[0] <= kept[-1] < positions
        each = grid // size
        assert torch.equal(kept // grid, torch.arange(out) // each)


@pytest.mark.parametrize(("padding", "ceil_mode", "grid"), [(0, False, None), (1, True, 4), (1, False, (2, 6))])
@pytest.mark.parametrize("training", [False, True])
def test_equals_the_specification(padding: int, ceil_mode: bool, grid: Any, training: bool) -> None:
    x = torch.randn(2, 3, 7, 10, dtype=torch.float64)
    torch.manual_seed(3)
    y = downmix.s3_pool2d(x, 2, None, padding, 1, ceil_mode, grid_size=grid, training=training)
    h, w = F.max_pool2d(x, 2, 2, padding, 1, ceil_mode).shape[2:]
    assert y.shape[2:] == (h, w)
    if training:
        torch.manual_seed(3)
        g = s3_pool.read_grid(2, 2, None, 1, grid)
        rows = s3_pool._draw(7 + padding, 2, g[0], h, x.device) - padding
        columns = s3_pool._draw(10 + padding, 2, g[1], w, x.device) - padding
        torch.testing.assert_close(y, maxima(x, 2, rows.tolist(), columns.tolist()), rtol=0, atol=0)
        return
    for i, j in itertools.product(range(h), range(w)):
        rows = [2 * i - padding + k for k in range(2) if 2 * i - padding + k < 7]
        columns = [2 * j - padding + k for k in range(2) if 2 * j - padding + k < 10]
        torch.testing.assert_close(y[:, :, i, j], maxima(x, 2, rows, columns).mean((2, 3)))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(("size", "padding", "starts"), [(4, 0, (0, 1, 2)), (6, 2, (0, 0, 0, 1, 2))])
def test_windows_larger_than_the_map(n: int, size: int, padding: int, starts: tuple[int, ...]) -> None:
    x = torch.randn(1, 1, *[3] * n)
    cut_off = [x[:, :, *(slice(start, None) for start in at)] for at in itertools.product(starts, repeat=n)]
    expected = torch.stack([window.max() for window in cut_off]).mean()
    torch.testing.assert_close(POOLS[n](x, size, None, padding, ceil_mode=True).flatten(), expected[None])


def test_the_expectation_is_the_evaluation() -> None:
    x = torch.randn(1, 1, 5, 6)
    many = torch.func.vmap(
        lambda t: downmix.s3_pool2d(t, 2, padding=1, ceil_mode=True, training=True), randomness="different"
    )(x.expand(20_000, 1, 1, 5, 6))
    error = (many.mean(0) - downmix.s3_pool2d(x, 2, padding=1, ceil_mode=True)).abs()
    assert (error < 5 * many.std(0) / math.sqrt(20_000) + 1e-6).all()
    torch.testing.assert_close(torch.func.vmap(lambda t: downmix.s3_pool2d(t, 2))(x), downmix.s3_pool2d(x, 2))


def test_one_draw_for_all_samples_and_channels() -> None:
    x = torch.randn(1, 1, 32, 32).expand(4, 3, 32, 32)
    y = downmix.s3_pool2d(x, 2, grid_size=8, training=True)
    assert torch.equal(y, y[:1, :1].expand_as(y))
    same = torch.func.vmap(lambda t: downmix.s3_pool2d(t, 2, training=True), randomness="same")(x)
    assert torch.equal(same, same[:1, :1].expand_as(y))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_draws_follow_the_generator(n: int) -> None:
    pool = getattr(downmix, f"S3Pool{n}d")(2, grid_size=4)
    x = torch.randn(2, 3, *[16] * n)
    torch.manual_seed(1)
    first, second = pool(x), pool(x)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(pool(x), first)
    torch.manual_seed(1)
    torch.testing.assert_close(pool(x[0]), first[0])
    assert torch.equal(pool.eval()(x), pool(x))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_draws_follow_the_generator(backend: str) -> None:
    torch.compiler.reset()
    pool = torch.compile(downmix.S3Pool2d(2, grid_size=4), backend=backend, fullgraph=True)
    x = torch.randn(2, 3, 16, 16)
    torch.manual_seed(1)
    first, second = pool(x), pool(x)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(pool(x), first)
    assert torch.isin(first, F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 2, 1)).all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_gradients(n: int) -> None:
    x = torch.randn(1, 2, *(5, 4, 3)[:n], dtype=torch.float64, requires_grad=True)

    def drawn(t: Tensor) -> Tensor:
        torch.manual_seed(0)
        return POOLS[n](t, 2, padding=1, ceil_mode=True, training=True)

    assert torch.autograd.gradcheck(drawn, x)
    assert torch.autograd.gradcheck(lambda t: POOLS[n](t, 2, padding=1, ceil_mode=True), x)


@pytest.mark.parametrize("training", [False, True])
def test_dtypes_and_layouts(training: bool) -> None:
    x = torch.randn(2, 3, 9, 8)
    for dtype in (torch.float16, torch.bfloat16):
        low = x.to(dtype)
        torch.manual_seed(0)
        y = downmix.s3_pool2d(low, 2, training=training)
        torch.manual_seed(0)
        assert y.dtype == dtype
        assert torch.equal(y, downmix.s3_pool2d(low.float(), 2, training=training).to(dtype))
    y = downmix.s3_pool2d(x.to(memory_format=torch.channels_last), 2, training=training)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert downmix.s3_pool2d(x[:0], 2, training=training).shape == (0, 3, 4, 4)
    assert downmix.s3_pool2d(x.to("meta"), 2, training=training).shape == (2, 3, 4, 4)
    assert downmix.s3_pool2d(torch.full((1, 1, 2, 2), torch.nan), 2, training=training).isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 1}, "S3 pooling needs stride = kernel_size, got stride=1 for kernel_size=2"),
        ({"dilation": (1, 2)}, r"S3 pooling needs dilation=1, got \(1, 2\)"),
        ({"grid_size": 3}, "grid_size must be a multiple of kernel_size=2, got 3"),
        ({"grid_size": (4, 0)}, r"grid_size must be an integer of 1 or more, or 2 of them, got \(4, 0\)"),
    ],
)
def test_bad_sizes_get_a_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        downmix.S3Pool2d(2, **change)
    with pytest.raises(ValueError, match=message):
        downmix.s3_pool2d(torch.randn(2, 2, 4, 4), 2, **change)
