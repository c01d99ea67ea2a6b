"""What tests of fusing share."""

import torch
from torch import fx, nn

import downmix
from downmix import PiX
from downmix.fuse import Report
from downmix.tools._bench_networks import settle_batch_norms

IMAGES = (2, 3, 64, 64)
NO_SUM = "does not read the ReLU of a sum"


def settled(network: nn.Module) -> nn.Module:
    settle_batch_norms(network, torch.randn(4, *IMAGES[1:]))
    return network.eval()


def check(network: nn.Module, batch: int = IMAGES[0]) -> tuple[nn.Module, Report]:
    """Fuses, and compares state before and after, outputs in each layout, and the graph with the report."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fused, report = downmix.fuse(network, example_input=torch.randn(batch, *IMAGES[1:]))
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    for layout in (torch.contiguous_format, torch.channels_last):
        images = torch.randn(batch + 1 if batch > 1 else 1, *IMAGES[1:]).contiguous(memory_format=layout)
        kept = images.clone()
        with torch.inference_mode():
            torch.testing.assert_close(fused(images), network(images), rtol=1e-4, atol=1e-4)
        assert torch.equal(images, kept)
    assert {step.name for step in report.means} == {n for n, m in network.named_modules() if isinstance(m, PiX)}
    joined = {step.name for step in report.means if not step.why_not}
    nodes = fused.graph.nodes if isinstance(fused, fx.GraphModule) else []
    assert joined == {str(node.target) for node in nodes if node.op == "call_module" and len(node.args) == 2}
    return fused, report
