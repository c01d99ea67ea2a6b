"""How a profile is shown: a table of layers, a table of totals, CSV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from ..cost import CONVENTIONS, Device, Layer
from ..cost.profile import join
from ._environment import environment
from ._results import write_rows

if TYPE_CHECKING:
    from .profile import Measured


def show(found: list[Measured], device: Device, convention: str, depth: int | None, console: Console) -> None:
    """Prints the layers of the first network, then the totals of all, then what was not counted."""
    console.print(_layers(found[0], device, convention, depth))
    console.print(_totals(found, device))
    for network in found:
        for name in CONVENTIONS:
            if missed := network.profile.uncounted(name):
                ops = ", ".join(f"{op} ×{count}" for op, count in missed.most_common())
                what = "with no formula at all" if name == "macs" else f"left out by {name}"
                console.print(f"{network.name}, {what}: {ops}", soft_wrap=True)
    limits = f"{device.flops_per_s / 1e9:.1f} GFLOP/s, {device.bytes_per_s / 1e9:.1f} GB/s"
    console.print(f"roofline: {limits}; a layer's measured time includes that of the hooks around it", soft_wrap=True)


def _layers(network: Measured, device: Device, convention: str, depth: int | None) -> Table:
    table = Table(title=network.name, title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("kind", overflow="fold")
    columns = ("output", "params", f"{convention} M", "MACs M", "element ops M", "read MB", "written MB", "ops/byte")
    for column in (*columns, "roofline ms", "measured ms"):
        table.add_column(column, justify="right")
    for layer, measured_ms in _rows(network, depth):
        table.add_row(*_cells(layer, convention, device, measured_ms))
    table.add_section()
    table.add_row(*_cells(network.profile.total, convention, device, network.latency_ms["median"]))
    return table


def _rows(network: Measured, depth: int | None) -> list[tuple[Layer, float]]:
    """Layers and the milliseconds measured in them, those below ``depth`` joined."""
    groups: dict[str, list[Layer]] = {}
    for layer in network.profile.layers:
        groups.setdefault(".".join(layer.name.split(".")[:depth]), []).append(layer)
    times = {name: sum(network.layer_ms.get(layer.name, 0.0) for layer in group) for name, group in groups.items()}
    return [(group[0] if len(group) == 1 else join(name, group), times[name]) for name, group in groups.items()]


def _cells(layer: Layer, convention: str, device: Device, measured_ms: float) -> list[str]:
    return [
        layer.name or "(network)",
        layer.kind,
        "×".join(map(str, layer.output or ())),
        f"{layer.params:,}",
        f"{layer.operations(convention) / 1e6:.3f}",
        f"{layer.macs / 1e6:.3f}",
        f"{layer.elements.total() / 1e6:.3f}",
        f"{layer.read_bytes / 1e6:.3f}",
        f"{layer.written_bytes / 1e6:.3f}",
        f"{layer.intensity:.1f}",
        f"{layer.roofline_ms(device):.3f}",
        f"{measured_ms:.3f}",
    ]


def _totals(found: list[Measured], device: Device) -> Table:
    table = Table(title="total", title_justify="left")
    table.add_column("")
    for network in found:
        table.add_column(network.name, justify="right")
    if len(found) == 2:
        table.add_column("ratio", justify="right")
    kinds = sorted({kind for network in found for kind in network.profile.total.elements})
    for label, form, value in _measures(device, kinds):
        values = [value(network) for network in found]
        ratio = [f"{values[0] / values[1]:.2f}"] if len(found) == 2 and values[1] else []
        table.add_row(label, *(form.format(v) for v in values), *ratio)
    return table


def _measures(device: Device, kinds: list[str]) -> list[tuple[str, str, Callable[[Measured], float]]]:
    return [
        ("params", "{:,}", lambda n: n.profile.total.params),
        ("G operations, ptflops", "{:.4f}", lambda n: n.profile.total.operations("ptflops") / 1e9),
        ("G operations, paper", "{:.4f}", lambda n: n.profile.total.operations("paper") / 1e9),
        ("G operations, macs", "{:.4f}", lambda n: n.profile.total.operations("macs") / 1e9),
        ("M element operations", "{:.4f}", lambda n: n.profile.total.elements.total() / 1e6),
        *((f"  {k}", "{:.4f}", lambda n, k=k: n.profile.total.elements[k] / 1e6) for k in kinds),
        ("MB read", "{:.2f}", lambda n: n.profile.total.read_bytes / 1e6),
        ("MB written", "{:.2f}", lambda n: n.profile.total.written_bytes / 1e6),
        ("operations/byte", "{:.2f}", lambda n: n.profile.total.intensity),
        ("peak MB of activations, inference", "{:.2f}", lambda n: n.profile.inference_bytes / 1e6),
        ("peak MB of activations, training", "{:.2f}", lambda n: n.profile.training_bytes / 1e6),
        ("  of which kept for the backward pass", "{:.2f}", lambda n: n.profile.activation_bytes / 1e6),
        ("roofline ms", "{:.2f}", lambda n: n.profile.total.roofline_ms(device)),
        ("measured ms, minimum", "{:.2f}", lambda n: n.latency_ms["min"]),
        ("measured ms, median", "{:.2f}", lambda n: n.latency_ms["median"]),
    ]


def write_csv(found: list[Measured], device: Device, torch_device: torch.device, path: Path) -> None:
    """All figures: a row a layer, and a total, for each network."""
    about = environment(torch_device)
    common = {
        "flops_per_s": f"{device.flops_per_s:.4g}",
        "bytes_per_s": f"{device.bytes_per_s:.4g}",
        "device": about["device"],
        "threads": about["threads"],
        **{f"{package}_version": v for package, v in about["versions"].items()},
    }
    rows: list[dict[str, Any]] = []
    for network in found:
        profile = network.profile
        times = [network.layer_ms.get(layer.name, 0.0) for layer in profile.layers] + [network.latency_ms["median"]]
        for layer, measured_ms in zip([*profile.layers, profile.total], times, strict=True):
            figures = _figures(layer, device) | {"measured_ms": f"{measured_ms:.4f}"}
            rows.append({"network": network.name, **figures, **common})
        rows[-1] |= {
            "inference_bytes": profile.inference_bytes,
            "training_bytes": profile.training_bytes,
            "activation_bytes": profile.activation_bytes,
        }
    write_rows(path, rows)


def _figures(layer: Layer, device: Device) -> dict[str, Any]:
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "output": "x".join(map(str, layer.output or ())),
        "params": layer.params,
        **{name: layer.operations(name) for name in CONVENTIONS},
        "element_operations": layer.elements.total(),
        "elements": " ".join(f"{kind.replace(' ', '_')}={count}" for kind, count in sorted(layer.elements.items())),
        "read_bytes": layer.read_bytes,
        "written_bytes": layer.written_bytes,
        "operations_per_byte": f"{layer.intensity:.4f}",
        "roofline_ms": f"{layer.roofline_ms(device):.6f}",
        **{f"uncounted_by_{name}": " ".join(layer.uncounted(name).elements()) for name in CONVENTIONS},
    }
