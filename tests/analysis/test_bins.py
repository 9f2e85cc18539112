import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grokfast.analysis.bins import in_bins


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=50, unique=True).filter(lambda v: max(v) > 1.5 * min(v)))
def test_every_value_is_within_half_a_bin_of_its_middle(values):
    middles = np.array(in_bins("lr", values, 8))
    is_log = max(values) > 10 * min(values)
    x, m = (np.log(values), np.log(middles)) if is_log else (np.array(values), middles)
    rounding = 0.006 if is_log else 0.006 * max(values)
    assert (np.abs(x - m) <= np.ptp(x) / 16 + rounding).all()
    assert len(set(middles)) <= 8


def test_the_ends_are_in_the_first_and_the_last_bin():
    assert in_bins("x", [0.0, 0.24, 0.26, 1.0], 4) == [0.125, 0.125, 0.375, 0.875]
    assert in_bins("x", [1e-4, 1.0], 2) == [0.001, 0.1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", 1], "not all numbers"),
        ([None, 1], "not all numbers"),
        ([True, False], "not all numbers"),
        ([1.0, 1.00001], "too close together for 2 bins"),
    ],
)
def test_what_has_no_bins_is_refused(values, message):
    with pytest.raises(ValueError, match=f"column 'lr' has .*{message}"):
        in_bins("lr", values, 2)
