"""Makes our layers nodes of torch.fx's graphs, in timm's way: it can't follow what looks at its input's shape."""

import timm.layers
from torch import nn

from .. import layers

for _layer in vars(layers).values():
    if isinstance(_layer, type) and issubclass(_layer, nn.Module):
        timm.layers.register_notrace_module(_layer)
