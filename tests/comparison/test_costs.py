"""What a step costs: which steps are timed, and what is made of the times."""

import pytest

from grokfast.comparison import costs
from grokfast.comparison.costs import step_costs
from grokfast.training.ensemble import Ensemble
from tests.comparison.common import TINY


def test_costs_are_medians_of_turns_that_are_taken_in_turn(monkeypatch):
    """By a clock on which a step of AdamW takes 1 s, of Lion 3 s, an evaluation 5 s, twice for steps after three of
    seven rounds: the quotients do not see it."""
    now, order = [0.0], []
    step, evaluate = Ensemble.step, Ensemble.evaluate
    of_a_turn = 1 + costs.STEPS

    def timed_step(ensemble):
        rule = ensemble.experiments[0].optimizer.rule
        now[0] += {"adamw": 1, "lion": 3}[rule] * (1 if len(order) < 4 * 2 * of_a_turn else 2)
        order.append(rule)
        return step(ensemble)

    def timed_evaluate(ensemble, **options):
        now[0] += 5
        return evaluate(ensemble, **options)

    monkeypatch.setattr(Ensemble, "step", timed_step)
    monkeypatch.setattr(Ensemble, "evaluate", timed_evaluate)
    monkeypatch.setattr(costs.time, "perf_counter", lambda: now[0])
    found = step_costs({"plain": TINY, "lion": TINY.override({"optimizer": "lion"})}, "plain", rounds=7)
    assert (found["plain"].ratio, found["plain"].step) == (1.0, 2.0)
    assert (found["lion"].ratio, found["lion"].low, found["lion"].high, found["lion"].step) == (3.0, 3.0, 3.0, 6.0)
    assert found["plain"].whole == 2 + 5 / TINY.schedule.eval_every
    turns = order[::of_a_turn]
    assert order == [rule for rule in turns for _ in range(of_a_turn)]
    assert turns == [*["adamw", "lion"] * 2, *["lion", "adamw", "adamw", "lion"] * 3]  # each is first in turn


def test_a_real_step_takes_time_and_an_experiment_is_as_dear_as_itself():
    found = step_costs({"plain": TINY, "same": TINY}, "plain", rounds=3)
    assert all(0 < cost.step <= cost.whole for cost in found.values())
    assert found["plain"].ratio == 1.0
    assert found["same"].to_dict().keys() == {"step", "ratio", "low", "high", "whole"}


@pytest.mark.parametrize(
    ("base", "rounds", "message"), [("plane", 3, "did you mean 'plain'"), ("plain", 1, "rounds must be at least 2")]
)
def test_what_cannot_be_measured_is_said(base, rounds, message):
    with pytest.raises(ValueError, match=message):
        step_costs({"plain": TINY}, base, rounds=rounds)
