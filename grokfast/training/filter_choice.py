"""Gradient filters by name: "none", "ema", "ma", or a table of a kind and its fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from grokfast import checks
from grokfast.filters import EMA, MA, Filter

KINDS: dict[str, type[EMA] | type[MA]] = {"ema": EMA, "ma": MA}


def filter_name(filter: Filter | None) -> str:
    """What `filter_of` calls it: "none", "ema" or "ma"."""
    return "none" if filter is None else type(filter).__name__.lower()


def filter_of(said: Any, current: Filter | None = None, *, name: str = "filter") -> Filter | None:
    """The filter that is meant: a name, a mapping of "kind" (a name) and fields, or a filter or None itself.

    Fields that are not said are those of `current`, if it is of that kind, else the kind's own defaults. Case does not
    matter. Raises TypeError or ValueError that begins with `name`.
    """
    if said is None or isinstance(said, (EMA, MA)):
        return said
    fields: dict[str, Any] = {}
    kind = said
    if isinstance(said, Mapping):
        fields = dict(said)
        if "kind" not in fields:
            raise ValueError(f"{name} must have a kind, one of {', '.join(map(repr, KINDS))}, got {dict(said)!r}")
        kind = fields.pop("kind")
    if not isinstance(kind, str):
        raise TypeError(f"{name} must be a filter's name, or a table of its kind and fields, got {said!r}")
    chosen = checks.choice(name, kind.lower(), ("none", *KINDS))
    known = [] if chosen == "none" else [field.name for field in dataclasses.fields(KINDS[chosen])]
    for field in fields:
        if field not in known:
            accepted = f", accepted are {', '.join(known)}{checks.nearest(field, known)}" if known else ""
            raise ValueError(f"{name} {chosen!r} has no field {field!r}{accepted}")
    if chosen == "none":
        return None
    try:
        base = current if filter_name(current) == chosen and current is not None else KINDS[chosen]()
        return dataclasses.replace(base, **fields)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error
