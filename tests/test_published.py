"""The published checkpoints: a network written here in their layout, saved in every form, against ours."""

import argparse
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import downmix

WIDTHS = (8, 8, 16, 16)  # a narrow ResNet-50


class PublishedBlock(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.reduction, outputs = inputs // width, 4 * width
        self.conv_sqz = nn.Conv2d(inputs, width, 1, bias=False)
        self.conv_ce = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn_ce = nn.BatchNorm2d(width)
        self.conv_exp = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn_exp = nn.BatchNorm2d(outputs)
        self.projects = inputs != outputs or stride != 1
        if self.projects:
            self.conv_proj = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.bn_proj = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        p = self.conv_sqz(x.mean((2, 3), keepdim=True)).sigmoid()
        groups = x.unflatten(1, (-1, self.reduction))
        y = p * torch.where(p < 0.5, groups.amax(2), groups.mean(2))
        y = self.bn_exp(self.conv_exp(self.bn_ce(self.conv_ce(y)).relu()))
        return (y + (self.bn_proj(self.conv_proj(x)) if self.projects else x)).relu()


class PublishedStage(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, depth: int):
        super().__init__()
        first, rest = PublishedBlock(inputs, width, stride), depth - 1
        self.blocks = nn.ModuleList([first, *(PublishedBlock(4 * width, width, 1) for _ in range(rest))])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class PublishedNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn_stem = nn.BatchNorm2d(64)
        self.layer1 = PublishedStage(64, WIDTHS[0], 1, 3)
        self.layer2 = PublishedStage(4 * WIDTHS[0], WIDTHS[1], 2, 4)
        self.layer3 = PublishedStage(4 * WIDTHS[1], WIDTHS[2], 2, 6)
        self.layer4 = PublishedStage(4 * WIDTHS[2], WIDTHS[3], 2, 3)
        self.dropout = nn.Dropout2d(0.5)
        self.classifier = nn.Conv2d(4 * WIDTHS[3], 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.bn_stem(self.conv_stem(x)).relu(), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.classifier(self.dropout(x.mean((2, 3), keepdim=True))).flatten(1)


def published_network(seed: int) -> PublishedNetwork:
    torch.manual_seed(seed)
    model = PublishedNetwork().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    nn.init.uniform_(tensor, 0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    nn.init.normal_(tensor, std=0.3)
    return model


def ours(**options: Any) -> nn.Module:
    return timm.create_model("pix_resnet50", channels=WIDTHS, num_classes=10, **options).eval()


def training_file(path: Path, prefix: str = "", **extra: Any) -> tuple[PublishedNetwork, PublishedNetwork]:
    trained, average = published_network(1), published_network(2)
    states = [{prefix + k: v for k, v in model.state_dict().items()} for model in (trained, average)]
    torch.save(
        {
            "model": states[0],
            "model_ema": states[1],
            "optimizer": torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9).state_dict(),
            "scaler": {"scale": 1024.0},
            "epoch": 3,
            "args": argparse.Namespace(model="PiXResNet50_cs", lr=3.5e-3, output_dir="runs"),
            **extra,
        },
        path,
    )
    return trained, average


def assert_same_outputs(model: nn.Module, published: nn.Module) -> None:
    x = torch.randn(2, 3, 32, 32)
    expected = published.double()(x.double())
    rounding = (published.float()(x) - expected).abs().max()
    assert (model(x) - expected).abs().max() <= 4 * rounding


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("ema", [None, True, False])
def test_a_training_file(ema: bool | None, prefix: str, tmp_path: Path) -> None:
    trained, average = training_file(tmp_path / "file.pth", prefix)
    model = ours()
    downmix.load_published(model, tmp_path / "file.pth", ema=ema)
    assert_same_outputs(model, trained if ema is False else average)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_timm_s_checkpoint_path(prefix: str, tmp_path: Path) -> None:
    _, average = training_file(tmp_path / "file.pth", prefix)
    assert_same_outputs(ours(checkpoint_path=str(tmp_path / "file.pth")), average)


@pytest.mark.parametrize("form", ["plain", "safetensors", "legacy"])
def test_a_state_dict_alone(form: str, tmp_path: Path) -> None:
    published = published_network(1)
    path = tmp_path / ("file.safetensors" if form == "safetensors" else "file.pth")
    if form == "safetensors":
        save_file(published.state_dict(), path)
    else:
        torch.save(published.state_dict(), path, _use_new_zipfile_serialization=form == "plain")
    for model in (ours(), ours(checkpoint_path=str(path))):
        downmix.load_published(model, path)
        assert_same_outputs(model, published)


def test_our_own_names_load_too(tmp_path: Path) -> None:
    first, second = ours(), ours()
    torch.save(first.state_dict(), tmp_path / "file.pth")
    downmix.load_published(second, tmp_path / "file.pth")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("name", ["test_pix_mobilenetv2", "test_efficientnet"])
def test_other_networks_call_their_stem_and_classifier_as_published_ones_do(name: str, tmp_path: Path) -> None:
    first, second = timm.create_model(name), timm.create_model(name)
    torch.save({"model": first.state_dict(), "ema": None}, tmp_path / "file.pt")
    save_file(first.state_dict(), tmp_path / "file.safetensors")
    for path in tmp_path.iterdir():
        downmix.load_published(second, path)
        for key, value in first.state_dict().items():
            assert torch.equal(second.state_dict()[key], value)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_into_data_parallel(prefix: str, tmp_path: Path) -> None:
    _, average = training_file(tmp_path / "file.pth", prefix)
    model = nn.DataParallel(ours())
    downmix.load_published(model, tmp_path / "file.pth")
    assert_same_outputs(model.module, average)


def test_a_network_inside_another_reads_published_names() -> None:
    published = published_network(1)
    wrapped = nn.ModuleDict({"backbone": ours(), "head": nn.Linear(1, 1)})
    state = {f"backbone.{k}": v for k, v in published.state_dict().items()}
    wrapped.load_state_dict(state | {f"head.{k}": v for k, v in wrapped["head"].state_dict().items()})
    assert_same_outputs(wrapped["backbone"], published)
    assert next(iter(state)) == "backbone.conv_stem.weight", "the caller's state dict is left alone"


def test_whatever_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = published_network(1).state_dict()
    del state["layer1.blocks.0.conv_sqz.weight"], state["bn_stem.bias"]
    state["layer5.blocks.0.conv_sqz.weight"] = state["extra"] = torch.zeros(1)
    state["classifier.weight"] = torch.zeros(7, 64, 1, 1)
    torch.save(state, tmp_path / "file.pth")
    model = ours()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sentence = (
        r"file.pth does not fit ResNet, load it into the network it is of; missing: bn1.bias, layer1.0.conv1.weight; "
        r"unexpected: extra, layer5.blocks.0.conv_sqz.weight; "
        r"of another shape: fc.weight \[7, 64\] instead of \[10, 64\]$"
    )
    with pytest.raises(ValueError, match=sentence):
        downmix.load_published(model, tmp_path / "file.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*layer1.0.conv1.weight.*Unexpected.*extra"):
        ours(checkpoint_path=str(tmp_path / "file.pth"))


def test_of_many_tensors_some_are_named(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "file.pth")
    sentence = r"missing: bn1.bias, (\S+, )bn1.running_mean and \d+ more; unexpected: bias, weight$"
    with pytest.raises(ValueError, match=sentence):
        downmix.load_published(ours(), tmp_path / "file.pth")


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_file_that_would_run_code_is_refused(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"model": Harmful()}, protocol=2))
    else:
        torch.save({"model": Harmful()}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"file.pth holds more than tensors .* reading it could run code"):
        downmix.load_published(ours(), path)
    assert not (tmp_path / "harmed").exists()


def test_the_sentence_names_what_would_run(tmp_path: Path) -> None:
    torch.save({"model": Harmful(), "args": argparse.Namespace()}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"plain values \((posix|nt).mkdir\), and"):
        downmix.load_published(ours(), tmp_path / "file.pth")


def test_bad_files_get_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    with pytest.raises(FileNotFoundError, match="file.pth"):
        downmix.load_published(ours(), path)
    (tmp_path / "folder.safetensors").mkdir()
    for folder in (tmp_path, tmp_path / "folder.safetensors"):
        with pytest.raises(IsADirectoryError, match=folder.name):  # which is not cut off
            downmix.load_published(ours(), folder)
    training_file(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="file.pth can't be read as a checkpoint; it may be cut off"):
        downmix.load_published(ours(), path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"cut off or damaged \(EOFError\)"):
        downmix.load_published(ours(), path)
    for junk in (b"broken", b"recipe", b"hello world", b"MM_G", b"Not Found"):
        path.write_bytes(junk)
        with pytest.raises(ValueError, match=r"file.pth (can't be read as a checkpoint|holds more than tensors)"):
            downmix.load_published(ours(), path)
    (tmp_path / "file.safetensors").write_bytes(b"12345678junk")
    with pytest.raises(ValueError, match="file.safetensors can't be read as safetensors; it may be cut off"):
        downmix.load_published(ours(), tmp_path / "file.safetensors")
    for content in ({"model": "resnet"}, {0: torch.zeros(1)}):
        torch.save(content, path)
        with pytest.raises(ValueError, match="holds no state dict; expected tensors by name"):
            downmix.load_published(ours(), path)
    training_file(path, model_ema=None)
    with pytest.raises(ValueError, match=r"has no moving average \(model_ema\); ask for its weights themselves"):
        downmix.load_published(ours(), path, ema=True)
    torch.save(published_network(1).state_dict(), path)
    with pytest.raises(ValueError, match="is a plain state dict and says nothing of averages; leave ema out"):
        downmix.load_published(ours(), path, ema=True)


def test_safetensors_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"needs more packages .*: pip install 'downmix\[models\]'"):
        downmix.load_published(ours(), "file.safetensors")
