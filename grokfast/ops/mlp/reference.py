"""skip + act(x W_inᵀ + b_in) W_outᵀ + b_out in plain PyTorch, any float precision and device."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from grokfast.ops.dispatch import product

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "squared_relu": lambda z: F.relu(z).square(),
    "square": torch.square,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
}


def mlp(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    activation: str,
    skip: Tensor | None,
    precision: str,
) -> Tensor:
    """x [..., d], w_in [h, d], w_out [o, h] -> [..., o]; of an ensemble x [E, N, d], weights [E, ...] -> [E, N, o]."""
    y = _linear(ACTIVATIONS[activation](_linear(x, w_in, b_in, precision)), w_out, b_out, precision)
    return y if skip is None else skip + y


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str) -> Tensor:
    if bias is None or (precision == "bf16" and x.dtype == torch.float32):
        y = product(x, weight.mT, precision)
        return y if bias is None else y + bias.unsqueeze(-2)
    return F.linear(x, weight, bias) if weight.ndim == 2 else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
