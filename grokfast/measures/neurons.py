"""Which frequency a neuron's activations over all pairs of operands have."""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 64  # neurons transformed together


def frequency_of_neurons(activations: Tensor) -> tuple[Tensor, Tensor]:
    """The frequency k that has most of a neuron's energy, int64 [..., N], and the share that it has, fp64 [..., N].

    activations [..., p, p, N] over a and b; less their mean over all pairs. A frequency's block of the two-dimensional
    DFT is what depends on 2πka/p and 2πkb/p: constant, cosine and sine of a times those of b, without the constant
    (Nanda et al. 2023, arXiv 2301.05217). The share is NaN of a neuron that is constant.

    Raises TypeError or ValueError where it is no floating-point tensor [..., p, p, N] with p of 3 at least.
    """
    if not isinstance(activations, Tensor) or not activations.is_floating_point():
        said = getattr(activations, "dtype", type(activations).__name__)
        raise TypeError(f"activations must be a floating-point tensor [..., p, p, N], got {said}")
    shape = activations.shape
    if activations.ndim < 3 or shape[-3] != shape[-2] or shape[-2] < 3:
        raise ValueError(f"activations must be [..., p, p, N] with p of 3 at least, got {[*shape]}")
    p = shape[-2]
    k = torch.arange(1, (p + 1) // 2, device=activations.device)
    found = []
    for some in activations.split(PIECE, -1):
        energy = torch.fft.fft2(some.double(), dim=(-3, -2)).abs().square()
        energy[..., 0, 0, :] = 0
        blocks = energy[..., 0, k, :] + energy[..., 0, p - k, :] + energy[..., k, 0, :] + energy[..., p - k, 0, :]
        for i, j in ((k, k), (k, p - k), (p - k, k), (p - k, p - k)):
            blocks = blocks + energy[..., i, j, :]
        largest, which = blocks.max(-2)
        total = energy.sum((-3, -2))
        rounding = torch.finfo(activations.dtype).eps * p * p * some.abs().amax((-3, -2)).double()
        found.append((which + 1, torch.where(total > rounding.square(), largest / total, torch.nan)))
    frequency, share = zip(*found)
    return torch.cat(frequency, -1), torch.cat(share, -1)
