"""What a one-pass kernel works on: the memory of each tensor of an update, checked, made where missing, and listed.

A kernel sees addresses. Parameter, gradient, state and history have to lie in the same order in memory, without gaps.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from grokfast.optim.history import COUNT_KEY, counted_by, init_state, keys_of, place_count
from grokfast.optim.lion import Lion
from grokfast.transforms.base import Kept
from grokfast.transforms.rows import ADAM, FILTER_ONLY, LION, SGD, hyper_row

RULES: dict[type, int] = {torch.optim.Adam: ADAM, torch.optim.AdamW: ADAM, torch.optim.SGD: SGD, Lion: LION}

NAMELESS = "parameter"


class Work(NamedTuple):
    """A parameter with a gradient: the number of its group, the group, its filter, and its name, if it has one."""

    row: int
    group: dict[str, Any]
    param: Tensor
    filter: Any  # one pass where a kernel works on it, else any transform
    name: str = NAMELESS


def slots_of(rule: int, work: Work, *, capturable: bool) -> tuple[str, ...]:
    """Names of the tensors in `optimizer.state[p]` that a kernel reads and writes, in the order of an entry.

    The optimizer's two and its step, the filter's two and its count; "" is none. `capturable`: a filter that does not
    count has a count, too.
    """
    momentum = "momentum_buffer" if rule == SGD and work.group["momentum"] else ""
    own = {ADAM: ("exp_avg", "exp_avg_sq", "step"), LION: ("exp_avg", "", "")}.get(rule, (momentum, "", ""))
    past, total = (*keys_of(work.filter), "", "")[:2]
    filter = work.filter.as_filter
    if filter is None:
        return (*own, past, total, counted_by(work.filter)[0])
    return (*own, past, total, COUNT_KEY if capturable or filter.counts else "")


def fits(rule: int, work: Work, state: Mapping[str, Any], dtypes: Any) -> bool:
    """Whether a kernel for parameters of `dtypes` may work on these addresses; what is missing can be made."""
    p, grad = work.param, work.param.grad
    if p.dtype not in dtypes or not _is_plain(p):
        return False
    if not p.is_contiguous() and torch.empty_like(p, device="meta").stride() != p.stride():
        return False  # gaps, or elements that share memory

    def like(t: Any, dtype: torch.dtype = p.dtype) -> bool:
        return (
            _is_plain(t)
            and (t.dtype, t.device, t.shape) == (dtype, p.device, p.shape)
            and (t.stride() == p.stride() or (t.is_contiguous() and p.is_contiguous()))
        )

    if not like(grad):
        return False
    own = [name for name in slots_of(rule, work, capturable=False)[:3] if name]
    has = [state.get(name) is not None for name in own]
    if any(has) and not all(has):
        return False
    for name in own if all(has) else ():
        t = state[name]
        if not (like(t) if name != "step" else _is_plain(t) and t.dtype is torch.float32 and t.numel() == 1):
            return False
    if rule == SGD and own and not p.is_cpu and work.group["dampening"] and not any(has):
        return False  # torch starts it undamped
    kept = keys_of(work.filter)
    if work.filter.as_filter is None:  # a chain keeps rows of numbers
        lengths = {name: (*own.lead, p.numel()) for name, own in kept.items() if name in state}
        return p.is_cpu and p.is_contiguous() and grad.is_contiguous() and all(  # type: ignore[union-attr]
            _is_plain(state[name]) and state[name].is_contiguous() and state[name].shape == shape
            and (state[name].dtype, state[name].device) == (torch.float32, p.device)
            for name, shape in lengths.items()
        )  # fmt: skip
    if not any(name in state for name in kept):
        return True
    return all(_rows_fit(own, state[name], p) if own.lead else like(state[name], torch.float32)
               for name, own in kept.items())  # fmt: skip


def _is_plain(t: Any) -> bool:
    """Dense memory, all of it there, and no subclass (fake, distributed, ...)."""
    if not (type(t) is nn.Parameter or type(t) is Tensor) or t.layout is not torch.strided or t.is_neg():
        return False
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride()))
    needed = (t.storage_offset() + last + 1) * t.element_size() if t.numel() else 0
    return t.untyped_storage().nbytes() >= needed


def _rows_fit(kept: Kept, rows: Any, p: Tensor) -> bool:
    """Of what has a row for each of several gradients."""
    dtype = torch.bfloat16 if kept.in_bf16 else torch.float32
    if not _is_plain(rows) or rows.dtype is not dtype or rows.shape != (*kept.lead, *p.shape):
        return False
    is_reachable = rows.device == p.device or (rows.is_cpu and rows.is_pinned())
    in_order = not p.numel() or rows.stride() == (p.numel(), *p.stride())
    return is_reachable and in_order


def fill(
    rule: int, work: Work, state: dict[str, Any], slots: tuple[str, ...], *, on_device: bool, capturable: bool
) -> bool:
    """Make what `fits` found missing in `state`; returns whether a momentum buffer begins.

    `on_device`: steps and counts lie beside the parameter, not on the CPU.
    """
    p, grad = work.param, work.param.grad
    assert grad is not None
    place = p.device if on_device else torch.device("cpu")
    is_first = False
    for name in filter(None, slots[:3]):
        if state.get(name) is None:
            is_first = rule == SGD
            zeros = torch.zeros((), dtype=torch.float32, device=place) if name == "step" else torch.zeros_like(p)
            state[name] = zeros
        elif name == "step":
            state[name] = state[name].to(place)
    if next(filter(None, slots[3:])) not in state:
        state |= init_state(work.filter, grad, count_on=place if slots[5] else None)
    elif slots[5]:
        place_count(state, place)
    return is_first


def entry(work: Work, state: Mapping[str, Any], slots: tuple[str, ...], is_first: bool) -> Iterator[int]:
    """A row of csrc/grokfast.h's UpdateEntry, without a gradient; where only the filter runs it writes to `param`."""
    yield work.param.numel()
    yield work.param.data_ptr()
    yield 0
    for name in slots:
        yield state[name].data_ptr() if name else 0
    yield is_first
    yield work.row


def group_rows(rule: int, optimizer: torch.optim.Optimizer, filters: list[Any]) -> array[float]:
    """`hyper_row` of every param group; a device tensor for lr stands as 0, to be overridden."""
    rows = array("d")
    for group, filter in zip(optimizer.param_groups, filters):
        if rule == FILTER_ONLY:
            rows.extend(hyper_row(filter))
            continue
        decoupled = type(optimizer) is torch.optim.AdamW or group.get("decoupled_weight_decay", False)
        lr = group.get("lr", 0.0)
        lr = 0.0 if isinstance(lr, Tensor) and not lr.is_cpu else lr
        rows.extend(hyper_row(filter, **{**group, "lr": lr, "decoupled": decoupled}))
    return rows
