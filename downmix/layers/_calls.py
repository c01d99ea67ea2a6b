"""What a call of a module runs: its class's forward, or something of somebody else's."""

from __future__ import annotations

from torch import nn


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody sees what a module reads or gives, and may change it."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_intercepted(module: nn.Module) -> bool:
    """Whether somebody does so, or put a forward in the place of its class's.

    Hooks on gradients don't count, nor that a call is compiled: a map is the same then.
    """
    # Not by is_hooked, as blocks ask this of all their layers in each pass.
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def has_methods_of(module: nn.Module, kind: type[nn.Module], *names: str) -> bool:
    """Whether a module's methods are those of ``kind``: none of a subclass, and none put in their place."""
    return all(
        name not in module.__dict__ and getattr(type(module), name, None) is getattr(kind, name, None) for name in names
    )
