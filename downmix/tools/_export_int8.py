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
    calibration_images: int = 128,
    console: Console | None = None,
) -> tuple[float, float, float]:
    """Quantises an ONNX file, and compares both on held-out images.

    Args:
        source: in float32, of any batch.
        output: see :func:`downmix.export.quantise`.
        data: its training images calibrate, its held-out ones are scored.
        how: the images want to be seen, see :func:`view`.
        calibration_images: how many, evenly spaced.
        console: where it is reported.

    Returns:
        The share of held-out images whose largest logit is the label's, in float32 and in 8 bits, and the share of
        which both say the same. The former two are NaN where the data have another number of classes.

    Raises:
        ValueError: as :func:`downmix.export.quantise`, or if there are no images.
    """
    console = console or Console()
    calibration = held_out(replace(data, test=data.train), how, _BATCH, calibration_images)
    quantise(source, output, (images.numpy() for images, _ in calibration))
    loader = held_out(data, how, _BATCH)
    labels = np.concatenate([label.numpy() for _, label in loader])
    logits = {path: _logits(path, loader) for path in (source, output)}
    before, after = (found.argmax(1) for found in logits.values())
    agreement = float((before == after).mean())
    scores = [float((best == labels).mean()) for best in (before, after)]
    if logits[source].shape[1] != data.num_classes:
        scores = [float("nan")] * 2
        words = ""
    else:
        words = f"top-1 {scores[0]:.2%} in float32 and {scores[1]:.2%} in 8 bits; "
    console.print(f"{output}: on {len(labels)} held-out images {words}both agree on {agreement:.2%}", soft_wrap=True)
    stayed = ", ".join(f"{count} {kind}" for kind, count in float_nodes(output).items())
    console.print(f"computed in floating point: {stayed or 'nothing'}", soft_wrap=True)
    return scores[0], scores[1], agreement


def _logits(path: Path, loader: Any) -> np.ndarray:
    exported = load(path)
    return np.concatenate([exported.run(images.numpy()) for images, _ in loader])
