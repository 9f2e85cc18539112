import numpy as np
import pytest

from grokfast import Experiment, train
from grokfast.plots import plot_progress
from tests.plots.drawn import figures, size

pytestmark = pytest.mark.filterwarnings("error")
N = 30
CURVES = {"step": np.arange(N) * 100, "train_loss": np.linspace(4, 0.001, N), "test_loss": np.linspace(4, 1, N)}
CURVES |= {"restricted_loss": np.linspace(4, 0.1, N), "excluded_loss": np.linspace(0.0, 5, N)}


def test_the_four_losses_are_drawn_and_the_moments_marked(tmp_path, monkeypatch):
    kept = figures(monkeypatch)
    path = plot_progress(CURVES, tmp_path / "a.png", title="a $ run", t_memorize=500, t_generalize=2000)
    assert size(path) == (1200, 600)
    (axes,) = kept[-1].axes
    curves = axes.lines[:4]
    for line, name in zip(curves, ("train_loss", "test_loss", "restricted_loss", "excluded_loss")):
        there = CURVES[name] > 0
        np.testing.assert_array_equal(line.get_ydata()[there], CURVES[name][there])
        assert np.isnan(line.get_ydata()[~there]).all()  # no logarithm
    assert [[*line.get_xdata()] for line in axes.lines[4:]] == [[500, 500], [2000, 2000]]
    assert (axes.get_xscale(), axes.get_yscale()) == ("symlog", "log")


def test_a_run_with_the_probe_has_it_among_its_pictures():
    changes = {"task.p": 7, "model.width": 16, "schedule.steps": 20, "device": "cpu"}
    quick = Experiment.preset("quick").override(changes)
    assert train(quick.override({"probes": "progress"})).plot("progress").axes
    with pytest.raises(ValueError, match="what must be one of"):
        train(quick).plot("progress")


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="missing: excluded_loss"):
        plot_progress({name: own for name, own in CURVES.items() if name != "excluded_loss"}, title="")
    with pytest.raises(ValueError, match="columns of one length"):
        plot_progress({**CURVES, "test_loss": np.ones(3)}, title="")
