"""Kaplan-Meier curves upon each other: each group's line is its estimate, its ticks the runs that were given up."""

import numpy as np
import pytest

from grokfast.analysis import incidence
from grokfast.plots import plot_shares
from grokfast.plots.shares import share_at
from tests.analysis.runs import CONFUSED, DIVERGED, GROKKED, MEMORIZED, table
from tests.plots.drawn import figures, size

pytestmark = pytest.mark.filterwarnings("error")


def curves(**groups):
    rows = [(name, row) for name, own in groups.items() for row in own]
    return incidence(table(*(row for _, row in rows), group=[name for name, _ in rows]), by="group")


def test_each_group_is_a_line_with_its_runs_that_were_given_up(tmp_path, monkeypatch):
    kept = figures(monkeypatch)
    found = curves(some=[GROKKED, MEMORIZED], all=[GROKKED, (60, 3000, 3100)], none=[CONFUSED, DIVERGED])
    assert size(plot_shares(found, tmp_path / "shares.png", title="a $ title")) == (1200, 500)
    (axes,) = kept[-1].axes
    lines, ticks = axes.lines[::2], axes.lines[1::2]
    assert [line.get_label() for line in lines] == ["some", "all", "none"]
    assert [text.get_text() for text in kept[-1].legends[0].texts] == ["some", "all", "none"]
    assert lines[0].get_ydata()[-1] == pytest.approx(0.5)
    assert lines[1].get_ydata()[-1] == pytest.approx(1)
    assert lines[2].get_ydata().max() == 0
    assert len({line.get_color() for line in lines}) == 3
    assert [len(tick.get_xdata()) for tick in ticks] == [1, 0, 2]


def test_one_group_needs_no_legend():
    figure = plot_shares(curves(only=[GROKKED]))
    assert figure.legends == []


def test_a_share_holds_until_the_last_step_that_a_run_was_followed():
    curve = curves(some=[GROKKED, MEMORIZED])["some"]
    found = share_at(curve, np.array([0, 1999, 2000, 10_000, 10_001]))
    assert found[:4].tolist() == pytest.approx([0, 0, 0.5, 0.5])
    assert np.isnan(found[4])


@pytest.mark.parametrize("groups", [{}, {f"g{i}": [GROKKED] for i in range(8)}])
def test_too_few_and_too_many_groups_are_refused(groups):
    found = curves(**groups) if groups else {}
    with pytest.raises(ValueError, match=f"curves must be of 1 to 7 groups, got {len(groups)}"):
        plot_shares(found)
