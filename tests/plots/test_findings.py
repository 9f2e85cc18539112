import math

import pytest

from grokfast.plots import plot_findings
from grokfast.reproductions import Finding, Published
from tests.plots.drawn import figures, size, texts

pytestmark = pytest.mark.filterwarnings("error")
STEPS = Finding(
    what="time $ _", quantity="step", unit="steps", claim="", test="", values=(100, 300, math.inf), estimate=300,
    low=100, high=math.inf, verdict="undecided", published=Published(value=200, source="", values=(150, 250, math.inf)),
)  # fmt: skip


def finding(verdict, low=0.1, high=0.3, **changes):
    words = {"what": verdict, "quantity": "share", "claim": "", "test": "", "values": (low, high, math.nan)}
    words |= {"published": Published(value=0.2, source="")} | changes
    return Finding(**words, estimate=(low + high) / 2, low=low, high=high, verdict=verdict)


def marks(panel, marker):
    return [[*line.get_xdata()] for line in panel.lines if line.get_marker() == marker]


def test_a_panel_for_each_quantity_a_row_for_each_finding(tmp_path, monkeypatch):
    kept = figures(monkeypatch)
    findings = [finding("reproduced"), finding("refuted"), STEPS, finding("control", published=None)]
    path = plot_findings(findings, tmp_path / "a.png", title="what $ came _ out")
    assert size(path)[0] == 1200
    shares, steps = kept[-1].axes
    assert [label.get_text() for label in shares.get_yticklabels()] == ["reproduced", "refuted", "control"]
    assert marks(shares, "s") == [[0.2], [0.2], [0.2]]
    assert marks(shares, ".") == [[0.1, 0.3]] * 3
    assert marks(shares, "D") == [[0.2], [0.2]]  # a control has none
    assert len({line.get_color() for line in shares.lines if line.get_marker() == "s"}) == 3
    assert texts(shares) == ["reproduced", "refuted", ""]
    assert steps.get_xscale() == "log"
    assert marks(steps, "d") == [[150, 250]]
    assert len(marks(steps, ">")) == 1  # a run that never did


def test_findings_of_one_value_or_none_are_drawn(tmp_path):
    unknown = finding("undecided", low=math.nan, high=math.nan, values=())
    assert plot_findings([unknown], tmp_path / "a.png").exists()
    assert plot_findings([unknown])._repr_png_()


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="findings must be at least one"):
        plot_findings([])
