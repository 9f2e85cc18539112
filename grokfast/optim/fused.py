"""Filter and optimizer step in one pass over memory, for AdamW, Adam, SGD and Lion: where that applies, it is taken.

On CPU fp32 tensors by the C++ extension, on a GPU by one launch for all tensors of a dtype. Nine memory streams instead
of the optimizer's seven and the filter's five. `p.grad` stays raw; the inner optimizer's state keeps torch's format, so
that it may be saved, loaded and continued by torch (on a GPU with the step counts there, as under fused=True).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast.optim.passes import Histories, Passes, key_of
from grokfast.optim.settings import Setting
from grokfast.optim.slots import FILTER_ONLY, RULES, Work, group_rows


def step(
    optimizer: torch.optim.Optimizer,
    settings: Sequence[Setting],
    histories: Histories,
    passes: Passes,
    *,
    capturable: bool,
) -> bool:
    """Take the step and return True, or return False, nothing changed, where the one pass does not apply.

    `settings` has one for each group; the filters differ in α and λ only. A group without one, or with λ = 0, is left
    to the inner optimizer itself, bit for bit.
    """
    rule = RULES.get(type(optimizer))
    if rule is None or inner_step_is_watched(optimizer):
        return False
    for group, setting in zip(optimizer.param_groups, settings):
        if setting.filter is None or group.get("amsgrad") or group.get("differentiable") or not _can_read_lr(group):
            return False
    return _run(rule, optimizer, settings, optimizer.state, histories, passes, capturable) is not None


def filtered(
    optimizer: torch.optim.Optimizer,
    settings: Sequence[Setting],
    histories: Histories,
    passes: Passes,
    *,
    capturable: bool,
) -> list[Tensor] | None:
    """The filtered gradients of `work_of(...)` in one pass, the histories advanced; None, nothing changed, where it
    cannot be. They may lie where the last call's lay.
    """
    return _run(FILTER_ONLY, optimizer, settings, {}, histories, passes, capturable)


def _run(
    rule: int,
    optimizer: torch.optim.Optimizer,
    settings: Sequence[Setting],
    states: Any,
    histories: Histories,
    passes: Passes,
    capturable: bool,
) -> list[Tensor] | None:
    """One pass; None, nothing changed, where it does not apply."""
    groups = optimizer.param_groups
    if any(s.filter is not None and s.filter.lamb == 0 and "lamb" not in s.tensors for s in settings):
        return None
    params = [p for group in groups for p in group["params"]]
    if len(set(map(id, params))) < len(params):
        return None  # torch only warns of a parameter listed twice; here its elements would be a race's
    grads = [p.grad for p in params]
    key = key_of(rule, groups, settings, params, [g is not None for g in grads], capturable)
    if any(setting.filter is None for setting in settings):
        filters = [setting.filter for group, setting in zip(groups, settings) for _ in group["params"]]
        grads = [g for g, filter in zip(grads, filters) if filter is not None]
    present = [g for g in grads if g is not None]
    if not present:
        return []
    made = passes.again(key, present, states, histories)
    if made is None:
        made = passes.make(key, rule, work_of(optimizer, settings), states, histories, capturable)
        if made is None:
            return None
    hyper = group_rows(optimizer, [setting.filter for setting in settings])
    outs = passes.run(made, present, hyper, _overrides(groups, settings))
    if rule != FILTER_ONLY:
        torch.autograd.graph.increment_version(made.params)
    return outs


def work_of(optimizer: torch.optim.Optimizer, settings: Sequence[Setting]) -> list[Work]:
    """Every parameter with a gradient whose group has a filter."""
    return [
        Work(row, group, p, setting.filter)
        for row, (group, setting) in enumerate(zip(optimizer.param_groups, settings))
        if setting.filter is not None
        for p in group["params"]
        if p.grad is not None
    ]


def inner_step_is_watched(optimizer: torch.optim.Optimizer) -> bool:
    """Whether somebody hooked or patched the inner step (a scheduler made from it, say): then it has to be called."""
    return bool(
        "step" in vars(optimizer) or optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    )


def _can_read_lr(group: dict[str, Any]) -> bool:
    """A kernel reads a learning rate from the device as one fp32 number there; one on the CPU is passed on."""
    lr = group.get("lr")
    if not isinstance(lr, Tensor) or lr.is_cpu:
        return True
    return lr.dtype is torch.float32 and lr.numel() == 1 and {p.device for p in group["params"]} <= {lr.device}


def _overrides(groups: Sequence[dict[str, Any]], settings: Sequence[Setting]) -> list[Tensor | None]:
    """Four a group: the device tensors for lr, alpha, lamb and enabled, or None."""
    found: list[Tensor | None] = []
    for group, setting in zip(groups, settings):
        lr = group.get("lr")
        found.append(lr if isinstance(lr, Tensor) and not lr.is_cpu else None)
        found.extend(setting.tensors.get(name) for name in ("alpha", "lamb", "enabled"))
    return found
