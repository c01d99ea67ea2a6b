"""What a recipe says about a segmentation beyond what all recipes say."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from ._fields import check_types, make_plain, nearest


@dataclass
class SegmentationRecipe:
    """The part of a recipe that only ``task: segmentation`` reads.

    Args:
        classes: the names of the classes, in the order of their labels.
        colours: of the classes in pictures, such as "#804080"; empty for some that differ.
        void: the value of pixels that don't count in the masks' files; null where all count.
        crop: height and width in pixels of what is cut out of training images.
        scale: smallest and largest factor that training images are scaled by.
        rotate: degrees by which half of the training images are turned at most, to either side.
        blur: probability that a training image is blurred.
        output_stride: how many times smaller the encoder's last map is than the image: 8, 16 or 32.
        auxiliary_weight: weight of the loss of the auxiliary head; 0 for no such head.
        window: height and width in pixels of the window that slides over images in evaluation; empty for whole images.
        pictures: how many predictions on the test images are drawn.
    """

    classes: list[str] = field(default_factory=list)
    colours: list[str] = field(default_factory=list)
    void: int | None = None
    crop: list[int] = field(default_factory=lambda: [256, 256])
    scale: list[float] = field(default_factory=lambda: [0.5, 2.0])
    rotate: float = 0.0
    blur: float = 0.0
    output_stride: int = 8
    auxiliary_weight: float = 0.4
    window: list[int] = field(default_factory=list)
    pictures: int = 4

    def __post_init__(self) -> None:
        check_types(self, "segmentation.")
        make_plain(self)
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"each class needs a name of its own, got {', '.join(self.classes)}")
        if self.colours and len(self.colours) != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes have {len(self.colours)} colours; give each one, or none")
        if len(self.crop) != 2 or min(self.crop) < 8:
            raise ValueError(
                f"crop must be a height and a width of at least 8 pixels, such as [360, 480], got {self.crop}"
            )
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be a smallest and a largest factor, such as [0.5, 2.0], got {self.scale}")
        if self.window and (len(self.window) != 2 or min(self.window) < 8):
            raise ValueError(f"window must be a height and a width of at least 8 pixels, or empty, got {self.window}")
        if not 0 <= self.rotate <= 180 or not 0 <= self.blur <= 1:
            raise ValueError(f"rotate must be 0 to 180 and blur 0 to 1, got {self.rotate} and {self.blur}")
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, got {self.output_stride}")
        if self.auxiliary_weight < 0 or self.pictures < 0:
            raise ValueError(
                f"auxiliary_weight and pictures can't be negative, got {self.auxiliary_weight} and {self.pictures}"
            )

    @classmethod
    def of(cls, given: dict[str, Any]) -> SegmentationRecipe:
        """From the fields of a YAML file; ValueError names the nearest where one is unknown."""
        if not isinstance(given, dict):
            raise ValueError(f"segmentation must hold lines of `field: value`, got {given!r}")
        known = [each.name for each in fields(cls)]
        for name in given:
            if name not in known:
                hint = nearest(str(name), known) or f"; known are {', '.join(known)}"
                raise ValueError(f"segmentation has no field {name!r}{hint}")
        return cls(**given)
