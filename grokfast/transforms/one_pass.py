"""Which transforms one pass over memory computes together with an update: a projection, penalties and a filter before
it, and a clip after it.

`Transform.role` says what one is to the pass, which takes them in the order of `ROLES`, each at most once. All but EMA
and MA are in the pass of CPU fp32 tensors only (csrc/cpu/row_wise.h).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from grokfast.transforms.base import Layout, Transform
from grokfast.transforms.chain import elements
from grokfast.transforms.filters import Filter, filter_of

BEFORE = ("project", "l1", "l2")  # the filter
ROLES = (*BEFORE, "filter", "clip")
NONE: Mapping[str, float] = MappingProxyType({})


class Pass(NamedTuple):
    """The places in a chain of what is in the pass; None: there is no such."""

    project: int | None = None
    l1: int | None = None
    l2: int | None = None
    filter: int | None = None
    clip: int | None = None


ALONE = Pass(filter=0)


def pass_of(transform: Transform | None) -> Pass | None:
    """The pass that computes all of the elements, where all are on; None: some are none of its."""
    if transform is not None and transform.as_filter:
        return ALONE  # one that starts or stops is off as a whole
    own = elements(transform)
    found: dict[str, int] = {one.role: place for place, one in enumerate(own) if one.role}
    in_order = [place for role in ROLES if (place := found.get(role)) is not None]
    return Pass(**found) if own and in_order == list(range(len(own))) else None


def filter_in(transform: Transform | None) -> Filter | None:
    """The EMA or MA of a chain that is one pass."""
    if transform is not None and transform.as_filter:
        return transform.as_filter
    return filter_of(_filter(transform))


def averages_in(transform: Transform | None) -> Transform | None:
    """What adds averages of its own in a chain that is one pass, no EMA or MA."""
    found = _filter(transform)
    return None if found is None or found.as_filter else found


def _filter(transform: Transform | None) -> Transform | None:
    own = pass_of(transform)
    return None if own is None or own.filter is None else elements(transform)[own.filter]


def numbers(layout: Layout, own: Mapping[str, Transform], strengths: Mapping[str, float] = NONE) -> array[float]:
    """For each parameter of `layout` csrc/grokfast.h's RowWise, given what there is by its role. `strengths`: in the
    place of their own fields."""
    columns: dict[str, list[float]] = dict.fromkeys((*BEFORE, "norm", "row", "is_held"), [0.0] * len(layout.names))
    for role, one in own.items():
        strength = strengths.get(role, getattr(one, one.role_field))
        reached = one.reach(layout)
        columns["norm" if role == "clip" else role] = [strength if reach else 0.0 for reach in reached]
        if role == "clip":
            columns["row"] = [*reached]
            columns["is_held"] = [float(one.is_held)] * len(reached)
    return array("d", [number for row in zip(*columns.values()) for number in row])
