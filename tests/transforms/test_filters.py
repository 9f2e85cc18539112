import copy
import dataclasses
import json
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest

from grokfast import EMA, MA
from grokfast.parts import chosen, name_of

FILTERS = [EMA(), EMA(alpha=0.5, lamb=-1), MA(), MA(3, 2.0, "sum", warmup=False)]


def test_defaults_are_the_papers():
    assert (EMA().alpha, EMA().lamb) == (0.98, 2.0)
    assert dataclasses.asdict(MA()) == {
        "window_size": 100, "lamb": 5.0, "filter_type": "mean", "warmup": True, "ring": "full", "start": 0, "stop": None
    }  # fmt: skip


@pytest.mark.parametrize("filter", FILTERS)
def test_a_filter_is_a_frozen_value(filter):
    with pytest.raises(dataclasses.FrozenInstanceError):
        filter.lamb = 1.0
    for twin in (copy.deepcopy(filter), pickle.loads(pickle.dumps(filter)), dataclasses.replace(filter)):
        assert twin == filter
        assert hash(twin) == hash(filter)
    assert len({*FILTERS, filter}) == len(FILTERS)


@pytest.mark.parametrize("filter", FILTERS)
def test_repr_says_it_all(filter):
    assert eval(repr(filter)) == filter


@pytest.mark.parametrize(
    "filter", [EMA(np.float32(0.5), np.int64(2)), EMA(Fraction(1, 2), 2), MA(np.int64(3), Fraction(5))]
)
def test_plain_numbers_are_kept_whatever_was_given(filter):
    assert json.loads(json.dumps(dataclasses.asdict(filter))) == dataclasses.asdict(filter)
    assert {type(value) for value in dataclasses.astuple(filter)} <= {int, float, str, bool, type(None)}


@pytest.mark.parametrize("alpha", [0, 0.0, 1, 1.0])
def test_alpha_may_lie_on_the_edge(alpha):
    assert EMA(alpha=alpha).alpha == alpha


@pytest.mark.parametrize("alpha", [-0.01, 1.01, math.nan, math.inf])
def test_alpha_outside_its_interval_is_refused(alpha):
    with pytest.raises(ValueError, match=rf"^alpha must be in \[0.0, 1.0\], got {alpha}$"):
        EMA(alpha=alpha)


@pytest.mark.parametrize("window_size", [0, -1])
def test_an_empty_window_is_refused(window_size):
    with pytest.raises(ValueError, match=f"^window_size must be at least 1, got {window_size}$"):
        MA(window_size=window_size)


@pytest.mark.parametrize("kind", [EMA, MA])
@pytest.mark.parametrize("lamb", [math.nan, math.inf, -math.inf])
def test_lamb_must_be_finite(kind, lamb):
    with pytest.raises(ValueError, match=r"^lamb must be in \(-inf, inf\), got "):
        kind(lamb=lamb)


def test_a_wrong_filter_type_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"^filter_type must be one of 'mean', 'sum', got 'maen' \(did you mean 'mean'"
    ):
        MA(filter_type="maen")


def test_a_ring_lies_in_one_of_three_places():
    with pytest.raises(ValueError, match=r"^ring must be one of 'full', 'bfloat16', 'host', got 'hots' \(did you"):
        MA(ring="hots")


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (EMA, "alpha", True), (EMA, "alpha", "0.9"), (EMA, "lamb", None), (EMA, "lamb", False),
        (MA, "window_size", True), (MA, "window_size", 3.0), (MA, "lamb", True), (MA, "warmup", 1),
    ],
)  # fmt: skip
def test_a_wrong_type_is_refused_by_name(kind, name, value):
    with pytest.raises(TypeError, match=f"^{name} must be .*, got {value!r} "):
        kind(**{name: value})


@pytest.mark.parametrize("filter", [None, EMA(), MA()])
def test_a_name_is_the_filter_with_its_defaults(filter):
    name = "none" if filter is None else name_of(filter)
    assert chosen("transform", name) == chosen("transform", name.upper()) == chosen("transform", filter) == filter
    assert chosen("transform", {"kind": name}) == filter


def test_what_is_not_said_stays_where_the_kind_does():
    assert chosen("transform", "ema", EMA(0.5, 1.0)) == EMA(0.5, 1.0)
    assert chosen("transform", {"kind": "ema", "lamb": 3}, EMA(0.5, 1.0)) == EMA(0.5, 3.0)
    assert chosen("transform", {"kind": "ma", "lamb": 3}, EMA(0.5, 1.0)) == MA(lamb=3.0)
    assert chosen("transform", "none", EMA()) is None


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ("emma", ValueError, "--filter must be one of 'none', .*'ema', 'ma'.*, got 'emma' .did you mean 'ema'"),
        (0.9, TypeError, "--filter must be a transform, its name or a mapping, got 0.9"),
        ({"alpha": 0.9}, ValueError, "--filter must have a kind, one of .*'ema', 'ma'"),
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
def test_a_bad_choice_is_named(said, error, message):
    with pytest.raises(error, match=message):
        chosen("transform", said, argument="--filter")
