"""An exported network in 8 bits, and what that costs in accuracy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..export import float_nodes, load, quantise
from ..train.sources import Split
from ._trained import held_out

_BATCH = 8


def quantise_and_score(
    source: Path,
    output: Path,
    data: Split,
    how: dict[str, Any],
    calibration_images: int,
) -> None:
    """Quantises an ONNX file, and prints how both do on held-out images.

    Args:
        source: in float32, of any batch.
        output: see :func:`downmix.export.quantise`.
        data: its training images calibrate, its held-out ones are scored.
        how: the images want to be seen, see :func:`view`.
        calibration_images: how many, evenly spaced.

    Raises:
        ValueError: as :func:`downmix.export.quantise`, or if there are no images.
    """
    calibration = held_out(replace(data, test=data.train), how, _BATCH, calibration_images)
    quantise(source, output, (images.numpy() for images, _ in calibration))
    loader = held_out(data, how, _BATCH)
    labels = np.concatenate([label.numpy() for _, label in loader])
    logits = {path: _logits(path, loader) for path in (source, output)}
    before, after = (found.argmax(1) for found in logits.values())
    agreement = (before == after).mean()
    words = ""
    if logits[source].shape[1] == data.num_classes:
        words = f"top-1 {(before == labels).mean():.2%} in float32 and {(after == labels).mean():.2%} in 8 bits; "
    console = Console()
    console.print(f"{output}: on {len(labels)} held-out images {words}both agree on {agreement:.2%}", soft_wrap=True)
    stayed = ", ".join(f"{count} {kind}" for kind, count in float_nodes(output).items())
    console.print(f"computed in floating point: {stayed or 'nothing'}", soft_wrap=True)


def _logits(path: Path, loader: Any) -> np.ndarray:
    exported = load(path)
    return np.concatenate([exported.run(images.numpy()) for images, _ in loader])
