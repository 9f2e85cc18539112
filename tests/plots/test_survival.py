import pytest

from grokfast.analysis import incidence
from grokfast.plots import plot_survival
from tests.analysis.runs import DIVERGED
from tests.analysis.test_arms import BASE, LIMIT, ablation
from tests.plots.drawn import figures, size

pytestmark = pytest.mark.filterwarnings("error")


def test_a_panel_for_each_arm_with_the_base_in_each(tmp_path, monkeypatch):
    kept = figures(monkeypatch)
    curves = incidence(
        ablation(base=BASE, slow=[2 * t for t in BASE], some=[900, None, 950, None], gone=[DIVERGED] * 3)
    )
    path = plot_survival(curves, tmp_path / "curves.png", base="base", title="a $ title")
    assert size(path)[0] == 1200
    panels = [panel for panel in kept[-1].axes if panel.get_visible()]
    assert [panel.get_title() for panel in panels] == ["slow", "some", "gone"]
    for panel, name in zip(panels, ("slow", "some", "gone")):
        base, _, arm, given_up = panel.lines
        assert base.get_xdata().tolist() == [1, *curves["base"].steps[1:]]
        assert arm.get_ydata().tolist() == curves[name].share.tolist()
        assert given_up.get_xdata().tolist() == curves[name].censored.tolist()
    assert panels[1].lines[3].get_ydata().tolist() == [0.5, 0.5]
    assert panels[1].lines[3].get_xdata().tolist() == [LIMIT, LIMIT]


@pytest.mark.parametrize("arms", [{"base": BASE}, {"base": [None]}, {"base": [0, 0], "at once": [0]}])
def test_degenerate_arms_are_drawn(tmp_path, arms):
    assert plot_survival(incidence(ablation(**arms)), tmp_path / "curves.png", base="base").exists()


def test_more_arms_than_a_row_holds(tmp_path, monkeypatch):
    kept = figures(monkeypatch)
    arms = {f"arm {i}": BASE for i in range(6)}
    plot_survival(incidence(ablation(base=BASE, **arms)), tmp_path / "curves.png", base="base")
    labelled = [panel.get_title() for panel in kept[-1].axes if panel.get_xlabel()]
    assert labelled == ["arm 2", "arm 3", "arm 4", "arm 5"]


def test_an_unknown_base_is_refused(tmp_path):
    with pytest.raises(ValueError, match="base must be one of 'base'"):
        plot_survival(incidence(ablation(base=BASE)), tmp_path / "curves.png", base="plain")
    assert not list(tmp_path.iterdir())
