"""What only a GPU can show: scaled losses, random states, NCCL, compiled kernels. `make gpu` runs it."""

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from torch import nn

from downmix.train import Interrupted, train
from downmix.train.checkpoint import read_checkpoint
from downmix.train.distributed import join
from downmix.train.engine import Training
from downmix.train.output import Output
from downmix.train.signals import Signals
from downmix.train.watch import Watch

from .helpers import make_folders, quick_recipe, run
from .test_resume import assert_same, everything_random, final_state, interrupted_at

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, and else does not repeat itself
DEVICE = "cuda"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_folders(tmp_path_factory.mktemp("data"), count=15))


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.filterwarnings("ignore:.*deterministic:UserWarning")  # of metrics; the weights don't depend on them
@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_resumed_in_the_middle_of_an_epoch_it_ends_the_same(amp: str, data: str, tmp_path: Path) -> None:
    recipe = replace(everything_random(data, workers=1), device=DEVICE, amp=amp, channels_last=True, clip_grad=1.0)
    run(recipe, tmp_path / "undisturbed")
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "out", on_step=interrupted_at(4))
    saved = read_checkpoint(max((tmp_path / "out").glob("step-*.pt")))
    assert bool(saved["scaler"]) == (amp == "fp16")
    assert (saved["processes"][0]["random"]["cuda"] is None) == (DEVICE == "cpu")
    torch.rand(7, device=DEVICE)  # whatever happens in between
    run(recipe, tmp_path / "out", resume="auto")
    assert_same(final_state(tmp_path / "out"), final_state(tmp_path / "undisturbed"))


def test_losses_are_those_of_the_cpu(data: str) -> None:
    """Also as they are read later than they are computed."""
    recipe = quick_recipe(data, model="tiny_plain", epochs=2, opt="sgd", lr=0.1)
    for ours, theirs in zip(run(replace(recipe, device=DEVICE)), run(recipe), strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-3)
        assert ours.metrics["val_loss"] == pytest.approx(theirs.metrics["val_loss"], rel=1e-3)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_in_channels_last_it_learns_as_uncompiled(data: str) -> None:
    recipe = quick_recipe(data, model="tiny_pix_resnet", device=DEVICE, amp="bf16", channels_last=True, epochs=2)
    for compiled, eager in zip(run(replace(recipe, compile=True)), run(recipe), strict=True):
        assert compiled.train_loss == pytest.approx(eager.train_loss, rel=0.05)


def test_sync_bn_and_gradients_over_nccl(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in group.items():
        monkeypatch.setenv(name, str(value))
    recipe = quick_recipe(data, device=DEVICE, sync_bn=DEVICE == "cuda", batch_size=4, accumulate=2, ema_decay=0.5)
    with join(torch.device(DEVICE)) as world:
        assert dist.get_backend() == ("nccl" if DEVICE == "cuda" else "gloo")
        world = replace(world, size=2)  # the engine takes itself for one of two; NCCL wants a GPU for each
        training = Training(recipe, world, Signals())
        found = sum(isinstance(module, nn.SyncBatchNorm) for module in training.state.model.modules())
        assert found == recipe.sync_bn
        out = Output(None, recipe, world, Console(quiet=True))
        before = training.state.model.first.weight.clone()
        with Watch(out, training.state, lambda done, total: None) as watch:
            training._train_epoch(out, watch)
        assert not torch.equal(training.state.model.first.weight, before)
        assert training._evaluate(out)["val_loss"] > 0
