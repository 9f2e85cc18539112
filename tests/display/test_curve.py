"""The curve of a run in a terminal, against steps and accuracies that are written down here."""

import numpy as np
import pytest

from grokfast.display.curve import curve


def curves(steps, train, test):
    return {"step": np.array(steps), "train_accuracy": np.array(train), "test_accuracy": np.array(test)}


def panels(lines, height):
    """The bars of each split, the highest line first, without names and numbers."""
    assert len(lines) == 2 * height + 1
    return [line[6:] for line in lines[:height]], [line[6:] for line in lines[height : 2 * height]]


def test_both_splits_have_bars_as_high_as_their_accuracy_and_say_the_last():
    lines = curve(curves([0, 1, 10, 100], [0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.9]), width=3, height=2)
    train, test = panels(lines, 2)
    assert train == ["███ 100.0%", "███"]
    assert test[0] == " ▁▇ 90.0%"  # 0.5 is the ninth of sixteen levels, 0.9 the fifteenth
    assert test[1] == "▁██"
    assert lines[-1].split() == ["step", "100"]  # no room for the first


def test_columns_are_even_in_the_logarithm_of_the_step_and_hold_the_last_evaluation():
    steps = [0, *range(10, 10_001, 10)]
    test = [0.0 if step < 1000 else 1.0 for step in steps]
    _, (row,) = panels(curve(curves(steps, test, test), width=61, height=1), 1)
    assert row[:61] == "▁" * 40 + "█" * 21  # 10 to 10,000 are three decades of 20 columns


def test_the_axis_names_the_ends_and_the_powers_of_ten_between():
    steps = [0, 10, 100, 1000, 10_000]
    flat = [0.0] * 5
    axis = curve(curves(steps, flat, flat), width=61)[-1]
    assert axis.split() == ["step", "10", "100", "1,000", "10,000"]
    bars = axis[6:]
    assert (bars.index("100"), bars.index("1,000")) == (20, 40)
    assert len(bars) == 61


def test_what_is_no_number_is_left_out():
    lines = curve(curves([1, 10, 100], [1.0, 1.0, np.nan], [0.0, np.nan, 0.0]), width=3, height=1)
    assert lines[0] == "train ██  -"
    assert lines[1] == " test ▁ ▁ 0.0%"


@pytest.mark.parametrize("step", [0, 1, 12])
def test_one_evaluation_is_one_column(step):
    lines = curve(curves([step], [1.0], [0.0]), height=1)
    assert lines == ["train █ 100.0%", " test ▁ 0.0%", f" step {step}"]


def test_without_evaluations_there_is_nothing():
    assert curve(curves([], [], [])) == []
