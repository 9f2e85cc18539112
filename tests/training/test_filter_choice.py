import pytest

from grokfast import EMA, MA
from grokfast.training.filter_choice import filter_name, filter_of


@pytest.mark.parametrize("filter", [None, EMA(), MA()])
def test_a_name_is_the_filter_with_its_defaults(filter):
    name = filter_name(filter)
    assert filter_of(name) == filter_of(name.upper()) == filter_of(filter) == filter
    assert filter_of({"kind": name}) == filter


def test_what_is_not_said_stays_where_the_kind_does():
    assert filter_of("ema", EMA(0.5, 1.0)) == EMA(0.5, 1.0)
    assert filter_of({"kind": "ema", "lamb": 3}, EMA(0.5, 1.0)) == EMA(0.5, 3.0)
    assert filter_of({"kind": "ma", "lamb": 3}, EMA(0.5, 1.0)) == MA(lamb=3.0)
    assert filter_of("none", EMA()) is None


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ("emma", ValueError, "--filter must be one of 'none', 'ema', 'ma', got 'emma'"),
        (0.9, TypeError, "--filter must be a filter's name, or a table of its kind and fields, got 0.9"),
        ({"alpha": 0.9}, ValueError, "--filter must have a kind, one of 'ema', 'ma'"),
        (
            {"kind": "ema", "window_size": 3},
            ValueError,
            "--filter 'ema' has no field 'window_size', accepted are alpha",
        ),
        ({"kind": "none", "alpha": 0.9}, ValueError, "--filter 'none' has no field 'alpha'"),
        ({"kind": "ema", "alpha": "high"}, TypeError, "--filter: alpha must be a number, got 'high'"),
        ({"kind": "ma", "window_size": 0}, ValueError, "--filter: window_size must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(said, error, message):
    with pytest.raises(error, match=message):
        filter_of(said, name="--filter")
