"""Which parameters something is done to: a text of their names."""

from __future__ import annotations

import fnmatch
import functools
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grokfast.transforms.base import Layout

# Embeddings and heads, as they are called here and in common models.
ENDS = ("*embed*", "*positions*", "*wte*", "*wpe*", "*head*", "out.*")


@functools.lru_cache(maxsize=4096)
def chosen(said: str, layout: Layout, argument: str = "parameters") -> tuple[str, ...]:
    """The names that are meant, in the layout's order.

    said: "all"; "matrices", those of two axes or more; "hidden", matrices but embeddings and the head, by their names
    (ENDS); or patterns of names as "embedding,blocks.*.w_*"; with commas between them. Raises ValueError, which begins
    with `argument`, where one of these is no parameter's; of a part of a model, see Layout.others, only for a pattern.
    """
    matrices = [name for name, shape in zip(layout.names, layout.shapes) if len(shape) > 1]
    words = {
        "all": [*layout.names],
        "matrices": matrices,
        "hidden": [name for name in matrices if not any(fnmatch.fnmatchcase(name, end) for end in ENDS)],
    }
    found: set[str] = set()
    for pattern in map(str.strip, said.split(",")):
        own = words[pattern] if pattern in words else fnmatch.filter(layout.names, pattern)
        others = layout.others or ()
        is_theirs = layout.others is not None and (pattern in words or fnmatch.filter(others, pattern))
        if not own and not is_theirs:
            known = ", ".join(map(repr, dict.fromkeys((*layout.names, *others))))
            raise ValueError(f"{argument} must be of parameters' names, {known}, got {pattern!r}")
        found |= {*own}
    return tuple(name for name in layout.names if name in found)


def matrices(said: str, layout: Layout, kind: str) -> tuple[str, ...]:
    """Those of `chosen` that have two axes or more; that a transform of this `kind` passes by others is said once."""
    own = chosen(said, layout)
    of_two = {name for name, shape in zip(layout.names, layout.shapes) if len(shape) > 1}
    if len(found := tuple(name for name in own if name in of_two)) < len(own):
        _say(kind)
    return found


@functools.cache
def _say(kind: str) -> None:
    warnings.warn(f"{kind} is for matrices: it leaves biases and other vectors as they are", stacklevel=2)
