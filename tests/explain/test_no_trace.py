"""Whatever looks at a network gives the same for a wrapped one, and leaves nothing behind, not even when it fails."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from downmix import PiX, SoftPool2d
from downmix.explain import attend, measure_probabilities, trace_signal, watch_probabilities

from .test_probabilities import assert_untouched, snapshot


class Breakable(nn.Identity):
    broken = False

    def forward(self, x: Tensor) -> Tensor:
        if self.broken:
            raise RuntimeError("broken")
        return x


def network() -> nn.Module:
    head = (Breakable(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), PiX(8, 2, norm=True), SoftPool2d(2), nn.BatchNorm2d(4), nn.ReLU(inplace=True)), *head
    )


def watch(model: nn.Module, images: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    with torch.no_grad(), watch_probabilities(model, lambda _, p: seen.append(p)):
        model(images)
    return seen


def measure(model: nn.Module, images: Tensor) -> list[Tensor]:
    (layer,) = measure_probabilities(model, [(images, torch.zeros(len(images), dtype=torch.int64))], 1).values()
    return [layer.mean, layer.std, layer.histogram]


def signal(layer: str) -> Callable[[nn.Module, Tensor], list[Tensor]]:
    return lambda model, images: list(vars(trace_signal(model, layer, images[0])).values())


def cam(model: nn.Module, images: Tensor) -> list[Tensor]:
    found = attend(model, images, layer="2", target=0)
    return [found.maps, found.scores]


WATCHERS = {"watch": watch, "measure": measure, "cam": cam, "pix": signal("1"), "pool": signal("2")}
watchers = pytest.mark.parametrize("look", WATCHERS.values(), ids=WATCHERS)


@pytest.fixture
def stayed() -> Iterator[Callable[[], list[Any]]]:
    """Gives the tensors and modules that are alive and were not when the test began or last asked."""

    def ask() -> list[Any]:
        gc.collect()
        found = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor | nn.Module)]
        gc.freeze()  # what is frozen is not among the objects
        return found

    gc.freeze()
    yield ask
    gc.unfreeze()


@watchers
def test_nothing_stays(look: Callable[[nn.Module, Tensor], list[Tensor]], stayed: Callable[[], list[Any]]) -> None:
    model, images = network().eval(), torch.randn(2, 3, 8, 8)
    model(images).sum().backward()
    look(model, images)  # what libraries set up once is no trace
    with torch.no_grad():
        output = model(images)
    before = snapshot(model)
    assert stayed()  # the network itself
    look(model, images)
    assert not stayed()
    assert_untouched(before, model)
    model[5].broken = True
    with pytest.raises(RuntimeError, match="broken"):
        look(model, images)
    del model[5].broken
    assert_untouched(before, model)
    assert not stayed()
    with torch.no_grad():
        assert torch.equal(model(images), output)


def test_when_the_body_raises_hooks_go_and_networks_are_compiled_again() -> None:
    torch.compiler.reset()
    model, graphs = network(), []
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError), watch_probabilities(model, lambda *_: None):
        1 / 0  # noqa: B018
    assert_untouched(before, model)
    torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph.forward)(torch.rand(2, 3, 8, 8))
    assert graphs


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@watchers
@pytest.mark.usefixtures("group")
def test_networks_within_ddp_and_compile(look: Callable[[nn.Module, Tensor], list[Tensor]]) -> None:
    torch.compiler.reset()
    model, images = network().eval(), torch.randn(2, 3, 8, 8)
    expected = look(model, images)
    compiled: Any = torch.compile(model, backend="eager")
    wrapped = nn.parallel.DistributedDataParallel(compiled)
    with torch.no_grad():
        wrapped(images)
    for value, wanted in zip(look(wrapped, images), expected, strict=True):
        assert torch.equal(value, wanted)
