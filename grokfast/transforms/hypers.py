"""The hyper-parameters of an optimizer and its transforms that may change with the step, by their names."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, NamedTuple

from grokfast.transforms.base import Transform
from grokfast.transforms.chain import elements, named
from grokfast.transforms.optimizers import Optimizer

OF_OPTIMIZER = ("lr", "weight_decay")


class Place(NamedTuple):
    """A field of the transform in a place of the chain, or of the optimizer, whose place is -1."""

    element: int
    field: str


def places(filter: Transform | None) -> dict[str, Place]:
    """By every name: "lr" or "optimizer.lr"; "ema.alpha" or "filter.ema.alpha", and where only one has it "alpha"."""
    found = {name: Place(-1, name) for name in OF_OPTIMIZER}
    own = {
        f"{name}.{f}": Place(i, f)
        for i, (name, one) in enumerate(named(filter).items())
        for f in sorted(one.varies)
        if not isinstance(getattr(one, f), tuple)  # of several numbers none is the one that changes
    }
    times = Counter(place.field for place in own.values())
    short = {place.field: place for place in own.values() if times[place.field] == 1 and place.field not in found}
    whole = {f"optimizer.{name}": place for name, place in found.items()}
    return {**found, **short, **own, **whole, **{f"filter.{name}": place for name, place in (own | short).items()}}


def same(filter: Transform | None) -> dict[str, str]:
    """Of every name the first that means the same."""
    first: dict[Place, str] = {}
    return {name: first.setdefault(place, name) for name, place in places(filter).items()}


def current(config: Optimizer, filter: Transform | None) -> dict[str, float]:
    """Of every name the field's own value."""
    return {name: getattr(_part(config, filter, place), place.field) for name, place in places(filter).items()}


def check(config: Optimizer, filter: Transform | None, name: str, value: float) -> None:
    """Raise TypeError or ValueError where a field takes no such value."""
    place = places(filter)[name]
    try:
        dataclasses.replace(_part(config, filter, place), **{place.field: value})
    except (TypeError, ValueError) as error:
        raise type(error)(f"schedule.changes make {name!r} {value:g}: {error}") from error


def _part(config: Optimizer, filter: Transform | None, place: Place) -> Any:
    return config if place.element < 0 else elements(filter)[place.element]
