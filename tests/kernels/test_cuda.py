"""What only a GPU can show of the Triton kernels; test_triton.py runs there too, with its tensors on the GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import downmix
from downmix.ops import pix, soft_pool

from ..ops.standard import LAYOUTS, with_gradients
from .random_cases import check

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pick_or_mix": lambda x, p: downmix.pick_or_mix(x, p, 4),
    "soft_pool2d": lambda x, p: downmix.soft_pool2d(x, 2),
    "soft_pool2d of overlapping windows": lambda x, p: downmix.soft_pool2d(x, 3, 2, 1),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))


def random_inputs(device: str = "cuda") -> list[Tensor]:
    return [torch.randn(8, 64, 56, 56, device=device), torch.rand(8, 16, device=device)]


def run(call: Callable[[Tensor, Tensor], Tensor], inputs: list[Tensor]) -> list[Tensor]:
    return with_gradients(call, inputs, torch.ones_like)


def test_the_kernels_run_on_a_gpu() -> None:
    x, p = random_inputs()
    said = {downmix.explain_backend(call, x, p) for call in CALLS.values()}
    assert said == {
        "pick_or_mix runs downmix.kernels.triton.pix",
        "soft_pool runs downmix.kernels.triton.soft_pool",
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("sliced", [False, True])
def test_maps_of_a_network(layout: str, sliced: bool, dtype: torch.dtype) -> None:
    for channels, size in ((64, 112), (256, 56), (1024, 14), (2048, 7)):
        x = LAYOUTS[layout](torch.randn(4, channels, size, size, device="cuda", dtype=dtype))
        x = x[:, 1:, :, 1:] if sliced else x
        p = torch.rand(4, -(-x.shape[1] // 4), device="cuda", dtype=dtype)
        check(pix._pick_or_mix, [x, p], (4, 0.5, "threshold", "max+avg", False), layout)
        for kernel, padding in (([2, 2], [0, 0]), ([3, 3], [1, 1])):
            check(soft_pool._soft_pool, [x], (kernel, [2, 2], padding, [1, 1], False, "exact"), layout)


@every_call
def test_a_captured_graph_replays_what_eager_computes(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    inputs = random_inputs()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        run(call, inputs)  # compiles, which a capture must not
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured = run(call, inputs)
    for tensor, values in zip(inputs, random_inputs(), strict=True):
        tensor.copy_(values)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, run(call, inputs), strict=True))


@every_call
def test_work_goes_to_the_current_stream(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, p = random_inputs()
    expected = run(call, [2 * x, p])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(x)
        torch.cuda._sleep(200_000_000)  # a tenth of a second, in which another stream would read the zeros
        late += 2 * x
        got = run(call, [late, p])
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@every_call
def test_every_run_gives_the_same_bits(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    inputs = random_inputs()
    first = run(call, inputs)
    assert all(torch.equal(a, b) for _ in range(20) for a, b in zip(first, run(call, inputs), strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@every_call
def test_a_device_that_is_not_the_current_one(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    inputs = random_inputs("cuda:1")
    got, expected = run(call, inputs), run(call, [tensor.to("cuda:0") for tensor in inputs])
    assert {tensor.device for tensor in got} == {torch.device("cuda:1")}
    assert all(torch.equal(a.to("cuda:0"), b) for a, b in zip(got, expected, strict=True))


def test_more_than_2_31_elements() -> None:
    needed = 24 << 30
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip("needs 24 GiB of free memory on the GPU")
    x = torch.randn(2, 64, 4104, 4096, device="cuda", dtype=torch.float16)
    p = torch.rand(2, 16, device="cuda", dtype=torch.float16)
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](x)
        for call in CALLS.values():
            of_all, of_the_last = run(call, [x, p]), run(call, [x[1:], p[1:]])
            for a, b in zip(of_all, of_the_last, strict=True):
                assert torch.allclose(a[1:], b)


def test_a_network_computes_what_it_does_on_the_cpu() -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("test_pix_resnet", num_classes=10).double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = with_gradients(network, [images])
    for layout in (torch.contiguous_format, torch.channels_last):
        network.to("cuda", memory_format=layout)
        got = with_gradients(network, [images.to("cuda", memory_format=layout)])
        torch.testing.assert_close([tensor.cpu() for tensor in got], expected)
