"""PSPNet's wrapping, its loss, IoU by hand, and the pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.utilities.data import dim_zero_sum

from downmix.train._segmentation_pictures import create_palette, write_picture
from downmix.train.pspnet import Segmenter, create_segmenter
from downmix.train.segmentation_data import VOID
from downmix.train.segmentation_scores import ClassIoU, SegmentationLoss


def tiny(window: tuple[int, int] | None = None, encoder: str = "test_pix_resnet") -> Segmenter:
    return create_segmenter(encoder, 3, window=window)


def logits_of(labels: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float()


def test_iou_by_hand() -> None:
    truth = torch.tensor([[[0, 0, 0, 1], [1, 1, 3, VOID]]])
    prediction = torch.tensor([[[0, 0, 1, 1], [1, 0, 0, 3]]])
    # class 0: hit 2, missed 1, false alarms 2; class 1: hit 2, missed 1, false alarm 1; 2 nowhere; 3 missed 1, and its
    # one prediction is on void
    scores = ClassIoU(["a", "b", "c", "d"])
    scores.update(logits_of(prediction, 4), truth)
    found = {name: value.item() for name, value in scores.compute().items()}
    assert found["iou/a"] == pytest.approx(2 / 5)
    assert found["iou/b"] == pytest.approx(2 / 4)
    assert np.isnan(found["iou/c"])
    assert found["iou/d"] == 0
    assert found["miou"] == pytest.approx((2 / 5 + 2 / 4 + 0) / 3)
    assert found["pixel_accuracy"] == pytest.approx(4 / 7)


def test_iou_is_of_all_pixels_of_all_images() -> None:
    truth, prediction = torch.randint(0, 3, (2, 4, 5, 6))
    whole, parts = ClassIoU(["a", "b", "c"]), [ClassIoU(["a", "b", "c"]) for _ in range(2)]
    whole.update(logits_of(prediction, 3), truth)
    for part, rows in zip(parts, (slice(0, 1), slice(1, 4)), strict=True):
        part.update(logits_of(prediction[rows], 3), truth[rows])
    assert whole._reductions == {"confmat": dim_zero_sum}  # what torchmetrics does over processes
    assert torch.equal(parts[0].confmat + parts[1].confmat, whole.confmat)
    assert whole.confmat.dtype == torch.int64


def test_no_iou_of_nothing() -> None:
    scores = ClassIoU(["a", "b"])
    scores.update(torch.zeros(1, 2, 3, 3), torch.full((1, 3, 3), VOID))
    with pytest.raises(ValueError, match="all pixels of the evaluated images are void"):
        scores.compute()


def test_void_is_no_part_of_the_loss() -> None:
    labels = torch.randint(0, 3, (2, 4, 4))
    labels[:, 1] = VOID
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = SegmentationLoss(auxiliary_weight=0.4)
    value = loss((logits, 2 * logits), labels)
    value.backward()
    kept = labels != VOID
    log_probabilities, auxiliary = logits.log_softmax(1), (2 * logits).log_softmax(1)
    expected = sum(
        -(log_probabilities[i, labels[i, y, x], y, x] + 0.4 * auxiliary[i, labels[i, y, x], y, x])
        for i, y, x in kept.nonzero().tolist()
    )
    assert value.item() == pytest.approx(expected.item() / 32)  # type: ignore[union-attr]
    assert logits.grad is not None
    assert (logits.grad.movedim(1, -1)[~kept] == 0).all()
    assert (logits.grad.movedim(1, -1)[kept] != 0).all()


def test_the_loss_of_a_batch_is_the_mean_over_its_images() -> None:
    labels, logits = torch.randint(0, 3, (4, 5, 5)), torch.randn(4, 3, 5, 5)
    labels[0], labels[1, :4] = VOID, VOID
    loss = SegmentationLoss(0.0)
    alone = [loss(logits[i : i + 1], labels[i : i + 1]) for i in range(4)]
    assert alone[0] == 0
    torch.testing.assert_close(loss(logits, labels), torch.stack(alone).mean())


def test_any_size_goes_in_and_comes_out() -> None:
    model = tiny()
    x = torch.randn(2, 3, 37, 51)
    main, auxiliary = model.train()(x)
    assert main.shape == auxiliary.shape == (2, 3, 37, 51)
    assert model.eval()(x).shape == (2, 3, 37, 51)
    filled = torch.nn.functional.pad(x, (0, 5, 0, 3))
    torch.testing.assert_close(model(x), model.network(filled)[..., :37, :51])


def test_a_sliding_window_means_probabilities() -> None:
    model = tiny(window=(32, 32)).eval()
    x = torch.randn(1, 3, 32, 50)
    with torch.inference_mode():
        windows = [model.network(x[..., left : left + 32]).softmax(1) for left in (0, 18)]
        expected = torch.zeros(1, 3, 32, 50)
        expected[..., :18], expected[..., 32:] = windows[0][..., :18], windows[1][..., 14:]
        expected[..., 18:32] = (windows[0][..., 18:] + windows[1][..., :14]) / 2
        torch.testing.assert_close(model(x).exp(), expected)
        small = model(x[..., :20, :50])
    assert small.shape == (1, 3, 20, 50)
    torch.testing.assert_close(small.exp().sum(1), torch.ones(1, 20, 50))


@pytest.mark.parametrize("encoder", ["test_resnet", "test_pix_resnet"])
def test_every_parameter_learns(encoder: str) -> None:
    model = tiny(encoder=encoder).train()
    loss = SegmentationLoss(0.4)(model(torch.randn(2, 3, 64, 64)), torch.randint(0, 3, (2, 64, 64)))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_pairs_of_the_papers() -> None:
    for size in ("50", "101"):
        with torch.device("meta"):
            plain, pix = (create_segmenter(f"{name}resnet{size}", 11) for name in ("", "pix_"))
            assert plain.auxiliary[0].weight.shape == (256, 1024, 3, 3)  # type: ignore[index]
            assert pix.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 11, 64, 64)
        convolutions = [sum(p.numel() for p in model.parameters() if p.dim() == 4) for model in (plain, pix)]
        assert convolutions[0] == convolutions[1]


def test_an_encoder_that_is_none() -> None:
    with pytest.raises(ValueError, match="there is no network 'resnet5' in timm or downmix; did you mean"):
        create_segmenter("resnet5", 3)
    with pytest.raises(ValueError, match="vgg11 can't be PSPNet's encoder with output_stride 8: timm can't dilate it"):
        create_segmenter("vgg11", 3)


def test_a_picture_shows_truth_and_prediction(tmp_path: Path) -> None:
    truth = torch.zeros(40, 60, dtype=torch.int64)
    truth[20:] = VOID
    prediction = torch.ones_like(truth)
    image = torch.full((3, 40, 60), 200, dtype=torch.uint8)
    palette = create_palette(3, ["#11AA33", "#CC2277", "navy"])
    write_picture(tmp_path / "a.png", image, truth, prediction, ["sky", "road", "sea"], palette)
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    sky, road, sea, void = ((pixels == palette[label]).all(-1).mean() for label in (0, 1, 2, VOID))
    assert sea == 0
    assert min(sky, void) > 0.05
    assert sky == pytest.approx(road / 2, rel=0.2)
    assert road == pytest.approx((pixels == 200).all(-1).mean(), rel=0.2)


def test_colours() -> None:
    assert create_palette(2, ["#112233", "red"])[:3].tolist() == [[17, 34, 51], [255, 0, 0], [0, 0, 0]]
    assert len({tuple(colour) for colour in create_palette(20, [])[:20].tolist()}) == 20
    with pytest.raises(ValueError, match="must be written like #804080 or by a name, got 'no colour'"):
        create_palette(1, ["no colour"])
