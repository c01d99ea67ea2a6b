from pathlib import Path

import pytest
import torch

from downmix import ChannelPool


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "mode", "expected"),
    [
        (2, None, "max", [3.0, 2.0]),
        (2, None, "mean", [2.0, -1.5]),
        (3, None, "max", [3.0]),
        (3, 1, "max", [3.0, 3.0, 2.0]),
        (3, 2, "mean", [2.0, -2.0]),
        (2, 3, "max", [3.0, -3.0]),
        (1, 2, "mean", [1.0, 2.0, -3.0]),
    ],
)
def test_values_by_hand(kernel_size: int, stride: int | None, mode: str, expected: list[float]) -> None:
    y = ChannelPool(kernel_size, stride, mode=mode)(column(1, 3, 2, -5, -3))
    torch.testing.assert_close(y, column(*expected))


@pytest.mark.parametrize("stride", [2, 1])
def test_gradient_goes_to_the_first_of_equal_channels(stride: int) -> None:
    x = column(4, 4, 1, 1).requires_grad_()
    ChannelPool(2, stride)(x).sum().backward()
    expected = {2: column(1, 0, 1, 0), 1: column(1, 1, 1, 0)}[stride]
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("mode", ["max", "mean"])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 3), (3, 2), (2, 3)])
def test_gradcheck_and_layouts(mode: str, kernel_size: int, stride: int) -> None:
    layer = ChannelPool(kernel_size, stride, mode=mode)
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), layer(x))
    assert layer(x).shape[1] == (8 - kernel_size) // stride + 1


@pytest.mark.filterwarnings("ignore")  # that it is deprecated
@pytest.mark.parametrize("mode", ["max", "mean"])
def test_the_old_onnx_exporter_finds_the_channels(mode: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    layer, file, x = ChannelPool(3, 2, mode=mode).eval(), tmp_path / "pool.onnx", torch.randn(5, 8, 9, 11)
    torch.onnx.export(
        layer,
        (torch.randn(2, 8, 6, 6),),
        str(file),
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "batch", 2: "height", 3: "width"}},
    )
    (y,) = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), layer(x))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="mode must be one of 'max', 'mean', got 'avg'"):
        ChannelPool(2, mode="avg")
    with pytest.raises(ValueError, match="stride must be a positive integer, got 0"):
        ChannelPool(2, 0)
    with pytest.raises(TypeError, match="kernel_size must be a positive integer, got 4.0"):
        ChannelPool(16 / 4)
    with pytest.raises(TypeError, match="stride must be a positive integer, got 1.5"):
        ChannelPool(2, 1.5)
    with pytest.raises(ValueError, match="x must have 4 channels or more, as a window has, got 3"):
        ChannelPool(4)(torch.randn(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"x must be \[B, C, H, W\] or \[C, H, W\], got \[4, 2\]"):
        ChannelPool(4)(torch.randn(4, 2))
