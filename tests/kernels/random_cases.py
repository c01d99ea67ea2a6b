"""Random inputs for the kernels of every backend, and what must hold for each."""

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from downmix.ops import lip_pool, pix, power_pool, soft_pool, stochastic_pool
from downmix.ops._define import Operator, compute_dtype
from downmix.ops._windows import output_sizes
from downmix.ops.add_relu_mean import whole

from ..ops.standard import LAYOUTS, with_gradients

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _seeded(seed: int) -> random.Random:
    torch.manual_seed(seed)
    return random.Random(seed)


def check_pick_or_mix(seed: int, cases: int) -> None:
    """Checks random cases of pick_or_mix."""
    rng = _seeded(seed)
    for _ in range(cases):
        channels, dtype = rng.randint(1, 12), rng.choice(DTYPES)
        # Each reduction, and a minimum, takes Numba a second to compile, so that other dtypes see fewer.
        reduction = rng.choice((1, 3, 4, 17)) if dtype == torch.float32 else 3
        operators = pix.OPERATORS if dtype == torch.float32 else ("max+avg", "max", "avg")
        x = random_values(rng, [rng.randint(1, 3), channels, rng.randint(1, 6), rng.randint(1, 6)], dtype)
        p = torch.rand(x.shape[0], -(-channels // reduction), dtype=torch.float64)
        p = p.mul(8).round().div(8) if rng.random() < 0.5 else p  # some at the threshold
        p = p.to(rng.choice((x.dtype, x.dtype, torch.float32, torch.float64)))
        if rng.random() < 0.1:
            p[0, 0] = math.nan
        fusion, operator = rng.choice(pix.FUSIONS), rng.choice(operators)
        constants = (reduction, rng.choice((0.0, 0.3, 0.5, 1.0)), fusion, operator, rng.random() < 0.3)
        layout = rng.choice(list(LAYOUTS)) if x.shape[0] > 1 else "contiguous"
        check(pix._pick_or_mix, [x, p.to(DEVICE)], constants, layout)


def check_pix_layer(seed: int, cases: int, roundings: int) -> None:
    """Checks the gradient of a PiX layer's input in random cases, p given, and how the mean's follows.

    ``roundings`` are those to the dtype of x beyond a single one at the end.
    """
    rng = _seeded(seed)
    while cases:
        dtype, reduction = rng.choice(DTYPES), rng.choice((1, 3, 4, 17))
        x = random_values(rng, [rng.randint(1, 3), rng.randint(1, 12), rng.randint(1, 6), rng.randint(1, 6)], dtype)
        groups = -(-x.shape[1] // reduction)
        p = torch.rand(x.shape[0], groups, device=DEVICE).to(rng.choice((dtype, torch.float32)))
        constants = (reduction, 0.5, rng.choice(pix.FUSIONS), rng.choice(("max+avg", "max", "avg")), rng.random() < 0.3)
        if x.isfinite().all() and not isinstance(pix._pick_or_mix.kernel(x, p, *constants), str):
            layouts = [rng.choice(list(LAYOUTS)) for _ in range(2)]
            others = {"has_other": rng.random() < 0.5, "rectified": rng.random() < 0.5}
            _check_pix_layer(x, p, constants, *layouts, **others, roundings=roundings)
            cases -= 1


def _check_pix_layer(
    x: Tensor,
    p: Tensor,
    constants: tuple[Any, ...],
    grad_layout: str,
    other_layout: str,
    *,
    has_other: bool,
    rectified: bool,
    roundings: int,
) -> None:
    x = x.relu() if rectified else x
    grad, other = (
        LAYOUTS[layout](torch.randn(x.shape[0], channels, *x.shape[2:], device=DEVICE).to(x.dtype))
        for layout, channels in ((grad_layout, p.shape[1]), (other_layout, x.shape[1]))
    )
    others, slope = [other] if has_other else [], 2.0
    kind = torch.promote_types(x.dtype, p.dtype)
    weight = torch.randn(p.shape[1], x.shape[1], 1, 1, device=DEVICE).to(kind)
    mean = torch.randn(x.shape[0], 3, x.shape[1], device=DEVICE).to(compute_dtype(x))  # parts that add up to it

    def by_definition(x: Tensor, p: Tensor, mean: Tensor, weight: Tensor) -> list[Tensor]:
        def run(*leaves: Tensor) -> Tensor:
            return pix._pick_or_mix.reference(*leaves, *constants)

        _, dx, dp = with_gradients(run, [x, p], lambda y: grad.to(y.dtype))
        logits = (dp * slope * p * (1 - p)).to(weight.dtype)
        of_mean = logits @ weight.flatten(1) / x.shape[2:].numel()
        dx = sum(others, dx + of_mean[:, :, None, None].to(dx.dtype))
        of_map = logits.t() @ mean.sum(1).to(logits.dtype), logits.sum(0)
        return [torch.where(x == 0, 0, dx) if rectified else dx, of_map[0].view_as(weight), of_map[1], logits]

    kernel: Any = pix._pick_or_mix.kernel(x, p, *constants, stem="pix_layer")
    options = {"slope": slope, "other": other if has_other else None, "rectified": rectified}
    got = kernel.backward(grad, x, p, *constants, mean=mean, weight=weight, has_bias=True, **options)
    given = x, p, mean, weight
    own, truth = by_definition(*given), by_definition(*(tensor.double() for tensor in given))
    assert [tensor.dtype for tensor in got] == [x.dtype, weight.dtype, weight.dtype]
    assert same_steps(got[0], torch.empty_like(x))
    eps = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    size = _largest(x) * _largest(grad) * max(_largest(weight), _largest(mean.sum(1)))
    # Where torch multiplies, the gradient of the logits and the mean are rounded before, and what comes of them after.
    products = len(x) * _largest(truth[3]) * max(1.0, _largest(mean.sum(1)))
    sizes = roundings * _largest(truth[0]), 3 * products, 3 * products
    for ours, reference, exact, rounded in zip(got, own[:3], truth[:3], sizes, strict=True):
        slack = 64 * eps * max(1.0, _largest(exact), size) + rounded * torch.finfo(ours.dtype).eps / 2
        assert (ours - exact).abs().max() <= 2 * (reference - exact).abs().max() + slack


def check_whole_pix_layer(seed: int, cases: int) -> None:
    """Checks random cases of a whole PiX layer, with a sum and a ReLU in front and without."""
    rng = _seeded(seed)
    done = 0
    while done < cases:
        dtype = rng.choice((torch.float32, *DTYPES))
        reduction = rng.choice((1, 3, 4, 17)) if dtype == torch.float32 else 3  # fewer kernels to compile, as above
        operators = pix.OPERATORS if dtype == torch.float32 and reduction == 3 else ("max+avg", "max", "avg")
        kind = dtype if dtype == torch.float64 else rng.choice((dtype, torch.float32))  # the latter under autocast
        shape = [rng.randint(1, 3), rng.choice((1, 3, 12, 40)), rng.randint(1, 9), rng.randint(1, 6)]
        x = random_values(rng, shape, dtype)
        shortcut = torch.randn_like(x) if rng.random() < 0.5 else None
        weight = torch.randn(-(-shape[1] // reduction), shape[1], 1, 1, dtype=kind, device=DEVICE)
        bias = rng.choice((None, torch.randn(weight.shape[0], dtype=kind, device=DEVICE)))
        fusion, operator = rng.choice((*(("threshold", name) for name in operators), ("weighted", "max+avg")))
        constants = (reduction, 0.5, fusion, operator, rng.random() < 0.3)
        inputs = x, shortcut, weight, bias, rng.choice((1.0, 2.0)), *constants
        with torch.autocast(DEVICE, torch.bfloat16, enabled=kind != dtype):
            kernel: Any = pix._pick_or_mix.kernel(*inputs, stem="pix_sample")
            if not isinstance(kernel, str):
                _check_whole_pix_layer(kernel, *inputs[:5], constants)
                done += 1


def _check_whole_pix_layer(
    kernel: Any,
    x: Tensor,
    shortcut: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    slope: float,
    constants: tuple[Any, ...],
) -> None:
    given, written = (x, shortcut, weight, bias), x.clone()
    y, mean, p = kernel.forward(written, *given[1:], slope, *constants)
    got = [y, whole(mean, x.dtype), p, written]

    @torch.autocast(DEVICE, enabled=False)
    def by_definition(x: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
        x = x if shortcut is None else (x + shortcut).relu()
        mean = x.mean((2, 3))
        p = torch.sigmoid(slope * torch.nn.functional.linear(mean.to(weight.dtype), weight.flatten(1), bias))
        p = p if p.dtype == torch.float64 else p.to(got[2].dtype)  # to which autocast may round it
        return [pix._pick_or_mix.reference(x, p, *constants), mean, p, x]

    own = by_definition(*given)
    wide: Any = [None if tensor is None else tensor.double() for tensor in given]
    truth = by_definition(*wide)
    if ((truth[2] - constants[1]).abs() < 8 * max(torch.finfo(t.dtype).eps for t in (x, got[2]))).any():
        return  # where rounding decides what is chosen
    for tensors in zip(got, own, truth, strict=True):
        ours, reference, exact = (tensor.double() for tensor in tensors)
        assert torch.equal(ours.isnan(), reference.isnan())
        finite = reference.isfinite()
        assert torch.equal(ours[~finite].nan_to_num(0), reference[~finite].nan_to_num(0))
        ours, reference, exact = ours[finite], reference[finite], exact[finite]
        if finite.any():
            eps = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
            slack = 64 * eps * max(1.0, _largest(x))
            slack += torch.finfo(x.dtype).eps * _largest(exact)  # the sum and the output are rounded to it
            assert (ours - exact).abs().max() <= 2 * (reference - exact).abs().max() + slack
    assert got[0].dtype == x.dtype
    assert same_steps(got[0], own[0])


def check_soft_pool(seed: int, cases: int) -> None:
    """Checks random cases of soft_pool, in one to three dimensions."""
    rng = _seeded(seed)
    done = 0
    while done < cases:
        (size, constants), dtype = random_windows(rng), rng.choice(DTYPES)
        if dtype != torch.float32:  # fewer kernels to compile, as above
            constants[1][-1] = 2
            if [1, 1, *constants[0]][-3:] in ([1, 1, 2], [1, 1, 3], [1, 3, 3], [2, 2, 2]):
                continue
        x = random_values(rng, [rng.randint(1, 3), rng.randint(1, 5), *size], dtype)
        if min(output_sizes(list(x.shape[2:]), *constants[:5])) > 0:  # random_values may have cut x
            check(soft_pool._soft_pool, [x], constants, "contiguous")
            done += 1


def check_lip_pool(seed: int, cases: int) -> None:
    """Checks random cases of lip_pool, with infinite and missing logits, in one to three dimensions."""
    rng = _seeded(seed)
    for _ in range(cases):
        dtype = rng.choice((torch.float32, torch.float32, torch.bfloat16))
        size, (*window, _) = random_windows(rng)
        window[1][-1] = 2  # other strides are for soft_pool to check: each takes Numba a second to compile
        x = random_values(rng, [rng.randint(1, 3), rng.randint(1, 5), *size], dtype)
        logits = random_values(rng, list(x.shape), rng.choice((dtype, dtype, torch.float32)))
        if x.shape == logits.shape and min(output_sizes(list(x.shape[2:]), *window)) > 0:
            check(lip_pool._lip_pool, [x, logits], tuple(window), "contiguous")


def check_power_pool(seed: int, cases: int) -> None:
    """Checks random cases of power_pool for the powers that have kernels."""
    rng = _seeded(seed)
    for _ in range(cases):
        x, window = _random_maps(rng)
        check(power_pool._power_pool, [x], (*window, rng.choice((1.0, 2.0))), "contiguous")


def check_stochastic_mean(seed: int, cases: int) -> None:
    """Checks random cases of stochastic_mean, negative values among them."""
    rng = _seeded(seed)
    for _ in range(cases):
        x, window = _random_maps(rng)
        check(stochastic_pool._stochastic_mean, [x], window, "contiguous")


def check_stochastic_pool(seed: int, cases: int) -> None:
    """Checks random cases of stochastic_pool, with draws that are never as near a sum as arithmetic rounds."""
    rng = _seeded(seed)
    for _ in range(cases):
        x, window = _random_maps(rng, values=(-1.0, 0.0, 0.0, 1.0, 2.0, 4.0))
        shape = [*x.shape[:2], *output_sizes(list(x.shape[2:]), *window)]
        # Sums of these values, divided by their largest, are exact; and 2053 is a prime above all sums.
        draws = torch.randint(1, 2053, shape, device=DEVICE) / 2053
        check(stochastic_pool._stochastic_pool, [x, draws], window, "contiguous")


def _random_maps(rng: random.Random, values: tuple[float, ...] = ()) -> tuple[Tensor, tuple[Any, ...]]:
    """Maps and a window that fits them; some are wide or have many channels, so that vectors are whole."""
    while True:
        size, (*window, _) = random_windows(rng)
        window[1][-1] = 2  # other strides and dtypes are for soft_pool to check: each takes Numba a second to compile
        shape = [rng.randint(1, 3), rng.choice((1, 3, 5, 18)), *size[:-1], size[-1] * rng.choice((1, 1, 9))]
        x = random_values(rng, shape, torch.float32, values)
        if min(output_sizes(list(x.shape[2:]), *window)) > 0:
            return x, tuple(window)


def check(
    operator: Operator,
    tensors: list[Tensor],
    constants: tuple[Any, ...],
    gradient_layout: str,
    roundings: int | None = None,
    grad_scale: float = 1.0,
) -> None:
    """Output and gradients are within twice the reference's own error and a few roundings, NaN and infinity where it
    has them."""
    grad = torch.randn(operator.reference(*tensors, *constants).shape, device=DEVICE) * grad_scale
    grad = LAYOUTS[gradient_layout](grad.to(tensors[0].dtype))

    def run(function: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor]:
        return with_gradients(lambda *t: function(*t, *constants), list(leaves), lambda y: grad.to(y.dtype))

    exact = run(operator.reference, *(t.double() for t in tensors))
    own = run(operator.reference, *tensors)
    ours = run(operator, *tensors)
    # One value can be exact by luck, so a few roundings of the arithmetic are always allowed.
    wide = torch.float64 if torch.float64 in [t.dtype for t in tensors] else torch.float32
    usual = 64 if wide == torch.float64 else 16  # there the truth has rounded as well
    # The gradient of a second tensor adds up products of x and the incoming gradient, which can cancel.
    product = _largest(tensors[0]) * _largest(grad)
    for i, (got, reference, truth) in enumerate(zip(ours, own, exact, strict=True)):
        assert (got.dtype, got.shape) == (reference.dtype, reference.shape)
        assert torch.equal(got.isnan(), reference.isnan())
        finite = reference.isfinite()
        assert torch.equal(got[~finite].nan_to_num(0), reference[~finite].nan_to_num(0))
        if finite.any():
            got, reference, truth = got[finite].double(), reference[finite].double(), truth[finite]
            slack = (roundings or usual) * torch.finfo(wide).eps * max(1.0, truth.abs().max().item())
            slack = max(slack, 2 * torch.finfo(wide).eps * product) if i == 2 else slack
            assert (got - truth).abs().max() <= 2 * (reference - truth).abs().max() + slack
    assert same_steps(ours[0], own[0])
    if not isinstance(operator.kernel(*tensors, *constants), str):
        assert same_steps(ours[1], torch.empty_like(tensors[0]))


def _largest(x: Tensor) -> float:
    """The largest finite size."""
    return x.abs().nan_to_num(0, 0, 0).max().item() if x.numel() else 0.0


def same_steps(a: Tensor, b: Tensor) -> bool:
    """Whether the strides agree wherever there is a step to take."""
    return all(i == j for size, i, j in zip(a.shape, a.stride(), b.stride(), strict=True) if size > 1)


def random_values(rng: random.Random, shape: list[int], dtype: torch.dtype, values: tuple[float, ...] = ()) -> Tensor:
    """Random numbers, or some of ``values``, in a random layout."""
    # On the device before it gets its layout: a copy there would lay it out anew.
    x = torch.randn(shape, device=DEVICE) * rng.choice((1, 1, 30))
    if values:
        x = torch.tensor(values, device=DEVICE)[torch.randint(len(values), shape, device=DEVICE)]
    if rng.random() < 0.4:
        x = x.round()  # ties
    if rng.random() < 0.3:
        for value in (math.inf, -math.inf, math.nan):
            x[torch.rand(shape, device=DEVICE) < 0.05] = value
    x = LAYOUTS[rng.choice(list(LAYOUTS))](x.to(dtype))
    if rng.random() < 0.2 and x.shape[-1] > 1:
        x = x[..., 1:]  # not aligned, and its rows not one after the other
    if rng.random() < 0.3:  # steps that are never taken
        x = x.as_strided(
            x.shape, [rng.choice((0, 1, 7)) if n == 1 else s for n, s in zip(x.shape, x.stride(), strict=True)]
        )
    return x


def random_windows(rng: random.Random) -> tuple[list[int], tuple[Any, ...]]:
    """A size and a soft pool's constants that fit it."""
    while True:
        n = rng.choice((1, 2, 2, 2, 3))
        size = [rng.randint(1, 8) for _ in range(n)]
        kernel, stride, dilation = ([rng.randint(1, most) for _ in range(n)] for most in (4, 4, 2))
        kind = rng.random()
        if kind < 0.3:
            stride, dilation = list(kernel), [1] * n
        elif kind < 0.5:
            kernel, dilation = list(size), [1] * n  # global
        padding = [rng.randint(0, ((k - 1) * d + 1) // 2) for k, d in zip(kernel, dilation, strict=True)]
        if rng.random() < 0.5:
            padding = [0] * n
        windows = (kernel, stride, padding, dilation, rng.random() < 0.4)
        if min(output_sizes(size, *windows)) > 0:
            return size, (*windows, rng.choice(soft_pool.GRADIENTS))
