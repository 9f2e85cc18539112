"""Layer normalisation in plain PyTorch, any float precision and device."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x [..., d], weight [d], bias [d] -> [..., d]; of an ensemble x [E, ..., d], weight [E, d], bias [E, d]."""
    if weight.ndim == 1:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    shape = (len(x), *[1] * (x.ndim - 2), x.shape[-1])  # [E, 1, ..., 1, d]
    return F.layer_norm(x, x.shape[-1:], eps=eps) * weight.view(shape) + bias.view(shape)
