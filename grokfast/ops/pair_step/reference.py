"""Loss, right answers and gradient of PairMLPs of one hidden layer in plain PyTorch, any float precision and device."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from grokfast.ops.dispatch import product
from grokfast.ops.pair_embed.reference import ACTIVATIONS


class Parameters(NamedTuple):
    """w_a and w_b [E, p, H], b_in [E, H] or None, weight [E, V, H], bias [E, V] or None; or their gradients."""

    w_a: Tensor
    w_b: Tensor
    b_in: Tensor | None
    weight: Tensor
    bias: Tensor | None


def slope(z: Tensor, activation: str) -> Tensor:
    """The derivative of ACTIVATIONS[activation]; 0 at the corner of relu and abs, as torch has it."""
    if activation == "relu":
        return (z > 0).to(z.dtype)
    if activation == "square":
        return 2 * z
    if activation == "abs":
        return z.sign()
    return 0.5 * (1 + torch.erf(z * math.sqrt(0.5))) + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def hidden(weights: Parameters, pairs: Tensor) -> Tensor:
    """The hidden layer before its activation, [E, N, H]: pairs int64 [E, N, 2]."""
    models = torch.arange(len(pairs), device=pairs.device)[:, None]
    z = weights.w_a[models, pairs[..., 0]] + weights.w_b[models, pairs[..., 1]]
    return z if weights.b_in is None else z + weights.b_in[:, None]


def forward(
    weights: Parameters, pairs: Tensor, target: Tensor, exists: Tensor, activation: str, loss: str, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [E], right answers [E], and the gradient of the logits [E, N, V]; means over the rows that exist [E, N]."""
    h = ACTIVATIONS[activation](hidden(weights, pairs))
    logits = product(h, weights.weight.mT, precision)
    if weights.bias is not None:
        logits = logits + weights.bias[:, None]
    classes = torch.arange(logits.shape[-1], device=logits.device)
    one_hot = (target[..., None] == classes).to(logits.dtype)
    share = exists.to(logits.dtype) / exists.sum(1, keepdim=True).clamp(min=1)  # [E, N]
    if loss == "mse":
        error = logits - one_hot
        values = error.square().mean(-1)
        grad = error * (2 / len(classes)) * share[..., None]
    else:
        log_softmax = logits.log_softmax(-1)
        values = -log_softmax.gather(-1, target[..., None])[..., 0]
        grad = (log_softmax.exp() - one_hot) * share[..., None]
    right = (logits.argmax(-1) == target) & exists
    zero = torch.zeros((), dtype=logits.dtype, device=logits.device)
    return torch.where(exists, values * share, zero).sum(1), right.sum(1), torch.where(exists[..., None], grad, zero)


def backward(weights: Parameters, pairs: Tensor, grad_logits: Tensor, activation: str, precision: str) -> Parameters:
    """The gradients of the weights from that of the logits [E, N, V]."""
    z = hidden(weights, pairs)
    grad_z = product(grad_logits, weights.weight, precision) * slope(z, activation)
    tokens = torch.arange(weights.w_a.shape[1], device=pairs.device)[:, None]
    # a product with one-hot rows adds in one order; a scatter on a GPU does not
    of_a, of_b = ((pairs[:, None, :, i] == tokens).to(z.dtype) @ grad_z for i in (0, 1))
    return Parameters(
        of_a,
        of_b,
        None if weights.b_in is None else grad_z.sum(1),
        product(grad_logits.mT, ACTIVATIONS[activation](z), precision),
        None if weights.bias is None else grad_logits.sum(1),
    )
