"""What every pooling module shares: nn.MaxPool's arguments, and a function that takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from ..ops._windows import Size


class Pool(nn.Module):
    """Keeps and shows ``nn.MaxPool``'s arguments, in their order, and refuses ``return_indices``."""

    pool: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ):
        super().__init__()
        refuse_indices(return_indices, type(self).__name__)
        self.kernel_size, self.padding, self.dilation = kernel_size, padding, dilation
        self.stride = kernel_size if stride is None else stride
        self.ceil_mode = ceil_mode

    @property
    def window(self) -> tuple[Any, ...]:
        """What the functions take after their tensors."""
        return self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


def refuse_indices(return_indices: bool, name: str) -> None:
    if return_indices:
        raise ValueError(
            f"{name} has no indices to return; use return_indices=False, or nn.MaxPool where something unpools with "
            "the indices"
        )
