"""`Chain`: several transforms, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from grokfast import parts
from grokfast.parts import register
from grokfast.transforms.base import Transform


@register("chain")
@dataclass(frozen=True, init=False, repr=False)
class Chain(Transform):
    """Transforms in this order: `Chain(OrthoGrad(), EMA())`; first those before the update, then those after it.

    Elements are called by their kinds, a second one of a kind "ema_2", and so on: filter.ema.alpha. A chain within a
    chain is its elements. Raises TypeError or ValueError unless there are transforms, in an order that can be.
    """

    inline: ClassVar[str] = "transforms"
    start: ClassVar[int] = 0  # type: ignore[misc]  # each element has its own
    stop: ClassVar[None] = None  # type: ignore[misc]

    transforms: tuple[Transform, ...]

    def __init__(self, *elements: Transform, transforms: Any = ()) -> None:
        if elements and transforms:
            raise TypeError("transforms must be given one after the other, or as one tuple, not both")
        found: list[Transform] = []
        for one in parts.several("transform", elements or transforms, argument="transforms"):
            assert isinstance(one, Transform)
            found += one.transforms if isinstance(one, Chain) else [one]
        if not found:
            raise ValueError("transforms must be at least one, got none")
        for one in found[1:]:
            if one.is_taken_anew:
                raise ValueError(f"transforms must begin with {one}, whose gradient the others change, got {found}")
        for one, following in pairwise(found):
            if (one.when, following.when) == ("after", "before"):
                raise ValueError(
                    f"transforms must be in the order in which they act: {following}, before the update, cannot follow "
                    f"{one}, which changes the weights after it"
                )
        object.__setattr__(self, "transforms", tuple(found))

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.transforms))})"


def elements(transform: Transform | None) -> tuple[Transform, ...]:
    """What is applied, in this order: a chain's elements, none, or the transform itself."""
    if transform is None:
        return ()
    return transform.transforms if isinstance(transform, Chain) else (transform,)


def named(transform: Transform | None) -> dict[str, Transform]:
    """`elements` by their names in dotted paths."""
    return parts.named(elements(transform))
