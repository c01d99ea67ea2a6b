"""What a conversion did, as data and as a table."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..cost import count_activation_bytes, count_macs

_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Replaced:
    """A layer that was replaced.

    Attributes:
        name: where it stands in the network.
        was: the layer, and the norm and activation behind it that went with it.
        now: the new layer.
        note: what stays though it belonged to the squeeze; often empty.
    """

    name: str
    was: str
    now: str
    note: str = ""


@dataclass(frozen=True)
class Left:
    """A layer that stays.

    Attributes:
        name, what: the layer.
        reason: the rest of a sentence that starts with it.
    """

    name: str
    what: str
    reason: str


@dataclass(frozen=True)
class Totals:
    """Parameters, MACs (:func:`downmix.cost.count_macs`) and the bytes that autograd keeps for an image.

    The latter two are None where they could not be counted; the report's notes say why.
    """

    params: int
    macs: int | None
    activation_bytes: int | None


Rows = list[tuple[str, ...]]


class Shown:
    """A report that ``print`` shows as text, and rich as tables."""

    notes: Sequence[str] = ()

    @property
    def summary(self) -> str:
        """One sentence."""
        raise NotImplementedError

    def tables(self) -> Iterator[tuple[str, Rows]]:
        """Titles and rows, the first of which is the head."""
        raise NotImplementedError

    def __str__(self) -> str:
        lines = [self.summary]
        for title, rows in self.tables():
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines += ["", title]
            lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *([""] if self.notes else []), *self.notes])

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        parts: list[Any] = [self.summary]
        for title, (head, *rows) in self.tables():
            table = Table(*head, title=title, title_justify="left")
            for row in rows:
                table.add_row(*row)
            parts.append(table)
        return Group(*parts, *self.notes)


def rows_by_reason(layers: Iterable[tuple[str, str]]) -> Rows:
    """From names and reasons a row for each reason: how many layers, the reason, and which."""
    names: dict[str, list[str]] = {}
    for name, reason in layers:
        names.setdefault(reason, []).append(name)
    return [(str(len(some)), reason, _some(some)) for reason, some in names.items()]


@dataclass
class Report(Shown):
    """What :func:`downmix.convert` did. ``print(report)`` shows it, and rich prints it as tables.

    Attributes:
        network: the class of the network.
        replaced: the layers replaced.
        left: every other 1×1 convolution and pool, as far as they were asked for, and why it stays.
        before, after: what an image costs.
        config: from which :func:`downmix.convert_like` repeats the conversion; JSON can hold it.
        notes: sentences about what else is worth knowing.
    """

    network: str
    replaced: list[Replaced]
    left: list[Left]
    before: Totals
    after: Totals
    config: dict[str, Any]
    notes: Sequence[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """One sentence."""
        if self.replaced:
            total = len(self.replaced) + len(self.left)
            return f"{self.network}: {len(self.replaced)} of {total} layers replaced"
        if self.left:
            return f"{self.network}: nothing to convert; all layers in question stay, for the reasons below"
        return f"{self.network}: nothing to convert; it has no layer of the kinds asked for"

    def tables(self) -> Iterator[tuple[str, Rows]]:
        if self.replaced:
            rows = [(r.name, r.was, f"{r.now}; {r.note}" if r.note else r.now) for r in self.replaced]
            yield "Replaced", [("layer", "was", "is now"), *rows]
        if self.left:
            rows = rows_by_reason((left.name, left.reason) for left in self.left)
            yield "Left", [("layers", "each of which", "namely"), *rows]
        yield "Cost of an image", [("", "before", "after", "ratio"), *self._cost_rows()]

    def _cost_rows(self) -> Iterator[tuple[str, ...]]:
        for title, attribute, unit in (
            ("params M", "params", 1e6),
            ("GMACs", "macs", 1e9),
            ("activations MB", "activation_bytes", 1e6),
        ):
            before, after = getattr(self.before, attribute), getattr(self.after, attribute)
            if before is None or after is None:
                yield title, "not counted", "", ""
            else:
                yield title, f"{before / unit:.3f}", f"{after / unit:.3f}", f"{after / before:.3f}" if before else ""


def count_totals(network: nn.Module, args: tuple[Any, ...], notes: list[str]) -> Totals:
    """Counts what one image of the size of ``args`` costs; adds a sentence to ``notes`` where that is not possible."""
    counted: list[int | None] = []
    for what, count in (("MACs", count_macs), ("activation bytes", count_activation_bytes)):
        try:
            counted.append(count(_on_meta(network), _image_size(args)))
        except Exception as error:  # networks raise what they like, and a conversion is good without its cost
            note = f"{what} could not be counted: {' '.join(str(error).split()) or type(error).__name__}"
            counted.append(None)
            if note not in notes:
                notes.append(note)
    return Totals(sum(parameter.numel() for parameter in network.parameters()), *counted)


def _on_meta(network: nn.Module) -> nn.Module:
    """A copy that counts without computing, and without a second set of weights in memory."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in network.parameters()}
    return copy.deepcopy(network, memo | {id(buffer): buffer.to("meta") for buffer in network.buffers()})


def describe(module: nn.Module) -> str:
    """A layer in a few characters."""
    facts = [type(module).__name__]
    if hasattr(module, "in_channels") and hasattr(module, "out_channels"):
        facts.append(f"{module.in_channels}→{module.out_channels}")
    elif hasattr(module, "kernel_size") and hasattr(module, "stride"):
        facts.append(f"{_size(module.kernel_size)} stride {_size(module.stride)}")
    return " ".join(facts)


def _image_size(args: tuple[Any, ...]) -> Any:
    if len(args) == 1 and isinstance(args[0], Tensor) and args[0].dim() >= 3:
        return tuple(args[0].shape[1:])
    raise ValueError("the example input is no batch of images")


def _size(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(names) if rest <= 0 else f"{', '.join(names[:_NAMES_SHOWN])} and {rest} more"
