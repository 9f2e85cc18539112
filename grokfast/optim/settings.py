"""What a param group says of its filter: the keys `grokfast_*`, read at every step."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfast import checks
from grokfast.filters import EMA, Filter

_VALUES = ("alpha", "lamb", "enabled")
_KEYS = (*(f"grokfast_{name}" for name in _VALUES), "grokfast_steps", "grokfast_started")


class Setting(NamedTuple):
    """A group's filter now, None while it is off; `tensors` are 0-dim fp32 ones that stand in for its values."""

    filter: Filter | None
    tensors: dict[str, Tensor]


def setting_of(group: dict[str, Any], base: Filter) -> Setting:
    """`base` with the group's own values. Raises TypeError or ValueError for one that no filter takes."""
    own: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name in _VALUES:
        value = group.get(f"grokfast_{name}")
        if isinstance(value, Tensor):
            tensors[name] = value
        elif value is not None and (name != "alpha" or isinstance(base, EMA)):
            own[name] = value
    if not checks.boolean("grokfast_enabled", own.pop("enabled", True)):
        return Setting(None, {})
    return Setting(dataclasses.replace(base, **own) if own else base, tensors)


def check_group(group: dict[str, Any], *, capturable: bool) -> None:
    """Raise TypeError or ValueError for a misspelt key, a bad value, or a tensor that no graph could read."""
    for key in group:
        if key.startswith("grokfast_"):
            checks.choice("a param group's key", key, _KEYS)
    for name, value in setting_of(group, EMA()).tensors.items():
        if not capturable:
            raise TypeError(f"grokfast_{name} may be a tensor only with capturable=True, got {value!r}")
        devices = {p.device for p in group["params"]}
        if value.dim() or value.dtype is not torch.float32 or {value.device} != devices:
            accepted = " and ".join(sorted(map(str, devices)))
            raise ValueError(
                f"grokfast_{name} must be a number or a 0-dim torch.float32 tensor on its group's device, {accepted}; "
                f"got shape {tuple(value.shape)}, {value.dtype} on {value.device}"
            )
