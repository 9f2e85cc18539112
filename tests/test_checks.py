import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from grokfast import checks


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integer_returns_a_plain_int(value):
    assert type(checks.integer("n", value, minimum=1, maximum=3)) is int


@pytest.mark.parametrize("value", [True, 3.0, "3", None, np.bool_(True), torch.tensor(3)])
def test_integer_refuses_other_types_by_name(value):
    with pytest.raises(TypeError, match=r"^n must be an integer, got .*\("):
        checks.integer("n", value, minimum=1)


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        (0, {"minimum": 1}, "n must be at least 1, got 0"),
        (4, {"minimum": 1, "maximum": 3}, "n must be between 1 and 3, got 4"),
    ],
)
def test_integer_says_what_is_accepted(value, limits, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        checks.integer("n", value, **limits)


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), np.int64(1), Fraction(1, 2)])
def test_real_returns_a_plain_float(value):
    assert type(checks.real("x", value, minimum=0.0, maximum=1.0)) is float


@pytest.mark.parametrize("value", [True, "0.5", None, 1j, Decimal("0.5"), torch.tensor(0.5)])
def test_real_refuses_other_types_by_name(value):
    with pytest.raises(TypeError, match=r"^x must be a number, got .*\("):
        checks.real("x", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, -(10**400)])
def test_real_refuses_what_is_not_finite(value):
    with pytest.raises(ValueError, match=r"^x must be in \(-inf, inf\), got "):
        checks.real("x", value)


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "interval"),
    [
        ({"minimum": 0, "maximum": 1}, [0, 1], [-1e-9, 1 + 1e-9], r"\[0, 1\]"),
        ({"minimum": 0, "maximum": 1, "open_minimum": True}, [1e-9, 1], [0], r"\(0, 1\]"),
        ({"minimum": 0, "maximum": 1, "open_maximum": True}, [0, 0.999], [1], r"\[0, 1\)"),
        ({"minimum": 0, "open_minimum": True}, [1e300], [0, math.inf], r"\(0, inf\)"),
    ],
)
def test_real_keeps_to_the_interval_and_says_it(limits, inside, outside, interval):
    assert [checks.real("x", value, **limits) for value in inside] == inside
    for value in outside:
        with pytest.raises(ValueError, match=f"^x must be in {interval}, got "):
            checks.real("x", value, **limits)


def test_boolean_takes_only_bools():
    assert checks.boolean("flag", False) is False
    for value in (0, 1, "yes", None, np.bool_(True)):
        with pytest.raises(TypeError, match=r"^flag must be True or False, got "):
            checks.boolean("flag", value)


def test_choice_names_the_nearest():
    assert checks.choice("loss", "mse", ["mse", "hinge"]) == "mse"
    with pytest.raises(
        ValueError, match=r"^loss must be one of 'mse', 'hinge', got 'hing' \(did you mean 'hinge'\?\)$"
    ):
        checks.choice("loss", "hing", ["mse", "hinge"])


@pytest.mark.parametrize("value", ["zzz", 3, None, ["mse"]])
def test_choice_suggests_nothing_where_nothing_is_near(value):
    with pytest.raises(ValueError, match="'hinge', got ") as raised:
        checks.choice("loss", value, ["mse", "hinge"])
    assert "mean" not in str(raised.value) or value == ["mse"]
