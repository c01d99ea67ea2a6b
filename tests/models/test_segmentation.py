"""Our networks as encoders of segmentation_models_pytorch: the source's PSPNet, and what else strides by 8 or 16."""

import segmentation_models_pytorch as smp
import torch


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_pspnet_over_resnet_101_and_its_pix_twin() -> None:
    """As the source compares them: all five stages, the last two dilated."""
    options = {"encoder_weights": None, "encoder_depth": 5, "output_stride": 8, "classes": 19}
    with torch.device("meta"):
        plain, pix = (smp.PSPNet(f"tu-{name}resnet101", **options).eval() for name in ("", "pix_"))
        x = torch.randn(1, 3, 96, 192)
        assert pix(x).shape == plain(x).shape == (1, 19, 96, 192)
        assert [f.shape[2] for f in pix.encoder(x)] == [96, 48, 24, 12, 12, 12]
    convolutions = [sum(p.numel() for p in model.parameters() if p.dim() == 4) for model in (plain, pix)]
    assert convolutions[0] == convolutions[1]
    assert count(plain) > count(pix)  # by the squeezes' norms


def test_pspnet_s_default_depth() -> None:
    with torch.device("meta"):
        model = smp.PSPNet("tu-pix_resnet101", encoder_weights=None, classes=3).eval()
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_deeplab_takes_its_output_strides() -> None:
    for stride in (8, 16):
        with torch.device("meta"):
            model = smp.DeepLabV3Plus("tu-pix_resnet50", encoder_weights=None, encoder_output_stride=stride).eval()
            assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1, 64, 64)
            assert model.encoder(torch.randn(1, 3, 64, 64))[-1].shape[2] == 64 // stride


def test_a_small_one_trains() -> None:
    options = {"encoder_weights": None, "encoder_depth": 5, "output_stride": 8, "psp_out_channels": 16, "classes": 2}
    model = smp.PSPNet("tu-test_pix_resnet", **options).train()
    x = torch.randn(2, 3, 64, 64)
    labels = (x.mean(1) > 0).long()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in model.parameters())
