"""Which transforms one pass over memory computes together with an update: a projection, a filter, and a clip after it.

`Transform.role` says what one is to the pass. A projection stands just before the filter, or before the update; a clip
just after the update. Both ask for whole tensors, and are in the pass of CPU fp32 tensors only (csrc/cpu/row_wise.h).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from grokfast.transforms.base import Layout, Transform
from grokfast.transforms.chain import elements
from grokfast.transforms.filters import Filter, filter_of


class Pass(NamedTuple):
    """The places in a chain of what is in the pass; None: there is no such."""

    project: int | None = None
    filter: int | None = None
    clip: int | None = None

    @property
    def is_row_wise(self) -> bool:
        """Whether it asks for more than numbers one by one."""
        return self.project is not None or self.clip is not None


ALONE = Pass(filter=0)


def pass_of(transform: Transform | None) -> Pass | None:
    """The pass that computes all of the elements; None: some are none of its, or not always on."""
    if transform is not None and transform.as_filter:
        return ALONE  # one that starts or stops is off as a whole
    own = elements(transform)
    found = {one.role: place for place, one in enumerate(own) if one.role and one.is_always_on}
    in_order = [place for role in ("project", "filter", "clip") if (place := found.get(role)) is not None]
    return Pass(**found) if own and in_order == list(range(len(own))) else None


def filter_in(transform: Transform | None) -> Filter | None:
    """The filter of a chain that is one pass."""
    if transform is not None and transform.as_filter:
        return transform.as_filter
    own = pass_of(transform)
    return None if own is None or own.filter is None else filter_of(elements(transform)[own.filter])


def numbers(
    layout: Layout, project: Transform | None, clip: Transform | None, strengths: Sequence[float] = ()
) -> array[float]:
    """For each parameter of `layout` csrc/grokfast.h's RowWise: share, norm and row. `strengths`: of the two, in the
    place of their own fields."""
    share, norm = strengths or (one and getattr(one, one.role_field) for one in (project, clip))
    projected = project.reach(layout) if project else [0] * len(layout.names)
    clipped = clip.reach(layout) if clip else [0] * len(layout.names)
    found = array("d")
    for is_projected, row in zip(projected, clipped):
        found.extend((share if is_projected and share else 0.0, norm if row and norm else 0.0, row))
    return found
