"""The update rules and the gradient filters in plain PyTorch, each once; the kernels are held to them.

They are csrc/update_rules.h's. Nothing in them waits for the device, so that a CUDA graph can replay them: what is a
number to one model may be a tensor [E, 1] for E models, whose tensors are [E, P]. All work in place.

References: Kingma & Ba 2015; Loshchilov & Hutter 2019; Chen et al. 2023 (Lion, arXiv 2302.06675, algorithm 2);
Lee et al. 2024 (arXiv 2405.20233, algorithms 1 and 2); torch.optim.
"""

from __future__ import annotations

import torch
from torch import Tensor

Number = float | Tensor

# Every element of a running sum is summed anew once in this many windows, a slice at a step: adding and subtracting
# alone would drift. As csrc/.
RESUM_WINDOWS = 4


def adam(
    p: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, steps: Tensor, *, lr: Tensor, beta1: Tensor,
    beta2: Tensor, eps: Tensor, weight_decay: Tensor, decoupled: bool,
) -> None:  # fmt: skip
    """Adam, weight decay being L2, or AdamW, where it is decoupled. `steps` has this one counted in.

    m ← β₁ m + (1−β₁) g, v ← β₂ v + (1−β₂) g², θ ← θ − lr·(m / (1−β₁ᵗ)) / (√(v / (1−β₂ᵗ)) + eps).
    """
    grad = _decayed(p, grad, lr, weight_decay, decoupled=decoupled)
    exp_avg.lerp_(grad, _weight(beta1, grad))
    exp_avg_sq.mul_(_like(beta2, p)).add_(grad.square() * _weight(beta2, grad))
    root = exp_avg_sq.sqrt() / _like((1 - beta2**steps).sqrt(), p)
    p.sub_(_like(lr / (1 - beta1**steps), p) * exp_avg / (root + _like(eps, p)))


def sgd(
    p: Tensor, grad: Tensor, momentum_buffer: Tensor | None, *, lr: Number, momentum: Number, weight_decay: Number,
    nesterov: bool,
) -> None:  # fmt: skip
    """b ← μ b + g, θ ← θ − lr·b, or lr·(g + μ b) with Nesterov's momentum; without a buffer θ ← θ − lr·g."""
    grad = _decayed(p, grad, lr, weight_decay, decoupled=False)
    if momentum_buffer is not None:
        momentum = _like(momentum, p)
        momentum_buffer.mul_(momentum).add_(grad)
        grad = grad + momentum * momentum_buffer if nesterov else momentum_buffer
    p.sub_(_like(lr, p) * grad)


def lion(
    p: Tensor, grad: Tensor, exp_avg: Tensor, *, lr: Number, beta1: Number, beta2: Number, weight_decay: Number
) -> None:
    """θ ← θ (1 − lr·weight_decay) − lr·sign(β₁ m + (1−β₁) g), then m ← β₂ m + (1−β₂) g."""
    _decayed(p, grad, lr, weight_decay, decoupled=True)
    p.sub_(exp_avg.lerp(grad, _weight(beta1, grad)).sign_().mul_(_like(lr, p)))
    exp_avg.lerp_(grad, _weight(beta2, grad))


def _decayed(p: Tensor, grad: Tensor, lr: Number, weight_decay: Number, *, decoupled: bool) -> Tensor:
    """The gradient with L2's part, or p itself decayed."""
    if not decoupled:
        return grad + _like(weight_decay, p) * p
    p.mul_(_like(1 - lr * weight_decay, p))
    return grad


def _like(number: Number, p: Tensor) -> Number:
    return number.to(p) if isinstance(number, Tensor) else number


def _weight(beta: Number, grad: Tensor) -> Number:
    """1 − β as a weight of `lerp`."""
    return (1 - beta).to(grad).expand_as(grad) if isinstance(beta, Tensor) else 1 - beta


def filter_ema(
    grad: Tensor, ema: Tensor, count: Tensor | None, *, alpha: Number, lamb: Number, enabled: Tensor | None = None
) -> Tensor:
    """ĝ = g + λ e, where e ← g at first, then e ← α e + (1 − α) g. Returns ĝ; ema and count advance.

    `count`, int64, is how many gradients e has seen: 0-dim for one tensor, or [E, 1] for E models.
    None: e holds the first gradient already, and α and λ are numbers. Where `enabled`, of count's shape, is 0 the
    filter is off and forgets: its count is 0, and what its tensors hold means nothing until they are written again.
    """
    weight, raw = 1 - alpha, grad.to(ema.dtype)
    if count is None:
        return _added(grad, raw, ema.lerp_(raw, weight), lamb)
    is_on = _is_on(count, enabled)
    weight = weight.to(raw.dtype) if isinstance(weight, Tensor) else weight
    moved = torch.where(count == 0, raw, torch.lerp(ema, raw, weight))
    ema.copy_(torch.where(is_on, moved, ema))
    return _amplified(grad, raw, ema, _column(lamb, count, raw), count, is_on)


def filter_ma(
    grad: Tensor, ring: Tensor, total: Tensor, count: int | Tensor, *, lamb: Number, window_size: int, is_mean: bool,
    warmup: bool, enabled: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """ĝ = g + λ·(mean or sum of the last `window_size` gradients, this one among them). As `filter_ema`.

    ring [window_size, *shape], or [E, window_size, P], holds them, total their sum. With `warmup` ĝ = g until the
    window is full. A `count` that the host knows is an int, and λ then a number: nothing is looked at on the device.
    """
    raw = grad.to(total.dtype)
    if isinstance(count, int):
        held = min(count + 1, window_size)
        _push_at(ring, total, raw, count, window_size)
        is_waiting = warmup and held < window_size
        return _added(grad, raw, total, 0.0 if is_waiting else lamb / held if is_mean else lamb)
    is_on = _is_on(count, enabled)
    seen = _push(ring, total, raw, count, window_size, is_on)
    weight = _column(lamb, count, raw)
    weight = weight / seen if is_mean else weight
    if warmup:
        weight = torch.where(seen < window_size, 0.0, weight)
    return _amplified(grad, raw, total, weight, count, is_on)


def _is_on(count: Tensor, enabled: Tensor | None) -> Tensor:
    return torch.ones_like(count, dtype=torch.bool) if enabled is None else enabled != 0


def _column(lamb: Number, count: Tensor, raw: Tensor) -> Tensor:
    return lamb if isinstance(lamb, Tensor) else torch.full_like(count, lamb, dtype=raw.dtype)


def _added(grad: Tensor, raw: Tensor, slow: Tensor, lamb: Number) -> Tensor:
    """ĝ = g + λ·slow, a copy of g where λ, a number, is 0."""
    return raw.add(slow, alpha=lamb).to(grad.dtype) if lamb else grad.clone()  # type: ignore[arg-type]


def _amplified(grad: Tensor, raw: Tensor, slow: Tensor, lamb: Tensor, count: Tensor, is_on: Tensor) -> Tensor:
    """The same where λ is a tensor: g itself where it is 0, as `slow` may have overflowed. The gradient is counted."""
    count.copy_(torch.where(is_on, count + 1, 0))
    return torch.where(is_on & (lamb != 0), raw + lamb.to(raw.dtype) * slow, raw).to(grad.dtype)


def _push(ring: Tensor, total: Tensor, raw: Tensor, count: Tensor, window: int, is_on: Tensor) -> Tensor:
    """Put `raw` in the place of the oldest gradient; returns how many the window holds."""
    raw, seen = torch.empty_like(total).copy_(raw), (count + 1).clamp(max=window)
    rows, flat, own, had, is_on = ring, total, raw, count, is_on  # [E, window, P], [E, P] twice, [E, 1] twice
    if count.ndim == 0:  # one tensor is one model
        rows, flat, own = in_memory_order(ring, 1)[None], in_memory_order(total, 0)[None], in_memory_order(raw, 0)[None]
        had, is_on = count.view(1, 1), is_on.view(1, 1)
    n, place = flat.shape[-1], ring.device
    slot = (had % window).to(place)[:, :, None].expand(-1, 1, n)
    before, stored = rows.gather(1, slot)[:, 0], own.to(ring)
    oldest = torch.where(had >= window, before.to(total), 0)  # a slot not yet written since the history began
    now = torch.where(had == 0, 0, flat) - oldest + stored.to(total)
    rows.scatter_(1, slot, torch.where(is_on.to(place), stored, before)[:, None])

    # The slice whose turn it is; beyond the end, the last element again and again, to the same value.
    size = -(-n // (RESUM_WINDOWS * window))
    turn = had % (RESUM_WINDOWS * window)
    index = (turn * size + torch.arange(size, device=count.device)).clamp(max=n - 1)  # [E, size]
    live = torch.arange(window, device=count.device)[:, None] < (had + 1)[:, :, None]
    slices = torch.where(live, rows.gather(2, index.to(place)[:, None].expand(-1, window, -1)).to(total), 0)
    fresh = slices.movedim(1, -1).contiguous().sum(-1)  # along memory: in the same order in any company
    now.scatter_(-1, index, fresh)
    flat.copy_(torch.where(is_on, now, flat))
    return seen


def _push_at(ring: Tensor, total: Tensor, raw: Tensor, count: int, window: int) -> None:
    """`_push` of one tensor whose count is known: slices in the place of gathered elements, O(1) in the window."""
    oldest = ring[count % window]
    total.sub_(oldest.to(total.device))
    oldest.copy_(raw)
    total.add_(oldest.to(total.device) if oldest.dtype != raw.dtype else raw)  # the sum is that of the ring
    period = RESUM_WINDOWS * window
    size = -(-total.numel() // period)
    low = count % period * size
    if low < total.numel():
        rows, flat = in_memory_order(ring, 1), in_memory_order(total, 0)[low : low + size]
        flat.copy_(rows[:, low : low + size].to(total.dtype).sum(0))


def in_memory_order(t: Tensor, axes: int) -> Tensor:
    """`t` with all but its first `axes` axes as one, in the order of its memory, sharing it."""
    return t.as_strided((*t.shape[:axes], t.shape[axes:].numel()), (*t.stride()[:axes], 1))
