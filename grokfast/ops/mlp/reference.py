"""One hidden layer and a skip connection in plain PyTorch, any float precision and device."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


def mlp(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    activation: str,
    skip: Tensor | None,
) -> Tensor:
    """x [N, d], w_in [h, d], b_in [h] or None, w_out [o, h], b_out [o] or None, skip [N, o] or None -> [N, o]."""
    y = F.linear(ACTIVATIONS[activation](F.linear(x, w_in, b_in)), w_out, b_out)
    return y if skip is None else y + skip
