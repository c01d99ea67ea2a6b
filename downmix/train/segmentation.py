"""PSPNet over any of timm's encoders, its loss and its score."""

from __future__ import annotations

from collections.abc import Sequence

import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from .segmentation_data import VOID

_WINDOW_OVERLAP = 1 / 3  # as the published code of PSPNet slides its window


class Segmenter(nn.Module):
    """PSPNet with its auxiliary head.

    In training it gives the logits of both heads, in evaluation those of the main head, always at the images' own
    size: what the network's stride does not divide is filled up and cut off again.

    Args:
        network: segmentation_models_pytorch's PSPNet.
        num_classes: outputs a pixel.
        auxiliary: whether there is an auxiliary head, on the last but one stage of the encoder.
        window: height and width of the window that slides over the image in evaluation; None for the whole image.

    Source: Zhao et al., Pyramid Scene Parsing Network (CVPR 2017), and its published code (hszhao/semseg), for the
    auxiliary head, the loss and the window. segmentation_models_pytorch's network differs from theirs: the convolution
    after the pyramid is 1×1 and the last one 3×3, not the other way round; the pyramid's 1×1 bin has no BatchNorm; and
    the stem is timm's 7×7, where theirs has three 3×3.
    """

    def __init__(self, network: smp.PSPNet, num_classes: int, auxiliary: bool, window: tuple[int, int] | None = None):
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.auxiliary = _auxiliary_head(network.encoder.out_channels[-2], num_classes) if auxiliary else None
        self.window = window

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if self.training and self.auxiliary is not None:
            return self._both_heads(x, self.auxiliary)
        if self.training or self.window is None:
            return self._whole(x)
        return self._slide(x, self.window)

    def _both_heads(self, x: torch.Tensor, head: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = x.shape[2:]
        x = self._fill_up(x)
        features = self.network.encoder(x)
        main = self.network.segmentation_head(self.network.decoder(features))
        auxiliary = F.interpolate(head(features[-2]), x.shape[2:], mode="bilinear", align_corners=True)
        return main[..., :height, :width], auxiliary[..., :height, :width]

    def _whole(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(self._fill_up(x))[..., : x.shape[2], : x.shape[3]]

    def _slide(self, x: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
        """The logarithm of the mean of the probabilities of all windows that cover a pixel."""
        height, width = x.shape[2:]
        x = F.pad(x, (0, max(0, window[1] - width), 0, max(0, window[0] - height)))
        total = x.new_zeros(x.shape[0], self.num_classes, *x.shape[2:], dtype=torch.float32)
        count = torch.zeros_like(total[:1, :1])
        for top in _starts(x.shape[2], window[0]):
            for left in _starts(x.shape[3], window[1]):
                here = (..., slice(top, top + window[0]), slice(left, left + window[1]))
                total[here] += self._whole(x[here]).float().softmax(1)
                count[here] += 1
        mean = (total / count)[..., :height, :width]
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()

    def _fill_up(self, x: torch.Tensor) -> torch.Tensor:
        stride = self.network.encoder.output_stride
        return F.pad(x, (0, -x.shape[3] % stride, 0, -x.shape[2] % stride))  # zero is the mean colour


def create_segmenter(
    encoder: str,
    num_classes: int,
    *,
    output_stride: int = 8,
    auxiliary: bool = True,
    window: tuple[int, int] | None = None,
    pretrained: bool = False,
) -> Segmenter:
    """PSPNet over an encoder by its name in timm, all five stages, the last ones dilated.

    Raises:
        ValueError: where timm has no such encoder, or it can't be dilated to this stride.
    """
    try:
        network = smp.PSPNet(
            f"tu-{encoder}",
            encoder_weights=True if pretrained else None,  # type: ignore[arg-type]  # as smp documents it for tu-
            encoder_depth=5,
            output_stride=output_stride,  # type: ignore[arg-type]  # goes to timm
            upsampling=output_stride,
            psp_dropout=0.1,
            classes=num_classes,
        )
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        raise ValueError(f"{encoder} can't be PSPNet's encoder with output_stride {output_stride}: {error}") from error
    return Segmenter(network, num_classes, auxiliary, window)


class SegmentationLoss(nn.Module):
    """Cross entropy of all pixels that are not void, divided by the number of all pixels, void or not.

    A mean over the other pixels alone would depend on which images share a batch, a process or an accumulation step,
    and is 0/0 where all are void.

    Args:
        auxiliary_weight: of the auxiliary head's loss.
    """

    def __init__(self, auxiliary_weight: float):
        super().__init__()
        self.auxiliary_weight = auxiliary_weight

    def forward(self, output: torch.Tensor | tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        if isinstance(output, torch.Tensor):
            return self._of_head(output, labels)
        main, auxiliary = output
        return self._of_head(main, labels) + self.auxiliary_weight * self._of_head(auxiliary, labels)

    def _of_head(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float(), labels, ignore_index=VOID, reduction="sum") / labels.numel()


class ClassIoU(MulticlassConfusionMatrix):
    """Intersection over union of every class, from one confusion matrix over all pixels that are not void.

    IoU = hits / (hits + misses + false alarms), each summed over all images and all processes; torchmetrics' MeanIoU
    takes a mean over images instead, which is another quantity than papers report. A class that neither the truth nor
    any prediction has is NaN and left out of the mean; one that only predictions have counts as 0.

    Args:
        class_names: in the order of the labels.
    """

    def __init__(self, class_names: Sequence[str]):
        super().__init__(num_classes=len(class_names), ignore_index=VOID, validate_args=False)
        self.class_names = list(class_names)

    def compute(self) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """``miou`` and ``pixel_accuracy``, and ``iou/NAME`` of each class, all 0 to 1.

        Raises:
            ValueError: if every pixel was void.
        """
        matrix = self.confmat.double().cpu()  # [truth, prediction]
        if matrix.sum() == 0:
            raise ValueError("all pixels of the evaluated images are void, so that there is no IoU; check void")
        hits = matrix.diagonal()
        iou = hits / (matrix.sum(0) + matrix.sum(1) - hits)
        scores = {"miou": iou.nanmean(), "pixel_accuracy": hits.sum() / matrix.sum()}
        return scores | {f"iou/{name}": value for name, value in zip(self.class_names, iou, strict=True)}


def _auxiliary_head(in_channels: int, num_classes: int) -> nn.Sequential:
    width = in_channels // 4
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.1),
        nn.Conv2d(width, num_classes, 1),
    )


def _starts(length: int, window: int) -> list[int]:
    """Where windows begin, so that they overlap by a third and the last one ends at the end."""
    step = max(1, round(window * (1 - _WINDOW_OVERLAP)))
    return [*range(0, length - window, step), length - window]
