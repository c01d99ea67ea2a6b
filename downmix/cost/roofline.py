"""The time that a device's two limits, arithmetic and memory, allow at best."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """A device as a roofline sees it.

    Args:
        flops_per_s: most floating-point operations a second, a multiply-add taken as two.
        bytes_per_s: most bytes a second, read and written together.

    Example:
        >>> Device(flops_per_s=1e12, bytes_per_s=1e11).time_ms(operations=1e9, moved_bytes=1e9)
        10.0
    """

    flops_per_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        for name, value in (("flops_per_s", self.flops_per_s), ("bytes_per_s", self.bytes_per_s)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")

    def time_ms(self, operations: float, moved_bytes: float) -> float:
        """The longer of the two: the time of the arithmetic and that of the memory."""
        return 1e3 * max(operations / self.flops_per_s, moved_bytes / self.bytes_per_s)


def measure_device(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, seconds: float = 1.0
) -> Device:
    """Measures both limits: a large matrix product, and a copy too large for the caches; the fastest run counts.

    Args:
        device: where to measure, with as many threads as torch uses now.
        dtype: of the matrices.
        seconds: how long each is repeated, at least.
    """
    device = torch.device(device)
    size, copied = (8192, 2**30) if device.type == "cuda" else (1024, 2**27)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    product_s = _fastest(lambda: torch.mm(a, b, out=product), device, seconds)
    source = torch.ones(copied, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy_s = _fastest(lambda: target.copy_(source), device, seconds)
    return Device(flops_per_s=2 * size**3 / product_s, bytes_per_s=2 * copied / copy_s)


def _fastest(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    fastest, end = float("inf"), time.perf_counter() + seconds
    call()
    while fastest == float("inf") or time.perf_counter() < end:
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
