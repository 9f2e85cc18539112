"""What a param group says of its filter: the keys `grokfast_*`, read at every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfast import checks
from grokfast.transforms.base import MOMENTS, Transform
from grokfast.transforms.chain import elements
from grokfast.transforms.filters import EMA, filter_of
from grokfast.transforms.spans import is_on

_VALUES = ("alpha", "lamb", "enabled")
_NONE: frozenset[int] = frozenset()
_REACHED = {moment: f"grokfast_{moment}" for moment in MOMENTS}
_KEYS = (*(f"grokfast_{name}" for name in _VALUES), "grokfast_steps", "grokfast_started", *_REACHED.values())


class Setting(NamedTuple):
    """A group's filter now, None while it is off; `tensors` are 0-dim fp32 ones that stand in for its values; `off` are
    the places of a chain's elements that have not started yet, or have stopped."""

    filter: Transform | None
    tensors: dict[str, Tensor]
    off: frozenset[int] = frozenset()

    @property
    def is_idle(self) -> bool:
        """Whether gradients are to stay as they are, λ being 0, and only their history goes on."""
        own = filter_of(self.filter)
        return own is not None and own.lamb == 0 and "lamb" not in self.tensors


def transform_of(group: dict[str, Any], base: Transform, theirs: Container[str] = ()) -> Transform:
    """`base`, or the filter that the group has as "filter"; the one element where it is a chain of one."""
    if isinstance(group.get("filter"), Transform) and "filter" not in theirs:
        base = group["filter"]
    return own[0] if base.as_filter is None and len(own := elements(base)) == 1 else base


def reach(groups: Iterable[dict[str, Any]], moment: str) -> None:
    """Have every group say that a moment has come. Raises ValueError for one that is none."""
    key = _REACHED[checks.choice("moment", moment, MOMENTS)]
    for group in groups:
        group[key] = True


def _off(group: dict[str, Any], transform: Transform) -> frozenset[int]:
    if transform.as_filter and transform.is_always_on:  # asked at every step
        return _NONE
    own = elements(transform)
    if all(one.is_always_on for one in own):
        return _NONE
    steps = group.setdefault("grokfast_steps", 0)
    reached = [moment for moment, key in _REACHED.items() if group.get(key)]
    return frozenset(place for place, one in enumerate(own) if not is_on(one, steps, reached))


def setting_of(group: dict[str, Any], base: Transform, theirs: Container[str] = ()) -> Setting:
    """`base`, or the filter that the group has as "filter", with the group's own values.

    `theirs`: keys that are the inner optimizer's, whatever their names. Raises TypeError or ValueError for a value that
    no filter takes.
    """
    base = transform_of(group, base, theirs)
    own: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name in _VALUES:
        key = f"grokfast_{name}"
        value = group.get(key)
        if value is None or key in theirs:
            continue
        if name != "enabled" and base.as_filter is None:
            raise ValueError(f"{key} is for EMA or MA alone, the group's filter is {base}; give it a filter of its own")
        if isinstance(value, Tensor):
            if base.as_filter is None:
                raise TypeError(f"{key} may be a tensor for EMA or MA alone, the group's filter is {base}")
            tensors[name] = value
        elif name == "enabled" or name in base.varies:
            own[name] = value
    if not checks.boolean("grokfast_enabled", own.pop("enabled", True)):
        return Setting(None, {})
    off = _off(group, base)
    if off and len(elements(base)) == 1:
        return Setting(None, {})
    return Setting(dataclasses.replace(base, **own) if own else base, tensors, off)


def check_group(group: dict[str, Any], theirs: Container[str] = (), *, capturable: bool) -> None:
    """Raise TypeError or ValueError for a misspelt key, a bad value, or a tensor that no graph could read."""
    for key in group:
        if str(key).startswith("grokfast_") and key not in theirs:
            checks.choice("a param group's key", key, _KEYS)
    check_counts(group, theirs)
    for name, value in setting_of(group, EMA(), theirs).tensors.items():
        if not capturable:
            raise TypeError(f"grokfast_{name} may be a tensor only with capturable=True, got {value!r}")
        devices = {p.device for p in group["params"]}
        if value.dim() or value.dtype is not torch.float32 or {value.device} != devices:
            accepted = " and ".join(sorted(map(str, devices)))
            raise ValueError(
                f"grokfast_{name} must be a number or a 0-dim torch.float32 tensor on its group's device, {accepted}; "
                f"got shape {tuple(value.shape)}, {value.dtype} on {value.device}"
            )


def check_counts(group: dict[str, Any], theirs: Container[str] = ()) -> None:
    """Raise TypeError or ValueError unless what a group says of a later start can be so."""
    if "grokfast_steps" in group and "grokfast_steps" not in theirs:
        checks.integer("grokfast_steps", group["grokfast_steps"], minimum=0)
    for key in ("grokfast_started", *_REACHED.values()):
        if key in group and key not in theirs:
            checks.boolean(key, group[key])
