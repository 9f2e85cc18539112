"""Names and values in pictures are text: no formulas, no characters without a glyph."""

import numpy as np
import pytest
from matplotlib.text import Text

from grokfast.analysis import median_time
from grokfast.plots import Beside, plot_bands, plot_phase_diagram, plot_published, plot_scaling
from tests.plots.drawn import figures

pytestmark = pytest.mark.filterwarnings("error")

NAMES = [r"$\frac{", "$x$", "a\x1b[31m$", r"\$1 $", "x^{2}_$"]
RUN = {
    "step": np.arange(3), "train_accuracy": np.ones(3), "test_accuracy": np.ones(3), "train_loss": np.ones(3),
    "test_loss": np.ones(3),
}  # fmt: skip
TABLE = {
    "status": ["finished"] * len(NAMES), "phase": ["grokking"] * len(NAMES), "t_memorize": [10] * len(NAMES),
    "t_generalize": [100, 200, 300, 400, 500], "diverged_at": [None] * len(NAMES), "steps": [1000] * len(NAMES),
    "collapsed": [False] * len(NAMES), "seed": [0] * len(NAMES), "$k$": NAMES, "$x$": [1.0, 2.0, 3.0, 4.0, 5.0],
}  # fmt: skip


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plot_bands({name: [RUN] for name in NAMES}, path, title="$x"),
        lambda path: plot_published(
            {"$x$": [Beside(name=name, time=median_time([3], [True]), runs=[(3, True)]) for name in NAMES]}, path
        ),
        lambda path: plot_phase_diagram(TABLE, path, x="$k$", y="$x$", title="$x$"),
        lambda path: plot_phase_diagram(TABLE, path, x="seed", y="$x$", by="$k$"),
        lambda path: plot_scaling(TABLE, path, x="$x$", by="$k$", title="$x$"),
    ],
)
def test_what_looks_like_a_formula_is_drawn_as_it_is(draw, tmp_path, monkeypatch):
    kept = figures(monkeypatch)
    draw(tmp_path / "a.png")
    drawn = [_as_drawn(text) for text in kept[-1].findobj(Text)]
    drawn = [text for text in drawn if "$" in text]
    assert drawn
    for name in ("$x$", r"$\frac{"):
        assert any(name in text for text in drawn)


def _as_drawn(text: Text) -> str:
    said, is_formula = text._preprocess_math(text.get_text())
    assert is_formula is False or r"\mathdefault" in said  # ticks of an axis with powers of ten
    return said
