"""What kernels are told of an update: its rule, its filter, a row of hyper-parameters; as csrc/update_rules.h."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from grokfast.transforms.filters import Filter

HYPER_COUNT = 16
ADAM, SGD, LION, FILTER_ONLY = range(4)
NONE: Mapping[str, float] = MappingProxyType({})
COLUMNS = {
    name: i
    for i, name in enumerate(
        ("lr", "beta1", "beta2", "eps", "weight_decay", "decoupled", "momentum", "dampening", "nesterov", "maximize",
         "alpha", "lamb", "window_size", "window_mean", "warmup", "enabled")
    )
}  # fmt: skip


def hyper_row(
    filter: Filter | None,
    /,
    *,
    lr: Any = 0.0,
    weight_decay: Any = 0.0,
    betas: Any = (0.0, 0.0),
    eps: float = 0.0,
    decoupled: bool = False,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    **_: Any,
) -> tuple[float, ...]:
    """A param group, or a model of an ensemble, as a row of csrc/update_rules.h's `Hyper`, in its order."""
    own = filter.numbers if filter else NONE
    return (
        float(lr), float(betas[0]), float(betas[1]), eps, float(weight_decay), float(decoupled),
        momentum, dampening, float(nesterov), float(maximize),
        own.get("alpha", 0.0), own.get("lamb", 0.0), float(own.get("window_size", 1)),
        float(own.get("window_mean", 0)), float(own.get("warmup", 0)), 1.0,
    )  # fmt: skip
