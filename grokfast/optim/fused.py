"""Filter and optimizer step in one pass over memory, for AdamW, Adam, SGD and Lion: where that applies, it is taken.

On CPU fp32 tensors by the C++ extension, there with a projection and penalties before the filter and a clip after the
update (transforms/one_pass.py), on a GPU by one launch for all tensors of a dtype. Nine memory streams instead of the
optimizer's seven and the filter's five. `p.grad` stays raw; the inner optimizer's state keeps torch's format, so that
it may be saved, loaded and continued by torch (on a GPU with the step counts there, as under fused=True).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast import backend
from grokfast.optim.history import settle
from grokfast.optim.inner import is_watched
from grokfast.optim.passes import Passes
from grokfast.optim.settings import Setting
from grokfast.optim.slots import NAMELESS, RULES, Work, group_rows
from grokfast.transforms.one_pass import filter_in, pass_of
from grokfast.transforms.rows import FILTER_ONLY


def step(optimizer: torch.optim.Optimizer, settings: Sequence[Setting], passes: Passes, *, capturable: bool) -> bool:
    """Take the step and return True, or return False, nothing changed, where the one pass does not apply.

    `settings` has one for each group; where filters differ in more than α and λ it does not apply. A group without one,
    or with λ = 0, is left to the inner optimizer itself, bit for bit.
    """
    rule = RULES.get(type(optimizer))
    if rule is None or is_watched(optimizer):
        return False
    for group, setting in zip(optimizer.param_groups, settings):
        if setting.filter is None or group.get("amsgrad") or group.get("differentiable") or not _can_read(group):
            return False
    return _run(rule, optimizer, settings, passes, capturable) is not None


def filtered(
    optimizer: torch.optim.Optimizer, settings: Sequence[Setting], passes: Passes, *, capturable: bool
) -> list[Tensor] | None:
    """The filtered gradients of `work_of(...)` in one pass, the histories advanced; None, nothing changed, where it
    cannot be. The next call may write to their memory, unless they are kept.
    """
    return _run(FILTER_ONLY, optimizer, settings, passes, capturable)


def _run(
    rule: int, optimizer: torch.optim.Optimizer, settings: Sequence[Setting], passes: Passes, capturable: bool
) -> list[Tensor] | None:
    """One pass; None, nothing changed, where it does not apply."""
    groups, states = optimizer.param_groups, optimizer.state
    known = []
    for setting in settings:
        takes = pass_of(setting.filter)
        if setting.is_idle or setting.off or (takes is None and setting.filter is not None):
            return None
        if rule == FILTER_ONLY and setting.filter is not None and setting.filter.as_filter is None:
            return None  # what a projection or penalty reads are the weights
        known.append(takes)
    filters = [filter_in(setting.filter) for setting in settings]
    params, grads, counts = [], [], []
    for group, setting in zip(groups, settings):
        own = [p for p in group["params"] if p.grad is not None] if setting.filter is not None else []
        params += own
        grads += [p.grad for p in own]
        counts += [len(own), bool(group.get("momentum"))]
    if not params:
        return []
    if len(set(map(id, params))) < len(params):
        return None  # torch only warns of a parameter listed twice; here its elements would be a race's
    kinds = {
        (takes, filter.common if filter else None, None if filter is setting.filter else setting.filter)
        for takes, filter, setting in zip(known, filters, settings)
        if takes is not None
    }
    if len(kinds) > 1:
        return None
    engine = backend.current(), backend.extension()
    key = (rule, capturable, engine, *kinds, *counts, *map(id, params))
    made = passes.again(key, params, grads, states)
    if made is None:
        work = work_of(optimizer, settings)
        settle(((w.filter, w.param) for w in work), states, capturable=capturable)
        made = passes.make(key, rule, work, states, capturable, all_names(optimizer))
        if made is None:
            return None
    hyper = group_rows(rule, optimizer, filters)
    outs = passes.run(made, params, grads, states, hyper, _overrides(groups, settings))
    if rule != FILTER_ONLY:
        torch.autograd.graph.increment_version(params)
    return outs


def work_of(optimizer: torch.optim.Optimizer, settings: Sequence[Setting]) -> list[Work]:
    """Every parameter with a gradient whose group has a filter."""
    return [
        Work(row, group, p, setting.filter, name)
        for row, (group, setting) in enumerate(zip(optimizer.param_groups, settings))
        if setting.filter is not None
        for p, name in zip(group["params"], names_of(group))
        if p.grad is not None
    ]


def all_names(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """`names_of` all groups."""
    return tuple(name for group in optimizer.param_groups for name in names_of(group))


def names_of(group: dict[str, Any]) -> list[str]:
    """Of each parameter of a group its name, where torch was given `named_parameters()`."""
    return group.get("param_names") or [NAMELESS] * len(group["params"])


def _can_read(group: dict[str, Any]) -> bool:
    """A kernel reads a learning rate from the device as one fp32 number there; what is on the CPU is passed on."""
    if any(isinstance(beta, Tensor) and not beta.is_cpu for beta in group.get("betas", ())):
        return False
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
