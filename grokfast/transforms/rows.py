"""What kernels are told of an update: its rule, its filter, a row of hyper-parameters; as csrc/update_rules.h."""

from __future__ import annotations

from typing import Any

from grokfast.transforms.filters import EMA, MA, Filter

HYPER_COUNT = 16
ADAM, SGD, LION, FILTER_ONLY = range(4)
FILTERS: dict[type, int] = {EMA: 1, MA: 2}
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
    alpha = filter.alpha if isinstance(filter, EMA) else 0.0
    window, mean, warmup = (
        (filter.window_size, filter.filter_type == "mean", filter.warmup)
        if isinstance(filter, MA)
        else (1, False, False)
    )
    return (
        float(lr), float(betas[0]), float(betas[1]), eps, float(weight_decay), float(decoupled),
        momentum, dampening, float(nesterov), float(maximize),
        alpha, filter.lamb if filter else 0.0, float(window), float(mean), float(warmup), 1.0,
    )  # fmt: skip
