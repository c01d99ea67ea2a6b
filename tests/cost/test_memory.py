import threading
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import prune

from downmix.cost import count_activation_bytes, measure_cost, peak_memory_bytes, profile

IMAGE, MAP = 3 * 16, 8 * 16  # elements


def chain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Sigmoid())


def test_activation_bytes_counted_by_hand() -> None:
    assert count_activation_bytes(chain(), (3, 4, 4)) == 4 * (IMAGE + MAP)  # the image and the sigmoid's output


def test_peak_in_inference_counted_by_hand() -> None:
    # The caller holds the image, the sigmoid has its input and its output.
    assert peak_memory_bytes(chain(), (3, 4, 4)) == 4 * (IMAGE + 2 * MAP)
    assert peak_memory_bytes(chain(), (3, 4, 4), batch_size=3) == 12 * (IMAGE + 2 * MAP)
    # A third layer reuses what the first one left.
    assert peak_memory_bytes(nn.Sequential(*chain(), nn.Tanh()), (3, 4, 4)) == 4 * (IMAGE + 2 * MAP)
    in_place = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True))
    assert peak_memory_bytes(in_place, (3, 4, 4)) == 4 * (IMAGE + MAP)


def test_peak_in_training_counted_by_hand() -> None:
    # In the sigmoid's backward pass: the image, the output, the gradients of the sigmoid's output and input.
    assert peak_memory_bytes(chain(), (3, 4, 4), training=True) == 4 * (IMAGE + 3 * MAP)
    # With a second sigmoid, in the first one's backward pass: also what is between the two, and its gradient.
    longer = nn.Sequential(*chain(), nn.Sigmoid())
    assert peak_memory_bytes(longer, (3, 4, 4), training=True) == 4 * (IMAGE + 5 * MAP)


def test_parameters_and_their_gradients_are_no_activations() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 1000), nn.Linear(1000, 2))
    # In the second layer's backward pass: images, hidden values, output, and the gradients of the latter two.
    assert peak_memory_bytes(model, (3, 2, 2), training=True) == 4 * (12 + 1000 + 2 + 1000 + 2)


@pytest.mark.parametrize("count", [count_activation_bytes, peak_memory_bytes])
def test_a_network_that_can_t_be_copied_says_why(count: Callable[..., int]) -> None:
    pruned = prune.l1_unstructured(nn.Conv2d(3, 4, 1), "weight", 0.5)
    with pytest.raises(ValueError, match="Conv2d can't be copied, as it holds tensors that autograd follows"):
        count(pruned, (3, 4, 4))
    locked: Any = chain()
    locked.lock = threading.Lock()
    with pytest.raises(ValueError, match="Sequential can't be copied, as it holds what Python can't copy"):
        count(locked, (3, 4, 4))


def test_the_network_is_left_as_it_was() -> None:
    model = timm.create_model("pix_resnet29_small").eval()
    model.bn1.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    measure_cost(model, (3, 32, 32))
    profile(model, (3, 32, 32))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.training
    assert model.bn1.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
