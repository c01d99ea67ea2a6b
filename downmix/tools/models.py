"""`downmix models`: what downmix adds to timm, and what each network costs."""

from __future__ import annotations

import fnmatch
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..cost import count_macs
from ..models._networks import create_network, registered

HELP = "List the networks that downmix adds to timm, with parameters and GMACs."


def add_arguments(parser: Any) -> None:
    parser.add_argument("filter", nargs="?", default="*", type=str, help="names to list, with * and ?")


def run(args: Any) -> None:
    names = fnmatch.filter(registered(), args.filter)
    if not names:
        raise ValueError(f"no network of downmix matches {args.filter!r}; `downmix models` lists all")
    table = Table()
    table.add_column("network", overflow="fold")  # in a narrow terminal too, a name is there to be copied
    table.add_column("input", overflow="fold")
    table.add_column("params M", justify="right")
    table.add_column("GMACs", justify="right")
    for name in names:
        with torch.device("meta"):  # counts without computing
            model: Any = create_network(name)
            size = model.pretrained_cfg["input_size"]
            macs = count_macs(model, size)
        params = sum(p.numel() for p in model.parameters())
        table.add_row(name, "×".join(map(str, size)), f"{params / 1e6:.2f}", f"{macs / 1e9:.3f}")
    Console().print(table)
