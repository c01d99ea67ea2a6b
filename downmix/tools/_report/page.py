"""The page: one file that asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ..._version import __version__
from .parts import Section


def render(title: str, made: str, notes: list[str], sections: list[Section]) -> str:
    """The page as HTML.

    Args:
        title: of the page.
        made: when and by what.
        notes: on all of it.
        sections: those without parts are left out.

    Its content policy allows no connection, and no script but the two in it, by their hashes: the name of a class or
    folder could not run even if it were not escaped.
    """
    environment = Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = [get_plotlyjs(), _read("report.js")]
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in scripts)
    return environment.get_template("report.html").render(
        title=title,
        made=made,
        notes=notes,
        sections=[section for section in sections if section.parts],
        version=__version__,
        style=Markup(_read("report.css")),
        scripts=[Markup(script) for script in scripts],
        policy=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'",
    )


def _read(name: str) -> str:
    return (files(__package__ or "") / "templates" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
