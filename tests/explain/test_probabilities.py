"""Statistics of p that stream, and hooks that leave no trace."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from downmix import PiX
from downmix.explain import (
    LayerProbabilities,
    last_of_each_stage,
    measure_probabilities,
    pix_layers,
    watch_probabilities,
)

CLASSES = 3


def network() -> nn.Module:
    """Two PiX layers with other thresholds, one with a norm, which counts what it sees in training."""
    first, second = PiX(8, 2, threshold=0.45, norm=True), PiX(4, 2, threshold=0.6, gate="tanh")
    return nn.Sequential(nn.Conv2d(3, 8, 3), first, nn.BatchNorm2d(4), second, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def batches(sizes: tuple[int, ...] = (5, 1, 7, 2)) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(n, 3, 6, 6) * 3, torch.randint(CLASSES, (n,))) for n in sizes]


def state(layer: LayerProbabilities) -> dict[str, Tensor]:
    return {name: value for name, value in vars(layer).items() if isinstance(value, Tensor)}


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    """All that a hook could leave behind."""
    tensors = [value.clone() for value in model.state_dict().values()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    flags = [module.training for module in model.modules()] + [p.requires_grad for p in model.parameters()]
    tables = [value for module in model.modules() for name, value in vars(module).items() if "hooks" in name]
    hooks = [len(table) for table in tables if isinstance(table, dict)]
    attributes = [sorted(vars(module)) for module in model.modules()]
    return tensors, gradients, flags, hooks, attributes


def assert_untouched(before: tuple[Any, ...], model: nn.Module) -> None:
    after = snapshot(model)
    for old, new in zip(before[0] + before[1], after[0] + after[1], strict=True):
        assert (old is None and new is None) or torch.equal(old, new)
    assert before[2:] == after[2:]


def test_streaming_equals_all_values_in_memory() -> None:
    model, data = network().eval(), batches()
    found = measure_probabilities(model, data, CLASSES, bins=10)
    kept: dict[str, list[Tensor]] = {"1": [], "3": []}
    with torch.no_grad(), watch_probabilities(model, lambda name, p: kept[name].append(p)):
        for images, _ in data:
            model(images)
    labels = torch.cat([labels for _, labels in data])
    for name, layer in found.items():
        p = torch.cat(kept[name])
        picks, p = p < layer.threshold, p.double()
        assert 0 < picks.sum() < picks.numel()  # else the test shows little
        torch.testing.assert_close(layer.mean, p.mean(0))
        torch.testing.assert_close(layer.std, p.std(0, correction=0))
        torch.testing.assert_close(layer.pick_share, picks.double().mean(0))
        saturated = (p < 0.05) | (p > 0.95)
        torch.testing.assert_close(layer.saturation, saturated.double().mean(0))
        for channel in range(p.shape[1]):
            wanted = torch.histc(p[:, channel], 10, 0, 1).long()
            assert torch.equal(layer.histogram[channel], wanted)
        pairs = [picks[i] != picks[j] for i in range(len(p)) for j in range(i)]
        torch.testing.assert_close(layer.switch_rate, torch.stack(pairs).double().mean(0))
        for label in range(CLASSES):
            mine = p[labels == label]
            assert layer.images[label] == len(mine) > 1
            torch.testing.assert_close(layer.class_mean[label], mine.mean(0))
            torch.testing.assert_close(layer.class_std[label], mine.std(0, correction=0))
            assert torch.equal(layer.class_picks[label], picks[labels == label].sum(0))
            assert torch.equal(layer.class_histogram[label], torch.histc(mine, 10, 0, 1).long())


def test_moments_keep_their_digits_next_to_a_large_mean() -> None:
    layer = LayerProbabilities(1, 1, 0.5)
    values = 0.999 + 1e-7 * torch.arange(1000, dtype=torch.float64)[:, None]
    for part in values.split(10):
        layer.update(part, torch.zeros(len(part), dtype=torch.int64))
    torch.testing.assert_close(layer.std, values.std(0, correction=0), rtol=1e-9, atol=0)


def test_memory_does_not_grow_with_the_images() -> None:
    """What is kept after 10,000 images takes the storage of what is kept after 100, and no batch stays alive."""
    model, alive = network().eval(), []

    def images(count: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(count // 100):
            alive.append(sum(storage.expired() for storage in references))
            batch = torch.rand(100, 3, 3, 3)
            references.append(torch.multiprocessing.reductions.StorageWeakRef(batch.untyped_storage()))
            yield batch, torch.randint(CLASSES, (100,))
            del batch

    bytes_kept = []
    for count in (100, 10_000):
        references: list[Any] = []
        found = measure_probabilities(model, images(count), CLASSES)
        assert all(layer.images.sum() == count for layer in found.values())
        tensors = [tensor for layer in found.values() for tensor in state(layer).values()]
        bytes_kept.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors))
        assert len(references) - sum(reference.expired() for reference in references) <= 1
    assert bytes_kept[0] == bytes_kept[1]
    assert alive[-1] >= 97


def test_measuring_leaves_no_trace() -> None:
    model, data = network(), batches()
    model[2].eval()  # a frozen norm must stay frozen, the others in training
    model[0].weight.requires_grad_(False)
    model(data[0][0]).sum().backward()
    before = snapshot(model)
    measure_probabilities(model, data, CLASSES)
    assert_untouched(before, model)
    with pytest.raises(ValueError, match="labels must be from 0 to 2, got 3 to 3"):
        measure_probabilities(model, [(data[0][0], torch.full((5,), 3))], CLASSES)
    assert_untouched(before, model)


def test_watching_a_training_step_changes_nothing() -> None:
    """The layer's own norm counts a batch once, and outputs and gradients are the same to the bit."""
    images = torch.randn(4, 3, 6, 6)
    results = []
    for watched in (False, True):
        torch.manual_seed(0)
        model, seen = network(), []
        if watched:
            with watch_probabilities(model, lambda name, p, seen=seen: seen.append((name, p))):
                output = model(images)
                output.sum().backward()
            assert [name for name, _ in seen] == ["1", "3"]
            assert not any(p.requires_grad for _, p in seen)
        else:
            output = model(images)
            output.sum().backward()
        results.append((output, snapshot(model)))
    assert torch.equal(results[0][0], results[1][0])
    assert_untouched(results[0][1], model)


def test_what_is_seen_is_what_the_layer_used() -> None:
    """In training too, where the gate's norm uses the batch's statistics."""
    layer, x = PiX(6, reduction=1, norm=True), torch.rand(3, 6, 4, 4) + 1
    seen: list[Tensor] = []
    with watch_probabilities(layer, lambda name, p: seen.append(p)):
        y = layer(x)
        layer.eval()
        single = layer(x[0])
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], (y / x).mean((2, 3)))  # with one channel a group, Y = p·X
    torch.testing.assert_close(seen[1], (single / x[0]).mean((1, 2))[None])


@pytest.mark.parametrize("compiled_first", [True, False])
def test_compiled_networks(compiled_first: bool) -> None:
    """Hooks are seen whichever came first; what was compiled stays compiled, without another compilation."""
    torch.compiler.reset()
    graphs = []

    def backend(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = network().eval()
    data = batches((4, 4))
    expected = measure_probabilities(model, data, CLASSES)
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        before = compiled(data[0][0]) if compiled_first else model(data[0][0])
    count = len(graphs)
    found = measure_probabilities(compiled, data, CLASSES)  # type: ignore[arg-type]
    assert len(graphs) == count
    assert list(found) == list(expected) == ["1", "3"]
    for name in found:
        for key, value in state(found[name]).items():
            assert torch.equal(value, state(expected[name])[key])
    with torch.no_grad():
        torch.testing.assert_close(compiled(data[0][0]), before)
    assert len(graphs) == 1


def test_a_compiled_part() -> None:
    model = nn.Sequential(nn.Identity(), network())
    model[1] = torch.compile(model[1], backend="eager")  # type: ignore[assignment]
    assert list(pix_layers(model)) == ["1.1", "1.3"]
    assert list(measure_probabilities(model, batches(), CLASSES)) == ["1.1", "1.3"]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch 2.11's compiler itself
def test_compiling_inside_the_context_leaves_no_hook_behind() -> None:
    torch.compiler.reset()
    model, images, seen = network().eval(), batches()[0][0], []
    with watch_probabilities(model, lambda name, p: seen.append(name)):
        model.compile(backend="eager")
        model(images)
    assert seen == ["1", "3"]
    model(images)
    assert seen == ["1", "3"]


def test_networks_within_ddp(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, data = network().eval(), batches()
        wrapped = torch.compile(nn.parallel.DistributedDataParallel(model), backend="eager")
        found = measure_probabilities(wrapped, data, CLASSES)  # type: ignore[arg-type]
        assert list(found) == ["1", "3"]
        assert torch.equal(found["3"].mean, measure_probabilities(model, data, CLASSES)["3"].mean)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    data = [(images.to(dtype), labels) for images, labels in batches()]
    found = measure_probabilities(model, data, CLASSES)
    assert all(0 < layer.mean.min() < 1 for layer in found.values())


def test_thresholds_compare_as_the_operator_does() -> None:
    """float32's 0.1 is above 0.1, but equal to the threshold 0.1 as the operator sees it: it mixes."""
    layer = LayerProbabilities(1, 2, threshold=0.1)
    layer.update(torch.tensor([[0.1, 0.09]]), torch.tensor([0]))
    assert layer.class_picks.tolist() == [[0, 1]]


def test_the_ends_of_the_range_fall_into_the_histogram() -> None:
    layer = LayerProbabilities(1, 2, 0.5, bins=4)
    layer.update(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    assert layer.histogram.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    assert layer.saturation.tolist() == [1, 1]
    assert layer.switch_rate.tolist() == [0, 0]


def test_bad_input_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="Linear has no PiX layer"):
        measure_probabilities(nn.Linear(2, 2), [], 2)
    with pytest.raises(ValueError, match="no PiX layer saw an image"):
        measure_probabilities(network(), [], CLASSES)
    images = torch.full((1, 3, 6, 6), torch.nan)
    with pytest.raises(ValueError, match="layer 1: p holds NaN"):
        measure_probabilities(network(), [(images, torch.tensor([0]))], CLASSES)
    with pytest.raises(ValueError, match=r"p must be \[2, 4\]: a row a label, got \[5, 4\]"):
        LayerProbabilities(3, 4, 0.5).update(torch.rand(5, 4), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("pix_resnet50", ["layer1.2.conv1", "layer2.3.conv1", "layer3.5.conv1", "layer4.2.conv1"]),
        ("pix_vgg16_1x1_r4", [f"features.{i}.squeeze" for i in (1, 4, 8, 12, 16)]),
        ("pix_mobilenetv2_100", [f"blocks.{block}.conv_pwl" for block in ("1.1", "2.2", "4.2")]),
    ],
)
def test_the_last_layer_of_each_stage(name: str, last: list[str]) -> None:
    with torch.device("meta"):
        assert last_of_each_stage(timm.create_model(name)) == last


def test_stages_of_a_network_without_feature_info() -> None:
    model = nn.Sequential(PiX(8, 2), PiX(8, 2), PiX(4, 2), PiX(8, 2))
    assert last_of_each_stage(model) == ["1", "2", "3"]
