"""What PiX layers decide: their probabilities over a data set, in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import PiX
from ._watch import evaluating, named_layers, uncompiled, unwrapped

# Beyond it the sigmoid has less than a fifth of its steepest slope, so that p hardly answers the image any more.
SATURATION_MARGIN = 0.05


class LayerProbabilities:
    """Moments, histograms and counts of one PiX layer's p. K classes, G output channels; float64 and int64, on the CPU.

    Args:
        num_classes: K.
        channels: G.
        threshold: the layer's; p below it counts as a pick.
        bins: of the histograms, which share [0, 1] evenly.

    Attributes:
        images (Tensor[K]): how many were seen.
        class_mean (Tensor[K, G]): mean of p; 0 where a class has no image.
        class_squares (Tensor[K, G]): summed squared deviations of p from it.
        class_picks (Tensor[K, G]): how often p was below the threshold.
        class_histogram (Tensor[K, bins]): of p over all channels.
        histogram (Tensor[G, bins]): of p over all classes.
        saturated (Tensor[G]): how often p was below ``SATURATION_MARGIN`` or above 1 − it.
    """

    def __init__(self, num_classes: int, channels: int, threshold: float, bins: int = 50):
        self.threshold, self.bins = threshold, bins
        self.images = torch.zeros(num_classes, dtype=torch.int64)
        self.class_mean = torch.zeros(num_classes, channels, dtype=torch.float64)
        self.class_squares = torch.zeros(num_classes, channels, dtype=torch.float64)
        self.class_picks = torch.zeros(num_classes, channels, dtype=torch.int64)
        self.class_histogram = torch.zeros(num_classes, bins, dtype=torch.int64)
        self.histogram = torch.zeros(channels, bins, dtype=torch.int64)
        self.saturated = torch.zeros(channels, dtype=torch.int64)

    def update(self, p: Tensor, labels: Tensor) -> None:
        """Adds a batch: p [B, G] of any floating dtype and device, and the classes [B] of its images.

        Raises:
            ValueError: if p holds NaN, its shape does not fit, or a label is no class.
        """
        self._check(p, labels)
        # In the dtype the operator compares in: float64 would tell 0.1 from its float32.
        p = p.detach().to(torch.promote_types(p.dtype, torch.float32)).cpu()
        labels = labels.cpu()
        picks, p = p < self.threshold, p.double()
        classes, inverse = labels.unique(return_inverse=True)  # [U], [B]
        counts = torch.bincount(inverse).double()[:, None]  # [U, 1]
        mean = p.new_zeros(len(classes), p.shape[1]).index_add_(0, inverse, p) / counts  # [U, G]
        squares = torch.zeros_like(mean).index_add_(0, inverse, (p - mean[inverse]) ** 2)
        before = self.images[classes].double()[:, None]
        delta = mean - self.class_mean[classes]
        # Two groups' moments joined, which loses no digits to large sums.
        self.class_squares[classes] += squares + delta**2 * before * counts / (before + counts)
        self.class_mean[classes] += delta * counts / (before + counts)
        self.images += torch.bincount(labels, minlength=len(self.images))
        self.class_picks.index_add_(0, labels, picks.long())
        self.saturated += ((p < SATURATION_MARGIN) | (p > 1 - SATURATION_MARGIN)).sum(0)
        bins = (p * self.bins).long().clamp(max=self.bins - 1)  # [B, G]
        self.class_histogram += _histogram(labels[:, None], bins, self.class_histogram)
        self.histogram += _histogram(torch.arange(p.shape[1]), bins, self.histogram)

    def _check(self, p: Tensor, labels: Tensor) -> None:
        classes, channels = self.class_mean.shape
        if p.shape != (len(labels), channels):
            raise ValueError(f"p must be [{len(labels)}, {channels}]: a row a label, got {list(p.shape)}")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"labels must be from 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}")
        if p.isnan().any():
            raise ValueError("p holds NaN; the network's activations or weights do")

    @property
    def mean(self) -> Tensor:
        """Of each channel over all images, [G]."""
        return (self.class_mean * self.images[:, None]).sum(0) / self.images.sum()

    @property
    def std(self) -> Tensor:
        """Of each channel over all images, [G], without Bessel's correction."""
        between = self.images[:, None] * (self.class_mean - self.mean) ** 2
        return ((self.class_squares + between).sum(0) / self.images.sum()).sqrt()

    @property
    def class_std(self) -> Tensor:
        """Of each class and channel, [K, G], without Bessel's correction; NaN where a class has no image."""
        return (self.class_squares / self.images[:, None]).sqrt()

    @property
    def pick_share(self) -> Tensor:
        """Share of the images in which a channel picks, [G]."""
        return self.class_picks.sum(0).double() / self.images.sum()

    @property
    def switch_rate(self) -> Tensor:
        """Chance that of two different images a channel picks in one and mixes in the other, [G]."""
        images, picks = self.images.sum(), self.class_picks.sum(0).double()
        return 2 * picks * (images - picks) / (images * (images - 1)).clamp(min=1)

    @property
    def saturation(self) -> Tensor:
        """Share of the images in which a channel's p is saturated, [G]."""
        return self.saturated.double() / self.images.sum()


def _histogram(rows: Tensor, bins: Tensor, like: Tensor) -> Tensor:
    flat = (rows * like.shape[1] + bins).flatten()
    return torch.bincount(flat, minlength=like.numel()).view_as(like)


@contextmanager
def watch_probabilities(model: nn.Module, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Calls ``see(name, p)`` each time a PiX layer of ``model`` has run, with p [B, G]; afterwards no hook is left.

    In any mode, also around training steps, and on networks within ``torch.compile``, DDP or both, whose prefixes the
    names go without. Compiled code runs eagerly inside, since it was traced without the hooks, and as compiled before
    afterwards.

    Example:
        >>> network = nn.Sequential(PiX(8, reduction=4))
        >>> with watch_probabilities(network, lambda name, p: print(name, list(p.shape))):
        ...     output = network(torch.zeros(2, 8, 5, 5))
        0 [2, 2]
    """

    def hook(name: str) -> Callable[..., None]:
        def seen(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0]
            see(name, _probabilities(layer, x if x.dim() == 4 else x.unsqueeze(0)))

        return seen

    handles = [layer.register_forward_hook(hook(name)) for name, layer in pix_layers(model).items()]
    try:
        with uncompiled():
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Gate(nn.Module):
    def __init__(self, layer: PiX):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.probabilities(x)


@torch.no_grad()
def _probabilities(layer: PiX, x: Tensor) -> Tensor:
    # On copies of the buffers: a norm in training has counted this batch already.
    buffers = {f"layer.{name}": buffer.clone() for name, buffer in layer.named_buffers()}
    return torch.func.functional_call(_Gate(layer), buffers, (x,))


def pix_layers(model: nn.Module) -> dict[str, PiX]:
    """The PiX layers of ``model`` by name; ValueError where there are none."""
    layers = {name: layer for name, layer in named_layers(model).items() if isinstance(layer, PiX)}
    if not layers:
        raise ValueError(f"{type(unwrapped(model)).__name__} has no PiX layer, so there are no probabilities to see")
    return layers


def measure_probabilities(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int, *, bins: int = 50
) -> dict[str, LayerProbabilities]:
    """Runs ``model`` over ``batches`` and keeps statistics of every PiX layer's p, in memory that does not grow.

    Args:
        model: any network with PiX layers; it is evaluated, and is afterwards as it was.
        batches: images [B, C, H, W] and their labels [B], such as a loader; images go to the network's device.
        num_classes: labels are below it.
        bins: of the histograms.

    Returns:
        By the layer's name, in the order the network defines them.

    Raises:
        ValueError: if the network has no PiX layer or never ran one, p holds NaN, or a label is no class.
    """
    device = next(model.parameters()).device
    found = {
        name: LayerProbabilities(num_classes, layer.out_channels, layer.threshold, bins)
        for name, layer in pix_layers(model).items()
    }
    seen: list[tuple[str, Tensor]] = []
    with evaluating(model), watch_probabilities(model, lambda name, p: seen.append((name, p))):
        for images, labels in batches:
            seen.clear()
            model(images.to(device))
            for name, p in seen:
                try:
                    found[name].update(p, labels)
                except ValueError as error:
                    raise ValueError(f"layer {name}: {error}") from error
    ran = {name: layer for name, layer in found.items() if layer.images.sum()}
    if not ran:
        raise ValueError("no PiX layer saw an image; give at least one batch")
    return ran


def last_of_each_stage(model: nn.Module) -> list[str]:
    """Names of the last PiX layer of every stage, which are what the source draws.

    Stages are those of timm's ``feature_info``; without it one ends where the number of output channels changes.
    """
    layers = pix_layers(model)
    info: Any = getattr(unwrapped(model), "feature_info", None) or []
    ends = [
        max((i for i, name in enumerate(layers) if name.startswith(f"{stage['module']}.")), default=None)
        for stage in info
    ]
    names = list(layers)
    last = [names[i] for i in ends if i is not None]
    if last:
        return last
    widths = [layer.out_channels for layer in layers.values()] + [None]
    return [name for i, name in enumerate(names) if widths[i] != widths[i + 1]]
