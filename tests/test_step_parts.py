"""Where a step's time goes: the calls that are named, what is counted of them, and the extension as it was."""

import pytest
import torch

from benchmarks.step_parts import active_forward, mlp_rows, parts_of
from grokfast import backend

pytestmark = pytest.mark.skipif(backend.extension() is None, reason="needs the C++ extension")


@pytest.mark.parametrize(("recipe", "call"), [("quick", "pair_rows"), ("parity", "mlp_rows")])
def test_a_step_is_taken_apart(recipe, call):
    before = backend.load_extension().update
    step, *calls = parts_of(recipe, 2)
    assert backend.load_extension().update is before
    assert step["ratio"] == 1
    assert step["gflop"] == pytest.approx(sum(own["gflop"] for own in calls))
    assert step["at_least_ms"] == pytest.approx(1e3 * step["gflop"] / step["peak_gflops"])
    assert {own["name"] for own in calls} >= {call, "the rest"}


def test_only_what_is_not_zero_is_counted_where_that_is_all_that_is_multiplied():
    hidden, weights = torch.tensor([[0.0, 2.0], [0.0, 0.0]]), torch.ones(2, 16)
    assert active_forward(hidden, weights) == 2 * 16
    target = torch.zeros(5, dtype=torch.int64)
    first, second = torch.ones(4, 3), torch.ones(7, 4)
    assert mlp_rows(None, None, target, [first, second]) == 2 * 5 * 3 * 28
    assert mlp_rows(torch.ones(5, 3), None, target, [first, second]) == 2 * 5 * (3 * 28 + 2 * 12)
