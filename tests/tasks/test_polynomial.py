"""Polynomials in words: the values of Python's integers, and nothing is evaluated."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grokfast.tasks import ModularTask
from grokfast.tasks.polynomial import HIGHEST, value, written

A, B = (t.reshape(-1) for t in torch.meshgrid(torch.arange(13), torch.arange(13), indexing="ij"))

NUMBERS = st.integers(0, 10**30).map(str)
TREES = st.recursive(
    NUMBERS | st.sampled_from(["a", "b"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
        inner.map(lambda t: f"(-{t})"),
        st.tuples(inner, st.integers(0, 9)).map(lambda t: f"({t[0]})^{t[1]}"),
    ),
    max_leaves=8,
)


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(TREES, st.sampled_from([2, 7, 12, 97]))
def test_values_are_those_of_integers(text, p):
    expected = [eval(text.replace("^", "**"), {"a": a, "b": b}) % p for a, b in zip(A.tolist(), B.tolist())]
    assert value(text, [A, B], p).tolist() == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [("a + b", "add"), ("a**2 + a*b + b**2", "a2+ab+b2"), ("a^3 + a*b^2 + b", "a3+ab2+b"), ("a*b", "mul")],
)
def test_a_named_operation_in_words_has_the_same_table(text, named):
    spelled, known = ModularTask(operation=text, p=11), ModularTask(operation=named, p=11)
    assert all(
        torch.equal(one, other) for one, other in zip(spelled.tables()[spelled.operation], known.tables()[named])
    )
    assert spelled.operation == written(text) == text.replace(" ", "").replace("**", "^")


def test_large_powers_and_moduli():
    a = torch.tensor([8191 - 1, 8191 - 2, 5])
    assert value(f"a^{HIGHEST}", [a, a], 8191).tolist() == [pow(x, HIGHEST, 8191) for x in a.tolist()]
    assert value("a^0", [torch.zeros(1, dtype=torch.int64), a[:1]], 7).tolist() == [1]


@pytest.mark.parametrize(
    "text",
    [
        "a / b", "a % b", "c + a", "f(a)", "__import__('os')", "a.real", "a[0]", "a if b else 1", "lambda: a", "a == b",
        "1.5*a", "True*a", "a^-1", "a^b", f"a^{HIGHEST + 1}", "'a'", "a b", "", "a +", "(a", "a := 3", "~a", "a @ b",
        "(" * 90 + "a" + ")" * 90 + "+" * 100, "a" * 201, "-" * 150 + "a^", "{a}", "[a]", "a,", "a, (b", ",",
    ],
)  # fmt: skip
def test_what_is_no_polynomial_is_refused(text):
    with pytest.raises((ValueError, TypeError), match="operation must"):
        ModularTask(operation=text, p=7)


def test_a_misspelled_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"operation must be one of 'add', .* or a polynomial .*did you mean 'sub'"):
        ModularTask(operation="subb")
