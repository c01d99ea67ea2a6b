"""What a network may ask a layer for beside its output, which whatever takes the layer's place has to know too."""

from __future__ import annotations

import inspect

from torch import nn

_WINDOW = ("kernel_size", "stride", "padding", "dilation")


def move_notes(old: nn.Module, new: nn.Module) -> None:
    """Tells ``new`` what a network may ask ``old`` for, as far as it has no attribute of that name.

    That is what the network itself wrote there, as YOLO which layers each reads; and the window of a convolution, from
    which MobileNets that pad as TensorFlow does take the padding.
    """
    own: set[str] = set()
    for base in type(old).__mro__:
        own |= {*vars(base), *inspect.get_annotations(base), *vars(base).get("__constants__", ())}
    for name, value in vars(old).items():
        noted = not name.startswith("_") and name not in own
        if (noted or (name in _WINDOW and isinstance(old, nn.Conv2d))) and not hasattr(new, name):
            setattr(new, name, value)
