"""What is to be known of an inner optimizer: its keys, how it takes a closure, when its step only makes its state."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grokfast.optim.history import is_dense
from grokfast.optim.saved import all_params


def theirs(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The group keys that are the inner optimizer's own."""
    return getattr(optimizer, "defaults", {})


def evaluate(closure: Callable[[], Any] | None) -> Any:
    """The closure's loss."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def takes_closure(optimizer: torch.optim.Optimizer) -> bool:
    try:
        parameters = inspect.signature(type(optimizer).step).parameters.values()
    except (TypeError, ValueError):  # a builtin, say
        return True
    return any("closure" in p.name or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def is_watched(optimizer: torch.optim.Optimizer) -> bool:
    """Whether somebody hooked or patched the inner step (a scheduler made from it, say): then it has to be called."""
    hooks = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return "step" in vars(optimizer) or any(getattr(optimizer, name, None) for name in hooks)


def take_step(inner: torch.optim.Optimizer, closure: Callable[[], Any] | None, *args: Any, **options: Any) -> Any:
    """The inner step, without the hooks on every optimizer's step, which see the wrapper's."""
    own = type(inner).step
    loss = None
    if closure is not None and not takes_closure(inner):
        closure, loss = None, evaluate(closure)
    given = () if closure is None and not args else (closure, *args)
    if is_watched(inner) or not getattr(own, "hooked", False):
        result = inner.step(*given, **options)
    else:
        result = own.__wrapped__(inner, *given, **options)  # type: ignore[attr-defined]
    return result if loss is None else loss


def is_to_make_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether every lr and every gradient is zero."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return False
    for group in optimizer.param_groups:
        lr = group.get("lr", 0)
        if (isinstance(lr, Tensor) and not lr.is_cpu) or lr != 0:
            return False
    grads = [p.grad for p in all_params(optimizer) if p.grad is not None]
    return not any(not is_dense(grad) or grad.count_nonzero() for grad in grads)
