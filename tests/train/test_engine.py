from pathlib import Path

import pytest
import timm
import torch
from downmix.tools._data import DataError, load_data
from torch import nn

from downmix.tools.train import Recipe, create_loaders, evaluate, train

from .test_data import make_folders


def network(classes: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("tiny_pix_resnet", num_classes=classes)


def test_learns_and_repeats(tmp_path: Path) -> None:
    split = load_data(str(make_folders(tmp_path, count=20)))
    recipe = Recipe(epochs=3, batch_size=8, image_size=8, warmup_epochs=0)
    steps: list[tuple[int, int]] = []
    first = train(network(), split, recipe, seed=1, on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(i, 12) for i in range(1, 13)]
    assert first[-1].train_loss < first[0].train_loss
    second = train(network(), split, recipe, seed=1)
    assert [e.train_loss for e in second] == [e.train_loss for e in first]
    assert [e.train_loss for e in train(network(), split, recipe, seed=2)] != [e.train_loss for e in first]


def test_evaluate_counts_every_image_once(tmp_path: Path) -> None:
    split = load_data(str(make_folders(tmp_path, count=25)))  # 10 held out, batches of 8
    _, loader = create_loaders(split, Recipe(batch_size=8, image_size=8))

    class AlwaysTheFirst(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[2.0, 0.0]]).expand(len(x), 2)

    loss, top1 = evaluate(AlwaysTheFirst(), loader, torch.device("cpu"))
    assert top1 == 0.5
    log_sum = torch.tensor([2.0, 0.0]).logsumexp(0)
    assert loss == pytest.approx((log_sum - 1).item(), abs=1e-6)


def test_too_few_images_for_a_batch(tmp_path: Path) -> None:
    split = load_data(str(make_folders(tmp_path)))
    with pytest.raises(DataError, match="10 training images don't fill one batch of 64; lower batch_size"):
        create_loaders(split, Recipe())


def test_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    split = load_data(str(make_folders(tmp_path, count=20)))
    with pytest.raises(FloatingPointError, match=r"the loss became .* in epoch \d; lower lr \(now 1e\+30\)"):
        train(network(), split, Recipe(epochs=3, batch_size=8, image_size=8, warmup_epochs=0, lr=1e30, opt="sgd"))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"crop_scale": 2.0}, "crop_scale must be between 0 and 1, got 2.0"),
        ({"lr": 0.0}, "lr must be positive"),
    ],
)
def test_a_bad_field_is_named(field: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**field)


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(ValueError, match="device must be cpu, cuda, cuda:N or auto, got 'gpu'"):
        Recipe(device="gpu").torch_device()
