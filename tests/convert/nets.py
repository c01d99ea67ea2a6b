"""Small networks to convert."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from downmix.convert import Report

X = torch.randn(2, 32, 8, 8)


class Net(nn.Module):
    """A squeeze whose parts are defined in the wrong order, under names that say nothing, inside other layers."""

    def __init__(self, **options: Any):
        super().__init__()
        self.d = nn.Conv2d(8, 32, 3, padding=1)
        self.c = nn.ReLU()
        self.b = nn.BatchNorm2d(8)
        self.a = nn.Conv2d(32, 8, 1, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x))))


class Calls(nn.Module):
    """A network whose forward is ``calls(layers, x)``, so that a test can say what runs in what order."""

    def __init__(self, calls: Callable[[Any, Tensor], Any], **layers: nn.Module):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.calls = calls

    def forward(self, x: Tensor) -> Any:
        return self.calls(self, x)


def squeeze(channels: int = 8) -> nn.Conv2d:
    return nn.Conv2d(32, channels, 1, bias=False)


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(8)


def end() -> nn.Conv2d:
    return nn.Conv2d(8, 4, 3)


def reasons(report: Report) -> dict[str, str]:
    return {left.name: left.reason for left in report.left}


def twins() -> nn.Sequential:
    return nn.Sequential(*[nn.Sequential(squeeze(), norm(), nn.ReLU(), nn.Conv2d(8, 32, 3, padding=1)) for _ in "abc"])
