"""The convention of the papers' tables: that of ptflops' ``pytorch`` backend without functional operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..layers import PiX
from ..layers._pool import Pool


def ptflops(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int | None:
    """Operations of one run of ``module``, its children apart; None where the convention has no formula.

    1 per multiply-add, 2 per BatchNorm element, 1 per ReLU element, 1 per input element of a pool. A PiX layer's global
    mean is one, its linear map counts as a convolution, and pick_or_mix itself is not counted.
    """
    for kinds, formula in _FORMULAS.items():
        if isinstance(module, kinds):
            return formula(module, inputs[0], output)
    return None


def _conv(module: Any, x: Tensor, y: Tensor) -> int:
    return y.numel() * module.weight[0].numel() + (y.numel() if module.bias is not None else 0)


def _linear(module: Any, x: Tensor, y: Tensor) -> int:
    return y.numel() * module.in_features + (y.numel() if module.bias is not None else 0)


def _batch_norm(module: Any, x: Tensor, y: Tensor) -> int:
    return (2 if module.affine else 1) * x.numel()


def _pix(module: Any, x: Tensor, y: Tensor) -> int:
    probabilities = y.shape[:-2].numel()
    return x.numel() + probabilities * module.in_channels + (probabilities if module.bias is not None else 0)


def _input_elements(module: nn.Module, x: Tensor, y: Tensor) -> int:
    return x.numel()


_FORMULAS: dict[Any, Callable[[Any, Tensor, Tensor], int]] = {
    (nn.Conv1d, nn.Conv2d, nn.Conv3d): _conv,
    nn.Linear: _linear,
    nn.modules.batchnorm._BatchNorm: _batch_norm,
    PiX: _pix,
    (
        nn.ReLU,
        nn.ReLU6,
        nn.modules.pooling._AvgPoolNd,
        nn.modules.pooling._MaxPoolNd,
        nn.modules.pooling._AdaptiveAvgPoolNd,
        nn.modules.pooling._AdaptiveMaxPoolNd,
        nn.modules.pooling._LPPoolNd,
        Pool,
    ): _input_elements,
}
