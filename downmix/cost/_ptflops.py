"""The convention of the papers' tables: that of ptflops' ``pytorch`` backend without functional operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..layers import PiX
from ..layers._pool import Pool


def ptflops(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int | None:
    """Operations of one run of ``module``, its children apart; None where the convention has no formula.

    1 per multiply-add, 2 per element of a norm (1 without scale and shift, and of a LayerNorm), 1 per element of a
    ReLU and its like, 1 per input element of a pool. Where ptflops knows a class alone, those derived from it count
    too, such as timm's BatchNorm with an activation: the papers' figure for MobileNet-v2 has its norms in it. Beyond
    ptflops, a PiX layer's global mean counts as a pool and its linear map as a convolution, but pick_or_mix itself
    does not, and LPPool and our pools count as the others.
    """
    if not inputs or not isinstance(inputs[0], Tensor):  # called by keywords, or with a packed sequence
        return None
    if _is_deformable(module):
        return _deformable_conv(module, inputs, output)
    for kinds, formula in _FORMULAS.items():
        if isinstance(module, kinds):
            return formula(module, inputs, output)
    return None


Inputs = tuple[Any, ...]


def _conv(module: Any, inputs: Inputs, y: Tensor) -> int:
    return y.numel() * module.weight[0].numel() + (y.numel() if module.bias is not None else 0)


def _transposed_conv(module: Any, inputs: Inputs, y: Tensor) -> int:
    return inputs[0].numel() * module.weight[0].numel() + (y.numel() if module.bias is not None else 0)


def _is_deformable(module: nn.Module) -> bool:
    """Whether this is torchvision's; torchvision itself need not be there."""
    return type(module).__name__ == "DeformConv2d" and type(module).__module__.startswith("torchvision.")


def _deformable_conv(module: Any, inputs: Inputs, y: Tensor) -> int:
    positions = y.shape[0] * y.shape[2:].numel() * module.weight[0, 0].numel()
    masked = len(inputs) == 3 and inputs[2] is not None
    return _conv(module, inputs, y) + positions * (20 + 4 + masked)  # interpolation, its coordinates, the mask


def _linear(module: Any, inputs: Inputs, y: Tensor) -> int:
    return y.numel() * module.in_features + (y.numel() if module.bias is not None else 0)


def _norm(module: Any, inputs: Inputs, y: Tensor) -> int:
    return (2 if getattr(module, "affine", False) else 1) * inputs[0].numel()  # LayerNorm's word for it is another


def _pix(module: Any, inputs: Inputs, y: Tensor) -> int:
    probabilities = y.shape[:-2].numel()
    return inputs[0].numel() + probabilities * module.in_channels + (probabilities if module.bias is not None else 0)


def _recurrent(module: Any, inputs: Inputs, y: Any) -> int:
    """At each step 1 for each weight and bias, and what the gates do; a second direction counts as the first."""
    gates = next(count for kinds, count in _GATES.items() if isinstance(module, kinds))
    gates *= module.hidden_size * getattr(module, "num_layers", 1)
    one_way = sum(p.numel() for name, p in module.named_parameters() if not name.endswith("_reverse"))
    directions = 2 if getattr(module, "bidirectional", False) else 1
    return inputs[0].shape[:-1].numel() * (one_way + gates) * directions


def _attention(module: Any, inputs: Inputs, y: Any) -> int:
    tensors = [*inputs, inputs[0], inputs[0]][:3]
    length = 1 if module.batch_first and inputs[0].dim() == 3 else 0
    (nq, nk, nv), (dq, dk, dv) = (t.shape[length] for t in tensors), (t.shape[-1] for t in tensors)
    maps = nq * dq * dq + nk * dk * dk + nv * dv * dv + nq * dv * (dv + 1)
    bias = (nq + nk + nv) * dq if module.in_proj_bias is not None else 0
    heads = nq * nk * (dq + dv + module.num_heads)  # two products, and a softmax in each
    return inputs[0].numel() // (nq * dq) * (nq * dq + maps + bias + heads)


def _input_elements(module: nn.Module, inputs: Inputs, y: Any) -> int:
    return inputs[0].numel()


def _output_elements(module: nn.Module, inputs: Inputs, y: Tensor) -> int:
    return y.numel()


_GATES = {(nn.RNN, nn.RNNCell): 1, (nn.GRU, nn.GRUCell): 7, (nn.LSTM, nn.LSTMCell): 10}
_FORMULAS: dict[Any, Callable[..., int]] = {
    (nn.Conv1d, nn.Conv2d, nn.Conv3d): _conv,
    nn.modules.conv._ConvTransposeNd: _transposed_conv,
    nn.Linear: _linear,
    (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm): _norm,
    (nn.ReLU, nn.ReLU6, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.GELU, nn.Upsample): _output_elements,
    PiX: _pix,
    (
        nn.modules.pooling._AvgPoolNd,
        nn.modules.pooling._MaxPoolNd,
        nn.modules.pooling._AdaptiveAvgPoolNd,
        nn.modules.pooling._AdaptiveMaxPoolNd,
        nn.modules.pooling._LPPoolNd,
        Pool,
    ): _input_elements,
    (nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell): _recurrent,
    nn.MultiheadAttention: _attention,
}
