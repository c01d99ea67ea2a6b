# Triton's types mean the compiled language, not the Python that pyright reads.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportInvalidTypeForm=false, reportOperatorIssue=false
"""The linear map of a PiX layer: from what adds up to the mean of its input to its probabilities, and back.

For small batches, in which launches cost more than the work: torch takes four either way.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from ...ops._define import compute_dtype
from .._layouts import Layout, blank, remembered
from ._common import TRITON_DTYPES, Launch, aligned, alignment, divide, power_of_two

MOST_PARTS = 64  # of a mean that are added up here, if they are not read too often
_MOST_READ = 2**26  # parts of all channels by all groups; beyond, a sum in front is quicker
_ELEMENTS = 8192  # of the largest tile, in registers
_PROGRAMS = 256  # two for each of H200's multiprocessors
_LARGEST_BATCH = 32  # in backward, where a program takes all samples; more are better multiplied by torch


@triton.jit
def _pix_probabilities_kernel(
    mean_ptr, weight_ptr, bias_ptr, p_ptr, batch, parts, channels, groups, slope: tl.float64,
    DTYPE: tl.constexpr, BIAS: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """p = σ(slope · (W · mean + b)) of a tile of samples and groups."""
    g_tiles = tl.cdiv(groups, BLOCK_G)
    b = tl.program_id(0) // g_tiles * BLOCK_B + tl.arange(0, BLOCK_B)
    g = tl.program_id(0) % g_tiles * BLOCK_G + tl.arange(0, BLOCK_G)
    part = tl.arange(0, BLOCK_P)
    channels = aligned(channels, ALIGN)
    b_part = (b.to(tl.int64) * parts)[:, None] + part[None, :]
    there = (b < batch)[:, None] & (part < parts)[None, :]
    products = tl.zeros([BLOCK_B, BLOCK_G, BLOCK_C], DTYPE)
    for start in range(0, channels, BLOCK_C * UNROLL):
        for k in tl.static_range(UNROLL):  # so that their loads are under way together
            c = start + k * BLOCK_C + tl.arange(0, BLOCK_C)
            offsets = aligned(b_part * channels, ALIGN)[:, :, None] + c[None, None, :]
            mean = tl.load(mean_ptr + offsets, there[:, :, None] & (c < channels)[None, None, :], other=0).to(DTYPE)
            offsets = aligned(g * channels, ALIGN)[:, None] + c[None, :]
            weight = tl.load(weight_ptr + offsets, (g < groups)[:, None] & (c < channels)[None, :], other=0).to(DTYPE)
            products += tl.sum(mean, 1)[:, None, :] * weight[None, :, :]
    logits = tl.sum(products, 2)
    if BIAS:
        logits += tl.load(bias_ptr + g, g < groups, other=0).to(DTYPE)[None, :]
    one = tl.full([1, 1], 1, DTYPE)
    p = divide(one, one + tl.exp(-logits * tl.full([1, 1], slope, DTYPE)))
    offsets = b[:, None] * groups + g[None, :]
    tl.store(p_ptr + offsets, p.to(p_ptr.dtype.element_ty), (b < batch)[:, None] & (g < groups)[None, :])


@remembered
def forward_launch(
    mean_layout: Layout, weight_layout: Layout, has_bias: bool, slope: float, dtype: torch.dtype
) -> Launch | str:
    """The launch with a mean, [B, C], or parts of it, [B, parts, C], a weight, [G, C, 1, 1], a bias, [G], or anything,
    and p, [B, G], of this dtype; or why there should be none."""
    mean, weight = blank(mean_layout), blank(weight_layout)
    (groups, channels), batch = weight.shape[:2], mean.shape[0]
    parts = mean.shape[1] if mean.dim() == 3 else 1
    if parts > MOST_PARTS or (parts > 1 and mean.numel() * groups > _MOST_READ):
        return "the parts of its mean are better added up before"
    block_p = triton.next_power_of_2(parts)
    # A program's samples share the weights it reads, its groups the means, but there should be enough programs.
    block_b = power_of_two(batch, max(1, 8 // block_p))
    b_tiles = triton.cdiv(batch, block_b)
    block_g = power_of_two(groups, min(16, max(4, triton.next_power_of_2(b_tiles * groups // _PROGRAMS))))
    block_c = power_of_two(channels, _ELEMENTS // max(block_b * block_g, block_b * block_p))
    constants: dict[str, Any] = {
        "DTYPE": TRITON_DTYPES[compute_dtype(mean, weight)],
        "BIAS": has_bias,
        "ALIGN": alignment(channels),
        "BLOCK_B": block_b,
        "BLOCK_P": block_p,
        "BLOCK_G": block_g,
        "BLOCK_C": block_c,
        "UNROLL": min(4 if block_p == 1 else 2, triton.cdiv(channels, block_c)),
    }
    programs = b_tiles * triton.cdiv(groups, block_g)
    return Launch(_pix_probabilities_kernel, programs, (batch, parts, channels, groups, slope), constants)


@triton.jit
def _summed(ptr, b, parts, i, batch, size, DTYPE: tl.constexpr, ALIGN: tl.constexpr, BLOCK_P: tl.constexpr):
    """[B, size] at b, i of what lies there in [B, parts, size]."""
    total = tl.zeros([b.shape[0], i.shape[0]], DTYPE)
    for start in range(0, parts, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        row = (b.to(tl.int64) * parts)[:, None] + part[None, :]
        there = ((b < batch)[:, None] & (part < parts)[None, :])[:, :, None] & (i < size)[None, None, :]
        values = tl.load(ptr + aligned(row * size, ALIGN)[:, :, None] + i[None, None, :], there, other=0)
        total += tl.sum(values.to(DTYPE), 1)
    return total


@triton.jit
def _gradient_of_linear_kernel(
    logits_ptr, mean_ptr, weight_ptr, dmean_ptr, dweight_ptr, dbias_ptr, batch, g_parts, c_parts, channels, groups,
    DTYPE: tl.constexpr, BIAS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Of a tile of channels, from that of the logits: dmean = dlogits · W and dW = dlogitsᵀ · mean; and db."""
    b, c = tl.arange(0, BLOCK_B), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    channels = aligned(channels, ALIGN)
    mean = _summed(mean_ptr, b, c_parts, c, batch, channels, DTYPE, ALIGN, BLOCK_P)
    dmean = tl.zeros([BLOCK_B, BLOCK_C], DTYPE)
    for start in range(0, groups, BLOCK_G * UNROLL):
        logits, weights = (), ()  # of all tiles before the first is written, as no load moves up past a store
        for k in tl.static_range(UNROLL):
            g = start + k * BLOCK_G + tl.arange(0, BLOCK_G)
            logits += (_summed(logits_ptr, b, g_parts, g, batch, groups, DTYPE, 1, BLOCK_P),)
            offsets = aligned(g * channels, ALIGN)[:, None] + c[None, :]
            mask = (g < groups)[:, None] & (c < channels)[None, :]
            weights += (tl.load(weight_ptr + offsets, mask, other=0).to(DTYPE),)
        for k in tl.static_range(UNROLL):
            g = start + k * BLOCK_G + tl.arange(0, BLOCK_G)
            dmean += tl.sum(logits[k][:, :, None] * weights[k][None, :, :], 1)
            dweight = tl.sum(logits[k][:, :, None] * mean[:, None, :], 0)
            offsets = aligned(g * channels, ALIGN)[:, None] + c[None, :]
            mask = (g < groups)[:, None] & (c < channels)[None, :]
            tl.store(dweight_ptr + offsets, dweight.to(dweight_ptr.dtype.element_ty), mask)
            if BIAS:  # noqa: SIM102, the second is not known to the compiler
                if tl.program_id(0) == 0:
                    tl.store(dbias_ptr + g, tl.sum(logits[k], 0).to(dbias_ptr.dtype.element_ty), g < groups)
    offsets = b[:, None] * channels + c[None, :]
    tl.store(dmean_ptr + offsets, dmean, (b < batch)[:, None] & (c < channels)[None, :])


@remembered
def backward_launch(logits: Layout, mean: Layout, weight: Layout, has_bias: bool) -> Launch | str:
    """The launch with the gradient of the logits, [B, parts, G], the mean or parts of it, the weight, and the gradients
    of mean, [B, C], weight, and bias, [G], or anything; or why there should be none."""
    (batch, g_parts, groups), channels = logits[0], weight[0][1]
    if batch > _LARGEST_BATCH or not blank(weight).is_contiguous() or not blank(mean).is_contiguous():
        return "torch's own matrix product is faster for large batches, and takes any layout"
    c_parts = mean[0][1] if len(mean[0]) == 3 else 1
    block_b, block_c = triton.next_power_of_2(batch), power_of_two(channels, 16)
    block_g = power_of_two(groups, _ELEMENTS // (block_b * block_c))
    constants: dict[str, Any] = {
        "DTYPE": TRITON_DTYPES[compute_dtype(blank(mean), blank(weight))],
        "BIAS": has_bias,
        "ALIGN": alignment(channels),
        "BLOCK_B": block_b,
        "BLOCK_P": power_of_two(max(g_parts, c_parts), max(1, _ELEMENTS // 4 // (block_b * max(block_g, block_c)))),
        "BLOCK_G": block_g,
        "BLOCK_C": block_c,
        "UNROLL": min(2, triton.cdiv(groups, block_g)),  # more would not fit into registers
    }
    arguments = batch, g_parts, c_parts, channels, groups
    return Launch(_gradient_of_linear_kernel, triton.cdiv(channels, block_c), arguments, constants)
