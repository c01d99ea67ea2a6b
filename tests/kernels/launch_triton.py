"""Launches every Triton kernel twice through a driver that only notes what it is given.

The second time downmix launches what Triton has compiled itself, and has to give the driver what Triton gave it.
"""

from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from downmix.kernels.triton import (
    _common,
    _pix_linear,
    add_relu_mean,
    pix,
    pix_layer,
    pix_sample,
    soft_pool,
)

notes: list[tuple[str, tuple[Any, ...]]] = []
places: dict[int, str] = {}  # of the tensors that are launched with, by their addresses


class Utils:
    def load_binary(self, name: str, *args: object) -> tuple[object, ...]:
        return name, name, 32, 0, 1024  # module, function, registers, spills, most threads

    def unload_module(self, module: object) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448}


class Launcher:
    def __init__(self, source: object, metadata: object):
        pass

    def __call__(self, *args: Any) -> None:
        # Between the function and its arguments are metadata and hooks.
        (*grid, stream, function), arguments = args[:5], args[9:]
        values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
        seen = [places.get(value, value) for value in values]
        notes.append((function, (*grid, stream, *seen)))


class Driver:
    utils, launcher_cls = Utils(), Launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 7

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def with_places(launch: Any, *tensors: Tensor, here: Any = _common.Launch.here) -> None:
    places.clear()
    places.update({tensor.data_ptr(): f"tensor {i}" for i, tensor in enumerate(tensors)})
    here(launch, *tensors)


def main() -> None:
    driver.set_active(Driver())
    _common.Launch.here = with_places
    x, p = torch.zeros(2, 8, 6, 6), torch.zeros(2, 2)
    y = pix.forward(x, p, 4, 0.5, "threshold", "max+avg", False)
    windows = [(x, [n] * 2, [2] * 2, [0] * 2, [1] * 2) for n in (2, 3)]
    windows.append((torch.zeros(1, 2, 5, 5, 5), [3] * 3, [2] * 3, [1] * 3, [1] * 3))
    grads = [soft_pool.forward(*window, False, "exact") for window in windows]

    def backward(window: tuple[Any, ...], grad: Tensor) -> None:
        soft_pool.backward(grad, *window, False, "exact")

    calls: list[Any] = [
        lambda: add_relu_mean.forward(x, x),
        lambda: pix_sample.forward(x, x, torch.zeros(2, 8, 1, 1), None, 1.0, 4, 0.5, "threshold", "max+avg", False),
        lambda: pix.forward(x, p, 4, 0.5, "threshold", "max+avg", False),
        lambda: pix.backward(y, x, p, 4, 0.5, "threshold", "max+avg", False),
        lambda: pix_layer.backward(
            *(y, x, p, 4, 0.5, "threshold", "max+avg", False),
            **{"slope": 1.0, "mean": torch.zeros(2, 8), "weight": torch.zeros(2, 8, 1, 1), "has_bias": True},
            **{"other": None, "rectified": True},
        ),
        *(lambda window=window: soft_pool.forward(*window, False, "exact") for window in windows),
        *(lambda window=window, grad=grad: backward(window, grad) for window, grad in zip(windows, grads, strict=True)),
    ]
    remembered = (
        *(pix.forward_launch, pix._backward_launch, soft_pool._forward_launch, soft_pool._backward_launches),
        *(add_relu_mean.forward_launch, _pix_linear.forward_launch, _pix_linear.backward_launch, pix_sample._plan),
        *(pix_layer._launch_logits, pix_layer._launch_x),
    )
    for call in calls:
        for launches in remembered:
            launches.cache_clear()
        found = []
        for _ in range(2):
            notes.clear()
            call()
            found.append(list(notes))
        assert found[0] == found[1], found
        print(*(name for name, _ in found[1]), sep="\n")


if __name__ == "__main__":
    main()
