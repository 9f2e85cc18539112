"""The parts of an experiment: what kinds there are of each family, how they are called, which are the user's own.

A part is a frozen dataclass that derives from its family's class (Task, Model, Loss, ...) and is registered under a
name. The name stands on the command line, in TOML and in the store; a user's own kind may stand there as
"package.module:Name", without being registered.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from grokfast import checks

T = TypeVar("T", bound="type[Part]")

# What registers the kinds that come with grokfast, on first use of a family.
_HOMES: dict[str, tuple[str, ...]] = {
    "task": ("grokfast.tasks",),
    "model": ("grokfast.models",),
    "loss": ("grokfast.losses",),
    "optimizer": ("grokfast.transforms",),
    "transform": ("grokfast.transforms",),
    "change": ("grokfast.schedules",),
    "probe": ("grokfast.probes",),
}
_KINDS: dict[str, dict[str, type[Part]]] = {family: {} for family in _HOMES}


class Part:
    """Base of all parts: a frozen dataclass whose fields are plain values (or parts), checked when it is made.

    family: set by the family's class, not by its kinds. varies: the fields in which runs of an ensemble may differ.
    """

    family: ClassVar[str]
    varies: ClassVar[frozenset[str]] = frozenset()


def register(name: str) -> Callable[[T], T]:
    """A class decorator: the kind is `name` in its family. ValueError where another class has that name already."""

    def add(kind: T) -> T:
        kinds = _KINDS[kind.family]
        known = kinds.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
            raise ValueError(f"{kind.family} {name!r} is {known.__module__}.{known.__qualname__} already")
        kinds[name] = kind
        return kind

    return add


def kinds(family: str) -> dict[str, type[Part]]:
    """All registered kinds of a family by name."""
    for home in _HOMES[family]:
        importlib.import_module(home)
    return _KINDS[family]


def find(family: str, name: str, argument: str | None = None) -> type[Part]:
    """The kind that is called so. ValueError, which begins with `argument`, for an unknown one names the nearest;
    for a "module:Name" it says what is missing."""
    argument = argument or family
    if isinstance(name, str) and ":" in name:
        return _foreign(family, name, argument)
    known = kinds(family)
    if name not in known:
        accepted = ", ".join(map(repr, known))
        raise ValueError(
            f"{argument} must be one of {accepted}, or a class of yours as 'package.module:Name', "
            f"got {checks.shown(name)}{checks.nearest(name, known)}"
        )
    return known[name]


def name_of(part: Part | type[Part]) -> str:
    """What `find` calls the part's kind."""
    kind = part if isinstance(part, type) else type(part)
    for name, known in kinds(kind.family).items():
        if known is kind:
            return name
    return f"{kind.__module__}:{kind.__qualname__}"


def _foreign(family: str, name: str, argument: str) -> type[Part]:
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{argument} {name!r} is not there: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Part) and getattr(found, "family", None) == family):
        raise TypeError(f"{argument} must be a kind of {family}, {name!r} is {checks.shown(found)}")
    return found
