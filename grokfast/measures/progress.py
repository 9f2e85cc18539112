"""What logits have of each frequency of a ± b mod p, and of each representation of a group's product ab.

A projector P acts on the n² pairs and leaves only functions of the product, so that P L is found from the means of the
logits L over the n pairs of each product, `means` [..., n, C].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from grokfast import checks


def order_by_product(products: Tensor, n: int) -> Tensor:
    """The rows by product, in their order: products int64 [..., N], each of 0..n-1 n times, n of rows that do not
    count -> int64 [..., n²]."""
    return products.argsort(dim=-1, stable=True)[..., : n * n]


def product_means(logits: Tensor, order: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Of logits L [..., N, C], less each row's mean, which no softmax sees: the means over the n pairs of each product,
    fp64 [..., n, C], and the energy ‖L‖² less the mean over pairs, too, fp64 [...].

    order: `order_by_product` of all models, [n²], or of each, [..., n²]. Raises ValueError where the shapes do not fit.
    """
    if logits.ndim < 2 or logits.shape[-2] < n * n:
        raise ValueError(f"logits must be [..., N, C], N at least n² = {n * n}, got {list(logits.shape)}")
    if order.shape not in ((n * n,), (*logits.shape[:-2], n * n)):
        raise ValueError(f"order must be [{n * n}] or [..., {n * n}] as logits are, got {list(order.shape)}")
    rows = rows_at(logits, order)
    means = rows.unflatten(-2, (n, n)).mean(-2, dtype=torch.float64)
    means = means - means.mean(-1, keepdim=True)
    energy = torch.linalg.vector_norm(rows, dim=(-2, -1), dtype=torch.float64).square()
    energy -= rows.sum(-1, dtype=torch.float64).square().sum(-1) / rows.shape[-1]
    return means, energy - n * n * means.mean(-2).square().sum(-1)


def rows_at(t: Tensor, index: Tensor) -> Tensor:
    """Rows of t [..., N, C], index int64 [M] or [..., M] -> [..., M, C]; a gather, ten times as fast."""
    *lead, n, c = t.shape
    index = index.expand(*lead, index.shape[-1])
    first = n * torch.arange(math.prod(lead), device=t.device).view(*lead, 1)
    return t.reshape(-1, c).index_select(0, (first + index).flatten()).view(*index.shape, c)


def frequency_energies(means: Tensor) -> Tensor:
    """‖P_k L‖² at k = 1..(p-1)/2 of means [..., p, C]: [..., (p-1)/2].

    P_k = u_k u_kᵀ + v_k v_kᵀ on the pairs (Nanda et al. 2023, arXiv 2301.05217), u_k = (c_k⊗c_k - s_k⊗s_k)/√2 and
    v_k = (s_k⊗c_k + c_k⊗s_k)/√2 with c_k = √(2/p) cos(2πka/p), s_k likewise; of a - b with -s_k for b's.
    """
    p = means.shape[-2]
    found = torch.fft.rfft(means, dim=-2)[..., 1 : (p + 1) // 2, :]
    return 2 * found.abs().square().sum(-1)


def at_frequencies(means: Tensor, chosen: Tensor) -> Tensor:
    """Σ_k P_k L over the chosen k, bool [..., (p-1)/2], as a function of the sum: means [..., p, C] -> [..., p, C]."""
    p = means.shape[-2]
    found = torch.fft.rfft(means, dim=-2)
    kept = torch.zeros(*chosen.shape[:-1], found.shape[-2], dtype=torch.bool, device=means.device)
    kept[..., 1 : (p + 1) // 2] = chosen
    return torch.fft.irfft(torch.where(kept[..., None], found, 0), n=p, dim=-2)


def key_frequencies(shares: Tensor, threshold: float) -> Tensor:
    """Which shares [..., (p-1)/2] of the logits' energy are at least `threshold`, in (0, 1): bool."""
    return shares >= checks.real("threshold", threshold, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
