"""The tests every operator passes; a test class of an operator inherits them and says what its inputs are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import downmix
from downmix.ops._define import Operator


def _every_second(x: Tensor) -> Tensor:
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
    wide[..., ::2] = x
    return wide[..., ::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous(),
    "every_second": _every_second,
    # A copy, as a map of one column is contiguous however it lies.
    "transposed": lambda x: x.transpose(-1, -2).clone(memory_format=torch.contiguous_format).transpose(-1, -2),
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.usefixtures("poisoned_memory")
class StandardTests:
    """Inherit, and give the operator, its public function and its inputs."""

    operator: ClassVar[Operator]
    options: ClassVar[list[dict[str, Any]]]  # keyword arguments of the public function worth a run of each test
    dtypes: ClassVar = (torch.float32, torch.bfloat16, torch.float16)  # each is a kernel that takes a second to compile

    def inputs(self, batch: int = 2, **option: Any) -> tuple[Tensor, ...]:
        """Random float64 tensors that fit the options."""
        raise NotImplementedError

    def call(self, *tensors: Tensor, **options: Any) -> Tensor:
        """The public function."""
        raise NotImplementedError

    def constants(self, **options: Any) -> tuple[Any, ...]:
        """What follows the tensors in the operator's schema."""
        raise NotImplementedError

    def leaves(
        self,
        option: dict[str, Any],
        layout: str = "contiguous",
        dtype: torch.dtype = torch.float64,
        batch: int = 2,
    ) -> list[Tensor]:
        first, *others = self.inputs(batch, **option)
        tensors = [LAYOUTS[layout](first.to(dtype)), *(other.to(dtype) for other in others)]
        return [tensor.detach().requires_grad_() for tensor in tensors]

    @pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
    def test_gradcheck(self, option: dict[str, Any], layout: str) -> None:
        assert gradcheck(lambda *t: self.call(*t, **option), self.leaves(option, layout))

    def test_second_derivatives(self, option: dict[str, Any]) -> None:
        assert gradgradcheck(lambda *t: self.call(*t, **option), self.leaves(option))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_as_exact_as_the_reference(self, option: dict[str, Any], layout: str, dtype: torch.dtype) -> None:
        """Outputs and gradients are as near the float64 reference as twice the reference's own error, or a rounding."""
        constants = self.constants(**option)
        tensors = self.leaves(option, layout, dtype)
        exact = with_gradients(lambda *t: self.operator.reference(*t, *constants), [t.double() for t in tensors])
        own = with_gradients(lambda *t: self.operator.reference(*t, *constants), tensors)
        ours = with_gradients(lambda *t: self.call(*t, **option), tensors)
        for got, reference, truth in zip(ours, own, exact, strict=True):
            assert got.dtype == dtype
            allowed = 2 * (reference - truth).abs().max() + torch.finfo(dtype).eps * truth.abs().max()
            assert (got - truth).abs().max() <= allowed

    @pytest.mark.filterwarnings("ignore:The .grad attribute")  # of opcheck itself
    def test_opcheck(self, option: dict[str, Any]) -> None:
        for layout in ("contiguous", "channels_last"):
            args = (*self.leaves(option, layout, torch.float32), *self.constants(**option))
            torch.library.opcheck(getattr(torch.ops.downmix, self.operator.name), args)

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_compile(self, backend: str) -> None:
        for option in self.options if backend == "aot_eager" else self.options[:1]:
            torch.compiler.reset()  # the lambda below is one function to the compiler, and may recompile 8 times
            compiled = torch.compile(lambda *t, o=option: self.call(*t, **o), fullgraph=True, backend=backend)
            for batch in (2, 3):
                tensors = self.leaves(option, dtype=torch.float32, batch=batch)
                expected = with_gradients(lambda *t, o=option: self.call(*t, **o), tensors)
                for got, wanted in zip(with_gradients(compiled, tensors), expected, strict=True):
                    torch.testing.assert_close(got, wanted)

    def test_compile_with_dynamic_numbers(self) -> None:
        torch.compiler.reset()
        option = self.options[0]
        compiled = torch.compile(lambda *t: self.call(*t, **option), fullgraph=True, dynamic=True, backend="eager")
        tensors = self.leaves(option, dtype=torch.float32)
        torch.testing.assert_close(compiled(*tensors), self.call(*tensors, **option))

    def test_export_with_any_batch_size(self, option: dict[str, Any]) -> None:
        module = _Module(lambda *t: self.call(*t, **option))
        tensors = [t.detach() for t in self.leaves(option, dtype=torch.float32)]
        batch = torch.export.Dim("batch")
        exported = torch.export.export(module, tuple(tensors), dynamic_shapes=(tuple({0: batch} for _ in tensors),))
        others = [t.detach() for t in self.leaves(option, dtype=torch.float32, batch=5)]
        torch.testing.assert_close(exported.module()(*others), self.call(*others, **option))

    @pytest.mark.filterwarnings("ignore")  # the exporter's own
    def test_onnx(self, option: dict[str, Any], tmp_path: Path) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        module = _Module(lambda *t: self.call(*t, **option))
        tensors = [t.detach() for t in self.leaves(option, dtype=torch.float32)]
        torch.onnx.export(module, tuple(tensors), str(tmp_path / "op.onnx"), dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(tmp_path / "op.onnx", providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        (got,) = session.run(None, {name: t.numpy() for name, t in zip(names, tensors, strict=True)})
        torch.testing.assert_close(torch.from_numpy(got), self.call(*tensors, **option))

    def test_meta_has_the_real_shape_and_strides(self, option: dict[str, Any]) -> None:
        for layout in LAYOUTS:
            tensors = [t.detach() for t in self.leaves(option, layout)]
            real, meta = self.call(*tensors, **option), self.call(*(t.to("meta") for t in tensors), **option)
            assert (meta.shape, meta.dtype) == (real.shape, real.dtype)
            assert all(r == m for n, r, m in zip(real.shape, real.stride(), meta.stride(), strict=True) if n > 1)

    def test_empty_batch(self, option: dict[str, Any]) -> None:
        tensors = self.leaves(option, batch=0)
        output, *gradients = with_gradients(lambda *t: self.call(*t, **option), tensors)
        assert output.numel() == 0
        assert [g.shape for g in gradients] == [t.shape for t in tensors]

    def test_inputs_stay_as_they_were(self, option: dict[str, Any]) -> None:
        tensors = self.leaves(option)
        before = [t.detach().clone() for t in tensors]
        with_gradients(lambda *t: self.call(*t, **option), tensors)
        assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))

    def test_hooks_fire_once(self) -> None:
        option = self.options[0]
        first, *others = self.leaves(option)
        fired: list[int] = []
        inner = first * 1
        inner.register_hook(lambda grad: fired.append(1))
        self.call(inner, *others, **option).sum().backward()
        assert len(fired) == 1

    def test_torch_func(self, option: dict[str, Any]) -> None:
        first, *others = self.leaves(option)
        expected = with_gradients(lambda *t: self.call(*t, **option), [first, *others], torch.ones_like)[1]
        got = torch.func.grad(lambda x: self.call(x, *(o.detach() for o in others), **option).sum())(first.detach())
        torch.testing.assert_close(got, expected)

    @pytest.mark.filterwarnings("ignore:.torch.jit.script")  # its rules are written in that
    def test_forward_derivatives(self) -> None:
        option = self.options[0]
        first, *others = (t.detach() for t in self.leaves(option))
        tangent = _random_like(first)
        _, expected = torch.func.jvp(lambda x: self.call(x, *others, **option), (first,), (tangent,))
        with forward_ad.dual_level():
            output = self.call(forward_ad.make_dual(first, tangent), *others, **option)
            torch.testing.assert_close(forward_ad.unpack_dual(output).tangent, expected)
        with torch.no_grad():
            ties = torch.zeros_like(first)
            of_ties = [torch.func.jvp(lambda x: self.call(x, *others, **option), (ties,), (tangent,))[1]]
        of_ties.append(torch.func.jvp(lambda x: self.call(x, *others, **option), (ties,), (tangent,))[1])
        torch.testing.assert_close(*of_ties)

    @pytest.mark.filterwarnings("ignore:There is a performance drop")  # of vmap over a window's gradient
    def test_gradients_in_batches(self) -> None:
        option = self.options[0]
        leaves = self.leaves(option, dtype=torch.float32)
        output = self.call(*leaves, **option)
        grads = torch.stack([_random_like(output), torch.ones_like(output)])
        batched = torch.autograd.grad(output, leaves, grads, is_grads_batched=True, retain_graph=True)
        mapped = torch.func.vmap(lambda grad: torch.autograd.grad(output, leaves, grad, retain_graph=True))(grads)
        for i, grad in enumerate(grads):
            single = torch.autograd.grad(output, leaves, grad, retain_graph=True)
            for got, func, expected in zip(batched, mapped, single, strict=True):
                torch.testing.assert_close(got[i], expected)
                torch.testing.assert_close(func[i], expected)

    def test_vmap(self, option: dict[str, Any]) -> None:
        for layout in ("contiguous", "channels_last"):
            tensors = [t.detach() for t in self.leaves(option, layout)]
            got = torch.func.vmap(lambda *t: self.call(*(v.unsqueeze(0) for v in t), **option).squeeze(0))(*tensors)
            torch.testing.assert_close(got, self.call(*tensors, **option))

    def test_a_graph_that_was_compiled_for_kernels_under_the_reference(self) -> None:
        torch.compiler.reset()
        option = self.options[0]
        compiled = torch.compile(lambda *t: self.call(*t, **option), fullgraph=True, backend="aot_eager")
        tensors = self.leaves(option, dtype=torch.float32)
        expected = with_gradients(compiled, tensors)
        with downmix.use_backend("reference"):
            torch.testing.assert_close(with_gradients(compiled, tensors), expected)

    def test_gradients_in_compiled_graphs_lie_as_the_kernels_do_under_the_reference_too(self) -> None:
        option = self.options[0]
        backward = getattr(torch.ops.downmix, f"{self.operator.name}_backward")
        for layout in LAYOUTS:
            tensors = [t.detach() for t in self.leaves(option, layout, torch.float32)]
            arguments = (*tensors, *self.constants(**option))
            with downmix.use_backend("reference"):
                gradients = backward(self.operator(*arguments), *arguments)
            promised = [torch.empty_like(t).stride() for t in tensors]
            assert [gradient.stride() for gradient in gradients] == promised, layout

    def test_values_whose_sign_is_turned_in_a_view(self) -> None:
        option = self.options[0]
        first, *others = (t.detach() for t in self.leaves(option, dtype=torch.float32))
        turned = torch._neg_view(-first)
        assert turned.is_neg()
        torch.testing.assert_close(self.call(turned, *others, **option), self.call(first, *others, **option))

    @pytest.mark.filterwarnings("ignore")  # that torch.jit.trace is deprecated, and of constants in its graph
    @pytest.mark.parametrize("grad_mode", [True, False])
    def test_jit_trace(self, grad_mode: bool) -> None:
        option = self.options[0]
        module = _Module(lambda *t: self.call(*t, **option))
        first, others = (
            [t.detach() for t in self.leaves(option, dtype=torch.float32, batch=batch)] for batch in (2, 3)
        )
        with torch.set_grad_enabled(grad_mode):
            traced = torch.jit.trace(module, tuple(first))
        torch.testing.assert_close(traced(*others), self.call(*others, **option))

    def test_autocast_keeps_the_dtype_of_x(self) -> None:
        option = self.options[0]
        first, *others = (t.detach() for t in self.leaves(option, dtype=torch.float32))
        with torch.autocast(first.device.type, torch.bfloat16):
            for dtype in (torch.float32, torch.bfloat16):
                lower = [other.bfloat16() for other in others]
                assert self.call(first.to(dtype), *lower, **option).dtype == dtype


class _Module(nn.Module):
    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


def _random_like(output: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(output.shape, generator=generator, dtype=torch.float32).to(output)


def with_gradients(
    function: Callable[..., Tensor], tensors: list[Tensor], grad: Callable[[Tensor], Tensor] = _random_like
) -> list[Tensor]:
    """The output, and the gradient of each tensor for one incoming gradient; zeros for one that can have none."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad(output.detach()), materialize_grads=True)]
