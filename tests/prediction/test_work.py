"""Which bytes memory serves, by what was touched since."""

import pytest

from benchmarks.prediction.work import Launch, Use, served


def loads(array, size, asked=None):
    return Use(array, size, size if asked is None else asked)


def stores(array, size):
    return Use(array, size, size, loads=False, stores=True)


def launch(*phases, programs=1, **about):
    return Launch("some", "some_kernel", programs, phases, **about)


STEP = [launch((loads("w", 10), stores("z", 30))), launch((loads("z", 30), stores("grad", 10)))]
STEP += [launch((loads("grad", 10), Use("w", 10, 20, stores=True)))]


def test_a_step_that_fits_asks_nothing_of_memory():
    assert served(STEP, 1000, 132) == [0, 0, 0]
    assert [one.bytes for one in STEP] == [40, 40, 30]


def test_a_step_that_does_not_fit_asks_for_every_array_once():
    assert served(STEP, 0, 132) == [40, 40, 30]
    many = [launch((loads("w", 10, asked=600),), programs=60), launch((stores("w", 10),))]
    assert served(many, 0, 132) == [10, 10]
    assert many[0].bytes == 600


def test_what_fits_from_one_launch_to_the_next_stays():
    """z with half of w and of grad: 40; grad with half of z and of w: 30."""
    assert served(STEP, 40, 132)[1] == 10  # grad is written back
    assert served(STEP, 39, 132)[1] == 40
    assert served(STEP, 30, 132)[2] == 20  # grad is still there
    assert served(STEP, 29, 132)[2] == 30


def test_what_is_overwritten_before_it_leaves_is_not_written_back():
    twice = [launch((stores("a", 10),)), launch((stores("a", 10),)), launch((loads("b", 1000),)), launch(())]
    assert served(twice, 100, 132) == [0, 10, 1000, 0]


def test_between_phases_only_what_runs_at_once_counts():
    phases = (stores("z", 1000),), (loads("w", 400),), (loads("z", 1000),)
    one = [launch(*phases, programs=100)]
    assert served(one, 1399, 132)[0] == 400 + 1000 + 1000
    assert served(one, 140, 10)[0] == 400 + 1000
    assert served(one, 139, 10)[0] == 400 + 1000 + 1000


def test_the_slowest_processor_has_the_most_programs_or_the_largest():
    assert launch(programs=132).slowest(132) == pytest.approx(1 / 132)
    assert launch(programs=133).slowest(132) == pytest.approx(2 / 133)
    assert launch(programs=60).slowest(132) == pytest.approx(1 / 60)
    assert launch(programs=60, largest=3.0).slowest(132) == pytest.approx(3 / 60)
    assert launch(programs=13_200, largest=3.0).slowest(132) == pytest.approx(1 / 132)


def test_a_larger_cache_asks_no_more_of_memory():
    totals = [sum(served(STEP, cache, 132)) for cache in range(0, 120, 5)]
    assert totals == sorted(totals, reverse=True)
