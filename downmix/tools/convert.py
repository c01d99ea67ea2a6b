"""`downmix convert`: which layers of a network can be replaced, and the network with them replaced."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_model
from torch import nn

from ..convert import convert
from ..convert.replace import POOLS, SQUEEZES
from ..cost._run import images
from ..models._networks import create_network
from ..train.writable import check_folder

HELP = "Replace the squeezes and pools of a network, or say which layers that would be (--dry_run)."


def add_arguments(parser: Any) -> None:
    parser.add_argument(
        "network", type=str, help="a name in timm, or FILE.py:FUNCTION that returns a network; the file's code is run"
    )
    parser.add_argument("--squeeze", default="pix", choices=(*SQUEEZES, "none"), help="what takes the squeezes' place")
    parser.add_argument("--pool", default="none", choices=(*POOLS, "none"), help="what takes the pools' place")
    parser.add_argument(
        "--where", nargs="+", type=str, help="names of layers to replace, with * and ?; all if left out"
    )
    parser.add_argument("--min_reduction", type=int, default=2, help="smallest ratio of channels in to channels out")
    parser.add_argument(
        "--input",
        nargs=3,
        type=int,
        help="channels, height and width of the example input; timm's for the network, or 3 224 224",
    )
    parser.add_argument("--pretrained", action="store_true", help="load the weights that timm has for the name")
    parser.add_argument("--dry_run", action="store_true", help="print the report and write nothing")
    parser.add_argument("--output", type=Path, default=Path("runs/convert"), help="folder of config and weights")


def run(args: Any) -> None:
    if not args.dry_run:
        check_folder(args.output)
    network = _load(args.network, args.pretrained, args.input, on_meta=args.dry_run)
    if not args.dry_run and any(value.is_meta for value in network.state_dict().values()):
        raise ValueError(f"{args.network} has weights on the meta device, and they can't be saved; load them before")
    size = args.input or getattr(network, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    network, report = convert(
        network,
        squeeze=None if args.squeeze == "none" else args.squeeze,
        pool=None if args.pool == "none" else args.pool,
        example_input=images(network, 1, size, torch.zeros),
        where=args.where,
        min_reduction=args.min_reduction,
        inplace=True,
    )
    console = Console()
    console.print(report)
    if args.dry_run:
        return
    config = {"network": args.network, **report.config}
    (args.output / "convert.json").write_text(json.dumps(config, indent=1) + "\n")
    save_model(network, str(args.output / "model.safetensors"))
    console.print(f"results: {args.output}/convert.json, model.safetensors", soft_wrap=True)


def _load(name: str, pretrained: bool, input_size: Any, on_meta: bool) -> nn.Module:
    if not name.endswith(".py") and ".py:" not in name:
        with torch.device("meta") if on_meta else nullcontext():  # counts without computing
            return create_network(name, input_size=input_size, pretrained=pretrained and not on_meta)
    if pretrained:
        raise ValueError(f"--pretrained loads weights that timm has; the function in {name} has to load its own")
    path, _, function = name.rpartition(":")
    if path and not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    code = _run_own(path, runpy.run_path, path) if path else {}
    if not callable(code.get(function)):
        raise ValueError(
            f"{path or name} defines no {f'function {function}' if path else 'network'}; give FILE.py:FUNCTION"
        )
    network = _run_own(f"{function} in {path}", code[function])
    if not isinstance(network, nn.Module):
        raise TypeError(f"{function} in {path} must return an nn.Module, got {type(network).__name__}")
    return network


def _run_own(what: str, call: Callable[..., Any], *args: Any) -> Any:
    try:
        return call(*args)
    except Exception as error:  # a file of the user's may raise anything
        raise ValueError(f"{what} fails with {type(error).__name__}: {error}") from error
