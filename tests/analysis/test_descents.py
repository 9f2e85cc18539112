"""Double descent in curves that have it by theory, and none in those that have not."""

import math

import numpy as np
import pytest
import torch

from grokfast.analysis import double_descent, effective_model_complexity
from grokfast.reproductions.davies2023 import flow, smallest_norm_error
from grokfast.tasks import RandomFeaturesTask, TwoScaleTask

pytestmark = pytest.mark.filterwarnings("error")

X = np.arange(1, 41)


def bump(first=1.0, peak=3.0, last=0.5):
    """Falls to `first` at 10, rises to `peak` at 20, falls to `last` at 40, along lines."""
    return np.interp(X, [1, 10, 20, 40], [first + 1, first, peak, last])


def seeds(curve, n=5, noise=0.05, seed=0):
    return curve + noise * np.random.default_rng(seed).standard_normal((n, len(curve)))


def test_the_three_points_of_a_clean_curve():
    found = double_descent(X, bump())
    assert (found.x_first, found.x_peak, found.x_second) == (10, 20, 40)
    assert (found.first, found.peak, found.second, found.prominence) == (1, 3, 0.5, 2)
    assert found.found
    assert str(found) == "double descent: 1 at 10, 3 at 20 (p = 0), 0.5 at 40 (below the first: p = 0); 1 seed"


def test_over_seeds_each_descent_has_its_significance():
    found = double_descent(X, seeds(bump()))
    assert found.found
    assert max(found.p_first, found.p_peak, found.p_second) < 1e-3
    assert abs(found.x_peak - 20) <= 1
    assert found.seeds == 5
    wild = double_descent(X, seeds(bump(), n=3, noise=20))
    assert not wild.found


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize(
    ("curve", "verdict"),
    [
        (2 / X, "no peak"), (0.01 * X**1.0, "no peak"), (np.full(40, 0.5), "no peak"),
        ((X / 10 - 2) ** 2, "no peak"),  # falls and rises, to the end
        (bump(last=1.3), "no second descent"),
    ],
)  # fmt: skip
def test_what_is_no_double_descent_is_said(curve, verdict, n):
    assert double_descent(X, curve).verdict == verdict
    noisy = seeds(curve, n=n, noise=0.02)
    of_noisy = double_descent(X, noisy).verdict
    assert of_noisy == verdict or (n == 2 and of_noisy == "no peak")  # a t-test of two seeds sees little
    assert not double_descent(X, noisy, window=5).found


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_noise_alone_is_seldom_taken_for_it(n):
    """At a level of .05, both tests passed: of 200 flat or falling curves at most 4."""
    wrong = 0
    for seed in range(100):
        for curve in (np.zeros(40), -0.01 * X):
            wrong += double_descent(X, seeds(curve, n=n, noise=1.0, seed=seed)).found
    assert wrong <= 4


def test_a_window_takes_noise_out():
    noisy = seeds(bump(last=0.2), n=1, noise=0.2)[0]
    assert not double_descent(X, noisy).found
    assert double_descent(X, noisy, window=5).found
    wide = double_descent(X, bump(), window=3)
    assert wide.peak == pytest.approx((bump()[18] + bump()[19] + bump()[20]) / 3)


def test_steps_of_regression_on_two_scales():
    """Measured for 20 seeds: 2.64 at .5, 5.07 at 31, .69 at 1,400."""
    times = np.geomspace(0.03, 3000, 40)
    errors = torch.stack([flow(TwoScaleTask().build(seed=seed), times.tolist()) for seed in range(5)])
    found = double_descent(times, errors)
    assert found.found
    assert max(found.p_first, found.p_peak, found.p_second) < 0.01
    assert 0.2 < found.x_first < 1.5
    assert 10 < found.x_peak < 90
    assert found.x_second > 600
    assert double_descent(times, errors[0]).found  # one seed: the flow is smooth


@pytest.mark.parametrize(("noise", "verdict"), [(0.1, "double descent"), (0.2, "no second descent")])
def test_width_of_random_features(noise, verdict):
    """Measured: .124, .834, .098 at widths 100, 300, 6,000; with noise .2 the last stays above the first."""
    pytest.importorskip("sklearn.datasets", reason="needs scikit-learn: pip install 'grokfast[data]'")
    widths = [20, 50, 100, 200, 300, 500, 1200, 4000]
    errors = [
        [smallest_norm_error(RandomFeaturesTask(width=w, label_noise=noise).build(seed=seed)) for w in widths]
        for seed in range(3)
    ]
    found = double_descent(widths, errors)
    assert found.verdict == verdict
    assert found.x_peak == 300
    assert found.x_first in (50, 100)
    assert found.p_peak < 0.01
    assert (found.second < found.first) == found.found


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1, 2], [1, 2]), ValueError, r"x must be \[K\] and test_error \[K\] or \[seeds, K\]"),
        (([1, 2, 3], [1, 2]), ValueError, r"got \(3,\) and \(2,\)"),
        (([1, 3, 2], [1, 2, 3]), ValueError, "x must ascend"),
        (([1, 2, 3], [1, math.nan, 3]), ValueError, "test_error must be finite"),
        (([1, 2, 3], ["a", 2, 3]), TypeError, "test_error must be numbers"),
    ],
)
def test_bad_curves_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        double_descent(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"window": 2}, "window must be odd"), ({"window": 41}, "window must be between"),
     ({"significance": 0}, "significance must be in")],
)  # fmt: skip
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        double_descent(X, bump(), **options)


def test_effective_model_complexity_is_the_most_rows_that_are_fitted():
    n = [50, 100, 200, 400]
    assert effective_model_complexity(n, [0, 0.005, 0.02, 0.3]) == 100
    assert effective_model_complexity(n, [[0, 0, 0.01, 0.3], [0, 0, 0.03, 0.3]], epsilon=0.02) == 200  # their mean
    assert effective_model_complexity(n, [0, 0, 0, 0]) == 400
    assert effective_model_complexity(n, [0.1, 0.2, 0.3, 0.4]) is None


def test_a_ridgeless_regression_fits_as_many_rows_as_it_has_features():
    draws = np.random.default_rng(0)
    n, width = [10, 20, 30, 40, 50], 30
    errors = []
    for rows in n:
        x, y = draws.standard_normal((rows, width)), draws.standard_normal(rows)
        errors.append(np.square(x @ np.linalg.lstsq(x, y, rcond=None)[0] - y).mean())
    assert effective_model_complexity(n, errors, epsilon=1e-9) == width


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [0.1]), r"n must be \[K\] and train_error \[K\] or \[seeds, K\]"),
        (([2, 1], [0.1, 0.2]), "n must ascend"),
        (([1, 2], [0.1, math.nan]), "train_error must be finite"),
    ],
)
def test_bad_input_of_the_complexity_is_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        effective_model_complexity(*arguments)
