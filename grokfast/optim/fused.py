"""Filter and optimizer step in one pass over memory, for AdamW, Adam, SGD and Lion: where that applies, it is taken.

On CPU fp32 tensors by the C++ extension, on a GPU by one launch for all tensors of a dtype. Nine memory streams instead
of the optimizer's seven and the filter's five. `p.grad` stays raw; the inner optimizer's state keeps torch's format, so
that it may be saved, loaded and continued by torch (on a GPU with the step counts there, as under fused=True).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grokfast import backend
from grokfast.filters import MA
from grokfast.optim.device_step import DeviceSteps, Histories, Step
from grokfast.optim.settings import Setting
from grokfast.optim.slots import FILTER_ONLY, FILTERS, RULES, Work, entry, fits, group_rows, slots_of


def step(
    optimizer: torch.optim.Optimizer,
    settings: Sequence[Setting],
    histories: Histories,
    device_steps: DeviceSteps,
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
        if setting.filter is None or _has_no_lamb(setting):
            return False
        if group.get("amsgrad") or group.get("differentiable") or not _can_read_lr(group):
            return False
    work = work_of(optimizer, settings)
    steps = _steps(rule, work, settings, optimizer.state, histories, device_steps, capturable)
    if steps is None:
        return False
    hyper = group_rows(optimizer, [setting.filter for setting in settings])
    overrides = _overrides(optimizer.param_groups, settings)
    for take in steps:
        take(hyper, overrides)
    torch.autograd.graph.increment_version([w.param for w in work])
    return True


def filtered(
    optimizer: torch.optim.Optimizer,
    work: Sequence[Work],
    settings: Sequence[Setting],
    histories: Histories,
    device_steps: DeviceSteps,
    *,
    capturable: bool,
) -> list[Tensor] | None:
    """The filtered gradients of `work` in one pass, the histories advanced; None, nothing changed, where it cannot be.

    They may lie where the last call's lay.
    """
    if any(_has_no_lamb(setting) for setting in settings):
        return None
    steps = _steps(FILTER_ONLY, work, settings, {}, histories, device_steps, capturable)
    if steps is None or len(steps) != 1:
        return None
    hyper = group_rows(optimizer, [setting.filter for setting in settings])
    return steps[0](hyper, _overrides(optimizer.param_groups, settings))


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


def _steps(
    rule: int,
    work: Sequence[Work],
    settings: Sequence[Setting],
    states: Any,
    histories: Histories,
    device_steps: DeviceSteps,
    capturable: bool,
) -> list[Step] | None:
    """A function per device that takes its part of the step, or None where one of them has no kernel that fits."""
    by_device: dict[torch.device, list[Work]] = {}
    for w in work:
        by_device.setdefault(w.param.device, []).append(w)
    steps: list[Step] = []
    for device, part in by_device.items():
        if backend.device_kernels(device) is not None:
            found = device_steps.find(rule, part, states, histories, capturable=capturable)
        elif device.type == "cpu" and not capturable and backend.extension() is not None:
            found = _cpu_step(rule, part, states, histories)
        else:
            found = None
        if found is None:
            return None
        steps.append(found)
    return steps


def _cpu_step(rule: int, work: Sequence[Work], states: Any, histories: Histories) -> Step | None:
    for w in work:
        if not fits(rule, w, states.get(w.param), histories.get(w.param), (torch.float32,)):
            return None
    return partial(_take_cpu_step, rule, work, states, histories)


def _take_cpu_step(
    rule: int, work: Sequence[Work], states: Any, histories: Histories, hyper: array[float], _: Sequence[Tensor | None]
) -> list[Tensor]:
    filter, entries = work[0].filter, array("q")
    outs = [torch.empty_like(w.param) for w in work] if rule == FILTER_ONLY else []
    for i, w in enumerate(work):
        entries.extend(entry(w, slots_of(rule, w, states, histories), outs[i] if outs else None))
    is_bf16 = isinstance(filter, MA) and filter.ring == "bfloat16"
    module, threads = backend.load_extension(), torch.get_num_threads()
    module.update(rule, FILTERS[type(filter)], entries, hyper, 0, threads, ring_type=int(is_bf16))
    return outs


def _has_no_lamb(setting: Setting) -> bool:
    """Whether the filtered gradient is the raw one, to the bit."""
    return setting.filter is not None and setting.filter.lamb == 0 and "lamb" not in setting.tensors


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
