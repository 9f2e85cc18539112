"""The picture of one run: accuracy and loss of both splits against the step, and when it memorised and generalised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_TRAIN, _TEST = "#0072B2", "#D55E00"  # blue and vermillion of Okabe and Ito: told apart by everybody
_FEW = 40  # up to so many evaluations each gets a dot


def plot_curves(
    curves: Mapping[str, np.ndarray],
    path: str | Path,
    *,
    title: str,
    t_memorize: int | None,
    t_generalize: int | None,
    threshold: float = 0.99,
) -> Path:
    """Draw the curves of a run (the columns of `RunStore.curves`) as a PNG of 1200 × 800 pixels, and return its path.

    The steps are on a logarithmic axis that begins with a linear stretch, so that step 0 has its place. `t_memorize` and
    `t_generalize` are the steps to mark, or None; `threshold` is the accuracy that they refer to. Values that are not
    finite, and losses that are not positive, leave gaps.

    Raises ValueError if a column is missing, if the columns differ in length or if there is no record, OSError if the
    file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = _columns(curves)
    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True)
    steps = columns["step"]
    for axes, quantity in ((top, "accuracy"), (bottom, "loss")):
        marker = "o" if len(steps) <= _FEW else ""
        for split, color in (("train", _TRAIN), ("test", _TEST)):
            values = columns[f"{split}_{quantity}"]
            axes.plot(steps, values, color=color, lw=2, marker=marker, ms=4, label=split, zorder=3)
        for moment, color in ((t_memorize, _TRAIN), (t_generalize, _TEST)):
            if moment is not None:
                axes.axvline(moment, color=color, lw=1.2, ls=(0, (4, 3)), zorder=2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(which="major", color="0.92", lw=0.8)
        axes.set_axisbelow(True)
    _step_axis(bottom, steps)
    _accuracy_axis(top, threshold)
    bottom.set_ylabel("loss")
    bottom.set_yscale("log", nonpositive="mask")
    if t_memorize is not None:
        _label(top, t_memorize, f"memorised at {t_memorize:,} ", "right", _TRAIN)
    if t_generalize is not None:
        _label(top, t_generalize, f" generalised at {t_generalize:,}", "left", _TEST)
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
    top.legend(loc="center left", frameon=False, fontsize=12)
    figure.savefig(path, format="png", dpi=100)
    return Path(path)


def _columns(curves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns to draw in float64, with NaN for what is not finite."""
    names = ("step", "train_accuracy", "test_accuracy", "train_loss", "test_loss")
    if missing := [name for name in names if name not in curves]:
        raise ValueError(f"curves must have the columns {', '.join(names)}; missing: {', '.join(missing)}")
    columns = {name: np.asarray(curves[name], dtype=np.float64) for name in names}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"curves must have columns of one length, got {lengths}")
    if lengths["step"] == 0:
        raise ValueError("curves must have at least one record, got none")
    return {name: np.where(np.isfinite(column), column, np.nan) for name, column in columns.items()}


def _step_axis(axes: Any, steps: np.ndarray) -> None:
    from matplotlib.ticker import EngFormatter

    first, last = float(steps.min()), float(steps.max())
    positive = steps[steps > 0]
    threshold = float(positive.min()) if len(positive) else 1.0
    axes.set_xscale("symlog", linthresh=threshold, linscale=0.3)
    axes.set_xlim(first, last if last > first else first + 1)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("step")


def _accuracy_axis(axes: Any, threshold: float) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.axhline(threshold, color="0.6", lw=0.8, ls=":", zorder=1)
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel("accuracy")


def _label(axes: Any, step: int, text: str, side: str, color: str) -> None:
    axes.text(step, 1.02, text, color=color, ha=side, va="bottom", fontsize=11, transform=axes.get_xaxis_transform())
