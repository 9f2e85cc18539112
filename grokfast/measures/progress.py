"""What logits have of each frequency of a ± b mod p, and of each representation of a group's product ab.

A projector P acts on the n² pairs and leaves only functions of the product, so that P L is found from the means of the
logits L over the n pairs of each product, `means` [..., n, C].
"""

from __future__ import annotations

import torch
from torch import Tensor

from grokfast import checks


def by_product(logits: Tensor, products: Tensor, n: int) -> Tensor:
    """Logits by product, then in the order of the rows, less each row's mean, which no softmax sees: [..., n, n, C].

    logits [..., N, C]. products: int64 [N] or [..., N], each of 0..n-1 n times; n of rows that do not count.
    Raises ValueError where the shapes do not fit.
    """
    if logits.ndim < 2 or logits.shape[-2] < n * n:
        raise ValueError(f"logits must be [..., N, C], N at least n² = {n * n}, got {list(logits.shape)}")
    if products.shape not in (logits.shape[-2:-1], logits.shape[:-1]):
        raise ValueError(f"products must be [N] or [..., N] as logits are, got {list(products.shape)}")
    order = products.argsort(dim=-1, stable=True)[..., : n * n, None]
    rows = logits.gather(-2, order.expand(*logits.shape[:-2], n * n, logits.shape[-1]))
    return (rows - rows.mean(-1, keepdim=True)).unflatten(-2, (n, n))


def centred_energy(grouped: Tensor) -> Tensor:
    """‖L‖², fp64, of logits by product [..., n, n, C] less the mean over pairs: [...]."""
    rows = grouped.flatten(-3, -2)
    rows = rows - rows.mean(-2, keepdim=True)
    return torch.linalg.vector_norm(rows, dim=(-2, -1), dtype=torch.float64).square()


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
