"""The local learning coefficient, by Langevin dynamics."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from grokfast import checks
from grokfast.seeds import generator


class LearningCoefficient(NamedTuple):
    """value: λ̂, the mean over chains. chains [C]: of each. losses [C, draws]: how far a chain's loss was above the
    start's, in order: where it still climbs, there were too few draws."""

    value: float
    chains: Tensor
    losses: Tensor


def learning_coefficient(
    loss: Callable[[Tensor, int], Tensor],
    start: Tensor,
    *,
    epsilon: float = 3e-3,
    n_beta: float = 2.0,
    gamma: float = 5.0,
    draws: int = 500,
    chains: int = 4,
    burn_in: int = 0,
    seed: int = 0,
) -> LearningCoefficient:
    """λ̂ = nβ (E[L(w)] − L(w*)) for w by SGLD around w* (Lau et al. 2023, arXiv 2308.12108, as in devinterp):

    w ← w − ε/2 (nβ ∇L(w) + γ (w − w*)) + N(0, ε)

    Of L = ½ Σ w_i^(p_i) at 0, with γ = 0 and ε → 0, it is Σ 1/p_i for every nβ.

    loss: of parameters [n, P] and the number of a step, which says what batch, [n]; w* is among the n, so that both
    losses are of the same batch. start: w*, [P]. draws: how many are averaged, after burn_in others; chains: C, which
    go at once. What is not finite is a chain that diverged: epsilon is too large.
    Raises TypeError or ValueError where an argument has the wrong type or is out of range.
    """
    checks.real("epsilon", epsilon, minimum=0, open_minimum=True)
    checks.real("n_beta", n_beta, minimum=0, open_minimum=True)
    checks.real("gamma", gamma, minimum=0)
    for name, value, minimum in (("draws", draws, 1), ("chains", chains, 1), ("burn_in", burn_in, 0)):
        checks.integer(name, value, minimum=minimum)
    if not isinstance(start, Tensor) or not start.is_floating_point() or start.ndim != 1:
        raise TypeError(f"start must be a floating-point tensor [P], got {checks.shown(start)}")
    noise = generator(seed, "sgld")
    start = start.detach()
    w, losses = start.repeat(chains, 1), []
    for step in range(burn_in + draws):
        w.requires_grad_()
        with torch.enable_grad():
            values = loss(torch.cat([w, start[None]]), step)
            (gradient,) = torch.autograd.grad(values[:-1].sum(), w)
        losses.append((values[:-1] - values[-1]).detach().double())
        drawn = torch.randn(w.shape, generator=noise, dtype=w.dtype).to(w.device)
        w = w.detach() - epsilon / 2 * (n_beta * gradient + gamma * (w.detach() - start)) + epsilon**0.5 * drawn
    kept = torch.stack(losses[burn_in:], 1)
    of_chains = n_beta * kept.mean(1)
    return LearningCoefficient(of_chains.mean().item(), of_chains, kept)
