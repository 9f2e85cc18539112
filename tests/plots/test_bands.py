import numpy as np
import pytest

from grokfast.plots import plot_bands
from grokfast.plots.bands import held
from tests.plots.drawn import figures, texts

pytestmark = pytest.mark.filterwarnings("error")


def run(steps, level):
    """A run whose test accuracy is `level` from half of its steps on."""
    steps = np.asarray(steps)
    test = np.where(steps >= steps[-1] / 2, level, 0.0)
    loss = np.ones(len(steps))
    return {
        "step": steps, "train_accuracy": np.ones(len(steps)), "test_accuracy": test,
        "train_loss": loss, "test_loss": loss,
    }  # fmt: skip


@pytest.fixture
def axes(tmp_path, monkeypatch):
    """The panel of the groups that it is called with."""
    kept = figures(monkeypatch)

    def drawn(groups, **options):
        assert plot_bands(groups, tmp_path / "a.png", **options).read_bytes().startswith(b"\x89PNG")
        assert tuple(kept[-1].get_size_inches() * kept[-1].dpi) == (1200, 600)
        return kept[-1].axes[0]

    return drawn


def test_the_line_is_the_median_and_the_band_between_the_quantiles(axes):
    levels = [0.2, 0.4, 0.5, 0.6, 1.0]
    panel = axes({"a": [run(range(0, 101, 10), level) for level in levels]}, quantiles=(0.25, 0.75))
    (line,) = [line for line in panel.lines if line.get_label().startswith("a")]
    assert line.get_label() == "a (5 runs)"
    assert line.get_ydata()[-1] == 0.5
    (band,) = panel.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert {0.4, 0.6} <= set(heights)
    assert heights.max() == 0.6


def test_a_run_that_ended_earlier_keeps_its_last_value(axes):
    short, long = run(range(0, 51, 10), 1.0), run(range(0, 101, 10), 0.0)
    panel = axes({"a": [short, short, long]})
    (line,) = [line for line in panel.lines if line.get_label().startswith("a")]
    assert line.get_xdata()[-1] == 100
    assert line.get_ydata()[-1] == 1.0


def test_every_group_reaches_the_last_step(axes):
    panel = axes({"a": [run([0, 10], 1)], "b": [run([0, 500], 1)]})
    lines = {line.get_label(): line for line in panel.lines}
    assert [lines[name].get_xdata()[-1] for name in ("a (1 run)", "b (1 run)")] == [500, 500]
    assert lines["a (1 run)"].get_color() != lines["b (1 run)"].get_color()


def test_between_two_evaluations_the_earlier_one_holds():
    one = {"step": np.array([0, 10, 20]), "y": np.array([0.1, np.nan, 0.3])}
    other = {"step": np.array([0, 15]), "y": np.array([np.nan, 0.5])}
    found = held([one, other], "y", np.array([0, 5, 10, 15, 19, 20, 99]))
    assert found.tolist() == [[0.1, 0.1, 0.1, 0.1, 0.1, 0.3, 0.3], [0, 0, 0, 0.5, 0.5, 0.5, 0.5]]


def test_the_quantiles_are_said(axes):
    panel = axes({"a": [run([0, 10], 1)]}, quantiles=(0.1, 0.9), title="quick $")
    assert texts(panel.figure)[1:] == ["lines: medians; bands: 10–90% of the runs"]


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ({}, {}, "groups must be 1 to 7, got 0"),
        ({str(i): [run([0], 1)] for i in range(8)}, {}, "groups must be 1 to 7, got 8"),
        ({"a": []}, {}, "without one: a"),
        ({"a": [{"step": np.arange(3)}]}, {}, "curves must have the columns"),
        ({"a": [run([0], 1)]}, {"quantiles": (0.9, 0.1)}, "quantiles must be increasing"),
        ({"a": [run([0], 1)]}, {"quantiles": (0.1, 2)}, r"quantiles must be in \[0, 1\], got 2"),
    ],
)
def test_bad_input_is_refused(tmp_path, groups, options, message):
    with pytest.raises(ValueError, match=message):
        plot_bands(groups, tmp_path / "a.png", **options)
    assert not list(tmp_path.iterdir())
