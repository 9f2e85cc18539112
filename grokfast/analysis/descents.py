"""Whether a test error falls, rises to a peak and falls again, below where it was."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from grokfast import checks


@dataclass(frozen=True, kw_only=True)
class DoubleDescent:
    """A curve's largest peak, the lowest points before and after it, and whether they are more than noise.

    verdict: "double descent"; "no second descent", a peak after which the error stays above the first minimum (or is
    not lower beyond doubt); "no peak". The x and the mean test error of the three points are None where no point
    between others is higher than those beside it. prominence: how far the peak is above the higher of the two minima.

    p_first, p_peak, p_second: one-sided p-values that the error falls from its beginning to the first minimum (NaN
    where it begins there), that it rises from there to the peak and falls after it (the larger of the two), and that
    the second minimum is below the first. seeds: how many curves there were.
    """

    verdict: str
    x_first: float | None
    x_peak: float | None
    x_second: float | None
    first: float | None
    peak: float | None
    second: float | None
    prominence: float
    p_first: float
    p_peak: float
    p_second: float
    seeds: int

    @property
    def found(self) -> bool:
        """Whether it is a double descent."""
        return self.verdict == "double descent"

    def __str__(self) -> str:
        if self.x_peak is None:
            return "no peak: the test error has no maximum between its ends"
        ways = (
            f"{self.first:.3g} at {self.x_first:g}, {self.peak:.3g} at {self.x_peak:g} (p = {self.p_peak:.2g}), "
            f"{self.second:.3g} at {self.x_second:g} (below the first: p = {self.p_second:.2g})"
        )
        return f"{self.verdict}: {ways}; {self.seeds} seed{'s' if self.seeds > 1 else ''}"


def double_descent(x: Any, test_error: Any, *, window: int = 1, significance: float = 0.05) -> DoubleDescent:
    """Double descent of test errors [K] or [seeds, K] (or losses) along x [K]: widths, parameters, steps or rows.

    The peak is the most prominent maximum between the ends of the mean over seeds, the minima the lowest points before
    and after it. That they are found where noise is favourable is taken out of the p-values: the three points of a
    seed are those of the mean of the *other* seeds, and its own differences there go into a paired t-test. Of one seed
    the noise is that of the curve's second differences (their median), and p-values are Bonferroni's for all pairs of
    points; with few points, or a curve bent everywhere, that finds less.

    x: ascending. window: odd; curves are first averaged over so many neighbouring points. significance: below it p_peak
    and p_second both are where it is a double descent.

    Raises TypeError or ValueError where an argument has the wrong type or shape, is not finite, or x does not ascend.
    """
    at, curves = finite_numbers("x", x), finite_numbers("test_error", test_error)
    curves = curves[None] if curves.ndim == 1 else curves
    if at.ndim != 1 or curves.ndim != 2 or len(at) != curves.shape[1] or len(at) < 3 or not len(curves):
        raise ValueError(
            f"x must be [K] and test_error [K] or [seeds, K], K at least 3, got {at.shape} and {np.shape(test_error)}"
        )
    if (np.diff(at) <= 0).any():
        raise ValueError("x must ascend")
    checks.integer("window", window, minimum=1, maximum=len(at))
    if window % 2 == 0:
        raise ValueError(f"window must be odd, got {window}")
    checks.real("significance", significance, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    noise = math.nan if len(curves) > 1 else _roughness(curves[0], window)
    curves = np.stack([_smoothed(curve, window) for curve in curves])
    mean = curves.mean(0)
    points = _points(mean)
    if points is None:
        return DoubleDescent(
            verdict="no peak", x_first=None, x_peak=None, x_second=None, first=None, peak=None, second=None,
            prominence=0.0, p_first=math.nan, p_peak=1.0, p_second=1.0, seeds=len(curves),
        )  # fmt: skip
    first, peak, second = points
    if len(curves) > 1:
        seeds = range(len(curves))
        drops = np.array([_drops(own, _points(np.delete(curves, s, 0).mean(0))) for s, own in zip(seeds, curves)])
        start, rise, fall, below = (_paired(own) for own in drops.T)
    else:
        pairs = len(at) * (len(at) - 1) / 2
        start, rise, fall, below = (_of_noise(own, noise, pairs) for own in _drops(curves[0], points))
    p_peak = max(rise, fall)
    verdict = "no peak" if p_peak >= significance else "no second descent"
    return DoubleDescent(
        verdict="double descent" if verdict == "no second descent" and below < significance else verdict,
        x_first=float(at[first]), x_peak=float(at[peak]), x_second=float(at[second]),
        first=float(mean[first]), peak=float(mean[peak]), second=float(mean[second]),
        prominence=float(mean[peak] - max(mean[first], mean[second])),
        p_first=math.nan if first == 0 else start, p_peak=p_peak, p_second=below, seeds=len(curves),
    )  # fmt: skip


def effective_model_complexity(n: Any, train_error: Any, *, epsilon: float = 0.01) -> float | None:
    """The largest number of training rows that is fitted to a mean training error of at most `epsilon` (Nakkiran et al.
    2019, arXiv 1912.02292, definition 1): double descent has its peak where it equals the number of rows.

    n [K], ascending; train_error [K] or [seeds, K]. None where not even n[0] is fitted; n[-1] says "at least so many".
    Raises TypeError or ValueError where an argument has the wrong type or shape, is not finite, or n does not ascend.
    """
    rows, errors = finite_numbers("n", n), finite_numbers("train_error", train_error)
    if rows.ndim != 1 or not len(rows) or errors.ndim not in (1, 2) or errors.shape[-1] != len(rows) or not errors.size:
        raise ValueError(f"n must be [K] and train_error [K] or [seeds, K], got {rows.shape} and {errors.shape}")
    if (np.diff(rows) <= 0).any():
        raise ValueError("n must ascend")
    checks.real("epsilon", epsilon, minimum=0)
    fitted = np.flatnonzero(errors.reshape(-1, len(rows)).mean(0) <= epsilon)
    return float(rows[fitted[-1]]) if len(fitted) else None


def finite_numbers(name: str, values: Any) -> np.ndarray:
    """As float64. Raises TypeError or ValueError, which name the argument, where they are no finite numbers."""
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be numbers: {error}") from None
    if not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return found


def _points(curve: np.ndarray) -> tuple[int, int, int] | None:
    """Where the first minimum, the most prominent peak and the second minimum are; None: there is no peak."""
    from scipy.signal import find_peaks

    peaks, found = find_peaks(curve, prominence=0)
    if not len(peaks):
        return None
    peak = int(peaks[found["prominences"].argmax()])
    return int(curve[:peak].argmin()), peak, peak + 1 + int(curve[peak + 1 :].argmin())


def _drops(curve: np.ndarray, points: tuple[int, int, int] | None) -> tuple[float, float, float, float]:
    """How far the curve falls to the first minimum, rises to the peak, falls after it, and from minimum to minimum."""
    if points is None:
        return 0.0, 0.0, 0.0, 0.0
    first, peak, second = (float(curve[i]) for i in points)
    return float(curve[0]) - first, peak - first, peak - second, first - second


def _paired(differences: np.ndarray) -> float:
    """The one-sided p-value of a t-test that the mean is above 0."""
    from scipy.stats import ttest_1samp

    if np.ptp(differences) == 0:
        return 0.0 if differences[0] > 0 else 1.0
    return float(ttest_1samp(differences, 0.0, alternative="greater").pvalue)


def _of_noise(difference: float, noise: float, pairs: float) -> float:
    from scipy.stats import norm

    if noise == 0:
        return 0.0 if difference > 0 else 1.0
    return min(1.0, pairs * float(norm.sf(difference / (math.sqrt(2) * noise))))


def _roughness(curve: np.ndarray, window: int) -> float:
    """The standard deviation of a smoothed point, were second differences, of variance 6 σ², noise alone."""
    sizes = np.abs(np.diff(curve, 2))
    return float(np.median(sizes)) / (0.6745 * math.sqrt(6 * window))


def _smoothed(curve: np.ndarray, window: int) -> np.ndarray:
    """Averages over `window` points, over fewer at the ends."""
    ones = np.ones(window)
    return np.convolve(curve, ones, "same") / np.convolve(np.ones(len(curve)), ones, "same")
