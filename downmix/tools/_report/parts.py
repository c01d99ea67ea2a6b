"""What a page is made of; the template has one macro for each part."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import plotly.graph_objects as go
from markupsafe import escape
from PIL import Image

# Okabe and Ito's colours, which people with any colour vision tell apart, but the two that hardly show on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down")
GREY = "#808080"  # as far from white as from black
_LARGEST = 320  # pixels of a picture's longer side; larger ones are made smaller


@dataclass
class Note:
    """What is missing, and what to do."""

    text: str
    kind: ClassVar[str] = "note"


@dataclass
class Text:
    """A sentence, and perhaps a command at its end."""

    text: str
    command: str = ""
    kind: ClassVar[str] = "text"


@dataclass
class Heading:
    """Over the parts that follow."""

    text: str
    kind: ClassVar[str] = "heading"


@dataclass
class Cell:
    """What a table shows in one place.

    Attributes:
        text: as it is read.
        value: what sorting compares; the text itself if None.
        note: shown smaller behind it.
    """

    text: str
    value: float | None = None
    note: str = ""


@dataclass
class Table:
    """A sortable table.

    Attributes:
        caption: says what it is.
        columns: names; the first column names the rows.
        rows: a cell for each column.
        folded: whether it is opened by the reader, as what is long should be.
    """

    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    folded: bool = False
    kind: ClassVar[str] = "table"

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether it holds numbers."""
        return [any(row[i].value is not None for row in self.rows) for i in range(len(self.columns))]


@dataclass
class Plot:
    """A figure of Plotly.

    Attributes:
        title: above it.
        figure: colours and fonts of its ground are the page's.
        alt: what it shows, in words, for those who don't see it.
        height: in CSS pixels.
    """

    title: str
    figure: go.Figure
    alt: str
    height: int = 360
    kind: ClassVar[str] = "plot"

    @property
    def json(self) -> str:
        """Of the figure, with <, > and & escaped as JSON can."""
        text = self.figure.to_json(validate=False)
        return str(text).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@dataclass
class Plots:
    """Plots beside each other, as far as there is room."""

    plots: list[Plot]
    kind: ClassVar[str] = "plots"


@dataclass
class Picture:
    """An image inside the page.

    Attributes:
        uri: its bytes.
        alt: what it shows.
        caption: under it.
        small: whether its pixels are to be seen as squares.
    """

    uri: str
    alt: str
    caption: str = ""
    small: bool = False


@dataclass
class Card:
    """Pictures that belong together."""

    title: str
    pictures: list[Picture]


@dataclass
class Gallery:
    """Cards beside each other, as far as there is room.

    Attributes:
        caption: says what they are.
        cards: in their order.
        size: of a card: narrow, wide, or full, which is as wide as the page.
    """

    caption: str
    cards: list[Card]
    size: str = "narrow"
    kind: ClassVar[str] = "gallery"


Part = Note | Text | Heading | Table | Plots | Gallery


@dataclass
class Section:
    """A part of the page with a place in its list of contents.

    Attributes:
        id: for links to it.
        title: its name.
        how: one sentence on how to read it.
        parts: left out of the page if there are none.
    """

    id: str
    title: str
    how: str
    parts: list[Part] = field(default_factory=list)


def number(value: float | None, form: str = "{:.2f}", note: str = "") -> Cell:
    """A cell with a number, or a dash where there is none."""
    return Cell("–") if value is None or value != value else Cell(form.format(value), float(value), note)


def percent(share: float | None) -> Cell:
    """A share of 0 to 1 in percent."""
    return number(None if share is None else 100 * share)


def plot(title: str, traces: Sequence[Any], x: str, y: str, alt: str, height: int = 360, **layout: Any) -> Plot:
    """A plot with named axes; what is said of ``layout`` goes to Plotly."""
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}, "template": "none"}
    figure = go.Figure(list(traces)).update_layout(axes).update_layout(layout)
    return Plot(title, figure, alt, height)


def literal(text: str) -> str:
    """Text as Plotly shows it to the letter; it would read tags in it otherwise."""
    return str(escape(text))


def marks(place: int) -> dict[str, Any]:
    """How the lines and points of the network at a place of the list look, by colour and without."""
    dash = ("solid", "dash", "dashdot")[place // len(COLORS) % 3]
    color = COLORS[place % len(COLORS)]
    symbol = _SYMBOLS[place % len(_SYMBOLS)]
    return {"line": {"color": color, "dash": dash, "width": 2}, "marker": {"color": color, "symbol": symbol, "size": 8}}


def picture(pixels: np.ndarray, alt: str, caption: str = "") -> Picture:
    """A picture of the page from pixels (uint8 array[H, W, 3])."""
    image = Image.fromarray(pixels)
    if small := max(image.size) <= 96:
        return Picture(_uri(image, "png"), alt, caption, small)
    image.thumbnail((_LARGEST, _LARGEST))
    return Picture(_uri(image, "webp"), alt, caption)


def picture_file(path: Path, alt: str, largest: int) -> Picture:
    """A picture of the page from a file, no larger than ``largest`` pixels to either side."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    image.thumbnail((largest, largest))
    return Picture(_uri(image, "webp"), alt)


def _uri(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
