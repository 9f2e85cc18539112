"""How circular embeddings of numbers are."""

from __future__ import annotations

import torch
from torch import Tensor

N_COMPONENTS = 4


def circularity(embeddings: Tensor) -> Tensor:
    """The share of the strongest frequency in a principal component, mean over the first four (Zhong et al. 2023,
    arXiv 2306.17844): embeddings [..., n, d] of 0..n-1 -> float64 [...], 1 where all are circles.

    Of a component x [n], with X its DFT: max over k in 1..n/2 of 2 |X_k|² / (n Σ x²), half of that at k = n/2.
    Embeddings are centred; components that are nothing but rounding are left out, and NaN is said where all are.
    Raises TypeError or ValueError where it is no floating-point tensor with n of 3 and d of 1 at least.
    """
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        said = getattr(embeddings, "dtype", type(embeddings).__name__)
        raise TypeError(f"embeddings must be a floating-point tensor [..., n, d], got {said}")
    if embeddings.ndim < 2 or embeddings.shape[-2] < 3 or embeddings.shape[-1] < 1:
        raise ValueError(f"embeddings must be [..., n, d] with n >= 3 and d >= 1, got {[*embeddings.shape]}")
    n, d = embeddings.shape[-2:]
    x = embeddings.detach().double()
    u, s, _ = torch.linalg.svd(x - x.mean(-2, keepdim=True), full_matrices=False)
    u, s = u[..., :N_COMPONENTS], s[..., :N_COMPONENTS]
    energies = torch.fft.rfft(u, dim=-2).abs().square()[..., 1:, :] * 2 / n  # Σ x² is 1
    if n % 2 == 0:
        energies[..., -1, :] /= 2
    smallest = x.abs().amax((-2, -1)) * max(n, d) * torch.finfo(embeddings.dtype).eps
    there = s > smallest[..., None]
    return energies.amax(-2).where(there, 0).sum(-1) / there.sum(-1)
