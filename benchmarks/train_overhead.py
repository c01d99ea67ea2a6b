"""What the training loop costs over a bare forward-backward-step on the same batches.

python benchmarks/train_overhead.py [MODEL [BATCH [SIZE [STEPS [DEVICE]]]]]

Both sides take batches of the same one image from a loader, in rounds that take turns. The loop is all of `train` with
its checks, schedule and losses; its sampler and the randomness of each sample are in it.
"""

import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import timm.optim
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from downmix._cudnn import convolutions_by_time
from downmix.models._networks import create_network
from downmix.tools._timing import train_step
from downmix.train import Recipe
from downmix.train.classification import Classification
from downmix.train.distributed import World
from downmix.train.engine import Training
from downmix.train.output import Output
from downmix.train.signals import Signals
from downmix.train.sources import Split
from downmix.train.watch import Watch

ROUNDS = 15


class Pixels(Dataset[Any]):
    transform = None

    def __init__(self, count: int, size: int):
        self.count, self.image = count, torch.randn(3, size, size)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.image, index % 10


def bare_epochs(recipe: Recipe, data: Pixels, device: torch.device) -> Iterator[float]:
    model = create_network(recipe.model, num_classes=10).to(device)
    optimizer = timm.optim.create_optimizer_v2(model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.smoothing)
    loader = DataLoader(data, recipe.batch_size, shuffle=True, drop_last=True)
    model.train()
    while True:
        start = time.perf_counter()
        for images, labels in loader:
            train_step(model, images.to(device), labels.to(device), criterion, optimizer)
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield time.perf_counter() - start


def our_epochs(recipe: Recipe, data: Pixels, device: torch.device) -> Iterator[float]:
    world = World(device)
    training = Training(recipe, world, Signals(), Classification(recipe, Split(data, Pixels(2, 8), list("0123456789"))))
    out = Output(None, recipe, world, Console(stderr=True))
    with Watch(out, training.state, None) as watch:
        while True:
            yield training._train_epoch(out, watch)
            training.state.progress.step = 0


@convolutions_by_time()
def main(
    model: str = "resnet29_small", batch: str = "64", size: str = "16", steps: str = "20", device: str = "cpu"
) -> None:
    recipe = Recipe(
        model=model, batch_size=int(batch), image_size=int(size), epochs=ROUNDS + 2, warmup_epochs=0, device=device
    )
    data, where = Pixels(int(batch) * int(steps), int(size)), recipe.torch_device()
    contenders = {"bare": bare_epochs(recipe, data, where), "downmix": our_epochs(recipe, data, where)}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS + 1):
        for name, epochs in contenders.items():
            times[name].append(next(epochs) / int(steps) * 1e3)
    for name, values in times.items():
        warm = values[1:]
        print(f"{name:8} ms a step: median {statistics.median(warm):.3f}  min {min(warm):.3f}")
    ratio = min(times["downmix"][1:]) / min(times["bare"][1:])
    print(f"{model}, batch {batch}, {size}×{size}, {where.type}, {torch.get_num_threads()} threads: ×{ratio:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
