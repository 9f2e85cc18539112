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


def test_what_has_no_maximum_ends_where_doubles_do():
    assert checks.integer("n", 2**53 - 1, minimum=0) == 2**53 - 1
    with pytest.raises(ValueError, match=r"^n must be at most 9007199254740991, got 9007199254740992$"):
        checks.integer("n", 2**53, minimum=0)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_of_more_digits_than_python_writes_is_refused_by_name(sign):
    number = sign * 10**5000
    for check in (lambda: checks.integer("n", number, minimum=0), lambda: checks.real("n", number)):
        with pytest.raises(ValueError, match=r"^n must be .*, got about 10\^5000$"):
            check()
    with pytest.raises(ValueError, match=r"^n must be one of 'a', got about 10\^5000$"):
        checks.choice("n", number, ["a"])


class Unspeakable:
    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    "make", [lambda: np.array(["mse", "hinge"]), Unspeakable, lambda: "x\n" * 10**6, lambda: [0] * 10**5]
)
def test_a_value_that_is_odd_or_long_is_said_in_a_line(make):
    value = make()
    for check in (checks.text, lambda name, value: checks.choice(name, value, ["mse", "hinge"])):
        with pytest.raises((TypeError, ValueError), match=r"^loss must ") as raised:
            check("loss", value)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 300


@pytest.mark.parametrize("value", ["", "a\nb", "\x1b[31m", "a\u202eb", "x" * 201])
def test_text_is_short_and_printable(value):
    assert checks.text("name", "ĝ = λ·x") == "ĝ = λ·x"
    with pytest.raises(ValueError, match=r"^name must have 1 to 200 printable characters, got "):
        checks.text("name", value)
