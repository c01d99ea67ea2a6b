import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import downmix

pytestmark = pytest.mark.usefixtures("without_kernels")

NETWORKS = [downmix.SimplifiedLogit, lambda channels, dims=2: downmix.BottleneckLogit(channels, 4, dims)]
AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def trained(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_starts_as_average_pooling_with_max_pooling_s_arguments(network: type[nn.Module], n: int) -> None:
    ours, theirs = getattr(downmix, f"LIPPool{n}d"), getattr(nn, f"MaxPool{n}d")
    arguments = list(inspect.signature(ours).parameters.values())
    assert [(a.name, a.default) for a in arguments[:6]] == [
        (a.name, a.default) for a in inspect.signature(theirs).parameters.values()
    ]
    x = torch.randn(2, 3, *[8] * n)
    pool = ours(2, logits=network(3, dims=n))
    torch.testing.assert_close(pool(x), AVERAGE[n](x, 2))
    for window in ((3, 2, 1), (3, 1, 1, 2), (2, 2, 0, 1, False, True)):
        pool = ours(*window, logits=trained(network(3, dims=n)))
        assert pool(x).shape == theirs(*window)(x).shape
        torch.testing.assert_close(pool(x[1]), pool(x)[1])


def test_any_module_may_give_the_logits() -> None:
    x = torch.randn(2, 3, 8, 8)
    pool = downmix.LIPPool2d(2, logits=nn.Identity())
    torch.testing.assert_close(pool(x), downmix.soft_pool2d(x, 2))
    assert "kernel_size=2" in repr(pool)
    with pytest.raises(ValueError, match=r"logits must have the shape of x, \[2, 3, 8, 8\].*got \[2, 1, 8, 8\]"):
        downmix.LIPPool2d(2, logits=nn.Conv2d(3, 1, 1))(x)
    with pytest.raises(ValueError, match="LIPPool2d has no indices to return"):
        downmix.LIPPool2d(2, return_indices=True, logits=nn.Identity())
    with pytest.raises(ValueError, match="dims must be 1, 2 or 3, .*got 4"):
        downmix.SimplifiedLogit(3, dims=4)


@pytest.mark.parametrize("network", NETWORKS)
def test_normalises_as_torch_s_instance_norm(network: type[nn.Module]) -> None:
    ours = trained(network(3))

    def theirs(x: Tensor) -> Tensor:
        for layer in ours.children():
            x = F.instance_norm(x, None, None, layer.weight, layer.bias) if "Norm" in repr(layer) else layer(x)
        return 12 * x.sigmoid()

    x = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [1, 3])
def test_gradients_of_the_network(network: type[nn.Module], size: int) -> None:
    """Down to maps of a single value, whose norm is its shift, and which torch's InstanceNorm refuses."""
    net = trained(network(2)).double()
    x = torch.randn(2, 2, size, size, dtype=torch.float64, requires_grad=True)
    pool = downmix.LIPPool2d(min(size, 2), 1, logits=net)
    assert torch.autograd.gradcheck(lambda x, *_: pool(x), (x, *net.parameters()))


@pytest.mark.parametrize("network", NETWORKS)
def test_maps_without_variance_and_the_first_step_are_finite(network: type[nn.Module]) -> None:
    for x in (torch.zeros(2, 3, 4, 4), torch.full((1, 3, 4, 4), 1e4), torch.randn(1, 3, 1, 1), torch.randn(2, 3, 4, 4)):
        pool = downmix.LIPPool2d(min(x.shape[-1], 2), logits=network(3))
        leaf = x.requires_grad_()
        pool(leaf).square().sum().backward()
        for value in (leaf, *pool.parameters()):
            assert value.grad is not None
            assert value.grad.isfinite().all()
    last = next(p for p in reversed(list(pool.parameters())) if p.dim() == 4)
    assert last.grad.any()  # zero as it is, it learns
