"""Sizes: of weights, of what a matrix spans, of logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from grokfast import checks


def weight_norms(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The Euclidean norm of each parameter [E, ...] by its name, float64 [E], and last "all", that of all together.

    Raises TypeError where `weights` is no mapping of tensors, ValueError where there are none, one is called "all", or
    leading axes differ.
    """
    if not isinstance(weights, Mapping) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise TypeError(f"weights must be tensors [E, ...] by name, got {type(weights).__name__}")
    models = {w.shape[:1] for w in weights.values()}
    if len(models) != 1 or not all(models) or "all" in weights:
        shapes = {name: [*w.shape] for name, w in weights.items()}
        raise ValueError(f"weights must be parameters [E, ...] of one E, none of them named 'all', got {shapes}")
    norms = {name: w.detach().double().flatten(1).norm(dim=1) for name, w in weights.items()}
    return {**norms, "all": torch.stack([*norms.values()]).norm(dim=0)}


def effective_rank(matrix: Tensor) -> Tensor:
    """exp(−Σ q_i log q_i) of singular values σ, q_i = σ_i / Σ σ (Roy and Vetterli 2007): [..., M, N] -> float64 [...].

    Between 1 and min(M, N): r where r singular values are equal and the others 0; NaN where all are 0.
    Raises TypeError or ValueError where it is no floating-point tensor of two axes or more, or one of them is empty.
    """
    _check("matrix", matrix, "[..., M, N]")
    singular = torch.linalg.svdvals(matrix.detach().double())
    shares = singular / singular.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


def logit_scale(logits: Tensor) -> Tensor:
    """√mean (l_c − mean_c l)²: logits [..., N, C] -> float64 [...], over rows and classes.

    The part of the logits that softmax sees, as one number: of s · l it is s times as large, and a constant added to a
    row is nothing. Its inverse is a temperature (arXiv 2606.18465).
    Raises TypeError or ValueError where it is no floating-point tensor of two axes or more, or one of them is empty.
    """
    _check("logits", logits, "[..., N, C]")
    logits = logits.detach().double()
    return (logits - logits.mean(-1, keepdim=True)).square().mean((-2, -1)).sqrt()


def _check(name: str, t: Tensor, shape: str) -> None:
    if not isinstance(t, Tensor) or not t.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor {shape}, got {getattr(t, 'dtype', checks.shown(t))}")
    if t.ndim < 2 or 0 in t.shape[-2:]:
        raise ValueError(f"{name} must be {shape}, none of the last two empty, got {[*t.shape]}")
