"""What a param group says of its filter: the keys `grokfast_*`, read at every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfast import checks
from grokfast.transforms.base import Transform
from grokfast.transforms.chain import Chain
from grokfast.transforms.filters import EMA, MA

_VALUES = ("alpha", "lamb", "enabled")
_KEYS = (*(f"grokfast_{name}" for name in _VALUES), "grokfast_steps", "grokfast_started")


class Setting(NamedTuple):
    """A group's filter now, None while it is off; `tensors` are 0-dim fp32 ones that stand in for its values."""

    filter: Transform | None
    tensors: dict[str, Tensor]

    @property
    def is_idle(self) -> bool:
        """Whether gradients are to stay as they are, λ being 0, and only their history goes on."""
        return isinstance(self.filter, (EMA, MA)) and self.filter.lamb == 0 and "lamb" not in self.tensors


def setting_of(group: dict[str, Any], base: Transform, theirs: Container[str] = ()) -> Setting:
    """`base`, or the filter that the group has as "filter", with the group's own values.

    `theirs`: keys that are the inner optimizer's, whatever their names. Raises TypeError or ValueError for a value that
    no filter takes.
    """
    if isinstance(group.get("filter"), Transform) and "filter" not in theirs:
        base = group["filter"]
    if isinstance(base, Chain) and len(base.transforms) == 1:
        base = base.transforms[0]
    own: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name in _VALUES:
        key = f"grokfast_{name}"
        value = group.get(key)
        if value is None or key in theirs:
            continue
        if name != "enabled" and not isinstance(base, (EMA, MA)):
            raise ValueError(f"{key} is for EMA or MA alone, the group's filter is {base}; give it a filter of its own")
        if isinstance(value, Tensor):
            if not isinstance(base, (EMA, MA)):
                raise TypeError(f"{key} may be a tensor for EMA or MA alone, the group's filter is {base}")
            tensors[name] = value
        elif name != "alpha" or isinstance(base, EMA):
            own[name] = value
    if not checks.boolean("grokfast_enabled", own.pop("enabled", True)):
        return Setting(None, {})
    return Setting(dataclasses.replace(base, **own) if own and isinstance(base, (EMA, MA)) else base, tensors)


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
    if "grokfast_started" in group and "grokfast_started" not in theirs:
        checks.boolean("grokfast_started", group["grokfast_started"])
