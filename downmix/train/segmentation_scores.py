"""How wrong and how right a segmentation is: its loss, and intersection over union."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from .images import NoScoreError
from .segmentation_data import VOID


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
            NoScoreError: if every pixel was void.
        """
        matrix = self.confmat.double().cpu()  # [truth, prediction]
        if matrix.sum() == 0:
            raise NoScoreError("all pixels of the evaluated images are void, so that there is no IoU; check void")
        hits = matrix.diagonal()
        iou = hits / (matrix.sum(0) + matrix.sum(1) - hits)
        scores = {"miou": iou.nanmean(), "pixel_accuracy": hits.sum() / matrix.sum()}
        return scores | {f"iou/{name}": value for name, value in zip(self.class_names, iou, strict=True)}
