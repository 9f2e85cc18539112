"""Values of a grid as they are written down."""

import pytest

from grokfast.store.words import written


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (None, "none"),
        (float("nan"), "none"),
        (True, "true"),
        (3, "3"),
        (1.0, "1"),
        (0.1, "0.1"),
        (1e-9, "1e-09"),
        ([0.9, 0.98], "(0.9,0.98)"),
        ("mse", "mse"),
        ({"kind": "EMA", "alpha": 0.98, "lamb": 2.0}, "ema"),
        ({"kind": "EMA", "alpha": 0.5, "lamb": 1.0}, "ema alpha=0.5 lamb=1"),
        ({"kind": "MA", "window_size": 100, "warmup": False}, "ma warmup=false"),
    ],
)
def test_each_kind_of_value(value, word):
    assert written([value]) == [word]


def test_what_the_base_has_is_not_said_nor_what_is_left_out():
    base = {"kind": "EMA", "alpha": 0.9, "lamb": 2.0}
    values = [None, base, {**base, "lamb": 1.0}, {**base, "alpha": 0.98}]
    assert written(values, base) == ["none", "ema", "ema lamb=1", "ema alpha=0.98"]
    assert written(values, base, ["lamb"]) == ["none", "ema", "ema", "ema alpha=0.98"]


def test_of_other_parts_it_is_what_is_not_as_in_the_first():
    values = [{"kind": "PairMLPConfig", "width": 10, "depth": depth} for depth in (1, 2)]
    assert written(values) == ["pair_mlp", "pair_mlp depth=2"]
