import sys

import pytest
import torch
from torch._dynamo import compiled_autograd
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import downmix
from downmix.ops import _define, lip_pool, pix, soft_pool


def test_reference_holds_inside_the_block_only() -> None:
    with downmix.use_backend("reference"):
        assert _define._backend == "reference"
        with downmix.use_backend("auto"):
            assert _define._backend == "auto"
        assert _define._backend == "reference"
    assert _define._backend == "auto"


@pytest.mark.parametrize("backend", _define.BACKENDS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_tensor_may_be_frozen_after_the_forward_pass(backend: str, create_graph: bool) -> None:
    x, p = torch.randn(2, 8, 3, 3, requires_grad=True), torch.rand(2, 2, requires_grad=True)
    with downmix.use_backend(backend):
        y = downmix.pick_or_mix(x, p, 4)
        expected = torch.autograd.grad(y.sum(), x, retain_graph=True)
        p.requires_grad_(False)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), x, create_graph=create_graph), expected)


def test_an_unknown_backend_names_the_known() -> None:
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'reference', got 'cuda'"):
        downmix.use_backend("cuda")


def test_a_kernel_runs_where_it_may_and_the_reference_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernel:
        limit: str | None = None

        @classmethod
        def why_not(cls, x: torch.Tensor, *args: object) -> str | None:
            return cls.limit

        @staticmethod
        def forward(x: torch.Tensor, *args: object) -> torch.Tensor:
            return torch.full((1, 1, 1, 1), 42.0)

        @staticmethod
        def backward(grad: torch.Tensor, x: torch.Tensor, p: torch.Tensor, *args: object) -> tuple[torch.Tensor, ...]:
            return torch.full_like(x, 43.0), torch.full_like(p, 44.0)

    monkeypatch.setattr(_define, "_kernel_module", lambda folder, stem: Kernel if folder == "numba" else None)
    x, p = torch.ones(1, 2, 1, 1, requires_grad=True), torch.full((1, 1), 0.5, requires_grad=True)
    downmix.pick_or_mix(x, p, 2).sum().backward()
    assert x.grad is not None
    assert x.grad.unique().item() == 43
    assert downmix.pick_or_mix(x, p, 2).item() == 42
    with downmix.use_backend("reference"):
        assert downmix.pick_or_mix(x, p, 2).item() == 0.5
    Kernel.limit = "not today"
    assert downmix.pick_or_mix(x, p, 2).item() == 0.5


def test_an_explanation_inside_another_hears_its_own_operators_alone() -> None:
    x, inner = torch.rand(1, 2, 4, 4), []

    def three(x: torch.Tensor) -> None:
        downmix.soft_pool2d(x, 2)
        inner.append(downmix.explain_backend(downmix.power_avg_pool2d, x, 2))
        downmix.lip_pool2d(x, x, 2)

    with downmix.use_backend("reference"):
        outer = downmix.explain_backend(three, x)
    assert [line.split()[0] for line in outer.splitlines()] == ["soft_pool", "lip_pool"]
    assert [line.split()[0] for line in inner] == ["power_pool"]


def test_an_operator_in_a_compiled_graph_is_explained() -> None:
    x, p = torch.rand(1, 8, 4, 4).to(memory_format=torch.channels_last), torch.rand(1, 2)
    compiled = torch.compile(lambda x, p: downmix.soft_pool2d(downmix.pick_or_mix(x, p, 4), 2), backend="aot_eager")
    for _ in range(2):  # compiled here, or before
        said = downmix.explain_backend(compiled, x, p).splitlines()
        assert [line.rpartition(".")[0] for line in said] == [
            f"{op} runs downmix.kernels.numba" for op in ("pick_or_mix", "soft_pool")
        ]


def test_without_triton_the_reference_runs_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_define, "_KERNEL_FOLDERS", {"cpu": "triton"})
    monkeypatch.delitem(sys.modules, "downmix.kernels.triton.pix", raising=False)  # fails on its first import below
    monkeypatch.setitem(sys.modules, "triton", None)
    _define._kernel_module.cache_clear()
    try:
        said = downmix.explain_backend(downmix.pick_or_mix, torch.ones(1, 2, 1, 1), torch.ones(1, 1), 2)
    finally:
        _define._kernel_module.cache_clear()
    assert said == "pick_or_mix runs its reference: its kernel for this device needs triton, which is not installed"


def test_who_watches_sees_the_operator_also_in_inference() -> None:
    x, p = torch.randn(1, 8, 4, 4), torch.rand(1, 2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profiler:
        downmix.pick_or_mix(x, p, 4)
    assert "downmix::pick_or_mix" in {event.key for event in profiler.key_averages()}
    with FlopCounterMode(display=False) as counter:
        downmix.pick_or_mix(x, p, 4)
    assert counter.get_total_flops() == (8 - 2) * 16
    assert type(downmix.pick_or_mix(x.as_subclass(Marked), p, 4)) is Marked


def test_who_watches_sees_the_operator_in_training_as_well() -> None:
    x, p = torch.randn(1, 8, 4, 4, requires_grad=True), torch.rand(1, 2)
    unseen = downmix.pick_or_mix(x, p, 4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profiler:
        downmix.pick_or_mix(x, p, 4)
        unseen.sum().backward()
    assert {"downmix::pick_or_mix", "downmix::pick_or_mix_backward"} <= {event.key for event in profiler.key_averages()}
    with FlopCounterMode(display=False) as counter:
        downmix.pick_or_mix(x, p, 4)
    assert counter.get_total_flops() == (8 - 2) * 16


def test_the_first_call_of_a_process_is_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pix._pick_or_mix, "_flops_registered", False)
    monkeypatch.delitem(flop_registry, pix._pick_or_mix._torch_op, raising=False)
    with FlopCounterMode(display=False) as counter:
        downmix.pick_or_mix(torch.randn(1, 8, 4, 4), torch.rand(1, 2), 4)
    assert counter.get_total_flops() == (8 - 2) * 16


@pytest.mark.filterwarnings("ignore")  # the tracer's own
def test_compiled_backward_passes_hold_the_operator() -> None:
    x, p = torch.randn(1, 8, 4, 4, requires_grad=True), torch.rand(1, 2)
    (expected,) = torch.autograd.grad(downmix.pick_or_mix(x, p, 4).square().sum(), x)
    called: list[str] = []

    def compile(graph: torch.fx.GraphModule, inputs: object) -> object:
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    with compiled_autograd._enable(torch.compile(backend=compile)):
        downmix.pick_or_mix(x, p, 4).square().sum().backward()
    torch.testing.assert_close(x.grad, expected)
    assert "downmix.pick_or_mix_backward" in called


def test_what_compiled_graphs_hold_on_a_gpu() -> None:
    """The operator where there is a kernel, but for PiX in inference; all others their references."""
    with FakeTensorMode():
        x, p = torch.empty(2, 8, 4, 4, device="cuda", requires_grad=True), torch.empty(2, 2, device="cuda")
        inlined = [op.inlines(x, p) for op in (pix._pick_or_mix, soft_pool._soft_pool, lip_pool._lip_pool)]
        with torch.no_grad():
            inlined.append(pix._pick_or_mix.inlines(x, p))
    assert inlined == [False, False, True, True]


def test_sparse_tensors_are_refused_in_a_sentence() -> None:
    with pytest.raises(TypeError, match=r"x must be a dense tensor, got one of torch.sparse_coo; convert it with"):
        downmix.soft_pool2d(torch.ones(1, 1, 4, 4).to_sparse(), 2)


class Marked(torch.Tensor):
    pass


def test_a_choice_can_be_used_again() -> None:
    x, p = torch.randn(1, 8, 2, 2), torch.rand(1, 2)
    reference = downmix.use_backend("reference")
    for _ in range(2):
        with reference:
            assert "reference" in downmix.explain_backend(downmix.pick_or_mix, x, p, 4)
        assert "kernels" in downmix.explain_backend(downmix.pick_or_mix, x, p, 4)


def test_a_choice_can_be_used_within_itself() -> None:
    reference = downmix.use_backend("reference")
    with reference:
        with reference:
            assert _define._backend == "reference"
        assert _define._backend == "reference"
    assert _define._backend == "auto"
