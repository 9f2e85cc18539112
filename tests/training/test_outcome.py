import math

import pytest

from grokfast.store.records import STANDARD, Record
from grokfast.training import Criteria
from grokfast.training.outcome import Crossing, Outcome


def outcome(train, test, every=10, **criteria):
    followed = Outcome(Criteria(**criteria))
    for i, (a, b) in enumerate(zip(train, test)):
        followed.update(Record(i * every, dict(zip(STANDARD, (0.0, 0.0, a, b, 1.0)))))
    return followed


def test_crossing_is_the_first_of_a_sustained_streak():
    crossing = Crossing(0.9, 3)
    for step, value in enumerate([0.95, 0.95, 0.5, 0.9, 0.91, math.nan, 0.9, 0.9, 0.9, 0.1]):
        crossing.update(step, value)
    assert crossing.moment == 6


def test_a_streak_cut_off_by_the_end_is_no_crossing():
    crossing = Crossing(0.9, 3)
    for step in range(2):
        crossing.update(step, 1.0)
    assert crossing.moment is None


@pytest.mark.parametrize(
    ("train", "test", "phase"),
    [
        ([0.5] * 6, [0.1] * 6, "confusion"),
        ([1.0] * 6, [0.1] * 6, "memorization"),
        ([1.0] * 6, [0.1, 1, 1, 1, 1, 1], "comprehension"),
        ([1.0] * 6, [0.1, 0.1, 0.1, 1, 1, 1], "grokking"),
    ],
)
def test_phases_of_liu_et_al(train, test, phase):
    assert outcome(train, test, grok_gap=25).phase == phase


def test_collapse_after_generalising():
    collapsed = outcome([1.0] * 8, [1, 1, 1, 1, 1, 0.3, 0.3, 0.3])
    assert collapsed.collapsed
    assert "collapsed to 30%" in collapsed.sentence(70)
    assert not outcome([1.0] * 8, [1, 1, 1, 1, 1, 0.3, 1.0, 1.0]).collapsed  # a passing spike is none


def test_stages_as_the_display_shows_them():
    followed = Outcome(Criteria(sustain=1))
    stages = []
    for step, (a, b) in enumerate([(0.2, 0), (1.0, 0), (1.0, 0.6), (1.0, 1.0)]):
        followed.update(Record(step, dict(zip(STANDARD, (0.0, 0.0, a, b, 1.0)))))
        stages.append(followed.stage)
    assert stages == ["memorising", "plateau", "generalising", "generalised"]


def test_sentences_say_what_happened():
    grokked = outcome([1.0] * 130, [0.0] * 100 + [1.0] * 30)
    grokked._train.moment = 80
    assert grokked.sentence(1290) == "memorised at step 80, generalised at step 1000, 12.5× later"
    assert outcome([0.1] * 4, [0.1] * 4).sentence(30) == "did not memorise in 30 steps"
    assert outcome([1.0] * 4, [0.1] * 4).sentence(30) == "memorised at step 0, had not generalised after 30 steps"
    assert outcome([0.1] * 4, [0.1] * 4).sentence(30, 17).startswith("diverged at step 17")


@pytest.mark.parametrize("bad", [{"threshold": 0.0}, {"threshold": 1.5}, {"sustain": 0}, {"grok_gap": -1}])
def test_bad_criteria_are_refused(bad):
    with pytest.raises(ValueError, match=f"criteria.{next(iter(bad))}"):
        Criteria(**bad)
