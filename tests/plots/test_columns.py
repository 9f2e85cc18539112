"""The picture of any columns of a run."""

import numpy as np
import pytest

from grokfast.plots import plot_columns
from tests.plots.drawn import size

pytestmark = pytest.mark.filterwarnings("error")
STEPS = np.array([0, 10, 100, 1000])
CURVES = {
    "step": STEPS, "share": np.array([0, 0.1, 0.5, 1]), "norm_w": np.array([100, 10, 2, 1.0]),
    "gap": np.array([1, np.nan, np.inf, 2.0]),
}  # fmt: skip


def test_each_panel_has_its_columns():
    figure = plot_columns(CURVES, [["share", "gap"], ["norm_w"]], title="a run", moments=[10, None])
    top, bottom = figure.axes
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["share", "gap"]
    share, gap = top.get_lines()[:2]
    assert share.get_ydata().tolist() == [0, 0.1, 0.5, 1]
    assert np.isnan(gap.get_ydata()).tolist() == [False, True, True, False]
    assert top.get_lines()[2].get_xdata() == [10, 10]
    assert (top.get_yscale(), bottom.get_yscale()) == ("linear", "log")
    assert bottom.get_xlabel() == "step"
    assert bottom.get_xscale() == "symlog"


def test_a_picture_is_written(tmp_path):
    path = plot_columns(CURVES, [["share"]], tmp_path / "columns.png")
    assert size(path)[0] == 1000


def test_many_names_have_room():
    many = CURVES | {f"n{i}": CURVES["share"] for i in range(30)}
    one, all_of_them = (plot_columns(many, [[f"n{i}" for i in range(n)]]) for n in (1, 30))
    assert all_of_them.get_size_inches()[1] > 2 * one.get_size_inches()[1]


@pytest.mark.parametrize(
    ("curves", "panels", "message"),
    [
        (CURVES, [], "panels must be of one column each at least"),
        (CURVES, [["share"], []], "panels must be of one column each at least"),
        (CURVES, [["shares"]], "missing: shares"),
        ({name: column[:0] for name, column in CURVES.items()}, [["share"]], "at least one record, got none"),
    ],
)
def test_bad_input_is_told(curves, panels, message):
    with pytest.raises(ValueError, match=message):
        plot_columns(curves, panels)
