"""The one check that has to read a tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def check_indices(name: str, value: Tensor, size: int) -> None:
    """Raise IndexError naming `name` unless `value` lies in [0, size); a GPU, which would have to wait, is spared."""
    if type(value) is Tensor and value.is_cpu and value.numel() and not torch.compiler.is_compiling():
        low, high = (int(edge) for edge in value.aminmax())
        if low < 0 or high >= size:
            raise IndexError(f"{name} must be in [0, {size}), got {low if low < 0 else high}")
