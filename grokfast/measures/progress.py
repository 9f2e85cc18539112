"""What logits have of each frequency of a ± b mod p, and of each representation of a group's product ab.

Logits of all pairs are [..., n², C] in (a, b) order. A projector P acts on the pairs and leaves only functions of the
product: P L is found from the means of L over the n pairs of each product, `means` [..., n, C].
"""

from __future__ import annotations

import torch
from torch import Tensor

from grokfast import checks


def product_means(logits: Tensor, products: Tensor) -> Tensor:
    """Means over the pairs of each product, fp64, of logits less each row's mean, which no softmax sees: [..., n, C].

    logits [..., n², C]. products: int64 [n²] or [..., n²], each of 0..n-1 n times. Sums are in the order of the pairs,
    the same bits on every call. Raises ValueError where the shapes do not fit.
    """
    n = round(logits.shape[-2] ** 0.5) if logits.ndim > 1 else 0
    if n == 0 or n * n != logits.shape[-2]:
        raise ValueError(f"logits must be [..., n², C], got {list(logits.shape)}")
    if products.shape not in (logits.shape[-2:-1], logits.shape[:-1]):
        raise ValueError(f"products must be [n²] or [..., n²] as logits are, got {list(products.shape)}")
    order = products.argsort(dim=-1, stable=True).expand(logits.shape[:-1])
    by_product = logits.gather(-2, order[..., None].expand(logits.shape)).unflatten(-2, (n, n))
    means = by_product.mean(-2, dtype=torch.float64)
    return means - means.mean(-1, keepdim=True)


def centred_energy(logits: Tensor) -> Tensor:
    """Σ L², fp64, of logits [..., N, C] less each row's mean, and less the mean over rows: [...]."""
    rows = logits - logits.mean(-1, keepdim=True)
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
