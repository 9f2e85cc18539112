import math
import struct

import pytest

from grokfast.analysis import compare_arms
from grokfast.plots import plot_forest
from tests.analysis.runs import DIVERGED, FAILED
from tests.analysis.test_arms import BASE, LIMIT, ablation
from tests.plots.drawn import figures, texts

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def axes(tmp_path, monkeypatch):
    kept = figures(monkeypatch)

    def drawn(**arms):
        path = plot_forest(compare_arms(ablation(**arms)), tmp_path / "forest.png", title="arms $ of _ several")
        assert struct.unpack(">I", path.read_bytes()[16:20]) == (1200,)
        return kept[-1].axes[0]

    return drawn


def marks(panel, marker):
    return [(*line.get_xdata(), *line.get_ydata()) for line in panel.lines if line.get_marker() == marker]


def test_a_row_for_each_arm_with_its_median_and_interval_beside_the_base(axes):
    slow = [1.5 * t for t in BASE]
    panel = axes(base=BASE, slow=slow, never=[None] * 8, same=BASE)
    assert [label.get_text() for label in panel.get_yticklabels()] == ["base", "slow", "never", "same"]
    assert marks(panel, "s") == [(950, 0), (1425, 1), (950, 3)]
    assert marks(panel, ">") == [(LIMIT, 2)]
    assert ([*panel.lines[0].get_xdata()], panel.lines[0].get_linestyle()) == ([950, 950], "--")
    colors = {line.get_ydata()[0]: line.get_color() for line in panel.lines if line.get_marker() in ("s", ">")}
    assert len({*colors.values()}) == 3  # base; slow and never differ from it; same does not
    assert colors[1] == colors[2]
    ratios = ["1.50 [1.50, 1.50]", f">{LIMIT / 950:.2f}", "1.00 [1.00, 1.00]"]
    assert texts(panel) == ["8 of 8", *(f"{k} of 8   × {ratio}" for k, ratio in zip((8, 0, 8), ratios))]
    assert panel.get_xscale() == "log"


@pytest.mark.parametrize(
    "arms",
    [
        {"base": [None] * 3, "never": [None] * 3},
        {"base": [900], "one": [700]},
        {"base": [900], "one": [None]},
        {"base": [0, 0], "at once": [0, 0]},
        {"base": [FAILED] * 2, "failed": [FAILED] * 2},
        {"base": BASE, "gone": [DIVERGED] * 3, "some": [900, 1000, None, None]},
        {"base": BASE},
    ],
    ids=["all censored", "one seed", "one seed censored", "step 0", "failed", "diverged", "base alone"],
)
def test_degenerate_tables_are_drawn(axes, arms):
    panel = axes(**arms)
    assert len(panel.get_yticks()) == len(arms)
    assert all(math.isfinite(x) for line in panel.lines for x in line.get_xdata())


def test_no_arm_is_refused(tmp_path):
    with pytest.raises(ValueError, match="arms must be at least one"):
        plot_forest([], tmp_path / "forest.png")
    assert not list(tmp_path.iterdir())
