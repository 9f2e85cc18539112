"""Search spaces: what their points are, and in which order."""

import math
import warnings

import pytest
from scipy.stats import qmc

from grokfast.comparison import Among, Log
from grokfast.comparison.space import points

SPACE = {"lr": Log(1e-3, 1e-1), "decay": Log(0.1, 10)}
OWN = {"lr": 0.01, "decay": 1.0, "kind": "b", "other": 3}


def test_the_own_values_come_first_and_then_the_published_ones():
    found = points(SPACE, OWN, 4, given=[{"decay": 0.005}])
    assert found[:2] == [{"lr": 0.01, "decay": 1.0}, {"lr": 0.01, "decay": 0.005}]
    assert all(1e-3 <= point["lr"] <= 1e-1 and 0.1 <= point["decay"] <= 10 for point in found[2:])
    assert points(SPACE, OWN, 1, given=[{"decay": 0.005}]) == found[:1]


def test_published_values_that_are_the_own_are_one_point():
    assert points(SPACE, OWN, 3, given=[{"lr": 0.01}]) == points(SPACE, OWN, 3)


def test_points_are_fixed_by_the_seed_and_more_of_them_begin_with_the_same():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert points(SPACE, OWN, 9, seed=1) == points(SPACE, OWN, 12, seed=1)[:9]
    assert points(SPACE, OWN, 9, seed=1) != points(SPACE, OWN, 9, seed=2)


def test_points_fill_the_space_evenly():
    """In the logarithm, and better than independent draws would: their mean discrepancy is 1 / (2 sqrt(n)) about."""
    found = points(SPACE, OWN, 129)[1:]
    shares = [[math.log10(p["lr"] / 1e-3) / 2, math.log10(p["decay"] / 0.1) / 2] for p in found]
    for axis in range(2):
        halves = sum(share[axis] < 0.5 for share in shares)
        assert abs(halves - 64) <= 1
    assert qmc.discrepancy([[min(max(x, 0), 1) for x in share] for share in shares]) < 1e-3


def test_equal_axes_of_two_spaces_meet_equal_values():
    more = points({**SPACE, "kind": Among("a", "b", "c")}, OWN, 8)
    assert [{"lr": point["lr"], "decay": point["decay"]} for point in more] == points(SPACE, OWN, 8)
    assert {point["kind"] for point in more} == {"a", "b", "c"}


def test_a_relative_axis_lies_around_the_own_value():
    axis = Log(0.2, 5, relative=True).around(1e-3)
    assert axis == Log(2e-4, 5e-3)
    assert axis.around(7.0) == axis
    assert (axis.at(0.0), axis.at(0.5), str(axis)) == (2e-4, 1e-3, "0.0002 to 0.005, log")
    assert str(Among(1, 2)) == "1 or 2"


def test_a_space_of_few_values_is_used_up_and_no_further():
    space = {"other": Among(1, 2, 3)}
    assert sorted(point["other"] for point in points(space, OWN, 3)) == [1, 2, 3]
    with pytest.raises(ValueError, match="space has 3 different points, 4 are wanted"):
        points(space, OWN, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Log(0, 1), r"Log.low must be in \(0, inf\), got 0"),
        (lambda: Log(2, 1), "Log.high must be above Log.low, 2, got 1"),
        (lambda: Log(0.5, 2, relative=True).around(0.0), r"own must be in \(0, inf\), got 0"),
        (lambda: Among(1), "two or more different values"),
        (lambda: Among(1, 1), "two or more different values"),
        (lambda: points(SPACE, OWN, 0), "n must be at least 1, got 0"),
        (lambda: points({}, OWN, 1), "space must have 1 to 8 axes, got 0"),
    ],
)
def test_what_is_no_space_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
