"""Random scales, rotations, crops, flips and blur, of an image and its mask alike."""

from __future__ import annotations

from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from .segmentation_data import VOID

# what stands where there is no image: nothing after normalising, and void in the mask
_FILL: dict[Any, Any] = {tv_tensors.Image: [255 * mean for mean in IMAGENET_DEFAULT_MEAN], tv_tensors.Mask: VOID}


class RandomScale(v2.Transform):
    """Scales an image and its mask by a factor drawn between ``low`` and ``high``.

    The mask is read at the centres of its pixels. torchvision's Resize reads masks at a corner: half a pixel of the
    smaller of the two sizes beside their images.
    """

    def __init__(self, low: float, high: float):
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = functional.get_size(flat_inputs[0])
        factor = torch.empty(()).uniform_(self.low, self.high).item()
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Mask):
            return functional.resize(inpt, params["size"], antialias=True)
        labels = inpt.as_subclass(torch.Tensor)[None, None].float()
        labels = nn.functional.interpolate(labels, params["size"], mode="nearest-exact")
        return tv_tensors.Mask(labels[0, 0].to(inpt.dtype))


class _FillUp(v2.Transform):
    """Adds to the right and below what an image and its mask lack of ``size``."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = functional.get_size(inpt)
        fill = _FILL[type(inpt)]
        return functional.pad(inpt, [0, 0, self.size[1] - width, self.size[0] - height], fill=fill)


def training_transform(
    crop: tuple[int, int], scale: tuple[float, float], rotate: float, hflip: float, blur: float
) -> v2.Compose:
    """What a training image and its mask go through, drawing from torch's global generator.

    Args:
        crop: height and width in pixels; where the scaled image is smaller, mean colour and void fill up.
        scale: smallest and largest factor of the size.
        rotate: largest angle in degrees, to either side; every second image stays as it is.
        hflip: probability of a horizontal flip.
        blur: probability of a 5×5 Gaussian blur of the image.
    """
    steps: list[nn.Module] = [RandomScale(*scale)]
    if rotate:
        bilinear = v2.InterpolationMode.BILINEAR
        turn = v2.RandomRotation([-rotate, rotate], interpolation=bilinear, fill=_FILL)
        steps.append(v2.RandomApply([turn], 0.5))
    steps.append(v2.RandomCrop(crop, pad_if_needed=True, fill=_FILL))
    if hflip:
        steps.append(v2.RandomHorizontalFlip(hflip))
    if blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel_size=5, sigma=1.1)], blur))
    return v2.Compose([*steps, *_to_network()])


def evaluation_transform(size: tuple[int, int]) -> v2.Compose:
    """An image as it is, filled up with mean colour and void to the height and width of the largest in its split."""
    return v2.Compose([_FillUp(size), *_to_network()])


def to_picture(image: torch.Tensor) -> torch.Tensor:
    """The colours (uint8 Tensor[3, H, W]) of an image as the network gets it (Tensor[3, H, W])."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return ((image.cpu().float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _to_network() -> list[nn.Module]:
    dtypes: dict[Any, Any] = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}
    return [
        v2.ToDtype(dtypes, scale=True),
        v2.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        v2.ToPureTensor(),
    ]
