"""Matrices of E models, those of one shape as one stack, and what is done to their singular values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor


def stacks(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Of each shape the matrices [E, n, m] that have it, as views of the tensors [E, n, ...], and a copy of them,
    [E, K, n, m]."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for name in names:
        own = tensors[name].flatten(2)
        by_shape.setdefault(own.shape[1:], []).append(own)
    for several in by_shape.values():
        yield several, torch.stack(several, 1)


def unitary(x: Tensor, eps: Tensor) -> Tensor:
    """U diag(s/max(s, eps)) Vᵀ of matrices x = U diag(s) Vᵀ [E, K, n, m], eps [E, 1, 1, 1].

    U, of the smaller side, is that of x xᵀ, in float64: its eigenvalues are s², and in float32 those of s below 1e-3 of
    the largest would be rounding. The s are the lengths of Uᵀx's rows.
    """
    if x.shape[-2] > x.shape[-1]:
        return unitary(x.mT, eps).mT
    exact = x.double()
    u = torch.linalg.eigh(exact @ exact.mT).eigenvectors
    rows = u.mT @ exact  # diag(s) Vᵀ
    s = rows.square().sum(-1, keepdim=True).sqrt()
    return (u @ (rows / s.maximum(eps))).to(x)
