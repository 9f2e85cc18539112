"""Sums and lengths of a tensor of each model, in an order that no other model and no thread changes."""

from __future__ import annotations

import torch
from torch import Tensor

PART = 4096  # numbers that are summed at a time; torch shares no longer sum among threads


def norm(x: Tensor) -> Tensor:
    """[E, 1], the length of x [E, n] of each model."""
    whole = x.shape[1] // PART * PART
    if not whole:
        return torch.linalg.vector_norm(x, dim=1, keepdim=True)
    found = norm(torch.linalg.vector_norm(x[:, :whole].unflatten(1, (-1, PART)), dim=2))
    return found if whole == x.shape[1] else found.hypot(torch.linalg.vector_norm(x[:, whole:], dim=1, keepdim=True))


def total(x: Tensor) -> Tensor:
    """[E, 1], the sum of x [E, n] of each model."""
    whole = x.shape[1] // PART * PART
    if not whole:
        return x.sum(1, keepdim=True)
    found = total(x[:, :whole].unflatten(1, (-1, PART)).sum(2))
    return found if whole == x.shape[1] else found + x[:, whole:].sum(1, keepdim=True)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """[E, 1], the inner product of a and b [E, n] of each model."""
    return total(a * b)
