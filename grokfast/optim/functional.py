"""The two functions of the original Grokfast (Lee et al. 2024), with its signatures and semantics.

loss.backward()
grads = grokfast.gradfilter_ema(model, grads=grads, alpha=0.98, lamb=2.0)
optimizer.step()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from grokfast import checks
from grokfast.optim.history import EMA_KEY, require_dense, require_state
from grokfast.optim.reference import filter_gradient
from grokfast.transforms.filters import EMA, MA, Filter


def gradfilter_ema(
    m: nn.Module, grads: dict[str, Tensor] | None = None, alpha: float = 0.98, lamb: float = 2.0
) -> dict[str, Tensor]:
    """Replace every `p.grad` of `m` by ĝ = g + λ e, where e is the moving average of the raw gradients (algorithm 2).

    `grads` is what the last call returned (None at first): parameter name → e. It may be saved and loaded. Parameters
    without a gradient are passed over, ones that get their first gradient later join then. Values are copied, so
    `zero_grad` of either kind does not touch the history.
    Raises ValueError or TypeError for a bad alpha, lamb, grads or sparse gradient, before anything is changed.
    """
    filter = EMA(alpha=alpha, lamb=lamb)
    grads = {} if grads is None else grads
    for name, grad in _gradients(m, grads, filter, state_of=lambda ema: {EMA_KEY: ema}).items():
        state = {EMA_KEY: grads[name]} if name in grads else {}
        grad.copy_(filter_gradient(filter, grad, state))
        grads[name] = state[EMA_KEY]
    return grads


def gradfilter_ma(
    m: nn.Module,
    grads: dict[str, dict[str, Tensor]] | None = None,
    window_size: int = 100,
    lamb: float = 5.0,
    filter_type: str = "mean",
    warmup: bool = True,
    trigger: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """Replace every `p.grad` of `m` by ĝ = g + λ·(mean or sum of the last `window_size` raw gradients) (algorithm 1).

    The filter acts when `not warmup` or (the window is full and not `trigger`). `grads` is what the last call returned
    (None at first): parameter name → ring, running sum and count; the cost does not grow with the window.
    Parameters without a gradient are passed over, ones that get their first gradient later start their own window.
    Raises ValueError or TypeError for bad arguments or a sparse gradient, before anything is changed.
    """
    filter = MA(window_size, lamb, filter_type, warmup)  # type: ignore[arg-type]
    checks.boolean("trigger", trigger)
    grads = {} if grads is None else grads
    for name, grad in _gradients(m, grads, filter, state_of=lambda state: state).items():
        grad.copy_(filter_gradient(filter, grad, grads.setdefault(name, {}), trigger=trigger))
    return grads


def _gradients(
    m: nn.Module, grads: dict[str, Any], filter: Filter, state_of: Callable[[Any], Any]
) -> dict[str, Tensor]:
    """The gradients to filter, by parameter name, checked before the first is touched."""
    if not isinstance(m, nn.Module):
        raise TypeError(f"m must be a torch.nn.Module, got {type(m).__name__}")
    if not isinstance(grads, dict):
        raise TypeError(f"grads must be what the last call returned or None, got {type(grads).__name__}")
    found = {n: p.grad.detach() for n, p in m.named_parameters() if p.requires_grad and p.grad is not None}
    for name, grad in found.items():
        require_dense(grad)
        if name in grads:
            require_state(f"grads[{name!r}]", state_of(grads[name]), filter, grad.shape)
    return found
