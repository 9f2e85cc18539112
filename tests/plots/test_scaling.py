import numpy as np
import pytest

from grokfast.analysis import fit_power_law
from grokfast.plots import plot_scaling
from tests.analysis.runs import DIVERGED, FAILED, MEMORIZED, table
from tests.plots.drawn import figures

pytestmark = pytest.mark.filterwarnings("error")

X, BY = "optimizer.weight_decay", "task.train_fraction"


def sweep(extra=(), *, limit=10_000, **more):
    """T = 500 / λ · (D / 0.4)⁻², with a scatter, over a grid of 4 × 3 cells with 5 seeds."""
    rng = np.random.default_rng(0)
    runs, xs, ys = list(extra), [0.1] * len(extra), [0.3] * len(extra)
    for x in (0.1, 0.3, 1, 3):
        for y in (0.3, 0.4, 0.5):
            for _ in range(5):
                t = 500 / x * (y / 0.4) ** -2 * np.exp(0.2 * rng.normal())
                runs.append((60, t, t) if t <= limit else (60, None, limit))
                xs.append(x)
                ys.append(y)
    return table(*runs, optimizer__weight_decay=xs, task__train_fraction=ys, **more)


@pytest.fixture
def axes(tmp_path, monkeypatch):
    kept = figures(monkeypatch)

    def drawn(runs, **options):
        path = plot_scaling(runs, tmp_path / "a.png", **({"x": X} | options))
        assert path.read_bytes().startswith(b"\x89PNG")
        return kept[-1].axes[0]

    return drawn


def marks(panel, marker, size):
    """All marks of one kind."""
    lines = [line for line in panel.lines if line.get_marker() == marker and line.get_markersize() == size]
    return np.concatenate([np.column_stack(line.get_data()) for line in lines])


def legend(panel):
    return [text.get_text() for text in panel.figure.legends[0].get_texts()]


def test_every_run_is_a_mark_and_every_cell_a_median(axes):
    panel = axes(sweep([DIVERGED, DIVERGED, FAILED, MEMORIZED], limit=4000))
    censored = len(marks(panel, "^", 6))
    assert len(marks(panel, "o", 4)) + censored == 61  # the failed one is not drawn, crosses are counted below
    assert censored > 5
    assert len(marks(panel, "x", 6)) == 2
    assert set(marks(panel, "x", 6)[:, 1]) == {300}
    assert len(marks(panel, "o", 8)) == 3  # at 0.1 half of the runs did not get there
    assert panel.get_xscale() == panel.get_yscale() == "log"
    assert legend(panel) == ["a run", "not generalised by then", "diverged", "median, 95% interval", "power law"]


def test_the_line_and_the_formula_are_the_fitted_law(axes):
    runs = sweep()
    law = fit_power_law(runs, over=[X])
    panel = axes(runs)
    (line,) = [line for line in panel.lines if line.get_linestyle() == "--"]
    assert line.get_ydata() == pytest.approx(law.predict({X: line.get_xdata()}))
    low, high = law.intervals[X]
    expected = f"T ∝ λ^{law.exponents[X]:.2f} [{low:.2f}, {high:.2f}]   (59 of 60 runs generalised)"
    assert panel.get_title(loc="left") == expected.replace("-", "−")


def test_a_second_parameter_has_a_colour_and_a_line_for_each_value(axes):
    panel = axes(sweep([FAILED]), by=BY)
    lines = [line for line in panel.lines if line.get_linestyle() == "--"]
    assert len({line.get_color() for line in lines}) == len(lines) == 3
    assert [line.get_ydata()[0] for line in lines] == sorted((line.get_ydata()[0] for line in lines), reverse=True)
    assert legend(panel)[:3] == [f"{BY} = {value}" for value in (0.3, 0.4, 0.5)]
    title = panel.get_title(loc="left")
    assert "λ^" in title
    assert "D^" in title
    assert "59 of 60 runs generalised, 1 failed or unfinished" in title


def test_colours_by_name_share_one_law(axes):
    panel = axes(sweep(filter__name=["ema", None] * 30), by="filter.name")
    assert len([line for line in panel.lines if line.get_linestyle() == "--"]) == 1
    assert legend(panel)[:2] == ["filter.name = ema", "filter.name = none"]


def test_where_there_is_no_law_the_runs_are_drawn_and_that_is_said(axes):
    panel = axes(table(MEMORIZED, MEMORIZED, optimizer__weight_decay=[0.1, 1]))
    assert panel.get_title(loc="left").startswith("no power law: 0 runs with a t_generalize do not determine")
    assert "power law" not in legend(panel)
    assert len(marks(panel, "^", 6)) == 2


@pytest.mark.parametrize("runs", [[FAILED, FAILED], [(0, 0, 10), MEMORIZED]], ids=["none ended", "at step 0"])
def test_what_has_no_place_on_the_axes_is_no_error(axes, runs):
    panel = axes(table(*runs, optimizer__weight_decay=[0.1, 1]), by="steps")
    assert panel.get_title(loc="left").startswith("no power law: ")


def test_one_value_can_be_drawn(axes):
    panel = axes(table((60, 500, 600), (60, 700, 800), MEMORIZED, optimizer__weight_decay=[1, 1, 1]))
    assert len(marks(panel, "o", 8)) == 1


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"x": "optimizer.weight_deacy"}, r"did you mean 'optimizer.weight_decay'\?"),
        ({}, {"over": [BY]}, f"over must contain '{X}'"),
        ({X: [0.0] * 60}, {}, f"{X} must have positive numbers to be on a logarithmic axis, got 0.0"),
        ({X: ["a"] * 60}, {}, "positive numbers"),
        ({"g": list(range(10)) * 6}, {"by": "g"}, "g must have at most 7 different values, got 10"),
    ],
)
def test_what_cannot_be_drawn_is_said(tmp_path, change, options, message):
    with pytest.raises(ValueError, match=message):
        plot_scaling(sweep() | change, tmp_path / "a.png", **({"x": X} | options))
    assert not list(tmp_path.iterdir())
