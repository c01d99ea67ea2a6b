"""A network made ready to be timed in one of the ways that networks are run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..cost import measure_cost
from ..fuse import fold_batch_norms
from ..ops._define import check_choice
from ._timing import train_step

MODES = ("inference", "training")
ENGINES = ("eager", "compile", "cuda_graph")
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
# What a network that can't run or can't be compiled raises; torch.compile's own errors are RuntimeErrors.
FAILURES = (RuntimeError, ValueError, TypeError, AssertionError, ImportError)


@dataclass(frozen=True)
class Configuration:
    """A way in which all networks are timed.

    Attributes:
        mode: ``"inference"`` or ``"training"``: forward pass, cross entropy, backward pass and SGD's update.
        engine: ``"eager"``, ``"compile"`` for torch.compile, or ``"cuda_graph"`` for eager's kernels, replayed.
        layout: ``"nchw"`` or ``"channels_last"``.
        fold_bn: whether BatchNorms are folded into the convolutions before them; never in training.
        batch_size: images at once.

    Raises:
        ValueError: if a value is none of these.
    """

    mode: str
    engine: str
    layout: str
    fold_bn: bool
    batch_size: int

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("engine", self.engine, ENGINES)
        check_choice("layout", self.layout, tuple(LAYOUTS))
        if self.fold_bn and self.mode == "training":
            raise ValueError("a training step needs its BatchNorms; fold_bn is for inference")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    def __str__(self) -> str:
        folding = ", BN folded" if self.fold_bn else ""
        return f"{self.mode}, {self.engine}, {self.layout}{folding}, batch {self.batch_size}"


class Subject:
    """A network under test, as it is and with its BatchNorms folded.

    Args:
        name: how errors call it.
        network: a classifier, moved to ``device`` and put into evaluation mode; its BatchNorms get new values.
        input_size: channels, height and width of an image.
        device: where it is timed.

    Attributes:
        folded_norms: how many of its BatchNorms were folded and how many there are, None where nobody asked for it.

    Raises:
        ValueError: if it can't process such images, or gives no logits.
    """

    folded_norms: tuple[int, int] | None = None

    def __init__(self, name: str, network: nn.Module, input_size: tuple[int, int, int], device: torch.device):
        self.network = network.to(device).eval()
        try:
            self.images = torch.randn(4, *input_size, device=device)
            self.cost = measure_cost(self.network, input_size)
            settle_batch_norms(self.network, self.images)
            with torch.no_grad():
                output = self.network(self.images)
        except FAILURES as error:
            raise ValueError(f"{name} can't process images of {'×'.join(map(str, input_size))}: {error}") from error
        if not isinstance(output, Tensor) or output.dim() != 2:
            found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"{name} must be a classifier, whose output is [B, classes], got {found}")
        self.classes = output.shape[1]

    @cached_property
    def folded(self) -> nn.Module:
        network, steps = fold_batch_norms(self.network, self.images)
        self.folded_norms = sum(not step.why_not for step in steps), len(steps)
        return network

    def call(self, configuration: Configuration, dtype: torch.dtype) -> Callable[[], object]:
        """What is timed: a forward pass or a training step, of a copy."""
        layout: Any = LAYOUTS[configuration.layout]
        network: Any = copy.deepcopy(self.folded if configuration.fold_bn else self.network)
        network.to(dtype=dtype, memory_format=layout).train(configuration.mode == "training")
        batch, device = configuration.batch_size, self.images.device
        images = torch.randn(batch, *self.images.shape[1:], device=device, dtype=dtype).contiguous(memory_format=layout)
        labels = torch.randint(self.classes, (batch,), device=device)
        optimizer, criterion = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9), nn.CrossEntropyLoss()
        if configuration.engine == "compile":
            network = torch.compile(network, dynamic=False)

        def infer() -> None:
            with torch.inference_mode():
                network(images)

        def train() -> None:
            train_step(network, images, labels, criterion, optimizer)

        call = infer if configuration.mode == "inference" else train
        return recorded(call, device) if configuration.engine == "cuda_graph" else call


def recorded(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Replays the kernels that ``call`` launches, without the Python that launches them.

    Raises:
        ValueError: if the device is no GPU.
    """
    if device.type != "cuda":
        raise ValueError(f"a CUDA graph needs a GPU, and the device is {device}; pass --device cuda")
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # what is set up or compiled at first must not be recorded
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        call()

    def replay(kept: Callable[[], object] = call) -> None:  # with what the kernels read
        graph.replay()

    return replay


def settle_batch_norms(network: nn.Module, images: Tensor) -> None:
    """Gives BatchNorms what training leaves: scales, shifts, and the statistics of ``images``.

    timm starts many with a scale of 0: what is in front of them adds nothing to the output, so a wrong fold would not
    show in it. Statistics of 0 and 1 would hide one too.
    """
    momentum = {}
    for norm in (module for module in network.modules() if isinstance(module, _BatchNorm)):
        norm.reset_running_stats()
        momentum[norm], norm.momentum = norm.momentum, None  # None: the mean of all batches since the reset
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.1, 0.1)
    training = network.training
    with torch.no_grad():
        network.train()(images)
    network.train(training)
    for norm, value in momentum.items():
        norm.momentum = value
