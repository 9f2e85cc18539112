import pytest

from grokfast.analysis import median_time
from grokfast.plots import Beside, plot_published
from tests.plots.drawn import figures, size, texts

pytestmark = pytest.mark.filterwarnings("error")


def row(name, *runs, **more):
    return Beside(name=name, time=median_time(*zip(*runs)), runs=runs, **more)


def marks(axes, marker):
    """The places of a marker, [(x, y)], in the order in which they were drawn."""
    lines = [line for line in axes.lines if line.get_marker() == marker]
    return [(float(x), float(y)) for line in lines for x, y in zip(line.get_xdata(), line.get_ydata())]


def test_a_row_has_what_is_published_the_median_and_every_seed(tmp_path, monkeypatch):
    kept = figures(monkeypatch)
    groups = {
        "beside the paper's": [
            row("slow", (9000, False), published=40_000, note="0 of 1"),
            row("fast", (900, True), (1000, True), (1100, True), published=910, note="44 ×"),
        ],
        "beside a tuned one": [row("tuned", (500, True), (600, True), (1500, False))],
    }
    path = plot_published(groups, tmp_path / "p.png", title="a $ title", threshold=0.95)
    assert size(path)[0] == 1200
    axes = kept[-1].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["slow", "fast", "tuned"]
    assert texts(axes) == ["beside the paper's", "0 of 1", "44 ×", "beside a tuned one", ""]
    assert marks(axes, "s") == [(1000, 2), (600, 4)]
    circles = marks(axes, "o")
    assert [(x, y) for x, y in circles if y < round(y)] == [(40_000, 0.8), (910, 1.8)]
    assert [x for x, y in circles if y > round(y)] == [900, 1000, 1100, 500, 600]
    arrows = marks(axes, ">")
    assert [(x, round(y)) for x, y in arrows if y > round(y)] == [(9000, 1), (1500, 4)]
    assert (9000, 1) in arrows, "a median that was not reached"
    assert axes.get_xlim()[1] > 40_000
    assert axes.get_xlabel() == "step of 95% test accuracy"


def test_nothing_that_is_known_is_an_empty_picture(tmp_path):
    never = Beside(name="never", time=median_time([], []), runs=[])
    assert size(plot_published({"none": [never]}, tmp_path / "p.png"))[0] == 1200


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "groups must be 1 to 3, got 0"),
        ({str(i): [row("one", (1, True))] for i in range(4)}, "groups must be 1 to 3, got 4"),
        ({"a": [row("one", (1, True))], "b": []}, "without one: b"),
    ],
)
def test_what_cannot_be_drawn_is_said(tmp_path, groups, message):
    with pytest.raises(ValueError, match=message):
        plot_published(groups, tmp_path / "p.png")
    assert not list(tmp_path.iterdir())
