import math

import pytest

from grokfast.analysis import compare_arms
from grokfast.plots import plot_speedups
from tests.analysis.test_arms import BASE, LIMIT, ablation
from tests.plots.drawn import figures, size, texts

pytestmark = pytest.mark.filterwarnings("error")


def quotients(**arms):
    """The two speed-ups of each arm: than "slow", which takes twice as long, and than the base."""
    table = ablation(base=BASE, slow=[2 * t for t in BASE], **arms)
    found = [{one.arm: one.ratio for one in compare_arms(table, base=base)} for base in ("slow", "base")]
    return {name: tuple(of[name] and of[name].inverse for of in found) for name in arms}


def test_a_row_for_each_arm_with_both_speed_ups_and_what_was_claimed(tmp_path, monkeypatch):
    kept = figures(monkeypatch)
    arms = quotients(half=[t / 2 for t in BASE], never=[None] * 8, odd=[None])
    path = plot_speedups(
        arms, tmp_path / "s.png", baselines=("slow", "base"), claims={"half": 50.0}, claimed="said", title="a $ title"
    )
    assert size(path)[0] == 1200
    axes = kept[-1].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["half", "never", "odd"]
    squares = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "s"]
    assert squares == pytest.approx([4, 2])
    assert [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "X"] == [50]
    at_most = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "<"]
    assert at_most[:2] == pytest.approx([1900 / LIMIT, 950 / LIMIT])
    assert texts(axes) == ["4.00", "2.00"]
    assert axes.get_xlim()[1] > 50


def test_unknown_quotients_are_no_mark(tmp_path, monkeypatch):
    kept = figures(monkeypatch)
    table = ablation(base=[None] * 2, never=[None] * 2)
    ratio = compare_arms(table)[1].ratio.inverse
    assert math.isnan(ratio.value)
    plot_speedups({"never": (ratio, None)}, tmp_path / "s.png", baselines=("base", "other"))
    assert len(kept[-1].axes[0].lines) == 1  # that at 1


@pytest.mark.parametrize(
    ("arms", "baselines", "message"),
    [
        ({}, ("base",), "arms must be at least one"),
        ({"one": (None,)}, ("a", "b", "c"), "baselines must be one or two, got 3"),
        ({"one": (None,)}, ("a", "b"), "arms must have 2 quotients each, 'one' has 1"),
    ],
)
def test_what_cannot_be_drawn_is_said(tmp_path, arms, baselines, message):
    with pytest.raises(ValueError, match=message):
        plot_speedups(arms, tmp_path / "s.png", baselines=baselines)
    assert not list(tmp_path.iterdir())
