"""What was fused, as data and as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..convert.report import Rows, Shown, rows_by_reason


@dataclass(frozen=True)
class Step:
    """What became of one layer.

    Attributes:
        name: where it stands in the network.
        why_not: the rest of a sentence that starts with the name, where the layer stays as it was; else empty.
    """

    name: str
    why_not: str = ""


@dataclass
class Report(Shown):
    """What :func:`downmix.fuse` did. ``print(report)`` shows it, and rich prints it as tables.

    Attributes:
        network: the class of the network.
        norms: its BatchNorms, folded or not.
        weights: all of them, channels_last or as they were.
        means: its PiX layers, and whether each takes its mean in the pass that adds and rectifies its input.
        backends: which kernels ran, and so are ready, and why others did not; see :func:`downmix.explain_backend`.
    """

    network: str
    norms: list[Step]
    weights: Step
    means: list[Step]
    backends: list[str]

    @property
    def summary(self) -> str:
        """One sentence."""
        parts = [(self.norms, "BatchNorms folded"), (self.means, "PiX layers add and rectify what they read")]
        counted = (f"{sum(not s.why_not for s in steps)} of {len(steps)} {words}" for steps, words in parts if steps)
        layout = "weights as they were" if self.weights.why_not else "weights channels_last"
        return f"{self.network}: {', '.join([*counted, layout])}"

    def tables(self) -> Iterator[tuple[str, Rows]]:
        done = [(step.name, "is folded into the convolution before it") for step in self.norms if not step.why_not]
        done += [(step.name, "adds and rectifies what it reads") for step in self.means if not step.why_not]
        if done:
            yield "Fused", [("layers", "each of which", "namely"), *rows_by_reason(done)]
        steps = (*self.norms, self.weights, *self.means)
        if left := [(step.name, step.why_not) for step in steps if step.why_not]:
            yield "Left", [("layers", "each of which", "namely"), *rows_by_reason(left)]
        if self.backends:
            yield "Kernels", [("operator, and what runs it",), *((line,) for line in self.backends)]
