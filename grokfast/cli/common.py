"""What several commands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from grokfast.store import StoreError
from grokfast.text import one_line, shown
from grokfast.transforms.filters import filter_of

if TYPE_CHECKING:
    from grokfast.training import Experiment


NARROWEST = 80  # columns of a table


class UsageError(Exception):
    """The command line cannot be carried out; the message is for the user."""


KNOWN = (UsageError, StoreError, OSError, MemoryError, ValueError, TypeError, ImportError)  # their messages say enough


def why(error: BaseException) -> str:
    """What an error says, in one line; also what kind it is where it says nothing, or is none that is raised here."""
    said, kind = one_line(error), type(error).__name__
    return said if said and isinstance(error, KNOWN) else f"{kind}: {said}" if said else kind


class Screen(Console):
    """A console that shows every string as it is, in cells of tables, too: no markup, no emoji codes, no highlighting;
    control characters escaped."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **options)

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line, however long it is."""
        self.print(text, style=style, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Not the status 1 that rich would end with: streams.py says how a command ends."""
        raise BrokenPipeError


def option(args: Sequence[str], name: str) -> str | None:
    """The value of an option that has to be known before the others can be parsed."""
    for i, arg in enumerate(args):
        if arg.startswith(f"{name}="):
            return arg.partition("=")[2]
        if arg == name and i + 1 < len(args):
            return args[i + 1]
    return None


def output() -> Screen:
    """Standard output, for tables: 120 columns wide where it is no terminal that has a width of its own.

    And 80 at least: lines that a narrow terminal breaks can be read, cells that are cut off cannot.
    """
    screen = Screen()
    if not (screen.is_terminal or "COLUMNS" in os.environ):
        return Screen(width=120)
    return screen if screen.width >= NARROWEST else Screen(width=NARROWEST)


def base_experiment(args: Sequence[str], named: Experiment) -> Experiment:
    """The experiment whose values are the options' defaults: `named`, with the filter that `--filter` chooses."""
    chosen = option(args, "--filter")
    fields = [arg.partition("=")[0] for arg in args if arg.startswith("--filter.")]
    if fields and chosen is None and named.filter is None:
        raise UsageError(f"{fields[0]} is of a filter: choose one, with --filter ema or --filter ma")
    return named if chosen is None else named.override({"filter": filter_of(chosen, named.filter, name="--filter")})
