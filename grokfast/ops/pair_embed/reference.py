"""act(w_a[a] + w_b[b] + bias) in plain PyTorch, any float precision and device."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "relu": F.relu,
    "square": torch.square,
    "gelu": F.gelu,
    "abs": torch.abs,
}


def pair_embed(w_a: Tensor, w_b: Tensor, pairs: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """w_a [E, A, H], w_b [E, B, H], pairs [E, N, 2], bias [E, H] -> [E, N, H]."""
    a, b = pairs.unbind(-1)
    if w_a.is_cpu:  # one by one: the gradient of w_a[models, a] is summed by several threads there, in any order
        z = torch.stack([F.embedding(*ia) + F.embedding(*ib) for ia, ib in zip(zip(a, w_a), zip(b, w_b))])
    else:
        models = torch.arange(len(w_a), device=w_a.device)[:, None]
        z = w_a[models, a] + w_b[models, b]
    return ACTIVATIONS[activation](z if bias is None else z + bias[:, None])
