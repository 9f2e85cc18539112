"""The values of a grid in words, as they are written down."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from grokfast import parts

_SHA256 = re.compile(r"[0-9a-f]{64}")


def written(values: Sequence[Any], base: Any = None, without: Collection[str] = ()) -> list[str]:
    """JSON values of one key: none, true, 0.3, (0.9,0.98); of a part, such as the filter, its kind: ema lamb=1.

    With the kind go those fields that are not what the kind alone means: `base`'s, if that is of this kind, a filter's
    own defaults, else those of the first such value. Fields `without` are left out.
    """
    usual: dict[str, dict[str, Any]] = {}
    for name, kind in parts.kinds("transform").items():
        with suppress(TypeError, ValueError):  # a kind that means nothing alone, such as a chain of none
            usual[name] = parts.fields_of(kind())
    if isinstance(base, Mapping) and "kind" in base:
        usual[parts.kind_name(base)] = {**base}
    return [_part(value, usual, without) if isinstance(value, Mapping) else _plain(value) for value in values]


def _part(value: Mapping[str, Any], usual: dict[str, dict[str, Any]], without: Collection[str]) -> str:
    kind = parts.kind_name(value)
    fields = {name: own for name, own in value.items() if name != "kind" and name not in without}
    known = usual.setdefault(kind, {**value})
    differ = [f"{name}={_plain(own)}" for name, own in fields.items() if known.get(name) != own]
    return " ".join([kind, *differ])


def _plain(value: Any) -> str:
    if value is None or value != value:  # in a column of numbers NaN stands for none
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"({','.join(map(_plain, value))})"
    if isinstance(value, str) and _SHA256.fullmatch(value):
        return value[:12]
    return f"{value:.12g}" if isinstance(value, float) else str(value)
