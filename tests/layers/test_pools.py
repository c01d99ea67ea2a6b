"""What holds for every module that takes nn.MaxPool's place."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import downmix

pytestmark = pytest.mark.usefixtures("without_kernels")

POOLS = ("SoftPool", "PowerAvgPool", "StochasticPool", "S3Pool", "MixedPool")


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("name", POOLS)
def test_drops_in_for_max_pool(name: str, n: int) -> None:
    ours, theirs = getattr(downmix, f"{name}{n}d"), getattr(nn, f"MaxPool{n}d")
    for (argument, mine), (other, his) in zip(
        list(inspect.signature(ours).parameters.items())[:6], inspect.signature(theirs).parameters.items(), strict=True
    ):
        assert (argument, mine.default) == (other, his.default)
    x = torch.rand(2, 3, *[9] * n)
    windows: tuple[tuple[Any, ...], ...] = ((2,), (3, None, 1), (2, 2, 1, 1, False, True))
    for arguments in windows if name == "S3Pool" else (*windows, (3, 2, 1), (3, 1, 1, 2)):
        pool, expected = ours(*arguments), theirs(*arguments)(x)
        for training in (True, False):
            pool.train(training)
            assert pool(x).shape == expected.shape
            assert pool(x[0]).shape == expected[0].shape
        torch.testing.assert_close(pool(torch.ones_like(x)), torch.ones_like(expected))  # padding takes no part
    with pytest.raises(ValueError, match=f"{name}{n}d has no indices to return"):
        ours(2, return_indices=True)


@pytest.mark.parametrize(
    ("pool", "end"),
    [
        (downmix.PowerAvgPool2d(2, norm_type=3.0), "ceil_mode=False, norm_type=3.0)"),
        (downmix.StochasticPool2d(2), "ceil_mode=False)"),
        (downmix.S3Pool2d(2, grid_size=4), "ceil_mode=False, grid_size=4)"),
        (downmix.SoftPool2d(2), "ceil_mode=False)"),
        (downmix.SoftPool2d(2, gradient="paper"), "ceil_mode=False, gradient=paper)"),
        (downmix.AdaptiveSoftPool2d(2, gradient="paper"), "output_size=(2, 2), gradient=paper)"),
    ],
)
def test_shows_its_arguments(pool: nn.Module, end: str) -> None:
    assert repr(pool).endswith(end)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("name", ["S3Pool2d", "MixedPool2d"])  # the others are operators, tested as such
def test_evaluation_exports_to_onnx(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pool, x = getattr(downmix, name)(2, padding=1).eval(), torch.randn(2, 3, 7, 8)
    torch.onnx.export(pool, (x,), str(tmp_path / "pool.onnx"), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "pool.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), pool(x).detach())
