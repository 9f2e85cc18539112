"""Values as text that does nothing: in a terminal, a shell, a picture, a spreadsheet."""

from __future__ import annotations

import shlex
from typing import Any


def shown(value: Any) -> str:
    """A value in one line: what cannot be printed, such as control characters, which could move a terminal's cursor or
    change its colours or the direction of writing, as Python escapes it."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(message: Any) -> str:
    """A message, which may have been set in several lines."""
    return shown(" ".join(str(message).split()))


def command(*words: Any) -> str:
    """A command to be copied into a shell."""
    return shlex.join(map(str, words))


def label(value: Any) -> str:
    """A value in a picture, where matplotlib would read what stands between two $ as a formula."""
    return shown(value).replace("$", r"\$")


def cell(value: str) -> str:
    """A text in a table, where a spreadsheet would run what begins as a formula: behind an apostrophe."""
    text = shown(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
