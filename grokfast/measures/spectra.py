"""Spectra of weights over the operands of modular arithmetic: frequencies, phases, and how pure they are.

A vector w[j], j = 0..p-1, has frequencies k = 1..(p-1)/2: k and p - k are one, 0 is its mean. For an even p the
frequency p/2, which has no phase, is left out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from grokfast import checks


def spectrum(w: Tensor) -> Tensor:
    """|ŵ_k| at k = 1..(p-1)/2, ŵ the discrete Fourier transform of the last axis: w [..., p] -> [..., (p-1)/2].

    As here in all of this module: TypeError where w is no tensor of real floating-point numbers, ValueError where p is
    below 3. Half precisions are transformed in fp32.
    """
    return _transform(w)[..., 1:].abs()


def dominant_frequency(w: Tensor) -> Tensor:
    """The k of the largest |ŵ_k|, int64: w [..., p] -> [...]."""
    return spectrum(w).argmax(-1) + 1


def phase(w: Tensor, k: Tensor | int) -> Tensor:
    """φ in (-π, π] of A cos(2πkj/p - φ), A > 0, as w has it at frequency k: φ = -arg ŵ_k. w [..., p] -> [...].

    k: 1 to (p-1)/2; or int64, one each [...]. Raises ValueError where an integer is outside, IndexError where a
    tensor's is.
    """
    found = _transform(w)
    if not isinstance(k, Tensor):
        return -found[..., checks.integer("k", k, minimum=1, maximum=found.shape[-1] - 1)].angle()
    if k.dtype != torch.int64 or k.shape != w.shape[:-1]:
        raise ValueError(f"k must be int64 {list(w.shape[:-1])}, one for each w, got {k.dtype} {list(k.shape)}")
    return -found[..., 1:].gather(-1, (k - 1)[..., None])[..., 0].angle()


def periodicity(w: Tensor) -> Tensor:
    """max_k |ŵ_k| / mean_k |ŵ_k|: w [..., p] -> [...]. NaN of a constant.

    A cosine scores (p-1)/2, its sign only 15.8 at p = 97: it is no measure of squareness.
    """
    found = spectrum(w)
    return found.amax(-1) / found.mean(-1)


def inverse_participation_ratio(w: Tensor) -> Tensor:
    """Σ_k (|ŵ_k| / ‖ŵ‖₂)⁴: w [..., p] -> [...], from 2/(p-1), all frequencies alike, to 1, one frequency.

    Gromov 2023, arXiv 2301.02679. NaN of a constant.
    """
    powers = spectrum(w).square()
    return powers.square().sum(-1) / powers.sum(-1).square()


def gini(x: Tensor) -> Tensor:
    """Gini coefficient of |x|, x [..., n] -> [...]: 0 where all are alike, 1 - 1/n where all but one are 0.

    Σ_i (2i - n - 1) |x|_(i) / (n Σ_i |x|_i), i = 1..n by size (Hurley and Rickard 2009, arXiv 0811.4706). NaN of zeros.
    """
    _check("x", x, 1)
    sizes, n = x.abs().sort(-1).values, x.shape[-1]
    ranks = 2 * torch.arange(1, n + 1, device=x.device, dtype=x.dtype) - n - 1
    return (sizes * ranks).sum(-1) / (n * sizes.sum(-1))


def squareness(w: Tensor, *, tolerance: float = 0.2) -> Tensor:
    """Share of the entries that are a square wave's, w [..., p] -> [...]: 1 of sign∘cos, about .3 of a cosine.

    The wave is sign∘cos at w's dominant frequency and phase, times the median of |w|. An entry is the wave's within
    `tolerance` of that magnitude; within a step, 2π/p, of a change of sign any that is no larger is.
    """
    k = dominant_frequency(w)
    checks.real("tolerance", tolerance, minimum=0)
    p, phi = w.shape[-1], phase(w, k)[..., None]
    turns = k[..., None] * torch.arange(p, device=w.device) % p
    wave = torch.cos(turns.to(phi.dtype) * (2 * math.pi / p) - phi)
    level = w.abs().median(-1, keepdim=True).values
    on = (w - level * wave.sign()).abs() <= tolerance * level
    between = (wave.abs() <= math.sin(2 * math.pi / p)) & (w.abs() <= (1 + tolerance) * level)
    return (on | between).to(phi.dtype).mean(-1)


class PhaseSum(NamedTuple):
    """See `phase_sum`. r [...]; differences, structured, frequency [..., N]."""

    r: Tensor
    differences: Tensor
    structured: Tensor
    frequency: Tensor


def phase_sum(w_a: Tensor, w_b: Tensor, w_out: Tensor, *, threshold: float = 4.0) -> PhaseSum:
    """Whether φ_out = φ_a + φ_b in the neurons of a network of pairs (Swaroop 2026, arXiv 2603.23784).

    w_a, w_b, w_out [..., N, p]: what N neurons read of both operands, and write to the answers. A neuron is structured
    if its three vectors have the same dominant frequency, and periodicities of at least `threshold`, which is more than
    noise has (2 to 3.5 at p = 97).
    r: circular correlation of φ_out with φ_a + φ_b over the structured neurons (Fisher and Lee 1983), which is ±1 where
    their difference, or sum, is constant; NaN of fewer than two. differences: φ_out - φ_a - φ_b in (-π, π], NaN of
    neurons that are not structured. frequency: w_a's.

    Raises TypeError or ValueError where one is no such tensor, or their shapes differ.
    """
    vectors = {"w_a": w_a, "w_b": w_b, "w_out": w_out}
    for name, w in vectors.items():
        _check(name, w, 3)
        if w.ndim < 2 or w.shape != w_a.shape:
            raise ValueError(f"{name} must be [..., N, p] as w_a is, got {list(w.shape)} and {list(w_a.shape)}")
    least = checks.real("threshold", threshold, minimum=0)
    frequency = dominant_frequency(w_a)
    structured = torch.ones_like(frequency, dtype=torch.bool)
    for w in vectors.values():
        structured &= (dominant_frequency(w) == frequency) & (periodicity(w) >= least)
    phases = [phase(w, frequency) for w in vectors.values()]
    total, out = phases[0] + phases[1], phases[2]
    differences = torch.where(structured, _turned(out - total), torch.nan)
    return PhaseSum(_correlation(total, out, structured), differences, structured, frequency)


def _correlation(x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
    """Σ_ij sin(x_i - x_j) sin(y_i - y_j) / √(Σ_ij sin²(x_i - x_j) Σ_ij sin²(y_i - y_j)) over what counts, made of sums
    over i alone: [..., N] -> [...]."""
    n = counts.sum(-1)

    def length(angles: Tensor) -> Tensor:  # |Σ_i e^(i angle)|²
        return (angles.cos() * counts).sum(-1).square() + (angles.sin() * counts).sum(-1).square()

    own = (n * n - length(2 * x)) * (n * n - length(2 * y))
    r = (length(x - y) - length(x + y)) / own.clamp(min=0).sqrt()
    return torch.where(n > 1, r, torch.nan)


def _turned(angle: Tensor) -> Tensor:
    """The same angle in (-π, π]."""
    return math.pi - torch.remainder(math.pi - angle, 2 * math.pi)


def _transform(w: Tensor) -> Tensor:
    """ŵ_k, complex, at k = 0..(p-1)/2."""
    w = _check("w", w, 3)
    return torch.fft.rfft(w)[..., : (w.shape[-1] + 1) // 2]


def _check(name: str, w: Tensor, least: int) -> Tensor:
    """w [..., at least so many], half precisions as fp32."""
    if not isinstance(w, Tensor) or not w.is_floating_point():
        got = w.dtype if isinstance(w, Tensor) else type(w).__name__
        raise TypeError(f"{name} must be a tensor of floating-point numbers, got {got}")
    if w.ndim == 0 or w.shape[-1] < least:
        raise ValueError(f"{name} must have a last axis of at least {least}, got {list(w.shape)}")
    return w.float() if w.dtype in (torch.float16, torch.bfloat16) else w
