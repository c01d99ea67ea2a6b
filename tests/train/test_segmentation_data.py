"""Images and masks from folders: what is read, what is refused, and that both go through the same transforms."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from downmix.train._segmentation_transforms import RandomScale, evaluation_transform, to_picture, training_transform
from downmix.train.segmentation_data import (
    VOID,
    SegmentationImages,
    cityscapes_labels,
    find_pairs,
    labels_of_values,
)

CITYSCAPES = ["road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"]
CITYSCAPES += ["terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]


def keep(image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return image, mask


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def folder(root: Path, mask: np.ndarray | None = None) -> Path:
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            save(root / split / "images" / f"{name}.png", np.full((6, 8, 3), 90))
            save(root / split / "masks" / f"{name}.png", np.arange(48).reshape(6, 8) % 4 if mask is None else mask)
    return root


def images(root: Path, split: str = "train") -> SegmentationImages:
    return SegmentationImages(find_pairs(root, split), labels_of_values(3, void=3), keep)


def ramp() -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """An image whose colours tell a pixel's place, and a mask that does so too, in squares of 8×8."""
    y, x = torch.meshgrid(torch.arange(48), torch.arange(64), indexing="ij")
    colours = torch.stack([4 * x, 4 * y, 0 * x]).to(torch.uint8)
    return tv_tensors.Image(colours), tv_tensors.Mask(y // 8 * 8 + x // 8)


def off(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """How far (x, y) each pixel's colour lies from the middle of the square that its label names, in pixels."""
    middle = torch.stack([mask % 8 * 8 + 3.5, mask // 8 * 8 + 3.5])
    return image[:2].float() / 4 - middle


@pytest.mark.parametrize("seed", range(6))
def test_a_mask_stays_on_its_image(seed: int) -> None:
    torch.manual_seed(seed)
    transform = training_transform((60, 60), scale=(0.5, 2.0), rotate=10, hflip=0.5, blur=0)
    image, mask = transform(*ramp())
    assert image.shape == (3, 60, 60)
    assert mask.shape == (60, 60)
    void = torch.nn.functional.pad((mask == VOID).float()[None], (2, 2, 2, 2), value=1)
    inside = torch.nn.functional.max_pool2d(void, 5, stride=1)[0] == 0  # beside void, rotating mixes in the mean colour
    assert inside.sum() > 100
    assert off(to_picture(image), mask)[:, inside].abs().max() < 4 + 2


def test_scaling_moves_no_mask_against_its_image() -> None:
    """torchvision's own Resize is 0.9 pixels off here, on average."""
    image, mask = RandomScale(0.53, 0.53)(*ramp())
    assert image.shape == (3, 25, 34)
    assert off(image, mask).mean((1, 2)).abs().max() < 0.25


def test_where_there_is_no_image_there_is_no_label() -> None:
    image, mask = training_transform((100, 100), scale=(1, 1), rotate=0, hflip=0, blur=0)(*ramp())
    assert (mask != VOID).sum() == 48 * 64
    assert image[:, mask == VOID].abs().max() < 0.02  # the mean colour, in 8 bits


def test_the_transform_draws_from_torch_s_generator_alone() -> None:
    transform = training_transform((32, 32), scale=(0.5, 2.0), rotate=10, hflip=0.5, blur=0.5)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(transform(*ramp()))
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(drawn[0][1], drawn[2][1])


def test_evaluation_changes_no_pixel() -> None:
    image, mask = ramp()
    filled, labels = evaluation_transform((50, 64))(image, mask)
    assert torch.equal(to_picture(filled)[:, :48], image)
    assert torch.equal(labels[:48], mask)
    assert (labels[48:] == VOID).all()


def test_a_folder_is_read_by_name(tmp_path: Path) -> None:
    pairs = find_pairs(folder(tmp_path), "val")
    assert [(image.name, mask.name) for image, mask in pairs] == [("a.png", "a.png"), ("b.png", "b.png")]
    image, mask = images(tmp_path, "val")[1]
    assert image.shape == (3, 6, 8)
    assert mask[0].tolist() == [0, 1, 2, VOID, 0, 1, 2, VOID]


def test_what_values_mean() -> None:
    assert labels_of_values(3, void=3)[:5].tolist() == [0, 1, 2, VOID, -1]
    assert labels_of_values(3, void=0)[:5].tolist() == [VOID, 0, 1, 2, -1]
    assert labels_of_values(3, void=None)[[0, 1, 2, 3, 255]].tolist() == [0, 1, 2, -1, -1]
    assert labels_of_values(19, void=255)[[0, 18, 19, 255]].tolist() == [0, 18, -1, VOID]
    with pytest.raises(ValueError, match="got 3 and void 300"):
        labels_of_values(3, void=300)


def test_cityscapes_as_published(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for city in ("ulm", "bonn"):
            save(tmp_path / "leftImg8bit" / split / city / f"{city}_0_leftImg8bit.png", np.zeros((2, 3, 3)))
            labels = np.array([[7, 8, 33], [0, 29, 11]])
            save(tmp_path / "gtFine" / split / city / f"{city}_0_gtFine_labelIds.png", labels)
    data = SegmentationImages(find_pairs(tmp_path, "test"), cityscapes_labels(CITYSCAPES), keep)
    assert [image.name for image, _ in data.pairs] == ["bonn_0_leftImg8bit.png", "ulm_0_leftImg8bit.png"]
    assert "val" in data.pairs[0][0].parts  # the test images' masks aren't published
    assert data[0][1].tolist() == [[0, 1, 18], [VOID, VOID, 2]]
    with pytest.raises(ValueError, match="in this order; the recipe has sky, road"):
        cityscapes_labels(["sky", "road"])
    data.pairs[0][1].unlink()
    with pytest.raises(ValueError, match=r"labelIds.png of the image .* is missing"):
        find_pairs(tmp_path, "val")


def test_what_a_folder_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; give data_dir"):
        find_pairs(tmp_path / "none", "train")
    with pytest.raises(ValueError, match="train/images is missing"):
        find_pairs(tmp_path, "train")
    root = folder(tmp_path / "unequal")
    (root / "train/masks/b.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 images have no mask, .*train/images/b.png; expected .*masks/b.png"):
        find_pairs(root, "train")
    (root / "val/images/a.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 masks have no image, .*val/masks/a.png"):
        find_pairs(root, "val")
    save(root / "test/images/a.bmp", np.zeros((6, 8, 3)))
    with pytest.raises(ValueError, match="holds a.bmp and a.png"):
        find_pairs(root, "test")
    for path in (root / "val/images").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="holds no image"):
        find_pairs(root, "val")


def test_masks_that_are_refused(tmp_path: Path) -> None:
    mask = tmp_path / "train/masks/a.png"
    cases = {
        r"values 4, 77; the classes and void have 0, 1, 2, 3": np.array([[0, 4] + [77] * 6] * 6),
        r"is 7×6 pixels, but its image is 8×6": np.zeros((6, 7)),
        r"holds colours; a mask needs one channel": np.zeros((6, 8, 3)),
    }
    for message, pixels in cases.items():
        folder(tmp_path)
        save(mask, pixels)
        with pytest.raises(ValueError, match=message):
            images(tmp_path)[0]
    Image.fromarray(np.zeros((6, 8), np.uint8)).convert("P").save(mask)
    with pytest.raises(ValueError, match="holds a palette"):
        images(tmp_path)[0]
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(mask, "JPEG")
    with pytest.raises(ValueError, match=r"masks/a.png is a JPEG file by another name; save it as PNG"):
        images(tmp_path)[0]


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_corrupt_file_is_named(tmp_path: Path, kind: str) -> None:
    path = folder(tmp_path) / "train" / kind / "a.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=f"{kind}/a.png can't be read as an image"):
        images(tmp_path)[0]


def test_sixteen_bits_of_grey_become_eight(tmp_path: Path) -> None:
    Image.fromarray(np.full((6, 8), 65535 // 2, np.uint16)).save(folder(tmp_path) / "train" / "images" / "a.png")
    image, _ = images(tmp_path)[0]
    assert (image == 127).all()
