"""What a one-pass kernel works on: the memory of each tensor of an update, checked, made where missing, and listed.

A kernel sees addresses. Parameter, gradient, state and history have to lie in the same order in memory, without gaps.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from grokfast.filters import EMA, MA, Filter
from grokfast.optim.history import COUNT_KEY, EMA_KEY, RING_KEY, SUM_KEY, init_state, place_count
from grokfast.optim.lion import Lion

# As in csrc/update_rules.h.
RULES: dict[type, int] = {torch.optim.Adam: 0, torch.optim.AdamW: 0, torch.optim.SGD: 1, Lion: 2}
ADAM, SGD, LION, FILTER_ONLY = range(4)
FILTERS: dict[type, int] = {EMA: 1, MA: 2}


class Work(NamedTuple):
    """A parameter with a gradient: the number of its group, the group, and its filter."""

    row: int
    group: dict[str, Any]
    param: Tensor
    filter: Filter


class Slots(NamedTuple):
    """The tensors beside parameter and gradient that an update reads and writes, None where there is none."""

    state1: Tensor | None = None  # exp_avg | momentum_buffer
    state2: Tensor | None = None  # exp_avg_sq
    step: Tensor | None = None
    past: Tensor | None = None  # ema | ring
    total: Tensor | None = None
    seen: Tensor | None = None  # count of gradients
    is_first: bool = False  # state1 has yet to be written


def fits(rule: int, work: Work, state: dict[str, Any] | None, history: dict[str, Any] | None, dtypes: Any) -> bool:
    """Whether a kernel for parameters of `dtypes` may work on these addresses."""
    p, grad, filter = work.param, work.param.grad, work.filter
    if p.dtype not in dtypes or p.is_neg():
        return False
    shape = None if p.is_contiguous() else p.shape
    strides = p.stride()
    if shape is not None and torch.empty_like(p, device="meta").stride() != strides:
        return False  # gaps, or elements that share memory

    def like(t: Any, dtype: torch.dtype = p.dtype) -> bool:
        if not _is_plain(t) or t.dtype is not dtype or t.device != p.device or t.is_neg():
            return False
        if shape is None:
            return bool(t.is_contiguous()) and t.numel() == p.numel()
        return t.shape == shape and t.stride() == strides

    if not (_is_plain(p) and like(grad)):
        return False
    for key, value in (state or {}).items():
        if key == "step":
            if not (_is_plain(value) and value.dtype is torch.float32 and value.numel() == 1):
                return False
        elif value is not None and not like(value):
            return False
    is_damped = rule == SGD and work.group["momentum"] and work.group["dampening"]
    if is_damped and not p.is_cpu and (state or {}).get("momentum_buffer") is None:
        return False  # torch starts it undamped
    if not history:
        return True
    if isinstance(filter, EMA):
        return like(history.get(EMA_KEY), torch.float32)
    ring, total = history.get(RING_KEY), history.get(SUM_KEY)
    return ring is not None and total is not None and like(total, torch.float32) and _ring_fits(filter, ring, total)


def _is_plain(t: Any) -> bool:
    """Dense memory and no subclass (fake, distributed, ...)."""
    return (type(t) is nn.Parameter or type(t) is Tensor) and t.layout is torch.strided


def _ring_fits(filter: MA, ring: Tensor, total: Tensor) -> bool:
    dtype = torch.bfloat16 if filter.ring == "bfloat16" else torch.float32
    is_reachable = ring.device == total.device or (ring.is_cpu and ring.is_pinned())
    is_whole = ring.shape == (filter.window_size, *total.shape)
    in_order = not total.numel() or ring.stride() == (total.numel(), *total.stride())
    return _is_plain(ring) and ring.dtype is dtype and is_reachable and is_whole and in_order


def slots_of(
    rule: int,
    work: Work,
    states: Any,
    histories: dict[Tensor, dict[str, Any]],
    *,
    on_device: bool = False,
    capturable: bool = False,
) -> Slots:
    """The tensors of one parameter, which `fits`; those that it does not have yet are made, and kept.

    `on_device`: steps and counts lie beside the parameter, not on the CPU; `capturable`: an EMA has a count, too.
    """
    p, grad = work.param, work.param.grad
    assert grad is not None
    state, history = states.get(p, {}), histories.setdefault(p, {})
    place = p.device if on_device else torch.device("cpu")
    has_count = isinstance(work.filter, MA) or capturable
    if not history:
        history.update(init_state(work.filter, grad, count_on=place if has_count else None))
    if has_count:
        place_count(history, place)
    past = history.get(EMA_KEY, history.get(RING_KEY))
    kept = Slots(past=past, total=history.get(SUM_KEY), seen=history.get(COUNT_KEY))
    if rule == ADAM:
        if not state:
            states[p] = state
            state["step"] = torch.zeros((), dtype=torch.float32, device=place)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] = state["step"].to(place)
        return kept._replace(state1=state["exp_avg"], state2=state["exp_avg_sq"], step=state["step"])
    name = {SGD: "momentum_buffer", LION: "exp_avg"}.get(rule)
    if name is None or (rule == SGD and not work.group["momentum"]):
        return kept
    is_first = state.get(name) is None
    if is_first:
        states[p] = state
        state[name] = torch.zeros_like(p)
    return kept._replace(state1=state[name], is_first=is_first and rule == SGD)


def entry(work: Work, slots: Slots, out: Tensor | None = None) -> Iterator[int]:
    """A row of csrc/grokfast.h's UpdateEntry; `out` takes the parameter's place where only the filter runs."""
    p = work.param
    yield p.numel()
    for t in (p if out is None else out, p.grad, *slots[:6]):
        yield 0 if t is None else t.data_ptr()
    yield slots.is_first
    yield work.row


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
    """A param group as a row of csrc/update_rules.h's `Hyper`, in its order."""
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


def group_rows(optimizer: torch.optim.Optimizer, filters: list[Filter | None]) -> array[float]:
    """`hyper_row` of every param group; a device tensor for lr stands as 0, to be overridden."""
    rows = array("d")
    for group, filter in zip(optimizer.param_groups, filters):
        decoupled = type(optimizer) is torch.optim.AdamW or group.get("decoupled_weight_decay", False)
        lr = group.get("lr", 0.0)
        lr = 0.0 if isinstance(lr, Tensor) and not lr.is_cpu else lr
        rows.extend(hyper_row(filter, **{**group, "lr": lr, "decoupled": decoupled}))
    return rows
