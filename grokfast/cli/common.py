"""What several commands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from grokfast.filters import filter_of

if TYPE_CHECKING:
    from grokfast.training import Experiment


NARROWEST = 80  # columns of a table


class UsageError(Exception):
    """The command line cannot be carried out; the message is for the user."""


def option(args: Sequence[str], name: str) -> str | None:
    """The value of an option that has to be known before the others can be parsed."""
    for i, arg in enumerate(args):
        if arg.startswith(f"{name}="):
            return arg.partition("=")[2]
        if arg == name and i + 1 < len(args):
            return args[i + 1]
    return None


def output() -> Console:
    """Standard output, for tables: 120 columns wide where it is no terminal that has a width of its own.

    And 80 at least: lines that a narrow terminal breaks can be read, cells that are cut off cannot.
    """
    console = Console()
    if not (console.is_terminal or "COLUMNS" in os.environ):
        return Console(width=120)
    return console if console.width >= NARROWEST else Console(width=NARROWEST)


def base_experiment(args: Sequence[str], named: Experiment) -> Experiment:
    """The experiment whose values are the options' defaults: `named`, with the filter that `--filter` chooses."""
    chosen = option(args, "--filter")
    fields = [arg.partition("=")[0] for arg in args if arg.startswith("--filter.")]
    if fields and chosen is None and named.filter is None:
        raise UsageError(f"{fields[0]} is of a filter: choose one, with --filter ema or --filter ma")
    return named if chosen is None else named.override({"filter": filter_of(chosen, named.filter, name="--filter")})
