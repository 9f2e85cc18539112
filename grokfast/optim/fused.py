"""Filter and optimizer step in one pass over memory: AdamW, Adam and SGD on CPU fp32 tensors, in the C++ extension.

Nine memory streams instead of the optimizer's seven and the filter's five. `p.grad` stays raw; the inner optimizer's
state keeps torch's own format, so that it may be saved, loaded and continued by torch.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from grokfast import backend
from grokfast.filters import EMA, MA, Filter
from grokfast.optim.reference import COUNT_KEY, EMA_KEY, RING_KEY, SUM_KEY, init_state

RULES: dict[type, int] = {torch.optim.Adam: 0, torch.optim.AdamW: 0, torch.optim.SGD: 1}
FILTERS: dict[type, int] = {EMA: 1, MA: 2}


def step(
    optimizer: torch.optim.Optimizer, filters: Sequence[Filter | None], filter_state: dict[Tensor, dict[str, Any]]
) -> bool:
    """Take the step and return True, or return False, nothing changed, where the one pass does not apply.

    `filters` has one for each group; they differ in α and λ only. A group without one, or with λ = 0, is left to the
    inner optimizer itself, bit for bit.
    """
    extension = backend.extension()
    rule = RULES.get(type(optimizer))
    if extension is None or rule is None or inner_step_is_watched(optimizer):
        return False
    if any(filter is None or filter.lamb == 0 for filter in filters):
        return False
    todo = [
        (row, group, p)
        for row, group in enumerate(optimizer.param_groups)
        for p in group["params"]
        if p.grad is not None
    ]
    for group in optimizer.param_groups:
        if group.get("amsgrad") or group.get("capturable") or group.get("differentiable"):
            return False
    for row, _, p in todo:
        size = p.numel()
        if p.is_neg() or p.grad.is_neg() or not (_fits(p, size) and _fits(p.grad, size)):
            return False
        if not (_state_fits(optimizer.state.get(p), size) and _history_fits(filter_state.get(p), filters[row], size)):
            return False
    _launch(extension, rule, optimizer, filters, filter_state, todo)
    return True


def inner_step_is_watched(optimizer: torch.optim.Optimizer) -> bool:
    """Whether somebody hooked or patched the inner step (a scheduler made from it, say): then it has to be called."""
    return bool(
        "step" in vars(optimizer) or optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    )


def _fits(t: Any, size: int, dtype: torch.dtype = torch.float32) -> bool:
    """Whether `t` is `size` plain numbers in a row, as the extension, which sees a pointer, has to believe."""
    plain = type(t) is nn.Parameter or type(t) is Tensor
    return (
        plain
        and t.dtype is dtype
        and t.is_cpu
        and t.layout is torch.strided
        and t.is_contiguous()
        and t.numel() == size
    )


def _state_fits(state: dict[str, Any] | None, size: int) -> bool:
    for key, value in (state or {}).items():
        if value is not None and not _fits(value, 1 if key == "step" else size):
            return False
    return True


def _history_fits(history: dict[str, Any] | None, filter: Filter | None, size: int) -> bool:
    if not history:
        return True
    if isinstance(filter, EMA):
        return _fits(history.get(EMA_KEY), size)
    return isinstance(filter, MA) and (
        _fits(history.get(RING_KEY), filter.window_size * size)
        and _fits(history.get(SUM_KEY), size)
        and _fits(history.get(COUNT_KEY), 1, torch.int64)
    )


def _launch(
    extension: ModuleType,
    rule: int,
    optimizer: torch.optim.Optimizer,
    filters: Sequence[Filter | None],
    filter_state: dict[Tensor, dict[str, Any]],
    todo: list[tuple[int, dict[str, Any], Tensor]],
) -> None:
    entries = array("q")
    common = filters[0]
    assert common is not None
    is_ema = isinstance(common, EMA)
    for row, group, p in todo:
        grad = p.grad
        assert grad is not None
        state = optimizer.state.get(p, {})
        history = filter_state.setdefault(p, {})
        if not history:
            history.update(init_state(common, grad))
        first_step = 0
        if rule == 0:
            if not state:
                optimizer.state[p] = state
                state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
            one, two, count = state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr(), state["step"].data_ptr()
        else:
            one = two = count = 0
            if group["momentum"]:
                first_step = int(state.get("momentum_buffer") is None)
                if first_step:
                    optimizer.state[p] = state
                    state["momentum_buffer"] = torch.empty_like(p)
                one = state["momentum_buffer"].data_ptr()
        if is_ema:
            past = (history[EMA_KEY].data_ptr(), 0, 0)
        else:
            past = (history[RING_KEY].data_ptr(), history[SUM_KEY].data_ptr(), history[COUNT_KEY].data_ptr())
        entries.extend((p.numel(), p.data_ptr(), grad.data_ptr(), one, two, count, *past, first_step, row))
    hyper = array("d")
    for group, filter in zip(optimizer.param_groups, filters):
        decoupled = type(optimizer) is torch.optim.AdamW or group.get("decoupled_weight_decay", False)
        hyper.extend(hyper_row(filter, **{**group, "decoupled": decoupled}))
    extension.update(rule, FILTERS[type(common)], entries, hyper, 0, torch.get_num_threads())
    torch.autograd.graph.increment_version([p for _, _, p in todo])


def hyper_row(
    filter: Filter | None,
    /,
    *,
    lr: Any,
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
