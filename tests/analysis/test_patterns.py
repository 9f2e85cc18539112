"""Sums of patterns: what was put together is found again."""

import math

import numpy as np
import pytest

from grokfast.analysis import fit_patterns

pytestmark = pytest.mark.filterwarnings("error")

T = np.arange(0.0, 300.0, 3.0)


def pattern(gamma, alpha, b):
    return gamma / (1 + np.exp(-alpha * (T - b)))


def test_one_late_pattern_is_grokking():
    found = fit_patterns(T, pattern(1.0, 0.05, 200))
    assert (found.gamma[0], found.alpha[0], found.b[0]) == pytest.approx((1, 0.05, 200), rel=1e-3)
    assert found.r2 == pytest.approx(1)
    np.testing.assert_allclose(found(T), pattern(1.0, 0.05, 200), atol=1e-3)


def test_one_that_harms_between_two_that_help_is_double_descent():
    score = pattern(0.7, 0.15, 30) - pattern(0.4, 0.15, 80) + pattern(0.6, 0.05, 200)
    noisy = score + 0.005 * np.random.default_rng(0).standard_normal(len(T))
    found = fit_patterns(T, noisy, signs=(1, -1, 1))
    assert found.signs == (1, -1, 1)
    assert found.b == pytest.approx((30, 80, 200), rel=0.05)
    assert found.gamma == pytest.approx((0.7, 0.4, 0.6), rel=0.15)
    assert found.r2 > 0.99
    assert fit_patterns(T, noisy, signs=(1, 1)).r2 < 0.9


def test_noise_is_not_explained():
    assert fit_patterns(T, np.random.default_rng(0).standard_normal(len(T))).r2 < 0.2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1, 2, 3, 4], [1, 2, 3]), ValueError, r"t and score must be \[K\], K above 3, got \(4,\) and \(3,\)"),
        (([1, 2, 3], [1, 2, 3]), ValueError, "K above 3"),
        (([1, 2, 2, 3], [1, 2, 3, 4]), ValueError, "t must ascend"),
        (([1, 2, 3, 4], [1, 1, 1, 1]), ValueError, "score must not be constant"),
        (([1, 2, 3, 4], [1, 2, 3, math.inf]), ValueError, "score must be finite"),
    ],
)
def test_bad_curves_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        fit_patterns(*arguments)


@pytest.mark.parametrize("signs", [(), (1, 0), (1,) * 7])
def test_bad_signs_are_refused(signs):
    with pytest.raises(ValueError, match="signs must be 1 or -1 for each of 1 to 6 patterns"):
        fit_patterns(T, pattern(1.0, 0.05, 200), signs=signs)
