"""Idealised networks: the weights of a network of pairs as pure waves (Swaroop 2026, arXiv 2603.23784)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from grokfast import checks
from grokfast.measures.spectra import dominant_frequency, phase

WAVES = ("cos", "square")
OUTPUT_PHASES = ("measured", "sum")


class Waves(NamedTuple):
    """Of N neurons [..., N]: the frequency, int64, and the phases of what they read of a and of b, and of what they
    write."""

    frequency: Tensor
    phase_a: Tensor
    phase_b: Tensor
    phase_out: Tensor


def measured_waves(w_a: Tensor, w_b: Tensor, w_out: Tensor, *, output_phase: str = "measured") -> Waves:
    """The waves of neurons w_a, w_b, w_out [..., N, p]: ν is w_a's dominant frequency, each phase -arg of the transform
    of that neuron's own vector at ν; with output_phase "sum" φ_out is φ_a + φ_b instead.

    "sum" is a control, not a measurement: it is what makes a network right, whatever w_a and w_b are.
    """
    checks.choice("output_phase", output_phase, OUTPUT_PHASES)
    frequency = dominant_frequency(w_a)
    a, b = phase(w_a, frequency), phase(w_b, frequency)
    return Waves(frequency, a, b, a + b if output_phase == "sum" else phase(w_out, frequency))


def idealized_weights(waves: Waves, p: int, *, input_wave: str, output_wave: str) -> tuple[Tensor, Tensor, Tensor]:
    """w_a, w_b, w_out [..., N, p] of unit amplitude in the phases' precision: f(2πνj/p - φ_a), f(2πνj/p - φ_b) and
    g(2πνj/p - φ_out), f and g by name: "cos" or "square", sign∘cos.

    Raises ValueError for another wave.
    """
    checks.choice("input_wave", input_wave, WAVES)
    checks.choice("output_wave", output_wave, WAVES)
    phases = waves.phase_a
    turns = waves.frequency[..., None] * torch.arange(p, device=phases.device) % p  # exact: νj is up to p²
    angles = turns.to(phases.dtype) * (2 * math.pi / p)

    def wave(name: str, phi: Tensor) -> Tensor:
        found = torch.cos(angles - phi[..., None])
        return found if name == "cos" else found.sign()

    return wave(input_wave, phases), wave(input_wave, waves.phase_b), wave(output_wave, waves.phase_out)
