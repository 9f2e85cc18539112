"""Hyper-parameters as functions of the step: the kinds, and their tables."""

from dataclasses import dataclass

import pytest
import torch

from grokfast import EMA
from grokfast.schedules import Change, Cosine, StepDecay, Switch, Warmup
from grokfast.schedules.program import Program
from grokfast.transforms import hypers
from grokfast.transforms.optimizers import AdamW

CONFIG, FILTER, STEPS = AdamW(lr=0.5, weight_decay=2.0), EMA(0.9, 3.0), 10


def program(*changes, steps=STEPS, runs=1):
    return Program([changes] * runs, [hypers.current(CONFIG, FILTER)] * runs, steps, hypers.same(FILTER))


def values(*changes, steps=STEPS):
    """By name, of one run."""
    made = program(*changes, steps=steps)
    return {name: made.values(0, steps)[:, 0, i].tolist() for i, name in enumerate(made.names)}


def test_warmup_begins_at_zero_and_ends_at_the_value():
    assert values(Warmup(steps=4)) == {"lr": [0.0, 0.125, 0.25, 0.375, *[0.5] * 6]}
    assert values(Warmup(steps=2, of="lamb"))["lamb"] == [0.0, 1.5, *[3.0] * 8]


def test_cosine_falls_between_its_ends():
    found = values(Cosine(to=0.1, begin=2, end=6))["lr"]
    assert found[:3] == [0.5] * 3
    assert found[4] == pytest.approx(0.3)
    assert found[6:] == [0.1] * 4
    assert values(Cosine())["lr"][5] == pytest.approx(0.25)  # to the schedule's end


def test_step_decay_and_switch_at_a_step():
    assert values(StepDecay(at=(2, 5), factor=0.5))["lr"] == [0.5, 0.5, 0.25, 0.25, 0.25, *[0.125] * 5]
    assert values(Switch(of="weight_decay", to=0.0, at=3))["weight_decay"] == [2.0] * 3 + [0.0] * 7


def test_several_changes_take_turns():
    found = values(Warmup(steps=3), Cosine(begin=3), Switch(of="filter.alpha", to=0.5, at=1))
    assert found["lr"][:4] == [0.0, pytest.approx(1 / 6), pytest.approx(1 / 3), 0.5]
    assert found["alpha"] == [0.9] + [0.5] * 9


def test_any_stretch_of_the_tables_is_the_same():
    made = program(Warmup(steps=3), Cosine(begin=3), runs=2)
    whole = made.values(0, STEPS)
    assert whole.shape == (STEPS, 2, 1)
    assert whole.dtype is torch.float64
    assert torch.equal(torch.cat([made.values(0, 4), made.values(4, STEPS)]), whole)


def test_what_comes_after_a_moment_is_no_part_of_the_tables():
    made = program(Switch(of="lamb", to=0.0, after="generalizing", delay=5), Warmup(steps=2))
    (switched,) = made.switched
    assert (switched.column, switched.moment) == (0, 1)
    assert (switched.to.tolist(), switched.delay.tolist()) == ([0.0], [5])
    assert made.values(0, STEPS)[:, 0, 0].tolist() == [3.0] * STEPS
    assert (made.low.tolist(), made.high.tolist()) == ([[0.0, 0.0]], [[3.0, 0.5]])


def test_every_run_has_its_own():
    changes = [[Switch(of="lr", to=to, at=at)] for to, at in ((0.1, 2), (0.2, 4))]
    made = Program(changes, [{"lr": 1.0}, {"lr": 2.0}], 5)
    assert made.values(0, 5)[:, :, 0].T.tolist() == [[1.0, 1.0, 0.1, 0.1, 0.1], [2.0, 2.0, 2.0, 2.0, 0.2]]
    assert made.keep([1]).values(4, 5).tolist() == [[[0.2]]]


@dataclass(frozen=True)
class Odd(Change):
    """Does what it must not."""

    how: str

    def values(self, begin, end, current):
        return {"lr": {"short": torch.zeros(1), "number": 3.0, "inf": torch.full((end - begin,), torch.inf)}[self.how]}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ([Warmup(steps=2, of="weigth_decay")], r"'weigth_decay', which is none of 'lr', .*mean 'weight_decay'"),
        ([Warmup(steps=4), Cosine(begin=2)], r"'lr' must not overlap, but Warmup.* and Cosine.* do at step 2"),
        ([Cosine(), Switch(of="optimizer.lr", to=0.1, at=9)], "changes of 'lr' must not overlap, .* do at step 9"),
        ([Warmup(steps=4), Switch(of="lr", to=0.0, after="memorizing")], r"must not overlap, but when .* is not known"),
        ([Odd("short")], r"Odd.values\['lr'\] must have shape \[10\], got shape \[1\]"),
        ([Odd("number")], r"Odd.values\['lr'\] must have shape \[1\], got 3.0"),
        ([Odd("inf")], "Odd makes 'lr' infinite at a step from 0 to 9"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(changes, why):
    with pytest.raises(ValueError, match=why):
        program(*changes)


def test_runs_need_the_same_kinds():
    with pytest.raises(ValueError, match="the changes of run 1 must be of the same kinds as run 0's"):
        Program([[Warmup(steps=2)], [Cosine()]], [{"lr": 1.0}] * 2, 5)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Warmup(steps=0), "warmup.steps must be at least 1, got 0"),
        (lambda: Cosine(begin=5, end=5), "cosine.end must be at least 6, got 5"),
        (lambda: StepDecay(at=(5, 3)), r"step_decay.at must be increasing steps, at least one, got \(5, 3\)"),
        (lambda: Switch(of="lr", to=1.0), "switch needs at, a step, or after, a moment: got at=None, after=None"),
        (lambda: Switch(of="lr", to=1.0, at=3, after="memorizing"), "switch needs at, a step, or after"),
        (
            lambda: Switch(of="lr", to=1.0, after="memorising"),
            "switch.after must be one of .*mean 'memorizing'",
        ),
        (lambda: Switch(of="lr", to=1.0, at=3, delay=2), "switch.delay is counted from after, a moment"),
    ],
)
def test_fields_are_checked(make, why):
    with pytest.raises(ValueError, match=why):
        make()
