"""The one check that has to read a tensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor


def check_indices(name: str, value: Tensor, size: int) -> None:
    """Raise IndexError naming `name` unless `value` lies in [0, size); a GPU, which would have to wait, is spared."""
    if torch.compiler.is_compiling():
        return
    while is_functorch_wrapped_tensor(value):  # in torch.func.vmap
        value = get_unwrapped(value)
    if type(value) is Tensor and value.is_cpu and value.numel():
        low, high = (int(edge) for edge in value.aminmax())
        if low < 0 or high >= size:
            raise IndexError(f"{name} must be in [0, {size}), got {low if low < 0 else high}")
