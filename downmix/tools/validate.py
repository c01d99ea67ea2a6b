"""`downmix validate`: a trained network on held-out samples."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..train.output import without_nan
from ..train.validate import validate

HELP = "Evaluate a checkpoint of downmix train on its held-out samples, or on others."
_FIELDS = (
    *("data", "data_dir", "val_split", "image_size", "crop_pct"),
    *("batch_size", "workers", "device", "amp", "on_bad_image"),
)


def add_arguments(parser: Any) -> None:
    parser.add_argument("checkpoint", type=Path, help="a .pt or .safetensors file that downmix train wrote")
    parser.add_argument("--weights", default="auto", choices=("auto", "model", "ema"), help="auto: the average if any")
    parser.add_argument("--real_labels", action="store_true", help="also score against ImageNet's reassessed labels")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of predictions, where the task draws some")
    kinds = {"image_size": int, "batch_size": int, "workers": int, "crop_pct": float}
    for name in _FIELDS:
        parser.add_argument(f"--{name}", type=kinds.get(name, str), help=f"{name} in place of the checkpoint's")


def run(args: Any) -> None:
    fields = {name: args[name] for name in _FIELDS if args[name] is not None}
    metrics = validate(
        args.checkpoint, weights=args.weights, real_labels=args.real_labels, pictures=args.pictures, **fields
    )
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(without_nan(metrics), indent=1))
