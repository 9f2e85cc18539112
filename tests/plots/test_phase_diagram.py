import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.patches import Rectangle

from grokfast.plots import plot_phase_diagram
from tests.analysis.runs import COMPREHENDED, CONFUSED, DIVERGED, FAILED, GROKKED, MEMORIZED, RUNNING, table
from tests.plots.drawn import figures, texts

pytestmark = pytest.mark.filterwarnings("error")

X, Y = "optimizer.weight_decay", "task.train_fraction"


def grid(cells, **more):
    """A table of cells (x, y, run, run, ...)."""
    rows = [run for _, _, *runs in cells for run in runs]
    xs, ys = ([cell[i] for cell in cells for _ in cell[2:]] for i in (0, 1))
    return table(*rows, optimizer__weight_decay=xs, task__train_fraction=ys, seed=range(len(rows)), **more)


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draws a table, and returns the figure and its panels."""
    kept = figures(monkeypatch)

    def drawn(runs, **options):
        path = plot_phase_diagram(runs, tmp_path / "a.png", **({"x": X, "y": Y} | options))
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        return kept[-1], [axes for axes in kept[-1].axes if axes.get_label() != "<colorbar>" and axes.get_visible()]

    return drawn


def parts(axes, *, at):
    """Left end, width and hatch of the parts of the cell in this column and row."""
    found = [p for p in axes.patches if isinstance(p, Rectangle) and p.get_fill()]
    return [
        (round(p.get_x() - at[0] + 0.5, 6), round(p.get_width(), 6), p.get_hatch())
        for p in found
        if at[0] - 0.5 <= p.get_x() < at[0] + 0.5 and p.get_y() == at[1] - 0.5
    ]


def colors(axes):
    return {
        (p.get_x() + 0.5, p.get_y() + 0.5): p.get_facecolor()
        for p in axes.patches
        if p.get_fill() and p.get_width() == 1
    }


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_cell_says_its_median_and_how_many_generalised(draw):
    _, (axes,) = draw(grid([(0.1, 0.3, *[(60, t, 9000) for t in (1100, 1200, 1300)], (60, None, 9000))]))
    assert texts(axes) == ["1,200", "3/4"]


def test_a_median_that_was_not_reached_is_said_and_not_coloured(draw):
    figure, (axes,) = draw(grid([(0.1, 0.3, GROKKED, MEMORIZED, MEMORIZED), (1, 0.3, GROKKED)]))
    assert texts(axes) == [">10,000", "1/3", "2,000", "1/1"]
    grey = [p.get_facecolor() for p in axes.patches if p.get_fill() and p.get_x() < 0.5]
    assert all(r == g == b for r, g, b, _ in grey)
    assert "fewer than half generalised" in legend(figure)


def test_where_nothing_generalised_there_is_no_scale(draw):
    figure, (axes,) = draw(grid([(0.1, 0.3, MEMORIZED), (1, 0.3, CONFUSED)]))
    assert figure.axes == [axes]


def test_a_sweep_of_which_no_run_has_ended_is_an_empty_diagram(draw):
    figure, (axes,) = draw(grid([(0.1, 0.3, FAILED), (1, 0.3, RUNNING)]))
    assert not texts(axes)
    assert "1 unfinished run not shown" in texts(figure)[1]


def test_most_runs_diverged_is_said(draw):
    _, (axes,) = draw(grid([(3, 0.3, DIVERGED, DIVERGED, GROKKED)]))
    assert texts(axes) == ["diverged", "1/3"]


def test_earlier_is_brighter(draw):
    _, (axes,) = draw(grid([(0.1, 0.3, (60, 5000, 9000)), (1, 0.3, (60, 1500, 9000)), (3, 0.3, (60, 500, 9000))]))
    luminance = [np.dot(colors(axes)[i, 0][:3], (0.2126, 0.7152, 0.0722)) for i in range(3)]
    assert luminance == sorted(luminance)
    assert luminance[0] < luminance[2] - 0.3


def test_a_mixed_cell_is_divided_in_proportion(draw):
    figure, (axes,) = draw(grid([(0.1, 0.3, GROKKED, GROKKED, MEMORIZED, CONFUSED), (1, 0.3, COMPREHENDED)]))
    assert parts(axes, at=(0, 0)) == [(0, 0.5, None), (0.5, 0.25, "///"), (0.75, 0.25, "xxx")]
    assert parts(axes, at=(1, 0)) == [(0, 1, "..")]
    assert legend(figure) == ["grokking", "comprehension", "memorization", "confusion"]


def test_wilson_intervals_on_request(draw):
    _, (axes,) = draw(grid([(0.1, 0.3, GROKKED, GROKKED, GROKKED, MEMORIZED)]), intervals=True)
    assert texts(axes)[1] == "3/4\n30–95%"


def test_axes_are_labelled_by_their_values_in_order(draw):
    _, (axes,) = draw(grid([(x, y, GROKKED) for x in (1e-4, 30, 0.1, 2) for y in (0.5, 0.3)]))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.0001", "0.1", "2", "30"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.3", "0.5"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == (X, Y)


@pytest.mark.parametrize(
    "cells",
    [
        [(0.1, 0.3, GROKKED)],
        [(0.1, y, GROKKED, MEMORIZED) for y in (0.2, 0.3, 0.4)],
        [(0.1, 0.3, MEMORIZED)],
        [(0.1, 0.3, GROKKED), (1, 0.5, CONFUSED)],
        [(x / 10, y / 50, (60, 500 + x * y, 9000)) for x in range(1, 41) for y in range(1, 31)],
        [("adamw", True, GROKKED), (None, False, MEMORIZED)],
        [(0.1, 0.3, (0, 0, 100))],
    ],
    ids=["one cell", "one value", "nothing generalised", "holes", "large", "text and flags", "at once"],
)
def test_any_grid_can_be_drawn(draw, cells):
    figure, (axes,) = draw(grid(cells), title="quick $ of _ all")
    assert len([p for p in axes.patches if p.get_fill()]) == sum(len(set(cell[2:])) for cell in cells)
    assert figure.get_size_inches()[0] <= 14


def test_values_drawn_at_random_are_put_in_bins(draw):
    rng = np.random.default_rng(0)
    cells = [(x, y, GROKKED) for x, y in zip(10 ** rng.uniform(-3, 1, 200), rng.uniform(0.2, 0.8, 200))]
    figure, (axes,) = draw(grid(cells))
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 19.5), (-0.5, 19.5))
    counts = [text for text in texts(axes) if "/" in text]
    assert sum(int(text.split("/")[1]) for text in counts) == 200
    assert f"{X} in bins, by their middles" in texts(figure)[1]
    assert len(draw(grid(cells), x=Y, y="phase", by=X)[1]) == 12


def test_panels_share_one_scale(draw):
    cells = [(0.1, 0.3, (60, 500, 9000)), (1, 0.3, (60, 900, 9000)), (0.1, 0.3, (60, 5000, 9000))]
    figure, panels = draw(grid(cells, filter__name=["ema", "ema", None]), by="filter.name")
    assert [axes.get_title(loc="left") for axes in panels] == ["filter.name = ema", "filter.name = none"]
    assert [texts(axes)[0] for axes in panels] == ["500", "5,000"]
    assert colors(panels[0])[0, 0] != colors(panels[1])[0, 0]
    assert len([axes for axes in figure.axes if axes.get_label() == "<colorbar>"]) == 1


def test_runs_that_are_not_drawn_and_what_is_pooled_is_said(draw):
    cells = [(0.1, 0.3, GROKKED, FAILED, RUNNING, RUNNING), (1, 0.3, FAILED)]
    figure, (axes,) = draw(grid(cells, optimizer__lr=[1, 2, 1, 1, 1], seconds=range(5), preset=list("abcde")))
    assert texts(axes) == ["2,000", "1/1"]
    _, note = texts(figure)
    assert note.splitlines() == [
        "k/n: runs that generalised, of all",
        "2 failed runs not shown",
        "2 unfinished runs not shown",
        "cells pool different values of optimizer.lr",
    ]


@settings(max_examples=10, deadline=None)
@given(st.randoms())
def test_the_order_of_rows_does_not_matter(tmp_path_factory, random):
    runs = pd.DataFrame(grid([(0.1, 0.3, GROKKED, MEMORIZED, DIVERGED), (1, 0.3, GROKKED, FAILED)]))
    path = tmp_path_factory.mktemp("pictures")
    one = plot_phase_diagram(runs, path / "a.png", x=X, y=Y).read_bytes()
    places = random.sample(range(len(runs)), len(runs))
    assert plot_phase_diagram(runs.iloc[places], path / "b.png", x=X, y=Y).read_bytes() == one


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        ([(1, 1, GROKKED)], {"x": "optimizer.weight_deacy"}, r"did you mean 'optimizer.weight_decay'\?"),
        ([(1, 1, GROKKED)], {"by": "filter"}, "table must have 'filter'"),
        ([(1, 1, GROKKED)], {"x": Y}, "x, y and by must be different columns"),
        ([], {}, "at least one run, got none"),
        ([(f"{i}", 1, GROKKED) for i in range(61)], {}, f"column '{X}' has more than 20 different values that are not"),
    ],
)
def test_what_cannot_be_drawn_is_said(tmp_path, cells, options, message):
    with pytest.raises(ValueError, match=message):
        plot_phase_diagram(grid(cells), tmp_path / "a.png", **({"x": X, "y": Y} | options))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_os_error():
    with pytest.raises(OSError, match="No space left"):
        plot_phase_diagram(grid([(1, 1, GROKKED)]), "/dev/full", x=X, y=Y)
