"""A curve as the sum of patterns that are learned one after the other (Davies et al. 2023, arXiv 2303.06173)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from grokfast.analysis.descents import finite_numbers

STARTS = 6  # moments that patterns may begin their fit from


@dataclass(frozen=True, kw_only=True)
class Patterns:
    """Σ signs[i] · gamma[i] / (1 + exp(−alpha[i] (t − b[i]))), by ascending b.

    gamma: how much a pattern explains in the end, b: when it is half learned, in the units of t, alpha: how fast.
    r2: the share of the curve's variance that the sum explains.
    """

    signs: tuple[int, ...]
    gamma: tuple[float, ...]
    alpha: tuple[float, ...]
    b: tuple[float, ...]
    r2: float

    def __call__(self, t: Any) -> np.ndarray:
        """The sum at t [K]."""
        waves = _learned(np.asarray(t, dtype=np.float64), np.array(self.alpha), np.array(self.b))
        return waves @ (np.array(self.signs) * np.array(self.gamma))


def fit_patterns(t: Any, score: Any, *, signs: Sequence[int] = (1,)) -> Patterns:
    """Fit a sum of patterns to the scores [K], an accuracy for one, at t [K], steps or their logarithms.

    signs: of each pattern 1, one that helps, or -1, one that harms, such as fitting noise: grokking is a late pattern
    that helps, double descent one that harms between two that help. gamma is from 0 to 1, b within t. Least squares,
    from several beginnings.

    Raises TypeError or ValueError where an argument has the wrong type or shape, is not finite, t does not ascend, the
    score is constant, or there are no more points than parameters.
    """
    from scipy.optimize import least_squares

    at, y = finite_numbers("t", t), finite_numbers("score", score)
    n = len(signs)
    if not 1 <= n <= STARTS or any(sign not in (1, -1) for sign in signs):
        raise ValueError(f"signs must be 1 or -1 for each of 1 to {STARTS} patterns, got {signs!r}")
    if at.ndim != 1 or at.shape != y.shape or len(at) <= 3 * n:
        raise ValueError(f"t and score must be [K], K above {3 * n}, got {at.shape} and {y.shape}")
    if (np.diff(at) <= 0).any() or np.ptp(y) == 0:
        raise ValueError("t must ascend, and score must not be constant")
    order, span = np.array(signs), at[-1] - at[0]
    x = (at - at[0]) / span

    def rest(free: np.ndarray) -> np.ndarray:
        gamma, b, speed = free.reshape(3, n)
        return np.asarray(_learned(x, np.exp(speed), b) @ (order * gamma) - y)

    bounds = np.repeat([[0, 1], [0, 1], [0, 8]], n, axis=0).T  # moments and logarithms of speeds: of the span as one
    begins = (
        np.array([*[0.5] * n, *moments, *[3.0] * n]) for moments in combinations(np.linspace(0.1, 0.9, STARTS), n)
    )
    best = min((least_squares(rest, begin, bounds=bounds) for begin in begins), key=lambda fit: float(fit.cost)).x
    gamma, b, speed = best.reshape(3, n)
    ascending = b.argsort(kind="stable")
    return Patterns(
        signs=tuple(order[ascending].tolist()),
        gamma=tuple(gamma[ascending].tolist()),
        alpha=tuple((np.exp(speed) / span)[ascending].tolist()),
        b=tuple((at[0] + span * b)[ascending].tolist()),
        r2=float(1 - np.square(rest(best)).sum() / np.square(y - y.mean()).sum()),
    )


def _learned(t: np.ndarray, alpha: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far each pattern is learned, [K, patterns]."""
    from scipy.special import expit

    return np.asarray(expit(alpha * (t[:, None] - b)))
