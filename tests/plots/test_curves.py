from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from grokfast.plots import plot_curves
from tests.plots.drawn import figures, size

pytestmark = pytest.mark.filterwarnings("error")


def grokking(steps: np.ndarray) -> dict[str, np.ndarray]:
    train, test = 1 / (1 + np.exp(3 - steps / 100)), 1 / (1 + np.exp(9 - steps / 100))
    return {
        "step": steps,
        "train_loss": 5 * (1 - train) + 1e-7,
        "test_loss": 5 * (1 - test) + 1e-7,
        "train_accuracy": train,
        "test_accuracy": test,
        "weight_norm": np.full(len(steps), 30.0),
    }


@pytest.mark.parametrize("t_generalize", [None, 600, 2000])
@pytest.mark.parametrize("t_memorize", [None, 0, 600])
def test_the_picture_is_a_png_of_the_same_size_with_and_without_moments(
    tmp_path: Path, t_memorize: int | None, t_generalize: int | None
) -> None:
    curves = grokking(np.arange(0, 2001, 50))
    path = plot_curves(curves, tmp_path / "a.png", title="run", t_memorize=t_memorize, t_generalize=t_generalize)
    assert path == tmp_path / "a.png"
    assert size(path) == (1200, 800)


def test_marking_a_moment_changes_the_picture(tmp_path: Path) -> None:
    curves = grokking(np.arange(0, 2001, 50))
    moments = [(None, None), (600, None), (None, 600), (600, 1450)]
    pictures = [
        plot_curves(curves, str(tmp_path / f"{i}.png"), title="", t_memorize=m, t_generalize=g).read_bytes()
        for i, (m, g) in enumerate(moments)
    ]
    assert len(set(pictures)) == len(moments)


@pytest.mark.parametrize(
    "steps",
    [[0], [100], [1, 2, 3], [0, 10_000], [150, 900], list(range(5000)), list(range(0, 10**7, 10**5))],
    ids=["step_0", "step_100", "no_step_0", "two", "within_a_decade", "every_step", "long"],
)
def test_any_steps_can_be_drawn(tmp_path: Path, steps: list[int]) -> None:
    curves = grokking(np.array(steps))
    assert size(plot_curves(curves, tmp_path / "a.png", title="", t_memorize=None, t_generalize=None)) == (1200, 800)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("first", [0, 5])
def test_values_that_have_no_place_leave_gaps(tmp_path: Path, value: float, first: int) -> None:
    curves = grokking(np.arange(0, 1000, 100))
    for name in ("train_loss", "test_loss", "train_accuracy"):
        curves[name][first:] = value
    assert size(plot_curves(curves, tmp_path / "a.png", title="", t_memorize=None, t_generalize=None)) == (1200, 800)


def test_extreme_losses_and_any_title_can_be_drawn(tmp_path: Path) -> None:
    curves = grokking(np.arange(10))
    curves["train_loss"][3], curves["test_loss"][4] = 5e-324, 1e308
    path = plot_curves(curves, tmp_path / "a.png", title="lr $10^{-3", t_memorize=None, t_generalize=None)
    assert size(path) == (1200, 800)


def with_splits(*names: str) -> dict[str, np.ndarray]:
    """Curves of more splits than train and test, each with a loss and an accuracy of its own."""
    curves = grokking(np.arange(0, 2001, 50))
    for i, name in enumerate(names):
        curves |= {f"{name}_loss": np.full(41, 2.0 + i), f"{name}_accuracy": np.full(41, 0.1 + 0.01 * i)}
    return curves


@pytest.mark.parametrize("others", [(), ("test_ood", "atomic", "inferred"), tuple(f"test_{i}" for i in range(11))])
def test_every_split_has_its_own_line_in_both_panels_and_in_the_legend(tmp_path, monkeypatch, others) -> None:
    curves = with_splits(*others)
    curves |= {"test_accuracy_1": np.ones(41), "odd_accuracy": np.ones(41), "odd": np.ones(41)}  # of no split
    kept = figures(monkeypatch)
    path = plot_curves(curves, tmp_path / "a.png", title="run", t_memorize=600, t_generalize=1450)
    assert size(path) == (1200, 800)
    figure, names = kept[-1], ["train", "test", *others]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    for axes, quantity in zip(figure.axes, ("accuracy", "loss")):
        lines = {line.get_label(): line for line in axes.lines if line.get_label() in names}
        assert [*lines] == names
        assert len({(line.get_color(), line.get_linestyle()) for line in lines.values()}) == len(names)
        for name, line in lines.items():
            assert np.array_equal(line.get_ydata(), curves[f"{name}_{quantity}"])


def test_moments_have_the_colours_of_the_splits_that_they_are_of(tmp_path, monkeypatch) -> None:
    kept = figures(monkeypatch)
    plot_curves(
        with_splits("test_ood", "inferred"), tmp_path / "a.png", title="", t_memorize=600, t_generalize=1450,
        memorize="inferred", generalize="test_ood",
    )  # fmt: skip
    lines = kept[-1].axes[0].lines
    color = {line.get_label(): line.get_color() for line in lines}
    marked = {line.get_xdata()[0]: line.get_color() for line in lines if len(line.get_xdata()) == 2}
    assert (marked[600], marked[1450]) == (color["inferred"], color["test_ood"])
    with pytest.raises(ValueError, match=r"memorize must be one of 'train', 'test', got 'tran' \(did you mean"):
        plot_curves(with_splits(), "a.png", title="", t_memorize=1, t_generalize=None, memorize="tran")


def test_the_curves_are_not_changed(tmp_path: Path) -> None:
    curves = grokking(np.arange(10))
    curves["test_loss"][3] = np.inf
    before = {name: column.copy() for name, column in curves.items()}
    plot_curves(curves, tmp_path / "a.png", title="", t_memorize=None, t_generalize=None)
    assert all(np.array_equal(before[name], curves[name]) for name in curves)


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    curves = grokking(np.arange(10))
    cases = [
        (grokking(np.array([])), "at least one record"),
        ({"step": curves["step"]}, "missing: train_accuracy, test_accuracy"),
        (curves | {"test_loss": np.zeros(3)}, "one length.*'test_loss': 3"),
    ]
    for bad, message in cases:
        with pytest.raises(ValueError, match=message):
            plot_curves(bad, tmp_path / "a.png", title="", t_memorize=None, t_generalize=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_os_error() -> None:
    with pytest.raises(OSError, match="No space left"):
        plot_curves(grokking(np.arange(10)), "/dev/full", title="", t_memorize=None, t_generalize=None)


def test_nothing_global_is_touched(tmp_path: Path) -> None:
    code = """if True:
        import sys
        import numpy as np
        from grokfast.plots import plot_curves
        assert not any(name.startswith("matplotlib") for name in sys.modules)
        columns = ("step", "train_loss", "test_loss", "train_accuracy", "test_accuracy")
        import matplotlib
        settings = lambda: {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if k != "backend"}
        before = settings()
        plot_curves({c: np.arange(1, 5) / 4 for c in columns}, sys.argv[1], title="", t_memorize=1, t_generalize=None)
        assert "matplotlib.pyplot" not in sys.modules
        assert settings() == before
        assert matplotlib.get_backend(auto_select=False) is None"""
    environment = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "DISPLAY")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
