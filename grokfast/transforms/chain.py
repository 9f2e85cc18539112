"""`Chain`: several transforms, one after the other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from grokfast import checks, parts
from grokfast.parts import register
from grokfast.transforms.base import Transform


@register("chain")
@dataclass(frozen=True, init=False, repr=False)
class Chain(Transform):
    """Transforms in this order: `Chain(OrthoGrad(), EMA())`. Those before the update precede those after it.

    Elements are called by their kinds, a second one of a kind "ema_2", and so on: filter.ema.alpha. A chain within a
    chain is its elements. Raises TypeError or ValueError unless there are transforms.
    """

    transforms: tuple[Transform, ...]

    def __init__(self, *elements: Transform, transforms: Any = ()) -> None:
        if elements and transforms:
            raise TypeError("transforms must be given one after the other, or as one tuple, not both")
        found: list[Transform] = []
        for i, one in enumerate(elements or tuple(transforms)):
            if not isinstance(one, Transform):
                raise TypeError(f"transforms[{i}] must be a transform, got {checks.shown(one)}")
            found += one.transforms if isinstance(one, Chain) else [one]
        if not found:
            raise ValueError("transforms must be at least one, got none")
        object.__setattr__(self, "transforms", tuple(found))

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.transforms))})"

    @property
    def varies(self) -> frozenset[str]:  # type: ignore[override]
        """The elements' own, as "ema.alpha"."""
        return frozenset(f"{name}.{field}" for name, one in named(self).items() for field in one.varies)


def elements(transform: Transform | None) -> tuple[Transform, ...]:
    """What is applied, in this order: a chain's elements, none, or the transform itself."""
    if transform is None:
        return ()
    return transform.transforms if isinstance(transform, Chain) else (transform,)


def named(transform: Transform | None) -> dict[str, Transform]:
    """`elements` by their names in dotted paths."""
    seen: Counter[str] = Counter()
    found = {}
    for one in elements(transform):
        name = parts.name_of(one).rpartition(":")[2].rpartition(".")[2]
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name}_{seen[name]}"] = one
    return found
