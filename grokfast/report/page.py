"""The page itself: sections of figures as one self-contained HTML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from markupsafe import Markup, escape

from grokfast.text import shown


@dataclass(frozen=True)
class Figure:
    """One figure of a page.

    title: what it shows, in a few words. body: HTML or SVG that is safe, as the helpers of `report.figures` make it.
    alt: what is to be seen, in a sentence, for who cannot see it. csv: its data, header first: what is downloaded, and
    what the cursor of `figures.curves` reads. caption: how it is to be read, below it.

    Raises TypeError where the body is no Markup, ValueError where title, alt or csv are empty.
    """

    title: str
    body: Markup
    alt: str
    csv: str
    caption: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.body, Markup):
            raise TypeError(f"body must be Markup, text that is known to be safe, got {type(self.body).__name__}")
        for name in ("title", "alt", "csv"):
            if not str(getattr(self, name)).strip():
                raise ValueError(f"{name} must say something, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Section:
    """Some figures under a heading. id: of the anchor, letters, digits and '-', and in the names of its downloads.
    intro: a sentence or two in front of them; Markup where it has links.

    Raises ValueError where id is none.
    """

    id: str
    title: str
    intro: str = ""
    figures: Sequence[Figure] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", self.id):
            raise ValueError(f"id must be small letters, digits and '-', the first a letter, got {self.id!r}")


def render(title: str, lead: str, command: str, sections: Sequence[Section], *, notes: Sequence[str] = ()) -> str:
    """The page: title, the sentence `lead`, the command that repeats it, the sections, and what is to be said at last.

    It asks for nothing beside itself: no script, style, font or image from elsewhere, which its own policy forbids.
    Texts are escaped. Raises ValueError where two sections have one id.
    """
    ids = [section.id for section in sections]
    if twice := next((own for own in ids if ids.count(own) > 1), None):
        raise ValueError(f"sections must have an id each, {twice!r} is there twice")
    page: str = _templates().get_template("page.html").render(
        title=title, lead=lead, command=command, sections=sections, notes=notes
    )  # fmt: skip
    return page


@cache
def _templates() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("grokfast.report")
    made = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=_finalized,
    )  # fmt: skip
    made.globals["source"] = lambda name: Markup(loader.get_source(made, name)[0])
    return made


def _finalized(value: Any) -> Any:
    """Texts without control characters, which ids and names of a store from elsewhere may have."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else escape(_printable(value))


def _printable(value: str) -> str:
    return "\n".join(shown(line) for line in value.split("\n"))
