"""What several commands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args, get_origin

from rich.console import Console
from rich.text import Text

from grokfast.store import StoreError
from grokfast.text import one_line, shown

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
    """The experiment whose values are the options' defaults: `named`, with the parts that `--task`, `--filter`, ...
    choose, whose own fields are options then."""
    from grokfast import parts
    from grokfast.training.experiment import FAMILIES, TUPLES

    said = {name: option(args, f"--{name}") for name in FAMILIES if name not in TUPLES}
    fields = [arg.partition("=")[0] for arg in args if arg.startswith("--filter.")]
    if fields and said["filter"] is None and named.filter is None:
        raise UsageError(f"{fields[0]} is of a filter: choose one, with --filter ema or --filter ma")
    chosen = {
        name: parts.chosen(FAMILIES[name], text, getattr(named, name), f"--{name}")
        for name, text in said.items()
        if text is not None
    }
    return named.override(chosen)


def registry() -> Any:
    """How tyro reads what is no plain value: kinds of parts in a row."""
    import tyro

    from grokfast import parts

    made = tyro.constructors.ConstructorRegistry()

    @made.primitive_rule
    def several(info: Any) -> Any:
        arguments = get_args(info.type)
        if get_origin(info.type) is not tuple or len(arguments) != 2 or arguments[1] is not Ellipsis:
            return None
        kind = arguments[0]
        if not (isinstance(kind, type) and issubclass(kind, parts.Part)):
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1, metavar="KIND,KIND(FIELD=VALUE),...|none",
            instance_from_str=lambda args: parts.several(kind.family, args[0]),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda value: [",".join(map(parts.shown, value)) or "none"],
        )  # fmt: skip

    return made
